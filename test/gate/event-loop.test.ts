/** How much of the work for many waiters one step of the event loop does, counted in calls and in reads of the clock. */
import { createHash } from 'node:crypto';
import { describe, expect, it, vi } from 'vitest';
import type { ServiceGateOptions } from '../../src/gate/options.js';
import { ServiceGate } from '../../src/gate/service-gate.js';
import type {
  SharedGateConfig,
  SharedLimits,
  SharedStartListener,
  SharedStarts,
} from '../../src/gate/shared-limits.js';
import { PER_TURN } from '../../src/internal/clock.js';
import { AdaptiveLimit } from '../../src/limiter/adaptive-limit.js';
import { httpError } from '../support/gates.js';
import { deferred, endOfTurn, follow } from '../support/promises.js';

const KEYS = ['the-only-key'];

/** How often something happens in each turn of the event loop, until `isOver`: some tens of turns in these tests. */
async function perTurn(count: () => number, isOver: () => boolean): Promise<number[]> {
  const counts: number[] = [];
  let before = count();
  while (!isOver()) {
    if (counts.length === 1_000) throw new Error(`Never over: ${isOver}`);
    await endOfTurn();
    counts.push(count() - before);
    before = count();
  }
  return counts;
}

function countingGate(more: Partial<ServiceGateOptions> = {}) {
  let reads = 0;
  const now = (): number => {
    reads++;
    return performance.now();
  };
  const options = { name: 'search', keys: KEYS, retry: { attempts: 1 }, now, ...more };
  return { gate: new ServiceGate(options as ServiceGateOptions), reads: () => reads };
}

describe('one step of the event loop', () => {
  it('checks a part of the waiting calls when a cooldown begins, however often it becomes longer', async () => {
    const { gate, reads } = countingGate({ maxConcurrent: 10 });
    const failures = Array.from({ length: 10 }, () => deferred<never>());
    for (const { promise } of failures) follow(gate.run(() => promise));
    // Checked while the cooldown is short, and hopeless once it has become longer.
    let backingOff = 0;
    const hasty = follow(
      gate
        .run(() => 1, { timeoutMs: 59_000 })
        .finally(() => {
          backingOff = gate.stats().backingOff;
        }),
    );
    const patient = Array.from({ length: 2_000 }, () =>
      follow(gate.run(() => 1, { timeoutMs: 600_000, priority: 1 })),
    );
    await endOfTurn();
    failures.forEach(({ reject }, i) => {
      reject(httpError(429, { 'retry-after': `${51 + i}` }));
    });
    const counts = await perTurn(reads, () => gate.stats().backingOff === 2_000);
    // A check reads the clock twice, and a call that is sent back some ten times.
    expect(Math.max(...counts)).toBeLessThan(20 * PER_TURN + 2 * 500);
    expect(hasty.now).toMatchObject({ is: 'rejected', reason: { code: 'ERR_KEYS_EXHAUSTED' } });
    // By a check, and not when it was sent back, after the others of a higher priority.
    expect(backingOff).toBeLessThan(1_500);
    expect(patient.every(({ now }) => now.is === 'pending')).toBe(true);
    await gate.close();
  });

  it('runs a part of the queued calls where each ends within the step', async () => {
    const gate = new ServiceGate({ name: 'search', maxConcurrent: 2 });
    const holders = [deferred(), deferred()];
    for (const { promise } of holders) follow(gate.run(() => promise));
    const order: number[] = [];
    const calls = Array.from({ length: 1_000 }, (_, i) => gate.run(() => void order.push(i)));
    await endOfTurn();
    for (const { resolve } of holders) resolve();
    const counts = await perTurn(
      () => order.length,
      () => order.length === 1_000,
    );
    await Promise.all(calls);
    expect(Math.max(...counts)).toBeLessThanOrEqual(2 * PER_TURN);
    expect(order).toEqual(Array.from({ length: 1_000 }, (_, i) => i));
    expect(gate.stats()).toMatchObject({ running: 0, queuedForStart: 0, limiter: { active: 0, queued: 0 } });
  });
});

describe('calls that wait for a shared start', () => {
  /** Limits whose server has granted nothing yet, and what it can do. */
  function server(onRequest: () => void = () => {}) {
    const listeners = new Set<SharedStartListener>();
    let setKey: SharedGateConfig['onKey'] = () => {};
    const starts: SharedStarts = {
      fleet: { active: 0, queued: 0, members: 1, available: true, frozen: false, lost: 0 },
      request: (_weight, _priority, listener) => {
        listeners.add(listener);
        onRequest();
        return () => void listeners.delete(listener);
      },
      coolDown() {},
      restore() {},
      freeOf: () => 1,
      setRates() {},
    };
    const limits: SharedLimits = {
      name: 'redis',
      gate: ({ onKey }) => {
        setKey = onKey;
        return { limiter: undefined, starts, close: async () => {} };
      },
    };
    return {
      limits,
      listeners,
      coolDown: () => setKey(hash('the-only-key'), 'cooldown', 60_000),
      reject: () => {
        for (const { onReject } of listeners) onReject(new Error('unavailable'));
      },
    };
  }
  const hash = (key: string) => createHash('sha256').update(key).digest('hex').slice(0, 32);

  it('are withdrawn where they leave as they are asked for', async () => {
    const controller = new AbortController();
    const { limits, listeners } = server(() => controller.abort('left'));
    const { gate } = countingGate({ limits } as Partial<ServiceGateOptions>);
    const call = follow(gate.run(() => 1, { signal: controller.signal }));
    await endOfTurn();
    expect(call.now).toEqual({ is: 'rejected', reason: 'left' });
    expect(listeners.size).toBe(0);
    await gate.close();
  });

  it('leave no timer behind that waited for the end of a pause', async () => {
    const adaptive = new AdaptiveLimit({ initial: 1 });
    const { gate } = countingGate({ limits: server().limits, adaptive } as Partial<ServiceGateOptions>);
    const controller = new AbortController();
    gate.pause();
    const waiting = follow(gate.run(() => 1, { signal: controller.signal }));
    await endOfTurn();
    adaptive.blockFor(60_000);
    const timers = vi.spyOn(globalThis, 'setTimeout');
    const cleared = vi.spyOn(globalThis, 'clearTimeout');
    gate.resume();
    expect(timers).toHaveBeenCalledTimes(1);
    controller.abort('left');
    expect(cleared).toHaveBeenCalledWith(timers.mock.results[0]?.value);
    vi.restoreAllMocks();
    await endOfTurn();
    expect(waiting.now).toEqual({ is: 'rejected', reason: 'left' });
    await gate.close();
  });

  it.each<['are sent back' | 'are rejected' | 'are aborted']>([
    ['are sent back'],
    ['are rejected'],
    ['are aborted'],
  ])('continue in batches when they %s', async (how) => {
    const { limits, coolDown, reject } = server();
    const { gate } = countingGate({ limits } as Partial<ServiceGateOptions>);
    const controller = new AbortController();
    const { signal } = controller;
    let settled = 0;
    const settle = (): void => void settled++;
    for (let i = 0; i < 1_000; i++) gate.run(() => 1, { signal, timeoutMs: 30_000 }).then(settle, settle);
    await endOfTurn();
    if (how === 'are sent back') coolDown();
    else if (how === 'are rejected') reject();
    else controller.abort();
    const counts = await perTurn(
      () => settled,
      () => settled === 1_000,
    );
    expect(Math.max(...counts)).toBeLessThanOrEqual(2 * PER_TURN);
    await gate.close();
  });
});

describe('callers that share one call', () => {
  const shared = (ttlMs = 60_000) => ({ cache: { max: 10, ttlMs } });

  it.each<['ends' | 'fails' | 'is closed' | 'is aborted']>([
    ['ends'],
    ['fails'],
    ['is closed'],
    ['is aborted'],
  ])('continue in batches when it %s', async (how) => {
    const { gate } = countingGate(shared());
    const controller = new AbortController();
    const { signal } = controller;
    const work = deferred();
    let settled = 0;
    const settle = (): void => void settled++;
    for (let i = 0; i < 1_000; i++)
      gate.run(() => work.promise, { cacheKey: 'one', signal }).then(settle, settle);
    await endOfTurn();
    if (how === 'ends') work.resolve();
    else if (how === 'fails') work.reject(new Error('down'));
    else if (how === 'is aborted') controller.abort();
    else void gate.close();
    const counts = await perTurn(
      () => settled,
      () => settled === 1_000,
    );
    expect(Math.max(...counts)).toBeLessThanOrEqual(2 * PER_TURN);
    expect(gate.stats().cache.inFlight).toBe(0);
    work.resolve();
  });

  it('cost the same for each that joins, however many wait for the end of a cooldown', async () => {
    const { gate, reads } = countingGate(shared());
    await gate.run(() => Promise.reject(httpError(429, { 'retry-after': '60' }))).catch(() => {});
    const join = async (count: number): Promise<number> => {
      const before = reads();
      for (let i = 0; i < count; i++) follow(gate.run(() => 1, { cacheKey: 'one', timeoutMs: 600_000 }));
      await endOfTurn();
      return reads() - before;
    };
    await join(2);
    const few = await join(10);
    await join(1_000);
    expect(await join(10)).toBe(few);
    // One that cannot wait so long is rejected, and the others stay.
    const hasty = follow(gate.run(() => 1, { cacheKey: 'one', timeoutMs: 30_000 }));
    await endOfTurn();
    expect(hasty.now).toMatchObject({ is: 'rejected', reason: { code: 'ERR_KEYS_EXHAUSTED' } });
    expect(gate.stats().cache.inFlight).toBe(1);
    await gate.close();
  });
});
