import { AsyncLocalStorage } from 'node:async_hooks';
import {
  AcquireTimeoutError,
  DeadlineUnmeetableError,
  DrainTimeoutError,
  LimiterClosedError,
  NestedAcquireError,
  QueueFullError,
} from '../errors.js';
import { channels } from '../hooks/diagnostics.js';
import type { PermitOutcome, PermitRejection } from '../hooks/events.js';
import { LifecycleHooks } from '../hooks/lifecycle-hooks.js';
import { unwatchAbort, watchAbort } from '../internal/abort-watch.js';
import { turnMs } from '../internal/clock.js';
import { withDeadline } from '../internal/deadline.js';
import {
  callable,
  options as checkOptions,
  durationMs,
  flag,
  refusal,
  wholeNumber,
} from '../internal/validate.js';
import type { AdaptiveLimit } from './adaptive-limit.js';
import { DrainRate } from './drain-rate.js';
import type { AcquireOptions, Limiter, LimiterStats, Permit, RunContext } from './limiter.js';
import {
  type ConcurrencyLimiterOptions,
  checkAcquireOptions,
  checkLimiterOptions,
} from './limiter-options.js';
import { LimiterPermit, type PermitExtras, type PermitIssuer } from './permit.js';
import { figuresOf, tellPermit, tellRejected } from './permit-events.js';
import { WaitQueue } from './wait-queue.js';

const { 'permit:acquired': ACQUIRED, 'permit:released': RELEASED } = channels;

// Whole milliseconds stay small integers, which a waiter keeps without another object; differences survive the wrap.
const clockMs = (): number => turnMs() | 0;

/**
 * A fair semaphore: at most `maxConcurrent` permits at once, given in the order in which they were asked for.
 *
 * Invariants:
 * - The weight held never grows past `maxConcurrent`. Shrinking revokes nothing, so it may stand above it for a while;
 *   a waiter heavier than a shrunken limit then runs alone.
 * - Nobody overtakes: while somebody waits, everybody waits behind, `tryAcquire` included, and a light request never
 *   passes a heavy one. Priority and tenants decide the order (see `WaitQueue`), size never does.
 * - At rest (nothing held) nobody waits, unless paused.
 * - A waiter that gives up leaves in that step: its promise is rejected, its timer and listener are gone, and whoever
 *   could go on without it does.
 * - `release` has handed over before it returns.
 *
 * @example
 * const limiter = new ConcurrencyLimiter({ maxConcurrent: 10, maxQueue: 100 });
 * const answer = await limiter.run(({ signal }) => research(question, signal), { signal, timeoutMs: 30_000 });
 */
export class ConcurrencyLimiter implements Limiter {
  readonly name: string;
  readonly hooks: LifecycleHooks;
  readonly #queue = new WaitQueue<LimiterPermit>();
  readonly #maxQueue: number;
  readonly #queueTimeoutMs: number | undefined;
  readonly #refuseUnmeetable: boolean;
  readonly #nesting: AsyncLocalStorage<LimiterPermit> | undefined;
  readonly #adaptive: AdaptiveLimit | undefined;
  readonly #drainRate = new DrainRate();
  readonly #issuer: PermitIssuer = {
    takeBack: (permit, outcome) => this.#takeBack(permit, outcome),
    abandon: (permit, reason) => this.#reject(permit, 'aborted', reason),
  };
  #maxConcurrent: number;
  #active = 0;
  #queuedWeight = 0;
  #acquired = 0;
  #rejected = 0;
  #paused = false;
  /** Whether a light newcomer gets in at once. While not, a release has to hand over, and the drain rate is measured. */
  #hasRoom = true;
  #state: 'open' | 'draining' | 'closed' = 'open';
  #idleListeners: (() => void)[] = [];

  /** @throws {TypeError | RangeError} naming the option that is wrong, and its value */
  constructor(given: ConcurrencyLimiterOptions) {
    checkLimiterOptions(given);
    const { adaptive } = given;
    this.name = given.name ?? 'limiter';
    this.hooks = given.hooks ?? new LifecycleHooks();
    this.#maxQueue = given.maxQueue ?? Number.POSITIVE_INFINITY;
    this.#queueTimeoutMs = given.queueTimeoutMs;
    this.#refuseUnmeetable = given.refuseUnmeetable ?? false;
    this.#nesting = given.detectNested === true ? new AsyncLocalStorage() : undefined;
    this.#adaptive = adaptive;
    this.#maxConcurrent = given.maxConcurrent ?? (adaptive as AdaptiveLimit).limit;
    adaptive?.drive(this);
  }

  /** The limit. Growing it admits at once; shrinking it revokes nothing. */
  get maxConcurrent(): number {
    return this.#maxConcurrent;
  }

  set maxConcurrent(value: number) {
    const previous = this.#maxConcurrent;
    this.#maxConcurrent = wholeNumber('maxConcurrent', value);
    if (value === previous) return;
    this.#admit();
    if (this.hooks.hears('limit:changed')) {
      this.hooks.emit('limit:changed', { source: this.name, previous, maxConcurrent: value });
    }
  }

  /** Weight held now. */
  get activeCount(): number {
    return this.#active;
  }

  /** Waiters now. */
  get queuedCount(): number {
    return this.#queue.size;
  }

  /** Counts, as they stand. */
  stats(): LimiterStats {
    return Object.freeze({
      maxConcurrent: this.#maxConcurrent,
      active: this.#active,
      queued: this.#queue.size,
      acquired: this.#acquired,
      rejected: this.#rejected,
      paused: this.#paused,
      closed: this.#state !== 'open',
    });
  }

  /**
   * Waits for a permit.
   *
   * Rejects with `signal.reason`, `AcquireTimeoutError`, `QueueFullError`, `DeadlineUnmeetableError`,
   * `LimiterClosedError`, or a `TypeError` or `RangeError` naming a wrong option.
   *
   * @example
   * using permit = await limiter.acquire({ signal, timeoutMs: 5_000 });
   */
  acquire(options?: AcquireOptions): Promise<Permit> {
    // Small enough to be inlined where it is called; what is rare is elsewhere.
    if (options === undefined && this.#hasRoom) return Promise.resolve(this.#take(1, undefined));
    return Promise.resolve(this.#request(options, undefined));
  }

  /** A permit, if there is one for the taking and nobody waits for it. */
  tryAcquire(options?: { readonly weight?: number }): Permit | undefined {
    if (options !== undefined) {
      checkOptions('tryAcquire', options, ['weight']);
      if (options.weight !== undefined) wholeNumber('weight', options.weight, 1, this.#maxConcurrent);
    }
    const weight = options?.weight ?? 1;
    return this.#isFree(weight) ? this.#take(weight, undefined) : undefined;
  }

  /**
   * Runs `fn` under a permit and gives the permit back when it ends, however it ends.
   *
   * Settles as `fn` does; rejects as `acquire` does where no permit was given, and with `NestedAcquireError` where
   * `detectNested` is set. `options.signal` ends the waiting; `fn` gets it and has to heed it itself.
   */
  run<R>(fn: (context: RunContext) => R | PromiseLike<R>, options?: AcquireOptions): Promise<R> {
    if (options === undefined && this.#hasRoom && this.#nesting === undefined && typeof fn === 'function') {
      return this.#runUnder(this.#take(1, undefined), fn);
    }
    if (typeof fn !== 'function') return Promise.reject(new TypeError(refusal('fn', 'a function', fn)));
    if (this.#nesting?.getStore()?.state === 'held' && !this.#isFree(options?.weight ?? 1)) {
      return this.#refuse('nested', new NestedAcquireError(this.name), options);
    }
    const permit = this.#request(options, fn);
    if (permit instanceof LimiterPermit) return this.#runUnder(permit, fn);
    return permit.then(this.#begin) as Promise<R>;
  }

  /**
   * Gives a function that runs under this limiter each time it is called.
   *
   * @example
   * const limitedFetch = limiter.wrap((url: string) => fetch(url));
   */
  wrap<A extends unknown[], R>(
    fn: (...args: A) => R | PromiseLike<R>,
    options?: AcquireOptions,
  ): (...args: A) => Promise<R> {
    callable('fn', fn);
    if (options !== undefined) checkAcquireOptions(options, this.#maxConcurrent);
    return (...args) => this.run(() => fn(...args), options);
  }

  /** Gives no further permits until `resume`. Permits held are not touched, requests queue up. */
  pause(): void {
    this.#paused = true;
    this.#fill();
  }

  /** Ends a `pause`. */
  resume(): void {
    this.#paused = false;
    this.#admit();
  }

  /** Settles when nothing is held and nobody waits. */
  onIdle(): Promise<void> {
    if (this.#active === 0 && this.#queue.size === 0) return Promise.resolve();
    return new Promise((resolve) => this.#idleListeners.push(resolve));
  }

  /**
   * Takes no further requests, and settles when nothing is held any more.
   *
   * Those who wait are turned away with `LimiterClosedError`, or served first with `drain`. With `timeoutMs` it rejects
   * with `DrainTimeoutError` when that time is up, and turns away whoever still waits. A second call may turn a drain
   * into a close at once.
   */
  async close(options: { readonly drain?: boolean; readonly timeoutMs?: number } = {}): Promise<void> {
    const { drain, timeoutMs } = checkOptions('close', options, ['drain', 'timeoutMs']);
    if (drain !== undefined) flag('drain', drain);
    if (timeoutMs !== undefined) durationMs('timeoutMs', timeoutMs);
    if (!drain) this.#turnAllAway();
    else if (this.#state === 'open') {
      this.#state = 'draining';
      // A paused limiter would never empty.
      this.resume();
    }
    return withDeadline(this.onIdle(), timeoutMs, (elapsedMs) => {
      this.#turnAllAway();
      return new DrainTimeoutError(this.name, elapsedMs, this.#active);
    });
  }

  #isFree(weight: number): boolean {
    return this.#queue.size === 0 && this.#state === 'open' && this.#fits(weight);
  }

  /** Whether the limit has room; for one that is heavier than a shrunken limit, whether it is all there is. */
  #fits(weight: number): boolean {
    return !this.#paused && (this.#active + weight <= this.#maxConcurrent || this.#active === 0);
  }

  #take(weight: number, extras: PermitExtras | undefined): LimiterPermit {
    const permit = new LimiterPermit(this.#issuer, weight, 'held', extras);
    this.#count(permit);
    if (this.hooks.mayHear(ACQUIRED)) tellPermit(this, 'permit:acquired', permit);
    return permit;
  }

  #count(permit: LimiterPermit): void {
    this.#active += permit.weight;
    this.#acquired++;
    if (this.#active >= this.#maxConcurrent) this.#fill();
    if (this.#adaptive !== undefined) this.#stamp(permit, this.#adaptive);
  }

  /** From now on a newcomer would have to wait. */
  #fill(): void {
    this.#hasRoom = false;
    this.#drainRate.begin();
  }

  #stamp(permit: LimiterPermit, adaptive: AdaptiveLimit): void {
    permit.extras = { ...permit.extras, grantedMs: adaptive.clockMs() };
  }

  /** Runs the host's code under a permit. Plain `then` calls: an async function here would cost a third more. */
  #runUnder<R>(permit: LimiterPermit, fn: (context: RunContext) => R | PromiseLike<R>): Promise<R> {
    const signal = permit.extras?.signal;
    // The grant came before the abort, but nothing has begun yet.
    if (signal?.aborted) {
      permit.release('ignored');
      return Promise.reject(signal.reason);
    }
    const context = { signal, permit };
    let answer: R | PromiseLike<R>;
    try {
      answer = this.#nesting === undefined ? fn(context) : this.#nesting.run(permit, fn, context);
    } catch (error) {
      permit.release('ignored');
      return Promise.reject(error);
    }
    return Promise.resolve(answer).then(
      (result) => {
        permit.release();
        return result;
      },
      (error: unknown) => {
        permit.release('ignored');
        throw error;
      },
    );
  }

  /** Begins a `run` that had to wait: one function for all of them, and the caller's context from its own `then`. */
  readonly #begin = (permit: LimiterPermit): Promise<unknown> => {
    const work = permit.work as (context: RunContext) => unknown;
    permit.work = undefined;
    return this.#runUnder(permit, work);
  };

  /** Any request: a permit where one is free, else the promise of one. */
  #request(
    options: AcquireOptions | undefined,
    work: LimiterPermit['work'],
  ): LimiterPermit | Promise<LimiterPermit> {
    if (options === undefined) {
      if (!this.#isFree(1)) return this.#wait(1, undefined, work);
    } else {
      try {
        checkAcquireOptions(options, this.#maxConcurrent);
      } catch (error) {
        return Promise.reject(error);
      }
      const { signal } = options;
      if (signal?.aborted) return this.#refuse('aborted', signal.reason, options);
    }
    const weight = options?.weight ?? 1;
    // A copy: the caller may use the object again for the next request.
    const extras = options === undefined ? undefined : { ...options };
    return this.#isFree(weight) ? this.#take(weight, extras) : this.#wait(weight, extras, work);
  }

  #wait(
    weight: number,
    extras: PermitExtras | undefined,
    work: LimiterPermit['work'],
  ): Promise<LimiterPermit> {
    const timeoutMs = extras?.timeoutMs ?? this.#queueTimeoutMs;
    const hopeless = this.#hopelessness(weight, timeoutMs);
    if (hopeless !== undefined) return this.#refuse(hopeless.reason, hopeless.error, extras);

    const permit = new LimiterPermit(this.#issuer, weight, 'waiting', extras);
    permit.clockMs = clockMs();
    permit.work = work;
    const granted = new Promise<LimiterPermit>((resolve) => {
      permit.settle = resolve;
    });
    if (timeoutMs !== undefined) {
      permit.extras ??= {};
      permit.extras.timer = setTimeout(this.#onTimeout, timeoutMs, permit);
    }
    if (extras === undefined) {
      this.#queue.push(permit);
    } else {
      if (extras.signal !== undefined) watchAbort(extras.signal, permit);
      this.#queue.push(permit, extras.priority, extras.tenant);
    }
    this.#queuedWeight += weight;
    this.#fill();
    return this.#isHeard() ? this.#toldWhenSettled(permit, granted) : granted;
  }

  #isHeard(): boolean {
    const { hooks } = this;
    return hooks.hears('permit:queued') || hooks.hears('permit:acquired') || hooks.hears('permit:rejected');
  }

  /** Tells after the caller's own await: elsewhere a listener would see the context of whoever released or aborted. */
  #toldWhenSettled(permit: LimiterPermit, granted: Promise<LimiterPermit>): Promise<LimiterPermit> {
    tellPermit(this, 'permit:queued', permit);
    return granted.then(
      (held) => {
        tellPermit(this, 'permit:acquired', held);
        return held;
      },
      (error: unknown) => {
        tellRejected(this, permit.state as PermitRejection, error, permit.clockMs, permit.extras);
        throw error;
      },
    );
  }

  readonly #onTimeout = (permit: LimiterPermit): void => {
    this.#reject(permit, 'timeout', undefined);
  };

  /** Why a request that would have to wait is not even queued. */
  #hopelessness(
    weight: number,
    timeoutMs: number | undefined,
  ): { readonly reason: PermitRejection; readonly error: Error } | undefined {
    if (this.#state !== 'open') return { reason: 'closed', error: new LimiterClosedError(this.name) };
    if (this.#queue.size >= this.#maxQueue) {
      const error = new QueueFullError({ ...figuresOf(this, 0), retryAfterMs: this.#estimateMs(weight) });
      return { reason: 'queue-full', error };
    }
    if (timeoutMs === 0) return { reason: 'timeout', error: new AcquireTimeoutError(figuresOf(this, 0)) };
    if (timeoutMs === undefined || !this.#refuseUnmeetable) return undefined;
    const retryAfterMs = this.#estimateMs(weight);
    if (retryAfterMs <= timeoutMs) return undefined;
    const error = new DeadlineUnmeetableError({ ...figuresOf(this, 0), retryAfterMs, timeoutMs });
    return { reason: 'deadline', error };
  }

  /** How long a request arriving now would wait, in whole milliseconds. */
  #estimateMs(weight: number): number {
    return Math.ceil(this.#drainRate.msFor(this.#queuedWeight + weight));
  }

  #refuse(reason: PermitRejection, error: unknown, options: AcquireOptions | undefined): Promise<never> {
    this.#rejected++;
    tellRejected(this, reason, error, 0, options);
    return Promise.reject(error);
  }

  /** Hands permits to the waiting, in order, as far as they reach. */
  #admit(): void {
    for (
      let next = this.#queue.peek();
      next !== undefined && this.#fits(next.weight);
      next = this.#queue.peek()
    ) {
      this.#queue.shift();
      this.#settle(next, 'held', next);
      this.#count(next);
    }
    if (this.#isFree(1)) {
      this.#hasRoom = true;
      this.#drainRate.end();
    } else this.#fill();
    if (this.#active === 0 && this.#queue.size === 0 && this.#idleListeners.length > 0) this.#tellIdle();
  }

  /** Ends the waiting of a permit that has left the queue; nothing of it stays behind. */
  #settle(
    permit: LimiterPermit,
    state: 'held' | PermitRejection,
    answer: LimiterPermit | Promise<never>,
  ): void {
    this.#queuedWeight -= permit.weight;
    const { extras } = permit;
    if (extras?.timer !== undefined) clearTimeout(extras.timer);
    if (extras?.signal !== undefined) unwatchAbort(extras.signal, permit);
    permit.state = state;
    permit.clockMs = (clockMs() - permit.clockMs) | 0;
    permit.settle?.(answer);
    permit.settle = undefined;
  }

  /** A waiter gives up: whoever could go on without it does. */
  #reject(permit: LimiterPermit, reason: 'aborted' | 'timeout', cause: unknown): void {
    if (!this.#queue.remove(permit)) return;
    const waitedMs = (clockMs() - permit.clockMs) | 0;
    const error = reason === 'timeout' ? new AcquireTimeoutError(figuresOf(this, waitedMs)) : cause;
    this.#rejected++;
    this.#settle(permit, reason, Promise.reject(error));
    this.#admit();
  }

  #turnAllAway(): void {
    this.#state = 'closed';
    for (let next = this.#queue.shift(); next !== undefined; next = this.#queue.shift()) {
      this.#rejected++;
      this.#settle(next, 'closed', Promise.reject(new LimiterClosedError(this.name)));
    }
    this.#admit();
  }

  #takeBack(permit: LimiterPermit, outcome: PermitOutcome): void {
    if (this.#adaptive !== undefined) this.#sample(permit, outcome, this.#adaptive);
    this.#active -= permit.weight;
    if (!this.#hasRoom) {
      this.#drainRate.note(permit.weight);
      this.#admit();
    } else if (this.#idleListeners.length > 0) this.#admit();
    if (this.hooks.mayHear(RELEASED)) tellPermit(this, 'permit:released', permit, outcome);
  }

  #sample(permit: LimiterPermit, outcome: PermitOutcome, adaptive: AdaptiveLimit): void {
    adaptive.onSample({ startedMs: permit.extras?.grantedMs as number, outcome, inFlight: this.#active });
  }

  #tellIdle(): void {
    const listeners = this.#idleListeners;
    this.#idleListeners = [];
    for (const resolve of listeners) resolve();
  }
}
