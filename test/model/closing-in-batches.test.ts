import { describe, expect, it } from 'vitest';
import { createPipelineManager, ServiceGate } from '../../src/index.js';
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
