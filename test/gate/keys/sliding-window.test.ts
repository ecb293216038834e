import { describe, expect, it } from 'vitest';
import { checkWindows, SlidingWindow } from '../../../src/gate/keys/sliding-window.js';

describe('SlidingWindow', () => {
  const begin = (window: SlidingWindow, weight: number, nowMs: number) => {
    const entry = window.reserve(weight);
    window.begin(entry, nowMs);
    return entry;
  };

  it('has capacity up to its limit', () => {
    const window = new SlidingWindow({ limit: 3, perMs: 1000 });
    for (let i = 0; i < 3; i++) {
      expect(window.waitMs(1, 0)).toBe(0);
      begin(window, 1, 0);
    }
    expect(window.waitMs(1, 0)).toBe(1000);
  });

  it('frees an entry exactly one window after it was added', () => {
    const window = new SlidingWindow({ limit: 2, perMs: 1000 });
    begin(window, 1, 100);
    begin(window, 1, 400);
    expect(window.waitMs(1, 500)).toBe(600);
    expect(window.waitMs(1, 1099)).toBe(1);
    expect(window.waitMs(1, 1100)).toBe(0);
    begin(window, 1, 1100);
    expect(window.waitMs(1, 1100)).toBe(300);
  });

  it('allows no double burst across a boundary', () => {
    const window = new SlidingWindow({ limit: 5, perMs: 1000 });
    for (let i = 0; i < 5; i++) begin(window, 1, 990);
    expect(window.waitMs(1, 1000)).toBe(990);
  });

  it('counts weights if its unit is weight, and calls otherwise', () => {
    const tokens = new SlidingWindow({ limit: 100, perMs: 1000, unit: 'weight' });
    const calls = new SlidingWindow({ limit: 2, perMs: 1000 });
    begin(tokens, 60, 0);
    begin(calls, 60, 0);
    expect(tokens.waitMs(40, 0)).toBe(0);
    expect(tokens.waitMs(41, 0)).toBe(1000);
    expect(calls.waitMs(60, 0)).toBe(0);
  });

  it('returns how long until enough entries expire', () => {
    const window = new SlidingWindow({ limit: 100, perMs: 1000, unit: 'weight' });
    begin(window, 30, 0);
    begin(window, 30, 200);
    begin(window, 30, 400);
    expect(window.waitMs(10, 500)).toBe(0);
    expect(window.waitMs(40, 500)).toBe(500);
    expect(window.waitMs(41, 500)).toBe(700);
    expect(window.waitMs(100, 500)).toBe(900);
  });

  it('never has capacity for a weight beyond its limit', () => {
    const window = new SlidingWindow({ limit: 100, perMs: 1000, unit: 'weight' });
    expect(window.waitMs(101, 0)).toBe(Number.POSITIVE_INFINITY);
  });

  it('always has capacity for a weight of 0', () => {
    const window = new SlidingWindow({ limit: 1, perMs: 1000, unit: 'weight' });
    begin(window, 1, 0);
    expect(window.waitMs(0, 0)).toBe(0);
  });

  it('counts a reservation without expiry until it begins', () => {
    const window = new SlidingWindow({ limit: 1, perMs: 1000 });
    const entry = window.reserve(1);
    expect(window.waitMs(1, 0)).toBe(1000);
    expect(window.waitMs(1, 5000)).toBe(1000);
    window.begin(entry, 5000);
    expect(window.waitMs(1, 5400)).toBe(600);
  });

  it('does not count a cancelled reservation', () => {
    const window = new SlidingWindow({ limit: 1, perMs: 1000 });
    const entry = window.reserve(1);
    window.cancel(entry);
    window.cancel(entry);
    window.begin(entry, 0);
    expect(window.waitMs(1, 0)).toBe(0);
    expect(window.free(0)).toBe(1);
  });

  it('cannot be cancelled once it has begun', () => {
    const window = new SlidingWindow({ limit: 1, perMs: 1000 });
    const entry = begin(window, 1, 0);
    window.cancel(entry);
    window.begin(entry, 500);
    expect(window.waitMs(1, 0)).toBe(1000);
  });

  it('applies a correction upwards and downwards', () => {
    const window = new SlidingWindow({ limit: 100, perMs: 1000, unit: 'weight' });
    const entry = begin(window, 50, 0);
    window.correct(entry, 20);
    expect(window.waitMs(80, 0)).toBe(0);
    window.correct(entry, 130);
    expect(window.free(0)).toBe(0);
    expect(window.waitMs(1, 0)).toBe(1000);
    expect(window.waitMs(100, 1000)).toBe(0);
  });

  it('applies a correction before the start, too', () => {
    const window = new SlidingWindow({ limit: 100, perMs: 1000, unit: 'weight' });
    const entry = window.reserve(50);
    window.correct(entry, 10);
    window.begin(entry, 0);
    expect(window.free(0)).toBe(0.9);
  });

  it('ignores a correction of an expired entry', () => {
    const window = new SlidingWindow({ limit: 100, perMs: 1000, unit: 'weight' });
    const entry = begin(window, 50, 0);
    expect(window.free(1000)).toBe(1);
    window.correct(entry, 90);
    expect(window.free(1000)).toBe(1);
  });

  it('ignores a correction if it counts calls', () => {
    const window = new SlidingWindow({ limit: 2, perMs: 1000 });
    const entry = begin(window, 1, 0);
    window.correct(entry, 90);
    expect(window.free(0)).toBe(0.5);
  });

  it('stays exact over many thousand entries', () => {
    const window = new SlidingWindow({ limit: 7, perMs: 100 });
    for (let now = 0, begun = 0; begun < 20_000; ) {
      const wait = window.waitMs(1, now);
      now += wait;
      if (wait === 0) {
        begin(window, 1, now);
        begun++;
        now += begun % 3;
      }
      if (begun === 20_000) expect(window.free(now + 100)).toBe(1);
    }
  });
});

describe('the sums of a SlidingWindow', () => {
  /** The same window, by a walk over all entries. */
  class NaiveWindow {
    readonly entries: { amount: number; beganMs: number | undefined; final: boolean }[] = [];

    waitMs(amount: number, nowMs: number, isCertain: boolean): number {
      const live = this.entries.filter((e) => e.beganMs === undefined || e.beganMs + 1000 > nowMs);
      const counted = live.filter((e) => (isCertain ? e.final && e.beganMs !== undefined : true));
      let excess = counted.reduce((sum, e) => sum + e.amount, 0) + amount - 2_000;
      if (excess <= 0 || amount === 0) return 0;
      for (const e of counted) {
        if (e.beganMs === undefined) continue;
        excess -= e.amount;
        if (excess <= 0) return e.beganMs + 1000 - nowMs;
      }
      return 1000;
    }
  }

  it('equal a walk over all entries, whatever begins, ends, is corrected or expires', () => {
    let seed = 1;
    const random = (below: number): number => {
      seed = (Math.imul(seed, 1_103_515_245) + 12_345) & 0x7fffffff;
      return (seed >> 8) % below;
    };
    const window = new SlidingWindow({ limit: 2_000, perMs: 1000, unit: 'weight' });
    const naive = new NaiveWindow();
    const pairs: { entry: ReturnType<typeof window.reserve>; model: (typeof naive.entries)[number] }[] = [];
    let nowMs = 0;
    for (let step = 0; step < 20_000; step++) {
      if (random(3) === 0) nowMs += random(3);
      const recent = pairs[pairs.length - 1 - random(Math.min(pairs.length, 600) || 1)];
      const weight = random(8);
      switch (random(4)) {
        case 0: {
          const entry = window.reserve(weight);
          window.begin(entry, nowMs);
          const model = { amount: weight, beganMs: nowMs, final: false };
          naive.entries.push(model);
          pairs.push({ entry, model });
          break;
        }
        case 1:
          if (recent !== undefined) {
            window.finish(recent.entry);
            recent.model.final = true;
          }
          break;
        case 2:
          // Only an entry that still counts is corrected.
          window.waitMs(1, nowMs);
          if (recent !== undefined && (recent.model.beganMs as number) + 1000 > nowMs) {
            window.correct(recent.entry, weight);
            recent.model.amount = weight;
          }
          break;
        default: {
          const wanted = random(2_000);
          const isCertain = random(2) === 0;
          expect(window.waitMs(wanted, nowMs, isCertain)).toBe(naive.waitMs(wanted, nowMs, isCertain));
        }
      }
    }
    expect(pairs.length).toBeGreaterThan(4_000);
  });
});

describe('checkWindows', () => {
  it.each([
    ['none', TypeError, 'Expected `rate` to be an array of windows, got "none" (string)'],
    [
      [{ limit: 0, perMs: 1 }],
      RangeError,
      'Expected `rate[0].limit` to be a whole number from 1, got 0 (number)',
    ],
    [[{ limit: 1 }], TypeError, '`rate[0].perMs`'],
    [[{ limit: 1, perMs: 0 }], RangeError, '`rate[0].perMs`'],
    [[{ limit: 1, perMs: 1, unit: 'tokens' }], TypeError, '`rate[0].unit` to be one of "calls", "weight"'],
    [[{ limit: 1, perMs: 1, per: 2 }], TypeError, 'Unknown option `per` in rate[0]'],
  ])('rejects %j', (given, kind, message) => {
    expect(() => checkWindows('rate', given as never)).toThrow(kind);
    expect(() => checkWindows('rate', given as never)).toThrow(message);
  });
});

describe('the cost of a SlidingWindow that counts weight', () => {
  /** Reads of entries by each operation on a window that holds so many. */
  function readsWith(count: number): Record<string, number> {
    let reads = 0;
    const window = new SlidingWindow({ limit: 2 * count, perMs: 60_000, unit: 'weight' });
    const begin = (weight: number, nowMs: number) => {
      const entry = new Proxy(window.reserve(weight), {
        get: (target, field) => {
          reads++;
          return Reflect.get(target, field);
        },
      });
      window.begin(entry, nowMs);
      return entry;
    };
    const entries = Array.from({ length: count }, (_, i) => begin(2, i / count));
    const costs: Record<string, number> = {};
    const measure = (operation: string, run: () => unknown): void => {
      reads = 0;
      run();
      costs[operation] = reads;
    };
    const at = (i: number) => entries[i] as (typeof entries)[number];
    const [first, middle, last] = [at(0), at(count / 2), at(count - 1)] as const;
    measure('the end of the first', () => window.finish(first));
    measure('the end of one in the middle', () => window.finish(middle));
    measure('the end of the last', () => window.finish(last));
    measure('a correction', () => window.correct(middle, 1));
    measure('a start', () => begin(1, 1));
    measure('the wait behind a full window', () => expect(window.waitMs(1, 2)).toBeGreaterThan(0));
    measure('the wait that is certain', () => window.waitMs(1, 2, true));
    measure('the free part', () => window.free(2));
    measure('what is used', () => window.used(2));
    measure('one that never begins', () => window.cancel(window.reserve(1)));
    return costs;
  }

  it('does not grow with the entries: no operation reads more than a few of them', () => {
    const costs = readsWith(100_000);
    expect(costs).toEqual(readsWith(1_000));
    for (const reads of Object.values(costs)) expect(reads).toBeLessThan(20);
  });
});
