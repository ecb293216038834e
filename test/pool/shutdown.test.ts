import { describe, expect, it, vi } from 'vitest';
import { DrainTimeoutError, LeaseRevokedError, PoolClosedError } from '../../src/errors.js';
import { PipelinePool } from '../../src/pool/pipeline-pool.js';
import { inVirtualTime } from '../support/fake-timers.js';
import { HandMade, Workshop } from '../support/pools.js';
import { endOfTurn, outcome } from '../support/promises.js';

inVirtualTime();

const poolOf = (size: number, more = {}) => {
  const workshop = new Workshop();
  return { workshop, pool: new PipelinePool({ size, ...workshop.callbacks, ...more }) };
};

describe('drain', () => {
  it('serves the waiters, rejects new requests, and settles when every lease is released', async () => {
    const { pool, workshop } = poolOf(1);
    const first = await pool.acquire();
    const waiting = pool.acquire();
    const drained = pool.drain();
    await expect(pool.acquire()).rejects.toBeInstanceOf(PoolClosedError);
    await expect(pool.acquire()).rejects.toMatchObject({ code: 'ERR_POOL_CLOSED' });
    await first.release();
    const second = await waiting;
    expect(await outcome(drained)).toBe('pending');
    await second.release();
    await drained;
    expect(pool.stats()).toMatchObject({ state: 'draining', leased: 0, queued: 0, idle: 1 });
    expect(workshop.destroyed).toEqual([]);
    await pool.close();
    expect(workshop.destroyed).toEqual([1]);
  });

  it('waits for every holder, also when a waiter with a low priority times out', async () => {
    const { pool } = poolOf(1);
    const first = await pool.acquire();
    const urgent = pool.acquire({ priority: 1 });
    const late = pool.acquire({ priority: -1, timeoutMs: 10 });
    late.catch(() => {});
    const drained = pool.drain();
    await vi.advanceTimersByTimeAsync(10);
    await first.release();
    const holder = await urgent;
    expect(await outcome(drained)).toBe('pending');
    await holder.release();
    await drained;
  });

  it('names the holders at its deadline, and stays draining', async () => {
    const { pool } = poolOf(2, { leakWarningMs: 60_000 });
    const lease = await pool.acquire({ taskId: 'slow' });
    await vi.advanceTimersByTimeAsync(20);
    const drained = pool.drain({ timeoutMs: 100 });
    const rejected = expect(drained).rejects.toBeInstanceOf(DrainTimeoutError);
    await vi.advanceTimersByTimeAsync(100);
    await rejected;
    const error = (await drained.catch((e: unknown) => e)) as DrainTimeoutError;
    expect(error.holders).toMatchObject([{ instanceId: 1, taskId: 'slow', heldMs: 120 }]);
    expect(error.holders[0]?.stack).toContain('shutdown.test.ts');
    expect(error.held).toBe(1);
    expect(error.message).toMatch(/ is not empty after 100 ms: held are instance 1 by task slow for 120 ms$/);
    expect(pool.stats().state).toBe('draining');
    const again = pool.drain();
    await lease.release();
    await again;
  });

  it('settles at once when nothing is held, and as often as it is called', async () => {
    const { pool } = poolOf(1);
    await pool.drain();
    await Promise.all([pool.drain(), pool.drain({ timeoutMs: 5 })]);
  });

  it('keeps `min` no longer', async () => {
    const { pool, workshop } = poolOf(2, { min: 1 });
    await pool.warmUp();
    const lease = await pool.acquire();
    const drained = pool.drain();
    await lease.release({ discard: true });
    await drained;
    await endOfTurn();
    expect(pool.stats().live).toBe(0);
    expect(workshop.pieces).toHaveLength(1);
  });

  it('rejects a `warmUp` in progress', async () => {
    const { pool } = poolOf(1, { min: 1, create: () => new Promise(() => {}) });
    const warm = pool.warmUp();
    void pool.drain();
    await expect(warm).rejects.toThrow(PoolClosedError);
    await expect(warm).rejects.toMatchObject({ message: expect.stringContaining('draining') });
  });
});

describe('close', () => {
  it('rejects the waiters, aborts the holders at once, and waits for them', async () => {
    const { pool, workshop } = poolOf(2);
    const lease = await pool.acquire();
    await (await pool.acquire()).release();
    const other = await pool.acquire();
    const waiting = pool.acquire();
    const wanting = pool.acquire({ instanceId: 1 });
    const closed = pool.close();
    await expect(waiting).rejects.toBeInstanceOf(PoolClosedError);
    await expect(wanting).rejects.toBeInstanceOf(PoolClosedError);
    await expect(pool.acquire()).rejects.toBeInstanceOf(PoolClosedError);
    expect(lease.signal.aborted).toBe(true);
    expect(lease.signal.reason).toBeInstanceOf(PoolClosedError);
    expect(lease.pipeline.alive).toBe(true);
    expect(await outcome(closed)).toBe('pending');
    await lease.release();
    await other.release();
    await closed;
    expect(workshop.alive).toBe(0);
    expect(pool.stats()).toMatchObject({ live: 0, leased: 0, state: 'closed' });
    expect(vi.getTimerCount()).toBe(0);
  });

  it('revokes what is still held at its deadline', async () => {
    const { pool, workshop } = poolOf(1);
    const lease = await pool.acquire();
    const closed = pool.close({ timeoutMs: 100 });
    await vi.advanceTimersByTimeAsync(99);
    expect(workshop.alive).toBe(1);
    await vi.advanceTimersByTimeAsync(1);
    await closed;
    expect(workshop.destroyed).toEqual([1]);
    expect(() => lease.pipeline).toThrow(LeaseRevokedError);
    await lease.release();
    expect(pool.stats()).toMatchObject({ live: 0, revoked: 1, released: 0 });
  });

  it('gives holders five seconds by default', async () => {
    const { pool, workshop } = poolOf(1);
    await pool.acquire();
    const closed = pool.close();
    await vi.advanceTimersByTimeAsync(4_999);
    expect(workshop.alive).toBe(1);
    await vi.advanceTimersByTimeAsync(1);
    await closed;
  });

  it('waits without a deadline with `Infinity`, until a second call shortens it', async () => {
    const { pool, workshop } = poolOf(1);
    await pool.acquire();
    const patient = pool.close({ timeoutMs: Number.POSITIVE_INFINITY });
    await vi.advanceTimersByTimeAsync(1e9);
    expect(workshop.alive).toBe(1);
    const impatient = pool.close({ timeoutMs: 5 });
    await vi.advanceTimersByTimeAsync(5);
    await Promise.all([patient, impatient]);
    expect(workshop.alive).toBe(0);
  });

  it('destroys what is being created, also when it arrives after the deadline', async () => {
    const workshop = new HandMade();
    const pool = new PipelinePool({ size: 2, ...workshop.callbacks });
    const wanted = pool.acquire();
    const late = pool.acquire();
    wanted.catch(() => {});
    late.catch(() => {});
    await endOfTurn();
    const { signal } = workshop.orders[0]!.context;
    const closed = pool.close({ timeoutMs: 50 });
    expect(signal.aborted).toBe(true);
    await expect(wanted).rejects.toBeInstanceOf(PoolClosedError);
    workshop.finish();
    await endOfTurn();
    expect(workshop.destroyed).toEqual([1]);
    expect(await outcome(closed)).toBe('pending');
    await vi.advanceTimersByTimeAsync(50);
    await closed;
    expect(pool.stats().live).toBe(0);
    workshop.finish();
    await endOfTurn();
    expect(workshop.destroyed).toEqual([1, 2]);
  });

  it('aborts the signal of a creation, also of one that is only about to start', async () => {
    const workshop = new HandMade();
    const pool = new PipelinePool({ size: 1, ...workshop.callbacks });
    let closed: Promise<void> | undefined;
    pool.hooks.on('instance:creating', () => {
      closed = pool.close();
    });
    const given = pool.acquire();
    await expect(given).rejects.toBeInstanceOf(PoolClosedError);
    expect(workshop.orders[0]!.context.signal.reason).toBeInstanceOf(PoolClosedError);
    workshop.finish();
    await closed;
    expect(workshop.alive).toBe(0);
  });

  it('cancels a drain: it settles when the holders are gone', async () => {
    const { pool } = poolOf(1);
    await pool.acquire();
    const drained = pool.drain();
    const closed = pool.close({ timeoutMs: 10 });
    await vi.advanceTimersByTimeAsync(10);
    await Promise.all([drained, closed]);
  });

  it('rejects invalid options', async () => {
    const { pool } = poolOf(1);
    await expect(pool.close({ timeoutMs: -1 })).rejects.toThrow('`timeoutMs`');
    await expect(pool.drain({ timeout: 5 } as never)).rejects.toThrow('Unknown option `timeout` in drain');
    expect(pool.stats().state).toBe('open');
  });

  it('leaves no timer behind', async () => {
    const { pool } = poolOf(3, {
      validate: () => true,
      maxLifetimeMs: 1_000,
      maxLeaseMs: 1_000,
      leakWarningMs: 500,
      min: 2,
    });
    const leases = await Promise.all([pool.acquire({ timeoutMs: 10_000 }), pool.acquire()]);
    for (const lease of leases) await lease.release();
    await pool.close();
    expect(vi.getTimerCount()).toBe(0);
  });

  it('leaves no timer behind when it ends a creation', async () => {
    const { pool } = poolOf(1, {
      create: ({ signal }: { signal: AbortSignal }) =>
        new Promise((_, reject) => {
          signal.addEventListener('abort', () => reject(signal.reason));
        }),
    });
    pool.acquire().catch(() => {});
    await pool.close();
    expect(vi.getTimerCount()).toBe(0);
  });

  it('runs at the end of `await using`', async () => {
    const workshop = new Workshop();
    {
      await using pool = new PipelinePool({ size: 1, ...workshop.callbacks });
      await pool.use((piece) => expect(piece.alive).toBe(true));
    }
    expect(workshop.alive).toBe(0);
  });
});
