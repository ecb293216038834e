import { describe, expect, it } from 'vitest';
import type { PipelinePoolOptions } from '../../src/pool/options.js';
import { PipelinePool } from '../../src/pool/pipeline-pool.js';
import { deferred, endOfTurn, follow } from '../support/promises.js';

const ABORTED = new Error('aborted');

/** An error whose message, when it is read, runs code of the host. */
const errorThat = (act: () => void): Error =>
  Object.defineProperty(new Error('x'), 'message', {
    get() {
      act();
      return 'x';
    },
  });

/** A request of a pool of one instance, which `act` ends while the pool is about to reject it. */
interface Case {
  readonly title: string;
  readonly options: (act: () => void) => Partial<PipelinePoolOptions<object>>;
  /** On `instance:unhealthy`. */
  readonly inListener?: boolean;
  readonly timeoutMs?: number;
}

const cases: readonly Case[] = [
  {
    title: 'a listener for the failure of its `prepare`',
    options: () => ({ prepare: () => Promise.reject(new Error('no')) }),
    inListener: true,
  },
  {
    title: 'a getter of the error that its `prepare` rejects with',
    options: (act) => ({ prepare: () => Promise.reject(errorThat(act)) }),
  },
  {
    title: 'a getter of the error that its `create` rejects with',
    options: (act) => ({ create: () => Promise.reject(errorThat(act)) }),
  },
  {
    title: 'a listener on the signal of its `prepare`, at its timeout',
    options: (act) => ({
      prepare: (_, { signal }) =>
        new Promise((_resolve, reject) => {
          signal.addEventListener('abort', () => {
            act();
            reject(signal.reason);
          });
        }),
    }),
    timeoutMs: 1,
  },
];

describe.each(cases)('a request that is ended in $title', ({ options, inListener, timeoutMs }) => {
  it.each(['abort', 'close'] as const)('is rejected once (%s)', async (how) => {
    const controller = new AbortController();
    const act = (): void => {
      if (how === 'abort') controller.abort(ABORTED);
      else void pool.close();
    };
    const pool = new PipelinePool<object>({ size: 1, create: () => ({}), ...options(act) });
    if (inListener) pool.hooks.on('instance:unhealthy', act);
    const reasons: string[] = [];
    pool.hooks.on('lease:rejected', ({ reason }) => void reasons.push(reason));
    const request = pool.acquire({ signal: controller.signal, tenant: 'a', ...(timeoutMs && { timeoutMs }) });
    await expect(request).rejects.toThrow();
    await endOfTurn();
    expect(reasons).toHaveLength(1);
    expect(pool.stats()).toMatchObject({ queued: 0, rejected: 1 });
    await pool.drain();
    await pool.close();
  });
});

describe('a clock that aborts a waiter while it is read', () => {
  // `create` and a first lease read it before; which read of the release is which does not matter.
  const reads = [1, 2, 3, 4, 5, 6, 7, 8];
  const ways: readonly Partial<PipelinePoolOptions<object>>[] = [
    {},
    { validate: () => true, validateAfterIdleMs: 1_000 },
    { prepare: () => {} },
    { reset: () => {}, maxQueue: 3 },
  ];

  it.each(ways)('costs no instance, and no lease is lost (%o)', async (options) => {
    for (const at of reads) {
      const controller = new AbortController();
      let read = Number.NEGATIVE_INFINITY;
      const now = (): number => {
        if (++read === at) controller.abort(ABORTED);
        return 0;
      };
      const pool = new PipelinePool<object>({ size: 1, create: () => ({}), now, ...options });
      const first = await pool.acquire();
      const request = pool.acquire({ signal: controller.signal, tenant: 'a' });
      await endOfTurn();
      read = 0;
      await first.release();
      const lease = await request.catch((error: unknown) => void expect(error).toBe(ABORTED));
      expect(pool.stats()).toMatchObject({ queued: 0, leased: lease ? 1 : 0, rejected: lease ? 0 : 1 });
      await lease?.release();
      await (await pool.acquire()).release();
      await pool.close();
    }
  });
});

describe('a clock that aborts a request while it joins the queue', () => {
  it('leaves the queue in order', async () => {
    for (const at of [1, 2, 3, 4, 5, 6]) {
      const controller = new AbortController();
      let read = Number.NEGATIVE_INFINITY;
      const now = (): number => {
        if (++read === at) controller.abort(ABORTED);
        return 0;
      };
      const pool = new PipelinePool<object>({ size: 1, create: () => ({}), now, agingMs: 1, maxQueue: 9 });
      const first = await pool.acquire();
      read = 0;
      const requests = [pool.acquire({ signal: controller.signal }), pool.acquire()];
      read = Number.NEGATIVE_INFINITY;
      const settled = Promise.allSettled(requests);
      expect(pool.stats().queued + pool.stats().rejected).toBe(2);
      await pool.close({ timeoutMs: 0 });
      await settled;
      await first.release();
      expect(pool.stats()).toMatchObject({ queued: 0, rejected: 2 });
    }
  });
});

describe('`create` in the step of `warmUp`', () => {
  it('may abort its signal', async () => {
    const controller = new AbortController();
    const create = (): Promise<object> => {
      controller.abort(ABORTED);
      return new Promise(() => {});
    };
    const pool = new PipelinePool({ size: 1, min: 1, create });
    await expect(pool.warmUp({ signal: controller.signal })).rejects.toBe(ABORTED);
    await pool.close({ timeoutMs: 0 });
  });

  it('may close the pool', async () => {
    const create = (): Promise<object> => {
      void pool.close({ timeoutMs: 0 });
      return new Promise(() => {});
    };
    const pool = new PipelinePool({ size: 1, min: 1, onCreateFailure: 'retry', create });
    await expect(pool.warmUp()).rejects.toMatchObject({ code: 'ERR_POOL_CLOSED' });
    await pool.close();
  });
});

describe('a release in a listener on the signal of a lease that is revoked', () => {
  it('settles when the instance is gone', async () => {
    const destroying = deferred();
    const destroy = (): Promise<void> => destroying.promise;
    const pool = new PipelinePool({ size: 1, create: () => ({}), destroy, maxLeaseMs: 1 });
    const lease = await pool.acquire();
    const ends: ReturnType<typeof follow>[] = [];
    lease.signal.addEventListener('abort', () => ends.push(follow(lease.release()), follow(lease.ended)));
    await new Promise((resolve) => pool.hooks.on('lease:revoked', resolve));
    await endOfTurn();
    expect(ends.map(({ now }) => now.is)).toEqual(['pending', 'pending']);
    destroying.resolve();
    await pool.close();
    expect(ends.map(({ now }) => now.is)).toEqual(['fulfilled', 'fulfilled']);
  });
});
