import { describe, expect, it, vi } from 'vitest';
import { AcquireTimeoutError, DrainTimeoutError, LimiterClosedError } from '../../src/errors.js';
import { AdaptiveLimit } from '../../src/limiter/adaptive-limit.js';
import { ConcurrencyLimiter } from '../../src/limiter/concurrency-limiter.js';
import { onFakeTimers } from '../support/fake-timers.js';
import { deferred, endOfTurn } from '../support/promises.js';

const limiterOf = (maxConcurrent: number) => new ConcurrencyLimiter({ maxConcurrent, name: 'admission' });

/** Whether a promise has settled by now, and how. */
function watch(promise: Promise<unknown>) {
  const seen: { state: 'pending' | 'resolved' | 'rejected' } = { state: 'pending' };
  promise.then(
    () => {
      seen.state = 'resolved';
    },
    () => {
      seen.state = 'rejected';
    },
  );
  return seen;
}

onFakeTimers();

describe('pause', () => {
  it('lets requests queue up, and leaves permits held alone', async () => {
    const limiter = limiterOf(3);
    const held = await limiter.acquire();
    limiter.pause();
    expect(limiter.stats().paused).toBe(true);
    expect(limiter.tryAcquire()).toBeUndefined();
    const waiting = [limiter.acquire(), limiter.run(() => 'ran')];
    expect(limiter.queuedCount).toBe(2);
    held.release();
    await endOfTurn();
    expect(limiter.stats()).toMatchObject({ active: 0, queued: 2 });
    limiter.resume();
    expect(limiter.stats()).toMatchObject({ active: 2, queued: 0, paused: false });
    expect(await waiting[1]).toBe('ran');
  });

  it.each(['acquire', 'run'] as const)(
    'holds for an `%s` after the last permit has come back too',
    async (how) => {
      const limiter = limiterOf(1);
      const held = await limiter.acquire();
      limiter.pause();
      held.release();
      const late = watch(how === 'run' ? limiter.run(() => 'ran') : limiter.acquire());
      await endOfTurn();
      expect(late.state).toBe('pending');
      expect(limiter.stats()).toMatchObject({ active: 0, queued: 1 });
      limiter.resume();
      await endOfTurn();
      expect(late.state).toBe('resolved');
    },
  );

  it('ends for as many waiters as the limit allows, in FIFO order', async () => {
    const limiter = limiterOf(2);
    limiter.pause();
    const order: string[] = [];
    for (const name of ['a', 'b', 'c']) void limiter.acquire().then(() => order.push(name));
    limiter.pause();
    limiter.resume();
    await endOfTurn();
    expect(order).toEqual(['a', 'b']);
    limiter.resume();
    await endOfTurn();
    expect(order).toEqual(['a', 'b']);
  });

  it('keeps a raised limit from admitting until resume', async () => {
    const limiter = limiterOf(1);
    limiter.pause();
    void limiter.acquire();
    void limiter.acquire();
    limiter.maxConcurrent = 2;
    expect(limiter.activeCount).toBe(0);
    limiter.resume();
    expect(limiter.activeCount).toBe(2);
  });

  it('keeps timeouts and aborts in force', async () => {
    const limiter = limiterOf(1);
    limiter.pause();
    const controller = new AbortController();
    const aborted = limiter.acquire({ signal: controller.signal }).catch(() => 'aborted');
    const late = limiter.acquire({ timeoutMs: 10 });
    const refused = expect(late).rejects.toThrow(AcquireTimeoutError);
    controller.abort();
    await vi.advanceTimersByTimeAsync(10);
    await refused;
    expect(await aborted).toBe('aborted');
    expect(limiter.queuedCount).toBe(0);
  });
});

describe('close', () => {
  it('rejects waiters and newcomers, and fulfills when nothing is held', async () => {
    const limiter = limiterOf(1);
    const holder = await limiter.acquire();
    const waiting = limiter.acquire().catch((error: unknown) => error);
    const end = watch(limiter.close());
    expect(limiter.stats()).toMatchObject({ closed: true, queued: 0, rejected: 1 });
    const error = await waiting;
    expect(error).toBeInstanceOf(LimiterClosedError);
    expect(error).toMatchObject({ code: 'ERR_LIMITER_CLOSED', message: 'admission is closed' });
    await expect(limiter.acquire()).rejects.toThrow(LimiterClosedError);
    await expect(limiter.acquire({ weight: 1 })).rejects.toThrow(LimiterClosedError);
    await expect(limiter.run(() => {})).rejects.toThrow(LimiterClosedError);
    expect(limiter.tryAcquire()).toBeUndefined();
    await endOfTurn();
    expect(end.state).toBe('pending');
    holder.release();
    await endOfTurn();
    expect(end.state).toBe('resolved');
    expect(limiter.activeCount).toBe(0);
  });

  it('fulfills at once where nothing is held, and grants no permit afterwards', async () => {
    const limiter = limiterOf(1);
    await limiter.close();
    await expect(limiter.acquire()).rejects.toThrow(LimiterClosedError);
    limiter.resume();
    limiter.maxConcurrent = 5;
    expect(limiter.tryAcquire()).toBeUndefined();
    await expect(limiter.run(() => {})).rejects.toThrow(LimiterClosedError);
  });

  it('with drain may be paused again, until its queue is empty', async () => {
    const limiter = limiterOf(1);
    const held = limiter.tryAcquire();
    const ran = vi.fn();
    const run = limiter.run(ran);
    const end = watch(limiter.close({ drain: true }));
    limiter.pause();
    held?.release();
    await endOfTurn();
    expect(ran).not.toHaveBeenCalled();
    expect([limiter.stats().paused, end.state]).toEqual([true, 'pending']);
    limiter.resume();
    await run;
    await endOfTurn();
    expect([limiter.stats().paused, end.state]).toEqual([false, 'resolved']);
  });

  it('is not paused once it is closed', async () => {
    const limiter = limiterOf(1);
    limiter.pause();
    expect(limiter.stats().paused).toBe(true);
    await limiter.close();
    expect(limiter.stats()).toMatchObject({ paused: false, closed: true });
    limiter.pause();
    expect(limiter.stats().paused).toBe(false);
  });

  it('serves the waiters first, with drain', async () => {
    const limiter = limiterOf(1);
    const { promise, resolve } = deferred();
    const order: string[] = [];
    const all = ['a', 'b', 'c'].map((name) => limiter.run(() => promise.then(() => order.push(name))));
    const end = watch(limiter.close({ drain: true }));
    await expect(limiter.run(() => {})).rejects.toThrow(LimiterClosedError);
    expect(limiter.tryAcquire()).toBeUndefined();
    expect(limiter.stats()).toMatchObject({ closed: true, active: 1, queued: 2 });
    resolve();
    await Promise.all(all);
    await endOfTurn();
    expect(order).toEqual(['a', 'b', 'c']);
    expect(end.state).toBe('resolved');
  });

  it('drains a paused limiter too', async () => {
    const limiter = limiterOf(1);
    limiter.pause();
    const ran = limiter.run(() => 'ran');
    await limiter.close({ drain: true });
    expect(await ran).toBe('ran');
  });

  it('drains a limiter that was paused in the middle of a drain, when it is called again', async () => {
    const limiter = limiterOf(1);
    const held = await limiter.acquire();
    const waiting = watch(limiter.run(() => 'served'));
    const drained = watch(limiter.close({ drain: true }));
    limiter.pause();
    held.release();
    await endOfTurn();
    expect([waiting, drained]).toEqual([{ state: 'pending' }, { state: 'pending' }]);
    await limiter.close({ drain: true });
    await endOfTurn();
    expect([waiting, drained]).toEqual([{ state: 'resolved' }, { state: 'resolved' }]);
  });

  it('rejects with DrainTimeoutError and what is held when its time is up, and rejects the remaining waiters', async () => {
    const limiter = limiterOf(3);
    const holder = await limiter.acquire({ weight: 2 });
    const waiting = limiter.acquire({ weight: 3 }).catch((error: unknown) => error);
    const end = limiter.close({ drain: true, timeoutMs: 100 }).catch((error: unknown) => error);
    await vi.advanceTimersByTimeAsync(99);
    expect(limiter.queuedCount).toBe(1);
    await vi.advanceTimersByTimeAsync(1);
    const error = await end;
    expect(error).toBeInstanceOf(DrainTimeoutError);
    expect(error).toMatchObject({
      code: 'ERR_DRAIN_TIMEOUT',
      message: 'admission is not empty after 100 ms: 2 held',
      held: 2,
      holders: [],
    });
    expect(await waiting).toBeInstanceOf(LimiterClosedError);
    holder.release();
    expect(limiter.activeCount).toBe(0);
    await limiter.close();
  });

  it('leaves no timer behind when it fulfills in time', async () => {
    const limiter = limiterOf(1);
    const holder = await limiter.acquire();
    const end = limiter.close({ timeoutMs: 60_000 });
    expect(vi.getTimerCount()).toBe(1);
    holder.release();
    await end;
    expect(vi.getTimerCount()).toBe(0);
  });

  it('may be called twice: both fulfill', async () => {
    const limiter = limiterOf(1);
    const holder = await limiter.acquire();
    const both = [watch(limiter.close()), watch(limiter.close({ drain: true }))];
    await endOfTurn();
    expect(both).toEqual([{ state: 'pending' }, { state: 'pending' }]);
    holder.release();
    await endOfTurn();
    expect(both).toEqual([{ state: 'resolved' }, { state: 'resolved' }]);
  });

  it('turns a drain into an immediate close when it is called again without drain', async () => {
    const limiter = limiterOf(1);
    const holder = await limiter.acquire();
    const waiting = limiter.acquire().catch((error: unknown) => error);
    const drained = watch(limiter.close({ drain: true }));
    const closed = watch(limiter.close());
    expect(await waiting).toBeInstanceOf(LimiterClosedError);
    holder.release();
    await endOfTurn();
    expect([drained, closed]).toEqual([{ state: 'resolved' }, { state: 'resolved' }]);
  });

  it('does not turn a close back into a drain', async () => {
    const limiter = limiterOf(1);
    const holder = await limiter.acquire();
    const end = limiter.close();
    void limiter.close({ drain: true });
    await expect(limiter.acquire()).rejects.toThrow(LimiterClosedError);
    holder.release();
    await end;
    expect(limiter.tryAcquire()).toBeUndefined();
  });

  it('detaches its adaptive limit, and clears the timer of a Retry-After', async () => {
    for (const options of [{}, { drain: true }]) {
      const adaptive = new AdaptiveLimit();
      const limiter = new ConcurrencyLimiter({ adaptive });
      adaptive.blockFor(60_000);
      expect(vi.getTimerCount()).toBe(1);
      await limiter.close(options);
      expect(vi.getTimerCount()).toBe(0);
      const next = new ConcurrencyLimiter({ adaptive });
      expect(next.maxConcurrent).toBe(adaptive.limit);
      await next.close();
    }
  });

  it.each([
    [{ drain: 1 }, 'Expected `drain` to be a boolean, got 1 (number)'],
    [{ timeoutMs: -1 }, 'Expected `timeoutMs` to be a number from 0'],
    [{ timeout: 5 }, 'Unknown option `timeout` in close'],
    [null, 'Expected `close` to be an options object, got null'],
  ])('rejects the options %j and stays open', async (options, message) => {
    const limiter = limiterOf(1);
    await expect(limiter.close(options as never)).rejects.toThrow(message);
    expect(await limiter.run(() => 'open')).toBe('open');
  });
});
