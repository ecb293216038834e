import { PassThrough, Readable } from 'node:stream';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { discardResponse } from '../../src/gate/outcome.js';
import { jinaPreset } from '../../src/gate/presets.js';
import { ServiceGate } from '../../src/gate/service-gate.js';
import type { Limiter } from '../../src/limiter/limiter.js';
import { deferred, follow, recorder, settle } from './support.js';

beforeEach(() => {
  vi.useFakeTimers();
  vi.spyOn(Math, 'random').mockReturnValue(0);
});
afterEach(() => {
  vi.useRealTimers();
  vi.restoreAllMocks();
});

/** A response as node-fetch gives it: its body is a stream of Node's. */
function nodeFetchResponse(status: number) {
  const body = new PassThrough();
  return { status, ok: status < 400, headers: new Map<string, string>(), body, bodyUsed: false };
}

describe('a Response whose body is a stream of Node', () => {
  it('is destroyed where another attempt follows, and keeps no permit', async () => {
    const gate = new ServiceGate({ name: 'search', maxConcurrent: 1 });
    const failed = nodeFetchResponse(500);
    const signals: AbortSignal[] = [];
    const call = follow(
      gate.run(({ attempt, signal }) => {
        signals.push(signal);
        return attempt === 1 ? failed : nodeFetchResponse(200);
      }),
    );
    await settle();
    expect(call.now).toMatchObject({ is: 'fulfilled', value: { status: 200 } });
    expect(failed.body.destroyed).toBe(true);
    // Destroying what node-fetch 2 pipes into does not end its request; its signal does.
    expect(signals.map((signal) => signal.aborted)).toEqual([true, false]);
    expect(gate.stats()).toMatchObject({ running: 0, limiter: { active: 0 }, keys: [{ inUse: 0 }] });
  });

  it('is destroyed where it comes too late', async () => {
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
    await settle();
    expect(response.body.destroyed).toBe(true);
    expect(gate.stats()).toMatchObject({ running: 0, limiter: { active: 0 }, keys: [{ inUse: 0 }] });
  });
});

describe('discardResponse', () => {
  it('destroys a body that is a stream of Node, also one that fails at that', async () => {
    const of = (body: unknown) => ({ status: 500, ok: false, headers: new Headers(), body, bodyUsed: false });
    const body = new PassThrough();
    discardResponse(of(body));
    expect(body.destroyed).toBe(true);
    const failing = new Readable({ destroy: (_, done) => done(new Error('cannot')) });
    discardResponse(of(failing));
    await new Promise((resolve) => failing.on('close', resolve));
    expect(failing.errored).toBeInstanceOf(Error);
  });

  it('leaves alone what it cannot free, and never throws', () => {
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

  /** A JSON body that comes after so many milliseconds, or breaks off then, and whether it was cancelled. */
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

  it('may take as long as an attempt may', async () => {
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

  it('is over with its attempt, which counts as dropped, and is tried again', async () => {
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

  it('that breaks off is a failure like any other of the network', async () => {
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
    expect(of('call:finished').map((told) => told.outcome)).toEqual(['ok', 'wait']);
    expectAllFree();
  });

  it('ends at once by an abort of the caller, and is freed', async () => {
    const { gate, expectAllFree } = oneAtATime();
    const control = new AbortController();
    const body = slowBody(7_000, page);
    const call = follow(gate.run(() => body.response, { signal: control.signal }));
    await settle();
    control.abort('enough');
    for (let i = 0; i < 30; i++) await Promise.resolve();
    expect(call.now).toEqual({ is: 'rejected', reason: 'enough' });
    await vi.advanceTimersByTimeAsync(7_000);
    expectAllFree();
  });

  it('is freed where the classifier goes on when its time is up', async () => {
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
    await settle();
    expect(late.cancel).toHaveBeenCalledTimes(1);
    deaf.expectAllFree();
  });

  it.each([
    ['is no JSON after all', () => new Response('<html>', json)],
    ['has been read', () => new Response(page, json).clone()],
    ['is being read', () => new Response(page, json)],
  ])('tells nothing where it %s', async (what, make) => {
    const { gate, of } = oneAtATime();
    await gate.run(async () => {
      const response = make();
      if (what === 'has been read') await response.text();
      if (what === 'is being read') response.body!.getReader();
      return response;
    });
    expect(of('call:finished')).toMatchObject([{ outcome: 'ok' }]);
  });

  it('is not read where it is a stream of Node, unless it failed: the copy of a long one would stall', async () => {
    const { gate, of } = oneAtATime({ retry: { attempts: 1 } });
    const clone = vi.fn(() => ({
      text: async () => '{"code":402,"data":null,"name":"InsufficientBalanceError"}',
    }));
    const answer = (status: number) => ({
      ...nodeFetchResponse(status),
      headers: new Headers(json.headers),
      clone,
    });
    await gate.run(() => answer(200));
    expect(clone).not.toHaveBeenCalled();
    await gate.run(() => answer(400));
    expect(of('call:finished')).toMatchObject([{ outcome: 'ok' }, { outcome: 'key-spent' }]);
  });
});
