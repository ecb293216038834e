import { describe, expect, it } from 'vitest';
import { inVirtualTime } from '../support/in-virtual-time.js';
import { type Contest, play } from '../support/two-tenants.js';

describe('A tenant of short calls beside one of long calls', () => {
  const time = inVirtualTime();

  const outcome = async (contest: Contest) => {
    const playing = play(contest);
    await time.pass(contest.durationMs + 1_000);
    return playing;
  };

  it.each([0.1, 0.3])(
    'waits about as with strict priority, by work received, at a load of %s',
    async (load) => {
      const contest = { load, heavyMs: (random: number) => 30 + 60 * random, durationMs: 12_000 };
      const strict = await outcome({ ...contest, sharing: 'priority' });
      const fair = await outcome({ ...contest, sharing: 'time' });
      expect(fair.meanMs).toBeLessThanOrEqual(1.25 * strict.meanMs);
      expect(fair.p95Ms).toBeLessThanOrEqual(1.25 * strict.p95Ms);
      expect(fair.mostQueued).toBeLessThan(100);
    },
  );
});
