import { getEventListeners } from 'node:events';
import { ConcurrencyLimiter, LifecycleHooks, PipelineManager, PipelinePool } from 'pipeline-pool';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';

function build({
  size = 1,
  abortGraceMs = 1_000,
  create = ({ instanceId }: { instanceId: number }) => ({ instanceId }),
} = {}) {
  const hooks = new LifecycleHooks();
  const outcomes: string[] = [];
  hooks.on('request:finished', ({ outcome }) => outcomes.push(outcome));
  hooks.on('request:rejected', ({ outcome }) => outcomes.push(`rejected: ${outcome}`));
  const pool = new PipelinePool({ size, create, hooks });
  const limiter = new ConcurrencyLimiter({ maxConcurrent: 2, hooks });
  const manager = new PipelineManager({ pool, limiter, hooks, abortGraceMs });
  const held = () => ({
    permits: limiter.activeCount,
    leased: pool.stats().leased,
    active: manager.stats().active,
  });
  return { manager, pool, outcomes, held };
}
const NOTHING = { permits: 0, leased: 0, active: 0 };
const ALL = { permits: 1, leased: 1, active: 1 };
const settled = () => vi.advanceTimersByTimeAsync(0);
const never = () => new Promise<never>(() => {});

async function* count(upTo: number, log: string[] = []) {
  try {
    for (let i = 1; i <= upTo; i++) {
      log.push(`made ${i}`);
      yield i;
    }
    return 'end';
  } finally {
    log.push('cleaned up');
  }
}

beforeEach(() => {
  vi.useFakeTimers();
});
afterEach(() => {
  vi.useRealTimers();
});

describe('PipelineManager.stream', () => {
  it('yields what the generator yields, and holds its lease until the last item is taken', async () => {
    const { manager, held, outcomes } = build();
    const items: number[] = [];
    for await (const item of manager.stream('t1', () => count(3))) {
      items.push(item);
      expect(held()).toEqual(ALL);
    }
    await settled();
    expect(items).toEqual([1, 2, 3]);
    expect(held()).toEqual(NOTHING);
    expect(outcomes).toEqual(['ok']);
  });

  it('holds nothing when it is never iterated', async () => {
    const { manager, held } = build();
    const generator = vi.fn(() => count(3));
    manager.stream('t1', generator);
    await settled();
    expect(held()).toEqual(NOTHING);
    expect(generator).not.toHaveBeenCalled();
    expect(manager.stats().requests).toBe(0);
  });

  it('gives the generator the context of a request', async () => {
    const { manager } = build();
    const stream = manager.stream(
      't1',
      async function* ({ pipeline, signal, taskId, instanceId, requestId }) {
        yield { pipeline, aborted: signal.aborted, taskId, instanceId, hasId: requestId.length > 0 };
      },
    );
    expect((await stream.next()).value).toEqual({
      pipeline: { instanceId: 1 },
      aborted: false,
      taskId: 't1',
      instanceId: 1,
      hasId: true,
    });
    await stream.return?.();
  });

  it('makes an item only when it is asked for', async () => {
    const { manager } = build();
    const log: string[] = [];
    const stream = manager.stream('t1', () => count(3, log));
    await stream.next();
    await settled();
    expect(log).toEqual(['made 1']);
    await stream.next();
    expect(log).toEqual(['made 1', 'made 2']);
    await stream.return?.();
  });

  it('answers calls of next that do not wait for one another in order', async () => {
    const { manager, held } = build();
    const stream = manager.stream('t1', () => count(2));
    const results = await Promise.all([stream.next(), stream.next(), stream.next(), stream.next()]);
    expect(results).toEqual([
      { done: false, value: 1 },
      { done: false, value: 2 },
      { done: true, value: 'end' },
      { done: true, value: undefined },
    ]);
    await settled();
    expect(held()).toEqual(NOTHING);
  });

  it('gives back on break, after the generator has cleaned up', async () => {
    const { manager, held, outcomes } = build();
    const log: string[] = [];
    for await (const _ of manager.stream('t1', () => count(3, log))) break;
    await settled();
    expect(log).toEqual(['made 1', 'cleaned up']);
    expect(held()).toEqual(NOTHING);
    expect(outcomes).toEqual(['ok']);
  });

  it('gives back when the consumer throws', async () => {
    const { manager, held } = build();
    const log: string[] = [];
    const consume = async () => {
      for await (const _ of manager.stream('t1', () => count(3, log))) throw new Error('consumer');
    };
    await expect(consume()).rejects.toThrow('consumer');
    await settled();
    expect(log).toContain('cleaned up');
    expect(held()).toEqual(NOTHING);
  });

  it('gives back when the generator throws, and passes the error on', async () => {
    const { manager, held, outcomes } = build();
    const stream = manager.stream('t1', async function* () {
      yield 1;
      throw new Error('host');
    });
    await stream.next();
    await expect(stream.next()).rejects.toThrow('host');
    await settled();
    expect(held()).toEqual(NOTHING);
    expect(outcomes).toEqual(['failed']);
    await expect(stream.next()).resolves.toEqual({ done: true, value: undefined });
  });

  it('gives back when the function that makes the generator throws, or gives none', async () => {
    const { manager, held } = build();
    const thrown = manager.stream('t1', () => {
      throw new Error('no generator');
    });
    await expect(thrown.next()).rejects.toThrow('no generator');
    await expect(manager.stream('t1', () => undefined as never).next()).rejects.toThrow(TypeError);
    await settled();
    expect(held()).toEqual(NOTHING);
  });

  it('hands a throw of the consumer to the generator', async () => {
    const { manager, held } = build();
    const stream = manager.stream('t1', async function* () {
      try {
        yield 1;
      } catch (error) {
        yield `caught ${(error as Error).message}`;
      }
    });
    await stream.next();
    await expect(stream.throw?.(new Error('it'))).resolves.toEqual({ done: false, value: 'caught it' });
    await expect(stream.next()).resolves.toMatchObject({ done: true });
    await settled();
    expect(held()).toEqual(NOTHING);
  });

  it('rejects the item under way in the step of the abort, and gives back once the generator lets go', async () => {
    const { manager, held, outcomes } = build();
    const controller = new AbortController();
    const stream = manager.stream(
      't1',
      async function* ({ signal }) {
        yield 1;
        await new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)));
      },
      { signal: controller.signal },
    );
    await stream.next();
    const pending = stream.next();
    await settled();
    controller.abort(new Error('client left'));
    await expect(pending).rejects.toThrow('client left');
    await settled();
    expect(held()).toEqual(NOTHING);
    expect(outcomes).toEqual(['aborted']);
  });

  it('gives back on an abort between two items, after the generator has cleaned up', async () => {
    const { manager, held } = build();
    const log: string[] = [];
    const controller = new AbortController();
    const stream = manager.stream('t1', () => count(3, log), { signal: controller.signal });
    await stream.next();
    controller.abort(new Error('client left'));
    await settled();
    expect(log).toEqual(['made 1', 'cleaned up']);
    expect(held()).toEqual(NOTHING);
  });

  it('does not make return wait for an item that never comes', async () => {
    const { manager, held, outcomes, pool } = build({ abortGraceMs: 1_000 });
    const stream = manager.stream('t1', async function* () {
      yield 1;
      await never();
    });
    await stream.next();
    const pending = stream.next();
    await settled();
    await expect(stream.return?.()).resolves.toEqual({ done: true, value: undefined });
    await expect(pending).resolves.toEqual({ done: true, value: undefined });
    expect(held()).toEqual(ALL); // deaf code keeps its instance until its grace is over
    await vi.advanceTimersByTimeAsync(1_000);
    expect(held()).toEqual(NOTHING);
    expect(pool.stats().live).toBe(0);
    expect(outcomes).toEqual(['aborted']);
  });

  it('ends on return even where the generator yields once more in its finally', async () => {
    const { manager, held } = build();
    const stream = manager.stream('t1', async function* () {
      try {
        yield 1;
      } finally {
        yield 2;
      }
    });
    await stream.next();
    await expect(stream.return?.()).resolves.toMatchObject({ done: true });
    await settled();
    expect(held()).toEqual(NOTHING);
  });

  it('takes return and throw before the first item as the end, without beginning', async () => {
    const { manager } = build();
    const generator = vi.fn(() => count(3));
    const left = manager.stream('t1', generator);
    await left.return?.();
    await expect(left.next()).resolves.toEqual({ done: true, value: undefined });
    const thrown = manager.stream('t1', generator);
    await expect(thrown.throw?.(new Error('no'))).rejects.toThrow('no');
    await expect(thrown.next()).resolves.toMatchObject({ done: true });
    expect(generator).not.toHaveBeenCalled();
  });

  it('fails the first next where no instance can be had', async () => {
    const { manager, held, outcomes } = build({
      create: () => {
        throw new Error('no template');
      },
    });
    await expect(manager.stream('t1', () => count(1)).next()).rejects.toMatchObject({
      code: 'ERR_CREATE_FAILED',
    });
    expect(held()).toEqual(NOTHING);
    expect(outcomes).toEqual(['rejected: failed']);
  });

  it('fails the first next after a shutdown', async () => {
    const { manager } = build();
    const stream = manager.stream('t1', () => count(1));
    await manager.shutdown();
    await expect(stream.next()).rejects.toMatchObject({ code: 'ERR_MANAGER_CLOSED' });
  });

  it('refuses wrong arguments at once', () => {
    const { manager } = build();
    expect(() => manager.stream('', () => count(1))).toThrow(/`taskId`/);
    expect(() => manager.stream('t', 5 as never)).toThrow(/`generator`/);
    expect(() => manager.stream('t', () => count(1), { timeout: 1 } as never)).toThrow(
      /Unknown option `timeout`/,
    );
  });

  it('adds no listener for each item', async () => {
    const { manager } = build();
    let inner: AbortSignal | undefined;
    const stream = manager.stream('t1', async function* ({ signal }) {
      inner = signal;
      yield* count(100);
    });
    for (let i = 0; i < 100; i++) await stream.next();
    expect(getEventListeners(inner as AbortSignal, 'abort').length).toBeLessThanOrEqual(1);
    await stream.return?.();
  });
});
