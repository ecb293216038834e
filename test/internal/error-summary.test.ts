import { describe, expect, it } from 'vitest';
import type { LifecycleEvents } from '../../src/hooks/events.js';
import { LifecycleHooks } from '../../src/hooks/lifecycle-hooks.js';
import { ConcurrencyLimiter } from '../../src/limiter/concurrency-limiter.js';
import { PipelinePool } from '../../src/pool/pipeline-pool.js';
import { endOfTurn } from '../support/promises.js';

const SECRET = 'password=hunter2-and-more';

/** What a limiter reports of an abort and of a failing listener. */
async function summaries() {
  const hooks = new LifecycleHooks();
  const errors: LifecycleEvents['hook:error']['error'][] = [];
  hooks.on('hook:error', ({ error }) => errors.push(error));
  hooks.on('permit:rejected', ({ error }) => {
    errors.push(error);
    throw new TypeError(`a listener failed with ${SECRET}`);
  });
  const limiter = new ConcurrencyLimiter({ maxConcurrent: 1, maxQueue: 0, hooks });
  limiter.tryAcquire();
  const aborted = AbortSignal.abort(new Error(`stopped with ${SECRET}`));
  await limiter.acquire({ signal: aborted }).catch(() => {});
  await limiter.acquire().catch(() => {});
  await endOfTurn();
  return errors.map(({ name, message, code }) => ({ name, message, code }));
}

describe('The errors in the events of a limiter', () => {
  it('have no foreign message in a host that uses only limiters, and a redacted one once there is a pool', async () => {
    const full = { name: 'QueueFullError', code: 'ERR_QUEUE_FULL' };
    const unknown = { name: 'Error', message: '', code: undefined };
    const before = await summaries();
    expect(before).toMatchObject([unknown, unknown, full, unknown]);
    expect(before[2]?.message).toMatch(/^The queue of limiter is full/);

    new PipelinePool({ size: 1, create: () => ({}) });
    const after = await summaries();
    expect(after).toMatchObject([
      { name: 'Error', message: 'stopped with password=[redacted]' },
      { name: 'TypeError', message: 'a listener failed with password=[redacted]' },
      full,
      { name: 'TypeError', message: 'a listener failed with password=[redacted]' },
    ]);
    expect(JSON.stringify([before, after])).not.toContain('hunter2');
  });
});
