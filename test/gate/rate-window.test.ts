import { describe, expect, it } from 'vitest';
import { checkWindows, WindowLedger } from '../../src/gate/rate-window.js';

describe('WindowLedger', () => {
  const begin = (ledger: WindowLedger, weight: number, nowMs: number) => {
    const charge = ledger.reserve(weight);
    ledger.begin(charge, nowMs);
    return charge;
  };

  it('has room up to its limit', () => {
    const ledger = new WindowLedger({ limit: 3, perMs: 1000 });
    for (let i = 0; i < 3; i++) {
      expect(ledger.waitFor(1, 0)).toBe(0);
      begin(ledger, 1, 0);
    }
    expect(ledger.waitFor(1, 0)).toBe(1000);
  });

  it('frees a place exactly one window after it was taken', () => {
    const ledger = new WindowLedger({ limit: 2, perMs: 1000 });
    begin(ledger, 1, 100);
    begin(ledger, 1, 400);
    expect(ledger.waitFor(1, 500)).toBe(600);
    expect(ledger.waitFor(1, 1099)).toBe(1);
    expect(ledger.waitFor(1, 1100)).toBe(0);
    begin(ledger, 1, 1100);
    expect(ledger.waitFor(1, 1100)).toBe(300);
  });

  it('lets no two bursts meet across a boundary', () => {
    const ledger = new WindowLedger({ limit: 5, perMs: 1000 });
    for (let i = 0; i < 5; i++) begin(ledger, 1, 990);
    expect(ledger.waitFor(1, 1000)).toBe(990);
  });

  it('counts a weight where its unit is weight, and one where it is calls', () => {
    const tokens = new WindowLedger({ limit: 100, perMs: 1000, unit: 'weight' });
    const calls = new WindowLedger({ limit: 2, perMs: 1000 });
    begin(tokens, 60, 0);
    begin(calls, 60, 0);
    expect(tokens.waitFor(40, 0)).toBe(0);
    expect(tokens.waitFor(41, 0)).toBe(1000);
    expect(calls.waitFor(60, 0)).toBe(0);
  });

  it('says how long as many charges take to leave as are needed', () => {
    const ledger = new WindowLedger({ limit: 100, perMs: 1000, unit: 'weight' });
    begin(ledger, 30, 0);
    begin(ledger, 30, 200);
    begin(ledger, 30, 400);
    expect(ledger.waitFor(10, 500)).toBe(0);
    expect(ledger.waitFor(40, 500)).toBe(500);
    expect(ledger.waitFor(41, 500)).toBe(700);
    expect(ledger.waitFor(100, 500)).toBe(900);
  });

  it('has room for nothing that is heavier than itself, ever', () => {
    const ledger = new WindowLedger({ limit: 100, perMs: 1000, unit: 'weight' });
    expect(ledger.waitFor(101, 0)).toBe(Number.POSITIVE_INFINITY);
  });

  it('has room for a weight of nothing, always', () => {
    const ledger = new WindowLedger({ limit: 1, perMs: 1000, unit: 'weight' });
    begin(ledger, 1, 0);
    expect(ledger.waitFor(0, 0)).toBe(0);
  });

  it('counts what is reserved without end, until it begins', () => {
    const ledger = new WindowLedger({ limit: 1, perMs: 1000 });
    const charge = ledger.reserve(1);
    expect(ledger.waitFor(1, 0)).toBe(1000);
    expect(ledger.waitFor(1, 5000)).toBe(1000);
    ledger.begin(charge, 5000);
    expect(ledger.waitFor(1, 5400)).toBe(600);
  });

  it('does not count what never began', () => {
    const ledger = new WindowLedger({ limit: 1, perMs: 1000 });
    const charge = ledger.reserve(1);
    ledger.cancel(charge);
    ledger.cancel(charge);
    ledger.begin(charge, 0);
    expect(ledger.waitFor(1, 0)).toBe(0);
    expect(ledger.free(0)).toBe(1);
  });

  it('cannot be cancelled once it has begun', () => {
    const ledger = new WindowLedger({ limit: 1, perMs: 1000 });
    const charge = begin(ledger, 1, 0);
    ledger.cancel(charge);
    ledger.begin(charge, 500);
    expect(ledger.waitFor(1, 0)).toBe(1000);
  });

  it('takes a correction upwards and downwards', () => {
    const ledger = new WindowLedger({ limit: 100, perMs: 1000, unit: 'weight' });
    const charge = begin(ledger, 50, 0);
    ledger.settle(charge, 20);
    expect(ledger.waitFor(80, 0)).toBe(0);
    ledger.settle(charge, 130);
    expect(ledger.free(0)).toBe(0);
    expect(ledger.waitFor(1, 0)).toBe(1000);
    expect(ledger.waitFor(100, 1000)).toBe(0);
  });

  it('takes a correction before the beginning, too', () => {
    const ledger = new WindowLedger({ limit: 100, perMs: 1000, unit: 'weight' });
    const charge = ledger.reserve(50);
    ledger.settle(charge, 10);
    ledger.begin(charge, 0);
    expect(ledger.free(0)).toBe(0.9);
  });

  it('ignores a correction of what has left the window', () => {
    const ledger = new WindowLedger({ limit: 100, perMs: 1000, unit: 'weight' });
    const charge = begin(ledger, 50, 0);
    expect(ledger.free(1000)).toBe(1);
    ledger.settle(charge, 90);
    expect(ledger.free(1000)).toBe(1);
  });

  it('ignores a correction where calls are counted', () => {
    const ledger = new WindowLedger({ limit: 2, perMs: 1000 });
    const charge = begin(ledger, 1, 0);
    ledger.settle(charge, 90);
    expect(ledger.free(0)).toBe(0.5);
  });

  it('stays exact over many thousand charges', () => {
    const ledger = new WindowLedger({ limit: 7, perMs: 100 });
    for (let now = 0, begun = 0; begun < 20_000; ) {
      const wait = ledger.waitFor(1, now);
      now += wait;
      if (wait === 0) {
        begin(ledger, 1, now);
        begun++;
        now += begun % 3;
      }
      if (begun === 20_000) expect(ledger.free(now + 100)).toBe(1);
    }
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
  ])('refuses %j', (given, kind, message) => {
    expect(() => checkWindows('rate', given as never)).toThrow(kind);
    expect(() => checkWindows('rate', given as never)).toThrow(message);
  });
});
