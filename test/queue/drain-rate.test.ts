import { describe, expect, it, vi } from 'vitest';
import type { QueueFullError } from '../../src/errors.js';
import { ConcurrencyLimiter } from '../../src/limiter/concurrency-limiter.js';
import { DrainRate } from '../../src/queue/drain-rate.js';
import { onFakeTimers } from '../support/fake-timers.js';
import { endOfTurn } from '../support/promises.js';

describe('DrainRate', () => {
  onFakeTimers();

  const pass = async (ms: number) => {
    await vi.advanceTimersByTimeAsync(ms);
    await endOfTurn();
  };

  /** A rate that has seen so many releases, one each so many milliseconds. */
  async function paced(releases: number, gapMs: number, weight = 1) {
    const rate = new DrainRate();
    rate.begin();
    for (let i = 0; i < releases; i++) {
      await pass(gapMs);
      rate.note(weight);
    }
    return rate;
  }

  it('estimates a second before the first measurement, or as long as the limit has been reached', async () => {
    const rate = new DrainRate();
    expect(rate.isKnown).toBe(false);
    expect(rate.msFor(1)).toBe(1000);
    rate.begin();
    await pass(400);
    expect(rate.msFor(5)).toBe(1000);
    await pass(5000);
    rate.begin();
    expect(rate.msFor(5)).toBe(5400);
  });

  it('estimates how long a weight takes at the recent pace', async () => {
    const rate = await paced(10, 200);
    expect(rate.isKnown).toBe(true);
    expect(rate.msFor(1)).toBe(200);
    expect(rate.msFor(5)).toBe(1000);
  });

  it('subtracts the time since the last release', async () => {
    const rate = await paced(10, 200);
    await pass(150);
    expect(rate.msFor(1)).toBe(50);
    expect(rate.msFor(5)).toBe(850);
  });

  it('estimates more and more once a release is overdue', async () => {
    const rate = await paced(10, 200);
    await pass(200);
    expect(rate.msFor(1)).toBe(50);
    await pass(5_000);
    expect(rate.msFor(1)).toBe(5_000);
  });

  it('uses the gap that a request arrives in, where releases come in bursts', async () => {
    const rate = new DrainRate();
    rate.begin();
    for (let round = 0; round < 5; round++) {
      await pass(10_000);
      for (let i = 0; i < 10; i++) rate.note(1);
    }
    expect(rate.msFor(1)).toBe(10_000);
    await pass(4_000);
    expect(rate.msFor(1)).toBe(6_000);
    expect(rate.msFor(3)).toBe(8_000);
  });

  it('counts one release of much weight for several requests', async () => {
    const rate = await paced(10, 1000, 5);
    expect(rate.msFor(5)).toBe(1000);
    expect(rate.msFor(10)).toBe(2000);
  });

  it('excludes the time in which there was room', async () => {
    const rate = await paced(4, 100);
    rate.end();
    rate.note(1);
    await pass(60_000);
    rate.note(1);
    rate.begin();
    expect(rate.msFor(2)).toBe(200);
  });

  it('scales with the limit', async () => {
    const rate = await paced(10, 200);
    rate.rescale(1 / 4);
    expect(rate.msFor(1)).toBe(800);
    expect(rate.msFor(5)).toBe(4_000);
    rate.rescale(8);
    expect(rate.msFor(5)).toBe(500);
  });

  it('expects the weight held beyond a lowered limit to be released as many times faster', async () => {
    const rate = await paced(10, 200);
    expect(rate.msFor(1, 4, 1)).toBe(50);
    expect(rate.msFor(4, 4, 1)).toBe(200);
    expect(rate.msFor(6, 4, 1)).toBe(600);
  });

  it('keeps its pace while more than the limit is held', async () => {
    const rate = await paced(10, 200);
    for (let held = 9; held >= 0; held--) {
      await pass(200 / (held + 1));
      rate.note(1, held, 1);
    }
    expect(rate.msFor(5)).toBeCloseTo(1_000, 3);
  });

  it('does not count a request that is heavier than the limit, and runs alone, as excess', async () => {
    const rate = new DrainRate();
    rate.begin();
    for (let i = 0; i < 10; i++) {
      await pass(100);
      rate.note(8, 0, 2);
    }
    expect(rate.msFor(8, 8, 2)).toBe(100);
    expect(rate.msFor(24, 8, 2)).toBe(300);
  });

  it('adapts to a new pace within two rounds of its memory', async () => {
    const rate = await paced(200, 10);
    expect(rate.msFor(10)).toBe(100);
    for (let i = 0; i < 128; i++) {
      await pass(100);
      rate.note(1);
    }
    expect(rate.msFor(10)).toBeGreaterThan(700);
    expect(rate.msFor(10)).toBeLessThanOrEqual(1000);
  });

  it('is not affected by a pause of the limiter', async () => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 1, maxQueue: 2 });
    const round = async () => {
      const permit = await limiter.acquire();
      await pass(100);
      permit.release();
    };
    for (let i = 0; i < 5; i++) await round();
    const holder = await limiter.acquire();
    limiter.pause();
    const waiting = [round(), round()];
    await pass(1_800_000);
    holder.release();
    await pass(1_800_000);
    limiter.resume();
    await pass(100);
    await pass(100);
    await Promise.all(waiting);
    const last = await limiter.acquire();
    void limiter.acquire();
    void limiter.acquire();
    const refused = await limiter.acquire().catch((error: QueueFullError) => error);
    expect(refused).toMatchObject({ code: 'ERR_QUEUE_FULL' });
    expect((refused as QueueFullError).retryAfterMs).toBeLessThan(1000);
    last.release();
  });
});
