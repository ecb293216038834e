import { describe, expect, it, vi } from 'vitest';
import { LifecycleHooks } from '../../src/hooks/lifecycle-hooks.js';
import { PER_TURN } from '../../src/internal/clock.js';
import type { PipelinePoolOptions } from '../../src/pool/options.js';
import { PipelinePool } from '../../src/pool/pipeline-pool.js';
import { servingOrder } from '../../src/queue/serving-order.js';
import { useFakeTimers } from '../support/fake-timers.js';
import { type Piece, Workshop } from '../support/pools.js';
import { endOfTurn } from '../support/promises.js';

vi.mock('../../src/queue/serving-order.js', { spy: true });

const poolOf = (more: Partial<PipelinePoolOptions<Piece>> = {}) => {
  const workshop = new Workshop();
  return { workshop, pool: new PipelinePool({ size: 2, ...workshop.callbacks, ...more }) };
};

describe('the event loop', () => {
  it.each(['instance:creating', 'instance:created', 'instance:destroyed'] as const)(
    'turns between two generations when a listener of %s refreshes the pool',
    async (event) => {
      const { pool, workshop } = poolOf({ min: 2 });
      let refreshes = 0;
      pool.hooks.on(event, () => {
        // Bounded, so that a pool that starves the event loop fails the test instead of ending it.
        if (++refreshes < 1_000) pool.refresh();
      });
      if (event === 'instance:destroyed') await pool.warmUp().then(() => pool.refresh());
      for (let turn = 1; turn <= 5; turn++) {
        const before = workshop.pieces.length;
        await endOfTurn();
        expect(workshop.pieces.length - before).toBeLessThanOrEqual(2);
      }
      expect(refreshes).toBeGreaterThan(1);
      expect(refreshes).toBeLessThan(100);
      await pool.close();
    },
  );

  it('turns between two instances that a failing prepare discards', async () => {
    const { pool, workshop } = poolOf({
      size: 1,
      prepare: () => {
        throw new Error('not today');
      },
    });
    let rejections = 0;
    const loop = async (): Promise<void> => {
      while (rejections < 1_000) await pool.acquire().catch(() => rejections++);
    };
    const looping = loop();
    for (let turn = 0; turn < 5; turn++) await endOfTurn();
    expect(workshop.pieces.length).toBeLessThanOrEqual(6);
    rejections = 1_000;
    await looping;
    await pool.close();
  });
});

describe('many waiters', () => {
  const WAITERS = 1_000;

  it('have their instances created over several turns of the event loop', async () => {
    let started = 0;
    const pool = new PipelinePool({
      size: WAITERS,
      create: async () => {
        started++;
        await endOfTurn();
        return {};
      },
    });
    const leases = Array.from({ length: WAITERS }, () => pool.acquire());
    const startedByTurn = [started];
    while (started < WAITERS) {
      const before = started;
      await endOfTurn();
      startedByTurn.push(started - before);
    }
    expect(startedByTurn[0]).toBeGreaterThan(0);
    expect(Math.max(...startedByTurn)).toBeLessThanOrEqual(2 * PER_TURN);
    expect(new Set((await Promise.all(leases)).map(({ instanceId }) => instanceId)).size).toBe(WAITERS);
    expect(pool.stats()).toMatchObject({ leased: WAITERS, live: WAITERS, queued: 0 });
  });

  it.each(['close', 'refresh', 'abort'] as const)(
    'are rejected by one %s with one error, redacted once in a turn of the event loop',
    async (how) => {
      let redactions = 0;
      const redact = (text: string): string => {
        redactions++;
        return text;
      };
      const hooks = new LifecycleHooks({ redact });
      let rejections = 0;
      hooks.on('lease:rejected', () => rejections++);
      const { pool } = poolOf({ size: 1, hooks });
      const lease = await pool.acquire();
      const controller = new AbortController();
      // A refreshed instance rejects the waiters that accept no other.
      const options = { signal: controller.signal, ...(how === 'refresh' ? { instanceId: 1 } : {}) };
      const all = Promise.allSettled(Array.from({ length: WAITERS }, () => pool.acquire(options)));
      if (how === 'close') void pool.close();
      else if (how === 'refresh') pool.refresh();
      else controller.abort(new Error('no longer needed'));
      expect(pool.stats()).toMatchObject({ queued: 0, rejected: WAITERS });
      const errors = new Set((await all).map((result) => (result as PromiseRejectedResult).reason));
      expect(errors.size).toBe(1);
      expect(rejections).toBe(WAITERS);
      // Its name, code and message.
      expect(redactions).toBeLessThanOrEqual((3 * WAITERS) / PER_TURN);
      await lease.release();
      await pool.close();
    },
  );

  it.each(['close', 'abort', 'timeout'] as const)(
    'of one %s are rejected in batches, a turn of the event loop each',
    async (how) => {
      const { pool } = poolOf({ size: 1 });
      const lease = await pool.acquire();
      const controller = new AbortController();
      let rejections = 0;
      useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
      for (let i = 0; i < 3 * WAITERS; i++) {
        pool.acquire({ signal: controller.signal, timeoutMs: 10 }).catch(() => rejections++);
      }
      if (how === 'close') void pool.close();
      else if (how === 'abort') controller.abort(new Error('no longer needed'));
      else vi.advanceTimersByTime(10);
      vi.useRealTimers();
      // They leave the queue at once; timeouts are looked at when their turn comes.
      expect(pool.stats().queued).toBe(how === 'timeout' ? 3 * WAITERS - PER_TURN : 0);
      let turns = 0;
      for (let before = 0; rejections < 3 * WAITERS; before = rejections) {
        await endOfTurn();
        turns++;
        expect(rejections - before).toBeLessThanOrEqual(2 * PER_TURN);
      }
      expect(turns).toBeGreaterThan(1);
      expect(pool.stats()).toMatchObject({ queued: 0, rejected: 3 * WAITERS });
      await lease.release();
      await pool.close();
    },
  );

  it('that are served before their timeout is looked at keep their lease', async () => {
    const { pool } = poolOf({ size: 1 });
    const lease = await pool.acquire();
    useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
    const all = Array.from({ length: PER_TURN + 1 }, () => pool.acquire({ timeoutMs: 10 }));
    for (const waiting of all) waiting.catch(() => {});
    vi.advanceTimersByTime(10);
    vi.useRealTimers();
    void lease.release();
    const last = await all[PER_TURN];
    await endOfTurn();
    await endOfTurn();
    expect(last?.isHeld).toBe(true);
    expect(pool.stats()).toMatchObject({ leased: 1, queued: 0, rejected: PER_TURN });
    await last?.release();
    await pool.close();
  });

  it('are not searched for the one that a creation starts for', async () => {
    const search = vi.mocked(servingOrder).mockClear();
    const pool = new PipelinePool({ size: 50, create: () => Promise.reject(new Error('none')) });
    const all = Promise.allSettled(Array.from({ length: 50 }, () => pool.acquire()));
    expect(pool.stats()).toMatchObject({ creating: 50, queued: 50 });
    expect(search).not.toHaveBeenCalled();
    const codes = (await all).map((result) => (result as PromiseRejectedResult).reason.code);
    expect(new Set(codes)).toEqual(new Set(['ERR_CREATE_FAILED']));
    await pool.close();
  });
});
