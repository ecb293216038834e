import { CreateError, InstanceGoneError, PoolClosedError, PrepareError } from '../errors.js';
import type { DestroyReason, LeaseRejection } from '../hooks/events.js';
import { NEUTRAL_CONTEXT } from '../internal/async-context.js';
import type { Creator } from './creator.js';
import type { IdleInstances } from './idle-instances.js';
import {
  DONE,
  IDLE,
  type Instance,
  type InstanceRegistry,
  LeaseRequest,
  type LeaseRequestExtras,
} from './instances.js';
import type { Lease } from './lease.js';
import type { Leases } from './leases.js';
import type { LeaseOptions, PoolSettings } from './options.js';
import type { PoolState } from './pool-state.js';
import type { Teardown } from './teardown.js';
import type { Waiters } from './waiters.js';

// Lifetimes end up to this much earlier than allowed, so that instances made together do not expire together.
const LIFETIME_JITTER = 0.1;

/**
 * Assigns instances to waiters.
 *
 * Invariants:
 * - A free instance goes to the next waiter in the step in which it is free; it is idle only if no request waits for it.
 * - FIFO: while a request waits, a new one queues behind it.
 * - A waiter keeps its position until a healthy instance is available, and never sees another.
 * - As many instances are being created or validated as there are waiters, as far as `size` allows: no fewer and no more.
 */
export class Scheduler<T> {
  readonly #pool: PoolState<T>;
  readonly #settings: PoolSettings<T>;
  readonly #instances: InstanceRegistry<T>;
  readonly #waiters: Waiters<T>;
  readonly #leases: Leases<T>;
  readonly #idle: IdleInstances<T>;
  readonly #creator: Creator<T>;
  readonly #teardown: Teardown<T>;
  /** The waiter that is joining in this step. */
  #newest: LeaseRequest<T> | undefined;

  constructor(
    pool: PoolState<T>,
    leases: Leases<T>,
    idle: IdleInstances<T>,
    creator: Creator<T>,
    teardown: Teardown<T>,
  ) {
    this.#pool = pool;
    this.#settings = pool.settings;
    this.#instances = pool.instances;
    this.#waiters = pool.waiters;
    this.#leases = leases;
    this.#idle = idle;
    this.#creator = creator;
    this.#teardown = teardown;
    leases.onReturn = (instance) => this.#offer(instance);
    pool.waiters.onCapFreed = () => this.#offerClaimed();
    creator.onReady = () => this.plan();
    teardown.onChange = (instance) => {
      if (instance.uses === 0) creator.yieldTurn();
      this.plan();
    };
  }

  /** Serves a request, now or when its turn comes. */
  acquire(extras: LeaseRequestExtras<T> | undefined): Promise<Lease<T>> {
    const options = extras?.options;
    // First, since the host's `tenants` may abort the request or close the pool.
    if (extras !== undefined && options?.tenant !== undefined) {
      const error = this.#tenantError(extras, options.tenant);
      if (error !== undefined) return error;
    }
    if (options?.signal?.aborted) return this.#reject(options, 'aborted', options.signal.reason);
    const { status } = this.#pool;
    if (status !== 'open') {
      return this.#reject(options, 'closed', new PoolClosedError(this.#settings.name, status));
    }
    const holder = extras?.holder;
    // Waiters of its tenant that are next, as far as the cap goes, are served first.
    const isCapped = holder?.isFull(options?.instanceId === undefined ? holder.queued + 1 : 1) === true;
    const instance = options?.instanceId === undefined && !isCapped ? this.#takeFree() : undefined;
    if (instance === undefined) return this.#enqueue(extras, isCapped);
    const request = new LeaseRequest(extras);
    this.#waiters.charge(request);
    const lease = this.#leases.grant(instance, request);
    this.#pool.events.acquired(instance.id, options, 0);
    if (instance.evictionReason !== undefined || this.#instances.minIdle > 0) this.plan();
    return Promise.resolve(lease);
  }

  /** Finds the tenant of a request; the rejection, if its share is invalid. */
  #tenantError(extras: LeaseRequestExtras<T>, tenant: string): Promise<never> | undefined {
    try {
      this.#waiters.assignTenant(extras, tenant);
      return undefined;
    } catch (error) {
      return Promise.reject(error);
    }
  }

  /** Grants nothing until `resume` or a drain; requests wait. */
  pause(): void {
    if (this.#pool.status === 'open') this.#pool.paused = true;
  }

  resume(): void {
    if (!this.#pool.paused) return;
    this.#pool.paused = false;
    this.#offerClaimed();
  }

  /** Hands idle instances to the waiters that accept no other, and starts what is missing. */
  #offerClaimed(): void {
    for (const instance of [...this.#instances]) {
      if (this.#pool.paused || instance.state.kind !== 'idle' || !this.#waiters.claims(instance)) continue;
      this.#idle.remove(instance);
      void this.#offer(instance);
    }
    this.plan();
  }

  /** Starts what is missing: instances for the waiters, `min` and `minIdle`. */
  plan(): void {
    while (!this.#pool.paused && this.#instances.idle > 0 && this.#waiters.length > 0) {
      const idle = this.#idle.peek();
      // Enough instances are being created and validated already.
      if (idle === undefined || (this.#isDue(idle) && this.#uncovered() < 1)) break;
      this.#idle.pop();
      void this.#offer(idle);
    }
    const needed = this.#creationsNeeded();
    if (needed > 0) this.#creator.start(needed, this.#startCreation);
  }

  /** Destroys an instance: now if it is idle, otherwise when it is released. */
  evict(instance: Instance<T>, reason: DestroyReason): void {
    if (instance.state.kind === 'idle') {
      this.#idle.remove(instance);
      void this.#teardown.destroy(instance, reason);
    } else {
      this.#instances.evict(instance, reason);
      this.plan();
    }
  }

  /** Validates an idle instance, and keeps or destroys it; settles when that is decided. */
  revalidate(instance: Instance<T>): Promise<void> {
    this.#idle.remove(instance);
    return NEUTRAL_CONTEXT.run(() => this.#validate(instance));
  }

  /** Takes the idle instance that can be leased in this step, if no request waits and no callback has to run first. */
  #takeFree(): Instance<T> | undefined {
    if (this.#instances.idle === 0 || this.#waiters.length > 0) return undefined;
    if (this.#pool.paused || this.#settings.prepare !== undefined) return undefined;
    const idle = this.#idle.peek();
    return idle === undefined || this.#isDue(idle) ? undefined : this.#idle.pop();
  }

  #enqueue(extras: LeaseRequestExtras<T> | undefined, isCapped: boolean): Promise<Lease<T>> {
    const options = extras?.options;
    const rejection = this.#rejectionOf(options, isCapped);
    if (rejection !== undefined) return this.#reject(options, rejection.reason, rejection.error);
    let claimed: Instance<T> | undefined;
    if (extras !== undefined && options?.instanceId !== undefined) {
      claimed = this.#instances.find(options.instanceId);
      extras.claimed = claimed;
    }
    const waiter = this.#waiters.join(extras);
    const promise = new Promise<Lease<T>>((resolve) => {
      waiter.settle = resolve;
    });
    if (claimed?.state.kind === 'idle' && !isCapped && !this.#pool.paused) {
      this.#idle.remove(claimed);
      void this.#offer(claimed);
    }
    this.#newest = waiter;
    this.plan();
    this.#newest = undefined;
    return this.#pool.events.hasWaiterListeners ? this.#emitOutcome(waiter, promise) : promise;
  }

  /** Why a request cannot wait, if it cannot. */
  #rejectionOf(
    options: LeaseOptions | undefined,
    isCapped: boolean,
  ): { readonly reason: LeaseRejection; readonly error: Error } | undefined {
    const { name, maxQueue } = this.#settings;
    const { coming, idle, room } = this.#instances;
    const { paused } = this.#pool;
    const mustWait = isCapped || paused;
    const { length } = this.#waiters;
    let isIdle = idle > length;
    let { unserved } = this.#waiters;
    if (options?.instanceId === undefined) {
      // A request for which an instance is idle, on its way or can be created does not queue. A cap leaves those to others.
      const available = paused ? 0 : coming + idle + Math.max(0, room);
      unserved += 1 - (isCapped ? Math.min(length, available) : available);
    } else {
      const claimed = this.#instances.find(options.instanceId);
      if (claimed === undefined || claimed.evictionReason !== undefined) {
        return { reason: 'instance-gone', error: new InstanceGoneError(name, options.instanceId) };
      }
      isIdle = claimed.state.kind === 'idle';
      if (!isIdle || mustWait) unserved++;
    }
    if ((!isIdle || mustWait) && options?.timeoutMs === 0) {
      return { reason: 'timeout', error: this.#waiters.timeoutError(0, 'wait') };
    }
    return unserved > maxQueue ? { reason: 'queue-full', error: this.#waiters.queueFullError() } : undefined;
  }

  /** Rejects a request that has not joined the waiters. */
  #reject(options: LeaseOptions | undefined, reason: LeaseRejection, error: unknown): Promise<never> {
    this.#waiters.rejected++;
    this.#pool.events.rejected(options, reason, 0, error);
    return Promise.reject(error);
  }

  /**
   * Emits what becomes of a waiter. After the caller's own await: elsewhere a listener would run in the context of the
   * task that released or aborted.
   */
  #emitOutcome(waiter: LeaseRequest<T>, promise: Promise<Lease<T>>): Promise<Lease<T>> {
    const { events } = this.#pool;
    const { options } = waiter;
    if (waiter.state.kind === 'waiting') events.queued(waiter);
    return promise.then(
      (lease) => {
        events.acquired(lease.instanceId, options, lease.waitMs);
        return lease;
      },
      (error: unknown) => {
        if (waiter.state.kind === 'rejected') {
          events.rejected(options, waiter.state.reason, waiter.state.waitMs, error);
        }
        throw error;
      },
    );
  }

  /**
   * Hands an instance without a holder to the next waiter, or makes it idle. The promise settles when an instance that
   * has to be destroyed is gone.
   */
  #offer(instance: Instance<T>, isHealthy = false): Promise<void> {
    const reason = instance.evictionReason ?? (this.#instances.surplus > 0 ? 'resized' : undefined);
    if (reason !== undefined) return this.#teardown.destroy(instance, reason);
    const isWanted = this.#waiters.wants(instance);
    if (!isWanted || this.#pool.paused) {
      if (!isWanted) this.#waiters.noteIdle();
      this.#instances.move(instance, IDLE);
      this.#idle.add(instance);
      this.#instances.onProgress?.();
    } else if (!isHealthy && this.#isDue(instance)) {
      void NEUTRAL_CONTEXT.run(() => this.#validate(instance));
    } else {
      const waiter = this.#waiters.next(instance);
      if (waiter === undefined) return DONE;
      if (this.#settings.prepare === undefined) this.#grant(instance, waiter);
      else void (waiter.extras?.context ?? NEUTRAL_CONTEXT).run(() => this.#prepare(instance, waiter));
    }
    return DONE;
  }

  #grant(instance: Instance<T>, waiter: LeaseRequest<T>): void {
    this.#waiters.serve(waiter, this.#leases.grant(instance, waiter));
    // Its last use: it no longer counts for `min`.
    if (instance.evictionReason !== undefined) this.plan();
  }

  /** Creations needed beyond those in progress, as far as `size` allows. */
  #creationsNeeded(): number {
    const { min, minIdle, usable, idle, room } = this.#instances;
    return Math.min(room, Math.max(min - usable, minIdle + this.#uncovered() - idle));
  }

  /** Waiters for which no instance is being created or validated. */
  #uncovered(): number {
    return this.#waiters.length - this.#instances.coming;
  }

  #isDue({ goodMs }: Instance<T>): boolean {
    const { validate, validateAfterIdleMs, turnNow } = this.#settings;
    return validate !== undefined && turnNow() - goodMs >= validateAfterIdleMs;
  }

  readonly #startCreation = (): Promise<void> => NEUTRAL_CONTEXT.runInAsyncScope(this.#create, this);

  /** One creation, from the waiter it is made for to an instance or a failure. */
  async #create(): Promise<void> {
    // A queued creation may have become superfluous, or another one has failed.
    if (!this.#creator.isReady || this.#creationsNeeded() < 1) return;
    const { callbacks, events } = this.#pool;
    const newest = this.#uncovered() === 1 ? this.#newest : undefined;
    const { instance, call } = this.#instances.enter((id) =>
      callbacks.create(id, (pipeline) => this.#teardown.destroyLate(id, pipeline)),
    );
    instance.madeFor = this.#waiters.expect(instance, newest);
    events.creating(instance.id);
    const { now } = this.#settings;
    const startMs = now();
    try {
      instance.pipeline = await call.run();
    } catch (error) {
      this.#createFailed(instance, error, now() - startMs);
      return;
    }
    this.#created(instance, now() - startMs);
  }

  #created(instance: Instance<T>, createMs: number): void {
    const { maxLifetimeMs } = this.#settings;
    this.#creator.succeeded();
    this.#instances.created++;
    this.#instances.lastCreateError = undefined;
    instance.bornMs = this.#settings.turnNow();
    instance.usedMs = instance.bornMs;
    instance.goodMs = instance.bornMs;
    if (maxLifetimeMs !== undefined) {
      const lifetimeMs = maxLifetimeMs * (1 - LIFETIME_JITTER * Math.random());
      instance.lifetimeTimer = setTimeout(() => this.evict(instance, 'lifetime'), lifetimeMs).unref();
    }
    this.#pool.events.created(instance.id, createMs);
    this.#unassign(instance);
    void this.#offer(instance, true);
    this.plan();
    this.#waiters.checkWarmUps();
  }

  /**
   * Frees the slot and plans the next creation. The waiter that this one was for, if it still waits, is rejected, or keeps
   * its position with `onCreateFailure: 'retry'`; no other is affected.
   */
  #createFailed(instance: Instance<T>, error: unknown, createMs: number): void {
    const { id } = instance;
    const waiter = this.#unassign(instance);
    const retryAfterMs = this.#creator.failed();
    const { failures } = this.#creator;
    this.#instances.lastCreateError = error;
    this.#instances.createFailed++;
    this.#instances.leave(instance);
    this.#pool.events.createFailed(id, error, { createMs, failures, retryAfterMs });
    this.#waiters.rejectClaims(instance);
    if (this.#settings.onCreateFailure === 'reject') {
      this.#waiters.failWarmUps(() => new CreateError(this.#waiters.poolFigures(0, id), error));
      if (waiter?.state.kind === 'waiting') {
        const figures = this.#waiters.poolFigures(waiter.elapsedMs(this.#settings.turnNow()), id);
        this.#waiters.reject(waiter, 'create-failed', new CreateError(figures, error));
      }
    }
    this.plan();
    this.#instances.onProgress?.();
  }

  /** The instance is no longer being created or validated: the waiter that it was for has none coming. */
  #unassign(instance: Instance<T>): LeaseRequest<T> | undefined {
    const waiter = instance.madeFor;
    instance.madeFor = undefined;
    if (waiter?.extras !== undefined) waiter.extras.awaited = undefined;
    return waiter;
  }

  async #validate(instance: Instance<T>): Promise<void> {
    const { callbacks, events } = this.#pool;
    const call = callbacks.validate(instance);
    this.#instances.move(instance, { kind: 'validating', call });
    instance.madeFor = this.#waiters.expect(instance);
    let answer: unknown;
    let failure: { readonly error: unknown } | undefined;
    try {
      answer = await call.run();
    } catch (error) {
      failure = { error };
    }
    this.#unassign(instance);
    if (answer === true) {
      instance.goodMs = this.#settings.turnNow();
      void this.#offer(instance, true);
      this.plan();
    } else {
      events.unhealthy(instance.id, 'validate', failure);
      void this.#teardown.destroy(instance, instance.evictionReason ?? 'unhealthy');
    }
  }

  async #prepare(instance: Instance<T>, waiter: LeaseRequest<T>): Promise<void> {
    const { callbacks, events } = this.#pool;
    const { options } = waiter;
    const call = callbacks.ofTask('prepare', instance, options, waiter.extras?.context);
    this.#instances.move(instance, { kind: 'preparing', call });
    this.#waiters.prepares(waiter, call);
    let failure: { readonly error: unknown } | undefined;
    try {
      await call.run();
    } catch (error) {
      failure = { error };
    }
    // If the waiter left, the instance is half prepared for its task: no other task may get it.
    const isWanted = waiter.state.kind === 'preparing';
    if (failure === undefined && isWanted) {
      this.#grant(instance, waiter);
      return;
    }
    if (isWanted) {
      events.unhealthy(instance.id, 'prepare', failure, options);
      const figures = this.#waiters.poolFigures(waiter.elapsedMs(this.#settings.turnNow()), instance.id);
      this.#waiters.reject(waiter, 'prepare-failed', new PrepareError(figures, failure?.error));
    }
    void this.#teardown.destroy(instance, instance.evictionReason ?? 'prepare-failed');
  }
}
