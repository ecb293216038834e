import { ignoreRejection } from './abort.js';
import { refusal } from './validate.js';

/**
 * An async iterator of the host or of a client, every answer of which is checked.
 *
 * Invariants:
 * - An answer that is no iterator result rejects with a `TypeError`; it never looks like an item or like the end.
 * - `done` and `value` are read once each, after `next` has settled: a getter that throws rejects.
 */
export class CheckedIterator<Y, R = unknown> {
  readonly #iterator: AsyncIterator<Y, R>;

  private constructor(iterator: AsyncIterator<Y, R>) {
    this.#iterator = iterator;
  }

  /**
   * The iterator of `items`, which may be an async iterable or an async iterator.
   *
   * @throws {TypeError} saying what was expected of `option`
   */
  static of<Y, R>(
    items: AsyncIterable<Y, R> | AsyncIterator<Y, R>,
    option: string,
    expected: string,
  ): CheckedIterator<Y, R> {
    if (Object(items) === items) {
      const { [Symbol.asyncIterator]: make } = items as Partial<AsyncIterable<Y, R>>;
      const iterator: unknown = typeof make === 'function' ? make.call(items) : items;
      if (typeof (iterator as Partial<AsyncIterator<Y, R>> | undefined)?.next === 'function')
        return new CheckedIterator(iterator as AsyncIterator<Y, R>);
      ignoreRejection(iterator);
    }
    throw new TypeError(refusal(option, expected, items));
  }

  async next(): Promise<IteratorResult<Y, R>> {
    return CheckedIterator.read(await this.#iterator.next());
  }

  /**
   * Asks for the next item. What this resolves with is to be checked with `read`. `next` does both, at the price of one
   * promise more: streams of thousands of items use these. May throw. A thenable's `then` is called in the context of this
   * call; a promise may still have a `then` of its own.
   */
  ask(): Promise<unknown> {
    return Promise.resolve(this.#iterator.next());
  }

  /** Checks what an iterator answered. */
  static read<Y, R>(result: unknown): IteratorResult<Y, R> {
    if (Object(result) !== result) {
      throw new TypeError(refusal('an item', 'an iterator result', result));
    }
    const { done, value } = result as IteratorResult<Y, R>;
    return { done: Boolean(done), value } as IteratorResult<Y, R>;
  }

  /** Throws into the iterator; one without a `throw` of its own ends by it. */
  async throw(error: unknown): Promise<IteratorResult<Y, R>> {
    if (this.#iterator.throw === undefined) {
      await this.return();
      throw error;
    }
    return CheckedIterator.read(await this.#iterator.throw(error));
  }

  /** Ends the iterator, whatever it answers. */
  async return(): Promise<void> {
    await this.#iterator.return?.();
  }
}
