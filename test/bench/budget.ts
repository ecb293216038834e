/**
 * What a budget costs a call: CPU time of a call through a gate that does nothing, without a budget, and with one of three
 * meters, alone and as the child of two others.
 *
 *     tsx test/bench/budget.ts
 */
import { Budget, type GateCost, ServiceGate } from 'pipeline-pool';
import { machine, markdownTable } from './harness.js';

const CALLS = 2_000;
const ROUNDS = 150;

const CAPS = { calls: 1e9, tokens: 1e9, usd: 1e6 };
const cost: GateCost<'tokens' | 'usd'> = {
  estimate: ({ weight }) => ({ tokens: weight, usd: weight * 10e-6 }),
  actual: () => ({ tokens: 5, usd: 2e-5 }),
};

const gate = new ServiceGate({ name: 'llm', maxConcurrent: 10, cost });
const WITHOUT = { taskId: 't' };
const budget = () => new Budget(CAPS);
const CASES: Readonly<Record<string, () => () => Promise<unknown>>> = {
  'no budget': () => () => gate.run(() => 1, WITHOUT),
  'no budget, repeated': () => () => gate.run(() => 1, WITHOUT),
  'a budget of three meters': () => {
    const options = { taskId: 't', budget: budget() };
    return () => gate.run(() => 1, options);
  },
  'a child of a child': () => {
    const options = { taskId: 't', budget: budget().child({ usd: 1e5 }).child({ usd: 1e5 }) };
    return () => gate.run(() => 1, options);
  },
};

async function nanosecondsPerCall(call: () => Promise<unknown>): Promise<number> {
  const before = process.cpuUsage();
  for (let i = 0; i < CALLS; i++) await call();
  const { user, system } = process.cpuUsage(before);
  return ((user + system) * 1_000) / CALLS;
}

const samples = new Map(Object.keys(CASES).map((name) => [name, [] as number[]]));
const cases = Object.entries(CASES);
for (let round = -20; round < ROUNDS; round++)
  for (let i = 0; i < cases.length; i++) {
    // In another order each round: a case pays for some of the garbage of the one before it.
    const [name, make] = cases[(i * (1 + (round & 2)) + round + 20) % cases.length] as (typeof cases)[number];
    const measured = await nanosecondsPerCall(make());
    if (round >= 0) samples.get(name)?.push(measured);
  }

/** Other processes only ever make a sample slower, so the fastest tenth shows the code. */
const fastTenth = (values: readonly number[]): number =>
  values.toSorted((a, b) => a - b)[Math.floor(values.length / 10)] ?? Number.NaN;

const base =
  (fastTenth(samples.get('no budget') ?? []) + fastTenth(samples.get('no budget, repeated') ?? [])) / 2;
console.log(machine());
console.log(
  markdownTable(
    ['call', 'ns, of the fastest tenth', 'more than without'],
    [...samples].map(([name, values]) => {
      const fast = fastTenth(values);
      return [name, fast.toFixed(0), (fast - base).toFixed(0)];
    }),
  ),
);
