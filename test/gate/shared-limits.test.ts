import { describe, expect, it } from 'vitest';
import { LayeredLimiter } from '../../src/gate/shared-limits.js';
import { ConcurrencyLimiter } from '../../src/limiter/concurrency-limiter.js';

describe('a local limit below one that is shared', () => {
  const layers = () => {
    const local = new ConcurrencyLimiter({ maxConcurrent: 1 });
    const shared = new ConcurrencyLimiter({ maxConcurrent: 2 });
    const active = () => [local.activeCount, shared.activeCount];
    return { local, shared, both: new LayeredLimiter(local, shared), active };
  };

  it('takes a permit of both, and releases both', async () => {
    const { both, active } = layers();
    const permit = await both.acquire();
    expect(active()).toEqual([1, 1]);
    const next = both.acquire();
    expect(both.stats()).toMatchObject({ maxConcurrent: 1, active: 1, queued: 1 });
    permit.release();
    (await next).release();
    expect(active()).toEqual([0, 0]);
  });

  it('returns the local permit where the shared limiter rejects', async () => {
    const { shared, both, active } = layers();
    await shared.close();
    await expect(both.acquire()).rejects.toMatchObject({ code: 'ERR_LIMITER_CLOSED' });
    expect(active()).toEqual([0, 0]);
  });
});
