import { describe, expect, it, vi } from 'vitest';
import { CallbackTimeoutError, PrepareError } from '../../src/errors.js';
import type { PipelinePoolOptions, TaskContext } from '../../src/pool/options.js';
import { PipelinePool } from '../../src/pool/pipeline-pool.js';
import { inVirtualTime } from '../support/fake-timers.js';
import { type Piece, Workshop } from '../support/pools.js';
import { deferred, endOfTurn, outcome } from '../support/promises.js';

inVirtualTime();

const poolOf = (more: Partial<PipelinePoolOptions<Piece>> = {}) => {
  const workshop = new Workshop();
  return { workshop, pool: new PipelinePool({ size: 1, ...workshop.callbacks, ...more }) };
};

const REASON = new Error('the browser has crashed');
const never = (): Promise<never> => new Promise(() => {});

/** The ways in which a callback can fail, and what `validate` may say instead of `true`. */
const failures: readonly (readonly [string, () => unknown])[] = [
  ['rejects', () => Promise.reject(REASON)],
  [
    'throws at once',
    () => {
      throw REASON;
    },
  ],
  ['never settles', never],
];

describe('validate', () => {
  it('runs only after `validateAfterIdleMs` of idleness', async () => {
    const validate = vi.fn(() => true);
    const { pool } = poolOf({ validate, validateAfterIdleMs: 100 });
    await (await pool.acquire()).release();
    expect(validate).toHaveBeenCalledTimes(0);
    await vi.advanceTimersByTimeAsync(99);
    await (await pool.acquire()).release();
    expect(validate).toHaveBeenCalledTimes(0);
    await vi.advanceTimersByTimeAsync(100);
    await (await pool.acquire()).release();
    expect(validate).toHaveBeenCalledTimes(1);
  });

  it('does not run for an instance that has just been reset, however long that took', async () => {
    const validate = vi.fn(() => true);
    const { pool } = poolOf({
      validate,
      validateAfterIdleMs: 100,
      reset: () => new Promise((resolve) => setTimeout(resolve, 1_000)),
    });
    const lease = await pool.acquire();
    const next = pool.acquire();
    void lease.release();
    await vi.advanceTimersByTimeAsync(1_000);
    expect((await next).isHeld).toBe(true);
    expect(validate).toHaveBeenCalledTimes(0);
  });

  it('runs every time with 0, but not for a new instance', async () => {
    const validate = vi.fn(() => true);
    const { pool } = poolOf({ validate, validateAfterIdleMs: 0 });
    const first = await pool.acquire();
    expect(validate).toHaveBeenCalledTimes(0);
    const next = pool.acquire();
    await first.release();
    await (await next).release();
    await pool.acquire();
    expect(validate).toHaveBeenCalledTimes(2);
  });

  const unhealthy: typeof failures = [
    ...failures,
    ['answers false', () => false],
    ['answers undefined', () => undefined],
    ['answers null', () => null],
    ['answers 1', () => 1],
    ['answers with a promise of "yes"', () => Promise.resolve('yes')],
  ];
  it.each(unhealthy)('has the instance replaced, unseen by the waiter, when it %s', async (_how, answer) => {
    let asked = 0;
    const { pool, workshop } = poolOf({
      validate: (() => (++asked === 1 ? answer() : true)) as never,
      validateAfterIdleMs: 10,
      validateTimeoutMs: 50,
    });
    const emitted: unknown[] = [];
    pool.hooks.on('instance:unhealthy', ({ instanceId, stage }) => emitted.push([instanceId, stage]));
    await (await pool.acquire()).release();
    await vi.advanceTimersByTimeAsync(10);
    const first = pool.acquire();
    const second = pool.acquire();
    await vi.advanceTimersByTimeAsync(50);
    expect((await first).instanceId).toBe(2);
    expect(workshop.destroyed).toEqual([1]);
    expect(emitted).toEqual([[1, 'validate']]);
    await (await first).release();
    // The slot is not lost: the next waiter is served.
    expect((await second).instanceId).toBe(2);
    expect(workshop.peak).toBe(1);
  });

  it('leaves the waiter its position while it runs', async () => {
    const classification = deferred<boolean>();
    const { pool } = poolOf({ validate: () => classification.promise, validateAfterIdleMs: 10 });
    await (await pool.acquire()).release();
    await vi.advanceTimersByTimeAsync(10);
    const order: string[] = [];
    const ask = (who: string): Promise<unknown> => pool.use(() => order.push(who));
    const first = ask('first');
    const second = ask('second');
    await endOfTurn();
    expect(pool.stats()).toMatchObject({ readying: 1, queued: 2 });
    classification.resolve(false);
    await Promise.all([first, second]);
    expect(order).toEqual(['first', 'second']);
  });

  it('keeps the instance when its waiter is aborted meanwhile', async () => {
    const classification = deferred<boolean>();
    const { pool, workshop } = poolOf({ validate: () => classification.promise, validateAfterIdleMs: 10 });
    await (await pool.acquire()).release();
    await vi.advanceTimersByTimeAsync(10);
    const given = pool.acquire({ timeoutMs: 5 });
    const rejected = expect(given).rejects.toMatchObject({ code: 'ERR_ACQUIRE_TIMEOUT', stage: 'validate' });
    await vi.advanceTimersByTimeAsync(5);
    await rejected;
    classification.resolve(true);
    await endOfTurn();
    expect(pool.stats()).toMatchObject({ idle: 1, queued: 0 });
    expect(workshop.destroyed).toEqual([]);
  });

  it('checks idle instances in the background, one at a time, and replaces the unhealthy up to `min`', async () => {
    let running = 0;
    let most = 0;
    const asked: number[] = [];
    const { pool, workshop } = poolOf({
      size: 3,
      min: 3,
      validate: async (_piece, { instanceId }) => {
        asked.push(instanceId);
        most = Math.max(most, ++running);
        await new Promise((resolve) => setTimeout(resolve, 10));
        running--;
        return instanceId !== 2;
      },
      validateIdleEveryMs: 1_000,
    });
    await endOfTurn();
    await vi.advanceTimersByTimeAsync(1_005);
    expect(asked).toEqual([1]);
    await vi.advanceTimersByTimeAsync(100);
    expect(asked).toEqual([1, 2, 3]);
    expect(most).toBe(1);
    expect(workshop.destroyed).toEqual([2]);
    expect(pool.stats()).toMatchObject({ idle: 3, live: 3 });
    await pool.close();
  });

  it('does not lengthen the idleness of an instance that it finds healthy', async () => {
    const { pool, workshop } = poolOf({
      size: 2,
      validate: () => true,
      validateIdleEveryMs: 400,
      idleTimeoutMs: 1_000,
    });
    await (await pool.acquire()).release();
    await vi.advanceTimersByTimeAsync(1_300);
    expect(workshop.destroyed).toEqual([1]);
  });
});

describe('prepare', () => {
  it('gets the instance and the task before the lease is granted', async () => {
    const seen: unknown[] = [];
    const { pool } = poolOf({
      prepare: (piece, { instanceId, taskId, signal }: TaskContext) => {
        seen.push([piece.id, instanceId, taskId, signal.aborted]);
        piece.tasks.push(taskId);
      },
    });
    const lease = await pool.acquire({ taskId: 'a' });
    expect(lease.pipeline.tasks).toEqual(['a']);
    await lease.release();
    await pool.acquire({ taskId: 'b' });
    expect(seen).toEqual([
      [1, 1, 'a', false],
      [1, 1, 'b', false],
    ]);
  });

  it.each(failures)('rejects that task and discards the instance when it %s', async (how, fail) => {
    const { pool, workshop } = poolOf({
      prepare: (_piece, { taskId }) => (taskId === 'bad' ? fail() : undefined),
      prepareTimeoutMs: 50,
      name: 'research',
    });
    const bad = pool.acquire({ taskId: 'bad' });
    const good = pool.acquire({ taskId: 'good' });
    const rejected = expect(bad).rejects.toMatchObject({
      code: 'ERR_PREPARE_FAILED',
      stage: 'prepare',
      source: 'research',
      instanceId: 1,
      queued: 2,
    });
    await vi.advanceTimersByTimeAsync(50);
    await rejected;
    const error = await bad.catch((e: unknown) => e);
    expect(error).toBeInstanceOf(PrepareError);
    if (how === 'never settles') expect((error as Error).cause).toBeInstanceOf(CallbackTimeoutError);
    else expect((error as Error).cause).toBe(REASON);
    expect((await good).instanceId).toBe(2);
    expect(workshop.destroyed).toEqual([1]);
    expect(workshop.peak).toBe(1);
  });

  it('has its signal aborted when its task is aborted, and ends before the instance is destroyed', async () => {
    const prepared = deferred();
    let signal: AbortSignal | undefined;
    const { pool, workshop } = poolOf({
      prepare: (_piece, context) => {
        signal = context.signal;
        return context.taskId === 'a' ? prepared.promise : undefined;
      },
    });
    const controller = new AbortController();
    const given = pool.acquire({ taskId: 'a', signal: controller.signal });
    const next = pool.acquire({ taskId: 'b' });
    await endOfTurn();
    expect(pool.stats()).toMatchObject({ readying: 1, queued: 2 });
    controller.abort(REASON);
    await expect(given).rejects.toBe(REASON);
    expect(signal?.aborted).toBe(true);
    expect(signal?.reason).toBe(REASON);
    expect(pool.stats()).toMatchObject({ readying: 1, queued: 1 });
    expect(workshop.destroyed).toEqual([]);
    prepared.resolve();
    // What is half prepared for one task is not given to another.
    expect((await next).instanceId).toBe(2);
    expect(workshop.destroyed).toEqual([1]);
    expect(workshop.peak).toBe(1);
  });

  it('counts towards the timeout of acquire, which names it', async () => {
    const { pool } = poolOf({ prepare: never, prepareTimeoutMs: 1_000 });
    const given = pool.acquire({ timeoutMs: 10 });
    const rejected = expect(given).rejects.toMatchObject({ code: 'ERR_ACQUIRE_TIMEOUT', stage: 'prepare' });
    await vi.advanceTimersByTimeAsync(10);
    await rejected;
    expect(pool.stats()).toMatchObject({ queued: 0, readying: 1 });
    await vi.advanceTimersByTimeAsync(1_000);
    expect(pool.stats()).toMatchObject({ readying: 0, live: 0 });
  });

  it('runs side by side for different instances', async () => {
    const { pool } = poolOf({ size: 2, prepare: never, prepareTimeoutMs: 50 });
    const both = Promise.allSettled([pool.acquire(), pool.acquire()]);
    await endOfTurn();
    expect(pool.stats().readying).toBe(2);
    await vi.advanceTimersByTimeAsync(50);
    await both;
  });
});

describe('reset', () => {
  it('clears the state of a task before the next task gets the instance', async () => {
    const { pool } = poolOf({
      prepare: (piece, { taskId }) => piece.tasks.push(taskId),
      reset: (piece, { taskId }) => piece.tasks.splice(piece.tasks.indexOf(taskId), 1),
    });
    const first = await pool.acquire({ taskId: 'a' });
    const next = pool.acquire({ taskId: 'b' });
    await first.release();
    expect((await next).pipeline.tasks).toEqual(['b']);
  });

  it('is awaited by `release`, and keeps the instance unavailable meanwhile', async () => {
    const done = deferred();
    const { pool } = poolOf({ reset: () => done.promise });
    const lease = await pool.acquire();
    const released = lease.release();
    const next = pool.acquire();
    expect(await outcome(released)).toBe('pending');
    expect(await outcome(next)).toBe('pending');
    expect(pool.stats()).toMatchObject({ leased: 0, resetting: 1, queued: 1 });
    expect(lease.release()).toBe(released);
    done.resolve();
    await released;
    expect((await next).instanceId).toBe(1);
  });

  it.each(failures)('replaces the instance, and release does not reject, when it %s', async (_how, fail) => {
    const { pool, workshop } = poolOf({ reset: fail, resetTimeoutMs: 50 });
    const emitted: unknown[] = [];
    pool.hooks.on('instance:unhealthy', ({ instanceId, stage, taskId }) => {
      emitted.push([instanceId, stage, taskId]);
    });
    pool.hooks.on('instance:destroyed', ({ reason }) => emitted.push(reason));
    const lease = await pool.acquire({ taskId: 'a' });
    const next = pool.acquire();
    const released = lease.release();
    await vi.advanceTimersByTimeAsync(50);
    await released;
    expect((await next).instanceId).toBe(2);
    expect(emitted).toEqual([[1, 'reset', 'a'], 'reset-failed']);
    expect(workshop.peak).toBe(1);
  });

  it('does not run for an instance that is destroyed anyway', async () => {
    const reset = vi.fn();
    const { pool } = poolOf({ reset });
    await (await pool.acquire()).release({ discard: true });
    const lease = await pool.acquire();
    pool.refresh();
    await lease.release();
    expect(reset).toHaveBeenCalledTimes(0);
    expect(pool.stats().live).toBe(0);
  });
});

describe('destroy', () => {
  it('gets the reason, and occupies the slot until it has ended', async () => {
    const done = deferred();
    const reasons: string[] = [];
    const { pool, workshop } = poolOf({
      destroy: (piece, { reason }) => {
        reasons.push(reason);
        return done.promise.then(() => workshop.destroy(piece));
      },
    });
    const lease = await pool.acquire();
    const released = lease.release({ discard: true });
    const next = pool.acquire();
    expect(await outcome(next)).toBe('pending');
    expect(pool.stats()).toMatchObject({ live: 1, destroying: 1, creating: 0 });
    expect(await outcome(released)).toBe('pending');
    done.resolve();
    await released;
    expect((await next).instanceId).toBe(2);
    expect(workshop.peak).toBe(1);
    expect(reasons).toEqual(['discarded']);
  });

  it.each(failures)('frees its slot and is reported when it %s', async (how, fail) => {
    const { pool } = poolOf({ destroy: fail, destroyTimeoutMs: 50 });
    const emitted: unknown[] = [];
    pool.hooks.on('instance:destroy-failed', ({ instanceId, reason, error }) => {
      emitted.push([instanceId, reason, error.code === 'ERR_CALLBACK_TIMEOUT' ? 'late' : error]);
    });
    pool.hooks.on('instance:destroyed', () => emitted.push('destroyed'));
    const lease = await pool.acquire();
    const released = lease.release({ discard: true });
    const next = pool.acquire();
    await vi.advanceTimersByTimeAsync(50);
    await released;
    expect((await next).instanceId).toBe(2);
    expect(emitted).toEqual([[1, 'discarded', how === 'never settles' ? 'late' : REASON]]);
  });

  it('is optional', async () => {
    const pool = new PipelinePool({ size: 1, create: () => ({}) });
    await (await pool.acquire()).release({ discard: true });
    expect(pool.stats()).toMatchObject({ live: 0, destroyed: 1 });
    await pool.close();
  });
});
