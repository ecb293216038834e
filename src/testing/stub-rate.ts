import { durationMs, options, wholeNumber } from '../internal/validate.js';

/** At most `limit` calls within any `perMs`. Rejected calls do not count. */
export interface StubRate {
  readonly limit: number;
  /** Milliseconds; multiplied by the service's `timeScale`. */
  readonly perMs: number;
}

/** Whether a call is admitted, and the state of its window. */
export interface RateDecision {
  readonly admitted: boolean;
  readonly limit: number;
  /** Calls left after this one. */
  readonly remaining: number;
  /** Milliseconds until another call is admitted; 0 if one is now. */
  readonly waitMs: number;
  /** Milliseconds until the window is empty. */
  readonly resetMs: number;
}

/** A maximum of at least `min`; infinite if it is not given. */
export const countOrUnlimited = (option: string, value: number | undefined, min = 0): number =>
  value === undefined ? Number.POSITIVE_INFINITY : wholeNumber(option, value, min);

/** A rate limit; none if it is not given. */
export const rateOf = (
  option: string,
  rate: StubRate | undefined,
  timeScale: number,
): KeyedRate | undefined => (rate === undefined ? undefined : new KeyedRate(option, rate, timeScale));

/** The `Retry-After` of a rejected call, in seconds. */
export const retryAfterOf = ({ waitMs }: RateDecision): string =>
  String(Math.max(1, Math.ceil(waitMs / 1000)));

/** A sliding window per key. */
export class KeyedRate {
  readonly #limit: number;
  readonly #perMs: number;
  readonly #starts = new Map<string, number[]>();

  constructor(option: string, rate: StubRate, timeScale: number) {
    options(option, rate, ['limit', 'perMs']);
    this.#limit = wholeNumber(`${option}.limit`, rate.limit);
    this.#perMs = durationMs(`${option}.perMs`, rate.perMs, 1) * timeScale;
  }

  take(key: string): RateDecision {
    const now = performance.now();
    const starts = (this.#starts.get(key) ?? []).filter((start) => now - start < this.#perMs);
    const admitted = starts.length < this.#limit;
    if (admitted) starts.push(now);
    this.#starts.set(key, starts);
    const remaining = this.#limit - starts.length;
    return {
      admitted,
      limit: this.#limit,
      remaining,
      waitMs: remaining > 0 ? 0 : starts[0]! + this.#perMs - now,
      resetMs: starts.at(-1)! + this.#perMs - now,
    };
  }
}
