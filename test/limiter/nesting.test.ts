import { AsyncLocalStorage } from 'node:async_hooks';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { NestedAcquireError } from '../../src/errors.js';
import { ConcurrencyLimiter } from '../../src/limiter/concurrency-limiter.js';
import type { Permit, RunContext } from '../../src/limiter/limiter.js';
import { deferred, endOfTurn } from '../support/promises.js';

const detecting = (maxConcurrent: number) =>
  new ConcurrencyLimiter({ maxConcurrent, detectNested: true, name: 'admission' });

/** What becomes of a promise that needs no timer to settle; 'waits' where it does not. */
const soon = (promise: Promise<unknown>): Promise<unknown> =>
  Promise.race([promise.catch((error: unknown) => error), endOfTurn().then(() => 'waits')]);

describe('With detectNested', () => {
  it('refuses a run that would wait inside a run of the same limiter', async () => {
    const limiter = detecting(1);
    const outer = limiter.run(async () => {
      await endOfTurn();
      return limiter.run(() => 'inner');
    });
    const error = await outer.catch((error: unknown) => error);
    expect(error).toBeInstanceOf(NestedAcquireError);
    expect(error).toMatchObject({
      code: 'ERR_NESTED_ACQUIRE',
      message: expect.stringContaining('admission'),
    });
    expect(limiter.stats()).toMatchObject({ active: 0, queued: 0, rejected: 1 });
  });

  it('refuses an acquire there too: it would wait for the same end', async () => {
    const limiter = detecting(1);
    const outer = limiter.run(async () => {
      using _inner = await limiter.acquire();
    });
    await expect(outer).rejects.toThrow(NestedAcquireError);
    expect(limiter.activeCount).toBe(0);
  });

  it('refuses it through any number of calls and awaits, and in a wrapped function', async () => {
    const limiter = detecting(1);
    const tool = limiter.wrap(async () => 'found');
    const agent = async (depth: number): Promise<string> => {
      await endOfTurn();
      return depth === 0 ? tool() : agent(depth - 1);
    };
    await expect(limiter.run(() => agent(5))).rejects.toThrow(NestedAcquireError);
  });

  it('refuses it at any depth, when the innermost run holds the last permit', async () => {
    const limiter = detecting(3);
    const nest = (depth: number): Promise<number> =>
      limiter.run(async () => nest(depth + 1).catch(() => depth));
    expect(await nest(1)).toBe(1 + 2);
    expect(limiter.activeCount).toBe(0);
  });

  it('admits a nested run where there is room and no waiter', async () => {
    const limiter = detecting(2);
    expect(await limiter.run(() => limiter.run(() => 'inner'))).toBe('inner');
  });

  it('rejects a nested run that is too heavy for the room there is', async () => {
    const limiter = detecting(3);
    const outer = limiter.run(() => limiter.run(() => {}, { weight: 3 }));
    await expect(outer).rejects.toThrow(NestedAcquireError);
    expect(await limiter.run(() => limiter.run(() => 'fits', { weight: 2 }))).toBe('fits');
  });

  it('refuses a nested run behind others who wait, though it would fit', async () => {
    const limiter = detecting(2);
    const { promise, resolve } = deferred();
    const outer = limiter.run(async () => {
      await promise;
      return limiter.run(() => 'inner');
    });
    const heavy = limiter.run(() => 'heavy', { weight: 2 });
    resolve();
    await expect(outer).rejects.toThrow(NestedAcquireError);
    expect(await heavy).toBe('heavy');
  });

  it('finds it as well when the outer run had to wait for its permit', async () => {
    const limiter = detecting(1);
    const holder = await limiter.acquire();
    const outer = limiter.run(() => limiter.run(() => {}));
    holder.release();
    await expect(outer).rejects.toThrow(NestedAcquireError);
  });

  it('lets a run wait that was started inside and comes after the end of the outer', async () => {
    const limiter = detecting(1);
    const { promise, resolve } = deferred();
    let late: Promise<string> | undefined;
    await limiter.run(() => {
      void promise.then(() => {
        late = limiter.run(() => 'late');
      });
    });
    const holder = await limiter.acquire();
    resolve();
    await endOfTurn();
    expect(limiter.queuedCount).toBe(1);
    holder.release();
    expect(await late).toBe('late');
  });

  it('lets it wait once the outer run has given its permit back early', async () => {
    const limiter = detecting(1);
    const result = limiter.run(async ({ permit }) => {
      permit.release();
      const holder = await limiter.acquire();
      const inner = limiter.run(() => 'inner');
      holder.release();
      return inner;
    });
    expect(await result).toBe('inner');
  });

  it('rejects a nested run that nothing inside awaits as well: the two cannot be distinguished', async () => {
    const limiter = detecting(1);
    let forgotten: Promise<unknown> = Promise.resolve();
    await limiter.run(() => {
      forgotten = limiter.run(() => {}).catch((error: unknown) => error);
    });
    expect(await forgotten).toBeInstanceOf(NestedAcquireError);
  });

  it('leaves requests outside, and runs of another limiter, alone', async () => {
    const limiter = detecting(1);
    const other = detecting(1);
    const { promise, resolve } = deferred();
    const outer = limiter.run(() => other.run(() => promise));
    const waiting = [limiter.run(() => 'mine'), other.run(() => 'its')];
    expect([limiter.queuedCount, other.queuedCount]).toEqual([1, 1]);
    resolve();
    await outer;
    expect(await Promise.all(waiting)).toEqual(['mine', 'its']);
  });

  it('says that the limiter is closed, or that the signal has aborted, where that is the reason', async () => {
    const limiter = detecting(1);
    await limiter.run(async () => {
      await expect(limiter.run(() => {}, { signal: AbortSignal.abort('gone') })).rejects.toBe('gone');
      void limiter.close();
      await expect(limiter.run(() => {})).rejects.toThrow('admission is closed');
    });
  });

  it('reports it in permit:rejected as nested', async () => {
    const limiter = detecting(1);
    const emitted: unknown[] = [];
    limiter.hooks.on('permit:rejected', ({ reason, taskId, weight }) =>
      emitted.push({ reason, taskId, weight }),
    );
    await limiter.run(() => limiter.run(() => {}, { taskId: 'inner' }).catch(() => {}));
    expect(emitted).toEqual([{ reason: 'nested', taskId: 'inner', weight: 1 }]);
  });
});

describe('With detectNested, and several runs around', () => {
  it('refuses what waits for the outer one when the inner has given its permit back early', async () => {
    const limiter = detecting(2);
    const outer = limiter.run(() =>
      limiter.run(({ permit }) => {
        permit.release();
        return limiter.run(() => 'innermost', { weight: 2 });
      }),
    );
    expect(await soon(outer)).toBeInstanceOf(NestedAcquireError);
    expect(limiter.stats()).toMatchObject({ active: 0, queued: 0, rejected: 1 });
  });

  it('refuses it through a run of another limiter in between, held or over', async () => {
    for (const early of [false, true]) {
      const limiter = detecting(1);
      const other = detecting(1);
      const between = ({ permit }: RunContext) => {
        if (early) permit.release();
        return limiter.run(() => 'innermost');
      };
      const outer = limiter.run(() => other.run(between));
      expect(await soon(outer)).toBeInstanceOf(NestedAcquireError);
      expect([limiter.activeCount, other.activeCount]).toEqual([0, 0]);
    }
  });

  it('refuses it through any number of runs that are over', async () => {
    const limiter = detecting(2);
    const nest = (depth: number): Promise<unknown> =>
      limiter.run(({ permit }) => {
        permit.release();
        return depth === 0 ? limiter.run(() => 'innermost', { weight: 2 }) : nest(depth - 1);
      });
    expect(await soon(limiter.run(() => nest(10)))).toBeInstanceOf(NestedAcquireError);
    expect(await soon(nest(10))).toBe('innermost');
  });

  it('lets it wait when all runs of the same limiter around it are over, whatever others hold', async () => {
    const limiter = detecting(1);
    const other = detecting(1);
    let holder: Permit | undefined;
    const result = limiter.run(({ permit }) =>
      other.run(() => {
        permit.release();
        holder = limiter.tryAcquire();
        return limiter.run(() => 'inner');
      }),
    );
    expect(await soon(result)).toBe('waits');
    holder?.release();
    expect(await result).toBe('inner');
  });

  it('keeps nothing of the runs before in a loop that starts its own successor', async () => {
    const limiter = detecting(2);
    const permits: WeakRef<Permit>[] = [];
    const kept = () => permits.filter((permit) => permit.deref() !== undefined).length;
    const last = deferred();
    const step = async (left: number): Promise<void> => {
      await limiter.run(async ({ permit }) => {
        permits.push(new WeakRef(permit));
        await endOfTurn();
        if (left === 0) await last.promise;
        else void step(left - 1);
      });
    };
    void step(200);
    while (permits.length <= 200) await endOfTurn();
    await endOfTurn();
    expect(limiter.activeCount).toBe(1);
    globalThis.gc?.();
    expect(permits.at(-1)?.deref()).toBeDefined();
    expect(kept()).toBeLessThan(5);
    last.resolve();
    await limiter.onIdle();
  });
});

describe('The AsyncLocalStorage behind it', () => {
  const entered = () => vi.spyOn(AsyncLocalStorage.prototype, 'run');
  afterEach(() => void vi.restoreAllMocks());

  it('is one for all limiters: each one ever used makes every await dearer', async () => {
    const run = entered();
    const limiters = Array.from({ length: 20 }, () => detecting(1));
    for (const limiter of limiters) await limiter.run(() => {});
    expect(run).toHaveBeenCalledTimes(20);
    expect(new Set(run.mock.contexts).size).toBe(1);
  });

  it('is neither entered nor asked without detectNested, by free, waiting and nested runs', async () => {
    const { prototype } = AsyncLocalStorage;
    const calls = [entered(), vi.spyOn(prototype, 'enterWith'), vi.spyOn(prototype, 'getStore')];
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 2 });
    const nested = limiter.run(() => limiter.run(() => 'nested'));
    const waiting = limiter.run(() => 'waited', { weight: 2 });
    const refused = limiter.run(() => {}, { timeoutMs: 0 }).catch(() => 'refused');
    expect(await Promise.all([nested, waiting, refused])).toEqual(['nested', 'waited', 'refused']);
    for (const call of calls) expect(call).not.toHaveBeenCalled();
  });
});

describe('Without detectNested', () => {
  it('lets a nested run wait: a timeout is what ends it', async () => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 1 });
    const outer = limiter.run(() => limiter.run(() => {}, { timeoutMs: 1 }));
    await expect(outer).rejects.toMatchObject({ code: 'ERR_ACQUIRE_TIMEOUT' });
    expect(limiter.activeCount).toBe(0);
  });
});
