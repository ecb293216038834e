/** The process that measures: one scenario, all its rounds. Prints the longest steps of each round as one line of JSON. */
import { openSync, readSync } from 'node:fs';
import { PerformanceObserver } from 'node:perf_hooks';
import { ConcurrencyLimiter, createPipelineManager, PipelinePool, ServiceGate } from '../../src/index.js';

let WAITERS = Number(process.argv[3] ?? 10_000);
const REASON = new Error('left');

interface Prepared {
  readonly settled: Promise<unknown>;
  trigger(): unknown;
  /** Whether the operation is a loop of the host over all waiters: no library can split it. */
  readonly isHostLoop?: boolean;
}

/** Queues the waiters; the result triggers the operation, and `settled` fulfills when all of them have settled. */
interface Scenario {
  readonly name: string;
  prepare(): Promise<Prepared>;
}

const each = <T>(make: (i: number) => Promise<T>): Promise<PromiseSettledResult<T>[]> =>
  Promise.allSettled(Array.from({ length: WAITERS }, (_, i) => make(i)));
const noWork = async (): Promise<void> => {};

const limiterOf = (
  act: (limiter: ConcurrencyLimiter) => unknown,
  arrange: (limiter: ConcurrencyLimiter) => void,
) =>
  async function prepare() {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 1 });
    arrange(limiter);
    return { settled: each(() => limiter.run(noWork)), trigger: () => act(limiter) };
  };
const hold = (limiter: ConcurrencyLimiter) => void limiter.tryAcquire();

async function aborted(
  run: (signal: AbortSignal) => Promise<unknown>,
): Promise<{ settled: Promise<unknown>; trigger(): void }> {
  const controller = new AbortController();
  return {
    settled: each(() => run(controller.signal)),
    trigger: () => controller.abort(REASON),
  };
}

const heldLimiter = () => {
  const limiter = new ConcurrencyLimiter({ maxConcurrent: 1 });
  hold(limiter);
  return limiter;
};
const heldPool = async () => {
  const pool = new PipelinePool({ size: 1, create: () => ({}) });
  return { pool, lease: await pool.acquire() };
};
/** Ends when its signal aborts. */
const untilAborted = ({ signal }: { readonly signal: AbortSignal }): Promise<never> =>
  new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)));
const tooManyRequests = (seconds: number): Error =>
  Object.assign(new Error('too many requests'), { status: 429, headers: { 'retry-after': String(seconds) } });
const unauthorized = Object.assign(new Error('unauthorized'), { status: 401 });
const heldGate = (): ServiceGate => {
  const gate = new ServiceGate({ name: 'bench', maxConcurrent: 1 });
  gate.run(untilAborted).catch(() => {});
  return gate;
};
const heldManager = () => {
  const manager = createPipelineManager({
    config: { poolSize: 1, maxConcurrentRequests: 1, maxQueue: WAITERS, acquireTimeoutMs: 600_000 },
    create: () => ({}),
  });
  manager.run('holder', untilAborted).catch(() => {});
  return manager;
};

const SCENARIOS: readonly Scenario[] = [
  { name: 'limiter: close', prepare: limiterOf((limiter) => void limiter.close(), hold) },
  {
    name: 'limiter: abort of one signal',
    prepare: () => {
      const limiter = heldLimiter();
      return aborted((signal) => limiter.run(noWork, { signal }));
    },
  },

  { name: 'limiter: resize', prepare: limiterOf((limiter) => (limiter.maxConcurrent = WAITERS + 1), hold) },
  {
    name: 'limiter: resume',
    prepare: limiterOf(
      (limiter) => {
        limiter.maxConcurrent = WAITERS;
        limiter.resume();
      },
      (limiter) => limiter.pause(),
    ),
  },
  {
    name: 'limiter: resume, one at a time',
    prepare: limiterOf(
      (limiter) => limiter.resume(),
      (limiter) => limiter.pause(),
    ),
  },
  {
    name: 'limiter: timeout of all',
    prepare: async () => {
      const limiter = heldLimiter();
      return {
        settled: each(() => limiter.run(noWork, { timeoutMs: 200 })),
        trigger: () => {},
      };
    },
  },
  {
    name: 'limiter: timeout of all, each with its own',
    prepare: async () => {
      const limiter = heldLimiter();
      return {
        settled: each((i) => limiter.run(noWork, { timeoutMs: 200 + (i % 100) / 100 })),
        trigger: () => {},
      };
    },
  },
  {
    name: 'pool: close',
    prepare: async () => {
      const { pool, lease } = await heldPool();
      return {
        settled: each(() => pool.acquire()),
        trigger: () => {
          void pool.close();
          void lease.release();
        },
      };
    },
  },
  {
    name: 'pool: abort of one signal',
    prepare: async () => {
      const { pool } = await heldPool();
      return aborted((signal) => pool.acquire({ signal }));
    },
  },
  {
    name: 'pool: timeout of all',
    prepare: async () => {
      const { pool } = await heldPool();
      return { settled: each(() => pool.acquire({ timeoutMs: 200 })), trigger: () => {} };
    },
  },
  {
    name: 'pool: all acquire from 1,000 idle instances',
    prepare: async () => {
      const pool = new PipelinePool({ size: 1_000, min: 1_000, create: () => ({}) });
      await pool.warmUp();
      let settle: (settled: Promise<unknown>) => void;
      const settled = new Promise((resolve) => (settle = resolve));
      return {
        settled,
        isHostLoop: true,
        trigger: () => settle(each(() => pool.use(noWork))),
      };
    },
  },
  {
    name: 'pool: all acquire, and 1,000 instances are created',
    prepare: async () => {
      const pool = new PipelinePool({ size: 1_000, create: () => ({}) });
      let settle: (settled: Promise<unknown>) => void;
      const settled = new Promise((resolve) => (settle = resolve));
      return {
        settled,
        isHostLoop: true,
        trigger: () => settle(each(() => pool.use(noWork))),
      };
    },
  },
  {
    name: 'pool: one instance serves all, one at a time',
    prepare: async () => {
      const { pool, lease } = await heldPool();
      return { settled: each(() => pool.use(noWork)), trigger: () => void lease.release() };
    },
  },
  {
    name: 'pool: resize to 100',
    prepare: async () => {
      const { pool, lease } = await heldPool();
      const settled = each(async () => (await pool.acquire()).release());
      return {
        settled,
        trigger: () => {
          pool.resize(100);
          void lease.release();
        },
      };
    },
  },
  {
    name: 'gate: all run, one at a time',
    prepare: async () => {
      const gate = new ServiceGate({ name: 'bench', maxConcurrent: 1 });
      let end: () => void = noWork;
      gate.run(() => new Promise<void>((resolve) => (end = resolve))).catch(() => {});
      return { settled: each(() => gate.run(noWork)), trigger: () => end() };
    },
  },
  {
    name: 'gate: close',
    prepare: async () => {
      const gate = heldGate();
      return { settled: each(() => gate.run(noWork)), trigger: () => void gate.close() };
    },
  },
  {
    name: 'gate: abort of one signal',
    prepare: () => {
      const gate = heldGate();
      return aborted((signal) => gate.run(noWork, { signal }));
    },
  },
  {
    name: 'gate: timeout of all',
    prepare: async () => {
      const gate = heldGate();
      return { settled: each(() => gate.run(noWork, { timeoutMs: 200 })), trigger: () => {} };
    },
  },
  {
    name: 'gate: all keys are quarantined',
    prepare: async () => {
      const gate = new ServiceGate({ name: 'bench', maxConcurrent: 1, keys: ['the-only-key'] });
      let fail: () => void = noWork;
      gate.run(() => new Promise((_, reject) => (fail = () => reject(unauthorized)))).catch(() => {});
      return { settled: each(() => gate.run(noWork)), trigger: () => fail() };
    },
  },
  {
    name: 'gate: all in flight are rejected with 429',
    prepare: async () => {
      const gate = new ServiceGate({ name: 'bench', retry: { attempts: 1 } });
      const failures: (() => void)[] = [];
      const settled = each(() => {
        // Made here: the stacks of 10,000 errors take longer than all that the gate does with them.
        const error = tooManyRequests(1);
        return gate.run(() => new Promise((_, reject) => failures.push(() => reject(error))));
      });
      return {
        settled,
        isHostLoop: true,
        trigger: () => {
          for (const fail of failures) fail();
        },
      };
    },
  },
  {
    name: 'gate: abort of all in flight on one signal',
    prepare: () => {
      const gate = new ServiceGate({ name: 'bench' });
      return aborted((signal) => gate.run(untilAborted, { signal }));
    },
  },
  {
    name: 'gate: a full window opens',
    prepare: async () => {
      const gate = new ServiceGate({ name: 'bench', rate: [{ limit: 1, perMs: 60_000 }] });
      await gate.run(noWork);
      return {
        settled: each(() => gate.run(noWork)),
        trigger: () => gate.setRate({ rate: [{ limit: WAITERS + 1, perMs: 60_000 }] }),
      };
    },
  },
  {
    name: 'gate: a cooldown begins, with deadlines before its end',
    prepare: async () => {
      const gate = new ServiceGate({ name: 'bench', maxConcurrent: 1, retry: { attempts: 1 } });
      let fail: () => void = noWork;
      gate.run(() => new Promise((_, reject) => (fail = () => reject(tooManyRequests(600))))).catch(() => {});
      return { settled: each(() => gate.run(noWork, { timeoutMs: 60_000 })), trigger: () => fail() };
    },
  },
  {
    name: 'gate: a cooldown begins, and ends',
    prepare: async () => {
      const gate = new ServiceGate({ name: 'bench', maxConcurrent: 10, retry: { attempts: 1 } });
      const failures: (() => void)[] = [];
      for (let i = 0; i < 10; i++)
        gate
          .run(() => new Promise((_, reject) => failures.push(() => reject(tooManyRequests(1)))))
          .catch(() => {});
      return {
        settled: each(() => gate.run(noWork)),
        trigger: () => {
          for (const fail of failures) fail();
        },
      };
    },
  },
  {
    name: 'gate: resume',
    prepare: async () => {
      const gate = new ServiceGate({ name: 'bench' });
      gate.pause();
      return { settled: each(() => gate.run(noWork)), trigger: () => gate.resume() };
    },
  },
  {
    name: 'gate: abort of one signal, all share a call',
    prepare: () => {
      const gate = new ServiceGate({ name: 'bench', cache: { max: 1, ttlMs: 60_000 } });
      return aborted((signal) => gate.run(untilAborted, { signal, cacheKey: 'shared' }));
    },
  },
  {
    name: 'manager: all run, one at a time',
    prepare: async () => {
      const manager = createPipelineManager({
        config: { poolSize: 1, maxConcurrentRequests: 1, maxQueue: WAITERS, acquireTimeoutMs: 600_000 },
        create: () => ({}),
      });
      let end: () => void = noWork;
      manager.run('holder', () => new Promise<void>((resolve) => (end = resolve))).catch(() => {});
      return { settled: each((i) => manager.run(`task-${i}`, noWork)), trigger: () => end() };
    },
  },
  {
    name: 'manager: shutdown',
    prepare: async () => {
      const manager = heldManager();
      return {
        settled: each((i) => manager.run(`task-${i}`, noWork)),
        trigger: () => void manager.shutdown({ timeoutMs: 0 }),
      };
    },
  },
  {
    name: 'manager: abort of one signal',
    prepare: () => {
      const manager = heldManager();
      return aborted((signal) => manager.run('task', noWork, { signal }));
    },
  },
  {
    name: 'manager: timeout of all',
    prepare: async () => {
      const manager = heldManager();
      return { settled: each(() => manager.run('task', noWork, { timeoutMs: 300 })), trigger: () => {} };
    },
  },
];

const endOfTurn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

const schedule = Buffer.alloc(64);
const scheduler = process.platform === 'linux' ? openSync('/proc/self/schedstat', 'r') : undefined;

/** CPU time of the main thread; elsewhere than on Linux, of all threads: those that compile, too. */
function cpuMs(): number {
  if (scheduler === undefined) {
    const { user, system } = process.cpuUsage();
    return (user + system) / 1_000;
  }
  const length = readSync(scheduler, schedule, 0, schedule.length, 0);
  return Number.parseInt(schedule.toString('latin1', 0, length), 10) / 1e6;
}

/** The longest step of a round, and what it was: the operation itself, or a later turn; how much of it was garbage collection. */
export interface LongestStep {
  readonly wallMs: number;
  readonly cpuMs: number;
  readonly turn: number;
  readonly collectorMs: number;
  /** CPU time of the calls of the host in one step, where it has a loop over all waiters. */
  readonly hostMs: number;
}

/** Collections of garbage, as they are reported: in a later turn. */
const collections: { readonly fromMs: number; readonly ms: number }[] = [];
new PerformanceObserver((list) => {
  for (const { startTime, duration } of list.getEntries())
    collections.push({ fromMs: startTime, ms: duration });
}).observe({ entryTypes: ['gc'] });

interface Step {
  readonly turn: number;
  readonly fromMs: number;
  readonly wallMs: number;
  readonly cpuMs: number;
}

/** The step with the most CPU time between two turns of the event loop, from the trigger until everything has settled. */
async function longestStep({ prepare }: Scenario): Promise<LongestStep> {
  const { settled, trigger, isHostLoop = false } = await prepare();
  for (let i = 0; i < 3; i++) await endOfTurn();
  let longest: Step = { turn: 0, fromMs: 0, wallMs: 0, cpuMs: 0 };
  let mostWallMs = 0;
  let turn = 0;
  let isWatching = true;
  let fromMs = performance.now();
  let fromCpuMs = cpuMs();
  const endStep = (): void => {
    const now = performance.now();
    const nowCpuMs = cpuMs();
    const step = { turn, fromMs, wallMs: now - fromMs, cpuMs: nowCpuMs - fromCpuMs };
    if (step.cpuMs > longest.cpuMs) longest = step;
    mostWallMs = Math.max(mostWallMs, step.wallMs);
    fromMs = now;
    fromCpuMs = nowCpuMs;
  };
  const watch = (): void => {
    endStep();
    turn++;
    if (isWatching) setImmediate(watch);
  };
  setImmediate(watch);
  trigger();
  let hostMs = 0;
  if (isHostLoop) {
    endStep();
    hostMs = longest.cpuMs;
    longest = { turn: 0, fromMs: 0, wallMs: 0, cpuMs: 0 };
    mostWallMs = 0;
  }
  await settled;
  await endOfTurn();
  isWatching = false;
  // The collector reports later.
  await new Promise((resolve) => setTimeout(resolve, 20));
  const untilMs = longest.fromMs + longest.wallMs;
  let collectorMs = 0;
  for (const { fromMs: at, ms } of collections.splice(0))
    if (at >= longest.fromMs && at < untilMs) collectorMs += ms;
  return { wallMs: mostWallMs, cpuMs: longest.cpuMs, turn: longest.turn, collectorMs, hostMs };
}

const [, , name, , rounds = '7', warmUps = '0'] = process.argv;
const scenario = SCENARIOS.find((one) => one.name === name);
if (scenario === undefined) {
  process.stdout.write(`${JSON.stringify(SCENARIOS.map(({ name }) => name))}\n`, () => process.exit(0));
} else {
  const all = WAITERS;
  // As a service has run for a while before so many wait.
  WAITERS = 500;
  for (let round = 0; round < Number(warmUps); round++) await longestStep(scenario);
  WAITERS = all;
  const steps: LongestStep[] = [];
  for (let round = 0; round < Number(rounds); round++) steps.push(await longestStep(scenario));
  process.stdout.write(`${JSON.stringify(steps)}\n`, () => process.exit(0));
}
