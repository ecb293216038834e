/**
 * What observers cost a request: CPU time of a manager's request that does nothing, without listeners and with each
 * observer attached.
 *
 *     tsx test/bench/observers.ts
 */
import { createPipelineManager, type LifecycleHooks, logTo } from 'pipeline-pool';
import { traceTo } from 'pipeline-pool/opentelemetry';
import { collectMetrics } from 'pipeline-pool/prometheus';
import { recordTimeline } from 'pipeline-pool/timeline';
import { Registry } from 'prom-client';

const REQUESTS = 2_000;
const ROUNDS = 15;
const silent = { debug() {}, info() {}, warn() {}, error() {} };

const OBSERVERS: Readonly<Record<string, (hooks: LifecycleHooks) => unknown>> = {
  'no listener': () => undefined,
  'no listener, repeated': () => undefined,
  'a listener of another event': (hooks) => hooks.on('key:quarantined', () => {}),
  logTo: (hooks) => logTo(hooks, silent),
  recordTimeline: (hooks) => recordTimeline(hooks),
  collectMetrics: (hooks) => collectMetrics(hooks, { registry: new Registry() }),
  'traceTo, no SDK': (hooks) => traceTo(hooks),
};

async function microsecondsPerRequest(attach: (hooks: LifecycleHooks) => unknown): Promise<number> {
  const manager = createPipelineManager({
    config: { poolSize: 5, maxConcurrentRequests: 10 },
    create: () => ({}),
  });
  attach(manager.hooks);
  const before = process.cpuUsage();
  for (let i = 0; i < REQUESTS; i++) await manager.run('task', () => i);
  const { user, system } = process.cpuUsage(before);
  await manager.shutdown();
  return (user + system) / REQUESTS;
}

const samples = new Map(Object.keys(OBSERVERS).map((name) => [name, [] as number[]]));
for (let round = 0; round < ROUNDS; round++) {
  for (const [name, attach] of Object.entries(OBSERVERS)) {
    samples.get(name)?.push(await microsecondsPerRequest(attach));
  }
}

const at = (values: readonly number[], share: number): number =>
  values.toSorted((a, b) => a - b)[Math.floor(share * (values.length - 1))] ?? Number.NaN;
const base = at(samples.get('no listener') ?? [], 0.5);
console.log('| attached | µs per request, median (quartiles) | × no listener |\n| --- | ---: | ---: |');
for (const [name, values] of samples) {
  const [low, middle, high] = [0.25, 0.5, 0.75].map((share) => at(values, share).toFixed(1));
  console.log(`| ${name} | ${middle} (${low}–${high}) | ${(at(values, 0.5) / base).toFixed(2)} |`);
}
