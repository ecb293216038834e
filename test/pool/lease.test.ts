import { describe, expect, it } from 'vitest';
import { LeaseReleasedError } from '../../src/errors.js';
import { PipelinePool } from '../../src/pool/pipeline-pool.js';
import { HandMade, Workshop } from '../support/pools.js';
import { endOfTurn, outcome } from '../support/promises.js';

const poolOf = (size: number, workshop = new Workshop()) => ({
  workshop,
  pool: new PipelinePool({ size, ...workshop.callbacks }),
});

describe('a lease', () => {
  it('has an instanceId that starts at 1', async () => {
    const { pool } = poolOf(2);
    const first = await pool.acquire({ taskId: 'a' });
    const second = await pool.acquire({ taskId: 'b' });
    expect([first.instanceId, second.instanceId]).toEqual([1, 2]);
    expect(first.pipeline.id).toBe(1);
    expect(first.taskId).toBe('a');
    expect(first.pipeline).not.toBe(second.pipeline);
  });

  it('returns the instance to the pool, which leases the one used last', async () => {
    const { pool, workshop } = poolOf(2);
    const first = await pool.acquire();
    const second = await pool.acquire();
    await first.release();
    await second.release();
    expect((await pool.acquire()).instanceId).toBe(2);
    expect(workshop.pieces).toHaveLength(2);
  });

  it('is handed to the first waiter in the step of the release', async () => {
    const { pool } = poolOf(1);
    const first = await pool.acquire();
    const waiting = pool.acquire();
    void first.release();
    expect(pool.stats()).toMatchObject({ leased: 1, idle: 0, queued: 0 });
    expect((await waiting).instanceId).toBe(1);
  });

  it('is served in the order of arrival', async () => {
    const { pool } = poolOf(2);
    const held = [await pool.acquire(), await pool.acquire()];
    const order: number[] = [];
    const tasks = [0, 1, 2, 3, 4, 5].map(async (task) => {
      const lease = await pool.acquire();
      order.push(task);
      await endOfTurn();
      await lease.release();
    });
    for (const lease of held) await lease.release();
    await Promise.all(tasks);
    expect(order).toEqual([0, 1, 2, 3, 4, 5]);
  });

  it('does not affect the present holder when it is released twice', async () => {
    const { pool } = poolOf(1);
    const first = await pool.acquire();
    const waiting = pool.acquire();
    const third = pool.acquire();
    await first.release();
    const second = await waiting;
    await first.release();
    await first.release({ discard: true });
    await first[Symbol.asyncDispose]();
    expect(second.pipeline.alive).toBe(true);
    expect(pool.stats()).toMatchObject({ leased: 1, queued: 1, released: 1 });
    expect(await outcome(third)).toBe('pending');
    await second.release();
    expect((await third).instanceId).toBe(1);
  });

  it('does not show its instance after release', async () => {
    const { pool } = poolOf(1);
    const lease = await pool.acquire();
    expect(lease.isHeld).toBe(true);
    await lease.release();
    expect(lease.isHeld).toBe(false);
    expect(() => lease.pipeline).toThrow(LeaseReleasedError);
    expect(lease.signal.aborted).toBe(false);
  });

  it('is released at the end of an `await using` block', async () => {
    const { pool } = poolOf(1);
    {
      await using lease = await pool.acquire();
      expect(lease.pipeline.alive).toBe(true);
      expect(pool.stats().leased).toBe(1);
    }
    expect(pool.stats()).toMatchObject({ leased: 0, idle: 1 });
  });

  it('destroys the instance when it is discarded, and creates another for the next request', async () => {
    const { pool, workshop } = poolOf(1);
    const lease = await pool.acquire();
    await lease.release({ discard: true });
    expect(workshop.destroyed).toEqual([1]);
    expect((await pool.acquire()).instanceId).toBe(2);
    expect(workshop.peak).toBe(1);
  });

  it('rejects an invalid option of release, and discards the instance', async () => {
    const { pool, workshop } = poolOf(1);
    const lease = await pool.acquire();
    expect(() => lease.release({ dicard: true } as never)).toThrow(/Unknown option `dicard` in release/);
    await endOfTurn();
    expect(workshop.destroyed).toEqual([1]);
    expect(pool.stats().leased).toBe(0);
  });

  it('may carry any value, also a falsy one and one object twice', async () => {
    const values = [undefined, 0, '', 'same', 'same'];
    const pool = new PipelinePool<unknown>({ size: 5, create: () => values.shift() });
    const leases = await Promise.all([1, 2, 3, 4, 5].map(() => pool.acquire()));
    expect(leases.map(({ pipeline }) => pipeline)).toEqual([undefined, 0, '', 'same', 'same']);
    for (const lease of leases) await lease.release();
    expect(pool.stats()).toMatchObject({ idle: 5, leased: 0 });
  });
});

describe('use', () => {
  it('releases the lease when the work ends, however it ends', async () => {
    const { pool, workshop } = poolOf(1);
    expect(await pool.use((pipeline) => pipeline.id)).toBe(1);
    await expect(pool.use(() => Promise.reject(new Error('business')))).rejects.toThrow('business');
    await expect(
      pool.use(() => {
        throw new Error('at once');
      }),
    ).rejects.toThrow('at once');
    expect(pool.stats()).toMatchObject({ idle: 1, leased: 0, released: 3 });
    expect(workshop.destroyed).toEqual([]);
  });

  it('lets the work decide that the instance is broken', async () => {
    const { pool, workshop } = poolOf(1);
    await pool.use((_pipeline, lease) => lease.release({ discard: true }));
    expect(workshop.destroyed).toEqual([1]);
  });

  it('rejects what is not a function before it takes a lease', async () => {
    const { pool } = poolOf(1);
    await expect(pool.use(7 as never)).rejects.toThrow('Expected `fn` to be a function, got 7 (number)');
    expect(pool.stats().acquired).toBe(0);
  });

  it('does not make the caller wait for reset', async () => {
    const workshop = new HandMade();
    const pool = new PipelinePool({
      size: 1,
      ...workshop.callbacks,
      reset: () => new Promise(() => {}),
    });
    const result = pool.use(() => 'done');
    await endOfTurn();
    workshop.finish();
    expect(await result).toBe('done');
    expect(pool.stats().resetting).toBe(1);
    await pool.close({ timeoutMs: 0 });
  });
});
