import { describe, expect, it } from 'vitest';
import { ConcurrencyLimiter } from '../../src/limiter/concurrency-limiter.js';
import type { AcquireOptions, Permit } from '../../src/limiter/limiter.js';
import { endOfTurn } from '../support/promises.js';

/** A limiter, and the names of those who got a permit in the order in which they got it. */
function setUp(maxConcurrent: number) {
  const limiter = new ConcurrencyLimiter({ maxConcurrent });
  const order: string[] = [];
  const permits = new Map<string, Permit>();
  const ask = (name: string, options?: AcquireOptions) => {
    limiter.acquire(options).then(
      (permit) => {
        order.push(name);
        permits.set(name, permit);
      },
      () => order.push(`${name} refused`),
    );
  };
  const release = async (name: string) => {
    permits.get(name)?.release();
    await endOfTurn();
  };
  return { limiter, order, ask, release };
}

describe('The order of a ConcurrencyLimiter', () => {
  it('gives at most maxConcurrent permits at once', async () => {
    const { limiter, order, ask } = setUp(3);
    for (const name of ['a', 'b', 'c', 'd', 'e']) ask(name);
    await endOfTurn();
    expect(order).toEqual(['a', 'b', 'c']);
    expect(limiter.activeCount).toBe(3);
    expect(limiter.queuedCount).toBe(2);
  });

  it('gives permits in the order of acquire', async () => {
    const { order, ask, release } = setUp(1);
    const names = Array.from({ length: 50 }, (_, i) => `w${i}`);
    for (const name of names) ask(name);
    await endOfTurn();
    for (const name of names) await release(name);
    expect(order).toEqual(names);
  });

  it('gives run and acquire one queue', async () => {
    const { limiter, order, ask, release } = setUp(1);
    ask('a');
    ask('b');
    const c = limiter.run(() => order.push('c'));
    ask('d');
    await endOfTurn();
    await release('a');
    await release('b');
    await c;
    await endOfTurn();
    expect(order).toEqual(['a', 'b', 'c', 'd']);
  });

  it.each([
    ['no listener', () => {}],
    [
      'a listener added meanwhile',
      (limiter: ConcurrencyLimiter) => limiter.hooks.on('permit:acquired', () => {}),
    ],
  ])(
    'gives every waiting run its own permit and work, where several begin at once and %s',
    async (_, meanwhile) => {
      const limiter = new ConcurrencyLimiter({ maxConcurrent: 10 });
      const other = new ConcurrencyLimiter({ maxConcurrent: 10 });
      const holders = [await limiter.acquire({ weight: 10 }), await other.acquire({ weight: 10 })];
      const given: [string, number][] = [];
      const gone = new AbortController();
      const runOf = (of: ConcurrencyLimiter, weight: number, name: string, options?: AcquireOptions) =>
        of.run(
          ({ permit }) => {
            given.push([name, permit.weight]);
            return name;
          },
          { weight, ...options },
        );
      const answers = [runOf(limiter, 1, 'a1'), runOf(other, 2, 'b2'), runOf(limiter, 3, 'a3')];
      const left = runOf(limiter, 4, 'left', { signal: gone.signal });
      meanwhile(limiter);
      answers.push(runOf(limiter, 5, 'a5'), runOf(other, 6, 'b6'));
      const acquired = limiter.acquire();
      for (const holder of holders) holder.release();
      // Granted, and not started yet: the run honors the caller's signal.
      gone.abort(new Error('left'));
      await expect(left).rejects.toThrow('left');
      expect(await Promise.all(answers)).toEqual(['a1', 'b2', 'a3', 'a5', 'b6']);
      expect(Object.fromEntries(given)).toEqual({ a1: 1, b2: 2, a3: 3, a5: 5, b6: 6 });
      (await acquired).release();
      await Promise.all([limiter.onIdle(), other.onIdle()]);
      expect([limiter.activeCount, other.activeCount]).toEqual([0, 0]);
    },
  );

  it('lets the ends of runs serve the next ones, also of runs that never began', async () => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 1 });
    for (let round = 0; round < 3; round++) {
      const holder = await limiter.acquire();
      const control = new AbortController();
      const runs = ['a', 'b', 'c'].map((name) => limiter.run(() => `${name}${round}`));
      const throws = limiter.run(() => {
        throw new Error(`thrown ${round}`);
      });
      const aborted = limiter.run(() => 'never', { signal: control.signal });
      const last = limiter.run(async () => `last ${round}`);
      holder.release();
      const settled = Promise.allSettled([...runs, throws, aborted, last]);
      control.abort('gone');
      expect((await settled).map((one) => ('value' in one ? one.value : String(one.reason)))).toEqual([
        `a${round}`,
        `b${round}`,
        `c${round}`,
        `Error: thrown ${round}`,
        'gone',
        `last ${round}`,
      ]);
      expect(limiter.activeCount).toBe(0);
    }
  });

  it('keeps nothing of runs that are over, whether they waited, failed or never began', async () => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 1 });
    const round = async () => {
      const holder = await limiter.acquire();
      const control = new AbortController();
      const settled = Promise.allSettled([
        limiter.run(() => 'fine'),
        limiter.run(() => Promise.reject(new Error('failed'))),
        limiter.run(() => {
          throw new Error('thrown');
        }),
        limiter.run(() => 'never', { signal: control.signal }),
        limiter.run(() => 'fine'),
      ]);
      limiter.maxConcurrent = 10;
      holder.release();
      control.abort();
      await settled;
      limiter.maxConcurrent = 1;
      await limiter.run(() => 'free');
    };
    const heldBytes = async () => {
      for (let i = 0; i < 500; i++) await round();
      gc!();
      return process.memoryUsage().heapUsed;
    };
    await heldBytes();
    const before = await heldBytes();
    for (let i = 0; i < 10; i++) await heldBytes();
    // One end that is lost in each round, with its two functions and its place, would be ten times as much.
    expect((await heldBytes()) - before).toBeLessThan(500_000);
  });

  it('is collected when it is dropped, also while a run never ends', async () => {
    const hangIn = async (limiter: ConcurrencyLimiter) => {
      const holder = await limiter.acquire();
      void limiter.run(() => new Promise(() => {}));
      void limiter.run(() => 'never begun');
      holder.release();
      await endOfTurn();
    };
    const dropped = await Promise.all(
      Array.from({ length: 20 }, async () => {
        const limiter = new ConcurrencyLimiter({ maxConcurrent: 1 });
        await hangIn(limiter);
        return new WeakRef(limiter);
      }),
    );
    await endOfTurn();
    gc!();
    await endOfTurn();
    gc!();
    // The last one may still be on the stack.
    expect(dropped.filter((limiter) => limiter.deref() !== undefined).length).toBeLessThanOrEqual(1);
  });

  it('hands over to the next waiter before release returns', async () => {
    const { limiter, order, ask } = setUp(1);
    const holder = await limiter.acquire();
    ask('next');
    holder.release();
    expect(limiter.activeCount).toBe(1);
    expect(limiter.queuedCount).toBe(0);
    expect(limiter.tryAcquire()).toBeUndefined();
    expect(order).toEqual([]);
    await endOfTurn();
    expect(order).toEqual(['next']);
  });

  it('lets a newcomer in behind those who wait, also in the very step of a release', async () => {
    const { limiter, order, ask, release } = setUp(1);
    const holder = await limiter.acquire();
    ask('first');
    ask('second');
    holder.release();
    ask('newcomer');
    await endOfTurn();
    await release('first');
    await release('second');
    expect(order).toEqual(['first', 'second', 'newcomer']);
  });

  it('lets no request overtake a heavy waiter, whatever room there is', async () => {
    const { limiter, order, ask, release } = setUp(4);
    ask('a', { weight: 3 });
    ask('heavy', { weight: 2 });
    ask('light');
    await endOfTurn();
    expect(order).toEqual(['a']);
    expect(limiter.tryAcquire()).toBeUndefined();
    await release('a');
    expect(order).toEqual(['a', 'heavy', 'light']);
    expect(limiter.activeCount).toBe(3);
  });

  it('admits those behind a heavy request that gives up, synchronously', async () => {
    const { limiter, order, ask } = setUp(4);
    const controller = new AbortController();
    ask('a', { weight: 3 });
    ask('heavy', { weight: 4, signal: controller.signal });
    ask('light');
    ask('too much', { weight: 2 });
    await endOfTurn();
    controller.abort();
    expect(limiter.activeCount).toBe(4);
    expect(limiter.queuedCount).toBe(1);
    await endOfTurn();
    expect(order).toEqual(['a', 'light', 'heavy refused']);
  });

  it('gives tryAcquire what is free, and nothing while there are waiters', async () => {
    const { limiter, order, ask } = setUp(2);
    const first = limiter.tryAcquire();
    const second = limiter.tryAcquire();
    expect(limiter.tryAcquire()).toBeUndefined();
    ask('waiting', { weight: 2 });
    first?.release();
    expect(limiter.tryAcquire()).toBeUndefined();
    second?.release();
    await endOfTurn();
    expect(order).toEqual(['waiting']);
  });

  it('serves a higher priority first, and equals in the order they came', async () => {
    const { limiter, order, ask, release } = setUp(1);
    const holder = await limiter.acquire();
    ask('low', { priority: -1 });
    ask('usual 1');
    ask('high 1', { priority: 5 });
    ask('usual 2', { priority: 0 });
    ask('high 2', { priority: 5 });
    ask('higher', { priority: 6 });
    holder.release();
    await endOfTurn();
    for (const name of ['higher', 'high 1', 'high 2', 'usual 1', 'usual 2']) await release(name);
    expect(order).toEqual(['higher', 'high 1', 'high 2', 'usual 1', 'usual 2', 'low']);
  });

  it('admits a higher priority at once where it fits, ahead of a heavy request there is no room for', async () => {
    const { limiter, order, ask, release } = setUp(3);
    ask('a', { weight: 2 });
    ask('heavy', { weight: 2 });
    ask('urgent', { priority: 1 });
    expect(limiter.activeCount).toBe(3);
    ask('urgent too', { priority: 1 });
    await endOfTurn();
    expect(order).toEqual(['a', 'urgent']);
    await release('a');
    expect(order).toEqual(['a', 'urgent', 'urgent too']);
    await release('urgent');
    expect(order).toEqual(['a', 'urgent', 'urgent too', 'heavy']);
  });

  it('lets the usual priority pass those below it, which tryAcquire never does', async () => {
    const { limiter, order, ask } = setUp(3);
    ask('a', { weight: 2 });
    ask('heavy', { weight: 2, priority: -1 });
    expect(limiter.tryAcquire()).toBeUndefined();
    ask('usual');
    await endOfTurn();
    expect(order).toEqual(['a', 'usual']);
  });

  it('goes by the priority and not by the weight', async () => {
    const { limiter, order, ask, release } = setUp(3);
    const holder = await limiter.acquire({ weight: 2 });
    ask('heavy and high', { weight: 3, priority: 1 });
    ask('light and low');
    await endOfTurn();
    expect(order).toEqual([]);
    holder.release();
    await endOfTurn();
    expect(order).toEqual(['heavy and high']);
    await release('heavy and high');
    expect(order).toEqual(['heavy and high', 'light and low']);
  });
});

describe('The weight of a permit', () => {
  it('counts for as much as was asked, and comes back whole', async () => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 10 });
    const permit = await limiter.acquire({ weight: 7 });
    expect(permit.weight).toBe(7);
    expect(limiter.activeCount).toBe(7);
    expect(limiter.tryAcquire({ weight: 4 })).toBeUndefined();
    expect(limiter.tryAcquire({ weight: 3 })?.weight).toBe(3);
    permit.release();
    expect(limiter.activeCount).toBe(3);
  });

  it('lets one release serve several light waiters', async () => {
    const { limiter, order, ask } = setUp(3);
    const holder = await limiter.acquire({ weight: 3 });
    for (const name of ['a', 'b', 'c', 'd']) ask(name);
    holder.release();
    expect(limiter.activeCount).toBe(3);
    await endOfTurn();
    expect(order).toEqual(['a', 'b', 'c']);
  });

  it('may be more than a lowered maxConcurrent: the request waits, and runs alone', async () => {
    const { limiter, order, ask } = setUp(10);
    const holder = await limiter.acquire();
    limiter.maxConcurrent = 5;
    const heavy = limiter.acquire({ weight: 7 });
    ask('light');
    await endOfTurn();
    expect(limiter.stats()).toMatchObject({ active: 1, queued: 2 });
    holder.release();
    const permit = await heavy;
    await endOfTurn();
    expect(limiter.stats()).toMatchObject({ active: 7, queued: 1 });
    permit.release();
    await endOfTurn();
    expect(order).toEqual(['light']);
    await expect(limiter.acquire({ weight: 11 })).rejects.toBeInstanceOf(RangeError);
  });

  it('is refused at once, and leaves the queue as it was, when it is more than maxConcurrent', async () => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 3 });
    await expect(limiter.acquire({ weight: 4 })).rejects.toThrow(RangeError);
    await expect(limiter.run(() => 1, { weight: 4 })).rejects.toThrow(
      'Expected `weight` to be a whole number from 1 to 3, got 4 (number)',
    );
    expect(() => limiter.tryAcquire({ weight: 4 })).toThrow(RangeError);
    expect(limiter.stats()).toMatchObject({ active: 0, queued: 0, acquired: 0 });
    expect(await limiter.run(() => 'still works')).toBe('still works');
  });

  it.each([0, -1, 0.5, Number.NaN, Number.POSITIVE_INFINITY])('is refused when it is %d', async (weight) => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 3 });
    await expect(limiter.acquire({ weight })).rejects.toThrow(RangeError);
    await expect(limiter.run(() => 1, { weight })).rejects.toThrow(RangeError);
    expect(() => limiter.tryAcquire({ weight })).toThrow(RangeError);
    expect(limiter.activeCount).toBe(0);
  });

  it('is refused when it is no number at all', async () => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 3 });
    await expect(limiter.acquire({ weight: '2' as never })).rejects.toThrow(TypeError);
    await expect(limiter.acquire({ weight: null as never })).rejects.toThrow(TypeError);
    expect(() => limiter.tryAcquire({ weight: 2n as never })).toThrow(TypeError);
  });
});

describe('A changed limit', () => {
  it('admits at once where it grows', async () => {
    const { limiter, order, ask } = setUp(1);
    for (const name of ['a', 'b', 'c', 'd']) ask(name);
    limiter.maxConcurrent = 3;
    expect(limiter.activeCount).toBe(3);
    expect(limiter.queuedCount).toBe(1);
    await endOfTurn();
    expect(order).toEqual(['a', 'b', 'c']);
  });

  it('revokes nothing when it shrinks, and admits no one until the weight held is below it', async () => {
    const { limiter, order, ask, release } = setUp(3);
    for (const name of ['a', 'b', 'c', 'd', 'e']) ask(name);
    await endOfTurn();
    limiter.maxConcurrent = 1;
    expect(limiter.activeCount).toBe(3);
    await release('a');
    await release('b');
    expect(order).toEqual(['a', 'b', 'c']);
    expect(limiter.activeCount).toBe(1);
    await release('c');
    expect(order).toEqual(['a', 'b', 'c', 'd']);
    expect(limiter.activeCount).toBe(1);
  });

  it.each(['acquire', 'run'] as const)(
    'lets no `%s` in that comes when it has shrunk below what is held',
    async (how) => {
      const limiter = new ConcurrencyLimiter({ maxConcurrent: 3 });
      const held = [limiter.tryAcquire(), limiter.tryAcquire()];
      limiter.maxConcurrent = 1;
      const late = how === 'run' ? limiter.run(() => 'ran') : limiter.acquire();
      expect(limiter.stats()).toMatchObject({ active: 2, queued: 1 });
      held[0]?.release();
      expect(limiter.queuedCount).toBe(1);
      held[1]?.release();
      await late;
      expect(limiter.queuedCount).toBe(0);
    },
  );

  it('counts the permits held when it grows back: four held of one, then five, leave room for one', async () => {
    const { limiter } = setUp(4);
    for (let i = 0; i < 4; i++) limiter.tryAcquire();
    limiter.maxConcurrent = 1;
    limiter.maxConcurrent = 5;
    expect(limiter.tryAcquire()).toBeDefined();
    expect(limiter.tryAcquire()).toBeUndefined();
  });

  it('lets a waiter that is heavier than the shrunken limit run alone once the limit is free', async () => {
    const { limiter, order, ask, release } = setUp(5);
    ask('a', { weight: 3 });
    ask('b');
    ask('heavy', { weight: 5 });
    ask('light');
    await endOfTurn();
    limiter.maxConcurrent = 2;
    await release('a');
    expect(order).toEqual(['a', 'b']);
    await release('b');
    expect(order).toEqual(['a', 'b', 'heavy']);
    expect(limiter.activeCount).toBe(5);
    expect(limiter.tryAcquire()).toBeUndefined();
    await release('heavy');
    expect(order).toEqual(['a', 'b', 'heavy', 'light']);
    expect(limiter.activeCount).toBe(1);
  });

  it('bounds weights by the highest limit so far, and runs what is heavier than the present one alone', async () => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 2 });
    await expect(limiter.acquire({ weight: 3 })).rejects.toThrow('from 1 to 2');
    limiter.maxConcurrent = 4;
    const permit = await limiter.acquire({ weight: 4 });
    expect(limiter.activeCount).toBe(4);
    limiter.maxConcurrent = 2;
    await expect(limiter.acquire({ weight: 5 })).rejects.toThrow('from 1 to 4');
    expect(() => limiter.tryAcquire({ weight: 5 })).toThrow('from 1 to 4');
    expect(limiter.tryAcquire({ weight: 4 })).toBeUndefined();
    const order: string[] = [];
    const heavy = limiter.acquire({ weight: 4 }).then((held) => {
      order.push('heavy');
      return held;
    });
    const light = limiter.run(() => order.push('light'));
    permit.release();
    await endOfTurn();
    expect(order).toEqual(['heavy']);
    expect(limiter.stats()).toMatchObject({ active: 4, queued: 1 });
    (await heavy).release();
    await light;
    expect(order).toEqual(['heavy', 'light']);
    const alone = limiter.tryAcquire({ weight: 3 });
    expect(alone?.weight).toBe(3);
    expect(limiter.tryAcquire()).toBeUndefined();
    alone?.release();
  });

  it.each([0, -1, 1.5, Number.NaN])('throws, and keeps the old one, when it is %d', (value) => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 2 });
    expect(() => {
      limiter.maxConcurrent = value;
    }).toThrow(RangeError);
    expect(limiter.maxConcurrent).toBe(2);
  });

  it('is reported in limit:changed once it is in effect, and only if it differs', () => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 2, name: 'admission' });
    const emitted: unknown[] = [];
    limiter.hooks.on('limit:changed', (payload) => emitted.push({ ...payload, now: limiter.maxConcurrent }));
    limiter.maxConcurrent = 2;
    limiter.maxConcurrent = 7;
    expect(emitted).toEqual([{ source: 'admission', previous: 2, maxConcurrent: 7, now: 7 }]);
  });
});
