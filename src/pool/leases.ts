import { DrainTimeoutError, type LeaseHolder, LeaseReleasedError, LeaseRevokedError } from '../errors.js';
import type { RevocationReason } from '../hooks/events.js';
import { NEUTRAL_CONTEXT } from '../internal/async-context.js';
import { options as checkOptions, flag } from '../internal/validate.js';
import {
  DONE,
  HELD,
  type Instance,
  type InstanceRegistry,
  type LeaseRequest,
  LeaseRequestExtras,
  RELEASED,
} from './instances.js';
import type { Lease, ReleaseOptions } from './lease.js';
import type { PoolSettings } from './options.js';
import type { PoolState } from './pool-state.js';

/** The lease that a holder is given for a request. */
class PoolLease<T> implements Lease<T> {
  readonly #request: LeaseRequest<T>;
  readonly #leases: Leases<T>;
  readonly waitMs: number;

  constructor(request: LeaseRequest<T>, leases: Leases<T>, waitMs: number) {
    this.#request = request;
    this.#leases = leases;
    this.waitMs = waitMs;
  }

  get pipeline(): T {
    const { state, instance } = this.#request;
    if (state.kind === 'held') return instance.pipeline as T;
    throw state.kind === 'revoked' ? state.error : new LeaseReleasedError(this.#leases.source, instance.id);
  }

  get instanceId(): number {
    return this.#request.instance.id;
  }

  get taskId(): string | undefined {
    return this.#request.options?.taskId;
  }

  get signal(): AbortSignal {
    return this.#request.abortable.signal;
  }

  get watchable(): AbortSignal {
    return this.#request.abortable.watchable;
  }

  get ended(): Promise<void> {
    return this.#request.ended;
  }

  get isHeld(): boolean {
    return this.#request.state.kind === 'held';
  }

  abort(reason: unknown): void {
    this.#leases.abort(this.#request, reason);
  }

  release(options?: ReleaseOptions): Promise<void> {
    return this.#leases.release(this.#request, options);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#leases.release(this.#request, undefined);
  }
}

/**
 * Grants leases, and ends them.
 *
 * Invariants:
 * - An instance has at most one lease, and a lease ends once: by release or by revocation, whichever comes first.
 * - Whatever a holder does after that affects no other holder.
 */
export class Leases<T> {
  acquired = 0;
  released = 0;
  revoked = 0;
  /** Called with an instance that was released and reset; settles when it is available again, or gone. */
  onReturn!: (instance: Instance<T>) => Promise<void>;
  readonly source: string;
  readonly #pool: PoolState<T>;
  readonly #settings: PoolSettings<T>;
  readonly #instances: InstanceRegistry<T>;
  readonly #isWatched: boolean;
  /** Finds leases that were dropped without release; it keeps the request, never the lease. */
  readonly #dropped: FinalizationRegistry<LeaseRequest<T>> | undefined;

  constructor(pool: PoolState<T>) {
    const { name, leakWarningMs, maxLeaseMs } = pool.settings;
    this.source = name;
    this.#pool = pool;
    this.#settings = pool.settings;
    this.#instances = pool.instances;
    this.#isWatched = leakWarningMs !== undefined || maxLeaseMs !== undefined;
    if (leakWarningMs !== undefined) this.#dropped = new FinalizationRegistry(this.#onDropped);
  }

  /** Leases an instance that has no holder. */
  grant(instance: Instance<T>, request: LeaseRequest<T>): Lease<T> {
    // First: the host's clock may abort it, which comes too late.
    request.state = HELD;
    const now = this.#settings.turnNow() | 0;
    // A request that did not wait has no start.
    const waitMs = request.arrival === 0 ? 0 : (now - request.sinceMs) | 0;
    request.sinceMs = now;
    request.instance = instance;
    this.#instances.move(instance, request);
    this.acquired++;
    const lease = new PoolLease(request, this, waitMs);
    if (this.#isWatched) this.#watch(request, lease);
    if (++instance.uses >= this.#settings.maxUses) this.#instances.evict(instance, 'uses');
    return lease;
  }

  release(request: LeaseRequest<T>, options: ReleaseOptions | undefined): Promise<void> {
    if (options === undefined) return this.#end(request, false);
    let discard = true;
    try {
      discard = checkOptions('release', options, ['discard']).discard ?? false;
      flag('discard', discard);
    } catch (error) {
      // A misspelt option must not cost the slot; its meaning is unknown, so the instance is not trusted.
      void this.#end(request, true);
      throw error;
    }
    return this.#end(request, discard);
  }

  /** Aborts the lease's signal without revoking it. */
  abort(request: LeaseRequest<T>, reason: unknown): void {
    request.context.run(() => request.abortable.fire(reason));
  }

  /** Revokes a lease: its signal aborts, its instance is destroyed. */
  revoke(request: LeaseRequest<T>, reason: RevocationReason): void {
    if (request.state.kind !== 'held') return;
    const { instance, options } = request;
    const { events, teardown, waiters } = this.#pool;
    const { id: instanceId } = instance;
    const error = new LeaseRevokedError(this.source, instanceId, reason);
    request.state = { kind: 'revoked', done: request.ended, error };
    if (this.#isWatched) this.#unwatch(request);
    request.context.run(() => {
      request.abortable.fire(error);
      this.revoked++;
      const isCapFreed = waiters.settle(request);
      const done = teardown.destroy(instance, reason === 'closed' ? 'closed' : 'revoked');
      if (isCapFreed) waiters.onCapFreed();
      request.end({ kind: 'revoked', done, error });
      const heldMs = request.elapsedMs(this.#settings.turnNow());
      events.emit('lease:revoked', { instanceId, heldMs, reason }, undefined, options);
    });
  }

  /** Names the holders, the oldest instance first. */
  drainTimeoutError(timeoutMs: number): DrainTimeoutError {
    const holders = this.#holders();
    const who = holders.map(
      ({ instanceId, taskId, heldMs }) =>
        `instance ${instanceId}${taskId === undefined ? '' : ` by task ${taskId}`} for ${Math.round(heldMs)} ms`,
    );
    const what = `held are ${who.join(', ') || 'none'}`;
    return new DrainTimeoutError(this.source, timeoutMs, holders.length, holders, what);
  }

  #holders(): LeaseHolder[] {
    const holders: LeaseHolder[] = [];
    for (const { id: instanceId, state } of this.#instances) {
      if (state.kind !== 'leased') continue;
      const taskId = state.options?.taskId;
      const stack = state.extras?.site?.stack;
      holders.push({
        instanceId,
        heldMs: state.elapsedMs(this.#settings.turnNow()),
        ...(taskId === undefined ? {} : { taskId }),
        ...(stack === undefined ? {} : { stack }),
      });
    }
    return holders;
  }

  #end(request: LeaseRequest<T>, discard: boolean): Promise<void> {
    const { state, instance } = request;
    if (state.kind === 'released' || state.kind === 'revoked') return state.done;
    request.state = RELEASED;
    this.released++;
    const isCapFreed = request.extras !== undefined && this.#pool.waiters.settle(request);
    const now = this.#settings.turnNow();
    if (this.#isWatched) this.#unwatch(request);
    instance.usedMs = now;
    instance.goodMs = now;
    let done: Promise<void>;
    if (discard) {
      done = this.#pool.teardown.destroy(instance, 'discarded');
    } else if (
      this.#settings.reset !== undefined &&
      instance.evictionReason === undefined &&
      this.#instances.surplus <= 0
    ) {
      done = request.context.run(() => this.#reset(request));
    } else {
      done = this.onReturn(instance);
    }
    if (isCapFreed) this.#pool.waiters.onCapFreed();
    request.end(done === DONE ? RELEASED : { kind: 'released', done });
    if (request.extras?.isOverdue) this.#emitLeaked(request, 'returned');
    this.#pool.events.released(instance.id, request.options, request.elapsedMs(now), discard);
    return done;
  }

  async #reset(request: LeaseRequest<T>): Promise<void> {
    const { instance, options } = request;
    const { id: instanceId, pipeline } = instance;
    const { events, settings, teardown } = this.#pool;
    const call = this.#instances.begin(instance, 'resetting');
    const { failure } = await call.run('reset', (signal) =>
      settings.reset?.(pipeline as T, request.taskContext(instanceId, signal)),
    );
    if (failure !== undefined) {
      events.emit('instance:unhealthy', { instanceId, stage: 'reset' }, failure, options);
      return teardown.destroy(instance, instance.evictionReason ?? 'reset-failed');
    }
    instance.goodMs = this.#settings.turnNow();
    return this.onReturn(instance);
  }

  #watch(request: LeaseRequest<T>, lease: Lease<T>): void {
    const { maxLeaseMs, leakWarningMs } = this.#settings;
    request.extras ??= new LeaseRequestExtras();
    const { extras } = request;
    // The timers must not keep the context of the task that released the instance alive.
    NEUTRAL_CONTEXT.run(() => {
      if (maxLeaseMs !== undefined) {
        extras.revokeTimer = setTimeout(this.#onMaxLease, maxLeaseMs, request).unref();
      }
      if (leakWarningMs !== undefined) {
        extras.leakTimer = setTimeout(this.#onOverdue, leakWarningMs, request).unref();
      }
    });
    this.#dropped?.register(lease, request, request);
  }

  #unwatch(request: LeaseRequest<T>): void {
    clearTimeout(request.extras?.revokeTimer);
    clearTimeout(request.extras?.leakTimer);
    this.#dropped?.unregister(request);
  }

  #emitLeaked(request: LeaseRequest<T>, kind: 'overdue' | 'returned' | 'collected'): void {
    const { instance, options, extras } = request;
    const heldMs = request.elapsedMs(this.#settings.turnNow());
    const stack = extras?.site?.stack;
    const fields = { instanceId: instance.id, heldMs, kind, ...(stack === undefined ? {} : { stack }) };
    this.#pool.events.emit('lease:leaked', fields, undefined, options);
  }

  readonly #onMaxLease = (request: LeaseRequest<T>): void => this.revoke(request, 'max-lease');

  readonly #onOverdue = (request: LeaseRequest<T>): void => {
    if (request.extras !== undefined) request.extras.isOverdue = true;
    NEUTRAL_CONTEXT.run(() => this.#emitLeaked(request, 'overdue'));
  };

  readonly #onDropped = (request: LeaseRequest<T>): void => {
    if (request.state.kind !== 'held') return;
    NEUTRAL_CONTEXT.run(() => this.#emitLeaked(request, 'collected'));
    this.revoke(request, 'abandoned');
  };
}
