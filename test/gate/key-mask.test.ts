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
    const text = `${LONG} and short-key and ${LONG} and ${LONG}-longer`;
    expect(mask.text(text)).toBe('#1…cdef and #2 and #1…cdef and #3…nger');
    expect(mask.frame(`    at ${LONG}`)).toBe('    at #1…cdef');
  });

  it('leaves alone what is too short to be a key', () => {
    expect(mask.text('abc')).toBe('abc');
  });

  it('masks what looks like a credential, whether the gate has keys or not', () => {
    expect(new KeyMask([]).text('Authorization: Bearer sk-live-0123456789')).toBe(
      'Authorization: [masked] [masked]',
    );
    expect(mask.text('api_key=short-key, token ghp_9876543210fedcba')).toBe('api_key=#2, token [masked]');
  });

  it('masks what another mask hides, too', () => {
    const both = mask.with({ text: (text) => text.replace('tides', '*'), frame: (line) => line });
    expect(both.text('tides by short-key')).toBe('* by #2');
    expect(both.frame('tides by short-key')).toBe('tides by #2');
    expect(mask.with(undefined)).toBe(mask);
  });
});
