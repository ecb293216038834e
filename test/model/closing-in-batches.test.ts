import { describe, expect, it } from 'vitest';
import { ConcurrencyLimiter, createPipelineManager, PipelinePool, ServiceGate } from '../../src/index.js';
import { PER_TURN } from '../../src/internal/clock.js';
import { endOfTurn } from '../support/promises.js';

const WAITERS = 1_000;

/** Ends when its signal aborts. */
const untilAborted = ({ signal }: { readonly signal: AbortSignal }): Promise<never> =>
  new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)));

const codesOf = async (all: readonly Promise<unknown>[]): Promise<unknown[]> => {
  const codes = await Promise.all(
    all.map((one) =>
      one.then(
        () => 'fulfilled',
        ({ code }) => code,
      ),
    ),
  );
  return [...new Set(codes)];
};

describe('With 1,000 waiters', () => {
  it('the close of a gate rejects all of them and starts none', async () => {
    const gate = new ServiceGate({ name: 'llm', maxConcurrent: 1 });
    let started = 0;
    const calls = [
      gate.run(untilAborted),
      ...Array.from({ length: WAITERS }, () => gate.run(() => started++)),
    ];
    const codes = codesOf(calls);
    await endOfTurn();
    await gate.close();
    expect(await codes).toEqual(['ERR_GATE_CLOSED']);
    expect(started).toBe(0);
    expect(gate.stats()).toMatchObject({ closed: true, limiter: { active: 0, queued: 0 } });
  });

  it('the shutdown of a manager rejects all of them and starts none', async () => {
    const manager = createPipelineManager({
      config: { poolSize: 1, maxConcurrentRequests: 1, maxQueue: WAITERS, acquireTimeoutMs: 600_000 },
      create: () => ({}),
    });
    let started = 0;
    const requests = [
      manager.run('running', untilAborted),
      ...Array.from({ length: WAITERS }, (_, i) => manager.run(`task-${i}`, () => started++)),
    ];
    const codes = codesOf(requests);
    while (manager.stats().pool.leased === 0) await endOfTurn();
    await manager.shutdown({ timeoutMs: 0 });
    expect(await codes).toEqual(['ERR_MANAGER_CLOSED']);
    expect(started).toBe(0);
    expect(manager.stats()).toMatchObject({ active: 0, queued: 0 });
  });
});

/** What queues waiters behind one that holds all there is, and ends all of them. */
const QUEUES: Readonly<
  Record<string, () => { wait(signal?: AbortSignal): Promise<unknown>; close(): void }>
> = {
  limiter: () => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 1 });
    limiter.tryAcquire();
    return { wait: (signal) => limiter.run(() => 1, { signal }), close: () => void limiter.close() };
  },
  pool: () => {
    const pool = new PipelinePool({ size: 1, create: () => ({}) });
    void pool.acquire();
    return { wait: (signal) => pool.acquire({ signal }), close: () => void pool.close() };
  },
  gate: () => {
    const gate = new ServiceGate({ name: 'llm', maxConcurrent: 1 });
    gate.run(untilAborted).catch(() => {});
    return { wait: (signal) => gate.run(() => 1, { signal }), close: () => void gate.close() };
  },
  manager: () => {
    const manager = createPipelineManager({
      config: { poolSize: 1, maxConcurrentRequests: 1, maxQueue: WAITERS, acquireTimeoutMs: 600_000 },
      create: () => ({}),
    });
    manager.run('running', untilAborted).catch(() => {});
    return {
      wait: (signal) => manager.run('task', () => 1, { signal }),
      close: () => void manager.shutdown({ timeoutMs: 0 }),
    };
  },
};

describe.each(Object.keys(QUEUES))('The waiters of a %s', (name) => {
  it.each(['close', 'abort'] as const)(
    'settle over several turns of the event loop at one %s',
    async (how) => {
      const queue = QUEUES[name]?.() as ReturnType<(typeof QUEUES)[string]>;
      const controller = new AbortController();
      let left = 0;
      for (let i = 0; i < WAITERS; i++) queue.wait(controller.signal).catch(() => left++);
      for (let i = 0; i < 3; i++) await endOfTurn();
      if (how === 'close') queue.close();
      else controller.abort(new Error('left'));
      const perTurn: number[] = [];
      for (let before = 0; left < WAITERS; before = left) {
        await endOfTurn();
        perTurn.push(left - before);
      }
      expect(Math.max(...perTurn)).toBeLessThanOrEqual(2 * PER_TURN);
    },
  );
});
