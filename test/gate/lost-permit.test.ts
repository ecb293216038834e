import { getEventListeners } from 'node:events';
import { ServiceGate } from 'pipeline-pool';
import { describe, expect, it, vi } from 'vitest';
import { onFakeTimers, settled } from '../support/fake-timers.js';
import { recorder } from '../support/hooks.js';
import { LosableLimiter } from '../support/losable-limiter.js';
import { deferred, endOfTurn, follow } from '../support/promises.js';

function build(attempts = 2) {
  const limiter = new LosableLimiter(2);
  const { hooks, of } = recorder();
  const gate = new ServiceGate({
    name: 'llm',
    limiter,
    keys: ['key-of-the-service-1'],
    retry: { attempts, baseMs: 10 },
    hooks,
  });
  return { limiter, gate, of };
}

describe('when the permit of an attempt is lost', () => {
  onFakeTimers();

  it('the attempt ends in that step, and another one is made under another permit', async () => {
    const { limiter, gate, of } = build();
    const reasons: unknown[] = [];
    const call = follow(
      gate.run(({ signal, attempt }) => {
        if (attempt > 1) return `attempt ${attempt}`;
        return new Promise((_, reject) => {
          signal.addEventListener('abort', () => {
            reasons.push(signal.reason);
            reject(signal.reason);
          });
        });
      }),
    );
    await settled();
    const lost = limiter.lose();
    await settled();
    expect(reasons).toEqual([lost]);
    await vi.advanceTimersByTimeAsync(20);
    expect(call.now).toEqual({ is: 'fulfilled', value: 'attempt 2' });
    expect(of('call:retried')).toMatchObject([{ class: 'retryable' }]);
    expect(limiter.activeCount).toBe(0);
  });

  it('the caller gets the error of the last attempt, and the key is not blamed', async () => {
    const { limiter, gate, of } = build(1);
    for (let i = 0; i < 10; i++) {
      const untilAborted = ({ signal }: { signal: AbortSignal }) =>
        new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)));
      const call = follow(gate.run(untilAborted));
      await settled();
      limiter.lose();
      await settled();
      expect(call.now).toMatchObject({ is: 'rejected', reason: { code: 'ERR_LIMIT_LOST' } });
    }
    expect(gate.stats().keys).toMatchObject([{ state: 'ready' }]);
    expect(of('key:cooldown')).toEqual([]);
  });

  it('an open stream rejects its next item', async () => {
    const { limiter, gate } = build();
    const stream = gate.stream(async function* ({ signal }) {
      yield 1;
      await new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)));
    });
    expect(await stream.next()).toEqual({ done: false, value: 1 });
    const next = follow(stream.next());
    await settled();
    const lost = limiter.lose();
    await settled();
    expect(next.now).toEqual({ is: 'rejected', reason: lost });
    expect(limiter.activeCount).toBe(0);
  });

  it('a call that waits for a window with it takes another permit', async () => {
    const limiter = new LosableLimiter(2);
    const gate = new ServiceGate({ name: 'llm', limiter, rate: [{ limit: 1, perMs: 1_000 }] });
    await gate.run(() => 1);
    const work = vi.fn(() => 2);
    const call = follow(gate.run(work));
    await settled();
    limiter.lose();
    await vi.advanceTimersByTimeAsync(1_000);
    expect(call.now).toEqual({ is: 'fulfilled', value: 2 });
    expect(work).toHaveBeenCalledOnce();
    expect(limiter.stats().acquired).toBe(3);
    expect(limiter.activeCount).toBe(0);
  });

  it('a call that waits for a window starts also where the limiter no longer says whether it is paused', async () => {
    const limiter = new LosableLimiter(2);
    const rate = [{ limit: 1, perMs: 1_000, unit: 'weight' as const }];
    const gate = new ServiceGate({ name: 'llm', limiter, rate });
    const work = deferred<number>();
    const calls = [gate.run(() => work.promise), gate.run(() => 2)].map(follow);
    await settled();
    vi.spyOn(limiter, 'stats').mockImplementation(() => {
      throw new Error('connection lost');
    });
    work.resolve(1);
    await vi.advanceTimersByTimeAsync(1_000);
    expect(calls.map(({ now }) => now)).toEqual([
      { is: 'fulfilled', value: 1 },
      { is: 'fulfilled', value: 2 },
    ]);
    expect(limiter.activeCount).toBe(0);
  });

  it('an attempt does not start where the loss shows only as the clock is checked', async () => {
    const { limiter, gate } = build();
    let reads = 0;
    // The first read is that of the grant.
    limiter.onRead = () => {
      if (++reads === 2) limiter.lose();
    };
    const numbers: number[] = [];
    await gate.run(({ attempt }) => numbers.push(attempt));
    expect(numbers).toEqual([1]);
    expect(limiter.stats().acquired).toBe(2);
    expect(limiter.activeCount).toBe(0);
  });

  it('an attempt that has ended is not affected, and leaves no listener', async () => {
    const { limiter, gate } = build();
    const { signal } = new AbortController();
    const acquire = limiter.acquire.bind(limiter);
    vi.spyOn(limiter, 'acquire').mockImplementation(async (options) => {
      const permit = await acquire(options);
      return { weight: 1, waitMs: 0, signal, release: () => permit.release(), [Symbol.dispose]: () => {} };
    });
    const work = deferred();
    const call = gate.run(() => work.promise);
    await settled();
    expect(getEventListeners(signal, 'abort')).toHaveLength(1);
    work.resolve();
    await call;
    expect(getEventListeners(signal, 'abort')).toHaveLength(0);
  });

  it('a limiter that grants only permits that are lost already costs one call, and blocks no other code', async () => {
    let granted = 0;
    const limiter = new LosableLimiter(1);
    const acquire = limiter.acquire.bind(limiter);
    vi.spyOn(limiter, 'acquire').mockImplementation(async (options) => {
      // Else this test would never end where the event loop is blocked.
      if (++granted > 1_000) throw new Error('asked too often');
      const permit = await acquire(options);
      limiter.lose();
      return permit;
    });
    const gate = new ServiceGate({ name: 'llm', limiter, timeoutMs: 1_000 });
    const work = vi.fn();
    const call = follow(gate.run(work));
    for (let turn = 0; turn < 10; turn++) await endOfTurn();
    expect(granted).toBeGreaterThan(1);
    await vi.advanceTimersByTimeAsync(1_000);
    await endOfTurn();
    expect(call.now).toMatchObject({ is: 'rejected', reason: { code: 'ERR_GATE_TIMEOUT' } });
    expect(work).not.toHaveBeenCalled();
    expect(limiter.activeCount).toBe(0);
  });
});
