import { describe, expect, it } from 'vitest';
import { ServiceGate } from '../../src/gate/service-gate.js';
import { Budget } from '../../src/request/budget.js';
import { withBudget } from '../../src/request/current-request.js';
import { endOfTurn } from '../support/promises.js';
import { seeded } from '../support/random-numbers.js';
import { sizeOf } from '../support/soak.js';

/*
 * Random trees of tasks: each task has a budget, a child of that above it, makes calls through one gate, one after
 * another or at once, streams, and starts tasks under it. Some tasks have a budget that is no child. Calls fail and are retried, and the whole tree is aborted at any
 * microtask. Estimates are upper bounds.
 */

const TREES = sizeOf('trees of tasks under budgets', 10_000, 100_000);
/** More microtasks than most trees take. */
const MAX_STEPS = 60;

type Random = () => number;

/** One of `count` whole numbers from 0. */
const below = (random: Random, count: number) => Math.floor(random() * count);

interface World {
  readonly gate: ServiceGate;
  readonly random: Random;
  readonly budgets: Budget[];
  readonly signal: AbortSignal;
  /** What the attempts that started cost, and what they might have cost. */
  readonly cost: { least: number; most: number };
}

/** In steps of a tenth, which are no binary fractions. */
const tenths = (random: Random, count: number) => below(random, count) / 10;

/** An attempt: takes some microtasks, and then fails or says what it cost, or says nothing. */
async function attempt({ random, cost }: World, estimate: number, signal: AbortSignal) {
  const actual = below(random, Math.round(estimate * 10) + 1) / 10;
  cost.most += estimate;
  cost.least += actual;
  for (let steps = below(random, 6); steps > 0; steps--) await undefined;
  const fate = below(random, 8);
  if (fate === 0) throw new TypeError('a bug');
  if (fate === 1) throw Object.assign(new Error('busy'), { status: 500 });
  signal.throwIfAborted();
  if (fate === 2)
    return new Promise<never>((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)));
  return fate === 3 ? {} : { usd: actual };
}

async function call(world: World): Promise<void> {
  const { gate, random, signal } = world;
  const weight = 1 + below(random, 4);
  const estimate = weight / 10;
  if (below(random, 4) > 0) {
    await gate.run((context) => attempt(world, estimate, context.signal), { weight, signal });
    return;
  }
  const items = gate.stream(
    async function* (context) {
      const last = await attempt(world, estimate, context.signal);
      yield {};
      yield last;
    },
    { weight, signal },
  );
  for await (const _ of items) if (below(random, 4) === 0) break;
}

async function task(world: World, budget: Budget, depth: number): Promise<void> {
  const { random, budgets } = world;
  budgets.push(budget);
  await withBudget(budget, async () => {
    const isSequence = below(random, 2) === 0;
    const parts: Promise<void>[] = [];
    for (let left = 1 + below(random, 3); left > 0; left--) {
      const caps = below(random, 2) === 0 ? {} : { usd: tenths(random, 8), calls: below(random, 6) };
      const isTask = depth < 3 && below(random, 3) === 0;
      // A budget of its own, which is no child, applies as well as those around it.
      const own =
        below(random, 4) === 0 ? new Budget({ usd: tenths(random, 8), calls: 9, ...caps }) : undefined;
      const part = isTask ? task(world, own ?? budget.child(caps), depth + 1) : call(world);
      parts.push(part.catch(() => {}));
      if (isSequence) await part.catch(() => {});
    }
    await Promise.all(parts);
  });
}

/** What is spent and reserved beyond a cap. */
function excess(budgets: readonly Budget[]): string[] {
  const faults: string[] = [];
  for (const { limits, spent, reserved } of budgets)
    for (const meter in limits)
      if (spent[meter]! + reserved[meter]! > limits[meter]! + 1e-12)
        faults.push(`${spent[meter]} and ${reserved[meter]} of ${limits[meter]} ${meter}`);
  return faults;
}

async function grow(seed: number, abortAt: number): Promise<void> {
  const random = seeded(seed);
  const gate = new ServiceGate({
    name: 'service',
    retry: { baseMs: 0, budget: false },
    ...(below(random, 2) === 0 ? { maxConcurrent: 1 + below(random, 3) } : {}),
    cost: {
      estimate: ({ weight }) => ({ usd: weight / 10 }),
      actual: (value) => value as { usd?: number },
    },
  });
  const controller = new AbortController();
  const root = new Budget({ usd: tenths(random, 20), calls: 1 + below(random, 12) });
  const world: World = { gate, random, budgets: [], signal: controller.signal, cost: { least: 0, most: 0 } };
  let isOver = false;
  const tree = task(world, root, 0).finally(() => {
    isOver = true;
  });
  for (let step = 0; !isOver; step++) {
    // Attempts that wait for their end are aborted at last.
    if (step === abortAt || step === 200) controller.abort();
    const faults = excess(world.budgets);
    if (faults.length > 0) expect.fail(`seed ${seed}, aborted at ${abortAt}, step ${step}: ${faults}`);
    await undefined;
  }
  await tree;
  // The code of an attempt that was aborted holds its permit until it settles.
  await endOfTurn();
  const { running, limiter, attempts } = gate.stats();
  const { spent } = root;
  // Compared in plain code: matchers would take longer than the trees.
  const faults = [
    world.budgets.some(({ reserved }) => reserved.usd !== 0 || reserved.calls !== 0) &&
      'something is reserved',
    (running !== 0 || (limiter?.active ?? 0) !== 0) && 'something is held',
    spent.calls !== attempts && `${spent.calls} calls are spent in ${attempts} attempts`,
    !(spent.usd! >= world.cost.least - 1e-9) && `less is spent than ${world.cost.least}`,
    !(spent.usd! <= world.cost.most + 1e-9) && `more is spent than ${world.cost.most}`,
  ].filter((fault) => fault !== false);
  if (faults.length > 0) expect.fail(`seed ${seed}, aborted at ${abortAt}: ${faults.join(', ')}`);
}

describe('Trees of tasks under budgets', () => {
  it(`never exceed a cap and leave no reservation behind, in ${TREES} trees`, async () => {
    for (let seed = 0; seed < TREES; seed++) await grow(seed, seed % MAX_STEPS);
  });

  it('hold their caps when one tree is aborted at every microtask', async () => {
    for (let seed = 1; seed <= 5; seed++)
      for (let abortAt = 0; abortAt < 150; abortAt++) await grow(seed, abortAt);
  });
});
