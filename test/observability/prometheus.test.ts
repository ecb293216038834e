import { LIFECYCLE_EVENTS, LifecycleHooks } from 'pipeline-pool';
import { collectMetrics } from 'pipeline-pool/prometheus';
import { Counter, Registry, register } from 'prom-client';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { EXAMPLES } from '../support/event-payloads.js';
import { fleetStats } from '../support/fleet-stats.js';
import { METRICS } from '../support/metrics.js';

afterEach(() => vi.useRealTimers());

const setUp = (options: Parameters<typeof collectMetrics>[1] = {}) => {
  const hooks = new LifecycleHooks();
  const registry = new Registry();
  const stop = collectMetrics(hooks, { registry, ...options });
  const sample = async (series: string): Promise<number | undefined> => {
    const line = (await registry.metrics()).split('\n').find((text) => text.startsWith(`${series} `));
    return line === undefined ? undefined : Number(line.slice(series.length + 1));
  };
  return { hooks, registry, stop, sample };
};

const request = { source: 'manager', taskId: 'a', requestId: 'r1' };
const started = { ...request, instanceId: 1, waitMs: 2_000, admissionMs: 1_500, leaseMs: 500 };
const finished = { ...request, instanceId: 1, outcome: 'ok', durationMs: 42_000 } as const;

describe('collectMetrics', () => {
  it('prefixes every name', async () => {
    const { registry } = setUp({ prefix: 'mirothinker_' });
    const text = await registry.metrics();
    for (const name of ['requests_total', 'active_requests', 'pool_usage']) {
      expect(text).toMatch(new RegExp(`^# TYPE mirothinker_${name} (counter|gauge)$`, 'm'));
    }
    expect(text).not.toContain(' pipeline_');
  });

  it('counts requests by outcome, from 0 on', async () => {
    const { hooks, sample } = setUp();
    expect(await sample('pipeline_requests_total{outcome="ok"}')).toBe(0);
    hooks.emit('request:queued', request);
    hooks.emit('request:started', started);
    hooks.emit('request:finished', finished);
    hooks.emit('request:rejected', { ...EXAMPLES['request:rejected'], outcome: 'timeout' });
    expect(await sample('pipeline_requests_total{outcome="ok"}')).toBe(1);
    expect(await sample('pipeline_requests_total{outcome="timeout"}')).toBe(1);
    expect(await sample('pipeline_requests_total{outcome="failed"}')).toBe(0);
    expect(await sample('pipeline_request_duration_seconds_sum{outcome="ok"}')).toBe(42);
    expect(await sample('pipeline_request_duration_seconds_bucket{le="40",outcome="ok"}')).toBe(0);
    expect(await sample('pipeline_request_duration_seconds_bucket{le="60",outcome="ok"}')).toBe(1);
    expect(await sample('pipeline_request_queue_seconds_sum')).toBe(2);
  });

  it('counts running and queued requests', async () => {
    const { hooks, sample } = setUp();
    for (const requestId of ['r1', 'r2', 'r3', 'r4']) hooks.emit('request:queued', { ...request, requestId });
    for (const requestId of ['r1', 'r2']) hooks.emit('request:started', { ...started, requestId });
    hooks.emit('request:finished', { ...finished, requestId: 'r1' });
    hooks.emit('request:rejected', { ...EXAMPLES['request:rejected'], requestId: 'r3' });
    expect(await sample('pipeline_active_requests')).toBe(1);
    expect(await sample('pipeline_queued_requests')).toBe(1);
  });

  it('ignores the end of a request that started before the collection', async () => {
    const { hooks, sample } = setUp();
    hooks.emit('request:finished', finished);
    expect(await sample('pipeline_active_requests')).toBe(0);
  });

  it('reports the leased share of the pool', async () => {
    const { hooks, sample } = setUp();
    hooks.emit('lease:acquired', { ...EXAMPLES['lease:acquired'], leased: 3, live: 3, size: 5 });
    expect(await sample('pipeline_pool_usage{pool="pool"}')).toBe(0.6);
    hooks.emit('lease:released', { ...EXAMPLES['lease:released'], leased: 0, live: 3, size: 5 });
    expect(await sample('pipeline_pool_usage{pool="pool"}')).toBe(0);
    expect(await sample('pipeline_pool_live_instances{pool="pool"}')).toBe(3);
    expect(await sample('pipeline_lease_held_seconds_sum{pool="pool"}')).toBe(200);
    expect(await sample('pipeline_lease_wait_seconds_count{pool="pool"}')).toBe(1);
  });

  it('counts attempts, retries, waits and cache lookups of gates', async () => {
    const { hooks, sample } = setUp();
    const call = EXAMPLES['call:finished'];
    hooks.emit('call:started', EXAMPLES['call:started']);
    hooks.emit('call:retried', EXAMPLES['call:retried']);
    hooks.emit('call:throttled', EXAMPLES['call:throttled']);
    hooks.emit('call:finished', call);
    hooks.emit('cache:hit', { source: 'serper', shared: true });
    hooks.emit('cache:hit', { source: 'serper', shared: false });
    hooks.emit('cache:miss', { source: 'serper' });
    expect(await sample('pipeline_call_attempts_total{gate="serper"}')).toBe(1);
    expect(await sample('pipeline_call_retries_total{gate="serper",class="rate-limited"}')).toBe(1);
    expect(await sample('pipeline_call_throttles_total{gate="serper",reason="rate"}')).toBe(1);
    expect(await sample('pipeline_call_duration_seconds_sum{gate="serper",outcome="ok"}')).toBe(2.3);
    expect(await sample('pipeline_call_wait_seconds_sum{gate="serper"}')).toBe(1.22);
    for (const result of ['hit', 'shared', 'miss']) {
      expect(await sample(`pipeline_cache_lookups_total{gate="serper",result="${result}"}`)).toBe(1);
    }
  });

  it('counts what calls spent, and calls that did not fit into a budget', async () => {
    const { hooks, sample } = setUp();
    hooks.emit('call:finished', { ...EXAMPLES['call:finished'], cost: { usd: 0.04, tokens: 900 } });
    hooks.emit('call:finished', { ...EXAMPLES['call:finished'], cost: { usd: 0.02 } });
    hooks.emit('budget:exceeded', EXAMPLES['budget:exceeded']);
    expect(await sample('pipeline_call_cost_total{gate="serper",meter="usd"}')).toBe(0.06);
    expect(await sample('pipeline_call_cost_total{gate="serper",meter="tokens"}')).toBe(900);
    expect(await sample('pipeline_budget_rejections_total{gate="serper",meter="usd"}')).toBe(1);
  });

  it('follows keys through cooldown, quarantine and restoration', async () => {
    vi.useFakeTimers();
    const { hooks, sample } = setUp();
    const keys = (state: string) => sample(`pipeline_keys{gate="serper",state="${state}"}`);
    hooks.emit('key:cooldown', { source: 'serper', key: '…1', retryAfterMs: 60_000 });
    hooks.emit('key:quarantined', { source: 'serper', key: '…2', reason: 'quarantined' });
    hooks.emit('key:quarantined', {
      source: 'serper',
      key: '…3',
      reason: 'exhausted',
      retryAfterMs: 3_600_000,
    });
    expect([await keys('cooldown'), await keys('quarantined'), await keys('exhausted')]).toEqual([1, 1, 1]);
    vi.advanceTimersByTime(60_000);
    hooks.emit('key:restored', { source: 'serper', key: '…3' });
    expect([await keys('cooldown'), await keys('exhausted'), await keys('ready')]).toEqual([0, 0, 2]);
    vi.advanceTimersByTime(86_400_000);
    expect(await keys('quarantined')).toBe(1);
    expect(await sample('pipeline_key_quarantines_total{gate="serper",reason="quarantined"}')).toBe(1);
  });

  it('reads its sources at each scrape', async () => {
    let leased = 0;
    const { hooks, sample } = setUp({
      sources: {
        pool: { name: 'pool', stats: () => ({ size: 4, live: 2, leased, queued: 0 }) },
        limiter: { name: 'requests', stats: () => ({ maxConcurrent: 10, active: leased, queued: 7 }) },
        gates: [
          {
            name: 'serper',
            stats: () => ({ running: 2, keys: [{ state: 'ready' }, { state: 'half-open' }] }),
          },
          { name: 'other', stats: () => undefined },
        ],
      },
    });
    expect(await sample('pipeline_pool_usage{pool="pool"}')).toBe(0);
    leased = 3;
    expect(await sample('pipeline_pool_usage{pool="pool"}')).toBe(0.75);
    expect(await sample('pipeline_limiter_queued{limiter="requests"}')).toBe(7);
    expect(await sample('pipeline_gate_running_attempts{gate="serper"}')).toBe(2);
    hooks.emit('key:cooldown', { source: 'serper', key: '…1', retryAfterMs: 60_000 });
    expect(await sample('pipeline_keys{gate="serper",state="ready"}')).toBe(1);
    expect(await sample('pipeline_keys{gate="serper",state="cooldown"}')).toBe(0);
  });

  it('leaves out what a source of the host fails to count, and nothing else', async () => {
    const fail = () => {
      throw new Error('no figures');
    };
    const fleet = fleetStats({ lost: Number.POSITIVE_INFINITY });
    const { sample } = setUp({
      sources: [
        {
          limiter: {
            name: 'wrong',
            stats: () => ({ maxConcurrent: undefined as never, active: 1, queued: 2, fleet }),
          },
        },
        { limiter: { name: 'broken', stats: fail }, pool: { name: 'broken', stats: fail } },
        { gates: [{ name: 'broken', stats: fail }] },
        { gates: [{ name: 'own', stats: () => ({ running: 3, keys: [{ state: 'ready' }] }) }] },
      ],
    });
    expect(await sample('pipeline_limiter_active{limiter="wrong"}')).toBe(1);
    expect(await sample('pipeline_limiter_max_concurrent{limiter="wrong"}')).toBeUndefined();
    expect(await sample('pipeline_fleet_permits_lost_total{limit="wrong"}')).toBeUndefined();
    expect(await sample('pipeline_pool_size{pool="broken"}')).toBeUndefined();
    expect(await sample('pipeline_gate_running_attempts{gate="own"}')).toBe(3);
    expect(await sample('pipeline_keys{gate="own",state="ready"}')).toBe(1);
  });

  it('adds up the levels of sources of one name, and reads one that managers share once', async () => {
    const gate = (name: string) => ({ name, stats: () => ({ running: 2, keys: [{ state: 'ready' }] }) });
    const shared = gate('serper');
    const manager = (leased: number) => ({
      pool: { name: 'pool', stats: () => ({ size: 4, live: 3, leased, queued: 1 }) },
      limiter: { name: 'requests', stats: () => ({ maxConcurrent: 10, active: leased, queued: 7 }) },
      gates: [shared, gate('llm')],
    });
    const { sample } = setUp({ sources: [manager(1), manager(3)] });
    for (const [series, value] of [
      ['pool_size{pool="pool"}', 8],
      ['pool_usage{pool="pool"}', 0.5],
      ['limiter_active{limiter="requests"}', 4],
      ['gate_running_attempts{gate="serper"}', 2],
      ['gate_running_attempts{gate="llm"}', 4],
      ['keys{gate="serper",state="ready"}', 1],
      ['keys{gate="llm",state="ready"}', 2],
    ] as const)
      expect([series, await sample(`pipeline_${series}`)]).toEqual([series, value]);
  });

  it('needs no listeners for the gauges of its sources, and accepts several', async () => {
    const pool = (name: string, leased: number) => ({
      pool: { name, stats: () => ({ size: 4, live: 4, leased, queued: 1 }) },
    });
    const { hooks, sample } = setUp({ sources: [pool('first', 1), pool('second', 2)] });
    for (const event of ['lease:queued', 'instance:creating'] as const) {
      expect(hooks.hasListeners(event)).toBe(false);
    }
    expect(hooks.hasListeners('permit:released')).toBe(true);
    hooks.emit('lease:released', { ...EXAMPLES['lease:released'], source: 'third', leased: 3, size: 3 });
    expect(await sample('pipeline_pool_usage{pool="first"}')).toBe(0.25);
    expect(await sample('pipeline_pool_usage{pool="second"}')).toBe(0.5);
    expect(await sample('pipeline_pool_usage{pool="third"}')).toBeUndefined();
  });

  it('shows a changed limit', async () => {
    const { hooks, sample } = setUp();
    hooks.emit('permit:acquired', EXAMPLES['permit:acquired']);
    hooks.emit('limit:changed', { source: 'requests', previous: 10, maxConcurrent: 8 });
    expect(await sample('pipeline_limiter_max_concurrent{limiter="requests"}')).toBe(8);
    expect(await sample('pipeline_limiter_active{limiter="requests"}')).toBe(3);
  });

  it('reports what several processes do under their shared limits', async () => {
    let lost = 1;
    const own = { maxConcurrent: 200, active: 3, queued: 1 };
    const limiter = { name: 'requests', stats: () => ({ ...own, fleet: fleetStats({ lost }) }) };
    const starts = fleetStats({ active: 1, queued: 30, available: false });
    const gates = [
      { name: 'llm', stats: () => ({ limiter: { ...own, fleet: fleetStats() }, fleet: starts }) },
      { name: 'windows', stats: () => ({ fleet: starts }) },
      { name: 'local', stats: () => ({ limiter: own }) },
    ];
    // Managers may share a limiter.
    const { registry, sample } = setUp({ sources: [{ limiter, gates }, { limiter }] });
    const series = (of: string, limit: string) => sample(`pipeline_fleet_${of}{limit="${limit}"}`);
    expect(await sample('pipeline_limiter_active{limiter="requests"}')).toBe(3);
    for (const [of, requests, llm, windows] of [
      ['active', 150, 150, undefined],
      ['max_concurrent', 200, 200, undefined],
      // Those that wait for a permit and those that wait for a window.
      ['queued', 12, 42, 30],
      ['members', 4, 4, 4],
      ['available', 1, 0, 0],
      ['permits_lost_total', 1, 0, 0],
    ] as const) {
      expect([
        of,
        await series(of, 'requests'),
        await series(of, 'llm'),
        await series(of, 'windows'),
      ]).toEqual([of, requests, llm, windows]);
    }
    expect(await registry.metrics()).not.toContain('limit="local"');
    lost = 4;
    for (let scrape = 0; scrape < 2; scrape++) expect(await series('permits_lost_total', 'requests')).toBe(4);
  });

  it('counts failures of the shared store of a cache', async () => {
    const { hooks, sample } = setUp();
    hooks.emit('cache:store-failed', EXAMPLES['cache:store-failed']);
    const { source, operation } = EXAMPLES['cache:store-failed'];
    const labels = `{gate="${source}",operation="${operation}"}`;
    expect(await sample(`pipeline_cache_store_failures_total${labels}`)).toBe(1);
  });

  it('has a sample of every metric after every event', async () => {
    const shared = { maxConcurrent: 200, fleet: fleetStats() };
    const { hooks, registry } = setUp({
      sources: {
        gates: [{ name: 'serper', stats: () => ({ running: 1, keys: [], limiter: shared }) }],
        requests: () => [{ budget: { limits: { usd: 1 }, spent: { usd: 0 }, reserved: { usd: 0 } } }],
      },
      tenants: 5,
    });
    for (const event of LIFECYCLE_EVENTS) hooks.emit(event, { ...EXAMPLES[event], tenant: 'acme' } as never);
    const values = await registry.getMetricsAsJSON();
    const without = values.filter((metric) => metric.values.length === 0).map(({ name }) => name);
    expect(without).toEqual([]);
    expect(values).toHaveLength(METRICS.length);
  });

  it('has no label with a task, a request, a tenant or a key', async () => {
    const { hooks, registry } = setUp();
    for (const event of LIFECYCLE_EVENTS) {
      hooks.emit(event, { ...EXAMPLES[event], tenant: 'acme' } as never);
    }
    const text = await registry.metrics();
    for (const secret of ['research-1', 'r1"', 'acme', 'a1b2', 'c3d4']) expect(text).not.toContain(secret);
  });

  it('replaces names beyond the hundredth by other', async () => {
    const { hooks, registry, sample } = setUp();
    for (let i = 0; i < 300; i++) {
      hooks.emit('tool:finished', { ...EXAMPLES['tool:finished'], tool: `invented-${i}` });
    }
    expect(await sample('pipeline_tool_duration_seconds_count{tool="other",outcome="ok"}')).toBe(200);
    expect((await registry.metrics()).match(/_duration_seconds_count\{tool=/g)).toHaveLength(101);
  });

  it('keeps no keys of gates beyond the hundredth', async () => {
    const { hooks, registry } = setUp();
    for (let i = 0; i < 150; i++)
      hooks.emit('key:cooldown', { source: `gate-${i}`, key: '…1', retryAfterMs: 60_000 });
    const gates = (await registry.metrics()).match(/^pipeline_keys\{.*state="cooldown"\} 1$/gm);
    expect(gates).toHaveLength(100);
  });

  it('removes its listeners and metrics when stopped', async () => {
    const { hooks, registry, stop } = setUp();
    stop();
    stop();
    for (const event of LIFECYCLE_EVENTS) expect(hooks.hasListeners(event)).toBe(false);
    expect((await registry.metrics()).trim()).toBe('');
    collectMetrics(hooks, { registry })();
  });

  it('uses the default registry of prom-client by default', async () => {
    const stop = collectMetrics(new LifecycleHooks());
    expect(await register.metrics()).toContain('pipeline_active_requests 0');
    stop();
  });

  it('registers nothing if a name is already taken', async () => {
    const registry = new Registry();
    new Counter({ name: 'pipeline_keys', help: 'mine', registers: [registry] });
    const hooks = new LifecycleHooks();
    expect(() => collectMetrics(hooks, { registry })).toThrow(/pipeline_keys has already been registered/);
    expect((await registry.getMetricsAsJSON()).map(({ name }) => name)).toEqual(['pipeline_keys']);
    expect(hooks.hasListeners('call:started')).toBe(false);
  });

  it.each([
    [{ prefix: '1st_' }, /`prefix` to be letters, digits and underscores/],
    [{ prefix: 5 }, /`prefix`/],
    [{ registry: {} }, /`registry` to be a prom-client registry/],
    [{ sources: 'pool' }, /`sources` to be an object/],
    [{ labels: {} }, /Unknown option `labels` in collectMetrics/],
  ])('rejects %o', (options, message) => {
    expect(() => collectMetrics(new LifecycleHooks(), options as never)).toThrow(message);
  });
});
