import { inspect } from 'node:util';
import { describe, expect, it, vi } from 'vitest';
import {
  createPipelineManager,
  defineTools,
  type LifecycleEvents,
  LifecycleHooks,
  logTo,
  pipelineFactory,
  ServiceGate,
} from '../../src/index.js';

const KEY = 'serper-key-that-no-log-may-show';
const INPUT_FREE = { retry: { attempts: 1 } } as const;

/** A client's error as clients have them, with the key in its message and in its request. */
class ClientError extends Error {
  readonly status = 400;
  readonly request = { headers: { 'x-api-key': KEY } };
}
const clientFails = () => Promise.reject(new ClientError(`400: the key ${KEY} is fine, the query is not`));

function setUp() {
  const hooks = new LifecycleHooks();
  const lines: string[] = [];
  const write = (...args: unknown[]) => void lines.push(inspect(args, { depth: 10 }));
  logTo(hooks, { debug: write, info: write, warn: write, error: write });
  const gate = new ServiceGate({ ...INPUT_FREE, name: 'serper', keys: [KEY] });
  return { hooks, gate, lines };
}

const managerWith = (hooks: LifecycleHooks, create: () => unknown = () => ({})) =>
  createPipelineManager({ config: { poolSize: 1, maxConcurrentRequests: 1 }, hooks, create });

describe('The error of a request event', () => {
  const ways: Record<string, (gate: ServiceGate) => Promise<unknown>> = {
    'as it is': (gate) => gate.run(clientFails),
    'as a cause': (gate) =>
      gate.run(clientFails).catch((cause: Error) => {
        throw new Error(`No search: ${cause.message}`, { cause });
      }),
    'in an AggregateError': (gate) => Promise.any([gate.run(clientFails), gate.run(clientFails)]),
    'in a field': (gate) =>
      gate.run(clientFails).catch((original: Error) => {
        throw Object.assign(new Error('No search: the query is not'), { details: { original } });
      }),
    'as a cause six deep': (gate) =>
      gate.run(clientFails).catch((cause: Error) => {
        let error = cause;
        for (let i = 0; i < 6; i++)
          error = new Error(`No search, the query is not: ${cause.message}`, { cause: error });
        throw error;
      }),
    'from a stream': async (gate) => {
      for await (const _ of gate.stream(async function* () {
        yield 1;
        await clientFails();
      }));
    },
  };

  it.each(Object.entries(ways))('shows no key, when the host lets it escape %s', async (_, way) => {
    const { hooks, gate, lines } = setUp();
    const finished: LifecycleEvents['request:finished'][] = [];
    hooks.on('request:finished', (event) => void finished.push(event));
    const manager = managerWith(hooks);
    const failure = await manager.run('task', () => way(gate)).catch((error: unknown) => error);
    expect(inspect(failure, { depth: 10 })).toContain(KEY);
    expect(finished).toMatchObject([{ outcome: 'failed', error: expect.any(Error) }]);
    expect(inspect(finished, { depth: 10, showHidden: true })).not.toContain(KEY);
    expect(String((finished[0]!.error as Error).stack)).not.toContain(KEY);
    expect(lines.join()).toMatch(/the query is not|All promises were rejected/);
    expect(lines.join()).not.toContain(KEY);
    await manager.shutdown();
  });

  it('shows no key of a string that was thrown', async () => {
    const { hooks, gate, lines } = setUp();
    const errors: unknown[] = [];
    hooks.on('request:finished', ({ error }) => void errors.push(error));
    const manager = managerWith(hooks);
    await manager.run('task', () => gate.run(() => Promise.reject(`refused: ${KEY}`))).catch(() => {});
    expect(errors).toMatchObject([{ message: 'refused: [redacted]' }]);
    expect(lines.join()).not.toContain(KEY);
    await manager.shutdown();
  });

  it('is a summary, while the caller gets the very error', async () => {
    const { hooks } = setUp();
    const manager = managerWith(hooks);
    const errors: unknown[] = [];
    hooks.on('request:finished', ({ error }) => void errors.push(error));
    const error = new ClientError(`for ${KEY}`);
    await expect(manager.run('a', () => Promise.reject(error))).rejects.toBe(error);
    await manager.run('b', () => 'fine');
    expect(errors).toMatchObject([{ message: 'for [redacted]', status: 400 }, undefined]);
    expect(errors[0]).not.toHaveProperty('request');
    expect(error.message).toBe(`for ${KEY}`);
    await manager.shutdown();
  });

  it('is there also where what was thrown cannot be read, and the caller gets that very value', async () => {
    const { hooks } = setUp();
    const manager = managerWith(hooks);
    const outcomes: unknown[] = [];
    hooks.on('request:finished', ({ outcome, error }) => void outcomes.push([outcome, error?.message]));
    const { proxy, revoke } = Proxy.revocable({}, {});
    revoke();
    // Not returned by the handler: a promise that resolves with it would look at it.
    let isSame = false;
    await manager
      .run('a', () => Promise.reject(proxy))
      .catch((error: unknown) => {
        isSame = error === proxy;
      });
    expect(isSame).toBe(true);
    expect(outcomes).toEqual([['failed', '']]);
    await manager.shutdown();
  });

  it('is redacted by the host last, where the hooks have its redaction', async () => {
    const hooks = new LifecycleHooks({ redact: (text) => text.replaceAll(/customer-\d+/g, 'customer-*') });
    const errors: unknown[] = [];
    hooks.on('request:finished', ({ error }) => void errors.push(error));
    const manager = managerWith(hooks);
    await manager.run('a', () => Promise.reject(new Error('no order of customer-17'))).catch(() => {});
    expect(errors).toMatchObject([{ message: 'no order of customer-*' }]);
    await manager.shutdown();
  });

  it("shows no key that a tool's own call throws, without a gate of ours", async () => {
    const { hooks, lines } = setUp();
    const tools = defineTools({
      search: { connect: () => 1, call: () => Promise.reject(new Error(`refused: ${KEY}`)) },
    });
    const manager = createPipelineManager({
      config: { poolSize: 1, maxConcurrentRequests: 1 },
      ...pipelineFactory({ mainAgent: tools, hooks }),
      hooks,
    });
    const failure = await manager
      .run('task', ({ pipeline }) => pipeline.mainAgentToolManager.call('search'))
      .catch((error: unknown) => error);
    expect(failure).toMatchObject({ cause: { message: `refused: ${KEY}` } });
    expect(lines.join()).toContain('refused: [redacted]');
    expect(lines.join()).not.toContain(KEY);
    await manager.shutdown();
  });

  it('shows no key of a gate that another copy of this package made', async () => {
    vi.resetModules();
    const copy = await import('../../src/index.js');
    expect(copy.ServiceGate).not.toBe(ServiceGate);
    const key = 'a-key-of-the-other-copy';
    const gate = new copy.ServiceGate({ ...INPUT_FREE, name: 'jina', keys: [key] });
    const { hooks, lines } = setUp();
    const errors: unknown[] = [];
    hooks.on('request:finished', ({ error }) => void errors.push(error));
    const manager = managerWith(hooks);
    const hex = Buffer.from(key).toString('hex');
    await manager
      .run('task', () => gate.run((attempt) => Promise.reject(new Error(`400 for ${attempt.key}, ${hex}`))))
      .catch(() => {});
    expect(errors).toMatchObject([{ message: '400 for [redacted], [redacted]' }]);
    expect(lines.join()).not.toContain(key);
    await manager.shutdown();
  });

  it('shows no key when a creation fails, nor when a request is rejected', async () => {
    const { hooks, gate, lines } = setUp();
    const errors: unknown[] = [];
    hooks.on('instance:create-failed', ({ error }) => void errors.push(error));
    hooks.on('lease:rejected', ({ error }) => void errors.push(error));
    hooks.on('request:rejected', ({ error }) => void errors.push(error));
    const manager = managerWith(hooks, () => gate.run(clientFails));
    const failure = await manager.run('task', () => 'never', { timeoutMs: 50 }).catch((error) => error);
    expect(failure).toBeInstanceOf(Error);
    expect(errors.length).toBeGreaterThanOrEqual(3);
    expect(inspect(errors, { depth: 10, showHidden: true })).toContain('400: the key');
    expect(inspect(errors, { depth: 10, showHidden: true })).not.toContain(KEY);
    expect(lines.join()).not.toContain(KEY);
    await manager.shutdown();
  });
});
