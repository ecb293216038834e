import { Budget, createPipelineManager, LifecycleHooks, ServiceGate } from 'pipeline-pool';
import { collectMetrics } from 'pipeline-pool/prometheus';
import { Registry } from 'prom-client';
import { describe, expect, it, vi } from 'vitest';
import { Attachment } from '../../src/hooks/attachment.js';
import { StateSource } from '../../src/observability/live-page/state.js';
import { TenantUse } from '../../src/observability/tenant-use.js';
import { onFakeTimers } from '../support/fake-timers.js';
import { seeded } from '../support/random-numbers.js';

onFakeTimers();

const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

/** Emits the events of requests, as a manager does. */
function setUp(most: number) {
  const hooks = new LifecycleHooks();
  const use = new TenantUse(most);
  use.listen(new Attachment(hooks));
  let ids = 0;
  const queue = (tenant?: string) => {
    const ids_ = { source: 'manager', taskId: 't', requestId: `r${ids++}`, tenant };
    hooks.emit('request:queued', ids_ as never);
    return {
      start: () => hooks.emit('request:started', ids_ as never),
      finish: () => hooks.emit('request:finished', ids_ as never),
      reject: () => hooks.emit('request:rejected', ids_ as never),
    };
  };
  const serve = async (tenant: string, ms: number) => {
    const request = queue(tenant);
    request.start();
    await vi.advanceTimersByTimeAsync(ms);
    request.finish();
  };
  const of = (name: string) => use.figures().get(name);
  return { hooks, use, queue, serve, of };
}

describe('The use of a service by tenant', () => {
  it('counts who runs and waits, and for how long, up to the present', async () => {
    const { queue, of } = setUp(2);
    const [first, second] = [queue('a'), queue('a')];
    await vi.advanceTimersByTimeAsync(100);
    first.start();
    await vi.advanceTimersByTimeAsync(50);
    expect(of('a')).toMatchObject({ running: 1, queued: 1, started: 1, runMs: 50, waitMs: 250 });
    second.reject();
    first.finish();
    await vi.advanceTimersByTimeAsync(50);
    expect(of('a')).toMatchObject({ running: 0, queued: 0, started: 1, runMs: 50, waitMs: 250 });
  });

  it('keeps nothing of requests without a tenant, nor of ends without a beginning', () => {
    const { use, queue, hooks } = setUp(2);
    const request = queue();
    request.start();
    request.finish();
    hooks.emit('request:finished', { source: 'm', requestId: 'unknown', tenant: 'a' } as never);
    expect([...use.figures().keys()]).toEqual([]);
  });

  it('shows those that use most, and what others use as `other`', async () => {
    const { use, serve, queue, of } = setUp(2);
    await serve('a', 10);
    await serve('b', 20);
    await serve('c', 15);
    expect([...use.figures().keys()]).toEqual(['a', 'b', 'other']);
    expect(of('other')).toMatchObject({ started: 1, runMs: 15 });
    await serve('c', 15);
    // More than twice as much as `a`, which is shown no longer.
    expect([...use.figures().keys()]).toEqual(['b', 'c', 'other']);
    expect(of('c')).toMatchObject({ started: 0, runMs: 0 });
    queue('a').start();
    await vi.advanceTimersByTimeAsync(5);
    expect(of('other')).toMatchObject({ running: 1, started: 3, runMs: 35 });
    await vi.advanceTimersByTimeAsync(100);
    // Shown again, with what it did while it was shown before.
    expect([...use.figures().keys()]).toEqual(['a', 'c', 'other']);
    expect(of('a')).toMatchObject({ running: 1, started: 1, runMs: 10 });
  });

  it('shows one that only waits, though none of its requests ends', async () => {
    const { use, serve, queue, of } = setUp(2);
    await serve('a', 10);
    await serve('b', 20);
    queue('starved');
    await vi.advanceTimersByTimeAsync(30);
    expect([...use.figures().keys()]).toEqual(['b', 'starved', 'other']);
    await vi.advanceTimersByTimeAsync(5);
    expect(of('starved')).toMatchObject({ running: 0, queued: 1, waitMs: 5 });
  });

  it('never lets a total fall, and bounds what it keeps, whatever tenants come', async () => {
    const { use, serve, queue } = setUp(3);
    const random = seeded(7);
    const last = new Map<string, number>();
    const names = new Set<string>();
    for (let i = 0; i < 3_000; i++) {
      await serve(`t${Math.floor(random() * random() * 400)}`, Math.floor(random() * 40));
      if (i % 7 === 0) queue(`w${i % 50}`).reject();
      for (const [name, { runMs }] of use.figures()) {
        names.add(name);
        expect(runMs).toBeGreaterThanOrEqual(last.get(name) ?? 0);
        last.set(name, runMs);
      }
      expect(use.figures().size).toBeLessThanOrEqual(4);
    }
    expect(names.size).toBeLessThanOrEqual(31);
  });

  it('shows at most ten times as many names as at once, though each tenant uses more than the one before', async () => {
    const { use, serve } = setUp(1);
    const names = new Set<string>();
    for (let i = 0; i < 15; i++) {
      await serve(`t${i}`, 3 ** i);
      for (const name of use.figures().keys()) names.add(name);
    }
    expect([...names].filter((name) => name !== 'other')).toHaveLength(10);
  });

  it('counts one with the others that comes while ten times as many are busy, whatever it uses', async () => {
    const { use, queue, serve, of } = setUp(1);
    for (let i = 0; i < 10; i++) queue(`busy${i}`).start();
    await serve('late', 1_000);
    await serve('late', 1_000);
    expect([...use.figures().keys()]).toEqual(['busy0', 'other']);
    expect(of('other')).toMatchObject({ started: 11, running: 9, runMs: 20_000 });
  });

  it('counts a tenant that is named `other` with the others, whichever are shown', async () => {
    const { use, serve, of } = setUp(1);
    await serve('other', 10);
    await serve('other', 5);
    expect([...use.figures().keys()]).toEqual(['other']);
    await serve('b', 5);
    expect([...use.figures().keys()]).toEqual(['b', 'other']);
    expect(of('other')).toMatchObject({ started: 2, runMs: 15 });
    await serve('c', 40);
    expect([...use.figures().keys()]).toEqual(['c', 'other']);
    expect(of('other')).toMatchObject({ started: 3, runMs: 55 });
  });
});

describe('Tenants in the metrics and on the live page', () => {
  const setUpManager = (tenants = 20) => {
    const hooks = new LifecycleHooks();
    const gate = new ServiceGate({ name: 'llm', hooks, cost: { estimate: () => ({ usd: 0.25 }) } });
    const manager = createPipelineManager({
      config: { poolSize: 1, maxConcurrentRequests: 1 },
      create: () => ({}),
      gates: [gate],
      hooks,
    });
    const registry = new Registry();
    const stop = collectMetrics(hooks, { registry, tenants });
    const run = (tenant: string, ms: number) =>
      manager.run('t', () => gate.run(() => sleep(ms)), { tenant, budget: new Budget({ usd: 1 }) });
    return { manager, registry, run, stop };
  };

  it('have their requests, their work, their waits and their cost', async () => {
    const { registry, run, stop } = setUpManager();
    const ends = [run('a', 1_000), run('b"<', 1_000)];
    await vi.advanceTimersByTimeAsync(1_500);
    const lines = (await registry.metrics()).split('\n').filter((line) => line.startsWith('pipeline_tenant'));
    expect(lines).toEqual([
      'pipeline_tenant_active_requests{tenant="a"} 0',
      'pipeline_tenant_active_requests{tenant="b\\"<"} 1',
      'pipeline_tenant_queued_requests{tenant="a"} 0',
      'pipeline_tenant_queued_requests{tenant="b\\"<"} 0',
      'pipeline_tenant_requests_total{tenant="a"} 1',
      'pipeline_tenant_requests_total{tenant="b\\"<"} 1',
      'pipeline_tenant_run_seconds_total{tenant="a"} 1',
      'pipeline_tenant_run_seconds_total{tenant="b\\"<"} 0.5',
      'pipeline_tenant_wait_seconds_total{tenant="a"} 0',
      'pipeline_tenant_wait_seconds_total{tenant="b\\"<"} 1',
      'pipeline_tenant_cost_total{tenant="a",meter="usd"} 0.25',
      'pipeline_tenant_cost_total{tenant="a",meter="calls"} 1',
    ]);
    await vi.advanceTimersByTimeAsync(1_000);
    await Promise.all(ends);
    stop();
    expect(await registry.metrics()).toBe('\n');
  });

  it('are left out without `tenants`, which is checked', async () => {
    const { registry, run } = setUpManager(0);
    const end = run('a', 1);
    await vi.advanceTimersByTimeAsync(10);
    await end;
    expect(await registry.metrics()).not.toContain('tenant');
    expect(() => collectMetrics(new LifecycleHooks(), { registry, tenants: -1 })).toThrow('`tenants`');
  });

  it('are listed on the page with what came before the first watcher', async () => {
    const { manager, run } = setUpManager();
    const ends = [run('a', 1_000), run('b', 1_000)];
    await vi.advanceTimersByTimeAsync(100);
    const source = new StateSource(manager, false);
    source.attach();
    await vi.advanceTimersByTimeAsync(500);
    expect(JSON.parse(source.update() as string).tenants).toEqual([
      { name: 'a', running: 1, queued: 0, runMs: 500, spent: [] },
      { name: 'b', running: 0, queued: 1, runMs: 0, spent: [] },
    ]);
    await vi.advanceTimersByTimeAsync(3_000);
    await Promise.all(ends);
    expect(JSON.parse(source.update() as string).tenants).toMatchObject([
      {
        name: 'a',
        spent: [
          ['usd', 0.25],
          ['calls', 1],
        ],
      },
      { name: 'b' },
    ]);
    source.detach();
  });
});

describe('The tenants on the live page', () => {
  it('are counted anew by the first of the next watchers', async () => {
    const manager = createPipelineManager({ config: { poolSize: 1 }, create: () => ({}) });
    const source = new StateSource(manager, false);
    source.attach();
    const end = manager.run('t', () => sleep(1_000), { tenant: 'a' });
    await vi.advanceTimersByTimeAsync(500);
    expect(JSON.parse(source.update() as string).tenants).toMatchObject([{ name: 'a', running: 1 }]);
    source.detach();
    await vi.advanceTimersByTimeAsync(1_000);
    await end;
    source.attach();
    expect(JSON.parse(source.update() as string).tenants).toEqual([]);
    source.detach();
  });
});

describe('Budgets in the metrics and on the live page', () => {
  it('have what is spent, reserved and left, and the calls that were rejected', async () => {
    // Of its own hooks, as a gate has that was created for itself.
    const gate = new ServiceGate({ name: 'llm', cost: { estimate: () => ({ usd: 0.25 }) } });
    const manager = createPipelineManager({
      config: { poolSize: 2, maxConcurrentRequests: 2 },
      create: () => ({}),
      gates: [gate],
    });
    const registry = new Registry();
    collectMetrics(gate.hooks, { registry, sources: manager });
    const source = new StateSource(manager, false);
    source.attach();
    const budgets = () => JSON.parse(source.update() as string).budgets;
    expect(budgets()).toEqual([]);
    const call = () => gate.run(() => sleep(1_000));
    const three = async () => {
      await call();
      await Promise.allSettled([call(), call(), call()]);
    };
    const ends = [
      manager.run('t', three, { budget: { usd: 0.8, calls: Number.POSITIVE_INFINITY } }),
      manager.run('t', call, { budget: { usd: 1 } }),
    ];
    await vi.advanceTimersByTimeAsync(500);
    const usd = { meter: 'usd', limit: 1.8 };
    expect(budgets()).toEqual([{ ...usd, spent: 0, reserved: 0.5, left: 1.3, rejected: 0 }]);
    await vi.advanceTimersByTimeAsync(1_000);
    const after = { ...usd, limit: 0.8, spent: 0.25, reserved: 0.5, rejected: 1 };
    expect(budgets()).toMatchObject([after]);
    expect(budgets()[0].left).toBeCloseTo(0.05);
    const lines = (await registry.metrics()).split('\n').filter((line) => /^pipeline_budget/.test(line));
    expect(lines).toEqual([
      'pipeline_budget_rejections_total{gate="llm",meter="usd"} 1',
      'pipeline_budget_amount{meter="usd",state="spent"} 0.25',
      'pipeline_budget_amount{meter="usd",state="reserved"} 0.5',
      expect.stringMatching(/^pipeline_budget_amount\{meter="usd",state="left"\} 0\.05/),
    ]);
    await vi.advanceTimersByTimeAsync(2_000);
    await Promise.all(ends);
    expect(budgets()).toMatchObject([{ meter: 'usd', limit: 0, rejected: 1 }]);
    expect(await registry.metrics()).not.toContain('pipeline_budget_amount{');
    source.detach();
    expect(gate.hooks.listenerCount('budget:exceeded')).toBe(1);
  });

  it('have the meter with the smallest part left first on the page, and those without a current cap last', () => {
    const gate = new ServiceGate({ name: 'llm' });
    const manager = createPipelineManager({ config: { poolSize: 1 }, create: () => ({}), gates: [gate] });
    const source = new StateSource(manager, false);
    source.attach();
    const exceeded = { source: 'llm', callId: 1, limit: 1, spent: 1, reserved: 0, wanted: 1 };
    for (const meter of ['pages', 'searches', 'searches', 'usd']) {
      gate.hooks.emit('budget:exceeded', { ...exceeded, meter });
    }
    const budget = {
      limits: { calls: 10, usd: 1, tokens: 100 },
      spent: { calls: 2, usd: 0.5, tokens: 90 },
      reserved: { calls: 0, usd: 0, tokens: 0 },
    };
    vi.spyOn(manager, 'requests').mockReturnValue([{ budget } as never]);
    const { budgets } = JSON.parse(source.update() as string);
    expect(budgets.map(({ meter }: { meter: string }) => meter)).toEqual([
      'tokens',
      'usd',
      'calls',
      'searches',
      'pages',
    ]);
    source.detach();
  });
});
