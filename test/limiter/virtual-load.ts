import { vi } from 'vitest';
import type { QueueFullError } from '../../src/errors.js';
import { ConcurrencyLimiter } from '../../src/limiter/concurrency-limiter.js';
import { turn } from './event-loop.js';

/** A number from 0 to 1, the same series for the same seed (an LCG with the constants of Numerical Recipes). */
export function seeded(seed: number): () => number {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return (state + 0.5) / 2 ** 32;
  };
}

export interface Load {
  readonly maxConcurrent: number;
  readonly maxQueue: number;
  /** When requests arrive, in order. */
  readonly arrivals: readonly number[];
  /** How long a request holds its permit. */
  holdMs(): number;
}

/** What a request that was turned away was told, and what its wait would have been. */
export interface TurnedAway {
  readonly retryAfterMs: number;
  readonly realMs: number;
}

/**
 * Plays a load on a limiter in virtual time, the clock being moved from one arrival or release to the next. A request
 * that is turned away would have had its permit once all who waited before it had theirs, and one more came back.
 */
export async function play({ maxConcurrent, maxQueue, arrivals, holdMs }: Load): Promise<TurnedAway[]> {
  let clock = 0;
  const spied = vi.spyOn(performance, 'now').mockImplementation(() => clock);
  await turn();
  const limiter = new ConcurrencyLimiter({ maxConcurrent, maxQueue });
  const agenda: { readonly atMs: number; readonly act: () => void }[] = [];
  const plan = (atMs: number, act: () => void) => {
    const later = agenda.findIndex((entry) => entry.atMs > atMs);
    agenda.splice(later === -1 ? agenda.length : later, 0, { atMs, act });
  };
  const releasedAt: number[] = [];
  const refused: { atMs: number; retryAfterMs: number; afterReleases: number }[] = [];
  const request = () => {
    const afterReleases = releasedAt.length + limiter.queuedCount;
    limiter.acquire().then(
      (permit) =>
        plan(clock + holdMs(), () => {
          releasedAt.push(clock);
          permit.release();
        }),
      ({ retryAfterMs }: QueueFullError) => refused.push({ atMs: clock, retryAfterMs, afterReleases }),
    );
  };
  for (const atMs of arrivals) agenda.push({ atMs, act: request });
  try {
    for (let next = agenda.shift(); next !== undefined; next = agenda.shift()) {
      clock = next.atMs;
      next.act();
      // Two, as what is read in the microtasks of the first holds until the end of the second.
      await turn();
      await turn();
    }
  } finally {
    spied.mockRestore();
    await turn();
  }
  return refused.flatMap(({ atMs, retryAfterMs, afterReleases }) => {
    const freeAt = releasedAt[afterReleases];
    return freeAt === undefined ? [] : [{ retryAfterMs, realMs: freeAt - atMs }];
  });
}
