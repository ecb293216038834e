import { getEventListeners } from 'node:events';
import {
  createPipelineManager,
  LifecycleHooks,
  type Limiter,
  LimitLostError,
  type Permit,
  type PipelinePoolOptions,
} from 'pipeline-pool';
import { describe, expect, it, vi } from 'vitest';
import { onFakeTimers, settled } from '../support/fake-timers.js';
import { LosableLimiter } from '../support/losable-limiter.js';
import { deferred, follow } from '../support/promises.js';

function build(callbacks: Partial<PipelinePoolOptions<number>> = {}) {
  const limiter = new LosableLimiter(2);
  const hooks = new LifecycleHooks();
  const outcomes: string[] = [];
  hooks.on('request:finished', ({ outcome }) => outcomes.push(outcome));
  hooks.on('request:rejected', ({ outcome }) => outcomes.push(outcome));
  const manager = createPipelineManager<number>({
    config: { poolSize: 1, abortGraceMs: 1_000 },
    limiter,
    create: ({ instanceId }) => instanceId,
    hooks,
    ...callbacks,
  });
  return { limiter, manager, outcomes };
}

describe('when the permit of a request is lost', () => {
  onFakeTimers();

  it('the caller is rejected in that step, and the instance is reset and reused once the code has settled', async () => {
    const reset = vi.fn();
    const { limiter, manager, outcomes } = build({ reset });
    const work = deferred();
    let seen: unknown;
    const request = follow(
      manager.run('report', ({ signal }) => {
        signal.addEventListener('abort', () => {
          seen = signal.reason;
        });
        return work.promise;
      }),
    );
    await settled();
    const lost = limiter.lose();
    await settled();
    expect(request.now).toEqual({ is: 'rejected', reason: lost });
    expect(seen).toBe(lost);
    expect(lost).toMatchObject({ code: 'ERR_LIMIT_LOST', source: 'fleet', reason: 'expired' });
    expect(reset).not.toHaveBeenCalled();
    work.resolve();
    await settled();
    expect(reset).toHaveBeenCalledOnce();
    expect(outcomes).toEqual(['revoked']);
    expect(await manager.run('next', ({ pipeline }) => pipeline)).toBe(1);
    await settled();
    expect(limiter.activeCount).toBe(0);
  });

  it('an instance under code that ignores its signal is destroyed after the grace period', async () => {
    const { limiter, manager } = build();
    const request = follow(manager.run('report', () => new Promise(() => {})));
    await settled();
    limiter.lose();
    await vi.advanceTimersByTimeAsync(1_000);
    expect(request.now.is).toBe('rejected');
    expect(await manager.run('next', ({ pipeline }) => pipeline)).toBe(2);
    await settled();
    expect(limiter.activeCount).toBe(0);
  });

  it('a request that waits for an instance is rejected', async () => {
    const { limiter, manager, outcomes } = build({ create: () => new Promise<number>(() => {}) });
    const request = follow(manager.run('report', () => 1));
    await settled();
    limiter.lose();
    await settled();
    expect(request.now).toMatchObject({ is: 'rejected', reason: { code: 'ERR_LIMIT_LOST' } });
    expect(outcomes).toEqual(['revoked']);
    expect(manager.stats()).toMatchObject({ active: 0, pool: { queued: 0 } });
  });

  it('a stream rejects the next item', async () => {
    const { limiter, manager } = build();
    const stream = manager.stream('report', async function* () {
      yield 1;
      yield 2;
    });
    expect(await stream.next()).toEqual({ done: false, value: 1 });
    const lost = limiter.lose();
    await settled();
    await expect(stream.next()).rejects.toBe(lost);
    await settled();
    expect(limiter.activeCount).toBe(0);
  });

  it('the signal of a lease that the host holds aborts, and the instance is destroyed after the grace period', async () => {
    const { limiter, manager, outcomes } = build();
    const lease = await manager.acquirePipeline('report');
    const lost = limiter.lose();
    expect(lease.signal.reason).toBe(lost);
    expect(lease.isHeld).toBe(true);
    await vi.advanceTimersByTimeAsync(1_000);
    expect(lease.isHeld).toBe(false);
    expect(outcomes).toEqual(['revoked']);
    expect(limiter.activeCount).toBe(0);
    expect(await manager.run('next', ({ pipeline }) => pipeline)).toBe(2);
  });

  it('a lease that is released within the grace period returns its instance', async () => {
    const { limiter, manager } = build();
    const lease = await manager.acquirePipeline('report');
    limiter.lose();
    await lease.release();
    await vi.advanceTimersByTimeAsync(1_000);
    expect(await manager.run('next', ({ pipeline }) => pipeline)).toBe(1);
  });

  it('the work does not start where the loss shows only as the clock is checked', async () => {
    const { limiter, manager } = build();
    let reads = 0;
    // The first read is that of the grant.
    limiter.onRead = () => {
      if (++reads === 2) limiter.lose();
    };
    const work = vi.fn();
    await expect(manager.run('report', work)).rejects.toBeInstanceOf(LimitLostError);
    expect(work).not.toHaveBeenCalled();
    await settled();
    expect(limiter.activeCount).toBe(0);
  });
});

describe('a manager with any Limiter', () => {
  onFakeTimers();

  it('leaves no listener on the signal of a permit', async () => {
    const { signal } = new AbortController();
    const { manager } = build();
    const { limiter } = manager;
    const acquire = limiter.acquire.bind(limiter);
    vi.spyOn(limiter, 'acquire').mockImplementation(async (options) => {
      const permit = await acquire(options);
      return { weight: 1, waitMs: 0, signal, release: () => permit.release(), [Symbol.dispose]: () => {} };
    });
    await manager.run('report', () => 1);
    await settled();
    expect(getEventListeners(signal, 'abort')).toHaveLength(0);
  });

  it('rejects a request in the step of its abort, and releases a permit that a limiter grants it afterwards', async () => {
    const granted = deferred<Permit>();
    const release = vi.fn();
    const limiter = { acquire: () => granted.promise } as unknown as Limiter;
    const manager = createPipelineManager({ create: () => 1, limiter });
    const controller = new AbortController();
    const request = follow(manager.run('report', () => 1, { signal: controller.signal }));
    await settled();
    controller.abort('left');
    await settled();
    expect(request.now).toEqual({ is: 'rejected', reason: 'left' });
    granted.resolve({ weight: 1, waitMs: 0, release, [Symbol.dispose]: release });
    await settled();
    expect(release).toHaveBeenCalledOnce();
  });

  it('survives a permit whose signal and release throw', async () => {
    const fail = (): never => {
      throw new Error('broken');
    };
    const permit = { weight: 1, waitMs: 0, release: fail, [Symbol.dispose]: fail };
    Object.defineProperty(permit, 'signal', { get: fail });
    const limiter = { acquire: async () => permit } as unknown as Limiter;
    const manager = createPipelineManager({ config: { poolSize: 1 }, create: () => 1, limiter });
    expect(await manager.run('report', () => 5)).toBe(5);
    expect(await manager.run('next', () => 6)).toBe(6);
  });
});
