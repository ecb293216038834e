import { describe, expect, it, vi } from 'vitest';
import { LifecycleHooks } from '../../src/hooks/lifecycle-hooks.js';
import { AdaptiveLimit } from '../../src/limiter/adaptive-limit.js';
import { ConcurrencyLimiter } from '../../src/limiter/concurrency-limiter.js';
import type { AcquireOptions } from '../../src/limiter/limiter.js';
import { onFakeTimers } from '../support/fake-timers.js';

describe('The options of a ConcurrencyLimiter', () => {
  it.each([
    [undefined, TypeError, 'Expected `ConcurrencyLimiter` to be an options object'],
    [5, TypeError, 'Expected `ConcurrencyLimiter` to be an options object, got 5 (number)'],
    [{}, TypeError, 'Expected `maxConcurrent` to be a whole number from 1, got undefined'],
    [
      { maxConcurrent: '5' },
      TypeError,
      'Expected `maxConcurrent` to be a whole number from 1, got "5" (string)',
    ],
    [{ maxConcurrent: 0 }, RangeError, 'got 0 (number)'],
    [{ maxConcurrent: 2.5 }, RangeError, 'got 2.5 (number)'],
    [{ maxConcurrent: Number.POSITIVE_INFINITY }, RangeError, 'got Infinity (number)'],
    [{ maxConcurrent: 1, maxQueue: -1 }, RangeError, 'Expected `maxQueue` to be a whole number from 0'],
    [
      { maxConcurrent: 1, acquireTimeoutMs: Number.NaN },
      RangeError,
      'Expected `acquireTimeoutMs` to be a number',
    ],
    [{ maxConcurrent: 1, acquireTimeoutMs: 2 ** 31 }, RangeError, 'from 0 to 2147483647, got 2147483648'],
    [{ maxConcurrent: 1, rejectUnmeetable: 'yes' }, TypeError, 'Expected `rejectUnmeetable` to be a boolean'],
    [
      { maxConcurrent: 1, detectNested: 1 },
      TypeError,
      'Expected `detectNested` to be a boolean, "reject" or "lend"',
    ],
    [{ maxConcurrent: 1, name: '' }, TypeError, 'Expected `name` to be a non-empty string'],
    [{ maxConcurrent: 1, hooks: {} }, TypeError, 'Expected `hooks` to be a LifecycleHooks'],
    [{ maxConcurrent: 1, concurrency: 5 }, TypeError, 'Unknown option `concurrency` in ConcurrencyLimiter'],
  ])('throw when they are %j', (given, kind, message) => {
    const make = () => new ConcurrencyLimiter(given as never);
    expect(make).toThrow(kind);
    expect(make).toThrow(message);
  });

  it('default to an unbounded wait, a name and hooks of its own', () => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 2 });
    expect(limiter.name).toBe('limiter');
    expect(limiter.maxConcurrent).toBe(2);
    expect(limiter.hooks).toBeInstanceOf(LifecycleHooks);
    expect(limiter.hooks).not.toBe(new ConcurrencyLimiter({ maxConcurrent: 2 }).hooks);
  });

  it('may all be undefined', () => {
    const nothing = { maxQueue: undefined, acquireTimeoutMs: undefined, name: undefined, hooks: undefined };
    expect(new ConcurrencyLimiter({ maxConcurrent: 1, ...nothing }).name).toBe('limiter');
  });

  it('take the limit from `adaptive` in place of maxConcurrent', async () => {
    const adaptive = new AdaptiveLimit({ initial: 3 });
    const limiter = new ConcurrencyLimiter({ adaptive });
    expect(limiter.maxConcurrent).toBe(3);
    const permits = [limiter.tryAcquire(), limiter.tryAcquire(), limiter.tryAcquire()];
    expect(limiter.tryAcquire()).toBeUndefined();
    for (const permit of permits) permit?.release();
    expect(limiter.maxConcurrent).toBe(adaptive.limit);
    expect(adaptive.limit).toBeGreaterThan(3);
    expect(() => new ConcurrencyLimiter({ adaptive, maxConcurrent: 3 } as never)).toThrow(
      'Expected `maxConcurrent` to be omitted where `adaptive` sets it',
    );
  });

  it.each([
    [5, 'got 5 (number)'],
    [{}, 'got an object (object)'],
    [null, 'got null (null)'],
    [true, 'got true (boolean)'],
    [{ initial: 3, max: 8 }, 'got an object (object)'],
    [AdaptiveLimit, 'got a function (function)'],
  ])('throw when `adaptive` is %o and not an AdaptiveLimit', (adaptive, got) => {
    const make = () => new ConcurrencyLimiter({ adaptive } as never);
    expect(make).toThrow(TypeError);
    expect(make).toThrow(`Expected \`adaptive\` to be an AdaptiveLimit, ${got}`);
  });
});

describe('The options of a request', () => {
  it.each([
    [null, TypeError, 'Expected `acquire` to be an options object, got null'],
    [5, TypeError, 'Expected `acquire` to be an options object, got 5 (number)'],
    [[], TypeError, 'Expected `acquire` to be an options object, got an array'],
    [{ timeout: 5 }, TypeError, 'Unknown option `timeout` in acquire; it takes `signal`, `timeoutMs`'],
    [{ signal: {} }, TypeError, 'Expected `signal` to be an AbortSignal, got an object'],
    [{ signal: new AbortController() }, TypeError, 'Expected `signal` to be an AbortSignal'],
    [{ timeoutMs: -1 }, RangeError, 'Expected `timeoutMs` to be a number from 0'],
    [{ timeoutMs: Number.NaN }, RangeError, 'got NaN (number)'],
    [{ timeoutMs: Number.POSITIVE_INFINITY }, RangeError, 'got Infinity (number)'],
    [{ timeoutMs: '5' }, TypeError, 'got "5" (string)'],
    [{ priority: 0.5 }, RangeError, 'Expected `priority` to be a whole number'],
    [{ priority: 'high' }, TypeError, 'Expected `priority` to be a whole number'],
    [{ tenant: '' }, TypeError, 'Expected `tenant` to be a non-empty string'],
    [{ taskId: 7 }, TypeError, 'Expected `taskId` to be a non-empty string, got 7 (number)'],
    [{ requestId: null }, TypeError, 'Expected `requestId` to be a non-empty string, got null'],
  ])(
    'reject when they are %j, whether or not a permit is free, and nothing is taken',
    async (given, kind, message) => {
      const limiter = new ConcurrencyLimiter({ maxConcurrent: 1 });
      for (let pass = 0; pass < 2; pass++) {
        const asked = limiter.acquire(given as never);
        await expect(asked).rejects.toThrow(kind);
        await expect(asked).rejects.toThrow(message);
        await expect(limiter.run(() => {}, given as never)).rejects.toThrow(message);
        expect(limiter.stats()).toMatchObject({ active: pass, queued: 0, rejected: 0 });
        limiter.tryAcquire();
      }
    },
  );

  it('may all be undefined', async () => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 1 });
    const nothing = { signal: undefined, timeoutMs: undefined, priority: undefined, weight: undefined };
    const first = await limiter.acquire({ ...nothing, tenant: undefined, taskId: undefined });
    const second = limiter.acquire(nothing);
    first.release();
    (await second).release();
    expect(limiter.tryAcquire({})?.weight).toBe(1);
    expect(limiter.tryAcquire({ weight: undefined })).toBeUndefined();
  });

  it('count as well where they are inherited', async () => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 3 });
    const heavy = await limiter.acquire(Object.create({ weight: 3 }));
    expect(heavy.weight).toBe(3);
    expect(limiter.tryAcquire(Object.create({ weight: 1 }))).toBeUndefined();
    const order: string[] = [];
    const ask = (name: string, options: AcquireOptions) =>
      limiter.run(() => order.push(name), Object.create(options));
    const all = [ask('low', { priority: -1 }), ask('a1', { tenant: 'a' }), ask('a2', { tenant: 'a' })];
    all.push(ask('b1', { tenant: 'b' }));
    heavy.release();
    await Promise.all(all);
    expect(order).toEqual(['a1', 'b1', 'a2', 'low']);
    await expect(limiter.acquire(Object.create({ weight: 4 }))).rejects.toThrow(RangeError);
  });

  it('are those of the call: what becomes of the object afterwards changes nothing', async () => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 3 });
    const emitted: unknown[] = [];
    limiter.hooks.on('permit:released', ({ taskId, requestId, tenant, weight }) =>
      emitted.push({ taskId, requestId, tenant, weight }),
    );
    const given = { weight: 2, priority: 1, tenant: 'a', taskId: 't', requestId: 'r' };
    const spoil = (options: object) =>
      Object.assign(options, { weight: 3, priority: -9, tenant: 'b', taskId: 'other', requestId: 'other' });
    const options = { ...given };
    const free = await limiter.acquire(options);
    spoil(options);
    const again = { ...given };
    const waiting = limiter.acquire(again);
    const behind = limiter.acquire({ weight: 2 });
    spoil(again);
    free.release();
    expect(limiter.stats()).toMatchObject({ active: 2, queued: 1 });
    (await waiting).release();
    (await behind).release();
    expect(limiter.activeCount).toBe(0);
    const { priority: _, ...ids } = given;
    expect(emitted.slice(0, 2)).toEqual([ids, ids]);
  });

  it('are those of the call in a wrapped function too', async () => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 3 });
    const options = { weight: 2 };
    const weigh = limiter.wrap(() => limiter.activeCount, options);
    const weighInherited = limiter.wrap(() => limiter.activeCount, Object.create(options));
    options.weight = 3;
    expect([await weigh(), await weighInherited()]).toEqual([2, 2]);
  });

  describe('with fake timers', () => {
    onFakeTimers();

    it.each([
      ['inherited', (options: AcquireOptions) => Object.create(options) as AcquireOptions],
      ['frozen', (options: AcquireOptions) => Object.freeze({ ...options })],
    ])('end the waiting by either of signal and timeoutMs when they are %s', async (_, made) => {
      const limiter = new ConcurrencyLimiter({ maxConcurrent: 1 });
      limiter.tryAcquire();
      const { signal } = new AbortController();
      const late = limiter.acquire(made({ signal, timeoutMs: 30 })).catch(({ code }) => code);
      await vi.advanceTimersByTimeAsync(29);
      expect(limiter.queuedCount).toBe(1);
      await vi.advanceTimersByTimeAsync(1);
      expect(await late).toBe('ERR_ACQUIRE_TIMEOUT');
      const controller = new AbortController();
      const options = made({ signal: controller.signal, timeoutMs: 30 });
      const aborted = limiter.run(() => {}, options).catch((reason: unknown) => reason);
      controller.abort('left');
      expect(await aborted).toBe('left');
      expect(limiter.queuedCount).toBe(0);
      expect(vi.getTimerCount()).toBe(0);
    });

    it('end the waiting as they were at the call, whatever becomes of the object afterwards', async () => {
      const limiter = new ConcurrencyLimiter({ maxConcurrent: 1 });
      limiter.tryAcquire();
      const own = new AbortController();
      const others = new AbortController();
      const options = () => ({ signal: own.signal, timeoutMs: 30 });
      const spoilt = [options(), options()] as const;
      const late = limiter.acquire(spoilt[0]).catch(({ code }) => code);
      Object.assign(spoilt[0], { signal: others.signal, timeoutMs: 5 });
      others.abort('of others');
      await vi.advanceTimersByTimeAsync(29);
      expect(limiter.queuedCount).toBe(1);
      await vi.advanceTimersByTimeAsync(1);
      expect(await late).toBe('ERR_ACQUIRE_TIMEOUT');
      const aborted = limiter.acquire(spoilt[1]).catch((reason: unknown) => reason);
      Object.assign(spoilt[1], { signal: others.signal });
      own.abort('own');
      expect(await aborted).toBe('own');
    });

    it('have a run begin under the signal of the call', async () => {
      const limiter = new ConcurrencyLimiter({ maxConcurrent: 1 });
      const holder = limiter.tryAcquire();
      const { signal } = new AbortController();
      const options = { signal };
      const seen = limiter.run((context) => context.signal, options);
      options.signal = AbortSignal.abort();
      holder?.release();
      expect(await seen).toBe(signal);
    });
  });

  it('are refused in tryAcquire except for the weight and the tenant: it does not wait, so there is nothing to end or order', () => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 1 });
    expect(() => limiter.tryAcquire({ priority: 1 } as never)).toThrow(
      'Unknown option `priority` in tryAcquire',
    );
    expect(() => limiter.tryAcquire(1 as never)).toThrow(TypeError);
    expect(limiter.activeCount).toBe(0);
  });
});

describe('stats', () => {
  it('counts what is held, queued, granted and rejected', async () => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 2, maxQueue: 1 });
    expect(limiter.stats()).toEqual({
      maxConcurrent: 2,
      active: 0,
      queued: 0,
      acquired: 0,
      rejected: 0,
      paused: false,
      closed: false,
    });
    const permit = await limiter.acquire({ weight: 2 });
    const waiting = limiter.acquire();
    await limiter.acquire().catch(() => {});
    expect(limiter.stats()).toMatchObject({ active: 2, queued: 1, acquired: 1, rejected: 1 });
    permit.release();
    await waiting;
    expect(limiter.stats()).toMatchObject({ active: 1, queued: 0, acquired: 2, rejected: 1 });
  });

  it('is a frozen snapshot', () => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 2 });
    const stats = limiter.stats();
    limiter.tryAcquire();
    expect(stats.active).toBe(0);
    expect(Object.isFrozen(stats)).toBe(true);
  });
});
