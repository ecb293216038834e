import { AsyncResource } from 'node:async_hooks';
import {
  ConcurrencyLimiter,
  createPipelineManager,
  currentRequest,
  PipelineManager,
  PipelinePool,
  type RequestContext,
} from 'pipeline-pool';
import { describe, expect, it } from 'vitest';
import { endOfTurn } from '../support/promises.js';

const managerOf = (options: { trackRequests?: boolean } = {}) =>
  createPipelineManager({
    config: { poolSize: 3, maxConcurrentRequests: 5 },
    create: ({ instanceId }) => ({ instanceId }),
    ...options,
  });

describe('currentRequest', () => {
  it('is the context of the request in its code, and undefined outside', async () => {
    const manager = managerOf();
    expect(currentRequest()).toBeUndefined();
    await manager.run(
      't1',
      async (context) => {
        expect(currentRequest()).toBe(context);
        await endOfTurn();
        expect(currentRequest()).toBe(context);
        expect(context).toMatchObject({ taskId: 't1', tenant: 'a', priority: 3 });
        await new Promise<void>((resolve) =>
          setImmediate(() => {
            expect(currentRequest()).toBe(context);
            resolve();
          }),
        );
      },
      { tenant: 'a', priority: 3 },
    );
    expect(currentRequest()).toBeUndefined();
  });

  it('never mixes concurrent requests, queued or not', async () => {
    const manager = managerOf();
    const seen = await Promise.all(
      Array.from({ length: 50 }, (_, id) =>
        manager.run(String(id), async () => {
          const before = currentRequest()?.taskId;
          await endOfTurn();
          return [before, currentRequest()?.taskId];
        }),
      ),
    );
    expect(seen).toEqual(Array.from({ length: 50 }, (_, id) => [String(id), String(id)]));
  });

  it('is that of the stream in its generator, and not that of the reader', async () => {
    const manager = managerOf();
    const seen: unknown[] = [];
    await manager.run('reader', async (reader) => {
      const stream = manager.stream('t', async function* () {
        for (let i = 0; i < 3; i++) {
          yield currentRequest()?.taskId;
          await endOfTurn();
        }
      });
      for await (const taskId of stream) {
        seen.push(taskId);
        expect(currentRequest()).toBe(reader);
      }
    });
    expect(seen).toEqual(['t', 't', 't']);
  });

  it('is the inner one of nested requests', async () => {
    const manager = managerOf();
    await manager.run('outer', async (outer) => {
      await manager.run('inner', (inner) => expect(currentRequest()).toBe(inner));
      expect(currentRequest()).toBe(outer);
    });
  });

  it('is undefined where trackRequests is off', async () => {
    const manager = managerOf({ trackRequests: false });
    expect(await manager.run('t', () => currentRequest())).toBeUndefined();
  });

  it('is shared by all copies of this package in one process', async () => {
    const key = Symbol.for('pipeline-pool.current-request');
    await managerOf().run('t', (context) => {
      const storage = (globalThis as Record<symbol, unknown>)[key] as { getStore(): RequestContext };
      expect(storage.getStore()).toBe(context);
    });
  });

  it('has no tenant and no priority where the request has none', async () => {
    const keys = await managerOf().run('t', (context) => Object.keys(context));
    expect(keys.sort()).toEqual(['instanceId', 'pipeline', 'requestId', 'signal', 'taskId']);
  });

  it('is not that of a request in callbacks of its pool', async () => {
    const seen: unknown[] = [];
    const note = () => void seen.push(currentRequest());
    const manager = new PipelineManager({
      pool: new PipelinePool({ size: 1, create: () => ({}), reset: note, destroy: note }),
      limiter: new ConcurrencyLimiter({ maxConcurrent: 1 }),
    });
    await manager.run('t', () => new AsyncResource('x').runInAsyncScope(endOfTurn));
    await manager.shutdown();
    expect(seen).toEqual([undefined, undefined]);
  });
});
