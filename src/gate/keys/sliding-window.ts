import { durationMs, oneOf, options, refusal, wholeNumber } from '../../internal/validate.js';

/** A rate limit: 50 calls per second, 200,000 tokens per minute. */
export interface RateWindow {
  /** The most that may begin in any span of `perMs`; a whole number from 1. */
  readonly limit: number;
  /**
   * Length of the window in milliseconds. A call counts from where it begins on this machine, and a service counts where
   * it arrives: if some calls take up to x ms longer than others to arrive, make the window x ms longer.
   */
  readonly perMs: number;
  /** Whether each call counts as one, or as its `weight`. @default 'calls' */
  readonly unit?: 'calls' | 'weight' | undefined;
}

/** What one start takes of one window. Made by `reserve`, and known to its window alone. */
export interface WindowEntry {
  readonly window: SlidingWindow;
  amount: number;
  /** When it began; until then it is reserved, and counts without end. */
  beganMs: number | undefined;
  /** What its window counted when it began, this included. */
  countedThen: number;
  /** Where it is in the log; `undefined` before it began, and after it expired. */
  block: Block | undefined;
  /** It counts no longer: it has left the window, or never began. */
  over: boolean;
  /** Nothing corrects it any more: the attempt is over, or each call counts as one. */
  final: boolean;
}

/** Consecutive entries of the log, with their sums. */
interface Block {
  readonly entries: WindowEntry[];
  /** Index of the first entry that has not expired. */
  first: number;
  counted: number;
  /** The part of `counted` that nothing corrects. */
  final: number;
}

const BLOCK_SIZE = 256;

/**
 * The log of one window: what began when, on the monotonic clock.
 *
 * Invariants:
 * - Strict: in any span of `perMs`, at any alignment, no more begins than `limit`. (A correction upwards may show later
 *   that more began than was estimated; then nothing begins until that has left the window.)
 * - An entry counts from the moment at which the work began, not from when it was allowed to: the event loop may have been
 *   blocked between the two. Until then it is reserved, and what never begins is never counted.
 * - `waitMs` is exact for entries that have begun, so nothing is polled.
 * - Sums are kept per window and per block of the log: no operation walks the entries of more than one block.
 */
export class SlidingWindow {
  limit: number;
  /** It may become longer. */
  perMs: number;
  readonly unit: 'calls' | 'weight';
  readonly #perCall: boolean;
  readonly #fitsAll: boolean;
  /** Oldest first. */
  readonly #blocks: Block[] = [];
  #counted = 0;
  #final = 0;
  #reserved = 0;

  /** @param fitsAll counts a call that is too heavy for it as the heaviest that is not, instead of never admitting it */
  constructor({ limit, perMs, unit = 'calls' }: RateWindow, fitsAll = false) {
    this.limit = limit;
    this.perMs = perMs;
    this.unit = unit;
    this.#perCall = unit === 'calls';
    this.#fitsAll = fitsAll;
  }

  /** Counts what another window of the same unit counts. */
  copyLog(other: SlidingWindow): void {
    for (const { entries, first } of other.#blocks)
      for (const { amount, beganMs } of entries.slice(first)) this.add(amount, beganMs as number);
  }

  /**
   * Milliseconds until a call of this weight has capacity; 0 if it has it now, `Infinity` if it never will. With
   * `isCertain`, only as far as nothing can change it: what is reserved may never begin, and the weight of an attempt in
   * progress may still be corrected.
   */
  waitMs(weight: number, nowMs: number, isCertain = false): number {
    const amount = this.#amountOf(weight);
    if (amount === 0) return 0;
    if (amount > this.limit) return Number.POSITIVE_INFINITY;
    this.#expire(nowMs);
    const sum = isCertain ? this.#final : this.#counted + this.#reserved;
    const excess = sum + amount - this.limit;
    return excess <= 0 ? 0 : this.#untilExpired(excess, nowMs, isCertain);
  }

  /** The free part of the window, from 0 to 1. */
  free(nowMs: number): number {
    this.#expire(nowMs);
    return Math.max(0, (this.limit - this.#counted - this.#reserved) / this.limit);
  }

  /** When the first entry leaves it; `Infinity` without one. */
  get changesAtMs(): number {
    const block = this.#blocks[0];
    const beganMs = block?.entries[block.first]?.beganMs;
    return beganMs === undefined ? Number.POSITIVE_INFINITY : beganMs + this.perMs;
  }

  /** What counts now, and what is reserved. */
  used(nowMs: number): number {
    this.#expire(nowMs);
    return this.#counted + this.#reserved;
  }

  /** Counts what began elsewhere, and is not corrected. */
  add(amount: number, beganMs: number): void {
    const block = this.#lastBlock();
    const entry = { window: this, amount, beganMs, countedThen: 0, block, over: false, final: true };
    block.entries.push(entry);
    this.#count(entry, amount);
  }

  reserve(weight: number): WindowEntry {
    const amount = this.#amountOf(weight);
    this.#reserved += amount;
    return {
      window: this,
      amount,
      beganMs: undefined,
      countedThen: 0,
      block: undefined,
      over: false,
      final: this.#perCall,
    };
  }

  /** The work begins. `nowMs` never goes back from one call to the next. */
  begin(entry: WindowEntry, nowMs: number): void {
    if (entry.over || entry.block !== undefined) return;
    const block = this.#lastBlock();
    block.entries.push(entry);
    entry.block = block;
    entry.beganMs = nowMs;
    this.#reserved -= entry.amount;
    this.#count(entry, entry.amount);
    entry.countedThen = this.#counted;
  }

  /** The work is over. */
  finish(entry: WindowEntry): void {
    if (entry.final) return;
    entry.final = true;
    if (entry.block === undefined) return;
    entry.block.final += entry.amount;
    this.#final += entry.amount;
  }

  /** The work will not begin. */
  cancel(entry: WindowEntry): void {
    if (entry.over || entry.block !== undefined) return;
    this.#reserved -= entry.amount;
    entry.over = true;
  }

  /** Corrects an estimated weight, as long as it counts. */
  correct(entry: WindowEntry, weight: number): void {
    if (entry.over) return;
    const more = this.#amountOf(weight) - entry.amount;
    entry.amount += more;
    if (entry.block === undefined) this.#reserved += more;
    else this.#count(entry, more);
  }

  #amountOf(weight: number): number {
    if (this.#perCall) return 1;
    return this.#fitsAll ? Math.min(weight, this.limit) : weight;
  }

  /** Adds to the sums of an entry that has begun. */
  #count(entry: WindowEntry, amount: number): void {
    const block = entry.block as Block;
    block.counted += amount;
    this.#counted += amount;
    if (!entry.final) return;
    block.final += amount;
    this.#final += amount;
  }

  #lastBlock(): Block {
    const last = this.#blocks.at(-1);
    if (last !== undefined && last.entries.length < BLOCK_SIZE) return last;
    const block: Block = { entries: [], first: 0, counted: 0, final: 0 };
    this.#blocks.push(block);
    return block;
  }

  /** Milliseconds until so much has expired. What is only reserved begins now at the earliest. */
  #untilExpired(excess: number, nowMs: number, isCertain: boolean): number {
    let left = excess;
    for (const { entries, first, counted, final } of this.#blocks) {
      const sum = isCertain ? final : counted;
      if (sum < left) {
        left -= sum;
        continue;
      }
      for (let i = first; i < entries.length; i++) {
        const entry = entries[i] as WindowEntry;
        if (isCertain && !entry.final) continue;
        left -= entry.amount;
        if (left <= 0) return (entry.beganMs as number) + this.perMs - nowMs;
      }
    }
    return this.perMs;
  }

  /** Drops what has left the window. */
  #expire(nowMs: number): void {
    for (let block = this.#blocks[0]; block !== undefined; block = this.#blocks[0]) {
      const { entries } = block;
      for (let entry = entries[block.first]; entry !== undefined; entry = entries[++block.first]) {
        if ((entry.beganMs as number) + this.perMs > nowMs) return;
        this.#count(entry, -entry.amount);
        entry.block = undefined;
        entry.over = true;
      }
      this.#blocks.shift();
    }
  }
}

/**
 * The windows of a new rate. One of the same length and unit as a present window continues it; any other begins with what
 * the longest present window of its unit counts.
 */
export function windowsOf(
  rate: readonly RateWindow[],
  present: readonly SlidingWindow[],
): readonly SlidingWindow[] {
  const left = [...present];
  return rate.map((window) => {
    const { limit, perMs, unit = 'calls' } = window;
    const at = left.findIndex((other) => other.perMs === perMs && other.unit === unit);
    const kept = at < 0 ? undefined : left.splice(at, 1)[0];
    if (kept !== undefined) {
      kept.limit = limit;
      return kept;
    }
    const made = new SlidingWindow(window);
    const ofUnit = present.filter((other) => other.unit === unit).sort((a, b) => b.perMs - a.perMs);
    if (ofUnit[0] !== undefined) made.copyLog(ofUnit[0]);
    return made;
  });
}

/** The free part of the fullest window. */
export function smallestFree(windows: readonly SlidingWindow[], nowMs: number): number {
  let free = 1;
  for (const window of windows) free = Math.min(free, window.free(nowMs));
  return free;
}

// By index: each start calls these, mostly before V8 has compiled them, and an iterator costs more than the loop then.

/** Milliseconds until all of the windows have capacity. */
export function longestWaitMs(
  windows: readonly SlidingWindow[],
  weight: number,
  nowMs: number,
  isCertain = false,
): number {
  let ms = 0;
  for (let i = 0; i < windows.length; i++)
    ms = Math.max(ms, (windows[i] as SlidingWindow).waitMs(weight, nowMs, isCertain));
  return ms;
}

/** Reserves a start in all of the windows. */
export function reserveIn(windows: readonly SlidingWindow[], weight: number, entries: WindowEntry[]): void {
  for (let i = 0; i < windows.length; i++) entries.push((windows[i] as SlidingWindow).reserve(weight));
}

/** The heaviest call that fits into all windows that count weight. */
export function maxWeightOf(rate: readonly RateWindow[]): number {
  return Math.min(Number.MAX_SAFE_INTEGER, ...rate.filter((w) => w.unit === 'weight').map((w) => w.limit));
}

/** Checks a list of windows. */
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
