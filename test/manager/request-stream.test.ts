import { AsyncLocalStorage } from 'node:async_hooks';
import { getEventListeners } from 'node:events';
import { Readable, Writable } from 'node:stream';
import { pipeline as pipe } from 'node:stream/promises';
import {
  ConcurrencyLimiter,
  currentRequest,
  LifecycleHooks,
  PipelineManager,
  PipelinePool,
} from 'pipeline-pool';
import { describe, expect, it, vi } from 'vitest';
import { countedSource } from '../support/counted-source.js';
import { onFakeTimers, settled } from '../support/fake-timers.js';
import { deferred } from '../support/promises.js';

function build({
  size = 1,
  abortGraceMs = 1_000,
  create = ({ instanceId }: { instanceId: number }) => ({ instanceId }),
} = {}) {
  const hooks = new LifecycleHooks();
  const outcomes: string[] = [];
  hooks.on('request:finished', ({ outcome }) => outcomes.push(outcome));
  hooks.on('request:rejected', ({ outcome }) => outcomes.push(`rejected: ${outcome}`));
  const pool = new PipelinePool({ size, create, hooks });
  const limiter = new ConcurrencyLimiter({ maxConcurrent: 2, hooks });
  const manager = new PipelineManager({ pool, limiter, hooks, abortGraceMs });
  const held = () => ({
    permits: limiter.activeCount,
    leased: pool.stats().leased,
    active: manager.stats().active,
  });
  return { manager, pool, outcomes, held };
}
const NOTHING = { permits: 0, leased: 0, active: 0 };
const ALL = { permits: 1, leased: 1, active: 1 };
const never = () => new Promise<never>(() => {});

async function* count(upTo: number, log: string[] = []) {
  try {
    for (let i = 1; i <= upTo; i++) {
      log.push(`made ${i}`);
      yield i;
    }
    return 'end';
  } finally {
    log.push('cleaned up');
  }
}

onFakeTimers();

describe('PipelineManager.stream', () => {
  it('yields what the generator yields, and holds its lease until the last item is consumed', async () => {
    const { manager, held, outcomes } = build();
    const items: number[] = [];
    for await (const item of manager.stream('t1', () => count(3))) {
      items.push(item);
      expect(held()).toEqual(ALL);
    }
    await settled();
    expect(items).toEqual([1, 2, 3]);
    expect(held()).toEqual(NOTHING);
    expect(outcomes).toEqual(['ok']);
  });

  it('holds nothing when it is never iterated', async () => {
    const { manager, held } = build();
    const generator = vi.fn(() => count(3));
    manager.stream('t1', generator);
    await settled();
    expect(held()).toEqual(NOTHING);
    expect(generator).not.toHaveBeenCalled();
    expect(manager.stats().requests).toBe(0);
  });

  it('gives the generator the context of a request', async () => {
    const { manager } = build();
    const stream = manager.stream(
      't1',
      async function* ({ pipeline, signal, taskId, instanceId, requestId }) {
        yield { pipeline, aborted: signal.aborted, taskId, instanceId, hasId: requestId.length > 0 };
      },
    );
    expect((await stream.next()).value).toEqual({
      pipeline: { instanceId: 1 },
      aborted: false,
      taskId: 't1',
      instanceId: 1,
      hasId: true,
    });
    await stream.return?.();
  });

  it('runs the generator only when an item is asked for', async () => {
    const { manager } = build();
    const log: string[] = [];
    const stream = manager.stream('t1', () => count(3, log));
    await stream.next();
    await settled();
    expect(log).toEqual(['made 1']);
    await stream.next();
    expect(log).toEqual(['made 1', 'made 2']);
    await stream.return?.();
  });

  it('settles concurrent calls of next in order', async () => {
    const { manager, held } = build();
    const stream = manager.stream('t1', () => count(2));
    const results = await Promise.all([stream.next(), stream.next(), stream.next(), stream.next()]);
    expect(results).toEqual([
      { done: false, value: 1 },
      { done: false, value: 2 },
      { done: true, value: 'end' },
      { done: true, value: undefined },
    ]);
    await settled();
    expect(held()).toEqual(NOTHING);
  });

  it('releases on break, after the generator has cleaned up', async () => {
    const { manager, held, outcomes } = build();
    const log: string[] = [];
    for await (const _ of manager.stream('t1', () => count(3, log))) break;
    await settled();
    expect(log).toEqual(['made 1', 'cleaned up']);
    expect(held()).toEqual(NOTHING);
    expect(outcomes).toEqual(['ok']);
  });

  it('releases when the consumer throws', async () => {
    const { manager, held } = build();
    const log: string[] = [];
    const consume = async () => {
      for await (const _ of manager.stream('t1', () => count(3, log))) throw new Error('consumer');
    };
    await expect(consume()).rejects.toThrow('consumer');
    await settled();
    expect(log).toContain('cleaned up');
    expect(held()).toEqual(NOTHING);
  });

  it('releases when the generator throws, and rejects with its error', async () => {
    const { manager, held, outcomes } = build();
    const stream = manager.stream('t1', async function* () {
      yield 1;
      throw new Error('host');
    });
    await stream.next();
    await expect(stream.next()).rejects.toThrow('host');
    await settled();
    expect(held()).toEqual(NOTHING);
    expect(outcomes).toEqual(['failed']);
    await expect(stream.next()).resolves.toEqual({ done: true, value: undefined });
  });

  it('releases when the function that makes the generator throws, or returns none', async () => {
    const { manager, held } = build();
    const thrown = manager.stream('t1', () => {
      throw new Error('no generator');
    });
    await expect(thrown.next()).rejects.toThrow('no generator');
    await expect(manager.stream('t1', () => undefined as never).next()).rejects.toThrow(TypeError);
    await settled();
    expect(held()).toEqual(NOTHING);
  });

  it('passes a throw of the consumer to the generator', async () => {
    const { manager, held } = build();
    const stream = manager.stream('t1', async function* () {
      try {
        yield 1;
      } catch (error) {
        yield `caught ${(error as Error).message}`;
      }
    });
    await stream.next();
    await expect(stream.throw?.(new Error('it'))).resolves.toEqual({ done: false, value: 'caught it' });
    await expect(stream.next()).resolves.toMatchObject({ done: true });
    await settled();
    expect(held()).toEqual(NOTHING);
  });

  it('rejects with what was thrown into it behind the last item, as a generator does', async () => {
    const { manager, held, outcomes } = build();
    const stream = manager.stream('t1', () => count(1));
    await stream.next();
    const last = stream.next();
    await expect(stream.throw?.(new Error('too late'))).rejects.toThrow('too late');
    await expect(last).resolves.toEqual({ done: true, value: 'end' });
    await settled();
    expect(held()).toEqual(NOTHING);
    expect(outcomes).toEqual(['ok']);
  });

  it('rejects the pending next in the step of the abort, and releases once the generator has settled', async () => {
    const { manager, held, outcomes } = build();
    const controller = new AbortController();
    const stream = manager.stream(
      't1',
      async function* ({ signal }) {
        yield 1;
        await new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)));
      },
      { signal: controller.signal },
    );
    await stream.next();
    const pending = stream.next();
    await settled();
    controller.abort(new Error('client left'));
    await expect(pending).rejects.toThrow('client left');
    await settled();
    expect(held()).toEqual(NOTHING);
    expect(outcomes).toEqual(['aborted']);
  });

  it('releases on an abort between two items, after the generator has cleaned up', async () => {
    const { manager, held } = build();
    const log: string[] = [];
    const controller = new AbortController();
    const stream = manager.stream('t1', () => count(3, log), { signal: controller.signal });
    await stream.next();
    controller.abort(new Error('client left'));
    await settled();
    expect(log).toEqual(['made 1', 'cleaned up']);
    expect(held()).toEqual(NOTHING);
  });

  it('does not make return wait for an item that never arrives', async () => {
    const { manager, held, outcomes, pool } = build({ abortGraceMs: 1_000 });
    const stream = manager.stream('t1', async function* () {
      yield 1;
      await never();
    });
    await stream.next();
    const pending = stream.next();
    await settled();
    await expect(stream.return?.()).resolves.toEqual({ done: true, value: undefined });
    await expect(pending).resolves.toEqual({ done: true, value: undefined });
    expect(held()).toEqual(ALL); // code that ignores its signal keeps its instance for the grace period
    await vi.advanceTimersByTimeAsync(1_000);
    expect(held()).toEqual(NOTHING);
    expect(pool.stats().live).toBe(0);
    expect(outcomes).toEqual(['aborted']);
  });

  it('ends on return even if the generator yields once more in its finally', async () => {
    const { manager, held } = build();
    const stream = manager.stream('t1', async function* () {
      try {
        yield 1;
      } finally {
        yield 2;
      }
    });
    await stream.next();
    await expect(stream.return?.()).resolves.toMatchObject({ done: true });
    await settled();
    expect(held()).toEqual(NOTHING);
  });

  it('ends on return and throw before the first item, without beginning', async () => {
    const { manager } = build();
    const generator = vi.fn(() => count(3));
    const left = manager.stream('t1', generator);
    await left.return?.();
    await expect(left.next()).resolves.toEqual({ done: true, value: undefined });
    const thrown = manager.stream('t1', generator);
    await expect(thrown.throw?.(new Error('no'))).rejects.toThrow('no');
    await expect(thrown.next()).resolves.toMatchObject({ done: true });
    expect(generator).not.toHaveBeenCalled();
  });

  it('rejects the first next if no instance can be created', async () => {
    const { manager, held, outcomes } = build({
      create: () => {
        throw new Error('no template');
      },
    });
    await expect(manager.stream('t1', () => count(1)).next()).rejects.toMatchObject({
      code: 'ERR_CREATE_FAILED',
    });
    expect(held()).toEqual(NOTHING);
    expect(outcomes).toEqual(['rejected: failed']);
  });

  it('rejects the first next after a shutdown', async () => {
    const { manager } = build();
    const stream = manager.stream('t1', () => count(1));
    await manager.shutdown();
    await expect(stream.next()).rejects.toMatchObject({ code: 'ERR_MANAGER_CLOSED' });
  });

  it('rejects wrong arguments synchronously', () => {
    const { manager } = build();
    expect(() => manager.stream('', () => count(1))).toThrow(/`taskId`/);
    expect(() => manager.stream('t', 5 as never)).toThrow(/`generator`/);
    expect(() => manager.stream('t', () => count(1), { timeout: 1 } as never)).toThrow(
      /Unknown option `timeout`/,
    );
  });

  it.each([
    ['next', { done: false, value: 2 }, 1],
    ['return', { done: true, value: undefined }, 0],
  ] as const)('opens one request, where a listener of it calls %s', async (method, answer, opened) => {
    const { manager, held } = build();
    const generator = vi.fn(() => count(3));
    const stream = manager.stream('t', generator);
    const answers: unknown[] = [];
    manager.hooks.once('request:queued', () => {
      stream[method]?.().then((result) => answers.push(result));
    });
    const first = await stream.next();
    await settled();
    expect(first.done).toBe(method === 'return');
    expect(answers).toEqual([answer]);
    expect(generator).toHaveBeenCalledTimes(opened);
    expect(manager.stats().requests).toBe(1);
    await stream.return?.();
    await settled();
    expect(held()).toEqual(NOTHING);
  });

  it('adds no listener for each item', async () => {
    const { manager } = build();
    let inner: AbortSignal | undefined;
    const stream = manager.stream('t1', async function* ({ signal }) {
      inner = signal;
      yield* count(100);
    });
    for (let i = 0; i < 100; i++) await stream.next();
    expect(getEventListeners(inner as AbortSignal, 'abort').length).toBeLessThanOrEqual(1);
    await stream.return?.();
  });
});

describe('the end of a stream', () => {
  type Setup = ReturnType<typeof build> & { controller: AbortController };
  /** Each way to end a request early: how it is set up, what it does, and what the reader must see. */
  const endings = [
    {
      name: 'deadline',
      options: { timeoutMs: 60 },
      end: async (_: Setup) => {
        await vi.advanceTimersByTimeAsync(60);
      },
      error: expect.objectContaining({ code: 'ERR_REQUEST_TIMEOUT' }),
    },
    {
      name: 'abort',
      options: {},
      end: async ({ controller }: Setup) => controller.abort(new Error('client left')),
      error: new Error('client left'),
    },
    {
      name: 'shutdown',
      options: {},
      end: async ({ manager }: Setup) => {
        void manager.shutdown({ timeoutMs: 0 });
        await vi.advanceTimersByTimeAsync(1);
      },
      error: expect.objectContaining({ code: 'ERR_MANAGER_CLOSED' }),
    },
  ];
  const setUp = (options: { timeoutMs?: number }, items = 9) => {
    const controller = new AbortController();
    const setup = { ...build(), controller };
    const stream = setup.manager.stream('t', () => count(items), { ...options, signal: controller.signal });
    return { ...setup, stream };
  };

  it.each(endings)('rejects the next item after a $name between two items, once', async (ending) => {
    const setup = setUp(ending.options);
    await setup.stream.next();
    await ending.end(setup);
    await settled();
    expect(setup.held()).toEqual(NOTHING);
    await expect(setup.stream.next()).rejects.toEqual(ending.error);
    await expect(setup.stream.next()).resolves.toEqual({ done: true, value: undefined });
  });

  it.each(endings)('makes `for await` throw after a $name between two items', async (ending) => {
    const setup = setUp(ending.options);
    const read = async () => {
      for await (const item of setup.stream) if (item === 4) await ending.end(setup);
    };
    await expect(read()).rejects.toEqual(ending.error);
  });

  it.each(endings)('makes Readable.from fail after a $name', async (ending) => {
    const setup = setUp(ending.options, 99);
    const read = async () => {
      for await (const item of Readable.from(setup.stream)) if (item === 4) await ending.end(setup);
    };
    await expect(read()).rejects.toEqual(ending.error);
  });

  it.each(endings)('makes ReadableStream.from fail after a $name', async (ending) => {
    const setup = setUp(ending.options);
    const web = ReadableStream as unknown as { from<V>(items: AsyncIterable<V>): ReadableStream<V> };
    const reader = web.from(setup.stream).getReader();
    await reader.read();
    await ending.end(setup);
    const read = async () => {
      while (!(await reader.read()).done);
    };
    await expect(read()).rejects.toEqual(ending.error);
  });

  it('makes stream.pipeline reject when the deadline passes while the writer is slow', async () => {
    const setup = setUp({ timeoutMs: 60 }, 99);
    const written: number[] = [];
    const slow = new Writable({
      objectMode: true,
      highWaterMark: 1,
      write: (item: number, _, done) => {
        written.push(item);
        setTimeout(done, 25);
      },
    });
    const source = Readable.from(setup.stream, { highWaterMark: 1 });
    const piped = expect(pipe(source, slow)).rejects.toMatchObject({ code: 'ERR_REQUEST_TIMEOUT' });
    await vi.advanceTimersByTimeAsync(5_000);
    await piped;
    expect(written.length).toBeLessThan(9);
    expect(setup.held()).toEqual(NOTHING);
  });

  it('is an error where the source ends quietly because it was aborted', async () => {
    const { manager, held, outcomes } = build();
    const controller = new AbortController();
    const stream = manager.stream(
      't',
      async function* ({ signal }) {
        yield 1;
        await new Promise<void>((resolve) => signal.addEventListener('abort', () => resolve()));
      },
      { signal: controller.signal },
    );
    await stream.next();
    const pending = stream.next();
    await settled();
    controller.abort(new Error('client left'));
    await expect(pending).rejects.toThrow('client left');
    await settled();
    expect(held()).toEqual(NOTHING);
    expect(outcomes).toEqual(['aborted']);
  });

  it('is no error for a consumer that leaves after the request was aborted', async () => {
    const { stream, controller } = setUp({});
    await stream.next();
    controller.abort(new Error('client left'));
    await settled();
    await expect(stream.return?.()).resolves.toEqual({ done: true, value: undefined });
    await expect(stream.next()).resolves.toEqual({ done: true, value: undefined });
  });

  it('stays normal where the deadline passes after the last item', async () => {
    const { stream } = setUp({ timeoutMs: 60 }, 1);
    expect(await stream.next()).toEqual({ done: false, value: 1 });
    expect(await stream.next()).toEqual({ done: true, value: 'end' });
    await vi.advanceTimersByTimeAsync(60);
    expect(await stream.next()).toEqual({ done: true, value: undefined });
  });
});

describe('the source of a stream', () => {
  it('may be a function that resolves with an async iterable', async () => {
    const { manager, held } = build();
    const items: number[] = [];
    for await (const item of manager.stream('t', async () => count(3))) items.push(item);
    await settled();
    expect(items).toEqual([1, 2, 3]);
    expect(held()).toEqual(NOTHING);
  });

  it('rejects the first next with the error of an async function', async () => {
    const { manager, held } = build();
    const stream = manager.stream('t', async () => {
      throw new Error('x');
    });
    await expect(stream.next()).rejects.toThrow('x');
    await settled();
    expect(held()).toEqual(NOTHING);
  });

  it.each([undefined, null, 5, {}, [], { [Symbol.asyncIterator]: () => undefined }, { next: 1 }])(
    'rejects with a TypeError that names what was expected if it returns %o',
    async (given) => {
      const { manager, held } = build();
      for (const source of [() => given, async () => given]) {
        const error = await manager
          .stream('t', source as never)
          .next()
          .catch((thrown: unknown) => thrown);
        expect(error).toBeInstanceOf(TypeError);
        expect(String(error)).toMatch(/Expected `generator` to be a function that returns an async iterable/);
      }
      await settled();
      expect(held()).toEqual(NOTHING);
    },
  );

  const get = () => {
    throw new TypeError('of the getter');
  };
  it.each([
    ['next returns undefined', { next: () => undefined }],
    ['next resolves with undefined', { next: async () => undefined }],
    ['next resolves with a number', { next: async () => 5 }],
    ['`done` throws', { next: async () => Object.defineProperty({ value: 1 }, 'done', { get }) }],
    ['`value` throws', { next: async () => Object.defineProperty({ done: false }, 'value', { get }) }],
  ])('rejects with a TypeError where %s, and releases the lease', async (_, iterator) => {
    const { manager, held, outcomes } = build();
    const stream = manager.stream('t', () => iterator as never);
    await expect(stream.next()).rejects.toThrow(TypeError);
    await expect(stream.next()).resolves.toMatchObject({ done: true });
    await settled();
    expect(held()).toEqual(NOTHING);
    expect(outcomes).toEqual(['failed']);
  });

  it('is closed when it resolves after the request has ended', async () => {
    const { manager, held } = build();
    const controller = new AbortController();
    const { promise, resolve } = deferred<AsyncIterator<number>>();
    const stream = manager.stream('t', () => promise, { signal: controller.signal });
    const first = stream.next();
    await settled();
    controller.abort(new Error('client left'));
    await expect(first).rejects.toThrow('client left');
    const close = vi.fn(async () => ({ done: true, value: undefined }) as const);
    resolve({ next: async () => ({ done: true, value: undefined }), return: close });
    await settled();
    expect(close).toHaveBeenCalledOnce();
    expect(held()).toEqual(NOTHING);
  });

  it('is asked for one item at a time', async () => {
    const { manager, held } = build();
    const { asked, answer, close, iterator } = countedSource();
    const stream = manager.stream('t', () => iterator);
    const items = [stream.next(), stream.next(), stream.next()];
    await settled();
    expect(asked).toHaveLength(1);
    await answer({ done: false, value: 1 });
    expect(asked).toHaveLength(2);
    await answer({ done: false, value: 2 });
    await answer({ done: true, value: undefined });
    expect(await Promise.all(items)).toMatchObject([{ value: 1 }, { value: 2 }, { done: true }]);
    expect(close).not.toHaveBeenCalled();
    expect(held()).toEqual(NOTHING);
  });

  it('is closed only when the item that it makes has come, after an abort', async () => {
    const { manager, held } = build();
    const { answer, close, iterator } = countedSource();
    const controller = new AbortController();
    const stream = manager.stream('t', () => iterator, { signal: controller.signal });
    const first = stream.next();
    await settled();
    controller.abort(new Error('client left'));
    await expect(first).rejects.toThrow('client left');
    await settled();
    expect(close).not.toHaveBeenCalled();
    expect(held()).toEqual(ALL);
    await answer({ done: false, value: 1 });
    expect(close).toHaveBeenCalledOnce();
    expect(held()).toEqual(NOTHING);
  });

  it('is not asked for an item in the step in which the request is aborted', async () => {
    const { manager } = build();
    const { asked, answer, iterator } = countedSource();
    const controller = new AbortController();
    const stream = manager.stream('t', () => iterator, { signal: controller.signal });
    const first = stream.next();
    await settled();
    await answer({ done: false, value: 1 });
    await first;
    controller.abort(new Error('client left'));
    await expect(stream.next()).rejects.toThrow('client left');
    expect(asked).toHaveLength(1);
  });

  it('runs in the context of its request, wherever an item is asked for', async () => {
    const { manager } = build();
    const storage = new AsyncLocalStorage<string>();
    const stream = manager.stream('t', async function* () {
      for (;;) yield storage.getStore();
    });
    const first = storage.run('request', () => stream.next());
    expect((await first).value).toBe('request');
    expect((await storage.run('reader', () => stream.next())).value).toBe('request');
    expect((await stream.next()).value).toBe('request');
    await stream.return?.();
  });

  it('is awaited in the context of its request, where it answers with lazy thenables', async () => {
    const { manager } = build();
    const storage = new AsyncLocalStorage<string>();
    const seen: unknown[] = [];
    const next = () => ({
      // biome-ignore lint/suspicious/noThenProperty: query builders are such thenables
      then(resolve: (result: unknown) => void) {
        seen.push([storage.getStore(), currentRequest()?.taskId]);
        resolve({ done: false, value: 1 });
      },
    });
    const stream = manager.stream('t', () => ({ next, return: next, throw: next }) as never);
    await storage.run('request', () => stream.next());
    await storage.run('reader', () => stream.next());
    await storage.run('reader', () => stream.throw?.(new Error('x')));
    await storage.run('reader', () => stream.return?.());
    expect(seen).toEqual(Array(4).fill(['request', 't']));
  });

  it('is awaited without what its promises have for a `then`', async () => {
    const { manager, held } = build();
    const next = () => {
      const result = { done: false, value: 'real' };
      return Object.assign(Promise.resolve(result), {
        // biome-ignore lint/suspicious/noThenProperty: promises with a `then` of their own are what is tested
        then: (resolve: (result: unknown) => void) => {
          resolve({ done: false, value: 'first' });
          resolve({ done: false, value: 'second' });
          return Promise.reject(new Error('no one waits for it'));
        },
      });
    };
    const stream = manager.stream('t', () => ({ next }) as never);
    const items = await Promise.all([stream.next(), stream.next(), stream.next()]);
    expect(items.map(({ value }) => value)).toEqual(['real', 'real', 'real']);
    await stream.return?.();
    await settled();
    expect(held()).toEqual(NOTHING);
  });
});
