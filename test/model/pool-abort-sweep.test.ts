import { describe, expect, it } from 'vitest';
import type { PipelinePoolOptions } from '../../src/pool/options.js';
import { PipelinePool } from '../../src/pool/pipeline-pool.js';
import { Workshop } from '../support/pools.js';
import { endOfTurn, microtasks } from '../support/promises.js';

/** One way in which a lease comes about, with callbacks that take some microtasks. */
interface Way {
  readonly title: string;
  readonly options?: Partial<PipelinePoolOptions<unknown>>;
  /** Brings the pool into its state, and returns a function that frees an instance once a request waits. */
  readonly arrange: (pool: PipelinePool<unknown>) => Promise<() => void>;
  readonly instanceId?: number;
}

const nothing = async (): Promise<() => void> => () => {};

const used = async (pool: PipelinePool<unknown>): Promise<() => void> => {
  await (await pool.acquire()).release();
  return () => {};
};

const held = async (pool: PipelinePool<unknown>): Promise<() => void> => {
  const lease = await pool.acquire();
  return () => void lease.release();
};

const ways: readonly Way[] = [
  { title: 'an idle instance', arrange: used },
  { title: 'a new instance', arrange: nothing },
  { title: 'an instance that is handed over', arrange: held },
  {
    title: 'an instance that has to be validated first',
    options: { validate: () => microtasks(5).then(() => true), validateAfterIdleMs: 0 },
    arrange: used,
  },
  {
    title: 'the replacement of an unhealthy instance',
    options: { validate: () => microtasks(5).then(() => false), validateAfterIdleMs: 0 },
    arrange: used,
  },
  {
    title: 'an idle instance that is prepared',
    options: { prepare: () => microtasks(5) },
    arrange: used,
  },
  {
    title: 'a new instance that is prepared',
    options: { prepare: () => microtasks(5) },
    arrange: nothing,
  },
  {
    title: 'an instance that is reset, validated and prepared on the way',
    options: {
      reset: () => microtasks(3),
      validate: () => microtasks(3).then(() => true),
      validateAfterIdleMs: 0,
      prepare: () => microtasks(3),
    },
    arrange: held,
  },
  { title: 'the successor of an instance at its last use', options: { maxUses: 1 }, arrange: held },
  { title: 'a given instance', arrange: held, instanceId: 1 },
  {
    title: 'a given instance that is prepared',
    options: { prepare: () => microtasks(5) },
    arrange: held,
    instanceId: 1,
  },
];

describe('an abort that lands at the k-th microtask of an acquire', () => {
  it.each(ways)('leaves nothing behind on the way to $title', async ({ options, arrange, instanceId }) => {
    let tooLate = 0;
    let hits = 0;
    for (let k = 0; tooLate < 3; k++) {
      expect(k).toBeLessThan(500);
      const workshop = new Workshop();
      const create: typeof workshop.create = (context) => workshop.create(context);
      const pool = new PipelinePool<unknown>({
        size: 1,
        create: (context) => microtasks(5).then(() => create(context)),
        destroy: (piece) => microtasks(3).then(() => workshop.destroy(piece as never)),
        ...options,
      });
      const free = await arrange(pool);
      await endOfTurn();

      const controller = new AbortController();
      const reason = new Error(`aborted at ${k}`);
      const given = pool.acquire({
        signal: controller.signal,
        ...(instanceId === undefined ? {} : { instanceId }),
      });
      let isSettled = false;
      const outcome = given.then(
        (lease) => {
          isSettled = true;
          return { lease };
        },
        (error: unknown) => {
          isSettled = true;
          return { error };
        },
      );
      free();
      if (k > 0) await microtasks(k - 1);
      if (isSettled) tooLate++;
      controller.abort(reason);
      if (!isSettled) hits++;

      const result = await outcome;
      if ('lease' in result) {
        expect(result.lease.isHeld).toBe(true);
        await result.lease.release();
      } else {
        expect(result.error).toBe(reason);
      }
      await endOfTurn();
      expect(pool.stats()).toMatchObject({ queued: 0, leased: 0, readying: 0, resetting: 0, creating: 0 });
      expect(workshop.peak).toBeLessThanOrEqual(1);

      // The next request is served.
      const next = await pool.acquire();
      await next.release();
      await pool.close();
      expect(workshop.alive).toBe(0);
      expect(pool.stats()).toMatchObject({ live: 0, leased: 0 });
    }
    expect(hits).toBeGreaterThan(0);
  });
});
