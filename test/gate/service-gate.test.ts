import { AsyncLocalStorage } from 'node:async_hooks';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { BudgetExceededError, GateClosedError, GateTimeoutError, QueueFullError } from '../../src/errors.js';
import { ServiceGate } from '../../src/gate/service-gate.js';
import { AdaptiveLimit } from '../../src/limiter/adaptive-limit.js';
import { ConcurrencyLimiter } from '../../src/limiter/concurrency-limiter.js';
import type { Limiter } from '../../src/limiter/limiter.js';
import { FairQueue } from '../../src/queue/fair-queue.js';
import { Budget } from '../../src/request/budget.js';
import { onFakeTimers, settled } from '../support/fake-timers.js';
import { httpError } from '../support/gates.js';
import { recorder } from '../support/hooks.js';
import { deferred, follow, microtasks } from '../support/promises.js';
import { countListeners } from '../support/signals.js';

onFakeTimers();
afterEach(() => vi.restoreAllMocks());

/** Fails so often, then succeeds. */
function failing(times: number, error: () => unknown = () => httpError(500)) {
  let calls = 0;
  return vi.fn(async () => {
    if (calls++ < times) throw error();
    return `response ${calls}`;
  });
}

describe('ServiceGate', () => {
  describe('run', () => {
    it('resolves with the result of the function', async () => {
      const gate = new ServiceGate({ name: 'llm' });
      await expect(gate.run(() => 'at once')).resolves.toBe('at once');
      await expect(gate.run(async () => 'later')).resolves.toBe('later');
      await expect(gate.run(() => undefined)).resolves.toBeUndefined();
    });

    it('rejects with the very error that the function throws', async () => {
      const gate = new ServiceGate({ name: 'llm' });
      const bug = new TypeError('x is not a function');
      await expect(gate.run(() => Promise.reject(bug))).rejects.toBe(bug);
      await expect(
        gate.run(() => {
          throw bug;
        }),
      ).rejects.toBe(bug);
    });

    it('waits for a promise that has a `then` of its own as `await` does', async () => {
      for (const then of [() => {}, 1, () => Promise.resolve()]) {
        const gate = new ServiceGate({ name: 'search', maxConcurrent: 1 });
        expect(await gate.run(() => Object.assign(Promise.resolve('done'), { then }))).toBe('done');
        expect(gate.stats()).toMatchObject({ running: 0, finished: { ok: 1 } });
      }
    });

    it('passes a signal, the attempt number and, without keys, an empty key', async () => {
      const gate = new ServiceGate({ name: 'llm' });
      const seen = await gate.run((context) => context);
      expect(seen).toMatchObject({ attempt: 1, key: '' });
      expect(seen.signal).toBeInstanceOf(AbortSignal);
      expect(seen.signal.aborted).toBe(false);
    });

    it('rejects a non-function, and invalid options by name', async () => {
      const gate = new ServiceGate({ name: 'llm', rate: [{ limit: 10, perMs: 1000, unit: 'weight' }] });
      await expect(gate.run('code' as never)).rejects.toThrow('Expected `fn` to be a function');
      await expect(gate.run(() => 1, { weight: 11 })).rejects.toThrow(
        'Expected `weight` to be a whole number from 0 to 10',
      );
      await expect(gate.run(() => 1, { wieght: 1 } as never)).rejects.toThrow(
        'Unknown option `wieght` in run',
      );
      await expect(gate.run(() => 1, { priority: 0.5 })).rejects.toThrow('`priority`');
      expect(gate.stats().calls).toBe(0);
    });
  });

  describe('its permits', () => {
    it('runs at most maxConcurrent attempts, and starts the others in FIFO order', async () => {
      const gate = new ServiceGate({ name: 'llm', maxConcurrent: 2 });
      const order: number[] = [];
      const ends = Array.from({ length: 5 }, () => deferred());
      const calls = ends.map((end, i) =>
        gate.run(async () => {
          order.push(i);
          await end.promise;
        }),
      );
      await settled();
      expect(order).toEqual([0, 1]);
      expect(gate.stats()).toMatchObject({ running: 2, limiter: { active: 2, queued: 3 } });
      ends[1]!.resolve();
      await settled();
      expect(order).toEqual([0, 1, 2]);
      for (const end of ends) end.resolve();
      await Promise.all(calls);
      expect(order).toEqual([0, 1, 2, 3, 4]);
      expect(gate.stats()).toMatchObject({ running: 0, limiter: { active: 0, queued: 0 } });
    });

    it('grants permits by priority, and to tenants in turn', async () => {
      const gate = new ServiceGate({ name: 'llm', maxConcurrent: 1 });
      const order: string[] = [];
      const call = (name: string, options: object) => gate.run(async () => void order.push(name), options);
      const first = deferred();
      const calls = [
        gate.run(() => first.promise),
        call('a1', { tenant: 'a' }),
        call('a2', { tenant: 'a' }),
        call('a3', { tenant: 'a' }),
        call('b1', { tenant: 'b' }),
        call('urgent', { priority: 1 }),
      ];
      await settled();
      first.resolve();
      await Promise.all(calls);
      expect(order).toEqual(['urgent', 'a1', 'b1', 'a2', 'a3']);
    });

    it.each(['requests', 'weight'] as const)(
      'share by %s without those of calls that were sent back to wait for the end of a cooldown',
      async (fairBy) => {
        const rateOf = (limit: number) => ({ rate: [{ limit, perMs: 1, unit: 'weight' as const }] });
        const keys = [
          { key: 'large', ...rateOf(100) },
          { key: 'small', ...rateOf(10) },
        ];
        const gate = new ServiceGate({ name: 'llm', maxConcurrent: 1, fairBy, keys, retry: { attempts: 1 } });
        const order: string[] = [];
        const call = (name: string, tenant: string, weight: number) =>
          gate.run(async () => void order.push(name), { tenant, weight });
        const first = deferred();
        const limited = gate.run(() => first.promise, { weight: 50 });
        // Only the key that is about to cool down has room for these.
        const heavy = ['A1', 'A2', 'A3'].map((name) => call(name, 'a', 50));
        const calls = ['b1', 'b2', 'b3', 'b4'].map((name) => call(name, 'b', 1));
        calls.push(...['a1', 'a2', 'a3'].map((name) => call(name, 'a', 1)));
        await settled();
        first.reject(httpError(429, { 'retry-after': '5' }));
        await expect(limited).rejects.toThrow('429');
        await vi.advanceTimersByTimeAsync(100);
        await Promise.all(calls);
        expect(order).toEqual(['b1', 'a1', 'b2', 'a2', 'b3', 'a3', 'b4']);
        await vi.advanceTimersByTimeAsync(10_000);
        await Promise.all(heavy);
      },
    );

    it('charges a call once that gets a permit at once, and a key later', async () => {
      const tenants = vi.spyOn(FairQueue.prototype, 'tenant');
      const gate = new ServiceGate({
        name: 'llm',
        maxConcurrent: 2,
        fairBy: 'requests',
        rate: [{ limit: 1, perMs: 100 }],
      });
      const calls = [1, 2, 3].map(() => gate.run(() => {}, { tenant: 'a' }));
      await vi.advanceTimersByTimeAsync(200);
      await Promise.all(calls);
      expect(tenants).toHaveReturnedWith(expect.objectContaining({ received: 3 }));
    });

    it('charges no tenant for a call that gets a permit, and never starts', async () => {
      const tenants = vi.spyOn(FairQueue.prototype, 'tenant');
      const gate = new ServiceGate({ name: 'llm', maxConcurrent: 2, fairBy: 'requests' });
      const rejected = gate.run(() => {}, { tenant: 'a', budget: new Budget({ calls: 0 }) });
      await expect(rejected).rejects.toThrow(BudgetExceededError);
      expect(tenants).toHaveReturnedWith(expect.objectContaining({ received: 0 }));
    });

    it('holds no permit in a back-off', async () => {
      vi.spyOn(Math, 'random').mockReturnValue(0.999);
      const gate = new ServiceGate({ name: 'llm', maxConcurrent: 1 });
      const slow = gate.run(failing(1));
      await settled();
      expect(gate.stats()).toMatchObject({ backingOff: 1, limiter: { active: 0 } });
      await expect(gate.run(() => 'in between')).resolves.toBe('in between');
      await vi.advanceTimersByTimeAsync(500);
      await expect(slow).resolves.toBe('response 2');
    });

    it('acquires a new permit behind queued calls for a retry', async () => {
      vi.spyOn(Math, 'random').mockReturnValue(0);
      const gate = new ServiceGate({ name: 'llm', maxConcurrent: 1 });
      const order: string[] = [];
      const call = (name: string, fails: number) => {
        const code = failing(fails);
        return gate.run(() => {
          order.push(name);
          return code();
        });
      };
      await Promise.all([call('a', 1), call('b', 0), call('c', 0)]);
      expect(order).toEqual(['a', 'b', 'c', 'a']);
    });

    it('keeps the permit of a function that ignores its signal until it settles', async () => {
      const gate = new ServiceGate({
        name: 'llm',
        maxConcurrent: 1,
        attemptTimeoutMs: 100,
        retry: { attempts: 1 },
      });
      const end = deferred();
      const deaf = follow(gate.run(() => end.promise));
      const next = follow(gate.run(() => 'next'));
      await vi.advanceTimersByTimeAsync(100);
      expect(deaf.now).toMatchObject({ is: 'rejected', reason: expect.any(GateTimeoutError) });
      expect(next.now.is).toBe('pending');
      end.resolve();
      await settled();
      expect(next.now).toEqual({ is: 'fulfilled', value: 'next' });
    });

    it('releases the permit of a function that never settles after five seconds', async () => {
      const gate = new ServiceGate({
        name: 'llm',
        maxConcurrent: 1,
        attemptTimeoutMs: 100,
        retry: { attempts: 1 },
      });
      const deaf = follow(gate.run(() => new Promise(() => {})));
      const next = follow(gate.run(() => 'next'));
      await vi.advanceTimersByTimeAsync(100);
      expect(deaf.now.is).toBe('rejected');
      await vi.advanceTimersByTimeAsync(4_999);
      expect(next.now.is).toBe('pending');
      await vi.advanceTimersByTimeAsync(1);
      expect(next.now).toEqual({ is: 'fulfilled', value: 'next' });
      expect(vi.getTimerCount()).toBe(0);
    });

    it('shares a limiter of the host, and does not close it', async () => {
      const limiter = new ConcurrencyLimiter({ maxConcurrent: 1, maxQueue: 0 });
      const one = new ServiceGate({ name: 'one', limiter });
      const other = new ServiceGate({ name: 'other', limiter });
      const end = deferred();
      const first = one.run(() => end.promise);
      await settled();
      await expect(other.run(() => 1)).rejects.toBeInstanceOf(QueueFullError);
      end.resolve();
      await first;
      await one.close();
      await expect(other.run(() => 1)).resolves.toBe(1);
    });

    it('reports the outcome of the attempt to a foreign limiter', async () => {
      const release = vi.fn();
      const limiter = {
        acquire: async () => ({ weight: 1, waitMs: 0, release, [Symbol.dispose]() {} }),
        stats: () => ({}),
      } as unknown as Limiter;
      const outcome = async (fn: () => unknown) => {
        const gate = new ServiceGate({ name: 'llm', limiter, retry: { attempts: 1 } });
        await gate.run(fn).catch(() => {});
        return release.mock.lastCall?.[0];
      };
      await expect(outcome(() => 'fine')).resolves.toBe('ok');
      for (const status of [429, 503, 529]) {
        await expect(outcome(() => Promise.reject(httpError(status)))).resolves.toBe('dropped');
      }
      await expect(outcome(() => Promise.reject(httpError(500)))).resolves.toBe('ignored');
      await expect(outcome(() => Promise.reject(httpError(400)))).resolves.toBe('ignored');
      await expect(outcome(() => Promise.reject(new TypeError('bug')))).resolves.toBe('ignored');
      await expect(
        outcome(() => Promise.reject(Object.assign(new Error('late'), { name: 'TimeoutError' }))),
      ).resolves.toBe('dropped');
    });

    it('releases a permit that a limiter without abort support grants to a settled call', async () => {
      const granted = deferred<never>();
      const release = vi.fn();
      const limiter = { acquire: () => granted.promise, stats: () => ({}) } as unknown as Limiter;
      const gate = new ServiceGate({ name: 'llm', limiter });
      const control = new AbortController();
      const call = follow(gate.run(() => 1, { signal: control.signal }));
      await settled();
      control.abort('enough');
      await settled();
      expect(call.now).toEqual({ is: 'rejected', reason: 'enough' });
      granted.resolve({ weight: 1, waitMs: 0, release } as never);
      await settled();
      expect(release).toHaveBeenCalledTimes(1);
    });
  });

  describe('its windows', () => {
    it('starts as many as the window allows at once, and each further call as an entry expires', async () => {
      const gate = new ServiceGate({ name: 'search', rate: [{ limit: 3, perMs: 1000 }] });
      const starts: number[] = [];
      const calls = Array.from({ length: 8 }, () => gate.run(() => void starts.push(performance.now())));
      await vi.advanceTimersByTimeAsync(5000);
      await Promise.all(calls);
      expect(starts.map((s) => s - starts[0]!)).toEqual([0, 0, 0, 1000, 1000, 1000, 2000, 2000]);
    });

    it('reserves all its windows in one step, so that a full one costs the others nothing', async () => {
      const gate = new ServiceGate({
        name: 'search',
        rate: [
          { limit: 2, perMs: 100 },
          { limit: 3, perMs: 1000 },
        ],
      });
      const starts: number[] = [];
      const calls = Array.from({ length: 7 }, () => gate.run(() => void starts.push(performance.now())));
      await vi.advanceTimersByTimeAsync(5000);
      await Promise.all(calls);
      expect(starts.map((s) => s - starts[0]!)).toEqual([0, 0, 100, 1000, 1000, 1100, 2000]);
    });

    it('reserves the window after the permit, so that starts cannot burst', async () => {
      const gate = new ServiceGate({ name: 'search', maxConcurrent: 2, rate: [{ limit: 2, perMs: 200 }] });
      const starts: number[] = [];
      const call = () =>
        gate.run(async () => {
          starts.push(performance.now());
          await new Promise((resolve) => setTimeout(resolve, 350));
        });
      const calls = Array.from({ length: 10 }, call);
      await vi.advanceTimersByTimeAsync(5000);
      await Promise.all(calls);
      for (let i = 2; i < starts.length; i++) expect(starts[i]! - starts[i - 2]!).toBeGreaterThanOrEqual(200);
    });

    it('counts a start from when the function begins, not from its grant', async () => {
      const gate = new ServiceGate({ name: 'search', rate: [{ limit: 1, perMs: 100 }] });
      const starts: number[] = [];
      const stalling = new ServiceGate({ name: 'other' });
      // Between the grant and the start of the first call, other code blocks the event loop for 70 ms.
      const first = gate.run(() => void starts.push(performance.now()));
      await Promise.resolve();
      void stalling.run(() => vi.advanceTimersByTime(70));
      const second = gate.run(() => void starts.push(performance.now()));
      await vi.advanceTimersByTimeAsync(1000);
      await Promise.all([first, second]);
      expect(starts[1]! - starts[0]!).toBeGreaterThanOrEqual(100);
    });

    it('counts weights in windows of that unit, and never as concurrency', async () => {
      const gate = new ServiceGate({
        name: 'llm',
        maxConcurrent: 3,
        rate: [{ limit: 100, perMs: 1000, unit: 'weight' }],
      });
      const starts: number[] = [];
      const call = (weight: number) => gate.run(() => void starts.push(performance.now()), { weight });
      const calls = [call(60), call(40), call(60), call(40)];
      await settled();
      expect(starts).toHaveLength(2);
      await vi.advanceTimersByTimeAsync(1000);
      await Promise.all(calls);
      expect(starts.map((s) => s - starts[0]!)).toEqual([0, 0, 1000, 1000]);
    });

    it('keeps FIFO order: a light call does not overtake a heavy one', async () => {
      const gate = new ServiceGate({ name: 'llm', rate: [{ limit: 100, perMs: 1000, unit: 'weight' }] });
      const order: number[] = [];
      const call = (weight: number) => gate.run(() => void order.push(weight), { weight });
      const calls = [call(60), call(90), call(10)];
      await settled();
      expect(order).toEqual([60]);
      await vi.advanceTimersByTimeAsync(1000);
      await Promise.all(calls);
      expect(order).toEqual([60, 90, 10]);
    });

    it('lets a call of higher priority overtake a queued one, which stays ahead of its equals', async () => {
      const gate = new ServiceGate({ name: 'llm', rate: [{ limit: 100, perMs: 1000, unit: 'weight' }] });
      const order: string[] = [];
      const call = (name: string, weight: number, priority = 0) =>
        gate.run(() => void order.push(name), { weight, priority });
      const calls = [call('first', 60), call('heavy', 90), call('equal', 1)];
      await settled();
      calls.push(call('urgent', 20, 1), call('urgent too', 10, 1), call('most urgent', 1, 2));
      await settled();
      expect(order).toEqual(['first', 'most urgent', 'urgent', 'urgent too']);
      await vi.advanceTimersByTimeAsync(2000);
      await Promise.all(calls);
      expect(order.slice(4)).toEqual(['heavy', 'equal']);
    });

    it('applies a correction of a weight, which may start the next call', async () => {
      const gate = new ServiceGate({ name: 'llm', rate: [{ limit: 100, perMs: 1000, unit: 'weight' }] });
      const usage = deferred<number>();
      const first = gate.run(async ({ reportUsage }) => reportUsage(await usage.promise), { weight: 90 });
      const second = follow(gate.run(() => 'second', { weight: 50 }));
      await settled();
      expect(second.now.is).toBe('pending');
      usage.resolve(40);
      await first;
      await settled();
      expect(second.now.is).toBe('fulfilled');
    });

    it('applies it during the call, and emits one event for each queued call', async () => {
      const { hooks, of } = recorder();
      const gate = new ServiceGate({
        name: 'llm',
        hooks,
        rate: [{ limit: 100, perMs: 1000, unit: 'weight' }],
      });
      let correct!: (actual: number) => void;
      const first = follow(
        gate.run(
          (context) => {
            correct = context.reportUsage;
            return new Promise(() => {});
          },
          { weight: 90 },
        ),
      );
      const second = follow(gate.run(() => 'second', { weight: 50 }));
      await settled();
      correct(80);
      correct(60);
      await settled();
      expect([first.now.is, second.now.is]).toEqual(['pending', 'pending']);
      correct(50);
      await settled();
      expect([first.now.is, second.now.is]).toEqual(['pending', 'fulfilled']);
      expect(of('call:throttled')).toHaveLength(1);
    });

    it('throws for a correction that is not an integer', async () => {
      const gate = new ServiceGate({ name: 'llm' });
      await expect(gate.run(({ reportUsage }) => reportUsage(-1))).rejects.toThrow('`reportUsage(actual)`');
      await expect(gate.run(({ reportUsage }) => reportUsage(undefined as never))).rejects.toThrow(
        '`reportUsage(actual)`',
      );
    });

    it('does not count a call that was aborted while it waited', async () => {
      const gate = new ServiceGate({ name: 'search', rate: [{ limit: 1, perMs: 1000 }] });
      const control = new AbortController();
      await gate.run(() => 1);
      const waiting = follow(gate.run(() => 2, { signal: control.signal }));
      const next = follow(gate.run(() => 3));
      await vi.advanceTimersByTimeAsync(500);
      control.abort('enough');
      await settled();
      expect(waiting.now).toEqual({ is: 'rejected', reason: 'enough' });
      await vi.advanceTimersByTimeAsync(500);
      expect(next.now.is).toBe('fulfilled');
    });

    it('rejects at once, with retryAfterMs, if a window stays full beyond the deadline', async () => {
      const gate = new ServiceGate({ name: 'search', rate: [{ limit: 1, perMs: 60_000 }] });
      await gate.run(() => 1);
      await vi.advanceTimersByTimeAsync(10_000);
      const call = follow(gate.run(() => 2, { timeoutMs: 20_000 }));
      await settled();
      expect(call.now).toMatchObject({
        is: 'rejected',
        reason: { code: 'ERR_KEYS_EXHAUSTED', retryAfterMs: 50_000 },
      });
    });
  });

  describe('retries', () => {
    it('makes `attempts` attempts in all, and then rejects with the last error', async () => {
      vi.spyOn(Math, 'random').mockReturnValue(0);
      const gate = new ServiceGate({ name: 'llm', retry: { attempts: 4 } });
      const code = failing(9);
      await expect(gate.run(code)).rejects.toMatchObject({ status: 500 });
      expect(code).toHaveBeenCalledTimes(4);
      const usual = failing(9);
      await expect(new ServiceGate({ name: 'llm' }).run(usual)).rejects.toThrow();
      expect(usual).toHaveBeenCalledTimes(3);
    });

    it('numbers the attempts', async () => {
      vi.spyOn(Math, 'random').mockReturnValue(0);
      const gate = new ServiceGate({ name: 'llm' });
      const code = failing(2);
      const seen: number[] = [];
      await gate.run(({ attempt }) => {
        seen.push(attempt);
        return code();
      });
      expect(seen).toEqual([1, 2, 3]);
    });

    it.each([
      [httpError(500), 3],
      [httpError(502), 3],
      [httpError(408), 3],
      [
        Object.assign(new TypeError('fetch failed'), {
          cause: Object.assign(new Error(), { code: 'ECONNRESET' }),
        }),
        3,
      ],
      [httpError(400), 1],
      [httpError(404), 1],
      [httpError(422), 1],
      [httpError(501), 1],
      [httpError(401), 1],
      [httpError(402), 1],
      [new TypeError('x is not a function'), 1],
      ['a string', 1],
      [undefined, 1],
    ])('after %s makes %i attempts', async (error, attempts) => {
      vi.spyOn(Math, 'random').mockReturnValue(0);
      const gate = new ServiceGate({ name: 'llm' });
      const code = failing(9, () => error);
      await expect(gate.run(code)).rejects.toBe(error);
      expect(code).toHaveBeenCalledTimes(attempts);
    });

    it('backs off with full jitter up to a bound that doubles', async () => {
      const random = vi.spyOn(Math, 'random').mockReturnValue(1);
      const gate = new ServiceGate({
        name: 'llm',
        retry: { attempts: 5, baseMs: 100, maxMs: 350, budget: false },
      });
      const starts: number[] = [];
      const code = failing(4);
      const call = () =>
        gate.run(() => {
          starts.push(performance.now());
          return code();
        });
      const first = call();
      await vi.advanceTimersByTimeAsync(5000);
      await first;
      expect(starts.map((s, i) => (i === 0 ? 0 : s - starts[i - 1]!))).toEqual([0, 100, 200, 350, 350]);
      random.mockReturnValue(0.5);
      starts.length = 0;
      const half = failing(2);
      const second = gate.run(() => {
        starts.push(performance.now());
        return half();
      });
      await vi.advanceTimersByTimeAsync(5000);
      await second;
      expect(starts.map((s) => s - starts[0]!)).toEqual([0, 50, 150]);
    });

    it('never retries beyond the deadline of the caller', async () => {
      vi.spyOn(Math, 'random').mockReturnValue(0.999);
      const gate = new ServiceGate({ name: 'llm', retry: { baseMs: 1000 } });
      const code = failing(9);
      const call = follow(gate.run(code, { timeoutMs: 900 }));
      await settled();
      expect(call.now).toMatchObject({ is: 'rejected', reason: { status: 500 } });
      expect(code).toHaveBeenCalledTimes(1);
    });

    it('has a budget: an outage is not multiplied', async () => {
      vi.spyOn(Math, 'random').mockReturnValue(0);
      const gate = new ServiceGate({
        name: 'llm',
        classify: () => ({ class: 'retryable', overload: false }),
        retry: { budget: { ratio: 0.2, perMinute: 5 } },
        cooldown: { baseMs: 1 },
      });
      const code = vi.fn(() => Promise.reject(httpError(500)));
      const calls = Array.from({ length: 100 }, () => gate.run(code).catch(() => {}));
      await vi.advanceTimersByTimeAsync(30_000);
      await Promise.all(calls);
      expect(code.mock.calls.length).toBe(100 + 5 + 20);
      expect(gate.stats().retriesLeft).toBe(0);
    });

    it('allows a few retries if calls are rare', async () => {
      vi.spyOn(Math, 'random').mockReturnValue(0);
      const gate = new ServiceGate({ name: 'llm' });
      for (let i = 0; i < 20; i++) {
        const code = failing(2);
        await gate.run(code);
        expect(code).toHaveBeenCalledTimes(3);
        await vi.advanceTimersByTimeAsync(20_000);
      }
    });

    it('returns a failed response after the last attempt, and discards those before it', async () => {
      vi.spyOn(Math, 'random').mockReturnValue(0);
      const gate = new ServiceGate({ name: 'search', retry: { attempts: 2 } });
      const cancels: number[] = [];
      const respond = (i: number) =>
        new Response(new ReadableStream({ cancel: () => void cancels.push(i) }), { status: 502 });
      let i = 0;
      const response = await gate.run(() => respond(++i));
      expect(response.status).toBe(502);
      expect(cancels).toEqual([1]);
      expect(response.bodyUsed).toBe(false);
    });

    it('discards a response that arrives after its attempt has ended', async () => {
      const gate = new ServiceGate({ name: 'search', attemptTimeoutMs: 100, retry: { attempts: 1 } });
      const late = deferred<Response>();
      const cancel = vi.fn();
      const call = follow(gate.run(() => late.promise));
      await vi.advanceTimersByTimeAsync(100);
      expect(call.now.is).toBe('rejected');
      late.resolve(new Response(new ReadableStream({ cancel })));
      await settled();
      expect(cancel).toHaveBeenCalledTimes(1);
    });
  });

  describe('its timeouts', () => {
    it('ends an attempt at its timeout, aborts its signal, and retries', async () => {
      vi.spyOn(Math, 'random').mockReturnValue(0);
      const gate = new ServiceGate({ name: 'llm', attemptTimeoutMs: 100 });
      const signals: AbortSignal[] = [];
      const call = gate.run(({ signal, attempt }) => {
        signals.push(signal);
        return attempt === 1
          ? new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)))
          : 'response';
      });
      await vi.advanceTimersByTimeAsync(200);
      await expect(call).resolves.toBe('response');
      expect(signals[0]!.reason).toMatchObject({
        code: 'ERR_GATE_TIMEOUT',
        scope: 'attempt',
        timeoutMs: 100,
      });
      expect(signals[1]!.aborted).toBe(false);
    });

    it('end the whole call at its deadline, with the last failure as the cause', async () => {
      vi.spyOn(Math, 'random').mockReturnValue(0);
      const gate = new ServiceGate({ name: 'llm', timeoutMs: 1000 });
      const call = follow(
        gate.run(({ attempt }) => (attempt === 1 ? Promise.reject(httpError(500)) : new Promise(() => {}))),
      );
      await vi.advanceTimersByTimeAsync(999);
      expect(call.now.is).toBe('pending');
      await vi.advanceTimersByTimeAsync(1);
      expect(call.now).toMatchObject({
        is: 'rejected',
        reason: { code: 'ERR_GATE_TIMEOUT', scope: 'call', timeoutMs: 1000, cause: { status: 500 } },
      });
    });

    it('include queueing, and can be set for each call', async () => {
      const gate = new ServiceGate({ name: 'llm', maxConcurrent: 1, timeoutMs: 60_000 });
      const end = deferred();
      const first = gate.run(() => end.promise);
      const second = follow(gate.run(() => 2, { timeoutMs: 50 }));
      await vi.advanceTimersByTimeAsync(50);
      expect(second.now).toMatchObject({ is: 'rejected', reason: { scope: 'call', timeoutMs: 50 } });
      end.resolve();
      await first;
      expect(gate.stats().limiter).toMatchObject({ active: 0, queued: 0 });
      expect(vi.getTimerCount()).toBe(0);
    });

    it('have the original error as the cause only if an attempt failed', async () => {
      vi.spyOn(Math, 'random').mockReturnValue(0);
      const gate = new ServiceGate({ name: 'llm', keys: ['secret-0123456789'], timeoutMs: 100 });
      await gate.run(() => Promise.reject(httpError(400))).catch(() => {});
      const never = follow(gate.run(() => new Promise(() => {})));
      const failed = follow(
        gate.run(({ key, attempt }) =>
          attempt === 1 ? Promise.reject(httpError(500, {}, `no ${key}`)) : new Promise(() => {}),
        ),
      );
      await vi.advanceTimersByTimeAsync(100);
      expect(never.now).toMatchObject({ reason: { scope: 'call' } });
      expect((never.now as { reason: Error }).reason.cause).toBeUndefined();
      expect(failed.now).toMatchObject({ reason: { cause: { message: 'no secret-0123456789' } } });
    });

    it('of 0 allow nothing', async () => {
      const gate = new ServiceGate({ name: 'llm' });
      const code = vi.fn();
      await expect(gate.run(code, { timeoutMs: 0 })).rejects.toMatchObject({ scope: 'call', timeoutMs: 0 });
      expect(code).not.toHaveBeenCalled();
    });

    it('leave no timer behind', async () => {
      const gate = new ServiceGate({ name: 'llm', timeoutMs: 1000, attemptTimeoutMs: 100 });
      await gate.run(() => 1);
      await gate.run(() => Promise.reject(httpError(400))).catch(() => {});
      expect(vi.getTimerCount()).toBe(0);
    });
  });

  describe('an abort', () => {
    const reason = new Error('enough');

    it.each([
      ['before the call', async () => {}, true],
      [
        'while it waits for a permit',
        async (gate: ServiceGate) => void gate.run(() => new Promise(() => {})),
      ],
      ['while it waits for a window', async (gate: ServiceGate) => void (await gate.run(() => 1))],
      ['while the attempt runs', async () => {}],
      [
        'while it backs off',
        async () => {
          vi.spyOn(Math, 'random').mockReturnValue(0.999);
        },
        false,
        () => Promise.reject(httpError(503)),
      ],
    ])(
      '%s settles the caller in that step and leaves nothing behind',
      async (_, prepare, before = false, code = () => new Promise(() => {})) => {
        const gate = new ServiceGate({ name: 'llm', maxConcurrent: 1, rate: [{ limit: 1, perMs: 1000 }] });
        await (prepare as (gate: ServiceGate) => Promise<void>)(gate);
        const control = new AbortController();
        const listeners = countListeners(control.signal);
        if (before) control.abort(reason);
        const call = follow(gate.run(code as () => Promise<unknown>, { signal: control.signal }));
        await settled();
        expect(call.now.is).toBe(before ? 'rejected' : 'pending');
        control.abort(reason);
        // Microtasks only: no timer may be needed.
        for (let i = 0; i < 30; i++) await Promise.resolve();
        expect(call.now).toEqual({ is: 'rejected', reason });
        expect(listeners.size).toBe(0);
        expect(gate.stats()).toMatchObject({ queuedForStart: 0, backingOff: 0, limiter: { queued: 0 } });
      },
    );

    it('reaches the function, with its reason', async () => {
      const gate = new ServiceGate({ name: 'llm', maxConcurrent: 1 });
      const control = new AbortController();
      let seen: AbortSignal | undefined;
      const call = follow(
        gate.run(
          ({ signal }) => {
            seen = signal;
            return new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)));
          },
          { signal: control.signal },
        ),
      );
      await settled();
      control.abort(reason);
      expect(seen!.reason).toBe(reason);
      await settled();
      expect(call.now).toEqual({ is: 'rejected', reason });
      expect(gate.stats()).toMatchObject({ running: 0, limiter: { active: 0 } });
      expect(vi.getTimerCount()).toBe(0);
    });

    it('in any microtask between a permit and the attempt keeps the function from starting, or reaches it', async () => {
      for (let steps = 0; steps < 40; steps++) {
        const gate = new ServiceGate({ name: 'llm', maxConcurrent: 1 });
        const first = deferred();
        const ahead = gate.run(() => first.promise);
        const control = new AbortController();
        let startedAfter = false;
        const call = follow(
          gate.run(
            ({ signal }) => {
              startedAfter = control.signal.aborted;
              return new Promise((_, reject) =>
                signal.addEventListener('abort', () => reject(signal.reason)),
              );
            },
            { signal: control.signal },
          ),
        );
        first.resolve();
        await microtasks(steps);
        control.abort(reason);
        await ahead;
        await settled();
        const where = `aborted after ${steps} microtasks`;
        expect(startedAfter, where).toBe(false);
        expect(call.now, where).toEqual({ is: 'rejected', reason });
        expect(gate.stats(), where).toMatchObject({ running: 0, limiter: { active: 0, queued: 0 } });
      }
    });

    it('after the call changes nothing', async () => {
      const gate = new ServiceGate({ name: 'llm' });
      const control = new AbortController();
      const listeners = countListeners(control.signal);
      const context = await gate.run((given) => given, { signal: control.signal });
      expect(listeners.size).toBe(0);
      control.abort();
      expect(context.signal.aborted).toBe(false);
    });

    it('at any step of a call leaks nothing', async () => {
      const ends = new Set<string>();
      for (let steps = 0; steps < 60; steps++) {
        const gate = new ServiceGate({ name: 'llm', maxConcurrent: 1, rate: [{ limit: 4, perMs: 1000 }] });
        const first = deferred();
        const control = new AbortController();
        const listeners = countListeners(control.signal);
        const code = vi.fn(async () => 1);
        const held = gate.run(() => first.promise);
        const call = follow(gate.run(code, { signal: control.signal }));
        await settled();
        first.resolve();
        for (let i = 0; i < steps; i++) await Promise.resolve();
        control.abort(reason);
        await settled();
        await held;
        ends.add(`${call.now.is}, ${code.mock.calls.length} begun`);
        expect(call.now.is).not.toBe('pending');
        expect(listeners.size).toBe(0);
        expect(gate.stats()).toMatchObject({
          running: 0,
          queuedForStart: 0,
          limiter: { active: 0, queued: 0 },
          keys: [{ inUse: 0, free: 1 - (1 + code.mock.calls.length) / 4 }],
        });
      }
      expect([...ends]).toEqual(['rejected, 0 begun', 'rejected, 1 begun', 'fulfilled, 1 begun']);
    });

    it('in the step of the grant releases the permit and the window reservation', async () => {
      const begun: number[] = [];
      for (let steps = 0; steps < 20; steps++) {
        const gate = new ServiceGate({ name: 'llm', maxConcurrent: 1, rate: [{ limit: 2, perMs: 1000 }] });
        const end = deferred();
        const control = new AbortController();
        const code = vi.fn(() => 1);
        const first = gate.run(() => end.promise);
        const second = follow(gate.run(code, { signal: control.signal }));
        await settled();
        end.resolve();
        for (let i = 0; i < steps; i++) await Promise.resolve();
        const isGranted = gate.stats().limiter!.queued === 0;
        control.abort(reason);
        await settled();
        await first;
        const calls = code.mock.calls.length;
        if (isGranted) begun.push(calls);
        if (calls === 0) expect(second.now).toEqual({ is: 'rejected', reason });
        expect(gate.stats()).toMatchObject({
          running: 0,
          limiter: { active: 0 },
          keys: [{ free: 0.5 - calls / 2, inUse: 0 }],
        });
      }
      // In some steps the permit was granted and the function had not begun.
      expect(begun).toContain(0);
      expect(begun).toContain(1);
    });
  });

  describe('context', () => {
    it('runs each attempt and emits its events in the AsyncLocalStorage context of its caller', async () => {
      vi.spyOn(Math, 'random').mockReturnValue(0.5);
      const storage = new AsyncLocalStorage<number>();
      const { hooks } = recorder();
      const wrong: unknown[] = [];
      const check = (where: string, expected: number) => {
        if (storage.getStore() !== expected) wrong.push([where, expected, storage.getStore()]);
      };
      for (const event of ['call:started', 'call:retried', 'call:throttled', 'call:finished'] as const) {
        hooks.on(event, ({ taskId }) => check(event, Number(taskId)));
      }
      const gate = new ServiceGate({
        name: 'llm',
        hooks,
        maxConcurrent: 7,
        rate: [{ limit: 9, perMs: 100 }],
        retry: { budget: false },
      });
      const calls = Array.from({ length: 100 }, (_, id) =>
        storage.run(id, async () => {
          const code = failing(id % 3 === 0 ? 1 : 0);
          await gate.run(
            async () => {
              check('start', id);
              await new Promise((resolve) => setTimeout(resolve, id % 10));
              check('after an await', id);
              return code();
            },
            { taskId: String(id), priority: id % 2 },
          );
          check('after the call', id);
        }),
      );
      await vi.advanceTimersByTimeAsync(60_000);
      await Promise.all(calls);
      expect(wrong).toEqual([]);
    });
  });

  describe('classify', () => {
    it('classifies results and errors, and leaves others to the default', async () => {
      vi.spyOn(Math, 'random').mockReturnValue(0);
      const seen: unknown[] = [];
      const gate = new ServiceGate({
        name: 'reader',
        retry: { budget: false },
        classify: (observed) => {
          seen.push(observed.kind);
          return observed.kind === 'result' && observed.value === 'empty' ? 'retryable' : undefined;
        },
      });
      const pages = ['empty', 'empty', 'page'];
      await expect(gate.run(() => pages.shift())).resolves.toBe('page');
      await expect(gate.run(() => 'empty')).resolves.toBe('empty');
      await expect(gate.run(() => Promise.reject(httpError(404)))).rejects.toMatchObject({ status: 404 });
      expect(seen).toEqual(['result', 'result', 'result', 'result', 'result', 'result', 'error']);
    });

    it('may be asynchronous', async () => {
      vi.spyOn(Math, 'random').mockReturnValue(0);
      const gate = new ServiceGate({
        name: 'reader',
        classify: async (observed) => {
          if (observed.kind !== 'result') return undefined;
          const body = await (observed.value as Response).clone().text();
          return body === 'busy' ? { class: 'retryable', status: 200 } : 'ok';
        },
      });
      const bodies = ['busy', 'page'];
      const response = await gate.run(() => new Response(bodies.shift()));
      await expect(response.text()).resolves.toBe('page');
    });

    it.each([
      [
        'throws',
        () => {
          throw new Error('no idea');
        },
        'no idea',
      ],
      ['rejects', () => Promise.reject(new Error('no idea')), 'no idea'],
      [
        'returns an invalid class',
        () => 'fine' as never,
        'Expected `classify().class` to be one of "ok", "retryable"',
      ],
      [
        'returns an invalid time',
        () => ({ class: 'retryable', retryAfterMs: -1 }) as const,
        '`classify().retryAfterMs`',
      ],
      ['returns null', () => null as never, undefined],
    ])('that %s fails its own call only, and leaks no permit', async (_, classify, message) => {
      const gate = new ServiceGate({ name: 'reader', maxConcurrent: 1, classify });
      const call = gate.run(() => 'page');
      if (message === undefined) await expect(call).resolves.toBe('page');
      else await expect(call).rejects.toThrow(message);
      expect(gate.stats().limiter).toMatchObject({ active: 0 });
    });

    it('that throws discards the response that no caller receives', async () => {
      const cancel = vi.fn();
      const gate = new ServiceGate({
        name: 'reader',
        classify: () => {
          throw new Error('no idea');
        },
      });
      const call = gate.run(() => new Response(new ReadableStream({ cancel })));
      await expect(call).rejects.toThrow('no idea');
      expect(cancel).toHaveBeenCalledTimes(1);
    });

    it('that never settles fails its own call only, after five seconds', async () => {
      const gate = new ServiceGate({
        name: 'reader',
        maxConcurrent: 1,
        classify: () => new Promise(() => {}),
      });
      const call = follow(gate.run(() => 'page'));
      await vi.advanceTimersByTimeAsync(5_000);
      expect(call.now).toMatchObject({
        is: 'rejected',
        reason: { message: expect.stringContaining('classify') },
      });
      expect(gate.stats().limiter).toMatchObject({ active: 0 });
    });
  });

  describe('its events', () => {
    it('report each step, with the ids of the call', async () => {
      vi.spyOn(Math, 'random').mockReturnValue(0.5);
      const { hooks, emitted, of } = recorder();
      const gate = new ServiceGate({ name: 'llm', hooks, keys: ['sk-0123456789-aaaa'] });
      const code = failing(1);
      const call = gate.run(code, { taskId: 't', requestId: 'r', tenant: 'n', toolCallId: 7 });
      await vi.advanceTimersByTimeAsync(1000);
      await call;
      expect(emitted.map((one) => one.event)).toEqual([
        'call:started',
        'call:retried',
        'call:throttled',
        'call:started',
        'call:finished',
      ]);
      const ids = { source: 'llm', callId: 1, taskId: 't', requestId: 'r', tenant: 'n', toolCallId: 7 };
      const key = '#1…aaaa';
      expect(emitted.map((one) => one.payload)).toEqual([
        { ...ids, attempt: 1, key, waitMs: 0 },
        { ...ids, attempt: 1, key, class: 'retryable', status: 500, retryAfterMs: 250 },
        { ...ids, reason: 'backoff', waitMs: 250 },
        { ...ids, attempt: 2, key, waitMs: 0 },
        { ...ids, outcome: 'ok', attempts: 2, key, durationMs: 250, waitMs: 250, cache: 'off' },
      ]);
      expect(of('permit:acquired')).toEqual([]);
    });

    it('say how long a call waited that ended in its queue', async () => {
      const gate = new ServiceGate({ name: 'llm', maxConcurrent: 1 });
      const waited: number[] = [];
      gate.hooks.on('call:finished', ({ waitMs }) => waited.push(waitMs));
      const running = follow(gate.run(() => new Promise(() => {})));
      const queued = follow(gate.run(() => 2, { timeoutMs: 500 }));
      await vi.advanceTimersByTimeAsync(500);
      expect(queued.now.is).toBe('rejected');
      expect(waited).toEqual([500]);
      expect(running.now.is).toBe('pending');
    });

    it('report the outcome of the call', async () => {
      vi.spyOn(Math, 'random').mockReturnValue(0);
      const { hooks, of } = recorder();
      const gate = new ServiceGate({ name: 'llm', hooks, attemptTimeoutMs: 500, retry: { attempts: 1 } });
      const never = () => new Promise(() => {});
      const control = new AbortController();
      const all = Promise.allSettled([
        gate.run(() => 1),
        gate.run(() => Promise.reject(httpError(404))),
        gate.run(() => Promise.reject(new TypeError('bug'))),
        gate.run(() => Promise.reject(httpError(500))),
        gate.run(never, { timeoutMs: 100 }),
        gate.run(never),
        gate.run(never, { signal: control.signal }),
      ]);
      await vi.advanceTimersByTimeAsync(10);
      control.abort();
      await vi.advanceTimersByTimeAsync(1000);
      await all;
      const last = gate.run(never);
      await settled();
      await Promise.allSettled([gate.close(), last, vi.advanceTimersByTimeAsync(6000)]);
      const outcomes = of('call:finished').sort((a, b) => a.callId - b.callId);
      expect(outcomes.map((o) => o.outcome)).toEqual([
        'ok',
        'client-error',
        'fatal',
        'retryable',
        'timeout',
        'timeout',
        'aborted',
        'rejected',
      ]);
      expect(gate.stats().finished).toEqual({
        ok: 1,
        'client-error': 1,
        fatal: 1,
        retryable: 1,
        timeout: 2,
        aborted: 1,
        rejected: 1,
      });
    });

    it('report a wait for a window once for each attempt, with the exact time', async () => {
      const { hooks, of } = recorder();
      const gate = new ServiceGate({ name: 'search', hooks, rate: [{ limit: 1, perMs: 1000 }] });
      await gate.run(() => 1);
      await vi.advanceTimersByTimeAsync(300);
      const call = gate.run(() => 2);
      await vi.advanceTimersByTimeAsync(700);
      await call;
      expect(of('call:throttled')).toEqual([{ source: 'search', callId: 2, reason: 'rate', waitMs: 700 }]);
      expect(of('call:started')[1]).toMatchObject({ waitMs: 700 });
      expect(of('call:finished')[1]).toMatchObject({ waitMs: 700, durationMs: 700 });
    });

    it('ignore listeners that throw', async () => {
      const { hooks } = recorder();
      for (const event of ['call:started', 'call:finished', 'call:retried', 'call:throttled'] as const) {
        hooks.on(event, () => {
          throw new Error('listener');
        });
      }
      const gate = new ServiceGate({ name: 'llm', hooks, maxConcurrent: 1, rate: [{ limit: 1, perMs: 10 }] });
      const calls = [gate.run(failing(1)), gate.run(() => 2)];
      await vi.advanceTimersByTimeAsync(5000);
      await expect(Promise.all(calls)).resolves.toEqual(['response 2', 2]);
      expect(gate.stats().limiter).toMatchObject({ active: 0 });
    });
  });

  describe('close', () => {
    it('rejects every call with GateClosedError, and accepts no more', async () => {
      const gate = new ServiceGate({ name: 'llm', maxConcurrent: 1 });
      const control = new AbortController();
      const listeners = countListeners(control.signal);
      let seen: AbortSignal | undefined;
      const running = follow(
        gate.run(
          ({ signal }) => {
            seen = signal;
            return new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)));
          },
          { signal: control.signal },
        ),
      );
      const waiting = follow(gate.run(() => 2));
      await settled();
      const closed = follow(gate.close());
      expect(seen!.reason).toBeInstanceOf(GateClosedError);
      await settled();
      for (const call of [running, waiting]) {
        expect(call.now).toMatchObject({ is: 'rejected', reason: { code: 'ERR_GATE_CLOSED' } });
      }
      expect(closed.now.is).toBe('fulfilled');
      await expect(gate.run(() => 3)).rejects.toBeInstanceOf(GateClosedError);
      expect(listeners.size).toBe(0);
      expect(gate.stats().closed).toBe(true);
    });

    it('waits up to five seconds for functions that ignore their signals', async () => {
      const gate = new ServiceGate({ name: 'llm' });
      follow(gate.run(() => new Promise(() => {})));
      await settled();
      const closed = follow(gate.close());
      expect(gate.close()).toBe(gate.close());
      await vi.advanceTimersByTimeAsync(4_999);
      expect(closed.now.is).toBe('pending');
      await vi.advanceTimersByTimeAsync(1);
      expect(closed.now.is).toBe('fulfilled');
    });

    it('waits for the last function that still runs', async () => {
      const gate = new ServiceGate({ name: 'llm' });
      const ends = [deferred(), deferred()];
      for (const { promise } of ends) follow(gate.run(() => promise));
      await settled();
      const closed = follow(gate.close());
      ends[0]!.resolve();
      await settled();
      expect(closed.now.is).toBe('pending');
      ends[1]!.resolve();
      await settled();
      expect(closed.now.is).toBe('fulfilled');
    });

    it('detaches an adaptive limit of the host', async () => {
      const adaptive = new AdaptiveLimit();
      await new ServiceGate({ name: 'llm', adaptive }).close();
      expect(() => new ServiceGate({ name: 'llm', adaptive })).not.toThrow();
    });

    it('runs at the end of `await using`', async () => {
      let gate: ServiceGate;
      {
        await using scoped = new ServiceGate({ name: 'llm' });
        gate = scoped;
      }
      expect(gate.stats().closed).toBe(true);
    });
  });
});
