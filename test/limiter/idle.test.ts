import { describe, expect, it, vi } from 'vitest';
import { ConcurrencyLimiter } from '../../src/limiter/concurrency-limiter.js';
import type { Permit } from '../../src/limiter/limiter.js';
import { onFakeTimers } from '../support/fake-timers.js';
import { endOfTurn } from '../support/promises.js';

/** A limiter of so many with two permits held. */
function withTwoHeld(maxConcurrent: number) {
  const limiter = new ConcurrencyLimiter({ maxConcurrent });
  const take = () => limiter.tryAcquire() as Permit;
  return { limiter, held: [take(), take()] as const };
}

/** Tells whether a promise has been resolved by now; a rejection fails the test. */
function watch(promise: Promise<void>): () => Promise<boolean> {
  let isSettled = false;
  void promise.then(() => {
    isSettled = true;
  });
  return async () => {
    await endOfTurn();
    return isSettled;
  };
}

onFakeTimers();

describe.each([
  ['onIdle()', (limiter: ConcurrencyLimiter) => limiter.onIdle()],
  ['close()', (limiter: ConcurrencyLimiter) => limiter.close()],
  ['close({ drain: true })', (limiter: ConcurrencyLimiter) => limiter.close({ drain: true })],
])('%s', (_, ask) => {
  it('fulfills at once where nothing is held and there are no waiters', async () => {
    expect(await watch(ask(new ConcurrencyLimiter({ maxConcurrent: 1 })))()).toBe(true);
  });

  it.each([
    ['reached', 2],
    ['never reached', 5],
  ])(
    'settles with the release of the last of two permits, not of the first, when the limit is %s',
    async (_, limit) => {
      const { limiter, held } = withTwoHeld(limit);
      const isOver = watch(ask(limiter));
      expect(await isOver()).toBe(false);
      held[0].release();
      expect(await isOver()).toBe(false);
      held[1].release();
      expect(await isOver()).toBe(true);
    },
  );

  it('fulfills for every caller', async () => {
    const { limiter, held } = withTwoHeld(3);
    const areOver = [watch(ask(limiter)), watch(ask(limiter)), watch(limiter.onIdle())];
    const all = () => Promise.all(areOver.map((isOver) => isOver()));
    held[0].release();
    expect(await all()).toEqual([false, false, false]);
    held[1].release();
    expect(await all()).toEqual([true, true, true]);
  });

  it('fulfills with the last release while a lowered limit is exceeded, or raised again', async () => {
    for (const limits of [[1], [1, 5]]) {
      const { limiter, held } = withTwoHeld(3);
      const isOver = watch(ask(limiter));
      for (const limit of limits) limiter.maxConcurrent = limit;
      held[0].release();
      expect(await isOver()).toBe(false);
      held[1].release();
      expect(await isOver()).toBe(true);
    }
  });

  it('fulfills with the last release while paused', async () => {
    const { limiter, held } = withTwoHeld(5);
    limiter.pause();
    const isOver = watch(ask(limiter));
    held[0].release();
    expect(await isOver()).toBe(false);
    held[1].release();
    expect(await isOver()).toBe(true);
  });

  it('waits for a permit that was granted and whose promise was not awaited yet', async () => {
    const { limiter, held } = withTwoHeld(2);
    const next = limiter.acquire();
    held[0].release();
    held[1].release();
    const isOver = watch(ask(limiter));
    const permit = await next;
    expect(await isOver()).toBe(false);
    permit.release();
    expect(await isOver()).toBe(true);
  });

  it('does not fulfill when a waiter leaves while a permit is held', async () => {
    const { limiter, held } = withTwoHeld(3);
    const controller = new AbortController();
    const waiting = limiter.acquire({ weight: 3, signal: controller.signal }).catch(() => 'left');
    const isOver = watch(ask(limiter));
    held[0].release();
    controller.abort();
    expect(await waiting).toBe('left');
    expect(await isOver()).toBe(false);
    held[1].release();
    expect(await isOver()).toBe(true);
  });
});

describe.each([
  ['onIdle()', (limiter: ConcurrencyLimiter) => limiter.onIdle()],
  ['close({ drain: true })', (limiter: ConcurrencyLimiter) => limiter.close({ drain: true })],
])('%s, which serves the waiters,', (_, ask) => {
  it('fulfills with the release of the last waiter', async () => {
    const { limiter, held } = withTwoHeld(2);
    const later = [limiter.acquire(), limiter.acquire(), limiter.acquire()];
    const isOver = watch(ask(limiter));
    for (const permit of [...held, ...later]) {
      expect(await isOver()).toBe(false);
      (await permit).release();
    }
    expect(await isOver()).toBe(true);
  });
});

describe('close()', () => {
  it('rejects the waiters, and fulfills with the last release', async () => {
    const { limiter, held } = withTwoHeld(2);
    const waiting = limiter.acquire().catch(() => 'rejected');
    const areOver = [watch(limiter.close()), watch(limiter.onIdle())];
    const all = () => Promise.all(areOver.map((isOver) => isOver()));
    expect(await waiting).toBe('rejected');
    held[0].release();
    expect(await all()).toEqual([false, false]);
    held[1].release();
    expect(await all()).toEqual([true, true]);
  });

  it('fulfills onIdle() where nothing is held and it rejects the last waiter', async () => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 1 });
    limiter.pause();
    const waiting = limiter.acquire().catch(() => 'rejected');
    const isIdle = watch(limiter.onIdle());
    expect(await isIdle()).toBe(false);
    const isClosed = watch(limiter.close());
    expect(await waiting).toBe('rejected');
    expect([await isIdle(), await isClosed()]).toEqual([true, true]);
  });
});

describe('onIdle() while paused', () => {
  it.each([
    ['is aborted', (controller: AbortController) => controller.abort()],
    ['runs out of time', () => vi.advanceTimersByTimeAsync(50)],
  ])('fulfills when the last waiter %s and nothing is held any more', async (_, leave) => {
    const { limiter, held } = withTwoHeld(5);
    const controller = new AbortController();
    const options = { signal: controller.signal, timeoutMs: 50 };
    limiter.pause();
    const waiting = limiter.acquire(options).catch(() => 'left');
    const isIdle = watch(limiter.onIdle());
    for (const permit of held) permit.release();
    expect(await isIdle()).toBe(false);
    await leave(controller);
    expect(await waiting).toBe('left');
    expect(await isIdle()).toBe(true);
  });

  it('fulfills at once where the only waiter has left', async () => {
    const { limiter, held } = withTwoHeld(5);
    limiter.pause();
    for (const permit of held) permit.release();
    const controller = new AbortController();
    const waiting = limiter.acquire({ signal: controller.signal }).catch(() => 'left');
    controller.abort();
    await waiting;
    expect(await watch(limiter.onIdle())()).toBe(true);
  });
});
