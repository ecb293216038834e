import { createPipelineManager, LifecycleHooks, type RequestContext, ServiceGate } from 'pipeline-pool';
import { describe, expect, expectTypeOf, it } from 'vitest';

const untilAborted = (signal: AbortSignal) =>
  new Promise<never>((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)));

const managerOf = (trackRequests = true) =>
  createPipelineManager({
    config: { poolSize: 2, maxConcurrentRequests: 2 },
    create: () => ({ secret: 1 }),
    trackRequests,
  });

function gateOf() {
  const hooks = new LifecycleHooks();
  const started: object[] = [];
  hooks.on('call:started', ({ taskId, requestId, tenant }) => started.push({ taskId, requestId, tenant }));
  return { gate: new ServiceGate({ name: 'llm', maxConcurrent: 1, hooks }), started };
}

describe('a gate in the code of a request', () => {
  it.each([
    ['run', (gate: ServiceGate) => gate.run(() => 1)],
    [
      'stream',
      (gate: ServiceGate) =>
        gate
          .stream(async function* () {
            yield 1;
          })
          .next(),
    ],
  ])('uses the ids and tenant of the current request in %s', async (_, call) => {
    const { gate, started } = gateOf();
    const requestId = await managerOf().run(
      't1',
      async (request) => {
        await call(gate);
        return request.requestId;
      },
      { tenant: 'a' },
    );
    expect(started).toEqual([{ taskId: 't1', requestId, tenant: 'a' }]);
  });

  it('starts calls in the order of the priorities of their requests', async () => {
    const { gate } = gateOf();
    const manager = managerOf();
    const order: string[] = [];
    let free = (): void => {};
    const first = gate.run(() => new Promise<void>((resolve) => (free = resolve)));
    const call = async ({ taskId }: RequestContext) => {
      await gate.run(() => order.push(taskId));
    };
    const runs = [
      manager.run('low', call, { priority: -Number.MAX_SAFE_INTEGER }),
      manager.run('high', call, { priority: 5 }),
    ];
    await expect.poll(() => gate.stats().limiter?.queued).toBe(2);
    free();
    await Promise.all([first, ...runs]);
    expect(order).toEqual(['high', 'low']);
  });

  it('aborts a call that outlasts its request, and releases its permit', async () => {
    const { gate } = gateOf();
    let left: Promise<unknown> | undefined;
    await managerOf().run('t1', async () => {
      left = gate.run(({ signal }) => untilAborted(signal));
      left.catch(() => {});
      await expect.poll(() => gate.stats().running).toBe(1);
    });
    await expect(left).rejects.toThrow('The request is over');
    await expect(gate.run(() => 'free')).resolves.toBe('free');
  });

  it('prefers the options of the call', async () => {
    const { gate, started } = gateOf();
    const own = { taskId: 'own', requestId: 'r', tenant: 'b', signal: new AbortController().signal };
    let left: Promise<unknown> | undefined;
    let free = (): void => {};
    await managerOf().run('t1', () => {
      left = gate.run(() => new Promise<void>((resolve) => (free = resolve)), own);
    });
    free();
    await left;
    expect(started).toEqual([{ taskId: 'own', requestId: 'r', tenant: 'b' }]);
  });

  it('accepts the context of a request as its options', async () => {
    const { gate, started } = gateOf();
    const requestId = await managerOf(false).run('t1', async (request) => {
      await gate.run(() => 1, request);
      await gate.run(() => 1, { ...request, weight: 2 });
      await gate
        .stream(async function* () {
          yield 1;
        }, request)
        .next();
      return request.requestId;
    });
    expect(started).toEqual(Array(3).fill({ taskId: 't1', requestId, tenant: undefined }));
    expectTypeOf<RequestContext<string>>().toExtend<NonNullable<Parameters<typeof gate.run>[1]>>();
    await expect(gate.run(() => 1, { pipeline: 1 } as never)).rejects.toThrow('Unknown option `pipeline`');
  });

  it('uses nothing of a request that is not tracked', async () => {
    const { gate, started } = gateOf();
    await managerOf(false).run('t1', () => gate.run(() => 1));
    expect(started).toEqual([{ taskId: undefined, requestId: undefined, tenant: undefined }]);
  });
});
