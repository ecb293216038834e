import { getEventListeners } from 'node:events';
import { describe, expect, it } from 'vitest';
import { CreateError, PrepareError } from '../../src/errors.js';
import { LifecycleHooks } from '../../src/hooks/lifecycle-hooks.js';
import { PipelinePool } from '../../src/pool/pipeline-pool.js';
import { Workshop } from '../support/pools.js';
import { seeded } from '../support/random-numbers.js';
import { sizeOf } from '../support/soak.js';

const OPERATIONS = sizeOf('operations of a pool', 20_000, 300_000);
const WORKERS = 200;
const SIZE = 10;

const heapMb = (): number => {
  global.gc?.();
  return process.memoryUsage().heapUsed / 2 ** 20;
};

describe('a pool in long use', () => {
  it(`is idle after ${OPERATIONS.toLocaleString('en')} operations with every count where it belongs`, async () => {
    const next = seeded(42);
    const workshop = new Workshop();
    const hooks = new LifecycleHooks();
    let emitted = 0;
    hooks.on('lease:acquired', () => emitted++);
    const pool = new PipelinePool({
      size: SIZE,
      min: 2,
      create: async (context) => {
        if (next() < 0.01) throw new Error('out of luck');
        return workshop.create(context);
      },
      destroy: async (piece) => {
        await undefined;
        workshop.destroy(piece);
        if (next() < 0.01) throw new Error('left a mess');
      },
      prepare: (_piece, { taskId }) => {
        if (next() < 0.002) throw new Error(`cannot prepare for ${taskId}`);
      },
      reset: async () => {
        if (next() < 0.002) throw new Error('cannot reset');
      },
      validate: () => next() > 0.01,
      validateAfterIdleMs: 5,
      maxUses: 500,
      createRetry: { baseMs: 1, maxMs: 2 },
      hooks,
    });

    const shared = new AbortController();
    let begun = 0;
    let served = 0;
    let aborted = 0;
    let failed = 0;
    const holders = new Map<number, number>();
    const operation = async (n: number): Promise<void> => {
      const own = next() < 0.02 ? new AbortController() : undefined;
      const given = pool.acquire({
        taskId: `task ${n}`,
        signal: own?.signal ?? shared.signal,
        priority: n % 100 === 0 ? 1 : 0,
        ...(n % 3 === 0 ? { tenant: `tenant ${n % 5}` } : {}),
      });
      if (own !== undefined) queueMicrotask(() => own.abort('too late'));
      try {
        const lease = await given;
        if (holders.has(lease.instanceId)) throw new Error(`instance ${lease.instanceId} has two holders`);
        holders.set(lease.instanceId, n);
        if (n % 8 === 0) await undefined;
        holders.delete(lease.instanceId);
        const released = lease.release({ discard: next() < 0.001 });
        if (n % 16 === 0) await released;
        served++;
      } catch (error) {
        if (error === 'too late') aborted++;
        else if (error instanceof CreateError || error instanceof PrepareError) failed++;
        else throw error;
      }
    };
    let earlyMb = 0;
    const worker = async (): Promise<void> => {
      while (begun < OPERATIONS) {
        const n = begun++;
        await operation(n);
        if (n % 1_000 === 999) {
          pool.resize(SIZE - (n % 4_000 === 999 ? 3 : 0));
          if (n % 5_000 === 999) pool.refresh();
          expect(workshop.alive).toBeLessThanOrEqual(SIZE);
          // Node's own timers and input have their turn.
          await new Promise((resolve) => setImmediate(resolve));
        }
        if (n === Math.floor(OPERATIONS / 5)) earlyMb = heapMb();
      }
    };
    await Promise.all(Array.from({ length: WORKERS }, worker));
    await pool.drain();

    const stats = pool.stats();
    expect(served + aborted + failed).toBe(OPERATIONS);
    expect(served).toBeGreaterThan(OPERATIONS * 0.9);
    expect(stats).toMatchObject({ leased: 0, queued: 0, resetting: 0, acquired: served, released: served });
    expect(stats.rejected).toBe(aborted + failed);
    expect(emitted).toBe(served);
    expect(workshop.peak).toBeLessThanOrEqual(SIZE);
    expect(getEventListeners(shared.signal, 'abort')).toHaveLength(0);
    // What is kept does not grow with what was done.
    expect(heapMb() - earlyMb).toBeLessThan(8);

    await pool.close();
    expect(workshop.alive).toBe(0);
    expect(pool.stats()).toMatchObject({ live: 0, idle: 0 });
    expect(pool.stats().created).toBe(pool.stats().destroyed);
  });
});
