import { describe, expect, it } from 'vitest';
import {
  abortSignal,
  callable,
  checkEach,
  durationMs,
  finiteNumber,
  flag,
  integer,
  MAX_TIMER_MS,
  oneOf,
  optional,
  options,
  text,
  wholeNumber,
} from '../../src/internal/validate.js';

describe('A refusal', () => {
  it.each([
    [undefined, 'undefined (undefined)'],
    [null, 'null (null)'],
    ['5', '"5" (string)'],
    [true, 'true (boolean)'],
    [5n, '5 (bigint)'],
    [Symbol('five'), 'Symbol(five) (symbol)'],
    [{ five: 5 }, 'an object (object)'],
    [[5], 'an array (object)'],
    [() => 5, 'a function (function)'],
  ])('names the option, what was expected, and %s', (value, shown) => {
    expect(() => wholeNumber('size', value)).toThrow(
      `Expected \`size\` to be a whole number from 1, got ${shown}`,
    );
  });

  it('is a TypeError for another kind of value, a RangeError for a number out of range', () => {
    expect(() => wholeNumber('size', '5')).toThrow(TypeError);
    expect(() => wholeNumber('size', 0)).toThrow(RangeError);
    expect(() => finiteNumber('share', {}, 0, 1)).toThrow(TypeError);
    expect(() => finiteNumber('share', 1.1, 0, 1)).toThrow(RangeError);
  });
});

describe('wholeNumber', () => {
  it.each([1, 7, Number.MAX_SAFE_INTEGER])('gives %d back', (value) => {
    expect(wholeNumber('size', value)).toBe(value);
  });

  it.each([0, -1, 1.5, Number.NaN, Number.POSITIVE_INFINITY, Number.MAX_SAFE_INTEGER + 1])(
    'refuses %d',
    (value) => {
      expect(() => wholeNumber('size', value)).toThrow('a whole number from 1, got');
    },
  );

  it('names no bound where any whole number will do', () => {
    expect(() => integer('priority', 0.5)).toThrow('a whole number, got 0.5 (number)');
  });

  it('accepts both bounds', () => {
    expect([wholeNumber('size', 2, 2, 4), wholeNumber('size', 4, 2, 4)]).toEqual([2, 4]);
    expect(() => wholeNumber('size', 1, 2, 4)).toThrow('a whole number from 2 to 4, got 1 (number)');
    expect(() => wholeNumber('size', 5, 2, 4)).toThrow(RangeError);
  });
});

describe('finiteNumber and durationMs', () => {
  it('return a number within the bounds, both included', () => {
    expect([0, 0.5, 1].map((value) => finiteNumber('share', value, 0, 1))).toEqual([0, 0.5, 1]);
    expect([0, 0.5, MAX_TIMER_MS].map((value) => durationMs('timeoutMs', value))).toEqual([
      0,
      0.5,
      MAX_TIMER_MS,
    ]);
    expect(durationMs('timeoutMs', 10, 10)).toBe(10);
  });

  it.each([-0.1, Number.NaN, Number.POSITIVE_INFINITY, MAX_TIMER_MS + 1])(
    'refuse %d as a duration',
    (value) => {
      expect(() => durationMs('timeoutMs', value)).toThrow(
        'Expected `timeoutMs` to be a number from 0 to 2147483647, got',
      );
    },
  );

  it('reject a duration that a Node timer cannot hold', () => {
    expect(MAX_TIMER_MS).toBe(2 ** 31 - 1);
    expect(() => durationMs('timeoutMs', 2 ** 31)).toThrow(RangeError);
  });
});

describe('callable, text, flag and oneOf', () => {
  it('return a valid value', () => {
    const fn = () => {};
    expect(callable('create', fn)).toBe(fn);
    expect(text('name', 'pool')).toBe('pool');
    expect([flag('drain', true), flag('drain', false)]).toEqual([true, false]);
    expect(oneOf('scope', 'task', ['task', 'instance'])).toBe('task');
  });

  it('reject anything else', () => {
    expect(() => callable('create', {} as never)).toThrow(
      'Expected `create` to be a function, got an object',
    );
    expect(() => text('name', '')).toThrow('Expected `name` to be a non-empty string, got "" (string)');
    expect(() => text('name', 5)).toThrow(TypeError);
    expect(() => flag('drain', 1)).toThrow('Expected `drain` to be a boolean, got 1 (number)');
    expect(() => oneOf('scope', 'tasks', ['task', 'instance'])).toThrow(
      'Expected `scope` to be one of "task", "instance", got "tasks" (string)',
    );
  });
});

describe('abortSignal', () => {
  it('returns a signal, of another realm too', () => {
    const { signal } = new AbortController();
    expect(abortSignal('signal', signal)).toBe(signal);
    const foreign = { aborted: false, addEventListener() {} };
    expect(abortSignal('signal', foreign)).toBe(foreign);
  });

  it.each([[undefined], [null], ['signal'], [{}], [new AbortController()], [{ aborted: false }]])(
    'refuses %s',
    (value) => {
      expect(() => abortSignal('signal', value)).toThrow('Expected `signal` to be an AbortSignal');
    },
  );
});

describe('options', () => {
  it('returns an object whose options are all known', () => {
    const given = { size: 5, name: undefined };
    expect(options('Pool', given, ['size', 'name'])).toBe(given);
    expect(options('Pool', {}, [])).toEqual({});
  });

  it('rejects an unknown option, and lists the known ones', () => {
    expect(() => options('Pool', { size: 5, nmae: 'pool' }, ['size'])).toThrow(
      'Unknown option `nmae` in Pool; it takes `size`',
    );
  });

  it('rejects a signal that stands in the place of `{ signal }`', () => {
    const { signal } = new AbortController();
    expect(() => options('Pool', signal as never, ['signal'])).toThrow(/^Unknown option `\w+` in Pool/);
  });

  it.each([[undefined], [null], [5], ['size'], [[]], [() => {}]])(
    'refuses %s, which is no object',
    (value) => {
      expect(() => options('Pool', value as never, [])).toThrow('Expected `Pool` to be an options object');
    },
  );
});

describe('optional', () => {
  it('checks an option only if it is given', () => {
    expect(optional('name', undefined, text)).toBeUndefined();
    expect(optional('name', 'pool', text)).toBe('pool');
    expect(() => optional('name', '', text)).toThrow(TypeError);
  });
});

describe('checkEach', () => {
  const checks = { size: wholeNumber };

  it.each(['toString', 'constructor', 'valueOf', '__proto__'])(
    'refuses `%s`, which the table only inherits',
    (option) => {
      const given = Object.defineProperty({ size: 1 }, option, { value: 1, enumerable: true });
      expect(() => checkEach('Pool', given, checks)).toThrow(
        `Unknown option \`${option}\` in Pool; it takes \`size\``,
      );
    },
  );

  it('checks options that are inherited, or accessors of a class', () => {
    class Config {
      get size() {
        return 0;
      }
    }
    expect(() => checkEach('Pool', new Config(), checks)).toThrow('Expected `size` to be');
    expect(() => checkEach('Pool', Object.create({ size: 0 }), checks)).toThrow('Expected `size` to be');
    expect(() => checkEach('Pool', Object.create({ sise: 1 }), checks)).toThrow('Unknown option `sise`');
    const frozen = Object.freeze(Object.assign(Object.create(null), { size: 1 }));
    expect(checkEach('Pool', frozen, checks)).toBe(frozen);
  });
});
