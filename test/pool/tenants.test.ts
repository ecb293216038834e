import { describe, expect, it, vi } from 'vitest';
import { PoolClosedError, QueueFullError } from '../../src/errors.js';
import type { Lease } from '../../src/pool/lease.js';
import type { LeaseOptions, PipelinePoolOptions, TaskContext } from '../../src/pool/options.js';
import { PipelinePool } from '../../src/pool/pipeline-pool.js';
import type { TenantShare } from '../../src/queue/options.js';
import { inVirtualTime } from '../support/fake-timers.js';
import { HandMade, type Piece, Workshop } from '../support/pools.js';
import { endOfTurn, outcome } from '../support/promises.js';

inVirtualTime();

const SHARES: Record<string, TenantShare> = {
  capped: { maxConcurrent: 1 },
  guaranteed: { guaranteed: 1 },
  heavy: { weight: 3 },
};

function poolOf(size: number, more: Partial<PipelinePoolOptions<Piece>> = {}, workshop = new Workshop()) {
  const tenants = (name: string) => SHARES[name] ?? {};
  const pool = new PipelinePool({ size, tenants, ...workshop.callbacks, ...more });
  const order: string[] = [];
  const held = new Map<string, Lease<Piece>>();
  /** Requests a lease, which is in `held` by this name once it is granted. */
  const ask = (name: string, options: LeaseOptions): Promise<unknown> => {
    const asked = pool.acquire(options).then((lease) => {
      order.push(name);
      held.set(name, lease);
    });
    asked.catch(() => {});
    return asked;
  };
  const release = async (name: string) => {
    void held.get(name)?.release();
    await endOfTurn();
  };
  return { pool, workshop, order, held, ask, release };
}

const capped = { tenant: 'capped' };
const prompt = { tenant: 'guaranteed' };

describe('A tenant at its cap in a pool', () => {
  it('waits, and others pass it', async () => {
    const { ask, order, release } = poolOf(3);
    for (const name of ['c1', 'c2', 'c3']) void ask(name, { ...capped, priority: 9 });
    for (const name of ['o1', 'o2']) void ask(name, { tenant: 'other' });
    await endOfTurn();
    expect(order).toEqual(['c1', 'o1', 'o2']);
    await release('o1');
    expect(order).toHaveLength(3);
    await release('c1');
    expect(order.slice(3)).toEqual(['c2']);
  });

  it('has no instance created for its further requests', async () => {
    const { ask, pool, workshop } = poolOf(4);
    for (const name of ['c1', 'c2', 'c3']) void ask(name, capped);
    await endOfTurn();
    expect(workshop.pieces).toHaveLength(1);
    expect(pool.stats()).toMatchObject({ live: 1, leased: 1, queued: 2 });
  });

  it('does not count for a creation that fails: its waiters keep their places', async () => {
    const workshop = new HandMade();
    const { ask, order, pool } = poolOf(2, {}, workshop);
    void ask('c1', capped);
    const behind = ask('c2', capped);
    const other = ask('o1', { tenant: 'other' });
    await endOfTurn();
    workshop.finish();
    await endOfTurn();
    workshop.fail(new Error('no sandbox'));
    await expect(other).rejects.toMatchObject({ code: 'ERR_CREATE_FAILED' });
    expect(await outcome(behind)).toBe('pending');
    expect(order).toEqual(['c1']);
    expect(pool.stats()).toMatchObject({ queued: 1, live: 1 });
  });

  it("is served after failed creations with onCreateFailure: 'retry', within its cap", async () => {
    const workshop = new HandMade();
    const more = { onCreateFailure: 'retry', createRetry: { baseMs: 10, maxMs: 10 } } as const;
    const { ask, order, release } = poolOf(2, more, workshop);
    for (const name of ['c1', 'c2']) void ask(name, capped);
    for (let i = 0; i < 3; i++) {
      await endOfTurn();
      expect(workshop.orders).toHaveLength(1);
      workshop.fail(new Error('no sandbox'));
      await vi.advanceTimersByTimeAsync(10);
    }
    workshop.finish();
    await endOfTurn();
    expect(order).toEqual(['c1']);
    await release('c1');
    expect(order).toEqual(['c1', 'c2']);
  });

  const endings: Record<string, (lease: Lease<Piece>, pool: PipelinePool<Piece>) => unknown> = {
    released: (lease) => lease.release(),
    'released twice': (lease) => Promise.all([lease.release(), lease.release()]),
    discarded: (lease) => lease.release({ discard: true }),
    'released with a misspelt option': (lease) => {
      expect(() => lease.release({ discrad: true } as never)).toThrow('discrad');
    },
    'revoked, then released': async (lease) => {
      await vi.advanceTimersByTimeAsync(1_000);
      return lease.release();
    },
    'released to a smaller size': (lease, pool) => {
      pool.resize(1);
      return lease.release();
    },
    'released after a refresh': (lease, pool) => {
      pool.refresh();
      return lease.release();
    },
    'released during a drain': (lease, pool) => {
      void pool.drain();
      return lease.release();
    },
  };
  for (const [ending, end] of Object.entries(endings)) {
    it(`has room for one more, and for no second, when a lease is ${ending}`, async () => {
      const { ask, held, order, pool } = poolOf(2, { maxLeaseMs: 1_000 });
      for (const name of ['c1', 'c2', 'c3']) void ask(name, capped);
      await endOfTurn();
      await end(held.get('c1') as Lease<Piece>, pool);
      await endOfTurn();
      expect(order).toEqual(['c1', 'c2']);
      expect(pool.stats()).toMatchObject({ leased: 1, queued: 1 });
    });
  }

  it('has room again when `prepare` fails, also for a waiter of an idle instance', async () => {
    const prepare = (_: Piece, { taskId }: TaskContext) => {
      if (taskId === 'c2') throw new Error('not now');
    };
    const { ask, held, order, release } = poolOf(2, { prepare });
    void ask('c1', capped);
    void ask('o1', { tenant: 'other' });
    await endOfTurn();
    const instanceId = held.get('o1')?.instanceId as number;
    const failing = ask('c2', { ...capped, taskId: 'c2' });
    void ask('c3', { ...capped, instanceId });
    await endOfTurn();
    await release('o1');
    await release('c1');
    await expect(failing).rejects.toMatchObject({ code: 'ERR_PREPARE_FAILED' });
    expect(order).toEqual(['c1', 'o1', 'c3']);
  });

  it('has room again when the waiter being prepared is aborted, though `prepare` goes on', async () => {
    const prepare = (_: Piece, { taskId }: TaskContext) =>
      taskId === 'c2' ? new Promise<void>(() => {}) : undefined;
    const { ask, order, release } = poolOf(2, { prepare });
    const controller = new AbortController();
    void ask('c1', capped);
    await endOfTurn();
    const aborted = ask('c2', { ...capped, taskId: 'c2', signal: controller.signal });
    void ask('c3', capped);
    await release('c1');
    controller.abort(new Error('no longer needed'));
    await expect(aborted).rejects.toThrow('no longer needed');
    await endOfTurn();
    expect(order).toEqual(['c1', 'c3']);
  });

  it('holds no more with 1,200 tenants, of which it is one that waits for one instance only', async () => {
    const { ask, held, order, release } = poolOf(2);
    await ask('o1', { tenant: 'other' });
    void ask('c1', { ...capped, instanceId: held.get('o1')!.instanceId });
    for (let i = 0; i < 1_200; i++) {
      await ask('passing', { tenant: `passing ${i}` });
      await release('passing');
    }
    void ask('c2', capped);
    await endOfTurn();
    expect(order.at(-1)).toBe('c2');
    await release('o1');
    expect(order.at(-1)).toBe('c2');
    await release('c2');
    expect(order.at(-1)).toBe('c1');
  });

  it('leaves no waiter behind when the pool is closed', async () => {
    const { ask, pool } = poolOf(2);
    const [first, ...waiters] = ['c1', 'c2', 'c3'].map((name) => ask(name, capped));
    await first;
    const closed = pool.close({ timeoutMs: 100 });
    for (const waiter of waiters) await expect(waiter).rejects.toBeInstanceOf(PoolClosedError);
    await vi.advanceTimersByTimeAsync(100);
    await closed;
    expect(pool.stats()).toMatchObject({ queued: 0, leased: 0, live: 0 });
  });

  it('queues no more than `maxQueue`, while its instances are being created too', async () => {
    const { ask, pool } = poolOf(4, { maxQueue: 1 }, new HandMade());
    void ask('c1', capped);
    void ask('c2', capped);
    await expect(ask('c3', capped)).rejects.toBeInstanceOf(QueueFullError);
    expect(await outcome(ask('o1', { tenant: 'other' }))).toBe('pending');
    expect(pool.stats()).toMatchObject({ queued: 3, creating: 2 });
  });
});

describe('A tenant with a guarantee in a pool', () => {
  it('is next for each released instance while it holds less, ahead of priorities', async () => {
    const { ask, order, release } = poolOf(2);
    for (const name of ['o1', 'o2']) await ask(name, { tenant: 'other' });
    for (const name of ['o3', 'o4']) void ask(name, { tenant: 'other', priority: 9 });
    for (const name of ['g1', 'g2']) void ask(name, prompt);
    await release('o1');
    await release('o2');
    await release('g1');
    expect(order.slice(2)).toEqual(['g1', 'o3', 'g2']);
  });

  it('precedes the other waiters for one instance, and those for any', async () => {
    const { ask, order, release } = poolOf(1);
    await ask('o1', { tenant: 'other' });
    void ask('any', { tenant: 'other', priority: 9 });
    void ask('same', { tenant: 'other', priority: 5, instanceId: 1 });
    void ask('g1', { ...prompt, instanceId: 1 });
    await release('o1');
    await release('g1');
    await release('any');
    expect(order.slice(1)).toEqual(['g1', 'any', 'same']);
  });

  it('leaves to others what it does not use', async () => {
    const { ask, order } = poolOf(2);
    for (const name of ['o1', 'o2']) void ask(name, { tenant: 'other' });
    await endOfTurn();
    expect(order).toEqual(['o1', 'o2']);
  });
});

describe('Waiters of a pool', () => {
  it('with agingMs, the lowest priority is passed by none that comes too late', async () => {
    const { ask, order, release } = poolOf(1, { agingMs: 100 });
    await ask('holder', {});
    void ask('low', { priority: 0 });
    await vi.advanceTimersByTimeAsync(150);
    void ask('in time', { priority: 2 });
    await vi.advanceTimersByTimeAsync(100);
    void ask('too late', { priority: 2 });
    for (const name of ['holder', 'in time', 'low']) await release(name);
    expect(order).toEqual(['holder', 'in time', 'low', 'too late']);
  });

  it('share by weight: the work received differs by at most twice the longest lease', async () => {
    const { ask, release, held } = poolOf(1);
    const work = { heavy: 0, light: 0 };
    let asked = 0;
    const backlog = (tenant: string) => ask(`${tenant} ${asked++}`, { tenant });
    for (const tenant of ['heavy', 'light', 'heavy', 'light']) void backlog(tenant);
    for (let i = 0; i < 60; i++) {
      await endOfTurn();
      const [name] = held.keys() as Iterator<string> & Iterable<string>;
      const tenant = name?.split(' ')[0] as 'heavy' | 'light';
      void backlog(tenant);
      const heldMs = tenant === 'heavy' ? 30 : 10;
      await vi.advanceTimersByTimeAsync(heldMs);
      work[tenant] += heldMs;
      await release(name as string);
      held.delete(name as string);
      expect(Math.abs(work.heavy / 3 - work.light)).toBeLessThanOrEqual(2 * 30);
    }
    expect(work.heavy / work.light).toBeCloseTo(3, 0);
  });
});

describe('A `tenants` function of a pool', () => {
  it('that throws, or answers nonsense, costs one request', async () => {
    const answers: Record<string, () => unknown> = {
      throws: () => {
        throw new Error('no such tenant');
      },
      nothing: () => undefined,
      text: () => 'unlimited',
      promise: () => Promise.reject(new Error('later')),
      cap: () => ({ maxConcurrent: 0 }),
      guarantee: () => ({ maxConcurrent: 1, guaranteed: 2 }),
      getter: () => ({
        get weight(): number {
          throw new Error('no weight');
        },
      }),
    };
    for (const [name, answer] of Object.entries(answers)) {
      let isBroken = true;
      const { pool } = poolOf(1, { tenants: () => (isBroken ? (answer() as TenantShare) : {}) });
      await expect(pool.acquire({ tenant: name }), name).rejects.toThrow();
      expect(pool.stats()).toMatchObject({ leased: 0, queued: 0, live: 0 });
      isBroken = false;
      await (await pool.acquire({ tenant: name })).release();
      await pool.close();
    }
  });

  it('is not called for a tenant with a waiter for one instance, but once that has left', async () => {
    const tenants = vi.fn(() => ({}));
    const { ask, held, release } = poolOf(1, { tenants });
    await ask('first', {});
    const { instanceId } = held.get('first')!;
    const controller = new AbortController();
    const aborted = ask('a1', { tenant: 'a', instanceId, signal: controller.signal });
    void ask('a2', { tenant: 'a', instanceId });
    expect(tenants).toHaveBeenCalledTimes(1);
    controller.abort();
    await expect(aborted).rejects.toThrow();
    await release('first');
    await release('a2');
    void ask('a3', { tenant: 'a' });
    expect(tenants).toHaveBeenCalledTimes(2);
  });

  it('may itself request leases for 1,200 other tenants', async () => {
    let isFirst = true;
    const { ask, pool } = poolOf(2, {
      tenants: (name) => {
        if (!isFirst) return name === 'capped' ? { maxConcurrent: 1 } : {};
        isFirst = false;
        for (let i = 0; i < 1_200; i++) {
          const controller = new AbortController();
          pool.acquire({ tenant: `other ${i}`, signal: controller.signal }).catch(() => {});
          controller.abort();
        }
        return { maxConcurrent: 1 };
      },
    });
    await ask('c1', capped);
    const second = ask('c2', capped);
    await endOfTurn();
    expect(await outcome(second)).toBe('pending');
  });

  it('that closes the pool, or aborts the request, leaves no waiter behind', async () => {
    const closing = poolOf(1, {
      tenants: () => {
        void closing.pool.close();
        return {};
      },
    });
    await expect(closing.ask('a', { tenant: 'a' })).rejects.toBeInstanceOf(PoolClosedError);
    const controller = new AbortController();
    const aborting = poolOf(1, {
      tenants: () => {
        controller.abort(new Error('gone'));
        return {};
      },
    });
    await expect(aborting.ask('a', { tenant: 'a', signal: controller.signal })).rejects.toThrow('gone');
    expect(aborting.pool.stats()).toMatchObject({ queued: 0, leased: 0 });
  });
});
