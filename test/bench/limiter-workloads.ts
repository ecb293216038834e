import { besideBare, cpuNs, nothing, warmUpBare } from './bare.js';
import { type Contender, type Job, LIMIT, type Skill, type Subject } from './contenders.js';

/** How much of a workload one process does. */
export interface Effort {
  /** Operations in a sample, about. */
  readonly ops: number;
  /** Samples that count; as many as the budget allows, and one at least. */
  readonly samples: number;
  /** Milliseconds after which no further sample is begun. */
  readonly budgetMs: number;
}

/** One measurement, in the unit of its workload. */
export interface Sample {
  readonly value: number;
  /** What the value was made from. */
  readonly parts: Readonly<Record<string, number>>;
}

export interface Workload {
  readonly name: string;
  /** The row's title. */
  readonly title: string;
  readonly unit: '×' | 'bytes' | 's' | 'µs';
  readonly needs: Skill;
  readonly nodeFlags?: readonly string[];
  /** One sample is enough, and the first one counts. */
  readonly once?: boolean;
  sample(make: () => Subject, effort: Effort): Promise<Sample>;
}

const cpuMs = (): number => cpuNs() / 1e6;

/** Samples before those that count: the code has to be compiled first, and for some it is compiled twice. */
const WARM_UPS = 6;

const forEver: Job = () => new Promise(() => {});
const endOfTurn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

async function againstBare(ops: number, work: () => Promise<void>): Promise<Sample> {
  const { ns, bareNs } = await besideBare(ops, work);
  return { value: ns / bareNs, parts: { ns, bareNs } };
}

/** A limiter with nothing free, and nothing that will be. */
function full(make: () => Subject): Subject {
  const subject = make();
  for (let i = 0; i < LIMIT; i++) void subject.run(forEver);
  return subject;
}

const runFree: Workload = {
  name: 'run-free',
  title: '`run`, free',
  unit: '×',
  needs: 'run',
  sample(make, { ops }) {
    const subject = make();
    return againstBare(ops, async () => {
      for (let i = 0; i < ops; i++) await subject.run(nothing);
    });
  },
};

const acquireFree: Workload = {
  name: 'acquire-free',
  title: '`acquire` + `release`, free',
  unit: '×',
  needs: 'acquire',
  sample(make, { ops }) {
    const subject = make();
    return againstBare(ops, async () => {
      for (let i = 0; i < ops; i++) subject.release!(await subject.acquire!());
    });
  },
};

/** Queues `count` jobs in one step and waits until the last is done, again and again until the sample is full. */
function burst(count: number): Pick<Workload, 'unit' | 'needs' | 'sample'> {
  return {
    unit: '×',
    needs: 'run',
    sample(make, { ops }) {
      const subject = make();
      const rounds = Math.max(1, Math.round(ops / count));
      return againstBare(rounds * count, async () => {
        for (let round = 0; round < rounds; round++) {
          // Kept, as callers keep theirs; awaiting each would be measured with it.
          const answers = new Array<Promise<unknown>>(count);
          for (let i = 0; i < count; i++) answers[i] = subject.run(nothing);
          await answers[count - 1];
        }
      });
    },
  };
}

const thousands = (n: number): string => n.toLocaleString('en');

const queued = (count: number): Workload => ({
  name: `burst-${count}`,
  title: `${thousands(count)} queued at once, each`,
  ...burst(count),
});

/** What must not be collected while it is weighed. */
const kept: unknown[] = [];

const heldBytes = (): number => {
  gc!();
  return process.memoryUsage().heapUsed;
};

const WAITERS_WEIGHED = 100_000;

const bytes = (needs: 'run' | 'acquire'): Workload => ({
  name: `bytes-${needs}`,
  title: `bytes a queued \`${needs}\``,
  unit: 'bytes',
  needs,
  nodeFlags: ['--expose-gc'],
  once: true,
  async sample(make) {
    const subject = full(make);
    // The caller's own array is not the limiter's.
    const answers = new Array<unknown>(WAITERS_WEIGHED).fill(0);
    kept.push(subject, answers);
    const before = heldBytes();
    for (let i = 0; i < WAITERS_WEIGHED; i++) {
      answers[i] = needs === 'run' ? subject.run(nothing) : subject.acquire!();
    }
    await endOfTurn();
    const value = (heldBytes() - before) / WAITERS_WEIGHED;
    kept.length = 0;
    return { value, parts: { waiters: WAITERS_WEIGHED } };
  },
});

const ABORTS = 500;

/** Aborts some of `count` waiters, evenly spread and one after the other, and waits for each to be turned away. */
async function abortUs(make: () => Subject, count: number, aborts: number): Promise<number> {
  const subject = full(make);
  const stride = count / aborts;
  const doomed: { readonly controller: AbortController; readonly answer: Promise<unknown> }[] = [];
  for (let i = 0; i < count; i++) {
    if (i < Math.floor((doomed.length + 0.5) * stride)) {
      void subject.run(nothing);
      continue;
    }
    const controller = new AbortController();
    doomed.push({ controller, answer: subject.runUnlessAborted!(nothing, controller.signal) });
  }
  await endOfTurn();
  const begin = cpuMs();
  for (const { controller, answer } of doomed) {
    controller.abort();
    await answer.catch(() => {});
  }
  return ((cpuMs() - begin) * 1000) / doomed.length;
}

const abortOne: Workload = {
  name: 'abort-one',
  title: 'aborting one of 100,000, against one of 1,000',
  unit: '×',
  needs: 'abort',
  async sample(make) {
    let ofFewUs = 0;
    // Several short queues, so that none is shortened much by what is aborted in it.
    for (let queue = 0; queue < 5; queue++) ofFewUs += (await abortUs(make, 1000, ABORTS / 5)) / 5;
    const ofManyUs = await abortUs(make, 100_000, ABORTS);
    return { value: ofManyUs / ofFewUs, parts: { ofFewUs, ofManyUs } };
  },
};

const STORM = 50_000;

/** Queues many waiters and aborts them all. */
async function storm(make: () => Subject, signals: readonly AbortController[]) {
  const subject = full(make);
  await endOfTurn();
  const begin = cpuMs();
  const answers: Promise<unknown>[] = [];
  for (let i = 0; i < STORM; i++) {
    answers.push(subject.runUnlessAborted!(nothing, signals[i % signals.length]!.signal));
  }
  await endOfTurn();
  const queued = cpuMs();
  for (const controller of signals) controller.abort();
  await Promise.allSettled(answers);
  return { queueMs: queued - begin, abortMs: cpuMs() - queued };
}

const stormShared: Workload = {
  name: 'storm-shared',
  title: '50,000 waiters on one signal, queue and abort',
  unit: 's',
  needs: 'abort',
  async sample(make) {
    const parts = await storm(make, [new AbortController()]);
    return { value: (parts.queueMs + parts.abortMs) / 1000, parts };
  },
};

const stormOwn: Workload = {
  name: 'storm-own',
  title: '50,000 waiters, a signal for each, queue and abort, each',
  unit: 'µs',
  needs: 'abort',
  async sample(make) {
    const parts = await storm(
      make,
      Array.from({ length: STORM }, () => new AbortController()),
    );
    return { value: ((parts.queueMs + parts.abortMs) * 1000) / STORM, parts };
  },
};

/** The rows of the table. */
export const ROWS: readonly Workload[] = [
  runFree,
  acquireFree,
  queued(1000),
  queued(10_000),
  queued(100_000),
  bytes('run'),
  bytes('acquire'),
  abortOne,
  stormShared,
  stormOwn,
];

/** The points of the plot: how the cost of one job grows with how many wait at once. */
export const GROWTH: readonly (Workload & { readonly waiters: number })[] = [
  10, 100, 1000, 10_000, 100_000, 1_000_000,
].map((waiters) => ({
  name: `growth-${waiters}`,
  title: `${thousands(waiters)} waiters, each`,
  waiters,
  ...burst(waiters + LIMIT),
}));

/** Takes the samples of one workload, in this process. */
export async function takeSamples(
  contender: Contender,
  workload: Workload,
  effort: Effort,
): Promise<readonly Sample[]> {
  await warmUpBare();
  const make = await contender.load();
  if (workload.once) return [await workload.sample(make, effort)];

  // A small sample says how long a whole one would take: some limiters are thousands of times dearer than others, and
  // some wait for timers.
  const begin = performance.now();
  const elapsedMs = (): number => performance.now() - begin;
  const pilotOps = Math.ceil(effort.ops / 40);
  let last = await workload.sample(make, { ...effort, ops: pilotOps });
  const affordable = (pilotOps * effort.budgetMs) / (effort.samples + WARM_UPS) / elapsedMs();
  const ops = Math.round(Math.min(effort.ops, Math.max(affordable, pilotOps)));

  const samples: Sample[] = [];
  for (let i = 0; i < WARM_UPS + effort.samples && elapsedMs() < effort.budgetMs; i++) {
    await endOfTurn();
    last = await workload.sample(make, { ...effort, ops });
    if (i >= WARM_UPS) samples.push(last);
  }
  return samples.length > 0 ? samples : [last];
}
