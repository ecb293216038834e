import { InstanceGoneError, PoolClosedError, PrepareError } from '../errors.js';
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
 */
export class Scheduler<T> {
  readonly #pool: PoolState<T>;
  readonly #settings: PoolSettings<T>;
  readonly #instances: InstanceRegistry<T>;
  readonly #waiters: Waiters<T>;
  readonly #leases: Leases<T>;
  readonly #idle: IdleInstances<T>;
  readonly #creator: Creator<T>;

  constructor(pool: PoolState<T>, leases: Leases<T>, idle: IdleInstances<T>, creator: Creator<T>) {
    this.#pool = pool;
    this.#settings = pool.settings;
    this.#instances = pool.instances;
    this.#waiters = pool.waiters;
    this.#leases = leases;
    this.#idle = idle;
    this.#creator = creator;
    leases.onReturn = (instance) => this.#offer(instance);
    pool.waiters.onCapFreed = () => this.#offerClaimed();
    creator.onReady = () => this.plan();
    creator.onCreated = (instance) => this.#add(instance);
    pool.teardown.onChange = (instance) => {
      if (instance.uses === 0) creator.yieldTurn();
      this.plan();
    };
    const { validate, validateIdleEveryMs } = pool.settings;
    if (validate !== undefined)
      idle.validateEvery(validateIdleEveryMs, (instance) => {
        idle.remove(instance);
        return this.#validate(instance);
      });
  }

  /** Serves a request, now or when its turn comes. */
  acquire(extras: LeaseRequestExtras<T> | undefined): Promise<Lease<T>> {
    const options = extras?.options;
    // First, since the host's `tenants` may abort the request or close the pool.
    if (extras !== undefined && options?.tenant !== undefined) {
      try {
        this.#waiters.assignTenant(extras, options.tenant);
      } catch (error) {
        return Promise.reject(error);
      }
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

  /** Assigns idle instances to waiters, and starts the creations that are missing. */
  plan(newest?: LeaseRequest<T>): void {
    while (!this.#pool.paused && this.#instances.idle > 0 && this.#waiters.length > 0) {
      const idle = this.#idle.peek();
      // Enough instances are being created and validated already.
      if (idle === undefined || (this.#isDue(idle) && this.#waiters.uncovered < 1)) break;
      this.#idle.pop();
      void this.#offer(idle);
    }
    this.#creator.start(newest);
  }

  /** Destroys an instance: now if it is idle, otherwise when it is released. */
  evict(instance: Instance<T>, reason: DestroyReason): void {
    if (instance.state.kind === 'idle') {
      this.#idle.remove(instance);
      void this.#pool.teardown.destroy(instance, reason);
    } else {
      this.#instances.evict(instance, reason);
      this.plan();
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
    this.plan(claimed === undefined ? waiter : undefined);
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

  /** Puts a new instance to use. */
  #add(instance: Instance<T>): void {
    const { maxLifetimeMs } = this.#settings;
    if (maxLifetimeMs !== undefined) {
      const lifetimeMs = maxLifetimeMs * (1 - LIFETIME_JITTER * Math.random());
      instance.lifetimeTimer = setTimeout(() => this.evict(instance, 'lifetime'), lifetimeMs).unref();
    }
    void this.#offer(instance, true);
    this.plan();
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

  /**
   * Hands an instance without a holder to the next waiter, or makes it idle. The promise settles when an instance that
   * has to be destroyed is gone.
   */
  #offer(instance: Instance<T>, isHealthy = false): Promise<void> {
    // First: the host's clock may abort the only waiter.
    const isDue = !isHealthy && this.#isDue(instance);
    const reason = instance.evictionReason ?? (this.#instances.surplus > 0 ? 'resized' : undefined);
    if (reason !== undefined) return this.#pool.teardown.destroy(instance, reason);
    const isWanted = this.#waiters.wants(instance);
    if (!isWanted || this.#pool.paused) {
      this.#instances.move(instance, IDLE);
      this.#idle.add(instance);
      if (!isWanted) this.#waiters.noteIdle();
      this.#instances.onProgress?.();
    } else if (isDue) {
      void NEUTRAL_CONTEXT.run(() => this.#validate(instance));
    } else {
      const waiter = this.#waiters.next(instance);
      if (waiter === undefined) return DONE;
      if (this.#settings.prepare === undefined) this.#grant(instance, waiter);
      else void waiter.context.run(() => this.#prepare(instance, waiter));
    }
    return DONE;
  }

  #isDue({ goodMs }: Instance<T>): boolean {
    const { validate, validateAfterIdleMs, turnNow } = this.#settings;
    return validate !== undefined && turnNow() - goodMs >= validateAfterIdleMs;
  }

  async #validate(instance: Instance<T>): Promise<void> {
    const { events, settings, teardown } = this.#pool;
    const { id: instanceId, pipeline } = instance;
    const call = this.#instances.begin(instance, 'validating');
    this.#waiters.expect(instance);
    const { value, failure } = await call.run('validate', (signal) =>
      settings.validate?.(pipeline as T, { instanceId, signal }),
    );
    this.#waiters.unassign(instance);
    if (value === true) {
      instance.goodMs = settings.turnNow();
      void this.#offer(instance, true);
      this.plan();
    } else {
      events.emit('instance:unhealthy', { instanceId, stage: 'validate' }, failure);
      void teardown.destroy(instance, instance.evictionReason ?? 'unhealthy');
    }
  }

  async #prepare(instance: Instance<T>, waiter: LeaseRequest<T>): Promise<void> {
    const { events, settings, teardown } = this.#pool;
    const { id: instanceId, pipeline } = instance;
    const call = this.#instances.begin(instance, 'preparing');
    this.#waiters.prepares(waiter, call);
    const { failure } = await call.run('prepare', (signal) =>
      settings.prepare?.(pipeline as T, waiter.taskContext(instanceId, signal)),
    );
    // If the waiter left, the instance is half prepared for its task: no other task may get it.
    const isWanted = waiter.state.kind === 'preparing';
    if (failure === undefined && isWanted) {
      this.#grant(instance, waiter);
      return;
    }
    if (isWanted) {
      events.emit('instance:unhealthy', { instanceId, stage: 'prepare' }, failure, waiter.options);
      const figures = this.#waiters.poolFigures(instanceId, waiter);
      this.#waiters.reject(waiter, 'prepare-failed', new PrepareError(figures, failure?.error));
    }
    void teardown.destroy(instance, instance.evictionReason ?? 'prepare-failed');
  }

  #grant(instance: Instance<T>, waiter: LeaseRequest<T>): void {
    this.#waiters.serve(waiter, this.#leases.grant(instance, waiter));
    // Its last use: it no longer counts for `min`.
    if (instance.evictionReason !== undefined) this.plan();
  }
}
