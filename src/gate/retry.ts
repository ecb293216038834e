import { unwatchAbort, watchAbort } from '../internal/abort-watch.js';
import {
  durationMs,
  finiteNumber,
  MAX_TIMER_MS,
  options,
  refusal,
  wholeNumber,
} from '../internal/validate.js';

/** How often and how soon a failed call is tried again. */
export interface RetryOptions {
  /**
   * Attempts of one call, the first among them; 1 never tries again. An attempt that only found out that a key is dead
   * or spent does not count: the next one has another key. @default 3
   */
  readonly attempts?: number;
  /** The first back-off is a random time from 0 to this, in milliseconds; each further bound is twice the last. @default 500 */
  readonly baseMs?: number;
  /** No back-off is longer, in milliseconds. @default 30_000 */
  readonly maxMs?: number;
  /**
   * How many retries all calls together may make, so that an outage is not multiplied: in any minute, `perMinute` and
   * `ratio` of the calls. `false` sets no bound. @default { ratio: 0.2, perMinute: 10 }
   */
  readonly budget?: RetryBudgetOptions | false;
}

/** See `RetryOptions.budget`. */
export interface RetryBudgetOptions {
  /** The share of the last minute's calls that may be retried. @default 0.2 */
  readonly ratio?: number;
  /** Retries a minute that are always allowed, for when calls are rare. @default 10 */
  readonly perMinute?: number;
}

const SLICE_MS = 5_000;
/** One more than a minute has: the slice that is still filling is no whole one. */
const SLICES = 13;

/**
 * Counts calls and retries over the last minute, in slices of five seconds.
 *
 * Invariant: no minute, however it lies, has more retries than `perMinute` and `ratio` of the calls that are counted.
 */
export class RetryBudget {
  readonly #ratio: number;
  readonly #perMinute: number;
  readonly #calls = new Array<number>(SLICES).fill(0);
  readonly #retries = new Array<number>(SLICES).fill(0);
  #slice = 0;

  constructor({ ratio = 0.2, perMinute = 10 }: RetryBudgetOptions = {}) {
    this.#ratio = ratio;
    this.#perMinute = perMinute;
  }

  noteCall(nowMs: number): void {
    this.#turn(nowMs);
    this.#calls[this.#slice % SLICES]!++;
  }

  /** Takes a retry out of the budget, if it has one. */
  tryTake(nowMs: number): boolean {
    if (this.left(nowMs) < 1) return false;
    this.#retries[this.#slice % SLICES]!++;
    return true;
  }

  /** Retries that are left now. */
  left(nowMs: number): number {
    this.#turn(nowMs);
    const allowed = this.#perMinute + this.#ratio * sum(this.#calls);
    return Math.max(0, Math.floor(allowed + 1e-9) - sum(this.#retries));
  }

  /** Empties the slices that the clock has passed since it was last looked at. */
  #turn(nowMs: number): void {
    const slice = Math.floor(nowMs / SLICE_MS);
    for (let passed = Math.min(slice - this.#slice, SLICES); passed > 0; passed--) {
      const at = (slice - passed + 1) % SLICES;
      this.#calls[at] = 0;
      this.#retries[at] = 0;
    }
    this.#slice = slice;
  }
}

const sum = (counts: readonly number[]): number => counts.reduce((a, b) => a + b, 0);

/** Checked, with every default in its place. */
export interface RetryPolicy {
  readonly attempts: number;
  readonly baseMs: number;
  readonly maxMs: number;
  readonly budget: RetryBudget | undefined;
}

export function retryPolicy(given: RetryOptions = {}): RetryPolicy {
  options('retry', given, ['attempts', 'baseMs', 'maxMs', 'budget']);
  const { attempts = 3, baseMs = 500, maxMs = 30_000, budget = {} } = given;
  wholeNumber('retry.attempts', attempts);
  durationMs('retry.baseMs', baseMs);
  durationMs('retry.maxMs', maxMs);
  if (maxMs < baseMs) throw new RangeError(refusal('retry.maxMs', `at least \`baseMs\` (${baseMs})`, maxMs));
  if (budget === false) return { attempts, baseMs, maxMs, budget: undefined };
  options('retry.budget', budget, ['ratio', 'perMinute']);
  if (budget.ratio !== undefined) finiteNumber('retry.budget.ratio', budget.ratio, 0, 100);
  if (budget.perMinute !== undefined) wholeNumber('retry.budget.perMinute', budget.perMinute, 0);
  return { attempts, baseMs, maxMs, budget: new RetryBudget(budget) };
}

/**
 * The back-off before the retry after so many attempts: anything up to a bound that doubles. "Full jitter", from Marc
 * Brooker's "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015), spreads the retries of many callers best.
 */
export function backoffMs({ baseMs, maxMs }: RetryPolicy, attempts: number): number {
  return Math.random() * Math.min(maxMs, baseMs * 2 ** (attempts - 1));
}

/** Waits, unless the signal aborts first; then it rejects with its reason, in that step. */
export function waitOut(ms: number, signal: AbortSignal): Promise<void> {
  if (signal.aborted) return Promise.reject(signal.reason);
  return new Promise((resolve, reject) => {
    const watcher = {
      onAbort: (reason: unknown): void => {
        clearTimeout(timer);
        reject(reason);
      },
    };
    const timer = setTimeout(
      () => {
        unwatchAbort(signal, watcher);
        resolve();
      },
      Math.min(Math.ceil(ms), MAX_TIMER_MS),
    );
    watchAbort(signal, watcher);
  });
}
