import { inspect } from 'node:util';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { openAiPreset } from '../../../src/gate/llm-presets.js';
import { ServiceGate } from '../../../src/gate/service-gate.js';
import type { Limiter } from '../../../src/limiter/limiter.js';
import { onFakeTimers, settled } from '../../support/fake-timers.js';
import { httpError } from '../../support/gates.js';
import { recorder } from '../../support/hooks.js';
import { deferred, follow } from '../../support/promises.js';

onFakeTimers();
afterEach(() => vi.restoreAllMocks());

const A = 'key-a-0123456789-aaaa';
const B = 'key-b-0123456789-bbbb';
const C = 'key-c-0123456789-cccc';

/** A service that fails for the keys in `faults` and otherwise succeeds. */
function service() {
  const faults = new Map<string, () => Error>();
  const used: string[] = [];
  const call = vi.fn(async ({ key }: { key: string }) => {
    used.push(key);
    const fault = faults.get(key);
    if (fault) throw fault();
    return key;
  });
  return { faults, used, call };
}

describe('the keys of a ServiceGate', () => {
  describe('their choice', () => {
    it('rotates among equal keys', async () => {
      const { used, call } = service();
      const gate = new ServiceGate({ name: 'search', keys: [A, B, C] });
      for (let i = 0; i < 6; i++) await gate.run(call);
      expect(used).toEqual([A, B, C, A, B, C]);
    });

    it('takes the key with the fewest calls in flight among those with the same free capacity', async () => {
      const gate = new ServiceGate({ name: 'llm', keys: [A, B] });
      const ends = [deferred(), deferred()];
      const keys: string[] = [];
      const calls = ends.map(({ promise }) =>
        gate.run(({ key }) => {
          keys.push(key);
          return promise;
        }),
      );
      await settled();
      ends[1]!.resolve();
      await calls[1];
      await gate.run(({ key }) => void keys.push(key));
      await gate.run(({ key }) => void keys.push(key));
      expect(keys).toEqual([A, B, B, B]);
      ends[0]!.resolve();
      await Promise.all(calls);
    });

    it('takes the key with the largest free share of its own windows', async () => {
      const { used, call } = service();
      const gate = new ServiceGate({
        name: 'search',
        keys: [
          { key: A, rate: [{ limit: 6, perMs: 1000 }] },
          { key: B, rate: [{ limit: 2, perMs: 1000 }] },
        ],
      });
      for (let i = 0; i < 8; i++) await gate.run(call);
      expect(used.filter((key) => key === A)).toHaveLength(6);
      expect(used.slice(0, 4).filter((key) => key === B)).toHaveLength(1);
    });

    it('waits only if no key has capacity, and for the first that has', async () => {
      const { used, call } = service();
      const gate = new ServiceGate({ name: 'search', keys: [A, B], rate: [{ limit: 2, perMs: 1000 }] });
      const first = [gate.run(call), gate.run(call), gate.run(call)];
      await Promise.all(first);
      await vi.advanceTimersByTimeAsync(300);
      await gate.run(call);
      expect(used).toHaveLength(4);
      const fifth = follow(gate.run(call));
      await vi.advanceTimersByTimeAsync(699);
      expect(fifth.now.is).toBe('pending');
      await vi.advanceTimersByTimeAsync(1);
      expect(fifth.now.is).toBe('fulfilled');
    });

    it('limits each key by its own windows, and all together by the shared ones', async () => {
      const { call } = service();
      const gate = new ServiceGate({
        name: 'search',
        keys: [A, B],
        rate: [{ limit: 3, perMs: 1000 }],
        sharedRate: [{ limit: 4, perMs: 1000 }],
      });
      const calls = Array.from({ length: 8 }, () => gate.run(call));
      await settled();
      expect(call).toHaveBeenCalledTimes(4);
      await vi.advanceTimersByTimeAsync(1000);
      await Promise.all(calls);
      expect(call).toHaveBeenCalledTimes(8);
    });

    it('skips a key whose windows are smaller than the weight of the call', async () => {
      const { used, call } = service();
      const gate = new ServiceGate({
        name: 'llm',
        keys: [
          { key: A, rate: [{ limit: 10, perMs: 1000, unit: 'weight' }] },
          { key: B, rate: [{ limit: 100, perMs: 1000, unit: 'weight' }] },
        ],
      });
      await gate.run(call, { weight: 50 });
      expect(used).toEqual([B]);
      await expect(gate.run(call, { weight: 101 })).rejects.toBeInstanceOf(RangeError);
    });
  });

  describe('a 429', () => {
    it('is retried at once with another key, and puts its own into cooldown for all callers', async () => {
      const { faults, used, call } = service();
      const { hooks, of } = recorder();
      const gate = new ServiceGate({ name: 'search', hooks, keys: [A, B] });
      faults.set(A, () => httpError(429, { 'retry-after': '30' }));
      await expect(gate.run(call)).resolves.toBe(B);
      expect(performance.now()).toBe(0);
      faults.clear();
      for (let i = 0; i < 5; i++) await gate.run(call);
      expect(used).toEqual([A, B, B, B, B, B, B]);
      expect(of('key:cooldown')).toEqual([
        { source: 'search', key: '#1…aaaa', retryAfterMs: 30_000, status: 429 },
      ]);
      expect(of('call:retried')).toMatchObject([{ class: 'rate-limited', status: 429, retryAfterMs: 0 }]);
      await vi.advanceTimersByTimeAsync(30_000);
      await gate.run(call);
      expect(used.at(-1)).toBe(A);
      expect(of('key:restored')).toEqual([{ source: 'search', key: '#1…aaaa' }]);
    });

    it.each([
      ['Retry-After in seconds', { 'retry-after': '90' }, 90_000],
      ['Retry-After in milliseconds', { 'retry-after-ms': '1500' }, 1_500],
      ['a Go duration', { 'x-ratelimit-reset-requests': '1m30s' }, 90_000],
      [
        'an HTTP date',
        { 'retry-after': new Date(45_000).toUTCString(), date: new Date(0).toUTCString() },
        45_000,
      ],
    ])('puts the only key into cooldown for as long as %s says', async (_, headers, ms) => {
      const { faults, used, call } = service();
      const gate = new ServiceGate({ name: 'search', keys: [A] });
      faults.set(A, () => httpError(429, headers));
      const first = follow(gate.run(call));
      await settled();
      faults.clear();
      const second = follow(gate.run(call));
      expect(gate.stats()).toMatchObject({ retryAfterMs: ms, keys: [{ state: 'cooldown', cooldownMs: ms }] });
      await vi.advanceTimersByTimeAsync(ms - 1);
      expect(used).toHaveLength(1);
      await vi.advanceTimersByTimeAsync(2);
      expect(first.now.is).toBe('fulfilled');
      expect(second.now.is).toBe('fulfilled');
    });

    it.each([503, 500])(
      'puts a service without keys into cooldown like one with a single key, with status %i',
      async (status) => {
        const { faults, call } = service();
        const { hooks, of } = recorder();
        const gate = new ServiceGate({ name: 'llm', hooks });
        faults.set('', () => httpError(status, { 'retry-after': '5' }));
        const first = follow(gate.run(call));
        await settled();
        faults.clear();
        const second = follow(gate.run(call));
        await vi.advanceTimersByTimeAsync(4_999);
        expect(call).toHaveBeenCalledTimes(1);
        await vi.advanceTimersByTimeAsync(1_000);
        expect([first.now.is, second.now.is]).toEqual(['fulfilled', 'fulfilled']);
        expect(of('key:cooldown')).toEqual([{ source: 'llm', key: 'service', retryAfterMs: 5_000, status }]);
      },
    );

    it.each([503, 529])('and a %i put the key into cooldown without a retry time', async (status) => {
      const { faults, call } = service();
      const gate = new ServiceGate({ name: 'llm', keys: [A], retry: { attempts: 1 } });
      faults.set(A, () => httpError(status));
      await gate.run(call).catch(() => {});
      expect(gate.stats().retryAfterMs).toBe(1_000);
    });

    it('delays a start that has reserved the key, at any step before it begins', async () => {
      const served = new Set<string>();
      for (let steps = -20; steps < 40; steps++) {
        const { hooks, emitted } = recorder();
        const gate = new ServiceGate({
          name: 'search',
          hooks,
          keys: [A],
          maxConcurrent: 2,
          retry: { attempts: 1 },
        });
        const end = deferred<never>();
        follow(gate.run(() => end.promise));
        await settled();
        const refuse = () => end.reject(httpError(429, { 'retry-after': '1' }));
        if (steps < 0) refuse();
        for (let i = steps; i < 0; i++) await Promise.resolve();
        const second = follow(gate.run(() => 2));
        for (let i = 0; i < steps; i++) await Promise.resolve();
        refuse();
        await settled();
        const cooledDownAt = emitted.findIndex(({ event }) => event === 'key:cooldown');
        const startedAt = emitted.findLastIndex(({ event }) => event === 'call:started');
        served.add(startedAt > cooledDownAt ? 'in the cooldown' : second.now.is);
        await vi.advanceTimersByTimeAsync(1_000);
        expect(second.now.is).toBe('fulfilled');
        expect(gate.stats()).toMatchObject({
          running: 0,
          attempts: 2,
          keys: [{ inUse: 0 }],
          limiter: { active: 0 },
        });
      }
      expect(served).toEqual(new Set(['pending', 'fulfilled']));
    });

    it('delays a call that has acquired its permit and reserved the key, at any step before it begins', async () => {
      const begunIn = new Set<string>();
      for (let steps = -10; steps < 30; steps++) {
        const gate = new ServiceGate({
          name: 'search',
          keys: [A],
          maxConcurrent: 2,
          retry: { attempts: 1 },
        });
        const [first, second] = [deferred<string>(), deferred<never>()];
        follow(gate.run(() => first.promise));
        follow(gate.run(() => second.promise));
        let state: string | undefined;
        const third = follow(
          gate.run(() => {
            state = gate.stats().keys[0]!.state;
          }),
        );
        await settled();
        const refuse = () => second.reject(httpError(429, { 'retry-after': '1' }));
        if (steps < 0) refuse();
        for (let i = steps; i < 0; i++) await Promise.resolve();
        first.resolve('done');
        for (let i = 0; i < steps; i++) await Promise.resolve();
        if (steps >= 0) refuse();
        await settled();
        begunIn.add(state ?? 'not yet');
        await vi.advanceTimersByTimeAsync(1_000);
        expect(third.now.is).toBe('fulfilled');
      }
      // It begins before the cooldown, or after it.
      expect(begunIn).toEqual(new Set(['not yet', 'ready']));
    });

    it('without a retry time puts the key into cooldown for a second, doubled each time in a row', async () => {
      const { faults, call } = service();
      const { hooks, of } = recorder();
      const gate = new ServiceGate({
        name: 'search',
        hooks,
        keys: [A],
        cooldown: { maxMs: 5_000 },
        retry: { attempts: 6 },
      });
      faults.set(A, () => httpError(429));
      const calls = follow(gate.run(call));
      await vi.advanceTimersByTimeAsync(60_000);
      expect(calls.now.is).toBe('rejected');
      const cooldowns = () => of('key:cooldown').map((event) => event.retryAfterMs);
      expect(cooldowns()).toEqual([1_000, 2_000, 4_000, 5_000, 5_000, 5_000]);
      faults.clear();
      await gate.run(call);
      faults.set(A, () => httpError(429));
      follow(gate.run(call, { timeoutMs: 500 }));
      await settled();
      expect(cooldowns().at(-1)).toBe(1_000);
    });

    it.each([
      ['Retry-After: 0', { 'retry-after': '0' }],
      ['a date that has passed', { 'retry-after': 'Thu, 01 Jan 1970 00:00:00 GMT' }],
      ['no date at all', { 'retry-after': 'soon 2026' }],
      ['retry-after-ms: 0', { 'retry-after-ms': '0' }],
      ['a reset of 0s', { 'x-ratelimit-reset-requests': '0s' }],
    ])('with %s counts as one without a retry time, and causes no hot loop', async (_, headers) => {
      const { faults, used, call } = service();
      const { hooks, of } = recorder();
      const gate = new ServiceGate({ name: 'search', hooks, keys: [A], retry: { attempts: 10 } });
      faults.set(A, () => httpError(429, headers));
      follow(gate.run(call));
      await vi.advanceTimersByTimeAsync(999);
      expect(used).toHaveLength(1);
      await vi.advanceTimersByTimeAsync(2_001);
      expect(of('key:cooldown').map((event) => event.retryAfterMs)).toEqual([1_000, 2_000, 4_000]);
    });

    it('with a retryAfterMs of 0 from the classifier gets the default cooldown, as does an exhausted key', async () => {
      const { call } = service();
      for (const [said, retryAfterMs] of [
        ['rate-limited', 1_000],
        ['quota-exhausted', 3_600_000],
      ] as const) {
        const classify = () => ({ class: said, retryAfterMs: 0 });
        const gate = new ServiceGate({ name: 'search', keys: [A], classify });
        follow(gate.run(call));
        await settled();
        expect(gate.stats()).toMatchObject({ attempts: 1, retryAfterMs });
      }
    });

    it('that must not be retried still puts the key into cooldown for other calls', async () => {
      const { faults, used, call } = service();
      const { hooks, of } = recorder();
      const release = vi.fn();
      const limiter = {
        acquire: async () => ({ weight: 1, waitMs: 0, release, [Symbol.dispose]() {} }),
        stats: () => ({}),
      } as unknown as Limiter;
      const gate = new ServiceGate({ name: 'llm', ...openAiPreset(), hooks, keys: [A, B], limiter });
      faults.set(A, () => httpError(429, { 'x-should-retry': 'false', 'retry-after': '60' }));
      await expect(gate.run(call)).rejects.toMatchObject({ status: 429 });
      expect(used).toEqual([A]);
      expect(of('call:retried')).toEqual([]);
      expect(of('call:finished')).toMatchObject([{ outcome: 'rate-limited', attempts: 1 }]);
      expect(of('key:cooldown')).toEqual([
        { source: 'llm', key: '#1…aaaa', retryAfterMs: 60_000, status: 429 },
      ]);
      expect(release.mock.calls).toEqual([['dropped']]);
      await gate.run(call);
      await gate.run(call);
      expect(used).toEqual([A, B, B]);
      expect(gate.stats().keys).toMatchObject([
        { state: 'cooldown', cooldownMs: 60_000 },
        { state: 'ready' },
      ]);
    });

    it('that must not be retried becomes the cause if no other key is left', async () => {
      const { faults, call } = service();
      const gate = new ServiceGate({ name: 'llm', ...openAiPreset(), keys: [A] });
      faults.set(A, () => httpError(429, { 'x-should-retry': 'false', 'retry-after': '60' }));
      await gate.run(call).catch(() => {});
      await expect(gate.run(call, { timeoutMs: 1_000 })).rejects.toMatchObject({
        code: 'ERR_KEYS_EXHAUSTED',
        cause: { status: 429 },
      });
    });

    it('without a retry time starts at a second again once a probe succeeds, however many calls follow', async () => {
      const { hooks, of } = recorder();
      const gate = new ServiceGate({ name: 'llm', hooks, keys: [A], retry: { attempts: 1 } });
      let inFlight = 0;
      // The service accepts three at once.
      const call = () =>
        gate.run(async () => {
          if (inFlight === 3) throw httpError(429);
          inFlight++;
          await new Promise((resolve) => setTimeout(resolve, 5_000));
          inFlight--;
        });
      // Three run, one more is rejected, and the others wait for the end of the cooldown.
      for (let i = 0; i < 4; i++) follow(call());
      await settled();
      for (let i = 0; i < 100; i++) follow(call());
      await vi.advanceTimersByTimeAsync(120_000);
      const cooldowns = of('key:cooldown').map((event) => event.retryAfterMs);
      expect(cooldowns.filter((ms) => ms === 1_000).length).toBeGreaterThan(5);
      // A probe during three long calls is rejected, but only for a while.
      expect(Math.max(...cooldowns)).toBe(4_000);
    });

    it('among several at once counts as one, and the longest retry time applies', async () => {
      const { hooks, of } = recorder();
      const gate = new ServiceGate({ name: 'search', hooks, keys: [A], retry: { attempts: 1 } });
      const errors = [
        httpError(429),
        httpError(429),
        httpError(429, { 'retry-after': '7' }),
        httpError(429, { 'retry-after': '3' }),
      ];
      const starts = errors.map(() => deferred<never>());
      const calls = starts.map(({ promise }) => follow(gate.run(() => promise)));
      await settled();
      for (const [i, start] of starts.entries()) {
        start.reject(errors[i]);
        await settled();
      }
      expect(calls.every((call) => call.now.is === 'rejected')).toBe(true);
      expect(of('key:cooldown').map((event) => event.retryAfterMs)).toEqual([1_000, 7_000]);
      expect(gate.stats().retryAfterMs).toBe(7_000);
    });

    it('of a call from before the cooldown changes nothing after it, unless it has a retry time', async () => {
      const gate = new ServiceGate({ name: 'llm', keys: [A], retry: { attempts: 1 } });
      const [first, late, later] = [deferred<never>(), deferred<never>(), deferred<never>()];
      for (const { promise } of [first, late, later]) follow(gate.run(() => promise));
      await settled();
      first.reject(httpError(429));
      await vi.advanceTimersByTimeAsync(1_000);
      late.reject(httpError(429));
      await settled();
      expect(gate.stats()).toMatchObject({ retryAfterMs: 0, keys: [{ state: 'half-open' }] });
      later.reject(httpError(429, { 'retry-after': '4' }));
      await settled();
      expect(gate.stats()).toMatchObject({ retryAfterMs: 4_000 });
    });

    it('is followed by one probe and then by doubling batches, up to the number in flight before', async () => {
      const gate = new ServiceGate({ name: 'llm', keys: [A], retry: { attempts: 1 } });
      const ends: ReturnType<typeof deferred<string>>[] = [];
      const call = () =>
        follow(
          gate.run(() => {
            const end = deferred<string>();
            ends.push(end);
            return end.promise;
          }),
        );
      for (let i = 0; i < 10; i++) call();
      await settled();
      expect(ends).toHaveLength(10);
      for (const end of ends.splice(0)) end.reject(httpError(429, { 'retry-after': '2' }));
      await settled();
      for (let i = 0; i < 40; i++) call();
      await vi.advanceTimersByTimeAsync(1_999);
      expect(ends).toHaveLength(0);
      const waves: number[] = [];
      await vi.advanceTimersByTimeAsync(1);
      while (ends.length > 0) {
        waves.push(ends.length);
        for (const end of ends.splice(0)) end.resolve('fine');
        await settled();
      }
      expect(waves.slice(0, 4)).toEqual([1, 2, 4, 8]);
      expect(gate.stats().keys[0]!.state).toBe('ready');
      expect(waves.reduce((a, b) => a + b)).toBe(40);
    });

    it('treats a probe that has run for a second as successful: responses may be long', async () => {
      const gate = new ServiceGate({ name: 'llm', keys: [A], retry: { attempts: 1 } });
      const fail = deferred<never>();
      const before = Array.from({ length: 4 }, () => follow(gate.run(() => fail.promise)));
      await settled();
      fail.reject(httpError(429, { 'retry-after': '2' }));
      await settled();
      expect(before.every((call) => call.now.is === 'rejected')).toBe(true);
      const starts: number[] = [];
      for (let i = 0; i < 9; i++) {
        follow(
          gate.run(() => {
            starts.push(performance.now());
            return new Promise(() => {});
          }),
        );
      }
      await vi.advanceTimersByTimeAsync(10_000);
      expect(starts).toEqual(
        [2_000, 3_000, 3_000, 4_000, 4_000, 4_000, 4_000, 5_000, 5_000].slice(0, starts.length),
      );
      expect(starts).toHaveLength(9);
    });

    it('in response to the probe puts the key back into cooldown, and no call follows', async () => {
      const { faults, used, call } = service();
      const gate = new ServiceGate({ name: 'search', keys: [A], retry: { attempts: 1 } });
      faults.set(A, () => httpError(429, { 'retry-after': '2' }));
      await gate.run(call).catch(() => {});
      const calls = Array.from({ length: 9 }, () => follow(gate.run(call)));
      await settled();
      const burst = used.length;
      expect(burst).toBe(1);
      const probes = async () => {
        await vi.advanceTimersByTimeAsync(2_000);
        return used.length - burst;
      };
      await expect(probes()).resolves.toBe(1);
      await expect(probes()).resolves.toBe(2);
      await expect(probes()).resolves.toBe(3);
      faults.clear();
      await probes();
      expect(used).toHaveLength(10);
      expect(calls.filter((c) => c.now.is === 'rejected')).toHaveLength(3);
    });

    it('selects another probe if the first fails by a bug or is aborted', async () => {
      const gate = new ServiceGate({ name: 'search', keys: [A], retry: { attempts: 1 } });
      await gate.run(() => Promise.reject(httpError(429, { 'retry-after': '1' }))).catch(() => {});
      const control = new AbortController();
      const order: string[] = [];
      const calls = [
        gate.run(() => {
          order.push('bug');
          throw new TypeError('bug');
        }),
        gate.run(
          ({ signal }) => {
            order.push('left');
            return new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)));
          },
          { signal: control.signal },
        ),
        gate.run(() => void order.push('fine')),
      ].map(follow);
      await vi.advanceTimersByTimeAsync(1_000);
      expect(order).toEqual(['bug', 'left']);
      control.abort();
      await settled();
      expect(order).toEqual(['bug', 'left', 'fine']);
      expect(calls[2]!.now.is).toBe('fulfilled');
      expect(gate.stats().keys[0]!.state).toBe('ready');
    });

    it('beyond the deadline rejects the call at once, with retryAfterMs', async () => {
      const { faults, used, call } = service();
      const gate = new ServiceGate({ name: 'search', keys: [A] });
      faults.set(A, () => httpError(429, { 'retry-after': '600' }));
      await expect(gate.run(call, { timeoutMs: 60_000 })).rejects.toMatchObject({ status: 429 });
      await expect(gate.run(call, { timeoutMs: 60_000 })).rejects.toMatchObject({
        code: 'ERR_KEYS_EXHAUSTED',
        retryAfterMs: 600_000,
        cause: { status: 429 },
      });
      expect(used).toHaveLength(1);
      expect(performance.now()).toBe(0);
      expect(vi.getTimerCount()).toBe(0);
    });

    it('rejects queued calls that cannot meet their deadlines, wherever they wait', async () => {
      const gate = new ServiceGate({
        name: 'search',
        keys: [A],
        maxConcurrent: 3,
        rate: [{ limit: 2, perMs: 10_000 }],
        retry: { attempts: 1 },
      });
      const [one, other] = [deferred<never>(), deferred<never>()];
      follow(gate.run(() => one.promise));
      follow(gate.run(() => other.promise));
      const inStartQueue = follow(gate.run(() => 1));
      const forPermit = follow(gate.run(() => 2, { timeoutMs: 60_000 }));
      const patient = follow(gate.run(() => 3));
      await settled();
      expect(gate.stats()).toMatchObject({ queuedForStart: 1, limiter: { queued: 2 } });
      one.reject(httpError(429, { 'retry-after': '300' }));
      await settled();
      expect(forPermit.now).toMatchObject({
        is: 'rejected',
        reason: { code: 'ERR_KEYS_EXHAUSTED', retryAfterMs: 300_000 },
      });
      expect([inStartQueue.now.is, patient.now.is]).toEqual(['pending', 'pending']);
      await vi.advanceTimersByTimeAsync(302_000);
      expect([inStartQueue.now.is, patient.now.is]).toEqual(['fulfilled', 'fulfilled']);
    });
  });

  describe('consecutive failures', () => {
    it('put the key into cooldown after five rounds, as a circuit breaker', async () => {
      vi.spyOn(Math, 'random').mockReturnValue(0);
      const { faults, used, call } = service();
      const { hooks, of } = recorder();
      const gate = new ServiceGate({ name: 'llm', hooks, keys: [A], retry: { attempts: 1 } });
      faults.set(A, () => httpError(500));
      for (let i = 0; i < 5; i++) {
        await gate.run(call).catch(() => {});
        await vi.advanceTimersByTimeAsync(10);
      }
      expect(of('key:cooldown')).toEqual([
        { source: 'llm', key: '#1…aaaa', retryAfterMs: 1_000, status: 500 },
      ]);
      const waiting = follow(gate.run(call));
      await vi.advanceTimersByTimeAsync(900);
      expect(used).toHaveLength(5);
      faults.clear();
      await vi.advanceTimersByTimeAsync(100);
      expect(waiting.now.is).toBe('fulfilled');
    });

    it.each([
      [500, { 'x-ratelimit-remaining-requests': '4999', 'x-ratelimit-reset-requests': '8.64s' }],
      [502, { 'ratelimit-remaining': '19990', 'ratelimit-reset': '30' }],
      [503, { 'ratelimit-remaining': '19990', 'ratelimit-reset': '30' }],
    ])('do not include one %i with rate limit headers that show free capacity', async (status, headers) => {
      const { faults, call } = service();
      const gate = new ServiceGate({ name: 'llm', keys: [A], retry: { attempts: 1 } });
      faults.set(A, () => httpError(status, headers));
      await gate.run(call).catch(() => {});
      expect(gate.stats().retryAfterMs).toBe(status === 503 ? 1_000 : 0);
    });

    it('put the key back into cooldown after one failed probe, whatever the failure of the service', async () => {
      const { faults, used, call } = service();
      const gate = new ServiceGate({ name: 'llm', keys: [A], retry: { attempts: 1 } });
      faults.set(A, () => httpError(429));
      await gate.run(call).catch(() => {});
      faults.set(A, () => httpError(500));
      const waiting = [follow(gate.run(call)), follow(gate.run(call))];
      await vi.advanceTimersByTimeAsync(1_000);
      expect(waiting.map((w) => w.now.is)).toEqual(['rejected', 'pending']);
      expect(gate.stats().retryAfterMs).toBe(2_000);
      expect(used).toHaveLength(2);
    });

    it('include half-open calls once the probe has succeeded', async () => {
      const { hooks, of } = recorder();
      const gate = new ServiceGate({ name: 'llm', hooks, keys: [A], retry: { attempts: 1 } });
      const throttled = deferred<never>();
      for (let i = 0; i < 20; i++) follow(gate.run(() => throttled.promise));
      await settled();
      throttled.reject(httpError(429));
      await vi.advanceTimersByTimeAsync(1_000);
      await gate.run(() => 'probe');
      for (let i = 0; i < 4; i++) await gate.run(() => Promise.reject(httpError(500))).catch(() => {});
      expect(of('key:cooldown')).toHaveLength(1);
      expect(gate.stats().keys[0]!.state).toBe('half-open');
    });

    it('do not open the breaker if all were sent before the first failed', async () => {
      const { hooks, of } = recorder();
      const gate = new ServiceGate({ name: 'llm', hooks, keys: [A], retry: { attempts: 1 } });
      const burst = Array.from({ length: 50 }, () => deferred<never>());
      for (const { promise } of burst) follow(gate.run(() => promise));
      await settled();
      for (const { reject } of burst) {
        reject(httpError(500));
        await vi.advanceTimersByTimeAsync(5);
      }
      expect(of('key:cooldown')).toEqual([]);
    });

    it('do not open the breaker while an earlier call is in flight: the service is full, not down', async () => {
      const { hooks, of } = recorder();
      const gate = new ServiceGate({ name: 'llm', hooks, keys: [A], retry: { attempts: 1 } });
      const long = deferred();
      const first = gate.run(() => long.promise);
      for (let i = 0; i < 50; i++) {
        await gate.run(() => Promise.reject(httpError(500))).catch(() => {});
        await vi.advanceTimersByTimeAsync(5);
      }
      expect(of('key:cooldown')).toEqual([]);
      long.resolve();
      await first;
    });

    it('open the breaker if every attempt times out', async () => {
      const { hooks, of } = recorder();
      const gate = new ServiceGate({ name: 'llm', hooks, attemptTimeoutMs: 100, retry: { attempts: 1 } });
      for (let i = 0; i < 60; i++) {
        follow(
          gate.run(
            ({ signal }) =>
              new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason))),
          ),
        );
        await vi.advanceTimersByTimeAsync(10);
      }
      expect(of('key:cooldown')).toMatchObject([{ retryAfterMs: 1_000 }]);
      // After five timeouts, and not after every other call.
      expect(gate.stats().attempts).toBeGreaterThan(40);
    });

    it('do not open the breaker if a call succeeds in between', async () => {
      const { faults, call } = service();
      const { hooks, of } = recorder();
      const gate = new ServiceGate({ name: 'llm', hooks, keys: [A], retry: { attempts: 1 } });
      for (let i = 0; i < 20; i++) {
        if (i % 4 === 3) faults.clear();
        else faults.set(A, () => httpError(500));
        await gate.run(call).catch(() => {});
        await vi.advanceTimersByTimeAsync(10);
      }
      expect(of('key:cooldown')).toEqual([]);
    });

    it('do not include bugs in the code of the host', async () => {
      const gate = new ServiceGate({ name: 'llm', keys: [A] });
      for (let i = 0; i < 20; i++) {
        await gate.run(() => Promise.reject(new TypeError('bug'))).catch(() => {});
        await vi.advanceTimersByTimeAsync(10);
      }
      expect(gate.stats().keys[0]!.state).toBe('ready');
    });
  });

  describe('an unauthorized key', () => {
    it.each([401, 403])('(%i) is quarantined, and the call continues with another', async (status) => {
      const { faults, used, call } = service();
      const { hooks, of } = recorder();
      const gate = new ServiceGate({ name: 'search', hooks, keys: [A, B] });
      faults.set(A, () => httpError(status));
      await expect(gate.run(call)).resolves.toBe(B);
      await vi.advanceTimersByTimeAsync(3_600_000_000);
      await gate.run(call);
      expect(used).toEqual([A, B, B]);
      expect(of('key:quarantined')).toEqual([{ source: 'search', key: '#1…aaaa', reason: 'quarantined' }]);
      expect(gate.stats().keys).toMatchObject([
        { state: 'quarantined', cooldownMs: Number.POSITIVE_INFINITY },
        { state: 'ready', cooldownMs: 0 },
      ]);
    });

    it('is quarantined once, however many calls are in flight, and does not become exhausted', async () => {
      const { hooks, of } = recorder();
      const gate = new ServiceGate({ name: 'search', hooks, keys: [A], retry: { attempts: 1 } });
      const ends = [401, 401, 402].map((status) => ({ status, end: deferred<never>() }));
      for (const { end } of ends) follow(gate.run(() => end.promise));
      await settled();
      for (const { status, end } of ends) {
        end.reject(httpError(status));
        await vi.advanceTimersByTimeAsync(10);
      }
      expect(of('key:quarantined')).toEqual([{ source: 'search', key: '#1…aaaa', reason: 'quarantined' }]);
      expect(gate.stats().keys[0]).toMatchObject({
        state: 'quarantined',
        cooldownMs: Number.POSITIVE_INFINITY,
      });
    });

    it('costs no attempts, however many keys are rejected', async () => {
      const { faults, used, call } = service();
      const keys = Array.from({ length: 8 }, (_, i) => `key-${i}-0123456789`);
      const gate = new ServiceGate({
        name: 'search',
        keys,
        retry: { attempts: 1, budget: { ratio: 0, perMinute: 0 } },
      });
      for (const key of keys.slice(0, 7)) faults.set(key, () => httpError(401));
      await expect(gate.run(call)).resolves.toBe(keys[7]);
      expect(used).toHaveLength(8);
    });

    it('that was the last one rejects the call and every further one with the same cause', async () => {
      const { faults, call } = service();
      const gate = new ServiceGate({ name: 'search', keys: [A, B] });
      for (const key of [A, B]) faults.set(key, () => httpError(401));
      for (let i = 0; i < 2; i++) {
        await expect(gate.run(call)).rejects.toMatchObject({
          code: 'ERR_KEYS_EXHAUSTED',
          retryAfterMs: undefined,
          cause: { status: 401 },
        });
      }
      expect(call).toHaveBeenCalledTimes(2);
      expect(gate.stats().retryAfterMs).toBe(Number.POSITIVE_INFINITY);
    });

    it('that was the last one does so also if a Response rejects it', async () => {
      const gate = new ServiceGate({ name: 'search', keys: [A, B] });
      for (let i = 0; i < 2; i++) {
        await expect(gate.run(() => new Response('no', { status: 401 }))).rejects.toMatchObject({
          code: 'ERR_KEYS_EXHAUSTED',
          retryAfterMs: undefined,
          cause: { status: 401 },
        });
      }
      expect(gate.stats()).toMatchObject({ running: 0, keys: [{ inUse: 0 }, { inUse: 0 }] });
    });

    it('that was the last one rejects queued calls, also without a deadline', async () => {
      const gate = new ServiceGate({ name: 'search', keys: [A], maxConcurrent: 1 });
      const end = deferred<never>();
      follow(gate.run(() => end.promise));
      const waiting = [follow(gate.run(() => 1)), follow(gate.run(() => 2))];
      await settled();
      end.reject(httpError(403));
      await settled();
      for (const call of waiting) {
        expect(call.now).toMatchObject({ is: 'rejected', reason: { code: 'ERR_KEYS_EXHAUSTED' } });
      }
      expect(gate.stats()).toMatchObject({ queuedForStart: 0, limiter: { active: 0, queued: 0 } });
    });

    it('is ready again after restoreKey', async () => {
      const { faults, used, call } = service();
      const { hooks, of } = recorder();
      const gate = new ServiceGate({ name: 'search', hooks, keys: [A] });
      faults.set(A, () => httpError(401));
      await gate.run(call).catch(() => {});
      faults.clear();
      expect(gate.restoreKey('another')).toBe(false);
      expect(gate.restoreKey(A)).toBe(true);
      await expect(gate.run(call)).resolves.toBe(A);
      expect(used).toHaveLength(2);
      expect(of('key:restored')).toEqual([{ source: 'search', key: '#1…aaaa' }]);
    });

    it('is half-open after cooldown.quarantinedMs, if that is set', async () => {
      const { faults, call } = service();
      const gate = new ServiceGate({ name: 'search', keys: [A], cooldown: { quarantinedMs: 10_000 } });
      faults.set(A, () => httpError(401));
      await expect(gate.run(call, { timeoutMs: 5_000 })).rejects.toMatchObject({ cause: { status: 401 } });
      await expect(gate.run(call, { timeoutMs: 5_000 })).rejects.toMatchObject({ retryAfterMs: 10_000 });
      faults.clear();
      const call2 = follow(gate.run(call, { timeoutMs: 20_000 }));
      await vi.advanceTimersByTimeAsync(10_000);
      expect(call2.now.is).toBe('fulfilled');
    });

    it('rejects only its own call if the gate has no keys', async () => {
      const { faults, call } = service();
      const gate = new ServiceGate({ name: 'llm' });
      faults.set('', () => httpError(401));
      for (let i = 0; i < 3; i++) await expect(gate.run(call)).rejects.toMatchObject({ status: 401 });
      expect(call).toHaveBeenCalledTimes(3);
    });
  });

  describe('an exhausted quota', () => {
    it.each([
      ['402', () => httpError(402)],
      ['insufficient_quota', () => Object.assign(httpError(429), { code: 'insufficient_quota' })],
    ])('(%s) takes the key out of use for an hour, and is followed by a probe', async (_, error) => {
      const { faults, used, call } = service();
      const { hooks, of } = recorder();
      const gate = new ServiceGate({ name: 'search', hooks, keys: [A, B] });
      faults.set(A, error);
      await expect(gate.run(call)).resolves.toBe(B);
      expect(of('key:quarantined')).toEqual([
        { source: 'search', key: '#1…aaaa', reason: 'exhausted', retryAfterMs: 3_600_000 },
      ]);
      faults.clear();
      await vi.advanceTimersByTimeAsync(3_599_999);
      await gate.run(call);
      expect(used).toEqual([A, B, B]);
      await vi.advanceTimersByTimeAsync(1);
      await gate.run(call);
      expect(used.at(-1)).toBe(A);
    });

    it('lasts an hour, whatever the rate limit headers of the 402 say', async () => {
      const { faults, call } = service();
      const gate = new ServiceGate({ name: 'llm', keys: [A] });
      faults.set(A, () => httpError(402, { 'x-ratelimit-reset-requests': '12ms' }));
      await gate.run(call, { timeoutMs: 1_000 }).catch(() => {});
      expect(gate.stats().retryAfterMs).toBe(3_600_000);
    });

    it('is waited for without a deadline, but only the first loss is free', async () => {
      const { faults, used, call } = service();
      const gate = new ServiceGate({ name: 'search', keys: [A] });
      faults.set(A, () => httpError(402));
      const waiting = follow(gate.run(call));
      await vi.advanceTimersByTimeAsync(24 * 3_600_000);
      expect(waiting.now).toMatchObject({ is: 'rejected', reason: { cause: { status: 402 } } });
      expect(used).toHaveLength(4);
    });

    it('lasts as long as the classifier or cooldown.exhaustedMs says', async () => {
      const { faults, call } = service();
      const gate = new ServiceGate({ name: 'search', keys: [A], cooldown: { exhaustedMs: 60_000 } });
      faults.set(A, () => httpError(402));
      await gate.run(call, { timeoutMs: 1_000 }).catch(() => {});
      expect(gate.stats().retryAfterMs).toBe(60_000);
      const said = new ServiceGate({
        name: 'search',
        keys: [A],
        classify: () => ({ class: 'quota-exhausted', retryAfterMs: 5_000 }),
      });
      await said.run(call, { timeoutMs: 1_000 }).catch(() => {});
      expect(said.stats().retryAfterMs).toBe(5_000);
    });
  });

  describe('the cause of a KeysExhaustedError', () => {
    it('is the original error for the call that failed last, and a summary for other calls', async () => {
      vi.spyOn(Math, 'random').mockReturnValue(0);
      const gate = new ServiceGate({ name: 'search', keys: [A], rate: [{ limit: 2, perMs: 60_000 }] });
      const second = deferred<never>();
      const own = follow(
        gate.run(({ attempt }) => (attempt === 1 ? Promise.reject(httpError(500)) : second.promise), {
          timeoutMs: 30_000,
        }),
      );
      await settled();
      const mine = Object.assign(new Error('for a private question'), { code: 'ECONNRESET', q: 'private' });
      second.reject(mine);
      await settled();
      const other = follow(gate.run(() => 1, { timeoutMs: 30_000 }));
      await settled();
      expect(own.now).toMatchObject({ reason: { code: 'ERR_KEYS_EXHAUSTED', cause: mine } });
      expect(other.now).toMatchObject({
        reason: { code: 'ERR_KEYS_EXHAUSTED', cause: { message: 'ECONNRESET', code: 'ECONNRESET' } },
      });
      expect((other.now as { reason: Error }).reason.cause).not.toBe(mine);
    });

    it('is the original error, even if it contains a key: only events are redacted', async () => {
      vi.spyOn(Math, 'random').mockReturnValue(0);
      const gate = new ServiceGate({ name: 'search', keys: [A], rate: [{ limit: 1, perMs: 60_000 }] });
      const original = httpError(500, {}, `no ${A}`);
      const error = (await gate
        .run(() => Promise.reject(original), { timeoutMs: 30_000 })
        .catch((thrown: unknown) => thrown)) as Error;
      expect(error).toMatchObject({ code: 'ERR_KEYS_EXHAUSTED' });
      expect(error.cause).toBe(original);
    });

    it('is the failure of another call if that came later', async () => {
      vi.spyOn(Math, 'random').mockReturnValue(0.5);
      const gate = new ServiceGate({ name: 'search', keys: [A] });
      const backsOff = follow(gate.run(() => Promise.reject(httpError(500))));
      await settled();
      await gate.run(() => Promise.reject(httpError(401))).catch(() => {});
      await settled();
      expect(backsOff.now).toMatchObject({
        reason: { code: 'ERR_KEYS_EXHAUSTED', cause: { message: 'HTTP 401' } },
      });
    });

    it.each([
      [() => Promise.reject(httpError(401)), 'HTTP 401'],
      [() => new Response('no', { status: 403 }), 'HTTP 403'],
    ])('is %s', async (fn, message) => {
      const gate = new ServiceGate({ name: 'search', keys: [A] });
      await Promise.resolve(gate.run(fn)).catch(() => {});
      await expect(gate.run(fn)).rejects.toMatchObject({ cause: { message } });
    });

    it.each([
      ['a code, also one in a cause', { cause: { code: 'ENOTFOUND' } }, 'ENOTFOUND'],
      ['no code, but a text', { code: 'a private question' }, 'an outcome of class unauthorized'],
      ['nothing', {}, 'an outcome of class unauthorized'],
    ])('is read from an error with %s', async (_, fields, message) => {
      const gate = new ServiceGate({ name: 'search', keys: [A], classify: () => 'unauthorized' });
      const fn = () => Promise.reject(Object.assign(new Error('private'), fields));
      await gate.run(fn).catch(() => {});
      await expect(gate.run(fn)).rejects.toMatchObject({ cause: { message } });
    });

    it('is neither a bug of the host nor a missing page', async () => {
      const gate = new ServiceGate({ name: 'search', keys: [A], rate: [{ limit: 2, perMs: 60_000 }] });
      await gate.run(() => Promise.reject(new TypeError('bug'))).catch(() => {});
      await gate.run(() => Promise.reject(httpError(404))).catch(() => {});
      const error = await gate.run(() => 1, { timeoutMs: 1_000 }).catch((thrown: Error) => thrown);
      expect(error).toMatchObject({ code: 'ERR_KEYS_EXHAUSTED' });
      expect((error as Error).cause).toBeUndefined();
    });
  });

  describe('setRate', () => {
    it('changes the windows of keys without windows of their own, and keeps what they count', async () => {
      const { used, call } = service();
      const gate = new ServiceGate({
        name: 'search',
        keys: [A, { key: B, rate: [{ limit: 1, perMs: 1_000 }] }],
        rate: [{ limit: 1, perMs: 1_000 }],
      });
      await gate.run(call);
      await gate.run(call);
      const waiting = [follow(gate.run(call)), follow(gate.run(call)), follow(gate.run(call))];
      await settled();
      expect(used).toEqual([A, B]);
      gate.setRate({ rate: [{ limit: 3, perMs: 1_000 }] });
      await settled();
      expect(used).toEqual([A, B, A, A]);
      expect(waiting.map(({ now }) => now.is)).toEqual(['fulfilled', 'fulfilled', 'pending']);
      await vi.advanceTimersByTimeAsync(1_000);
      expect(used).toHaveLength(5);
    });

    it('counts what began before where the limit becomes lower than that', async () => {
      const { call } = service();
      const gate = new ServiceGate({ name: 'search', rate: [{ limit: 5, perMs: 1_000 }] });
      for (let i = 0; i < 5; i++) await gate.run(call);
      const waiting = [1, 2, 3].map(() => follow(gate.run(call)));
      gate.setRate({ rate: [{ limit: 2, perMs: 1_000 }] });
      await vi.advanceTimersByTimeAsync(999);
      expect(call).toHaveBeenCalledTimes(5);
      await vi.advanceTimersByTimeAsync(1);
      expect(call).toHaveBeenCalledTimes(7);
      await vi.advanceTimersByTimeAsync(1_000);
      expect(waiting.map(({ now }) => now.is)).toEqual(Array(3).fill('fulfilled'));
    });

    it('starts a window of another length with the entries of the present one', async () => {
      const { call } = service();
      const gate = new ServiceGate({ name: 'search', sharedRate: [{ limit: 5, perMs: 1_000 }] });
      for (let i = 0; i < 5; i++) await gate.run(call);
      gate.setRate({ sharedRate: [{ limit: 5, perMs: 2_000 }] });
      follow(gate.run(call));
      await vi.advanceTimersByTimeAsync(1_999);
      expect(call).toHaveBeenCalledTimes(5);
      await vi.advanceTimersByTimeAsync(1);
      expect(call).toHaveBeenCalledTimes(6);
    });

    it.each(['rate', 'sharedRate'])(
      'rejects a waiting call that becomes heavier than `%s` allows, and lowers a weight that was only estimated',
      async (which) => {
        const rateOf = (limit: number) => ({ [which]: [{ limit, perMs: 1_000, unit: 'weight' as const }] });
        const gate = new ServiceGate({ name: 'llm', ...rateOf(1_000), usage: () => undefined });
        await gate.run(() => {}, { weight: 900 });
        const heavy = gate.run(() => {}, { weight: 300 });
        const light = gate.run(() => 'light', { weight: 1 });
        const estimated = gate.run(() => 'estimated');
        await settled();
        gate.setRate(rateOf(200));
        await expect(heavy).rejects.toMatchObject({ code: 'ERR_KEYS_EXHAUSTED', retryAfterMs: undefined });
        await vi.advanceTimersByTimeAsync(2_000);
        await expect(light).resolves.toBe('light');
        await expect(estimated).resolves.toBe('estimated');
      },
    );

    it('changes the heaviest weight that a call may have', async () => {
      const { call } = service();
      const gate = new ServiceGate({ name: 'llm', rate: [{ limit: 10, perMs: 1_000, unit: 'weight' }] });
      await expect(gate.run(call, { weight: 11 })).rejects.toBeInstanceOf(RangeError);
      gate.setRate({ rate: [{ limit: 20, perMs: 1_000, unit: 'weight' }] });
      await gate.run(call, { weight: 11 });
      expect(() => gate.setRate({ rate: [{ limit: 0, perMs: 1 }] })).toThrow('`rate[0].limit`');
      expect(() => gate.setRate({ rates: [] } as never)).toThrow('Unknown option `rates` in setRate');
    });
  });

  it('of a client that the gate does not know are redacted in its events', async () => {
    const { hooks, emitted } = recorder();
    const gate = new ServiceGate({ name: 'llm', hooks });
    const headers = { Authorization: 'Bearer sk-live-0123456789abcdef' };
    const error = Object.assign(new Error('401 for Bearer sk-live-0123456789abcdef'), {
      status: 401,
      config: { headers },
    });
    await expect(gate.run(() => Promise.reject(error))).rejects.toBe(error);
    expect(inspect(emitted, { depth: 20 })).not.toContain('sk-live');
    expect(emitted.at(-1)).toMatchObject({
      payload: { error: { message: '401 for Bearer [redacted]', status: 401 } },
    });
  });

  it('never appear in events, in errors of the gate or in stats', async () => {
    vi.spyOn(Math, 'random').mockReturnValue(0);
    const { hooks, emitted } = recorder();
    const gate = new ServiceGate({ name: 'search', hooks, keys: [A, B], timeoutMs: 100 });
    const seen: unknown[] = [];
    const attempt = (error: (key: string) => Error) =>
      gate.run(({ key }) => Promise.reject(error(key))).catch((thrown) => seen.push(thrown));
    await attempt((key) => new Error(`cannot parse https://host/?key=${key}`));
    await attempt((key) =>
      Object.assign(new Error('no'), { config: { headers: { authorization: `Bearer ${key}` } } }),
    );
    await attempt((key) => new Error('outer', { cause: new Error(`inner ${key}`) }));
    await attempt((key) => httpError(401, {}, `bad key ${key}`));
    const exhausted = await gate.run(() => 1).catch((error) => error);
    expect(exhausted).toMatchObject({
      code: 'ERR_KEYS_EXHAUSTED',
      cause: { message: 'HTTP 401', status: 401 },
    });
    const shown = inspect([emitted, exhausted, gate.stats()], { depth: 20 });
    expect(shown).not.toContain(A);
    expect(shown).not.toContain(B);
    expect(shown).toContain('cannot parse https://host/?key=[redacted]');
    // The caller gets what its own client threw.
    expect(inspect(seen, { depth: 20 })).toContain(A);
  });
});
