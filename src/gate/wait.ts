/** How calls wait: within their bounds, and on few timers. */
import type { AbortListener } from '../internal/abort.js';
import { settleInTurn } from '../internal/clock.js';
import { MAX_TIMER_MS } from '../internal/validate.js';
import type { CallBounds } from './call-context.js';

/** A delay that a timer can keep. A longer one ends early. */
export const timerMs = (ms: number): number => Math.min(Math.ceil(ms), MAX_TIMER_MS);

/**
 * A wait that `begin` starts and that ends when `end` is called. If the call ends first, it rejects with the call's reason,
 * and calls what `begin` returned.
 */
export function waitWithin<T>(
  bounds: CallBounds,
  begin: (end: (value: T | Promise<T>) => void) => () => void,
): Promise<T> {
  if (bounds.aborted) return Promise.reject(bounds.reason);
  return new Promise((resolve, reject) => {
    const listener: AbortListener = {
      handleEvent: () => {
        settleInTurn(() => reject(bounds.reason));
        leave();
      },
    };
    bounds.addEventListener('abort', listener);
    const leave = begin((value) => {
      bounds.removeEventListener('abort', listener);
      resolve(value);
    });
  });
}

/** Waits for a time. */
export function sleep(ms: number, bounds: CallBounds): Promise<void> {
  return waitWithin(bounds, (end) => {
    const timer = setTimeout(end, timerMs(ms));
    return () => clearTimeout(timer);
  });
}

/** Settles as `work` does, unless the call ends first. Each tool call is here: two closures fewer than `waitWithin`. */
export function withinBounds<T>(bounds: CallBounds, work: Promise<T>): Promise<T> {
  if (bounds.aborted) {
    work.catch(() => {});
    return Promise.reject(bounds.reason);
  }
  return new Promise((resolve, reject) => {
    const listener = { handleEvent: () => reject(bounds.reason) };
    bounds.addEventListener('abort', listener);
    work.then(
      (value) => {
        bounds.removeEventListener('abort', listener);
        resolve(value);
      },
      (error: unknown) => {
        bounds.removeEventListener('abort', listener);
        reject(error);
      },
    );
  });
}

/** The one timer of a queue, for the soonest time at which something may change. The queue then looks again. */
export class WakeUpTimer {
  readonly #wakeUp: () => void;
  #timer: NodeJS.Timeout | undefined;
  #atMs = 0;

  constructor(wakeUp: () => void) {
    this.#wakeUp = wakeUp;
  }

  /** One that is set is kept unless the time became shorter: waking up early does no harm. */
  set(nowMs: number, ms: number): void {
    if (this.#timer !== undefined && this.#atMs <= nowMs + ms) return;
    clearTimeout(this.#timer);
    this.#atMs = nowMs + ms;
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      this.#wakeUp();
    }, timerMs(ms));
  }

  stop(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
  }
}
