import { besideBare, warmUpBare } from './bare.js';
import { type PoolContender, type PoolSubject, SIZE } from './pool-contenders.js';

/** One measurement: nanoseconds of CPU time an operation, beside those of a bare await; or bytes. */
export interface PoolSample {
  readonly value: number;
  readonly bareNs?: number;
}

export interface PoolWorkload {
  readonly name: string;
  /** The row's title. */
  readonly title: string;
  readonly unit: 'ns' | 'bytes';
  readonly nodeFlags?: readonly string[];
  sample(subject: PoolSubject): Promise<PoolSample>;
  /** How many samples count. */
  readonly samples: number;
}

const endOfTurn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

async function timed(ops: number, work: () => Promise<void>): Promise<PoolSample> {
  const { ns, bareNs } = await besideBare(ops, work);
  return { value: ns, bareNs };
}

const thousands = (n: number): string => n.toLocaleString('en');

/** One holder after the other; there is always an idle instance. */
async function inTurn(subject: PoolSubject, ops: number): Promise<void> {
  for (let i = 0; i < ops; i++) await subject.release(await subject.acquire());
}

const idle: PoolWorkload = {
  name: 'idle',
  title: 'acquire and release of an idle instance',
  unit: 'ns',
  samples: 7,
  sample: (subject) => timed(40_000, () => inTurn(subject, 40_000)),
};

const waiters = (count: number): PoolWorkload => ({
  name: `waiters-${count}`,
  title: `${thousands(count)} waiters through ${SIZE} instances, each`,
  unit: 'ns',
  samples: count > 100_000 ? 3 : 7,
  sample(subject) {
    const rounds = Math.max(1, Math.round(40_000 / count));
    const turn = async (): Promise<void> => {
      await subject.release(await subject.acquire());
    };
    return timed(rounds * count, async () => {
      for (let round = 0; round < rounds; round++) {
        const answers = new Array<Promise<void>>(count);
        for (let i = 0; i < count; i++) answers[i] = turn();
        for (const answer of answers) await answer;
      }
    });
  },
});

const kept: unknown[] = [];
const heldBytes = (): number => {
  gc!();
  return process.memoryUsage().heapUsed;
};
const WEIGHED = 100_000;

const bytes: PoolWorkload = {
  name: 'bytes',
  title: 'bytes a waiter',
  unit: 'bytes',
  nodeFlags: ['--expose-gc'],
  samples: 1,
  async sample(subject) {
    for (let i = 0; i < SIZE; i++) await subject.acquire();
    // The caller's own array is not the pool's.
    const answers = new Array<unknown>(WEIGHED).fill(0);
    kept.push(subject, answers);
    const before = heldBytes();
    for (let i = 0; i < WEIGHED; i++) answers[i] = subject.acquire();
    await endOfTurn();
    const value = (heldBytes() - before) / WEIGHED;
    kept.length = 0;
    return { value };
  },
};

/** The rows of the table. */
export const POOL_ROWS: readonly PoolWorkload[] = [
  idle,
  waiters(1000),
  waiters(10_000),
  waiters(100_000),
  bytes,
];

/** How the cost of one operation changes with how many are done: the same work, more and more of it. */
export const POOL_GROWTH: readonly (PoolWorkload & { readonly ops: number })[] = [
  1000, 10_000, 100_000, 1_000_000,
].map((ops) => ({
  name: `ops-${ops}`,
  title: `${thousands(ops)} operations in turn, each`,
  unit: 'ns',
  samples: ops > 100_000 ? 1 : 5,
  ops,
  sample: (subject) => timed(ops, () => inTurn(subject, ops)),
}));

const WARM_UPS = 2;

/** Takes the samples of one workload, in this process. */
export async function takePoolSamples(
  contender: PoolContender,
  workload: PoolWorkload,
): Promise<readonly PoolSample[]> {
  await warmUpBare();
  const make = await contender.load();
  const samples: PoolSample[] = [];
  const warmUps = workload.unit === 'bytes' ? 0 : WARM_UPS;
  for (let i = -warmUps; i < workload.samples; i++) {
    const subject = make();
    // All instances are there before anything is measured, and the code of one operation is compiled.
    const all = await Promise.all(Array.from({ length: SIZE }, () => subject.acquire()));
    for (const held of all) await subject.release(held);
    if (workload.unit === 'ns') await inTurn(subject, 20_000);
    await endOfTurn();
    const sample = await workload.sample(subject);
    if (i >= 0) samples.push(sample);
  }
  return samples;
}
