import {
  ConcurrencyLimiter,
  createPipelineManager,
  LifecycleHooks,
  PipelineManager,
  PipelinePool,
  ServiceGate,
} from 'pipeline-pool';
import { ScriptedFactory } from 'pipeline-pool/testing';
import { describe, expect, it, vi } from 'vitest';
import { type HealthFigures, healthOf } from '../../src/manager/health.js';
import { onFakeTimers } from '../support/fake-timers.js';
import { fleetStats } from '../support/fleet-stats.js';

const gate = (name: string) => new ServiceGate({ name, keys: ['key-one'] });
const refused = (status: number) => async () => {
  throw Object.assign(new Error(`refused with ${status}`), { status });
};
const never = () => new Promise<never>(() => {});

describe('healthOf', () => {
  const healthy: HealthFigures = {
    stopping: false,
    activeRequests: 3,
    queuedRequests: 0,
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
      queued: 0,
      state: 'open',
    },
    gates: [],
  };
  const statusOf = (figures: Partial<HealthFigures>) => {
    const { status, reasons } = healthOf({ ...healthy, ...figures });
    return { status, reasons };
  };

  it('is degraded while the server of a shared limit cannot be reached', () => {
    const fleet = fleetStats({ available: false });
    const limiter = { ...healthy.limiter, fleet };
    const stats = { ...gate('serper').stats(), limiter: limiter as never };
    expect(statusOf({ limiter, gates: [stats] })).toEqual({
      status: 'degraded',
      reasons: [
        'The server of the shared request limit cannot be reached',
        'The server of the shared limits of serper cannot be reached',
      ],
    });
  });

  it('is degraded while a gate without a limit of concurrency cannot reach its shared limits', async () => {
    const starts = { fleet: { available: false }, freeOf: () => 1 };
    const limits = { name: 'limits', gate: () => ({ limiter: undefined, starts, close: async () => {} }) };
    const shared = new ServiceGate({ name: 'serper', limits: limits as never });
    expect(statusOf({ gates: [shared.stats()] })).toEqual({
      status: 'degraded',
      reasons: ['The server of the shared limits of serper cannot be reached'],
    });
    starts.fleet.available = true;
    expect(statusOf({ gates: [shared.stats()] }).status).toBe('healthy');
  });

  it('has the figures of all processes that share the limit of requests, next to its own', () => {
    const fleet = fleetStats();
    const health = healthOf({ ...healthy, limiter: { ...healthy.limiter, fleet } });
    expect(health).toMatchObject({ status: 'healthy', active_requests: 3, fleet });
    expect(healthOf(healthy)).not.toHaveProperty('fleet');
  });

  it('begins with status, active_requests and pool_size in JSON', () => {
    const { status, active_requests, pool_size } = healthOf(healthy);
    expect(JSON.stringify({ status, active_requests, pool_size })).toBe(
      '{"status":"healthy","active_requests":3,"pool_size":5}',
    );
    expect(JSON.stringify(healthOf(healthy))).toMatch(
      /^\{"status":"healthy","active_requests":3,"pool_size":5,/,
    );
  });

  it('includes every figure under its JSON name', () => {
    expect(healthOf({ ...healthy, queuedRequests: 2 })).toEqual({
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
    expect(statusOf({ queuedRequests: 7, longestWaitMs: 59_999 }).status).toBe('healthy');
  });

  it('is degraded once a request has waited for a minute, and says how busy it is', () => {
    const pool = { ...healthy.pool, leased: 5, queued: 4 };
    expect(statusOf({ activeRequests: 9, queuedRequests: 2, longestWaitMs: 60_000, pool })).toEqual({
      status: 'degraded',
      reasons: [
        'A request has waited 60 s to begin (9 of 10 requests admitted, 5 of 5 instances leased, 6 queued)',
      ],
    });
  });

  it('is degraded from the third failed creation in a row on', () => {
    expect(statusOf({ failedCreations: 2 }).status).toBe('healthy');
    expect(statusOf({ failedCreations: 3 })).toEqual({
      status: 'degraded',
      reasons: ['The last 3 creations of an instance failed; 4 of 5 instances are left'],
    });
  });

  it('is unhealthy when creations fail and no instance is left, not counting those being created or destroyed', () => {
    const pool = { ...healthy.pool, live: 2, creating: 1, destroying: 1, idle: 0, leased: 0 };
    expect(statusOf({ failedCreations: 3, pool })).toEqual({
      status: 'unhealthy',
      reasons: ['The last 3 creations of an instance failed, and no instance is left'],
    });
  });

  it('is unhealthy if pool or limiter were closed without a shutdown', () => {
    expect(statusOf({ pool: { ...healthy.pool, state: 'closed' } })).toEqual({
      status: 'unhealthy',
      reasons: ['The pool is closed and gives no further leases'],
    });
    expect(statusOf({ limiter: { maxConcurrent: 10, paused: false, closed: true } })).toEqual({
      status: 'unhealthy',
      reasons: ['The limiter is closed and admits no request'],
    });
  });

  it('is degraded while the limiter is paused', () => {
    expect(statusOf({ limiter: { maxConcurrent: 10, paused: true, closed: false } })).toEqual({
      status: 'degraded',
      reasons: ['The limiter is paused and admits no request until it resumes'],
    });
  });

  it('is draining from the beginning of a shutdown to its end, whatever else is wrong', () => {
    const pool = { ...healthy.pool, live: 0, state: 'closed' } as const;
    expect(statusOf({ stopping: true, failedCreations: 3, pool })).toEqual({
      status: 'draining',
      reasons: [
        'Shutting down: no further requests are accepted',
        'The last 3 creations of an instance failed, and no instance is left',
      ],
    });
  });

  it('has the worst of several statuses, and all reasons', () => {
    const pool = { ...healthy.pool, live: 0, idle: 0, leased: 0 };
    const { status, reasons } = statusOf({ failedCreations: 4, longestWaitMs: 90_000, pool });
    expect(status).toBe('unhealthy');
    expect(reasons).toHaveLength(2);
  });

  it('is degraded by a gate whose only key is quarantined, and names it', async () => {
    const serper = gate('serper');
    await expect(serper.run(refused(401))).rejects.toThrow();
    const health = healthOf({ ...healthy, gates: [serper.stats()] });
    expect(health.status).toBe('degraded');
    expect(health.gates_without_keys).toEqual(['serper']);
    expect(health.gates_in_cooldown).toEqual([]);
    expect(health.reasons).toEqual(['Every key of serper is quarantined or exhausted: its calls fail']);
  });

  it('stays healthy while one of several keys is left', async () => {
    const serper = new ServiceGate({ name: 'serper', keys: ['one', 'two'] });
    let calls = 0;
    await serper.run(async () => {
      if (calls++ === 0) await refused(401)();
    });
    expect(serper.stats().keys.map(({ state }) => state)).toContain('quarantined');
    expect(healthOf({ ...healthy, gates: [serper.stats()] }).status).toBe('healthy');
  });

  it('lists a gate in cooldown and stays healthy', async () => {
    const jina = new ServiceGate({ name: 'jina', retry: { attempts: 1 } });
    await expect(jina.run(refused(429))).rejects.toThrow();
    const health = healthOf({ ...healthy, gates: [jina.stats(), gate('serper').stats()] });
    expect(health.status).toBe('healthy');
    expect(health.gates_in_cooldown).toEqual(['jina']);
  });
});

describe('PipelineManager.health', () => {
  onFakeTimers();

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
      gates: [gate('serper'), { name: 'own', stats: () => 'whatever it counts', close: () => {} } as never],
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
    let finish = (): void => {};
    const first = manager.run('a', () => new Promise<void>((resolve) => (finish = resolve)));
    const second = manager.run('b', () => {});
    await vi.advanceTimersByTimeAsync(60_000);
    expect(manager.health().reasons).toEqual([
      'A request has waited 60 s to begin (2 of 2 requests admitted, 1 of 1 instances leased, 1 queued)',
    ]);
    finish();
    await Promise.all([first, second]);
    expect(manager.health().status).toBe('healthy');
  });

  it('does not count the wait of a rejected request', async () => {
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

  it('counts only its own requests where managers share hooks', async () => {
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

  it('listens to creations from the first health check on, and to nothing before', () => {
    const { manager, pool } = build();
    const listeners = () => [
      manager.hooks.hasAnyListeners,
      pool.hooks.listenerCount('instance:create-failed'),
    ];
    expect(listeners()).toEqual([false, 0]);
    manager.health();
    manager.health();
    expect(listeners()).toEqual([false, 1]);
  });
});
