/**
 * Virtual time for thousands of simulations at once: a heap of timers and a clock that jumps from one to the next.
 * Between two timers everything runs that needs none, as in Node. (Vitest's fake timers look through all timers for each
 * that fires, and wait a real millisecond after it; here a timer costs microseconds.)
 */

interface Timer {
  readonly atMs: number;
  readonly order: number;
  readonly callback: (...args: unknown[]) => void;
  readonly args: readonly unknown[];
  isCleared: boolean;
}

export class VirtualTime {
  #nowMs = 0;
  #order = 0;
  #pending = 0;
  readonly #heap: Timer[] = [];
  readonly #real = { setTimeout, clearTimeout, now: performance.now };

  get nowMs(): number {
    return this.#nowMs;
  }

  /** Timers that have not fired and were not cleared. */
  get pending(): number {
    return this.#pending;
  }

  /** Replaces the global timers and the monotonic clock until `restore`. */
  install(): void {
    const set = (callback: Timer['callback'], ms = 0, ...args: unknown[]) => {
      const timer: Timer = {
        atMs: this.#nowMs + Math.max(1, Number.isFinite(ms) ? ms : 1),
        order: this.#order++,
        callback,
        args,
        isCleared: false,
      };
      this.#pending++;
      this.#push(timer);
      return Object.assign(timer, { ref: () => timer, unref: () => timer });
    };
    const clear = (timer: Timer | undefined): void => {
      if (timer === undefined || timer.isCleared) return;
      timer.isCleared = true;
      this.#pending--;
    };
    Object.assign(globalThis, { setTimeout: set, clearTimeout: clear });
    performance.now = () => this.#nowMs;
  }

  restore(): void {
    const { setTimeout, clearTimeout, now } = this.#real;
    Object.assign(globalThis, { setTimeout, clearTimeout });
    performance.now = now;
  }

  /** Lets `ms` pass, firing every timer at its moment. */
  async pass(ms: number): Promise<void> {
    const end = this.#nowMs + ms;
    await endOfTurn();
    for (let next = this.#heap[0]; next !== undefined && next.atMs <= end; next = this.#heap[0]) {
      this.#pop();
      if (next.isCleared) continue;
      next.isCleared = true;
      this.#pending--;
      this.#nowMs = next.atMs;
      next.callback(...next.args);
      await endOfTurn();
    }
    this.#nowMs = end;
  }

  #push(timer: Timer): void {
    const heap = this.#heap;
    let at = heap.push(timer) - 1;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (!isBefore(timer, heap[parent]!)) break;
      heap[at] = heap[parent]!;
      at = parent;
    }
    heap[at] = timer;
  }

  #pop(): void {
    const heap = this.#heap;
    const last = heap.pop();
    if (last === undefined || heap.length === 0) return;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= heap.length) break;
      if (child + 1 < heap.length && isBefore(heap[child + 1]!, heap[child]!)) child++;
      if (!isBefore(heap[child]!, last)) break;
      heap[at] = heap[child]!;
      at = child;
    }
    heap[at] = last;
  }
}

const isBefore = (a: Timer, b: Timer): boolean => a.atMs < b.atMs || (a.atMs === b.atMs && a.order < b.order);

/** Everything that needs no timer has happened. */
export const endOfTurn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));
