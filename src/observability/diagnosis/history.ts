/** The sums of one span of time. */
export interface Span {
  readonly ms: number;
  sum(name: string): number;
}

interface Mark {
  readonly atMs: number;
  readonly totals: ReadonlyMap<string, number>;
}

/** Marks per window: the window is exact to a few percent. */
const SLICES = 60;

/**
 * Sums by name over a sliding window. It keeps running totals and periodic marks (copies of them); the sum of the window
 * is the difference between the totals and the mark at the window's start, interpolated between two marks.
 *
 * Invariant: it keeps at most about twice `SLICES` marks, each with one number per name.
 */
export class History {
  readonly #windowMs: number;
  readonly #totals = new Map<string, number>();
  #marks: Mark[];

  constructor(windowMs: number, nowMs: number) {
    this.#windowMs = windowMs;
    this.#marks = [{ atMs: nowMs, totals: new Map() }];
  }

  /** Milliseconds between two marks. */
  get sliceMs(): number {
    return this.#windowMs / SLICES;
  }

  /** Number of marks kept. */
  get marks(): number {
    return this.#marks.length;
  }

  add(name: string, amount: number): void {
    this.#totals.set(name, (this.#totals.get(name) ?? 0) + amount);
  }

  /** Whether the last mark is at least one slice old. */
  isDue(nowMs: number): boolean {
    return nowMs - this.#last.atMs >= this.sliceMs;
  }

  /** Copies the totals as those of this moment. */
  mark(nowMs: number): void {
    if (nowMs <= this.#last.atMs) return;
    this.#marks.push({ atMs: nowMs, totals: new Map(this.#totals) });
    // The last mark before the window is kept: the window starts between it and the next.
    const first = this.#marks.findIndex(({ atMs }) => atMs > nowMs - this.#windowMs);
    if (first > 1) this.#marks = this.#marks.slice(first - 1);
  }

  /** The window that ends now; shorter if the history is younger. */
  span(nowMs: number): Span {
    const wantedMs = nowMs - this.#windowMs;
    const next = this.#marks.findIndex(({ atMs }) => atMs > wantedMs);
    const before = this.#marks[next < 0 ? this.#marks.length - 1 : Math.max(0, next - 1)] as Mark;
    const after = next < 0 ? { atMs: nowMs, totals: this.#totals } : (this.#marks[next] as Mark);
    const fromMs = Math.max(wantedMs, before.atMs);
    const share = after.atMs === before.atMs ? 0 : (fromMs - before.atMs) / (after.atMs - before.atMs);
    return {
      ms: nowMs - fromMs,
      sum: (name) => {
        const start = before.totals.get(name) ?? 0;
        const end = after.totals.get(name) ?? 0;
        return (this.#totals.get(name) ?? 0) - (start + share * (end - start));
      },
    };
  }

  get #last(): Mark {
    return this.#marks[this.#marks.length - 1] as Mark;
  }
}

/** The largest (or smallest) reading of the last `windowMs`. Keeps one number per slice. */
export class Extreme {
  readonly #pick: (a: number, b: number) => number;
  readonly #windowMs: number;
  readonly #sliceMs: number;
  #slices: { readonly fromMs: number; value: number }[] = [];

  constructor(pick: (a: number, b: number) => number, windowMs: number, sliceMs: number) {
    this.#pick = pick;
    this.#windowMs = windowMs;
    this.#sliceMs = sliceMs;
  }

  note(value: number, nowMs: number): void {
    const last = this.#slices.at(-1);
    if (last !== undefined && nowMs - last.fromMs < this.#sliceMs) last.value = this.#pick(last.value, value);
    else this.#slices.push({ fromMs: nowMs, value });
    this.#slices = this.#slices.filter(({ fromMs }) => nowMs - fromMs <= this.#windowMs);
  }

  /** `undefined` if there was no reading. */
  get value(): number | undefined {
    return this.#slices.length === 0
      ? undefined
      : this.#slices.map(({ value }) => value).reduce((a, b) => this.#pick(a, b));
  }
}
