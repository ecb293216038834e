import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { RetryBudget } from '../../src/gate/retry.js';
import { prop } from '../support/property.js';

describe('RetryBudget', () => {
  it('allows a ratio of the calls of the last minute, plus a constant', () => {
    const budget = new RetryBudget({ ratio: 0.5, perMinute: 2 });
    expect(budget.left(0)).toBe(2);
    for (let i = 0; i < 10; i++) budget.noteCall(0);
    expect(budget.left(0)).toBe(7);
    for (let i = 0; i < 7; i++) expect(budget.tryTake(0)).toBe(true);
    expect(budget.tryTake(0)).toBe(false);
    expect(budget.left(30_000)).toBe(0);
    expect(budget.left(65_000)).toBe(2);
  });

  it('counts a whole minute, wherever it begins in a slice', () => {
    const budget = new RetryBudget({ ratio: 0, perMinute: 1 });
    expect(budget.tryTake(4_999)).toBe(true);
    expect(budget.tryTake(60_000)).toBe(false);
    expect(budget.tryTake(65_000)).toBe(true);
  });

  it('allows none if both are 0', () => {
    const budget = new RetryBudget({ ratio: 0, perMinute: 0 });
    budget.noteCall(0);
    expect(budget.tryTake(0)).toBe(false);
  });

  it('is empty after a long idle period', () => {
    const budget = new RetryBudget({ ratio: 1, perMinute: 0 });
    budget.noteCall(1_000);
    expect(budget.left(1_000)).toBe(1);
    expect(budget.left(10_000_000)).toBe(0);
  });

  prop([
    fc.array(fc.tuple(fc.nat(9_000), fc.boolean()), { maxLength: 300 }),
    fc.integer({ min: 0, max: 5 }),
    fc.constantFrom(0, 0.1, 0.2, 1),
  ])('allows no minute more than its share of the calls of just over a minute', (steps, perMinute, ratio) => {
    const budget = new RetryBudget({ ratio, perMinute });
    const calls: number[] = [];
    const retries: number[] = [];
    let now = 0;
    for (const [pause, isRetry] of steps) {
      now += pause;
      if (!isRetry) {
        budget.noteCall(now);
        calls.push(now);
      } else if (budget.tryTake(now)) {
        retries.push(now);
        const inMinute = retries.filter((at) => at > now - 60_000).length;
        const counted = calls.filter((at) => at > now - 65_000).length;
        expect(inMinute).toBeLessThanOrEqual(perMinute + ratio * counted + 1e-9);
      }
    }
  });
});
