import type { AsyncLocalStorage } from 'node:async_hooks';
import type { RunContext } from './limiter.js';
import type { LimiterPermit } from './permit.js';

/** What a host hands to `run`. */
export type Work<R> = (context: RunContext) => R | PromiseLike<R>;

/**
 * Runs the host's code under a permit and gives the permit back when it ends, however it ends. Settles as the code does.
 *
 * Plain `then` calls: an async function here would cost a third more.
 */
export function runUnder<R>(
  permit: LimiterPermit,
  work: Work<R>,
  nesting: AsyncLocalStorage<LimiterPermit> | undefined,
): Promise<R> {
  const signal = permit.extras?.signal;
  // The grant came before the abort, but nothing has begun yet.
  if (signal?.aborted) {
    permit.release('ignored');
    return Promise.reject(signal.reason);
  }
  const context = { signal, permit };
  try {
    const answer = nesting === undefined ? work(context) : nesting.run(permit, work, context);
    return Promise.resolve(answer).then(
      (result) => {
        permit.release();
        return result;
      },
      (error: unknown) => {
        permit.release('ignored');
        throw error;
      },
    );
  } catch (error) {
    permit.release('ignored');
    return Promise.reject(error);
  }
}
