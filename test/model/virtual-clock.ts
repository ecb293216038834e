import { vi } from 'vitest';

interface Timer {
  readonly atMs: number;
  readonly happen: () => void;
}

const afterAllPromises = setImmediate;

/**
 * Stands in for the timers and the monotonic clock of the whole process, so that code which knows nothing of it runs
 * through hours in a second. Between two timers every promise that can settle does.
 */
export class VirtualClock {
  #nowMs = 0;
  /** The next one last. */
  #timers: Timer[] = [];

  install(): void {
    vi.stubGlobal('setTimeout', (callback: (...args: unknown[]) => void, ms = 0, ...args: unknown[]) =>
      this.after(ms, () => callback(...args)),
    );
    vi.stubGlobal('clearTimeout', (timer: Timer | undefined) => {
      const at = timer === undefined ? -1 : this.#timers.indexOf(timer);
      if (at >= 0) this.#timers.splice(at, 1);
    });
    vi.spyOn(performance, 'now').mockImplementation(() => this.#nowMs);
  }

  uninstall(): void {
    vi.unstubAllGlobals();
    vi.restoreAllMocks();
  }

  /** Forgets what was going to happen, and begins at 0 again. */
  restart(): void {
    this.#timers = [];
    this.#nowMs = 0;
  }

  get nowMs(): number {
    return this.#nowMs;
  }

  after(ms: number, happen: () => void): Timer {
    const timer = { atMs: this.#nowMs + ms, happen };
    let at = this.#timers.length;
    // Of one moment, the first planned happens first.
    while (at > 0 && this.#timers[at - 1]!.atMs <= timer.atMs) at--;
    this.#timers.splice(at, 0, timer);
    return timer;
  }

  async runUntil(endMs: number): Promise<void> {
    await new Promise(afterAllPromises);
    for (
      let next = this.#timers.at(-1);
      next !== undefined && next.atMs <= endMs;
      next = this.#timers.at(-1)
    ) {
      this.#timers.pop();
      this.#nowMs = next.atMs;
      next.happen();
      await new Promise(afterAllPromises);
    }
    this.#nowMs = endMs;
  }
}
