import { setTimeout as realDelay } from 'node:timers/promises';
import { describe, expect, it, vi } from 'vitest';
import type { LifecycleEvents } from '../../src/hooks/events.js';
import { PipelinePool } from '../../src/pool/pipeline-pool.js';
import { inVirtualTime } from '../support/fake-timers.js';
import { Workshop } from '../support/pools.js';
import { endOfTurn } from '../support/promises.js';

inVirtualTime();

const poolOf = (more = {}) => {
  const workshop = new Workshop();
  const pool = new PipelinePool({ size: 1, ...workshop.callbacks, leakWarningMs: 1_000, ...more });
  const emitted: LifecycleEvents['lease:leaked'][] = [];
  pool.hooks.on('lease:leaked', (event) => emitted.push(event));
  return { workshop, pool, emitted };
};

describe('a lease that is held longer than `leakWarningMs`', () => {
  it('is reported once, with the stack of its acquire, and again when it is released after all', async () => {
    const { pool, emitted } = poolOf();
    const forgetful = () => pool.acquire({ taskId: 'a' });
    const lease = await forgetful();
    await vi.advanceTimersByTimeAsync(999);
    expect(emitted).toEqual([]);
    await vi.advanceTimersByTimeAsync(5_000);
    expect(emitted).toMatchObject([{ kind: 'overdue', instanceId: 1, taskId: 'a', heldMs: 1_000 }]);
    expect(emitted[0]?.stack).toContain('forgetful');
    expect(emitted[0]?.stack).not.toContain('src/pool');
    await lease.release();
    expect(emitted).toHaveLength(2);
    expect(emitted[1]).toMatchObject({ kind: 'returned', instanceId: 1, heldMs: 5_999 });
    expect(emitted[1]?.stack).toContain('forgetful');
  });

  it('is reported with its stack also when it had to wait', async () => {
    const { pool, emitted } = poolOf();
    const first = await pool.acquire();
    const patient = () => pool.acquire();
    const second = patient();
    await first.release();
    await second;
    await vi.advanceTimersByTimeAsync(1_000);
    expect(emitted[0]?.stack).toContain('patient');
  });

  it('is not reported when it is released in time', async () => {
    const { pool, emitted } = poolOf();
    for (let i = 0; i < 3; i++) {
      const lease = await pool.acquire();
      await vi.advanceTimersByTimeAsync(900);
      await lease.release();
    }
    await vi.advanceTimersByTimeAsync(5_000);
    expect(emitted).toEqual([]);
  });

  it('is not reported as returned when it was revoked', async () => {
    const { pool, emitted } = poolOf({ maxLeaseMs: 2_000 });
    const lease = await pool.acquire();
    await vi.advanceTimersByTimeAsync(2_000);
    await lease.release();
    expect(emitted.map(({ kind }) => kind)).toEqual(['overdue']);
  });

  it('is named with its stack by a drain that times out', async () => {
    const { pool } = poolOf();
    await pool.acquire({ taskId: 'a' });
    const drained = pool.drain({ timeoutMs: 10 }).catch((error: unknown) => error);
    await vi.advanceTimersByTimeAsync(10);
    expect(await drained).toMatchObject({
      code: 'ERR_DRAIN_TIMEOUT',
      holders: [{ taskId: 'a', stack: expect.stringContaining('leak.test.ts') }],
    });
  });
});

describe('a lease that is dropped without release', () => {
  it('is found when it is collected, and its slot recovered', async () => {
    vi.useRealTimers();
    const { pool, emitted, workshop } = poolOf({ leakWarningMs: 60_000 });
    const revoked: unknown[] = [];
    pool.hooks.on('lease:revoked', ({ reason }) => revoked.push(reason));
    const drop = async (): Promise<void> => {
      const lease = await pool.acquire({ taskId: 'careless' });
      expect(lease.pipeline.alive).toBe(true);
    };
    await drop();
    const next = pool.acquire();
    // The collector takes its time: as long as the test may.
    while (emitted.length === 0) {
      global.gc?.();
      await realDelay(1);
    }
    expect(emitted).toMatchObject([{ kind: 'collected', taskId: 'careless', instanceId: 1 }]);
    expect(emitted[0]?.stack).toContain('drop');
    expect(revoked).toEqual(['abandoned']);
    expect(workshop.destroyed).toEqual([1]);
    expect((await next).instanceId).toBe(2);
    await endOfTurn();
    expect(workshop.peak).toBe(1);
  });

  it('is kept while it can still be released', async () => {
    vi.useRealTimers();
    const { pool, emitted } = poolOf({ leakWarningMs: 60_000 });
    const lease = await pool.acquire();
    for (let i = 0; i < 20; i++) {
      global.gc?.();
      await endOfTurn();
    }
    expect(emitted).toEqual([]);
    expect(lease.isHeld).toBe(true);
    await lease.release();
  });

  it('is not looked for after it was released', async () => {
    vi.useRealTimers();
    const { pool, emitted } = poolOf({ leakWarningMs: 60_000 });
    await (async () => (await pool.acquire()).release())();
    for (let i = 0; i < 20; i++) {
      global.gc?.();
      await endOfTurn();
    }
    expect(emitted).toEqual([]);
    expect(pool.stats()).toMatchObject({ idle: 1, revoked: 0 });
  });
});
