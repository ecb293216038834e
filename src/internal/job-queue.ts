import PQueue from 'p-queue';

/** How a job is queued. */
export interface JobOptions {
  /** Higher starts first; equal priorities start in the order of arrival. @default 0 */
  readonly priority?: number;
  /** Removes a job that has not started: its promise rejects with the signal's reason. */
  readonly signal?: AbortSignal;
}

/**
 * A queue of jobs with a limit of concurrency, by priority. The only importer of p-queue.
 *
 * For the library's own jobs, never for host code: a job that had to wait starts in the AsyncLocalStorage context of the
 * job that ended before it, not in that of the caller of `run`. A job that need not wait starts before `run` returns.
 */
export class JobQueue {
  readonly #queue: PQueue;

  constructor({ concurrency }: { readonly concurrency: number }) {
    this.#queue = new PQueue({ concurrency });
  }

  /** How many jobs may run at once. Raising it starts queued jobs at once, lowering it stops none. */
  get concurrency(): number {
    return this.#queue.concurrency;
  }

  set concurrency(concurrency: number) {
    this.#queue.concurrency = concurrency;
  }

  /** Jobs that have not started. */
  get queued(): number {
    return this.#queue.size;
  }

  /** Adds a job; settles as the job does. */
  run<R>(job: () => R | PromiseLike<R>, { priority = 0, signal }: JobOptions = {}): Promise<R> {
    return this.#queue.add<R>(async () => job(), signal === undefined ? { priority } : { priority, signal });
  }
}
