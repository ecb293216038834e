import { describe, expect, it } from 'vitest';
import { LimiterClosedError } from '../../src/errors.js';
import { ConcurrencyLimiter } from '../../src/limiter/concurrency-limiter.js';
import { deferred, endOfTurn, follow } from '../support/promises.js';

describe('ConcurrencyLimiter.map', () => {
  it('fulfills with the results in the order of the items, at most maxConcurrent at once', async () => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 2 });
    const gates = [deferred(), deferred(), deferred()];
    let most = 0;
    const mapped = limiter.map([0, 1, 2], async (item, { index }) => {
      most = Math.max(most, limiter.activeCount);
      await gates[item]!.promise;
      return `${item}${index}`;
    });
    for (const gate of gates.toReversed()) {
      await endOfTurn();
      gate.resolve();
    }
    expect(await mapped).toEqual(['00', '11', '22']);
    expect(most).toBe(2);
    expect(limiter.activeCount).toBe(0);
  });

  it('takes the next item when the previous one has its permit, so that others queue between the two', async () => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 1 });
    const order: unknown[] = [];
    let taken = 0;
    function* items() {
      for (; taken < 1_000; ) yield taken++;
    }
    const mapped = limiter.map(items(), (item) => {
      if (item < 3) order.push(item);
    });
    expect(taken).toBe(1);
    expect(limiter.queuedCount).toBe(0);
    await limiter.run(() => order.push('another caller'));
    await mapped;
    expect(taken).toBe(1_000);
    expect(order.indexOf('another caller')).toBeLessThan(3);
  });

  it('fulfills with nothing for no items, and takes any iterable', async () => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 1 });
    expect(await limiter.map([], () => 1)).toEqual([]);
    expect(await limiter.map(new Set(['a', 'b']), (item) => item.toUpperCase())).toEqual(['A', 'B']);
  });

  it('starts no item after a failure, aborts the signal of the running ones, and rejects when they have settled', async () => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 2 });
    const failure = new Error('no');
    const slow = deferred<string>();
    const started: number[] = [];
    let returned = false;
    function* items() {
      try {
        yield* [0, 1, 2, 3];
      } finally {
        returned = true;
      }
    }
    let seen: AbortSignal | undefined;
    const mapped = follow(
      limiter.map(items(), async (item, { signal }) => {
        started.push(item);
        if (item === 1) throw failure;
        seen = signal;
        return slow.promise;
      }),
    );
    await endOfTurn();
    expect(started).toEqual([0, 1]);
    expect(seen?.reason).toBe(failure);
    expect(returned).toBe(true);
    expect(mapped.now.is).toBe('pending');
    slow.resolve('late');
    await endOfTurn();
    expect(mapped.now).toEqual({ is: 'rejected', reason: failure });
    expect(limiter.stats()).toMatchObject({ active: 0, queued: 0 });
  });

  it('rejects with the reason of its signal, without starting what is queued', async () => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 1 });
    const held = await limiter.acquire();
    const controller = new AbortController();
    const started: number[] = [];
    const mapped = follow(limiter.map([1, 2], (item) => started.push(item), { signal: controller.signal }));
    await endOfTurn();
    expect(limiter.queuedCount).toBe(1);
    controller.abort('left');
    await endOfTurn();
    expect(mapped.now).toEqual({ is: 'rejected', reason: 'left' });
    expect(limiter.queuedCount).toBe(0);
    held.release();
    expect(started).toEqual([]);
  });

  it('fulfills if all items have started before its signal aborts, and none fails', async () => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 2 });
    const slow = deferred<string>();
    const controller = new AbortController();
    const mapped = limiter.map([1, 2], () => slow.promise, { signal: controller.signal });
    await endOfTurn();
    controller.abort('late');
    slow.resolve('done');
    expect(await mapped).toEqual(['done', 'done']);
  });

  it.each([undefined, null, new Error('reason')])('rejects with a failure that is %s', async (failure) => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 1 });
    const mapped = follow(limiter.map([1, 2], () => Promise.reject(failure)));
    await endOfTurn();
    expect(mapped.now).toEqual({ is: 'rejected', reason: failure });
  });

  it('rejects with what its iterable throws, once the running items have settled', async () => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 2 });
    const slow = deferred();
    const mapped = follow(
      limiter.map(
        (function* () {
          yield 1;
          throw new Error('no more');
        })(),
        () => slow.promise,
      ),
    );
    await endOfTurn();
    expect(mapped.now.is).toBe('pending');
    slow.resolve();
    await endOfTurn();
    expect(mapped.now).toMatchObject({ is: 'rejected', reason: { message: 'no more' } });
  });

  it('rejects as acquire does where an item gets no permit', async () => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 1 });
    void limiter.close();
    await expect(limiter.map([1], () => 1)).rejects.toBeInstanceOf(LimiterClosedError);
  });

  it('checks its arguments', async () => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 1 });
    await expect(limiter.map([1], 5 as never)).rejects.toThrow('Expected `fn` to be a function');
    await expect(limiter.map([1], () => 1, { weight: 2 })).rejects.toThrow(RangeError);
    for (const items of [5, {}, (async function* () {})(), { [Symbol.iterator]: () => ({ next: () => 5 }) }])
      await expect(limiter.map(items as never, () => 1)).rejects.toThrow(TypeError);
  });
});

describe('A disposed ConcurrencyLimiter', () => {
  it('is closed, and has waited for what it held', async () => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 1 });
    const held = await limiter.acquire();
    const waiting = follow(limiter.acquire());
    const disposed = follow(limiter[Symbol.asyncDispose]());
    await endOfTurn();
    expect(waiting.now).toMatchObject({ is: 'rejected', reason: { code: 'ERR_LIMITER_CLOSED' } });
    expect(disposed.now.is).toBe('pending');
    held.release();
    await endOfTurn();
    expect(disposed.now.is).toBe('fulfilled');
  });
});
