import { AsyncLocalStorage } from 'node:async_hooks';
import { afterEach, describe, expect, it, vi } from 'vitest';
import type { LimiterEvents } from '../../src/hooks/events.js';
import { channels, LifecycleHooks } from '../../src/hooks/lifecycle-hooks.js';
import { ConcurrencyLimiter } from '../../src/limiter/concurrency-limiter.js';
import type { Permit } from '../../src/limiter/limiter.js';
import { onFakeTimers } from '../support/fake-timers.js';
import { deferred, endOfTurn } from '../support/promises.js';

const CALLERS = 100;
const caller = new AsyncLocalStorage<string>();

/** Calls `job` once for each of 100 callers, each in a context of its own, and waits for all. */
const asEach = <R>(job: (taskId: string, index: number) => Promise<R>): Promise<R[]> =>
  Promise.all(Array.from({ length: CALLERS }, (_, i) => caller.run(`task ${i}`, () => job(`task ${i}`, i))));

type Listener = (payload: LimiterEvents['permit:released']) => void;

let unsubscribe = () => {};

/** Listens to the channel of permit:released, and to no hooks. */
function subscribe(listener: Listener): undefined {
  const channel = channels['permit:released'];
  const onMessage = (message: unknown) =>
    listener((message as { payload: LimiterEvents['permit:released'] }).payload);
  channel.subscribe(onMessage);
  unsubscribe = () => void channel.unsubscribe(onMessage);
}

/** Hooks that note, for each event of a request, whether its listener saw the context of that request. */
function contextHooks() {
  const hooks = new LifecycleHooks();
  const right: Record<string, number> = {};
  const wrong: string[] = [];
  const events = ['permit:queued', 'permit:acquired', 'permit:released', 'permit:rejected'] as const;
  for (const event of events) {
    hooks.on(event, ({ taskId }: LimiterEvents[typeof event]) => {
      if (caller.getStore() === taskId) right[event] = (right[event] ?? 0) + 1;
      else wrong.push(`${event} of ${taskId} in the context of ${caller.getStore()}`);
    });
  }
  return { hooks, right, wrong };
}

describe('The AsyncLocalStorage context of 100 concurrent callers', () => {
  it.each([1, 3, 1000])('holds inside run and after it, with %d at once', async (maxConcurrent) => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent });
    await asEach(async (taskId, i) => {
      const seen = await limiter.run(async () => {
        const first = caller.getStore();
        if (i % 2 === 0) await endOfTurn();
        else await undefined;
        return [first, caller.getStore()];
      });
      expect([...seen, caller.getStore()]).toEqual([taskId, taskId, taskId]);
    });
  });

  it('holds after acquire, whatever context released', async () => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 2 });
    await asEach(async (taskId, i) => {
      const permit = await limiter.acquire({ weight: (i % 2) + 1, priority: i % 3 });
      expect(caller.getStore()).toBe(taskId);
      await endOfTurn();
      caller.run('another caller', () => permit.release());
    });
    expect(limiter.activeCount).toBe(0);
  });

  it('holds in the hooks of the request itself: queued, acquired, released', async () => {
    const { hooks, right, wrong } = contextHooks();
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 3, hooks });
    await asEach((taskId) => limiter.run(() => endOfTurn(), { taskId }));
    expect(wrong).toEqual([]);
    expect(right).toEqual({ 'permit:queued': 97, 'permit:acquired': 100, 'permit:released': 100 });
  });

  it('holds in permit:rejected when another caller aborts or closes', async () => {
    for (const end of ['abort', 'close'] as const) {
      const { hooks, right, wrong } = contextHooks();
      const limiter = new ConcurrencyLimiter({ maxConcurrent: 1, hooks });
      const controller = new AbortController();
      const holder = caller.run('holder', () => limiter.tryAcquire() as Permit);
      // The holder names no task.
      wrong.length = 0;
      const all = asEach((taskId) =>
        limiter.acquire({ taskId, signal: controller.signal }).catch(() => caller.getStore()),
      );
      caller.run('another caller', () => {
        if (end === 'abort') controller.abort();
        else void limiter.close();
      });
      expect(new Set(await all).size).toBe(CALLERS);
      expect(wrong).toEqual([]);
      expect(right).toMatchObject({ 'permit:queued': 100, 'permit:rejected': 100 });
      holder.release();
    }
  });

  it('holds in permit:rejected on arrival', async () => {
    const { hooks, right, wrong } = contextHooks();
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 1, maxQueue: 0, hooks });
    const holder = caller.run('task 0', () => limiter.acquire({ taskId: 'task 0' }));
    await asEach((taskId) => limiter.run(() => {}, { taskId }).catch(() => {}));
    expect(wrong).toEqual([]);
    expect(right).toMatchObject({ 'permit:acquired': 1, 'permit:rejected': 100 });
    await holder;
  });

  describe('with fake timers', () => {
    onFakeTimers();

    it('holds in permit:rejected when the time is up', async () => {
      const { hooks, right, wrong } = contextHooks();
      const limiter = new ConcurrencyLimiter({ maxConcurrent: 1, hooks });
      limiter.tryAcquire();
      const all = asEach((taskId, i) =>
        limiter.acquire({ taskId, timeoutMs: 10 + i }).catch(() => caller.getStore()),
      );
      await caller.run('another caller', () => vi.advanceTimersByTimeAsync(10 + CALLERS));
      expect(new Set(await all).size).toBe(CALLERS);
      expect(wrong).toEqual([]);
      expect(right).toMatchObject({ 'permit:queued': 100, 'permit:rejected': 100 });
    });
  });
});

describe.each<[string, (listener: Listener) => LifecycleHooks | undefined]>([
  ['hooks', (listener) => new LifecycleHooks().on('permit:released', listener)],
  ['a diagnostics channel alone', subscribe],
])('The context in which permit:released is emitted, by %s,', (_, listen) => {
  /** A limiter whose releases are recorded, each with the context in which it was emitted. */
  function listenedTo(maxConcurrent: number) {
    const emitted: [taskId: string | undefined, context: string | undefined][] = [];
    const name = `limiter ${Math.random()}`;
    const listener: Listener = ({ source, taskId }) => {
      if (source === name) emitted.push([taskId, caller.getStore()]);
    };
    return { limiter: new ConcurrencyLimiter({ maxConcurrent, name, hooks: listen(listener) }), emitted };
  }
  afterEach(() => unsubscribe());

  const byAnother = (permit: Permit | undefined) => caller.run('another', () => permit?.release());

  it('is that of the request for a free permit, wherever it is released', async () => {
    const { limiter, emitted } = listenedTo(3);
    const permits = await caller.run('a', () =>
      Promise.all([limiter.acquire(), limiter.acquire({ taskId: 'named', weight: 1 })]),
    );
    const tried = caller.run('b', () => limiter.tryAcquire());
    for (const permit of [...permits, tried]) byAnother(permit);
    expect(emitted).toEqual([
      [undefined, 'a'],
      ['named', 'a'],
      [undefined, 'b'],
    ]);
  });

  it('is that of the request that waited, whatever made room and wherever it is released', async () => {
    const { limiter, emitted } = listenedTo(1);
    const holder = caller.run('holder', () => limiter.tryAcquire());
    const plain = caller.run('a', () => limiter.acquire());
    const withOptions = caller.run('b', () => limiter.acquire({ taskId: 'named', priority: -1 }));
    byAnother(holder);
    byAnother(await plain);
    byAnother(await withOptions);
    expect(emitted).toEqual([
      [undefined, 'holder'],
      [undefined, 'a'],
      ['named', 'b'],
    ]);
  });

  it('is that of its caller when a run ends, or another caller releases its permit early', async () => {
    const { limiter, emitted } = listenedTo(1);
    const end = deferred();
    const results = ['a', 'b', 'c'].map((name, i) =>
      caller.run(name, () =>
        limiter.run(({ permit }) => {
          if (i !== 1) byAnother(permit);
          return end.promise;
        }),
      ),
    );
    caller.run('another', () => end.resolve());
    await Promise.all(results);
    expect(emitted.map(([, context]) => context)).toEqual(['a', 'b', 'c']);
  });
});
