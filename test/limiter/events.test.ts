import { beforeAll, describe, expect, it, vi } from 'vitest';
import type { LimiterEvents } from '../../src/hooks/events.js';
import { channels, LifecycleHooks } from '../../src/hooks/lifecycle-hooks.js';
import { enableRedaction, redactError } from '../../src/internal/redaction.js';
import { ConcurrencyLimiter } from '../../src/limiter/concurrency-limiter.js';
import { onFakeTimers } from '../support/fake-timers.js';
import { endOfTurn } from '../support/promises.js';

const EVENTS = [
  'permit:queued',
  'permit:acquired',
  'permit:released',
  'permit:rejected',
  'limit:changed',
] as const satisfies readonly (keyof LimiterEvents)[];

/** Hooks that record the events of limiters. */
function recorder() {
  const hooks = new LifecycleHooks();
  const emitted: [event: string, payload: Record<string, unknown>][] = [];
  for (const event of EVENTS) hooks.on(event, (payload) => emitted.push([event, { ...payload }]));
  return { hooks, emitted };
}

const ids = { taskId: 'report', requestId: 'r1', tenant: 'acme' };

describe('The events of a ConcurrencyLimiter', () => {
  onFakeTimers();
  // As any pool, gate, tool manager or log does.
  beforeAll(enableRedaction);

  it('report a request that is admitted at once, and its release', async () => {
    const { hooks, emitted } = recorder();
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 3, name: 'admission', hooks });
    const permit = await limiter.acquire({ ...ids, weight: 2 });
    permit.release('dropped');
    permit.release();
    const common = { source: 'admission', ...ids, queued: 0, maxConcurrent: 3, weight: 2 };
    expect(emitted).toEqual([
      ['permit:acquired', { ...common, active: 2, waitMs: 0 }],
      ['permit:released', { ...common, active: 0, outcome: 'dropped' }],
    ]);
  });

  it('report a request that waits, and how long', async () => {
    const { hooks, emitted } = recorder();
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 1, hooks });
    const holder = limiter.tryAcquire();
    const waiting = limiter.run(() => {}, ids);
    await vi.advanceTimersByTimeAsync(40);
    holder?.release();
    await waiting;
    const common = { source: 'limiter', ...ids, maxConcurrent: 1, weight: 1 };
    const holders = { ...common, taskId: undefined, requestId: undefined, tenant: undefined };
    expect(emitted).toEqual([
      ['permit:acquired', { ...holders, active: 1, queued: 0, waitMs: 0 }],
      ['permit:queued', { ...common, active: 1, queued: 1, position: 1, estimatedWaitMs: 1000 }],
      ['permit:released', { ...holders, active: 1, queued: 0, outcome: 'ok' }],
      ['permit:acquired', { ...common, active: 1, queued: 0, waitMs: 40 }],
      ['permit:released', { ...common, active: 0, queued: 0, outcome: 'ok' }],
    ]);
  });

  it('report the position of a request without options among those with a priority', async () => {
    const { hooks, emitted } = recorder();
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 1, hooks });
    const holder = limiter.tryAcquire();
    const all = [-1, -1, 1].map((priority) => limiter.run(() => {}, { priority }));
    all.push(limiter.run(() => {}));
    expect(emitted.slice(1).map(([, { position }]) => position)).toEqual([1, 2, 1, 2]);
    holder?.release();
    await Promise.all(all);
  });

  it('report why a request was rejected, with its error', async () => {
    const { hooks, emitted } = recorder();
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 1, maxQueue: 3, hooks });
    limiter.tryAcquire();
    emitted.length = 0;
    const controller = new AbortController();
    const errors: unknown[] = [];
    const note = (error: unknown) => void errors.push(error);
    const all = [
      limiter.acquire({ taskId: 'timeout', timeoutMs: 30 }).catch(note),
      limiter.acquire({ taskId: 'aborted', signal: controller.signal, weight: 1 }).catch(note),
      limiter.acquire({ taskId: 'closed' }).catch(note),
      limiter.acquire({ taskId: 'queue-full' }).catch(note),
      limiter.acquire({ taskId: 'aborted', signal: AbortSignal.abort('before') }).catch(note),
    ];
    await vi.advanceTimersByTimeAsync(30);
    await endOfTurn();
    controller.abort('after');
    await endOfTurn();
    void limiter.close();
    await Promise.all(all);
    all.push(limiter.acquire({ taskId: 'closed' }).catch(note));
    await all.at(-1);
    const rejected = emitted.filter(([event]) => event === 'permit:rejected').map(([, payload]) => payload);
    expect(rejected.map(({ taskId, reason, waitMs }) => [taskId, reason, waitMs])).toEqual([
      ['queue-full', 'queue-full', 0],
      ['aborted', 'aborted', 0],
      ['timeout', 'timeout', 30],
      ['aborted', 'aborted', 30],
      ['closed', 'closed', 30],
      ['closed', 'closed', 0],
    ]);
    for (const { error, ...payload } of rejected) {
      expect(errors.map((thrown) => redactError(thrown))).toContainEqual(error);
      expect(payload).toMatchObject({ source: 'limiter', active: 1, maxConcurrent: 1, weight: 1 });
    }
    expect(emitted.filter(([event]) => event === 'permit:queued')).toHaveLength(3);
  });

  it('come in the order queued, acquired, released for each request', async () => {
    const { hooks, emitted } = recorder();
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 2, hooks });
    await Promise.all(Array.from({ length: 20 }, (_, i) => limiter.run(() => {}, { taskId: `${i}` })));
    for (let i = 0; i < 20; i++) {
      const own = emitted.filter(([, { taskId }]) => taskId === `${i}`).map(([event]) => event);
      expect(own).toEqual([...(i < 2 ? [] : ['permit:queued']), 'permit:acquired', 'permit:released']);
    }
  });

  it('change nothing when a listener throws, rejects or calls the limiter itself', async () => {
    const hooks = new LifecycleHooks();
    const errors: unknown[] = [];
    hooks.on('hook:error', ({ event, error }) => errors.push([event, (error as Error).message]));
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 1, hooks });
    for (const event of EVENTS) {
      hooks.on(event, () => {
        throw new Error('thrown');
      });
      hooks.on(event, () => Promise.reject(new Error('rejected')));
    }
    let listening = true;
    hooks.on('permit:released', () => {
      // One listener that uses the limiter itself, once: this emits events again.
      if (listening) {
        listening = false;
        limiter.tryAcquire()?.release();
      }
    });
    const controller = new AbortController();
    const first = limiter.run(() => 'first');
    const second = limiter.run(() => 'second');
    const third = limiter.run(() => 'third', { signal: controller.signal }).catch(() => 'aborted');
    controller.abort();
    expect(await Promise.all([first, second, third])).toEqual(['first', 'second', 'aborted']);
    expect(limiter.stats()).toMatchObject({ active: 0, queued: 0 });
    await endOfTurn();
    expect(new Set(errors.map(String))).toEqual(
      new Set(
        EVENTS.filter((event) => event !== 'limit:changed').flatMap((event) => [
          `${event},thrown`,
          `${event},rejected`,
        ]),
      ),
    );
  });

  it('go to the hooks in the options, which several limiters may share', async () => {
    const { hooks, emitted } = recorder();
    const limiters = ['llm', 'search'].map(
      (name) => new ConcurrencyLimiter({ maxConcurrent: 1, name, hooks }),
    );
    for (const limiter of limiters) await limiter.run(() => {});
    expect(emitted.map(([event, { source }]) => `${source} ${event}`)).toEqual([
      'llm permit:acquired',
      'llm permit:released',
      'search permit:acquired',
      'search permit:released',
    ]);
  });

  it.each(['permit:acquired', 'permit:released'] as const)(
    'of a free run goes to the diagnostics channel of %s where that alone is listened to',
    async (event) => {
      const limiter = new ConcurrencyLimiter({ maxConcurrent: 2, name: `alone on ${event}` });
      const emitted: unknown[] = [];
      const onMessage = (message: unknown) => {
        const { payload } = message as { payload: LimiterEvents[typeof event] };
        if (payload.source === limiter.name) emitted.push(payload);
      };
      channels[event].subscribe(onMessage);
      try {
        await limiter.run(() => expect(emitted).toHaveLength(event === 'permit:acquired' ? 1 : 0));
      } finally {
        channels[event].unsubscribe(onMessage);
      }
      expect(emitted).toEqual([expect.objectContaining({ weight: 1, queued: 0, maxConcurrent: 2 })]);
      await limiter.run(() => {});
      expect(emitted).toHaveLength(1);
    },
  );

  it('reports no wait of a request that its tenant puts before waiters, and that has room', async () => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 2, fairBy: 'weight' });
    const queued: unknown[] = [];
    limiter.hooks.on('permit:queued', ({ tenant }) => queued.push(tenant));
    const first = await limiter.acquire({ tenant: 'a' });
    const heavy = limiter.acquire({ tenant: 'a', weight: 2 });
    const light = await limiter.acquire({ tenant: 'b' });
    expect(queued).toEqual(['a']);
    first.release();
    light.release();
    (await heavy).release();
  });
});
