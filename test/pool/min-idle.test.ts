import { describe, expect, it, vi } from 'vitest';
import type { PipelinePoolOptions } from '../../src/pool/options.js';
import { PipelinePool } from '../../src/pool/pipeline-pool.js';
import { inVirtualTime } from '../support/fake-timers.js';
import { HandMade, type Piece, Workshop } from '../support/pools.js';
import { endOfTurn, outcome } from '../support/promises.js';

inVirtualTime();

const poolOf = (more: Partial<PipelinePoolOptions<Piece>> = {}) => {
  const workshop = new Workshop();
  return { workshop, pool: new PipelinePool({ size: 5, minIdle: 1, ...workshop.callbacks, ...more }) };
};

describe('`minIdle`', () => {
  it('keeps spare instances in addition to those in use', async () => {
    const { pool } = poolOf({ min: 2 });
    await pool.warmUp();
    expect(pool.stats()).toMatchObject({ idle: 2, live: 2 });
    await pool.acquire();
    await endOfTurn();
    expect(pool.stats()).toMatchObject({ idle: 1, leased: 1, live: 2 });
    await pool.acquire();
    await endOfTurn();
    expect(pool.stats()).toMatchObject({ idle: 1, leased: 2, live: 3 });
    expect((await pool.acquire({ timeoutMs: 0 })).waitMs).toBe(0);
  });

  it('is kept as far as `size` allows', async () => {
    const { pool, workshop } = poolOf({ size: 3, minIdle: 2 });
    await pool.warmUp();
    expect(pool.stats()).toMatchObject({ idle: 2, live: 2 });
    const leases = [await pool.acquire(), await pool.acquire()];
    await endOfTurn();
    expect(pool.stats()).toMatchObject({ idle: 1, leased: 2, live: 3 });
    leases.push(await pool.acquire());
    await endOfTurn();
    expect(pool.stats()).toMatchObject({ idle: 0, leased: 3, live: 3 });
    await pool.warmUp({ timeoutMs: 0 });
    for (const lease of leases) await lease.release();
    expect(workshop.peak).toBe(3);
  });

  it('starts no more creations than spares and waiters need', async () => {
    const workshop = new HandMade();
    const pool = new PipelinePool({ size: 10, minIdle: 2, ...workshop.callbacks });
    await endOfTurn();
    expect(workshop.orders).toHaveLength(2);
    const both = [pool.acquire(), pool.acquire()];
    await endOfTurn();
    expect(workshop.orders).toHaveLength(4);
    for (let i = 0; i < 4; i++) workshop.finish();
    await Promise.all(both);
    await endOfTurn();
    expect(pool.stats()).toMatchObject({ leased: 2, idle: 2, creating: 0 });
  });

  it('leaves as many idle instances as it asks for', async () => {
    const { pool, workshop } = poolOf({ size: 4, idleTimeoutMs: 10_000 });
    const leases = await Promise.all([pool.acquire(), pool.acquire(), pool.acquire()]);
    for (const lease of leases) await lease.release();
    await vi.advanceTimersByTimeAsync(60_000);
    await endOfTurn();
    // None is evicted that would have to be replaced.
    expect(pool.stats()).toMatchObject({ idle: 1, live: 1, created: 4, destroyed: 3 });
    expect(workshop.alive).toBe(1);
  });

  it('replaces a spare instance that is destroyed', async () => {
    const { pool, workshop } = poolOf();
    await pool.warmUp();
    pool.refresh();
    await endOfTurn();
    await endOfTurn();
    expect(pool.stats()).toMatchObject({ idle: 1 });
    expect(workshop.destroyed).toEqual([1]);
  });

  it('is kept while spares reach `maxLifetimeMs`, and when a size that was too small for it grows again', async () => {
    const { pool, workshop } = poolOf({ size: 3, minIdle: 2, maxLifetimeMs: 10_000 });
    await pool.warmUp();
    await vi.advanceTimersByTimeAsync(60_000);
    expect(pool.stats()).toMatchObject({ idle: 2, live: 2 });
    expect(pool.stats().created).toBeGreaterThan(4);
    pool.resize(1);
    await endOfTurn();
    await pool.warmUp({ timeoutMs: 0 });
    expect(pool.stats()).toMatchObject({ idle: 1, live: 1 });
    pool.resize(3);
    await endOfTurn();
    expect(pool.stats()).toMatchObject({ idle: 2, live: 2 });
    expect(workshop.peak).toBeLessThanOrEqual(3);
  });

  it('is awaited by warmUp', async () => {
    const workshop = new HandMade();
    const pool = new PipelinePool({ size: 3, minIdle: 2, ...workshop.callbacks });
    const warm = pool.warmUp();
    await endOfTurn();
    workshop.finish();
    expect(await outcome(warm)).toBe('pending');
    workshop.finish();
    await warm;
  });

  it('ends with drain and close', async () => {
    const { pool } = poolOf();
    await pool.warmUp();
    const lease = await pool.acquire();
    await endOfTurn();
    const drained = pool.drain();
    await lease.release({ discard: true });
    pool.refresh();
    await drained;
    await endOfTurn();
    expect(pool.stats().live).toBe(0);
    await pool.close();
    await endOfTurn();
    expect(pool.stats().live).toBe(0);
  });
});
