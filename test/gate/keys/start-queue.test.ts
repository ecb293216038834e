import { afterEach, describe, expect, it, vi } from 'vitest';
import { KeyRing } from '../../../src/gate/keys/key-ring.js';
import { ServiceGate } from '../../../src/gate/service-gate.js';
import { JobQueue } from '../../../src/internal/job-queue.js';
import { onFakeTimers, settled } from '../../support/fake-timers.js';
import { httpError } from '../../support/gates.js';
import { deferred, endOfTurn, microtasks } from '../../support/promises.js';

onFakeTimers();
afterEach(() => vi.restoreAllMocks());

describe('calls that wait for a window', () => {
  it('start in the order of their priorities, then of their arrival, on one job for each priority', async () => {
    const jobs = vi.spyOn(JobQueue.prototype, 'run');
    const gate = new ServiceGate({ name: 'search', rate: [{ limit: 1, perMs: 100 }] });
    await gate.run(() => {});
    const order: string[] = [];
    const call = (name: string, priority: number) => gate.run(() => void order.push(name), { priority });
    const calls = [call('a', 0), call('b', 0), call('c', 2), call('d', 1), call('e', 2), call('f', 0)];
    await settled();
    // The job of priority 0 ran first, and queued again.
    expect(jobs).toHaveBeenCalledTimes(4);
    await vi.advanceTimersByTimeAsync(100);
    calls.push(call('g', 3));
    await vi.advanceTimersByTimeAsync(600);
    await Promise.all(calls);
    expect(order).toEqual(['c', 'g', 'e', 'd', 'a', 'b', 'f']);
  });

  it('start in one wake-up as far as the window is free then', async () => {
    const gate = new ServiceGate({ name: 'search', rate: [{ limit: 3, perMs: 100 }] });
    const started: number[] = [];
    const calls = Array.from({ length: 9 }, () => gate.run(() => void started.push(Date.now())));
    const from = Date.now();
    await settled();
    const timers = vi.spyOn(globalThis, 'setTimeout');
    await vi.advanceTimersByTimeAsync(200);
    await Promise.all(calls);
    expect(started.map((ms) => ms - from)).toEqual([0, 0, 0, 100, 100, 100, 200, 200, 200]);
    expect(timers.mock.calls.filter(([, ms]) => ms === 100)).toHaveLength(1);
  });

  it('search for a key only where one may have become free', async () => {
    const gate = new ServiceGate({ name: 'search', maxConcurrent: 50, rate: [{ limit: 20, perMs: 100 }] });
    const ends = Array.from({ length: 20 }, () => deferred());
    const running = ends.map(({ promise }) => gate.run(() => promise));
    const waiting = Array.from({ length: 20 }, () => gate.run(() => {}));
    await settled();
    const searches = vi.spyOn(KeyRing.prototype, 'take');
    for (const { resolve } of ends) resolve();
    await Promise.all(running);
    await settled();
    expect(searches).not.toHaveBeenCalled();
    await vi.advanceTimersByTimeAsync(100);
    await Promise.all(waiting);
    expect(searches).toHaveBeenCalledTimes(20);
  });

  it('start as soon as a heavier one ahead is aborted', async () => {
    const gate = new ServiceGate({ name: 'llm', rate: [{ limit: 10, perMs: 100, unit: 'weight' }] });
    await gate.run(() => {}, { weight: 8 });
    const abort = new AbortController();
    const heavy = gate.run(() => {}, { weight: 5, signal: abort.signal });
    const light = vi.fn();
    const calls = [gate.run(light, { weight: 1 }), gate.run(light, { weight: 1 })];
    await settled();
    expect(light).not.toHaveBeenCalled();
    abort.abort(new Error('left'));
    await expect(heavy).rejects.toThrow('left');
    await Promise.all(calls);
    expect(light).toHaveBeenCalledTimes(2);
    expect(vi.getTimerCount()).toBe(0);
  });

  it('start as soon as one ahead has to wait for a cooldown', async () => {
    const keys = [
      { key: 'key-a', rate: [{ limit: 10, perMs: 100, unit: 'weight' as const }] },
      { key: 'key-b', rate: [{ limit: 2, perMs: 100, unit: 'weight' as const }] },
    ];
    // The cooldown begins before the body of the 429 has been read.
    const [response, body] = [deferred<Response>(), deferred()];
    const gate = new ServiceGate({
      name: 'llm',
      keys,
      retry: { attempts: 1 },
      classify: async (observed) => {
        if ('value' in observed && observed.value instanceof Response) await body.promise;
        return undefined;
      },
    });
    const used: string[] = [];
    const failing = gate.run(
      ({ key }) => {
        used.push(key);
        return response.promise;
      },
      { weight: 8 },
    );
    const heavy = gate.run(({ key }) => void used.push(key), { weight: 5 });
    const light = gate.run(({ key }) => void used.push(key), { weight: 1 });
    await settled();
    expect(used).toEqual(['key-a']);
    response.resolve(new Response('', { status: 429, headers: { 'retry-after': '1' } }));
    await settled();
    await endOfTurn();
    expect(used).toEqual(['key-a', 'key-b']);
    body.resolve();
    await vi.advanceTimersByTimeAsync(2_000);
    await Promise.all([failing, light, heavy]);
    expect(used).toEqual(['key-a', 'key-b', 'key-a']);
  });

  it('start at their own time once a heavier one ahead, which waited for longer, is aborted', async () => {
    const gate = new ServiceGate({ name: 'llm', rate: [{ limit: 10, perMs: 100, unit: 'weight' }] });
    await gate.run(() => {}, { weight: 4 });
    await vi.advanceTimersByTimeAsync(50);
    await gate.run(() => {}, { weight: 6 });
    const abort = new AbortController();
    const heavy = gate.run(() => {}, { weight: 10, signal: abort.signal });
    const light = vi.fn();
    const call = gate.run(light, { weight: 3 });
    await settled();
    abort.abort(new Error('left'));
    await expect(heavy).rejects.toThrow('left');
    await vi.advanceTimersByTimeAsync(49);
    expect(light).not.toHaveBeenCalled();
    await vi.advanceTimersByTimeAsync(1);
    expect(light).toHaveBeenCalled();
    await call;
  });

  it.each(Array.from({ length: 12 }, (_, i) => i))(
    'start in place of one that is aborted %i microtasks after its window opened',
    async (count) => {
      const gate = new ServiceGate({ name: 'search', rate: [{ limit: 1, perMs: 100 }] });
      await gate.run(() => {});
      const abort = new AbortController();
      const began: string[] = [];
      const calls = [
        gate.run(() => void began.push('first'), { signal: abort.signal }).catch(() => {}),
        gate.run(() => void began.push('second')),
      ];
      await settled();
      vi.advanceTimersByTime(100);
      await microtasks(count);
      abort.abort(new Error('left'));
      await microtasks(60);
      expect(began).toHaveLength(1);
      await vi.advanceTimersByTimeAsync(100);
      await Promise.all(calls);
      expect(began.at(-1)).toBe('second');
    },
  );

  it.each(Array.from({ length: 12 }, (_, i) => i))(
    'leave nothing behind when they are aborted %i microtasks after a permit is free',
    async (count) => {
      const gate = new ServiceGate({
        name: 'search',
        maxConcurrent: 1,
        rate: [{ limit: 1, perMs: 100 }],
      });
      const end = deferred();
      const running = gate.run(() => end.promise);
      const abort = new AbortController();
      const waiting = expect(gate.run(() => {}, { signal: abort.signal })).rejects.toThrow('left');
      await settled();
      end.resolve();
      await microtasks(count);
      abort.abort(new Error('left'));
      await waiting;
      await running;
      expect(gate.stats()).toMatchObject({ queuedForStart: 0, limiter: { active: 0 } });
      expect(vi.getTimerCount()).toBe(0);
    },
  );

  it('start a second attempt without the wait of the first', async () => {
    const gate = new ServiceGate({ name: 'search', keys: ['key-a', 'key-b'], maxConcurrent: 1 });
    const waits: number[] = [];
    gate.hooks.on('call:started', ({ waitMs }) => void waits.push(waitMs));
    const end = deferred();
    const running = gate.run(() => end.promise);
    const retried = gate.run(({ attempt }) => {
      if (attempt === 1) throw httpError(429, { 'retry-after': '1' });
    });
    await vi.advanceTimersByTimeAsync(50);
    end.resolve();
    await Promise.all([running, retried]);
    expect(waits).toEqual([0, 50, 0]);
  });

  it('take nothing of a key if a listener aborts them as the key is restored', async () => {
    const gate = new ServiceGate({ name: 'search', retry: { attempts: 1 } });
    await gate.run(() => Promise.reject(httpError(429, { 'retry-after-ms': '100' }))).catch(() => {});
    await vi.advanceTimersByTimeAsync(100);
    const end = deferred();
    const probe = gate.run(() => end.promise);
    const abort = new AbortController();
    gate.hooks.on('key:restored', () => abort.abort(new Error('left')));
    const left = expect(gate.run(() => {}, { signal: abort.signal })).rejects.toThrow('left');
    // A probe that runs for so long counts as a success.
    await vi.advanceTimersByTimeAsync(1_000);
    await left;
    end.resolve();
    await probe;
    expect(gate.stats().keys).toMatchObject([{ state: 'ready', inUse: 0 }]);
    expect(vi.getTimerCount()).toBe(0);
  });

  it('all release their permits when a cooldown begins, however many they are', async () => {
    const gate = new ServiceGate({
      name: 'search',
      maxConcurrent: 1_000,
      rate: [{ limit: 1, perMs: 100 }],
      retry: { attempts: 1 },
    });
    const failing = gate.run(async () => {
      await settled();
      throw httpError(429, { 'retry-after': '1' });
    });
    const calls = Array.from({ length: 450 }, () => gate.run(() => {}));
    await expect(failing).rejects.toThrow();
    await settled();
    // A batch in each turn of the real event loop.
    for (let turn = 0; turn < 20; turn++) await endOfTurn();
    expect(gate.stats()).toMatchObject({ queuedForStart: 0, backingOff: 450, limiter: { active: 0 } });
    await vi.advanceTimersByTimeAsync(60_000);
    await Promise.all(calls);
  });
});

describe('a listener of `key:restored`, which a search for a key emits', () => {
  async function onTrial() {
    const gate = new ServiceGate({
      name: 'search',
      keys: ['key-a'],
      sharedRate: [{ limit: 3, perMs: 10_000 }],
      retry: { attempts: 1 },
    });
    await gate.run(() => Promise.reject(httpError(429, { 'retry-after': '1' }))).catch(() => {});
    await vi.advanceTimersByTimeAsync(1_000);
    void gate.run(() => new Promise(() => {}));
    await vi.advanceTimersByTimeAsync(1_000);
    return gate;
  }

  it('may start a call that takes the last start of a shared window', async () => {
    const gate = await onTrial();
    const started = vi.fn();
    gate.hooks.on('key:restored', () => void gate.run(started));
    void gate.run(started);
    await settled();
    expect(started).toHaveBeenCalledTimes(1);
    await vi.advanceTimersByTimeAsync(8_000);
    expect(started).toHaveBeenCalledTimes(2);
  });

  it('may pause the gate: nothing starts any more', async () => {
    const gate = await onTrial();
    const started = vi.fn();
    gate.hooks.on('key:restored', () => gate.pause());
    void gate.run(started);
    await settled();
    expect(started).not.toHaveBeenCalled();
    gate.resume();
    await settled();
    expect(started).toHaveBeenCalledTimes(1);
  });
});
