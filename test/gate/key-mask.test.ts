import { inspect } from 'node:util';
import { describe, expect, it } from 'vitest';
import { KeyMask } from '../../src/gate/key-mask.js';

const LONG = 'sk-live-0123456789abcdef';
const mask = new KeyMask([LONG, 'short-key', `${LONG}-longer`, 'abc']);

describe('KeyMask', () => {
  it('knows a key by its place, and a long one by its last four characters', () => {
    expect(mask.labelOf(LONG)).toBe('#1…cdef');
    expect(mask.labelOf('short-key')).toBe('#2');
    expect(mask.labelOf('')).toBe('service');
  });

  it('masks every key in a text, the longest first', () => {
    expect(mask.text(`${LONG} and short-key and ${LONG} and ${LONG}-longer`)).toBe(
      '#1…cdef and #2 and #1…cdef and #3…nger',
    );
  });

  it('leaves an error alone that shows no key, and what is too short to be one', () => {
    const error = new Error('abc', { cause: new Error('inner') });
    expect(mask.error(error)).toBe(error);
    expect(mask.error(undefined)).toBeUndefined();
    expect(new KeyMask([]).error(new Error(LONG))).toBeInstanceOf(Error);
  });

  it.each([
    ['its message', new Error(`bad key ${LONG}`)],
    ['its cause', new Error('outer', { cause: new Error(LONG) })],
    [
      'a field deep inside',
      Object.assign(new Error('x'), { config: { headers: { auth: [`Bearer ${LONG}`] } } }),
    ],
    ['a text that is thrown', `bad key ${LONG}`],
    ['an object that is thrown', { key: LONG }],
  ])('masks %s', (_, error) => {
    const told = mask.error(error);
    expect(told).not.toBe(error);
    expect(inspect(told, { depth: 10 })).not.toContain(LONG);
  });

  it('keeps what helps: name, code, status and the stack', () => {
    const error = Object.assign(new TypeError(`bad ${LONG}`), {
      code: 'E_BAD',
      status: 401,
      statusCode: 401,
      hint: LONG,
    });
    const told = mask.error(error) as Error;
    expect(told).toMatchObject({
      name: 'TypeError',
      message: 'bad #1…cdef',
      code: 'E_BAD',
      status: 401,
      statusCode: 401,
    });
    expect(told.stack).toContain('key-mask.test.ts');
    expect(told).not.toHaveProperty('hint');
  });

  it('tells nothing of a value that cannot be shown', () => {
    const error = new Error('quiet');
    Object.defineProperty(error, Symbol.for('nodejs.util.inspect.custom'), {
      value: () => {
        throw new Error('no');
      },
    });
    expect(mask.error(error)).not.toBe(error);
    expect(mask.error(error)).toMatchObject({ message: 'quiet' });
  });
});
