import { describe, expect, it } from 'vitest';
import { seeded } from '../support/random-numbers.js';
import { type Asked, type Load, play, type Rejection } from '../support/virtual-loads.js';

const every = (gapMs: number, untilMs: number) =>
  Array.from({ length: Math.floor(untilMs / gapMs) }, (_, i) => i * gapMs);

/** Arrivals that know nothing of each other. */
function atRandom(gapMs: number, untilMs: number): number[] {
  const random = seeded(1);
  const arrivals: number[] = [];
  for (let atMs = 0; atMs < untilMs; atMs += -Math.log(random()) * gapMs) arrivals.push(atMs);
  return arrivals;
}

const inBursts = (size: number, gapMs: number, untilMs: number) =>
  every(gapMs, untilMs).flatMap((atMs) => Array<number>(size).fill(atMs));

/** Hold times with a long tail, as LLM requests have them: log-normal. */
function longTailed(medianMs: number, spread: number): () => number {
  const random = seeded(2);
  const normal = () => Math.sqrt(-2 * Math.log(random())) * Math.cos(2 * Math.PI * random());
  return () => medianMs * Math.exp(spread * normal());
}

function exponential(meanMs: number): () => number {
  const random = seeded(3);
  return () => -Math.log(random()) * meanMs;
}

const constant = (ms: number) => () => ms;

const mean = (values: number[]) => values.reduce((sum, value) => sum + value, 0) / values.length;

/** The estimates of the first few rejections have next to no measurements to go by. */
const settled = (all: Rejection[]) => all.slice(Math.ceil(all.length / 5));

const LOADS: Record<string, Load> = {
  'of slow requests with a long tail': {
    maxConcurrent: 10,
    maxQueue: 20,
    arrivals: atRandom(3_000, 1_500_000),
    holdMs: longTailed(30_000, 1),
  },
  'of fast requests': {
    maxConcurrent: 50,
    maxQueue: 100,
    arrivals: atRandom(0.08, 120),
    holdMs: exponential(5),
  },
  'in bursts': {
    maxConcurrent: 10,
    maxQueue: 20,
    arrivals: inBursts(100, 40_000, 400_000),
    holdMs: longTailed(8_000, 0.5),
  },
  'in bursts that go on before the last is served': {
    maxConcurrent: 10,
    maxQueue: 20,
    arrivals: inBursts(100, 10_000, 100_000),
    holdMs: constant(8_000),
  },
  'in bursts, with maxQueue 0': {
    maxConcurrent: 10,
    maxQueue: 0,
    arrivals: inBursts(100, 10_000, 100_000),
    holdMs: constant(8_000),
  },
  'at random, with maxQueue 0': {
    maxConcurrent: 10,
    maxQueue: 0,
    arrivals: atRandom(130, 130_000),
    holdMs: exponential(2_000),
  },
  'of one at a time, with maxQueue 0': {
    maxConcurrent: 1,
    maxQueue: 0,
    arrivals: atRandom(500, 400_000),
    holdMs: constant(2_000),
  },
  'that is staggered': {
    maxConcurrent: 10,
    maxQueue: 5,
    arrivals: every(700, 400_000),
    holdMs: constant(10_000),
  },
  'that is staggered, with maxQueue 0': {
    maxConcurrent: 10,
    maxQueue: 0,
    arrivals: every(700, 400_000),
    holdMs: constant(10_000),
  },
  'whose requests end together': {
    maxConcurrent: 10,
    maxQueue: 1,
    arrivals: every(200, 100_000),
    holdMs: constant(10_000),
  },
};

/** Every tenth request is another's, beside a batch that fills the line. */
const besideBatch = (another: (arrival: number) => Asked) => (arrival: number) =>
  arrival % 10 === 9 ? another(arrival) : { tenant: 'batch' };

const OF_THOSE_WHO_PASS_OTHERS: Record<string, Load> = {
  'of single requests of others beside a batch': {
    maxConcurrent: 10,
    maxQueue: 22,
    arrivals: every(500, 1_500_000),
    holdMs: exponential(10_000),
    askedBy: besideBatch((arrival) => ({ tenant: `visitor ${arrival}` })),
    looksAt: ({ tenant }) => tenant !== 'batch',
  },
  'of single requests of others beside a batch of constant work': {
    maxConcurrent: 1,
    maxQueue: 22,
    arrivals: every(33, 60_000),
    holdMs: constant(50),
    askedBy: besideBatch((arrival) => ({ tenant: `visitor ${arrival}` })),
    looksAt: ({ tenant }) => tenant !== 'batch',
  },
  'of priority 9 beside a batch': {
    maxConcurrent: 10,
    maxQueue: 22,
    arrivals: every(500, 1_500_000),
    holdMs: longTailed(6_000, 1),
    askedBy: besideBatch(() => ({ priority: 9 })),
    looksAt: ({ priority }) => priority === 9,
  },
};

const OF_THOSE_BEHIND_MANY: Record<string, Load> = {
  'of a batch that others pass by': {
    maxConcurrent: 10,
    maxQueue: 22,
    arrivals: every(700, 700_000),
    holdMs: longTailed(6_000, 1),
    askedBy: besideBatch(() => ({ priority: 9 })),
    looksAt: ({ tenant }) => tenant === 'batch',
  },
  'of ten tenants': {
    maxConcurrent: 10,
    maxQueue: 40,
    arrivals: atRandom(700, 700_000),
    holdMs: exponential(10_000),
    askedBy: (arrival) => ({ tenant: `tenant ${(arrival * 7) % 10}` }),
  },
  'of weights from 1 to 5': {
    maxConcurrent: 10,
    maxQueue: 20,
    arrivals: every(700, 700_000),
    holdMs: exponential(4_000),
    askedBy: (arrival) => ({ weight: 1 + ((arrival * 7) % 5) }),
  },
  'of light requests behind heavy ones': {
    maxConcurrent: 10,
    maxQueue: 20,
    arrivals: every(700, 1_400_000),
    holdMs: exponential(3_000),
    askedBy: (arrival) => ({ weight: arrival % 10 === 9 ? 1 : 5 }),
    looksAt: ({ weight }) => weight === 1,
  },
  'whose limit has fallen from 64 to 16': {
    maxConcurrent: 64,
    maxQueue: 100,
    arrivals: every(100, 125_000),
    holdMs: exponential(8_000),
    resized: { atMs: 100_000, to: 16 },
    looksAt: (_, atMs) => atMs > 100_000 && atMs < 120_000,
  },
  'whose limit has just fallen from 64 to 16, before a short line': {
    maxConcurrent: 64,
    maxQueue: 5,
    arrivals: every(60, 125_000),
    holdMs: exponential(8_000),
    resized: { atMs: 100_000, to: 16 },
    looksAt: (_, atMs) => atMs > 100_000 && atMs < 104_000,
  },
  'of constant work, whose limit has fallen from 64 to 16': {
    maxConcurrent: 64,
    maxQueue: 40,
    arrivals: every(60, 145_000),
    holdMs: constant(8_000),
    resized: { atMs: 100_000, to: 16 },
    looksAt: (_, atMs) => atMs > 100_000 && atMs < 124_000,
  },
  'whose limit has risen from 16 to 32': {
    maxConcurrent: 16,
    maxQueue: 100,
    arrivals: every(100, 125_000),
    holdMs: exponential(8_000),
    resized: { atMs: 100_000, to: 32 },
    looksAt: (_, atMs) => atMs > 100_000 && atMs < 120_000,
  },
};

/** Constant work gives room back at an even pace until all that began before has ended; other work does not. */
const OF_CONSTANT_WORK_AFTER_A_SHRINK: Record<string, Load> = {
  'of constant work, whose limit has just fallen from 64 to 16, before a short line': {
    maxConcurrent: 64,
    maxQueue: 5,
    arrivals: every(60, 125_000),
    holdMs: constant(8_000),
    resized: { atMs: 100_000, to: 16 },
    looksAt: (_, atMs) => atMs > 100_000 && atMs < 104_000,
  },
};

describe('retryAfterMs', () => {
  const expectMeansWithinTwo = (rejections: Rejection[]) => {
    const estimated = mean(rejections.map(({ retryAfterMs }) => retryAfterMs));
    const real = mean(rejections.map(({ realMs }) => realMs));
    expect(estimated / real).toBeGreaterThan(0.5);
    expect(estimated / real).toBeLessThan(2);
  };

  const expectNineInTenWithinTwo = (rejections: Rejection[]) => {
    const near = rejections.filter(
      ({ retryAfterMs, realMs }) => retryAfterMs <= 2 * realMs && retryAfterMs >= realMs / 2,
    );
    expect(near.length / rejections.length).toBeGreaterThanOrEqual(0.9);
  };

  it.each(Object.entries(LOADS))(
    'is on average within a factor of two of the real wait, on a load %s',
    async (_, load) => {
      const rejections = settled(await play(load));
      expect(rejections.length).toBeGreaterThan(50);
      expectMeansWithinTwo(rejections);
    },
  );

  it.each(Object.entries(LOADS).filter(([, { maxQueue }]) => maxQueue >= 5))(
    'is within a factor of two for nine in ten, where some wait already, on a load %s',
    async (_, load) => {
      expectNineInTenWithinTwo(settled(await play(load)));
    },
  );

  it.each(Object.entries({ ...OF_THOSE_WHO_PASS_OTHERS, ...OF_CONSTANT_WORK_AFTER_A_SHRINK }))(
    'is on average within a factor of two of the real wait, on a load %s',
    async (_, load) => {
      const rejections = await play(load);
      expect(rejections.length).toBeGreaterThan(50);
      expectMeansWithinTwo(rejections);
    },
  );

  it.each(Object.entries(OF_THOSE_BEHIND_MANY))(
    'is on average and for nine in ten within a factor of two, on a load %s',
    async (_, load) => {
      const rejections = await play(load);
      expect(rejections.length).toBeGreaterThan(50);
      expectMeansWithinTwo(rejections);
      expectNineInTenWithinTwo(rejections);
    },
  );
});
