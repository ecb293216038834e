import { describe, expect, it, vi } from 'vitest';
import { nowMs, turnMs } from '../../src/internal/clock.js';
import { turn } from '../limiter/event-loop.js';

/** Replaces the clock by one that goes on by a millisecond each time it is read. */
async function withCountingClock(test: (reads: () => number) => Promise<void>) {
  let reads = 0;
  const spied = vi.spyOn(performance, 'now').mockImplementation(() => ++reads);
  await turn();
  await turn();
  try {
    reads = 0;
    await test(() => reads);
  } finally {
    spied.mockRestore();
    await turn();
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

describe('turnMs', () => {
  it('reads the clock once in a turn of the event loop, its microtasks included', async () => {
    await withCountingClock(async (reads) => {
      const first = turnMs();
      await Promise.resolve();
      expect(turnMs()).toBe(first);
      expect(reads()).toBe(1);
      await turn();
      expect(turnMs()).toBe(first + 1);
      expect(reads()).toBe(2);
    });
  });

  it('reads nothing where nobody asks', async () => {
    await withCountingClock(async (reads) => {
      await turn();
      await turn();
      expect(reads()).toBe(0);
    });
  });

  it('goes on under fake timers, which do not touch the turns', async () => {
    vi.useFakeTimers();
    await turn();
    try {
      const before = turnMs();
      await vi.advanceTimersByTimeAsync(5000);
      await turn();
      expect(turnMs() - before).toBe(5000);
    } finally {
      vi.useRealTimers();
      await turn();
    }
  });
});
