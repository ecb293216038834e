import { afterEach, describe, expect, it, vi } from 'vitest';
import { RequestTimeoutError, ToolTimeoutError } from '../../src/errors.js';
import { ServiceGate } from '../../src/gate/service-gate.js';
import { AdaptiveLimit } from '../../src/limiter/adaptive-limit.js';
import { onFakeTimers, settled } from '../support/fake-timers.js';
import { httpError, learnedBy } from '../support/gates.js';
import { recorder } from '../support/hooks.js';
import { deferred, follow } from '../support/promises.js';

onFakeTimers();
afterEach(() => vi.restoreAllMocks());

const limitOf = (gate: ServiceGate) => gate.stats().limiter!.maxConcurrent;

/** So many calls at once, which all end so, a moment after they began. */
async function wave(gate: ServiceGate, calls: number, end: () => unknown) {
  const followed = Array.from({ length: calls }, () =>
    follow(
      gate.run(async () => {
        await new Promise((resolve) => setTimeout(resolve, 10));
        return end();
      }),
    ),
  );
  await vi.advanceTimersByTimeAsync(10);
  return followed;
}

describe('an adaptive ServiceGate', () => {
  it('increases its limit while the limit is reached and the calls succeed', async () => {
    const gate = new ServiceGate({ name: 'llm', adaptive: { initial: 4 } });
    await wave(gate, 4, () => 'fine');
    expect(limitOf(gate)).toBeGreaterThan(4);
    const quiet = new ServiceGate({ name: 'llm', adaptive: { initial: 4 } });
    await wave(quiet, 2, () => 'fine');
    expect(limitOf(quiet)).toBe(4);
  });

  it.each([
    ['a 429', () => Promise.reject(httpError(429))],
    ['a 503', () => Promise.reject(httpError(503))],
    ['a 529', () => new Response(null, { status: 529 })],
    ['a timeout', () => Promise.reject(new DOMException('late', 'TimeoutError'))],
  ])('decreases its limit on %s, once for calls that started together', async (_, end) => {
    const gate = new ServiceGate({ name: 'llm', adaptive: { initial: 20 }, retry: { attempts: 1 } });
    await wave(gate, 10, end);
    expect(limitOf(gate)).toBe(17);
  });

  it('decreases its limit on its own attempt timeout', async () => {
    const gate = new ServiceGate({
      name: 'llm',
      adaptive: { initial: 20 },
      attemptTimeoutMs: 100,
      retry: { attempts: 1 },
    });
    follow(gate.run(() => new Promise(() => {})));
    await vi.advanceTimersByTimeAsync(100);
    expect(limitOf(gate)).toBe(17);
  });

  it('decreases its limit on a deadline that passed mostly in the attempt, not on one that passed in a queue', async () => {
    const gate = new ServiceGate({ name: 'llm', adaptive: { initial: 20 } });
    follow(gate.run(() => new Promise(() => {}), { timeoutMs: 100 }));
    await vi.advanceTimersByTimeAsync(100);
    expect(limitOf(gate)).toBe(17);
    const queued = new ServiceGate({ name: 'llm', adaptive: { initial: 1, max: 1 } });
    const { outcomes } = learnedBy(queued);
    const first = deferred();
    const call = queued.run(() => first.promise);
    follow(queued.run(() => new Promise(() => {}), { timeoutMs: 100 }));
    await vi.advanceTimersByTimeAsync(90);
    first.resolve();
    await call;
    await vi.advanceTimersByTimeAsync(10);
    expect(outcomes()).toEqual(['ok', 'ignored']);
  });

  it.each([
    ['a tool', new ToolTimeoutError('mainAgent', 'search', 100), 'dropped'],
    [
      'a request that lasted little longer than the call',
      new RequestTimeoutError('manager', 'task', 190),
      'dropped',
    ],
    ['a request that had run for long', new RequestTimeoutError('manager', 'task', 1_000), 'ignored'],
    ["a signal of the host's", new DOMException('too late', 'TimeoutError'), 'dropped'],
    ['a caller that aborted', new DOMException('enough', 'AbortError'), 'ignored'],
  ])('counts the timeout of %s as overload if the attempt ran for most of it', async (_, reason, outcome) => {
    const { hooks, of } = recorder();
    const gate = new ServiceGate({ name: 'llm', hooks, adaptive: { initial: 20 } });
    const { outcomes } = learnedBy(gate);
    const control = new AbortController();
    const call = follow(gate.run(() => new Promise(() => {}), { signal: control.signal }));
    await vi.advanceTimersByTimeAsync(100);
    control.abort(reason);
    await settled();
    expect(call.now).toEqual({ is: 'rejected', reason });
    expect(outcomes()).toEqual([outcome]);
    const isTimeout = reason.name !== 'AbortError';
    expect(of('call:finished')).toMatchObject([{ outcome: isTimeout ? 'timeout' : 'aborted' }]);
  });

  it.each([
    ['a tool', new ToolTimeoutError('mainAgent', 'search', 100)],
    ["a signal of the host's", new DOMException('too late', 'TimeoutError')],
  ])(
    'does not count the timeout of %s as overload if the call was queued for most of it',
    async (_, reason) => {
      const { hooks, of } = recorder();
      const gate = new ServiceGate({ name: 'llm', hooks, adaptive: { initial: 1, max: 1 } });
      const { outcomes } = learnedBy(gate);
      const control = new AbortController();
      const first = deferred();
      follow(gate.run(() => first.promise));
      follow(gate.run(() => new Promise(() => {}), { signal: control.signal }));
      await vi.advanceTimersByTimeAsync(60);
      first.resolve();
      await vi.advanceTimersByTimeAsync(40);
      control.abort(reason);
      await settled();
      expect(outcomes()).toEqual(['ok', 'ignored']);
      expect(of('call:finished')).toMatchObject([{ outcome: 'ok' }, { outcome: 'timeout' }]);
    },
  );

  it.each([
    ["a bug of the host's", () => Promise.reject(new TypeError('bug'))],
    ['a bad request', () => Promise.reject(httpError(400))],
    ['a missing page', () => Promise.reject(httpError(404))],
    ['an exhausted quota', () => Promise.reject(httpError(402))],
    ['a bare 500', () => Promise.reject(httpError(500))],
  ])('keeps its limit on %s', async (_, end) => {
    const gate = new ServiceGate({ name: 'llm', adaptive: { initial: 4 }, retry: { attempts: 1 } });
    await wave(gate, 4, end);
    expect(limitOf(gate)).toBe(4);
  });

  it('does not count calls that wait for a rate window as in-flight', async () => {
    const gate = new ServiceGate({
      name: 'llm',
      adaptive: { initial: 4 },
      rate: [{ limit: 1, perMs: 100 }],
    });
    const calls = Array.from({ length: 30 }, () => gate.run(() => 'fine'));
    await vi.advanceTimersByTimeAsync(10_000);
    await Promise.all(calls);
    expect(limitOf(gate)).toBe(4);
  });

  it('reports the first item of a stream as it comes, and its end with the tokens that were generated', async () => {
    const gate = new ServiceGate({ name: 'llm', adaptive: { initial: 1 } });
    const { learned } = learnedBy(gate);
    const stream = gate.stream(async function* () {
      yield { choices: [] };
      yield { choices: [], usage: { completion_tokens: 7, total_tokens: 90 } };
    });
    await stream.next();
    expect(learned).toEqual(['first item']);
    await stream.next();
    await stream.next();
    expect(learned).toEqual(['first item', { outcome: 'ok', usage: 7 }]);
    expect(limitOf(gate)).toBe(2);
  });

  it('reports how many items a stream had that says nothing of tokens', async () => {
    const gate = new ServiceGate({ name: 'llm', adaptive: { initial: 1 } });
    const { learned } = learnedBy(gate);
    const stream = gate.stream(async function* () {
      yield* [1, 2, 3];
    });
    for await (const item of stream) expect(item).toBeGreaterThan(0);
    expect(learned).toEqual(['first item', { outcome: 'ok', usage: 3 }]);
  });

  it.each([
    ['OpenAI', { usage: { completion_tokens: 5, total_tokens: 80 } }, 5],
    ['Responses API', { type: 'response.completed', response: { usage: { output_tokens: 6 } } }, 6],
    ['Anthropic', { usage: { input_tokens: 70, output_tokens: 8 } }, 8],
    ['Gemini', { usageMetadata: { candidatesTokenCount: 9 } }, 9],
    ['tokens that are none', { usage: { completion_tokens: Number.NaN } }, undefined],
  ])('reports the tokens that a plain call generated: %s', async (_, result, usage) => {
    const gate = new ServiceGate({ name: 'llm', adaptive: {} });
    const { learned } = learnedBy(gate);
    await gate.run(() => result);
    expect(learned).toEqual([{ outcome: 'ok', usage }]);
  });

  it('reports what `usage` reads where nothing says how many tokens were generated', async () => {
    const gate = new ServiceGate({ name: 'llm', adaptive: {}, usage: () => 12 });
    const { learned } = learnedBy(gate);
    await gate.run(() => 'fine');
    expect(learned).toEqual([{ outcome: 'ok', usage: 12 }]);
  });

  it('neither loses a call nor a permit to a clock of the host that throws', async () => {
    let isBroken = false;
    const now = () => {
      if (isBroken) throw new Error('clock');
      return 0;
    };
    const gate = new ServiceGate({ name: 'llm', adaptive: { now } });
    const call = gate.run(() => 'fine');
    isBroken = true;
    expect(await call).toBe('fine');
    expect(gate.stats()).toMatchObject({ running: 0, limiter: { active: 0 } });
    expect(gate.adaptive!.limit).toBe(8);
  });

  it.each([
    ['waited for an item', (stream: AsyncIterator<number>) => follow(stream.next()), ['dropped']],
    ['did something else', () => {}, ['ok']],
  ])('counts the timeout of a stream as overload or not: its reader %s', async (_, read, expected) => {
    const gate = new ServiceGate({ name: 'llm', adaptive: { initial: 20 } });
    const { outcomes } = learnedBy(gate);
    const stream = gate.stream(
      async function* () {
        yield 1;
        await new Promise(() => {});
      },
      { timeoutMs: 100 },
    );
    await stream.next();
    read(stream);
    await vi.advanceTimersByTimeAsync(100);
    expect(outcomes()).toEqual(expected);
  });

  it('counts a stream that its reader leaves as one that the service served', async () => {
    const gate = new ServiceGate({ name: 'llm', adaptive: { initial: 20 } });
    const { outcomes } = learnedBy(gate);
    const control = new AbortController();
    const stream = gate.stream(
      async function* () {
        yield 1;
        await new Promise(() => {});
      },
      { signal: control.signal },
    );
    await stream.next();
    follow(stream.next());
    await vi.advanceTimersByTimeAsync(100);
    control.abort();
    await settled();
    expect(outcomes()).toEqual(['ok']);
  });

  it('follows a limit that the host updates', async () => {
    const adaptive = new AdaptiveLimit({ initial: 20 });
    const gate = new ServiceGate({ name: 'llm', adaptive });
    adaptive.onGauge(3);
    expect(limitOf(gate)).toBe(17);
    await settled();
  });

  it('keeps the permits within the limit as it falls, and admits no call before one is free', async () => {
    const gate = new ServiceGate({ name: 'llm', adaptive: { initial: 10 }, retry: { attempts: 1 } });
    let inFlight = 0;
    let most = 0;
    const call = () =>
      follow(
        gate.run(async () => {
          most = Math.max(most, ++inFlight);
          await new Promise((resolve) => setTimeout(resolve, 50));
          inFlight--;
          if (inFlight >= 4) throw httpError(503);
        }),
      );
    for (let i = 0; i < 60; i++) call();
    await vi.advanceTimersByTimeAsync(60_000);
    expect(most).toBe(10);
    expect(gate.stats()).toMatchObject({ running: 0, limiter: { active: 0, queued: 0 } });
  });
});
