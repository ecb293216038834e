import { AsyncLocalStorage } from 'node:async_hooks';
import { inspect } from 'node:util';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { LeaseReleasedError, ToolFailedError, ToolTimeoutError, ToolUnknownError } from '../../src/errors.js';
import { LifecycleHooks } from '../../src/hooks/lifecycle-hooks.js';
import { defineTools, type ToolSet } from '../../src/tools/define-tools.js';
import { type PipelineFactory, pipelineFactory } from '../../src/tools/pipeline-factory.js';
import type { ToolManager } from '../../src/tools/tool-manager.js';
import { deferred, KeyedGate, settled } from './doubles.js';

const never = (): Promise<never> => new Promise(() => {});

async function managerOf<T extends ToolSet>(
  tools: T,
  { hooks = new LifecycleHooks(), taskId = 'task-1', instanceId = 1 } = {},
): Promise<{
  tools: ToolManager<T>;
  release: () => Promise<void>;
  factory: PipelineFactory<T, Record<never, never>, undefined>;
}> {
  const factory = pipelineFactory({ mainAgent: tools, hooks });
  const pipeline = await factory.create({ instanceId });
  await factory.prepare(pipeline, { instanceId, taskId });
  return {
    tools: pipeline.mainAgentToolManager,
    release: () => factory.reset(pipeline, { instanceId }),
    factory,
  };
}

afterEach(() => {
  vi.useRealTimers();
});

describe('ToolManager.call', () => {
  it('gives the tool its client, its input and what it needs to know of the call', async () => {
    const call = vi.fn((client: string, input: { q: string }, _context: unknown) => client + input.q);
    const { tools } = await managerOf(defineTools({ search: { connect: () => 'client ', call } }));
    expect(await tools.call('search', { q: 'tide' })).toBe('client tide');
    expect(call.mock.calls[0]?.[2]).toMatchObject({ key: '', taskId: 'task-1', attempt: 1 });
  });

  it('refuses a tool that there is not', async () => {
    const { tools } = await managerOf(defineTools({ search: { connect: () => 1, call: () => 1 } }));
    await expect(tools.call('serach' as 'search')).rejects.toThrow(
      new ToolUnknownError('serach', ['search']),
    );
    await expect(tools.call('toString' as 'search')).rejects.toThrow(ToolUnknownError);
    await expect(tools.client('constructor' as 'search')).rejects.toThrow(ToolUnknownError);
  });

  it.each([
    ['rejects', () => Promise.reject(new Error('boom'))],
    [
      'throws at once',
      () => {
        throw new Error('boom');
      },
    ],
  ])('rejects with ToolFailedError and the cause when the tool %s', async (_, call) => {
    const { tools } = await managerOf(defineTools({ search: { connect: () => 1, call } }));
    const error = await tools.call('search').catch((thrown: unknown) => thrown);
    expect(error).toBeInstanceOf(ToolFailedError);
    expect(error).toMatchObject({
      code: 'ERR_TOOL_FAILED',
      tool: 'search',
      stage: 'call',
      message: 'Tool search failed: boom',
      cause: new Error('boom'),
    });
  });

  it.each([undefined, null, 0, 'boom'])('rejects typed when the tool throws %o', async (thrown) => {
    const { tools } = await managerOf(
      defineTools({ search: { connect: () => 1, call: () => Promise.reject(thrown) } }),
    );
    await expect(tools.call('search')).rejects.toBeInstanceOf(ToolFailedError);
  });

  it("takes the tool's time, or the caller's instead", async () => {
    vi.useFakeTimers();
    const signals: AbortSignal[] = [];
    const call = (_: unknown, __: unknown, { signal }: { signal: AbortSignal }): Promise<never> => {
      signals.push(signal);
      return never();
    };
    const { tools } = await managerOf(
      defineTools({
        own: { connect: () => 1, timeoutMs: 1_000, call },
        usual: { connect: () => 1, call },
      }),
    );
    const ends: [string, unknown][] = [];
    const watch = (name: string, work: Promise<unknown>): void => {
      work.catch((error: unknown) => ends.push([name, error]));
    };
    watch('own', tools.call('own'));
    watch('shorter', tools.call('own', undefined, { timeoutMs: 500 }));
    watch('longer', tools.call('own', undefined, { timeoutMs: 2_000 }));
    watch('usual', tools.call('usual'));
    await vi.advanceTimersByTimeAsync(499);
    expect(ends).toEqual([]);
    await vi.advanceTimersByTimeAsync(1);
    expect(ends).toEqual([['shorter', new ToolTimeoutError('own', 500)]]);
    await vi.advanceTimersByTimeAsync(500);
    expect(ends[1]).toEqual(['own', new ToolTimeoutError('own', 1_000)]);
    await vi.advanceTimersByTimeAsync(298_999);
    expect(ends.map(([name]) => name)).toEqual(['shorter', 'own', 'longer']);
    await vi.advanceTimersByTimeAsync(1);
    expect(ends[3]).toEqual(['usual', new ToolTimeoutError('usual', 300_000)]);
    expect(signals.map(({ aborted }) => aborted)).toEqual([true, true, true, true]);
    expect(vi.getTimerCount()).toBe(0);
  });

  it("rejects with the caller's own reason when the caller aborts, whatever the tool does about it", async () => {
    const { tools } = await managerOf(
      defineTools({
        deaf: { connect: () => 1, call: never },
        heeds: {
          connect: () => 1,
          call: (_, __: unknown, { signal }) =>
            new Promise((_resolve, reject) => {
              signal.addEventListener('abort', () => reject(new Error('was told')));
            }),
        },
      }),
    );
    for (const name of ['deaf', 'heeds'] as const) {
      const caller = new AbortController();
      const reason = { why: 'the user left' };
      const work = tools.call(name, undefined, { signal: caller.signal });
      await settled();
      caller.abort(reason);
      await expect(work).rejects.toBe(reason);
    }
    const before = AbortSignal.abort('before');
    await expect(tools.call('deaf', undefined, { signal: before })).rejects.toBe('before');
  });

  it("takes another tool's timeout or abort inside a tool for a failure of that tool", async () => {
    const inner = new ToolTimeoutError('inner', 5);
    const { tools } = await managerOf(
      defineTools({ outer: { connect: () => 1, call: () => Promise.reject(inner) } }),
    );
    await expect(tools.call('outer')).rejects.toMatchObject({ code: 'ERR_TOOL_FAILED', cause: inner });
  });

  it('makes the call of a lazy thenable once', async () => {
    const run = vi.fn();
    const { tools } = await managerOf(
      defineTools({
        query: {
          connect: () => 1,
          call: (): PromiseLike<string> => ({
            // biome-ignore lint/suspicious/noThenProperty: query builders are such thenables
            then: (resolve) => {
              run();
              return Promise.resolve('rows').then(resolve);
            },
          }),
        },
      }),
    );
    expect(await tools.call('query')).toBe('rows');
    expect(run).toHaveBeenCalledOnce();
  });

  it.each([
    [{ timeout: 5 }, TypeError, /Unknown option `timeout`/],
    [{ timeoutMs: 0 }, RangeError, /`timeoutMs`/],
    [{ timeoutMs: '5' }, TypeError, /`timeoutMs`/],
    [{ priority: 1.5 }, RangeError, /`priority`/],
    [{ signal: {} }, TypeError, /`signal`/],
  ])('refuses the options %o', async (options, type, message) => {
    const { tools } = await managerOf(defineTools({ search: { connect: () => 1, call: () => 1 } }));
    const wrong = options as never;
    await expect(tools.call('search', undefined, wrong)).rejects.toThrow(type);
    await expect(tools.call('search', undefined, wrong)).rejects.toThrow(message);
    await expect(tools.answer('search', {}, wrong)).rejects.toThrow(type);
  });

  it("keeps the caller's AsyncLocalStorage context, in the tool and in the hooks", async () => {
    const storage = new AsyncLocalStorage<number>();
    const hooks = new LifecycleHooks();
    const seen: (number | undefined)[] = [];
    hooks.on('tool:started', () => seen.push(storage.getStore()));
    hooks.on('tool:finished', () => seen.push(storage.getStore()));
    const { tools } = await managerOf(
      defineTools({
        clock: {
          connect: () => 1,
          call: async () => {
            await undefined;
            return storage.getStore();
          },
        },
      }),
      { hooks },
    );
    const ids = Array.from({ length: 20 }, (_, i) => i);
    const got = await Promise.all(ids.map((id) => storage.run(id, () => tools.call('clock'))));
    expect(got).toEqual(ids);
    expect(seen.toSorted((a, b) => Number(a) - Number(b))).toEqual(ids.flatMap((id) => [id, id]));
  });
});

describe('ToolManager.call through a gate', () => {
  it('tells the gate what it knows of the call', async () => {
    const gate = new KeyedGate(['key-one']);
    const { tools } = await managerOf(
      defineTools({
        search: {
          connect: () => 1,
          gate,
          timeoutMs: 1_000,
          call: (_, input: { q: string }, { key, settle }) => {
            settle(7);
            return `${key} ${input.q}`;
          },
          cacheKey: (input: { q: string }) => input.q,
          weight: (input: { q: string }) => input.q.length,
        },
      }),
    );
    expect(await tools.call('search', { q: 'tide' }, { priority: 3 })).toBe('key-one tide');
    expect(gate.told[0]).toMatchObject({ priority: 3, weight: 4, taskId: 'task-1', toolCallId: 1 });
    expect(gate.told[0]?.timeoutMs).toBeLessThanOrEqual(1_000);
    expect(gate.told[0]?.cacheKey).toMatch(/:tide$/);
    expect(gate.settledWeights).toEqual([7]);
  });

  it('keeps the cache of tools apart that do different things, whatever they are called', async () => {
    const gate = new KeyedGate(['key-one']);
    const call = () => 1;
    const common = { connect: () => 1, gate, cacheKey: () => 'same' };
    const a = await managerOf(defineTools({ search: { ...common, call } }));
    const b = await managerOf(
      defineTools({ search: { ...common, call: () => 2 }, find: { ...common, call } }),
    );
    await a.tools.call('search');
    await b.tools.call('search');
    await b.tools.call('find');
    const [first, second, third] = gate.told.map(({ cacheKey }) => cacheKey);
    expect(first).not.toBe(second);
    expect(first).toBe(third);
  });

  it('counts the making of the client in the time that it gives the gate', async () => {
    vi.useFakeTimers();
    const gate = new KeyedGate([]);
    const { tools } = await managerOf(
      defineTools({
        browse: {
          scope: 'task',
          gate,
          timeoutMs: 1_000,
          connect: () => new Promise<number>((resolve) => setTimeout(resolve, 400, 1)),
          call: () => 1,
        },
      }),
    );
    const work = tools.call('browse');
    await vi.advanceTimersByTimeAsync(400);
    await work;
    expect(gate.told[0]?.timeoutMs).toBe(600);
  });

  it('lets a gate make several attempts, and tells of the last failure', async () => {
    const gate = new KeyedGate(['key-one', 'key-two'], 2);
    const { tools } = await managerOf(
      defineTools({
        search: {
          connect: () => 1,
          gate,
          call: (_, __: unknown, { key, attempt }) => Promise.reject(new Error(`${attempt} by ${key}`)),
        },
      }),
    );
    await expect(tools.call('search')).rejects.toThrow('Tool search failed: 2 by [masked]');
  });

  it.each([
    [
      'throws at once',
      {
        run: () => {
          throw new Error('bad gate');
        },
      },
    ],
    ['answers with nothing', { run: () => undefined as unknown as Promise<never> }],
  ])('settles when the gate %s', async (_, gate) => {
    const { tools } = await managerOf(defineTools({ search: { connect: () => 1, gate, call: () => 1 } }));
    const outcome = await tools.call('search').catch((error: unknown) => error);
    expect(outcome === undefined || outcome instanceof ToolFailedError).toBe(true);
  });

  it('settles in time when the gate never does', async () => {
    vi.useFakeTimers();
    const { tools } = await managerOf(
      defineTools({ search: { connect: () => 1, gate: { run: never }, timeoutMs: 50, call: () => 1 } }),
    );
    const work = expect(tools.call('search')).rejects.toThrow(ToolTimeoutError);
    await vi.advanceTimersByTimeAsync(50);
    await work;
  });

  it('does not try again what fails by a lease of its own inside', async () => {
    const call = vi.fn(() => Promise.reject(new LeaseReleasedError('an inner pool', 7)));
    const { tools } = await managerOf(
      defineTools({ search: { connect: () => 1, gate: new KeyedGate([]), call } }),
    );
    await expect(tools.call('search')).rejects.toThrow(ToolFailedError);
    expect(call).toHaveBeenCalledOnce();
  });

  it('does not try for ever where a gate keeps the end of another lease, or has leases of its own', async () => {
    const other = await managerOf(defineTools({ search: { connect: () => 1, call: never } }));
    const end = other.tools.call('search').catch((error: unknown) => error);
    await other.release();
    const kept = await end;
    const run = vi.fn((): Promise<never> => Promise.reject(kept));
    const { tools } = await managerOf(
      defineTools({ search: { connect: () => 1, gate: { run }, call: () => 1 } }),
    );
    await expect(tools.call('search')).rejects.toMatchObject({ code: 'ERR_TOOL_FAILED', cause: kept });
    expect(run).toHaveBeenCalledTimes(2);
    run.mockImplementation(() => Promise.reject(new LeaseReleasedError('an inner pool', 7)));
    await expect(tools.call('search')).rejects.toThrow(ToolFailedError);
    expect(run).toHaveBeenCalledTimes(3);

    // The end of a lease that the call itself has met, inside, is a failure like any other.
    const call = vi.fn(() => Promise.reject(kept));
    const inner = await managerOf(
      defineTools({ search: { connect: () => 1, gate: new KeyedGate([]), call } }),
    );
    await expect(inner.tools.call('search')).rejects.toThrow(ToolFailedError);
    expect(call).toHaveBeenCalledOnce();
  });
});

describe('ToolManager.callAll', () => {
  it('makes all calls at once, and settles each by itself, in their order', async () => {
    const slow = deferred<string>();
    const { tools } = await managerOf(
      defineTools({
        slow: { connect: () => 1, call: () => slow.promise },
        fails: { connect: () => 1, call: () => Promise.reject(new Error('boom')) },
        quick: {
          connect: () => 1,
          call: (_, input: { n: number }) => {
            slow.resolve('at last');
            return input.n;
          },
        },
      }),
    );
    const results = await tools.callAll([
      { name: 'slow' },
      { name: 'fails' },
      { name: 'nothing' as 'slow' },
      { name: 'quick', input: { n: 3 } },
    ]);
    expect(results).toMatchObject([
      { status: 'fulfilled', value: 'at last' },
      { status: 'rejected', reason: { code: 'ERR_TOOL_FAILED' } },
      { status: 'rejected', reason: { code: 'ERR_TOOL_UNKNOWN' } },
      { status: 'fulfilled', value: 3 },
    ]);
  });

  it('ends all calls with the caller', async () => {
    const { tools } = await managerOf(defineTools({ slow: { connect: () => 1, call: never } }));
    const caller = new AbortController();
    const all = tools.callAll([{ name: 'slow' }, { name: 'slow' }], { signal: caller.signal });
    caller.abort('enough');
    expect(await all).toEqual([
      { status: 'rejected', reason: 'enough' },
      { status: 'rejected', reason: 'enough' },
    ]);
  });

  it('refuses what is no list', async () => {
    const { tools } = await managerOf(defineTools({ slow: { connect: () => 1, call: never } }));
    await expect(tools.callAll({ name: 'slow' } as never)).rejects.toThrow(/Expected `calls` to be an array/);
  });
});

describe('ToolManager.answer', () => {
  const shop = defineTools({
    search: { connect: () => 1, call: (_, { q }: { q: string }) => [{ title: q }] },
    clock: { connect: () => 1, call: () => undefined },
    fails: {
      connect: () => 1,
      call: (_, { path }: { path: string }) => Promise.reject(new Error(`no file ${path}`)),
    },
    broken: { scope: 'task', connect: () => Promise.reject(new Error('no browser')), call: () => 1 },
    large: { connect: () => 1, maxAnswerChars: 200, call: () => 'x'.repeat(1_000) },
    strict: {
      connect: () => 1,
      parse: (input: unknown) => {
        if (typeof (input as { n?: unknown }).n !== 'number') throw new Error('n must be a number');
        return input as { n: number };
      },
      call: (_, { n }) => n + 1,
    },
  });

  it.each([
    ['a result', 'search', '{"q":"tide"}', '[{"title":"tide"}]'],
    ['no result', 'clock', '', 'Done.'],
    [
      'a failure, with the input that the agent gave',
      'fails',
      { path: '/etc/motd' },
      'Tool fails failed: no file /etc/motd',
    ],
    ['a client that cannot be made', 'broken', {}, 'Tool broken failed: no browser'],
    [
      'a tool that there is not',
      'serach',
      {},
      'There is no tool "serach"; known are search, clock, fails, broken, large, strict',
    ],
    [
      'input that the tool refuses',
      'strict',
      '{"n":"1"}',
      'The input of tool strict cannot be used: n must be a number',
    ],
    ['input that the tool takes', 'strict', '{"n":1}', '2'],
  ])('answers with a text: %s', async (_, name, input, text) => {
    const { tools } = await managerOf(shop);
    expect(await tools.answer(name, input)).toBe(text);
  });

  it('answers arguments that are not JSON, and results that are too long', async () => {
    const { tools } = await managerOf(shop);
    expect(await tools.answer('search', '{"q":')).toMatch(/^The input of tool search cannot be used: .*JSON/);
    expect(await tools.answer('large')).toHaveLength(200);
  });

  it.each([
    ['rejects', () => Promise.reject(new Error('not valid'))],
    ['is kept', () => Promise.resolve({ q: 1 })],
  ])('does not call the tool where its `parse` gives a promise, which %s', async (_, parse) => {
    const call = vi.fn();
    const { tools } = await managerOf(defineTools({ search: { connect: () => 1, parse, call } }));
    expect(await tools.answer('search', '{}')).toBe(
      'The input of tool search cannot be used: Expected `search.parse` to give the input itself, got a promise',
    );
    await settled();
    expect(call).not.toHaveBeenCalled();
  });

  it('answers also where what was thrown, or given, cannot be read', async () => {
    const throwing = {
      get message() {
        throw new Error('of the getter');
      },
    };
    const { proxy, revoke } = Proxy.revocable({}, {});
    revoke();
    const cyclic: Record<PropertyKey, unknown> = {
      [inspect.custom]: () => {
        throw new Error('of the view');
      },
    };
    cyclic.self = cyclic;
    const rejects = (thrown: unknown) => ({ connect: () => 1, call: () => Promise.reject(thrown) });
    const { tools } = await managerOf(
      defineTools({
        getter: rejects(throwing),
        proxy: rejects(proxy),
        cycle: { connect: () => 1, call: () => cyclic },
      }),
    );
    expect(await tools.answer('getter')).toBe('Tool getter failed: a reason that cannot be read');
    expect(await tools.answer('proxy')).toBe('Tool proxy failed: a reason that cannot be read');
    expect(await tools.answer('cycle')).toContain('Circular');
  });

  it('answers that the time is up', async () => {
    vi.useFakeTimers();
    const { tools } = await managerOf(
      defineTools({ slow: { connect: () => 1, timeoutMs: 50, call: never } }),
    );
    const answer = tools.answer('slow');
    await vi.advanceTimersByTimeAsync(50);
    expect(await answer).toBe('Tool slow took longer than 50 ms and was stopped.');
  });

  it('rejects where there is no agent left to answer: it was aborted, or its lease has ended', async () => {
    const { tools, release } = await managerOf(defineTools({ slow: { connect: () => 1, call: never } }));
    const caller = new AbortController();
    const answer = tools.answer('slow', {}, { signal: caller.signal });
    caller.abort('the user left');
    await expect(answer).rejects.toBe('the user left');
    void release();
    await expect(tools.answer('slow')).rejects.toThrow(LeaseReleasedError);
  });
});

describe('ToolManager.client', () => {
  it("gives the tool's client, and makes it where it is made when first used", async () => {
    const connect = vi.fn(() => ({ browser: true }));
    const { tools } = await managerOf(
      defineTools({ browse: { scope: 'task', connect, call: (client) => client } }),
    );
    expect(connect).not.toHaveBeenCalled();
    const client = await tools.client('browse');
    expect(await tools.call('browse')).toBe(client);
    expect(connect).toHaveBeenCalledOnce();
  });

  it('rejects typed when the client cannot be made, and tries again the next time', async () => {
    const connect = vi.fn<() => number>().mockImplementationOnce(() => {
      throw new Error('key sk-live-0123456789abcdef refused');
    });
    connect.mockReturnValue(5);
    const { tools } = await managerOf(defineTools({ browse: { scope: 'task', connect, call: () => 1 } }));
    const error = await tools.client('browse').catch((thrown: unknown) => thrown);
    expect(error).toMatchObject({ code: 'ERR_TOOL_FAILED', stage: 'connect' });
    expect(inspect(error)).toContain('Tool browse could not connect: key [masked] refused');
    expect(inspect(error)).not.toContain('0123456789abcdef');
    expect(await tools.client('browse')).toBe(5);
  });

  it("rejects with the caller's reason when the caller aborts", async () => {
    const { tools } = await managerOf(
      defineTools({ browse: { scope: 'task', connect: never, call: () => 1 } }),
    );
    const caller = new AbortController();
    const client = tools.client('browse', { signal: caller.signal });
    caller.abort('enough');
    await expect(client).rejects.toBe('enough');
  });
});

describe('ToolManager.definitions', () => {
  it('tells models of every tool', async () => {
    const inputSchema = { type: 'object', properties: { q: { type: 'string' } } } as const;
    const { tools } = await managerOf(
      defineTools({
        search: { connect: () => 1, call: () => 1, description: 'Searches.', inputSchema },
        clock: { connect: () => 1, call: () => 1 },
      }),
    );
    expect(tools.definitions()).toEqual([
      { type: 'function', function: { name: 'search', description: 'Searches.', parameters: inputSchema } },
      { type: 'function', function: { name: 'clock' } },
    ]);
  });
});

describe('the events of a ToolManager', () => {
  it('tell of each call, with its end and its duration, and never of its input, result or keys', async () => {
    vi.useFakeTimers();
    const hooks = new LifecycleHooks();
    const told: [string, unknown][] = [];
    hooks.on('tool:started', (event) => told.push(['started', event]));
    hooks.on('tool:finished', (event) => told.push(['finished', event]));
    const gate = new KeyedGate(['serper-key-0123']);
    const { tools } = await managerOf(
      defineTools({
        works: {
          connect: () => 1,
          gate,
          call: async (_, __: unknown, { key }) => {
            await new Promise((resolve) => setTimeout(resolve, 40));
            return `a private result by ${key}`;
          },
        },
        fails: {
          connect: () => 1,
          gate,
          call: (_, { q }: { q: string }, { key }) => Promise.reject(new Error(`${q} refused for ${key}`)),
        },
      }),
      { hooks, instanceId: 4 },
    );
    const works = tools.call('works', { q: 'a private question' });
    await vi.advanceTimersByTimeAsync(40);
    await works;
    const error: Error = await tools.call('fails', { q: 'a private question' }).catch((thrown) => thrown);
    const common = { source: 'mainAgent', instanceId: 4, taskId: 'task-1' };
    expect(told).toEqual([
      ['started', { ...common, tool: 'works', toolCallId: 1 }],
      ['finished', { ...common, tool: 'works', toolCallId: 1, outcome: 'ok', durationMs: 40 }],
      ['started', { ...common, tool: 'fails', toolCallId: 2 }],
      ['finished', { ...common, tool: 'fails', toolCallId: 2, outcome: 'failed', durationMs: 0, error }],
    ]);
    expect(error.message).toBe('Tool fails failed: [masked] refused for [masked]');
    expect(inspect(told, { depth: 20 })).not.toMatch(/private|serper-key/);
    // The agent knows its own question; the key is not its business either.
    expect(await tools.answer('fails', { q: 'a private question' })).toBe(
      'Tool fails failed: a private question refused for [masked]',
    );
    const answer = tools.answer('works');
    await vi.advanceTimersByTimeAsync(40);
    expect(await answer).toBe('a private result by [masked]');
  });

  it("never hold an object of the client's, where the caller's own error has it as its cause", async () => {
    const hooks = new LifecycleHooks();
    const told: unknown[] = [];
    hooks.on('tool:finished', ({ error }) => told.push(error));
    const { tools } = await managerOf(
      defineTools({ fails: { connect: () => 1, call: (_, __: unknown) => Promise.reject(failure) } }),
      { hooks },
    );
    const failure = Object.assign(new Error('no'), { details: { of: 'the client' }, code: 'EPIPE' });
    const error: Error = await tools.call('fails').catch((thrown) => thrown);
    expect(error.cause).toBe(failure);
    expect(told).toMatchObject([
      { code: 'ERR_TOOL_FAILED', message: error.message, cause: { code: 'EPIPE' } },
    ]);
    expect((told[0] as Error).cause).not.toHaveProperty('details');
    expect(told[0]).toBeInstanceOf(ToolFailedError);
    const control = new AbortController();
    const aborted = tools.call('fails', undefined, { signal: control.signal }).catch(() => {});
    control.abort(failure);
    await aborted;
    expect(told[1]).toMatchObject({ message: 'no', code: 'EPIPE' });
    expect(told[1]).not.toHaveProperty('details');
  });

  it('tell timeouts and aborts apart, and nothing of what never began', async () => {
    vi.useFakeTimers();
    const hooks = new LifecycleHooks();
    const outcomes: string[] = [];
    hooks.on('tool:finished', ({ outcome }) => outcomes.push(outcome));
    const { tools, release } = await managerOf(
      defineTools({
        slow: {
          connect: () => 1,
          timeoutMs: 50,
          call: (_, __: unknown, { signal }) =>
            new Promise((_resolve, reject) => signal.addEventListener('abort', () => reject(signal.reason))),
        },
      }),
      { hooks },
    );
    const caller = new AbortController();
    const ends = Promise.allSettled([
      tools.call('slow'),
      tools.call('slow', undefined, { signal: caller.signal }),
    ]);
    caller.abort();
    await vi.advanceTimersByTimeAsync(50);
    await ends;
    expect(outcomes).toEqual(['aborted', 'timeout']);

    const last = tools.call('slow').catch(() => {});
    await release();
    await last;
    await tools.call('slow').catch(() => {});
    await tools.call('none' as 'slow').catch(() => {});
    await tools.call('slow', undefined, { signal: caller.signal }).catch(() => {});
    expect(outcomes).toEqual(['aborted', 'timeout', 'aborted']);
  });

  it('change nothing when a listener fails', async () => {
    const hooks = new LifecycleHooks();
    hooks.on('tool:started', () => {
      throw new Error('listener');
    });
    const { tools } = await managerOf(defineTools({ clock: { connect: () => 1, call: () => 'noon' } }), {
      hooks,
    });
    expect(await tools.call('clock')).toBe('noon');
  });
});
