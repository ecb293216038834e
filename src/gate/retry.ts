import { durationMs, finiteNumber, options, refusal, wholeNumber } from '../internal/validate.js';

/** Attempts, backoff and retry budget. */
export interface RetryOptions {
  /**
   * Attempts of one call, including the first; 1 disables retries. An attempt that only finds its key refused or exhausted
   * does not count: the next one uses another key. @default 3
   */
  readonly attempts?: number | undefined;
  /** The first backoff is a random time from 0 to this, in milliseconds; the bound doubles each time. @default 500 */
  readonly baseMs?: number | undefined;
  /** Maximum backoff in milliseconds. @default 30_000, or `baseMs` if that is more */
  readonly maxMs?: number | undefined;
  /**
   * How many retries all calls together may make, so that an outage is not multiplied: in any minute, `perMinute` and
   * `ratio` of the calls. `false` disables it. @default { ratio: 0.2, perMinute: 10 }
   */
  readonly budget?: RetryBudgetOptions | false | undefined;
}

/** See `RetryOptions.budget`. */
export interface RetryBudgetOptions {
  /** The share of the last minute's calls that may be retried. @default 0.2 */
  readonly ratio?: number | undefined;
  /** Retries per minute that are always allowed, for gates with few calls. @default 10 */
  readonly perMinute?: number | undefined;
}

const SLICE_MS = 5_000;
/** One more than a minute has: the current slice is incomplete. */
const SLICES = 13;

/**
 * Counts calls and retries over the last minute, in slices of five seconds.
 *
 * Invariant: no minute, however it lies, has more retries than `perMinute` and `ratio` of the counted calls.
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

  /** Takes a retry from the budget, if one is left. */
  tryTake(nowMs: number): boolean {
    if (this.left(nowMs) < 1) return false;
    this.#retries[this.#slice % SLICES]!++;
    return true;
  }

  /** Retries left now. */
  left(nowMs: number): number {
    this.#turn(nowMs);
    const allowed = this.#perMinute + this.#ratio * sum(this.#calls);
    return Math.max(0, Math.floor(allowed + 1e-9) - sum(this.#retries));
  }

  /** Clears the slices that have passed. */
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

/** Checked options, with all defaults. */
export interface RetryPolicy {
  readonly attempts: number;
  readonly baseMs: number;
  readonly maxMs: number;
  readonly budget: RetryBudget | undefined;
}

export function retryPolicy(given: RetryOptions = {}): RetryPolicy {
  options('retry', given, ['attempts', 'baseMs', 'maxMs', 'budget']);
  const { attempts = 3, baseMs = 500, maxMs = Math.max(30_000, Number(baseMs)), budget = {} } = given;
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
 * Exponential backoff with full jitter: a random time up to a bound that doubles. See Marc Brooker, "Exponential Backoff
 * And Jitter" (AWS Architecture Blog, 2015).
 */
export function backoffMs({ baseMs, maxMs }: RetryPolicy, attempts: number): number {
  return Math.random() * Math.min(maxMs, baseMs * 2 ** (attempts - 1));
}
