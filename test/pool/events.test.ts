import { describe, expect, it, vi } from 'vitest';
import { LIFECYCLE_EVENTS } from '../../src/hooks/events.js';
import { channels, LifecycleHooks } from '../../src/hooks/lifecycle-hooks.js';
import type { PipelinePoolOptions } from '../../src/pool/options.js';
import { PipelinePool } from '../../src/pool/pipeline-pool.js';
import { inVirtualTime } from '../support/fake-timers.js';
import { HandMade, type Piece, Workshop } from '../support/pools.js';
import { endOfTurn } from '../support/promises.js';

inVirtualTime();

/** A pool, and the events it emits, in order. */
function listeningPool(more: Partial<PipelinePoolOptions<Piece>> = {}) {
  const workshop = new Workshop();
  const hooks = new LifecycleHooks();
  const emitted: [string, Record<string, unknown>][] = [];
  for (const event of LIFECYCLE_EVENTS) {
    hooks.on(event, (payload) => emitted.push([event, payload as unknown as Record<string, unknown>]));
  }
  const pool = new PipelinePool({ size: 1, name: 'research', hooks, ...workshop.callbacks, ...more });
  return { workshop, pool, emitted, names: () => emitted.map(([event]) => event) };
}

describe('the events of a pool', () => {
  it('show a lease from creation to destruction, in order, with ids, counts and durations', async () => {
    const { pool, emitted } = listeningPool();
    const lease = await pool.acquire({ taskId: 'a', requestId: 'r1', tenant: 'acme' });
    const next = pool.acquire({ taskId: 'b' });
    await vi.advanceTimersByTimeAsync(30);
    await lease.release();
    await (await next).release({ discard: true });
    await endOfTurn();
    const figures = { source: 'research', size: 1 };
    expect(emitted).toMatchObject([
      ['instance:creating', { ...figures, instanceId: 1, live: 1, leased: 0, queued: 1 }],
      ['lease:queued', { ...figures, taskId: 'a', requestId: 'r1', tenant: 'acme', live: 1, queued: 1 }],
      ['instance:created', { ...figures, instanceId: 1, createMs: 0, live: 1 }],
      ['lease:acquired', { ...figures, taskId: 'a', requestId: 'r1', instanceId: 1, waitMs: 0, leased: 1 }],
      ['lease:queued', { ...figures, taskId: 'b', queued: 1, leased: 1 }],
      ['lease:released', { taskId: 'a', requestId: 'r1', instanceId: 1, heldMs: 30, discarded: false }],
      ['lease:acquired', { taskId: 'b', instanceId: 1, waitMs: 30, leased: 1, queued: 0 }],
      ['lease:released', { taskId: 'b', instanceId: 1, heldMs: 0, discarded: true, leased: 0 }],
      [
        'instance:destroyed',
        { instanceId: 1, reason: 'discarded', ageMs: 30, uses: 2, destroyMs: 0, live: 0 },
      ],
    ]);
  });

  it('say why a request got no lease', async () => {
    const workshop = new HandMade();
    const { pool, emitted } = listeningPool({
      ...workshop.callbacks,
      maxQueue: 1,
      prepare: () => Promise.reject(new Error('no')),
    });
    const reasons = (): unknown[] =>
      emitted
        .filter(([event]) => event === 'lease:rejected')
        .map(([, { reason, taskId }]) => [taskId, reason]);
    const ask = (taskId: string, options = {}) => pool.acquire({ taskId, ...options }).catch(() => {});

    await ask('aborted', { signal: AbortSignal.abort() });
    await ask('gone', { instanceId: 7 });
    const failing = ask('create-failed');
    await endOfTurn();
    workshop.fail(new Error('no memory'));
    await failing;
    const waiting = [ask('prepare-failed'), ask('timeout', { timeoutMs: 20_000 })];
    await ask('queue-full');
    await vi.advanceTimersByTimeAsync(10_000);
    workshop.finish();
    await waiting[0];
    await vi.advanceTimersByTimeAsync(10_000);
    await waiting[1];
    const last = ask('closed');
    const closed = pool.close({ timeoutMs: 0 });
    await vi.advanceTimersByTimeAsync(10);
    await last;
    await closed;
    await ask('closed before');
    expect(reasons()).toEqual([
      ['aborted', 'aborted'],
      ['gone', 'instance-gone'],
      ['create-failed', 'create-failed'],
      ['queue-full', 'queue-full'],
      ['prepare-failed', 'prepare-failed'],
      ['timeout', 'timeout'],
      ['closed', 'closed'],
      ['closed before', 'closed'],
    ]);
  });

  it('do not include lease:queued for a request that is served at once', async () => {
    const { pool, names } = listeningPool({ prepare: () => {} });
    await (await pool.acquire()).release();
    const before = names().length;
    await pool.acquire();
    expect(names().slice(before)).toEqual(['lease:acquired']);
  });

  it('allow any call of the pool in a listener', async () => {
    for (const event of LIFECYCLE_EVENTS) {
      if (event === 'hook:error') continue;
      for (const call of ['refresh', 'resize', 'acquire', 'close'] as const) {
        const workshop = new Workshop();
        const pool = new PipelinePool({
          size: 2,
          min: 1,
          ...workshop.callbacks,
          maxUses: 3,
          validate: (piece) => piece.id % 2 === 0,
          validateAfterIdleMs: 0,
        });
        let answered = false;
        pool.hooks.on(event, () => {
          if (answered) return;
          answered = true;
          if (call === 'refresh') pool.refresh();
          else if (call === 'resize') pool.resize(1);
          else if (call === 'close') void pool.close();
          else
            pool.acquire({ instanceId: 1 }).then(
              (lease) => lease.release(),
              () => {},
            );
        });
        const work = async (discard: boolean): Promise<void> => {
          const lease = await pool.acquire();
          expect(lease.pipeline.alive).toBe(true);
          await endOfTurn();
          await lease.release({ discard });
        };
        await Promise.allSettled([work(false), work(true), work(false), work(false), work(false)]);
        await endOfTurn();
        expect(pool.stats(), `${call} on ${event}`).toMatchObject({ leased: 0, queued: 0, readying: 0 });
        expect(workshop.peak).toBeLessThanOrEqual(2);
        await pool.close();
        expect(workshop.alive, `${call} on ${event}`).toBe(0);
      }
    }
  });

  it('change nothing when a listener throws or rejects', async () => {
    const workshop = new Workshop();
    const pool = new PipelinePool({ size: 1, ...workshop.callbacks });
    const errors: unknown[] = [];
    for (const event of LIFECYCLE_EVENTS) {
      if (event === 'hook:error') continue;
      pool.hooks.on(event, () => {
        throw new Error(event);
      });
      pool.hooks.on(event, () => Promise.reject(new Error(event)));
    }
    pool.hooks.on('hook:error', ({ event }) => errors.push(event));
    const lease = await pool.acquire();
    const next = pool.acquire();
    await lease.release({ discard: true });
    await (await next).release();
    await pool.close();
    await endOfTurn();
    expect(workshop.alive).toBe(0);
    expect(errors).toContain('lease:acquired');
  });

  it.each([
    ['lease:queued', ['b', 'c']],
    ['lease:acquired', ['a', 'b']],
    ['lease:rejected', ['c']],
    ['lease:released', ['a', 'b']],
  ] as const)('reach the diagnostics channel of %s without any other listener', async (event, tasks) => {
    const pool = new PipelinePool({ size: 1, ...new Workshop().callbacks });
    await pool.warmUp();
    await endOfTurn();
    await (await pool.acquire()).release();
    const seen: (string | undefined)[] = [];
    const onMessage = (message: unknown) =>
      seen.push((message as { payload: { taskId: string | undefined } }).payload.taskId);
    channels[event].subscribe(onMessage);
    const lease = await pool.acquire({ taskId: 'a' });
    const next = pool.acquire({ taskId: 'b' });
    const turnedAway = pool.acquire({ taskId: 'c', timeoutMs: 10 }).catch(() => {});
    await vi.advanceTimersByTimeAsync(10);
    await turnedAway;
    await lease.release();
    await (await next).release();
    channels[event].unsubscribe(onMessage);
    expect(seen).toEqual(tasks);
    await pool.close();
  });

  it('add no promise to a waiter when nothing listens', async () => {
    const pool = new PipelinePool({ size: 1, ...new Workshop().callbacks });
    const emit = vi.spyOn(pool.hooks, 'emit');
    const lease = await pool.acquire();
    const next = pool.acquire();
    await lease.release();
    await (await next).release();
    await pool.close();
    expect(emit).not.toHaveBeenCalled();
  });
});
