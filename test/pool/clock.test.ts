import { describe, expect, it, vi } from 'vitest';
import { QueueFullError } from '../../src/errors.js';
import { PipelinePool } from '../../src/pool/pipeline-pool.js';
import { onFakeTimers } from '../support/fake-timers.js';
import { Workshop } from '../support/pools.js';
import { endOfTurn } from '../support/promises.js';

// As sinon, Jest and a `toFake` without `performance` leave it: the monotonic clock goes on in real time.
onFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'Date'] });

describe('`now`', () => {
  it('moves idle times, ages and waits with the fake timers of a test', async () => {
    const workshop = new Workshop();
    let validations = 0;
    const pool = new PipelinePool({
      size: 2,
      ...workshop.callbacks,
      validate: () => ++validations > 0,
      validateAfterIdleMs: 1_000,
      validateIdleEveryMs: 1e9,
      idleTimeoutMs: 60_000,
      now: Date.now,
    });
    const ages: number[] = [];
    pool.hooks.on('instance:destroyed', ({ ageMs }) => ages.push(ageMs));
    const lease = await pool.acquire();
    const other = await pool.acquire();
    const waiting = pool.acquire();
    await vi.advanceTimersByTimeAsync(500);
    await lease.release();
    const next = await waiting;
    expect(next.waitMs).toBe(500);
    await next.release();
    await other.release();
    await vi.advanceTimersByTimeAsync(2_000);
    await (await pool.acquire()).release();
    expect(validations).toBe(1);
    await vi.advanceTimersByTimeAsync(70_000);
    await endOfTurn();
    expect(pool.stats().live).toBe(0);
    expect(ages).toHaveLength(2);
    for (const ageMs of ages) expect(ageMs).toBeGreaterThanOrEqual(60_000);
    await pool.close();
  });

  it('measures the pace of releases, from which a full queue says when to come back', async () => {
    const pool = new PipelinePool({ size: 1, create: () => ({}), maxQueue: 1, now: Date.now });
    let lease = await pool.acquire();
    for (let i = 0; i < 5; i++) {
      const waiting = pool.acquire();
      await vi.advanceTimersByTimeAsync(4_000);
      await lease.release();
      lease = await waiting;
    }
    void pool.acquire();
    const error = (await pool.acquire().catch((thrown: unknown) => thrown)) as QueueFullError;
    expect(error).toBeInstanceOf(QueueFullError);
    expect(error.retryAfterMs).toBeGreaterThan(3_000);
    await lease.release();
  });

  it('costs no lease when it throws or returns nonsense after construction', async () => {
    let time: unknown = 5;
    const now = (): number => {
      if (time === 'throw') throw new Error('no time');
      return time as number;
    };
    const pool = new PipelinePool({ size: 1, create: () => ({}), now, idleTimeoutMs: 50 });
    for (const value of ['throw', Number.NaN, 'noon', undefined, Symbol('time')]) {
      time = value;
      const lease = await pool.acquire();
      const waiting = pool.acquire();
      await lease.release();
      expect((await waiting).waitMs).toBe(0);
      await (await waiting).release();
      await vi.advanceTimersByTimeAsync(100);
    }
    expect(pool.stats()).toMatchObject({ idle: 1, live: 1 });
    await pool.close();
  });

  it('is read when it is needed, also twice in a turn of the event loop', async () => {
    let time = 5;
    const pool = new PipelinePool({ size: 1, create: () => ({}), now: () => time });
    const lease = await pool.acquire();
    const waiting = pool.acquire();
    time = 25;
    void lease.release();
    expect((await waiting).waitMs).toBe(20);
  });
});
