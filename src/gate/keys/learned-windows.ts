import type { ReportedLimit } from '../retry-after.js';
import { SlidingWindow, type WindowEntry } from './sliding-window.js';

/** The lengths of windows that services use. */
const USUAL_MS = [1_000, 60_000, 3_600_000, 86_400_000];
/** A reported length this close to a usual one, as a share of it, is that one: it is rounded, or the window not yet full. */
const BELOW = 0.1;
const ABOVE = 0.02;
/** How much longer a window is than the service's: calls take different times to arrive. */
const MIN_MARGIN_MS = 50;
const MARGIN = 0.01;

/**
 * The limits of a key as its service reports them: a sliding window for each, so that nothing is refused that the gate can
 * know of.
 *
 * A reset is the time until the limit is whole again, in all forms that services use: the end of a fixed window, the last
 * call to leave a sliding one, a bucket that is full. None of them is longer than the window, so the longest one that was
 * reported is its length; and what a sliding window admits, the other two admit as well.
 *
 * Invariants:
 * - A window only becomes longer. Its limit is that of the last report.
 * - It counts at least what the service reported to be used: calls from before its first report, of other processes, or of
 *   a greater weight than estimated.
 */
export class LearnedWindows {
  readonly #windows = new Map<string, SlidingWindow>();

  get all(): readonly SlidingWindow[] {
    return [...this.#windows.values()];
  }

  /** Takes what the response to a start reports. Returns whether there is a new window. */
  learn(reported: readonly ReportedLimit[], start: readonly WindowEntry[], nowMs: number): boolean {
    let isNew = false;
    for (const { name, unit, limit, remaining, resetMs, perMs } of reported) {
      const lengthMs = lengthOf(perMs ?? resetMs);
      let window = this.#windows.get(name);
      if (window === undefined) {
        window = new SlidingWindow({ limit, perMs: lengthMs, unit }, true);
        this.#windows.set(name, window);
        isNew = true;
      }
      window.limit = limit;
      window.perMs = Math.max(window.perMs, lengthMs);
      // The report is from soon after the start: what was counted then may have left the window since, and what began since
      // may have arrived before it.
      const countedThen = start.find((entry) => entry.window === window)?.countedThen ?? 0;
      const unknown = limit - remaining - Math.max(countedThen, window.used(nowMs));
      if (unknown > 0) window.add(unknown, nowMs);
    }
    return isNew;
  }
}

function lengthOf(reportedMs: number): number {
  const usual = USUAL_MS.find((ms) => reportedMs > ms * (1 - BELOW) && reportedMs < ms * (1 + ABOVE));
  const ms = usual ?? reportedMs;
  return ms + Math.max(MIN_MARGIN_MS, ms * MARGIN);
}
