import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Level } from '../../src/limiter/level.js';
import { LevelHeap } from '../../src/limiter/level-heap.js';

/** A level of this priority is added, or one of those inside is taken out. */
const step = fc.oneof(
  { weight: 3, arbitrary: fc.record({ add: fc.integer({ min: -1_000, max: 1_000 }) }) },
  { weight: 2, arbitrary: fc.record({ remove: fc.nat() }) },
  { weight: 1, arbitrary: fc.record({ remove: fc.constant('top' as const) }) },
);

const priorities = (levels: Iterable<Level>) => Array.from(levels, (level) => level.priority);

/** What is wrong with the places and the order in the heap. */
const faults = (heap: LevelHeap) => {
  const levels = [...heap];
  return levels.filter(
    ({ place, priority }, i) => place !== i || (i > 0 && priority > levels[(i - 1) >> 1]!.priority),
  );
};

describe('LevelHeap', () => {
  it('has each level know its place below none that is lower, and the highest on top, after every step', () => {
    const property = fc.property(fc.array(step, { maxLength: 150, size: 'max' }), (steps) => {
      const heap = new LevelHeap();
      let inside: Level[] = [];
      for (const one of steps) {
        if ('add' in one) {
          if (inside.some((level) => level.priority === one.add)) continue;
          const level = new Level(one.add);
          inside.push(level);
          heap.add(level);
        } else {
          const gone = one.remove === 'top' ? heap.top : inside[one.remove % Math.max(1, inside.length)];
          if (gone === undefined) continue;
          inside = inside.filter((level) => level !== gone);
          heap.remove(gone);
        }
        expect(faults(heap)).toEqual([]);
        const sorted = priorities(inside).sort((a, b) => b - a);
        expect(priorities(heap.sorted())).toEqual(sorted);
        expect(heap.top?.priority).toBe(sorted[0]);
      }
    });
    fc.assert(property, { numRuns: 300 });
  });

  it('fills the gap of one that leaves with one that belongs higher up', () => {
    const heap = new LevelHeap();
    const levels = [100, 20, 90, 10, 15, 80, 85].map((priority) => new Level(priority));
    for (const level of levels) heap.add(level);
    // The last, 85, is higher than 20, which stands above the gap.
    heap.remove(levels[3]!);
    expect(faults(heap)).toEqual([]);
    expect(priorities(heap.sorted())).toEqual([100, 90, 85, 80, 20, 15]);
  });

  it('looks at a handful of levels to add one, and at four for each doubling of them to take one out', () => {
    let looks = 0;
    class Counted extends Level {
      readonly #priority: number;
      constructor(priority: number) {
        super(priority);
        this.#priority = priority;
        Object.defineProperty(this, 'priority', {
          get: () => {
            looks++;
            return this.#priority;
          },
        });
      }
    }
    const heap = new LevelHeap();
    const doublings = 14;
    const many = 2 ** doublings;
    for (let i = 0; i < many; i++) heap.add(new Counted((i * 7_919) % many));
    expect(looks / many).toBeLessThan(8);
    looks = 0;
    for (let { top } = heap; top !== undefined; top = heap.top) heap.remove(top);
    expect(looks / many).toBeLessThan(4 * doublings);
  });
});
