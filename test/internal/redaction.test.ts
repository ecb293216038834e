import { inspect } from 'node:util';
import fc from 'fast-check';
import { describe, expect, it, vi } from 'vitest';
import {
  describeError,
  readError,
  redactError,
  redactKeys,
  redactText,
  registerKeys,
} from '../../src/internal/redaction.js';

const KEY = 'Zq9+wV/x 3f~Q0pLmN7t';
registerKeys([KEY, '  padded-key-77  ', 'qzx']);

const revoked = (): object => {
  const { proxy, revoke } = Proxy.revocable({}, {});
  revoke();
  return proxy;
};
const throwing = (field: string): Error =>
  Object.defineProperty(new Error('x'), field, {
    get() {
      throw new Error('a getter');
    },
  });

describe('readError', () => {
  it('reads the parts that matter of an error', () => {
    const cause = new Error('below');
    const error = Object.assign(new TypeError('bad', { cause }), { code: 'E_BAD', status: 429 });
    expect(readError(error)).toEqual({
      name: 'TypeError',
      code: 'E_BAD',
      status: 429,
      message: 'bad',
      cause,
    });
  });

  it.each([
    [{ status: 401 }, 401],
    [{ statusCode: 402 }, 402],
    [{ response: { status: 403 } }, 403],
    [{ response: { statusCode: 404 } }, 404],
    [{ status: '429' }, undefined],
    [{ status: 0, statusCode: 503 }, 503],
    [{ status: Number.NaN }, undefined],
  ])('finds the status in %o', (error, status) => {
    expect(readError(error).status).toBe(status);
  });

  const MESSAGES: Readonly<Record<string, readonly [thrown: unknown, message: string]>> = {
    'a string': ['boom', 'boom'],
    'a number': [42, '42'],
    'a symbol': [Symbol('s'), 'Symbol(s)'],
    undefined: [undefined, 'undefined'],
    null: [null, 'null'],
    'a bigint': [10n ** 1_000n, '(a bigint)'],
    'a function': [() => {}, ''],
    'an object without a message': [{}, ''],
    'a revoked proxy': [revoked(), ''],
    'a message that is a symbol': [{ message: Symbol('s') }, 'Symbol(s)'],
    'a message without prototype': [{ message: Object.create(null) }, '(an object)'],
    'a message that is an array': [{ message: ['a', 2, {}, revoked()] }, 'a, 2, (an object), (an object)'],
    'a message that is a revoked proxy': [{ message: revoked() }, '(unreadable)'],
    'a message with a toString of its own': [{ message: { toString: () => KEY } }, '(an object)'],
    'a message that throws': [throwing('message'), ''],
  };

  it.each(Object.keys(MESSAGES))('gives a readable message for %s', (name) => {
    const [thrown, message] = MESSAGES[name] ?? [];
    expect(readError(thrown).message).toBe(message);
  });

  it('finds no status in a response that cannot be read', () => {
    expect(readError({ response: revoked() }).status).toBeUndefined();
  });

  it('never calls anything of a value but its getters', () => {
    const hostile = vi.fn(() => {
      throw new Error('called');
    });
    const message = { toString: hostile, valueOf: hostile, toJSON: hostile, [Symbol.toPrimitive]: hostile };
    redactError(Object.assign(new Error(), { message, code: message, name: message, cause: message }));
    expect(hostile).not.toHaveBeenCalled();
  });
});

describe('redactError', () => {
  it('keeps name, code, status and message, and nothing else', () => {
    const error = Object.assign(new RangeError('too much'), {
      code: 'E',
      status: 503,
      config: { secret: 1 },
    });
    const summary = redactError(error);
    expect(summary).toBeInstanceOf(Error);
    expect(JSON.parse(JSON.stringify(summary))).toEqual({
      name: 'RangeError',
      message: 'too much',
      code: 'E',
      status: 503,
    });
    expect(summary.stack).toBe('RangeError: too much');
    expect(String(summary)).toBe('RangeError: too much');
    expect(inspect(summary)).toBe("[Error [RangeError]: too much] { code: 'E', status: 503 }");
  });

  it('keeps causes, at most four deep, also where they go in a circle', () => {
    const error: Error & { cause?: unknown } = new Error('again');
    error.cause = error;
    let depth = 0;
    for (let at = redactError(error).cause; at !== undefined; at = at.cause) depth++;
    expect(depth).toBe(4);
    expect(JSON.stringify(redactError(error)).match(/again/g)).toHaveLength(5);
  });

  it('leaves the error as it was', () => {
    const error = Object.assign(new Error(`for ${KEY}`), { code: KEY });
    redactError(error);
    expect(error).toMatchObject({ message: `for ${KEY}`, code: KEY });
  });

  it('redacts names, codes and causes too', () => {
    const error = Object.assign(new Error('x', { cause: new Error(KEY) }), { code: KEY, name: KEY });
    expect(JSON.parse(JSON.stringify(redactError(error)))).toEqual({
      name: '[redacted]',
      code: '[redacted]',
      message: 'x',
      cause: { name: 'Error', message: '[redacted]' },
    });
  });

  it('cuts names and codes to 100 characters, after it has redacted them', () => {
    const label = `${'x'.repeat(90)}${KEY}${'y'.repeat(5_000)}`;
    const { name, code } = redactError({ name: label, code: label });
    for (const text of [name, code]) expect(text).toBe(`${'x'.repeat(90)}[redacted]`);
  });

  it('redacts a code that is a number and a key', () => {
    registerKeys(['8675309']);
    expect(redactError({ code: 8675309 }).code).toBe('[redacted]');
    expect(redactError({ code: 8675308 }).code).toBe(8675308);
  });

  it('gives a message of at most 500 characters that are well-formed', () => {
    expect(redactError(new Error('y'.repeat(501))).message).toBe('y'.repeat(500));
    expect(redactError(new Error(`${'y'.repeat(499)}😀`)).message).toBe('y'.repeat(499));
    expect(redactError(new Error('\ud83d half')).message).toBe('\ufffd half');
  });

  it('leaves no beginning of a key that the cut has severed, wherever it is', () => {
    const long = 'L0ng'.repeat(15);
    registerKeys([long]);
    // What is before it shrinks by redaction, so that the end of the cut text is within the 500 characters.
    const before = `${long} `.repeat(31);
    for (let at = 0; at < 200; at++) {
      const { message } = redactError(
        new Error(`${before}${'.'.repeat(at)} ${long} and more ${'z'.repeat(2_000)}`),
      );
      expect(message).toMatch(/^(\[redacted\] ){15}/);
      expect(message).not.toContain('L0ng');
    }
  });

  it('reads at most 2,000 characters of a message', () => {
    const seen = vi.fn((text: string) => text);
    redactError(new Error('x'.repeat(1_000_000)), seen);
    expect(Math.max(...seen.mock.calls.map(([text]) => text.length))).toBe(2_000);
  });

  it('applies the redaction of the host last, and drops the text when that fails', () => {
    const error = new Error(`customer-7 with ${KEY}`);
    expect(redactError(error, (text) => text.replace(/customer-\d/, '*')).message).toBe('* with [redacted]');
    expect(
      redactError(error, () => {
        throw new Error('oops');
      }).message,
    ).toBe('[redacted]');
    expect(redactError(error, (() => 7) as never).message).toBe('[redacted]');
    expect(redactError(error, () => 'a'.repeat(9_000)).message).toBe('a'.repeat(500));
  });

  it('never throws, whatever was thrown', () => {
    const hostile = fc.anything({
      withNullPrototype: true,
      withBigInt: true,
      withDate: true,
    });
    fc.assert(
      fc.property(hostile, hostile, hostile, (message, code, cause) => {
        for (const thrown of [
          message,
          Object.assign(Object.create(null), { message, code, cause }),
          new Proxy({}, { get: (_, field) => ({ message, code, cause, name: code })[field as 'name'] }),
          revoked(),
          throwing('cause'),
        ]) {
          const summary = redactError(thrown);
          expect(typeof summary.message).toBe('string');
          expect(JSON.stringify(summary)).toContain(JSON.stringify(summary.message));
        }
      }),
    );
  });
});

describe('describeError', () => {
  it('gives the message, or else the code, or else the name', () => {
    expect(describeError(new Error('bad'))).toBe('bad');
    expect(describeError(Object.assign(new AggregateError([]), { code: 'ECONNREFUSED' }))).toBe(
      'ECONNREFUSED',
    );
    expect(describeError(new TypeError())).toBe('TypeError');
  });
});

describe('redactText', () => {
  const hex = Buffer.from(KEY).toString('hex');
  const base64 = Buffer.from(KEY).toString('base64');
  it.each([
    ['plain', KEY],
    ['in another case', KEY.toLowerCase()],
    ['in capitals', KEY.toUpperCase()],
    ['percent-encoded', encodeURIComponent(KEY)],
    ['in a query', `${new URLSearchParams({ k: KEY })}`.slice(2)],
    ['in hex', hex],
    ['in hex capitals', hex.toUpperCase()],
    ['in base64', base64],
    ['in base64url', Buffer.from(KEY).toString('base64url')],
    ['trimmed', 'padded-key-77'],
  ])('hides a registered key %s', (_, form) => {
    expect(redactText(`a${form}b, ${form}!`)).toBe('a[redacted]b, [redacted]!');
  });

  it.each(['', 'u', 'us', 'user:'])('hides a key in the base64 of %s and the key', (user) => {
    const form = Buffer.from(`${user}${KEY}:more`).toString('base64');
    const left = redactText(form).replace('[redacted]', '');
    expect(left.length).toBeLessThan(form.length - base64.length + 6);
  });

  it('hides the whole of what keys that overlap cover', () => {
    registerKeys(['beta', 'alpha-beta', 'beta-gamma', 'ha-beta-gamma-d']);
    expect(redactText('alpha-beta-gamma-delta')).toBe('[redacted]elta');
    expect(redactText('beta, beta-gamma')).toBe('[redacted], [redacted]');
  });

  it('does not search for keys of fewer than four characters', () => {
    expect(redactText('qzx')).toBe('qzx');
  });

  it.each([
    ['authorization: Bearer abc.def-123456', 'abc.def-123456'],
    ['Authorization: Basic dXNlcjpwYXNz', 'dXNlcjpwYXNz'],
    ['sent Basic dXNlcjpwYXNz', 'dXNlcjpwYXNz'],
    ['bearer abcdefgh12345678', 'abcdefgh12345678'],
    ['Incorrect API key provided: sk-proj-Ab12cd34Ef56gh78', 'sk-proj-Ab12cd34Ef56gh78'],
    ['sk-abcdefghijklmnopqrstuvwxyz', 'abcdefghijklmnopqrstuvwxyz'],
    ['jina_0123456789abcdef0123456789abcdef is unknown', 'jina_0123456789abcdef0123456789abcdef'],
    ['ghp_9876543210fedcba', 'ghp_9876543210fedcba'],
    ['{"X-API-KEY":"0123456789abcdef0123456789abcdef01234567"}', '0123456789abcdef0123456789abcdef01234567'],
    ['{\\"apiKey\\":\\"topsecret99\\"}', 'topsecret99'],
    ["{ apiKey: 'topsecret99' }", 'topsecret99'],
    ['GET https://example.org/?q=x&api_key=topsecret99&page=2', 'topsecret99'],
    ['GET https://example.org/?key=topsecret99', 'topsecret99'],
    ['cannot reach https://user:hunter22@example.org/', 'hunter22'],
    ['cannot reach redis://:p@ss:word@example.org/', 'ss:word'],
    ['token eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl expired', 'eyJhbGciOiJIUzI1NiJ9'],
    ['AIzaSyA1234567890abcdefghijklmnopqrstu', 'AIzaSyA1234567890abcdefghijklmnopqrstu'],
    ['AKIAIOSFODNN7EXAMPLE', 'AKIAIOSFODNN7EXAMPLE'],
  ])('hides what looks like a credential in: %s', (text, secret) => {
    expect(redactText(text)).not.toContain(secret);
    expect(redactText(text)).toContain('[redacted]');
  });

  it.each([
    'Unexpected token < in JSON at position 0',
    'Basic authentication is required',
    'no task-runner-of-the-mill-solution here',
    'connect ECONNREFUSED 127.0.0.1:8080',
    'GET https://example.org/users/a@b.example?mail=c@d.example',
    'api_key=#2…9f3a is refused',
    'api_key=[redacted], Bearer [redacted]',
    'api_key=Bearer [redacted]',
    'api_key://[redacted]@',
    'sk-learn is a library',
  ])('leaves alone: %s', (text) => {
    expect(redactText(text)).toBe(text);
  });

  it('is idempotent', () => {
    fc.assert(
      fc.property(
        fc.array(fc.constantFrom(KEY, 'api_key', '=', '"', ' ', 'Bearer ', 'sk-', 'eyJ', 'a1b2c3d4e5'), {
          maxLength: 30,
        }),
        (parts) => {
          const once = redactText(parts.join(''));
          expect(redactText(once)).toBe(once);
        },
      ),
    );
  });
});

describe('redactKeys', () => {
  it('leaves what only looks like a credential', () => {
    expect(redactKeys(`${KEY}, Bearer abcdefgh12345678`)).toBe('[redacted], Bearer abcdefgh12345678');
  });

  it('of the beginning of a text finds a key as a whole that begins in it', () => {
    const text = `${'x'.repeat(10)}${KEY}${'y'.repeat(1_000)}${KEY}`;
    for (let most = 0; most < 10 + KEY.length + 10; most++) {
      const redacted = redactKeys(text, most);
      const rest = 'y'.repeat(Math.max(0, most - 10 - KEY.length));
      expect(redacted).toBe(most <= 10 ? 'x'.repeat(most) : `${'x'.repeat(10)}[redacted]${rest}`);
    }
  });

  it('of the beginning of a text reads no further than a key reaches', () => {
    const charCodeAt = vi.spyOn(String.prototype, 'charCodeAt');
    redactKeys('x'.repeat(100_000), 1_000);
    const reads = charCodeAt.mock.calls.length;
    charCodeAt.mockRestore();
    expect(reads).toBeGreaterThan(0);
    expect(reads).toBeLessThan(2_000);
  });
});

describe('The time redaction takes', () => {
  const SIZE = 1_000_000;
  const SMALLER = 20;

  it.each([
    ['0, '],
    ['eyJ-'],
    ['eyJ'],
    ['eyJabcdefgh.'],
    ['sk-'],
    ['sk-a '],
    ['a'],
    ['-'],
    [' '],
    ['Bearer '],
    ['Bearer abc '],
    ['Bearer\t\t\t\t\t\t'],
    ['Basic authentic '],
    ['api_key'],
    ['api_key='],
    ['api_key  '],
    ['authorization: Bearer '],
    ['authorization: #1'],
    ['secret:   '],
    ['?key='],
    ['://'],
    ['://a:'],
    ['://a@'],
    [':'],
    ['@'],
    ['AIza'],
    ['AKIA'],
    [KEY],
    [KEY.slice(0, -1)],
    [KEY.slice(1)],
    [KEY.slice(-4)],
  ])('grows with the length of %j repeated, and no faster', (unit) => {
    const large = unit.repeat(Math.ceil(SIZE / unit.length));
    const small = large.slice(0, SIZE / SMALLER);
    const cpuMs = (text: string): number => {
      let least = Number.POSITIVE_INFINITY;
      for (let i = 0; i < 3; i++) {
        const before = process.cpuUsage();
        redactText(text);
        const { user, system } = process.cpuUsage(before);
        least = Math.min(least, (user + system) / 1_000);
      }
      return least;
    };
    // Quadratic work would be 400 times as much.
    expect(cpuMs(large)).toBeLessThan(Math.max(cpuMs(small), 0.5) * SMALLER * 8);
  });
});
