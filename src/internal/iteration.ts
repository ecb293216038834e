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
    return checked(await this.#iterator.next());
  }

  /** Throws into the iterator; one without a `throw` of its own ends by it. */
  async throw(error: unknown): Promise<IteratorResult<Y, R>> {
    if (this.#iterator.throw === undefined) {
      await this.return();
      throw error;
    }
    return checked(await this.#iterator.throw(error));
  }

  /** Ends the iterator, whatever it answers. */
  async return(): Promise<void> {
    await this.#iterator.return?.();
  }
}

function checked<Y, R>(result: IteratorResult<Y, R>): IteratorResult<Y, R> {
  if (Object(result) !== result) {
    throw new TypeError(refusal('an item', 'an iterator result', result));
  }
  const { done, value } = result;
  return { done: Boolean(done), value } as IteratorResult<Y, R>;
}
