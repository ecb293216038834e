import { inspect } from 'node:util';
import { describe, expect, it } from 'vitest';
import { CallMask, rememberKey, withoutKeys, withoutSecrets } from '../../src/tools/masking.js';

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

  it('hides a key also as JSON and URLs have it', () => {
    const gate = gateWith('a"key/of+mine');
    expect(withoutKeys('{"key":"a\\"key/of+mine"} ?key=a%22key%2Fof%2Bmine', gate)).toBe(
      '{"key":"[masked]"} ?key=[masked]',
    );
  });

  it('does not take one or two letters for a key', () => {
    expect(withoutKeys('a banana', gateWith('a'))).toBe('a banana');
  });
});

describe('withoutSecrets', () => {
  it('hides keys, and what looks like a credential', () => {
    expect(withoutSecrets('serper-key-1, Bearer abc.def-123456', gateWith('serper-key-1'))).toBe(
      '[masked], Bearer [masked]',
    );
  });
});

describe('CallMask', () => {
  const masked = (input: unknown, text: string) => new CallMask(undefined, input).text(text);

  it('hides the texts of the input, line by line, but not parts of words', () => {
    const input = { code: 'import secrets\nprint(1 / 0)', options: [{ lang: 'python', mask: 'masking' }] };
    expect(masked(input, 'python: line 2: print(1 / 0) fails; pythonic')).toBe(
      '[masked]: line 2: [masked] fails; pythonic',
    );
  });

  it.each([
    ['a number of four digits or more', { account: 12345678 }, 'no account 12345678', 'no account [masked]'],
    ['a negative number', { delta: -1234 }, 'delta -1234', 'delta [masked]'],
    ['a big integer', { id: 12345678901234567890n }, 'id 12345678901234567890', 'id [masked]'],
    ['no number of three', { page: 404 }, 'HTTP 404', 'HTTP 404'],
    ['no part of a number', { id: 1234 }, 'at 912345', 'at 912345'],
    ['bytes', { file: Buffer.from('a letter to my bank') }, 'a letter to my bank: no', '[masked]: no'],
    [
      'bytes as base64',
      new TextEncoder().encode('a letter to my bank'),
      'YSBsZXR0ZXIgdG8gbXkgYmFuaw==',
      '[masked]',
    ],
    [
      'a late item',
      { rows: Array.from({ length: 300 }, (_, i) => `row number ${i}`) },
      'row number 299',
      '[masked]',
    ],
    [
      'bytes in JSON',
      Buffer.from('a letter to my bank'),
      JSON.stringify(Buffer.from('a letter to my bank')),
      '{"type":"Buffer","data":[[masked]]}',
    ],
    [
      'bytes that are no Buffer',
      new TextEncoder().encode('a letter'),
      JSON.stringify(new TextEncoder().encode('a letter')),
      '{[masked]}',
    ],
    [
      'bytes as inspect shows them',
      Buffer.from('a letter to my bank'),
      inspect(Buffer.from('a letter to my bank')),
      '<Buffer [masked]>',
    ],
    ['a name that is data', { 'me@example.org': true }, 'me@example.org is unknown', '[masked] is unknown'],
    ['a date', { on: new Date(0) }, 'not on 1970-01-01T00:00:00.000Z', 'not on [masked]'],
    ['a URL', { url: new URL('https://example.org/a') }, 'no https://example.org/a', 'no [masked]'],
    ['a Map and a Set', new Map([['name', new Set(['a private name'])]]), 'a private name', '[masked]'],
    [
      'a text that was cut',
      { q: 'what is the tide at Kiel on the day' },
      'bad: "what is the tide at Ki…',
      'bad: "[masked]…',
    ],
    ['a text in a URL', { q: 'who "is" he?' }, 'GET /?q=who%20%22is%22%20he%3F', 'GET /?q=[masked]'],
  ])('hides %s', (_, input, text, told) => {
    expect(masked(input, text)).toBe(told);
  });

  it('hides keys and credentials, in the frames of a stack as well, where the input may stay', () => {
    const mask = new CallMask(gateWith('serper-key-1'), { q: 'masking' });
    expect(mask.text('masking by serper-key-1, Bearer abc.def-123456')).toBe(
      '[masked] by [masked], Bearer [masked]',
    );
    expect(mask.frame('    at masking.ts serper-key-1')).toBe('    at masking.ts [masked]');
  });

  it('hides a key that came after it was made', () => {
    const gate = {};
    const mask = new CallMask(gate, undefined);
    expect(mask.text('serper-key-1')).toBe('serper-key-1');
    rememberKey(gate, 'serper-key-1');
    expect(mask.text('serper-key-1')).toBe('[masked]');
  });

  it('hides what another hides, once the two calls are one', () => {
    const mask = new CallMask(undefined, { q: 'tides' });
    mask.join(new CallMask(undefined, { q: 'Tides' }));
    mask.join(mask);
    expect(mask.text('no tides, no Tides')).toBe('no [masked], no [masked]');
  });

  it('tells nothing at all where the input is too large to be compared', () => {
    const rows = Array.from({ length: 200_000 }, (_, i) => `row number ${i}`);
    for (const input of [{ rows }, 'ab c'.repeat(100_000), Buffer.alloc(1_000_000)]) {
      const mask = new CallMask(undefined, input);
      expect(mask.text('row number 7 fails')).toBe('[masked]');
      expect(mask.text('')).toBe('');
      expect(mask.frame('    at masking.ts')).toBe('    at masking.ts');
    }
  });

  it('is not stopped by an input that holds itself, nor by one that cannot be read', () => {
    const input: Record<string, unknown> = { q: 'a private question' };
    input.self = input;
    Object.defineProperty(input, 'bad', {
      enumerable: true,
      get: () => {
        throw new Error('no');
      },
    });
    input.toJSON = () => {
      throw new Error('no');
    };
    expect(masked(input, 'a private question fails')).toBe('[masked] fails');
    const { proxy, revoke } = Proxy.revocable({}, {});
    revoke();
    expect(masked({ proxy }, 'anything')).toBe('[masked]');
  });
});
