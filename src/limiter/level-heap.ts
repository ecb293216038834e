import type { Level } from './level.js';

/**
 * The levels that somebody waits in, the highest priority first: a binary heap, in which each level knows its place so
 * that it can leave from anywhere. O(log n) for n different priorities, however they come (deadlines as priorities do
 * one by one, each new).
 *
 * Invariant: no level is higher than the one above it, `levels[(place - 1) >> 1]`.
 */
export class LevelHeap {
  readonly #levels: Level[] = [];

  /** The highest. */
  get top(): Level | undefined {
    return this.#levels[0];
  }

  add(level: Level): void {
    this.#levels.push(level);
    this.#rise(level, this.#levels.length - 1);
  }

  remove({ place }: Level): void {
    const last = this.#levels.pop() as Level;
    if (place === this.#levels.length) return;
    // The last fills the gap. It may belong above or below.
    this.#rise(last, place);
    this.#sink(last, last.place);
  }

  /** All, the highest first. */
  sorted(): readonly Level[] {
    if (this.#levels.length < 2) return this.#levels;
    return [...this.#levels].sort((a, b) => b.priority - a.priority);
  }

  /** All, in no order. */
  [Symbol.iterator](): IterableIterator<Level> {
    return this.#levels.values();
  }

  #rise(level: Level, from: number): void {
    let place = from;
    while (place > 0) {
      const above = this.#levels[(place - 1) >> 1] as Level;
      if (above.priority > level.priority) break;
      this.#put(above, place);
      place = (place - 1) >> 1;
    }
    this.#put(level, place);
  }

  #sink(level: Level, from: number): void {
    let place = from;
    for (let below = this.#higherBelow(place); below !== undefined; below = this.#higherBelow(place)) {
      if (level.priority > below.priority) break;
      const next = below.place;
      this.#put(below, place);
      place = next;
    }
    this.#put(level, place);
  }

  /** The higher of the two below a place. */
  #higherBelow(place: number): Level | undefined {
    const left = this.#levels[2 * place + 1];
    const right = this.#levels[2 * place + 2];
    if (left === undefined || right === undefined) return left;
    return right.priority > left.priority ? right : left;
  }

  #put(level: Level, place: number): void {
    this.#levels[place] = level;
    level.place = place;
  }
}
