import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { AdaptiveLimit, type AdaptiveLimitOptions } from '../../src/limiter/adaptive-limit.js';
import { ConcurrencyLimiter } from '../../src/limiter/concurrency-limiter.js';
import type { Permit } from '../../src/limiter/limiter.js';
import { turn } from './event-loop.js';

/** A limiter by an adaptive limit whose clock the test moves. */
function setUp(given: AdaptiveLimitOptions) {
  const clock = { ms: 0 };
  const adaptive = new AdaptiveLimit({ now: () => clock.ms, random: () => 0, ...given });
  const limiter = new ConcurrencyLimiter({ adaptive });
  const take = (weight = 1) => limiter.tryAcquire({ weight }) as Permit;
  const takeAll = () => Array.from({ length: limiter.maxConcurrent }, () => take());
  /** Lets a millisecond pass and gives the permits back, one in each moment. */
  const giveBack = (permits: Permit[], outcome?: 'ok' | 'dropped' | 'ignored') => {
    for (const permit of permits) {
      clock.ms++;
      permit.release(outcome);
    }
  };
  return { clock, adaptive, limiter, take, takeAll, giveBack };
}

describe('What a ConcurrencyLimiter tells its adaptive limit', () => {
  /** A limit of ten in use, cut once to eight, while the permits of before are still held. */
  function cut() {
    const all = setUp({ initial: 10 });
    const held = all.takeAll();
    all.clock.ms = 100;
    all.giveBack(held.splice(0, 3), 'dropped');
    return { ...all, held };
  }

  it('is when a permit was granted: those of before a cut neither cut again nor make it grow', () => {
    const { limiter, held, giveBack } = cut();
    expect(limiter.maxConcurrent).toBe(8);
    giveBack(held);
    expect(limiter.stats()).toMatchObject({ active: 0, maxConcurrent: 8 });
  });

  it('is when a permit was granted, and not when it was asked for', async () => {
    const { limiter, clock, takeAll, giveBack } = setUp({ initial: 10 });
    const held = takeAll();
    const waiting = limiter.acquire();
    clock.ms = 100;
    giveBack(held.splice(0, 3), 'dropped');
    expect(limiter.stats()).toMatchObject({ maxConcurrent: 8, queued: 0 });
    giveBack([await waiting], 'dropped');
    expect(limiter.maxConcurrent).toBe(7);
  });

  it('is how much is held: it does not grow while it does not bind, and does when it is used up', () => {
    const { limiter, held, take, takeAll, giveBack } = cut();
    giveBack(held);
    for (let i = 0; i < 50; i++) giveBack([take()]);
    expect(limiter.maxConcurrent).toBe(8);
    for (let i = 0; i < 20; i++) giveBack(takeAll());
    expect(limiter.maxConcurrent).toBeGreaterThan(8);
  });

  it('counts the permit that comes back as held: a limit of one grows as well', () => {
    const { limiter, takeAll, giveBack } = setUp({ initial: 1 });
    giveBack(takeAll());
    expect(limiter.maxConcurrent).toBe(2);
  });

  it('counts weights: one of eight is the whole limit', () => {
    const { limiter, take, giveBack } = setUp({ initial: 8 });
    giveBack([take(7)]);
    expect(limiter.maxConcurrent).toBe(8);
    giveBack([take(8)]);
    expect(limiter.maxConcurrent).toBe(9);
  });

  it('is that the limit binds while somebody waits who is too heavy for what is left of it', async () => {
    const { limiter, clock } = setUp({ initial: 8 });
    let ended = 0;
    for (let i = 0; i < 40; i++) {
      void limiter.acquire({ weight: 5 }).then(async (permit) => {
        await turn();
        clock.ms++;
        permit.release();
        ended++;
      });
    }
    expect(limiter.stats()).toMatchObject({ active: 5, queued: 39 });
    while (ended < 2) await turn();
    expect(limiter.maxConcurrent).toBe(10);
    expect(limiter.activeCount).toBe(10);
    await limiter.onIdle();
    expect(limiter.maxConcurrent).toBeGreaterThan(40);
  });

  it('is not that it binds while they wait for the end of a pause', async () => {
    const { limiter, adaptive, take, giveBack } = setUp({ initial: 8 });
    const held = take();
    adaptive.blockFor(1_000);
    const waiting = limiter.acquire().catch(() => 'turned away');
    giveBack([held]);
    expect(limiter.stats()).toMatchObject({ maxConcurrent: 8, queued: 1 });
    await limiter.close();
    expect(await waiting).toBe('turned away');
  });

  it('is the outcome of a run: ok moves it, what was thrown does not', async () => {
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
    all.giveBack(all.takeAll(), 'dropped');
    expect(all.limiter.maxConcurrent).toBe(3);
    return all;
  }

  it('may be more than the present limit: it waits, and then runs alone', async () => {
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
    await turn();
    expect(order).toEqual([]);
    expect(limiter.stats()).toMatchObject({ active: 1, queued: 2, rejected: 0 });
    light.release('ignored');
    await turn();
    expect(order).toEqual(['heavy']);
    expect(limiter.stats()).toMatchObject({ active: 4, queued: 1, maxConcurrent: 3 });
    (await heavy).release('ignored');
    (await behind).release('ignored');
    expect(limiter.activeCount).toBe(0);
  });

  it('may be so in run, in wrap and in tryAcquire, which take it where nothing is held', async () => {
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

  it('is refused when it is more than max', async () => {
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
  beforeEach(async () => {
    vi.useFakeTimers();
    await turn();
  });
  afterEach(async () => {
    vi.useRealTimers();
    await turn();
  });

  const blocked = () => {
    const adaptive = new AdaptiveLimit({ random: () => 0 });
    const limiter = new ConcurrencyLimiter({ adaptive });
    adaptive.blockFor(10_000);
    const order: number[] = [];
    const all = [0, 1, 2].map((i) => limiter.run(() => order.push(i)));
    return { adaptive, limiter, order, all };
  };

  it('has none of those who wait begin before it is over, and then serves them all', async () => {
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

  it('heeds one that comes while it drains', async () => {
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

  it('heeds one that becomes longer while it drains', async () => {
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

  it('is over at once where nobody waits', async () => {
    const adaptive = new AdaptiveLimit();
    const limiter = new ConcurrencyLimiter({ adaptive });
    adaptive.blockFor(10_000);
    await limiter.close({ drain: true });
    expect(vi.getTimerCount()).toBe(0);
  });

  it('turns them away when its own time is up first', async () => {
    const { limiter, order, all } = blocked();
    const outcomes = Promise.allSettled(all);
    const end = limiter.close({ drain: true, timeoutMs: 5_000 }).catch(({ code }) => code);
    await vi.advanceTimersByTimeAsync(5_000);
    expect(await end).toBe('ERR_DRAIN_TIMEOUT');
    expect((await outcomes).map(({ status }) => status)).toEqual(['rejected', 'rejected', 'rejected']);
    expect(order).toEqual([]);
    expect(vi.getTimerCount()).toBe(0);
  });

  it('ends a pause of the host where no Retry-After holds', async () => {
    const adaptive = new AdaptiveLimit({ random: () => 0 });
    const limiter = new ConcurrencyLimiter({ adaptive });
    limiter.pause();
    const ran = limiter.run(() => 'ran');
    await limiter.close({ drain: true });
    expect(await ran).toBe('ran');
  });
});
