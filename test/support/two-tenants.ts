import type { FairnessOptions } from '../../src/index.js';
import { ConcurrencyLimiter } from '../../src/limiter/concurrency-limiter.js';
import type { AcquireOptions } from '../../src/limiter/limiter.js';
import { sleep } from './promises.js';
import { seeded } from './random-numbers.js';

/** Which tenant a request belongs to. */
export type Sharing = 'no tenant' | 'priority' | NonNullable<FairnessOptions['fairBy']>;

/** Two tenants of one limiter: `heavy` always has long calls queued, `light` makes short ones at random times. */
export interface Contest {
  readonly sharing: Sharing;
  /** What `light` offers, as a share of the limit. */
  readonly load: number;
  readonly heavyMs: (random: number) => number;
  readonly durationMs: number;
  readonly seed?: number;
}

/** What the calls of `light` waited. */
export interface ContestResult {
  readonly meanMs: number;
  readonly p95Ms: number;
  readonly queuedAtEnd: number;
  /** The largest number of its calls in the queue. */
  readonly mostQueued: number;
}

export const LIMIT = 16;
const HEAVY_QUEUE = 200;
const LIGHT_MS = 5;

/** What still waits at the end is rejected. */
const atTheEnd = (): void => {};

/** Plays a contest on whatever clock is installed; settles at its end. */
export async function play({
  sharing,
  load,
  heavyMs,
  durationMs,
  seed = 1,
}: Contest): Promise<ContestResult> {
  const fairBy = sharing === 'no tenant' || sharing === 'priority' ? 'time' : sharing;
  const limiter = new ConcurrencyLimiter({ maxConcurrent: LIMIT, fairBy });
  const optionsOf = (tenant: 'heavy' | 'light'): AcquireOptions => {
    if (sharing === 'no tenant') return {};
    if (sharing === 'priority') return { priority: tenant === 'light' ? 1 : 0 };
    return { tenant };
  };
  const [heavy, light] = [optionsOf('heavy'), optionsOf('light')];
  const random = seeded(seed);
  const arrivals = seeded(seed + 1);
  let isOver = false;
  let queued = 0;
  let mostQueued = 0;
  const waits: number[] = [];
  const askHeavy = (): void => {
    const call = () => {
      if (!isOver) askHeavy();
      return sleep(heavyMs(random()));
    };
    limiter.run(call, heavy).catch(atTheEnd);
  };
  const askLight = (): void => {
    const since = performance.now();
    mostQueued = Math.max(mostQueued, ++queued);
    const call = () => {
      queued--;
      if (!isOver) waits.push(performance.now() - since);
      return sleep(LIGHT_MS);
    };
    limiter.run(call, light).catch(atTheEnd);
  };
  for (let i = 0; i < HEAVY_QUEUE; i++) askHeavy();
  const gapMs = LIGHT_MS / (LIMIT * load);
  const began = performance.now();
  for (let nextMs = 0; nextMs < durationMs; nextMs += -gapMs * Math.log(1 - arrivals())) {
    const leftMs = began + nextMs - performance.now();
    if (leftMs > 0) await sleep(leftMs);
    askLight();
  }
  isOver = true;
  const queuedAtEnd = queued;
  await limiter.close();
  waits.sort((a, b) => a - b);
  return {
    meanMs: waits.reduce((sum, ms) => sum + ms, 0) / waits.length,
    p95Ms: waits[Math.floor(0.95 * waits.length)] ?? 0,
    queuedAtEnd,
    mostQueued,
  };
}
