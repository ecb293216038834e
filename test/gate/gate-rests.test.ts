import { AsyncLocalStorage } from 'node:async_hooks';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { ServiceGate } from '../../src/gate/service-gate.js';
import { ConcurrencyLimiter } from '../../src/limiter/concurrency-limiter.js';
import { countListeners, deferred, follow, httpError, recorder, settle } from './support.js';

beforeEach(() => {
  vi.useFakeTimers();
});
afterEach(() => {
  vi.useRealTimers();
  vi.restoreAllMocks();
});

const refused = (seconds: number) => Promise.reject(httpError(429, { 'retry-after': String(seconds) }));
const idle = { running: 0, waitingForStart: 0, backingOff: 0, keys: [{ inUse: 0 }] };

describe('a rest of all keys', () => {
  it('holds no permit of a limiter that the gate shares with another', async () => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 2 });
    const chat = new ServiceGate({ name: 'chat', limiter, retry: { attempts: 1 } });
    const embed = new ServiceGate({ name: 'embed', limiter });
    await chat.run(() => refused(3)).catch(() => {});
    const resting = [follow(chat.run(() => 1)), follow(chat.run(() => 2))];
    await settle();
    expect(chat.stats()).toMatchObject({ waitingForStart: 0, backingOff: 2, limiter: { active: 0 } });
    await expect(embed.run(() => 'at once')).resolves.toBe('at once');
    expect(performance.now()).toBe(0);
    await vi.advanceTimersByTimeAsync(2_999);
    expect(resting.map((call) => call.now.is)).toEqual(['pending', 'pending']);
    await vi.advanceTimersByTimeAsync(1);
    expect(resting.map((call) => call.now.is)).toEqual(['fulfilled', 'fulfilled']);
    expect(vi.getTimerCount()).toBe(0);
  });

  it('takes the permits back of those who wait for a start already, or get one meanwhile', async () => {
    const gate = new ServiceGate({
      name: 'search',
      maxConcurrent: 3,
      rate: [{ limit: 2, perMs: 1_000 }],
      retry: { attempts: 1 },
    });
    const [first, long] = [deferred<never>(), deferred<string>()];
    follow(gate.run(() => first.promise));
    const running = follow(gate.run(() => long.promise));
    const order: number[] = [];
    const calls = [3, 4, 5, 6].map((i) => follow(gate.run(() => void order.push(i))));
    await settle();
    expect(gate.stats()).toMatchObject({ waitingForStart: 1, limiter: { active: 3, queued: 3 } });
    first.reject(httpError(429, { 'retry-after': '5' }));
    await settle();
    expect(gate.stats()).toMatchObject({
      waitingForStart: 0,
      backingOff: 4,
      limiter: { active: 1, queued: 0 },
    });
    long.resolve('done');
    await settle();
    expect([running.now.is, gate.stats().limiter!.active]).toEqual(['fulfilled', 0]);
    await vi.advanceTimersByTimeAsync(10_000);
    expect(calls.map((call) => call.now.is)).toEqual(Array(4).fill('fulfilled'));
    expect(order).toEqual([3, 4, 5, 6]);
    expect(gate.stats()).toMatchObject({ ...idle, limiter: { active: 0, queued: 0 } });
  });

  it('is followed in order of priority, whoever waited first', async () => {
    const gate = new ServiceGate({ name: 'search', maxConcurrent: 2, retry: { attempts: 1 } });
    const order: string[] = [];
    const call = (name: string, priority = 0) =>
      gate.run(
        async () => {
          order.push(name);
          await new Promise((resolve) => setTimeout(resolve, 10));
        },
        { priority },
      );
    await gate.run(() => refused(3)).catch(() => {});
    const calls = [call('low 1'), call('low 2'), call('urgent', 1), call('low 3'), call('urgent too', 1)];
    await vi.advanceTimersByTimeAsync(3_100);
    await Promise.all(calls);
    expect(order).toEqual(['urgent', 'urgent too', 'low 1', 'low 2', 'low 3']);
  });

  it('is followed by one first, and by the others gradually', async () => {
    const gate = new ServiceGate({ name: 'llm', maxConcurrent: 10, retry: { attempts: 1 } });
    const all = deferred<never>();
    const crowd = Array.from({ length: 10 }, () => follow(gate.run(() => all.promise)));
    await settle();
    all.reject(httpError(429, { 'retry-after': '2' }));
    await settle();
    expect(crowd.every((call) => call.now.is === 'rejected')).toBe(true);
    const starts: number[] = [];
    for (let i = 0; i < 30; i++) {
      follow(
        gate.run(async () => {
          starts.push(performance.now());
          await new Promise((resolve) => setTimeout(resolve, 100));
        }),
      );
    }
    await vi.advanceTimersByTimeAsync(2_350);
    const waves = [2_000, 2_100, 2_200, 2_300].map((atMs) => starts.filter((ms) => ms === atMs).length);
    expect(waves).toEqual([1, 2, 4, 8]);
    await vi.advanceTimersByTimeAsync(10_000);
    expect(starts).toHaveLength(30);
  });

  it('that the probe proves too short sends everybody back to wait, in their order', async () => {
    const gate = new ServiceGate({ name: 'search', maxConcurrent: 3, retry: { attempts: 1 } });
    const order: number[] = [];
    let down = true;
    const call = (i: number) =>
      follow(
        gate.run(async () => {
          order.push(i);
          await new Promise((resolve) => setTimeout(resolve, 20));
          if (down) await refused(2);
        }),
      );
    await gate.run(() => refused(2)).catch(() => {});
    const calls = [1, 2, 3, 4].map(call);
    await vi.advanceTimersByTimeAsync(2_010);
    // The probe, and two who wait to follow it.
    expect(gate.stats()).toMatchObject({ running: 1, limiter: { active: 3 } });
    const late = call(5);
    await vi.advanceTimersByTimeAsync(20);
    expect(gate.stats()).toMatchObject({ running: 0, backingOff: 4, limiter: { active: 0 } });
    down = false;
    await vi.advanceTimersByTimeAsync(5_000);
    expect(order).toEqual([1, 2, 3, 4, 5]);
    expect([...calls, late].map((c) => c.now.is)).toEqual(['rejected', ...Array(4).fill('fulfilled')]);
  });

  it('that ends by hand lets nobody pass who comes in that very step', async () => {
    const gate = new ServiceGate({
      name: 'search',
      keys: ['a-key'],
      maxConcurrent: 1,
      retry: { attempts: 1 },
    });
    const order: string[] = [];
    const call = (name: string) => gate.run(() => void order.push(name));
    await gate.run(() => refused(60)).catch(() => {});
    const waiting = [call('first'), call('second')];
    await settle();
    gate.restoreKey('a-key');
    const newcomers = [call('newcomer')];
    for (let i = 0; i < 4; i++) {
      await Promise.resolve();
      newcomers.push(call(`newcomer ${i}`));
    }
    await Promise.all([...waiting, ...newcomers]);
    expect(order.slice(0, 3)).toEqual(['first', 'second', 'newcomer']);
    expect(performance.now()).toBe(0);
    expect(vi.getTimerCount()).toBe(0);
  });

  it('that begins in the steps before a start costs that call no place before others', async () => {
    for (let steps = -20; steps < 30; steps++) {
      for (let gap = 0; gap < 10; gap++) {
        const gate = new ServiceGate({ name: 'search', maxConcurrent: 2, retry: { attempts: 1 } });
        const order: string[] = [];
        const first = deferred<never>();
        follow(gate.run(() => first.promise));
        await settle();
        const refuse = () => first.reject(httpError(429, { 'retry-after': '1' }));
        if (steps < 0) refuse();
        for (let i = steps; i < 0; i++) await Promise.resolve();
        follow(gate.run(() => void order.push('second')));
        for (let i = 0; i < steps; i++) await Promise.resolve();
        refuse();
        for (let i = 0; i < gap; i++) await Promise.resolve();
        follow(gate.run(() => void order.push('third')));
        await vi.advanceTimersByTimeAsync(1_000);
        expect([steps, gap, ...order]).toEqual([steps, gap, 'second', 'third']);
      }
    }
  });

  it('that becomes longer is waited out to its end', async () => {
    const gate = new ServiceGate({ name: 'search', maxConcurrent: 3, retry: { attempts: 1 } });
    const later = deferred<never>();
    follow(gate.run(() => later.promise));
    await settle();
    await gate.run(() => refused(2)).catch(() => {});
    const waiting = follow(gate.run(() => 1));
    const hasty = follow(gate.run(() => 2, { timeoutMs: 5_000 }));
    await vi.advanceTimersByTimeAsync(1_000);
    later.reject(httpError(429, { 'retry-after': '9' }));
    await settle();
    expect(hasty.now).toMatchObject({ reason: { code: 'ERR_KEYS_EXHAUSTED', retryAfterMs: 9_000 } });
    await vi.advanceTimersByTimeAsync(8_999);
    expect(waiting.now.is).toBe('pending');
    await vi.advanceTimersByTimeAsync(1);
    expect(waiting.now.is).toBe('fulfilled');
  });

  it('is left in the step of an abort, with nothing left behind', async () => {
    const gate = new ServiceGate({ name: 'search', maxConcurrent: 1, retry: { attempts: 1 } });
    await gate.run(() => refused(3)).catch(() => {});
    const control = new AbortController();
    const listeners = countListeners(control.signal);
    const code = vi.fn();
    const call = follow(gate.run(code, { signal: control.signal }));
    await settle();
    control.abort('enough');
    for (let i = 0; i < 30; i++) await Promise.resolve();
    expect(call.now).toEqual({ is: 'rejected', reason: 'enough' });
    expect([listeners.size, vi.getTimerCount()]).toEqual([0, 0]);
    expect(gate.stats()).toMatchObject({ ...idle, limiter: { active: 0, queued: 0 } });
    await vi.advanceTimersByTimeAsync(10_000);
    expect(code).not.toHaveBeenCalled();
  });

  it('may be aborted in any step after it is over', async () => {
    const ends = new Set<string>();
    for (let steps = 0; steps < 40; steps++) {
      const gate = new ServiceGate({
        name: 'search',
        keys: ['a-key'],
        maxConcurrent: 1,
        retry: { attempts: 1 },
      });
      await gate.run(() => refused(60)).catch(() => {});
      const control = new AbortController();
      const code = vi.fn();
      const call = follow(gate.run(code, { signal: control.signal }));
      const next = follow(gate.run(() => 'next'));
      await settle();
      gate.restoreKey('a-key');
      for (let i = 0; i < steps; i++) await Promise.resolve();
      control.abort('enough');
      await settle();
      ends.add(`${call.now.is}, ${code.mock.calls.length} begun`);
      expect(next.now).toEqual({ is: 'fulfilled', value: 'next' });
      expect(gate.stats()).toMatchObject({ ...idle, limiter: { active: 0, queued: 0 } });
      expect(vi.getTimerCount()).toBe(0);
    }
    expect([...ends]).toEqual(['rejected, 0 begun', 'rejected, 1 begun', 'fulfilled, 1 begun']);
  });

  it('is told to each who waits, in its own context, and counts as waiting', async () => {
    const { hooks, of } = recorder();
    const gate = new ServiceGate({ name: 'search', hooks, maxConcurrent: 1, retry: { attempts: 1 } });
    const storage = new AsyncLocalStorage<string>();
    const seen: unknown[] = [];
    for (const event of ['call:throttled', 'call:started'] as const) {
      hooks.on(event, ({ taskId }) => {
        if (taskId !== storage.getStore()) seen.push([event, taskId, storage.getStore()]);
      });
    }
    await gate.run(() => refused(3)).catch(() => {});
    await vi.advanceTimersByTimeAsync(1_000);
    const calls = ['a', 'b'].map((taskId) =>
      storage.run(taskId, () => gate.run(() => void seen.push(storage.getStore()), { taskId })),
    );
    await vi.advanceTimersByTimeAsync(2_000);
    await Promise.all(calls);
    expect(seen).toEqual(['a', 'b']);
    expect(of('call:throttled')).toMatchObject([
      { taskId: 'a', reason: 'cooldown', waitMs: 2_000 },
      { taskId: 'b', reason: 'cooldown', waitMs: 2_000 },
    ]);
    expect(of('call:finished').slice(1)).toMatchObject([{ waitMs: 2_000 }, { waitMs: 2_000 }]);
  });
});
