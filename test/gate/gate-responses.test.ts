import { PassThrough, Readable } from 'node:stream';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { openAiPreset } from '../../src/gate/llm-presets.js';
import { jinaPreset } from '../../src/gate/presets.js';
import { discardResponse } from '../../src/gate/response-content.js';
import { ServiceGate } from '../../src/gate/service-gate.js';
import type { Limiter } from '../../src/limiter/limiter.js';
import { settled } from '../support/fake-timers.js';
import { recorder } from '../support/hooks.js';
import { deferred, follow } from '../support/promises.js';

beforeEach(() => {
  vi.useFakeTimers();
  vi.spyOn(Math, 'random').mockReturnValue(0);
});
afterEach(() => {
  vi.useRealTimers();
  vi.restoreAllMocks();
});

/** A response as node-fetch gives it: its body is a Node.js stream. */
function nodeFetchResponse(status: number) {
  const body = new PassThrough();
  return { status, ok: status < 400, headers: new Map<string, string>(), body, bodyUsed: false };
}

describe('a Response whose body is a Node.js stream', () => {
  it('is destroyed if another attempt follows, and holds no permit', async () => {
    const gate = new ServiceGate({ name: 'search', maxConcurrent: 1 });
    const failed = nodeFetchResponse(500);
    const signals: AbortSignal[] = [];
    const call = follow(
      gate.run(({ attempt, signal }) => {
        signals.push(signal);
        return attempt === 1 ? failed : nodeFetchResponse(200);
      }),
    );
    await settled();
    expect(call.now).toMatchObject({ is: 'fulfilled', value: { status: 200 } });
    expect(failed.body.destroyed).toBe(true);
    // Destroying what node-fetch 2 pipes into does not end its request; its signal does.
    expect(signals.map((signal) => signal.aborted)).toEqual([true, false]);
    expect(gate.stats()).toMatchObject({ running: 0, limiter: { active: 0 }, keys: [{ inUse: 0 }] });
  });

  it('is destroyed if it arrives after the timeout', async () => {
    const gate = new ServiceGate({
      name: 'search',
      maxConcurrent: 1,
      attemptTimeoutMs: 100,
      retry: { attempts: 1 },
    });
    const late = deferred<ReturnType<typeof nodeFetchResponse>>();
    const call = follow(gate.run(() => late.promise));
    await vi.advanceTimersByTimeAsync(100);
    expect(call.now.is).toBe('rejected');
    const response = nodeFetchResponse(200);
    late.resolve(response);
    await settled();
    expect(response.body.destroyed).toBe(true);
    expect(gate.stats()).toMatchObject({ running: 0, limiter: { active: 0 }, keys: [{ inUse: 0 }] });
  });
});

describe('discardResponse', () => {
  it('destroys a body that is a Node.js stream, also if destroy throws', async () => {
    const of = (body: unknown) => ({ status: 500, ok: false, headers: new Headers(), body, bodyUsed: false });
    const body = new PassThrough();
    discardResponse(of(body));
    expect(body.destroyed).toBe(true);
    const failing = new Readable({ destroy: (_, done) => done(new Error('cannot')) });
    discardResponse(of(failing));
    await new Promise((resolve) => failing.on('close', resolve));
    expect(failing.errored).toBeInstanceOf(Error);
  });

  it('ignores what it cannot discard, and never throws', () => {
    const broken = (body: object) => ({ status: 500, ok: false, headers: new Headers(), body });
    const fails = () => {
      throw new Error('cannot');
    };
    for (const body of [{}, { cancel: fails }, { destroy: fails }, { cancel: 1 }])
      discardResponse(broken(body));
    discardResponse(Object.defineProperty(broken({}), 'body', { get: fails }));
  });
});

describe('a Response whose body the classifier reads', () => {
  const json = { headers: { 'content-type': 'application/json' } };

  /** A JSON body that arrives after so many milliseconds, or breaks off then, and whether it was cancelled. */
  function slowBody(afterMs: number, end: string | Error, signal?: AbortSignal) {
    const cancel = vi.fn();
    const body = new ReadableStream<Uint8Array>({
      start(controller) {
        signal?.addEventListener('abort', () => controller.error(signal.reason));
        setTimeout(() => {
          if (typeof end !== 'string') return controller.error(end);
          controller.enqueue(new TextEncoder().encode(end));
          controller.close();
        }, afterMs);
      },
      cancel,
    });
    return { response: new Response(body, json), cancel };
  }
  const page = JSON.stringify({ code: 200, data: { content: 'a page' } });
  const oneAtATime = (options: object = {}) => {
    const { hooks, of } = recorder();
    const gate = new ServiceGate({ name: 'jina', hooks, ...jinaPreset(), maxConcurrent: 1, ...options });
    const expectAllFree = () =>
      expect(gate.stats()).toMatchObject({ running: 0, limiter: { active: 0 }, keys: [{ inUse: 0 }] });
    return { gate, of, expectAllFree };
  };

  it.each([
    ['the time of the headers', '{}', [[0, 3_000]]],
    [
      'a longer time',
      '{"retry_after":9}',
      [
        [0, 3_000],
        [500, 9_000],
      ],
    ],
  ])('begins its cooldown with the headers, and again only for a new time: %s', async (_, body, expected) => {
    const { hooks } = recorder();
    const started = performance.now();
    const cooldowns: number[][] = [];
    hooks.on('key:cooldown', ({ retryAfterMs }) => {
      cooldowns.push([performance.now() - started, retryAfterMs]);
    });
    const gate = new ServiceGate({
      name: 'llm',
      hooks,
      retry: { attempts: 1 },
      classify: async (observed) => {
        if (!('value' in observed)) return undefined;
        await new Promise((resolve) => setTimeout(resolve, 500));
        const { retry_after } = JSON.parse(body);
        if (retry_after === undefined) return undefined;
        return { class: 'rate-limited', retryAfterMs: retry_after * 1_000 };
      },
    });
    const call = gate.run(() => new Response(body, { status: 429, headers: { 'retry-after': '3' } }));
    await vi.advanceTimersByTimeAsync(500);
    expect((await call).status).toBe(429);
    expect(cooldowns).toEqual(expected);
  });

  it('may take up to attemptTimeoutMs', async () => {
    const { gate, of, expectAllFree } = oneAtATime();
    const call = follow(gate.run(() => slowBody(7_000, page).response));
    await vi.advanceTimersByTimeAsync(6_999);
    expect(call.now.is).toBe('pending');
    await vi.advanceTimersByTimeAsync(1);
    expect(of('call:finished')).toMatchObject([{ outcome: 'ok', durationMs: 7_000 }]);
    const { value } = call.now as { value: Response };
    await expect(value.json()).resolves.toMatchObject({ data: { content: 'a page' } });
    expectAllFree();
  });

  it('ends with the timeout of its attempt, which counts as dropped and is retried', async () => {
    const release = vi.fn();
    const limiter = {
      acquire: async () => ({ weight: 1, waitMs: 0, release, [Symbol.dispose]() {} }),
      stats: () => ({}),
    } as unknown as Limiter;
    const gate = new ServiceGate({ name: 'jina', ...jinaPreset(), limiter, attemptTimeoutMs: 10_000 });
    const signals: AbortSignal[] = [];
    const call = follow(
      gate.run(({ attempt, signal }) => {
        signals.push(signal);
        return attempt === 1 ? slowBody(3_600_000, page, signal).response : new Response(page, json);
      }),
    );
    await vi.advanceTimersByTimeAsync(9_999);
    expect([call.now.is, signals[0]!.aborted]).toEqual(['pending', false]);
    await vi.advanceTimersByTimeAsync(1);
    expect(call.now.is).toBe('fulfilled');
    expect(signals[0]!.reason).toMatchObject({ code: 'ERR_GATE_TIMEOUT', scope: 'attempt' });
    expect(release.mock.calls).toEqual([['dropped'], ['ok']]);
  });

  it('counts as a network failure if it breaks off', async () => {
    const { gate, of, expectAllFree } = oneAtATime({ retry: { attempts: 2 } });
    const broken = Object.assign(new TypeError('terminated'), { cause: { code: 'UND_ERR_SOCKET' } });
    const bodies = [slowBody(10, broken), slowBody(10, page), slowBody(10, broken), slowBody(10, broken)];
    const read = () => bodies.shift()!.response;
    const first = follow(gate.run(read));
    await vi.advanceTimersByTimeAsync(20);
    expect(first.now).toMatchObject({ is: 'fulfilled', value: { ok: true } });
    const second = follow(gate.run(read));
    await vi.advanceTimersByTimeAsync(20);
    expect(second.now).toEqual({ is: 'rejected', reason: broken });
    expect(of('call:finished').map((event) => event.outcome)).toEqual(['ok', 'retryable']);
    expectAllFree();
  });

  it('ends at once when the caller aborts, and is discarded', async () => {
    const { gate, expectAllFree } = oneAtATime();
    const control = new AbortController();
    const body = slowBody(7_000, page);
    const call = follow(gate.run(() => body.response, { signal: control.signal }));
    await settled();
    control.abort('enough');
    for (let i = 0; i < 30; i++) await Promise.resolve();
    expect(call.now).toEqual({ is: 'rejected', reason: 'enough' });
    await vi.advanceTimersByTimeAsync(7_000);
    expectAllFree();
  });

  it('is discarded if the classifier outlasts its timeout', async () => {
    const asked = deferred<'ok'>();
    const deaf = oneAtATime({
      classify: ({ kind }: { kind: string }) => (kind === 'result' ? asked.promise : undefined),
      attemptTimeoutMs: 100,
      retry: { attempts: 1 },
    });
    const late = slowBody(3_600_000, page);
    const call = follow(deaf.gate.run(() => late.response));
    await vi.advanceTimersByTimeAsync(100);
    expect(call.now).toMatchObject({ is: 'rejected' });
    asked.resolve('ok');
    await settled();
    expect(late.cancel).toHaveBeenCalledTimes(1);
    deaf.expectAllFree();
  });

  it.each([
    ['is no JSON after all', () => new Response('<html>', json)],
    ['has been read', () => new Response(page, json).clone()],
    ['is being read', () => new Response(page, json)],
  ])('does not change the outcome if it %s', async (what, make) => {
    const { gate, of } = oneAtATime();
    await gate.run(async () => {
      const response = make();
      if (what === 'has been read') await response.text();
      if (what === 'is being read') response.body!.getReader();
      return response;
    });
    expect(of('call:finished')).toMatchObject([{ outcome: 'ok' }]);
  });

  it('is not read if it is a Node.js stream, unless its status is a failure: copying a long one stalls', async () => {
    const { gate, of } = oneAtATime({ retry: { attempts: 1 } });
    const clone = vi.fn(() => ({
      text: async () => '{"code":402,"data":null,"name":"InsufficientBalanceError"}',
    }));
    const respond = (status: number) => ({
      ...nodeFetchResponse(status),
      headers: new Headers(json.headers),
      clone,
    });
    await gate.run(() => respond(200));
    expect(clone).not.toHaveBeenCalled();
    await gate.run(() => respond(400));
    expect(of('call:finished')).toMatchObject([{ outcome: 'ok' }, { outcome: 'quota-exhausted' }]);
  });
});

describe('headers that throw when they are read', () => {
  const boom = (): never => {
    throw new Error('unreadable');
  };
  it.each<[string, object]>([
    ['in `get`', { get: boom }],
    ['in `keys`', { get: () => null, keys: boom }],
    ['in a field', Object.defineProperty({}, 'retry-after', { get: boom, enumerable: true })],
    ['when they are listed', new Proxy({}, { ownKeys: boom })],
  ])('%s leave the caller what the attempt returned or threw', async (_, headers) => {
    for (const preset of [{}, openAiPreset()]) {
      const gate = new ServiceGate({ name: 'llm', ...preset, retry: { attempts: 1 } });
      const thrown = Object.assign(new Error('slow down'), { status: 429, headers });
      await expect(gate.run(() => Promise.reject(thrown))).rejects.toBe(thrown);
      const other = new ServiceGate({ name: 'llm', ...preset, retry: { attempts: 1 } });
      const returned = { status: 500, ok: false, headers };
      await expect(other.run(() => returned)).resolves.toBe(returned);
    }
  });
});

describe('a page in place of a response, without a preset', () => {
  it.each([401, 402, 403])('under %i takes no key out of use, whatever its headers say', async (status) => {
    const gate = new ServiceGate({ name: 'search', keys: ['a', 'b'], retry: { attempts: 1 } });
    const response = await gate.run(() => new Response('<!DOCTYPE html><p>Access denied', { status }));
    expect(gate.stats().keys.map(({ state }) => state)).toEqual(['ready', 'ready']);
    // The caller can still read it.
    await expect(response.text()).resolves.toContain('Access denied');
    await gate.run(() => new Response('denied', { status, headers: { 'content-type': 'text/html' } }));
    await gate.run(
      () => new Response('<html>denied', { status, headers: { 'content-type': 'application/json' } }),
    );
    expect(gate.stats().keys.map(({ state }) => state)).toEqual(['ready', 'ready']);
  });

  it.each(['denied', '{"error":"denied"}', ''])('is none where the service says %j', async (body) => {
    const gate = new ServiceGate({ name: 'search', keys: ['a', 'b'], retry: { attempts: 1 } });
    await gate.run(() => new Response(body, { status: 401 })).catch(() => {});
    expect(gate.stats().keys.map(({ state }) => state)).toContain('quarantined');
  });

  it('is one also where a classifier leaves it to the default', async () => {
    const gate = new ServiceGate({
      name: 'search',
      keys: ['a'],
      retry: { attempts: 1 },
      classify: () => undefined,
    });
    await gate.run(() => new Response('<html>', { status: 403 }));
    expect(gate.stats().keys[0]?.state).toBe('ready');
  });
});
