import { describe, expect, it, vi } from 'vitest';
import { AdaptiveLimit, type AdaptiveLimitOptions } from '../../src/limiter/adaptive-limit.js';
import { ConcurrencyLimiter } from '../../src/limiter/concurrency-limiter.js';
import type { Permit } from '../../src/limiter/limiter.js';
import { onFakeTimers } from '../support/fake-timers.js';
import { endOfTurn } from '../support/promises.js';

/** A limiter by an adaptive limit whose clock the test moves. */
function setUp(given: AdaptiveLimitOptions) {
  const clock = { ms: 0 };
  const adaptive = new AdaptiveLimit({ now: () => clock.ms, random: () => 0, ...given });
  const limiter = new ConcurrencyLimiter({ adaptive });
  const take = (weight = 1) => limiter.tryAcquire({ weight }) as Permit;
  const takeAll = () => Array.from({ length: limiter.maxConcurrent }, () => take());
  /** Lets a millisecond pass and gives the permits back, one in each moment. */
  const releasePermit = (permits: Permit[], outcome?: 'ok' | 'dropped' | 'ignored') => {
    for (const permit of permits) {
      clock.ms++;
      permit.release(outcome);
    }
  };
  return { clock, adaptive, limiter, take, takeAll, releasePermit };
}

describe('The samples of a ConcurrencyLimiter', () => {
  /** A limit of ten in use, cut once to eight, while the permits of before are still held. */
  function cut() {
    const all = setUp({ initial: 10 });
    const held = all.takeAll();
    all.clock.ms = 100;
    all.releasePermit(held.splice(0, 3), 'dropped');
    return { ...all, held };
  }

  it('start at the grant: permits from before a cut neither cut again nor make the limit grow', () => {
    const { limiter, held, releasePermit } = cut();
    expect(limiter.maxConcurrent).toBe(8);
    releasePermit(held);
    expect(limiter.stats()).toMatchObject({ active: 0, maxConcurrent: 8 });
  });

  it('start at the grant, not at the request', async () => {
    const { limiter, clock, takeAll, releasePermit } = setUp({ initial: 10 });
    const held = takeAll();
    const waiting = limiter.acquire();
    clock.ms = 100;
    releasePermit(held.splice(0, 3), 'dropped');
    expect(limiter.stats()).toMatchObject({ maxConcurrent: 8, queued: 0 });
    releasePermit([await waiting], 'dropped');
    expect(limiter.maxConcurrent).toBe(7);
  });

  it('carry the weight held: the limit grows only while it is used up', () => {
    const { limiter, held, take, takeAll, releasePermit } = cut();
    releasePermit(held);
    for (let i = 0; i < 50; i++) releasePermit([take()]);
    expect(limiter.maxConcurrent).toBe(8);
    for (let i = 0; i < 20; i++) releasePermit(takeAll());
    expect(limiter.maxConcurrent).toBeGreaterThan(8);
  });

  it('count the released permit as held: a limit of one grows as well', () => {
    const { limiter, takeAll, releasePermit } = setUp({ initial: 1 });
    releasePermit(takeAll());
    expect(limiter.maxConcurrent).toBe(2);
  });

  it('count weights: one permit of weight eight uses the whole limit', () => {
    const { limiter, take, releasePermit } = setUp({ initial: 8 });
    releasePermit([take(7)]);
    expect(limiter.maxConcurrent).toBe(8);
    releasePermit([take(8)]);
    expect(limiter.maxConcurrent).toBe(9);
  });

  it('say that the limit binds while the next waiter is too heavy for what is left of it', async () => {
    const { limiter, clock } = setUp({ initial: 8 });
    let ended = 0;
    for (let i = 0; i < 40; i++) {
      void limiter.acquire({ weight: 5 }).then(async (permit) => {
        await endOfTurn();
        clock.ms++;
        permit.release();
        ended++;
      });
    }
    expect(limiter.stats()).toMatchObject({ active: 5, queued: 39 });
    while (ended < 2) await endOfTurn();
    expect(limiter.maxConcurrent).toBe(10);
    expect(limiter.activeCount).toBe(10);
    await limiter.onIdle();
    expect(limiter.maxConcurrent).toBeGreaterThan(40);
  });

  it('do not say that it binds while waiters wait for the end of a pause', async () => {
    const { limiter, adaptive, take, releasePermit } = setUp({ initial: 8 });
    const held = take();
    adaptive.blockFor(1_000);
    const waiting = limiter.acquire().catch(() => 'rejected');
    releasePermit([held]);
    expect(limiter.stats()).toMatchObject({ maxConcurrent: 8, queued: 1 });
    await limiter.close();
    expect(await waiting).toBe('rejected');
  });

  it('carry the outcome of a run: ok, or ignored where it threw', async () => {
    const { limiter, clock, adaptive } = setUp({ initial: 1 });
    const run = (work: () => unknown) =>
      limiter
        .run(() => {
          clock.ms++;
          return work();
        })
        .catch(() => {});
    await run(() => Promise.reject(new Error('of the work')));
    await run(() => {
      throw new Error('of the work');
    });
    expect(adaptive.limit).toBe(1);
    await run(async () => 'done');
    expect(adaptive.limit).toBe(2);
    clock.ms++;
    await limiter.run(({ permit }) => permit.release('dropped'));
    expect(adaptive.limit).toBe(1);
  });
});

describe('The weight of a request under an adaptive limit', () => {
  /** A limit of at most 64 that overloads have brought down to 3. */
  function cutDown() {
    const all = setUp({ initial: 4, max: 64 });
    all.releasePermit(all.takeAll(), 'dropped');
    expect(all.limiter.maxConcurrent).toBe(3);
    return all;
  }

  it('may exceed the present limit: the request waits, and then runs alone', async () => {
    const { limiter, take } = cutDown();
    const light = take();
    const order: string[] = [];
    const heavy = limiter.acquire({ weight: 4 });
    const behind = limiter.acquire();
    for (const [name, asked] of [
      ['heavy', heavy],
      ['behind', behind],
    ] as const)
      void asked.then(() => order.push(name));
    await endOfTurn();
    expect(order).toEqual([]);
    expect(limiter.stats()).toMatchObject({ active: 1, queued: 2, rejected: 0 });
    light.release('ignored');
    await endOfTurn();
    expect(order).toEqual(['heavy']);
    expect(limiter.stats()).toMatchObject({ active: 4, queued: 1, maxConcurrent: 3 });
    (await heavy).release('ignored');
    (await behind).release('ignored');
    expect(limiter.activeCount).toBe(0);
  });

  it('may exceed it in run, wrap and tryAcquire too, which get a permit where nothing is held', async () => {
    const { limiter } = cutDown();
    const active = () => Promise.resolve(limiter.activeCount);
    expect(await limiter.run(active, { weight: 64 })).toBe(64);
    expect(await limiter.wrap(active, { weight: 64 })()).toBe(64);
    const permit = limiter.tryAcquire({ weight: 64 });
    expect(permit?.weight).toBe(64);
    expect(limiter.tryAcquire()).toBeUndefined();
    permit?.release('ignored');
    const light = limiter.tryAcquire();
    expect(limiter.tryAcquire({ weight: 4 })).toBeUndefined();
    light?.release('ignored');
    expect(limiter.activeCount).toBe(0);
  });

  it('is rejected when it exceeds max', async () => {
    const { limiter } = cutDown();
    const message = 'Expected `weight` to be a whole number from 1 to 64, got 65 (number)';
    const options = { weight: 65 };
    for (const asked of [limiter.acquire(options), limiter.run(() => {}, options)]) {
      await expect(asked).rejects.toThrow(RangeError);
      await expect(asked).rejects.toThrow(message);
    }
    expect(() => limiter.tryAcquire(options)).toThrow(message);
    expect(() => limiter.wrap(() => {}, options)).toThrow(message);
    expect(limiter.stats()).toMatchObject({ active: 0, queued: 0 });
  });
});

describe('close({ drain: true }) of a limiter whose adaptive limit holds a Retry-After', () => {
  onFakeTimers();

  const blocked = () => {
    const adaptive = new AdaptiveLimit({ random: () => 0 });
    const limiter = new ConcurrencyLimiter({ adaptive });
    adaptive.blockFor(10_000);
    const order: number[] = [];
    const all = [0, 1, 2].map((i) => limiter.run(() => order.push(i)));
    return { adaptive, limiter, order, all };
  };

  it('starts no waiter before it is over, and then serves all', async () => {
    const { limiter, order, all } = blocked();
    let isClosed = false;
    const end = limiter.close({ drain: true }).then(() => {
      isClosed = true;
    });
    await vi.advanceTimersByTimeAsync(9_999);
    expect([order, isClosed, limiter.stats()]).toMatchObject([[], false, { queued: 3, closed: true }]);
    await vi.advanceTimersByTimeAsync(1);
    expect(order).toEqual([0, 1, 2]);
    await Promise.all([end, ...all]);
    expect(vi.getTimerCount()).toBe(0);
  });

  it('honors one that comes while it drains', async () => {
    const adaptive = new AdaptiveLimit({ initial: 1, random: () => 0 });
    const limiter = new ConcurrencyLimiter({ adaptive });
    const holder = limiter.tryAcquire();
    const waiting = limiter.run(() => 'served');
    const end = limiter.close({ drain: true });
    adaptive.blockFor(10_000);
    holder?.release('dropped');
    await vi.advanceTimersByTimeAsync(9_999);
    expect(limiter.queuedCount).toBe(1);
    await vi.advanceTimersByTimeAsync(1);
    expect(await waiting).toBe('served');
    await end;
  });

  it('honors one that becomes longer while it drains', async () => {
    const { adaptive, limiter, order, all } = blocked();
    const end = limiter.close({ drain: true });
    await vi.advanceTimersByTimeAsync(5_000);
    adaptive.blockFor(10_000);
    await vi.advanceTimersByTimeAsync(9_999);
    expect(order).toEqual([]);
    await vi.advanceTimersByTimeAsync(1);
    expect(order).toEqual([0, 1, 2]);
    await Promise.all([end, ...all]);
  });

  it('fulfills at once where there are no waiters', async () => {
    const adaptive = new AdaptiveLimit();
    const limiter = new ConcurrencyLimiter({ adaptive });
    adaptive.blockFor(10_000);
    await limiter.close({ drain: true });
    expect(vi.getTimerCount()).toBe(0);
  });

  it('rejects the waiters when its own time is up first', async () => {
    const { limiter, order, all } = blocked();
    const outcomes = Promise.allSettled(all);
    const end = limiter.close({ drain: true, timeoutMs: 5_000 }).catch(({ code }) => code);
    await vi.advanceTimersByTimeAsync(5_000);
    expect(await end).toBe('ERR_DRAIN_TIMEOUT');
    expect((await outcomes).map(({ status }) => status)).toEqual(['rejected', 'rejected', 'rejected']);
    expect(order).toEqual([]);
    expect(vi.getTimerCount()).toBe(0);
  });

  it('ends a pause of the host where there is no Retry-After', async () => {
    const adaptive = new AdaptiveLimit({ random: () => 0 });
    const limiter = new ConcurrencyLimiter({ adaptive });
    limiter.pause();
    const ran = limiter.run(() => 'ran');
    await limiter.close({ drain: true });
    expect(await ran).toBe('ran');
  });
});
