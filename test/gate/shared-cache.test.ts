import Keyv from 'keyv';
import { type CacheOptions, type CacheStore, ServiceGate } from 'pipeline-pool';
import { describe, expect, it, vi } from 'vitest';
import { onFakeTimers, settled } from '../support/fake-timers.js';
import { recorder } from '../support/hooks.js';
import { deferred, follow } from '../support/promises.js';

onFakeTimers();

/** A gate of one process. */
function member(store: CacheStore, cache: Partial<CacheOptions> = {}) {
  const { hooks, of } = recorder();
  const gate = new ServiceGate({ name: 'search', hooks, cache: { max: 10, ttlMs: 1_000, store, ...cache } });
  return { gate, of };
}

describe('a cache with a shared store', () => {
  it('asks the service once for all processes', async () => {
    const store = new Keyv();
    const [one, two] = [member(store), member(store)];
    const code = vi.fn(async () => ({ found: ['tides'] }));
    expect(await one.gate.run(code, { cacheKey: 'k', taskId: 't1' })).toEqual({ found: ['tides'] });
    expect(await two.gate.run(code, { cacheKey: 'k', taskId: 't2' })).toEqual({ found: ['tides'] });
    expect(code).toHaveBeenCalledOnce();
    expect(one.of('cache:miss')).toMatchObject([{ taskId: 't1' }]);
    expect(two.of('cache:miss')).toEqual([]);
    expect(two.of('cache:hit')).toMatchObject([{ taskId: 't2', shared: false }]);
    expect(two.of('call:finished')).toMatchObject([{ cache: 'hit', attempts: 0, outcome: 'ok' }]);
    expect(two.gate.stats()).toMatchObject({ attempts: 0, cache: { hits: 1, misses: 0, size: 1 } });
  });

  it('keeps its own copies in front, and asks the store once per flight', async () => {
    const store = new Keyv();
    const get = vi.spyOn(store, 'get');
    const { gate } = member(store);
    const work = deferred<number>();
    const calls = [1, 2, 3].map(() => gate.run(() => work.promise, { cacheKey: 'k' }));
    await settled();
    work.resolve(7);
    expect(await Promise.all(calls)).toEqual([7, 7, 7]);
    expect(await gate.run(() => 8, { cacheKey: 'k' })).toBe(7);
    expect(get).toHaveBeenCalledOnce();
    expect(get).toHaveBeenCalledWith('search:k');
  });

  it('serves a stored result no longer than its time, also one that another process stored', async () => {
    const store = new Keyv();
    const [one, two] = [member(store), member(store)];
    await one.gate.run(() => 1, { cacheKey: 'k' });
    await vi.advanceTimersByTimeAsync(600);
    expect(await two.gate.run(() => 2, { cacheKey: 'k' })).toBe(1);
    await vi.advanceTimersByTimeAsync(401);
    expect(await two.gate.run(() => 2, { cacheKey: 'k' })).toBe(2);
  });

  it('keeps a result no longer than its time, whatever the clock of the other process says', async () => {
    const values = new Map<string, unknown>();
    const store: CacheStore = { get: (key) => values.get(key), set: (key, value) => values.set(key, value) };
    values.set('search:k', { value: 1, storedAtMs: Date.now() + 60_000, ttlMs: 1_000 });
    const { gate } = member(store);
    expect(await gate.run(() => 2, { cacheKey: 'k' })).toBe(1);
    values.clear();
    await vi.advanceTimersByTimeAsync(1_001);
    expect(await gate.run(() => 2, { cacheKey: 'k' })).toBe(2);
  });

  it('stores undefined and null, and nothing that failed or must not be cached', async () => {
    const store = new Keyv();
    const [one, two] = [member(store, { shouldCache: (value) => value !== 0 }), member(store)];
    for (const [cacheKey, value] of [
      ['a', undefined],
      ['b', null],
    ] as const) {
      await one.gate.run(() => value, { cacheKey });
      expect(await two.gate.run(() => 9, { cacheKey })).toBe(value);
    }
    await one.gate.run(() => 0, { cacheKey: 'c' });
    await one.gate.run(() => Promise.reject(new Error('no')), { cacheKey: 'd' }).catch(() => {});
    for (const cacheKey of ['c', 'd']) expect(await two.gate.run(() => 9, { cacheKey })).toBe(9);
  });

  it('separates gates of different names', async () => {
    const store = new Keyv();
    await member(store).gate.run(() => 1, { cacheKey: 'k' });
    const other = new ServiceGate({ name: 'read', cache: { max: 1, ttlMs: 1_000, store } });
    expect(await other.run(() => 2, { cacheKey: 'k' })).toBe(2);
  });

  it('drops a forgotten result in the store as well', async () => {
    const store = new Keyv();
    const [one, two] = [member(store), member(store)];
    await one.gate.run(() => 1, { cacheKey: 'k' });
    one.gate.forget('k');
    await settled();
    expect(await two.gate.run(() => 2, { cacheKey: 'k' })).toBe(2);
  });
});

const broken = (cause: () => unknown): CacheStore => ({ get: cause, set: cause, delete: cause });

describe('a store that fails', () => {
  it.each<[string, () => unknown]>([
    [
      'throws',
      () => {
        throw new Error('no connection');
      },
    ],
    ['rejects', () => Promise.reject(new Error('no connection'))],
  ])('is a miss, and is reported: it %s', async (_, cause) => {
    const { gate, of } = member(broken(cause));
    expect(await gate.run(() => 1, { cacheKey: 'k' })).toBe(1);
    expect(await gate.run(() => 2, { cacheKey: 'k' })).toBe(1);
    gate.forget('k');
    await settled();
    expect(of('cache:miss')).toHaveLength(1);
    expect(of('cache:store-failed')).toMatchObject(
      ['get', 'set', 'delete'].map((operation) => ({
        source: 'search',
        operation,
        error: { message: 'no connection' },
      })),
    );
  });

  it('delays a call by a second at most, where it never answers', async () => {
    const { gate, of } = member(broken(() => new Promise(() => {})));
    const call = follow(gate.run(() => 1, { cacheKey: 'k' }));
    await vi.advanceTimersByTimeAsync(999);
    expect(call.now.is).toBe('pending');
    await vi.advanceTimersByTimeAsync(1);
    expect(call.now).toEqual({ is: 'fulfilled', value: 1 });
    expect(of('cache:store-failed')).toMatchObject([
      { operation: 'get', error: { message: '`get` of the store took longer than 1000 ms' } },
    ]);
  });

  it('does not hold back a caller who leaves', async () => {
    const { gate, of } = member(broken(() => new Promise(() => {})));
    const controller = new AbortController();
    const code = vi.fn();
    const call = follow(gate.run(code, { cacheKey: 'k', signal: controller.signal }));
    await settled();
    controller.abort('left');
    await vi.advanceTimersByTimeAsync(2_000);
    expect(call.now).toEqual({ is: 'rejected', reason: 'left' });
    expect(code).not.toHaveBeenCalled();
    expect(of('cache:store-failed')).toEqual([]);
    expect(gate.stats().cache.inFlight).toBe(0);
  });

  it('is a miss, where it returns something else', async () => {
    for (const value of [
      5,
      'text',
      { value: 1 },
      { value: 1, storedAtMs: Date.now() - 5_000, ttlMs: 1_000 },
      {
        get value() {
          throw new Error('no value');
        },
        storedAtMs: Date.now(),
        ttlMs: 1_000,
      },
    ]) {
      const { gate } = member({ get: () => value, set: () => true });
      expect(await gate.run(() => 'fresh', { cacheKey: 'k' })).toBe('fresh');
    }
  });

  it('shows no credentials of its error in the event', async () => {
    const { gate, of } = member(
      broken(() => Promise.reject(new Error('redis://me:secret-word@host failed'))),
    );
    await gate.run(() => 1, { cacheKey: 'k' });
    await settled();
    expect(JSON.stringify(of('cache:store-failed'))).not.toContain('secret-word');
  });

  it('is refused without `get` and `set`', () => {
    const cache = { max: 1, ttlMs: 1, store: { get: () => 1 } as never };
    expect(() => new ServiceGate({ name: 'x', cache })).toThrow(
      new TypeError('Expected `cache.store` to be an object with `get` and `set`, got an object (object)'),
    );
  });
});
