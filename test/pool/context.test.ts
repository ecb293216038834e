import { AsyncLocalStorage } from 'node:async_hooks';
import { describe, expect, it, vi } from 'vitest';
import type { PipelinePoolOptions } from '../../src/pool/options.js';
import { PipelinePool } from '../../src/pool/pipeline-pool.js';
import { inVirtualTime } from '../support/fake-timers.js';
import { type Piece, Workshop } from '../support/pools.js';
import { endOfTurn } from '../support/promises.js';

inVirtualTime();

const store = new AsyncLocalStorage<string>();

/** A pool whose callbacks note in whose context they ran. */
function watchedPool(more: Partial<PipelinePoolOptions<Piece>> = {}) {
  const workshop = new Workshop();
  const seen: Record<string, (string | undefined)[]> = {};
  const see = (stage: string): void => {
    seen[stage] ??= [];
    seen[stage].push(store.getStore());
  };
  const pool = new PipelinePool<Piece>({
    size: 1,
    create: async (context) => {
      see('create');
      await undefined;
      return workshop.create(context);
    },
    destroy: (piece) => {
      see('destroy');
      workshop.destroy(piece);
    },
    validate: () => {
      see('validate');
      return true;
    },
    validateAfterIdleMs: 0,
    prepare: (_piece, { taskId }) => see(`prepare ${taskId}`),
    reset: (_piece, { taskId }) => see(`reset ${taskId}`),
    ...more,
  });
  return { pool, seen };
}

describe('the AsyncLocalStorage context', () => {
  it('of prepare and reset is that of their task; create, validate and destroy run outside any request', async () => {
    const { pool, seen } = watchedPool();
    const tasks = Array.from({ length: 20 }, (_, i) => `task ${i}`);
    await Promise.all(
      tasks.map((taskId) =>
        store.run(taskId, async () => {
          const lease = await pool.acquire({ taskId });
          expect(store.getStore()).toBe(taskId);
          await endOfTurn();
          await lease.release({ discard: taskId === 'task 7' });
          expect(store.getStore()).toBe(taskId);
        }),
      ),
    );
    await store.run('closer', () => pool.close());
    for (const taskId of tasks) {
      expect(seen[`prepare ${taskId}`]).toEqual([taskId]);
      expect(seen[`reset ${taskId}`]).toEqual(taskId === 'task 7' ? undefined : [taskId]);
    }
    for (const stage of ['create', 'validate', 'destroy']) {
      expect(seen[stage]?.length, stage).toBeGreaterThan(0);
      expect(new Set(seen[stage]), stage).toEqual(new Set([undefined]));
    }
  });

  it('of a pool built inside a request is not that request’s', async () => {
    const { pool, seen } = store.run('builder', () =>
      watchedPool({ min: 1, idleTimeoutMs: 50, validateIdleEveryMs: 10, maxLifetimeMs: 1_000 }),
    );
    await vi.advanceTimersByTimeAsync(2_000);
    await store.run('closer', () => pool.close());
    for (const stage of ['create', 'validate', 'destroy']) {
      expect(new Set(seen[stage]), stage).toEqual(new Set([undefined]));
    }
  });

  it('of reset is that of its task, whatever context releases', async () => {
    const { pool, seen } = watchedPool();
    const lease = await store.run('owner', () => pool.acquire({ taskId: 'a' }));
    await store.run('another task', () => lease.release());
    expect(seen['reset a']).toEqual(['owner']);
  });

  it('of the event of a failed reset is that of its task, whatever context releases', async () => {
    const { pool } = watchedPool({ reset: () => Promise.reject(new Error('no')) });
    const seen: unknown[] = [];
    pool.hooks.on('instance:unhealthy', () => seen.push(store.getStore()));
    const lease = await store.run('owner', () => pool.acquire());
    await store.run('another task', () => lease.release());
    expect(seen).toEqual(['owner']);
  });

  it('of a waiter’s events is that of the waiter, whatever context frees the instance or aborts', async () => {
    const pool = new PipelinePool<Piece>({ size: 1, ...new Workshop().callbacks });
    const seen: unknown[] = [];
    for (const event of ['lease:queued', 'lease:acquired', 'lease:rejected'] as const) {
      pool.hooks.on(event, ({ taskId }) => seen.push([event, taskId, store.getStore()]));
    }
    const ask = (taskId: string, signal?: AbortSignal) =>
      store.run(taskId, () => pool.acquire({ taskId, ...(signal === undefined ? {} : { signal }) }));
    const controller = new AbortController();
    const first = await ask('a');
    const second = ask('b');
    const third = ask('c', controller.signal);
    third.catch(() => {});
    store.run('aborter', () => controller.abort());
    await store.run('releaser', () => first.release());
    await second;
    await endOfTurn();
    expect(seen.sort()).toEqual([
      ['lease:acquired', 'a', 'a'],
      ['lease:acquired', 'b', 'b'],
      ['lease:queued', 'a', 'a'],
      ['lease:queued', 'b', 'b'],
      ['lease:queued', 'c', 'c'],
      ['lease:rejected', 'c', 'c'],
    ]);
  });

  it('of instance events, revocations and leak reports is never that of another task', async () => {
    const pool = store.run('builder', () => {
      return new PipelinePool<Piece>({
        size: 1,
        ...new Workshop().callbacks,
        maxLeaseMs: 100,
        leakWarningMs: 50,
      });
    });
    const seen: unknown[] = [];
    for (const event of [
      'instance:creating',
      'instance:created',
      'instance:destroyed',
      'lease:leaked',
      'lease:revoked',
    ] as const) {
      pool.hooks.on(event, () => seen.push([event, store.getStore()]));
    }
    const lease = await store.run('a', () => pool.acquire());
    const next = store.run('b', () => pool.acquire());
    await store.run('a', () => lease.release({ discard: true }));
    await next;
    await store.run('clock', () => vi.advanceTimersByTimeAsync(100));
    expect(seen).toEqual([
      ['instance:creating', undefined],
      ['instance:created', undefined],
      ['instance:destroyed', undefined],
      ['instance:creating', undefined],
      ['instance:created', undefined],
      ['lease:leaked', undefined],
      ['lease:revoked', undefined],
      ['instance:destroyed', undefined],
    ]);
  });
});
