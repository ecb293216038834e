import { durationMs, oneOf, options, refusal, wholeNumber } from '../internal/validate.js';

/** So much in so much time: 50 calls a second, 200,000 tokens a minute. */
export interface RateWindow {
  /** The most that may begin in any span of `perMs`; a whole number from 1. */
  readonly limit: number;
  /**
   * Length of the window in milliseconds. A call counts from where it begins on this machine; a service counts where it
   * arrives. Where calls may take up to x ms longer than others to arrive, a window that is x ms longer holds there too.
   */
  readonly perMs: number;
  /** Whether each call counts for one, or for its `weight`. @default 'calls' */
  readonly unit?: 'calls' | 'weight';
}

/** What one start takes of one window. Made by `reserve`, and known to its window alone. */
export interface Charge {
  amount: number;
  /** When it began; until then it is reserved, and counts without end. */
  beganMs: number | undefined;
  over: boolean;
  /** Nothing corrects it any more: the attempt is over, or each call counts for one. */
  final: boolean;
}

/**
 * The ledger of one window: what began when, on the monotonic clock.
 *
 * Invariants:
 * - Strict: in any span of `perMs`, however it lies, no more begins than `limit`. (A `settle` upwards may show later
 *   that more was begun than was said; then nothing begins until that has left the window.)
 * - A charge counts from the moment when the work really began, not from when it was allowed to: between the two the
 *   event loop may have stood still, and counting from the earlier would let the next ones through too soon. Until
 *   then it is reserved, and what never begins is never counted.
 * - `waitFor` is exact for charges that have begun: nothing has to be asked twice.
 */
export class WindowLedger {
  readonly limit: number;
  readonly perMs: number;
  readonly #perCall: boolean;
  /** Charges that have begun, oldest first; those before `#first` are over. */
  #begun: Charge[] = [];
  #first = 0;
  #counted = 0;
  #reserved = 0;

  constructor({ limit, perMs, unit = 'calls' }: RateWindow) {
    this.limit = limit;
    this.perMs = perMs;
    this.#perCall = unit === 'calls';
  }

  /**
   * Milliseconds until a call of this weight has room; 0 when it has it now, `Infinity` when it never will. With
   * `isCertain`, only as far as nothing can change it: what is reserved may never begin, and what an attempt under way was
   * taken to weigh may yet be corrected.
   */
  waitFor(weight: number, nowMs: number, isCertain = false): number {
    const amount = this.#amountOf(weight);
    if (amount === 0) return 0;
    if (amount > this.limit) return Number.POSITIVE_INFINITY;
    this.#forget(nowMs);
    let excess = (isCertain ? this.#final() : this.#counted + this.#reserved) + amount - this.limit;
    if (excess <= 0) return 0;
    for (let i = this.#first; i < this.#begun.length; i++) {
      const charge = this.#begun[i] as Charge;
      if (isCertain && !charge.final) continue;
      excess -= charge.amount;
      if (excess <= 0) return (charge.beganMs as number) + this.perMs - nowMs;
    }
    // What is reserved begins now at the earliest.
    return this.perMs;
  }

  /** How much of the window is free, from 0 to 1. */
  free(nowMs: number): number {
    this.#forget(nowMs);
    return Math.max(0, (this.limit - this.#counted - this.#reserved) / this.limit);
  }

  reserve(weight: number): Charge {
    const charge: Charge = {
      amount: this.#amountOf(weight),
      beganMs: undefined,
      over: false,
      final: this.#perCall,
    };
    this.#reserved += charge.amount;
    return charge;
  }

  /** The work begins. `nowMs` never goes back from one call to the next. */
  begin(charge: Charge, nowMs: number): void {
    if (charge.over || charge.beganMs !== undefined) return;
    this.#reserved -= charge.amount;
    this.#counted += charge.amount;
    charge.beganMs = nowMs;
    this.#begun.push(charge);
  }

  /** The work is over. */
  finish(charge: Charge): void {
    charge.final = true;
  }

  /** The work will not begin. */
  cancel(charge: Charge): void {
    if (charge.over || charge.beganMs !== undefined) return;
    this.#reserved -= charge.amount;
    charge.over = true;
  }

  /** Corrects what was estimated, as long as it counts. */
  settle(charge: Charge, weight: number): void {
    if (charge.over) return;
    const more = this.#amountOf(weight) - charge.amount;
    charge.amount += more;
    if (charge.beganMs === undefined) this.#reserved += more;
    else this.#counted += more;
  }

  /** What has begun and nothing corrects any more. */
  #final(): number {
    if (this.#perCall) return this.#counted;
    let sum = 0;
    for (let i = this.#first; i < this.#begun.length; i++) {
      const charge = this.#begun[i] as Charge;
      if (charge.final) sum += charge.amount;
    }
    return sum;
  }

  #amountOf(weight: number): number {
    return this.#perCall ? 1 : weight;
  }

  /** Lets go of what has left the window. */
  #forget(nowMs: number): void {
    const begun = this.#begun;
    for (let charge = begun[this.#first]; charge !== undefined; charge = begun[this.#first]) {
      if ((charge.beganMs as number) + this.perMs > nowMs) break;
      charge.over = true;
      this.#counted -= charge.amount;
      this.#first++;
    }
    // Half of it at a time, so that each charge is moved about once.
    if (this.#first > 32 && this.#first * 2 > begun.length) {
      this.#begun = begun.slice(this.#first);
      this.#first = 0;
    }
  }
}

/** What fits into the smallest of the windows that count weight. */
export function heaviest(rate: readonly RateWindow[]): number {
  return Math.min(Number.MAX_SAFE_INTEGER, ...rate.filter((w) => w.unit === 'weight').map((w) => w.limit));
}

/** Refuses a list of windows that is none. */
export function checkWindows(option: string, value: readonly RateWindow[]): readonly RateWindow[] {
  if (!Array.isArray(value)) throw new TypeError(refusal(option, 'an array of windows', value));
  return value.map((window: RateWindow, i) => {
    const at = `${option}[${i}]`;
    options(at, window, ['limit', 'perMs', 'unit']);
    wholeNumber(`${at}.limit`, window.limit);
    durationMs(`${at}.perMs`, window.perMs, 1);
    if (window.unit !== undefined) oneOf(`${at}.unit`, window.unit, ['calls', 'weight']);
    return { ...window };
  });
}
