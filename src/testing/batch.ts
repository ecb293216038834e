/** The state of the batch of a `StubLlm`. */
export interface LlmBatchStats {
  readonly running: number;
  readonly queued: number;
  readonly peakRunning: number;
  readonly peakQueued: number;
}

/**
 * The running batch of an inference server: at most `size` concurrent calls; the others are queued in FIFO order.
 *
 * Invariant: a call occupies its place in the batch or the queue exactly until its signal aborts.
 */
export class Batch {
  #size: number;
  #running = 0;
  #peakRunning = 0;
  #peakQueued = 0;
  readonly #queued = new Set<() => void>();

  constructor(size: number) {
    this.#size = size;
  }

  get size(): number {
    return this.#size;
  }

  /** Lowering it interrupts no call; raising it admits queued calls at once. */
  set size(size: number) {
    this.#size = size;
    this.#admit();
  }

  stats(): LlmBatchStats {
    return {
      running: this.#running,
      queued: this.#queued.size,
      peakRunning: this.#peakRunning,
      peakQueued: this.#peakQueued,
    };
  }

  get isFull(): boolean {
    return this.#running >= this.#size || this.#queued.size > 0;
  }

  /** Resolves when the call runs. The call ends, queued or running, when its signal aborts. */
  enter(signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      if (signal.aborted) return reject(signal.reason);
      const start = (): void => {
        this.#queued.delete(start);
        this.#running++;
        this.#peakRunning = Math.max(this.#peakRunning, this.#running);
        resolve();
      };
      const leave = (): void => {
        if (this.#queued.delete(start)) {
          reject(signal.reason);
          return;
        }
        this.#running--;
        this.#admit();
      };
      signal.addEventListener('abort', leave, { once: true });
      this.#queued.add(start);
      this.#admit();
      this.#peakQueued = Math.max(this.#peakQueued, this.#queued.size);
    });
  }

  resetPeaks(): void {
    this.#peakRunning = this.#running;
    this.#peakQueued = this.#queued.size;
  }

  #admit(): void {
    for (const start of this.#queued) {
      if (this.#running >= this.#size) return;
      start();
    }
  }
}
