import { describe, expect, it, vi } from 'vitest';
import { AcquireTimeoutError, CreateError, DrainTimeoutError } from '../../src/errors.js';
import { PipelinePool } from '../../src/pool/pipeline-pool.js';
import { inVirtualTime } from '../support/fake-timers.js';
import { HandMade, Workshop } from '../support/pools.js';
import { deferred, endOfTurn, outcome } from '../support/promises.js';

/**
 * What goes wrong in other pools, as it was reproduced on generic-pool, tarn, lightning-pool and Effect, or reported of
 * them. The ones that belong to a chapter of their own (validate, reset, leaks, …) are tested there.
 */

inVirtualTime();

const REASON = new Error('no memory left');

describe('where a creation fails, the pool', () => {
  it('rejects every waiter in the end, and drains', async () => {
    const pool = new PipelinePool({ size: 1, create: () => Promise.reject(REASON) });
    const all = Promise.allSettled([pool.acquire(), pool.acquire(), pool.acquire()]);
    const drained = pool.drain();
    await vi.advanceTimersByTimeAsync(60_000);
    const results = await all;
    expect(results.every((r) => r.status === 'rejected' && r.reason instanceof CreateError)).toBe(true);
    await drained;
  });

  it('gives the error to the waiter and not to the holder that released', async () => {
    let fails = false;
    const pool = new PipelinePool({
      size: 1,
      create: () => {
        if (fails) throw REASON;
        return {};
      },
    });
    const lease = await pool.acquire();
    const waiting = pool.acquire();
    const rejected = expect(waiting).rejects.toBeInstanceOf(CreateError);
    fails = true;
    await lease.release({ discard: true });
    await rejected;
    expect(pool.stats()).toMatchObject({ live: 0, leased: 0, queued: 0 });
  });

  it('serves waiters that need no creation, however long one hangs', async () => {
    let calls = 0;
    const pool = new PipelinePool({
      size: 2,
      create: () => (++calls === 1 ? new Promise<object>(() => {}) : {}),
      createTimeoutMs: 1_000,
    });
    const first = pool.acquire();
    const second = pool.acquire();
    // The first waiter takes what is available first; its own creation affects no other.
    await (await first).release();
    expect((await second).instanceId).toBe(2);
    await vi.advanceTimersByTimeAsync(1_000);
    expect(pool.stats()).toMatchObject({ live: 1, leased: 1, rejected: 0, createFailed: 1 });
  });

  it('destroys what arrives late, also when that fails', async () => {
    const workshop = new HandMade();
    const pool = new PipelinePool({
      size: 1,
      create: workshop.order,
      destroy: () => Promise.reject(REASON),
      createTimeoutMs: 100,
    });
    const emitted: unknown[] = [];
    pool.hooks.on('instance:destroy-failed', ({ instanceId, reason }) => emitted.push([instanceId, reason]));
    pool.acquire().catch(() => {});
    await vi.advanceTimersByTimeAsync(100);
    workshop.finish();
    await endOfTurn();
    expect(emitted).toEqual([[1, 'late']]);
    expect(pool.stats().live).toBe(0);
  });
});

describe('where a teardown fails, the pool', () => {
  const failures = [
    () => Promise.reject(REASON),
    () => {
      throw REASON;
    },
  ];

  it.each(failures)('goes on evicting idle instances', async (destroy) => {
    const pool = new PipelinePool({ size: 3, create: () => ({}), destroy, idleTimeoutMs: 100 });
    for (let round = 0; round < 3; round++) {
      const leases = await Promise.all([pool.acquire(), pool.acquire(), pool.acquire()]);
      for (const lease of leases) await lease.release();
      await vi.advanceTimersByTimeAsync(1_000);
      expect(pool.stats()).toMatchObject({ live: 0, destroyed: 3 * (round + 1) });
    }
  });

  it.each(failures)('serves the waiter for the successor of an unhealthy instance', async (destroy) => {
    const pool = new PipelinePool({
      size: 1,
      create: () => ({}),
      destroy,
      validate: () => false,
      validateAfterIdleMs: 10,
    });
    await (await pool.acquire()).release();
    await vi.advanceTimersByTimeAsync(10);
    expect((await pool.acquire()).instanceId).toBe(2);
  });

  it('closes at `destroyTimeoutMs`, whatever hangs', async () => {
    const pool = new PipelinePool({
      size: 2,
      create: () => ({}),
      destroy: () => new Promise(() => {}),
      destroyTimeoutMs: 500,
    });
    const lease = await pool.acquire();
    await (await pool.acquire()).release();
    let isClosed = false;
    void pool.close({ timeoutMs: 100 }).then(() => {
      isClosed = true;
    });
    await vi.advanceTimersByTimeAsync(599);
    expect(isClosed).toBe(false);
    await vi.advanceTimersByTimeAsync(1);
    expect(isClosed).toBe(true);
    expect(lease.isHeld).toBe(false);
  });
});

describe('when a waiter is aborted, the pool', () => {
  it('leases an instance from the inventory in the step of the acquire, before an abort can interfere', async () => {
    const workshop = new Workshop();
    const pool = new PipelinePool({ size: 1, ...workshop.callbacks });
    await (await pool.acquire()).release();
    await vi.advanceTimersByTimeAsync(5_000);
    const controller = new AbortController();
    const first = pool.acquire({ signal: controller.signal });
    expect(pool.stats()).toMatchObject({ leased: 1, idle: 0, queued: 0 });
    const second = pool.acquire();
    controller.abort(REASON);
    await (await first).release();
    expect((await second).instanceId).toBe(1);
  });

  it('does not lose an instance that is released in the step in which its first waiter is aborted', async () => {
    const workshop = new Workshop();
    const pool = new PipelinePool({ size: 1, ...workshop.callbacks });
    const lease = await pool.acquire();
    const late = pool.acquire({ timeoutMs: 10 });
    const second = pool.acquire();
    const third = pool.acquire();
    const rejected = expect(late).rejects.toBeInstanceOf(AcquireTimeoutError);
    setTimeout(() => void lease.release(), 10);
    await vi.advanceTimersByTimeAsync(10);
    await rejected;
    await (await second).release();
    await (await third).release();
    expect(pool.stats()).toMatchObject({ idle: 1, queued: 0, rejected: 1 });
  });
});

describe('where an instance is known to be dead, the pool', () => {
  it('destroys it by id, and serves another next', async () => {
    const workshop = new Workshop();
    const pool = new PipelinePool({ size: 2, ...workshop.callbacks });
    const leases = await Promise.all([pool.acquire(), pool.acquire()]);
    for (const lease of leases) await lease.release();
    await vi.advanceTimersByTimeAsync(5_000);
    await (await pool.acquire({ instanceId: 2 })).release({ discard: true });
    expect(workshop.destroyed).toEqual([2]);
    expect((await pool.acquire()).instanceId).toBe(1);
  });
});

describe('where a lease is released while its reset runs, the pool', () => {
  it('never leases it twice', async () => {
    const resets = [deferred(), deferred()];
    let count = 0;
    const workshop = new Workshop();
    const pool = new PipelinePool({ size: 1, ...workshop.callbacks, reset: () => resets[count++]?.promise });
    const lease = await pool.acquire();
    const second = pool.acquire();
    const third = pool.acquire();
    void lease.release();
    void lease.release();
    resets[0]!.resolve();
    const holder = await second;
    void lease.release();
    expect(await outcome(third)).toBe('pending');
    expect(count).toBe(1);
    void holder.release();
    resets[1]!.resolve();
    expect((await third).isHeld).toBe(true);
  });
});

describe('where something never ends, the pool', () => {
  it('drains to its deadline, and names the holders or their number', async () => {
    const pool = new PipelinePool({ size: 1, create: () => new Promise<object>(() => {}) });
    const given = pool.acquire();
    given.catch(() => {});
    const drained = pool.drain({ timeoutMs: 100 });
    const rejected = expect(drained).rejects.toBeInstanceOf(DrainTimeoutError);
    await vi.advanceTimersByTimeAsync(100);
    await rejected;
    const closed = pool.close({ timeoutMs: 10 });
    await vi.advanceTimersByTimeAsync(10);
    await closed;
    expect(pool.stats()).toMatchObject({ live: 0, queued: 0 });
  });

  it('is not opened again by an acquire after close', async () => {
    const workshop = new Workshop();
    const pool = new PipelinePool({ size: 1, min: 1, ...workshop.callbacks });
    await pool.warmUp();
    await pool.close();
    await expect(pool.acquire()).rejects.toMatchObject({ code: 'ERR_POOL_CLOSED' });
    pool.resize(3);
    pool.refresh();
    await vi.advanceTimersByTimeAsync(60_000);
    expect(workshop.pieces).toHaveLength(1);
  });
});
