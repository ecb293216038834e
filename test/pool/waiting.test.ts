import { getEventListeners } from 'node:events';
import { describe, expect, it, vi } from 'vitest';
import { AcquireTimeoutError, QueueFullError } from '../../src/errors.js';
import { PipelinePool } from '../../src/pool/pipeline-pool.js';
import { inVirtualTime } from '../support/fake-timers.js';
import { Workshop } from '../support/pools.js';
import { endOfTurn, outcome } from '../support/promises.js';

inVirtualTime();

const poolOf = (size: number, more = {}) => {
  const workshop = new Workshop();
  return { workshop, pool: new PipelinePool({ size, ...workshop.callbacks, ...more }) };
};

describe('waiting for a lease', () => {
  it('ends with the reason of the signal, at once, and leaves nothing behind', async () => {
    const { pool } = poolOf(1);
    const lease = await pool.acquire();
    const controller = new AbortController();
    const given = pool.acquire({ signal: controller.signal, timeoutMs: 1_000 });
    const behind = pool.acquire();
    const reason = new Error('no longer needed');
    controller.abort(reason);
    expect(pool.stats()).toMatchObject({ queued: 1, rejected: 1 });
    await expect(given).rejects.toBe(reason);
    expect(getEventListeners(controller.signal, 'abort')).toHaveLength(0);
    await lease.release();
    expect((await behind).instanceId).toBe(1);
  });

  it('is rejected at once when the signal is already aborted', async () => {
    const { pool, workshop } = poolOf(1);
    const reason = new Error('gone');
    await expect(pool.acquire({ signal: AbortSignal.abort(reason) })).rejects.toBe(reason);
    expect(workshop.pieces).toHaveLength(0);
    expect(pool.stats()).toMatchObject({ queued: 0, rejected: 1 });
  });

  it('does not end a lease that was granted before the abort', async () => {
    const { pool } = poolOf(1);
    const controller = new AbortController();
    const lease = await pool.acquire({ signal: controller.signal });
    expect(getEventListeners(controller.signal, 'abort')).toHaveLength(0);
    controller.abort();
    expect(lease.isHeld).toBe(true);
    expect(lease.signal.aborted).toBe(false);
    expect(lease.pipeline.alive).toBe(true);
  });

  it('ends after `timeoutMs` with numbers that explain it', async () => {
    const { pool } = poolOf(1, { name: 'research' });
    await pool.acquire();
    const given = pool.acquire({ timeoutMs: 500 });
    const behind = pool.acquire();
    given.catch(() => {});
    await vi.advanceTimersByTimeAsync(499);
    expect(await outcome(given)).toBe('pending');
    await vi.advanceTimersByTimeAsync(1);
    await expect(given).rejects.toBeInstanceOf(AcquireTimeoutError);
    await expect(given).rejects.toMatchObject({
      code: 'ERR_ACQUIRE_TIMEOUT',
      source: 'research',
      stage: 'wait',
      waitMs: 500,
      active: 1,
      queued: 1,
      size: 1,
      live: 1,
      idle: 0,
    });
    expect(await outcome(behind)).toBe('pending');
    expect(pool.stats().queued).toBe(1);
  });

  it('ends after `acquireTimeoutMs` if the call sets no timeout', async () => {
    const { pool } = poolOf(1, { acquireTimeoutMs: 50 });
    await pool.acquire();
    const given = pool.acquire();
    const patient = pool.acquire({ timeoutMs: 100 });
    const ended = expect(given).rejects.toBeInstanceOf(AcquireTimeoutError);
    const endedLater = expect(patient).rejects.toBeInstanceOf(AcquireTimeoutError);
    await vi.advanceTimersByTimeAsync(50);
    await ended;
    expect(pool.stats().queued).toBe(1);
    await vi.advanceTimersByTimeAsync(50);
    await endedLater;
  });

  it('with `timeoutMs` 0 takes an idle instance or rejects', async () => {
    const { pool, workshop } = poolOf(1);
    await expect(pool.acquire({ timeoutMs: 0 })).rejects.toBeInstanceOf(AcquireTimeoutError);
    await endOfTurn();
    expect(workshop.pieces).toHaveLength(0);
    await (await pool.acquire()).release();
    const lease = await pool.acquire({ timeoutMs: 0 });
    expect(lease.instanceId).toBe(1);
    await expect(pool.acquire({ timeoutMs: 0 })).rejects.toBeInstanceOf(AcquireTimeoutError);
  });

  it('hands the released instance to the next waiter when the first is aborted in the same step', async () => {
    for (const abortFirst of [true, false]) {
      const { pool } = poolOf(1);
      const lease = await pool.acquire();
      const controller = new AbortController();
      const head = pool.acquire({ signal: controller.signal });
      const next = pool.acquire();
      if (abortFirst) controller.abort(new Error('aborted'));
      void lease.release();
      if (!abortFirst) controller.abort(new Error('aborted'));
      if (abortFirst) await expect(head).rejects.toThrow('aborted');
      else void (await head).release();
      expect((await next).instanceId).toBe(1);
    }
  });

  it('is served by priority, and tenants of one priority take turns', async () => {
    const { pool } = poolOf(1);
    const held = await pool.acquire();
    const order: string[] = [];
    const ask = async (who: string, priority: number, tenant?: string) => {
      const lease = await pool.acquire({ priority, ...(tenant === undefined ? {} : { tenant }) });
      order.push(who);
      await endOfTurn();
      await lease.release();
    };
    const all = [
      ask('a1', 0, 'a'),
      ask('a2', 0, 'a'),
      ask('a3', 0, 'a'),
      ask('b1', 0, 'b'),
      ask('urgent', 5),
      ask('later', -1),
    ];
    await held.release();
    await Promise.all(all);
    expect(order).toEqual(['urgent', 'a1', 'b1', 'a2', 'a3', 'later']);
  });

  it('is served in the order of arrival from the inventory', async () => {
    for (let k = 0; k < 12; k++) {
      const { pool } = poolOf(1);
      await (await pool.acquire()).release();
      await vi.advanceTimersByTimeAsync(5_000);
      const order: string[] = [];
      const first = pool.use(() => order.push('first'));
      for (let i = 0; i < k; i++) await undefined;
      const second = pool.use(() => order.push('second'));
      await Promise.all([first, second]);
      expect(order).toEqual(['first', 'second']);
      await pool.close();
    }
  });

  it('rejects a request that finds the queue full, with an estimate', async () => {
    const { pool } = poolOf(1, { maxQueue: 1 });
    const lease = await pool.acquire();
    const queued = pool.acquire();
    const refused = pool.acquire();
    await expect(refused).rejects.toBeInstanceOf(QueueFullError);
    await expect(refused).rejects.toMatchObject({ code: 'ERR_QUEUE_FULL', active: 1, queued: 1, size: 1 });
    await refused.catch((error: QueueFullError) => expect(error.retryAfterMs).toBeGreaterThan(0));
    await lease.release();
    expect((await queued).instanceId).toBe(1);
  });

  it('does not count a request as queued for which an instance is idle or can be created', async () => {
    const { pool } = poolOf(2, { maxQueue: 0 });
    const both = [pool.acquire(), pool.acquire()];
    await expect(pool.acquire()).rejects.toBeInstanceOf(QueueFullError);
    const leases = await Promise.all(both);
    for (const lease of leases) await lease.release();
    expect((await pool.acquire()).isHeld).toBe(true);
  });

  it('does not count aborted waiters against `maxQueue`, nor create for them', async () => {
    const { pool, workshop } = poolOf(1, { maxQueue: 1 });
    const lease = await pool.acquire();
    const controller = new AbortController();
    const given = pool.acquire({ signal: controller.signal });
    given.catch(() => {});
    controller.abort();
    const queued = pool.acquire({ timeoutMs: 10 });
    queued.catch(() => {});
    await vi.advanceTimersByTimeAsync(10);
    await lease.release({ discard: true });
    await endOfTurn();
    expect(workshop.pieces).toHaveLength(1);
    expect(pool.stats()).toMatchObject({ live: 0, queued: 0 });
  });

  it('rejects invalid options by name and value', async () => {
    const { pool } = poolOf(1);
    for (const [options, message] of [
      [{ timeoutMs: -1 }, '`timeoutMs`'],
      [{ timeoutMs: '5' }, '`timeoutMs`'],
      [{ signal: {} }, '`signal`'],
      [{ priority: 1.5 }, '`priority`'],
      [{ tenant: '' }, '`tenant`'],
      [{ taskId: 7 }, '`taskId`'],
      [{ instanceId: 0 }, '`instanceId`'],
      [{ task: 'x' }, 'Unknown option `task` in acquire'],
      [null, '`acquire`'],
      [7, '`acquire`'],
    ] as const) {
      await expect(pool.acquire(options as never)).rejects.toThrow(message);
    }
    expect(pool.stats()).toMatchObject({ queued: 0, live: 0 });
  });

  it('is measured in `waitMs`', async () => {
    const { pool } = poolOf(1);
    const first = await pool.acquire();
    expect(first.waitMs).toBe(0);
    const waiting = pool.acquire();
    await vi.advanceTimersByTimeAsync(250);
    await first.release();
    expect((await waiting).waitMs).toBe(250);
  });
});
