import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { ServiceGate } from '../../src/gate/service-gate.js';
import { countListeners, deferred, follow, httpError, recorder, settle } from './support.js';

beforeEach(() => {
  vi.useFakeTimers();
});
afterEach(() => {
  vi.useRealTimers();
  vi.restoreAllMocks();
});

const cached = (options: object = {}) => {
  const { hooks, of } = recorder();
  const gate = new ServiceGate({ name: 'search', hooks, cache: { max: 2, ttlMs: 1000 }, ...options });
  return { gate, of };
};

describe('the cache of a ServiceGate', () => {
  it('answers a second call of the same key, and takes no permit for it', async () => {
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

  it('does not mix keys, and leaves calls without one alone', async () => {
    const { gate } = cached();
    const code = vi.fn(async () => code.mock.calls.length);
    await expect(gate.run(code, { cacheKey: 'a' })).resolves.toBe(1);
    await expect(gate.run(code, { cacheKey: 'b' })).resolves.toBe(2);
    await expect(gate.run(code)).resolves.toBe(3);
    await expect(gate.run(code, { cacheKey: 'a' })).resolves.toBe(1);
  });

  it('keeps an answer of undefined, null or false like any other', async () => {
    const { gate } = cached();
    for (const answer of [undefined, null, false]) {
      const code = vi.fn(async () => answer);
      await gate.run(code, { cacheKey: String(answer) });
      await expect(gate.run(code, { cacheKey: String(answer) })).resolves.toBe(answer);
      expect(code).toHaveBeenCalledTimes(1);
    }
  });

  it('forgets an answer after ttlMs, from the first moment of the clock on', async () => {
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

  it('forgets the least recently used answer beyond max', async () => {
    const { gate } = cached();
    const code = vi.fn(async () => 1);
    for (const cacheKey of ['a', 'b', 'a', 'c', 'a', 'b']) await gate.run(code, { cacheKey });
    expect(code).toHaveBeenCalledTimes(4);
  });

  it('does not keep a failure', async () => {
    const { gate } = cached({
      classify: (o: { value?: unknown }) => (o.value === 'empty' ? 'target' : undefined),
    });
    await expect(gate.run(() => Promise.reject(httpError(404)), { cacheKey: 'k' })).rejects.toThrow();
    await expect(gate.run(() => 'empty', { cacheKey: 'k' })).resolves.toBe('empty');
    await expect(gate.run(() => 'page', { cacheKey: 'k' })).resolves.toBe('page');
    expect(gate.stats().cache.size).toBe(1);
  });

  it('refuses a Response, which only one could read', async () => {
    const { gate, of } = cached();
    const cancel = vi.fn();
    const response = new Response(new ReadableStream({ cancel }));
    await expect(gate.run(() => response, { cacheKey: 'k' })).rejects.toThrow('must return data');
    expect(cancel).toHaveBeenCalledTimes(1);
    expect(of('call:finished')).toMatchObject([{ outcome: 'stop', attempts: 1 }]);
  });

  it.each([
    [{ max: 0, ttlMs: 1 }, '`cache.max`'],
    [{ max: 1 }, '`cache.ttlMs`'],
    [{ max: 1, ttlMs: 0.5 }, '`cache.ttlMs`'],
    [{ max: 1, ttlMs: 1, ttl: 1 }, 'Unknown option `ttl` in cache'],
  ])('refuses %j', (cache, message) => {
    expect(() => new ServiceGate({ name: 'search', cache: cache as never })).toThrow(message);
  });

  describe('with calls at the same time', () => {
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
      const answer = deferred<string>();
      const code = vi.fn(() => answer.promise);
      const calls = three(gate, code);
      await settle();
      expect(gate.stats().cache).toMatchObject({ inFlight: 1 });
      answer.resolve('page');
      await settle();
      expect(calls.map((call) => call.now)).toEqual(Array(3).fill({ is: 'fulfilled', value: 'page' }));
      expect(code).toHaveBeenCalledTimes(1);
      expect(of('cache:hit')).toMatchObject([{ shared: true }, { shared: true }]);
      expect(
        of('call:finished')
          .map((told) => told.cache)
          .sort(),
      ).toEqual(['miss', 'shared', 'shared']);
      expect(gate.stats().cache).toMatchObject({ inFlight: 0, misses: 1, shared: 2 });
    });

    it('makes none for a caller who has left already', async () => {
      const { gate } = cached();
      const code = vi.fn();
      await expect(gate.run(code, { cacheKey: 'k', signal: AbortSignal.abort('enough') })).rejects.toBe(
        'enough',
      );
      await settle();
      expect(code).not.toHaveBeenCalled();
      expect(gate.stats().cache).toMatchObject({ inFlight: 0, misses: 0 });
    });

    it('makes none for a caller who leaves when it is told that there is no answer', async () => {
      const { hooks, of } = recorder();
      const gate = new ServiceGate({ name: 'search', hooks });
      const control = new AbortController();
      hooks.on('cache:miss', () => control.abort('enough'));
      const code = vi.fn();
      await expect(gate.run(code, { cacheKey: 'k', signal: control.signal })).rejects.toBe('enough');
      await settle();
      expect(code).not.toHaveBeenCalled();
      expect(gate.stats()).toMatchObject({ attempts: 0, running: 0, cache: { inFlight: 0 } });
      expect(of('call:finished')).toMatchObject([{ outcome: 'aborted' }]);
    });

    it('does so without a cache, too, and keeps nothing then', async () => {
      const gate = new ServiceGate({ name: 'search' });
      const code = vi.fn(async () => 1);
      await Promise.all(three(gate, code));
      await settle();
      expect(code).toHaveBeenCalledTimes(1);
      await gate.run(code, { cacheKey: 'k' });
      expect(code).toHaveBeenCalledTimes(2);
    });

    it('gives a failure to all of them, and then forgets it', async () => {
      const { gate, of } = cached({ retry: { attempts: 1 } });
      const failure = httpError(500);
      const code = vi.fn(() => Promise.reject(failure));
      const calls = three(gate, code);
      await settle();
      expect(calls.map((call) => call.now)).toEqual(Array(3).fill({ is: 'rejected', reason: failure }));
      expect(code).toHaveBeenCalledTimes(1);
      expect(of('call:finished').map((told) => told.outcome)).toEqual(['wait', 'wait', 'wait']);
      await expect(gate.run(() => 2, { cacheKey: 'k' })).resolves.toBe(2);
    });

    it.each([0, 1, 2])('goes on for the others when waiter %i aborts', async (who) => {
      const { gate, of } = cached();
      const answer = deferred<string>();
      const controls = [0, 1, 2].map(() => new AbortController());
      const listeners = controls.map(({ signal }) => countListeners(signal));
      let seen: AbortSignal | undefined;
      const calls = controls.map(({ signal }) =>
        follow(
          gate.run(
            (context) => {
              seen = context.signal;
              return answer.promise;
            },
            { cacheKey: 'k', signal },
          ),
        ),
      );
      await settle();
      controls[who]!.abort('enough');
      for (let i = 0; i < 20; i++) await Promise.resolve();
      expect(calls[who]!.now).toEqual({ is: 'rejected', reason: 'enough' });
      expect(seen!.aborted).toBe(false);
      answer.resolve('page');
      await settle();
      for (const [i, call] of calls.entries()) {
        if (i !== who) expect(call.now).toEqual({ is: 'fulfilled', value: 'page' });
      }
      expect(listeners.map((l) => l.size)).toEqual([0, 0, 0]);
      expect(
        of('call:finished')
          .map((told) => told.outcome)
          .sort(),
      ).toEqual(['aborted', 'ok', 'ok']);
    });

    it('is aborted when the last waiter leaves; a newcomer starts a call of its own', async () => {
      const { gate } = cached({ maxConcurrent: 1 });
      const controls = [0, 1, 2].map(() => new AbortController());
      let seen: AbortSignal | undefined;
      const code = vi.fn(({ signal }: { signal: AbortSignal }) => {
        seen = signal;
        return new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)));
      });
      const calls = controls.map(({ signal }) => follow(gate.run(code, { cacheKey: 'k', signal })));
      await settle();
      for (const control of controls) control.abort('enough');
      expect(seen!.reason).toBe('enough');
      const newcomer = follow(gate.run(() => 'new', { cacheKey: 'k' }));
      await settle();
      expect(calls.every((call) => call.now.is === 'rejected')).toBe(true);
      expect(newcomer.now).toEqual({ is: 'fulfilled', value: 'new' });
      expect(gate.stats()).toMatchObject({ running: 0, limiter: { active: 0 }, cache: { inFlight: 0 } });
    });

    it('keeps to the deadline of each waiter, and goes on until the last one', async () => {
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
      ['already rests', 0],
      ['goes to rest while the call waits for its permit', 1],
      ['goes to rest by the attempt of that very call', 2],
    ])(
      'tells a waiter at once that cannot be served in time, where the key %s, and goes on for the others',
      async (_, when) => {
        vi.spyOn(Math, 'random').mockReturnValue(0);
        const { gate, of } = cached({ maxConcurrent: 1, keys: ['the-only-key'] });
        const refused = () => Promise.reject(httpError(429, { 'retry-after': '10' }));
        const first = deferred<never>();
        if (when === 0) await gate.run(refused, { timeoutMs: 1 }).catch(() => {});
        if (when === 1) follow(gate.run(() => first.promise, { timeoutMs: 5_000 }));
        await settle();
        let attempts = 0;
        const code = () => (when === 2 && attempts++ === 0 ? refused() : Promise.resolve('page'));
        const hasty = [1_000, 9_000].map((timeoutMs) => follow(gate.run(code, { cacheKey: 'k', timeoutMs })));
        const patient = [20_000, undefined].map((timeoutMs) =>
          follow(gate.run(code, { cacheKey: 'k', ...(timeoutMs && { timeoutMs }) })),
        );
        await settle();
        if (when === 1) first.reject(httpError(429, { 'retry-after': '10' }));
        await settle();
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

    it('tells one at once that joins while all keys rest for longer than it has time', async () => {
      const { gate } = cached({ keys: ['the-only-key'] });
      follow(gate.run(() => Promise.reject(httpError(429, { 'retry-after': '10' })), { timeoutMs: 1 }));
      await settle();
      const code = vi.fn(() => 'page');
      const patient = follow(gate.run(code, { cacheKey: 'k' }));
      await vi.advanceTimersByTimeAsync(4_000);
      const hasty = follow(gate.run(code, { cacheKey: 'k', timeoutMs: 5_000 }));
      const fit = follow(gate.run(code, { cacheKey: 'k', timeoutMs: 7_000 }));
      await settle();
      expect(hasty.now).toMatchObject({ reason: { code: 'ERR_KEYS_EXHAUSTED', retryAfterMs: 6_000 } });
      await vi.advanceTimersByTimeAsync(6_000);
      for (const call of [patient, fit]) expect(call.now).toEqual({ is: 'fulfilled', value: 'page' });
      expect(code).toHaveBeenCalledTimes(1);
    });

    it('lets one join that has little time where the attempt is under way, whatever has become of the key', async () => {
      const { gate } = cached({ keys: ['the-only-key'] });
      const page = deferred<string>();
      const early = follow(gate.run(() => page.promise, { cacheKey: 'k' }));
      follow(gate.run(() => Promise.reject(httpError(429, { 'retry-after': '10' })), { timeoutMs: 1 }));
      await settle();
      const hasty = follow(gate.run(() => 'never', { cacheKey: 'k', timeoutMs: 5_000 }));
      await settle();
      page.resolve('page');
      await settle();
      for (const call of [early, hasty]) expect(call.now).toEqual({ is: 'fulfilled', value: 'page' });
    });

    it('is told at once where no waiter can be served in time', async () => {
      const { gate } = cached({ rate: [{ limit: 1, perMs: 60_000 }] });
      await gate.run(() => 1);
      const code = vi.fn();
      const calls = [1_000, 5_000].map((timeoutMs) => follow(gate.run(code, { cacheKey: 'k', timeoutMs })));
      await settle();
      for (const call of calls) expect(call.now).toMatchObject({ reason: { code: 'ERR_KEYS_EXHAUSTED' } });
      expect(gate.stats()).toMatchObject({ waitingForStart: 0, cache: { inFlight: 0 } });
      expect(vi.getTimerCount()).toBe(0);
    });

    it('tells each waiter whose time is up of the last failure', async () => {
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
    ])('tries again for whoever has the most time: %s', async (_, timeouts) => {
      vi.spyOn(Math, 'random').mockReturnValue(0.999);
      const { gate } = cached({ retry: { baseMs: 500 } });
      const answers = [() => Promise.reject(httpError(500)), () => Promise.resolve('page')];
      const code = () => answers.shift()!();
      const calls = timeouts.map((timeoutMs) =>
        follow(gate.run(code, { cacheKey: 'k', ...(timeoutMs && { timeoutMs }) })),
      );
      await vi.advanceTimersByTimeAsync(1000);
      for (const [i, timeoutMs] of timeouts.entries()) {
        if (timeoutMs === undefined) expect(calls[i]!.now).toEqual({ is: 'fulfilled', value: 'page' });
        else expect(calls[i]!.now.is).toBe('rejected');
      }
    });

    it('ends with the gate', async () => {
      const { gate } = cached();
      const calls = three(gate, () => new Promise(() => {}));
      await settle();
      const closed = gate.close();
      await settle();
      for (const call of calls)
        expect(call.now).toMatchObject({ is: 'rejected', reason: { code: 'ERR_GATE_CLOSED' } });
      await vi.advanceTimersByTimeAsync(5_000);
      await closed;
    });
  });
});
