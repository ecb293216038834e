/** The process that measures one cell: `costs-worker.js NAME LOAD EFFORT`. Prints one line of JSON. */
import type { ServiceGateOptions } from '../../src/gate/options.js';
import { ServiceGate } from '../../src/gate/service-gate.js';
import { createPipelineManager, type PipelineManager } from '../../src/index.js';
import { CheckedIterator } from '../../src/internal/iteration.js';
import { defineTools } from '../../src/tools/define-tools.js';
import { pipelineFactory } from '../../src/tools/pipeline-factory.js';
import { besideBare, median, nothing, warmUpBare } from './bare.js';

type Call = (i: number) => unknown;
interface Effort {
  readonly ops: number;
  readonly samples: number;
  /** Samples before the first that counts. @default 2 */
  readonly warmUps?: number;
}

const BIG = 1_000_000;
const KEYS = ['key-number-one-aaaa', 'key-number-two-bbbb', 'key-number-three-cc'];
const SECOND = { limit: BIG, perMs: 1_000 };
const MINUTE = { limit: 10 * BIG, perMs: 60_000 };

/** By name, so that a peer without types, or without ESM, is loaded only where it is measured: a heap grows with it. */
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
  async () => {
    const made = createPipelineManager({
      config: { poolSize: 5, maxConcurrentRequests: 10 },
      create: () => ({}),
      trackRequests,
    });
    await attach(made);
    return () => made.run('task', nothing);
  };
const silent = { debug() {}, info() {}, warn() {}, error() {} };
const metrics = async ({ hooks }: PipelineManager<object>) => {
  const { Registry } = await import('prom-client');
  const { collectMetrics } = await import('../../src/observability/metrics/prometheus.js');
  collectMetrics(hooks, { registry: new Registry() });
};
const observers = async (made: PipelineManager<object>) => {
  const { logTo } = await import('../../src/observability/logging/log.js');
  const { recordTimeline } = await import('../../src/observability/timeline/timeline.js');
  const { traceTo } = await import('../../src/observability/tracing/opentelemetry.js');
  logTo(made.hooks, silent);
  await metrics(made);
  recordTimeline(made.hooks);
  traceTo(made.hooks);
};

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
  'gate, one at a time': gated({ maxConcurrent: 1 }),
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
  'manager, all observers': manager(observers),
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

/** One function for all, as a host has it. */
async function* items(count: number): AsyncGenerator<number> {
  for (let i = 0; i < count; i++) yield i;
}
const streaming = (trackRequests = false) =>
  createPipelineManager({
    config: { poolSize: 2, maxConcurrentRequests: 2 },
    create: () => ({}),
    trackRequests,
  });
/** What is read item by item: each layer of a stream by itself. */
const STREAMS: Readonly<Record<string, (count: number) => AsyncIterable<unknown>>> = {
  generator: (count) => items(count),
  checked: (count) => {
    const iterator = CheckedIterator.of(items(count), 'items', 'an async iterable');
    return { [Symbol.asyncIterator]: () => ({ next: () => iterator.next() }) };
  },
  gate: (count) => gate({ maxConcurrent: 10 }).stream(() => items(count)),
  manager: (count) => streaming().stream('task', () => items(count)),
  'manager, trackRequests': (count) => streaming(true).stream('task', () => items(count)),
};

/** A gate with so many keys, tenants or entries in its window, at a load that is the same for each. */
async function flat(what: string, size: number): Promise<Call> {
  if (what === 'keys') {
    const keys = Array.from({ length: size }, (_, i) => `key-abcdefgh-${i}`);
    const one = gate({ maxConcurrent: 10, keys, rate: [SECOND] });
    return () => one.run(nothing);
  }
  if (what === 'entries') {
    const one = gate({ maxConcurrent: 10, rate: [{ limit: 10 * BIG, perMs: 3_600_000 }] });
    for (let i = 0; i < size; i++) await one.run(nothing);
    return () => one.run(nothing);
  }
  const one = gate({ maxConcurrent: 10 });
  return (i) => one.run(nothing, { tenant: `t${i % size}` });
}

const [name = '', kind = 'sequence', effortText = '{}'] = process.argv.slice(2);
const { ops, samples, warmUps = 2 } = JSON.parse(effortText) as Effort;
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
    const bytes = (process.memoryUsage().heapUsed - before) / count;
    // Used here, so that nothing of it is collected.
    if (one.stats().limiter?.queued !== 1_000 + count) throw new Error('A call is not queued');
    return bytes;
  }
  if (kind === 'window') return startBehindWindow(STARTS[name]!);
  const call: Call =
    kind === 'stream' ? nothing : size === undefined ? await CASES[name]!() : await flat(what!, Number(size));
  const queued = Number(kind);
  // A stream has more items than an agent makes requests, and what its opening costs is in another row.
  const count = kind === 'stream' ? ops * 10 : kind === 'sequence' ? ops : Math.ceil(ops / queued) * queued;
  const burst = async (): Promise<void> => {
    for (let round = 0; round < count / queued; round++) {
      const all: unknown[] = [];
      for (let i = 0; i < queued; i++) all.push(call(i));
      await Promise.all(all);
    }
  };
  const work = async (): Promise<void> => {
    if (kind === 'stream') {
      for await (const _ of STREAMS[name]!(count));
    } else if (kind === 'sequence') for (let i = 0; i < count; i++) await call(i);
    else await burst();
  };
  const times: number[] = [];
  for (let i = 0; i < samples + warmUps; i++) {
    const { ns, bareNs } = await besideBare(count, work);
    if (i >= warmUps) times.push(ns / bareNs);
  }
  return median(times);
}

/** Calls work behind a strict window. */
type Start = (work: () => Promise<void>) => unknown;
const STARTS: Readonly<Record<string, (limit: number, perMs: number) => Start | Promise<Start>>> = {
  gate: gateWithWindow,
  'gate, compiled': async (limit, perMs) => {
    const warmUp = gateWithWindow(limit, 10);
    await Promise.all(Array.from({ length: 25_000 }, () => warmUp(nothing)));
    return gateWithWindow(limit, perMs);
  },
  'p-throttle': async (limit, perMs) => {
    const { default: throttle } = await load('p-throttle');
    return throttle({ limit, interval: perMs, strict: true })((work: () => Promise<void>) => work());
  },
  'p-queue': async (limit, perMs) => {
    const { default: Queue } = await load('p-queue');
    const queue = new Queue({ concurrency: 50, interval: perMs, intervalCap: limit, strict: true });
    return (work) => queue.add(work);
  },
  'bare timer': startOnBareTimer,
};

function gateWithWindow(limit: number, perMs: number): Start {
  const one = gate({ maxConcurrent: 50, rate: [{ limit, perMs }] });
  return (work) => one.run(work);
}

/** The least that a strict window can cost: a log of starts, a list of calls, and one timer. */
function startOnBareTimer(limit: number, perMs: number): Start {
  const began: number[] = [];
  const calls: (() => void)[] = [];
  let timer: NodeJS.Timeout | undefined;
  const startAll = (): void => {
    timer = undefined;
    for (let next = calls[began.length]; next !== undefined; next = calls[began.length]) {
      const now = performance.now();
      const waitMs = began.length < limit ? 0 : began[began.length - limit]! + perMs - now;
      if (waitMs > 0) {
        timer = setTimeout(startAll, Math.ceil(waitMs));
        return;
      }
      began.push(now);
      next();
    }
  };
  return (work) =>
    new Promise((resolve) => {
      calls.push(() => resolve(work()));
      if (timer === undefined) startAll();
    });
}

/** Microseconds of CPU time of a start while calls wait for a full window: of all threads, the compiler's included. */
async function startBehindWindow(make: (typeof STARTS)[string]): Promise<number> {
  const start = await make(125, 250);
  let started = 0;
  for (let i = 0; i < 2_500; i++) {
    start(async () => {
      started++;
    });
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
