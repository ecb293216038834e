import { afterEach, describe, expect, it, vi } from 'vitest';
import { ServiceGate } from '../../src/gate/service-gate.js';
import { onFakeTimers, settled } from '../support/fake-timers.js';
import { httpError } from '../support/gates.js';
import { deferred, follow } from '../support/promises.js';

onFakeTimers();
afterEach(() => vi.restoreAllMocks());

const rateLimitedFor = (ms: number) => Promise.reject(httpError(429, { 'retry-after-ms': String(ms) }));
const takes = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, ms));

describe('a gate rejects a call early only if it certainly misses its deadline', () => {
  it('keeps it while a probe is in flight', async () => {
    const gate = new ServiceGate({ name: 'search', keys: ['the-only-key'], retry: { attempts: 1 } });
    await gate.run(() => rateLimitedFor(100)).catch(() => {});
    const calls = Array.from({ length: 20 }, () => follow(gate.run(() => takes(20), { timeoutMs: 900 })));
    await vi.advanceTimersByTimeAsync(900);
    expect(calls.map((call) => call.now.is)).toEqual(Array(20).fill('fulfilled'));
  });

  it('rejects it as the weight of an attempt ahead becomes final', async () => {
    const rate = [{ limit: 1_000, perMs: 60_000, unit: 'weight' as const }];
    const gate = new ServiceGate({ name: 'llm', rate });
    const end = deferred();
    const first = gate.run(() => end.promise, { weight: 900 });
    const hopeless = follow(gate.run(() => {}, { weight: 200, timeoutMs: 2_000 }));
    await settled();
    expect(hopeless.now.is).toBe('pending');
    end.resolve();
    await first;
    await settled();
    expect(hopeless.now).toMatchObject({ is: 'rejected', reason: { code: 'ERR_KEYS_EXHAUSTED' } });
  });

  it('keeps it while an in-flight attempt may still correct its estimated weight', async () => {
    const rate = [{ limit: 1_000, perMs: 60_000, unit: 'weight' as const }];
    const gate = new ServiceGate({ name: 'llm', rate });
    const usage = deferred<number>();
    const first = gate.run(async ({ reportUsage }) => reportUsage(await usage.promise), { weight: 900 });
    await settled();
    const hopeful = follow(gate.run(() => 'fits', { weight: 200, timeoutMs: 2_000 }));
    await settled();
    usage.resolve(100);
    await first;
    await settled();
    expect(hopeful.now).toEqual({ is: 'fulfilled', value: 'fits' });
    // The weight of a settled attempt is final.
    const late = follow(gate.run(() => 'does not', { weight: 800, timeoutMs: 2_000 }));
    await settled();
    expect(late.now).toMatchObject({ is: 'rejected', reason: { code: 'ERR_KEYS_EXHAUSTED' } });
    expect(vi.getTimerCount()).toBe(0);
  });
});

describe('a call that only a key in cooldown could serve', () => {
  const setUp = async () => {
    const perSecond = (limit: number) => [{ limit, perMs: 1_000, unit: 'weight' as const }];
    const gate = new ServiceGate({
      name: 'llm',
      maxConcurrent: 2,
      retry: { attempts: 1 },
      keys: [
        { key: 'the-big-key', rate: perSecond(1_000) },
        { key: 'the-small-key', rate: perSecond(100) },
      ],
    });
    await gate.run(() => rateLimitedFor(1_500), { weight: 500 }).catch(() => {});
    return gate;
  };
  const keyOf = ({ key }: { key: string }) => key;

  it('waits without a permit and delays no call that another key can serve', async () => {
    const gate = await setUp();
    const heavy = follow(gate.run(keyOf, { weight: 500 }));
    await settled();
    expect(gate.stats()).toMatchObject({ backingOff: 1, limiter: { active: 0 } });
    const light = follow(gate.run(keyOf, { weight: 10 }));
    await settled();
    expect(light.now).toEqual({ is: 'fulfilled', value: 'the-small-key' });
    await vi.advanceTimersByTimeAsync(1_499);
    expect(heavy.now.is).toBe('pending');
    await vi.advanceTimersByTimeAsync(1);
    expect(heavy.now).toEqual({ is: 'fulfilled', value: 'the-big-key' });
    expect(vi.getTimerCount()).toBe(0);
  });

  it('is rejected at once if the cooldown outlasts its deadline', async () => {
    const gate = await setUp();
    const hasty = follow(gate.run(keyOf, { weight: 500, timeoutMs: 1_000 }));
    const light = follow(gate.run(keyOf, { weight: 10, timeoutMs: 1_000 }));
    await settled();
    expect(hasty.now).toMatchObject({ reason: { code: 'ERR_KEYS_EXHAUSTED', retryAfterMs: 1_500 } });
    expect(light.now.is).toBe('fulfilled');
  });
});

describe('between two attempts, a call', () => {
  it('continues as soon as a key is restored', async () => {
    const gate = new ServiceGate({ name: 'search', keys: ['key-number-one', 'key-number-two'] });
    const outcomes = [() => Promise.reject(httpError(401)), () => rateLimitedFor(60_000), () => 'fine'];
    const call = follow(gate.run(() => outcomes.shift()!()));
    await vi.advanceTimersByTimeAsync(50);
    expect([call.now.is, gate.stats().backingOff]).toEqual(['pending', 1]);
    gate.restoreKey('key-number-one');
    await settled();
    expect(call.now).toEqual({ is: 'fulfilled', value: 'fine' });
    expect(vi.getTimerCount()).toBe(0);
  });

  it('draws on the retry budget for each repeated loss of a key', async () => {
    const gate = new ServiceGate({
      name: 'search',
      keys: ['key-number-one', 'key-number-two'],
      cooldown: { exhaustedMs: 1 },
      retry: { attempts: 10, baseMs: 1, budget: { ratio: 0, perMinute: 0 } },
    });
    const call = follow(gate.run(() => Promise.reject(httpError(402))));
    await vi.advanceTimersByTimeAsync(1_000);
    expect(call.now).toMatchObject({ is: 'rejected' });
    expect(gate.stats()).toMatchObject({ attempts: 3, retries: 2 });
  });
});

it('rejects a pending `return` of a stream in the step of an abort, even if the source does not end', async () => {
  const gate = new ServiceGate({ name: 'llm', maxConcurrent: 1 });
  const control = new AbortController();
  const stream = gate.stream(
    () => ({
      [Symbol.asyncIterator]: () => ({
        next: async () => ({ done: false, value: 1 }),
        return: () => new Promise<never>(() => {}),
      }),
    }),
    { signal: control.signal },
  );
  await stream.next();
  const left = follow(stream.return!());
  await vi.advanceTimersByTimeAsync(20);
  expect(left.now.is).toBe('pending');
  const reason = new Error('the user has gone');
  control.abort(reason);
  await settled();
  expect(left.now).toEqual({ is: 'rejected', reason });
});
