import { describe, expect, it, vi } from 'vitest';
import { CheckedIterator } from '../../src/internal/iteration.js';

const of = (items: unknown) => CheckedIterator.of(items as AsyncIterable<unknown>, 'fn', 'an async iterable');
const answering = (next: () => unknown) => of({ next });
const throwing = (field: 'done' | 'value') =>
  Object.defineProperty({ done: false, value: 1 }, field, {
    get() {
      throw new Error(`the getter of ${field}`);
    },
  });

describe('CheckedIterator', () => {
  it('iterates over an async iterable and over an async iterator', async () => {
    async function* items() {
      yield 1;
      return 2;
    }
    for (const given of [items(), { [Symbol.asyncIterator]: items }, { next: items().next.bind(items()) }]) {
      const iterator = of(given);
      expect(await iterator.next()).toEqual({ done: false, value: 1 });
      expect(await iterator.next()).toEqual({ done: true, value: 2 });
    }
  });

  it.each([
    ['undefined', undefined, 'got undefined'],
    ['null', null, 'got null'],
    ['a string', 'items', 'got "items"'],
    ['an array', [1], 'got an array'],
    ['a promise', Promise.resolve([1]), 'got an object'],
    ['an iterable whose iterator is none', { [Symbol.asyncIterator]: () => undefined }, 'got an object'],
    ['an iterator without next', { [Symbol.asyncIterator]: () => ({}) }, 'got an object'],
  ])('says what was expected where it is given %s', (_, items, got) => {
    expect(() => of(items)).toThrow(TypeError);
    expect(() => of(items)).toThrow(`Expected \`fn\` to be an async iterable, ${got}`);
  });

  it.each([[undefined], [null], [1], ['done']])('rejects when next answers %o', async (answer) => {
    await expect(answering(() => answer).next()).rejects.toThrow(
      'Expected `an item` to be an iterator result',
    );
    await expect(answering(async () => answer).next()).rejects.toThrow(TypeError);
  });

  it.each(['done', 'value'] as const)('rejects when %s throws', async (field) => {
    await expect(answering(async () => throwing(field)).next()).rejects.toThrow(`the getter of ${field}`);
  });

  it('reads done and value once', async () => {
    const done = vi.fn(() => false);
    const value = vi.fn(() => 7);
    const result = Object.defineProperties({}, { done: { get: done }, value: { get: value } });
    const item = await answering(() => result).next();
    expect([item.done, item.value, item.done, item.value]).toEqual([false, 7, false, 7]);
    expect([done, value].map(({ mock }) => mock.calls.length)).toEqual([1, 1]);
  });

  it('rejects when next throws, rejects or is a thenable that throws', async () => {
    const failures = [
      () => {
        throw new Error('no');
      },
      () => Promise.reject(new Error('no')),
      () => ({
        // biome-ignore lint/suspicious/noThenProperty: thenables are what is tested
        then() {
          throw new Error('no');
        },
      }),
    ];
    for (const next of failures) await expect(answering(next).next()).rejects.toThrow('no');
  });

  it('ends an iterator by return, and does without one', async () => {
    const end = vi.fn(() => 'anything');
    await of({ next() {}, return: end }).return();
    expect(end).toHaveBeenCalledOnce();
    await of({ next() {} }).return();
  });

  it('throws into an iterator, or ends one that cannot take it', async () => {
    const error = new Error('from the consumer');
    const end = vi.fn();
    await expect(of({ next() {}, return: end }).throw(error)).rejects.toBe(error);
    expect(end).toHaveBeenCalledOnce();
    const caught = of({ next() {}, throw: async (thrown: unknown) => ({ done: true, value: thrown }) });
    expect(await caught.throw(error)).toEqual({ done: true, value: error });
    await expect(of({ next() {}, throw: () => undefined }).throw(error)).rejects.toThrow(TypeError);
  });
});
