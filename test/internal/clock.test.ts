import { describe, expect, it, vi } from 'vitest';
import { guardedClock, inBatches, nowMs, PER_TURN, settleInTurn, turnMs } from '../../src/internal/clock.js';
import { useFakeTimers } from '../support/fake-timers.js';
import { endOfTurn } from '../support/promises.js';

/** Replaces the clock by one that goes on by a millisecond each time it is read. */
async function withCountingClock(test: (reads: () => number) => Promise<void>) {
  let reads = 0;
  const spied = vi.spyOn(performance, 'now').mockImplementation(() => ++reads);
  await endOfTurn();
  await endOfTurn();
  try {
    reads = 0;
    await test(() => reads);
  } finally {
    spied.mockRestore();
    await endOfTurn();
  }
}

describe('nowMs', () => {
  it('reads the monotonic clock each time', async () => {
    await withCountingClock(async (reads) => {
      expect([nowMs(), nowMs(), nowMs()]).toEqual([1, 2, 3]);
      expect(reads()).toBe(3);
    });
  });
});

describe('a clock of the host', () => {
  it('stands still when it is set back or fails, and goes on from there', () => {
    const reads: unknown[] = [5, 7, 2, 3, Number.NaN, '9', 4, -10, -8, 100];
    const left = [...reads];
    const clock = guardedClock(() => left.shift() as number);
    expect(reads.map(() => clock())).toEqual([5, 7, 7, 8, 8, 8, 9, 9, 11, 119]);
  });
});

describe('turnMs', () => {
  it('reads the clock once in a turn of the event loop, its microtasks included', async () => {
    await withCountingClock(async (reads) => {
      const first = turnMs();
      await Promise.resolve();
      expect(turnMs()).toBe(first);
      expect(reads()).toBe(1);
      await endOfTurn();
      expect(turnMs()).toBe(first + 1);
      expect(reads()).toBe(2);
    });
  });

  it('reads nothing until it is asked', async () => {
    await withCountingClock(async (reads) => {
      await endOfTurn();
      await endOfTurn();
      expect(reads()).toBe(0);
    });
  });

  it('goes on under fake timers, which do not touch the turns', async () => {
    useFakeTimers();
    await endOfTurn();
    try {
      const before = turnMs();
      await vi.advanceTimersByTimeAsync(5000);
      await endOfTurn();
      expect(turnMs() - before).toBe(5000);
    } finally {
      vi.useRealTimers();
      await endOfTurn();
    }
  });
});

describe('inBatches', () => {
  it('is synchronous for one batch', () => {
    const done: number[] = [];
    expect(inBatches([1, 2, 3], (item) => done.push(item))).toBeUndefined();
    expect(done).toEqual([1, 2, 3]);
    expect(inBatches([], () => {})).toBeUndefined();
  });

  it('lets the event loop turn between two batches, and fulfills after the last', async () => {
    const items = Array.from({ length: 1_000 }, (_, i) => i);
    const done: number[] = [];
    const batches = inBatches(items, (item) => done.push(item));
    expect(done.length).toBe(PER_TURN);
    let turns = 0;
    while (done.length < 1_000) {
      const before = done.length;
      await endOfTurn();
      expect(done.length - before).toBeLessThanOrEqual(2 * PER_TURN);
      turns++;
    }
    await batches;
    expect(turns).toBeGreaterThan(1);
    expect(done).toEqual(items);
  });
});

describe('settleInTurn', () => {
  it('settles what another settles, also where that one was put off to a later turn', async () => {
    const uncaught = vi.spyOn(process, 'emit');
    await endOfTurn();
    const settled: string[] = [];
    for (let i = 0; i < PER_TURN; i++) settleInTurn(() => {});
    settleInTurn(() => {
      settleInTurn(() => settled.push('inner'));
      settled.push('outer');
    });
    expect(settled).toEqual([]);
    await endOfTurn();
    await endOfTurn();
    expect(settled).toEqual(['inner', 'outer']);
    // An error here would be that of an immediate, and end the process.
    expect(uncaught).not.toHaveBeenCalledWith('uncaughtException', expect.anything(), expect.anything());
    uncaught.mockRestore();
  });
});
