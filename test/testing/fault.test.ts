import { type Fault, randomFault } from 'pipeline-pool/testing';
import { describe, expect, it } from 'vitest';
import { goDuration } from '../../src/testing/fault.js';

describe('goDuration', () => {
  it('formats durations like Go', () => {
    const written = [0, 0.2, 12, 999, 1000, 33_023, 60_000, 360_000, 3_600_000, 5_011_000, 86_400_000];
    expect(written.map(goDuration)).toEqual([
      '0s',
      '1ms',
      '12ms',
      '999ms',
      '1s',
      '33.023s',
      '1m0s',
      '6m0s',
      '1h0m0s',
      '1h23m31s',
      '24h0m0s',
    ]);
  });
});

describe('randomFault', () => {
  const fault: Fault = { type: 'status', status: 429 };
  const hits = (probability: number, seed?: number): number[] => {
    const draw = randomFault(probability, fault, seed);
    return Array.from({ length: 1000 }, (_, i) => (draw() ? i : -1)).filter((i) => i >= 0);
  };

  it('affects about the given share of calls', () => {
    expect(hits(0)).toHaveLength(0);
    expect(hits(1)).toHaveLength(1000);
    expect(hits(0.2).length).toBeGreaterThan(150);
    expect(hits(0.2).length).toBeLessThan(250);
  });

  it('affects the same calls with the same seed, others with another', () => {
    expect(hits(0.2, 7)).toEqual(hits(0.2, 7));
    expect(hits(0.2, 7)).not.toEqual(hits(0.2, 8));
  });

  it('rejects an invalid probability or fault', () => {
    expect(() => randomFault(1.5, fault)).toThrow('probability');
    expect(() => randomFault(0.5, { type: 'status', status: 1 })).toThrow('fault.status');
    expect(() => randomFault(0.5, fault, -1)).toThrow('seed');
  });
});
