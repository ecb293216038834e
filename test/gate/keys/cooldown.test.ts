import { AsyncLocalStorage } from 'node:async_hooks';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { KeyRing } from '../../../src/gate/keys/key-ring.js';
import { ServiceGate } from '../../../src/gate/service-gate.js';
import { PER_TURN } from '../../../src/internal/clock.js';
import { AdaptiveLimit } from '../../../src/limiter/adaptive-limit.js';
import { ConcurrencyLimiter } from '../../../src/limiter/concurrency-limiter.js';
import { onFakeTimers, settled } from '../../support/fake-timers.js';
import { httpError } from '../../support/gates.js';
import { recorder } from '../../support/hooks.js';
import { deferred, endOfTurn, follow } from '../../support/promises.js';
import { countListeners } from '../../support/signals.js';

onFakeTimers();
afterEach(() => vi.restoreAllMocks());

const refused = (seconds: number) => Promise.reject(httpError(429, { 'retry-after': String(seconds) }));
const idle = { running: 0, queuedForStart: 0, backingOff: 0, keys: [{ inUse: 0 }] };

describe('a cooldown of all keys', () => {
  it('holds no permit of a limiter that the gate shares with another', async () => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 2 });
    const chat = new ServiceGate({ name: 'chat', limiter, retry: { attempts: 1 } });
    const embed = new ServiceGate({ name: 'embed', limiter });
    await chat.run(() => refused(3)).catch(() => {});
    const waiting = [follow(chat.run(() => 1)), follow(chat.run(() => 2))];
    await settled();
    expect(chat.stats()).toMatchObject({ queuedForStart: 0, backingOff: 2, limiter: { active: 0 } });
    await expect(embed.run(() => 'at once')).resolves.toBe('at once');
    expect(performance.now()).toBe(0);
    await vi.advanceTimersByTimeAsync(2_999);
    expect(waiting.map((call) => call.now.is)).toEqual(['pending', 'pending']);
    await vi.advanceTimersByTimeAsync(1);
    expect(waiting.map((call) => call.now.is)).toEqual(['fulfilled', 'fulfilled']);
    expect(vi.getTimerCount()).toBe(0);
  });

  describe('after a change of the rate', () => {
    const rate = (limit: number) => [{ limit, perMs: 100, unit: 'weight' as const }];

    /** Two keys, both refused, of which a change of the rate makes the second the smaller one; a call waits for either. */
    const changed = async () => {
      const keys = [{ key: 'key-of-its-own-rate', rate: rate(5) }, 'key-of-the-gate'];
      const gate = new ServiceGate({ name: 'llm', keys, rate: rate(10), retry: { attempts: 1 } });
      const refuse = (weight: number) => gate.run(() => Promise.reject(httpError(401)), { weight });
      await refuse(10).catch(() => {});
      await gate.run(() => refused(60), { weight: 1 }).catch(() => {});
      const control = new AbortController();
      const call = follow(gate.run(({ key }) => key, { weight: 3, signal: control.signal }));
      await settled();
      gate.setRate({ rate: rate(4) });
      await vi.advanceTimersByTimeAsync(100);
      return { gate, call, control };
    };

    it('ends for a call as soon as any key that can serve it is back', async () => {
      const { gate, call } = await changed();
      expect(call.now.is).toBe('pending');
      gate.restoreKey('key-of-the-gate');
      await settled();
      expect(call.now).toEqual({ is: 'fulfilled', value: 'key-of-the-gate' });
    });

    it('leaves nothing of a call that leaves', async () => {
      const { gate, call, control } = await changed();
      control.abort('left');
      await settled();
      expect(call.now).toEqual({ is: 'rejected', reason: 'left' });
      expect(gate.stats()).toMatchObject({ backingOff: 0 });
      expect(vi.getTimerCount()).toBe(0);
    });

    it('rejects a call that now only a key could serve which does not come back', async () => {
      const keys = ['key-of-the-gate', { key: 'key-of-its-own-rate', rate: rate(10) }];
      const gate = new ServiceGate({ name: 'llm', keys, rate: rate(5), retry: { attempts: 1 } });
      await gate.run(() => Promise.reject(httpError(401)), { weight: 10 }).catch(() => {});
      await gate.run(() => refused(60), { weight: 1 }).catch(() => {});
      const call = follow(gate.run(() => 1, { weight: 3 }));
      await settled();
      expect(call.now.is).toBe('pending');
      gate.setRate({ rate: rate(2) });
      await settled();
      expect(call.now).toMatchObject({ is: 'rejected', reason: { code: 'ERR_KEYS_EXHAUSTED' } });
      expect(vi.getTimerCount()).toBe(0);
    });
  });

  it('ends for waiting calls though the rate changed meanwhile', async () => {
    const rate = (limit: number) => [{ limit, perMs: 100, unit: 'weight' as const }];
    const gate = new ServiceGate({ name: 'llm', rate: rate(15), retry: { attempts: 1 } });
    await gate.run(() => refused(1)).catch(() => {});
    const abort = new AbortController();
    const light = gate.run(() => 'light', { weight: 3 });
    const left = gate.run(() => 'left', { weight: 3, signal: abort.signal });
    const heavy = follow(gate.run(() => 'heavy', { weight: 12 }));
    await settled();
    gate.setRate({ rate: rate(8) });
    abort.abort(new Error('left'));
    await expect(left).rejects.toThrow('left');
    await vi.advanceTimersByTimeAsync(1_000);
    await expect(light).resolves.toBe('light');
    await settled();
    expect(heavy.now.is).toBe('rejected');
    expect(gate.stats()).toMatchObject({ backingOff: 0 });
  });

  it('releases the permits of calls that already wait for a start, or acquire one meanwhile', async () => {
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
    await settled();
    expect(gate.stats()).toMatchObject({ queuedForStart: 1, limiter: { active: 3, queued: 3 } });
    first.reject(httpError(429, { 'retry-after': '5' }));
    await settled();
    expect(gate.stats()).toMatchObject({
      queuedForStart: 0,
      backingOff: 4,
      limiter: { active: 1, queued: 0 },
    });
    long.resolve('done');
    await settled();
    expect([running.now.is, gate.stats().limiter!.active]).toEqual(['fulfilled', 0]);
    await vi.advanceTimersByTimeAsync(10_000);
    expect(calls.map((call) => call.now.is)).toEqual(Array(4).fill('fulfilled'));
    expect(order).toEqual([3, 4, 5, 6]);
    expect(gate.stats()).toMatchObject({ ...idle, limiter: { active: 0, queued: 0 } });
  });

  it('is followed by starts in order of priority, not of arrival', async () => {
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

  it('is followed by one probe, and then by the others gradually', async () => {
    const gate = new ServiceGate({ name: 'llm', maxConcurrent: 10, retry: { attempts: 1 } });
    const all = deferred<never>();
    const crowd = Array.from({ length: 10 }, () => follow(gate.run(() => all.promise)));
    await settled();
    all.reject(httpError(429, { 'retry-after': '2' }));
    await settled();
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

  it('keeps all calls queued in their order if the probe fails', async () => {
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
    // The probe, and two queued calls that follow it.
    expect(gate.stats()).toMatchObject({ running: 1, limiter: { active: 3 } });
    const late = call(5);
    await vi.advanceTimersByTimeAsync(20);
    expect(gate.stats()).toMatchObject({ running: 0, backingOff: 4, limiter: { active: 0 } });
    down = false;
    await vi.advanceTimersByTimeAsync(5_000);
    expect(order).toEqual([1, 2, 3, 4, 5]);
    expect([...calls, late].map((c) => c.now.is)).toEqual(['rejected', ...Array(4).fill('fulfilled')]);
  });

  it('lets no call that arrives in the step of restoreKey overtake the queue', async () => {
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
    await settled();
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

  it('keeps the order of a call whose start it prevents', async () => {
    for (let steps = -20; steps < 30; steps++) {
      for (let gap = 0; gap < 10; gap++) {
        const gate = new ServiceGate({ name: 'search', maxConcurrent: 2, retry: { attempts: 1 } });
        const order: string[] = [];
        const first = deferred<never>();
        follow(gate.run(() => first.promise));
        await settled();
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

  it('is waited for to its end if it is extended', async () => {
    const gate = new ServiceGate({ name: 'search', maxConcurrent: 3, retry: { attempts: 1 } });
    const later = deferred<never>();
    follow(gate.run(() => later.promise));
    await settled();
    await gate.run(() => refused(2)).catch(() => {});
    const waiting = follow(gate.run(() => 1));
    const hasty = follow(gate.run(() => 2, { timeoutMs: 5_000 }));
    await vi.advanceTimersByTimeAsync(1_000);
    later.reject(httpError(429, { 'retry-after': '9' }));
    await settled();
    expect(hasty.now).toMatchObject({ reason: { code: 'ERR_KEYS_EXHAUSTED', retryAfterMs: 9_000 } });
    await vi.advanceTimersByTimeAsync(8_999);
    expect(waiting.now.is).toBe('pending');
    await vi.advanceTimersByTimeAsync(1);
    expect(waiting.now.is).toBe('fulfilled');
  });

  it('rejects at once who cannot wait for its end, though one that restoreKey ended had been longer', async () => {
    const gate = new ServiceGate({
      name: 'llm',
      keys: ['a-key'],
      retry: { attempts: 2, baseMs: 5_000, maxMs: 5_000 },
    });
    for (const seconds of [600, 300]) {
      const inBackoff = follow(gate.run(() => Promise.reject(httpError(500)), { timeoutMs: 60_000 }));
      await settled();
      expect(gate.stats()).toMatchObject({ backingOff: 1 });
      await gate.run(() => refused(seconds), { timeoutMs: 60_000 }).catch(() => {});
      await settled();
      expect(inBackoff.now).toMatchObject({ is: 'rejected', reason: { code: 'ERR_KEYS_EXHAUSTED' } });
      gate.restoreKey('a-key');
    }
  });

  it('is left by a call in the step of its abort, without a leak', async () => {
    const gate = new ServiceGate({ name: 'search', maxConcurrent: 1, retry: { attempts: 1 } });
    await gate.run(() => refused(3)).catch(() => {});
    const control = new AbortController();
    const listeners = countListeners(control.signal);
    const code = vi.fn();
    const call = follow(gate.run(code, { signal: control.signal }));
    await settled();
    control.abort('enough');
    for (let i = 0; i < 30; i++) await Promise.resolve();
    expect(call.now).toEqual({ is: 'rejected', reason: 'enough' });
    expect([listeners.size, vi.getTimerCount()]).toEqual([0, 0]);
    expect(gate.stats()).toMatchObject({ ...idle, limiter: { active: 0, queued: 0 } });
    await vi.advanceTimersByTimeAsync(10_000);
    expect(code).not.toHaveBeenCalled();
  });

  it('allows an abort in any step after its end', async () => {
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
      await settled();
      gate.restoreKey('a-key');
      for (let i = 0; i < steps; i++) await Promise.resolve();
      control.abort('enough');
      await settled();
      ends.add(`${call.now.is}, ${code.mock.calls.length} begun`);
      expect(next.now).toEqual({ is: 'fulfilled', value: 'next' });
      expect(gate.stats()).toMatchObject({ ...idle, limiter: { active: 0, queued: 0 } });
      expect(vi.getTimerCount()).toBe(0);
    }
    expect([...ends]).toEqual(['rejected, 0 begun', 'rejected, 1 begun', 'fulfilled, 1 begun']);
  });

  it('is emitted for each waiting call, in its own context, and counts as waiting', async () => {
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

describe('many calls in a cooldown of all keys', () => {
  const A = 'key-a-0123456789-aaaa';

  async function inCooldown() {
    const gate = new ServiceGate({ name: 'search', keys: [A], retry: { attempts: 1 } });
    await gate.run(() => refused(60)).catch(() => {});
    return gate;
  }

  it('cost the same for each arrival, however many are queued', async () => {
    const looks = vi.spyOn(KeyRing.prototype, 'retryAfterMs');
    const gate = await inCooldown();
    const arrive = async (count: number) => {
      looks.mockClear();
      for (let i = 0; i < count; i++) follow(gate.run(() => 1, { timeoutMs: 100_000 }));
      await settled();
      return looks.mock.calls.length;
    };
    await arrive(1);
    const first = await arrive(1);
    await arrive(2_000);
    expect(await arrive(1)).toBe(first);
    expect(gate.stats().backingOff).toBe(2_003);
  });

  it('continue in batches, one in each turn of the event loop, and in their order', async () => {
    vi.useRealTimers();
    const gate = await inCooldown();
    const order: number[] = [];
    const calls = Array.from({ length: 1_000 }, (_, i) => gate.run(() => void order.push(i)));
    await new Promise((resolve) => setImmediate(resolve));
    gate.restoreKey(A);
    const perTurn: number[] = [];
    while (order.length < 1_000) {
      const before = order.length;
      await new Promise((resolve) => setImmediate(resolve));
      perTurn.push(order.length - before);
    }
    await Promise.all(calls);
    expect(Math.max(...perTurn)).toBeLessThanOrEqual(2 * PER_TURN);
    expect(order).toEqual(Array.from({ length: 1_000 }, (_, i) => i));
  });

  it('continue under fake timers that stand still', async () => {
    const gate = await inCooldown();
    const calls = Array.from({ length: 200 }, () => follow(gate.run(() => 1)));
    await settled();
    gate.restoreKey(A);
    for (let turn = 0; turn < 20; turn++) await endOfTurn();
    expect(calls.every(({ now }) => now.is === 'fulfilled')).toBe(true);
  });

  it('release their permits in batches when a cooldown begins', async () => {
    vi.useRealTimers();
    const gate = new ServiceGate({ name: 'search', keys: [A], maxConcurrent: 20, retry: { attempts: 1 } });
    const failures = Array.from({ length: 20 }, () => deferred<never>());
    for (const { promise } of failures) follow(gate.run(() => promise));
    const waiting = Array.from({ length: 1_000 }, () => follow(gate.run(() => 1)));
    await new Promise((resolve) => setImmediate(resolve));
    for (const { reject } of failures) reject(httpError(429, { 'retry-after': '60' }));
    let before = 0;
    const perTurn: number[] = [];
    while (gate.stats().backingOff < 1_000) {
      await new Promise((resolve) => setImmediate(resolve));
      const { backingOff } = gate.stats();
      perTurn.push(backingOff - before);
      before = backingOff;
    }
    expect(Math.max(...perTurn)).toBeLessThanOrEqual(2 * PER_TURN);
    gate.restoreKey(A);
    while (waiting.some(({ now }) => now.is === 'pending'))
      await new Promise((resolve) => setImmediate(resolve));
    expect(waiting.every(({ now }) => now.is === 'fulfilled')).toBe(true);
  });

  it('are all rejected at once if the cooldown outlasts their deadlines', async () => {
    const gate = new ServiceGate({ name: 'search', keys: [A], maxConcurrent: 1, retry: { attempts: 1 } });
    const end = deferred<never>();
    follow(gate.run(() => end.promise));
    const hasty = Array.from({ length: 700 }, () => follow(gate.run(() => 1, { timeoutMs: 30_000 })));
    const patient = follow(gate.run(() => 2, { timeoutMs: 90_000 }));
    await settled();
    end.reject(httpError(429, { 'retry-after': '60' }));
    // Under fake timers that stand still.
    for (let turn = 0; turn < 60; turn++) await endOfTurn();
    expect(hasty.every(({ now }) => now.is === 'rejected')).toBe(true);
    expect(patient.now.is).toBe('pending');
    await vi.advanceTimersByTimeAsync(60_000);
    expect(patient.now.is).toBe('fulfilled');
  });
});

describe('many calls that may start at once', () => {
  it.each<[string, (gate: ServiceGate) => void]>([
    ['because their window opens', (gate) => gate.setRate({ rate: [{ limit: 5_000, perMs: 60_000 }] })],
    ['because their gate resumes', (gate) => gate.resume()],
  ])('%s start in batches, one in each turn of the event loop, and in their order', async (how, open) => {
    vi.useRealTimers();
    const gate = new ServiceGate({ name: 'search', rate: [{ limit: 1_001, perMs: 60_000 }] });
    if (how.includes('window')) gate.setRate({ rate: [{ limit: 1, perMs: 60_000 }] });
    await gate.run(() => 0);
    if (how.includes('gate')) gate.pause();
    const order: number[] = [];
    const calls = Array.from({ length: 1_000 }, (_, i) => gate.run(() => void order.push(i)));
    await new Promise((resolve) => setImmediate(resolve));
    open(gate);
    const perTurn: number[] = [];
    while (order.length < 1_000) {
      const before = order.length;
      await new Promise((resolve) => setImmediate(resolve));
      perTurn.push(order.length - before);
    }
    await Promise.all(calls);
    // One batch in the step itself, and the next before this test checks.
    expect(Math.max(...perTurn)).toBeLessThanOrEqual(400);
    expect(order).toEqual(Array.from({ length: 1_000 }, (_, i) => i));
    expect(gate.stats()).toMatchObject(idle);
  });
});

describe('a gate that starts nothing for now', () => {
  const window = { rate: [{ limit: 1, perMs: 200 }] };
  const starts = (gate: ServiceGate, count: number) => {
    const at: number[] = [];
    for (let i = 0; i < count; i++) follow(gate.run(() => void at.push(performance.now())));
    return at;
  };

  it('holds calls that have their permit, while its adaptive limit is blocked', async () => {
    const adaptive = new AdaptiveLimit({ initial: 5, random: () => 0 });
    const gate = new ServiceGate({ name: 'llm', adaptive, ...window });
    const at = starts(gate, 4);
    await vi.advanceTimersByTimeAsync(3);
    adaptive.blockFor(800);
    await vi.advanceTimersByTimeAsync(5_000);
    expect(at).toEqual([0, 803, 1_003, 1_203]);
  });

  it('holds calls that have their permit, while a shared limiter is paused', async () => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 5 });
    const gate = new ServiceGate({ name: 'llm', limiter, ...window });
    const at = starts(gate, 4);
    await vi.advanceTimersByTimeAsync(3);
    limiter.pause();
    await vi.advanceTimersByTimeAsync(807);
    expect(at).toEqual([0]);
    limiter.resume();
    await vi.advanceTimersByTimeAsync(5_000);
    expect(at).toEqual([0, 810, 1_010, 1_210]);
    expect(gate.stats()).toMatchObject({ queuedForStart: 0, limiter: { active: 0, queued: 0 } });
  });

  it('starts nothing between pause() and resume(), and then in order', async () => {
    const gate = new ServiceGate({ name: 'llm', maxConcurrent: 2 });
    gate.pause();
    const order: number[] = [];
    const calls = [1, 2, 3].map((i) => follow(gate.run(() => void order.push(i))));
    const hasty = follow(gate.run(() => 4, { timeoutMs: 500 }));
    await vi.advanceTimersByTimeAsync(1_000);
    expect(order).toEqual([]);
    expect(hasty.now).toMatchObject({ is: 'rejected', reason: { code: 'ERR_GATE_TIMEOUT' } });
    gate.resume();
    await settled();
    expect(order).toEqual([1, 2, 3]);
    expect(calls.every(({ now }) => now.is === 'fulfilled')).toBe(true);
    await gate.run(() => 5);
  });

  it('closes at once while it is paused, and starts nothing that waits', async () => {
    const gate = new ServiceGate({ name: 'llm', maxConcurrent: 2 });
    gate.pause();
    expect(gate.stats()).toMatchObject({ paused: true, closed: false });
    const fn = vi.fn();
    const waiting = follow(gate.run(fn));
    await settled();
    await gate.close();
    expect(gate.stats()).toMatchObject({ paused: false, closed: true });
    gate.resume();
    expect(waiting.now).toMatchObject({ is: 'rejected', reason: { code: 'ERR_GATE_CLOSED' } });
    expect(fn).not.toHaveBeenCalled();
    expect(gate.stats().limiter).toMatchObject({ active: 0, queued: 0, closed: true });
  });

  it('counts windows and cooldowns on the clock of its `now`', async () => {
    let nowMs = 0;
    const gate = new ServiceGate({ name: 'llm', now: () => nowMs, rate: [{ limit: 1, perMs: 1_000 }] });
    await gate.run(() => 1);
    expect(gate.stats().keys[0]!.free).toBe(0);
    nowMs = 1_000;
    expect(gate.stats().keys[0]!.free).toBe(1);
  });

  it('waits no longer for a window or a cooldown when its `now` is set back', async () => {
    let aheadMs = 1e9;
    const now = () => performance.now() + aheadMs;
    const gate = new ServiceGate({
      name: 'llm',
      now,
      rate: [{ limit: 2, perMs: 1_000 }],
      retry: { attempts: 1 },
    });
    await gate.run(() => {});
    await gate.run(() => refused(1)).catch(() => {});
    const waiting = [1, 2, 3].map(() => follow(gate.run(() => {})));
    aheadMs = 0;
    await vi.advanceTimersByTimeAsync(3_000);
    expect(waiting.map((call) => call.now.is)).toEqual(Array(3).fill('fulfilled'));
  });
});
