import { performance } from 'node:perf_hooks';
import {
  ConcurrencyLimiter,
  type FleetStats,
  LifecycleHooks,
  PipelineManager,
  PipelinePool,
  ServiceGate,
} from 'pipeline-pool';
import { beforeEach, describe, expect, it, vi } from 'vitest';
import { diagnose, recordDiagnosis } from '../../src/observability/diagnosis/diagnosis.js';
import { diagnosisOf } from '../../src/observability/diagnosis/findings.js';
import { kindOf } from '../../src/observability/diagnosis/gate-findings.js';
import { Extreme, History } from '../../src/observability/diagnosis/history.js';
import { type MachineFigures, ProcessMachine } from '../../src/observability/diagnosis/machine.js';
import { Pace } from '../../src/observability/diagnosis/pace.js';
import { type Count, type Level, Recorder, type Report } from '../../src/observability/diagnosis/recorder.js';
import type { TenantReport } from '../../src/observability/diagnosis/tenants.js';
import { Tenant } from '../../src/queue/fair-queue.js';
import { UNLIMITED } from '../../src/queue/options.js';
import { calmMachine } from '../support/diagnosis-scenarios.js';
import { EXAMPLES } from '../support/event-payloads.js';
import { onFakeTimers } from '../support/fake-timers.js';
import { fleetStats } from '../support/fleet-stats.js';

describe('History', () => {
  it('sums everything while it is younger than its window', () => {
    const history = new History(60_000, 0);
    history.add('calls', 3);
    history.mark(2_000);
    history.add('calls', 4);
    const span = history.span(5_000);
    expect(span.ms).toBe(5_000);
    expect(span.sum('calls')).toBe(7);
    expect(span.sum('unknown')).toBe(0);
  });

  it('drops what lies before its window', () => {
    const history = new History(60_000, 0);
    history.add('calls', 100);
    history.mark(1_000);
    history.mark(40_000);
    history.add('calls', 7);
    history.mark(70_000);
    expect(history.span(100_000).ms).toBe(60_000);
    expect(history.span(100_000).sum('calls')).toBe(7);
  });

  it('interpolates linearly between two marks', () => {
    const history = new History(60_000, 0);
    history.mark(10_000);
    history.add('calls', 40);
    history.mark(50_000);
    expect(history.span(90_000).sum('calls')).toBe(20);
  });

  it('is empty after a window in which nothing happened', () => {
    const history = new History(60_000, 0);
    history.add('calls', 5);
    history.mark(1_000);
    expect(history.span(500_000).sum('calls')).toBe(0);
  });

  it('keeps a bounded number of marks, however long it goes on', () => {
    const history = new History(60_000, 0);
    for (let ms = 0; ms < 6_000_000; ms += 500) {
      if (history.isDue(ms)) history.mark(ms);
      expect(history.marks).toBeLessThan(130);
    }
    expect(history.span(6_000_000).ms).toBe(60_000);
  });

  it('keeps one mark of a moment', () => {
    const history = new History(60_000, 0);
    history.mark(1_000);
    history.mark(1_000);
    expect(history.marks).toBe(2);
  });
});

describe('Extreme', () => {
  it('returns the largest reading of the window and drops older ones', () => {
    const stall = new Extreme(Math.max, 1_000, 100);
    expect(stall.value).toBeUndefined();
    stall.note(50, 0);
    stall.note(300, 50);
    stall.note(20, 500);
    expect(stall.value).toBe(300);
    stall.note(10, 1_200);
    expect(stall.value).toBe(20);
  });
});

describe('Pace', () => {
  const WINDOW_MS = 60_000;
  let history: History;
  let pace: Pace;
  let now: number;
  beforeEach(() => {
    now = 0;
    history = new History(WINDOW_MS, now);
    pace = new Pace('llm', now);
  });
  const calls = (count: number, durationMs: number | (() => number), inFlight: number) => {
    for (let i = 0; i < count; i++) {
      now += 100;
      if (history.isDue(now)) history.mark(now);
      pace.note(history, typeof durationMs === 'number' ? durationMs : durationMs(), inFlight, now);
    }
  };
  const later = () => {
    history.mark(now);
    now += 10 * WINDOW_MS;
    history.mark(now);
  };
  const judged = () => pace.judge(history.span(now));
  /** Repeatable, and scattered as durations of answers are: by a factor of about two to either side. */
  const scattered = (middle: number) => {
    let seed = 7;
    return () => {
      seed = (seed * 16_807) % 2_147_483_647;
      return middle * Math.exp(1.4 * (seed / 2_147_483_647 - 0.5));
    };
  };

  it('reports nothing about a service whose calls always take long', () => {
    calls(200, 60_000, 8);
    expect(judged()).toBeUndefined();
  });

  it('reports nothing with too few calls', () => {
    calls(7, 100, 1);
    later();
    calls(7, 900, 16);
    expect(judged()).toBeUndefined();
  });

  it('finds a limit if calls take longer with more of them in flight', () => {
    calls(20, 100, 2);
    calls(40, 420, 16);
    expect(judged()).toMatchObject({ kind: 'at-limit', inFlight: 16, inFlightAtBest: 2 });
    expect(judged()!.callMs).toBeCloseTo(420);
    expect(judged()!.bestMs).toBeCloseTo(100);
  });

  it('finds a limit despite widely varying durations', () => {
    calls(60, scattered(100), 2);
    calls(60, scattered(420), 16);
    expect(judged()).toMatchObject({ kind: 'at-limit' });
  });

  it('does not take variation for a limit', () => {
    calls(12, scattered(100), 2);
    calls(60, scattered(140), 16);
    expect(judged()).toBeUndefined();
  });

  it('does not report a limit on the evidence of a few varying calls', () => {
    for (const durationMs of [60, 100, 167]) calls(1, durationMs, 2);
    for (let i = 0; i < 30; i++) calls(1, i % 2 === 0 ? 130 : 500, 16);
    expect(judged()).toBeUndefined();
  });

  it('does not report a slow service on the evidence of a few varying calls', () => {
    for (let i = 0; i < 8; i++) calls(1, i % 2 === 0 ? 50 : 200, 4);
    later();
    for (let i = 0; i < 8; i++) calls(1, i % 2 === 0 ? 100 : 440, 4);
    expect(judged()).toBeUndefined();
  });

  it('accepts longer calls while throughput grows', () => {
    calls(20, 100, 1);
    calls(20, 130, 4);
    calls(40, 220, 32);
    expect(judged()).toBeUndefined();
  });

  it('reports the highest concurrency at which the service was as fast as with few calls', () => {
    calls(10, 100, 1);
    calls(10, 105, 4);
    calls(10, 110, 8);
    calls(40, 500, 64);
    expect(judged()).toMatchObject({ kind: 'at-limit', inFlightAtBest: 8 });
  });

  it('finds a service that takes longer than before at the same concurrency', () => {
    calls(40, 100, 4);
    later();
    calls(20, 300, 4);
    expect(judged()).toMatchObject({ kind: 'slower', inFlight: 4, inFlightAtBest: 4 });
  });

  it('finds one that is slower at a concurrency that falls on either side of two bands', () => {
    calls(20, 100, 2);
    later();
    calls(7, 300, 1);
    calls(5, 300, 2);
    expect(judged()).toMatchObject({ kind: 'slower' });
  });

  it('reports slower, not at its limit, if the service was faster at the same concurrency', () => {
    calls(40, 100, 1);
    calls(40, 100, 8);
    later();
    calls(20, 400, 8);
    expect(judged()).toMatchObject({ kind: 'slower' });
  });

  it('adapts to a new pace over time', () => {
    calls(400, 100, 4);
    for (let i = 0; i < 8; i++) {
      now += 1_800_000;
      calls(40, 1_000, 4);
    }
    later();
    calls(20, 1_000, 4);
    expect(judged()).toBeUndefined();
  });
});

describe('ProcessMachine', () => {
  it('weights a blocked event loop by its duration', async () => {
    const machine = new ProcessMachine(60_000, 1_000);
    const history = new History(60_000, 0);
    // The histogram has its first reading after two ticks.
    await new Promise((resolve) => setTimeout(resolve, 100));
    const until = performance.now() + 400;
    while (performance.now() < until);
    await new Promise((resolve) => setTimeout(resolve, 100));
    machine.read(history, 500);
    const readMs = history.span(500).sum('loop.ms');
    machine.read(history, 500);
    // What has been read is not read again.
    expect(history.span(500).sum('loop.ms')).toBeLessThan(1.5 * readMs);
    const { loopDelayMs, longestStallMs, heapBytes, heapLimitBytes, residentBytes, memoryBytes } =
      machine.figures(history.span(500));
    machine.stop();
    // A stall of 400 in 600 ms costs 400² / (2 × 600), about 133 ms.
    expect(loopDelayMs).toBeGreaterThan(60);
    expect(longestStallMs).toBeGreaterThan(300);
    expect(heapBytes).toBeLessThan(heapLimitBytes);
    expect(residentBytes).toBeLessThan(memoryBytes);
  });
});

describe('kindOf', () => {
  it.each([
    ['llm', 'llm'],
    ['vllm-main', 'llm'],
    ['openai', 'llm'],
    ['e2b', 'sandbox'],
    ['code-interpreter', 'sandbox'],
    ['serper', 'service'],
    ['jina', 'service'],
  ])('takes a gate called %s for %s', (name, kind) => {
    expect(kindOf(name)).toBe(kind);
  });
});

describe('Recorder', () => {
  onFakeTimers();

  function build({ size = 2, maxConcurrent = 4 } = {}) {
    const hooks = new LifecycleHooks();
    const gate = new ServiceGate({ name: 'serper', maxConcurrent: 2, hooks });
    const manager = new PipelineManager<unknown>({
      pool: new PipelinePool<unknown>({ size, create: () => ({}), hooks }),
      limiter: new ConcurrencyLimiter({ maxConcurrent, hooks }),
      gates: [gate],
      hooks,
    });
    const recorder = new Recorder(manager, 60_000, { machine: calmMachine });
    return { manager, recorder, gate, hooks };
  }
  const pass = (ms: number) => vi.advanceTimersByTimeAsync(ms);
  const hold = (ms: number) => () => new Promise((resolve) => setTimeout(resolve, ms));

  it('counts queued and running requests while they last', async () => {
    const { manager, recorder } = build();
    for (let i = 0; i < 5; i++) void manager.run(`t${i}`, hold(1e6));
    await pass(10_000);
    const report = recorder.report();
    expect(report.windowMs).toBeCloseTo(10_000);
    expect(report.average('requests')).toBeCloseTo(5, 1);
    expect(report.average('leased')).toBeCloseTo(2, 1);
    expect(report.average('pool-short')).toBeCloseTo(3, 1);
    expect(report.average('admission-short')).toBeCloseTo(0, 1);
  });

  it('averages over what started and ended', async () => {
    const { manager, recorder } = build();
    void manager.run('t', hold(2_500));
    await pass(10_000);
    expect(recorder.report().average('leased')).toBeCloseTo(0.25, 2);
  });

  it('looks back no further than its window', async () => {
    const { manager, recorder } = build();
    void manager.run('t', hold(5_000));
    await pass(600_000);
    expect(recorder.report().windowMs).toBe(60_000);
    expect(recorder.report().average('requests')).toBe(0);
  });

  it('reports the present values when it has just started', async () => {
    const { manager } = build();
    for (let i = 0; i < 5; i++) void manager.run(`t${i}`, hold(1e6));
    await pass(10_000);
    const recorder = new Recorder(manager, 60_000, { machine: calmMachine });
    expect(recorder.report().windowMs).toBe(0);
    expect(recorder.report().average('pool-short')).toBe(3);
    expect(diagnosisOf(recorder.report()).bottleneck?.code).toBe('pool-too-small');
  });

  it('separates requests that wait for admission while an instance is free', async () => {
    const { manager, recorder } = build({ size: 4, maxConcurrent: 1 });
    for (let i = 0; i < 10; i++) void manager.run(`t${i}`, hold(1e6));
    await pass(5_000);
    const report = recorder.report();
    expect(report.average('admission-short')).toBeCloseTo(9, 1);
    expect(report.average('pool-short')).toBeCloseTo(0, 1);
  });

  it('counts the calls that wait for a permit of a gate', async () => {
    const { recorder, gate } = build();
    for (let i = 0; i < 5; i++) void gate.run(hold(1e6));
    await pass(5_000);
    const report = recorder.report();
    expect(report.average('serper:running')).toBeCloseTo(2, 1);
    expect(report.average('serper:at-bound')).toBeCloseTo(3, 1);
  });

  it('counts calls behind a rate window as waiting for it, with a permit or without', async () => {
    const hooks = new LifecycleHooks();
    const tight = new ServiceGate({
      name: 'serper',
      maxConcurrent: 2,
      rate: [{ limit: 1, perMs: 1e6 }],
      hooks,
    });
    const { pool, limiter } = build().manager;
    const recorder = new Recorder({ hooks, pool, limiter, gates: [tight] }, 60_000, { machine: calmMachine });
    for (let i = 0; i < 5; i++) void tight.run(hold(1e6));
    await pass(5_000);
    const report = recorder.report();
    expect(report.average('serper:running')).toBeCloseTo(1, 1);
    expect(report.average('serper:in-window')).toBeCloseTo(4, 1);
    expect(report.average('serper:at-bound')).toBeCloseTo(0, 1);
  });

  it('separates rejections from failures, by status if a busy service reports both alike', () => {
    const { recorder, hooks } = build();
    const call = { source: 'serper', callId: 1, attempt: 1, retryAfterMs: 10 };
    hooks.emit('call:retried', { ...call, class: 'retryable', status: 429 });
    hooks.emit('call:retried', { ...call, class: 'rate-limited' });
    hooks.emit('call:retried', { ...call, class: 'retryable', status: 500 });
    hooks.emit('call:retried', { ...call, class: 'retryable' });
    hooks.emit('call:retried', { ...call, class: 'unauthorized', status: 401 });
    const report = recorder.report();
    expect([report.count('serper:rejected'), report.count('serper:failed')]).toEqual([2, 2]);
  });

  it('finds shared limits whose server cannot be reached, of the manager and of its gates', () => {
    const { recorder } = build();
    const report = recorder.report();
    const unavailable = (limits: object) =>
      diagnosisOf({ ...report, ...limits } as never).findings.map(
        ({ code, source }) => `${code} of ${source}`,
      );
    const gates = report.gates.map((gate) => ({ ...gate, fleet: fleetStats({ available: false }) }));
    const limiter = { ...report.limiter, fleet: fleetStats({ available: false }) };
    expect(unavailable({})).toEqual([]);
    expect(unavailable({ gates })).toEqual(['limits-unavailable of serper']);
    expect(unavailable({ limiter })).toEqual([`limits-unavailable of ${report.limiter.name}`]);
  });

  it('counts the permits that the manager and its gates have lost since it began to record', () => {
    const { recorder, manager } = build();
    const { limiter } = manager;
    const own = limiter.stats();
    let lost = 3;
    vi.spyOn(limiter, 'stats').mockImplementation(() => ({ ...own, fleet: fleetStats({ lost }) }));
    const count = () => recorder.report().count(`${limiter.name}:lost`);
    expect(count()).toBe(0);
    lost = 5;
    expect(count()).toBe(2);
    expect(diagnosisOf(recorder.report()).bottleneck).toMatchObject({
      code: 'permits-lost',
      source: limiter.name,
      message: `This process has lost 2 permits of ${limiter.name}, and what ran under them was aborted`,
    });
  });

  it('counts calls that did not fit into a budget', () => {
    const { recorder, hooks } = build();
    const meter = { meter: 'usd', limit: 1, spent: 1, reserved: 0, wanted: 0.1 };
    hooks.emit('budget:exceeded', { source: 'serper', callId: 1, ...meter });
    expect(recorder.report().count('serper:over-budget')).toBe(1);
  });

  it('keeps nothing of gates that are not those of its manager', () => {
    const { recorder, hooks } = build();
    for (let i = 0; i < 3; i++) {
      const call = { ...EXAMPLES['call:finished'], source: `gate of customer ${i}` };
      hooks.emit('call:started', { ...EXAMPLES['call:started'], source: call.source });
      hooks.emit('call:retried', { ...EXAMPLES['call:retried'], source: call.source });
      hooks.emit('call:finished', { ...call, outcome: 'retryable' });
      hooks.emit('budget:exceeded', { ...EXAMPLES['budget:exceeded'], source: call.source });
      hooks.emit('budget:unmetered', { ...EXAMPLES['budget:unmetered'], source: call.source });
      const { count, budgets } = recorder.report();
      const counts = (['rejected', 'failed', 'over-budget'] as const).map((of) =>
        count(`${call.source}:${of}`),
      );
      expect([...counts, budgets.exceeded.size, budgets.unmetered.size]).toEqual([0, 0, 0, 0, 0]);
    }
  });

  it('learns how long calls of a service take from those with a single attempt', async () => {
    const { recorder, hooks } = build();
    let callId = 0;
    const calls = async (
      count: number,
      durationMs: number,
      attempts: number,
      cache: 'off' | 'hit' = 'off',
    ) => {
      for (let i = 0; i < count; i++) {
        const call = { source: 'serper', callId: ++callId };
        if (cache === 'off') hooks.emit('call:started', { ...call, attempt: 1, waitMs: 0 });
        await pass(100);
        hooks.emit('call:finished', { ...call, outcome: 'ok', attempts, durationMs, waitMs: 0, cache });
      }
    };
    await calls(20, 100, 1);
    await pass(600_000);
    await calls(20, 900, 2);
    await calls(20, 0.1, 0, 'hit');
    expect(recorder.report().pace('serper')).toBeUndefined();
    await calls(20, 900, 1);
    expect(recorder.report().pace('serper')).toMatchObject({ kind: 'slower' });
  });

  it('remembers the tenant that waited for room under its cap, although it waits no longer', async () => {
    const hooks = new LifecycleHooks();
    const tenants = () => ({ maxConcurrent: 1 });
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 4, tenants, hooks });
    const { pool } = build().manager;
    const manager = new PipelineManager<unknown>({ pool, limiter, hooks });
    const recorder = new Recorder(manager, 60_000, { machine: calmMachine });
    for (let i = 0; i < 2; i++) void manager.run('t', hold(100), { tenant: 'acme' });
    await pass(300);
    expect(recorder.report().tenants.capped).toEqual({ name: 'acme', cap: 1, queued: 1, tenants: 1 });
  });

  it('does nothing while nothing happens', async () => {
    const { manager } = build();
    void manager.run('t', hold(10));
    await pass(1_000);
    const looks = vi.spyOn(manager.limiter, 'stats');
    await pass(1_000_000);
    expect(looks).not.toHaveBeenCalled();
  });

  it('removes all its listeners when it stops', () => {
    const { recorder, hooks } = build();
    expect(hooks.listenerCount('call:finished')).toBe(1);
    recorder.stop();
    for (const event of ['request:queued', 'instance:created', 'call:started', 'call:finished'] as const) {
      expect(hooks.listenerCount(event)).toBe(0);
    }
  });

  it('ends its window when it stops', async () => {
    const { manager, recorder } = build({ size: 1 });
    const figures = () => {
      const { windowMs, average, tenants } = recorder.report();
      return [windowMs, average('requests'), tenants.all[0]?.running].map((figure) => figure?.toFixed(6));
    };
    for (let i = 0; i < 2; i++) void manager.run('t', hold(1e6), { tenant: 'acme' });
    await pass(10_000);
    recorder.stop();
    const before = figures();
    expect(recorder.report().average('requests')).toBeCloseTo(2, 1);
    expect(recorder.report().tenants.all[0]?.running).toBeCloseTo(1, 1);
    await pass(5_000);
    recorder.stop();
    expect(figures()).toEqual(before);
    await pass(600_000);
    expect(figures()).toEqual(before);
  });

  it('starts no timer after the pool was closed', async () => {
    const { manager, recorder } = build();
    await manager.pool.close();
    await pass(10);
    await expect(manager.run('t', hold(10))).rejects.toThrow();
    expect(recorder.isStopped).toBe(true);
    expect(vi.getTimerCount()).toBe(0);
  });

  it('goes on while a gate of the host cannot count', async () => {
    let isBroken = true;
    const stats = (): never => {
      if (isBroken) throw new Error('no figures');
      return {} as never;
    };
    const { pool, limiter, hooks } = build().manager;
    const gates = [{ name: 'own', stats, close: () => {} }];
    const manager = new PipelineManager<unknown>({ pool, limiter, hooks, gates });
    const onError = vi.fn();
    hooks.on('hook:error', onError);
    const recorder = new Recorder(manager, 60_000, { machine: calmMachine });
    void manager.run('t', hold(1_000));
    await pass(5_000);
    isBroken = false;
    void manager.run('t', hold(5_000));
    await pass(5_000);
    expect(recorder.report().average('leased')).toBeCloseTo(0.5, 2);
    expect(onError).not.toHaveBeenCalled();
  });

  it('compares no calls beyond those that it can follow', () => {
    const { recorder, hooks } = build();
    let callId = 0;
    const start = () =>
      hooks.emit('call:started', { source: 'serper', callId: ++callId, attempt: 1, waitMs: 0 });
    const call = (durationMs: number) => {
      start();
      const payload = { ...EXAMPLES['call:finished'], source: 'serper', callId, durationMs, waitMs: 0 };
      hooks.emit('call:finished', { ...payload, outcome: 'ok', attempts: 1 });
    };
    for (let i = 0; i < 20; i++) call(100);
    for (let i = 0; i < 10_000; i++) start();
    for (let i = 0; i < 20; i++) call(60_000);
    expect(recorder.report().pace('serper')).toBeUndefined();
  });
});

describe('diagnose(manager)', () => {
  function build(more: object = {}) {
    const hooks = new LifecycleHooks();
    return new PipelineManager<unknown>({
      pool: new PipelinePool<unknown>({ size: 1, create: () => ({}), hooks }),
      limiter: new ConcurrencyLimiter({ maxConcurrent: 2, hooks }),
      hooks,
      ...more,
    });
  }

  it('listens to nothing before the first diagnosis', () => {
    const manager = build();
    expect(manager.hooks.listenerCount('request:finished')).toBe(0);
    diagnose(manager);
    const listeners = manager.hooks.listenerCount('request:finished');
    expect(listeners).toBeGreaterThan(0);
    diagnose(manager);
    expect(manager.hooks.listenerCount('request:finished')).toBe(listeners);
  });

  it('uses the recording that recordDiagnosis has started', () => {
    const manager = build();
    recordDiagnosis(manager, { windowMs: 5_000 });
    const listeners = manager.hooks.listenerCount('request:finished');
    recordDiagnosis(manager);
    diagnose(manager);
    expect(manager.hooks.listenerCount('request:finished')).toBe(listeners);
  });

  it('removes its listeners when the recording is ended, and still returns a diagnosis', () => {
    const manager = build();
    const stop = recordDiagnosis(manager);
    stop();
    expect(diagnose(manager).findings).toEqual(expect.any(Array));
    expect(manager.hooks.listenerCount('request:finished')).toBe(0);
  });

  it('records anew if a recording is started after the last one was ended', () => {
    const manager = build();
    recordDiagnosis(manager)();
    const stop = recordDiagnosis(manager, { windowMs: 5_000 });
    expect(manager.hooks.listenerCount('request:finished')).toBeGreaterThan(0);
    stop();
    expect(manager.hooks.listenerCount('request:finished')).toBe(0);
  });

  it('removes its listeners when the manager is shut down, and still returns a diagnosis', async () => {
    const manager = build();
    recordDiagnosis(manager);
    await manager.run('task', () => 1);
    await manager.shutdown();
    expect(manager.hooks.listenerCount('request:finished')).toBe(0);
    expect(diagnose(manager).findings).toEqual(expect.any(Array));
    expect(manager.hooks.listenerCount('request:finished')).toBe(0);
  });

  it('removes its listeners with the next request or diagnosis if the pool was closed without an instance', async () => {
    const manager = build();
    recordDiagnosis(manager);
    await manager.shutdown();
    diagnose(manager);
    expect(manager.hooks.listenerCount('request:finished')).toBe(0);
  });

  it('listens to gates that have hooks of their own', () => {
    const gate = new ServiceGate({ name: 'serper' });
    const manager = build({ gates: [gate, { name: 'own', stats: () => ({}), close: () => {} }] });
    diagnose(manager);
    expect(gate.hooks.listenerCount('call:finished')).toBe(1);
  });

  it('rejects wrong arguments', () => {
    const manager = build();
    expect(() => recordDiagnosis(manager, { windowMs: 10 })).toThrow(/`windowMs`.*10/);
    expect(() => recordDiagnosis(manager, { seconds: 10 } as object)).toThrow(/Unknown option `seconds`/);
    expect(() => diagnose(undefined as never)).toThrow(/`manager`/);
    expect(manager.hooks.listenerCount('request:finished')).toBe(0);
  });
});

describe('diagnosisOf', () => {
  const gate = new ServiceGate({ name: 'serper' }).stats();
  const quiet: Report = {
    windowMs: 60_000,
    average: () => 0,
    count: () => 0,
    pace: () => undefined,
    machine: {
      loopDelayMs: 0,
      longestStallMs: 0,
      cpuShare: 0.9,
      heapBytes: 10,
      heapLimitBytes: 100,
      residentBytes: 10,
      memoryBytes: 100,
    },
    limiter: { ...new ConcurrencyLimiter({ maxConcurrent: 10 }).stats(), name: 'limiter' },
    pool: { ...new PipelinePool({ size: 5, create: () => ({}) }).stats(), name: 'pool' },
    gates: [gate],
    tenants: { all: [], guaranteed: 0, isByTime: true, capped: undefined },
    budgets: {
      requests: 0,
      nearlySpent: 0,
      last: undefined,
      exceeded: new Map([['serper', EXAMPLES['budget:exceeded']]]),
      unmetered: new Map(),
    },
  };
  const report = (
    levels: Partial<Record<Level, number>>,
    machine: Partial<MachineFigures> = {},
    counts: Partial<Record<Count, number>> = {},
  ): Report => ({
    ...quiet,
    average: (level) => levels[level] ?? 0,
    count: (count) => counts[count] ?? 0,
    machine: { ...quiet.machine, ...machine },
  });
  const found = (of: Report) => diagnosisOf(of).findings.map(({ code }) => code);
  const QUEUE = { requests: 10, leased: 5, 'pool-short': 5 } as const;

  it('finds nothing in a quiet report', () => {
    expect(diagnosisOf(quiet)).toEqual({ healthy: true, findings: [], windowMs: 60_000 });
  });

  it('puts memory and event loop first, and reports no queue beside them', () => {
    expect(found(report(QUEUE))).toEqual(['pool-too-small']);
    expect(found(report(QUEUE, { loopDelayMs: 80 }))).toEqual(['event-loop-blocked']);
    expect(found(report({ ...QUEUE, 'serper:in-window': 2 }, { heapBytes: 90 }))).toEqual([
      'memory-short',
      'rate-window',
    ]);
  });

  it('does not report a slow service while the event loop is late', () => {
    const pace = { kind: 'slower', callMs: 900, bestMs: 100, inFlight: 3, inFlightAtBest: 3 } as const;
    const slow = { ...report({ ...QUEUE, 'serper:running': 5 }), pace: () => pace };
    expect(found(slow)).toEqual(['service-slower']);
    expect(found({ ...slow, machine: { ...slow.machine, loopDelayMs: 80 } })).toEqual(['event-loop-blocked']);
  });

  it('reports both a service and the pool if the service explains little of the queue', () => {
    expect(found(report({ ...QUEUE, 'serper:in-window': 1 }))).toEqual(['pool-too-small', 'rate-window']);
    expect(found(report({ ...QUEUE, 'serper:in-window': 3 }))).toEqual(['rate-window']);
  });

  it('puts failures before delays', () => {
    const failing = { 'serper:failed': 5, 'serper:attempts': 40 };
    expect(found(report({ ...QUEUE, 'pool-short': 9 }, {}, failing))).toEqual([
      'service-failing',
      'pool-too-small',
    ]);
  });

  it('ignores what costs less than a tenth of the time, and nearly empty queues', () => {
    expect(found(report({ requests: 10, leased: 9.1, 'pool-short': 0.9 }))).toEqual([]);
    expect(found(report({ requests: 0.05, leased: 0.01, 'pool-short': 0.04 }))).toEqual([]);
  });

  it('ignores an occasional rejection', () => {
    expect(found(report({}, {}, { 'serper:rejected': 2, 'serper:attempts': 10 }))).toEqual([]);
    expect(found(report({}, {}, { 'serper:rejected': 10, 'serper:attempts': 1_000 }))).toEqual([]);
    expect(found(report({}, {}, { 'serper:rejected': 60, 'serper:attempts': 1_000 }))).toEqual(['cooldown']);
  });

  it('reports calls that do not fit into budgets, once they are more than a few', () => {
    const over = (rejected: number) => report({}, {}, { 'serper:over-budget': rejected, 'serper:calls': 40 });
    expect(found(over(2))).toEqual([]);
    expect(found(over(3))).toEqual(['budget-exceeded']);
    expect(diagnosisOf(over(3)).bottleneck).toMatchObject({
      share: 0,
      message:
        '3 of 40 calls of serper were rejected because the budgets of their requests have no room: of the 0.5 usd of the last one, calls in flight have reserved 0.06',
      evidence: { rejected: 3, calls: 40, limit: 0.5, spent: 0.41, reserved: 0.06, wanted: 0.05 },
      remedy: expect.stringContaining('Make `cost.estimate` of the gate of serper tighter'),
    });
    const last = { ...EXAMPLES['budget:exceeded'], spent: 0.49, reserved: 0 };
    const spent = { ...over(3), budgets: { ...quiet.budgets, exceeded: new Map([['serper', last]]) } };
    expect(diagnosisOf(spent).bottleneck).toMatchObject({
      message: expect.stringContaining('of the 0.5 usd of the last one, 0.49 are spent'),
      remedy: expect.stringContaining('Raise the cap of `usd`'),
    });
  });

  it.each<[string, boolean, Partial<TenantReport>, Partial<Tenant>]>([
    ['waits for its share', true, {}, {}],
    ['has received its share, of long requests', false, {}, { received: 60_000 }],
    ['waits for room under its cap', false, {}, { excess: 3 }],
    ['is at its cap most of the time', false, {}, { limits: { ...UNLIMITED, maxConcurrent: 1 } }],
    ['has a small share', false, {}, { limits: { ...UNLIMITED, weight: 0.1 } }],
    ['waits less than it runs', false, { waiting: 0.9 }, {}],
    ['runs nothing beside one whose guarantee is all it has', false, { running: 0 }, { received: -1 }],
    ['has no waiters left', false, { queued: 0 }, {}],
    ['is unknown to the limiter', false, { tenant: undefined }, {}],
  ])('takes for starved one of the tenants: one that %s: %s', (_, isStarved, figures, state) => {
    const tenant = Object.assign(new Tenant(), { received: 10_000, ...state });
    const of = (name: string, running: number, received: number): TenantReport => ({
      name,
      running,
      waiting: 4,
      started: 90,
      queued: 4,
      tenant: Object.assign(new Tenant(), { received }),
    });
    const most = of('most', 4, 50_000);
    if (state.received === -1)
      Object.assign(most.tenant as Tenant, { limits: { ...UNLIMITED, guaranteed: 4 } });
    const all = [most, { ...of('one', 1, 0), started: 4, tenant, ...figures }];
    const codes = found({ ...quiet, tenants: { ...quiet.tenants, all } });
    expect(codes).toEqual(isStarved ? ['tenant-starved'] : []);
  });

  it('names a limit that several processes share where other processes hold the rest', () => {
    const waiting = report({ requests: 10, leased: 2, 'admission-short': 8, 'serper:at-bound': 3 });
    const shared = (members: number): Report => {
      const fleet = fleetStats({ members });
      const limiter = { ...quiet.limiter, fleet };
      const permits = { ...limiter, maxConcurrent: 200, active: 40 };
      return { ...waiting, limiter: { ...limiter, ...permits }, gates: [{ ...gate, limiter: permits }] };
    };
    // The only process of a limit has no others to ask.
    expect(found({ ...shared(1), gates: [] })).toEqual(['admission-too-small']);
    expect(found(shared(1))).toEqual(['service-at-limit']);
    expect(diagnosisOf({ ...shared(4), gates: [] }).bottleneck).toMatchObject({
      code: 'fleet-at-limit',
      source: 'limiter',
      message:
        'Requests spend 80 % of their time waiting to be admitted: of 200 that 4 processes share, 150 are in use, 40 of them by this process',
      evidence: { fleetActive: 150, fleetQueued: 12, members: 4, maxConcurrent: 200 },
    });
    expect(diagnosisOf(shared(4)).bottleneck).toMatchObject({
      code: 'fleet-at-limit',
      source: 'serper',
      evidence: { fleetActive: 150, queued: 3, members: 4 },
    });
  });

  it('does not take a service that is slow by itself for a shared limit', () => {
    const pace = { kind: 'at-limit', callMs: 900, bestMs: 100, inFlight: 8, inFlightAtBest: 3 } as const;
    const permits = { ...quiet.limiter, fleet: fleetStats() };
    const slow = { ...report({ leased: 8, 'serper:running': 8 }), pace: () => pace };
    expect(found({ ...slow, gates: [{ ...gate, limiter: permits }] })).toEqual(['service-at-limit']);
  });

  it('reports a limit that this process was started with in vain, and one that has lost its data', () => {
    const of = (fleet: Partial<FleetStats>) =>
      diagnosisOf({ ...quiet, limiter: { ...quiet.limiter, maxConcurrent: 200, fleet: fleetStats(fleet) } });
    expect(of({}).healthy).toBe(true);
    expect(of({ configured: 20 }).bottleneck).toMatchObject({
      code: 'limits-mismatched',
      evidence: { configured: 20, maxConcurrent: 200, members: 4 },
    });
    expect(of({ frozen: true }).bottleneck).toMatchObject({
      code: 'limits-unavailable',
      message: expect.stringContaining('has lost its data'),
    });
  });

  it('measures gates that serve no requests by their own calls', () => {
    const idle = report({ 'serper:in-window': 3, 'serper:running': 1 });
    expect(diagnosisOf(idle).bottleneck).toMatchObject({ code: 'rate-window', share: 0.75 });
  });

  it('distinguishes a process without CPU from one that computes', () => {
    const [starved, busy] = [0.2, 0.95].map(
      (cpuShare) => diagnosisOf(report({}, { loopDelayMs: 60, cpuShare })).bottleneck?.remedy,
    );
    expect(starved).toMatch(/CPU quota/);
    expect(busy).toMatch(/worker thread/);
  });

  it('distinguishes a full heap from a full machine', () => {
    expect(diagnosisOf(report({}, { heapBytes: 90 })).bottleneck?.remedy).toMatch(/--max-old-space-size/);
    expect(diagnosisOf(report({}, { residentBytes: 95 })).bottleneck?.message).toMatch(/is killed/);
  });

  it('writes each finding as sentences and plain numbers', () => {
    const levels: Partial<Record<Level, number>> = {
      requests: 10,
      leased: 5,
      creating: 2,
      readying: 2,
    };
    for (const finding of diagnosisOf(report(levels)).findings) {
      expect(finding.message).toMatch(/^[A-Z].*[^.]$/);
      expect(finding.remedy).toMatch(/^[A-Z].*\.$/);
      for (const figure of Object.values(finding.evidence)) expect(figure).toEqual(expect.any(Number));
    }
  });
});
