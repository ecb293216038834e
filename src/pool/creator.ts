import { CreateError } from '../errors.js';
import { type AbortWatcher, unwatchAbort, watchAbort } from '../internal/abort.js';
import { NEUTRAL_CONTEXT } from '../internal/async-context.js';
import { afterThisTurn, PER_TURN } from '../internal/clock.js';
import { JobQueue } from '../internal/job-queue.js';
import type { Failure, Instance, InstanceRegistry, LeaseRequest } from './instances.js';
import type { PoolSettings } from './options.js';
import type { PoolState } from './pool-state.js';
import type { Waiters } from './waiters.js';

/** Settles a `warmUp`, with an error if there is one. */
type SettleWarmUp = (failure?: Failure) => void;

/**
 * Creates instances: decides when, runs `create`, and backs off after failures.
 *
 * Invariants:
 * - As many instances are being created or validated as there are waiters, as far as `size` allows: no fewer and no more.
 * - A failure rejects at most the one waiter that the creation was started for, and the calls of `warmUp`.
 * - At most `createConcurrency` creations are in progress; after a failure, one at a time until one succeeds.
 * - A turn of the event loop starts no more than `PER_TURN`; the others follow in the next turns.
 * - After a failure none starts during a backoff, drawn at random between `baseMs` and a ceiling that doubles with each
 *   backoff up to `maxMs` ("full jitter", https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/, with
 *   a floor). A `create` that always fails costs timers and never starves the event loop.
 * - After an instance was destroyed unused, none starts before the event loop has turned. Whatever discards new instances
 *   (a listener that calls `refresh`, a `prepare` that fails) never starves it either.
 */
export class Creator<T> {
  /** Called with a new instance. */
  onCreated!: (instance: Instance<T>) => void;
  /** Called when a creation has failed, and when creations may start again. */
  onReady!: () => void;
  readonly #pool: PoolState<T>;
  readonly #settings: PoolSettings<T>;
  readonly #instances: InstanceRegistry<T>;
  readonly #waiters: Waiters<T>;
  /** Only `createConcurrency` makes creations queue. */
  readonly #queue: JobQueue | undefined;
  /** Failures since the last success, and the backoffs they led to. */
  #failures = 0;
  #backoffs = 0;
  #backoff: { readonly timer: NodeJS.Timeout; readonly endsMs: number } | undefined;
  #isYielding = false;
  /** Creations started in this turn of the event loop. */
  #starts = 0;
  #isClosed = false;
  /** The waiter that is joining in this step. */
  #newest: LeaseRequest<T> | undefined;
  readonly #warmUps = new Set<SettleWarmUp>();

  constructor(pool: PoolState<T>) {
    this.#pool = pool;
    this.#settings = pool.settings;
    this.#instances = pool.instances;
    this.#waiters = pool.waiters;
    const { createConcurrency } = pool.settings;
    if (createConcurrency !== Number.POSITIVE_INFINITY) {
      this.#queue = new JobQueue({ concurrency: createConcurrency });
    }
  }

  /** Starts the creations that are missing, now or as soon as the limits allow. `newest` is a waiter that has just joined. */
  start(newest: LeaseRequest<T> | undefined): void {
    const missing = this.#missing();
    if (missing < 1) return;
    this.#newest = newest;
    if (this.#backoff !== undefined) {
      // The end of the backoff starts what is missing then; a waiter keeps the process alive until it comes.
      if (this.#waiters.queued > 0) this.#backoff.timer.ref();
    } else if (this.#isYielding) {
      // The next turn of the event loop starts what is missing then.
    } else if (this.#queue !== undefined) {
      for (let queued = this.#queue.queued; queued < missing; queued++) void this.#queue.run(this.#startOne);
    } else {
      const most = this.#failures === 0 ? missing : Math.min(missing, 1 - this.#instances.creating);
      for (let started = 0; started < most && this.#starts < PER_TURN; started++) {
        if (this.#starts++ === 0) afterThisTurn(this.#endTurn);
        void this.#startOne();
      }
      if (this.#starts === PER_TURN) this.yieldTurn();
    }
    this.#newest = undefined;
  }

  /** Starts nothing more in this turn of the event loop. */
  yieldTurn(): void {
    if (this.#isYielding) return;
    this.#isYielding = true;
    afterThisTurn(() => {
      this.#isYielding = false;
      this.onReady();
    });
  }

  /** Settles when `min` and `minIdle` instances exist; rejects when a creation fails, the signal aborts or the time is up. */
  warmUp(signal: AbortSignal | undefined, timeoutMs: number | undefined): Promise<void> {
    if (this.#isWarm()) return Promise.resolve();
    return new Promise((resolve, reject) => {
      const settle: SettleWarmUp = (failure) => {
        this.#warmUps.delete(settle);
        clearTimeout(timer);
        if (signal !== undefined) unwatchAbort(signal, watcher);
        if (failure === undefined) resolve();
        else reject(failure.error);
      };
      const watcher: AbortWatcher = { onAbort: (error) => settle({ error }) };
      const onTimeout = (waitMs: number): void =>
        settle({ error: this.#waiters.timeoutError(waitMs, 'create') });
      const timer = timeoutMs === undefined ? undefined : setTimeout(onTimeout, timeoutMs, timeoutMs);
      if (signal !== undefined) watchAbort(signal, watcher);
      this.#warmUps.add(settle);
    });
  }

  failWarmUps(makeError: () => Error): void {
    if (this.#warmUps.size === 0) return;
    const error = makeError();
    for (const settle of this.#warmUps) settle({ error });
  }

  /** Nothing is missing any more: ends the backoff, and begins no other. */
  close(): void {
    this.#isClosed = true;
    clearTimeout(this.#backoff?.timer);
  }

  /** Creations needed beyond those in progress, as far as `size` allows. */
  #missing(): number {
    const { room } = this.#instances;
    // First: requests wait where the pool is full.
    if (room < 1) return 0;
    const { min, minIdle, usable, idle } = this.#instances;
    return Math.min(room, Math.max(min - usable, minIdle + this.#waiters.uncovered - idle));
  }

  readonly #startOne = (): Promise<void> => NEUTRAL_CONTEXT.runInAsyncScope(this.#create, this);

  /** One creation, from the waiter it is made for to an instance or a failure. */
  async #create(): Promise<void> {
    // A queued creation may have become superfluous, also by `close`, or another one has failed.
    if (this.#backoff !== undefined || this.#isYielding || this.#missing() < 1) return;
    const { events, settings, teardown } = this.#pool;
    const { now } = settings;
    const newest = this.#waiters.uncovered === 1 ? this.#newest : undefined;
    const { instance, call } = this.#instances.enter();
    const { id: instanceId } = instance;
    this.#waiters.expect(instance, newest);
    events.emit('instance:creating', { instanceId });
    const startMs = now();
    const { value, failure } = await call.run(
      'create',
      (signal) => settings.create({ instanceId, signal }),
      (late) => teardown.destroyLate(instanceId, late),
    );
    const createMs = now() - startMs;
    if (failure === undefined) this.#succeeded(instance, value, createMs);
    else this.#failed(instance, failure, createMs);
  }

  #succeeded(instance: Instance<T>, pipeline: T, createMs: number): void {
    instance.pipeline = pipeline;
    this.#failures = 0;
    this.#backoffs = 0;
    if (this.#queue !== undefined) this.#queue.concurrency = this.#settings.createConcurrency;
    this.#instances.created++;
    this.#instances.lastCreateError = undefined;
    instance.bornMs = this.#settings.turnNow();
    instance.usedMs = instance.bornMs;
    instance.goodMs = instance.bornMs;
    this.#pool.events.emit('instance:created', { instanceId: instance.id, createMs });
    this.#waiters.unassign(instance);
    this.onCreated(instance);
    if (this.#warmUps.size === 0 || !this.#isWarm()) return;
    for (const settle of this.#warmUps) settle();
  }

  /**
   * Frees the slot and starts the next creation. The waiter that this one was for, if it still waits, is rejected, or keeps
   * its position with `onCreateFailure: 'retry'`; no other is affected.
   */
  #failed(instance: Instance<T>, failure: Failure, createMs: number): void {
    const { id: instanceId } = instance;
    const { error } = failure;
    const waiter = this.#waiters.unassign(instance);
    const failures = ++this.#failures;
    if (this.#queue !== undefined) this.#queue.concurrency = 1;
    // Creations that were in progress together fail together: that is one reason to back off, not several.
    if (!this.#isClosed) this.#backoff ??= this.#backOff();
    const retryAfterMs = Math.max(0, (this.#backoff?.endsMs ?? 0) - this.#settings.now());
    this.#instances.lastCreateError = error;
    this.#instances.createFailed++;
    this.#instances.leave(instance);
    const details = { instanceId, createMs, failures, retryAfterMs };
    this.#pool.events.emit('instance:create-failed', details, failure);
    this.#waiters.rejectClaims(instance);
    if (this.#settings.onCreateFailure === 'reject') {
      this.failWarmUps(() => new CreateError(this.#waiters.poolFigures(instanceId), error));
      if (waiter?.state.kind === 'waiting') {
        const figures = this.#waiters.poolFigures(instanceId, waiter);
        this.#waiters.reject(waiter, 'create-failed', new CreateError(figures, error));
      }
    }
    this.onReady();
    this.#instances.onProgress?.();
  }

  #backOff() {
    const { now, createRetry } = this.#settings;
    const { baseMs, maxMs } = createRetry;
    const ceiling = Math.min(maxMs, baseMs * 2 ** ++this.#backoffs);
    const backoffMs = baseMs + Math.random() * (ceiling - baseMs);
    const timer = setTimeout(() => {
      this.#backoff = undefined;
      this.onReady();
    }, backoffMs).unref();
    return { timer, endsMs: now() + backoffMs };
  }

  #isWarm(): boolean {
    const { usable, creating, min, idle, minIdle, live, size } = this.#instances;
    return usable - creating >= min && (idle >= minIdle || live - creating >= size);
  }

  readonly #endTurn = (): void => {
    this.#starts = 0;
  };
}
