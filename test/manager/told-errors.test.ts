import { inspect } from 'node:util';
import { describe, expect, it } from 'vitest';
import {
  createPipelineManager,
  type LifecycleEvents,
  LifecycleHooks,
  logTo,
  ServiceGate,
} from '../../src/index.js';

const KEY = 'serper-key-that-nobody-may-see';
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

describe('what a request tells of an error that came through a gate', () => {
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

  it.each(Object.entries(ways))('shows no key, where the host lets it go %s', async (_, way) => {
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

  it('shows no key of a text that was thrown', async () => {
    const { hooks, gate, lines } = setUp();
    const errors: unknown[] = [];
    hooks.on('request:finished', ({ error }) => void errors.push(error));
    const manager = managerWith(hooks);
    await manager.run('task', () => gate.run(() => Promise.reject(`refused: ${KEY}`))).catch(() => {});
    expect(errors).toEqual([expect.stringMatching(/^refused: #1/)]);
    expect(lines.join()).not.toContain(KEY);
    await manager.shutdown();
  });

  it('is the very error where nothing in it is hidden', async () => {
    const { hooks, gate } = setUp();
    const manager = managerWith(hooks);
    const errors: unknown[] = [];
    hooks.on('request:finished', ({ error }) => void errors.push(error));
    const ofTheClient = Object.assign(new Error('400: no such query'), { status: 400 });
    const ofTheHost = new ClientError(`The host may put into it what it likes: ${KEY}`);
    await manager.run('a', () => gate.run(() => Promise.reject(ofTheClient))).catch(() => {});
    await manager.run('b', () => Promise.reject(ofTheHost)).catch(() => {});
    await manager.run('c', () => 'fine');
    expect(errors[0]).toBe(ofTheClient);
    expect(errors[1]).toBe(ofTheHost);
    expect(errors[2]).toBeUndefined();
    await manager.shutdown();
  });

  it('shows no key in what a pool tells of a creation, nor in what a request does that it turns away', async () => {
    const { hooks, gate, lines } = setUp();
    const errors: unknown[] = [];
    hooks.on('instance:createFailed', ({ error }) => void errors.push(error));
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
