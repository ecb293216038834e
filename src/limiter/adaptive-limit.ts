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
import { LatencyBrake } from './latency-brake.js';

/** Bounds and helpers of an `AdaptiveLimit`. */
export interface AdaptiveLimitOptions {
  /** The limit to begin with. @default 8, or the bound nearest to it */
  readonly initial?: number;
  /** The limit never goes below. @default 1 */
  readonly min?: number;
  /** The limit never goes above. @default 200, or `min` if that is more */
  readonly max?: number;
  /** Whether samples with a `normalisedLatencyMs` may lower the limit. @default false */
  readonly latencyBrake?: boolean;
  /** Milliseconds on a monotonic clock. @default performance.now */
  readonly now?: () => number;
  /** A number from 0 up to 1, for the jitter behind a Retry-After. @default Math.random */
  readonly random?: () => number;
}

/** How one call went. */
export interface LimitSample {
  /** When it began, on the limit's own clock. */
  readonly startedMs: number;
  /**
   * `ok`: answered. `dropped`: turned away or timed out for overload (429, 503, 529). `ignored`: says nothing about
   * load (a bad request, a spent budget, the caller's abort).
   */
  readonly outcome: PermitOutcome;
  /** Calls under way as it ended, itself among them. */
  readonly inFlight: number;
  /** Milliseconds for which the service wants to see no further call, whatever the outcome was. */
  readonly retryAfterMs?: number;
  /**
   * Milliseconds that do not grow with the length of the answer: to the first token, or per token. Read only where
   * `latencyBrake` is set. A whole call's duration does not fit: a long answer would count as an overload.
   */
  readonly normalisedLatencyMs?: number;
}

/** What an `AdaptiveLimit` moves: a `ConcurrencyLimiter`, or anything with these. */
export interface DrivableLimiter {
  maxConcurrent: number;
  /** `timer` will end the pause; it need keep the process alive only while somebody waits. */
  pause(timer: NodeJS.Timeout): void;
  resume(): void;
}

/** How far a cut goes, by what called for it. */
const DROP_CUT = 0.85;
const GAUGE_CUT = 0.9;
/** The limit binds from this share of it on. */
const BINDING = 0.9;
/** Limits below this one grow with more care. */
const SMALL = 12;
/** At most this share is added to a Retry-After. */
const JITTER = 0.1;

const timerMs = (ms: number): number => Math.min(Math.ceil(ms), MAX_TIMER_MS);

/**
 * A concurrency limit that finds what a service bears, from how its calls end: up a little with each success at the
 * limit, down by a share when the service says that it is too much. Pure arithmetic: no timers, no clock but the one
 * given to it.
 *
 * Invariants:
 * - `min <= limit <= max`, and `limit` is whole.
 * - One cut per round trip: after a cut only calls that began later can move the limit, since the others were sent
 *   under the old one.
 * - It grows only while it binds. A quiet hour proves nothing about the load that follows.
 * - `blockedForMs` covers every Retry-After that was told, and is never shortened.
 *
 * It finds how many at once, not how many a minute. Refusals for a rate move it too, and Retry-After keeps them few
 * where the rate is counted in whole minutes; but a rate that is known belongs in a rate window in front of it.
 *
 * Additive increase and multiplicative decrease as TCP has them (RFC 5681), growing back towards the last overload
 * slowly and away from it faster, after CUBIC (RFC 9438).
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
  readonly #brake: LatencyBrake | undefined;
  /** Kept with its fraction: growth by less than one must add up. */
  #exact: number;
  /** The limit that was last found too high. */
  #tooHigh: number | undefined;
  /** Whether a call that began after the last cut has succeeded: the round trip under the present limit is complete. */
  #succeeded = true;
  #lastCutMs = Number.NEGATIVE_INFINITY;
  #blockedUntilMs = Number.NEGATIVE_INFINITY;
  #apply: (() => void) | undefined;

  /** @throws {TypeError | RangeError} naming the option that is wrong */
  constructor(given: AdaptiveLimitOptions = {}) {
    options('AdaptiveLimit', given, ['initial', 'min', 'max', 'latencyBrake', 'now', 'random']);
    this.#min = wholeNumber('min', given.min ?? 1);
    this.#max = wholeNumber('max', given.max ?? Math.max(200, this.#min), this.#min);
    const initial = given.initial ?? Math.min(Math.max(8, this.#min), this.#max);
    this.#exact = wholeNumber('initial', initial, this.#min, this.#max);
    this.#brake = flag('latencyBrake', given.latencyBrake ?? false) ? new LatencyBrake() : undefined;
    this.#now = callable('now', given.now ?? nowMs);
    finiteNumber('now()', this.#now(), -Number.MAX_VALUE, Number.MAX_VALUE);
    this.#random = callable('random', given.random ?? Math.random);
  }

  /** What the limit never goes above. */
  get max(): number {
    return this.#max;
  }

  /** How many calls the service is held to bear at once. */
  get limit(): number {
    return Math.floor(this.#exact);
  }

  /** Milliseconds until a new call may begin; 0 when it may now. Calls under way are not meant. */
  get blockedForMs(): number {
    return Math.max(0, this.#blockedUntilMs - this.#now());
  }

  /** Now, on the clock that `startedMs` is told in. */
  clockMs(): number {
    return this.#now();
  }

  /**
   * Learns how one call went. Tell it before the permit is released: the release lets the next waiter in, and that must
   * be under the new limit. A limiter that was made with this as its `adaptive` does so by itself.
   *
   * @throws {TypeError | RangeError} naming the field that is wrong
   */
  onSample(sample: LimitSample): void {
    const startedMs = finiteNumber('startedMs', sample.startedMs, -Number.MAX_VALUE, Number.MAX_VALUE);
    const outcome = oneOf('outcome', sample.outcome, ['ok', 'dropped', 'ignored']);
    const inFlight = wholeNumber('inFlight', sample.inFlight, 0);
    const { retryAfterMs, normalisedLatencyMs } = sample;
    if (normalisedLatencyMs !== undefined) durationMs('normalisedLatencyMs', normalisedLatencyMs);
    if (retryAfterMs !== undefined) this.#moveGate(durationMs('retryAfterMs', retryAfterMs));

    // A call that began in the very moment of the cut counts as sent before it: cutting twice would be worse.
    if (outcome !== 'ignored' && startedMs > this.#lastCutMs) {
      if (outcome === 'dropped') this.#cut(DROP_CUT);
      else {
        this.#succeeded = true;
        const factor = this.#brake?.factor(normalisedLatencyMs, this.limit, this.#min);
        if (factor !== undefined) this.#cut(factor);
        else if (inFlight >= BINDING * this.limit && !this.#brake?.isSlow) this.#grow();
      }
    }
    this.#apply?.();
  }

  /**
   * Learns how many requests wait inside the service: vLLM's `num_requests_waiting`, say. The best signal there is, as
   * it tells of overload before anybody is turned away. Call it as often as you read the gauge.
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
   * Lets no new call begin for so long: a Retry-After that came with an answer. A shorter one than what holds already
   * changes nothing, and up to a tenth is added by chance, so that several processes do not come back in one step.
   *
   * @throws {TypeError | RangeError} when `retryAfterMs` is not a duration
   */
  blockFor(retryAfterMs: number): void {
    this.#moveGate(durationMs('retryAfterMs', retryAfterMs));
    this.#apply?.();
  }

  /**
   * Moves a limiter from now on: its `maxConcurrent` follows `limit`, and it is paused while `blockedForMs` holds. Leave
   * both alone meanwhile. Gives the function that ends it; a pause made from here ends with it.
   *
   * The timer that ends a pause keeps the process alive while somebody waits behind it.
   *
   * @throws {Error} when a limiter is driven already: two of them would each take the whole limit
   */
  drive(limiter: DrivableLimiter): () => void {
    if (this.#apply !== undefined) throw new Error('An AdaptiveLimit drives one limiter at a time');
    let unpause: NodeJS.Timeout | undefined;
    const resume = (): void => {
      clearTimeout(unpause);
      unpause = undefined;
      limiter.resume();
    };
    // The gate may have been moved on meanwhile, and a timer may fire a moment early.
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
      // The pause comes first: a higher limit lets waiters in at once.
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

  #moveGate(retryAfterMs: number): void {
    const jitter = JITTER * finiteNumber('random()', this.#random(), 0, 1);
    const untilMs = this.#now() + retryAfterMs * (1 + jitter);
    this.#blockedUntilMs = Math.max(this.#blockedUntilMs, untilMs);
  }

  #cut(factor: number): void {
    // A cut on a cut, with no success between, tells of an outage and not of another limit.
    if (this.#succeeded) this.#tooHigh = this.#exact;
    this.#succeeded = false;
    this.#exact = Math.max(this.#min, this.#exact * factor);
    this.#lastCutMs = this.#now();
    this.#brake?.restart();
  }

  /**
   * One success at the limit. Before the first cut that doubles it each round trip. Afterwards it takes a step a round
   * trip: half the way that lies between the limit and the last overload, so it slows down towards that, and speeds up
   * once beyond.
   *
   * Near the last overload a small limit takes smaller steps yet. Its cuts are undone by few calls, and each time that
   * one is undone a call is refused; so probing costs less than three calls in a hundred, whatever the limit.
   */
  #grow(): void {
    let step = 1;
    if (this.#tooHigh !== undefined) {
      const far = Math.abs(this.#exact - this.#tooHigh);
      const care = far < this.#exact / 2 ? Math.min(1, this.#exact / SMALL) : 1;
      const perRoundTrip = 0.5 * care * Math.max(far, care);
      step = Math.min(perRoundTrip, this.#exact / 2) / this.#exact;
    }
    this.#exact = Math.min(this.#max, this.#exact + step);
  }
}
