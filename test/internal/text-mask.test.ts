import { inspect } from 'node:util';
import { fc, test } from '@fast-check/vitest';
import { describe, expect, it } from 'vitest';
import { formsOf, TextMask } from '../../src/internal/text-mask.js';

const maskOf = (...texts: string[]) => new TextMask(texts.map((text, i) => ({ text, label: `<${i + 1}>` })));
const QUESTION = 'who "owns" the über-secret\tharbour of C:\\Kiel, 50%+? Über alles!';

describe('TextMask', () => {
  it('hides every secret in a text, and nothing else', () => {
    const mask = maskOf('short-key', 'a-secret-of-many-characters');
    expect(mask.text('short-key, a-secret-of-many-characters and short-key')).toBe('<1>, <2> and <1>');
    expect(mask.text('nothing of it here')).toBe('nothing of it here');
    expect(mask.text('')).toBe('');
  });

  it('does not take three letters for a secret', () => {
    expect(maskOf('abc').text('abc abcabc')).toBe('abc abcabc');
  });

  it('names the one that is there as a whole, and the longest of several', () => {
    const mask = maskOf('sk-live-0123456789abcdef', 'sk-live-0123456789abcdef-longer', 'sk-live-0123');
    expect(mask.text('sk-live-0123456789abcdef; sk-live-0123456789abcdef-longer; sk-live-0123')).toBe(
      '<1>; <2>; <3>',
    );
  });

  it.each([
    ['as it is', QUESTION],
    ['in JSON', JSON.stringify({ q: QUESTION })],
    ['in JSON in JSON', JSON.stringify(JSON.stringify({ q: QUESTION }))],
    [
      'in ASCII JSON',
      '"who \\"owns\\" the \\u00fcber-secret\\tharbour of C:\\\\Kiel, 50%+? \\u00dcber alles!"',
    ],
    ['as inspect shows it', inspect({ q: QUESTION })],
    ['in a URL', `https://x.example/?q=${encodeURIComponent(QUESTION)}`],
    ['in a URL as it is parsed', new URL(`https://x.example/?q=${QUESTION}`).href],
    ['in a form', new URLSearchParams({ q: QUESTION }).toString()],
    ['cut off', `bad question: ${QUESTION.slice(0, 30)}…`],
    ['without its beginning', `…${QUESTION.slice(30)}`],
  ])('finds a text %s', (_, text) => {
    const told = maskOf(QUESTION).text(text);
    expect(told).toContain('<1>');
    expect(told).not.toMatch(/secret|harbour|alles/);
  });

  it('takes a short one as a word where it is one, also after an escape', () => {
    const mask = new TextMask([{ text: 'tide', label: '*', asWord: true }]);
    expect(mask.text('tide, tidewater, lowtide, "tide" q=tide&x a%20tide%20b "\\ntide\\n" untide')).toBe(
      '*, tidewater, lowtide, "*" q=*&x a%20*%20b "\\n*\\n" untide',
    );
  });

  it('takes no row of blanks for a part of a secret', () => {
    expect(maskOf(`x${' '.repeat(40)}y`).text(`a${' '.repeat(40)}b`)).toBe(`a${' '.repeat(40)}b`);
  });

  it('is not slowed down by many secrets, nor by a long one', () => {
    const lines = Array.from({ length: 20_000 }, (_, i) => `line number ${i} of a long program`);
    const mask = maskOf(...lines, 'x1'.repeat(50_000));
    const text = `${'some words of a failure '.repeat(300)}line number 777 of a long program`;
    const from = performance.now();
    expect(mask.text(text)).not.toContain('777');
    expect(performance.now() - from).toBeLessThan(1_000);
  });

  const secret = fc
    .string({ unit: 'grapheme', minLength: 4, maxLength: 60 })
    .filter((text) => !/^(.)\1*$/su.test(text));
  test.prop([fc.array(secret, { minLength: 1, maxLength: 4 }), fc.string(), fc.string()])(
    'leaves no form of a secret in any text',
    (secrets, before, after) => {
      const mask = new TextMask(secrets.map((text) => ({ text, label: '' })));
      for (const one of secrets) {
        for (const form of formsOf(one)) {
          if (form.length >= 4) expect(mask.text(`${before}|${form}|${after}`)).not.toContain(`|${form}|`);
        }
      }
    },
  );
});
