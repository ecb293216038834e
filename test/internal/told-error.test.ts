import { inspect, types } from 'node:util';
import pino from 'pino';
import { describe, expect, it } from 'vitest';
import { GateTimeoutError, KeysExhaustedError, PipelinePoolError } from '../../src/errors.js';
import { TextMask } from '../../src/internal/text-mask.js';
import { causeOf, copyOf, type Mask } from '../../src/internal/told-error.js';

const SECRET = 'sk-live-"quoted"-0123456789';
const texts = new TextMask([{ text: SECRET, label: '[masked]' }]);
const mask: Mask = { text: (text) => texts.text(text), frame: (line) => texts.text(line) };
const nothing: Mask = { text: (text) => text, frame: (line) => line };

/** All that loggers make of a value. */
function printed(value: unknown): string {
  const lines: string[] = [];
  const logger = pino({ level: 'trace' }, { write: (line: string) => void lines.push(line) });
  logger.error({ err: value, value }, 'failed');
  lines.push(inspect(value, { depth: 30, maxArrayLength: null, maxStringLength: null, showHidden: true }));
  lines.push(String(value), JSON.stringify(value) ?? '');
  return lines.join('\n');
}
const shows = (text: string) => /sk-live|0123456789/.test(text);

/** Errors as clients make them, with a secret in each. */
const leaks: [string, () => unknown][] = [
  ['its message', () => new Error(`bad key ${SECRET}`)],
  ['a cause of a cause', () => new Error('a', { cause: new Error('b', { cause: new Error(SECRET) }) })],
  [
    "a client's request options",
    () => Object.assign(new Error('x'), { config: { headers: { auth: [SECRET] } } }),
  ],
  [
    'a field far down',
    () => Object.assign(new Error('x'), { a: { b: { c: { d: { e: { f: { g: { h: SECRET } } } } } } } }),
  ],
  ['a late item', () => Object.assign(new Error('x'), { rawHeaders: [...Array(60).fill('x'), SECRET] })],
  ['the end of a long text', () => Object.assign(new Error('x'), { body: `${'x'.repeat(20_000)}${SECRET}` })],
  ['the end of a long message', () => new Error(`${'x'.repeat(20_000)}${SECRET}`)],
  ['the cut of a long message', () => new Error(`${'x'.repeat(9_990)}${SECRET}`)],
  ['JSON', () => Object.assign(new Error('x'), { body: JSON.stringify({ key: SECRET }) })],
  ['a URL', () => new Error(`cannot reach https://x.example/?key=${encodeURIComponent(SECRET)}`)],
  ['bytes', () => Object.assign(new Error('x'), { body: Buffer.from(SECRET) })],
  ['toJSON', () => Object.assign(new Error('x'), { toJSON: () => ({ key: SECRET }) })],
  ['its own way of being shown', () => Object.assign(new Error('x'), { [inspect.custom]: () => SECRET })],
  ['a getter', () => Object.defineProperty(new Error('x'), 'key', { enumerable: true, get: () => SECRET })],
  ['a symbol', () => Object.assign(new Error('x'), { [Symbol('key')]: SECRET })],
  ['the name of a field', () => Object.assign(new Error('x'), { [SECRET]: 1 })],
  ['Headers', () => Object.assign(new Error('x'), { headers: new Headers({ key: SECRET }) })],
  ['a Map', () => Object.assign(new Error('x'), { headers: new Map([['key', { value: SECRET }]]) })],
  [
    'a class of its own',
    () =>
      Object.assign(new Error('x'), {
        request: new (class Request {
          key = SECRET;
        })(),
      }),
  ],
  [
    'a Map with fields',
    () => Object.assign(new Error('x'), { map: Object.assign(new Map(), { key: SECRET }) }),
  ],
  ['an AggregateError', () => new AggregateError([new Error(SECRET)], 'all failed')],
  ['its code', () => Object.assign(new Error('x'), { code: SECRET })],
  ['its name', () => Object.assign(new Error('x'), { name: SECRET })],
  ['a text that is thrown', () => `bad key ${SECRET}`],
  ['an object that is thrown', () => ({ key: SECRET })],
  [
    'a proxy',
    () =>
      new Proxy(new Error('x'), {
        get: (error, field) => (field === 'key' ? SECRET : Reflect.get(error, field)),
      }),
  ],
  ['a function', () => Object.assign(() => {}, { key: SECRET })],
  ['an error of ours', () => new KeysExhaustedError('search', 5, new Error(SECRET))],
];

describe('copyOf', () => {
  it.each(leaks)('tells nothing of a secret in %s', (_, make) => {
    expect(shows(printed(copyOf(make(), mask)))).toBe(false);
  });

  it('keeps what helps: name, message, code, status, the stack and the causes', () => {
    const error = Object.assign(
      new TypeError(`bad ${SECRET}`, { cause: Object.assign(new Error('inner'), { code: 'EPIPE' }) }),
      {
        code: 'E_BAD',
        status: 401,
        statusCode: 401,
        hint: 'left out',
      },
    );
    const told = copyOf(error, mask) as Error;
    expect(told).not.toBe(error);
    expect(types.isNativeError(told)).toBe(true);
    expect(told).toMatchObject({
      name: 'TypeError',
      message: 'bad [masked]',
      code: 'E_BAD',
      status: 401,
      statusCode: 401,
    });
    expect(told.cause).toMatchObject({ message: 'inner', code: 'EPIPE' });
    expect(told.stack).toMatch(/TypeError: bad \[masked\]\n\s+at .*told-error\.test\.ts/s);
    expect(told).not.toHaveProperty('hint');
    expect(Object.keys(told).sort()).toEqual(['code', 'status', 'statusCode']);
  });

  it('keeps the class and the figures of errors of ours', () => {
    const error = new GateTimeoutError('llm', 'call', 500, new Error('inner'));
    const told = copyOf(error, mask) as GateTimeoutError;
    expect(told).not.toBe(error);
    expect(told).toBeInstanceOf(GateTimeoutError);
    expect(told).toBeInstanceOf(PipelinePoolError);
    expect(told).toMatchObject({
      code: 'ERR_GATE_TIMEOUT',
      source: 'llm',
      scope: 'call',
      timeoutMs: 500,
      message: error.message,
    });
    expect(told.cause).not.toBe(error.cause);
    expect(told.stack).toBe(error.stack);
  });

  it.each([undefined, null, true, 7, 'a text'])('gives %o as it is', (value) => {
    expect(copyOf(value, mask)).toBe(value);
  });

  it('is not stopped by getters that throw, nor by causes that go round', () => {
    const fails = () => {
      throw new Error('no');
    };
    const bad = {};
    for (const field of ['name', 'message', 'stack', 'code', 'cause'])
      Object.defineProperty(bad, field, { get: fails });
    expect(copyOf(bad, mask)).toMatchObject({ message: 'a value without a message' });
    const { proxy, revoke } = Proxy.revocable(new Error('x'), {});
    revoke();
    expect(copyOf(proxy, mask)).toMatchObject({ message: 'a value without a message' });
    expect(causeOf({ proxy }, mask)).toMatchObject({ message: 'a value without a message' });
    const round = new Error('round');
    round.cause = round;
    expect(copyOf(round, mask)).toMatchObject({ message: 'round', cause: { message: 'round' } });
  });

  it('hides what goes on from line to line of a message, but no names of source files', () => {
    const word: Mask = { text: (text) => text.replaceAll('told', '*'), frame: (line) => line };
    const told = copyOf(new Error('told one\ntold two'), word) as Error;
    expect(told.stack).toMatch(/^Error: \* one\n\* two\n\s+at .*told-error\.test\.ts/s);
  });
});

describe('causeOf', () => {
  it('gives the very thing that was thrown, where everything in it can be read and nothing is secret', () => {
    class ClientError extends Error {
      readonly headers = new Headers({ 'x-request-id': '7' });
      readonly error = { type: 'busy', details: [{ n: 1 }, undefined, null] };
    }
    const socket = Object.assign(new Error('other side closed'), {
      code: 'UND_ERR_SOCKET',
      socket: { bytesRead: 7 },
    });
    for (const error of [
      new ClientError('no'),
      new TypeError('fetch failed', { cause: socket }),
      new AggregateError([new Error('a')], 'b'),
      new KeysExhaustedError('search', 5, new Error('x')),
      { reason: 'plain' },
      'a text',
      undefined,
      7,
    ]) {
      expect(causeOf(error, mask)).toBe(error);
    }
  });

  it.each(leaks)('gives a copy where there is a secret in %s', (_, make) => {
    expect(shows(printed(causeOf(make(), mask)))).toBe(false);
  });

  it.each([
    ['a class of its own', { request: new (class Request {})() }],
    ['very much', { rows: Array.from({ length: 5_000 }, (_, i) => i) }],
    ['a function', { retry: () => {} }],
  ])('gives a copy where it cannot know what %s shows', (_, fields) => {
    const error = Object.assign(new Error('x'), fields);
    expect(causeOf(error, nothing)).not.toBe(error);
    expect(causeOf(error, nothing)).toMatchObject({ message: 'x' });
  });
});
