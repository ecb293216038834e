import { AsyncLocalStorage } from 'node:async_hooks';
import { getEventListeners } from 'node:events';
import {
  ConcurrencyLimiter,
  createPipelineManager,
  type GateStats,
  type LifecycleEventName,
  LifecycleHooks,
  ManagerClosedError,
  PipelineManager,
  PipelinePool,
  type PipelinePoolOptions,
  PRESETS,
  RequestTimeoutError,
  ServiceGate,
  type TaskContext,
} from 'pipeline-pool';
import { describe, expect, it, vi } from 'vitest';
import { PER_TURN } from '../../src/internal/clock.js';
import { onFakeTimers, settled } from '../support/fake-timers.js';
import { endOfTurn } from '../support/promises.js';

interface Pipeline {
  readonly instanceId: number;
}

type Events = readonly (readonly [LifecycleEventName, Record<string, unknown>])[];

function build({
  size = 2,
  maxConcurrent = 4,
  requestTimeoutMs,
  abortGraceMs,
  ...callbacks
}: Partial<PipelinePoolOptions<Pipeline>> & {
  maxConcurrent?: number;
  requestTimeoutMs?: number;
  abortGraceMs?: number;
} = {}) {
  const hooks = new LifecycleHooks();
  const events: [LifecycleEventName, Record<string, unknown>][] = [];
  for (const event of [
    'request:queued',
    'request:started',
    'request:finished',
    'request:rejected',
    'instance:destroyed',
  ] as const) {
    hooks.on(event, (payload) => events.push([event, payload as unknown as Record<string, unknown>]));
  }
  const pool = new PipelinePool<Pipeline>({
    size,
    create: ({ instanceId }) => ({ instanceId }),
    ...callbacks,
    hooks,
  });
  const limiter = new ConcurrencyLimiter({ maxConcurrent, hooks });
  const manager = new PipelineManager({ pool, limiter, requestTimeoutMs, abortGraceMs, hooks });
  return { manager, pool, limiter, hooks, events: events as Events };
}

const usage = ({ manager }: ReturnType<typeof build>) => {
  const { active, queued, limiter, pool } = manager.stats();
  return {
    active,
    queued,
    permits: limiter.active,
    queuedPermits: limiter.queued,
    leased: pool.leased,
    queuedForLease: pool.queued,
  };
};
const IDLE = { active: 0, queued: 0, permits: 0, queuedPermits: 0, leased: 0, queuedForLease: 0 };

const untilAborted = (signal: AbortSignal) =>
  new Promise<never>((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)));
const sleep = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, ms));
const never = () => new Promise<never>(() => {});
const payloads = (events: Events, name: LifecycleEventName) =>
  events.filter(([event]) => event === name).map(([, payload]) => payload);

onFakeTimers();

describe('PipelineManager.run', () => {
  it('gives the work an instance, the ids and a signal, and settles with its result', async () => {
    const setup = build();
    const answer = await setup.manager.run('t1', ({ pipeline, signal, taskId, instanceId, requestId }) => {
      expect(pipeline).toEqual({ instanceId: 1 });
      expect(signal.aborted).toBe(false);
      expect({ taskId, instanceId }).toEqual({ taskId: 't1', instanceId: 1 });
      expect(requestId).toMatch(/^[0-9a-f-]{36}$/);
      expect(usage(setup)).toMatchObject({ active: 1, permits: 1, leased: 1 });
      return 'answer';
    });
    expect(answer).toBe('answer');
    await settled();
    expect(usage(setup)).toEqual(IDLE);
  });

  it('runs as many requests at once as there are instances, in the order of arrival', async () => {
    const setup = build({ size: 2, maxConcurrent: 3 });
    const order: string[] = [];
    const release = new Map<string, () => void>();
    const runs = ['a', 'b', 'c', 'd'].map((id) =>
      setup.manager.run(id, () => {
        order.push(id);
        return new Promise<void>((resolve) => release.set(id, resolve));
      }),
    );
    await settled();
    expect(order).toEqual(['a', 'b']);
    expect(usage(setup)).toMatchObject({ active: 3, queued: 1, permits: 3, queuedPermits: 1, leased: 2 });
    release.get('b')?.();
    await settled();
    expect(order).toEqual(['a', 'b', 'c']);
    release.get('a')?.();
    await settled();
    expect(order).toEqual(['a', 'b', 'c', 'd']);
    release.get('c')?.();
    release.get('d')?.();
    await Promise.all(runs);
    await settled();
    expect(usage(setup)).toEqual(IDLE);
  });

  it.each([
    ['rejects', () => Promise.reject(new Error('the host'))],
    [
      'throws synchronously',
      () => {
        throw new Error('the host');
      },
    ],
  ])('releases permit and lease when the work %s', async (_, work) => {
    const setup = build();
    await expect(setup.manager.run('t1', work)).rejects.toThrow('the host');
    await settled();
    expect(usage(setup)).toEqual(IDLE);
    expect(payloads(setup.events, 'request:finished')).toMatchObject([{ taskId: 't1', outcome: 'failed' }]);
  });

  it('holds nothing when creating the instance fails', async () => {
    const setup = build({ create: () => Promise.reject(new Error('no template')) });
    await expect(setup.manager.run('t1', never)).rejects.toMatchObject({ code: 'ERR_CREATE_FAILED' });
    await settled();
    expect(usage(setup)).toEqual(IDLE);
    expect(payloads(setup.events, 'request:rejected')).toMatchObject([{ taskId: 't1', outcome: 'failed' }]);
    expect(payloads(setup.events, 'request:started')).toEqual([]);
  });

  it('releases the instance before the permit, and both before the next request starts', async () => {
    const setup = build({ size: 1, maxConcurrent: 1, reset: () => vi.advanceTimersByTimeAsync(0) });
    const seen: number[] = [];
    await Promise.all(
      ['a', 'b', 'c'].map((id) => setup.manager.run(id, ({ instanceId }) => void seen.push(instanceId))),
    );
    expect(seen).toEqual([1, 1, 1]);
  });

  it('passes task, request and tenant to prepare and reset', async () => {
    const seen: object[] = [];
    const note = (_: unknown, { taskId, requestId, tenant }: TaskContext) =>
      void seen.push({ taskId, requestId, tenant });
    const setup = build({ prepare: note, reset: note });
    const requestId = await setup.manager.run('t1', (request) => request.requestId, { tenant: 'a' });
    await settled();
    expect(seen).toEqual([
      { taskId: 't1', requestId, tenant: 'a' },
      { taskId: 't1', requestId, tenant: 'a' },
    ]);
  });

  it('rejects a wrong task, work or option, naming it', async () => {
    const { manager } = build();
    await expect(manager.run('', never)).rejects.toThrow(/`taskId`/);
    await expect(manager.run('t', 5 as never)).rejects.toThrow(/`work`/);
    await expect(manager.run('t', never, { timeout: 5 } as never)).rejects.toThrow(
      /Unknown option `timeout`/,
    );
    await expect(manager.run('t', never, new AbortController().signal as never)).rejects.toThrow(
      /Unknown option `\w+` in the request/,
    );
    await expect(manager.run('t', never, { timeoutMs: -1 })).rejects.toThrow(/`timeoutMs`.*got -1/);
    await expect(manager.run('t', never, { priority: 0.5 })).rejects.toThrow(/`priority`/);
    await expect(manager.run('t', never, { weight: 5 })).rejects.toThrow(/`weight`/);
  });

  it('keeps the AsyncLocalStorage context of each caller, queued or not', async () => {
    const setup = build({ size: 3, maxConcurrent: 5 });
    const context = new AsyncLocalStorage<number>();
    const mixed: unknown[] = [];
    for (const event of [
      'request:started',
      'request:finished',
      'lease:acquired',
      'permit:acquired',
    ] as const) {
      setup.hooks.on(event, ({ taskId }) => {
        if (String(context.getStore()) !== taskId) mixed.push([event, taskId, context.getStore()]);
      });
    }
    await Promise.all(
      Array.from({ length: 100 }, (_, id) =>
        context.run(id, () =>
          setup.manager.run(String(id), async () => {
            if (context.getStore() !== id) mixed.push(id);
            await settled();
            if (context.getStore() !== id) mixed.push(id);
          }),
        ),
      ),
    );
    expect(mixed).toEqual([]);
  });
});

describe('PipelineManager.run with many queued requests', () => {
  it('lets the event loop turn where each ends within the step, and keeps their order', async () => {
    const setup = build({ size: 1, maxConcurrent: 1 });
    let end = (): void => {};
    const holder = setup.manager.run('holder', () => new Promise<void>((resolve) => (end = resolve)));
    const order: number[] = [];
    const requests = Array.from({ length: 1_000 }, (_, i) =>
      setup.manager.run(`task-${i}`, () => void order.push(i)),
    );
    await settled();
    end();
    const perTurn: number[] = [];
    for (let turn = 0; order.length < 1_000 && turn < 1_000; turn++) {
      const before = order.length;
      await endOfTurn();
      perTurn.push(order.length - before);
    }
    await Promise.all([holder, ...requests]);
    expect(Math.max(...perTurn)).toBeLessThanOrEqual(2 * PER_TURN);
    expect(order).toEqual(Array.from({ length: 1_000 }, (_, i) => i));
    expect(usage(setup)).toEqual(IDLE);
  });
});

describe('PipelineManager.run, ended early', () => {
  it('rejects at once with the reason when the caller aborts, and releases when the work has settled', async () => {
    const setup = build({ abortGraceMs: 1_000 });
    const controller = new AbortController();
    const run = setup.manager.run(
      't1',
      async ({ signal }) => {
        await untilAborted(signal).catch(() => {});
        await vi.advanceTimersByTimeAsync(0);
      },
      { signal: controller.signal },
    );
    await settled();
    const reason = new Error('client left');
    controller.abort(reason);
    await expect(run).rejects.toBe(reason);
    await settled();
    expect(usage(setup)).toEqual(IDLE);
    expect(setup.pool.stats()).toMatchObject({ live: 1, idle: 1 });
    expect(payloads(setup.events, 'request:finished')).toMatchObject([{ outcome: 'aborted' }]);
  });

  it('rejects with RequestTimeoutError at the deadline of the whole request', async () => {
    const setup = build({ requestTimeoutMs: 1_000 });
    const run = setup.manager.run('t1', ({ signal }) => untilAborted(signal));
    const rejection = expect(run).rejects.toBeInstanceOf(RequestTimeoutError);
    await vi.advanceTimersByTimeAsync(999);
    expect(usage(setup)).toMatchObject({ active: 1 });
    await vi.advanceTimersByTimeAsync(1);
    await rejection;
    expect(usage(setup)).toEqual(IDLE);
    expect(payloads(setup.events, 'request:finished')).toMatchObject([{ outcome: 'timeout' }]);
  });

  it('counts queueing into the deadline, and lets a request set its own', async () => {
    const setup = build({ size: 1, requestTimeoutMs: 1_000 });
    void setup.manager
      .run('long', () => vi.advanceTimersByTimeAsync(0).then(never), { timeoutMs: 60_000 })
      .catch(() => {});
    await settled();
    const waiting = setup.manager.run('t2', never);
    const rejection = expect(waiting).rejects.toBeInstanceOf(RequestTimeoutError);
    await vi.advanceTimersByTimeAsync(1_000);
    await rejection;
    expect(payloads(setup.events, 'request:rejected')).toMatchObject([{ taskId: 't2', outcome: 'timeout' }]);
    expect(usage(setup)).toMatchObject({ active: 1, queued: 0, leased: 1 });
  });

  it('keeps lease and permit while code ignores its signal, then destroys the instance after the grace period', async () => {
    const setup = build({ size: 1, abortGraceMs: 5_000 });
    const controller = new AbortController();
    const run = setup.manager.run('deaf', never, { signal: controller.signal });
    const next = setup.manager.run('next', ({ instanceId }) => instanceId);
    await settled();
    controller.abort(new Error('client left'));
    await expect(run).rejects.toThrow('client left');
    await vi.advanceTimersByTimeAsync(4_999);
    expect(usage(setup)).toMatchObject({ active: 2, leased: 1 });
    await vi.advanceTimersByTimeAsync(1);
    await expect(next).resolves.toBe(2);
    expect(payloads(setup.events, 'instance:destroyed')).toMatchObject([
      { instanceId: 1, reason: 'discarded' },
    ]);
    await settled();
    expect(usage(setup)).toEqual(IDLE);
  });

  it('passes the instance on as soon as slow code settles within its grace period', async () => {
    const setup = build({ size: 1, abortGraceMs: 5_000 });
    const controller = new AbortController();
    let settle = () => {};
    const work = () =>
      new Promise<void>((resolve) => {
        settle = resolve;
      });
    const run = setup.manager.run('slow', work, { signal: controller.signal });
    const next = setup.manager.run('next', ({ instanceId }) => instanceId);
    await settled();
    controller.abort(new Error('client left'));
    await expect(run).rejects.toThrow('client left');
    await vi.advanceTimersByTimeAsync(2_000);
    settle();
    await expect(next).resolves.toBe(1);
  });

  it('never begins the work of a request that was aborted while queued', async () => {
    const setup = build();
    const work = vi.fn();
    const signal = AbortSignal.abort(new Error('gone already'));
    await expect(setup.manager.run('t1', work, { signal })).rejects.toThrow('gone already');
    expect(work).not.toHaveBeenCalled();
    expect(usage(setup)).toEqual(IDLE);
    expect(payloads(setup.events, 'request:rejected')).toMatchObject([{ outcome: 'aborted' }]);
  });

  it('releases everything for an abort at every microtask of a request', async () => {
    let began = 0;
    for (let k = 0; k < 60; k++) {
      const setup = build({ size: 1, prepare: async () => {}, reset: async () => {} });
      const controller = new AbortController();
      const run = setup.manager
        .run('t1', async () => void began++, { signal: controller.signal })
        .catch(() => {});
      for (let i = 0; i < k; i++) await Promise.resolve();
      controller.abort(new Error(`at ${k}`));
      await run;
      await settled();
      expect(usage(setup), `abort at microtask ${k}`).toEqual(IDLE);
      expect(setup.pool.stats().live, `abort at microtask ${k}`).toBe(setup.pool.stats().idle);
      await expect(setup.manager.run('t2', ({ taskId }) => taskId)).resolves.toBe('t2');
    }
    expect(began).toBeGreaterThan(0);
    expect(began).toBeLessThan(60);
  });

  it('rejects with LeaseRevokedError when the lease is revoked', async () => {
    const setup = build({ maxLeaseMs: 1_000 });
    const run = setup.manager.run('t1', ({ signal }) => untilAborted(signal));
    const rejection = expect(run).rejects.toMatchObject({ code: 'ERR_LEASE_REVOKED' });
    await vi.advanceTimersByTimeAsync(1_000);
    await rejection;
    await settled();
    expect(usage(setup)).toEqual(IDLE);
    expect(payloads(setup.events, 'request:finished')).toMatchObject([{ outcome: 'revoked' }]);
  });

  it('leaves no listener on a signal that outlives its requests', async () => {
    const setup = build();
    const { signal } = new AbortController();
    await Promise.all(
      ['a', 'b', 'c', 'd', 'e'].map((id) => setup.manager.run(id, () => settled(), { signal })),
    );
    await settled();
    expect(getEventListeners(signal, 'abort')).toEqual([]);
    await setup.manager.shutdown();
    expect(vi.getTimerCount()).toBe(0);
  });
});

describe("the signal of a request's code", () => {
  it.each([
    ['resolves', async () => 1],
    ['rejects', () => Promise.reject(new Error('no'))],
  ])('aborts when the work %s, before the instance is returned', async (_, work) => {
    const { manager, pool } = build({ size: 1 });
    let leased: number | undefined;
    let inner: AbortSignal | undefined;
    await manager
      .run('t1', ({ signal }) => {
        inner = signal;
        signal.addEventListener('abort', () => {
          leased = pool.stats().leased;
        });
        return work();
      })
      .catch(() => {});
    expect(inner?.reason).toMatchObject({ name: 'AbortError', message: 'The request is over' });
    expect(leased).toBe(1);
  });

  it('aborts when a stream ends, by its last item or by break', async () => {
    const { manager } = build();
    const signals: AbortSignal[] = [];
    const items = async function* ({ signal }: { signal: AbortSignal }) {
      signals.push(signal);
      yield 1;
      yield 2;
    };
    for await (const _ of manager.stream('t1', items));
    for await (const _ of manager.stream('t2', items)) break;
    await settled();
    expect(signals.map(({ aborted }) => aborted)).toEqual([true, true]);
  });

  it('ends work that the code left running, and with it its permit of a gate', async () => {
    const { manager } = build();
    const gate = new ServiceGate({ name: 'llm', maxConcurrent: 1 });
    let left: Promise<unknown> | undefined;
    await manager.run('t1', ({ signal }) => {
      left = gate.run(({ signal: own }) => untilAborted(own), { signal });
      left.catch(() => {});
    });
    await expect(left).rejects.toThrow('The request is over');
    await expect(gate.run(() => 'free')).resolves.toBe('free');
    expect(gate.stats().running).toBe(0);
  });

  it('counts as a normal end: the instance is kept, without a grace period', async () => {
    const setup = build({ size: 1, abortGraceMs: 5_000 });
    await setup.manager.run('t1', ({ signal }) => {
      untilAborted(signal).catch(() => {});
    });
    await settled();
    expect(usage(setup)).toEqual(IDLE);
    expect(setup.pool.stats()).toMatchObject({ live: 1, idle: 1 });
    expect(payloads(setup.events, 'request:finished')).toMatchObject([{ outcome: 'ok' }]);
  });
});

describe('PipelineManager.requests', () => {
  it('lists the current requests, with state, age and what a queued one waits for', async () => {
    const setup = build({ size: 1, maxConcurrent: 2 });
    const ends = ['a', 'b', 'c'].map((id) =>
      setup.manager.run(id, ({ signal }) => untilAborted(signal), { timeoutMs: 9_000, tenant: `of ${id}` }),
    );
    const ended = Promise.allSettled(ends);
    await vi.advanceTimersByTimeAsync(1_000);
    const requestId = expect.stringMatching(/^[0-9a-f-]{36}$/);
    expect(setup.manager.requests()).toEqual([
      { taskId: 'a', requestId, tenant: 'of a', state: 'running', instanceId: 1, ageMs: 1_000, waitMs: 0 },
      {
        taskId: 'b',
        requestId,
        tenant: 'of b',
        state: 'queued',
        waitsFor: 'instance',
        position: 1,
        estimatedWaitMs: 1_000,
        ageMs: 1_000,
        waitMs: 1_000,
      },
      {
        taskId: 'c',
        requestId,
        tenant: 'of c',
        state: 'queued',
        waitsFor: 'permit',
        position: 1,
        estimatedWaitMs: 1_000,
        ageMs: 1_000,
        waitMs: 1_000,
      },
    ]);
    await vi.advanceTimersByTimeAsync(9_000);
    await ended;
    expect(setup.manager.requests()).toEqual([]);
  });

  it('says where each queued request stands, as long as it waits', async () => {
    const { manager } = build({ size: 1, maxConcurrent: 1 });
    const positions = () => manager.requests().map(({ taskId, position }) => [taskId, position]);
    const abort = new AbortController();
    const ends = [];
    for (const taskId of ['a', 'b', 'c', 'd', 'e'])
      ends.push(
        manager.run(taskId, () => sleep(100), {
          priority: taskId === 'e' ? 1 : 0,
          signal: taskId === 'c' ? abort.signal : undefined,
        }),
      );
    const ended = Promise.allSettled(ends);
    await settled();
    expect(positions()).toEqual([
      ['a', undefined],
      ['b', 2],
      ['c', 3],
      ['d', 4],
      ['e', 1],
    ]);
    abort.abort();
    expect(manager.requests().find(({ taskId }) => taskId === 'c')).not.toHaveProperty('position');
    await vi.advanceTimersByTimeAsync(100);
    expect(positions()).toEqual([
      ['b', 1],
      ['d', 2],
      ['e', undefined],
    ]);
    const [next, , running] = manager.requests();
    expect(next?.estimatedWaitMs).toBeGreaterThan(0);
    expect(running?.estimatedWaitMs).toBeUndefined();
    await vi.advanceTimersByTimeAsync(1_000);
    await ended;
  });

  it('says where each request stands that waits for an instance, and no longer once one is prepared for it', async () => {
    const { manager } = build({ size: 1, maxConcurrent: 4, prepare: () => sleep(50) });
    const ends = ['a', 'b', 'c'].map((taskId) => manager.run(taskId, () => sleep(100)));
    await vi.advanceTimersByTimeAsync(60);
    expect(manager.requests()).toMatchObject([
      { state: 'running' },
      { waitsFor: 'instance', position: 1 },
      { waitsFor: 'instance', position: 2 },
    ]);
    await vi.advanceTimersByTimeAsync(100);
    const [preparing, next] = manager.requests();
    expect(preparing).toMatchObject({ waitsFor: 'instance' });
    expect(preparing).not.toHaveProperty('position');
    expect(next).toMatchObject({ waitsFor: 'instance', position: 1 });
    await vi.advanceTimersByTimeAsync(1_000);
    await Promise.all(ends);
  });

  it('lists a leased pipeline until its release', async () => {
    const { manager } = build();
    const lease = await manager.acquirePipeline('t1');
    expect(manager.requests()).toMatchObject([{ taskId: 't1', state: 'running', instanceId: 1 }]);
    await lease.release();
    await settled();
    expect(manager.requests()).toEqual([]);
  });
});

describe('PipelineManager.acquirePipeline', () => {
  it('works in a try/finally block', async () => {
    const setup = build();
    const lease = await setup.manager.acquirePipeline('t1');
    try {
      expect(lease.pipeline.instanceId).toBe(1);
      expect(lease.taskId).toBe('t1');
      expect(usage(setup)).toMatchObject({ active: 1, permits: 1, leased: 1 });
    } finally {
      await setup.manager.releasePipeline(lease);
    }
    await settled();
    expect(usage(setup)).toEqual(IDLE);
    expect(payloads(setup.events, 'request:finished')).toMatchObject([
      { taskId: 't1', instanceId: 1, outcome: 'ok' },
    ]);
  });

  it.each([
    ['released by the lease', (lease: { release(): Promise<void> }) => lease.release()],
    ['disposed of', (lease: AsyncDisposable) => lease[Symbol.asyncDispose]()],
    ['discarded', (lease: { release(o: object): Promise<void> }) => lease.release({ discard: true })],
  ])('frees the permit of a lease that is %s, once', async (_, end) => {
    const setup = build({ maxConcurrent: 1 });
    const lease = await setup.manager.acquirePipeline('t1');
    await end(lease);
    await end(lease);
    await setup.manager.releasePipeline(lease);
    await settled();
    expect(usage(setup)).toEqual(IDLE);
    const next = await setup.manager.acquirePipeline('t2');
    await end(lease);
    await settled();
    expect(usage(setup)).toMatchObject({ active: 1, permits: 1, leased: 1 });
    await next.release();
  });

  it('frees the permit of a revoked lease', async () => {
    const setup = build({ maxLeaseMs: 1_000 });
    const lease = await setup.manager.acquirePipeline('t1');
    await vi.advanceTimersByTimeAsync(1_000);
    expect(() => lease.pipeline).toThrow(expect.objectContaining({ code: 'ERR_LEASE_REVOKED' }));
    expect(usage(setup)).toEqual(IDLE);
    expect(payloads(setup.events, 'request:finished')).toMatchObject([{ outcome: 'revoked' }]);
  });

  it('leaves nothing to release where it was rejected', async () => {
    const setup = build();
    await setup.manager.shutdown();
    const work = async () => {
      let lease: Awaited<ReturnType<typeof setup.manager.acquirePipeline>> | undefined;
      try {
        lease = await setup.manager.acquirePipeline('t1');
      } finally {
        await setup.manager.releasePipeline(lease);
      }
    };
    await expect(work()).rejects.toMatchObject({ code: 'ERR_MANAGER_CLOSED' });
    await expect(setup.manager.releasePipeline(null)).resolves.toBeUndefined();
  });

  it('is not bounded by its timeoutMs once it has the lease', async () => {
    const setup = build();
    const lease = await setup.manager.acquirePipeline('t1', { timeoutMs: 1_000 });
    await vi.advanceTimersByTimeAsync(5_000);
    expect(lease.signal.aborted).toBe(false);
    expect(lease.pipeline.instanceId).toBe(1);
    await lease.release();
  });
});

describe('PipelineManager.shutdown', () => {
  it('rejects new requests, serves those it has, and closes pool and limiter', async () => {
    const setup = build({ size: 1 });
    let finish = () => {};
    const running = setup.manager.run(
      'a',
      () =>
        new Promise<string>((resolve) => {
          finish = () => resolve('a');
        }),
    );
    const waiting = setup.manager.run('b', () => 'b');
    await settled();
    const shutdown = setup.manager.shutdown();
    await expect(setup.manager.run('c', never)).rejects.toBeInstanceOf(ManagerClosedError);
    await expect(setup.manager.acquirePipeline('c')).rejects.toBeInstanceOf(ManagerClosedError);
    await expect(setup.manager.warmUp()).rejects.toBeInstanceOf(ManagerClosedError);
    expect(setup.manager.health().status).toBe('draining');
    finish();
    await expect(Promise.all([running, waiting])).resolves.toEqual(['a', 'b']);
    await shutdown;
    expect(setup.pool.stats().live).toBe(0);
    await expect(setup.pool.acquire()).rejects.toMatchObject({ code: 'ERR_POOL_CLOSED' });
    await expect(setup.limiter.acquire()).rejects.toMatchObject({ code: 'ERR_LIMITER_CLOSED' });
  });

  it('aborts the remaining requests at its deadline, queued or running', async () => {
    const setup = build({ size: 1 });
    const running = setup.manager.run('a', ({ signal }) => untilAborted(signal));
    const waiting = setup.manager.run('b', never);
    const rejections = [
      expect(running).rejects.toThrow('manager is shut down and has aborted this request'),
      expect(waiting).rejects.toBeInstanceOf(ManagerClosedError),
    ];
    await settled();
    const shutdown = setup.manager.shutdown({ timeoutMs: 2_000 });
    await vi.advanceTimersByTimeAsync(2_000);
    await Promise.all(rejections);
    await vi.advanceTimersByTimeAsync(0);
    await shutdown;
    expect(usage(setup)).toEqual(IDLE);
    expect(payloads(setup.events, 'request:finished')).toMatchObject([{ taskId: 'a', outcome: 'shutdown' }]);
    expect(payloads(setup.events, 'request:rejected')).toMatchObject([{ taskId: 'b', outcome: 'shutdown' }]);
  });

  it('ends even if the host holds a lease forever, or its code never settles', async () => {
    const setup = build({ abortGraceMs: 1_000 });
    const lease = await setup.manager.acquirePipeline('held');
    const deaf = expect(setup.manager.run('deaf', never)).rejects.toBeInstanceOf(ManagerClosedError);
    await settled();
    const shutdown = setup.manager.shutdown({ timeoutMs: 100 });
    await vi.advanceTimersByTimeAsync(100);
    await deaf;
    expect(lease.signal.aborted).toBe(true);
    await vi.advanceTimersByTimeAsync(1_000);
    await shutdown;
    expect(usage(setup)).toEqual(IDLE);
    expect(setup.pool.stats().live).toBe(0);
  });

  it('may be called twice, the second with an earlier deadline', async () => {
    const setup = build();
    const running = expect(
      setup.manager.run('a', ({ signal }) => untilAborted(signal)),
    ).rejects.toBeInstanceOf(ManagerClosedError);
    await settled();
    const patient = setup.manager.shutdown();
    const hasty = setup.manager.shutdown({ timeoutMs: 50 });
    await vi.advanceTimersByTimeAsync(50);
    await running;
    await Promise.all([patient, hasty]);
    await setup.manager.shutdown();
  });

  it('happens at the end of an `await using` block', async () => {
    const setup = build();
    {
      await using manager = setup.manager;
      await manager.run('a', () => 1);
    }
    await expect(setup.manager.run('b', never)).rejects.toBeInstanceOf(ManagerClosedError);
  });
});

describe('PipelineManager', () => {
  it('creates the `min` instances on warmUp', async () => {
    const setup = build({ size: 3, min: 2 });
    await setup.manager.warmUp();
    expect(setup.pool.stats()).toMatchObject({ live: 2, idle: 2 });
  });

  it('has a health check with at least status, active requests and pool size, in this order', async () => {
    const setup = build({ size: 5, maxConcurrent: 10 });
    const runs = ['a', 'b', 'c'].map((id) =>
      setup.manager.run(id, ({ signal }) => untilAborted(signal), { timeoutMs: 9_000 }),
    );
    await settled();
    const { status, active_requests, pool_size } = setup.manager.health();
    expect(JSON.stringify({ status, active_requests, pool_size })).toBe(
      '{"status":"healthy","active_requests":3,"pool_size":5}',
    );
    expect(JSON.stringify(setup.manager.health())).toMatch(
      /^\{"status":"healthy","active_requests":3,"pool_size":5,/,
    );
    const ends = Promise.allSettled(runs);
    await vi.advanceTimersByTimeAsync(9_000);
    await ends;
  });

  it('rejects wrong options, naming them', () => {
    const { pool, limiter } = build();
    expect(() => new PipelineManager({ pool, limiter, retries: 3 } as never)).toThrow(
      /Unknown option `retries`/,
    );
    expect(() => new PipelineManager({ limiter } as never)).toThrow(/`pool`/);
    expect(() => new PipelineManager({ pool } as never)).toThrow(/`limiter`/);
    expect(() => new PipelineManager({ pool, limiter, abortGraceMs: -5 })).toThrow(/`abortGraceMs`.*got -5/);
    expect(() => new PipelineManager({ pool, limiter, requestTimeoutMs: 0 })).toThrow(/`requestTimeoutMs`/);
    expect(() => new PipelineManager({ pool, limiter, hooks: {} as never })).toThrow(/`hooks`/);
    for (const gates of [{}, [{}], [undefined]])
      expect(() => new PipelineManager({ pool, limiter, gates: gates as never })).toThrow(
        /an array of gates/,
      );
    const gate = () => ({ name: 'llm', stats: () => ({}) as GateStats, close: () => {} });
    expect(() => new PipelineManager({ pool, limiter, gates: [gate(), gate()] })).toThrow(
      'Expected `gates` to have names of their own, got "llm" twice',
    );
  });

  it('counts requests in its stats, and includes those of its gates by name', async () => {
    const { pool, limiter } = build();
    const closed: string[] = [];
    const gate = (name: string) => ({
      name,
      stats: () => ({ calls: 7 }) as GateStats,
      close: () => void closed.push(name),
    });
    const manager = new PipelineManager({ pool, limiter, gates: [gate('llm'), gate('search')] });
    await manager.run('a', () => 1);
    expect(manager.stats()).toMatchObject({
      requests: 1,
      gates: { llm: { calls: 7 }, search: { calls: 7 } },
    });
    await manager.shutdown();
    expect(closed).toEqual(['llm', 'search']);
  });
});

describe('createPipelineManager', () => {
  it.each([
    ['size', 'poolSize'],
    ['poolSize', 'poolSize'],
    ['maxQueue', 'maxQueue'],
    ['abortGraceMs', 'abortGraceMs'],
  ])('rejects `%s` beside `config`, where the pool would take it for its own', (option, setting) => {
    const options = { create: () => ({}), [option]: 3 };
    expect(() => createPipelineManager(options as never)).toThrow(
      new TypeError(`Set \`${setting}\` in \`config\`, not beside it`),
    );
  });

  it('builds pool, limiter and manager from one configuration, with one set of hooks', async () => {
    const manager = createPipelineManager({
      config: PRESETS.light,
      create: ({ instanceId }) => ({ instanceId }),
    });
    expect(manager.stats()).toMatchObject({ pool: { size: 3 }, limiter: { maxConcurrent: 5 } });
    expect(manager.pool.hooks).toBe(manager.hooks);
    expect((manager.limiter as ConcurrencyLimiter).hooks).toBe(manager.hooks);
    await expect(manager.run('t1', ({ pipeline }) => pipeline.instanceId)).resolves.toBe(1);
  });

  it('completes a configuration from the environment', () => {
    vi.stubEnv('MAX_CONCURRENT_REQUESTS', '7');
    vi.stubEnv('PIPELINE_POOL_SIZE', 'five');
    try {
      const manager = createPipelineManager({ config: { poolSize: 3 }, create: () => 1 });
      expect(manager.stats()).toMatchObject({ pool: { size: 3 }, limiter: { maxConcurrent: 7 } });
    } finally {
      vi.unstubAllEnvs();
    }
  });

  it('admits with the limiter that it is given', () => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 2 });
    const manager = createPipelineManager({ limiter, create: () => 1 });
    expect(manager.limiter).toBe(limiter);
  });

  it('reads the environment where no configuration is given, and names a wrong variable', () => {
    vi.stubEnv('PIPELINE_POOL_SIZE', 'five');
    try {
      expect(() => createPipelineManager({ create: () => 1 })).toThrow(/PIPELINE_POOL_SIZE.*"five"/);
    } finally {
      vi.unstubAllEnvs();
    }
  });

  it('rejects a wrong configuration or option', () => {
    expect(() =>
      createPipelineManager({ config: { poolSize: 0, maxConcurrentRequests: 1 }, create: () => 1 }),
    ).toThrow(/`poolSize`/);
    expect(() => createPipelineManager({ config: PRESETS.light, creat: () => 1 } as never)).toThrow(
      /`creat`/,
    );
  });
});
