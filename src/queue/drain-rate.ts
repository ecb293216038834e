import { turnMs } from '../internal/clock.js';

// Releases that count: enough to be steady, few enough to adapt within one round of a usual limit.
const MEMORY = 64;
// The estimate before the first measurement: a second, or as long as the limit has been reached already.
const UNKNOWN_MS = 1_000;

/**
 * The rate at which weight is released while a limit is reached: the gaps between releases and their weight, older ones
 * counting less and less. Time in which a newcomer would have been admitted at once does not count. Where a lowered limit
 * is exceeded several times over, releases come as many times faster; gaps are recorded as they would be without that.
 *
 * Costs one read of the clock, by default that of the turn, for each release while saturated, and nothing otherwise.
 */
export class DrainRate {
  #saturated = false;
  /** The last release, or the moment at which the limit was reached. */
  #lastMs = 0;
  #releases = 0;
  #weight = 0;
  /** All gaps together, and all their squares. */
  #elapsedMs = 0;
  #squares = 0;

  readonly #now: () => number;

  /** `now` should be cheap: it is read for each release while saturated. */
  constructor(now: () => number = turnMs) {
    this.#now = now;
  }

  /** The limit has just been reached. */
  begin(): void {
    if (this.#saturated) return;
    this.#saturated = true;
    this.#lastMs = this.#now();
  }

  /** A permit of this weight was released, and `held` is still held. Does nothing unless the limit was reached. */
  note(weight: number, held = 0, limit = Infinity): void {
    if (!this.#saturated) return;
    this.#weight += weight;
    this.#releases++;
    const now = this.#now();
    if (now !== this.#lastMs) this.#advance(now, weight, held, limit);
  }

  /** Time has passed since the last release. (In one turn none does, and most releases share their turn with others.) */
  #advance(now: number, weight: number, held: number, limit: number): void {
    const timesHeld = (held + weight) / Math.max(limit, weight);
    const gap = (now - this.#lastMs) * Math.max(1, timesHeld);
    this.#lastMs = now;
    this.#elapsedMs += gap;
    this.#squares += gap * gap;
    while (this.#releases >= MEMORY) {
      this.#releases /= 2;
      this.#weight /= 2;
      this.#elapsedMs /= 2;
      this.#squares /= 2;
    }
  }

  /** The limit changed by this factor: so does the rate, if holders hold as long as before. */
  rescale(factor: number): void {
    this.#elapsedMs /= factor;
    this.#squares /= factor * factor;
  }

  /** The limit is no longer reached. */
  end(): void {
    this.#saturated = false;
  }

  /** Whether anything has been measured yet. */
  get isKnown(): boolean {
    return this.#elapsedMs > 0;
  }

  /**
   * Milliseconds until this much weight will have been released: the remainder of the present gap, and the remaining
   * weight at the mean rate. What is held beyond the limit is part of the weight, and is released faster.
   */
  msFor(weight: number, held = 0, limit = Infinity): number {
    const silentMs = this.#saturated ? this.#now() - this.#lastMs : 0;
    if (!this.isKnown) return Math.max(UNKNOWN_MS, silentMs);
    const meanWeight = this.#weight / this.#releases;
    // A request heavier than the limit runs alone: that is no excess.
    const usual = Math.max(limit, meanWeight);
    const timesHeld = Math.max(1, held / usual);
    // The gap that a request arrives in is longer than the mean gap, as long gaps cover more of the time. (Where ten
    // releases come together every ten seconds, the mean gap is one second, and no request ever arrives in such a gap.)
    const gapMs = this.#squares / this.#elapsedMs / timesHeld;
    // Past its expected end, the longer the gap has been the longer it will be.
    const remainingGapMs = Math.max(Math.abs(gapMs - silentMs), gapMs / 4);
    const afterwards = Math.max(0, weight - meanWeight);
    const beyond = Math.min(afterwards, Math.max(0, held - usual));
    // Constant work keeps this pace until all of it is released, other work slows down: between the two neither is far off.
    const asIfUsual = afterwards - beyond + beyond / timesHeld;
    return remainingGapMs + (asIfUsual * this.#elapsedMs) / this.#weight;
  }
}
