/**
 * The pool. What is where in this folder:
 *
 * - `options`, `lease`: the public types, and the validation of options
 * - `pool-state`: what the parts of a pool share: `instances` (states of instances and requests, their numbers, and calls
 *   of the host's callbacks), `waiters`, `events`, and `teardown`, which destroys instances
 * - `scheduler`: assigns instances to waiters, validates and prepares them
 * - `creator`: creates instances
 * - `leases`: grants and ends leases
 * - `idle-instances`: holds what is idle, over generic-pool
 */
import { PoolClosedError } from '../errors.js';
import type { LifecycleHooks } from '../hooks/lifecycle-hooks.js';
import { withDeadline } from '../internal/abort.js';
import { AsyncContext, NEUTRAL_CONTEXT } from '../internal/async-context.js';
import { Condition } from '../internal/condition.js';
import {
  abortSignal,
  checkEach,
  options as checkOptions,
  durationMs,
  refusal,
  wholeNumber,
} from '../internal/validate.js';
import { Creator } from './creator.js';
import { IdleInstances } from './idle-instances.js';
import { LeaseRequestExtras } from './instances.js';
import type { Lease } from './lease.js';
import { Leases } from './leases.js';
import {
  LEASE_CHECKS,
  type LeaseOptions,
  type PipelinePoolOptions,
  type PoolSettings,
  type PoolStats,
  poolSettings,
} from './options.js';
import { PoolState } from './pool-state.js';
import { Scheduler } from './scheduler.js';

/** How long `close` waits for the holders by default. */
const CLOSE_GRACE_MS = 5_000;

/**
 * A pool of stateful, expensive instances, each leased to one holder at a time.
 *
 * Guarantees:
 * - At most `size` instances are alive at any moment, counted from the start of `create` to the end of `destroy`. A
 *   callback that exceeds its deadline gives up its slot, and an event reports it.
 * - An instance has at most one holder, and only a healthy instance is leased.
 * - FIFO by priority: a request is served in its turn, or rejected with a reason of its own, and leaves nothing behind.
 * - Whatever a callback does (reject, throw synchronously, never settle, return nonsense) affects at most the request that
 *   it served: never a slot, never another waiter, and there is never an unhandled rejection.
 *
 * - Everything that has begun ends: every waiter and every promise is settled, whenever and however often `drain` and
 *   `close` are called. A closed pool has no timers and, once `close` has settled, no instances.
 *
 * A waiter takes whichever instance is available first: one created for it, or one released in the meantime.
 *
 * @throws {TypeError | RangeError} naming an invalid option and its value
 *
 * @example
 * const pool = new PipelinePool({
 *   size: 5,
 *   create: ({ instanceId, signal }) => ResearchPipeline.start(instanceId, { signal }),
 *   reset: (pipeline) => pipeline.forgetTask(),
 *   destroy: (pipeline) => pipeline.stop(),
 * });
 * const answer = await pool.use((pipeline, { signal }) => pipeline.research(question, signal), { taskId });
 */
export class PipelinePool<T> implements AsyncDisposable {
  /** The `source` of its events and errors. */
  readonly name: string;
  /** Emits the events of this pool. */
  readonly hooks: LifecycleHooks;
  readonly #pool: PoolState<T>;
  readonly #settings: PoolSettings<T>;
  readonly #leases: Leases<T>;
  readonly #idle: IdleInstances<T>;
  readonly #creator: Creator<T>;
  readonly #scheduler: Scheduler<T>;
  readonly #unused: Condition;
  readonly #gone: Condition;
  readonly #keepsContext: boolean;

  constructor(options: PipelinePoolOptions<T>) {
    const settings = poolSettings(options);
    const pool = new PoolState(settings);
    const { instances, waiters } = pool;
    this.name = settings.name;
    this.hooks = pool.hooks;
    this.#pool = pool;
    this.#settings = settings;
    this.#leases = new Leases(pool);
    this.#idle = new IdleInstances(settings, instances, pool.teardown);
    this.#creator = new Creator(pool);
    const scheduler = new Scheduler(pool, this.#leases, this.#idle, this.#creator);
    this.#scheduler = scheduler;
    this.#unused = new Condition(
      () => waiters.queued + instances.leased + instances.preparing + instances.resetting === 0,
    );
    this.#gone = new Condition(() => instances.live === 0);
    this.#keepsContext = settings.prepare !== undefined || settings.reset !== undefined;
    // Not in this step: the host's `create` may refer to the pool that is being built.
    NEUTRAL_CONTEXT.run(() => queueMicrotask(() => scheduler.plan()));
  }

  /**
   * Leases an instance, now or when its turn comes.
   *
   * Rejects with `signal.reason`, `AcquireTimeoutError`, `QueueFullError`, `CreateError`, `PrepareError`,
   * `InstanceGoneError`, `PoolClosedError`, or a `TypeError` or `RangeError` naming an invalid option.
   *
   * With `instanceId` it waits for that instance and no other. Waiters for the same instance are served by priority, tenant
   * and arrival; between them and the waiters for any instance, the higher priority first, then the earlier arrival.
   *
   * @example
   * await using lease = await pool.acquire({ taskId, signal, timeoutMs: 5_000 });
   */
  acquire(options?: LeaseOptions): Promise<Lease<T>> {
    let extras: LeaseRequestExtras<T> | undefined;
    if (options !== undefined) {
      try {
        checkEach('acquire', options, LEASE_CHECKS);
      } catch (error) {
        return Promise.reject(error);
      }
      extras = new LeaseRequestExtras();
      // A copy: the caller may reuse the object for the next request.
      extras.options = { ...options };
    }
    if (this.#keepsContext) {
      extras ??= new LeaseRequestExtras();
      extras.context = new AsyncContext();
    }
    if (this.#settings.leakWarningMs !== undefined) {
      extras ??= new LeaseRequestExtras();
      extras.site = new Error('The lease was acquired here');
      Error.captureStackTrace(extras.site, this.acquire);
    }
    return this.#scheduler.acquire(extras);
  }

  /**
   * Runs `fn` with a leased instance and releases the lease when it ends, however it ends. A failure of `fn` does not
   * discard the instance: `lease.release({ discard: true })` does.
   *
   * Settles as `fn` does, without waiting for `reset`; rejects as `acquire` does if no lease was granted.
   */
  async use<R>(fn: (pipeline: T, lease: Lease<T>) => R | PromiseLike<R>, options?: LeaseOptions): Promise<R> {
    if (typeof fn !== 'function') throw new TypeError(refusal('fn', 'a function', fn));
    const lease = await this.acquire(options);
    try {
      return await fn(lease.pipeline, lease);
    } finally {
      void lease.release();
    }
  }

  /**
   * Settles when `min` instances exist and `minIdle` of them are idle. The pool creates them in any case; this waits for
   * them, and rejects with `CreateError` as soon as a creation fails (not with `onCreateFailure: 'retry'`),
   * `AcquireTimeoutError`, `PoolClosedError` or `signal.reason`.
   */
  async warmUp(
    options: { readonly signal?: AbortSignal | undefined; readonly timeoutMs?: number | undefined } = {},
  ): Promise<void> {
    const { signal, timeoutMs } = checkOptions('warmUp', options, ['signal', 'timeoutMs']);
    if (signal !== undefined) abortSignal('signal', signal).throwIfAborted();
    if (timeoutMs !== undefined) durationMs('timeoutMs', timeoutMs);
    const { status } = this.#pool;
    if (status !== 'open') throw new PoolClosedError(this.name, status);
    // First: `create` may abort the signal or close the pool.
    const warm = this.#creator.warmUp(signal, timeoutMs);
    this.#scheduler.plan();
    return warm;
  }

  /**
   * Changes how many instances may be alive. Growing serves waiters at once; shrinking destroys idle instances, the longest
   * unused first, and leased ones when they are released.
   */
  resize(size: number): void {
    const { instances } = this.#pool;
    instances.size = wholeNumber('size', size, Math.max(1, this.#settings.min));
    const idle = [...instances].filter(({ state }) => state.kind === 'idle');
    idle.sort((a, b) => a.usedMs - b.usedMs);
    for (const instance of idle) {
      if (instances.surplus > 0) this.#scheduler.evict(instance, 'resized');
    }
    this.#scheduler.plan();
  }

  /**
   * Replaces all instances: idle ones now, leased ones when they are released. Does not wait for holders. For a change
   * that every instance must pick up, such as rotated keys or new prompts.
   */
  refresh(): void {
    for (const instance of [...this.#pool.instances]) this.#scheduler.evict(instance, 'refreshed');
  }

  /**
   * Grants no lease until `resume`, for example while a backend is replaced. Requests wait, with their timeouts and up to
   * `maxQueue`; leases that are held stay valid, and what is released stays idle. `drain` ends a pause.
   */
  pause(): void {
    this.#scheduler.pause();
  }

  /** Ends `pause`, and serves the waiters in order. */
  resume(): void {
    this.#scheduler.resume();
  }

  /** A snapshot of the counts. */
  stats(): PoolStats {
    const { instances, waiters, status, paused } = this.#pool;
    return Object.freeze({
      size: instances.size,
      min: this.#settings.min,
      minIdle: this.#settings.minIdle,
      live: instances.live,
      creating: instances.creating,
      idle: instances.idle,
      readying: instances.validating + instances.preparing,
      leased: instances.leased,
      resetting: instances.resetting,
      destroying: instances.destroying,
      queued: waiters.queued,
      created: instances.created,
      createFailed: instances.createFailed,
      destroyed: instances.destroyed,
      acquired: this.#leases.acquired,
      released: this.#leases.released,
      revoked: this.#leases.revoked,
      rejected: waiters.rejected,
      state: status,
      paused,
    });
  }

  /**
   * Grants no further leases, serves the queued waiters, and settles when every lease is released. Idle instances stay
   * until `close`. With `timeoutMs` it rejects at that deadline with `DrainTimeoutError`, which names the holders.
   */
  async drain(options: { readonly timeoutMs?: number | undefined } = {}): Promise<void> {
    const { timeoutMs } = checkOptions('drain', options, ['timeoutMs']);
    if (timeoutMs !== undefined) durationMs('timeoutMs', timeoutMs);
    if (this.#pool.status === 'open') {
      this.#end('draining');
      this.#creator.failWarmUps(() => new PoolClosedError(this.name, 'draining'));
      // The waiters are to be served.
      this.#scheduler.resume();
    }
    return withDeadline(this.#unused.reached(), timeoutMs, (afterMs) =>
      this.#leases.drainTimeoutError(afterMs),
    );
  }

  /**
   * Grants no further leases, rejects the waiters with `PoolClosedError`, aborts the signals of all holders and callbacks,
   * destroys what is idle, and settles when every instance is gone. Never rejects.
   *
   * Holders have `timeoutMs` (5 s; `Infinity` for no deadline) to release. Then their leases are revoked, callbacks in
   * progress are no longer awaited, and what is left is destroyed, each within `destroyTimeoutMs`. A second call may
   * shorten the time, not lengthen it.
   */
  async close(options: { readonly timeoutMs?: number | undefined } = {}): Promise<void> {
    const { timeoutMs = CLOSE_GRACE_MS } = checkOptions('close', options, ['timeoutMs']);
    const isEndless = timeoutMs === Number.POSITIVE_INFINITY;
    if (!isEndless) durationMs('timeoutMs', timeoutMs);
    if (this.#pool.status !== 'closed') this.#askToEnd();
    const timer = isEndless ? undefined : setTimeout(() => this.#force(), timeoutMs);
    await this.#gone.reached();
    clearTimeout(timer);
    await this.#pool.teardown.lateOnesGone();
    await this.#idle.close();
  }

  /** `close()` with its default deadline. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** No further leases, and no instances for `min`. */
  #end(status: 'draining' | 'closed'): void {
    const { instances } = this.#pool;
    this.#pool.status = status;
    instances.min = 0;
    instances.minIdle = 0;
    instances.onProgress = () => {
      this.#unused.check();
      this.#gone.check();
    };
  }

  /** Rejects all waiters, destroys what is idle, and aborts the signals of holders and callbacks. */
  #askToEnd(): void {
    const error = new PoolClosedError(this.name, 'closed');
    this.#end('closed');
    this.#creator.close();
    this.#pool.waiters.rejectAll('closed', error);
    this.#creator.failWarmUps(() => error);
    this.#pool.paused = false;
    for (const instance of [...this.#pool.instances]) {
      this.#scheduler.evict(instance, 'closed');
      const { state } = instance;
      if (state.kind === 'leased') this.#leases.abort(state, error);
      else if ('call' in state) state.call.cancel(error);
    }
  }

  /** Revokes the leases that are left, and waits no longer for any callback but `destroy`. */
  #force(): void {
    const { instances } = this.#pool;
    instances.abandonCalls(new PoolClosedError(this.name, 'closed'));
    for (const { state } of [...instances]) {
      if (state.kind === 'leased') this.#leases.revoke(state, 'closed');
    }
  }
}
