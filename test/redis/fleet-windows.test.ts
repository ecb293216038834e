import { describe, expect, it } from 'vitest';
import { layoutOf, OwnStarts } from '../../src/redis/fleet-windows.js';

describe('the windows of a gate over Redis', () => {
  it('are one for each length and unit, with the strictest limit', () => {
    const { windows, shared, keys } = layoutOf(
      [{ key: 'k', rate: [{ limit: 3, perMs: 1_000 }] }],
      [
        { limit: 9, perMs: 1_000 },
        { limit: 5, perMs: 1_000 },
        { limit: 7, perMs: 1_000, unit: 'weight' },
        { limit: 8, perMs: 2_000 },
      ],
    );
    expect(windows.map(({ limit }) => limit)).toEqual([5, 7, 8, 3]);
    expect(shared).toEqual([0, 1, 2]);
    expect(keys).toEqual([['k', [3]]]);
    expect(new Set(windows.map(({ id }) => id)).size).toBe(4);
  });

  it('are whole milliseconds long, as Redis requires of the life of a key', () => {
    const { argument } = layoutOf([{ key: 'k', rate: [{ limit: 3, perMs: 100.5 }] }], []);
    expect(JSON.parse(argument)).toMatchObject({ w: [[expect.any(String), 3, 101, 1, 1]], t: 101 });
  });

  it('count what the longest one of their kind counted, when they are new', () => {
    const calls = layoutOf(
      [],
      [
        { limit: 5, perMs: 1_000 },
        { limit: 9, perMs: 60_000 },
      ],
    );
    const both = layoutOf(
      [],
      [
        { limit: 7, perMs: 30_000 },
        { limit: 7, perMs: 30_000, unit: 'weight' },
      ],
    );
    const own = new OwnStarts();
    own.note(calls, 'k', 70_001, 4);
    own.note(calls, 'k', 90_000, 4);
    const [added, weight] = own.change(calls, both);
    // From the end of a slice of 60 ms, in slices of 30 ms.
    expect(own.since(added as never, 0)).toEqual([
      [70_020, 1],
      [90_000, 1],
    ]);
    expect(own.since(added as never, 80_000)).toEqual([[90_000, 1]]);
    expect(own.since(weight as never, 0)).toEqual([]);
    expect(own.change(both, both)).toEqual([]);
    expect(own.since(calls.windows[1] as never, 0)).toEqual([]);
  });
});
