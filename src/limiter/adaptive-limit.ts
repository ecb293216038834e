import type { PermitOutcome } from '../hooks/events.js';
import { nowMs } from '../internal/clock.js';
import {
  callable,
  durationMs,
  finiteNumber,
  flag,
  MAX_TIMER_MS,
  oneOf,
  options,
  wholeNumber,
} from '../internal/validate.js';

/** Options of an `AdaptiveLimit`. */
export interface AdaptiveLimitOptions {
  /** The limit at first. @default 8, or the bound nearest to it */
  readonly initial?: number | undefined;
  /** The lower bound of the limit; a whole number from 1. @default 1 */
  readonly min?: number | undefined;
  /** The upper bound of the limit. @default 200, or `min` if that is more */
  readonly max?: number | undefined;
  /** Whether samples with a `normalizedLatencyMs` may lower the limit. @default false */
  readonly latencyGuard?: boolean | undefined;
  /** Milliseconds on a monotonic clock. @default performance.now */
  readonly now?: (() => number) | undefined;
  /** A number from 0 up to 1, for the jitter on a Retry-After. @default Math.random */
  readonly random?: (() => number) | undefined;
}

/** The outcome of one call. */
export interface LimitSample {
  /** When it started, on the limit's own clock. */
  readonly startedMs: number;
  /**
   * `ok`: answered. `dropped`: rejected or timed out because of overload (429, 503, 529). `ignored`: says nothing about
   * load (a bad request, an exhausted quota, the caller's abort).
   */
  readonly outcome: PermitOutcome;
  /** Calls in flight as it ended, itself included. */
  readonly inFlight: number;
  /** Milliseconds for which the service wants no further call, whatever the outcome was. */
  readonly retryAfterMs?: number | undefined;
  /**
   * Milliseconds that do not grow with the length of the answer: to the first token, or per token. Read only with
   * `latencyGuard`. Not the duration of the whole call: a long answer would count as an overload.
   */
  readonly normalizedLatencyMs?: number | undefined;
}

/** What an `AdaptiveLimit` attaches to: a `ConcurrencyLimiter`, or anything with these members. */
export interface AttachableLimiter {
  maxConcurrent: number;
  /** `timer` will end the pause; it need keep the process alive only while there are waiters. */
  pause(timer: NodeJS.Timeout): void;
  resume(): void;
}

/** The factor of a cut, by its cause. */
const DROP_CUT = 0.85;
const GAUGE_CUT = 0.9;
/** The limit binds from this share of it in use. */
const BINDING = 0.9;
/** Limits below this one grow more slowly. */
const SMALL = 12;
/** At most this share is added to a Retry-After. */
const JITTER = 0.1;

/** Latency guard: a mean this many times the best one is too slow. */
const TOO_SLOW = 1.5;
/** A cut is as deep as the calls have become slower, but no deeper than this at once. */
const DEEPEST_CUT = 0.5;
/** Means are taken over at least so many calls. */
const FEWEST_CALLS = 10;

const timerMs = (ms: number): number => Math.min(Math.ceil(ms), MAX_TIMER_MS);

/**
 * Detectsthat calls have become slower, from means over as many calls as run at once. The best mean is the baseline. It
 * is learned anew only while the limit is at its minimum, or an overload would become the baseline.
 */
class LatencyGuard {
  #best = Number.POSITIVE_INFINITY;
  #sumMs = 0;
  #count = 0;
  /** Set as a mean begins: a limit that grows with each call would keep it from ever being complete. */
  #needed = 0;
  #slowMeans = 0;
  #isSlow = false;

  /** Whether the last mean was too slow: the limit must not grow. */
  get isSlow(): boolean {
    return this.#isSlow;
  }

  /** The factor to cut by, once two means in a row were too slow. */
  factor(latencyMs: number | undefined, limit: number, min: number): number | undefined {
    if (latencyMs === undefined) return undefined;
    if (this.#count === 0) this.#needed = Math.max(FEWEST_CALLS, limit);
    this.#sumMs += latencyMs;
    if (++this.#count < this.#needed) return undefined;
    const mean = this.#sumMs / this.#count;
    this.#sumMs = 0;
    this.#count = 0;
    if (mean < this.#best || limit === min) this.#best = mean;
    this.#isSlow = mean > TOO_SLOW * this.#best;
    this.#slowMeans = this.#isSlow ? this.#slowMeans + 1 : 0;
    return this.#slowMeans < 2 ? undefined : Math.max(DEEPEST_CUT, this.#best / mean);
  }

  /** After a cut: drops what was measured under the old limit. */
  restart(): void {
    this.#sumMs = 0;
    this.#count = 0;
    this.#slowMeans = 0;
  }
}

/**
 * An adaptive concurrency limit (AIMD): adjusts how many calls may run at once from how calls end. It grows a little with
 * each success at the limit, and shrinks by a share when the service signals overload. Pure arithmetic: it has no timers,
 * and no clock but `now`.
 *
 * Guarantees:
 * - `min <= limit <= max`, and `limit` is a whole number.
 * - One cut per round trip: after a cut only calls that started later can change the limit, since the others were sent
 *   under the old one.
 * - It grows only while it binds. A quiet hour proves nothing about the load that follows.
 * - `blockedForMs` covers every Retry-After received, and is never shortened.
 *
 * It finds how many calls at once, not how many per minute. Rate limit errors change it too, and Retry-After keeps them
 * few where the rate is counted in whole minutes; but a known rate belongs in a rate window in front of it.
 *
 * Additive increase and multiplicative decrease as in TCP (RFC 5681), growing back towards the last overload slowly and
 * away from it faster, as in CUBIC (RFC 9438).
 *
 * The constructor throws a `TypeError` or `RangeError` that names the wrong option.
 *
 * @example
 * const adaptive = new AdaptiveLimit({ max: 64 });
 * const limiter = new ConcurrencyLimiter({ adaptive });
 *
 * const answer = await limiter.run(async ({ permit, signal }) => {
 *   const response = await fetch(url, { signal });
 *   if (response.status === 429) {
 *     adaptive.blockFor(retryAfterMsOf(response));
 *     permit.release('dropped');
 *   }
 *   return response;
 * });
 */
export class AdaptiveLimit {
  readonly #min: number;
  readonly #max: number;
  readonly #now: () => number;
  readonly #random: () => number;
  readonly #guard: LatencyGuard | undefined;
  /** With its fraction: growth by less than one must add up. */
  #exact: number;
  /** The last limit that was too high. */
  #tooHigh: number | undefined;
  /** Whether a call that started after the last cut has succeeded: the round trip under the present limit is complete. */
  #succeeded = true;
  #lastCutMs = Number.NEGATIVE_INFINITY;
  #blockedUntilMs = Number.NEGATIVE_INFINITY;
  #apply: (() => void) | undefined;

  constructor(given: AdaptiveLimitOptions = {}) {
    options('AdaptiveLimit', given, ['initial', 'min', 'max', 'latencyGuard', 'now', 'random']);
    this.#min = wholeNumber('min', given.min ?? 1);
    this.#max = wholeNumber('max', given.max ?? Math.max(200, this.#min), this.#min);
    const initial = given.initial ?? Math.min(Math.max(8, this.#min), this.#max);
    this.#exact = wholeNumber('initial', initial, this.#min, this.#max);
    this.#guard = flag('latencyGuard', given.latencyGuard ?? false) ? new LatencyGuard() : undefined;
    this.#now = callable('now', given.now ?? nowMs);
    finiteNumber('now()', this.#now(), -Number.MAX_VALUE, Number.MAX_VALUE);
    this.#random = callable('random', given.random ?? Math.random);
  }

  /** The upper bound of the limit. */
  get max(): number {
    return this.#max;
  }

  /** How many calls may run at once. */
  get limit(): number {
    return Math.floor(this.#exact);
  }

  /** Milliseconds until a new call may start; 0 if it may now. In-flight calls are not affected. */
  get blockedForMs(): number {
    return Math.max(0, this.#blockedUntilMs - this.#now());
  }

  /** The present time on the clock of `startedMs`. */
  clockMs(): number {
    return this.#now();
  }

  /**
   * Records the outcome of one call. Call it before the permit is released: the release admits the next waiter, and that
   * must happen under the new limit. A limiter with this as its `adaptive` option calls it by itself.
   *
   * @throws {TypeError | RangeError} naming the wrong field
   */
  onSample(sample: LimitSample): void {
    const startedMs = finiteNumber('startedMs', sample.startedMs, -Number.MAX_VALUE, Number.MAX_VALUE);
    const outcome = oneOf('outcome', sample.outcome, ['ok', 'dropped', 'ignored']);
    const inFlight = wholeNumber('inFlight', sample.inFlight, 0);
    const { retryAfterMs, normalizedLatencyMs } = sample;
    if (normalizedLatencyMs !== undefined) durationMs('normalizedLatencyMs', normalizedLatencyMs);
    if (retryAfterMs !== undefined) this.#extendBlock(durationMs('retryAfterMs', retryAfterMs));

    // A call that started at the moment of the cut counts as sent before it: cutting twice would be worse.
    if (outcome !== 'ignored' && startedMs > this.#lastCutMs) {
      if (outcome === 'dropped') this.#cut(DROP_CUT);
      else {
        this.#succeeded = true;
        const factor = this.#guard?.factor(normalizedLatencyMs, this.limit, this.#min);
        if (factor !== undefined) this.#cut(factor);
        else if (inFlight >= BINDING * this.limit && !this.#guard?.isSlow) this.#grow();
      }
    }
    this.#apply?.();
  }

  /**
   * Records how many requests are queued inside the service, such as vLLM's `num_requests_waiting`. The best signal there
   * is: it shows an overload before any call is rejected. Call it as often as you read the gauge.
   *
   * @throws {TypeError | RangeError} when `waiting` is not a number from 0
   */
  onGauge(waiting: number): void {
    finiteNumber('waiting', waiting, 0, Number.MAX_VALUE);
    if (!this.#succeeded || waiting <= Math.max(2, 0.1 * this.#exact)) return;
    this.#cut(GAUGE_CUT);
    this.#apply?.();
  }

  /**
   * Blocks new calls for this long: the Retry-After of a response. One that ends before the present block changes nothing.
   * Up to a tenth of jitter is added, so that several processes do not resume at the same moment.
   *
   * @throws {TypeError | RangeError} when `retryAfterMs` is not a duration
   */
  blockFor(retryAfterMs: number): void {
    this.#extendBlock(durationMs('retryAfterMs', retryAfterMs));
    this.#apply?.();
  }

  /**
   * Controls a limiter from now on: its `maxConcurrent` follows `limit`, and it is paused while `blockedForMs` is above 0.
   * Do not set either meanwhile. Returns the function that detaches it, and that ends a pause made from here.
   *
   * The timer that ends a pause keeps the process alive only while there are waiters. The `adaptive` option of a
   * `ConcurrencyLimiter` attaches and, at `close()`, detaches by itself.
   *
   * @throws {Error} when a limiter is attached already: each of two would use the whole limit
   *
   * @example
   * const detach = adaptive.attach(limiter);
   */
  attach(limiter: AttachableLimiter): () => void {
    if (this.#apply !== undefined) throw new Error('An AdaptiveLimit attaches to one limiter at a time');
    let unpause: NodeJS.Timeout | undefined;
    const resume = (): void => {
      clearTimeout(unpause);
      unpause = undefined;
      limiter.resume();
    };
    // The block may have been extended meanwhile, and a timer may fire slightly early.
    const endOfPause = (): void => {
      const leftMs = this.blockedForMs;
      if (leftMs > 0) pause(leftMs);
      else resume();
    };
    const pause = (ms: number): void => {
      unpause = setTimeout(endOfPause, timerMs(ms));
      limiter.pause(unpause);
    };
    const apply = (): void => {
      // The pause comes first: a higher limit admits waiters at once.
      const blockedMs = this.blockedForMs;
      if (unpause === undefined && blockedMs > 0) pause(blockedMs);
      if (limiter.maxConcurrent !== this.limit) limiter.maxConcurrent = this.limit;
    };
    this.#apply = apply;
    apply();
    return () => {
      if (this.#apply === apply) this.#apply = undefined;
      if (unpause !== undefined) resume();
    };
  }

  #extendBlock(retryAfterMs: number): void {
    const jitter = JITTER * finiteNumber('random()', this.#random(), 0, 1);
    const untilMs = this.#now() + retryAfterMs * (1 + jitter);
    this.#blockedUntilMs = Math.max(this.#blockedUntilMs, untilMs);
  }

  #cut(factor: number): void {
    // A cut after a cut, with no success between, indicates an outage and not another limit.
    if (this.#succeeded) this.#tooHigh = this.#exact;
    this.#succeeded = false;
    this.#exact = Math.max(this.#min, this.#exact * factor);
    this.#lastCutMs = this.#now();
    this.#guard?.restart();
  }

  /**
   * One success at the limit. Before the first cut that doubles it each round trip. Afterwards it takes one step per round
   * trip: half the distance between the limit and the last overload, so it slows down towards that and speeds up beyond.
   *
   * Near the last overload a small limit takes smaller steps still. Its cuts are undone by few calls, and each time that
   * one is undone a call is rejected; so probing costs less than 3 % of the calls, whatever the limit.
   */
  #grow(): void {
    let step = 1;
    if (this.#tooHigh !== undefined) {
      const distance = Math.abs(this.#exact - this.#tooHigh);
      const care = distance < this.#exact / 2 ? Math.min(1, this.#exact / SMALL) : 1;
      const perRoundTrip = 0.5 * care * Math.max(distance, care);
      step = Math.min(perRoundTrip, this.#exact / 2) / this.#exact;
    }
    this.#exact = Math.min(this.#max, this.#exact + step);
  }
}
