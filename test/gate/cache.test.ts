import { afterEach, describe, expect, it, vi } from 'vitest';
import type { CacheOptions } from '../../src/gate/cache.js';
import { ServiceGate } from '../../src/gate/service-gate.js';
import { PER_TURN } from '../../src/internal/clock.js';
import { onFakeTimers, settled } from '../support/fake-timers.js';
import { httpError } from '../support/gates.js';
import { recorder } from '../support/hooks.js';
import { deferred, follow } from '../support/promises.js';
import { countListeners } from '../support/signals.js';

onFakeTimers();
afterEach(() => vi.restoreAllMocks());

const cached = (options: object = {}) => {
  const { hooks, of } = recorder();
  const gate = new ServiceGate({ name: 'search', hooks, cache: { max: 2, ttlMs: 1000 }, ...options });
  return { gate, of };
};

describe('the cache of a ServiceGate', () => {
  it('serves a second call of the same key without a permit', async () => {
    const { gate, of } = cached();
    const code = vi.fn(async () => ({ page: 1 }));
    const first = await gate.run(code, { cacheKey: 'k', taskId: 't' });
    await expect(gate.run(code, { cacheKey: 'k' })).resolves.toBe(first);
    expect(code).toHaveBeenCalledTimes(1);
    expect(of('cache:miss')).toMatchObject([{ source: 'search', taskId: 't' }]);
    expect(of('cache:hit')).toMatchObject([{ source: 'search', shared: false }]);
    expect(of('call:finished')).toMatchObject([
      { cache: 'miss', attempts: 1 },
      { cache: 'hit', attempts: 0, outcome: 'ok', durationMs: 0 },
    ]);
    expect(gate.stats()).toMatchObject({
      calls: 2,
      attempts: 1,
      cache: { size: 1, hits: 1, misses: 1, shared: 0, inFlight: 0 },
    });
  });

  it('separates keys, and caches no call without a key', async () => {
    const { gate } = cached();
    const code = vi.fn(async () => code.mock.calls.length);
    await expect(gate.run(code, { cacheKey: 'a' })).resolves.toBe(1);
    await expect(gate.run(code, { cacheKey: 'b' })).resolves.toBe(2);
    await expect(gate.run(code)).resolves.toBe(3);
    await expect(gate.run(code, { cacheKey: 'a' })).resolves.toBe(1);
  });

  it('caches undefined, null and false like any other result', async () => {
    const { gate } = cached();
    for (const result of [undefined, null, false]) {
      const code = vi.fn(async () => result);
      await gate.run(code, { cacheKey: String(result) });
      await expect(gate.run(code, { cacheKey: String(result) })).resolves.toBe(result);
      expect(code).toHaveBeenCalledTimes(1);
    }
  });

  it('expires a result after ttlMs, also at clock time 0', async () => {
    const { gate } = cached();
    expect(performance.now()).toBe(0);
    const code = vi.fn(async () => 1);
    await gate.run(code, { cacheKey: 'k' });
    await vi.advanceTimersByTimeAsync(1000);
    await gate.run(code, { cacheKey: 'k' });
    expect(code).toHaveBeenCalledTimes(1);
    await vi.advanceTimersByTimeAsync(1);
    await gate.run(code, { cacheKey: 'k' });
    expect(code).toHaveBeenCalledTimes(2);
  });

  it('evicts the least recently used result beyond max', async () => {
    const { gate } = cached();
    const code = vi.fn(async () => 1);
    for (const cacheKey of ['a', 'b', 'a', 'c', 'a', 'b']) await gate.run(code, { cacheKey });
    expect(code).toHaveBeenCalledTimes(4);
  });

  it('does not cache a failure', async () => {
    const { gate } = cached({
      classify: (o: { value?: unknown }) => (o.value === 'empty' ? 'client-error' : undefined),
    });
    await expect(gate.run(() => Promise.reject(httpError(404)), { cacheKey: 'k' })).rejects.toThrow();
    await expect(gate.run(() => 'empty', { cacheKey: 'k' })).resolves.toBe('empty');
    await expect(gate.run(() => 'page', { cacheKey: 'k' })).resolves.toBe('page');
    expect(gate.stats().cache.size).toBe(1);
  });

  it('rejects a Response, which can be read only once', async () => {
    const { gate, of } = cached();
    const cancel = vi.fn();
    const response = new Response(new ReadableStream({ cancel }));
    await expect(gate.run(() => response, { cacheKey: 'k' })).rejects.toThrow('must return data');
    expect(cancel).toHaveBeenCalledTimes(1);
    expect(of('call:finished')).toMatchObject([{ outcome: 'fatal', attempts: 1 }]);
  });

  it.each([
    [{ max: 0, ttlMs: 1 }, '`cache.max`'],
    [{ max: 1 }, '`cache.ttlMs`'],
    [{ max: 1, ttlMs: 0.5 }, '`cache.ttlMs`'],
    [{ max: 1, ttlMs: 1, ttl: 1 }, 'Unknown option `ttl` in cache'],
  ])('rejects %j', (cache, message) => {
    expect(() => new ServiceGate({ name: 'search', cache: cache as never })).toThrow(message);
  });

  describe('with concurrent calls of one key', () => {
    const three = (
      gate: ServiceGate,
      code: () => Promise<unknown>,
      signals: readonly (AbortSignal | undefined)[] = [],
    ) =>
      [0, 1, 2].map((i) => {
        const signal = signals[i];
        return follow(gate.run(code, { cacheKey: 'k', ...(signal && { signal }) }));
      });

    it('makes one call for all of them', async () => {
      const { gate, of } = cached();
      const response = deferred<string>();
      const code = vi.fn(() => response.promise);
      const calls = three(gate, code);
      await settled();
      expect(gate.stats().cache).toMatchObject({ inFlight: 1 });
      response.resolve('page');
      await settled();
      expect(calls.map((call) => call.now)).toEqual(Array(3).fill({ is: 'fulfilled', value: 'page' }));
      expect(code).toHaveBeenCalledTimes(1);
      expect(of('cache:hit')).toMatchObject([{ shared: true }, { shared: true }]);
      expect(
        of('call:finished')
          .map((event) => event.cache)
          .sort(),
      ).toEqual(['miss', 'shared', 'shared']);
      expect(gate.stats().cache).toMatchObject({ inFlight: 0, misses: 1, shared: 2 });
    });

    it('makes no call for a caller that has already aborted', async () => {
      const { gate } = cached();
      const code = vi.fn();
      await expect(gate.run(code, { cacheKey: 'k', signal: AbortSignal.abort('enough') })).rejects.toBe(
        'enough',
      );
      await settled();
      expect(code).not.toHaveBeenCalled();
      expect(gate.stats().cache).toMatchObject({ inFlight: 0, misses: 0 });
    });

    it('makes no call for a caller that aborts in the cache miss event', async () => {
      const { hooks, of } = recorder();
      const gate = new ServiceGate({ name: 'search', hooks });
      const control = new AbortController();
      hooks.on('cache:miss', () => control.abort('enough'));
      const code = vi.fn();
      await expect(gate.run(code, { cacheKey: 'k', signal: control.signal })).rejects.toBe('enough');
      await settled();
      expect(code).not.toHaveBeenCalled();
      expect(gate.stats()).toMatchObject({ attempts: 0, running: 0, cache: { inFlight: 0 } });
      expect(of('call:finished')).toMatchObject([{ outcome: 'aborted' }]);
    });

    it('shares a call without a cache, too, and then stores nothing', async () => {
      const gate = new ServiceGate({ name: 'search' });
      const code = vi.fn(async () => 1);
      await Promise.all(three(gate, code));
      await settled();
      expect(code).toHaveBeenCalledTimes(1);
      await gate.run(code, { cacheKey: 'k' });
      expect(code).toHaveBeenCalledTimes(2);
    });

    it('rejects all of them with a failure, and does not store it', async () => {
      const { gate, of } = cached({ retry: { attempts: 1 } });
      const failure = httpError(500);
      const code = vi.fn(() => Promise.reject(failure));
      const calls = three(gate, code);
      await settled();
      expect(calls.map((call) => call.now)).toEqual(Array(3).fill({ is: 'rejected', reason: failure }));
      expect(code).toHaveBeenCalledTimes(1);
      expect(of('call:finished').map((event) => event.outcome)).toEqual([
        'retryable',
        'retryable',
        'retryable',
      ]);
      await expect(gate.run(() => 2, { cacheKey: 'k' })).resolves.toBe(2);
    });

    it.each([0, 1, 2])('continues for the others when waiter %i aborts', async (leaver) => {
      const { gate, of } = cached();
      const response = deferred<string>();
      const controls = [0, 1, 2].map(() => new AbortController());
      const listeners = controls.map(({ signal }) => countListeners(signal));
      let seen: AbortSignal | undefined;
      const calls = controls.map(({ signal }) =>
        follow(
          gate.run(
            (context) => {
              seen = context.signal;
              return response.promise;
            },
            { cacheKey: 'k', signal },
          ),
        ),
      );
      await settled();
      controls[leaver]!.abort('enough');
      for (let i = 0; i < 20; i++) await Promise.resolve();
      expect(calls[leaver]!.now).toEqual({ is: 'rejected', reason: 'enough' });
      expect(seen!.aborted).toBe(false);
      response.resolve('page');
      await settled();
      for (const [i, call] of calls.entries()) {
        if (i !== leaver) expect(call.now).toEqual({ is: 'fulfilled', value: 'page' });
      }
      expect(listeners.map((l) => l.size)).toEqual([0, 0, 0]);
      expect(
        of('call:finished')
          .map((event) => event.outcome)
          .sort(),
      ).toEqual(['aborted', 'ok', 'ok']);
    });

    it('is aborted when the last waiter leaves; a later call starts anew', async () => {
      const { gate } = cached({ maxConcurrent: 1 });
      const controls = [0, 1, 2].map(() => new AbortController());
      let seen: AbortSignal | undefined;
      const code = vi.fn(({ signal }: { signal: AbortSignal }) => {
        seen = signal;
        return new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)));
      });
      const calls = controls.map(({ signal }) => follow(gate.run(code, { cacheKey: 'k', signal })));
      await settled();
      for (const control of controls) control.abort('enough');
      expect(seen!.reason).toBe('enough');
      const newcomer = follow(gate.run(() => 'new', { cacheKey: 'k' }));
      await settled();
      expect(calls.every((call) => call.now.is === 'rejected')).toBe(true);
      expect(newcomer.now).toEqual({ is: 'fulfilled', value: 'new' });
      expect(gate.stats()).toMatchObject({ running: 0, limiter: { active: 0 }, cache: { inFlight: 0 } });
    });

    it('honors the deadline of each waiter, and runs until the last one', async () => {
      const { gate } = cached();
      let seen: AbortSignal | undefined;
      const code = ({ signal }: { signal: AbortSignal }) => {
        seen = signal;
        return new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)));
      };
      const short = follow(gate.run(code, { cacheKey: 'k', timeoutMs: 100 }));
      const long = follow(gate.run(code, { cacheKey: 'k', timeoutMs: 300 }));
      await vi.advanceTimersByTimeAsync(100);
      expect(short.now).toMatchObject({ is: 'rejected', reason: { scope: 'call', timeoutMs: 100 } });
      expect([long.now.is, seen!.aborted]).toEqual(['pending', false]);
      await vi.advanceTimersByTimeAsync(200);
      expect(long.now).toMatchObject({ is: 'rejected', reason: { scope: 'call', timeoutMs: 300 } });
      expect(seen!.aborted).toBe(true);
    });

    it.each([
      ['is already in cooldown', 0],
      ['enters cooldown while the call waits for its permit', 1],
      ['enters cooldown because of this call', 2],
    ])(
      'rejects a waiter at once that cannot meet its deadline if the key %s, and continues for the others',
      async (_, when) => {
        vi.spyOn(Math, 'random').mockReturnValue(0);
        const { gate, of } = cached({ maxConcurrent: 1, keys: ['the-only-key'] });
        const refused = () => Promise.reject(httpError(429, { 'retry-after': '10' }));
        const first = deferred<never>();
        if (when === 0) await gate.run(refused, { timeoutMs: 1 }).catch(() => {});
        if (when === 1) follow(gate.run(() => first.promise, { timeoutMs: 5_000 }));
        await settled();
        let attempts = 0;
        const code = () => (when === 2 && attempts++ === 0 ? refused() : Promise.resolve('page'));
        const hasty = [1_000, 9_000].map((timeoutMs) => follow(gate.run(code, { cacheKey: 'k', timeoutMs })));
        const patient = [20_000, undefined].map((timeoutMs) =>
          follow(gate.run(code, { cacheKey: 'k', ...(timeoutMs && { timeoutMs }) })),
        );
        await settled();
        if (when === 1) first.reject(httpError(429, { 'retry-after': '10' }));
        await settled();
        for (const call of hasty) {
          expect(call.now).toMatchObject({ reason: { code: 'ERR_KEYS_EXHAUSTED', retryAfterMs: 10_000 } });
        }
        expect(patient.map((call) => call.now.is)).toEqual(['pending', 'pending']);
        await vi.advanceTimersByTimeAsync(10_000);
        for (const call of patient) expect(call.now).toEqual({ is: 'fulfilled', value: 'page' });
        expect(of('call:finished').filter(({ outcome }) => outcome === 'rejected')).toHaveLength(2);
        expect(vi.getTimerCount()).toBe(0);
      },
    );

    it('rejects a waiter at once that joins while all keys are in cooldown beyond its deadline', async () => {
      const { gate } = cached({ keys: ['the-only-key'] });
      follow(gate.run(() => Promise.reject(httpError(429, { 'retry-after': '10' })), { timeoutMs: 1 }));
      await settled();
      const code = vi.fn(() => 'page');
      const patient = follow(gate.run(code, { cacheKey: 'k' }));
      await vi.advanceTimersByTimeAsync(4_000);
      const hasty = follow(gate.run(code, { cacheKey: 'k', timeoutMs: 5_000 }));
      const fit = follow(gate.run(code, { cacheKey: 'k', timeoutMs: 7_000 }));
      await settled();
      expect(hasty.now).toMatchObject({ reason: { code: 'ERR_KEYS_EXHAUSTED', retryAfterMs: 6_000 } });
      await vi.advanceTimersByTimeAsync(6_000);
      for (const call of [patient, fit]) expect(call.now).toEqual({ is: 'fulfilled', value: 'page' });
      expect(code).toHaveBeenCalledTimes(1);
    });

    it('lets a waiter with a short deadline join an in-flight attempt, whatever the state of the key', async () => {
      const { gate } = cached({ keys: ['the-only-key'] });
      const page = deferred<string>();
      const early = follow(gate.run(() => page.promise, { cacheKey: 'k' }));
      follow(gate.run(() => Promise.reject(httpError(429, { 'retry-after': '10' })), { timeoutMs: 1 }));
      await settled();
      const hasty = follow(gate.run(() => 'never', { cacheKey: 'k', timeoutMs: 5_000 }));
      await settled();
      page.resolve('page');
      await settled();
      for (const call of [early, hasty]) expect(call.now).toEqual({ is: 'fulfilled', value: 'page' });
    });

    it('is rejected at once if no waiter can meet its deadline', async () => {
      const { gate } = cached({ rate: [{ limit: 1, perMs: 60_000 }] });
      await gate.run(() => 1);
      const code = vi.fn();
      const calls = [1_000, 5_000].map((timeoutMs) => follow(gate.run(code, { cacheKey: 'k', timeoutMs })));
      await settled();
      for (const call of calls) expect(call.now).toMatchObject({ reason: { code: 'ERR_KEYS_EXHAUSTED' } });
      expect(gate.stats()).toMatchObject({ queuedForStart: 0, cache: { inFlight: 0 } });
      expect(vi.getTimerCount()).toBe(0);
    });

    it('rejects each waiter at its deadline with the last failure as the cause', async () => {
      vi.spyOn(Math, 'random').mockReturnValue(0);
      const { gate } = cached();
      const code = ({ attempt }: { attempt: number }) =>
        attempt === 1 ? Promise.reject(httpError(500)) : new Promise(() => {});
      const calls = [1, 2].map(() => follow(gate.run(code, { cacheKey: 'k', timeoutMs: 100 })));
      await vi.advanceTimersByTimeAsync(100);
      for (const call of calls)
        expect(call.now).toMatchObject({ reason: { scope: 'call', cause: { status: 500 } } });
    });

    it.each([
      ['the first', [undefined, 100]],
      ['the last', [100, undefined]],
    ])('retries until the latest deadline of the waiters: %s', async (_, timeouts) => {
      vi.spyOn(Math, 'random').mockReturnValue(0.999);
      const { gate } = cached({ retry: { baseMs: 500 } });
      const responses = [() => Promise.reject(httpError(500)), () => Promise.resolve('page')];
      const code = () => responses.shift()!();
      const calls = timeouts.map((timeoutMs) =>
        follow(gate.run(code, { cacheKey: 'k', ...(timeoutMs && { timeoutMs }) })),
      );
      await vi.advanceTimersByTimeAsync(1000);
      for (const [i, timeoutMs] of timeouts.entries()) {
        if (timeoutMs === undefined) expect(calls[i]!.now).toEqual({ is: 'fulfilled', value: 'page' });
        else expect(calls[i]!.now.is).toBe('rejected');
      }
    });

    it('is rejected when the gate closes', async () => {
      const { gate } = cached();
      const calls = three(gate, () => new Promise(() => {}));
      await settled();
      const closed = gate.close();
      await settled();
      for (const call of calls)
        expect(call.now).toMatchObject({ is: 'rejected', reason: { code: 'ERR_GATE_CLOSED' } });
      await vi.advanceTimersByTimeAsync(5_000);
      await closed;
    });
  });
});

describe('the options of the cache', () => {
  const gateWith = (cache: Partial<CacheOptions>, options: object = {}) =>
    new ServiceGate({
      name: 'search',
      cache: { max: 10, ttlMs: 1_000, ...cache },
      retry: { attempts: 1 },
      ...options,
    });

  it('bound its size in bytes, and exclude a result that is larger', async () => {
    const gate = gateWith({ maxBytes: 1_000 });
    const ask = (key: string, size: number) => gate.run(() => 'x'.repeat(size), { cacheKey: key });
    await ask('a', 400);
    await ask('b', 400);
    expect(gate.stats().cache.size).toBe(2);
    await ask('c', 400);
    expect(gate.stats().cache.size).toBe(2);
    await ask('d', 2_000);
    expect(gate.stats().cache.size).toBe(2);
    const cycle: { self?: unknown } = {};
    cycle.self = cycle;
    await gate.run(() => cycle, { cacheKey: 'e' });
    expect(gate.stats().cache.size).toBe(2);
  });

  it('accept a function for the ttl of each result', async () => {
    const gate = gateWith({ ttlMs: (value) => (value as { ttl: number }).ttl });
    await gate.run(() => ({ ttl: 500 }), { cacheKey: 'a' });
    await gate.run(() => ({ ttl: 0 }), { cacheKey: 'b' });
    expect(gate.stats().cache.size).toBe(1);
    await vi.advanceTimersByTimeAsync(500);
    const code = vi.fn(() => ({ ttl: 500 }));
    await gate.run(code, { cacheKey: 'a' });
    expect(code).not.toHaveBeenCalled();
    await vi.advanceTimersByTimeAsync(1);
    await gate.run(code, { cacheKey: 'a' });
    expect(code).toHaveBeenCalledTimes(1);
  });

  it('exclude what shouldCache rejects, and results for which a callback throws', async () => {
    const gate = gateWith({ shouldCache: (value) => value !== 'empty' });
    await gate.run(() => 'empty', { cacheKey: 'a' });
    await gate.run(() => 'page', { cacheKey: 'b' });
    expect(gate.stats().cache.size).toBe(1);
    const failing = gateWith({
      ttlMs: () => {
        throw new Error('no');
      },
    });
    await expect(failing.run(() => 'page', { cacheKey: 'a' })).resolves.toBe('page');
    expect(failing.stats().cache.size).toBe(0);
  });

  it('exclude results for which a callback returns a promise, whose rejection goes nowhere', async () => {
    const late = vi.fn();
    process.on('unhandledRejection', late);
    const broken = (() => Promise.reject(new Error('async'))) as never;
    for (const cache of [{ shouldCache: broken }, { ttlMs: broken }]) {
      const gate = gateWith(cache);
      await expect(gate.run(() => 'page', { cacheKey: 'a' })).resolves.toBe('page');
      expect(gate.stats().cache.size).toBe(0);
    }
    const counted = {
      rate: [{ limit: 5_000, perMs: 1_000, unit: 'weight' }],
      usage: broken,
      estimate: broken,
    };
    const gate = gateWith({}, counted);
    await gate.run(() => 'page');
    await gate.fetch({ fetch: async () => Response.json({}) })('http://llm.example', {
      method: 'POST',
      body: '{}',
    });
    await settled();
    process.off('unhandledRejection', late);
    expect(late).not.toHaveBeenCalled();
  });

  it('answer no caller that has left, or whose gate closes, with an expired result', async () => {
    const gate = gateWith({ staleIfErrorMs: 5_000 });
    await gate.run(() => 'page', { cacheKey: 'a' });
    await vi.advanceTimersByTimeAsync(1_001);
    const control = new AbortController();
    const never = () => new Promise(() => {});
    const left = follow(gate.run(never, { cacheKey: 'a', signal: control.signal }));
    await settled();
    control.abort('enough');
    await settled();
    expect(left.now).toEqual({ is: 'rejected', reason: 'enough' });
    const late = follow(gate.run(never, { cacheKey: 'a', timeoutMs: 100 }));
    await vi.advanceTimersByTimeAsync(100);
    expect(late.now).toEqual({ is: 'fulfilled', value: 'page' });
    const closed = follow(gate.run(never, { cacheKey: 'a' }));
    await settled();
    void gate.close();
    await settled();
    expect(closed.now).toMatchObject({ is: 'rejected', reason: { code: 'ERR_GATE_CLOSED' } });
  });

  it('answer no caller that leaves as the service fails with an expired result', async () => {
    const gate = gateWith({ staleIfErrorMs: 5_000 });
    await gate.run(() => 'page', { cacheKey: 'a' });
    await vi.advanceTimersByTimeAsync(1_001);
    const control = new AbortController();
    const failing = deferred<string>();
    // As many as are settled in one turn of the event loop; the last is settled in the next.
    const first = Array.from({ length: PER_TURN }, () => gate.run(() => failing.promise, { cacheKey: 'a' }));
    const last = follow(gate.run(() => failing.promise, { cacheKey: 'a', signal: control.signal }));
    await settled();
    void first[0]?.then(() => control.abort('enough'));
    failing.reject(httpError(500));
    expect(await Promise.all(first)).toEqual(first.map(() => 'page'));
    await settled();
    expect(last.now).toEqual({ is: 'rejected', reason: 'enough' });
    expect(gate.stats().finished).toEqual({ ok: 1 + PER_TURN, aborted: 1 });
  });

  it('serve an expired result if the service fails, and only then', async () => {
    const gate = gateWith({ staleIfErrorMs: 5_000 });
    const ask = (fn: () => unknown) => gate.run(fn, { cacheKey: 'a' });
    await ask(() => 'page');
    await vi.advanceTimersByTimeAsync(1_001);
    await expect(ask(() => Promise.reject(httpError(500)))).resolves.toBe('page');
    await expect(ask(() => Promise.reject(httpError(404)))).rejects.toMatchObject({ status: 404 });
    await expect(ask(() => Promise.reject(new TypeError('bug')))).rejects.toThrow('bug');
    await expect(ask(() => 'fresh')).resolves.toBe('fresh');
    await vi.advanceTimersByTimeAsync(6_001);
    await expect(ask(() => Promise.reject(httpError(500)))).rejects.toMatchObject({ status: 500 });
  });

  it.each([
    [{ maxBytes: 0 }, '`cache.maxBytes`'],
    [{ ttlMs: 'long' }, '`cache.ttlMs`'],
    [{ staleIfErrorMs: -1 }, '`cache.staleIfErrorMs`'],
    [{ staleIfErrorMs: Number.NaN }, '`cache.staleIfErrorMs`'],
    [{ ttlMs: 0 }, '`cache.ttlMs`'],
    [{ shouldCache: true }, '`cache.shouldCache`'],
  ])('reject %j', (cache, message) => {
    expect(() => gateWith(cache as never)).toThrow(message);
  });

  it('clear one key, or all, with the calls in flight', async () => {
    const gate = gateWith({});
    for (const cacheKey of ['a', 'b', 'c']) await gate.run(() => cacheKey, { cacheKey });
    gate.forget('a');
    expect(gate.stats().cache.size).toBe(2);
    gate.forget();
    expect(gate.stats().cache.size).toBe(0);
    const old = deferred<string>();
    const inFlight = follow(gate.run(() => old.promise, { cacheKey: 'a' }));
    await settled();
    gate.forget('a');
    await expect(gate.run(() => 'new', { cacheKey: 'a' })).resolves.toBe('new');
    old.resolve('old');
    await settled();
    expect(inFlight.now).toEqual({ is: 'fulfilled', value: 'old' });
    await expect(gate.run(() => 'never', { cacheKey: 'a' })).resolves.toBe('new');
  });
});
