import { inspect } from 'node:util';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { openAiPreset } from '../../src/gate/presets.js';
import { ServiceGate } from '../../src/gate/service-gate.js';
import type { Limiter } from '../../src/limiter/limiter.js';
import { deferred, follow, httpError, recorder, settle } from './support.js';

beforeEach(() => {
  vi.useFakeTimers();
});
afterEach(() => {
  vi.useRealTimers();
  vi.restoreAllMocks();
});

const A = 'key-a-0123456789-aaaa';
const B = 'key-b-0123456789-bbbb';
const C = 'key-c-0123456789-cccc';

/** A service that answers by what is set for each key; anything else is fine. */
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
    it('rotates among equals', async () => {
      const { used, call } = service();
      const gate = new ServiceGate({ name: 'search', keys: [A, B, C] });
      for (let i = 0; i < 6; i++) await gate.run(call);
      expect(used).toEqual([A, B, C, A, B, C]);
    });

    it('takes the key that is least in use, of those with the same room', async () => {
      const gate = new ServiceGate({ name: 'llm', keys: [A, B] });
      const ends = [deferred(), deferred()];
      const keys: string[] = [];
      const calls = ends.map(({ promise }) =>
        gate.run(({ key }) => {
          keys.push(key);
          return promise;
        }),
      );
      await settle();
      ends[1]!.resolve();
      await calls[1];
      await gate.run(({ key }) => void keys.push(key));
      await gate.run(({ key }) => void keys.push(key));
      expect(keys).toEqual([A, B, B, B]);
      ends[0]!.resolve();
      await Promise.all(calls);
    });

    it('takes the key with the most left, in proportion to its own windows', async () => {
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

    it('waits only if no key has room, and for the first that has', async () => {
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

    it('holds each key to its own windows, and all together to the shared ones', async () => {
      const { call } = service();
      const gate = new ServiceGate({
        name: 'search',
        keys: [A, B],
        rate: [{ limit: 3, perMs: 1000 }],
        sharedRate: [{ limit: 4, perMs: 1000 }],
      });
      const calls = Array.from({ length: 8 }, () => gate.run(call));
      await settle();
      expect(call).toHaveBeenCalledTimes(4);
      await vi.advanceTimersByTimeAsync(1000);
      await Promise.all(calls);
      expect(call).toHaveBeenCalledTimes(8);
    });

    it('passes by a key whose windows can never hold the call', async () => {
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
    it('is tried again at once with another key, and holds its own for all callers', async () => {
      const { faults, used, call } = service();
      const { hooks, of } = recorder();
      const gate = new ServiceGate({ name: 'search', hooks, keys: [A, B] });
      faults.set(A, () => httpError(429, { 'retry-after': '30' }));
      await expect(gate.run(call)).resolves.toBe(B);
      expect(performance.now()).toBe(0);
      faults.clear();
      for (let i = 0; i < 5; i++) await gate.run(call);
      expect(used).toEqual([A, B, B, B, B, B, B]);
      expect(of('key:cooledDown')).toEqual([
        { source: 'search', key: '#1…aaaa', forMs: 30_000, status: 429 },
      ]);
      expect(of('call:retried')).toMatchObject([{ class: 'other-key', status: 429, delayMs: 0 }]);
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
    ])('holds the service, where there is one key, as long as %s says', async (_, headers, ms) => {
      const { faults, used, call } = service();
      const gate = new ServiceGate({ name: 'search', keys: [A] });
      faults.set(A, () => httpError(429, headers));
      const first = follow(gate.run(call));
      await settle();
      faults.clear();
      const second = follow(gate.run(call));
      expect(gate.stats()).toMatchObject({ opensInMs: ms, keys: [{ state: 'throttled', restMs: ms }] });
      await vi.advanceTimersByTimeAsync(ms - 1);
      expect(used).toHaveLength(1);
      await vi.advanceTimersByTimeAsync(2);
      expect(first.now.is).toBe('fulfilled');
      expect(second.now.is).toBe('fulfilled');
    });

    it('holds a service without keys as one with a single key', async () => {
      const { faults, call } = service();
      const { hooks, of } = recorder();
      const gate = new ServiceGate({ name: 'llm', hooks });
      faults.set('', () => httpError(503, { 'retry-after': '5' }));
      const first = follow(gate.run(call));
      await settle();
      faults.clear();
      const second = follow(gate.run(call));
      await vi.advanceTimersByTimeAsync(4_999);
      expect(call).toHaveBeenCalledTimes(1);
      await vi.advanceTimersByTimeAsync(1_000);
      expect([first.now.is, second.now.is]).toEqual(['fulfilled', 'fulfilled']);
      expect(of('key:cooledDown')).toEqual([{ source: 'llm', key: 'service', forMs: 5_000, status: 503 }]);
    });

    it.each([503, 529])('and a %i, too, hold the key without a time', async (status) => {
      const { faults, call } = service();
      const gate = new ServiceGate({ name: 'llm', keys: [A], retry: { attempts: 1 } });
      faults.set(A, () => httpError(status));
      await gate.run(call).catch(() => {});
      expect(gate.stats().opensInMs).toBe(1_000);
    });

    it('also holds a start that had the key already, at any step before it began', async () => {
      const served = new Set<string>();
      for (let steps = -20; steps < 40; steps++) {
        const { hooks, told } = recorder();
        const gate = new ServiceGate({
          name: 'search',
          hooks,
          keys: [A],
          maxConcurrent: 2,
          retry: { attempts: 1 },
        });
        const end = deferred<never>();
        follow(gate.run(() => end.promise));
        await settle();
        const refuse = () => end.reject(httpError(429, { 'retry-after': '1' }));
        if (steps < 0) refuse();
        for (let i = steps; i < 0; i++) await Promise.resolve();
        const second = follow(gate.run(() => 2));
        for (let i = 0; i < steps; i++) await Promise.resolve();
        refuse();
        await settle();
        const rested = told.findIndex(({ event }) => event === 'key:cooledDown');
        const begun = told.findLastIndex(({ event }) => event === 'call:started');
        served.add(begun > rested ? 'in the rest' : second.now.is);
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

    it('without a time holds the key for a second, and twice as long each time in a row', async () => {
      const { faults, call } = service();
      const { hooks, of } = recorder();
      const gate = new ServiceGate({
        name: 'search',
        hooks,
        keys: [A],
        rest: { maxMs: 5_000 },
        retry: { attempts: 6 },
      });
      faults.set(A, () => httpError(429));
      const calls = follow(gate.run(call));
      await vi.advanceTimersByTimeAsync(60_000);
      expect(calls.now.is).toBe('rejected');
      const rests = () => of('key:cooledDown').map((told) => told.forMs);
      expect(rests()).toEqual([1_000, 2_000, 4_000, 5_000, 5_000, 5_000]);
      faults.clear();
      await gate.run(call);
      faults.set(A, () => httpError(429));
      follow(gate.run(call, { timeoutMs: 500 }));
      await settle();
      expect(rests().at(-1)).toBe(1_000);
    });

    it.each([
      ['Retry-After: 0', { 'retry-after': '0' }],
      ['a date that has passed', { 'retry-after': 'Thu, 01 Jan 1970 00:00:00 GMT' }],
      ['no date at all', { 'retry-after': 'soon 2026' }],
      ['retry-after-ms: 0', { 'retry-after-ms': '0' }],
      ['a reset of 0s', { 'x-ratelimit-reset-requests': '0s' }],
    ])('with %s is one without a time, and no hot loop', async (_, headers) => {
      const { faults, used, call } = service();
      const { hooks, of } = recorder();
      const gate = new ServiceGate({ name: 'search', hooks, keys: [A], retry: { attempts: 10 } });
      faults.set(A, () => httpError(429, headers));
      follow(gate.run(call));
      await vi.advanceTimersByTimeAsync(999);
      expect(used).toHaveLength(1);
      await vi.advanceTimersByTimeAsync(2_001);
      expect(of('key:cooledDown').map((told) => told.forMs)).toEqual([1_000, 2_000, 4_000]);
    });

    it('of a classifier that says 0 ms rests as if nothing was said, and so does a spent key', async () => {
      const { call } = service();
      for (const [said, opensInMs] of [
        ['other-key', 1_000],
        ['key-spent', 3_600_000],
      ] as const) {
        const classify = () => ({ class: said, retryAfterMs: 0 });
        const gate = new ServiceGate({ name: 'search', keys: [A], classify });
        follow(gate.run(call));
        await settle();
        expect(gate.stats()).toMatchObject({ attempts: 1, opensInMs });
      }
    });

    it('that is not to be tried again is tried again by nobody, and still holds the key for the others', async () => {
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
      expect(of('call:finished')).toMatchObject([{ outcome: 'other-key', attempts: 1 }]);
      expect(of('key:cooledDown')).toEqual([{ source: 'llm', key: '#1…aaaa', forMs: 60_000, status: 429 }]);
      expect(release.mock.calls).toEqual([['dropped']]);
      await gate.run(call);
      await gate.run(call);
      expect(used).toEqual([A, B, B]);
      expect(gate.stats().keys).toMatchObject([{ state: 'throttled', restMs: 60_000 }, { state: 'ready' }]);
    });

    it('that is not to be tried again is the cause of it where no other key is left', async () => {
      const { faults, call } = service();
      const gate = new ServiceGate({ name: 'llm', ...openAiPreset(), keys: [A] });
      faults.set(A, () => httpError(429, { 'x-should-retry': 'false', 'retry-after': '60' }));
      await gate.run(call).catch(() => {});
      await expect(gate.run(call, { timeoutMs: 1_000 })).rejects.toMatchObject({
        code: 'ERR_KEYS_EXHAUSTED',
        cause: { status: 429 },
      });
    });

    it('without a time begins at a second again once a probe went well, however many follow', async () => {
      const { hooks, of } = recorder();
      const gate = new ServiceGate({ name: 'llm', hooks, keys: [A], retry: { attempts: 1 } });
      let underWay = 0;
      // It bears three at once.
      const call = () =>
        gate.run(async () => {
          if (underWay === 3) throw httpError(429);
          underWay++;
          await new Promise((resolve) => setTimeout(resolve, 5_000));
          underWay--;
        });
      for (let i = 0; i < 100; i++) follow(call());
      await vi.advanceTimersByTimeAsync(120_000);
      const rests = of('key:cooledDown').map((told) => told.forMs);
      expect(rests.filter((ms) => ms === 1_000).length).toBeGreaterThan(5);
      // A probe that meets three long calls is refused, but not for ever.
      expect(Math.max(...rests)).toBe(4_000);
    });

    it('of several at once counts as one, and the longest time holds', async () => {
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
      await settle();
      for (const [i, start] of starts.entries()) {
        start.reject(errors[i]);
        await settle();
      }
      expect(calls.every((call) => call.now.is === 'rejected')).toBe(true);
      expect(of('key:cooledDown').map((told) => told.forMs)).toEqual([1_000, 7_000]);
      expect(gate.stats().opensInMs).toBe(7_000);
    });

    it('of a call from before the rest changes nothing after it, unless it names a time', async () => {
      const gate = new ServiceGate({ name: 'llm', keys: [A], retry: { attempts: 1 } });
      const [first, late, later] = [deferred<never>(), deferred<never>(), deferred<never>()];
      for (const { promise } of [first, late, later]) follow(gate.run(() => promise));
      await settle();
      first.reject(httpError(429));
      await vi.advanceTimersByTimeAsync(1_000);
      late.reject(httpError(429));
      await settle();
      expect(gate.stats()).toMatchObject({ opensInMs: 0, keys: [{ state: 'easing' }] });
      later.reject(httpError(429, { 'retry-after': '4' }));
      await settle();
      expect(gate.stats()).toMatchObject({ opensInMs: 4_000 });
    });

    it('sends one probe first, and lets the rest follow by doubling, up to what was under way before', async () => {
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
      await settle();
      expect(ends).toHaveLength(10);
      for (const end of ends.splice(0)) end.reject(httpError(429, { 'retry-after': '2' }));
      await settle();
      for (let i = 0; i < 40; i++) call();
      await vi.advanceTimersByTimeAsync(1_999);
      expect(ends).toHaveLength(0);
      const waves: number[] = [];
      await vi.advanceTimersByTimeAsync(1);
      while (ends.length > 0) {
        waves.push(ends.length);
        for (const end of ends.splice(0)) end.resolve('fine');
        await settle();
      }
      expect(waves.slice(0, 4)).toEqual([1, 2, 4, 8]);
      expect(gate.stats().keys[0]!.state).toBe('ready');
      expect(waves.reduce((a, b) => a + b)).toBe(40);
    });

    it('takes a probe that has run for a second for one that went well: answers may be long', async () => {
      const gate = new ServiceGate({ name: 'llm', keys: [A], retry: { attempts: 1 } });
      const fail = deferred<never>();
      const before = Array.from({ length: 4 }, () => follow(gate.run(() => fail.promise)));
      await settle();
      fail.reject(httpError(429, { 'retry-after': '2' }));
      await settle();
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

    it('of the probe sends the key back to rest, and nobody else after it', async () => {
      const { faults, used, call } = service();
      const gate = new ServiceGate({ name: 'search', keys: [A], retry: { attempts: 1 } });
      faults.set(A, () => httpError(429, { 'retry-after': '2' }));
      const calls = Array.from({ length: 9 }, () => follow(gate.run(call)));
      await settle();
      const burst = used.length;
      const probes = async () => {
        await vi.advanceTimersByTimeAsync(2_000);
        return used.length - burst;
      };
      await expect(probes()).resolves.toBe(1);
      await expect(probes()).resolves.toBe(2);
      await expect(probes()).resolves.toBe(3);
      faults.clear();
      await probes();
      expect(used).toHaveLength(9);
      expect(calls.filter((c) => c.now.is === 'rejected')).toHaveLength(burst + 3);
    });

    it("lets another go first where the probe's own code was at fault, or its caller left", async () => {
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
      await settle();
      expect(order).toEqual(['bug', 'left', 'fine']);
      expect(calls[2]!.now.is).toBe('fulfilled');
      expect(gate.stats().keys[0]!.state).toBe('ready');
    });

    it('beyond the deadline fails the call at once, with the time, instead of letting it wait', async () => {
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

    it('tells those who wait already and cannot be served in time, wherever they wait', async () => {
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
      const atTurnstile = follow(gate.run(() => 1));
      const forPermit = follow(gate.run(() => 2, { timeoutMs: 60_000 }));
      const patient = follow(gate.run(() => 3));
      await settle();
      expect(gate.stats()).toMatchObject({ waitingForStart: 1, limiter: { queued: 2 } });
      one.reject(httpError(429, { 'retry-after': '300' }));
      await settle();
      expect(forPermit.now).toMatchObject({
        is: 'rejected',
        reason: { code: 'ERR_KEYS_EXHAUSTED', retryAfterMs: 300_000 },
      });
      expect([atTurnstile.now.is, patient.now.is]).toEqual(['pending', 'pending']);
      await vi.advanceTimersByTimeAsync(302_000);
      expect([atTurnstile.now.is, patient.now.is]).toEqual(['fulfilled', 'fulfilled']);
    });
  });

  describe('a row of failures', () => {
    it('in five rounds sends the key to rest: that is the breaker', async () => {
      vi.spyOn(Math, 'random').mockReturnValue(0);
      const { faults, used, call } = service();
      const { hooks, of } = recorder();
      const gate = new ServiceGate({ name: 'llm', hooks, keys: [A], retry: { attempts: 1 } });
      faults.set(A, () => httpError(500));
      for (let i = 0; i < 5; i++) {
        await gate.run(call).catch(() => {});
        await vi.advanceTimersByTimeAsync(10);
      }
      expect(of('key:cooledDown')).toEqual([{ source: 'llm', key: '#1…aaaa', forMs: 1_000, status: 500 }]);
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
    ])(
      'does not begin with one %i that tells of limits with room, and is not as long as those',
      async (status, headers) => {
        const { faults, call } = service();
        const gate = new ServiceGate({ name: 'llm', keys: [A], retry: { attempts: 1 } });
        faults.set(A, () => httpError(status, headers));
        await gate.run(call).catch(() => {});
        expect(gate.stats().opensInMs).toBe(status === 503 ? 1_000 : 0);
      },
    );

    it('sends it back to rest by a probe that fails in any way of the service', async () => {
      const { faults, used, call } = service();
      const gate = new ServiceGate({ name: 'llm', keys: [A], retry: { attempts: 1 } });
      faults.set(A, () => httpError(429));
      await gate.run(call).catch(() => {});
      faults.set(A, () => httpError(500));
      const waiting = [follow(gate.run(call)), follow(gate.run(call))];
      await vi.advanceTimersByTimeAsync(1_000);
      expect(waiting.map((w) => w.now.is)).toEqual(['rejected', 'pending']);
      expect(gate.stats().opensInMs).toBe(2_000);
      expect(used).toHaveLength(2);
    });

    it('counts those on trial like any other, once the probe went well', async () => {
      const { hooks, of } = recorder();
      const gate = new ServiceGate({ name: 'llm', hooks, keys: [A], retry: { attempts: 1 } });
      const throttled = deferred<never>();
      for (let i = 0; i < 20; i++) follow(gate.run(() => throttled.promise));
      await settle();
      throttled.reject(httpError(429));
      await vi.advanceTimersByTimeAsync(1_000);
      await gate.run(() => 'probe');
      for (let i = 0; i < 4; i++) await gate.run(() => Promise.reject(httpError(500))).catch(() => {});
      expect(of('key:cooledDown')).toHaveLength(1);
      expect(gate.stats().keys[0]!.state).toBe('easing');
    });

    it('does not, where they were all sent before the first was known', async () => {
      const { hooks, of } = recorder();
      const gate = new ServiceGate({ name: 'llm', hooks, keys: [A], retry: { attempts: 1 } });
      const burst = Array.from({ length: 50 }, () => deferred<never>());
      for (const { promise } of burst) follow(gate.run(() => promise));
      await settle();
      for (const { reject } of burst) {
        reject(httpError(500));
        await vi.advanceTimersByTimeAsync(5);
      }
      expect(of('key:cooledDown')).toEqual([]);
    });

    it('does not, where the service is at work on what came before: it is full, and not down', async () => {
      const { hooks, of } = recorder();
      const gate = new ServiceGate({ name: 'llm', hooks, keys: [A], retry: { attempts: 1 } });
      const long = deferred();
      const first = gate.run(() => long.promise);
      for (let i = 0; i < 50; i++) {
        await gate.run(() => Promise.reject(httpError(500))).catch(() => {});
        await vi.advanceTimersByTimeAsync(5);
      }
      expect(of('key:cooledDown')).toEqual([]);
      long.resolve();
      await first;
    });

    it('does, where nothing is ever answered: the timeouts make the row', async () => {
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
      expect(of('key:cooledDown')).toMatchObject([{ forMs: 1_000 }]);
      // Five times the timeout, and not one after each other call.
      expect(gate.stats().attempts).toBeGreaterThan(40);
    });

    it('does not, where anything went well in between', async () => {
      const { faults, call } = service();
      const { hooks, of } = recorder();
      const gate = new ServiceGate({ name: 'llm', hooks, keys: [A], retry: { attempts: 1 } });
      for (let i = 0; i < 20; i++) {
        if (i % 4 === 3) faults.clear();
        else faults.set(A, () => httpError(500));
        await gate.run(call).catch(() => {});
        await vi.advanceTimersByTimeAsync(10);
      }
      expect(of('key:cooledDown')).toEqual([]);
    });

    it("has no part in it that is a bug of the host's", async () => {
      const gate = new ServiceGate({ name: 'llm', keys: [A] });
      for (let i = 0; i < 20; i++) {
        await gate.run(() => Promise.reject(new TypeError('bug'))).catch(() => {});
        await vi.advanceTimersByTimeAsync(10);
      }
      expect(gate.stats().keys[0]!.state).toBe('ready');
    });
  });

  describe('a refused key', () => {
    it.each([401, 403])('(%i) is quarantined, and the call goes on with another', async (status) => {
      const { faults, used, call } = service();
      const { hooks, of } = recorder();
      const gate = new ServiceGate({ name: 'search', hooks, keys: [A, B] });
      faults.set(A, () => httpError(status));
      await expect(gate.run(call)).resolves.toBe(B);
      await vi.advanceTimersByTimeAsync(3_600_000_000);
      await gate.run(call);
      expect(used).toEqual([A, B, B]);
      expect(of('key:quarantined')).toEqual([{ source: 'search', key: '#1…aaaa', reason: 'dead' }]);
      expect(gate.stats().keys).toMatchObject([
        { state: 'dead', restMs: Number.POSITIVE_INFINITY },
        { state: 'ready', restMs: 0 },
      ]);
    });

    it('is quarantined once, however many were under way, and a dead one is not spent', async () => {
      const { hooks, of } = recorder();
      const gate = new ServiceGate({ name: 'search', hooks, keys: [A], retry: { attempts: 1 } });
      const ends = [401, 401, 402].map((status) => ({ status, end: deferred<never>() }));
      for (const { end } of ends) follow(gate.run(() => end.promise));
      await settle();
      for (const { status, end } of ends) {
        end.reject(httpError(status));
        await vi.advanceTimersByTimeAsync(10);
      }
      expect(of('key:quarantined')).toEqual([{ source: 'search', key: '#1…aaaa', reason: 'dead' }]);
      expect(gate.stats().keys[0]).toMatchObject({ state: 'dead', restMs: Number.POSITIVE_INFINITY });
    });

    it('costs none of the attempts, however many are refused', async () => {
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

    it('that was the last one fails the call as it was refused, and every further one at once', async () => {
      const { faults, call } = service();
      const gate = new ServiceGate({ name: 'search', keys: [A, B] });
      for (const key of [A, B]) faults.set(key, () => httpError(401));
      await expect(gate.run(call)).rejects.toMatchObject({ status: 401 });
      await expect(gate.run(call)).rejects.toMatchObject({
        code: 'ERR_KEYS_EXHAUSTED',
        retryAfterMs: undefined,
        cause: { status: 401 },
      });
      expect(call).toHaveBeenCalledTimes(2);
      expect(gate.stats().opensInMs).toBe(Number.POSITIVE_INFINITY);
    });

    it('that was the last one fails those who wait, also without a deadline', async () => {
      const gate = new ServiceGate({ name: 'search', keys: [A], maxConcurrent: 1 });
      const end = deferred<never>();
      follow(gate.run(() => end.promise));
      const waiting = [follow(gate.run(() => 1)), follow(gate.run(() => 2))];
      await settle();
      end.reject(httpError(403));
      await settle();
      for (const call of waiting) {
        expect(call.now).toMatchObject({ is: 'rejected', reason: { code: 'ERR_KEYS_EXHAUSTED' } });
      }
      expect(gate.stats()).toMatchObject({ waitingForStart: 0, limiter: { active: 0, queued: 0 } });
    });

    it('comes back by restoreKey', async () => {
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

    it('comes back after rest.deadMs, where that is set, with a probe', async () => {
      const { faults, call } = service();
      const gate = new ServiceGate({ name: 'search', keys: [A], rest: { deadMs: 10_000 } });
      faults.set(A, () => httpError(401));
      await expect(gate.run(call, { timeoutMs: 5_000 })).rejects.toMatchObject({ status: 401 });
      await expect(gate.run(call, { timeoutMs: 5_000 })).rejects.toMatchObject({ retryAfterMs: 10_000 });
      faults.clear();
      const call2 = follow(gate.run(call, { timeoutMs: 20_000 }));
      await vi.advanceTimersByTimeAsync(10_000);
      expect(call2.now.is).toBe('fulfilled');
    });

    it('is the error of its call, and nothing more, where the gate has no keys', async () => {
      const { faults, call } = service();
      const gate = new ServiceGate({ name: 'llm' });
      faults.set('', () => httpError(401));
      for (let i = 0; i < 3; i++) await expect(gate.run(call)).rejects.toMatchObject({ status: 401 });
      expect(call).toHaveBeenCalledTimes(3);
    });
  });

  describe('a spent account', () => {
    it.each([
      ['402', () => httpError(402)],
      ['insufficient_quota', () => Object.assign(httpError(429), { code: 'insufficient_quota' })],
    ])('(%s) rests for an hour, and then sends a probe', async (_, error) => {
      const { faults, used, call } = service();
      const { hooks, of } = recorder();
      const gate = new ServiceGate({ name: 'search', hooks, keys: [A, B] });
      faults.set(A, error);
      await expect(gate.run(call)).resolves.toBe(B);
      expect(of('key:quarantined')).toEqual([
        { source: 'search', key: '#1…aaaa', reason: 'spent', forMs: 3_600_000 },
      ]);
      faults.clear();
      await vi.advanceTimersByTimeAsync(3_599_999);
      await gate.run(call);
      expect(used).toEqual([A, B, B]);
      await vi.advanceTimersByTimeAsync(1);
      await gate.run(call);
      expect(used.at(-1)).toBe(A);
    });

    it('rests its hour, whatever the limits of rate say that come with the 402', async () => {
      const { faults, call } = service();
      const gate = new ServiceGate({ name: 'llm', keys: [A] });
      faults.set(A, () => httpError(402, { 'x-ratelimit-reset-requests': '12ms' }));
      await gate.run(call, { timeoutMs: 1_000 }).catch(() => {});
      expect(gate.stats().opensInMs).toBe(3_600_000);
    });

    it('is waited for where there is time, but not for ever: it is lost for free once', async () => {
      const { faults, used, call } = service();
      const gate = new ServiceGate({ name: 'search', keys: [A] });
      faults.set(A, () => httpError(402));
      const waiting = follow(gate.run(call));
      await vi.advanceTimersByTimeAsync(24 * 3_600_000);
      expect(waiting.now).toMatchObject({ is: 'rejected', reason: { status: 402 } });
      expect(used).toHaveLength(4);
    });

    it('rests as long as the classifier says, or as rest.spentMs', async () => {
      const { faults, call } = service();
      const gate = new ServiceGate({ name: 'search', keys: [A], rest: { spentMs: 60_000 } });
      faults.set(A, () => httpError(402));
      await gate.run(call, { timeoutMs: 1_000 }).catch(() => {});
      expect(gate.stats().opensInMs).toBe(60_000);
      const said = new ServiceGate({
        name: 'search',
        keys: [A],
        classify: () => ({ class: 'key-spent', retryAfterMs: 5_000 }),
      });
      await said.run(call, { timeoutMs: 1_000 }).catch(() => {});
      expect(said.stats().opensInMs).toBe(5_000);
    });
  });

  describe('the cause of a KeysExhaustedError', () => {
    it('is the own error of the call that met the last failure, and tells others only what it was', async () => {
      vi.spyOn(Math, 'random').mockReturnValue(0);
      const gate = new ServiceGate({ name: 'search', keys: [A], rate: [{ limit: 2, perMs: 60_000 }] });
      const second = deferred<never>();
      const own = follow(
        gate.run(({ attempt }) => (attempt === 1 ? Promise.reject(httpError(500)) : second.promise), {
          timeoutMs: 30_000,
        }),
      );
      await settle();
      const mine = Object.assign(new Error('for a private question'), { code: 'ECONNRESET', q: 'private' });
      second.reject(mine);
      await settle();
      const other = follow(gate.run(() => 1, { timeoutMs: 30_000 }));
      await settle();
      expect(own.now).toMatchObject({ reason: { code: 'ERR_KEYS_EXHAUSTED', cause: mine } });
      expect(other.now).toMatchObject({
        reason: { code: 'ERR_KEYS_EXHAUSTED', cause: { message: 'ECONNRESET', code: 'ECONNRESET' } },
      });
      expect((other.now as { reason: Error }).reason.cause).not.toBe(mine);
    });

    it('is a copy where the own error shows a key', async () => {
      vi.spyOn(Math, 'random').mockReturnValue(0);
      const gate = new ServiceGate({ name: 'search', keys: [A], rate: [{ limit: 1, perMs: 60_000 }] });
      const error = await gate
        .run(({ key }) => Promise.reject(httpError(500, {}, `no ${key}`)), { timeoutMs: 30_000 })
        .catch((thrown: unknown) => thrown);
      expect(error).toMatchObject({
        code: 'ERR_KEYS_EXHAUSTED',
        cause: { message: 'no #1…aaaa', status: 500 },
      });
    });

    it("is another's where that came after the own one", async () => {
      vi.spyOn(Math, 'random').mockReturnValue(0.5);
      const gate = new ServiceGate({ name: 'search', keys: [A] });
      const backsOff = follow(gate.run(() => Promise.reject(httpError(500))));
      await settle();
      await gate.run(() => Promise.reject(httpError(401))).catch(() => {});
      await settle();
      expect(backsOff.now).toMatchObject({
        reason: { code: 'ERR_KEYS_EXHAUSTED', cause: { message: 'HTTP 401' } },
      });
    });

    it.each([
      [() => Promise.reject(httpError(401)), 'HTTP 401'],
      [() => new Response('no', { status: 403 }), 'HTTP 403'],
    ])('is told of %s', async (fn, message) => {
      const gate = new ServiceGate({ name: 'search', keys: [A] });
      await Promise.resolve(gate.run(fn)).catch(() => {});
      await expect(gate.run(fn)).rejects.toMatchObject({ cause: { message } });
    });

    it.each([
      ['a code, also one in a cause', { cause: { code: 'ENOTFOUND' } }, 'ENOTFOUND'],
      ['no code, but a text', { code: 'a private question' }, 'an outcome of class key-dead'],
      ['nothing', {}, 'an outcome of class key-dead'],
    ])('is told of an error with %s', async (_, fields, message) => {
      const gate = new ServiceGate({ name: 'search', keys: [A], classify: () => 'key-dead' });
      const fn = () => Promise.reject(Object.assign(new Error('private'), fields));
      await gate.run(fn).catch(() => {});
      await expect(gate.run(fn)).rejects.toMatchObject({ cause: { message } });
    });

    it('is no bug of the host, and no page that is not there', async () => {
      const gate = new ServiceGate({ name: 'search', keys: [A], rate: [{ limit: 2, perMs: 60_000 }] });
      await gate.run(() => Promise.reject(new TypeError('bug'))).catch(() => {});
      await gate.run(() => Promise.reject(httpError(404))).catch(() => {});
      const error = await gate.run(() => 1, { timeoutMs: 1_000 }).catch((thrown: Error) => thrown);
      expect(error).toMatchObject({ code: 'ERR_KEYS_EXHAUSTED' });
      expect((error as Error).cause).toBeUndefined();
    });
  });

  it('of a client, which the gate does not know, stay out of its events', async () => {
    const { hooks, told } = recorder();
    const gate = new ServiceGate({ name: 'llm', hooks });
    const headers = { Authorization: 'Bearer sk-live-0123456789abcdef' };
    const error = Object.assign(new Error('401 for Bearer sk-live-0123456789abcdef'), {
      status: 401,
      config: { headers },
    });
    await expect(gate.run(() => Promise.reject(error))).rejects.toBe(error);
    expect(inspect(told, { depth: 20 })).not.toContain('sk-live');
    expect(told.at(-1)).toMatchObject({
      payload: { error: { message: '401 for Bearer [masked]', status: 401 } },
    });
  });

  it('never appear unmasked in events, errors of ours and figures', async () => {
    vi.spyOn(Math, 'random').mockReturnValue(0);
    const { hooks, told } = recorder();
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
    const shown = inspect([told, exhausted, gate.stats()], { depth: 20 });
    expect(shown).not.toContain(A);
    expect(shown).not.toContain(B);
    expect(shown).toContain('cannot parse https://host/?key=#1…aaaa');
    // The caller gets what its own client threw.
    expect(inspect(seen, { depth: 20 })).toContain(A);
  });
});
