import { describe, expect, it, vi } from 'vitest';
import { InstanceGoneError, PoolClosedError, QueueFullError } from '../../src/errors.js';
import type { PipelinePoolOptions } from '../../src/pool/options.js';
import { PipelinePool } from '../../src/pool/pipeline-pool.js';
import { inVirtualTime } from '../support/fake-timers.js';
import { HandMade, type Piece, Workshop } from '../support/pools.js';
import { endOfTurn, outcome } from '../support/promises.js';

inVirtualTime();

const poolOf = (more: Partial<PipelinePoolOptions<Piece>> = {}) => {
  const workshop = new Workshop();
  return { workshop, pool: new PipelinePool({ size: 2, ...workshop.callbacks, ...more }) };
};

describe('acquire({ instanceId })', () => {
  it('leases that instance when it is idle, whichever was used last', async () => {
    const { pool } = poolOf();
    const first = await pool.acquire();
    const second = await pool.acquire();
    await first.release();
    await second.release();
    const lease = await pool.acquire({ instanceId: 1 });
    expect(lease.instanceId).toBe(1);
    expect((await pool.acquire()).instanceId).toBe(2);
  });

  it('leases it from the inventory', async () => {
    const { pool } = poolOf({ size: 3 });
    const leases = await Promise.all([pool.acquire(), pool.acquire(), pool.acquire()]);
    for (const lease of leases) await lease.release();
    await vi.advanceTimersByTimeAsync(5_000);
    expect((await pool.acquire({ instanceId: 2 })).instanceId).toBe(2);
    expect((await pool.acquire({ instanceId: 1 })).instanceId).toBe(1);
    expect((await pool.acquire()).instanceId).toBe(3);
  });

  it('waits for that instance while others are free', async () => {
    const { pool } = poolOf();
    const first = await pool.acquire();
    const second = await pool.acquire();
    const wanted = pool.acquire({ instanceId: 1 });
    await second.release();
    expect(await outcome(wanted)).toBe('pending');
    expect(pool.stats()).toMatchObject({ idle: 1, queued: 1 });
    await first.release();
    expect((await wanted).instanceId).toBe(1);
  });

  it('waits for an instance that is still being created', async () => {
    const workshop = new HandMade();
    const pool = new PipelinePool({ size: 1, ...workshop.callbacks });
    const first = pool.acquire();
    await endOfTurn();
    const wanted = pool.acquire({ instanceId: 1 });
    workshop.finish();
    await (await first).release();
    expect((await wanted).instanceId).toBe(1);
  });

  it('never creates for it, nor falls back to another', async () => {
    const { pool, workshop } = poolOf();
    const first = await pool.acquire();
    const wanted = pool.acquire({ instanceId: 1 });
    await endOfTurn();
    expect(workshop.pieces).toHaveLength(1);
    const rejected = expect(wanted).rejects.toBeInstanceOf(InstanceGoneError);
    await first.release({ discard: true });
    await rejected;
    expect(pool.stats()).toMatchObject({ queued: 0, rejected: 1 });
  });

  it('rejects at once when there is no such instance, or it is gone', async () => {
    const { pool } = poolOf();
    await expect(pool.acquire({ instanceId: 1 })).rejects.toMatchObject({
      code: 'ERR_INSTANCE_GONE',
      instanceId: 1,
    });
    await (await pool.acquire()).release({ discard: true });
    await expect(pool.acquire({ instanceId: 1 })).rejects.toBeInstanceOf(InstanceGoneError);
    await pool.acquire();
    await expect(pool.acquire({ instanceId: 99 })).rejects.toBeInstanceOf(InstanceGoneError);
  });

  it('rejects at once when the instance will be destroyed at the end of its present lease', async () => {
    const { pool } = poolOf({ maxUses: 1 });
    await pool.acquire();
    await expect(pool.acquire({ instanceId: 1 })).rejects.toBeInstanceOf(InstanceGoneError);
    const other = poolOf();
    await other.pool.acquire();
    const waiting = other.pool.acquire({ instanceId: 1 });
    other.pool.refresh();
    await expect(waiting).rejects.toBeInstanceOf(InstanceGoneError);
  });

  it('rejects when the instance is found unhealthy', async () => {
    const { pool } = poolOf({ validate: () => false, validateAfterIdleMs: 10 });
    await (await pool.acquire()).release();
    await vi.advanceTimersByTimeAsync(10);
    await expect(pool.acquire({ instanceId: 1 })).rejects.toBeInstanceOf(InstanceGoneError);
  });

  it('serves waiters for the same instance in the order of arrival', async () => {
    const { pool } = poolOf({ size: 1 });
    const first = await pool.acquire();
    const order: string[] = [];
    const want = async (who: string, instanceId: number | undefined, priority = 0) => {
      const lease = await pool.acquire({ priority, ...(instanceId === undefined ? {} : { instanceId }) });
      order.push(who);
      await endOfTurn();
      await lease.release();
    };
    const all = [
      want('a wants it', 1),
      want('b takes any', undefined),
      want('c wants it', 1),
      want('d wants it now', 1, 5),
      want('e takes any, now', undefined, 5),
    ];
    await first.release();
    await Promise.all(all);
    expect(order).toEqual(['d wants it now', 'e takes any, now', 'a wants it', 'b takes any', 'c wants it']);
  });

  it('is ended by signal, timeout and close, in the same step', async () => {
    const { pool } = poolOf({ size: 1 });
    await pool.acquire();
    const controller = new AbortController();
    const reason = new Error('aborted');
    const aborted = pool.acquire({ instanceId: 1, signal: controller.signal });
    const late = pool.acquire({ instanceId: 1, timeoutMs: 10 });
    const closed = pool.acquire({ instanceId: 1 });
    const all = Promise.allSettled([aborted, late, closed]);
    controller.abort(reason);
    expect(pool.stats().queued).toBe(2);
    await vi.advanceTimersByTimeAsync(10);
    expect(pool.stats().queued).toBe(1);
    void pool.close({ timeoutMs: 0 });
    expect(pool.stats().queued).toBe(0);
    const [first, second, third] = (await all) as PromiseRejectedResult[];
    expect(first?.reason).toBe(reason);
    expect(second?.reason).toMatchObject({ code: 'ERR_ACQUIRE_TIMEOUT' });
    expect(third?.reason).toBeInstanceOf(PoolClosedError);
    await vi.advanceTimersByTimeAsync(10);
  });

  it('counts against `maxQueue`, and with `timeoutMs` 0 takes the instance only if it is idle', async () => {
    const { pool } = poolOf({ size: 1, maxQueue: 1 });
    const lease = await pool.acquire();
    const queued = pool.acquire({ instanceId: 1 });
    await expect(pool.acquire({ instanceId: 1 })).rejects.toBeInstanceOf(QueueFullError);
    await expect(pool.acquire()).rejects.toBeInstanceOf(QueueFullError);
    await lease.release();
    const second = await queued;
    await expect(pool.acquire({ instanceId: 1, timeoutMs: 0 })).rejects.toMatchObject({
      code: 'ERR_ACQUIRE_TIMEOUT',
    });
    await second.release();
    expect((await pool.acquire({ instanceId: 1, timeoutMs: 0 })).instanceId).toBe(1);
  });
});
