import { describe, expect, it } from 'vitest';
import { classifyOutcome } from '../../src/gate/classify.js';
import { classifyAnthropic, classifyGemini, classifyOpenAi } from '../../src/gate/llm-presets.js';
import { errorContentOf } from '../../src/gate/response-content.js';

/** The value, and how often a field of it, or the name or description of one, was read. */
function counted<T extends object>(value: T): { readonly value: T; readonly reads: () => number } {
  let reads = 0;
  const proxy = new Proxy(value, {
    get: (target, name) => {
      reads++;
      return Reflect.get(target, name) as unknown;
    },
    getOwnPropertyDescriptor: (target, name) => {
      reads++;
      return Reflect.getOwnPropertyDescriptor(target, name);
    },
    ownKeys: (target) => {
      const names = Reflect.ownKeys(target);
      reads += names.length;
      return names;
    },
  });
  return { value: proxy, reads: () => reads };
}

const BIG: readonly (readonly [string, () => object])[] = [
  ['a list of 100,000 items', () => new Array<number>(100_000).fill(0)],
  [
    'an object of 100,000 fields',
    () => Object.fromEntries(Array.from({ length: 100_000 }, (_, i) => [`f${i}`, i])),
  ],
];

describe.each(BIG)('an error that is, or carries, %s', (_, make) => {
  it.each([
    ['is', (value: object) => value],
    ['is under `error`', (value: object) => ({ status: 429, error: value })],
    ['is its headers', (headers: object) => ({ status: 429, headers })],
    ['is under `body`', (value: object) => ({ status: 429, body: value })],
    ['is deep in a body', (value: object) => ({ status: 429, body: { details: { list: value } } })],
  ])('is read in part where it %s', async (_where, errorOf) => {
    const { value, reads } = counted(make());
    const error = errorOf(value);
    errorContentOf(error);
    classifyOutcome({ kind: 'error', error });
    for (const classify of [classifyOpenAi, classifyAnthropic, classifyGemini])
      await classify({ kind: 'error', error });
    expect(reads()).toBeLessThan(3_000);
  });
});

it('reads a few fields of a result that is a list of 100,000 items', async () => {
  const { value, reads } = counted(new Array<number>(100_000).fill(0));
  for (const classify of [classifyOpenAi, classifyAnthropic, classifyGemini])
    await classify({ kind: 'result', value });
  expect(reads()).toBeLessThan(100);
});

it('reads bytes in the place of a body in part', () => {
  const { body } = errorContentOf({ status: 429, body: new Uint8Array(100_000) });
  expect(Object.keys(body).length).toBeLessThan(200);
});

it('keeps the fields of a body that names its time after an unreadable one', () => {
  const body = Object.defineProperty({}, 'bad', {
    enumerable: true,
    get: () => {
      throw new Error('unreadable');
    },
  });
  Object.assign(body, { retry_after: 7 });
  expect(classifyOutcome({ kind: 'error', error: { status: 429, body } })).toMatchObject({
    retryAfterMs: 7_000,
  });
});
