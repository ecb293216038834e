import { describe, expect, it } from 'vitest';
import { PipelinePool } from '../../src/pool/pipeline-pool.js';
import { Workshop } from '../support/pools.js';
import { endOfTurn } from '../support/promises.js';

/** Timers that keep the process alive. */
const timers = (): number =>
  process.getActiveResourcesInfo().filter((resource) => resource === 'Timeout').length;

describe('the process', () => {
  it('is not kept alive by a pool that is idle, nor by a lease', async () => {
    const before = timers();
    const workshop = new Workshop();
    const pool = new PipelinePool({
      size: 3,
      min: 2,
      ...workshop.callbacks,
      validate: () => true,
      idleTimeoutMs: 50_000,
      maxLifetimeMs: 60_000,
      maxLeaseMs: 60_000,
      leakWarningMs: 60_000,
    });
    await pool.warmUp();
    const lease = await pool.acquire();
    expect(timers()).toBe(before);
    await lease.release();
    expect(timers()).toBe(before);
    await pool.close();
  });

  it('is not kept alive by a pool that fails to fill up to `min`', async () => {
    const before = timers();
    const pool = new PipelinePool({
      size: 1,
      min: 1,
      create: () => Promise.reject(new Error('no')),
      createRetry: { baseMs: 60_000 },
    });
    await endOfTurn();
    expect(pool.stats().createFailed).toBe(1);
    expect(timers()).toBe(before);
    await pool.close();
  });

  it('is kept alive while a waiter waits for the end of a backoff', async () => {
    const before = timers();
    const pool = new PipelinePool({
      size: 1,
      create: () => Promise.reject(new Error('no')),
      createRetry: { baseMs: 60_000 },
    });
    await expect(pool.acquire()).rejects.toThrow();
    expect(timers()).toBe(before);
    const waiting = pool.acquire();
    expect(timers()).toBe(before + 1);
    const behind = pool.acquire();
    const closed = Promise.allSettled([waiting, behind]);
    await pool.close();
    await closed;
    expect(timers()).toBe(before);
  });

  it('holds nothing of the instances that were destroyed before the end of their lifetimes', async () => {
    const pool = new PipelinePool({ size: 1, create: () => ({}), maxLifetimeMs: 86_400_000 });
    const heldBytes = async (): Promise<number> => {
      for (let i = 0; i < 5_000; i++) await (await pool.acquire()).release({ discard: true });
      await endOfTurn();
      global.gc?.();
      return process.memoryUsage().heapUsed;
    };
    await heldBytes();
    const before = await heldBytes();
    // Timers of 5,000 durations would be more than 0.5 MB.
    expect((await heldBytes()) - before).toBeLessThan(300_000);
    await pool.close();
  });
});
