import { afterThisTurn, PER_TURN } from '../internal/clock.js';
import { JobQueue } from '../internal/job-queue.js';
import type { PoolState } from './pool-state.js';

/**
 * Decides when creations start.
 *
 * Invariants:
 * - At most `createConcurrency` creations are in progress; after a failure, one at a time until one succeeds.
 * - A turn of the event loop starts no more than `PER_TURN`; the others follow in the next turns.
 * - After a failure none starts during a backoff, drawn at random between `baseMs` and a ceiling that doubles with each
 *   backoff up to `maxMs` ("full jitter", https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/, with
 *   a floor). A `create` that always fails costs timers and never starves the event loop.
 * - After an instance was destroyed unused, none starts before the event loop has turned. Whatever discards new instances
 *   (a listener that calls `refresh`, a `prepare` that fails) never starves it either.
 */
export class Creator<T> {
  /** Called when creations may start again. */
  onReady: (() => void) | undefined = undefined;
  readonly #pool: PoolState<T>;
  /** Only `createConcurrency` makes creations queue. */
  readonly #queue: JobQueue | undefined;
  /** Failures since the last success, and the backoffs they led to. */
  failures = 0;
  #backoffs = 0;
  #backoff: { readonly timer: NodeJS.Timeout; readonly endsMs: number } | undefined;
  #isYielding = false;
  /** Creations started in this turn of the event loop. */
  #starts = 0;
  #isClosed = false;

  constructor(pool: PoolState<T>) {
    this.#pool = pool;
    const { createConcurrency } = pool.settings;
    if (createConcurrency !== Number.POSITIVE_INFINITY) {
      this.#queue = new JobQueue({ concurrency: createConcurrency });
    }
  }

  /** Starts `count` creations, now or as soon as the limits allow; a queued one asks again whether it is needed. */
  start(count: number, create: () => Promise<void>): void {
    const { instances, waiters } = this.#pool;
    if (this.#backoff !== undefined) {
      // The end of the backoff starts what is needed then; a waiter keeps the process alive until it comes.
      if (waiters.queued > 0) this.#backoff.timer.ref();
    } else if (this.#isYielding) {
      // The next turn of the event loop starts what is needed then.
    } else if (this.#queue !== undefined) {
      for (let queued = this.#queue.queued; queued < count; queued++) void this.#queue.run(create);
    } else {
      const most = this.failures === 0 ? count : Math.min(count, 1 - instances.creating);
      for (let started = 0; started < most && this.#starts < PER_TURN; started++) {
        if (this.#starts++ === 0) afterThisTurn(this.#endTurn);
        void create();
      }
      if (this.#starts === PER_TURN) this.yieldTurn();
    }
  }

  /** Whether a creation may start now. */
  get isReady(): boolean {
    return this.#backoff === undefined && !this.#isYielding;
  }

  /** Starts nothing more in this turn of the event loop. */
  yieldTurn(): void {
    if (this.#isYielding || this.#isClosed) return;
    this.#isYielding = true;
    afterThisTurn(() => {
      this.#isYielding = false;
      if (!this.#isClosed) this.onReady?.();
    });
  }

  succeeded(): void {
    this.failures = 0;
    this.#backoffs = 0;
    if (this.#queue !== undefined) this.#queue.concurrency = this.#pool.settings.createConcurrency;
  }

  /** Begins a backoff; returns the milliseconds until it ends. */
  failed(): number {
    this.failures++;
    if (this.#queue !== undefined) this.#queue.concurrency = 1;
    // Creations that were in progress together fail together: that is one reason to back off, not several.
    this.#backoff ??= this.#backOff();
    return Math.max(0, this.#backoff.endsMs - this.#pool.settings.now());
  }

  /** Starts nothing any more. */
  close(): void {
    this.#isClosed = true;
    clearTimeout(this.#backoff?.timer);
    this.#queue?.clear();
  }

  readonly #endTurn = (): void => {
    this.#starts = 0;
  };

  #backOff() {
    const { now, createRetry } = this.#pool.settings;
    const { baseMs, maxMs } = createRetry;
    const ceiling = Math.min(maxMs, baseMs * 2 ** ++this.#backoffs);
    const backoffMs = baseMs + Math.random() * (ceiling - baseMs);
    const timer = setTimeout(() => {
      this.#backoff = undefined;
      this.onReady?.();
    }, backoffMs).unref();
    return { timer, endsMs: now() + backoffMs };
  }
}
