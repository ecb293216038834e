import {
  ConcurrencyLimiter,
  createPipelineManager,
  LifecycleHooks,
  PipelineManager,
  PipelinePool,
  ServiceGate,
} from 'pipeline-pool';
import { ScriptedFactory } from 'pipeline-pool/testing';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { type HealthFigures, healthOf } from '../../src/manager/health.js';

const gate = (name: string) => new ServiceGate({ name, keys: ['key-one'] });
const refused = (status: number) => async () => {
  throw Object.assign(new Error(`refused with ${status}`), { status });
};
const never = () => new Promise<never>(() => {});

describe('healthOf', () => {
  const atEase: HealthFigures = {
    stopping: false,
    activeRequests: 3,
    waitingRequests: 0,
    longestWaitMs: 0,
    failedCreations: 0,
    uptimeMs: 61_999,
    limiter: { maxConcurrent: 10, paused: false, closed: false },
    pool: {
      size: 5,
      live: 4,
      idle: 1,
      creating: 0,
      destroying: 0,
      leased: 3,
      waiting: 0,
      state: 'open',
    },
    gates: [],
  };
  const statusOf = (figures: Partial<HealthFigures>) => {
    const { status, reasons } = healthOf({ ...atEase, ...figures });
    return { status, reasons };
  };

  it('begins on the wire with status, active_requests and pool_size', () => {
    const { status, active_requests, pool_size } = healthOf(atEase);
    expect(JSON.stringify({ status, active_requests, pool_size })).toBe(
      '{"status":"healthy","active_requests":3,"pool_size":5}',
    );
    expect(JSON.stringify(healthOf(atEase))).toMatch(
      /^\{"status":"healthy","active_requests":3,"pool_size":5,/,
    );
  });

  it('tells every figure under its name on the wire', () => {
    expect(healthOf({ ...atEase, waitingRequests: 2 })).toEqual({
      status: 'healthy',
      active_requests: 3,
      pool_size: 5,
      max_concurrent_requests: 10,
      queued_requests: 2,
      live_instances: 4,
      idle_instances: 1,
      creating_instances: 0,
      gates_in_cooldown: [],
      gates_without_keys: [],
      uptime_seconds: 61,
      reasons: [],
    });
  });

  it('is healthy while requests wait for less than a minute', () => {
    expect(statusOf({ waitingRequests: 7, longestWaitMs: 59_999 }).status).toBe('healthy');
  });

  it('is degraded once a request has waited for a minute, and says how busy it is', () => {
    const pool = { ...atEase.pool, leased: 5, waiting: 4 };
    expect(statusOf({ activeRequests: 9, waitingRequests: 2, longestWaitMs: 60_000, pool })).toEqual({
      status: 'degraded',
      reasons: [
        'A request has waited 60 s to begin (9 of 10 requests admitted, 5 of 5 instances leased, 6 waiting)',
      ],
    });
  });

  it('takes two failed creations for an accident, and three for a fault', () => {
    expect(statusOf({ failedCreations: 2 }).status).toBe('healthy');
    expect(statusOf({ failedCreations: 3 })).toEqual({
      status: 'degraded',
      reasons: ['The last 3 creations of an instance failed; 4 of 5 instances are left'],
    });
  });

  it('is unhealthy when creations fail and no instance is left, not counting those that come or go', () => {
    const pool = { ...atEase.pool, live: 2, creating: 1, destroying: 1, idle: 0, leased: 0 };
    expect(statusOf({ failedCreations: 3, pool })).toEqual({
      status: 'unhealthy',
      reasons: ['The last 3 creations of an instance failed, and no instance is left'],
    });
  });

  it('is unhealthy when pool or limiter were closed without a shutdown', () => {
    expect(statusOf({ pool: { ...atEase.pool, state: 'closed' } })).toEqual({
      status: 'unhealthy',
      reasons: ['The pool is closed and gives no further leases'],
    });
    expect(statusOf({ limiter: { maxConcurrent: 10, paused: false, closed: true } })).toEqual({
      status: 'unhealthy',
      reasons: ['The limiter is closed and admits nobody'],
    });
  });

  it('is degraded while the limiter is paused', () => {
    expect(statusOf({ limiter: { maxConcurrent: 10, paused: true, closed: false } })).toEqual({
      status: 'degraded',
      reasons: ['The limiter is paused and admits nobody until it resumes'],
    });
  });

  it('is draining from the beginning of a shutdown to its end, whatever else is the matter', () => {
    const pool = { ...atEase.pool, live: 0, state: 'closed' } as const;
    expect(statusOf({ stopping: true, failedCreations: 3, pool })).toEqual({
      status: 'draining',
      reasons: [
        'Shutting down: no further requests are taken',
        'The last 3 creations of an instance failed, and no instance is left',
      ],
    });
  });

  it('names the worst of several troubles as the status, and gives all reasons', () => {
    const pool = { ...atEase.pool, live: 0, idle: 0, leased: 0 };
    const { status, reasons } = statusOf({ failedCreations: 4, longestWaitMs: 90_000, pool });
    expect(status).toBe('unhealthy');
    expect(reasons).toHaveLength(2);
  });

  it('is degraded by a gate whose only key is refused, and names it', async () => {
    const serper = gate('serper');
    await expect(serper.run(refused(401))).rejects.toThrow();
    const health = healthOf({ ...atEase, gates: [serper.stats()] });
    expect(health.status).toBe('degraded');
    expect(health.gates_without_keys).toEqual(['serper']);
    expect(health.gates_in_cooldown).toEqual([]);
    expect(health.reasons).toEqual(['Every key of serper is refused or spent: its calls fail']);
  });

  it('stays healthy while one of several keys is left', async () => {
    const serper = new ServiceGate({ name: 'serper', keys: ['one', 'two'] });
    let calls = 0;
    await serper.run(async () => {
      if (calls++ === 0) await refused(401)();
    });
    expect(serper.stats().keys.map(({ state }) => state)).toContain('dead');
    expect(healthOf({ ...atEase, gates: [serper.stats()] }).status).toBe('healthy');
  });

  it('tells of a gate in cool-down without calling that a trouble', async () => {
    const jina = new ServiceGate({ name: 'jina', retry: { attempts: 1 } });
    await expect(jina.run(refused(429))).rejects.toThrow();
    const health = healthOf({ ...atEase, gates: [jina.stats(), gate('serper').stats()] });
    expect(health.status).toBe('healthy');
    expect(health.gates_in_cooldown).toEqual(['jina']);
  });
});

describe('PipelineManager.health', () => {
  beforeEach(() => {
    vi.useFakeTimers();
  });
  afterEach(() => {
    vi.useRealTimers();
  });

  function build({ size = 1, maxConcurrent = 2 } = {}) {
    const factory = new ScriptedFactory();
    const pool = new PipelinePool({ size, ...factory.callbacks, createRetry: { baseMs: 10, maxMs: 10 } });
    const limiter = new ConcurrencyLimiter({ maxConcurrent });
    const manager = new PipelineManager({ pool, limiter });
    return { factory, pool, limiter, manager };
  }

  it('counts admitted and queued requests, instances and gates', async () => {
    const manager = createPipelineManager({
      config: { poolSize: 1, maxConcurrentRequests: 2 },
      create: () => ({}),
      gates: [gate('serper'), { name: 'own', stats: () => 'whatever it counts', close: () => {} }],
    });
    for (const id of ['a', 'b', 'c']) manager.run(id, never).catch(() => {});
    await vi.advanceTimersByTimeAsync(2_500);
    expect(manager.health()).toEqual({
      status: 'healthy',
      active_requests: 2,
      pool_size: 1,
      max_concurrent_requests: 2,
      queued_requests: 1,
      live_instances: 1,
      idle_instances: 0,
      creating_instances: 0,
      gates_in_cooldown: [],
      gates_without_keys: [],
      uptime_seconds: 2,
      reasons: [],
    });
  });

  it('becomes degraded when requests wait for long, and healthy again when they begin', async () => {
    const { manager } = build();
    expect(manager.health().status).toBe('healthy');
    let finish = (): void => {};
    const first = manager.run('a', () => new Promise<void>((resolve) => (finish = resolve)));
    const second = manager.run('b', () => {});
    await vi.advanceTimersByTimeAsync(60_000);
    expect(manager.health().reasons).toEqual([
      'A request has waited 60 s to begin (2 of 2 requests admitted, 1 of 1 instances leased, 1 waiting)',
    ]);
    finish();
    await Promise.all([first, second]);
    expect(manager.health().status).toBe('healthy');
  });

  it('forgets the wait of a request that was turned away', async () => {
    const { manager } = build();
    manager.health();
    manager.run('a', never).catch(() => {});
    const impatient = manager.run('b', never, { timeoutMs: 70_000 });
    impatient.catch(() => {});
    await vi.advanceTimersByTimeAsync(65_000);
    expect(manager.health().status).toBe('degraded');
    await vi.advanceTimersByTimeAsync(5_000);
    await expect(impatient).rejects.toThrow();
    expect(manager.health().status).toBe('healthy');
  });

  it('looks at its own requests alone where managers share hooks', async () => {
    const hooks = new LifecycleHooks();
    const named = (name: string) =>
      new PipelineManager({
        name,
        hooks,
        pool: new PipelinePool({ name: `${name}-pool`, size: 1, create: () => ({}), hooks }),
        limiter: new ConcurrencyLimiter({ maxConcurrent: 1 }),
      });
    const [busy, quiet] = [named('busy'), named('quiet')];
    busy.health();
    quiet.health();
    for (const id of ['a', 'b']) busy.run(id, never).catch(() => {});
    await vi.advanceTimersByTimeAsync(60_000);
    expect(busy.health().status).toBe('degraded');
    expect(quiet.health().status).toBe('healthy');
  });

  it('is unhealthy while every creation fails, and recovers with the first that succeeds', async () => {
    const { manager, factory } = build();
    manager.health();
    factory.next('create', { does: 'rejects' }, { does: 'rejects' }, { does: 'rejects' });
    for (const id of ['a', 'b', 'c']) {
      await Promise.all([
        expect(manager.run(id, () => {})).rejects.toThrow(),
        vi.advanceTimersByTimeAsync(100),
      ]);
    }
    expect(manager.health()).toMatchObject({
      status: 'unhealthy',
      reasons: ['The last 3 creations of an instance failed, and no instance is left'],
    });
    await Promise.all([manager.run('d', () => {}), vi.advanceTimersByTimeAsync(100)]);
    expect(manager.health().status).toBe('healthy');
  });

  it('is draining from the step in which shutdown is called', async () => {
    const { manager } = build();
    const done = manager.shutdown();
    expect(manager.health().status).toBe('draining');
    await done;
    expect(manager.health().status).toBe('draining');
  });

  it('listens to nothing before the first health check', () => {
    const { manager, pool } = build();
    const listeners = () => [
      manager.hooks.listenerCount('request:queued'),
      pool.hooks.listenerCount('instance:createFailed'),
    ];
    expect(listeners()).toEqual([0, 0]);
    manager.health();
    manager.health();
    expect(listeners()).toEqual([1, 1]);
  });
});
