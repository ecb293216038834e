import fc from 'fast-check';
import type { StubCall } from 'pipeline-pool/testing';
import { describe, expect, it } from 'vitest';
import { CallLedger } from '../../src/testing/call-ledger.js';
import { prop } from '../support/property.js';

const callAt = (startedAtMs: number): StubCall => ({
  id: 1,
  route: 'GET /',
  method: 'GET',
  url: '/',
  params: {},
  query: new URLSearchParams(),
  headers: {},
  key: undefined,
  body: undefined,
  startedAtMs,
  signal: new AbortController().signal,
  end: undefined,
  status: undefined,
  fault: undefined,
});

const ledgerOf = (starts: readonly number[]): CallLedger => {
  const ledger = new CallLedger(10);
  for (const start of starts) ledger.arrive(callAt(start));
  return ledger;
};

describe('CallLedger.peakStartsPer', () => {
  it('counts a burst across the border of two windows', () => {
    expect(ledgerOf([0, 900, 950, 1000, 1050, 2500]).peakStartsPer(1000, {})).toBe(4);
  });

  it('excludes a start exactly one window later', () => {
    expect(ledgerOf([0, 1000, 2000]).peakStartsPer(1000, {})).toBe(1);
    expect(ledgerOf([0, 999]).peakStartsPer(1000, {})).toBe(2);
  });

  const starts = fc.array(fc.integer({ min: 0, max: 200 }), { maxLength: 40 });
  prop([starts, fc.integer({ min: 1, max: 100 })])(
    'counts what counting by hand gives',
    (unsorted, windowMs) => {
      const sorted = unsorted.toSorted((a, b) => a - b);
      const byHand = sorted.map((from) => sorted.filter((at) => at >= from && at < from + windowMs).length);
      expect(ledgerOf(sorted).peakStartsPer(windowMs, {})).toBe(Math.max(0, ...byHand));
    },
  );
});
