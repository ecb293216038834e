import { inspect } from 'node:util';
import pino from 'pino';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { LeaseReleasedError, ToolFailedError } from '../../src/errors.js';
import { ServiceGate } from '../../src/gate/service-gate.js';
import { LIFECYCLE_EVENTS } from '../../src/hooks/events.js';
import { LifecycleHooks } from '../../src/hooks/lifecycle-hooks.js';
import { logTo } from '../../src/observability/logging/log.js';
import { defineTools, type ToolCallContext } from '../../src/tools/define-tools.js';
import { pipelineFactory } from '../../src/tools/pipeline-factory.js';
import { deferred, microtasks } from '../support/promises.js';

/** What a promise is rejected with. */
const thrownBy = (promise: Promise<unknown>) => promise.catch((error: unknown) => error);

afterEach(() => {
  vi.useRealTimers();
});

/** Two tasks on two instances, whose calls a gate merges into one. */
async function merged(call: (context: ToolCallContext) => Promise<string>) {
  const gate = new ServiceGate({ name: 'serper', maxConcurrent: 1 });
  const tools = defineTools({
    search: {
      connect: () => 1,
      gate,
      cacheKey: () => 'same',
      call: (_, __: unknown, context) => call(context),
    },
  });
  const factory = pipelineFactory({ mainAgent: tools });
  const [a, b] = await Promise.all([factory.create({ instanceId: 1 }), factory.create({ instanceId: 2 })]);
  await factory.prepare(a, { instanceId: 1, taskId: 'a' });
  await factory.prepare(b, { instanceId: 2, taskId: 'b' });
  const ofA = a.mainAgentToolManager.call('search');
  const ofB = b.mainAgentToolManager.call('search');
  ofA.catch(() => {});
  await microtasks();
  return { factory, gate, a, ofA, ofB };
}

describe('a tool behind a ServiceGate', () => {
  it('repeats a call that was merged into that of a task whose lease has ended', async () => {
    const callers: (string | undefined)[] = [];
    const { factory, a, ofA, ofB } = await merged(({ taskId, signal }) => {
      callers.push(taskId);
      if (taskId === 'b') return Promise.resolve('own');
      // As SDKs do it: with an error of their own, that says nothing of the reason.
      return new Promise((_, reject) => {
        signal.addEventListener('abort', () => reject(new Error('Request was aborted.')));
      });
    });
    expect(callers).toEqual(['a']);
    await factory.reset(a, { instanceId: 1 });
    await expect(ofA).rejects.toThrow(LeaseReleasedError);
    expect(await ofB).toBe('own');
    expect(callers).toEqual(['a', 'b']);
  });

  it('uses the response of such a call if its code ignored the end of its lease', async () => {
    const answer = deferred<string>();
    const { factory, a, ofA, ofB } = await merged(() => answer.promise);
    const reset = factory.reset(a, { instanceId: 1 });
    await expect(ofA).rejects.toThrow(LeaseReleasedError);
    answer.resolve('an answer all the same');
    await reset;
    expect(await ofB).toBe('an answer all the same');
  });

  it('shares a response among tasks, but not among tools', async () => {
    const gate = new ServiceGate({ name: 'serper', cache: { max: 10, ttlMs: 60_000 } });
    const calls: string[] = [];
    const searching = (kind: string) => ({
      connect: () => 1,
      gate,
      cacheKey: ({ q }: { q: string }) => q,
      call: (_: unknown, { q }: { q: string }) => {
        calls.push(`${kind} ${q}`);
        return `${kind} of ${q}`;
      },
    });
    const factory = pipelineFactory({
      mainAgent: defineTools({ pages: searching('pages'), images: searching('images') }),
    });
    const { mainAgentToolManager: one } = await factory.create({ instanceId: 1 });
    const { mainAgentToolManager: two } = await factory.create({ instanceId: 2 });
    expect(await one.call('pages', { q: 'tide' })).toBe('pages of tide');
    expect(await two.call('pages', { q: 'tide' })).toBe('pages of tide');
    expect(await two.call('images', { q: 'tide' })).toBe('images of tide');
    expect(calls).toEqual(['pages tide', 'images tide']);
  });

  it('counts at its service until its code has settled, also after its caller aborted', async () => {
    const gate = new ServiceGate({ name: 'serper', maxConcurrent: 1 });
    const answers = [deferred<string>(), deferred<string>()];
    let begun = 0;
    const tools = defineTools({ search: { connect: () => 1, gate, call: () => answers[begun++]?.promise } });
    const { mainAgentToolManager } = await pipelineFactory({ mainAgent: tools }).create({ instanceId: 1 });
    const caller = new AbortController();
    const first = mainAgentToolManager.call('search', undefined, { signal: caller.signal });
    await microtasks();
    caller.abort('left');
    await expect(first).rejects.toBe('left');
    const second = mainAgentToolManager.call('search');
    await microtasks();
    expect(begun).toBe(1);
    answers[0]?.resolve('abandoned');
    await microtasks();
    expect(begun).toBe(2);
    answers[1]?.resolve('second');
    expect(await second).toBe('second');
  });

  it("counts the tool's timeout as a dropped call in the adaptive limit", async () => {
    vi.useFakeTimers();
    const gate = new ServiceGate({ name: 'llm', adaptive: { initial: 20 } });
    const outcomes: unknown[] = [];
    gate.hooks.on('call:finished', ({ outcome }) => outcomes.push(outcome));
    const tools = defineTools({
      ask: { connect: () => 1, gate, timeoutMs: 1_000, call: () => new Promise<never>(() => {}) },
    });
    const { mainAgentToolManager } = await pipelineFactory({ mainAgent: tools }).create({ instanceId: 1 });
    const answer = mainAgentToolManager.answer('ask');
    await vi.advanceTimersByTimeAsync(1_000);
    expect(await answer).toBe('Tool ask took longer than 1000 ms and was stopped.');
    expect(outcomes).toEqual(['timeout']);
    expect(gate.stats().limiter?.maxConcurrent).toBe(17);
  });

  it('emits consistent events from both, without keys', async () => {
    const hooks = new LifecycleHooks();
    const emitted: [string, Record<string, unknown>][] = [];
    for (const event of LIFECYCLE_EVENTS) hooks.on(event, (payload) => emitted.push([event, { ...payload }]));
    const gate = new ServiceGate({
      name: 'serper',
      hooks,
      keys: ['serper-key-number-one', 'serper-key-number-two'],
      retry: { attempts: 2, baseMs: 1, maxMs: 1 },
    });
    const tools = defineTools({
      search: {
        connect: () => 1,
        gate,
        call: (_, { q }: { q: string }, { key, attempt }) => {
          const error = new Error(`429 for ${key}: ${q}`);
          if (attempt === 1)
            throw Object.assign(error, { status: 429, request: { headers: { 'X-API-KEY': key } } });
          throw error;
        },
      },
    });
    const factory = pipelineFactory({ mainAgent: tools, hooks });
    const pipeline = await factory.create({ instanceId: 1 });
    await factory.prepare(pipeline, { instanceId: 1, taskId: 'a', requestId: 'r', tenant: 't' });
    const error = await pipeline.mainAgentToolManager
      .call('search', { q: 'a private question' })
      .catch((thrown: unknown) => thrown);
    expect(emitted.map(([event]) => event)).toEqual([
      'tool:started',
      'call:started',
      'key:cooldown',
      'call:retried',
      'call:started',
      'call:finished',
      'tool:finished',
    ]);
    for (const [event, payload] of emitted) {
      if (event.startsWith('call:') || event.startsWith('tool:')) {
        expect(payload).toMatchObject({ toolCallId: 1, taskId: 'a', requestId: 'r', tenant: 't' });
      }
    }
    expect(inspect(emitted, { depth: 20 })).not.toContain('serper-key-number');
    expect(error).toMatchObject({ cause: { message: expect.stringContaining('serper-key-number') } });
    expect(emitted.find(([event]) => event === 'call:finished')?.[1]).toMatchObject({
      error: { message: '429 for [redacted]: a private question' },
    });
  });

  it("logs no key, whatever its client's errors contain", async () => {
    vi.useFakeTimers();
    const key = 'serper-"key"/number+one';
    const input = {
      q: 'a "private" question\tof 50%+ of us',
      account: 12345678,
      file: Buffer.from('my private letter'),
    };
    const failures: ((given: string) => unknown)[] = [
      (given) => new Error(`no ${given}: ${input.q}, ${input.account}, ${input.file}`),
      (given) => new Error(JSON.stringify({ key: given, input })),
      (given) => new Error(`GET https://x.example/?${new URLSearchParams({ key: given, q: input.q })}`),
      (given) =>
        new Error(
          `GET /${encodeURIComponent(given)}/${encodeURIComponent(input.q)}: ${input.q.slice(0, 17)}…`,
        ),
      (given) => Object.assign(new Error('x'), { config: { headers: { 'X-API-KEY': given }, data: input } }),
      (given) =>
        Object.assign(new Error('x'), {
          rawHeaders: [...Array(60).fill('x'), given],
          body: 'x'.repeat(20_000) + input.q,
        }),
      (given) => Object.assign(new Error('x'), { toJSON: () => ({ given, input }) }),
      (given) => new Error('outer', { cause: new Error(`${given} ${input.q}`, { cause: input }) }),
      (given) => `no ${given}: ${input.q}`,
      (given) => ({ given, input }),
    ];
    const lines: string[] = [];
    const logger = pino({ level: 'trace' }, { write: (line: string) => void lines.push(line) });
    const hooks = new LifecycleHooks();
    const log = (payload: unknown) => {
      const { error } = payload as { error?: unknown };
      logger.info({ payload, err: error }, String(error));
      lines.push(inspect(payload, { depth: 20, maxArrayLength: null, maxStringLength: null }));
    };
    for (const event of LIFECYCLE_EVENTS) hooks.on(event, log);
    logTo(hooks, logger);
    const gate = new ServiceGate({
      name: 'serper',
      hooks,
      keys: [key],
      cooldown: { baseMs: 1, maxMs: 1 },
      retry: { attempts: 2, baseMs: 1, maxMs: 1 },
    });
    const tools = defineTools({
      search: {
        connect: () => 1,
        gate,
        call: (_, { n }: typeof input & { n: number }, { key: given }) => {
          const failure = failures[n]!(given);
          throw failure instanceof Error && n % 2 === 0 ? Object.assign(failure, { status: 500 }) : failure;
        },
      },
    });
    const factory = pipelineFactory({ mainAgent: tools, hooks });
    const { mainAgentToolManager } = await factory.create({ instanceId: 1 });
    for (const n of failures.keys()) {
      const error = thrownBy(mainAgentToolManager.call('search', { ...input, n }));
      await vi.advanceTimersByTimeAsync(5_000);
      expect(await error).toBeInstanceOf(ToolFailedError);
    }
    expect(lines.length).toBeGreaterThan(100);
    expect(lines.filter((line) => /serper-(\W|%22)+key/.test(line))).toEqual([]);
  });

  it("shows no task another task's input when that one's failure exhausted the keys", async () => {
    const gate = new ServiceGate({ name: 'serper', keys: ['serper-key-number-one'] });
    const tools = defineTools({
      search: {
        connect: () => 1,
        gate,
        call: (_, { q }: { q: string }) =>
          Promise.reject(
            Object.assign(new Error(`refused: ${q}`), { status: 401, code: 'ERR_REFUSED', body: q }),
          ),
      },
    });
    const factory = pipelineFactory({ mainAgent: tools });
    const [a, b] = await Promise.all([factory.create({ instanceId: 1 }), factory.create({ instanceId: 2 })]);
    const input = { q: 'a private question of task a' };
    expect(await a.mainAgentToolManager.answer('search', input)).toBe(
      'Tool search failed: No key of serper can serve this call; none will come back by itself: refused: a private question of task a',
    );
    const errorOfB = await b.mainAgentToolManager.call('search', { q: 'tides' }).catch((thrown) => thrown);
    const answerOfB = await b.mainAgentToolManager.answer('search', { q: 'tides' });
    expect(inspect([errorOfB, answerOfB], { depth: 20 })).not.toContain('private');
    expect(errorOfB).toMatchObject({
      cause: { code: 'ERR_KEYS_EXHAUSTED', cause: { message: 'HTTP 401', status: 401, code: 'ERR_REFUSED' } },
    });
  });

  it('fails at once, readably, when no key becomes ready in time', async () => {
    const gate = new ServiceGate({ name: 'serper', keys: ['serper-key-number-one'] });
    const tools = defineTools({
      search: {
        connect: () => 1,
        gate,
        timeoutMs: 5_000,
        call: () => Promise.reject(Object.assign(new Error('HTTP 401'), { status: 401 })),
      },
    });
    const { mainAgentToolManager } = await pipelineFactory({ mainAgent: tools }).create({ instanceId: 1 });
    await mainAgentToolManager.answer('search');
    expect(await mainAgentToolManager.answer('search')).toBe(
      'Tool search failed: No key of serper can serve this call; none will come back by itself: HTTP 401',
    );
  });
});
