/** The process that measures one cell: `costs-worker.js NAME LOAD EFFORT`. Prints one line of JSON. */
import { Registry } from 'prom-client';
import type { ServiceGateOptions } from '../../src/gate/options.js';
import { ServiceGate } from '../../src/gate/service-gate.js';
import { createPipelineManager, type PipelineManager } from '../../src/index.js';
import { logTo } from '../../src/observability/logging/log.js';
import { collectMetrics } from '../../src/observability/metrics/prometheus.js';
import { recordTimeline } from '../../src/observability/timeline/timeline.js';
import { traceTo } from '../../src/observability/tracing/opentelemetry.js';
import { defineTools } from '../../src/tools/define-tools.js';
import { pipelineFactory } from '../../src/tools/pipeline-factory.js';
import { besideBare, nothing, warmUpBare } from './bare.js';
import { median } from './harness.js';

type Call = (i: number) => unknown;
interface Effort {
  readonly ops: number;
  readonly samples: number;
}

const BIG = 1_000_000;
const KEYS = ['key-number-one-aaaa', 'key-number-two-bbbb', 'key-number-three-cc'];
const SECOND = { limit: BIG, perMs: 1_000 };
const MINUTE = { limit: 10 * BIG, perMs: 60_000 };

/** By name, so that a peer without types, or without ESM, is loaded only where it is measured. */
async function load(npm: string) {
  const loaded = await import(npm);
  return loaded;
}

const gate = (options: Partial<ServiceGateOptions>) =>
  new ServiceGate({ name: 'gate', ...options } as ServiceGateOptions);
const gated =
  (options: Partial<ServiceGateOptions>, fn: Parameters<ServiceGate['run']>[0] = nothing) =>
  () => {
    const one = gate(options);
    return () => one.run(fn);
  };
const manager =
  (attach: (manager: PipelineManager<object>) => unknown, trackRequests = false) =>
  () => {
    const made = createPipelineManager({
      config: { poolSize: 5, maxConcurrentRequests: 10 },
      create: () => ({}),
      trackRequests,
    });
    attach(made);
    return () => made.run('task', nothing);
  };
const silent = { debug() {}, info() {}, warn() {}, error() {} };
const metrics = ({ hooks }: PipelineManager<object>) => collectMetrics(hooks, { registry: new Registry() });

async function toolCall(guard: ServiceGate | undefined): Promise<Call> {
  const tools = defineTools({
    noop: { connect: () => ({}), call: nothing, ...(guard === undefined ? {} : { gate: guard }) },
  });
  const factory = pipelineFactory({ mainAgent: tools });
  const { signal } = new AbortController();
  const pipeline = await factory.create({ instanceId: 1, signal });
  await factory.prepare(pipeline, { instanceId: 1, taskId: 'task', signal });
  return () => pipeline.mainAgentToolManager.call('noop', {});
}

async function glue(): Promise<Call> {
  const { default: Queue } = await load('p-queue');
  const { default: retry } = await load('p-retry');
  const queue = new Queue({ concurrency: 10, interval: 1_000, intervalCap: BIG, strict: true });
  const caller = new AbortController();
  return () => {
    const signal = AbortSignal.any([caller.signal, AbortSignal.timeout(60_000)]);
    return queue.add(() => retry(nothing, { retries: 2, signal }), { signal });
  };
}

async function pooled(withSignal: boolean): Promise<Call> {
  const { default: Queue } = await load('p-queue');
  const { default: generic } = await load('generic-pool');
  const queue = new Queue({ concurrency: 10 });
  const pool = generic.createPool({ create: async () => ({}), destroy: nothing }, { max: 5 });
  return () =>
    queue.add(async () => {
      const request = withSignal ? { id: crypto.randomUUID(), control: new AbortController() } : undefined;
      const one = await pool.acquire();
      try {
        return await nothing();
      } finally {
        await pool.release(one);
        void request;
      }
    });
}

const CASES: Readonly<Record<string, () => Call | Promise<Call>>> = {
  'gate, no options': gated({}),
  'gate, maxConcurrent': gated({ maxConcurrent: 10 }),
  'gate, reads signal': gated({ maxConcurrent: 10 }, async ({ signal }) => signal.aborted),
  'gate, all': () => {
    const one = gate({ maxConcurrent: 10, keys: KEYS, rate: [SECOND, MINUTE], attemptTimeoutMs: 20_000 });
    const { signal } = new AbortController();
    return (i) => one.run(nothing, { signal, timeoutMs: 60_000, tenant: `t${i % 10}` });
  },
  'gate, cache hit': async () => {
    const one = gate({ maxConcurrent: 10, cache: { max: 1_000, ttlMs: 600_000 } });
    await one.run(() => 1, { cacheKey: 'k' });
    return () => one.run(() => 1, { cacheKey: 'k' });
  },
  tool: () => toolCall(undefined),
  'tool, gate': () => toolCall(gate({ maxConcurrent: 10 })),
  manager: manager(() => {}),
  'manager, trackRequests': manager(() => {}, true),
  'manager, collectMetrics': manager(metrics),
  'manager, all observers': manager((made) => {
    logTo(made.hooks, silent);
    metrics(made);
    recordTimeline(made.hooks);
    traceTo(made.hooks);
  }),
  'p-queue': async () => {
    const { default: Queue } = await load('p-queue');
    const queue = new Queue({ concurrency: 10, interval: 1_000, intervalCap: BIG });
    return () => queue.add(nothing);
  },
  'p-throttle': async () => (await load('p-throttle')).default({ limit: BIG, interval: 1_000 })(nothing),
  limiter: async () => {
    const { RateLimiter } = await load('limiter');
    const one = new RateLimiter({ tokensPerInterval: BIG, interval: 1_000 });
    return async () => {
      await one.removeTokens(1);
      return nothing();
    };
  },
  'rate-limiter-flexible': async () => {
    const { RateLimiterMemory, RateLimiterQueue } = await load('rate-limiter-flexible');
    const one = new RateLimiterQueue(new RateLimiterMemory({ points: 10 * BIG, duration: 1 }), {
      maxQueueSize: 1e7,
    });
    return async () => {
      await one.removeTokens(1);
      return nothing();
    };
  },
  cockatiel: async () => {
    const c = await load('cockatiel');
    const policy = c.wrap(
      c.retry(c.handleAll, { maxAttempts: 3, backoff: new c.ExponentialBackoff() }),
      c.bulkhead(10, 1e7),
      c.timeout(60_000, c.TimeoutStrategy.Aggressive),
    );
    return () => policy.execute(nothing);
  },
  opossum: async () => {
    const breaker = new (await load('opossum')).default(nothing, { timeout: 60_000 });
    return () => breaker.fire();
  },
  'p-retry + p-limit': async () => {
    const { default: retry } = await load('p-retry');
    const limit = (await load('p-limit')).default(10);
    return () => limit(() => retry(nothing, { retries: 3 }));
  },
  bottleneck: async () => {
    const one = new (await load('bottleneck')).default({ maxConcurrent: 10 });
    return () => one.schedule(nothing);
  },
  glue,
  'p-queue + generic-pool': () => pooled(false),
  '… + AbortController + uuid': () => pooled(true),
};

/** A gate with so many keys, tenants or entries in its window, at a load that is the same for each. */
function flat(what: string, size: number): Call {
  if (what === 'keys') {
    const keys = Array.from({ length: size }, (_, i) => `key-abcdefgh-${i}`);
    const one = gate({ maxConcurrent: 10, keys, rate: [SECOND] });
    return () => one.run(nothing);
  }
  const one = gate({
    maxConcurrent: 10,
    ...(what === 'entries' ? { rate: [{ limit: size, perMs: 1 }] } : {}),
  });
  if (what === 'entries') return () => one.run(nothing);
  return (i) => one.run(nothing, { tenant: `t${i % size}` });
}

async function flatEntries(size: number): Promise<Call> {
  const one = gate({ rate: [{ limit: 10 * size + BIG, perMs: 3_600_000 }] });
  for (let i = 0; i < size; i++) await one.run(nothing);
  return () => one.run(nothing);
}

const [name = '', kind = 'sequence', effortText = '{}'] = process.argv.slice(2);
const { ops, samples } = JSON.parse(effortText) as Effort;
const [what, size] = name.split('=');

async function answer(): Promise<unknown> {
  await warmUpBare();
  if (kind === 'bytes') {
    const one = gate({ maxConcurrent: 1 });
    void one.run(() => new Promise(() => {}));
    for (let i = 0; i < 1_000; i++) void one.run(nothing).catch(() => {});
    const count = 20_000;
    globalThis.gc?.();
    const before = process.memoryUsage().heapUsed;
    for (let i = 0; i < count; i++) void one.run(nothing).catch(() => {});
    globalThis.gc?.();
    return (process.memoryUsage().heapUsed - before) / count;
  }
  if (kind === 'window') return startBehindWindow();
  const made = createPipelineManager({
    config: { poolSize: 2, maxConcurrentRequests: 2 },
    create: () => ({}),
    trackRequests: false,
  });
  const call: Call =
    kind === 'stream'
      ? nothing
      : size === undefined
        ? await CASES[name]!()
        : what === 'entries'
          ? await flatEntries(Number(size))
          : flat(what!, Number(size));
  const queued = Number(kind);
  const count = kind === 'sequence' || kind === 'stream' ? ops : Math.max(ops, queued);
  const burst = async (): Promise<void> => {
    for (let round = 0; round < count / queued; round++) {
      const all: unknown[] = [];
      for (let i = 0; i < queued; i++) all.push(call(i));
      await Promise.all(all);
    }
  };
  const work = async (): Promise<void> => {
    if (kind === 'stream') {
      const items = made.stream('task', async function* () {
        for (let i = 0; i < count; i++) yield i;
      });
      for await (const _ of items);
    } else if (kind === 'sequence') for (let i = 0; i < count; i++) await call(i);
    else await burst();
  };
  const times: number[] = [];
  for (let i = 0; i < samples + 2; i++) {
    const { ns, bareNs } = await besideBare(count, work);
    if (i >= 2) times.push(ns / bareNs);
  }
  return median(times);
}

/** Microseconds of CPU time of a start while calls wait for a full window. */
async function startBehindWindow(): Promise<number> {
  const one = gate({ maxConcurrent: 50, rate: [{ limit: 125, perMs: 250 }] });
  let started = 0;
  for (let i = 0; i < 2_500; i++) {
    one
      .run(async () => {
        started++;
      })
      .catch(() => {});
  }
  await new Promise((resolve) => setTimeout(resolve, 600));
  const from = started;
  const begin = process.cpuUsage();
  await new Promise((resolve) => setTimeout(resolve, 2_500));
  const { user, system } = process.cpuUsage(begin);
  return (user + system) / (started - from);
}

const line = JSON.stringify(await answer());
process.stdout.write(`${line}\n`, () => process.exit(0));
