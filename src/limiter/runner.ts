import { AsyncLocalStorage } from 'node:async_hooks';
import type { RunContext } from './limiter.js';
import type { LimiterPermit } from './permit.js';

/** What a host hands to `run`. */
export type Work<R> = (context: RunContext) => R | PromiseLike<R>;

/**
 * Runs the host's code under a permit and gives the permit back when it ends, however it ends. Settles as the code does.
 *
 * Plain `then` calls: an async function would cost a third more.
 */
export class Runner {
  readonly #nesting: AsyncLocalStorage<LimiterPermit> | undefined;
  /** Ends that no run has now. */
  #spare: RunEnd | undefined;

  constructor(detectNested: boolean) {
    this.#nesting = detectNested ? new AsyncLocalStorage() : undefined;
  }

  /** Whether the caller runs in here, under a permit that is still held. Always false without `detectNested`. */
  get isInside(): boolean {
    return this.#nesting !== undefined && this.#nesting.getStore()?.state === 'held';
  }

  run<R>(permit: LimiterPermit, work: Work<R>): Promise<R> {
    const signal = permit.extras?.signal;
    // The grant came before the abort, but nothing has begun yet.
    if (signal?.aborted) {
      permit.release('ignored');
      return Promise.reject(signal.reason);
    }
    const context = { signal, permit };
    try {
      const given = this.#nesting === undefined ? work(context) : this.#nesting.run(permit, work, context);
      let answer: Promise<R> = Promise.resolve(given as PromiseLike<R>);
      // One with a `then` of its own might call back twice, and an end serves another run by then.
      if (answer.then !== Promise.prototype.then) answer = new Promise((resolve) => resolve(given));
      const end = this.#spare ?? new RunEnd(this);
      this.#spare = end.next;
      end.permit = permit;
      return answer.then(end.onResult as (result: R) => R, end.onError);
    } catch (error) {
      permit.release('ignored');
      return Promise.reject(error);
    }
  }

  /** @internal */
  spare(end: RunEnd): LimiterPermit {
    const permit = end.permit as LimiterPermit;
    end.permit = undefined;
    end.next = this.#spare;
    this.#spare = end;
    return permit;
  }
}

/**
 * What follows the end of one run, and then of another: two functions made anew for each run would be a twentieth of
 * what a free one costs. There are as many as ever ran at once.
 */
class RunEnd {
  permit: LimiterPermit | undefined = undefined;
  next: RunEnd | undefined = undefined;
  readonly onResult: (result: unknown) => unknown;
  readonly onError: (error: unknown) => never;

  constructor(runner: Runner) {
    this.onResult = (result) => {
      runner.spare(this).release();
      return result;
    };
    this.onError = (error) => {
      runner.spare(this).release('ignored');
      throw error;
    };
  }
}
