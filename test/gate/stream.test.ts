import { AsyncLocalStorage } from 'node:async_hooks';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { openAiPreset } from '../../src/gate/llm-presets.js';
import { ServiceGate } from '../../src/gate/service-gate.js';
import { PER_TURN } from '../../src/internal/clock.js';
import { countedSource } from '../support/counted-source.js';
import { onFakeTimers, settled } from '../support/fake-timers.js';
import { httpError } from '../support/gates.js';
import { recorder } from '../support/hooks.js';
import { deferred, follow } from '../support/promises.js';
import { countListeners } from '../support/signals.js';

onFakeTimers();
afterEach(() => vi.restoreAllMocks());

/** A source that counts how often it is ended. */
function source(items: readonly unknown[], { hangsAfter = false, deaf = false } = {}) {
  const ends = vi.fn();
  const open = vi.fn(async function* ({ signal }: { signal: AbortSignal }) {
    try {
      for (const item of items) {
        if (item instanceof Error) throw item;
        yield item;
      }
      if (hangsAfter) {
        await new Promise((_, reject) => {
          if (!deaf) signal.addEventListener('abort', () => reject(signal.reason));
        });
      }
    } finally {
      ends();
    }
  });
  return { open, ends };
}

async function collect<T>(stream: AsyncIterable<T>): Promise<T[]> {
  const items: T[] = [];
  for await (const item of stream) items.push(item);
  return items;
}

/** A gate with one permit, and whether it is free and nothing else is left. */
function oneAtATime(options: object = {}) {
  const { hooks, of } = recorder();
  const gate = new ServiceGate({ name: 'llm', hooks, maxConcurrent: 1, ...options });
  const active = () => gate.stats().limiter!.active;
  const expectAllFree = () => {
    const { running, queuedForStart, backingOff, limiter, keys } = gate.stats();
    expect({ running, queuedForStart, backingOff, active: limiter!.active, inUse: keys[0]!.inUse }).toEqual({
      running: 0,
      queuedForStart: 0,
      backingOff: 0,
      active: 0,
      inUse: 0,
    });
    expect(vi.getTimerCount()).toBe(0);
  };
  return { gate, active, expectAllFree, of };
}

describe('ServiceGate.stream', () => {
  it.each([
    ['the source fails', source(['first', new Error('broken')]), () => {}],
    ['the source ends', source(['first', 'second']), () => {}],
    ['the caller aborts', source(['first'], { hangsAfter: true }), (end: () => void) => end()],
  ])('settles reads in the order in which they were made when %s', async (_, { open }, act) => {
    const { gate } = oneAtATime();
    const caller = new AbortController();
    const stream = gate.stream(open, { signal: caller.signal });
    await stream.next();
    const order: number[] = [];
    const note = (i: number) => () => void order.push(i);
    const reads = [0, 1, 2].map((i) => stream.next().then(note(i), note(i)));
    await settled();
    act(() => caller.abort());
    await Promise.all(reads);
    expect(order).toEqual([0, 1, 2]);
  });

  it('yields the items of the source, and holds the permit until the last', async () => {
    const { gate, active, expectAllFree, of } = oneAtATime();
    const { open, ends } = source([1, 2, 3]);
    const held: number[] = [];
    const items: unknown[] = [];
    for await (const item of gate.stream(open)) {
      items.push(item);
      held.push(active());
    }
    expect(items).toEqual([1, 2, 3]);
    expect(held).toEqual([1, 1, 1]);
    expect(ends).toHaveBeenCalledTimes(1);
    expectAllFree();
    expect(of('call:finished')).toMatchObject([{ outcome: 'ok', attempts: 1 }]);
  });

  it('holds nothing and never begins if it is not iterated', async () => {
    const { gate, expectAllFree, of } = oneAtATime({ timeoutMs: 100 });
    const { open } = source([1]);
    const control = new AbortController();
    const listeners = countListeners(control.signal);
    const stream = gate.stream(open, { signal: control.signal });
    await vi.advanceTimersByTimeAsync(1000);
    expect(open).not.toHaveBeenCalled();
    expect(listeners.size).toBe(0);
    expectAllFree();
    await stream.return!();
    await expect(stream.next()).resolves.toEqual({ done: true, value: undefined });
    expect(open).not.toHaveBeenCalled();
    expect(of('call:finished')).toEqual([]);
  });

  it('may be empty', async () => {
    const { gate, expectAllFree, of } = oneAtATime();
    await expect(collect(gate.stream(source([]).open))).resolves.toEqual([]);
    expectAllFree();
    expect(of('call:finished')).toMatchObject([{ outcome: 'ok' }]);
  });

  it('is classified also if it is empty, and retried if the classifier says so', async () => {
    vi.spyOn(Math, 'random').mockReturnValue(0);
    const { gate, expectAllFree, of } = oneAtATime(openAiPreset());
    const sources = [source([]), source(['a'])];
    const read = () => collect(gate.stream((context) => sources.shift()!.open(context)));
    await expect(read()).resolves.toEqual(['a']);
    expectAllFree();
    sources.push(source([]), source([]), source([]));
    await expect(read()).resolves.toEqual([]);
    expectAllFree();
    expect(of('call:finished').map((event) => event.outcome)).toEqual(['ok', 'retryable']);
  });

  it('accepts a promise of a stream, as SDKs return it', async () => {
    const { gate } = oneAtATime();
    const { open } = source(['a', 'b']);
    await expect(collect(gate.stream(async (context) => open(context)))).resolves.toEqual(['a', 'b']);
  });

  it('rejects a non-stream, a non-function, and a cache key', async () => {
    const { gate, expectAllFree } = oneAtATime();
    await expect(collect(gate.stream(() => 7 as never))).rejects.toThrow('an async iterable, got 7');
    await expect(collect(gate.stream(() => undefined as never))).rejects.toThrow('an async iterable');
    expectAllFree();
    expect(() => gate.stream('code' as never)).toThrow('`fn`');
    expect(() => gate.stream(source([]).open, { cacheKey: 'k' } as never)).toThrow(
      'Unknown option `cacheKey` in stream',
    );
  });

  it('lets the next call start when it has ended, not before', async () => {
    const { gate } = oneAtATime();
    const { open } = source([1, 2]);
    const stream = gate.stream(open);
    await stream.next();
    const next = follow(gate.run(() => 'next'));
    await stream.next();
    await settled();
    expect(next.now.is).toBe('pending');
    await stream.next();
    await settled();
    expect(next.now.is).toBe('fulfilled');
  });

  it('yields items in the order in which they were requested', async () => {
    const { gate, expectAllFree } = oneAtATime();
    const stream = gate.stream(source([1, 2]).open);
    const results = await Promise.all([stream.next(), stream.next(), stream.next(), stream.next()]);
    expect(results.map((result) => result.value)).toEqual([1, 2, undefined, undefined]);
    expectAllFree();
  });

  it('asks its source for one item at a time', async () => {
    const { gate, expectAllFree } = oneAtATime();
    const { asked, answer, iterator } = countedSource();
    const stream = gate.stream(() => ({ [Symbol.asyncIterator]: () => iterator }));
    const first = stream.next();
    await answer({ done: false, value: 1 });
    await first;
    const items = [stream.next(), stream.next()];
    await settled();
    expect(asked).toHaveLength(2);
    await answer({ done: false, value: 2 });
    expect(asked).toHaveLength(3);
    await answer({ done: true, value: undefined });
    expect(await Promise.all(items)).toEqual([
      { done: false, value: 2 },
      { done: true, value: undefined },
    ]);
    expectAllFree();
  });

  it('lets a source that is idle end by itself when its reader leaves', async () => {
    const { gate } = oneAtATime();
    let wasAborted: boolean | undefined;
    const stream = gate.stream(async function* ({ signal }) {
      try {
        for (let i = 0; ; i++) yield i;
      } finally {
        wasAborted = signal.aborted;
      }
    });
    await stream.next();
    await stream.next();
    await stream.return?.();
    expect(wasAborted).toBe(false);
  });

  it('rejects the item in whose step it is aborted', async () => {
    const controller = new AbortController();
    const usage = (item: unknown) => {
      if (item === 2) controller.abort(new Error('client left'));
      return undefined;
    };
    const { gate, expectAllFree } = oneAtATime({ usage });
    const stream = gate.stream(source([1, 2, 3]).open, { signal: controller.signal });
    await stream.next();
    await expect(stream.next()).rejects.toThrow('client left');
    await settled();
    expectAllFree();
  });

  describe('before its first item', () => {
    it('is retried after a failure, without effect on its reader', async () => {
      vi.spyOn(Math, 'random').mockReturnValue(0);
      const { gate, expectAllFree, of } = oneAtATime();
      const sources = [source([httpError(502)]), source([httpError(500)]), source(['a', 'b'])];
      let attempt = 0;
      const items = await collect(gate.stream((context) => sources[attempt++]!.open(context)));
      expect(items).toEqual(['a', 'b']);
      expectAllFree();
      expect(of('call:retried')).toHaveLength(2);
    });

    it('is classified by its first item: a stream that opens with an error is retried', async () => {
      vi.spyOn(Math, 'random').mockReturnValue(0);
      const { gate, expectAllFree } = oneAtATime({
        classify: (observed: { kind: string; value?: { error?: unknown } }) =>
          observed.kind === 'first-item' && observed.value?.error ? 'retryable' : undefined,
      });
      const bad = source([{ error: 'The request queue is full.' }, 'more'], { hangsAfter: true });
      const good = source([{ text: 'a' }]);
      let attempt = 0;
      const items = await collect(gate.stream((context) => (attempt++ === 0 ? bad : good).open(context)));
      expect(items).toEqual([{ text: 'a' }]);
      expect(bad.ends).toHaveBeenCalledTimes(1);
      expectAllFree();
    });

    it('keeps its permit until the failed stream has ended', async () => {
      vi.spyOn(Math, 'random').mockReturnValue(0);
      const { gate, active, expectAllFree } = oneAtATime({
        classify: (observed: { value?: unknown }) => (observed.value === 'error' ? 'retryable' : undefined),
      });
      const end = deferred();
      let seen: AbortSignal | undefined;
      async function* bad(signal: AbortSignal) {
        seen = signal;
        try {
          yield 'error';
        } finally {
          await end.promise;
        }
      }
      const good = source(['a']);
      const items = follow(
        collect(gate.stream((context) => (context.attempt === 1 ? bad(context.signal) : good.open(context)))),
      );
      await settled();
      expect([active(), good.open.mock.calls.length, seen!.aborted]).toEqual([1, 0, false]);
      end.resolve();
      await settled();
      expect(items.now).toEqual({ is: 'fulfilled', value: ['a'] });
      expect(seen!.aborted).toBe(true);
      expectAllFree();
    });

    it('yields the items of the last attempt if all fail', async () => {
      vi.spyOn(Math, 'random').mockReturnValue(0);
      const { gate, expectAllFree, of } = oneAtATime({
        retry: { attempts: 2 },
        classify: (observed: { kind: string }) => (observed.kind === 'first-item' ? 'retryable' : undefined),
      });
      await expect(collect(gate.stream(source(['error', 'more']).open))).resolves.toEqual(['error', 'more']);
      expectAllFree();
      await expect(collect(gate.stream(source([httpError(500)]).open))).rejects.toMatchObject({
        status: 500,
      });
      expectAllFree();
      expect(of('call:finished').map((event) => event.outcome)).toEqual(['retryable', 'retryable']);
    });

    it('ends after attemptTimeoutMs for each of many, with no item that comes in the turn in which they end', async () => {
      const gate = new ServiceGate({ name: 'llm', attemptTimeoutMs: 100, retry: { attempts: 1 } });
      const items: unknown[] = [];
      const streams = Array.from({ length: 2 * PER_TURN }, async () => {
        const stream = gate.stream(async function* () {
          await new Promise((resolve) => setTimeout(resolve, 100));
          yield 'too late';
        });
        for await (const item of stream) items.push(item);
      });
      await settled();
      // All timers in one step: only the first of these attempts are rejected in it.
      vi.advanceTimersByTime(100);
      const ends = await Promise.allSettled(streams);
      expect(new Set(ends.map((end) => end.status))).toEqual(new Set(['rejected']));
      expect(items).toEqual([]);
      expect(gate.stats()).toMatchObject({ running: 0 });
    });

    it('ends after attemptTimeoutMs, and is retried', async () => {
      vi.spyOn(Math, 'random').mockReturnValue(0);
      const { gate, expectAllFree } = oneAtATime({ attemptTimeoutMs: 100 });
      const slow = source([], { hangsAfter: true });
      const good = source(['a']);
      let attempt = 0;
      const items = collect(gate.stream((context) => (attempt++ === 0 ? slow : good).open(context)));
      await vi.advanceTimersByTimeAsync(100);
      await expect(items).resolves.toEqual(['a']);
      expect(slow.ends).toHaveBeenCalledTimes(1);
      expectAllFree();
    });

    it('ends a source whose first item arrives too late', async () => {
      const { gate, expectAllFree } = oneAtATime({ attemptTimeoutMs: 100, retry: { attempts: 1 } });
      const first = deferred<IteratorResult<number>>();
      const ends = vi.fn(async () => ({ done: true, value: undefined }) as const);
      const iterable = { [Symbol.asyncIterator]: () => ({ next: () => first.promise, return: ends }) };
      const items = follow(collect(gate.stream(() => iterable)));
      await vi.advanceTimersByTimeAsync(100);
      expect(items.now).toMatchObject({ is: 'rejected', reason: { scope: 'attempt' } });
      first.resolve({ done: false, value: 1 });
      await settled();
      expect(ends).toHaveBeenCalledTimes(1);
      expectAllFree();
    });

    it('supports return, which ends the attempt', async () => {
      const { gate, expectAllFree, of } = oneAtATime();
      const { open, ends } = source([], { hangsAfter: true });
      const stream = gate.stream(open);
      const first = follow(stream.next());
      await settled();
      await stream.return!();
      await settled();
      expect(first.now).toEqual({ is: 'fulfilled', value: { done: true, value: undefined } });
      expect(ends).toHaveBeenCalledTimes(1);
      expectAllFree();
      expect(of('call:finished')).toMatchObject([{ outcome: 'aborted' }]);
    });

    it('rejects at once on an abort', async () => {
      const { gate, expectAllFree } = oneAtATime();
      const control = new AbortController();
      const first = follow(
        gate.stream(source([], { hangsAfter: true }).open, { signal: control.signal }).next(),
      );
      await settled();
      control.abort('enough');
      await settled();
      expect(first.now).toEqual({ is: 'rejected', reason: 'enough' });
      expectAllFree();
    });
  });

  describe('releases everything once', () => {
    it('after a break', async () => {
      const { gate, expectAllFree, of } = oneAtATime();
      const { open, ends } = source([1, 2, 3]);
      for await (const item of gate.stream(open)) if (item === 2) break;
      expect(ends).toHaveBeenCalledTimes(1);
      expectAllFree();
      expect(of('call:finished')).toMatchObject([{ outcome: 'ok' }]);
    });

    it('after the reader throws', async () => {
      const { gate, expectAllFree } = oneAtATime();
      const { open, ends } = source([1, 2, 3]);
      const reader = async () => {
        for await (const _ of gate.stream(open)) throw new Error('reader');
      };
      await expect(reader()).rejects.toThrow('reader');
      expect(ends).toHaveBeenCalledTimes(1);
      expectAllFree();
    });

    it('after throw() and after a second return', async () => {
      const { gate, expectAllFree } = oneAtATime();
      const { open, ends } = source([1, 2, 3]);
      const stream = gate.stream(open);
      await stream.next();
      await expect(stream.throw!(new Error('reader'))).rejects.toThrow('reader');
      await stream.return!();
      expect(ends).toHaveBeenCalledTimes(1);
      expectAllFree();
    });

    it('by `await using`', async () => {
      const { gate, expectAllFree } = oneAtATime();
      const { open, ends } = source([1, 2, 3]);
      {
        await using stream = gate.stream(open);
        await stream.next();
      }
      expect(ends).toHaveBeenCalledTimes(1);
      expectAllFree();
    });

    it('after an error of the source, which the reader gets', async () => {
      const { gate, expectAllFree, of } = oneAtATime();
      const { open } = source([1, httpError(503, { 'retry-after': '9' })]);
      const items: unknown[] = [];
      const reader = async () => {
        for await (const item of gate.stream(open)) items.push(item);
      };
      await expect(reader()).rejects.toMatchObject({ status: 503 });
      expect(items).toEqual([1]);
      expectAllFree();
      expect(open).toHaveBeenCalledTimes(1);
      expect(of('call:finished')).toMatchObject([{ outcome: 'retryable', attempts: 1 }]);
      expect(gate.stats().retryAfterMs).toBe(9_000);
    });

    it('after an abort while the reader waits for an item', async () => {
      const { gate, expectAllFree, of } = oneAtATime();
      const control = new AbortController();
      const listeners = countListeners(control.signal);
      const { open, ends } = source([1], { hangsAfter: true });
      const stream = gate.stream(open, { signal: control.signal });
      await stream.next();
      const second = follow(stream.next());
      await settled();
      control.abort('enough');
      for (let i = 0; i < 30; i++) await Promise.resolve();
      expect(second.now).toEqual({ is: 'rejected', reason: 'enough' });
      expect(ends).toHaveBeenCalledTimes(1);
      expect(listeners.size).toBe(0);
      expectAllFree();
      await expect(stream.next()).resolves.toEqual({ done: true, value: undefined });
      expect(of('call:finished')).toMatchObject([{ outcome: 'aborted' }]);
    });

    it('after an abort between reads; the next read rejects with the reason', async () => {
      const { gate, expectAllFree } = oneAtATime();
      const control = new AbortController();
      const { open, ends } = source([1, 2, 3]);
      const stream = gate.stream(open, { signal: control.signal });
      await stream.next();
      control.abort('enough');
      for (let i = 0; i < 30; i++) await Promise.resolve();
      expect(ends).toHaveBeenCalledTimes(1);
      expectAllFree();
      await expect(stream.next()).rejects.toBe('enough');
      await expect(stream.next()).resolves.toEqual({ done: true, value: undefined });
    });

    it('at the deadline of the call, also between reads', async () => {
      const { gate, expectAllFree, of } = oneAtATime();
      const { open, ends } = source([1, 2, 3]);
      const stream = gate.stream(open, { timeoutMs: 100 });
      await stream.next();
      await vi.advanceTimersByTimeAsync(100);
      expect(ends).toHaveBeenCalledTimes(1);
      expectAllFree();
      await expect(stream.next()).rejects.toMatchObject({ code: 'ERR_GATE_TIMEOUT', scope: 'call' });
      expect(of('call:finished')).toMatchObject([{ outcome: 'timeout' }]);
    });

    it('when an item takes longer than attemptTimeoutMs', async () => {
      const { gate, expectAllFree, of } = oneAtATime({ attemptTimeoutMs: 100 });
      const { open, ends } = source([1], { hangsAfter: true });
      const stream = gate.stream(open);
      await stream.next();
      await vi.advanceTimersByTimeAsync(5_000);
      const second = follow(stream.next());
      await vi.advanceTimersByTimeAsync(100);
      expect(second.now).toMatchObject({ is: 'rejected', reason: { scope: 'attempt', timeoutMs: 100 } });
      expect(ends).toHaveBeenCalledTimes(1);
      expectAllFree();
      expect(of('call:finished')).toMatchObject([{ outcome: 'timeout' }]);
    });

    it('when the gate closes', async () => {
      const { gate } = oneAtATime();
      const { open, ends } = source([1, 2]);
      const stream = gate.stream(open);
      await stream.next();
      await gate.close();
      expect(ends).toHaveBeenCalledTimes(1);
      expect(gate.stats().limiter!.active).toBe(0);
      await expect(stream.next()).rejects.toMatchObject({ code: 'ERR_GATE_CLOSED' });
      await expect(gate.stream(open).next()).rejects.toMatchObject({ code: 'ERR_GATE_CLOSED' });
    });

    it('five seconds after the end of a source that does not settle', async () => {
      const { gate, active } = oneAtATime();
      const { open } = source([1], { hangsAfter: true, deaf: true });
      const stream = gate.stream(open);
      await stream.next();
      const pulling = follow(stream.next());
      await settled();
      const left = follow(stream.return!());
      await vi.advanceTimersByTimeAsync(4_999);
      expect([pulling.now.is, left.now.is, active()]).toEqual(['fulfilled', 'pending', 1]);
      await vi.advanceTimersByTimeAsync(1);
      expect(active()).toBe(0);
      expect(left.now.is).toBe('fulfilled');
    });

    it('not before a pending item of the source, even if `return` has settled', async () => {
      const { gate, active } = oneAtATime();
      const items = [Promise.resolve({ done: false as const, value: 1 }), new Promise<never>(() => {})];
      const stream = gate.stream(() => ({
        [Symbol.asyncIterator]: () => ({
          next: () => items.shift()!,
          return: async () => ({ done: true as const, value: undefined }),
        }),
      }));
      await stream.next();
      const pulling = follow(stream.next());
      await settled();
      await stream.return!();
      expect([pulling.now.is, active()]).toEqual(['fulfilled', 1]);
      await vi.advanceTimersByTimeAsync(5_000);
      expect(active()).toBe(0);
    });

    it('for a source without a `return`, whose signal aborts', async () => {
      const { gate, expectAllFree } = oneAtATime();
      let seen: AbortSignal | undefined;
      const stream = gate.stream(({ signal }) => {
        seen = signal;
        return { [Symbol.asyncIterator]: () => ({ next: async () => ({ done: false, value: 1 }) }) };
      });
      for await (const _ of stream) break;
      expect(seen!.aborted).toBe(true);
      expectAllFree();
    });

    it('for a source that returns no iterator result', async () => {
      const { gate, expectAllFree } = oneAtATime();
      const of = (...items: unknown[]) => ({
        [Symbol.asyncIterator]: () => ({ next: async () => items.shift() as never }),
      });
      await expect(collect(gate.stream(() => of({ done: false, value: 1 }, undefined)))).rejects.toThrow(
        'Expected `an item` to be an iterator result, got undefined',
      );
      await expect(collect(gate.stream(() => of(undefined)))).rejects.toThrow(TypeError);
      expectAllFree();
    });

    it('at once for a source whose promises have a `then` of their own', async () => {
      const { gate, expectAllFree } = oneAtATime({ attemptTimeoutMs: 1_000 });
      const thens = [
        () => Promise.reject(new Error('no one waits for it')),
        () => {
          throw new Error('own');
        },
        (resolve: (result: unknown) => void) => {
          resolve({ done: false, value: 'twice' });
          resolve({ done: false, value: 'twice' });
        },
      ];
      let made = 0;
      const next = () =>
        Object.assign(Promise.resolve({ done: made > 3, value: made }), {
          // biome-ignore lint/suspicious/noThenProperty: promises with a `then` of their own are what is tested
          then: thens[made++ % 3],
        });
      const stream = gate.stream(() => ({ [Symbol.asyncIterator]: () => ({ next }) }) as never);
      const reader = follow(collect(stream));
      await settled();
      expect(reader.now).toEqual({ is: 'fulfilled', value: [0, 1, 2, 3] });
      expectAllFree();
    });

    it('with the error of the source if its `return` fails', async () => {
      const { gate, expectAllFree } = oneAtATime();
      const stream = gate.stream(async function* () {
        try {
          yield 1;
        } finally {
          // biome-ignore lint/correctness/noUnsafeFinally: a source may do so
          throw new Error('end');
        }
      });
      const reader = async () => {
        for await (const _ of stream) break;
      };
      await expect(reader()).rejects.toThrow('end');
      expectAllFree();
    });
  });

  describe.each([
    ['an abort', 'enough', (control: AbortController) => control.abort('enough')],
    ['the deadline', { code: 'ERR_GATE_TIMEOUT' }, () => vi.advanceTimersByTime(100)],
  ])('%s', (_, reason, strike) => {
    const ends = {
      is: 'rejected',
      reason: typeof reason === 'string' ? reason : expect.objectContaining(reason),
    };

    it.each([1, 2])(
      'in any step after item %i came is what its reader gets, and not an end',
      async (last) => {
        for (let steps = 0; steps <= 25; steps++) {
          const { gate, expectAllFree } = oneAtATime();
          const control = new AbortController();
          const item = deferred();
          const stream = gate.stream(
            async function* ({ signal }) {
              if (last === 2) yield 1;
              await item.promise;
              yield last;
              await new Promise((_, reject) => signal.addEventListener('abort', reject));
            },
            { signal: control.signal, timeoutMs: 100 },
          );
          const reader = follow(collect(stream));
          await settled();
          item.resolve();
          for (let i = 0; i < steps; i++) await Promise.resolve();
          strike(control);
          await settled();
          expect([steps, reader.now]).toEqual([steps, ends]);
          expectAllFree();
        }
      },
    );

    it('in any step of a source that never pauses rejects its reader', async () => {
      for (let steps = 0; steps <= 25; steps++) {
        const { gate, expectAllFree } = oneAtATime();
        const control = new AbortController();
        const endless = { next: async () => ({ done: false as const, value: 1 }) };
        const stream = gate.stream(() => ({ [Symbol.asyncIterator]: () => endless }), {
          signal: control.signal,
          timeoutMs: 100,
        });
        const reader = follow(collect(stream));
        for (let i = 0; i < 40 + steps; i++) await Promise.resolve();
        strike(control);
        await settled();
        expect([steps, reader.now]).toEqual([steps, ends]);
        expectAllFree();
      }
    });
  });

  it('rejects with the reason also if it is aborted while its failure is classified', async () => {
    const judged = deferred<'fatal'>();
    const { gate, expectAllFree, of } = oneAtATime({
      classify: (observed: { kind: string }) => (observed.kind === 'error' ? judged.promise : undefined),
    });
    const control = new AbortController();
    const reader = follow(collect(gate.stream(source([1, httpError(500)]).open, { signal: control.signal })));
    await settled();
    expect(reader.now.is).toBe('pending');
    control.abort('enough');
    await settled();
    expect(reader.now).toEqual({ is: 'rejected', reason: 'enough' });
    expectAllFree();
    expect(of('call:finished')).toMatchObject([{ outcome: 'aborted', error: { message: 'enough' } }]);
  });

  it('bounds a Response as its first item by the timeout of the attempt, as `run` does', async () => {
    const gate = new ServiceGate({ name: 'llm', ...openAiPreset(), attemptTimeoutMs: 60_000 });
    let send!: () => void;
    const body = new ReadableStream({
      start: (controller) => {
        send = () => {
          controller.enqueue(new TextEncoder().encode('{}'));
          controller.close();
        };
      },
    });
    const headers = { 'content-type': 'application/json' };
    const first = follow(
      gate
        .stream(async function* () {
          yield new Response(body, { headers });
        })
        .next(),
    );
    await vi.advanceTimersByTimeAsync(20_000);
    expect(first.now.is).toBe('pending');
    send();
    await settled();
    expect(first.now).toMatchObject({ is: 'fulfilled' });
  });

  it('runs the source and emits its events in the AsyncLocalStorage context of its reader', async () => {
    const storage = new AsyncLocalStorage<number>();
    const { hooks } = recorder();
    const gate = new ServiceGate({ name: 'llm', hooks, maxConcurrent: 3, rate: [{ limit: 5, perMs: 100 }] });
    const wrong: unknown[] = [];
    const check = (where: string, expected: number) => {
      if (storage.getStore() !== expected) wrong.push([where, expected, storage.getStore()]);
    };
    for (const event of ['call:started', 'call:throttled', 'call:finished'] as const) {
      hooks.on(event, ({ taskId }) => check(event, Number(taskId)));
    }
    const readers = Array.from({ length: 30 }, (_, id) =>
      storage.run(id, async () => {
        const stream = gate.stream(
          async function* () {
            check('source', id);
            await new Promise((resolve) => setTimeout(resolve, id));
            check('source, later', id);
            yield 1;
            check('source, at the end', id);
          },
          { taskId: String(id) },
        );
        for await (const _ of stream) check('reader', id);
      }),
    );
    await vi.advanceTimersByTimeAsync(10_000);
    await Promise.all(readers);
    expect(wrong).toEqual([]);
  });

  it('ends the source and emits the end in the context of its reader, wherever the abort comes from', async () => {
    const storage = new AsyncLocalStorage<string>();
    const { gate } = oneAtATime();
    const seen: unknown[] = [];
    gate.hooks.on('call:finished', () => seen.push(storage.getStore()));
    const control = new AbortController();
    const stream = gate.stream(
      async function* () {
        try {
          yield 1;
        } finally {
          seen.push(storage.getStore());
        }
      },
      { signal: control.signal },
    );
    await storage.run('reader', () => stream.next());
    storage.run('other', () => control.abort('enough'));
    await settled();
    expect(seen).toEqual(['reader', 'reader']);
  });
});
