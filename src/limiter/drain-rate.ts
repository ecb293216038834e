import { turnMs } from '../internal/clock.js';

// Enough releases to be steady, few enough to follow a change within one round of a usual limit.
const MEMORY = 64;
// What is said while nothing is known: a second, or as long as the limit has been reached already.
const UNKNOWN_MS = 1_000;

/**
 * How fast a limit gives room back while it is reached: the gaps between releases and the weight they bring, the older
 * ones counting less and less. Time in which a newcomer would have been let in at once does not count. Where a shrunken
 * limit is held more than once over, releases come so many times as fast; the gaps are noted as they were without that.
 *
 * Costs a look at the turn's clock for each change while saturated, and nothing otherwise.
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

  /** The limit has just been reached. */
  begin(): void {
    if (this.#saturated) return;
    this.#saturated = true;
    this.#lastMs = turnMs();
  }

  /** A permit of this weight came back, and so much is still held. Does nothing unless the limit was reached. */
  note(weight: number, held = 0, limit = Number.POSITIVE_INFINITY): void {
    if (!this.#saturated) return;
    this.#weight += weight;
    this.#releases++;
    const now = turnMs();
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

  /** The limit has become so many times what it was: room comes back so much faster, if holders hold as long as before. */
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
   * Milliseconds until this much weight will have come back: the rest of the present gap, and what is left of the
   * weight at the mean rate; what is held beyond the limit comes back faster, and is part of the weight.
   */
  msFor(weight: number, held = 0, limit = Number.POSITIVE_INFINITY): number {
    const silentMs = this.#saturated ? turnMs() - this.#lastMs : 0;
    if (!this.isKnown) return Math.max(UNKNOWN_MS, silentMs);
    const meanWeight = this.#weight / this.#releases;
    // One that is heavier than the limit runs alone: that is no excess.
    const usual = Math.max(limit, meanWeight);
    const timesHeld = Math.max(1, held / usual);
    // The gap that somebody arrives in is longer than the mean gap, as long gaps are more of the time. (Where ten
    // releases come together every ten seconds, the mean gap is one second, and nobody ever arrives in such a one.)
    const gapMs = this.#squares / this.#elapsedMs / timesHeld;
    // Past the time when it should have ended, the longer it has been silent the longer it will be.
    const restOfGapMs = Math.max(Math.abs(gapMs - silentMs), gapMs / 4);
    const afterwards = Math.max(0, weight - meanWeight);
    const beyond = Math.min(afterwards, Math.max(0, held - usual));
    // Constant work keeps this pace until all of it is back, other work slows down: in between lies neither far off.
    const asIfUsual = afterwards - beyond + beyond / timesHeld;
    return restOfGapMs + (asIfUsual * this.#elapsedMs) / this.#weight;
  }
}
