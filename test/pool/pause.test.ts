import { describe, expect, it, vi } from 'vitest';
import { AcquireTimeoutError, PoolClosedError, QueueFullError } from '../../src/errors.js';
import type { PipelinePoolOptions } from '../../src/pool/options.js';
import { PipelinePool } from '../../src/pool/pipeline-pool.js';
import { inVirtualTime } from '../support/fake-timers.js';
import { type Piece, Workshop } from '../support/pools.js';
import { endOfTurn, outcome } from '../support/promises.js';

inVirtualTime();

const poolOf = (more: Partial<PipelinePoolOptions<Piece>> = {}) => {
  const workshop = new Workshop();
  return { workshop, pool: new PipelinePool({ size: 2, ...workshop.callbacks, ...more }) };
};

describe('a paused pool', () => {
  it('grants no lease, idle instances or not, and serves the waiters in order when it resumes', async () => {
    const { pool } = poolOf({ size: 1 });
    await (await pool.acquire()).release();
    pool.pause();
    expect(pool.stats()).toMatchObject({ paused: true, idle: 1 });
    const order: number[] = [];
    const all = [1, 2, 3].map((task) => pool.use(() => void order.push(task)));
    await endOfTurn();
    expect(order).toEqual([]);
    expect(pool.stats()).toMatchObject({ queued: 3, idle: 1, leased: 0 });
    pool.resume();
    expect(pool.stats()).toMatchObject({ paused: false, queued: 2, leased: 1 });
    await Promise.all(all);
    expect(order).toEqual([1, 2, 3]);
  });

  it('leaves the holders their leases, and keeps what they release idle', async () => {
    const { pool } = poolOf({ size: 1 });
    const lease = await pool.acquire();
    const waiting = pool.acquire();
    pool.pause();
    expect(lease.isHeld).toBe(true);
    await lease.release();
    expect(await outcome(waiting)).toBe('pending');
    expect(pool.stats()).toMatchObject({ idle: 1, queued: 1 });
    pool.resume();
    expect((await waiting).instanceId).toBe(1);
  });

  it('creates instances for its waiters, and no more than they need', async () => {
    const { pool, workshop } = poolOf({ size: 5 });
    pool.pause();
    const both = [pool.acquire(), pool.acquire()];
    await endOfTurn();
    await endOfTurn();
    expect(pool.stats()).toMatchObject({ idle: 2, queued: 2 });
    pool.resume();
    await Promise.all(both);
    expect(workshop.pieces).toHaveLength(2);
  });

  it('serves waiters for a certain instance when it resumes', async () => {
    const { pool } = poolOf();
    const leases = await Promise.all([pool.acquire(), pool.acquire()]);
    for (const lease of leases) await lease.release();
    pool.pause();
    const named = pool.acquire({ instanceId: 1 });
    expect(await outcome(named)).toBe('pending');
    pool.resume();
    expect((await named).instanceId).toBe(1);
    expect(pool.stats()).toMatchObject({ leased: 1, idle: 1 });
  });

  it('rejects waiters by timeout, full queue and close as ever', async () => {
    const { pool } = poolOf({ maxQueue: 2 });
    await (await pool.acquire()).release();
    pool.pause();
    const late = pool.acquire({ timeoutMs: 10 });
    const rejected = expect(late).rejects.toBeInstanceOf(AcquireTimeoutError);
    await expect(pool.acquire({ timeoutMs: 0 })).rejects.toBeInstanceOf(AcquireTimeoutError);
    const closed = pool.acquire();
    await expect(pool.acquire()).rejects.toBeInstanceOf(QueueFullError);
    await vi.advanceTimersByTimeAsync(10);
    await rejected;
    const closing = pool.close();
    await expect(closed).rejects.toBeInstanceOf(PoolClosedError);
    await closing;
  });

  it('is resumed by drain, which serves its waiters', async () => {
    const { pool } = poolOf({ size: 1 });
    await (await pool.acquire()).release();
    pool.pause();
    const waiting = pool.use(({ id }) => id);
    const drained = pool.drain();
    expect(await waiting).toBe(1);
    await drained;
    pool.pause();
    expect(pool.stats()).toMatchObject({ paused: false, state: 'draining' });
  });

  it('is not paused once it is closed', async () => {
    const { pool } = poolOf({ size: 1 });
    await (await pool.acquire()).release();
    pool.pause();
    const rejected = expect(pool.acquire()).rejects.toBeInstanceOf(PoolClosedError);
    await pool.close();
    await rejected;
    expect(pool.stats()).toMatchObject({ paused: false, state: 'closed', acquired: 1 });
    pool.pause();
    expect(pool.stats().paused).toBe(false);
  });

  it('validates and prepares what it grants when it resumes', async () => {
    const stages: string[] = [];
    const { pool } = poolOf({
      size: 1,
      validateAfterIdleMs: 0,
      validate: () => stages.push('validate') > 0,
      prepare: () => void stages.push('prepare'),
    });
    await (await pool.acquire()).release();
    stages.length = 0;
    pool.pause();
    pool.pause();
    const waiting = pool.acquire();
    await endOfTurn();
    expect(stages).toEqual([]);
    pool.resume();
    pool.resume();
    await waiting;
    expect(stages).toEqual(['validate', 'prepare']);
  });
});
