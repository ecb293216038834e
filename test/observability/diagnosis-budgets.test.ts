import {
  ConcurrencyLimiter,
  createPipelineManager,
  LifecycleHooks,
  PipelineManager,
  PipelinePool,
  ServiceGate,
  type ServiceGateOptions,
} from 'pipeline-pool';
import { describe, expect, it, vi } from 'vitest';
import { diagnosisOf } from '../../src/observability/diagnosis/findings.js';
import { Recorder } from '../../src/observability/diagnosis/recorder.js';
import { calmMachine } from '../support/diagnosis-scenarios.js';
import { onFakeTimers } from '../support/fake-timers.js';
import { sleep } from '../support/promises.js';

onFakeTimers();

/** A manager with one gate whose calls take a second and cost 0.1 usd each, unless it declares something else. */
function setUp(more: Pick<ServiceGateOptions, 'cost'> = { cost: { estimate: () => ({ usd: 0.1 }) } }) {
  const hooks = new LifecycleHooks();
  const gate = new ServiceGate({ name: 'llm', hooks, ...more });
  const config = { poolSize: 10, maxConcurrentRequests: 10 };
  const manager = createPipelineManager({ config, create: () => ({}), gates: [gate], hooks });
  const recorder = new Recorder(manager, 120_000, { machine: calmMachine });
  /** A request that makes calls, some at a time, and goes on after those that are rejected. */
  const request = (calls: number, usd: number, atOnce = 1) =>
    manager.run(
      'task',
      async () => {
        for (let i = 0; i < calls; i += atOnce) {
          const batch = Array.from({ length: atOnce }, () => gate.run(() => sleep(1_000)));
          await Promise.allSettled(batch);
        }
      },
      { budget: { usd } },
    );
  const found = async (requests: Promise<unknown>[], ms = 60_000) => {
    await vi.advanceTimersByTimeAsync(ms);
    const { findings } = diagnosisOf(recorder.report());
    await vi.advanceTimersByTimeAsync(120_000);
    await Promise.all(requests);
    recorder.stop();
    return findings;
  };
  return { hooks, gate, manager, request, found };
}

describe('The diagnosis of budgets', () => {
  it('finds nothing where they have room', async () => {
    const { request, found } = setUp();
    expect(await found([request(5, 1), request(5, 1), request(5, 1), request(5, 1)])).toEqual([]);
  });

  it('names the meter that is spent, of calls that are rejected', async () => {
    const { request, found } = setUp();
    expect(await found([request(9, 0.5), request(3, 1)])).toMatchObject([
      {
        code: 'budget-exceeded',
        source: 'llm',
        share: 0,
        evidence: { rejected: 4, calls: 12, limit: 0.5, spent: 0.5, reserved: 0, wanted: 0.1 },
        message: expect.stringContaining('of the 0.5 usd of the last one, 0.5 are spent'),
        remedy: expect.stringContaining('Raise the cap of `usd`'),
      },
    ]);
  });

  it('names what calls in flight have reserved, where that is why calls are rejected', async () => {
    const { request, found } = setUp({
      cost: { estimate: () => ({ usd: 0.1 }), actual: () => ({ usd: 0.01 }) },
    });
    expect(await found([request(10, 0.5, 10)])).toMatchObject([
      {
        code: 'budget-exceeded',
        evidence: { rejected: 5, spent: 0, reserved: 0.5 },
        remedy: expect.stringContaining('tighter'),
      },
    ]);
  });

  it('names budgets that most requests nearly spend, running or ended, before calls are rejected', async () => {
    const foundAfter = (ms: number) => {
      const { request, found } = setUp();
      return found([request(5, 0.52), request(10, 1), request(5, 0.55), request(1, 1)], ms);
    };
    expect(await foundAfter(7_000)).toEqual([]);
    expect(await foundAfter(9_500)).toMatchObject([
      {
        code: 'budget-nearly-spent',
        source: 'limiter',
        share: 0,
        evidence: { requests: 4, nearlySpent: 3, limit: 1, spent: 1 },
        message:
          '3 of 4 requests have used 90 % or more of what their budgets allow: the last one 1 of 1 usd',
      },
    ]);
  });

  it('finds nothing where one request of several uses up its budget, or the cap is none', async () => {
    const { request, found } = setUp();
    const ends = [request(10, 1), request(1, 1), request(1, 1), request(9, Number.POSITIVE_INFINITY)];
    expect(await found(ends)).toEqual([]);
  });

  it('names a gate that spends nothing from a meter of the budgets', async () => {
    const { request, found } = setUp({});
    expect(await found([request(3, 1)])).toMatchObject([
      {
        code: 'budget-unmetered',
        source: 'llm',
        share: 0,
        evidence: { meters: 1, calls: 3 },
        message: 'Calls of llm run under budgets and spend nothing from their meter usd',
      },
    ]);
  });

  it('leaves out gates and requests of others that share the hooks', async () => {
    const { found, hooks } = setUp();
    const others = new ServiceGate({ name: 'theirs', hooks });
    const theirs = new PipelineManager({
      name: 'theirs',
      pool: new PipelinePool({ name: 'their pool', size: 4, create: () => ({}), hooks }),
      limiter: new ConcurrencyLimiter({ name: 'their limiter', maxConcurrent: 4, hooks }),
      gates: [others],
      hooks,
    });
    const requests = Array.from({ length: 4 }, () =>
      theirs.run('task', () => others.run(() => 1), { budget: { calls: 1, usd: 1 }, tenant: 'theirs' }),
    );
    expect(await found(requests)).toEqual([]);
  });
});
