/**
 * The running batch of an inference server: so many calls at once, the others wait in the order they came.
 *
 * Invariant: a call holds its place, or its turn in the queue, until its signal aborts, and not a moment longer.
 */
export class Batch {
  #size: number;
  #running = 0;
  #peakRunning = 0;
  #peakWaiting = 0;
  readonly #waiting = new Set<() => void>();

  constructor(size: number) {
    this.#size = size;
  }

  get size(): number {
    return this.#size;
  }

  /** Shrinking interrupts no call; growing lets waiting ones in at once. */
  set size(size: number) {
    this.#size = size;
    this.#admit();
  }

  get running(): number {
    return this.#running;
  }

  get waiting(): number {
    return this.#waiting.size;
  }

  get peakRunning(): number {
    return this.#peakRunning;
  }

  get peakWaiting(): number {
    return this.#peakWaiting;
  }

  get isFull(): boolean {
    return this.#running >= this.#size || this.#waiting.size > 0;
  }

  /** Resolves when the call runs. Its signal ends the waiting as well as the running. */
  enter(signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      if (signal.aborted) return reject(signal.reason);
      const start = (): void => {
        this.#waiting.delete(start);
        this.#running++;
        this.#peakRunning = Math.max(this.#peakRunning, this.#running);
        resolve();
      };
      const leave = (): void => {
        if (this.#waiting.delete(start)) {
          reject(signal.reason);
          return;
        }
        this.#running--;
        this.#admit();
      };
      signal.addEventListener('abort', leave, { once: true });
      this.#waiting.add(start);
      this.#admit();
      this.#peakWaiting = Math.max(this.#peakWaiting, this.#waiting.size);
    });
  }

  resetPeaks(): void {
    this.#peakRunning = this.#running;
    this.#peakWaiting = this.#waiting.size;
  }

  #admit(): void {
    for (const start of this.#waiting) {
      if (this.#running >= this.#size) return;
      start();
    }
  }
}
