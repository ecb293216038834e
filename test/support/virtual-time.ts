import { endOfTurn } from './promises.js';

interface Timer {
  readonly atMs: number;
  /** Timers of one moment fire in the order in which they were set. */
  readonly order: number;
  readonly callback: () => void;
  isCleared: boolean;
}

const isBefore = (a: Timer, b: Timer): boolean => a.atMs < b.atMs || (a.atMs === b.atMs && a.order < b.order);

/**
 * Virtual time for simulations: a heap of timers and a clock that jumps from one to the next. `runUntil` is synchronous,
 * for simulations without promises; `pass` ends the turn of the event loop after each timer, as Node does. `install`
 * replaces the global timers and the monotonic clock. (Vitest's fake timers look through all timers for each that fires,
 * and wait a real millisecond after it; here a timer costs microseconds.)
 */
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

  after(ms: number, callback: () => void): Timer {
    const timer = { atMs: this.#nowMs + ms, order: this.#order++, callback, isCleared: false };
    this.#pending++;
    this.#push(timer);
    return timer;
  }

  clear(timer: Timer | undefined): void {
    if (timer === undefined || timer.isCleared) return;
    timer.isCleared = true;
    this.#pending--;
  }

  /** Clears all timers and starts at 0 again. */
  restart(): void {
    this.#heap.length = 0;
    this.#pending = 0;
    this.#nowMs = 0;
  }

  /** Replaces the global timers and the monotonic clock until `restore`. */
  install(): void {
    const set = (callback: (...args: unknown[]) => void, ms = 0, ...args: unknown[]) => {
      const timer = this.after(Math.max(1, Number.isFinite(ms) ? ms : 1), () => callback(...args));
      return Object.assign(timer, { ref: () => timer, unref: () => timer });
    };
    Object.assign(globalThis, { setTimeout: set, clearTimeout: (timer: Timer) => this.clear(timer) });
    performance.now = () => this.#nowMs;
  }

  restore(): void {
    const { setTimeout, clearTimeout, now } = this.#real;
    Object.assign(globalThis, { setTimeout, clearTimeout });
    performance.now = now;
  }

  /** Fires every timer up to this moment. */
  runUntil(endMs: number): void {
    for (let next = this.#next(endMs); next !== undefined; next = this.#next(endMs)) next.callback();
    this.#nowMs = endMs;
  }

  /** Lets `ms` pass, firing every timer at its moment, all microtasks in between. */
  async pass(ms: number): Promise<void> {
    const endMs = this.#nowMs + ms;
    await endOfTurn();
    for (let next = this.#next(endMs); next !== undefined; next = this.#next(endMs)) {
      next.callback();
      // Once no microtask is left: code that reads the clock once a turn has done so, and reads it again in the next.
      await new Promise<void>((resolve) => process.nextTick(() => resolve(endOfTurn())));
    }
    this.#nowMs = endMs;
  }

  /** Takes out the next timer that is due by then, and moves the clock there. */
  #next(endMs: number): Timer | undefined {
    for (let next = this.#heap[0]; next !== undefined && next.atMs <= endMs; next = this.#heap[0]) {
      this.#pop();
      if (next.isCleared) continue;
      this.clear(next);
      this.#nowMs = next.atMs;
      return next;
    }
    return undefined;
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
