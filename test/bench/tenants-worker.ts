/** The process that measures one row: `tenants-worker.js TENANTS`. Prints the nanoseconds that a wait takes. */
import { ConcurrencyLimiter } from '../../src/limiter/concurrency-limiter.js';
import type { AcquireOptions } from '../../src/limiter/limiter.js';
import { cpuNs, median, nothing } from './bare.js';

const WAITERS = 10_000;
const WARM_UPS = 10;
const ROUNDS = 40;

const { signal } = new AbortController();
const optionsOf: Readonly<Record<string, (i: number) => AcquireOptions | undefined>> = {
  'no options': () => undefined,
  'no tenant': () => ({ taskId: 't' }),
  'one tenant': () => ({ tenant: 'a' }),
  '10,000 tenants': (i) => ({ tenant: `tenant ${i}` }),
  '10,000 new tenants': (i) => ({ tenant: `tenant ${i}` }),
  bounded: () => ({ timeoutMs: 60_000, signal }),
  'bounded, 10,000 tenants': (i) => ({ timeoutMs: 60_000, signal, tenant: `tenant ${i}` }),
};

const [name = ''] = process.argv.slice(2);
const limiterOf10 = () => new ConcurrencyLimiter({ maxConcurrent: 10 });
const kept = limiterOf10();
const options = Array.from({ length: WAITERS }, (_, i) => optionsOf[name]!(i));

async function nsOfWait(): Promise<number> {
  const limiter = name.includes('new') ? limiterOf10() : kept;
  await new Promise((resolve) => setImmediate(resolve));
  const begin = cpuNs();
  await Promise.all(options.map((each) => limiter.run(nothing, each)));
  return (cpuNs() - begin) / WAITERS;
}

const rounds: number[] = [];
for (let round = -WARM_UPS; round < ROUNDS; round++) {
  const ns = await nsOfWait();
  if (round >= 0) rounds.push(ns);
}
process.stdout.write(`${median(rounds)}\n`);
