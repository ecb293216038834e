import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { PipelinePoolError } from '../../src/errors.js';
import { PipelinePool } from '../../src/pool/pipeline-pool.js';
import {
  BEHAVIOURS,
  type Behaviour,
  DEADLINE_MS,
  type Faults,
  type Thing,
  taskStore,
  World,
} from '../support/pool-worlds.js';
import { seeded } from '../support/random-numbers.js';
import { isSoak, sizeOf } from '../support/soak.js';
import { VirtualTime } from '../support/virtual-time.js';

let time: VirtualTime;
beforeEach(() => {
  time = new VirtualTime();
  time.install();
});
afterEach(() => {
  time.restore();
  vi.restoreAllMocks();
});

const TASKS = 8;
const GIVEN_UP = new Error('given up');
const OTHER_STAGES = ['validate', 'prepare', 'reset', 'destroy'] as const;

/**
 * Behaviors of the other callbacks beside this one of `create`: in the full run all 625, else 125 that have each
 * combination of any three of the callbacks (an orthogonal array: the indices of the behaviors add up to a multiple of 5).
 */
function faultsWith(create: Behaviour): readonly Faults[] {
  let all: Partial<Record<keyof Faults, Behaviour>>[] = [{ create }];
  for (const stage of OTHER_STAGES) {
    all = all.flatMap((faults) => BEHAVIOURS.map((behaviour) => ({ ...faults, [stage]: behaviour })));
  }
  const combinations = all as Faults[];
  if (isSoak) return combinations;
  const indexSum = (faults: Faults): number =>
    OTHER_STAGES.reduce((sum, stage) => sum + BEHAVIOURS.indexOf(faults[stage]), 0);
  return combinations.filter((faults) => indexSum(faults) % BEHAVIOURS.length === 0);
}

const after = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

/** Arrives at some time, waits for a lease, keeps it, releases it; may be aborted at any point, or release late. */
async function task(world: World, name: string, next: () => number): Promise<void> {
  const { pool } = world;
  await after(next() * 100);
  const controller = new AbortController();
  if (next() < 0.4) setTimeout(() => controller.abort(GIVEN_UP), next() * 150);
  const options = {
    taskId: name,
    signal: controller.signal,
    priority: Math.floor(next() * 2),
    ...(next() < 0.3 ? { timeoutMs: Math.floor(next() * 100) } : {}),
    ...(next() < 0.15 ? { instanceId: 1 + Math.floor(next() * 4) } : {}),
  };
  const lease = await pool.acquire(options);
  const thing: Thing = lease.pipeline;
  world.took(thing, name);
  lease.signal.addEventListener('abort', () => world.gave(thing));
  await after(next() < 0.1 ? 200 : next() * 30);
  if (lease.isHeld) world.gave(thing);
  await lease.release({ discard: next() < 0.2 });
  world.check();
}

/** What goes on around a pool while its tasks run. */
async function disturb(world: World, next: () => number): Promise<void> {
  for (let i = 0; i < 4; i++) {
    await after(next() * 80);
    const choice = next();
    if (choice < 0.3) world.pool.refresh();
    else if (choice < 0.6) world.pool.resize(2 + Math.floor(next() * 2));
    world.check();
  }
}

/** Whether a task ended as tasks may: with a lease, by its own abort, or with an error of the pool. */
function isUsual(result: PromiseSettledResult<void>): boolean {
  if (result.status === 'fulfilled') return true;
  return result.reason === GIVEN_UP || result.reason instanceof PipelinePoolError;
}

interface Run {
  readonly faults: Faults;
  readonly world: World;
  results: readonly PromiseSettledResult<void>[] | undefined;
}

function begin(faults: Faults, seed: number): Run {
  const next = seeded(seed);
  const world = new World(faults);
  world.pool = new PipelinePool<Thing>({
    size: 3,
    min: seed % 2,
    ...world.callbacks(),
    createTimeoutMs: DEADLINE_MS,
    validateTimeoutMs: DEADLINE_MS,
    prepareTimeoutMs: DEADLINE_MS,
    resetTimeoutMs: DEADLINE_MS,
    destroyTimeoutMs: DEADLINE_MS,
    validateAfterIdleMs: 5,
    validateIdleEveryMs: 100,
    idleTimeoutMs: 150,
    maxLeaseMs: 100,
    maxUses: 3,
    maxLifetimeMs: 300,
    createRetry: { baseMs: 5, maxMs: 40 },
    ...(seed % 3 === 0 ? { createConcurrency: 1 } : {}),
  });
  const tasks = Array.from({ length: TASKS }, (_, i) => {
    const name = `${seed}/${i}`;
    return taskStore.run(name, () => task(world, name, next));
  });
  const run: Run = { faults, world, results: undefined };
  void Promise.allSettled([...tasks, disturb(world, next)]).then((results) => {
    run.results = results;
  });
  return run;
}

describe('a pool under every combination of faults', () => {
  it.each(BEHAVIOURS)(
    'keeps its invariants, settles every request and closes to nothing when its `create` %s',
    async (create) => {
      // Jitter and tasks are the same from run to run.
      const next = seeded(7);
      vi.spyOn(Math, 'random').mockImplementation(next);
      const runs = faultsWith(create).map((faults, seed) => begin(faults, seed));
      expect(runs).toHaveLength(sizeOf(`pools whose create ${create}`, 125, 625));
      await time.pass(1_200);

      const stuck = runs.filter(({ results }) => results === undefined);
      expect(stuck.map(({ faults, world }) => [faults, world.pool.stats()])).toEqual([]);
      const odd = runs.flatMap(({ results = [] }) => results.filter((result) => !isUsual(result)));
      expect(odd).toEqual([]);
      for (const { world } of runs) {
        expect(world.pool.stats()).toMatchObject({ queued: 0, leased: 0, resetting: 0 });
        const { acquired, released, revoked } = world.pool.stats();
        expect(acquired).toBe(released + revoked);
      }

      let closed = 0;
      for (const { world } of runs) {
        void world.pool.close({ timeoutMs: 10 }).then(() => {
          closed++;
        });
      }
      await time.pass(10 + 2 * DEADLINE_MS);
      expect(closed).toBe(runs.length);
      // What came or went too late has come and gone.
      await time.pass(500);

      const violations = runs.flatMap(({ faults, world }) =>
        world.violations.map((what) => ({ what, faults })),
      );
      expect(violations).toEqual([]);
      for (const { faults, world } of runs) {
        expect(world.pool.stats()).toMatchObject({ live: 0, queued: 0, leased: 0, idle: 0 });
        if (create === 'never' || faults.destroy === 'never') continue;
        expect(world.alive, JSON.stringify(faults)).toBe(0);
      }
      expect(time.pending).toBe(0);
    },
  );
});
