import type { History, Span } from './history.js';

/** What the durations of a service's calls show. */
export interface PaceFinding {
  /** `at-limit`: slower with more concurrent calls. `slower`: slower than before at the same concurrency. */
  readonly kind: 'at-limit' | 'slower';
  /** Duration of a call now, and at its best. */
  readonly callMs: number;
  readonly bestMs: number;
  /** Calls in flight now, and the highest number at which the service was at its best. */
  readonly inFlight: number;
  readonly inFlightAtBest: number;
}

/** Durations of calls as sums of their logarithms, so that a few long calls do not outweigh the rest. */
interface Sums {
  readonly n: number;
  /** Calls in flight when each started, itself included. */
  readonly inFlight: number;
  readonly log: number;
  readonly log2: number;
}

const sumsOf = (read: (name: keyof Sums) => number): Sums => ({
  n: read('n'),
  inFlight: read('inFlight'),
  log: read('log'),
  log2: read('log2'),
});
const added = (a: Sums, b: Sums): Sums => sumsOf((name) => a[name] + b[name]);
const NONE = sumsOf(() => 0);
/** Bands of calls in flight when a call started: 1, 2 to 3, 4 to 7, and so on; the last one is open. */
const BANDS = 16;
/** Ratios of durations that are reported; smaller ones are normal variation. */
const SLOWER = 2;
const AT_LIMIT = 1.75;
/** Minimum number of calls for a comparison. */
const MIN_CALLS = 8;
const MIN_CALLS_AT_BEST = 3;
/** Standard errors that must lie between two means. */
const MIN_STANDARD_ERRORS = 3;
/** The standard deviation is taken to be at least this. */
const MIN_DEVIATION = 0.15;
/** Older calls count for half. */
const HALF_LIFE_MS = 1_800_000;

/**
 * Durations of a service's calls by concurrency. They distinguish a service at its limit from a slow one, and both from
 * one whose calls are always long. Calls are compared only with calls of the same service.
 *
 * Invariant: it keeps four numbers per band, however many calls there are.
 */
export class Pace {
  readonly #prefix: string;
  #memory: readonly Sums[] = Array.from({ length: BANDS }, () => NONE);
  #halvedMs: number;

  constructor(gate: string, nowMs: number) {
    this.#prefix = `${gate}:pace`;
    this.#halvedMs = nowMs;
  }

  /** Records a call and how many calls were in flight when it started, itself included. */
  note(history: History, durationMs: number, inFlight: number, nowMs: number): void {
    this.#fade(nowMs);
    const band = Math.min(BANDS - 1, Math.floor(Math.log2(inFlight)));
    const log = Math.log(Math.max(durationMs, 0.01));
    const call: Sums = { n: 1, inFlight, log, log2: log * log };
    for (const [name, value] of Object.entries(call)) history.add(`${this.#prefix}:${band}:${name}`, value);
    this.#memory = this.#memory.with(band, added(this.#memory[band]!, call));
  }

  /** Compares the calls of the window with all that are remembered. */
  judge(span: Span): PaceFinding | undefined {
    const recent = this.#memory.map((_, band) => this.#recent(span, band));
    // The band in which most of the time was spent.
    const time = recent.map((sums) => (sums.n > 0 ? sums.n * Math.exp(meanOf(sums)) : 0));
    const main = time.indexOf(Math.max(...time));
    // The same concurrency decides if it is known: a service that has become slow is slow at any concurrency.
    return this.#slower(recent, main) ?? this.#atLimit(recent, main);
  }

  #atLimit(recent: readonly Sums[], main: number): PaceFinding | undefined {
    const now = sumOf(recent.slice(main));
    const best = this.#best(main);
    if (now.n < MIN_CALLS || best === undefined) return undefined;
    const ratio = Math.exp(meanOf(now) - meanOf(best));
    // With twice the concurrency, calls may take a little longer each and throughput still grow. At a limit they take
    // twice as long.
    const concurrency = inFlightOf(now) / inFlightOf(best);
    if (ratio < Math.max(AT_LIMIT, concurrency ** 0.4) || !differ(now, best)) return undefined;
    return finding('at-limit', now, best);
  }

  #slower(recent: readonly Sums[], main: number): PaceFinding | undefined {
    let { now, before } = this.#nowAndBefore(recent, main, main);
    // Calls in lockstep fall on either side of a boundary between bands.
    if (Math.min(now.n, before.n) < MIN_CALLS)
      ({ now, before } = this.#nowAndBefore(recent, main - 1, main + 1));
    if (Math.min(now.n, before.n) < MIN_CALLS) return undefined;
    if (Math.exp(meanOf(now) - meanOf(before)) < SLOWER || !differ(now, before)) return undefined;
    return finding('slower', now, before);
  }

  /** The calls of the window in some bands, and the remembered ones from before it. */
  #nowAndBefore(
    recent: readonly Sums[],
    from: number,
    to: number,
  ): { readonly now: Sums; readonly before: Sums } {
    const bands = [Math.max(0, from), to + 1] as const;
    const now = sumOf(recent.slice(...bands));
    const all = sumOf(this.#memory.slice(...bands));
    return { now, before: sumsOf((name) => all[name] - now[name]) };
  }

  /** The highest concurrency below this band at which the service was as fast as at the lowest. */
  #best(main: number): Sums | undefined {
    let best: Sums | undefined;
    let few = NONE;
    for (let band = 0; band < main; band++) {
      const sums = this.#memory[band]!;
      few = best === undefined ? added(few, sums) : sums;
      if (few.n < MIN_CALLS_AT_BEST) continue;
      if (best !== undefined && meanOf(few) > meanOf(best) + Math.log(1.25)) break;
      best = few;
    }
    return best;
  }

  #recent(span: Span, band: number): Sums {
    return sumsOf((name) => span.sum(`${this.#prefix}:${band}:${name}`));
  }

  #fade(nowMs: number): void {
    if (nowMs - this.#halvedMs < HALF_LIFE_MS) return;
    this.#halvedMs = nowMs;
    this.#memory = this.#memory.map((sums) => sumsOf((name) => sums[name] / 2));
  }
}

const sumOf = (parts: readonly Sums[]): Sums => parts.reduce(added, NONE);
const meanOf = ({ n, log }: Sums): number => log / n;
const inFlightOf = ({ n, inFlight }: Sums): number => inFlight / n;

const finding = (kind: PaceFinding['kind'], now: Sums, best: Sums): PaceFinding => ({
  kind,
  callMs: Math.exp(meanOf(now)),
  bestMs: Math.exp(meanOf(best)),
  inFlight: Math.round(inFlightOf(now)),
  inFlightAtBest: Math.round(inFlightOf(best)),
});

/** Whether two means differ significantly (a t-test with pooled variance). */
function differ(a: Sums, b: Sums): boolean {
  const squaresOf = (sums: Sums): number => sums.log2 - sums.n * meanOf(sums) ** 2;
  const variance = Math.max(MIN_DEVIATION ** 2, (squaresOf(a) + squaresOf(b)) / (a.n + b.n));
  return Math.abs(meanOf(a) - meanOf(b)) >= MIN_STANDARD_ERRORS * Math.sqrt(variance * (1 / a.n + 1 / b.n));
}
