import { describe, expect, it } from 'vitest';
import { redactError } from '../../src/internal/redaction.js';
import { cutText, failureText, readInput, resultText } from '../../src/tools/tool-answer.js';

describe('readInput', () => {
  it('parses JSON text, treats empty text as no arguments, and uses anything else as it is', () => {
    expect(readInput('{"q":1}')).toEqual({ q: 1 });
    expect(readInput(' ')).toEqual({});
    const value = { q: 1 };
    expect(readInput(value)).toBe(value);
  });

  it('explains what to do about text that is not JSON', () => {
    expect(() => readInput('{q:')).toThrow(/JSON.*Give the arguments as one JSON object/);
  });
});

describe('resultText', () => {
  it.each([
    ['a text', 'a text'],
    ['', 'Done.'],
    [undefined, 'Done.'],
    [null, 'null'],
    [{ a: [1, 2n] }, '{"a":[1,"2"]}'],
    [{ data: Buffer.from('abc') }, '{"data":"[3 bytes]"}'],
    [new Uint8Array(5), '"[5 bytes]"'],
  ])('shows %o as %s', (result, text) => {
    expect(resultText(result)).toBe(text);
  });

  it('shows values that JSON cannot hold', () => {
    const cycle: { self?: unknown } = {};
    cycle.self = cycle;
    expect(resultText(cycle)).toContain('Circular');
    expect(resultText(() => 1)).toContain('Function');
    expect(
      resultText({
        toJSON: () => {
          throw new Error('no');
        },
      }),
    ).toContain('toJSON');
  });
});

describe('a result of more than 100,000 values', () => {
  it('is read and shown in part', () => {
    let read = 0;
    const row = {
      get value() {
        return ++read;
      },
    };
    const text = resultText({ id: 7, rows: new Array(1_000_000).fill(row), later: 1 });
    expect(text).toMatch(
      /^\{\s+id: 7,\s+rows: \[(\s*\{ value: \d+ \},?){100}\s*\]\s*\}\n\[part of more than/,
    );
    expect(read).toBeLessThan(100_000);
  });

  it('is listed once where it has an object with as many fields', () => {
    const target = Object.fromEntries(Array.from({ length: 101_000 }, (_, i) => [`field${i}`, i]));
    const done = { lists: 0, reads: 0 };
    const value = new Proxy(target, {
      ownKeys: () => {
        done.lists++;
        return Reflect.ownKeys(target);
      },
      get: (_, name) => {
        done.reads++;
        return Reflect.get(target, name);
      },
    });
    const text = resultText({ data: [value] });
    expect(text).toContain('field99: 99');
    expect(text).not.toContain('field100');
    expect(text.length).toBeLessThan(5_000);
    expect(done.lists).toBe(1);
    // JSON.stringify reads each value, and we read it without its `toJSON`.
    expect(done.reads).toBeLessThan(201_000);
  });

  it('is shown in part however deep and wide it is', () => {
    const wide = (depth: number): unknown =>
      depth === 0 ? 'leaf' : Array.from({ length: 20 }, () => wide(depth - 1));
    const text = resultText({ tree: wide(4) });
    expect(text.length).toBeLessThan(300_000);
    expect(text).toContain('leaf');
  });
});

describe('failureText', () => {
  it('includes the causes that add to the message', () => {
    const refused = Object.assign(new AggregateError([], ''), { code: 'ECONNREFUSED' });
    expect(failureText(redactError(new TypeError('fetch failed', { cause: refused })))).toBe(
      'fetch failed: ECONNREFUSED',
    );
    expect(failureText(redactError(new Error('outer: inner', { cause: new Error('inner') })))).toBe(
      'outer: inner',
    );
  });

  it.each([
    ['a text', 'a text'],
    [undefined, 'undefined'],
    [null, 'null'],
    [0, '0'],
    [{ reason: 'x' }, 'no reason given'],
  ])('shows thrown values that are not errors: %o', (thrown, text) => {
    expect(failureText(redactError(thrown))).toBe(text);
  });

  it('ends at a cycle of causes', () => {
    const error = new Error('round');
    error.cause = error;
    expect(failureText(redactError(error))).toBe('round');
  });
});

describe('cutText', () => {
  it('stays within the limit, and states the full length', () => {
    const cut = cutText('x'.repeat(1_000), 200);
    expect(cut).toHaveLength(200);
    expect(cut).toMatch(/x\n\[cut off here: 1000 characters in all\]$/);
    expect(cutText('x'.repeat(200), 200)).toHaveLength(200);
  });

  it('states the full length of a text of which it has only the beginning', () => {
    const cut = cutText('x'.repeat(150), 200, 1_000);
    expect(cut).toBe(`${'x'.repeat(150)}\n[cut off here: 1000 characters in all]`);
    expect(cutText('x'.repeat(300), 200, 100)).toMatch(/x\n\[cut off here: 300 characters in all\]$/);
  });

  it('is well-formed, whatever the text', () => {
    for (const text of ['a\ud83d b', 'a\ud83d b'.repeat(200)])
      expect(cutText(text, 200)).not.toMatch(/\p{Surrogate}/u);
  });

  it('does not cut a character in two', () => {
    for (let most = 200; most < 204; most++) {
      expect(cutText('😀'.repeat(500), most)).not.toMatch(/[\ud800-\udbff](?![\udc00-\udfff])/);
    }
  });
});
