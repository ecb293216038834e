import { turnMs } from '../internal/clock.js';

// Enough releases to be steady, few enough to follow a change within one round of a usual limit.
const MEMORY = 64;
// What is said while nothing is known: a second, or as long as the limit has been reached already.
const UNKNOWN_MS = 1_000;

/**
 * How fast a limit gives room back while it is reached: weight released per millisecond of saturation, the older
 * releases counting less and less. Time in which a newcomer would have been let in at once does not count.
 *
 * Costs a look at the turn's clock for each change while saturated, and nothing otherwise.
 */
export class DrainRate {
  #saturatedSince: number | undefined;
  #lastMs = 0;
  #weight = 0;
  #elapsedMs = 0;
  #releases = 0;

  /** The limit has just been reached. */
  begin(): void {
    if (this.#saturatedSince !== undefined) return;
    this.#lastMs = turnMs();
    this.#saturatedSince = this.#lastMs;
  }

  /** A permit of this weight came back. Does nothing unless the limit was reached. */
  note(weight: number): void {
    if (this.#saturatedSince === undefined) return;
    const now = turnMs();
    this.#elapsedMs += now - this.#lastMs;
    this.#lastMs = now;
    this.#weight += weight;
    if (++this.#releases < MEMORY) return;
    this.#releases /= 2;
    this.#weight /= 2;
    this.#elapsedMs /= 2;
  }

  /** The limit is no longer reached. */
  end(): void {
    this.#saturatedSince = undefined;
  }

  /** Milliseconds until this much weight will have come back. */
  msFor(weight: number): number {
    const silentMs = this.#saturatedSince === undefined ? 0 : turnMs() - this.#lastMs;
    if (this.#elapsedMs === 0) return Math.max(UNKNOWN_MS, silentMs);
    return (weight * this.#elapsedMs) / this.#weight;
  }
}
