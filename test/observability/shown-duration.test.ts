import { describe, expect, it } from 'vitest';
import { shownDuration } from '../../src/observability/shown-duration.js';

describe('a duration as people read it', () => {
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
  ])('%d ms is %s', (ms, shown) => {
    expect(shownDuration(ms)).toBe(shown);
  });
});
