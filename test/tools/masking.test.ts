import { inspect } from 'node:util';
import { describe, expect, it } from 'vitest';
import { forLogs, rememberKey, withoutKeys, withoutSecrets } from '../../src/tools/masking.js';

const gateWith = (...keys: string[]): object => {
  const gate = {};
  for (const key of keys) rememberKey(gate, key);
  return gate;
};

describe('withoutKeys', () => {
  it('hides every key that the gate has handed out, and nothing else', () => {
    const gate = gateWith('8f14e45f', '8f14e45fceea167a');
    expect(withoutKeys('8f14e45fceea167a and 8f14e45f, Bearer abcdef12345', gate)).toBe(
      '[masked] and [masked], Bearer abcdef12345',
    );
  });

  it('does not take one or two letters for a key', () => {
    expect(withoutKeys('a banana', gateWith('a'))).toBe('a banana');
  });
});

describe('withoutSecrets', () => {
  it.each([
    ['authorization: Bearer abc.def-123456', 'abc.def-123456'],
    ['Incorrect API key provided: sk-proj-Ab12cd34Ef56gh78', 'sk-proj-Ab12cd34Ef56gh78'],
    ['jina_0123456789abcdef0123456789abcdef is unknown', 'jina_0123456789abcdef0123456789abcdef'],
    ['{"X-API-KEY":"0123456789abcdef0123456789abcdef01234567"}', '0123456789abcdef0123456789abcdef01234567'],
    ['GET https://example.org/?q=x&api_key=topsecret99&page=2', 'topsecret99'],
    ['cannot reach https://user:hunter22@example.org/', 'hunter22'],
    ['token eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl expired', 'eyJhbGciOiJIUzI1NiJ9'],
  ])('hides what looks like a credential in: %s', (text, secret) => {
    const told = withoutSecrets(text, undefined);
    expect(told).not.toContain(secret);
    expect(told).toContain('[masked]');
  });

  it.each([
    'Unexpected token < in JSON at position 0',
    'Basic authentication is required',
    'no task-runner-of-the-mill-solution here',
    'connect ECONNREFUSED 127.0.0.1:8080',
  ])('leaves alone: %s', (text) => {
    expect(withoutSecrets(text, undefined)).toBe(text);
  });
});

describe('forLogs', () => {
  it('gives back the very error where a log of it shows nothing secret', () => {
    const error = new Error('HTTP 500', { cause: new TypeError('fetch failed') });
    expect(forLogs(error, gateWith('serper-key-1'), { query: 'tidal power', page: 'masking' })).toBe(error);
    expect(forLogs('a text', undefined)).toBe('a text');
    expect(forLogs(undefined, undefined)).toBe(undefined);
  });

  it.each([
    ['its message', Object.assign(new Error('bad key serper-key-1'), { status: 403, code: 'EKEY' })],
    [
      'its cause',
      Object.assign(new Error('no', { cause: new Error('serper-key-1') }), { status: 403, code: 'EKEY' }),
    ],
    [
      "a client's request options, deep down",
      Object.assign(new Error('no'), {
        status: 403,
        code: 'EKEY',
        config: { request: { headers: { 'X-API-KEY': 'serper-key-1' } } },
      }),
    ],
    [
      'a Headers object',
      Object.assign(new Error('no'), {
        status: 403,
        code: 'EKEY',
        headers: new Headers({ k: 'serper-key-1' }),
      }),
    ],
  ])('tells of an error that shows a key in %s without it', (_, error) => {
    const told = forLogs(error, gateWith('serper-key-1')) as Error;
    expect(told).not.toBe(error);
    expect(inspect(told, { depth: 20 })).not.toContain('serper-key-1');
    expect(told).toMatchObject({ name: 'Error', status: 403, code: 'EKEY' });
    expect(told.stack).toContain('masking.test.ts');
  });

  it('hides the texts of the input, line by line, but not parts of words nor the names of source files', () => {
    const input = { code: 'import secrets\nprint(1 / 0)', options: [{ lang: 'python', mask: 'masking' }] };
    const error = new Error('python: line 2: print(1 / 0) fails; pythonic');
    const told = forLogs(error, undefined, input) as Error;
    expect(told.message).toBe('[masked]: line 2: [masked] fails; pythonic');
    expect(told.stack).toContain('masking.test.ts');
  });

  it('tells of an error that cannot be shown by its message alone', () => {
    const error = Object.assign(new Error('no'), {
      [inspect.custom]: () => {
        throw new Error('cannot');
      },
    });
    const told = forLogs(error, undefined) as Error;
    expect(told).not.toBe(error);
    expect(told.message).toBe('no');
  });

  it('is not stopped by an input that holds itself, nor by a large one', () => {
    const input: Record<string, unknown> = {
      rows: Array.from({ length: 200_000 }, (_, i) => `row number ${i}`),
    };
    input.self = input;
    expect((forLogs(new Error('row number 7 fails'), undefined, input) as Error).message).toBe(
      '[masked] fails',
    );
  });
});
