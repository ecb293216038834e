import type { PermitOutcome } from '../hooks/events.js';
import { clockOf } from '../internal/clock.js';
import {
  callable,
  clock,
  durationMs,
  finiteNumber,
  MAX_TIMER_MS,
  oneOf,
  optional,
  options,
  wholeNumber,
} from '../internal/validate.js';
import { QueueDelay, type TimedCall, type Verdict } from './queue-delay.js';

/** Options of an `AdaptiveLimit`. */
export interface AdaptiveLimitOptions {
  /** The limit at first. @default 8, or the bound nearest to it */
  readonly initial?: number | undefined;
  /** The lower bound of the limit; a whole number from 1. @default 1 */
  readonly min?: number | undefined;
  /** The upper bound of the limit. @default 200, or `min` if that is more */
  readonly max?: number | undefined;
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
}

/** What an `AdaptiveLimit` attaches to: a `ConcurrencyLimiter`, or anything with these members. */
export interface AttachableLimiter {
  maxConcurrent: number;
  /** `timer` will end the pause; it need keep the process alive only while there are waiters. */
  pause(timer: NodeJS.Timeout): void;
  resume(): void;
}

/** The outcome of a call that has ended. */
export interface CallEnd {
  /** See `LimitSample`. */
  readonly outcome: PermitOutcome;
  /** Milliseconds for which the service wants no further call, whatever the outcome was. */
  readonly retryAfterMs?: number | undefined;
  /** What the call used, such as its completion tokens: its duration grows with it. */
  readonly usage?: number | undefined;
}

/** A call in flight, of which an `AdaptiveLimit` learns when it ends, and when its first item came. */
export interface AdaptiveCall {
  /** Its first item is there. Call it as the item comes, not with the end of the call. */
  firstItem(): void;
  /** It has ended. A second time has no effect. */
  end(end: CallEnd): void;
}

/** The factor of a cut when a call was dropped. */
const DROP_CUT = 0.85;
/** The limit binds from this share of it in use. */
const BINDING = 0.9;
/** Limits below this one grow more slowly. */
const SMALL = 12;
/** At most this share is added to a Retry-After. */
const JITTER = 0.1;

/** A gauge above this many, and above this share of the limit, shows an overload. */
const GAUGE_MOST = 2;
const GAUGE_SHARE = 0.07;
/** A cut by the calls that wait is no deeper than this share at once. */
const DEEPEST_CUT = 0.7;
/** So much is left waiting after such a cut: an empty queue might be a service that is not used up. */
const LEFT_WAITING = 1.06;
/** The first alarm before the first cut is not believed if fewer wait. */
const FIRST_ALARM = 0.25;

/** Growth in a round trip after a cut by delay: at least half a call, at least this share of the limit. */
const LEAST_GAIN = 0.5;
const GAIN_SHARE = 0.03;
/** So many successes, as a share of the limit, are a calm round, after which the growth multiplies. */
const CALM_ROUND = 0.6;
const CALM_GAIN = 3;
const FAR_GAIN = 4;
/** Within this distance of the last limit that was too high, growth is at most this share of the limit. */
const NEAR = 0.15;
const NEAR_SHARE = 0.3;

const timerMs = (ms: number): number => Math.min(Math.ceil(ms), MAX_TIMER_MS);

/**
 * An adaptive concurrency limit (AIMD): adjusts how many calls may run at once from how calls end and, where `begin`
 * reports them, from when their first items come. It grows while the limit binds, and shrinks when the service signals
 * overload or calls queue inside it. Pure arithmetic: it has no timers, and no clock but `now`.
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
 * Additive increase and multiplicative decrease as in TCP (RFC 5681). After a refusal it grows back towards the last
 * overload slowly and away from it faster, as in CUBIC (RFC 9438). Where times are known, Little's law gives the share of
 * the calls that only wait in the service, and a cut removes that share.
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
  readonly #delay = new QueueDelay();
  /** With its fraction: growth by less than one must add up. */
  #exact: number;
  /** The last limit that was too high, and what showed it; `undefined` before the first cut. */
  #tooHigh: { readonly limit: number; readonly by: 'drop' | 'queue' } | undefined;
  /** Whether a call that started after the last cut has succeeded: the round trip under the present limit is complete. */
  #succeeded = true;
  #lastCutMs = Number.NEGATIVE_INFINITY;
  #blockedUntilMs = Number.NEGATIVE_INFINITY;
  /** Calls in flight that `begin` has reported. */
  #begun = 0;
  /** The time integrals of that number and of its square, since the last verdict and up to this moment. */
  #begunMs = 0;
  #squareMs = 0;
  #integratedMs = 0;
  /** Calls in flight, as far as known. */
  #inFlight: number | undefined;
  /** Whether more calls are in flight than the last cut left: nothing can be learned yet. */
  #isDraining = false;
  /** The first alarm came before the first cut. */
  #isAlarmed = false;
  /** What the calm rounds since the last cut have multiplied the growth by. */
  #gain = 1;
  #isCalm = false;
  #successes = 0;
  #apply: (() => void) | undefined;

  constructor(given: AdaptiveLimitOptions = {}) {
    options('AdaptiveLimit', given, ['initial', 'min', 'max', 'now', 'random']);
    this.#min = wholeNumber('min', given.min ?? 1);
    this.#max = wholeNumber('max', given.max ?? Math.max(200, this.#min), this.#min);
    const initial = given.initial ?? Math.min(Math.max(8, this.#min), this.#max);
    this.#exact = wholeNumber('initial', initial, this.#min, this.#max);
    optional('now', given.now, clock);
    this.#now = clockOf(given.now);
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
   * Follows one call from now on: the best that a limit can learn from, next to a gauge. Report its first item as it
   * comes, if it is `streamed`, and its end before its permit is released.
   *
   * @example
   * const call = adaptive.begin({ streamed: true });
   * for await (const chunk of stream) call.firstItem();
   * call.end({ outcome: 'ok', usage: completionTokens });
   */
  begin({ streamed = false }: { readonly streamed?: boolean | undefined } = {}): AdaptiveCall {
    const call: TimedCall = { startedMs: this.#now(), isStreamed: streamed, firstMs: undefined };
    this.#integrate(call.startedMs);
    this.#inFlight = ++this.#begun;
    this.#delay.begin(call);
    let hasEnded = false;
    return {
      firstItem: () => {
        if (hasEnded || call.firstMs !== undefined) return;
        call.isStreamed = true;
        const atMs = this.#now();
        this.#judged(this.#delay.firstItem(call, this.#exact, atMs), atMs);
        this.#apply?.();
      },
      end: (end) => {
        if (hasEnded) return;
        const retryAfterMs = optional('retryAfterMs', end.retryAfterMs, durationMs);
        const usage = optional('usage', end.usage, (o, v) => finiteNumber(o, v, 0, Number.MAX_VALUE));
        hasEnded = true;
        if (retryAfterMs !== undefined) this.#extendBlock(retryAfterMs);
        const inFlight = this.#begun--;
        this.#delay.drop(call);
        const atMs = this.#now();
        this.#integrate(atMs, inFlight);
        if (end.outcome === 'ok') this.#judged(this.#delay.end(call, usage, this.#exact, atMs), atMs);
        this.#ended(call.startedMs, end.outcome, inFlight);
      },
    };
  }

  /**
   * Records the outcome of one call that `begin` does not follow. Call it before the permit is released: the release
   * admits the next waiter, and that must happen under the new limit. A limiter with this as its `adaptive` option calls
   * it by itself.
   *
   * @throws {TypeError | RangeError} naming the wrong field
   */
  onSample(sample: LimitSample): void {
    const startedMs = finiteNumber('startedMs', sample.startedMs, -Number.MAX_VALUE, Number.MAX_VALUE);
    const outcome = oneOf('outcome', sample.outcome, ['ok', 'dropped', 'ignored']);
    const inFlight = wholeNumber('inFlight', sample.inFlight, 0);
    if (sample.retryAfterMs !== undefined) this.#extendBlock(durationMs('retryAfterMs', sample.retryAfterMs));
    this.#ended(startedMs, outcome, inFlight);
  }

  /**
   * Records how many requests are queued inside the service, such as vLLM's `num_requests_waiting`. The best signal there
   * is: it shows an overload before any call is rejected. Read it several times a second: a reading every few seconds is
   * of little use.
   *
   * @throws {TypeError | RangeError} when `waiting` is not a number from 0
   */
  onGauge(waiting: number): void {
    finiteNumber('waiting', waiting, 0, Number.MAX_VALUE);
    if (this.#isDraining || !this.#succeeded) return;
    const most = Math.max(GAUGE_MOST, GAUGE_SHARE * this.#exact);
    this.#isCalm = waiting <= most / 2;
    if (waiting <= most) return;
    const present = Math.min(this.#exact, this.#inFlight ?? this.#exact);
    this.#cut(Math.max(this.#exact / 2, present - waiting), 'queue');
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

  #ended(startedMs: number, outcome: PermitOutcome, inFlight: number): void {
    this.#inFlight = inFlight - 1;
    if (this.#isDraining && inFlight <= this.#exact) {
      this.#isDraining = false;
      this.#restart(this.#now());
    }
    // A call that started at the moment of the cut counts as sent before it: cutting twice would be worse.
    if (outcome !== 'ignored' && startedMs > this.#lastCutMs) {
      if (outcome === 'dropped') this.#cut(this.#exact * DROP_CUT, 'drop');
      else {
        this.#succeeded = true;
        if (inFlight >= BINDING * this.limit) this.#grow();
      }
    }
    this.#apply?.();
  }

  #integrate(atMs: number, inFlight = this.#begun): void {
    const callMs = inFlight * (atMs - this.#integratedMs);
    this.#begunMs += callMs;
    this.#squareMs += inFlight * callMs;
    this.#integratedMs = atMs;
  }

  /** What the times of a window show. */
  #judged(verdict: Verdict | undefined, atMs: number): void {
    if (verdict === undefined || this.#isDraining) return;
    this.#integrate(atMs);
    // As a call in flight sees it: idle times do not count.
    const meanInFlight = this.#squareMs / this.#begunMs;
    this.#begunMs = 0;
    this.#squareMs = 0;
    this.#isCalm = verdict.is === 'calm';
    if (verdict.is === 'between') this.#gain = 1;
    if (verdict.is !== 'over') {
      // Before the first cut growth is fast: it waits for the next window.
      this.#isAlarmed = verdict.is === 'between' && this.#tooHigh === undefined;
      return;
    }
    if (this.#tooHigh === undefined && !this.#isAlarmed && verdict.waiting < FIRST_ALARM) {
      this.#isAlarmed = true;
      return;
    }
    const running = 1 - Math.min(verdict.waiting, DEEPEST_CUT);
    const present = meanInFlight > 0 ? Math.min(this.#exact, meanInFlight) : this.#exact;
    this.#cut(present * running * LEFT_WAITING, 'queue');
  }

  #restart(atMs: number): void {
    this.#delay.restart(atMs);
    this.#begunMs = 0;
    this.#squareMs = 0;
    this.#integratedMs = atMs;
    this.#successes = 0;
    this.#isCalm = false;
  }

  #cut(limit: number, by: 'drop' | 'queue'): void {
    // A cut after a cut, with no success between, indicates an outage and not another limit.
    if (this.#succeeded) this.#tooHigh = { limit: this.#exact, by };
    this.#succeeded = false;
    this.#exact = Math.min(this.#exact, Math.max(this.#min, limit));
    this.#lastCutMs = this.#now();
    this.#gain = 1;
    this.#isAlarmed = false;
    this.#isDraining = by === 'queue';
    this.#restart(this.#lastCutMs);
  }

  /** One success at the limit. Before the first cut that doubles it each round trip. */
  #grow(): void {
    if (this.#isAlarmed || this.#delay.isSlow) return;
    const tooHigh = this.#tooHigh;
    const step =
      tooHigh === undefined
        ? 1
        : tooHigh.by === 'drop'
          ? this.#afterDrop(tooHigh.limit)
          : this.#afterQueue(tooHigh.limit);
    this.#exact = Math.min(this.#max, this.#exact + step);
  }

  /**
   * One step per round trip: half the distance between the limit and the last overload, so it slows down towards that and
   * speeds up beyond.
   *
   * Near the last overload a small limit takes smaller steps still. Its cuts are undone by few calls, and each time that
   * one is undone a call is rejected; so probing costs less than 3 % of the calls, whatever the limit.
   */
  #afterDrop(tooHigh: number): number {
    const exact = this.#exact;
    const distance = Math.abs(exact - tooHigh);
    const care = distance < exact / 2 ? Math.min(1, exact / SMALL) : 1;
    const perRoundTrip = 0.5 * care * Math.max(distance, care);
    return Math.min(perRoundTrip, exact / 2) / exact;
  }

  /** A few calls per round trip; more with each calm round, since a queue shows before it does harm. */
  #afterQueue(tooHigh: number): number {
    const exact = this.#exact;
    if (this.#isCalm && ++this.#successes >= CALM_ROUND * exact) {
      this.#successes = 0;
      this.#gain *= exact > (1 + NEAR) * tooHigh ? FAR_GAIN : CALM_GAIN;
    }
    const isNear = Math.abs(exact - tooHigh) <= NEAR * tooHigh;
    const most = Math.max(LEAST_GAIN, isNear ? NEAR_SHARE * exact : exact);
    const perRoundTrip = this.#gain * Math.max(LEAST_GAIN, GAIN_SHARE * exact);
    // Not further than the least that is too much for it.
    if (perRoundTrip > most) this.#gain *= most / perRoundTrip;
    return Math.min(perRoundTrip, most) / exact;
  }
}
