import { getEventListeners } from 'node:events';
import { describe, expect, it, vi } from 'vitest';
import { AcquireTimeoutError, DeadlineUnmeetableError, QueueFullError } from '../../src/errors.js';
import { AdaptiveLimit } from '../../src/limiter/adaptive-limit.js';
import { ConcurrencyLimiter } from '../../src/limiter/concurrency-limiter.js';
import type { ConcurrencyLimiterOptions } from '../../src/limiter/options.js';
import { onFakeTimers } from '../support/fake-timers.js';
import { endOfTurn } from '../support/promises.js';

/** A limiter of one that is held until released. */
function full(options: Omit<ConcurrencyLimiterOptions, 'maxConcurrent' | 'adaptive'> = {}) {
  const limiter = new ConcurrencyLimiter({ maxConcurrent: 1, ...options });
  const holder = limiter.tryAcquire();
  return { limiter, release: () => holder?.release() };
}

describe('With fake timers', () => {
  onFakeTimers();

  const pass = async (ms: number) => {
    await vi.advanceTimersByTimeAsync(ms);
    await endOfTurn();
  };

  describe('timeoutMs', () => {
    it('ends the wait with AcquireTimeoutError and its figures', async () => {
      const { limiter } = full({ name: 'admission' });
      const waiting = limiter.acquire({ timeoutMs: 250 }).catch((error: unknown) => error);
      void limiter.acquire();
      await vi.advanceTimersByTimeAsync(249);
      expect(limiter.queuedCount).toBe(2);
      await vi.advanceTimersByTimeAsync(1);
      const error = await waiting;
      expect(error).toBeInstanceOf(AcquireTimeoutError);
      expect(error).toMatchObject({
        code: 'ERR_ACQUIRE_TIMEOUT',
        source: 'admission',
        waitMs: 250,
        active: 1,
        queued: 1,
        size: 1,
        stage: 'wait',
      });
      expect(limiter.stats()).toMatchObject({ queued: 1, rejected: 1 });
    });

    it('does not wait where it is 0, and takes what is free', async () => {
      const { limiter, release } = full();
      await expect(limiter.acquire({ timeoutMs: 0 })).rejects.toMatchObject({ waitMs: 0, queued: 0 });
      expect(vi.getTimerCount()).toBe(0);
      release();
      (await limiter.acquire({ timeoutMs: 0 })).release();
    });

    it('bounds only the wait, never the work', async () => {
      const limiter = new ConcurrencyLimiter({ maxConcurrent: 1 });
      const result = limiter.run(() => new Promise((resolve) => setTimeout(resolve, 1000, 'done')), {
        timeoutMs: 10,
      });
      await vi.advanceTimersByTimeAsync(1000);
      expect(await result).toBe('done');
    });

    it('admits the waiter behind synchronously', async () => {
      const limiter = new ConcurrencyLimiter({ maxConcurrent: 2 });
      limiter.tryAcquire();
      const heavy = limiter.acquire({ weight: 2, timeoutMs: 10 }).catch(() => 'timed out');
      const light = limiter.acquire();
      await vi.advanceTimersByTimeAsync(10);
      expect(await heavy).toBe('timed out');
      expect(limiter.activeCount).toBe(2);
      (await light).release();
    });

    it('defaults to acquireTimeoutMs, which acquire may override', async () => {
      const { limiter, release } = full({ acquireTimeoutMs: 100 });
      const usual = limiter.acquire().catch(() => 'usual');
      const run = limiter.run(() => 'ran').catch(() => 'run');
      const patient = limiter.acquire({ timeoutMs: 500 });
      await vi.advanceTimersByTimeAsync(100);
      expect(await usual).toBe('usual');
      expect(await run).toBe('run');
      expect(limiter.queuedCount).toBe(1);
      release();
      (await patient).release();
    });

    it('queues no request where acquireTimeoutMs is 0', async () => {
      const { limiter } = full({ acquireTimeoutMs: 0 });
      await expect(limiter.acquire()).rejects.toThrow(AcquireTimeoutError);
      expect(limiter.queuedCount).toBe(0);
    });

    it('and the signal do not affect each other', async () => {
      const { limiter } = full();
      const controller = new AbortController();
      const first = limiter.acquire({ timeoutMs: 10, signal: controller.signal }).catch(() => {});
      await vi.advanceTimersByTimeAsync(10);
      await first;
      expect(getEventListeners(controller.signal, 'abort')).toHaveLength(0);
      const second = limiter.acquire({ timeoutMs: 10, signal: controller.signal }).catch(() => {});
      controller.abort();
      await second;
      expect(vi.getTimerCount()).toBe(0);
    });

    it('changes nothing when options are used again for the next request', async () => {
      const { limiter, release } = full();
      const options = { timeoutMs: 50 };
      const first = limiter.acquire(options);
      const second = limiter.acquire(options).catch(() => 'timed out');
      expect(options).toEqual({ timeoutMs: 50 });
      release();
      const permit = await first;
      await vi.advanceTimersByTimeAsync(50);
      expect(await second).toBe('timed out');
      permit.release();
      expect(limiter.activeCount).toBe(0);
    });
  });

  describe('rejectUnmeetable', () => {
    /** Lets permits of a limiter of one come back once a second, with three waiters left. */
    async function paced(options: Omit<ConcurrencyLimiterOptions, 'maxConcurrent' | 'adaptive'> = {}) {
      const limiter = new ConcurrencyLimiter({ maxConcurrent: 1, ...options });
      const work = () => new Promise((resolve) => setTimeout(resolve, 1000));
      for (let i = 0; i < 8; i++) void limiter.run(work);
      for (let i = 0; i < 4; i++) await pass(1000);
      expect(limiter.queuedCount).toBe(3);
      return { limiter, work };
    }

    it('rejects a request on arrival whose estimated wait exceeds its timeout, with the estimate', async () => {
      const { limiter } = await paced({ rejectUnmeetable: true, name: 'admission' });
      const error = await limiter.acquire({ timeoutMs: 2500 }).catch((error: unknown) => error);
      expect(error).toBeInstanceOf(DeadlineUnmeetableError);
      expect(error).toMatchObject({
        code: 'ERR_DEADLINE_UNMEETABLE',
        source: 'admission',
        queued: 3,
        waitMs: 0,
        timeoutMs: 2500,
        retryAfterMs: 4000,
      });
      expect(limiter.stats()).toMatchObject({ queued: 3, rejected: 1 });
    });

    it('queues requests that can be served in time, and those without a deadline', async () => {
      const { limiter } = await paced({ rejectUnmeetable: true });
      const inTime = limiter.acquire({ timeoutMs: 4500 });
      const patient = limiter.acquire();
      expect(limiter.queuedCount).toBe(5);
      await vi.advanceTimersByTimeAsync(4000);
      (await inTime).release();
      (await patient).release();
    });

    it('queues every request while nothing has been measured', async () => {
      const { limiter, release } = full({ rejectUnmeetable: true });
      const waiting = limiter.acquire({ timeoutMs: 1 });
      expect(limiter.queuedCount).toBe(1);
      release();
      (await waiting).release();
    });

    it('counts only the waiters ahead: a higher priority and a lone tenant precede a long queue', async () => {
      const limiter = new ConcurrencyLimiter({ maxConcurrent: 1, rejectUnmeetable: true });
      const work = () => new Promise((resolve) => setTimeout(resolve, 50));
      for (let i = 0; i < 30; i++) void limiter.run(work, { tenant: 'batch' });
      for (let i = 0; i < 7; i++) await pass(50);
      expect(limiter.queuedCount).toBe(22);
      const timeoutMs = 500;
      const batch = limiter.acquire({ timeoutMs, tenant: 'batch' });
      await expect(batch).rejects.toMatchObject({ code: 'ERR_DEADLINE_UNMEETABLE', retryAfterMs: 1150 });
      await expect(limiter.acquire({ timeoutMs, tenant: 'batch', priority: -1 })).rejects.toThrow(
        DeadlineUnmeetableError,
      );
      const served: string[] = [];
      for (const [name, options] of [
        ['urgent', { priority: 9 }],
        ['urgent batch', { priority: 9, tenant: 'batch' }],
        ['visitor', { tenant: 'visitor' }],
        ['no options', {}],
      ] as const) {
        void limiter.run(() => served.push(name), { ...options, timeoutMs });
      }
      expect(limiter.queuedCount).toBe(26);
      for (let i = 0; i < 3; i++) await pass(50);
      expect(served).toEqual(['urgent', 'urgent batch', 'visitor', 'no options']);
    });

    it('counts the weight ahead, and the own', async () => {
      const limiter = new ConcurrencyLimiter({ maxConcurrent: 5, rejectUnmeetable: true });
      const work = () => new Promise((resolve) => setTimeout(resolve, 1000));
      for (let i = 0; i < 8; i++) void limiter.run(work, { weight: 5 });
      for (let i = 0; i < 4; i++) await pass(1000);
      expect(limiter.queuedCount).toBe(3);
      const refused = (weight: number) =>
        limiter.acquire({ weight, timeoutMs: 100 }).catch(({ retryAfterMs }) => retryAfterMs);
      expect(await refused(5)).toBe(4000);
      expect(await refused(1)).toBe(3200);
    });

    it('adds the Retry-After of an adaptive limit', async () => {
      const adaptive = new AdaptiveLimit({ initial: 1, max: 1, random: () => 0 });
      const limiter = new ConcurrencyLimiter({ adaptive, rejectUnmeetable: true });
      const work = () => new Promise((resolve) => setTimeout(resolve, 100));
      for (let i = 0; i < 6; i++) void limiter.run(work);
      for (let i = 0; i < 3; i++) await pass(100);
      adaptive.blockFor(65_000);
      const refused = limiter.acquire({ timeoutMs: 1000 });
      await expect(refused).rejects.toMatchObject({
        code: 'ERR_DEADLINE_UNMEETABLE',
        retryAfterMs: 65_300,
      });
      await pass(64_900);
      const inTime = limiter.run(() => 'served', { timeoutMs: 1000 });
      await pass(100);
      for (let i = 0; i < 3; i++) await pass(100);
      expect(await inTime).toBe('served');
    });

    it('estimates no more than the Retry-After where there is room behind it, whatever the pace was', async () => {
      const adaptive = new AdaptiveLimit({ initial: 2, max: 2, random: () => 0 });
      const limiter = new ConcurrencyLimiter({ adaptive, rejectUnmeetable: true });
      const work = () => new Promise((resolve) => setTimeout(resolve, 10_000));
      for (let i = 0; i < 4; i++) void limiter.run(work);
      for (let i = 0; i < 2; i++) await pass(10_000);
      expect(limiter.stats()).toMatchObject({ active: 0, queued: 0 });
      adaptive.blockFor(1_000);
      const refused = limiter.acquire({ timeoutMs: 999 });
      await expect(refused).rejects.toMatchObject({ retryAfterMs: 1_000 });
      const inTime = limiter.run(() => 'served', { timeoutMs: 1_001 });
      await pass(1_000);
      expect(await inTime).toBe('served');
    });

    it('rejects a request that cannot outwait a Retry-After, also where nothing has been measured yet', async () => {
      const adaptive = new AdaptiveLimit({ random: () => 0 });
      const limiter = new ConcurrencyLimiter({ adaptive, rejectUnmeetable: true });
      adaptive.blockFor(65_000);
      await expect(limiter.acquire({ timeoutMs: 1000 })).rejects.toMatchObject({
        code: 'ERR_DEADLINE_UNMEETABLE',
        retryAfterMs: 65_000,
      });
      const patient = limiter.acquire({ timeoutMs: 65_001 });
      expect(limiter.queuedCount).toBe(1);
      await pass(65_000);
      (await patient).release();
    });

    it('is off by default', async () => {
      const { limiter } = await paced();
      const waiting = limiter.acquire({ timeoutMs: 10 }).catch(() => 'timed out');
      expect(limiter.queuedCount).toBe(4);
      await vi.advanceTimersByTimeAsync(10);
      expect(await waiting).toBe('timed out');
    });
  });
});

describe('maxQueue', () => {
  it('rejects the next request when the queue is full, with QueueFullError and its figures', async () => {
    const { limiter, release } = full({ maxQueue: 2, name: 'admission' });
    const waiting = [limiter.acquire(), limiter.run(() => {})];
    const error = await limiter.acquire().catch((error: unknown) => error);
    expect(error).toBeInstanceOf(QueueFullError);
    expect(error).toMatchObject({
      code: 'ERR_QUEUE_FULL',
      source: 'admission',
      waitMs: 0,
      active: 1,
      queued: 2,
      size: 1,
      retryAfterMs: expect.any(Number),
    });
    expect((error as QueueFullError).retryAfterMs).toBeGreaterThan(0);
    expect(limiter.stats()).toMatchObject({ queued: 2, rejected: 1 });
    release();
    ((await waiting[0]) as Disposable)[Symbol.dispose]();
    await waiting[1];
    expect(limiter.activeCount).toBe(0);
  });

  it('queues no request where it is 0, and grants what is free', async () => {
    const { limiter, release } = full({ maxQueue: 0 });
    await expect(limiter.acquire()).rejects.toThrow(QueueFullError);
    await expect(limiter.run(() => {})).rejects.toThrow(QueueFullError);
    release();
    expect(await limiter.run(() => 'ran')).toBe('ran');
  });

  it('has room again as soon as a waiter leaves, for whatever reason', async () => {
    const { limiter, release } = full({ maxQueue: 1 });
    const controller = new AbortController();
    const first = limiter.acquire({ signal: controller.signal }).catch(() => {});
    await expect(limiter.acquire()).rejects.toThrow(QueueFullError);
    controller.abort();
    const second = limiter.acquire();
    await expect(limiter.acquire()).rejects.toThrow(QueueFullError);
    release();
    const third = limiter.acquire();
    expect(limiter.queuedCount).toBe(1);
    (await second).release();
    (await third).release();
    await first;
  });

  it('rejects a high priority as any other', async () => {
    const { limiter } = full({ maxQueue: 1 });
    void limiter.acquire();
    await expect(limiter.acquire({ priority: 100 })).rejects.toThrow(QueueFullError);
  });
});

describe('The timer of a waiter', () => {
  const timers = () => process.getActiveResourcesInfo().filter((kind) => kind === 'Timeout').length;

  it('keeps no process alive once its waiter is gone, for whatever reason', async () => {
    const before = timers();
    const options = { timeoutMs: 3_600_000 };
    const { limiter, release } = full();
    const controller = new AbortController();
    const granted = limiter.acquire(options);
    const aborted = limiter.acquire({ ...options, signal: controller.signal }).catch(() => {});
    const closed = limiter.run(() => {}, options).catch(() => {});
    expect(timers()).toBe(before + 3);
    release();
    expect(timers()).toBe(before + 2);
    controller.abort();
    expect(timers()).toBe(before + 1);
    const end = limiter.close({ timeoutMs: 3_600_000 });
    (await granted).release();
    await Promise.all([aborted, closed, end]);
    expect(timers()).toBe(before);
  });

  it('is not created where a permit is free', async () => {
    const before = timers();
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 1, acquireTimeoutMs: 1000 });
    const permit = await limiter.acquire({ timeoutMs: 1000 });
    expect(timers()).toBe(before);
    permit.release();
  });
});
