/** What was added up within one span of time. */
export interface Span {
  readonly ms: number;
  sum(name: string): number;
}

interface Mark {
  readonly atMs: number;
  readonly totals: ReadonlyMap<string, number>;
}

/** Marks within a window: enough to cut it to a few percent. */
const SLICES = 60;

/**
 * Sums by name, of which the last `windowMs` can be told. It keeps running totals and, now and then, a mark of them; the
 * sum of a window is the difference between now and the mark at its beginning. What lies between two marks is taken to
 * have grown evenly.
 *
 * Invariant: it keeps at most about twice `SLICES` marks, each as large as there are names.
 */
export class History {
  readonly #windowMs: number;
  readonly #totals = new Map<string, number>();
  #marks: Mark[];

  constructor(windowMs: number, nowMs: number) {
    this.#windowMs = windowMs;
    this.#marks = [{ atMs: nowMs, totals: new Map() }];
  }

  /** Milliseconds from one mark to the next. */
  get sliceMs(): number {
    return this.#windowMs / SLICES;
  }

  /** How many marks it keeps. */
  get marks(): number {
    return this.#marks.length;
  }

  add(name: string, amount: number): void {
    this.#totals.set(name, (this.#totals.get(name) ?? 0) + amount);
  }

  /** Whether the last mark is a slice old. */
  isDue(nowMs: number): boolean {
    return nowMs - this.#last.atMs >= this.sliceMs;
  }

  /** Marks the totals as those of this moment. */
  mark(nowMs: number): void {
    if (nowMs <= this.#last.atMs) return;
    this.#marks.push({ atMs: nowMs, totals: new Map(this.#totals) });
    // The one before the window stays: the window begins between it and the next.
    const first = this.#marks.findIndex(({ atMs }) => atMs > nowMs - this.#windowMs);
    if (first > 1) this.#marks = this.#marks.slice(first - 1);
  }

  /** The window that ends now; shorter if nothing older is known. */
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
