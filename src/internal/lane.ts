import PQueue from 'p-queue';

/** How a lane is built. */
export interface LaneOptions {
  /** How many jobs may run at once; without it, any number. */
  readonly concurrency?: number;
}

/** How a job joins a lane. */
export interface LaneJobOptions {
  /** Higher goes first, 0 if left out; equals in the order they came. */
  readonly priority?: number;
  /** Takes a job that has not begun out of the lane again: its promise rejects with the signal's reason. */
  readonly signal?: AbortSignal;
}

/**
 * A lane of jobs: so many at once, by priority, with a bar that can be lowered. The only importer of p-queue.
 *
 * For our own jobs alone, never for host code: a job that had to wait begins in the AsyncLocalStorage context of whoever
 * made room for it, not in that of whoever added it. A job that finds room begins before `run` returns.
 */
export class Lane {
  readonly #queue: PQueue;

  constructor({ concurrency = Number.POSITIVE_INFINITY }: LaneOptions = {}) {
    this.#queue = new PQueue({ concurrency });
  }

  /** How many jobs may run at once; growing begins waiting ones at once, shrinking stops none. */
  get concurrency(): number {
    return this.#queue.concurrency;
  }

  set concurrency(concurrency: number) {
    this.#queue.concurrency = concurrency;
  }

  /** Jobs that have begun and are not over. */
  get running(): number {
    return this.#queue.pending;
  }

  /** Jobs that have not begun. */
  get waiting(): number {
    return this.#queue.size;
  }

  get paused(): boolean {
    return this.#queue.isPaused;
  }

  /** Adds a job; settles as the job does. */
  run<R>(job: () => R | PromiseLike<R>, { priority = 0, signal }: LaneJobOptions = {}): Promise<R> {
    return this.#queue.add<R>(async () => job(), signal === undefined ? { priority } : { priority, signal });
  }

  /** Begins no further job until `resume`; those that run are not touched. */
  pause(): void {
    this.#queue.pause();
  }

  resume(): void {
    this.#queue.start();
  }

  /** Forgets the jobs that have not begun. Their promises never settle: use it where nobody awaits them. */
  clear(): void {
    this.#queue.clear();
  }

  /** Settles when no job runs or waits. */
  onIdle(): Promise<void> {
    return this.#queue.onIdle();
  }
}
