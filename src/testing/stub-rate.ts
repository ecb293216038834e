import { durationMs, options, wholeNumber } from '../internal/validate.js';

/** So many calls in any stretch of time, wherever it is laid. Calls that are refused do not count. */
export interface StubRate {
  readonly limit: number;
  /** Milliseconds; the service's `timeScale` applies. */
  readonly perMs: number;
}

/** What a window says to a call. */
export interface RateVerdict {
  readonly admitted: boolean;
  readonly limit: number;
  /** Calls left after this one. */
  readonly remaining: number;
  /** Milliseconds until there is room again; 0 while there is. */
  readonly waitMs: number;
  /** Milliseconds until nothing counts any more. */
  readonly resetMs: number;
}

/** A rate, kept for each key apart. The strictest form there is: the start of each call counts for the whole window. */
export class KeyedRate {
  readonly #limit: number;
  readonly #perMs: number;
  readonly #starts = new Map<string, number[]>();

  constructor(option: string, rate: StubRate, timeScale: number) {
    options(option, rate, ['limit', 'perMs']);
    this.#limit = wholeNumber(`${option}.limit`, rate.limit);
    this.#perMs = durationMs(`${option}.perMs`, rate.perMs, 1) * timeScale;
  }

  take(key: string): RateVerdict {
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
