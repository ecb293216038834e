import { describe, expect, it, vi } from 'vitest';
import {
  AcquireTimeoutError,
  CallbackTimeoutError,
  CreateError,
  InstanceGoneError,
  PoolClosedError,
} from '../../src/errors.js';
import type { PipelinePoolOptions } from '../../src/pool/options.js';
import { PipelinePool } from '../../src/pool/pipeline-pool.js';
import { inVirtualTime } from '../support/fake-timers.js';
import { HandMade, type Piece, Workshop } from '../support/pools.js';
import { endOfTurn, outcome } from '../support/promises.js';

inVirtualTime();

const byHand = (more: Partial<PipelinePoolOptions<Piece>> = {}) => {
  const workshop = new HandMade();
  return { workshop, pool: new PipelinePool({ size: 2, ...workshop.callbacks, ...more }) };
};

const REASON = new Error('no memory left');

describe('a creation', () => {
  it('gets the instanceId and a signal', async () => {
    const { pool, workshop } = byHand();
    void pool.acquire();
    await endOfTurn();
    expect(workshop.orders[0]!.context.instanceId).toBe(1);
    expect(workshop.orders[0]!.context.signal.aborted).toBe(false);
  });

  it('counts as live from its start, and is bounded by `size`', async () => {
    const { pool, workshop } = byHand();
    const all = [pool.acquire(), pool.acquire(), pool.acquire()];
    await endOfTurn();
    expect(workshop.orders).toHaveLength(2);
    expect(pool.stats()).toMatchObject({ live: 2, creating: 2, queued: 3 });
    workshop.finish();
    workshop.finish();
    const leases = await Promise.all(all.slice(0, 2));
    await leases[0]!.release();
    await all[2];
    expect(workshop.peak).toBe(2);
  });

  it('serves the first waiter, whichever waiter it was started for', async () => {
    const { pool, workshop } = byHand();
    const first = pool.acquire();
    const second = pool.acquire();
    await endOfTurn();
    workshop.finish(1);
    expect((await first).instanceId).toBe(2);
    expect(await outcome(second)).toBe('pending');
    workshop.finish();
    expect((await second).instanceId).toBe(1);
  });

  it('becomes idle when the waiter it was started for took an instance released meanwhile', async () => {
    const { pool, workshop } = byHand();
    const early = pool.acquire();
    await endOfTurn();
    workshop.finish();
    const holder = await early;
    const waiting = pool.acquire();
    await endOfTurn();
    expect(workshop.orders).toHaveLength(1);
    await holder.release();
    expect((await waiting).instanceId).toBe(1);
    workshop.finish();
    await endOfTurn();
    expect(pool.stats()).toMatchObject({ idle: 1, leased: 1, live: 2 });
  });

  it('does not start when it is no longer needed', async () => {
    const { pool, workshop } = byHand({ createConcurrency: 1 });
    const early = pool.acquire();
    await endOfTurn();
    workshop.finish();
    const holder = await early;
    // One creation may run at a time; the second would be for a waiter that is gone by then.
    const controller = new AbortController();
    const first = pool.acquire();
    const second = pool.acquire({ signal: controller.signal });
    second.catch(() => {});
    await endOfTurn();
    expect(workshop.orders).toHaveLength(1);
    controller.abort();
    workshop.finish();
    await first;
    await holder.release();
    await endOfTurn();
    expect(workshop.orders).toHaveLength(0);
    expect(workshop.pieces).toHaveLength(2);
  });

  it('never runs in more than `createConcurrency` at once', async () => {
    const { pool, workshop } = byHand({ size: 5, createConcurrency: 2 });
    const all = [1, 2, 3, 4, 5].map(() => pool.acquire());
    await endOfTurn();
    expect(workshop.orders).toHaveLength(2);
    workshop.finish();
    await endOfTurn();
    expect(workshop.orders).toHaveLength(2);
    for (let i = 0; i < 4; i++) {
      workshop.finish();
      await endOfTurn();
    }
    expect((await Promise.all(all)).map(({ instanceId }) => instanceId)).toEqual([1, 2, 3, 4, 5]);
  });

  it('starts after the constructor has returned, so it may refer to the pool', async () => {
    const workshop = new Workshop();
    const seen: number[] = [];
    const pool: PipelinePool<Piece> = new PipelinePool({
      size: 1,
      min: 1,
      create: (context) => {
        seen.push(pool.stats().live);
        return workshop.create(context);
      },
    });
    await pool.warmUp();
    expect(seen).toEqual([1]);
  });

  it('may itself use the pool', async () => {
    const workshop = new Workshop();
    const pool: PipelinePool<Piece> = new PipelinePool({
      size: 2,
      create: async (context) => {
        if (context.instanceId === 2) {
          const lease = await pool.acquire();
          await lease.release();
        }
        return workshop.create(context);
      },
    });
    const first = await pool.acquire();
    const second = pool.acquire();
    await endOfTurn();
    await first.release();
    await (await second).release();
    await endOfTurn();
    expect(pool.stats()).toMatchObject({ queued: 0, leased: 0, idle: 2 });
  });
});

describe('a creation that fails', () => {
  it('rejects only the waiter it was started for, with the cause and the numbers', async () => {
    const { pool, workshop } = byHand({ size: 1, name: 'research' });
    const first = pool.acquire();
    const second = pool.acquire();
    await vi.advanceTimersByTimeAsync(25);
    workshop.fail(REASON);
    const error = await first.catch((e: unknown) => e);
    expect(error).toBeInstanceOf(CreateError);
    expect(error).toMatchObject({
      code: 'ERR_CREATE_FAILED',
      stage: 'create',
      cause: REASON,
      source: 'research',
      instanceId: 1,
      waitMs: 25,
      live: 0,
      idle: 0,
      leased: 0,
    });
    expect((error as Error).message).toBe('research could not create an instance: no memory left');
    expect(await outcome(second)).toBe('pending');
    await vi.advanceTimersByTimeAsync(10_000);
    workshop.finish();
    expect((await second).instanceId).toBe(2);
  });

  it('rejects no waiter when the one it was started for has been served meanwhile', async () => {
    const { pool, workshop } = byHand({ size: 3 });
    const early = pool.acquire();
    await endOfTurn();
    workshop.finish();
    const holder = await early;
    const first = pool.acquire();
    const second = pool.acquire();
    await endOfTurn();
    expect(workshop.orders).toHaveLength(2);
    await holder.release();
    await first;
    workshop.fail(REASON);
    expect(await outcome(second)).toBe('pending');
    workshop.finish();
    expect((await second).isHeld).toBe(true);
    expect(pool.stats()).toMatchObject({ rejected: 0, createFailed: 1 });
  });

  it('rejects no waiter when another instance is being prepared for the one it was started for', async () => {
    const { pool, workshop } = byHand({
      prepare: (_piece, { taskId }) => (taskId === 'slow' ? new Promise(() => {}) : undefined),
    });
    const early = pool.acquire();
    await endOfTurn();
    workshop.finish();
    const holder = await early;
    const waiting = pool.acquire({ taskId: 'slow' });
    await endOfTurn();
    await holder.release();
    workshop.fail(REASON);
    expect(await outcome(waiting)).toBe('pending');
    expect(pool.stats()).toMatchObject({ readying: 1, queued: 1, rejected: 0 });
    waiting.catch(() => {});
    const closed = pool.close({ timeoutMs: 1 });
    await vi.advanceTimersByTimeAsync(1);
    await closed;
  });

  it('rejects, and does not throw, when `create` throws synchronously', async () => {
    let fails = true;
    const workshop = new Workshop();
    const pool = new PipelinePool({
      size: 1,
      create: (context) => {
        if (fails) throw REASON;
        return workshop.create(context);
      },
    });
    const first = pool.acquire();
    await expect(first).rejects.toMatchObject({ code: 'ERR_CREATE_FAILED', cause: REASON });
    expect(pool.stats()).toMatchObject({ live: 0, queued: 0 });
    fails = false;
    const second = pool.acquire();
    await vi.advanceTimersByTimeAsync(10_000);
    const lease = await second;
    await lease.release();
    // The instance that came after the failure is not lost.
    expect(pool.stats()).toMatchObject({ idle: 1, leased: 0 });
  });

  it('makes the pool back off: between `baseMs` and a ceiling that doubles up to `maxMs`', async () => {
    const draw = vi.spyOn(Math, 'random').mockReturnValue(1);
    const begun: number[] = [];
    const pool = new PipelinePool({
      size: 1,
      create: () => {
        begun.push(performance.now());
        throw REASON;
      },
      createRetry: { baseMs: 100, maxMs: 1_000 },
    });
    const start = performance.now();
    const all = [1, 2, 3, 4, 5].map(() => pool.acquire().catch(() => {}));
    await vi.advanceTimersByTimeAsync(5_000);
    await Promise.all(all);
    expect(begun.map((ms) => ms - start)).toEqual([0, 200, 600, 1_400, 2_400]);

    draw.mockReturnValue(0);
    begun.length = 0;
    const restart = performance.now();
    const more = [1, 2, 3].map(() => pool.acquire().catch(() => {}));
    await vi.advanceTimersByTimeAsync(5_000);
    await Promise.all(more);
    expect(begun.map((ms) => ms - restart)).toEqual([0, 100, 200]);
    draw.mockRestore();
  });

  it('is followed by one creation at a time until one succeeds', async () => {
    const { pool, workshop } = byHand({ size: 3 });
    const all = [1, 2, 3, 4, 5, 6].map(() => pool.acquire());
    for (const given of all) given.catch(() => {});
    await endOfTurn();
    expect(workshop.orders).toHaveLength(3);
    workshop.fail(REASON);
    workshop.fail(REASON);
    workshop.fail(REASON);
    await endOfTurn();
    expect(workshop.orders).toHaveLength(0);
    await vi.advanceTimersByTimeAsync(10_000);
    expect(workshop.orders).toHaveLength(1);
    workshop.finish();
    await endOfTurn();
    expect(workshop.orders).toHaveLength(2);
    expect(pool.stats()).toMatchObject({ rejected: 3, leased: 1, queued: 2 });
  });

  it('makes creations that queued behind `createConcurrency` back off too', async () => {
    const { pool, workshop } = byHand({ createConcurrency: 1 });
    const all = [pool.acquire(), pool.acquire()];
    for (const given of all) given.catch(() => {});
    await endOfTurn();
    workshop.fail(REASON);
    await endOfTurn();
    expect(workshop.orders).toHaveLength(0);
    await vi.advanceTimersByTimeAsync(10_000);
    expect(workshop.orders).toHaveLength(1);
  });

  it('backs off from the first ceiling again after a success', async () => {
    vi.spyOn(Math, 'random').mockReturnValue(1);
    const { pool, workshop } = byHand({ createRetry: { baseMs: 10, maxMs: 1_000 } });
    const pauses: number[] = [];
    pool.hooks.on('instance:create-failed', ({ retryAfterMs }) => pauses.push(retryAfterMs));
    for (const fails of [true, true, false, true]) {
      pool.acquire().catch(() => {});
      await vi.advanceTimersByTimeAsync(40);
      if (fails) workshop.fail(REASON);
      else workshop.finish();
      await endOfTurn();
    }
    expect(pauses).toEqual([20, 40, 20]);
    vi.restoreAllMocks();
  });

  it('leads to one backoff for creations that fail together', async () => {
    vi.spyOn(Math, 'random').mockReturnValue(1);
    const { pool, workshop } = byHand({ size: 3, createRetry: { baseMs: 10, maxMs: 1_000 } });
    const pauses: number[] = [];
    pool.hooks.on('instance:create-failed', ({ retryAfterMs }) => pauses.push(retryAfterMs));
    for (let i = 0; i < 3; i++) pool.acquire().catch(() => {});
    await endOfTurn();
    for (let i = 0; i < 3; i++) workshop.fail(REASON);
    await endOfTurn();
    expect(pauses).toEqual([20, 20, 20]);
    vi.restoreAllMocks();
  });

  it('never starves the event loop', async () => {
    vi.useRealTimers();
    let calls = 0;
    const pool = new PipelinePool({
      size: 2,
      create: () => {
        calls++;
        return Promise.reject(REASON);
      },
    });
    const all = Array.from({ length: 20 }, () => pool.acquire({ timeoutMs: 50 }).catch((e: unknown) => e));
    for (let turn = 0; turn < 50; turn++) await endOfTurn();
    // Fifty turns of the event loop, and no more than the creations that began together.
    expect(calls).toBe(2);
    const errors = await Promise.all(all);
    expect(errors.filter((error) => error instanceof CreateError).length).toBeGreaterThanOrEqual(2);
    expect(errors.every((e) => e instanceof CreateError || e instanceof AcquireTimeoutError)).toBe(true);
    await pool.close();
  });

  it('is the cause of a timeout that follows', async () => {
    const { pool, workshop } = byHand({ size: 1 });
    const first = pool.acquire();
    first.catch(() => {});
    await endOfTurn();
    workshop.fail(REASON);
    const second = pool.acquire({ timeoutMs: 20 });
    const rejected = expect(second).rejects.toMatchObject({ code: 'ERR_ACQUIRE_TIMEOUT', cause: REASON });
    await vi.advanceTimersByTimeAsync(20);
    await rejected;
  });

  it('is no cause any more once a creation has succeeded', async () => {
    const { pool, workshop } = byHand({ size: 1 });
    pool.acquire().catch(() => {});
    await endOfTurn();
    workshop.fail(REASON);
    const second = pool.acquire();
    await vi.advanceTimersByTimeAsync(10_000);
    workshop.finish();
    await second;
    const third = pool.acquire({ timeoutMs: 20 });
    const error = third.catch((e: unknown) => e);
    await vi.advanceTimersByTimeAsync(20);
    expect(((await error) as Error).cause).toBeUndefined();
  });

  it('leaves the other waiters to take an instance released during the backoff', async () => {
    const { pool, workshop } = byHand({ size: 2 });
    const early = pool.acquire();
    await endOfTurn();
    workshop.finish();
    const holder = await early;
    pool.acquire().catch(() => {});
    const waiting = pool.acquire();
    await endOfTurn();
    workshop.fail(REASON);
    await endOfTurn();
    await holder.release();
    expect((await waiting).instanceId).toBe(1);
  });

  it('is emitted with the failures in a row and the time until the next attempt', async () => {
    const { pool, workshop } = byHand({ size: 1, createRetry: { baseMs: 50, maxMs: 50 } });
    const emitted: unknown[] = [];
    pool.hooks.on('instance:create-failed', (event) => emitted.push(event));
    const both = [pool.acquire().catch(() => {}), pool.acquire().catch(() => {})];
    await vi.advanceTimersByTimeAsync(10);
    workshop.fail(REASON);
    await vi.advanceTimersByTimeAsync(50);
    workshop.fail(REASON);
    await Promise.all(both);
    expect(emitted).toMatchObject([
      { source: 'pool', instanceId: 1, error: REASON, createMs: 10, failures: 1, retryAfterMs: 50, live: 0 },
      { source: 'pool', instanceId: 2, error: REASON, createMs: 0, failures: 2, retryAfterMs: 50, live: 0 },
    ]);
  });
});

describe("a creation that fails, with `onCreateFailure: 'retry'`", () => {
  const retrying = (more: Partial<PipelinePoolOptions<Piece>> = {}) =>
    byHand({ onCreateFailure: 'retry', createRetry: { baseMs: 10, maxMs: 10 }, ...more });

  it('leaves the waiters their order, and serves all of them once creation works', async () => {
    let works = false;
    const workshop = new Workshop();
    const pool = new PipelinePool({
      size: 3,
      onCreateFailure: 'retry',
      create: (context) => {
        if (!works) throw REASON;
        return workshop.create(context);
      },
    });
    const order: number[] = [];
    const all = [1, 2, 3, 4, 5, 6, 7, 8].map((task) => pool.use(() => void order.push(task)));
    await vi.advanceTimersByTimeAsync(1_000);
    expect(order).toEqual([]);
    expect(pool.stats()).toMatchObject({ queued: 8, rejected: 0, live: 0 });
    works = true;
    await vi.advanceTimersByTimeAsync(10_000);
    await Promise.all(all);
    expect(order).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
  });

  it('is the cause of the timeout of the waiter it was started for', async () => {
    const { pool, workshop } = retrying({ size: 1 });
    const late = pool.acquire({ timeoutMs: 25 });
    const rejected = expect(late).rejects.toMatchObject({ code: 'ERR_ACQUIRE_TIMEOUT', cause: REASON });
    await endOfTurn();
    workshop.fail(REASON);
    expect(await outcome(late)).toBe('pending');
    await vi.advanceTimersByTimeAsync(10);
    expect(workshop.orders).toHaveLength(1);
    workshop.fail(REASON);
    await vi.advanceTimersByTimeAsync(15);
    await rejected;
  });

  it('gives the waiter an instance that is released before creation works', async () => {
    const { pool, workshop } = retrying({ size: 2 });
    const early = pool.acquire();
    await endOfTurn();
    workshop.finish();
    const holder = await early;
    const waiting = pool.acquire();
    await endOfTurn();
    workshop.fail(REASON);
    await holder.release();
    expect((await waiting).instanceId).toBe(1);
  });

  it('ends the wait by signal and close as ever', async () => {
    const { pool, workshop } = retrying({ size: 1 });
    const controller = new AbortController();
    const aborted = pool.acquire({ signal: controller.signal });
    const closed = pool.acquire();
    const errors = Promise.allSettled([aborted, closed]);
    await endOfTurn();
    workshop.fail(REASON);
    await endOfTurn();
    controller.abort(REASON);
    await pool.close();
    const [first, second] = (await errors) as PromiseRejectedResult[];
    expect(first?.reason).toBe(REASON);
    expect(second?.reason).toBeInstanceOf(PoolClosedError);
  });

  it('leaves warmUp waiting, until its own deadline', async () => {
    const { pool, workshop } = retrying({ min: 1 });
    const warm = pool.warmUp({ timeoutMs: 1_000 });
    const late = pool.warmUp({ timeoutMs: 5 });
    const rejected = expect(late).rejects.toMatchObject({ code: 'ERR_ACQUIRE_TIMEOUT', cause: REASON });
    await endOfTurn();
    workshop.fail(REASON);
    await vi.advanceTimersByTimeAsync(10);
    await rejected;
    workshop.finish();
    await warm;
  });

  it('rejects the waiters for that instance, which will never exist', async () => {
    const { pool, workshop } = retrying({ size: 1 });
    pool.acquire().catch(() => {});
    await endOfTurn();
    const named = pool.acquire({ instanceId: 1 });
    workshop.fail(REASON);
    await expect(named).rejects.toBeInstanceOf(InstanceGoneError);
    await pool.close();
  });
});

describe('a creation that hangs', () => {
  it('gives up its slot at `createTimeoutMs`, and rejects the waiter it was started for', async () => {
    const { pool, workshop } = byHand({ size: 1, createTimeoutMs: 100 });
    const first = pool.acquire();
    const rejected = expect(first).rejects.toMatchObject({ code: 'ERR_CREATE_FAILED', stage: 'create' });
    await endOfTurn();
    const { signal } = workshop.orders[0]!.context;
    await vi.advanceTimersByTimeAsync(99);
    expect(pool.stats().live).toBe(1);
    await vi.advanceTimersByTimeAsync(1);
    await rejected;
    expect(signal.aborted).toBe(true);
    const cause = await first.catch((error: Error) => error.cause);
    expect(cause).toBeInstanceOf(CallbackTimeoutError);
    expect(cause).toMatchObject({ stage: 'create', timeoutMs: 100 });
    expect(pool.stats().live).toBe(0);
  });

  it('has its instance destroyed when it arrives late', async () => {
    const { pool, workshop } = byHand({
      size: 1,
      createTimeoutMs: 100,
      createRetry: { baseMs: 10, maxMs: 10 },
    });
    const destroyed: unknown[] = [];
    pool.hooks.on('instance:destroyed', ({ instanceId, reason }) => destroyed.push([instanceId, reason]));
    pool.acquire().catch(() => {});
    const second = pool.acquire();
    await vi.advanceTimersByTimeAsync(110);
    expect(workshop.orders).toHaveLength(2);
    workshop.finish(0);
    await endOfTurn();
    expect(workshop.destroyed).toEqual([1]);
    expect(destroyed).toEqual([[1, 'late']]);
    workshop.finish();
    expect((await second).instanceId).toBe(2);
    expect(pool.stats()).toMatchObject({ live: 1, leased: 1 });
  });

  it('is named as the stage by waiters that time out meanwhile', async () => {
    const { pool } = byHand({ size: 1 });
    const given = pool.acquire({ timeoutMs: 10 });
    const rejected = expect(given).rejects.toMatchObject({ code: 'ERR_ACQUIRE_TIMEOUT', stage: 'create' });
    await vi.advanceTimersByTimeAsync(10);
    await rejected;
  });

  it('rejects the waiters for that instance', async () => {
    const { pool, workshop } = byHand({ size: 1 });
    const first = pool.acquire();
    await endOfTurn();
    const second = pool.acquire({ instanceId: 1 });
    workshop.fail(REASON);
    await expect(first).rejects.toBeInstanceOf(CreateError);
    await expect(second).rejects.toBeInstanceOf(InstanceGoneError);
    expect(pool.stats().queued).toBe(0);
  });
});

describe('`min`', () => {
  it('is filled without a request', async () => {
    const workshop = new Workshop();
    const pool = new PipelinePool({ size: 3, min: 2, ...workshop.callbacks });
    expect(workshop.pieces).toHaveLength(0);
    await endOfTurn();
    expect(pool.stats()).toMatchObject({ live: 2, idle: 2 });
  });

  it('is filled again once creation works', async () => {
    let works = false;
    const workshop = new Workshop();
    const pool = new PipelinePool({
      size: 2,
      min: 1,
      create: (context) => {
        if (!works) throw REASON;
        return workshop.create(context);
      },
    });
    await vi.advanceTimersByTimeAsync(60_000);
    expect(pool.stats().live).toBe(0);
    expect(pool.stats().createFailed).toBeLessThan(60);
    works = true;
    await vi.advanceTimersByTimeAsync(10_000);
    expect(pool.stats().idle).toBe(1);
  });

  it('does not count instances at their last use: each has a successor started when it is leased', async () => {
    const { pool, workshop } = byHand({ size: 3, min: 1, maxUses: 1 });
    await endOfTurn();
    workshop.finish();
    await endOfTurn();
    const first = await pool.acquire();
    await endOfTurn();
    expect(workshop.orders).toHaveLength(1);
    const second = pool.acquire();
    await endOfTurn();
    workshop.finish();
    expect((await second).instanceId).toBe(2);
    await endOfTurn();
    expect(workshop.orders).toHaveLength(1);
    workshop.finish();
    await endOfTurn();
    expect(pool.stats()).toMatchObject({ live: 3, idle: 1, leased: 2 });
    await first.release();
    expect(workshop.destroyed).toEqual([1]);
    expect(workshop.peak).toBe(3);
  });

  it('has a successor started also for an instance that was prepared for its last use', async () => {
    const { pool, workshop } = byHand({ size: 2, min: 1, maxUses: 1, prepare: async () => {} });
    await endOfTurn();
    workshop.finish();
    await endOfTurn();
    await pool.acquire();
    await endOfTurn();
    expect(workshop.orders).toHaveLength(1);
  });

  it('has a successor started during a teardown, where there is room', async () => {
    const workshop = new Workshop();
    const pool = new PipelinePool({
      size: 2,
      min: 1,
      create: workshop.create,
      destroy: () => new Promise(() => {}),
    });
    await endOfTurn();
    const lease = await pool.acquire();
    void lease.release({ discard: true });
    await endOfTurn();
    expect(pool.stats()).toMatchObject({ destroying: 1, idle: 1, live: 2 });
  });
});

describe('warmUp', () => {
  it('settles when `min` instances exist', async () => {
    const { pool, workshop } = byHand({ min: 2 });
    const warm = pool.warmUp();
    await endOfTurn();
    workshop.finish();
    expect(await outcome(warm)).toBe('pending');
    workshop.finish();
    await warm;
    await pool.warmUp({ timeoutMs: 0 });
  });

  it('settles at once where there is no `min`', async () => {
    await byHand().pool.warmUp();
  });

  it('rejects with the first creation that fails, while the pool goes on trying', async () => {
    const { pool, workshop } = byHand({ min: 2 });
    const warm = pool.warmUp();
    await endOfTurn();
    workshop.fail(REASON);
    await expect(warm).rejects.toMatchObject({ code: 'ERR_CREATE_FAILED', cause: REASON });
    workshop.finish();
    const again = pool.warmUp();
    await vi.advanceTimersByTimeAsync(10_000);
    workshop.finish();
    await again;
  });

  it('ends with the signal, the timeout or the pool', async () => {
    const { pool, workshop } = byHand({ min: 1 });
    const controller = new AbortController();
    const aborted = pool.warmUp({ signal: controller.signal });
    const late = pool.warmUp({ timeoutMs: 10 });
    const closed = pool.warmUp();
    const errors = Promise.allSettled([aborted, late, closed]);
    controller.abort(REASON);
    await vi.advanceTimersByTimeAsync(10);
    void pool.close();
    workshop.finish();
    const [first, second, third] = (await errors) as PromiseRejectedResult[];
    expect(first?.reason).toBe(REASON);
    expect(second?.reason).toMatchObject({ code: 'ERR_ACQUIRE_TIMEOUT', stage: 'create' });
    expect(third?.reason).toBeInstanceOf(PoolClosedError);
    await expect(pool.warmUp()).rejects.toBeInstanceOf(PoolClosedError);
    await expect(byHand().pool.warmUp({ signal: AbortSignal.abort(REASON) })).rejects.toBe(REASON);
  });
});
