import { AsyncLocalStorage } from 'node:async_hooks';
import { inspect } from 'node:util';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { LeaseReleasedError, ToolFailedError, ToolTimeoutError, ToolUnknownError } from '../../src/errors.js';
import { ServiceGate } from '../../src/gate/service-gate.js';
import { LifecycleHooks } from '../../src/hooks/lifecycle-hooks.js';
import { redactError } from '../../src/internal/redaction.js';
import { createPipelineManager } from '../../src/manager/pipeline-manager.js';
import { defineTools, type ToolSet } from '../../src/tools/define-tools.js';
import { pipelineFactory } from '../../src/tools/pipeline-factory.js';
import { KeyedGate } from '../support/gates.js';
import { deferred, microtasks } from '../support/promises.js';
import { managerOf } from '../support/tool-managers.js';

const never = (): Promise<never> => new Promise(() => {});

afterEach(() => {
  vi.useRealTimers();
});

describe('ToolManager.call', () => {
  it('passes the tool its client, its input and the context of the call', async () => {
    const call = vi.fn((client: string, input: { q: string }, _context: unknown) => client + input.q);
    const { tools } = await managerOf(defineTools({ search: { connect: () => 'client ', call } }));
    expect(await tools.call('search', { q: 'tide' })).toBe('client tide');
    expect(call.mock.calls[0]?.[2]).toMatchObject({ key: '', taskId: 'task-1', attempt: 1 });
  });

  it('rejects an unknown tool', async () => {
    const { tools } = await managerOf(defineTools({ search: { connect: () => 1, call: () => 1 } }));
    await expect(tools.call('serach' as 'search')).rejects.toThrow(
      new ToolUnknownError('mainAgent', 'serach', ['search']),
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

  it("uses the tool's timeout, or the caller's instead", async () => {
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
    expect(ends).toEqual([['shorter', new ToolTimeoutError('mainAgent', 'own', 500)]]);
    await vi.advanceTimersByTimeAsync(500);
    expect(ends[1]).toEqual(['own', new ToolTimeoutError('mainAgent', 'own', 1_000)]);
    await vi.advanceTimersByTimeAsync(298_999);
    expect(ends.map(([name]) => name)).toEqual(['shorter', 'own', 'longer']);
    await vi.advanceTimersByTimeAsync(1);
    expect(ends[3]).toEqual(['usual', new ToolTimeoutError('mainAgent', 'usual', 300_000)]);
    expect(signals.map(({ aborted }) => aborted)).toEqual([true, true, true, true]);
    expect(vi.getTimerCount()).toBe(0);
  });

  it("rejects with the caller's own reason when the caller aborts, whatever the tool does", async () => {
    const { tools } = await managerOf(
      defineTools({
        deaf: { connect: () => 1, call: never },
        honors: {
          connect: () => 1,
          call: (_, __: unknown, { signal }) =>
            new Promise((_resolve, reject) => {
              signal.addEventListener('abort', () => reject(new Error('was aborted')));
            }),
        },
      }),
    );
    for (const name of ['deaf', 'honors'] as const) {
      const caller = new AbortController();
      const reason = { why: 'the user left' };
      const work = tools.call(name, undefined, { signal: caller.signal });
      await microtasks();
      caller.abort(reason);
      await expect(work).rejects.toBe(reason);
    }
    const before = AbortSignal.abort('before');
    await expect(tools.call('deaf', undefined, { signal: before })).rejects.toBe('before');
  });

  it("treats another tool's timeout or abort inside a tool as a failure of that tool", async () => {
    const inner = new ToolTimeoutError('mainAgent', 'inner', 5);
    const { tools } = await managerOf(
      defineTools({ outer: { connect: () => 1, call: () => Promise.reject(inner) } }),
    );
    await expect(tools.call('outer')).rejects.toMatchObject({ code: 'ERR_TOOL_FAILED', cause: inner });
  });

  it('calls a lazy thenable once', async () => {
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

describe('tools in the code of a request', () => {
  const gate = () => new KeyedGate(['']);
  const inRequest = async (tools: ToolSet, own: { taskId?: string } = { taskId: 'of the pool' }) => {
    const factory = pipelineFactory({ mainAgent: tools });
    const manager = createPipelineManager({
      config: { poolSize: 1, maxConcurrentRequests: 1 },
      ...factory,
      // A pool whose leases say nothing of their task.
      prepare: (pipeline, { instanceId }) => factory.prepare(pipeline, { instanceId, ...own }),
    });
    return manager;
  };

  it("pass the request's signal and priority to the gate, and its ids for a lease without any", async () => {
    const guard = gate();
    const manager = await inRequest(
      defineTools({ search: { connect: () => 1, call: () => 1, gate: guard } }),
      {},
    );
    const requestId = await manager.run(
      't1',
      async ({ pipeline, requestId }) => {
        await pipeline.mainAgentToolManager.call('search');
        return requestId;
      },
      { priority: 4, tenant: 'a' },
    );
    expect(guard.calls).toMatchObject([{ taskId: 't1', requestId, tenant: 'a', priority: 4 }]);
    expect(guard.calls[0]?.signal).toBeInstanceOf(AbortSignal);
  });

  it('pass the farthest priority that a gate accepts, where that of the request is farther', async () => {
    const search = { connect: () => 1, call: () => 'found', gate: new ServiceGate({ name: 'serper' }) };
    const manager = await inRequest(defineTools({ search }), {});
    const found = await manager.run('t1', ({ pipeline }) => pipeline.mainAgentToolManager.call('search'), {
      priority: 2 ** 40,
    });
    expect(found).toBe('found');
  });

  it('keep the ids of their lease', async () => {
    const guard = gate();
    const manager = await inRequest(
      defineTools({ search: { connect: () => 1, call: () => 1, gate: guard } }),
    );
    await manager.run('t1', ({ pipeline }) => pipeline.mainAgentToolManager.call('search'), { tenant: 'a' });
    expect(guard.calls).toMatchObject([{ taskId: 'of the pool' }]);
    expect(guard.calls[0]).not.toHaveProperty('tenant');
  });

  it('use what the call sets instead', async () => {
    const guard = gate();
    const manager = await inRequest(defineTools({ search: { connect: () => 1, call: never, gate: guard } }));
    const own = new AbortController();
    const outer = new AbortController();
    const run = manager.run(
      't1',
      ({ pipeline }) => {
        const call = pipeline.mainAgentToolManager.call('search', undefined, {
          signal: own.signal,
          priority: 0,
        });
        own.abort(new Error('of the call'));
        return call;
      },
      { priority: 4, signal: outer.signal },
    );
    await expect(run).rejects.toThrow('of the call');
    expect(guard.calls).toMatchObject([{ priority: 0 }]);
  });

  it('end with the request, also if it leaves a call running', async () => {
    const manager = await inRequest(defineTools({ search: { connect: () => 1, call: never } }));
    let left: Promise<unknown> | undefined;
    await manager.run('t1', ({ pipeline }) => {
      left = pipeline.mainAgentToolManager.call('search');
      left.catch(() => {});
    });
    await expect(left).rejects.toThrow('The request is over');
  });
});

describe('ToolManager.call through a gate', () => {
  it('passes priority, weight, ids, deadline and cache key to the gate', async () => {
    const gate = new KeyedGate(['key-one']);
    const { tools } = await managerOf(
      defineTools({
        search: {
          connect: () => 1,
          gate,
          timeoutMs: 1_000,
          call: (_, input: { q: string }, { key, reportUsage }) => {
            reportUsage(7);
            return `${key} ${input.q}`;
          },
          cacheKey: (input: { q: string }) => input.q,
          weight: (input: { q: string }) => input.q.length,
        },
      }),
    );
    expect(await tools.call('search', { q: 'tide' }, { priority: 3 })).toBe('key-one tide');
    expect(gate.calls[0]).toMatchObject({ priority: 3, weight: 4, taskId: 'task-1', toolCallId: 1 });
    expect(gate.calls[0]?.timeoutMs).toBeLessThanOrEqual(1_000);
    expect(gate.calls[0]?.cacheKey).toMatch(/:tide$/);
    expect(gate.reportedUsage).toEqual([7]);
  });

  it('keeps the cache entries of different tools apart, whatever their names', async () => {
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
    const [first, second, third] = gate.calls.map(({ cacheKey }) => cacheKey);
    expect(first).not.toBe(second);
    expect(first).toBe(third);
  });

  it("subtracts the time to connect from the gate's deadline", async () => {
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
    expect(gate.calls[0]?.timeoutMs).toBe(600);
  });

  it('lets a gate make several attempts, and rejects with the last failure', async () => {
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
    await expect(tools.call('search')).rejects.toThrow('Tool search failed: 2 by [redacted]');
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

  it('does not repeat a call that fails by a lease of its own inside', async () => {
    const call = vi.fn(() => Promise.reject(new LeaseReleasedError('an inner pool', 7)));
    const { tools } = await managerOf(
      defineTools({ search: { connect: () => 1, gate: new KeyedGate([]), call } }),
    );
    await expect(tools.call('search')).rejects.toThrow(ToolFailedError);
    expect(call).toHaveBeenCalledOnce();
  });

  it('does not retry forever if a gate caches the end of another lease, or has leases of its own', async () => {
    const untilAborted = (_: unknown, __: unknown, { signal }: { signal: AbortSignal }) =>
      new Promise<never>((_resolve, reject) => signal.addEventListener('abort', () => reject(signal.reason)));
    const other = await managerOf(defineTools({ search: { connect: () => 1, call: untilAborted } }));
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
  it('makes all calls concurrently, and settles each, in their order', async () => {
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

  it("reports the model's id of each call in its events", async () => {
    const hooks = new LifecycleHooks();
    const ids: unknown[] = [];
    hooks.on('tool:finished', ({ modelCallId }) => ids.push(modelCallId));
    const { tools } = await managerOf(defineTools({ quick: { connect: () => 1, call: () => 1 } }), { hooks });
    await tools.callAll([{ name: 'quick', modelCallId: 'call_1' }, { name: 'quick' }]);
    expect(ids).toEqual(['call_1', undefined]);
    await expect(tools.call('quick', undefined, { modelCallId: 7 as never })).rejects.toThrow(/modelCallId/);
  });

  it('aborts all calls with the caller', async () => {
    const { tools } = await managerOf(defineTools({ slow: { connect: () => 1, call: never } }));
    const caller = new AbortController();
    const all = tools.callAll([{ name: 'slow' }, { name: 'slow' }], { signal: caller.signal });
    caller.abort('enough');
    expect(await all).toEqual([
      { status: 'rejected', reason: 'enough' },
      { status: 'rejected', reason: 'enough' },
    ]);
  });

  it('rejects what is not an array', async () => {
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
      'The input of tool search cannot be used: Expected `search.parse` to return its result itself, got a promise',
    );
    await microtasks();
    expect(call).not.toHaveBeenCalled();
  });

  it('answers even if the error or the result cannot be read', async () => {
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
    expect(await tools.answer('getter')).toBe('Tool getter failed: no reason given');
    expect(await tools.answer('proxy')).toBe('Tool proxy failed: no reason given');
    expect(await tools.answer('cycle')).toContain('Circular');
  });

  it.each([
    ['a text', () => 'half \ud83d a pair'],
    ['JSON', () => ({ half: '\ude00' })],
    [
      'an error',
      () => {
        throw new Error('half \ud83d');
      },
    ],
  ])('answers well-formed text where %s holds a lone surrogate', async (_, call) => {
    const { tools } = await managerOf(defineTools({ search: { connect: () => 1, call } }));
    const answer = await tools.answer('search', '{}');
    expect(answer).toMatch(/half/);
    expect(answer).not.toMatch(/\p{Surrogate}/u);
  });

  it('answers that the call timed out', async () => {
    vi.useFakeTimers();
    const { tools } = await managerOf(
      defineTools({ slow: { connect: () => 1, timeoutMs: 50, call: never } }),
    );
    const answer = tools.answer('slow');
    await vi.advanceTimersByTimeAsync(50);
    expect(await answer).toBe('Tool slow took longer than 50 ms and was stopped.');
  });

  it('rejects if the caller aborted or the lease has ended', async () => {
    const { tools, release } = await managerOf(defineTools({ slow: { connect: () => 1, call: never } }));
    const caller = new AbortController();
    const answer = tools.answer('slow', {}, { signal: caller.signal });
    caller.abort('the user left');
    await expect(answer).rejects.toBe('the user left');
    void release();
    await expect(tools.answer('slow')).rejects.toThrow(LeaseReleasedError);
  });

  it('answers in well-formed text, whatever half characters a result or a failure has', async () => {
    const { tools } = await managerOf(
      defineTools({
        reads: { connect: () => 1, call: () => 'a\ud83d b' },
        lists: { connect: () => 1, call: () => ['\udc00'] },
        fails: { connect: () => 1, call: () => Promise.reject(new Error('\ud83d no')) },
      }),
    );
    expect(await tools.answer('reads')).toBe('a\ufffd b');
    expect(await tools.answer('lists')).not.toMatch(/\p{Surrogate}/u);
    expect(await tools.answer('fails')).toBe('Tool fails failed: \ufffd no');
    expect(await tools.answer('no\udc00ne')).toContain('There is no tool "no\ufffdne"');
  });

  it('searches only the shown part of a long result for keys, and shows no part of a key that begins there', async () => {
    const key = 'serper-key-0123456789';
    const gate = new ServiceGate({ name: 'serper', keys: [key] });
    const { tools } = await managerOf(
      defineTools({
        huge: {
          connect: () => 1,
          gate,
          maxAnswerChars: 1_000,
          call: (_, at: number) => `${'x'.repeat(at)}${key}${'y'.repeat(1_000_000)}`,
        },
      }),
    );
    const charCodeAt = vi.spyOn(String.prototype, 'charCodeAt');
    await tools.answer('huge', 10);
    expect(charCodeAt.mock.calls.length).toBeLessThan(10_000);
    charCodeAt.mockRestore();
    for (let at = 930; at <= 1_000; at++) {
      const answer = await tools.answer('huge', at);
      expect(answer).not.toContain('ser');
      expect(answer).toMatch(/^x{900}.*\n\[cut off here: \d+ characters in all\]$/);
      expect(answer.length).toBeLessThanOrEqual(1_000);
    }
  });

  it('fails a call whose cacheKey or weight returns a promise, or whose cacheKey is no string', async () => {
    const gate = new KeyedGate(['serper-key-0123']);
    const common = { connect: () => 1, gate, call: () => 1 };
    const { tools } = await managerOf(
      defineTools({
        promised: { ...common, cacheKey: (() => Promise.reject(new Error('no'))) as never },
        numbered: { ...common, cacheKey: (() => ({})) as never },
        weighed: { ...common, weight: (() => Promise.reject(new Error('no'))) as never },
      }),
    );
    await expect(tools.call('promised')).rejects.toThrow('`promised.cacheKey` to return its result itself');
    await expect(tools.call('numbered')).rejects.toThrow('to be a function that returns a string');
    await expect(tools.call('weighed')).rejects.toThrow('`weighed.weight` to return its result itself');
  });
});

describe('ToolManager.client', () => {
  it("returns the tool's client, and connects it if its scope connects on first use", async () => {
    const connect = vi.fn(() => ({ browser: true }));
    const { tools } = await managerOf(
      defineTools({ browse: { scope: 'task', connect, call: (client) => client } }),
    );
    expect(connect).not.toHaveBeenCalled();
    const client = await tools.client('browse');
    expect(await tools.call('browse')).toBe(client);
    expect(connect).toHaveBeenCalledOnce();
  });

  it('rejects with a typed error if the client cannot be created, and tries again the next time', async () => {
    const connect = vi.fn<() => number>().mockImplementationOnce(() => {
      throw new Error('key sk-live-0123456789abcdef refused');
    });
    connect.mockReturnValue(5);
    const { tools } = await managerOf(defineTools({ browse: { scope: 'task', connect, call: () => 1 } }));
    const error = await tools.client('browse').catch((thrown: unknown) => thrown);
    expect(error).toMatchObject({ code: 'ERR_TOOL_FAILED', stage: 'connect' });
    expect(error).toMatchObject({
      message: 'Tool browse could not connect: key [redacted] refused',
      cause: { message: 'key sk-live-0123456789abcdef refused' },
    });
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
  it('describes every tool to models', async () => {
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
  it("include each call's outcome and duration, and neither its input, result nor keys", async () => {
    vi.useFakeTimers();
    const hooks = new LifecycleHooks();
    const emitted: [string, unknown][] = [];
    hooks.on('tool:started', (event) => emitted.push(['started', event]));
    hooks.on('tool:finished', (event) => emitted.push(['finished', event]));
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
    const works = tools.call('works', { q: 'a private question' }, { modelCallId: 'call_1' });
    await vi.advanceTimersByTimeAsync(40);
    await works;
    const error: Error = await tools.call('fails', { q: 'a private question' }).catch((thrown) => thrown);
    const common = { source: 'mainAgent', instanceId: 4, taskId: 'task-1' };
    expect(emitted).toEqual([
      ['started', { ...common, tool: 'works', toolCallId: 1, modelCallId: 'call_1' }],
      [
        'finished',
        { ...common, tool: 'works', toolCallId: 1, modelCallId: 'call_1', outcome: 'ok', durationMs: 40 },
      ],
      ['started', { ...common, tool: 'fails', toolCallId: 2 }],
      [
        'finished',
        {
          ...common,
          tool: 'fails',
          toolCallId: 2,
          outcome: 'failed',
          durationMs: 0,
          error: redactError(error),
        },
      ],
    ]);
    expect(error.message).toBe('Tool fails failed: a private question refused for [redacted]');
    expect(inspect(emitted, { depth: 20 })).not.toMatch(/private result|serper-key/);
    expect(await tools.answer('fails', { q: 'a private question' })).toBe(
      'Tool fails failed: a private question refused for [redacted]',
    );
    const answer = tools.answer('works');
    await vi.advanceTimersByTimeAsync(40);
    expect(await answer).toBe('a private result by [redacted]');
  });

  it("never contain an object of the client; the caller's error has it as its cause", async () => {
    const hooks = new LifecycleHooks();
    const emitted: unknown[] = [];
    hooks.on('tool:finished', ({ error }) => emitted.push(error));
    const { tools } = await managerOf(
      defineTools({ fails: { connect: () => 1, call: (_, __: unknown) => Promise.reject(failure) } }),
      { hooks },
    );
    const failure = Object.assign(new Error('no'), { details: { of: 'the client' }, code: 'EPIPE' });
    const error: Error = await tools.call('fails').catch((thrown) => thrown);
    expect(error.cause).toBe(failure);
    expect(emitted).toMatchObject([
      { code: 'ERR_TOOL_FAILED', message: error.message, cause: { code: 'EPIPE' } },
    ]);
    expect((emitted[0] as Error).cause).not.toHaveProperty('details');
    const control = new AbortController();
    const aborted = tools.call('fails', undefined, { signal: control.signal }).catch(() => {});
    control.abort(failure);
    await aborted;
    expect(emitted[1]).toMatchObject({ message: 'no', code: 'EPIPE' });
    expect(emitted[1]).not.toHaveProperty('details');
  });

  it('distinguish timeouts from aborts, and omit calls that never began', async () => {
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
