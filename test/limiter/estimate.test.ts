import { describe, expect, it } from 'vitest';
import { type Load, play, seeded, type TurnedAway } from './virtual-load.js';

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

/** The estimates of the first few who are turned away rest on next to nothing. */
const settled = (all: TurnedAway[]) => all.slice(Math.ceil(all.length / 5));

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

describe('retryAfterMs', () => {
  it.each(Object.entries(LOADS))(
    'is on average within a factor of two of the real wait, on a load %s',
    async (_, load) => {
      const turnedAway = settled(await play(load));
      expect(turnedAway.length).toBeGreaterThan(50);
      const told = mean(turnedAway.map(({ retryAfterMs }) => retryAfterMs));
      const real = mean(turnedAway.map(({ realMs }) => realMs));
      expect(told / real).toBeGreaterThan(0.5);
      expect(told / real).toBeLessThan(2);
    },
  );

  it.each(Object.entries(LOADS).filter(([, { maxQueue }]) => maxQueue >= 5))(
    'is within a factor of two for nine in ten, where some wait already, on a load %s',
    async (_, load) => {
      const turnedAway = settled(await play(load));
      const near = turnedAway.filter(
        ({ retryAfterMs, realMs }) => retryAfterMs <= 2 * realMs && retryAfterMs >= realMs / 2,
      );
      expect(near.length / turnedAway.length).toBeGreaterThanOrEqual(0.9);
    },
  );
});
