import { describe, expect, it } from 'vitest';
import { NestedAcquireError } from '../../src/errors.js';
import { ConcurrencyLimiter } from '../../src/limiter/concurrency-limiter.js';
import { deferred, endOfTurn, outcome } from '../support/promises.js';

const lending = (maxConcurrent: number, more = {}) =>
  new ConcurrencyLimiter({ maxConcurrent, detectNested: 'lend', name: 'agents', ...more });

describe('With detectNested: lend', () => {
  it('a nested run takes over the permit of the run around it, and gives it back', async () => {
    const limiter = lending(1);
    const seen: number[] = [];
    const answer = await limiter.run(async () => {
      seen.push(limiter.activeCount);
      const inner = await limiter.run(async () => {
        await endOfTurn();
        seen.push(limiter.activeCount);
        return 'inner';
      });
      seen.push(limiter.activeCount);
      return inner;
    });
    expect(answer).toBe('inner');
    expect(seen).toEqual([1, 1, 1]);
    expect(limiter.stats()).toMatchObject({ active: 0, queued: 0, acquired: 2, rejected: 0 });
  });

  it('nests to any depth at a limit of 1', async () => {
    const limiter = lending(1);
    const nest = (depth: number): Promise<number> =>
      limiter.run(async () => (depth === 0 ? limiter.activeCount : nest(depth - 1)));
    expect(await nest(50)).toBe(1);
    expect(limiter.activeCount).toBe(0);
  });

  it('several nested runs of one take turns at its permit, in order, where there is no other', async () => {
    const limiter = lending(1);
    const order: string[] = [];
    const child = (name: string) =>
      limiter.run(async () => {
        order.push(`${name} begins`);
        await endOfTurn();
        order.push(`${name} ends`);
      });
    void limiter.run(() => Promise.all(['a', 'b', 'c'].map(child)));
    for (let turns = 0; turns <= 3; turns++) await endOfTurn();
    expect(order).toEqual(['a begins', 'a ends', 'b begins', 'b ends', 'c begins', 'c ends']);
    expect(limiter.stats()).toMatchObject({ active: 0, queued: 0, acquired: 4 });
  });

  it('a heavy nested run that is lent a permit makes way for the lighter waiter behind it', async () => {
    const limiter = lending(3);
    const [first, second] = [deferred(), deferred()];
    const outer = limiter.run(
      () =>
        Promise.all([
          limiter.run(() => first.promise, { weight: 2 }),
          limiter.run(() => second.promise, { weight: 2 }),
        ]),
      { weight: 2 },
    );
    await endOfTurn();
    const light = limiter.acquire();
    expect(limiter.stats()).toMatchObject({ active: 2, queued: 2 });
    first.resolve();
    await endOfTurn();
    expect(limiter.stats()).toMatchObject({ active: 3, queued: 0 });
    (await light).release();
    second.resolve();
    await outer;
    expect(limiter.stats()).toMatchObject({ active: 0, queued: 0 });
  });

  it('a second nested run takes a free permit, where there is one', async () => {
    const limiter = lending(3);
    const { promise, resolve } = deferred();
    const outer = limiter.run(() => Promise.all([1, 2, 3, 4].map(() => limiter.run(() => promise))));
    await endOfTurn();
    expect(limiter.stats()).toMatchObject({ active: 3, queued: 1 });
    resolve();
    await outer;
    expect(limiter.stats()).toMatchObject({ active: 0, queued: 0, acquired: 5 });
  });

  it('a waiting nested run gets whichever permit is free first', async () => {
    const limiter = lending(2);
    const stranger = await limiter.acquire();
    const first = deferred();
    const order: string[] = [];
    const outer = limiter.run(() =>
      Promise.all([
        limiter.run(() => first.promise),
        limiter.run(() => order.push('second')),
        limiter.run(() => order.push('third')),
      ]),
    );
    await endOfTurn();
    expect(order).toEqual([]);
    stranger.release();
    await endOfTurn();
    expect(order).toEqual(['second', 'third']);
    first.resolve();
    await outer;
    expect(limiter.stats()).toMatchObject({ active: 0, queued: 0 });
  });

  it('a permit is held until the nested run has ended, when the run around it ends before', async () => {
    const limiter = lending(1);
    const { promise, resolve } = deferred();
    let inner: Promise<unknown> = Promise.resolve();
    await limiter.run(() => {
      inner = limiter.run(() => promise);
    });
    expect(limiter.activeCount).toBe(1);
    const next = limiter.run(() => 'next');
    expect(await outcome(next)).toBe('pending');
    resolve();
    await inner;
    expect(await next).toBe('next');
    expect(limiter.activeCount).toBe(0);
  });

  it('a permit that was released early stays counted while a nested run holds it', async () => {
    const limiter = lending(1);
    const { promise, resolve } = deferred();
    const outer = limiter.run(({ permit }) => {
      const inner = limiter.run(() => promise);
      permit.release();
      permit.release();
      return inner;
    });
    await endOfTurn();
    expect(limiter.activeCount).toBe(1);
    resolve();
    await outer;
    expect(limiter.activeCount).toBe(0);
  });

  it('gives the permit back once, whatever the nested run does', async () => {
    const limiter = lending(1);
    await limiter.run(async () => {
      await limiter.run(({ permit }) => {
        permit.release();
        permit.release();
      });
      await expect(
        limiter.run(() => {
          throw new Error('failed');
        }),
      ).rejects.toThrow('failed');
      expect(limiter.activeCount).toBe(1);
    });
    expect(limiter.activeCount).toBe(0);
  });

  it('a waiting nested run leaves on abort and timeout, and the next one has its turn', async () => {
    const limiter = lending(1);
    const { promise, resolve } = deferred();
    const gone = new AbortController();
    let left: Promise<unknown> = Promise.resolve();
    const outer = limiter.run(() => {
      const first = limiter.run(() => promise);
      const aborted = limiter.run(() => 'never', { signal: gone.signal });
      const late = limiter.run(() => 'never', { timeoutMs: 1 });
      left = Promise.allSettled([aborted, late]);
      return Promise.allSettled([first, aborted, late, limiter.run(() => 'last')]);
    });
    gone.abort('gone');
    await left;
    resolve();
    await endOfTurn();
    expect(limiter.stats()).toMatchObject({ active: 0, queued: 0 });
    expect(await outer).toMatchObject([
      { status: 'fulfilled' },
      { reason: 'gone' },
      { reason: { code: 'ERR_ACQUIRE_TIMEOUT' } },
      { value: 'last' },
    ]);
  });

  it('rejects a nested run that is heavier than the run around it', async () => {
    const limiter = lending(5);
    const heavier = limiter.run(() => limiter.run(() => 1, { weight: 3 }), { weight: 2 });
    await expect(heavier).rejects.toThrow(
      'Expected `weight` to be at most 2, as of the run around it, got 3',
    );
    expect(await limiter.run(() => limiter.run(() => 'fits', { weight: 2 }), { weight: 2 })).toBe('fits');
  });

  it('rejects a nested acquire that would wait: nothing ends what it was lent', async () => {
    const limiter = lending(1);
    await expect(limiter.run(() => limiter.acquire())).rejects.toThrow(NestedAcquireError);
  });

  it('lends while it is paused, and not once it is closed', async () => {
    const limiter = lending(1);
    await limiter.run(async () => {
      limiter.pause();
      expect(await limiter.run(() => 'lent')).toBe('lent');
      limiter.resume();
      void limiter.close();
      await expect(limiter.run(() => 1)).rejects.toMatchObject({ code: 'ERR_LIMITER_CLOSED' });
    });
  });

  it('emits both runs, and charges a tenant once for both', async () => {
    const limiter = lending(1, { fairBy: 'time' });
    const emitted: string[] = [];
    for (const event of ['queued', 'acquired', 'released'] as const)
      limiter.hooks.on(`permit:${event}`, ({ taskId, active }) =>
        emitted.push(`${event} ${taskId} ${active}`),
      );
    const inner = () => limiter.run(() => 1, { taskId: 'inner', tenant: 'a' });
    await limiter.run(inner, { taskId: 'outer', tenant: 'a' });
    expect(emitted).toEqual(['acquired outer 1', 'acquired inner 1', 'released inner 1', 'released outer 0']);
  });
});
