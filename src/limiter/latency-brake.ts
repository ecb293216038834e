/** A mean this many times the best one is too slow. */
const TOO_SLOW = 1.5;
/** A cut goes by how much slower the calls have become, but no deeper than this at once. */
const DEEPEST_CUT = 0.5;
/** Means are taken over at least so many calls. */
const FEWEST_CALLS = 10;

/**
 * Says when calls have become slower than they were, from means over as many calls as run at once. The best mean is the
 * measure. It is never learnt anew while the limit could still go down, or an overload would become the measure.
 */
export class LatencyBrake {
  #best = Number.POSITIVE_INFINITY;
  #sumMs = 0;
  #count = 0;
  /** Set as a mean begins: a limit that grows with each call would keep it from ever being complete. */
  #needed = 0;
  #slowMeans = 0;
  #isSlow = false;

  /** Whether the last mean was too slow: no time to grow. */
  get isSlow(): boolean {
    return this.#isSlow;
  }

  /** The factor to cut by, once two means in a row were too slow. */
  factor(latencyMs: number | undefined, limit: number, min: number): number | undefined {
    if (latencyMs === undefined) return undefined;
    if (this.#count === 0) this.#needed = Math.max(FEWEST_CALLS, limit);
    this.#sumMs += latencyMs;
    if (++this.#count < this.#needed) return undefined;
    const mean = this.#sumMs / this.#count;
    this.#sumMs = 0;
    this.#count = 0;
    if (mean < this.#best || limit === min) this.#best = mean;
    this.#isSlow = mean > TOO_SLOW * this.#best;
    this.#slowMeans = this.#isSlow ? this.#slowMeans + 1 : 0;
    return this.#slowMeans < 2 ? undefined : Math.max(DEEPEST_CUT, this.#best / mean);
  }

  /** After a cut: what was measured under the old limit is over. */
  restart(): void {
    this.#sumMs = 0;
    this.#count = 0;
    this.#slowMeans = 0;
  }
}
