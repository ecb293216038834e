import { describe, expect, it } from 'vitest';
import { escapeControls, formatDuration } from '../../src/internal/format.js';

describe('formatDuration', () => {
  it.each([
    [0, '0.0 ms'],
    [0.44, '0.4 ms'],
    [0.96, '1 ms'],
    [840.4, '840 ms'],
    [999.6, '1.0 s'],
    [12_540, '12.5 s'],
    [179_949, '179.9 s'],
    [179_950, '3 min'],
    [200_000, '3 min 20 s'],
    [3_599_400, '59 min 59 s'],
    [3_599_600, '1 h'],
    [3_900_000, '1 h 5 min'],
    [90_000_000, '25 h'],
  ])('formats %d ms as %s', (ms, formatted) => {
    expect(formatDuration(ms)).toBe(formatted);
  });
});

describe('escapeControls', () => {
  it.each([
    ['line breaks and tabs', 'a\n\r\tb', 'a\\n\\r\\tb'],
    ['other control characters', '\u0000\u001b[31m\u0085', '\\u0000\\u001b[31m\\u0085'],
    ['line and paragraph separators', 'a\u2028b\u2029', 'a\\u2028b\\u2029'],
    ['bidirectional overrides', 'task\u202egnp.exe', 'task\\u202egnp.exe'],
    [
      'bidirectional isolates and marks',
      '\u2066a\u2069\u200e\u200f\u061c',
      '\\u2066a\\u2069\\u200e\\u200f\\u061c',
    ],
    ['lone surrogates', 'a\ud83d', 'a\\ud83d'],
  ])('escapes %s', (_, text, escaped) => {
    expect(escapeControls(text)).toBe(escaped);
  });

  it('leaves all other text as it is', () => {
    for (const text of ['…a1b2', 'שלום', '👩‍🔬 mesure №3', '$& $1']) expect(escapeControls(text)).toBe(text);
  });
});
