import type { History, Span } from './history.js';

/** What a service's pace shows. */
export interface PaceFinding {
  /** `at-limit`: slower the more calls it has at once. `slower`: slower than before, with as many. */
  readonly kind: 'at-limit' | 'slower';
  /** What a call takes now, and took at its best. */
  readonly callMs: number;
  readonly bestMs: number;
  /** Calls under way now, and as many as it served at its best pace. */
  readonly inFlight: number;
  readonly inFlightAtBest: number;
}

/** Durations of calls, as sums of their logarithms: a few long answers must not outweigh the rest. */
interface Sums {
  readonly n: number;
  /** Calls under way as each began, itself among them. */
  readonly inFlight: number;
  readonly log: number;
  readonly log2: number;
}

const NONE: Sums = { n: 0, inFlight: 0, log: 0, log2: 0 };
/** By calls under way as a call began: 1, 2 to 3, 4 to 7, and so on; the last one is open. */
const BANDS = 16;
/** So many times as long is worth a word; less is how services are. */
const SLOWER = 2;
const AT_LIMIT = 1.75;
/** Calls that must be known before they are compared. */
const ENOUGH = 8;
const ENOUGH_AT_BEST = 3;
/** Standard errors between two paces before they count as two. */
const CERTAIN = 3;
/** Durations scatter by at least so much, however few are known. */
const LEAST_SCATTER = 0.15;
/** What was so long ago counts for half. */
const HALF_LIFE_MS = 1_800_000;

/**
 * How long a service takes for a call, by how many it had at once: what tells a service at its limit from one that is
 * slow, and both from one whose calls are long by nature. Calls are compared with those of the same service alone.
 *
 * Invariant: it keeps four numbers a band, however many calls there are.
 */
export class Pace {
  readonly #prefix: string;
  readonly #memory = Array.from({ length: BANDS }, () => ({ ...NONE }));
  #halvedMs: number;

  constructor(gate: string, nowMs: number) {
    this.#prefix = `${gate}:pace`;
    this.#halvedMs = nowMs;
  }

  /** A call took so long that had begun with so many under way, itself among them. */
  note(history: History, durationMs: number, inFlight: number, nowMs: number): void {
    this.#fade(nowMs);
    const band = Math.min(BANDS - 1, Math.floor(Math.log2(Math.max(1, inFlight))));
    const log = Math.log(Math.max(durationMs, 0.01));
    const name = `${this.#prefix}:${band}`;
    history.add(`${name}:n`, 1);
    history.add(`${name}:inFlight`, inFlight);
    history.add(`${name}:log`, log);
    history.add(`${name}:log2`, log * log);
    const sums = this.#memory[band]!;
    sums.n++;
    sums.inFlight += inFlight;
    sums.log += log;
    sums.log2 += log * log;
  }

  /** What the calls of the window show, compared with all that are remembered. */
  judge(span: Span): PaceFinding | undefined {
    const recent = this.#memory.map((_, band) => this.#recent(span, band));
    // The number at once that most of the time was spent with.
    const time = recent.map((sums) => (sums.n > 0 ? sums.n * Math.exp(meanOf(sums)) : 0));
    const main = time.indexOf(Math.max(...time));
    // The same calls at once decide where they are known: a service that has become slow shows that at any number.
    return this.#slower(recent, main) ?? this.#atLimit(recent, main);
  }

  #atLimit(recent: readonly Sums[], main: number): PaceFinding | undefined {
    const now = together(recent.slice(main));
    const best = this.#best(main);
    if (now.n < ENOUGH || best === undefined) return undefined;
    const ratio = Math.exp(meanOf(now) - meanOf(best));
    // Twice the calls at once may well take each a little longer, and still be more in the end. Towards a limit they
    // take twice as long.
    const atOnce = atOnceOf(now) / atOnceOf(best);
    if (ratio < Math.max(AT_LIMIT, atOnce ** 0.4) || !differ(now, best)) return undefined;
    return finding('at-limit', now, best);
  }

  #slower(recent: readonly Sums[], main: number): PaceFinding | undefined {
    let { now, before } = this.#nowAndBefore(recent, main, main);
    // Calls in step with one another fall on either side of a border between bands.
    if (Math.min(now.n, before.n) < ENOUGH)
      ({ now, before } = this.#nowAndBefore(recent, main - 1, main + 1));
    if (Math.min(now.n, before.n) < ENOUGH) return undefined;
    if (Math.exp(meanOf(now) - meanOf(before)) < SLOWER || !differ(now, before)) return undefined;
    return finding('slower', now, before);
  }

  /** The calls of the window in some bands, and all that are remembered from before it. */
  #nowAndBefore(
    recent: readonly Sums[],
    from: number,
    to: number,
  ): { readonly now: Sums; readonly before: Sums } {
    const bands = [Math.max(0, from), to + 1] as const;
    const now = together(recent.slice(...bands));
    const all = together(this.#memory.slice(...bands));
    return {
      now,
      before: {
        n: all.n - now.n,
        inFlight: all.inFlight - now.inFlight,
        log: all.log - now.log,
        log2: all.log2 - now.log2,
      },
    };
  }

  /** The most calls at once, below this band, with which the service was as fast as with the fewest. */
  #best(main: number): Sums | undefined {
    let best: Sums | undefined;
    let few = NONE;
    for (let band = 0; band < main; band++) {
      const sums = this.#memory[band]!;
      few = best === undefined ? together([few, sums]) : sums;
      if (few.n < ENOUGH_AT_BEST) continue;
      if (best !== undefined && meanOf(few) > meanOf(best) + Math.log(1.25)) break;
      best = few;
    }
    return best;
  }

  #recent(span: Span, band: number): Sums {
    const name = `${this.#prefix}:${band}`;
    return {
      n: span.sum(`${name}:n`),
      inFlight: span.sum(`${name}:inFlight`),
      log: span.sum(`${name}:log`),
      log2: span.sum(`${name}:log2`),
    };
  }

  #fade(nowMs: number): void {
    if (nowMs - this.#halvedMs < HALF_LIFE_MS) return;
    this.#halvedMs = nowMs;
    for (const sums of this.#memory) {
      sums.n /= 2;
      sums.inFlight /= 2;
      sums.log /= 2;
      sums.log2 /= 2;
    }
  }
}

const together = (parts: readonly Sums[]): Sums =>
  parts.reduce(
    (a, b) => ({
      n: a.n + b.n,
      inFlight: a.inFlight + b.inFlight,
      log: a.log + b.log,
      log2: a.log2 + b.log2,
    }),
    NONE,
  );
const meanOf = ({ n, log }: Sums): number => log / n;
const atOnceOf = ({ n, inFlight }: Sums): number => inFlight / n;

const finding = (kind: PaceFinding['kind'], now: Sums, best: Sums): PaceFinding => ({
  kind,
  callMs: Math.exp(meanOf(now)),
  bestMs: Math.exp(meanOf(best)),
  inFlight: Math.round(atOnceOf(now)),
  inFlightAtBest: Math.round(atOnceOf(best)),
});

/** Whether two means are further apart than chance puts them (Welch's test, with one variance for both). */
function differ(a: Sums, b: Sums): boolean {
  const scatterOf = (sums: Sums): number => sums.log2 - sums.n * meanOf(sums) ** 2;
  const variance = Math.max(LEAST_SCATTER ** 2, (scatterOf(a) + scatterOf(b)) / (a.n + b.n));
  return Math.abs(meanOf(a) - meanOf(b)) >= CERTAIN * Math.sqrt(variance * (1 / a.n + 1 / b.n));
}
