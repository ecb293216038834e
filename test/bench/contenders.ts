/**
 * The limiters that are compared, each behind the same few functions and loaded only when it is its turn, so that a
 * process holds one of them and no other.
 *
 * Every one limits to `LIMIT` at once, with nothing else switched on. Where a library has no function of that kind, the
 * shortest one that can be written with it stands in, as its users would write it; where it cannot do it, it is absent.
 */

/** What is limited: nothing at all, so that the limiter alone is measured. */
export type Job = () => Promise<void>;

/** One limiter. */
export interface Subject {
  /** Runs a job when there is room. */
  run(job: Job): Promise<unknown>;
  /** The same, and leaves the queue when the signal aborts. */
  runUnlessAborted?(job: Job, signal: AbortSignal): Promise<unknown>;
  /** Takes a place, for `release`. */
  acquire?(): Promise<unknown>;
  release?(place: unknown): void;
}

/** What a workload needs of a limiter. */
export type Skill = 'run' | 'acquire' | 'abort';

export interface Contender {
  readonly name: string;
  /** The npm package; `undefined` for ours, and for what is no library. */
  readonly npm?: string;
  /** For comparison only, not ranked. */
  readonly isYardstick?: true;
  readonly skills: readonly Skill[];
  /** Said under the table. */
  readonly note?: string;
  /** Loads the library, and gives the function that makes one limiter. */
  load(): Promise<() => Subject>;
}

/** Jobs at once, for everybody. */
export const LIMIT = 10;

const ours: Contender = {
  name: 'ours',
  skills: ['run', 'acquire', 'abort'],
  note: '`ConcurrencyLimiter`, built as the package is. Priorities, tenants, weights, timeouts and hooks are there; no listeners.',
  async load() {
    const { ConcurrencyLimiter } = await import('../../src/limiter/concurrency-limiter.js');
    return () => {
      const limiter = new ConcurrencyLimiter({ maxConcurrent: LIMIT });
      return {
        run: (job) => limiter.run(job),
        runUnlessAborted: (job, signal) => limiter.run(job, { signal }),
        acquire: () => limiter.acquire(),
        release: (permit) => (permit as { release(): void }).release(),
      };
    };
  },
};

/** Jobs in a list, each with the promise that its turn begins with: without one, it would run in another caller's context. */
class LeastFifo {
  readonly #waiting = [] as (() => void)[];
  #first = 0;
  #active = 0;
  readonly #onEnd = (): void => {
    const next = this.#waiting[this.#first];
    if (next === undefined) {
      this.#active--;
      this.#waiting.length = 0;
      this.#first = 0;
    } else {
      this.#first++;
      next();
    }
  };
  readonly #onResult = <R>(result: R): R => {
    this.#onEnd();
    return result;
  };

  run(job: Job): Promise<void> {
    if (this.#active < LIMIT) {
      this.#active++;
      return job().then(this.#onResult);
    }
    const turn = new Promise<void>((resolve) => this.#waiting.push(resolve));
    return turn.then(job).then(this.#onResult);
  }
}

const leastFifo: Contender = {
  name: 'least FIFO',
  isYardstick: true,
  skills: ['run'],
  note: 'No library: an array, and the promise that keeps the AsyncLocalStorage context of each caller. It cannot abort, weigh or fail; the least that a limiter which keeps contexts could cost.',
  async load() {
    return () => {
      const fifo = new LeastFifo();
      return { run: (job) => fifo.run(job) };
    };
  },
};

const pQueue: Contender = {
  name: 'p-queue',
  npm: 'p-queue',
  skills: ['run', 'acquire', 'abort'],
  note: 'It has no `acquire`: a job that waits for its release stands in.',
  async load() {
    const { default: PQueue } = await import('p-queue');
    return () => {
      const queue = new PQueue({ concurrency: LIMIT });
      return {
        run: (job) => queue.add(job),
        runUnlessAborted: (job, signal) => queue.add(job, { signal }),
        acquire: () =>
          new Promise((granted) => {
            void queue.add(() => new Promise<void>(granted));
          }),
        release: (free) => (free as () => void)(),
      };
    };
  },
};

const pLimit: Contender = {
  name: 'p-limit',
  npm: 'p-limit',
  skills: ['run'],
  async load() {
    const { default: limited } = await import('p-limit');
    return () => {
      const limit = limited(LIMIT);
      return { run: (job) => limit(job) };
    };
  },
};

const asyncSema: Contender = {
  name: 'async-sema',
  npm: 'async-sema',
  skills: ['run', 'acquire'],
  note: 'It has no `run`: acquire, try, finally, release.',
  async load() {
    const { Sema } = await import('async-sema');
    return () => {
      const sema = new Sema(LIMIT);
      return {
        run: async (job) => {
          const token: unknown = await sema.acquire();
          try {
            return await job();
          } finally {
            sema.release(token);
          }
        },
        acquire: () => sema.acquire(),
        release: (token) => sema.release(token),
      };
    };
  },
};

const asyncMutex: Contender = {
  name: 'async-mutex',
  npm: 'async-mutex',
  skills: ['run', 'acquire'],
  async load() {
    const { Semaphore } = await import('async-mutex');
    return () => {
      const semaphore = new Semaphore(LIMIT);
      return {
        run: (job) => semaphore.runExclusive(job),
        acquire: () => semaphore.acquire(),
        release: (place) => (place as [number, () => void])[1](),
      };
    };
  },
};

const cockatiel: Contender = {
  name: 'cockatiel',
  npm: 'cockatiel',
  skills: ['run'],
  note: 'It takes a signal, but a waiter stays in the queue until its turn; so it does not count as able to abort.',
  async load() {
    const { bulkhead } = await import('cockatiel');
    return () => {
      const policy = bulkhead(LIMIT, Number.POSITIVE_INFINITY);
      return { run: (job) => policy.execute(job) };
    };
  },
};

const fastq: Contender = {
  name: 'fastq',
  npm: 'fastq',
  skills: ['run'],
  async load() {
    const { default: queueOf } = await import('fastq');
    return () => {
      const queue = queueOf.promise((job: Job) => job(), LIMIT);
      return { run: (job) => queue.push(job) };
    };
  },
};

const bottleneck: Contender = {
  name: 'bottleneck',
  npm: 'bottleneck',
  skills: ['run'],
  async load() {
    const { default: Bottleneck } = await import('bottleneck');
    return () => {
      const limiter = new Bottleneck({ maxConcurrent: LIMIT });
      return { run: (job) => limiter.schedule(job) };
    };
  },
};

const effect: Contender = {
  name: 'Effect',
  npm: 'effect',
  skills: ['run', 'acquire', 'abort'],
  note: 'Called from promise code, through `Effect.runPromise`; inside one Effect program it is cheaper.',
  async load() {
    const { Effect, Semaphore } = await import('effect');
    return () => {
      const semaphore = Semaphore.makeUnsafe(LIMIT);
      const limited = (job: Job) => semaphore.withPermits(1)(Effect.promise(job));
      return {
        run: (job) => Effect.runPromise(limited(job)),
        runUnlessAborted: (job, signal) => Effect.runPromise(limited(job), { signal }),
        acquire: () => Effect.runPromise(semaphore.take(1)),
        release: () => {
          Effect.runSync(semaphore.release(1));
        },
      };
    };
  },
};

/** In the order of the table's columns. */
export const CONTENDERS: readonly Contender[] = [
  ours,
  pQueue,
  pLimit,
  asyncSema,
  asyncMutex,
  cockatiel,
  fastq,
  bottleneck,
  effect,
  leastFifo,
];
