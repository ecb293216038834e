import { afterEach, describe, expect, it, vi } from 'vitest';
import { LeaseReleasedError, ManagerClosedError } from '../../src/errors.js';
import type { LifecycleEvents } from '../../src/hooks/events.js';
import { LifecycleHooks } from '../../src/hooks/lifecycle-hooks.js';
import type { ConnectContext } from '../../src/tools/define-tools.js';
import { defineTools } from '../../src/tools/define-tools.js';
import { pipelineFactory } from '../../src/tools/pipeline-factory.js';
import { deferred, microtasks } from '../support/promises.js';

const never = (): Promise<never> => new Promise(() => {});

/** Clients that count themselves, and what became of them. */
class Clients {
  readonly made: string[] = [];
  readonly gone: string[] = [];

  connect(kind: string) {
    return ({ instanceId, taskId }: { instanceId: number; taskId?: string }) => {
      const client = `${kind} of ${taskId ?? instanceId} (${this.made.length + 1})`;
      this.made.push(client);
      return client;
    };
  }

  readonly disconnect = (client: string): void => {
    this.gone.push(client);
  };

  get alive(): string[] {
    return this.made.filter((client) => !this.gone.includes(client));
  }
}

afterEach(() => {
  vi.useRealTimers();
});

describe('pipelineFactory', () => {
  it('can be spread into the options of a pool: its own properties are the callbacks and nothing else', () => {
    const tool = { connect: () => 1, call: () => 1 };
    expect(Object.keys({ ...pipelineFactory({ mainAgent: { tool } }) })).toEqual([
      'create',
      'destroy',
      'prepare',
      'reset',
    ]);
    const checked = pipelineFactory({ mainAgent: { tool: { ...tool, check: () => true } } });
    expect(Object.keys(checked)).toContain('validate');
  });

  it('creates pipelines with the tool managers of its agents, and an output formatter', async () => {
    const tools = defineTools({ name: { connect: () => 1, call: () => 'main' } });
    const factory = pipelineFactory({
      mainAgent: tools,
      subAgents: { reader: defineTools({ name: { connect: () => 1, call: () => 'reader' } }) },
      outputFormatter:
        ({ instanceId, taskId }) =>
        (text: string) =>
          `${instanceId}/${taskId}: ${text}`,
    });
    const pipeline = await factory.create({ instanceId: 3 });
    await factory.prepare(pipeline, { instanceId: 3, taskId: 'a' });
    expect(await pipeline.mainAgentToolManager.call('name')).toBe('main');
    expect(await pipeline.subAgentToolManagers.reader.call('name')).toBe('reader');
    expect(pipeline.subAgentToolManagers.reader.name).toBe('subAgents.reader');
    expect(pipeline.outputFormatter('done')).toBe('3/a: done');
  });

  it('creates an output formatter for each lease, on first use', async () => {
    const outputFormatter = vi.fn(() => ({ citations: [] as string[] }));
    const factory = pipelineFactory({ mainAgent: {}, outputFormatter });
    const pipeline = await factory.create({ instanceId: 1 });
    await factory.prepare(pipeline, { instanceId: 1, taskId: 'a' });
    expect(outputFormatter).not.toHaveBeenCalled();
    const ofA = pipeline.outputFormatter;
    expect(pipeline.outputFormatter).toBe(ofA);
    await factory.reset(pipeline, { instanceId: 1 });
    await factory.prepare(pipeline, { instanceId: 1, taskId: 'b' });
    expect(pipeline.outputFormatter).not.toBe(ofA);
    expect(outputFormatter).toHaveBeenCalledTimes(2);
  });

  it('exposes no internals in a pipeline', async () => {
    const factory = pipelineFactory({ mainAgent: {} });
    const pipeline = await factory.create({ instanceId: 1 });
    expect(Object.keys(pipeline)).toEqual([
      'mainAgentToolManager',
      'subAgentToolManagers',
      'outputFormatter',
    ]);
    expect(Object.isFrozen(pipeline)).toBe(true);
  });

  it.each([
    [{}, '`mainAgent`'],
    [{ mainAgent: [] }, '`mainAgent`'],
    [{ mainAgent: {}, subAgents: [] }, '`subAgents`'],
    [{ mainAgent: {}, subAgents: { a: 1 } }, '`subAgents.a`'],
    [{ mainAgent: {}, outputFormatter: {} }, '`outputFormatter`'],
    [{ mainAgent: {}, hooks: {} }, '`hooks`'],
    [{ mainAgent: {}, disconnectTimeoutMs: 0 }, '`disconnectTimeoutMs`'],
    [{ mainAgent: {}, tools: {} }, '`tools`'],
    [{ mainAgent: { search: {} } }, '`search.connect`'],
  ])('refuses %o', (options, message) => {
    expect(() => pipelineFactory(options as never)).toThrow(message);
  });

  it('rejects a pipeline that is not its own', async () => {
    const factory = pipelineFactory({ mainAgent: {} });
    const other = await pipelineFactory({ mainAgent: {} }).create({ instanceId: 1 });
    await expect(factory.prepare(other, { instanceId: 1 })).rejects.toThrow(TypeError);
    await expect(factory.destroy(other)).rejects.toThrow(TypeError);
  });

  it('rejects tools that share a client but would treat it differently', () => {
    const connect = () => 1;
    const open = { connect, disconnect: () => {}, call: () => 1 };
    const close = { connect, call: () => 1 };
    expect(() => pipelineFactory({ mainAgent: defineTools({ open, close }) })).toThrow(
      'Tools open and close have the same `connect` and so share one client, but their `disconnect` differs',
    );
    const more = defineTools({ read: { ...open, reset: () => {} } });
    expect(() => pipelineFactory({ mainAgent: { open }, subAgents: { more } })).toThrow(
      'their `reset` differs',
    );
    expect(() => pipelineFactory({ mainAgent: { open, close: { ...close, scope: 'task' } } })).not.toThrow();
  });
});

describe('the scopes of clients', () => {
  it('are one for all, one for each pipeline, and one for each lease that uses it', async () => {
    const clients = new Clients();
    const { disconnect } = clients;
    const tools = defineTools({
      all: { scope: 'shared', connect: clients.connect('all'), disconnect, call: (client) => client },
      each: { connect: clients.connect('each'), disconnect, call: (client) => client },
      own: { scope: 'task', connect: clients.connect('own'), disconnect, call: (client) => client },
    });
    const factory = pipelineFactory({ mainAgent: tools, subAgents: { reader: tools } });
    const [one, two] = await Promise.all([
      factory.create({ instanceId: 1 }),
      factory.create({ instanceId: 2 }),
    ]);
    expect(clients.made.toSorted()).toEqual(['all of 1 (1)', 'each of 1 (2)', 'each of 2 (3)']);

    await factory.prepare(one, { instanceId: 1, taskId: 'a' });
    await factory.prepare(two, { instanceId: 2, taskId: 'b' });
    expect(await one.mainAgentToolManager.call('all')).toBe(await two.mainAgentToolManager.call('all'));
    expect(await one.mainAgentToolManager.call('each')).not.toBe(await two.mainAgentToolManager.call('each'));
    const ofA = await one.mainAgentToolManager.call('own');
    expect(ofA).toBe('own of a (4)');
    expect(await one.subAgentToolManagers.reader.call('own')).toBe(ofA);

    await factory.reset(one, { instanceId: 1 });
    await factory.reset(two, { instanceId: 2 });
    expect(clients.gone).toEqual([ofA]);
    await factory.prepare(one, { instanceId: 1, taskId: 'c' });
    expect(await one.mainAgentToolManager.call('own')).toBe('own of c (5)');
    expect(await one.mainAgentToolManager.call('each')).toMatch(/^each of 1/);

    await factory.destroy(one);
    await factory.destroy(two);
    expect(clients.alive).toEqual(['all of 1 (1)']);
    await factory.close();
    expect(clients.alive).toEqual([]);
  });

  it('apply to tools that share a client through the same connect', async () => {
    const clients = new Clients();
    const browser = { connect: clients.connect('browser'), disconnect: clients.disconnect };
    const tools = defineTools({
      open: { ...browser, call: (client) => client },
      click: { ...browser, call: (client) => client },
      other: {
        connect: clients.connect('browser'),
        disconnect: clients.disconnect,
        call: (client) => client,
      },
    });
    const factory = pipelineFactory({ mainAgent: tools });
    const { mainAgentToolManager } = await factory.create({ instanceId: 1 });
    expect(await mainAgentToolManager.call('open')).toBe(await mainAgentToolManager.call('click'));
    expect(await mainAgentToolManager.call('other')).not.toBe(await mainAgentToolManager.call('click'));
    expect(clients.made).toHaveLength(2);
  });

  it('create a shared client once for any number of concurrent instances, and again after a failure', async () => {
    const making = [deferred<string>(), deferred<string>()];
    const connect = vi.fn(() => making[connect.mock.calls.length - 1]?.promise);
    const factory = pipelineFactory({
      mainAgent: defineTools({ all: { scope: 'shared', connect, call: (c) => c } }),
    });
    const asked = [1, 2, 3].map((instanceId) => factory.create({ instanceId }));
    making[0]?.reject(new Error('refused'));
    for (const create of asked) await expect(create).rejects.toThrow('Tool all could not connect: refused');
    const again = [4, 5].map((instanceId) => factory.create({ instanceId }));
    making[1]?.resolve('client');
    await Promise.all(again);
    expect(connect).toHaveBeenCalledTimes(2);
  });

  it('keep the shared client for the others when one instance aborts', async () => {
    const made = deferred<string>();
    const factory = pipelineFactory({
      mainAgent: defineTools({
        all: { scope: 'shared', connect: () => made.promise, call: (client) => client },
      }),
    });
    const hasty = new AbortController();
    const first = factory.create({ instanceId: 1, signal: hasty.signal });
    const second = factory.create({ instanceId: 2, signal: new AbortController().signal });
    hasty.abort(new Error('too slow'));
    await expect(first).rejects.toThrow('too slow');
    made.resolve('client');
    expect(await (await second).mainAgentToolManager.call('all')).toBe('client');
  });
});

describe('PipelineFactory.create', () => {
  it('connects all clients concurrently', async () => {
    const started: string[] = [];
    const made = deferred();
    const connect = (name: string) => async () => {
      started.push(name);
      await made.promise;
    };
    const tools = defineTools({
      a: { connect: connect('a'), call: () => 1 },
      b: { connect: connect('b'), call: () => 1 },
      c: { scope: 'shared', connect: connect('c'), call: () => 1 },
    });
    const create = pipelineFactory({ mainAgent: tools }).create({ instanceId: 1 });
    expect(started.toSorted()).toEqual(['a', 'b', 'c']);
    made.resolve();
    await create;
  });

  it('tears a partially created instance down before it rejects: open clients are disconnected, connecting ones aborted', async () => {
    const clients = new Clients();
    const ends = deferred<string>();
    let emitted: AbortSignal | undefined;
    const tools = defineTools({
      quick: { connect: clients.connect('quick'), disconnect: clients.disconnect, call: () => 1 },
      slow: {
        connect: ({ signal }) => {
          emitted = signal;
          return ends.promise;
        },
        call: () => 1,
      },
      broken: {
        connect: () => Promise.resolve().then(() => Promise.reject(new Error('no browser'))),
        call: () => 1,
      },
    });
    let failed = false;
    const create = pipelineFactory({ mainAgent: tools }).create({ instanceId: 1 });
    create.catch(() => {
      failed = true;
    });
    await microtasks();
    expect(emitted?.aborted).toBe(true);
    expect(clients.gone).toEqual(['quick of 1 (1)']);
    expect(failed).toBe(false);
    ends.reject(new Error('was aborted'));
    await expect(create).rejects.toMatchObject({ code: 'ERR_TOOL_FAILED', tool: 'broken', stage: 'connect' });
  });

  it('does not wait forever for a client that is still connecting, and disconnects it when it arrives', async () => {
    vi.useFakeTimers();
    const hooks = new LifecycleHooks();
    const emitted: unknown[] = [];
    hooks.on('tool:disconnect-failed', (event) => emitted.push(event));
    const late = deferred<string>();
    const gone = vi.fn();
    const tools = defineTools({
      deaf: { connect: () => late.promise, disconnect: gone, call: () => 1 },
      broken: { connect: () => Promise.reject(new Error('no browser')), call: () => 1 },
    });
    const create = expect(
      pipelineFactory({ mainAgent: tools, hooks }).create({ instanceId: 1 }),
    ).rejects.toThrow('no browser');
    await vi.advanceTimersByTimeAsync(5_000);
    await create;
    expect(emitted).toMatchObject([{ tool: 'deaf', instanceId: 1, error: { code: 'ERR_TOOL_TIMEOUT' } }]);
    expect(gone).not.toHaveBeenCalled();
    late.resolve('client');
    await microtasks();
    expect(gone.mock.calls.map(([client]) => client)).toEqual(['client']);
  });

  it('rejects when its signal aborts, and disconnects the clients it has', async () => {
    const clients = new Clients();
    const honors = ({ signal }: ConnectContext) =>
      new Promise<string>((_, reject) => {
        signal.addEventListener('abort', () => reject(new Error('was aborted')));
      });
    const tools = defineTools({
      quick: { connect: clients.connect('quick'), disconnect: clients.disconnect, call: () => 1 },
      slow: { connect: honors, call: () => 1 },
      shared: { scope: 'shared', connect: honors, call: () => 1 },
    });
    const deadline = new AbortController();
    const create = pipelineFactory({ mainAgent: tools }).create({ instanceId: 1, signal: deadline.signal });
    await microtasks();
    const reason = new Error('time is up');
    deadline.abort(reason);
    await expect(create).rejects.toBe(reason);
    expect(clients.made).toHaveLength(1);
    expect(clients.alive).toEqual([]);
  });

  it('stops waiting for a shared client when another of its clients fails', async () => {
    let emitted: AbortSignal | undefined;
    const tools = defineTools({
      shared: {
        scope: 'shared',
        connect: ({ signal }) => {
          emitted = signal;
          return never();
        },
        call: () => 1,
      },
      broken: { connect: () => Promise.reject(new Error('no browser')), call: () => 1 },
    });
    await expect(pipelineFactory({ mainAgent: tools }).create({ instanceId: 1 })).rejects.toThrow(
      'no browser',
    );
    await microtasks();
    expect(emitted?.aborted).toBe(true);
  });

  it('rejects without keys in the emitted error', async () => {
    const tools = defineTools({
      broken: { connect: () => Promise.reject(new Error('403 for api_key=abcdef0123456789')), call: () => 1 },
    });
    await expect(pipelineFactory({ mainAgent: tools }).create({ instanceId: 1 })).rejects.toThrow(
      'Tool broken could not connect: 403 for api_key=[redacted]',
    );
  });
});

describe('the end of a lease', () => {
  const setUp = async () => {
    const answer = deferred<string>();
    const signals: AbortSignal[] = [];
    const clients = new Clients();
    const tools = defineTools({
      each: {
        connect: clients.connect('each'),
        call: (client, _: unknown, { signal, taskId }) => {
          signals.push(signal);
          return answer.promise.then((text) => `${text} ${client} ${taskId}`);
        },
      },
      own: {
        scope: 'task',
        connect: clients.connect('own'),
        disconnect: clients.disconnect,
        call: (client) => client,
      },
    });
    const factory = pipelineFactory({ mainAgent: tools });
    const pipeline = await factory.create({ instanceId: 1 });
    await factory.prepare(pipeline, { instanceId: 1, taskId: 'a' });
    return { factory, pipeline, answer, signals, clients };
  };

  it('aborts running calls and rejects later ones, in the step in which it ends', async () => {
    const { factory, pipeline, answer, signals } = await setUp();
    const ofA = pipeline.mainAgentToolManager;
    const underWay = ofA.call('each');
    await microtasks();
    const reset = factory.reset(pipeline, { instanceId: 1 });
    expect(signals[0]?.aborted).toBe(true);
    await expect(ofA.call('each')).rejects.toThrow(LeaseReleasedError);
    await expect(underWay).rejects.toThrow(LeaseReleasedError);
    await expect(ofA.client('own')).rejects.toThrow(LeaseReleasedError);
    expect(signals).toHaveLength(1);
    answer.resolve('');
    await reset;
  });

  it("rejects calls of the old task's manager forever, also while the next task holds the instance", async () => {
    const { factory, pipeline, answer, clients } = await setUp();
    const ofA = pipeline.mainAgentToolManager;
    answer.resolve('answer');
    await factory.reset(pipeline, { instanceId: 1 });
    await expect(pipeline.mainAgentToolManager.call('own')).rejects.toThrow(LeaseReleasedError);
    await factory.prepare(pipeline, { instanceId: 1, taskId: 'b' });
    await expect(ofA.call('own')).rejects.toThrow(LeaseReleasedError);
    await expect(ofA.answer('own')).rejects.toThrow(LeaseReleasedError);
    expect(clients.made).toHaveLength(1);
    expect(await pipeline.mainAgentToolManager.call('each')).toBe('answer each of 1 (1) b');
  });

  it("waits until no call of the old task runs on the instance's clients", async () => {
    const { factory, pipeline, answer } = await setUp();
    pipeline.mainAgentToolManager.call('each').catch(() => {});
    await microtasks();
    let over = false;
    const reset = factory.reset(pipeline, { instanceId: 1 }).then(() => {
      over = true;
    });
    await microtasks();
    expect(over).toBe(false);
    answer.resolve('');
    await reset;
  });

  it('does not wait for calls on clients of scope task or shared', async () => {
    const tools = defineTools({
      all: { scope: 'shared', connect: () => 1, call: never },
      own: { scope: 'task', connect: () => 1, call: never },
    });
    const factory = pipelineFactory({ mainAgent: tools });
    const pipeline = await factory.create({ instanceId: 1 });
    const calls = pipeline.mainAgentToolManager.callAll([{ name: 'all' }, { name: 'own' }]);
    await microtasks();
    await factory.reset(pipeline, { instanceId: 1 });
    expect((await calls).map(({ status }) => status)).toEqual(['rejected', 'rejected']);
  });

  it('fails when such a call never ends, so that the instance is replaced', async () => {
    const { factory, pipeline } = await setUp();
    pipeline.mainAgentToolManager.call('each').catch(() => {});
    await microtasks();
    const deadline = new AbortController();
    const reset = factory.reset(pipeline, { instanceId: 1, signal: deadline.signal });
    deadline.abort(new Error('time is up'));
    await expect(reset).rejects.toThrow('time is up');
    await factory.destroy(pipeline);
  });

  it('disconnects a client that arrives after the lease of its task', async () => {
    const late = deferred<string>();
    const gone = vi.fn();
    const tools = defineTools({
      own: { scope: 'task', connect: () => late.promise, disconnect: gone, call: (client) => client },
    });
    const factory = pipelineFactory({ mainAgent: tools });
    const pipeline = await factory.create({ instanceId: 1 });
    await factory.prepare(pipeline, { instanceId: 1, taskId: 'a' });
    const work = pipeline.mainAgentToolManager.call('own');
    const reset = factory.reset(pipeline, { instanceId: 1 });
    await expect(work).rejects.toThrow(LeaseReleasedError);
    late.resolve('late browser');
    await reset;
    expect(gone.mock.calls.map(([client]) => client)).toEqual(['late browser']);
  });

  it('ends the previous session also if a pool has no reset', async () => {
    const { factory, pipeline, clients } = await setUp();
    const ofA = pipeline.mainAgentToolManager;
    await ofA.call('own');
    await factory.prepare(pipeline, { instanceId: 1, taskId: 'b' });
    await expect(ofA.call('own')).rejects.toThrow(LeaseReleasedError);
    expect(clients.gone).toEqual(['own of a (2)']);
  });

  it("clears a task's state from the instance's clients, and fails if that fails", async () => {
    const reset = vi.fn((_client: string, _context: unknown): unknown => undefined);
    const connect = () => 'browser';
    const tools = defineTools({
      open: { connect, reset, call: () => 1 },
      click: { connect, reset, call: () => 1 },
    });
    const factory = pipelineFactory({ mainAgent: tools });
    const pipeline = await factory.create({ instanceId: 1 });
    await factory.prepare(pipeline, { instanceId: 1, taskId: 'a' });
    await factory.reset(pipeline, { instanceId: 1 });
    expect(reset.mock.calls.map(([client]) => client)).toEqual(['browser']);
    reset.mockRejectedValueOnce(new Error('page hangs'));
    await expect(factory.reset(pipeline, { instanceId: 1 })).rejects.toThrow(
      'Tool open could not reset: page hangs',
    );
    reset.mockReturnValueOnce(never());
    const deadline = new AbortController();
    const hangs = factory.reset(pipeline, { instanceId: 1, signal: deadline.signal });
    await microtasks();
    deadline.abort(new Error('time is up'));
    await expect(hangs).rejects.toThrow('time is up');
  });

  it('accepts hooks of another copy of this package', async () => {
    const emitted: unknown[] = [];
    const hooks = {
      hasListeners: () => true,
      emit: (event: string) => void emitted.push(event),
    } as unknown as LifecycleHooks;
    const tools = defineTools({ clock: { connect: () => 1, call: () => 1 } });
    const factory = pipelineFactory({ mainAgent: tools, hooks });
    expect(factory.hooks).toBe(hooks);
    const { mainAgentToolManager } = await factory.create({ instanceId: 1 });
    await mainAgentToolManager.call('clock');
    expect(emitted).toEqual(['tool:started', 'tool:finished']);
  });

  it('includes task, request and tenant in event payloads', async () => {
    const hooks = new LifecycleHooks();
    const emitted: unknown[] = [];
    hooks.on('tool:started', (event) => emitted.push(event));
    const factory = pipelineFactory({
      mainAgent: defineTools({ clock: { connect: () => 1, call: () => 1 } }),
      hooks,
    });
    const pipeline = await factory.create({ instanceId: 1 });
    const ids = { taskId: 'a', requestId: 'r-1', tenant: 'acme' };
    await factory.prepare(pipeline, { instanceId: 1, ...ids });
    await pipeline.mainAgentToolManager.call('clock');
    expect(emitted).toEqual([{ source: 'mainAgent', tool: 'clock', instanceId: 1, toolCallId: 1, ...ids }]);
  });
});

describe('PipelineFactory.validate', () => {
  it.each([
    [true, true],
    [false, false],
    [undefined, false],
    [1, false],
  ])('takes the answer %o of check for %o', async (answer, healthy) => {
    const tools = defineTools({
      plain: { connect: () => 1, call: () => 1 },
      browse: { connect: () => 'browser', check: () => Promise.resolve(answer as boolean), call: () => 1 },
    });
    const factory = pipelineFactory({ mainAgent: tools });
    const pipeline = await factory.create({ instanceId: 1 });
    expect(await factory.validate?.(pipeline, { instanceId: 1 })).toBe(healthy);
  });

  it('rejects when a check does', async () => {
    const tools = defineTools({
      browse: { connect: () => 1, check: () => Promise.reject(new Error('gone')), call: () => 1 },
    });
    const factory = pipelineFactory({ mainAgent: tools });
    const pipeline = await factory.create({ instanceId: 1 });
    await expect(factory.validate?.(pipeline, { instanceId: 1 })).rejects.toThrow(
      'Tool browse could not check: gone',
    );
  });
});

describe('letting clients go', () => {
  const failing = (disconnect: () => unknown) => {
    const hooks = new LifecycleHooks();
    const emitted: LifecycleEvents['tool:disconnect-failed'][] = [];
    hooks.on('tool:disconnect-failed', (event) => emitted.push(event));
    const tools = defineTools({
      all: { scope: 'shared', connect: () => 1, disconnect, call: () => 1 },
      each: { connect: () => 1, disconnect, call: () => 1 },
      own: { scope: 'task', connect: () => 1, disconnect, call: () => 1 },
    });
    return { factory: pipelineFactory({ mainAgent: tools, hooks }), emitted };
  };

  it.each([
    ['rejects', () => Promise.reject(new Error('stuck on api_key=abcdef0123456789'))],
    [
      'throws at once',
      () => {
        throw new Error('stuck on api_key=abcdef0123456789');
      },
    ],
  ])('is reported and changes nothing when it %s', async (_, disconnect) => {
    const { factory, emitted } = failing(disconnect);
    const pipeline = await factory.create({ instanceId: 1 });
    await factory.prepare(pipeline, { instanceId: 1, taskId: 'a' });
    await pipeline.mainAgentToolManager.call('own');
    await factory.reset(pipeline, { instanceId: 1 });
    await factory.destroy(pipeline);
    await factory.close();
    expect(emitted).toMatchObject([
      { source: 'pipelineFactory', tool: 'own', instanceId: 1, taskId: 'a' },
      { source: 'pipelineFactory', tool: 'each', instanceId: 1 },
      { source: 'pipelineFactory', tool: 'all' },
    ]);
    expect(emitted[0]?.error).toMatchObject({
      code: 'ERR_TOOL_FAILED',
      message: 'Tool own could not disconnect: stuck on api_key=[redacted]',
    });
    expect(emitted[2]).not.toHaveProperty('instanceId');
  });

  it('is abandoned and emitted when it exceeds its timeout', async () => {
    vi.useFakeTimers();
    const { factory, emitted } = failing(never);
    const pipeline = await factory.create({ instanceId: 1 });
    let over = false;
    const destroy = factory.destroy(pipeline).then(() => {
      over = true;
    });
    await vi.advanceTimersByTimeAsync(4_999);
    expect(over).toBe(false);
    await vi.advanceTimersByTimeAsync(1);
    await destroy;
    expect(emitted).toMatchObject([
      {
        tool: 'each',
        error: { code: 'ERR_TOOL_TIMEOUT', message: 'Tool each took longer than 5000 ms to disconnect' },
      },
    ]);
  });
});

describe('PipelineFactory.close', () => {
  it('disconnects the shared clients once, and creates no further instances', async () => {
    const gone = vi.fn();
    const tools = defineTools({
      all: { scope: 'shared', connect: () => 1, disconnect: gone, call: () => 1 },
    });
    await using factory = pipelineFactory({ mainAgent: tools });
    const pipeline = await factory.create({ instanceId: 1 });
    await Promise.all([factory.close(), factory.close()]);
    expect(gone).toHaveBeenCalledOnce();
    await expect(factory.create({ instanceId: 2 })).rejects.toThrow(ManagerClosedError);
    await expect(pipeline.mainAgentToolManager.call('all')).rejects.toMatchObject({
      code: 'ERR_TOOL_FAILED',
      cause: { code: 'ERR_MANAGER_CLOSED' },
    });
  });

  it('rejects waiters for a shared client, and disconnects it when it arrives', async () => {
    const made = deferred<string>();
    const gone = vi.fn();
    const tools = defineTools({
      all: { scope: 'shared', connect: () => made.promise, disconnect: gone, call: () => 1 },
    });
    const factory = pipelineFactory({ mainAgent: tools });
    const create = factory.create({ instanceId: 1 });
    const close = factory.close();
    await expect(create).rejects.toThrow('pipelineFactory is shut down');
    made.resolve('late');
    await close;
    expect(gone).toHaveBeenCalledOnce();
  });

  it('gives two factories of the same tools clients of their own', async () => {
    const clients = new Clients();
    const tools = defineTools({
      all: {
        scope: 'shared',
        connect: clients.connect('all'),
        disconnect: clients.disconnect,
        call: () => 1,
      },
    });
    const [a, b] = [pipelineFactory({ mainAgent: tools }), pipelineFactory({ mainAgent: tools })];
    await a.create({ instanceId: 1 });
    await b.create({ instanceId: 1 });
    await a.close();
    expect(clients.alive).toHaveLength(1);
    await b.close();
  });
});
