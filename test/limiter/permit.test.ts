import { describe, expect, it, vi } from 'vitest';
import { ConcurrencyLimiter } from '../../src/limiter/concurrency-limiter.js';
import type { Permit, RunContext } from '../../src/limiter/limiter.js';
import { useFakeTimers } from '../support/fake-timers.js';
import { deferred, endOfTurn } from '../support/promises.js';

const limiterOf = (maxConcurrent: number) => new ConcurrencyLimiter({ maxConcurrent });

describe('A permit', () => {
  it('is released once, however often release is called', async () => {
    const limiter = limiterOf(2);
    const first = await limiter.acquire();
    const second = await limiter.acquire();
    first.release();
    first.release();
    first[Symbol.dispose]();
    expect(limiter.activeCount).toBe(1);
    expect(limiter.tryAcquire()).toBeDefined();
    expect(limiter.tryAcquire()).toBeUndefined();
    second.release();
    expect(limiter.activeCount).toBe(1);
  });

  it('does not release the permit of the next holder when it is released late', async () => {
    const limiter = limiterOf(1);
    const first = await limiter.acquire();
    const next = limiter.acquire();
    first.release();
    first.release();
    expect(limiter.activeCount).toBe(1);
    expect(limiter.tryAcquire()).toBeUndefined();
    (await next).release();
    expect(limiter.activeCount).toBe(0);
  });

  it('is released by `using`, at the end of the block and when it throws', async () => {
    const limiter = limiterOf(1);
    {
      using permit = await limiter.acquire();
      expect(permit.weight).toBe(1);
      expect(limiter.activeCount).toBe(1);
    }
    expect(limiter.activeCount).toBe(0);
    const work = async () => {
      using _permit = await limiter.acquire();
      throw new Error('of the work');
    };
    await expect(work()).rejects.toThrow('of the work');
    expect(limiter.activeCount).toBe(0);
  });

  it('is released in spite of a misspelt outcome, which throws', async () => {
    const limiter = limiterOf(1);
    const permit = await limiter.acquire();
    const next = limiter.acquire();
    expect(() => permit.release('failed' as never)).toThrow(
      'Expected `outcome` to be "ok", "dropped" or "ignored", got "failed" (string)',
    );
    await next;
    expect(limiter.activeCount).toBe(1);
    expect(() => permit.release('failed' as never)).not.toThrow();
  });

  it('has a waitMs of 0 where it was free', async () => {
    const limiter = limiterOf(1);
    expect((await limiter.acquire()).waitMs).toBe(0);
  });

  it('has the milliseconds of its wait in waitMs', async () => {
    useFakeTimers();
    await endOfTurn();
    try {
      const limiter = limiterOf(1);
      const holder = await limiter.acquire();
      const next = limiter.acquire();
      await vi.advanceTimersByTimeAsync(1234);
      holder.release();
      expect((await next).waitMs).toBe(1234);
    } finally {
      vi.useRealTimers();
    }
  });
});

describe('ConcurrencyLimiter.run', () => {
  it('fulfills with the result of the work, and releases the permit', async () => {
    const limiter = limiterOf(1);
    expect(await limiter.run(() => 'at once')).toBe('at once');
    expect(await limiter.run(async () => 'later')).toBe('later');
    expect(limiter.activeCount).toBe(0);
  });

  it('calls the work synchronously where a permit is free', () => {
    const limiter = limiterOf(1);
    const work = vi.fn();
    void limiter.run(work);
    expect(work).toHaveBeenCalledOnce();
  });

  it('releases the permit only when the promise of the work has settled', async () => {
    const limiter = limiterOf(1);
    const { promise, resolve } = deferred<string>();
    const result = limiter.run(() => promise);
    await endOfTurn();
    expect(limiter.activeCount).toBe(1);
    resolve('done');
    expect(await result).toBe('done');
    expect(limiter.activeCount).toBe(0);
  });

  it.each([
    ['free', 0],
    ['waited for', 1],
  ])(
    'passes on what the work throws at once, and gives the permit back, when the permit was %s',
    async (_, held) => {
      const limiter = limiterOf(1);
      const holder = held === 1 ? await limiter.acquire() : undefined;
      const result = limiter.run(() => {
        throw new Error('at once');
      });
      holder?.release();
      await expect(result).rejects.toThrow('at once');
      expect(limiter.stats()).toMatchObject({ active: 0, queued: 0 });
    },
  );

  it('rejects with what the work rejects with, an error or not', async () => {
    const limiter = limiterOf(1);
    await expect(limiter.run(() => Promise.reject(undefined))).rejects.toBeUndefined();
    await expect(limiter.run(() => Promise.reject('words'))).rejects.toBe('words');
    expect(limiter.activeCount).toBe(0);
  });

  it('waits for a thenable as for a promise', async () => {
    const limiter = limiterOf(1);
    const { promise, resolve } = deferred<number>();
    // biome-ignore lint/suspicious/noThenProperty: a thenable is what is tested
    const thenable = { then: promise.then.bind(promise) } as PromiseLike<number>;
    const result = limiter.run(() => thenable);
    await endOfTurn();
    expect(limiter.activeCount).toBe(1);
    resolve(7);
    expect(await result).toBe(7);
    expect(limiter.activeCount).toBe(0);
  });

  it('loses no permit to a thenable that throws in `then`', async () => {
    const limiter = limiterOf(1);
    const thenGetter = Object.defineProperty({}, 'then', {
      get() {
        throw new Error('of the getter');
      },
    });
    await expect(limiter.run(() => thenGetter)).rejects.toThrow('of the getter');
    const broken = Object.assign(Promise.resolve(), {
      // biome-ignore lint/suspicious/noThenProperty: a broken promise is what is tested
      then() {
        throw new Error('of then itself');
      },
    });
    await expect(limiter.run(() => broken)).rejects.toThrow('of then itself');
    expect(limiter.activeCount).toBe(0);
  });

  it('lets no promise end the runs of others by a `then` that appears only at the second read', async () => {
    const limiter = limiterOf(1);
    let looks = 0;
    const twice = (onResult: () => void) => {
      onResult();
      queueMicrotask(onResult);
      return Promise.resolve('fine');
    };
    const get = () => (looks++ === 0 ? Promise.prototype.then : twice);
    const odd = Object.defineProperty(Promise.resolve('fine'), 'then', { get });
    expect(await limiter.run(() => odd)).toBe('fine');
    const others = ['a', 'b', 'c'].map((name) => limiter.run(() => name));
    expect(await Promise.all(others)).toEqual(['a', 'b', 'c']);
    expect(limiter.activeCount).toBe(0);
  });

  it('releases the permit once for a promise that calls back twice, also when another run has started meanwhile', async () => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 2 });
    let callBack: (() => void) | undefined;
    const twice = Promise.resolve();
    // biome-ignore lint/suspicious/noThenProperty: a promise with a `then` of its own is what is tested
    twice.then = ((onResult: () => void) => {
      callBack = onResult;
      onResult();
      return twice;
    }) as never;
    await limiter.run(() => twice);

    let end: (() => void) | undefined;
    const next = limiter.run(() => new Promise<void>((resolve) => (end = resolve)));
    callBack?.();
    expect(limiter.activeCount).toBe(1);
    end?.();
    await next;
    expect(limiter.activeCount).toBe(0);
    await Promise.all(Array.from({ length: 3 }, (_, i) => limiter.run(async () => i)));
    expect(limiter.stats()).toMatchObject({ active: 0, queued: 0, acquired: 5 });
  });

  it('ends no other run for a promise whose hidden `then` calls back, hands the permit over, and throws', async () => {
    const limiter = limiterOf(1);
    let looks = 0;
    const throwsLate = (onResult: () => void) => {
      onResult();
      throw new Error('of then itself');
    };
    const get = () => (looks++ === 0 ? Promise.prototype.then : throwsLate);
    const odd = Object.defineProperty(Promise.resolve(), 'then', { get });
    const { promise, resolve } = deferred<string>();
    let nextRuns: Promise<string> | undefined;
    const first = limiter.run(() => {
      nextRuns = limiter.run(() => promise);
      return odd;
    });
    await expect(first).rejects.toThrow('of then itself');
    await endOfTurn();
    expect(limiter.stats()).toMatchObject({ active: 1, queued: 0 });
    resolve('next');
    expect(await nextRuns).toBe('next');
    expect(limiter.activeCount).toBe(0);
  });

  it("passes the caller's own signal and the permit to the work", async () => {
    const limiter = limiterOf(2);
    const { signal } = new AbortController();
    await limiter.run(
      (context) => {
        expect(context.signal).toBe(signal);
        expect(context.permit.weight).toBe(2);
      },
      { signal, weight: 2 },
    );
    await limiter.run((context) => expect(context.signal).toBeUndefined());
  });

  it('lets the work release its permit early, once', async () => {
    const limiter = limiterOf(1);
    const { promise, resolve } = deferred();
    const first = limiter.run(({ permit }) => {
      permit.release('dropped');
      return promise;
    });
    expect(limiter.activeCount).toBe(0);
    const second = await limiter.acquire();
    resolve();
    await first;
    expect(limiter.activeCount).toBe(1);
    second.release();
  });

  it('releases with the outcome of the work: ok, or ignored where it failed', async () => {
    const limiter = limiterOf(1);
    const outcomes: string[] = [];
    limiter.hooks.on('permit:released', ({ outcome }) => outcomes.push(outcome));
    await limiter.run(() => 1);
    await limiter.run(() => Promise.reject(new Error('no'))).catch(() => {});
    await limiter.run(({ permit }) => permit.release('dropped'));
    await limiter
      .run(() => {
        throw new Error('no');
      })
      .catch(() => {});
    expect(outcomes).toEqual(['ok', 'ignored', 'dropped', 'ignored']);
  });

  it('leaves the rejection of the work to its caller, unhandled if the caller does not handle it', async () => {
    const limiter = limiterOf(1);
    const unhandled: unknown[] = [];
    const listen = (reason: unknown) => unhandled.push(reason);
    const others = process.listeners('unhandledRejection');
    process.removeAllListeners('unhandledRejection');
    process.on('unhandledRejection', listen);
    try {
      const reason = new Error('not handled');
      void limiter.run(() => Promise.reject(reason));
      await endOfTurn();
      await endOfTurn();
      expect(unhandled).toEqual([reason]);
    } finally {
      process.off('unhandledRejection', listen);
      for (const other of others) process.on('unhandledRejection', other);
    }
  });

  it('rejects what is not a function, without taking a permit', async () => {
    const limiter = limiterOf(1);
    await expect(limiter.run(undefined as never)).rejects.toThrow('Expected `fn` to be a function');
    await expect(limiter.run(Promise.resolve() as never, { weight: 1 })).rejects.toThrow(TypeError);
    expect(limiter.stats()).toMatchObject({ active: 0, acquired: 0 });
  });
});

describe('ConcurrencyLimiter.wrap', () => {
  it('returns a function that runs under the limit each time, with its own arguments and result', async () => {
    const limiter = limiterOf(1);
    let atOnce = 0;
    const add = limiter.wrap(async (a: number, b: number) => {
      atOnce++;
      expect(atOnce).toBe(1);
      await endOfTurn();
      atOnce--;
      return a + b;
    });
    expect(await Promise.all([add(1, 2), add(3, 4), add(5, 6)])).toEqual([3, 7, 11]);
    expect(limiter.activeCount).toBe(0);
  });

  it('applies its options to every call', async () => {
    const limiter = limiterOf(3);
    const weigh = limiter.wrap(() => limiter.activeCount, { weight: 2 });
    expect(await weigh()).toBe(2);
    expect(await weigh()).toBe(2);
  });

  it('throws for wrong options and for what is not a function', () => {
    const limiter = limiterOf(3);
    expect(() => limiter.wrap('fetch' as never)).toThrow(TypeError);
    expect(() => limiter.wrap(() => {}, { weight: 4 })).toThrow(RangeError);
    expect(() => limiter.wrap(() => {}, { timeout: 5 } as never)).toThrow('Unknown option `timeout`');
  });
});

describe('The permit that a run gets', () => {
  it.each([
    ['free', false],
    ['waited for', true],
  ])('is released once when the work releases it before its end, and it was %s', async (_, hasToWait) => {
    const limiter = limiterOf(1);
    const holder = hasToWait ? await limiter.acquire() : undefined;
    const { promise, resolve } = deferred<void>();
    const result = limiter.run(async ({ permit }) => {
      permit.release();
      permit[Symbol.dispose]();
      await promise;
    });
    holder?.release();
    await endOfTurn();
    expect(limiter.activeCount).toBe(0);
    const other = await limiter.acquire();
    resolve();
    await result;
    expect(limiter.activeCount).toBe(1);
    other.release();
    expect(limiter.stats()).toMatchObject({ active: 0, queued: 0 });
  });

  it('does not affect later runs when it is kept and released again and again', async () => {
    const limiter = limiterOf(2);
    const kept: Permit[] = [];
    const keep = ({ permit }: RunContext) => void kept.push(permit);
    await limiter.run(keep);
    await Promise.all([limiter.run(keep), limiter.run(keep), limiter.run(keep)]);
    await expect(limiter.run((context) => Promise.reject(keep(context)))).rejects.toBeUndefined();
    const { promise, resolve } = deferred<void>();
    const holding = [limiter.run(() => promise), limiter.run(() => promise), limiter.run(() => promise)];
    for (const permit of [...kept, ...kept]) permit.release();
    await endOfTurn();
    expect(limiter.stats()).toMatchObject({ active: 2, queued: 1 });
    resolve();
    await Promise.all(holding);
    expect(limiter.activeCount).toBe(0);
  });

  it('has weight 1 and waitMs 0 without options', async () => {
    const limiter = limiterOf(2);
    const { weight, waitMs } = await limiter.run(({ permit }) => permit);
    expect({ weight, waitMs }).toEqual({ weight: 1, waitMs: 0 });
  });

  it('is released in spite of a misspelt outcome, which throws', async () => {
    const limiter = limiterOf(1);
    const { promise, resolve } = deferred<void>();
    const result = limiter.run(({ permit }) => {
      expect(() => permit.release('failed' as never)).toThrow('Expected `outcome` to be');
      expect(() => permit.release('failed' as never)).not.toThrow();
      return promise;
    });
    expect(limiter.activeCount).toBe(0);
    resolve();
    await result;
    expect(limiter.activeCount).toBe(0);
  });

  it('is reported as released to a listener that was added while it was held', async () => {
    const limiter = limiterOf(1);
    const { promise, resolve } = deferred<void>();
    const result = limiter.run(() => promise);
    const emitted = vi.fn();
    limiter.hooks.on('permit:released', emitted);
    resolve();
    await result;
    expect(emitted).toHaveBeenCalledExactlyOnceWith(
      expect.objectContaining({ weight: 1, active: 0, outcome: 'ok', taskId: undefined }),
    );
  });

  it('is released with the outcome that the work passes, `ok` by default', async () => {
    const limiter = limiterOf(1);
    const emitted = vi.fn();
    const releaseHeard = (outcome?: 'dropped') =>
      limiter.run(({ permit }) => {
        limiter.hooks.once('permit:released', emitted);
        permit.release(outcome);
      });
    await releaseHeard();
    await releaseHeard('dropped');
    expect(emitted.mock.calls.map(([{ outcome }]) => outcome)).toEqual(['ok', 'dropped']);
  });

  it('is released by `using`', async () => {
    const limiter = limiterOf(1);
    await limiter.run((context) => {
      {
        using permit = context.permit;
        expect(permit.weight).toBe(1);
      }
      expect(limiter.activeCount).toBe(0);
    });
    expect(limiter.activeCount).toBe(0);
  });
});
