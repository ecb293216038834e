import { ConcurrencyLimiter, createPipelineManager, PipelineManager, PipelinePool } from 'pipeline-pool';
import { describe, expect, it, vi } from 'vitest';
import { onFakeTimers, settled } from '../support/fake-timers.js';

onFakeTimers();

const tenants = (name: string) => (name === 'capped' ? { maxConcurrent: 1 } : {});

/** A manager, and requests that end one after the other, as the test says. */
function build() {
  const config = { poolSize: 4, maxConcurrentRequests: 3 };
  const manager = createPipelineManager({ config, create: () => ({}), tenants });
  const order: string[] = [];
  const ends = new Map<string, () => void>();
  const ask = (name: string, options: object) => {
    const work = () => {
      order.push(name);
      return new Promise<void>((resolve) => ends.set(name, resolve));
    };
    void manager.run(name, work, options);
  };
  const end = async (name: string) => {
    ends.get(name)?.();
    await settled();
  };
  return { manager, order, ask, end };
}

describe('Tenants of a manager', () => {
  it('at their caps hold no permit while they wait, and others pass them', async () => {
    const { ask, end, manager, order } = build();
    for (const name of ['c1', 'c2', 'c3']) ask(name, { tenant: 'capped' });
    for (const name of ['o1', 'o2']) ask(name, { tenant: 'other' });
    await settled();
    expect(order).toEqual(['c1', 'o1', 'o2']);
    expect(manager.stats()).toMatchObject({ limiter: { active: 3 }, pool: { leased: 3, queued: 0 } });
    await end('o1');
    await end('c1');
    expect(order.slice(3)).toEqual(['c2']);
  });
});

describe('A request inside a request of the same manager', () => {
  it("waits in vain where none is free, with detectNested: 'lend' too: the manager's permits are acquired", async () => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 1, detectNested: 'lend' });
    const pool = new PipelinePool({ size: 2, create: () => ({}) });
    const manager = new PipelineManager({ pool, limiter, requestTimeoutMs: 1_000 });
    const outer = manager.run('outer', () => manager.run('inner', () => 'done'));
    outer.catch(() => {});
    await settled();
    expect(manager.requests()).toMatchObject([
      { taskId: 'outer', state: 'running' },
      { taskId: 'inner', state: 'queued', waitsFor: 'permit' },
    ]);
    await vi.advanceTimersByTimeAsync(1_000);
    await expect(outer).rejects.toMatchObject({ code: 'ERR_REQUEST_TIMEOUT' });
  });
});
