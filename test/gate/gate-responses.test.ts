import { PassThrough, Readable } from 'node:stream';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { discardResponse } from '../../src/gate/outcome.js';
import { ServiceGate } from '../../src/gate/service-gate.js';
import { deferred, follow, settle } from './support.js';

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
