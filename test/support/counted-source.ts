import { type Mock, vi } from 'vitest';
import { settled } from './fake-timers.js';
import { type Deferred, deferred } from './promises.js';

/** An async iterator of numbers that records what is asked of it. */
export interface CountedSource {
  readonly iterator: AsyncIterator<number>;
  /** One for each item that was asked for. */
  readonly asked: readonly Deferred<IteratorResult<number>>[];
  /** Its `return`. */
  readonly close: Mock<() => Promise<IteratorResult<number>>>;
  /** Answers the latest `next`, and fulfills when what follows from that has run. */
  answer(result: IteratorResult<number>): Promise<void>;
}

/** A source that makes no item by itself. For tests under fake timers. */
export function countedSource(): CountedSource {
  const asked: Deferred<IteratorResult<number>>[] = [];
  const close = vi.fn(async (): Promise<IteratorResult<number>> => ({ done: true, value: undefined }));
  const next = () => {
    const answer = deferred<IteratorResult<number>>();
    asked.push(answer);
    return answer.promise;
  };
  const answer = async (result: IteratorResult<number>) => {
    await settled();
    asked.at(-1)?.resolve(result);
    await settled();
  };
  return { iterator: { next, return: close }, asked, close, answer };
}
