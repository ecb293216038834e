import { Readable } from 'node:stream';
import { apiKeyHeader, bearer, createPipelineManager, ServiceGate } from 'pipeline-pool';
import { describe, expect, it, onTestFinished, vi } from 'vitest';
import type { GateFetchOptions } from '../../src/gate/fetch.js';
import type { CachedResponse } from '../../src/gate/fetch-response.js';
import { onFakeTimers, settled } from '../support/fake-timers.js';
import { hastyGate, type LimitedGateOptions, learnedBy } from '../support/gates.js';
import { deferred, endOfTurn, follow, microtasks } from '../support/promises.js';
import { countListeners } from '../support/signals.js';

onFakeTimers();

const JSON_TYPE = { 'content-type': 'application/json' };
const EVENTS = { 'content-type': 'text/event-stream' };
const URL_OF = 'https://llm.example/v1';

const json = (value: unknown, init: ResponseInit = {}) =>
  new Response(JSON.stringify(value), { headers: JSON_TYPE, ...init });
const events = (...values: readonly unknown[]) =>
  new Response(values.map((value) => `data: ${JSON.stringify(value)}\n\n`).join(''), { headers: EVENTS });

/** A response whose chunks a test sends, and whose source counts how often it was read and cancelled. */
function scripted(headers: Record<string, string> = {}) {
  const cancel = vi.fn();
  const pull = vi.fn();
  let controller!: ReadableStreamDefaultController<Uint8Array>;
  const start = (given: ReadableStreamDefaultController<Uint8Array>): void => {
    controller = given;
  };
  const response = new Response(new ReadableStream({ start, pull, cancel }, { highWaterMark: 0 }), {
    headers,
  });
  const send = (text: string): void => controller.enqueue(new TextEncoder().encode(text));
  return {
    response,
    send,
    end: () => controller.close(),
    fail: (e: Error) => controller.error(e),
    cancel,
    pull,
  };
}

/** A gate with one permit, in front of a service that answers by `answer`. */
function gated(
  answer: (url: string, init: RequestInit & { headers: Headers; signal: AbortSignal }) => unknown,
  fetchOptions: GateFetchOptions = {},
  options: LimitedGateOptions = {},
) {
  const service = vi.fn(async (url: string, init: RequestInit) => answer(url, init as never));
  const { gate, of, held } = hastyGate(options);
  const expectAllFree = async (): Promise<void> => {
    await settled();
    const { calls, running, limiter, keys, finished } = gate.stats();
    expect({ running, active: limiter?.active, inUse: keys.map(({ inUse }) => inUse) }).toEqual({
      running: 0,
      active: 0,
      inUse: keys.map(() => 0),
    });
    expect(Object.values(finished).reduce((sum, count) => sum + count, 0)).toBe(calls);
    expect(vi.getTimerCount()).toBe(0);
  };
  const fetch = gate.fetch({ fetch: service, ...fetchOptions });
  return { gate, service, of, expectAllFree, fetch, held };
}

describe('the options of gate.fetch', () => {
  const gate = new ServiceGate({ name: 'llm' });
  it.each<[object, RegExp]>([
    [{ fetch: 7 }, /`fetch` to be a function, got 7/],
    [{ authorize: 'Bearer' }, /`authorize` to be a function/],
    [{ options: {} }, /`options` to be a function/],
    [{ usage: 1 }, /`usage` to be a function/],
    [{ bodyIdleTimeoutMs: 0 }, /`bodyIdleTimeoutMs` to be a number from 1 .*got 0/],
    [{ maxReplayBytes: -1 }, /`maxReplayBytes` to be a whole number from 0, got -1/],
    [{ rejections: 'reject' }, /`rejections` to be one of "response", "throw", got "reject"/],
    [{ timeoutMs: 1 }, /Unknown option `timeoutMs` in fetch/],
  ])('are checked at once: %j', (options, message) => {
    expect(() => gate.fetch(options as GateFetchOptions)).toThrow(message);
  });

  it('include `authorize` where the gate has keys, which nothing else would send', () => {
    const gate = new ServiceGate({ name: 'llm', keys: ['key-a'] });
    expect(() => gate.fetch()).toThrow('Expected `authorize (the gate has keys)` to be a function');
  });

  it('name a header that exists', () => {
    expect(() => apiKeyHeader('a b')).toThrow(TypeError);
    expect(() => apiKeyHeader('')).toThrow(/`name` to be a non-empty string/);
  });

  it('keep the global fetch of the moment, so that the gated one can take its place', async () => {
    const original = globalThis.fetch;
    const service = vi.fn(async () => new Response('once'));
    globalThis.fetch = service;
    try {
      globalThis.fetch = gate.fetch();
      expect(await (await globalThis.fetch(URL_OF)).text()).toBe('once');
      expect(service).toHaveBeenCalledTimes(1);
    } finally {
      globalThis.fetch = original;
    }
  });

  it('put the key of each attempt where the service expects it', async () => {
    const sent: (string | null)[][] = [];
    const answer = (_: string, { headers }: { headers: Headers }) => {
      sent.push([headers.get('authorization'), headers.get('x-api-key')]);
      return json({}, { status: sent.length % 2 === 1 ? 401 : 200 });
    };
    for (const authorize of [bearer, apiKeyHeader('x-api-key')]) {
      const { fetch } = gated(answer, { authorize }, { keys: ['key-a', 'key-b'] });
      await (await fetch(URL_OF, { headers: { Authorization: 'Bearer own', 'X-Api-Key': 'own' } })).text();
    }
    expect(sent).toEqual([
      ['Bearer key-a', 'own'],
      ['Bearer key-b', 'own'],
      ['Bearer own', 'key-a'],
      ['Bearer own', 'key-b'],
    ]);
  });

  it('leave the own key of the client in place at a gate without keys', async () => {
    const { fetch, service } = gated(() => json({}), { authorize: bearer });
    await (await fetch(URL_OF, { headers: { authorization: 'Bearer own' } })).text();
    expect((service.mock.calls[0]![1] as { headers: Headers }).headers.get('authorization')).toBe(
      'Bearer own',
    );
  });

  it('set the options of each call by its request', async () => {
    const requests: unknown[] = [];
    const { fetch, gate, of } = gated(
      () => json({}),
      {
        options: ({ url, method, headers, json: body }) => {
          requests.push([url, method, headers.get('x-a'), body]);
          return { taskId: 't1', tenant: 'a', weight: 7 };
        },
      },
      { rate: [{ limit: 10, perMs: 1_000, unit: 'weight' }] },
    );
    await (await fetch(URL_OF, { method: 'post', headers: { 'x-a': 'b' }, body: '{"n":1}' })).text();
    const request = new Request(URL_OF, { method: 'PUT', body: '{"n":2}' });
    const second = fetch(request);
    await settled();
    expect(gate.stats().queuedForStart).toBe(1);
    await vi.advanceTimersByTimeAsync(1_000);
    await (await second).text();
    expect(requests).toEqual([
      [URL_OF, 'POST', 'b', { n: 1 }],
      [URL_OF, 'PUT', null, { n: 2 }],
    ]);
    expect(of('call:finished')).toMatchObject([{ taskId: 't1', tenant: 'a' }, {}]);
  });

  it.each<[string, GateFetchOptions]>([
    [
      '`options` throws',
      {
        options: () => {
          throw new TypeError('mine');
        },
      },
    ],
    ['`options` returns a promise', { options: (async () => ({})) as never }],
    ['`options` returns an unknown option', { options: () => ({ wieght: 1 }) as never }],
    [
      '`authorize` throws',
      {
        authorize: () => {
          throw new TypeError('mine');
        },
      },
    ],
    [
      '`authorize` returns a promise',
      {
        authorize: (async () => {
          throw new Error('late');
        }) as never,
      },
    ],
    ['`fetch` returns no Response', { fetch: async () => 'text' }],
    [
      '`fetch` throws',
      {
        fetch: () => {
          throw new TypeError('mine');
        },
      },
    ],
  ])('reject the call alone when %s', async (_, options) => {
    const { fetch, service, expectAllFree } = gated(
      () => json({}),
      { authorize: bearer, ...options },
      { keys: ['key-a'] },
    );
    const cancel = vi.fn();
    const body = new ReadableStream({ cancel });
    await expect(fetch(URL_OF, { method: 'POST', body, duplex: 'half' } as RequestInit)).rejects.toThrow(
      TypeError,
    );
    expect(service).not.toHaveBeenCalled();
    expect(cancel).toHaveBeenCalledTimes(1);
    await expectAllFree();
  });
});

describe('a call that the gate rejects', () => {
  /** Makes a call that is rejected, and returns what its client gets. */
  const rejected: Record<
    string,
    [status: number, code: string, retryAfter: string, make: (o: GateFetchOptions) => Promise<Response>]
  > = {
    KeysExhaustedError: [
      429,
      'ERR_KEYS_EXHAUSTED',
      '60',
      async (options) => {
        const answer = () => new Response(null, { status: 429, headers: { 'retry-after': '60' } });
        const { fetch } = gated(
          answer,
          { authorize: bearer, ...options },
          { timeoutMs: 1_000, keys: ['key-a'] },
        );
        await fetch(URL_OF);
        return fetch(URL_OF);
      },
    ],
    GateClosedError: [
      503,
      'ERR_GATE_CLOSED',
      '1',
      async (options) => {
        const { gate, fetch } = gated(() => json({}), options);
        await gate.close();
        return fetch(URL_OF);
      },
    ],
    'GateTimeoutError of the call': [
      504,
      'ERR_GATE_TIMEOUT',
      '1',
      async (options) => {
        const { fetch } = gated(() => new Promise(() => {}), options, { timeoutMs: 10 });
        const call = fetch(URL_OF);
        call.catch(() => {});
        await vi.advanceTimersByTimeAsync(10);
        return call;
      },
    ],
    'GateTimeoutError of an attempt': [
      504,
      'ERR_GATE_TIMEOUT',
      '1',
      async (options) => {
        const { fetch } = gated(() => new Promise(() => {}), options, {
          attemptTimeoutMs: 10,
          retry: { attempts: 1 },
        });
        const call = fetch(URL_OF);
        call.catch(() => {});
        await vi.advanceTimersByTimeAsync(10);
        return call;
      },
    ],
  };

  it.each(Object.entries(rejected))('gets a Response: %s', async (_, [status, code, retryAfter, make]) => {
    const response = await make({});
    expect(response.status).toBe(status);
    expect(Object.fromEntries(response.headers)).toMatchObject({
      'content-type': 'application/json',
      'retry-after': retryAfter,
      'x-should-retry': 'false',
    });
    expect(await response.json()).toEqual({
      error: { message: expect.stringContaining('llm'), type: 'pipeline_pool', code },
    });
  });

  it.each(Object.entries(rejected))(
    "gets the error with rejections: 'throw': %s",
    async (_, [, code, , make]) => {
      await expect(make({ rejections: 'throw' })).rejects.toMatchObject({ code, source: 'llm' });
    },
  );

  it('gets a Response of 429 from a limiter whose queue is full', async () => {
    const { ConcurrencyLimiter } = await import('pipeline-pool');
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 1, maxQueue: 0, name: 'shared' });
    const gate = new ServiceGate({ name: 'llm', limiter });
    const permit = await limiter.acquire();
    const response = await gate.fetch({ fetch: async () => json({}) })(URL_OF);
    permit.release();
    expect(response.status).toBe(429);
    expect(await response.json()).toMatchObject({ error: { code: 'ERR_QUEUE_FULL' } });
  });

  it('leaves nothing on its signal', async () => {
    const { gate, fetch } = gated(() => json({}));
    await gate.close();
    const { signal } = new AbortController();
    const listeners = countListeners(signal);
    expect((await fetch(URL_OF, { signal })).status).toBe(503);
    expect(listeners.size).toBe(0);
  });

  it('gets the reason of its own signal, also where that is an error of this library', async () => {
    const { gate, fetch } = gated(() => new Promise(() => {}));
    const other = new ServiceGate({ name: 'other' });
    await other.close();
    const reason = await other.run(() => 1).catch((error: unknown) => error);
    const controller = new AbortController();
    const call = fetch(URL_OF, { signal: controller.signal });
    await settled();
    controller.abort(reason);
    await expect(call).rejects.toBe(reason);
    await vi.advanceTimersByTimeAsync(5_000);
    expect(gate.stats().running).toBe(0);
  });
});

describe('the two clocks of a body', () => {
  it('bound only the waits for the service, and the time in which its consumer reads nothing', async () => {
    const { response, send, end } = scripted();
    const { fetch, expectAllFree } = gated(
      () => response,
      { bodyIdleTimeoutMs: 100 },
      { attemptTimeoutMs: 50, timeoutMs: 200 },
    );
    const reader = (await fetch(URL_OF)).body!.getReader();
    for (let i = 0; i < 5; i++) {
      await vi.advanceTimersByTimeAsync(99);
      const read = reader.read();
      await vi.advanceTimersByTimeAsync(49);
      send('x');
      expect((await read).done).toBe(false);
    }
    const last = reader.read();
    await settled();
    end();
    expect((await last).done).toBe(true);
    await expectAllFree();
  });

  it('cancel a body that is not read any more, without blame on its key', async () => {
    const { response, send, cancel } = scripted();
    const { gate, fetch, of, expectAllFree } = gated(() => response, { bodyIdleTimeoutMs: 100 });
    const reader = (await fetch(URL_OF)).body!.getReader();
    const read = reader.read();
    await settled();
    send('x');
    await read;
    await vi.advanceTimersByTimeAsync(99);
    expect(gate.stats().running).toBe(1);
    await vi.advanceTimersByTimeAsync(1);
    expect(cancel).toHaveBeenCalledTimes(1);
    expect(of('call:finished')).toMatchObject([{ outcome: 'timeout', attempts: 1 }]);
    await expectAllFree();
    await expect(reader.read()).rejects.toMatchObject({
      code: 'ERR_GATE_TIMEOUT',
      scope: 'body',
      timeoutMs: 100,
    });
  });

  it.each<[string, 'ok' | 'dropped', (response: Response) => Promise<unknown>]>([
    ['count a stalled service as overload', 'dropped', (response) => response.text()],
    ['do not count a stalled reader', 'ok', async () => {}],
  ])('%s', async (_, outcome, use) => {
    const gate = new ServiceGate({ name: 'llm', adaptive: { max: 4 }, attemptTimeoutMs: 100 });
    const { learned } = learnedBy(gate);
    const fetch = gate.fetch({ fetch: async () => scripted().response, bodyIdleTimeoutMs: 100 });
    const used = follow(use(await fetch(URL_OF)));
    await vi.advanceTimersByTimeAsync(100);
    expect(used.now.is).not.toBe('pending');
    expect(learned).toMatchObject([{ outcome }]);
    expect(gate.stats()).toMatchObject({ running: 0, finished: { timeout: 1 } });
  });

  it('give a reader the error of a stalled service', async () => {
    const { response, cancel } = scripted();
    const { fetch, of, expectAllFree } = gated(() => response, {}, { attemptTimeoutMs: 50 });
    const text = follow((await fetch(URL_OF)).text());
    await vi.advanceTimersByTimeAsync(50);
    expect(text.now).toMatchObject({ reason: { code: 'ERR_GATE_TIMEOUT', scope: 'attempt' } });
    expect(cancel).toHaveBeenCalledTimes(1);
    expect(of('call:finished')).toMatchObject([{ outcome: 'timeout' }]);
    await expectAllFree();
  });
});

describe('a body', () => {
  it('is read from the service only while its reader waits', async () => {
    const { response, send, pull } = scripted();
    const { fetch } = gated(() => response);
    const reader = (await fetch(URL_OF)).body!.getReader();
    await settled();
    expect(pull).not.toHaveBeenCalled();
    const read = reader.read();
    await settled();
    send('x');
    await read;
    await settled();
    expect(pull).toHaveBeenCalledTimes(1);
    await reader.cancel();
  });

  it('reports its failure to its key, and leaves nothing behind', async () => {
    const { response, fail } = scripted();
    const { gate, fetch, of, expectAllFree } = gated(() => response);
    const { signal } = new AbortController();
    const listeners = countListeners(signal);
    const text = follow((await fetch(URL_OF, { signal })).text());
    await settled();
    fail(Object.assign(new Error('reset'), { code: 'ECONNRESET' }));
    await settled();
    expect(text.now).toMatchObject({ reason: { code: 'ECONNRESET' } });
    expect(of('call:finished')).toMatchObject([{ outcome: 'retryable', attempts: 1 }]);
    expect(listeners.size).toBe(0);
    expect(gate.stats().finished).toEqual({ retryable: 1 });
    await expectAllFree();
  });

  it.each<[string, () => unknown]>([
    ['of Node.js', () => Readable.from([Buffer.from('a'), Buffer.from('bc')])],
    [
      'of an async generator',
      async function* () {
        yield new Uint8Array([97]);
        yield 'bc';
      },
    ],
  ])('may be a stream %s, as other libraries have it', async (_, body) => {
    const { fetch, expectAllFree } = gated(() => ({
      status: 200,
      ok: true,
      headers: new Headers(),
      body: body(),
    }));
    const response = await fetch(URL_OF);
    expect([response instanceof Response, response.url, await response.text()]).toEqual([true, '', 'abc']);
    await expectAllFree();
  });

  it.each([200, 400])('of which no Response can be made frees its permit, with status %i', async (status) => {
    const { response, cancel } = scripted();
    const broken = {
      status,
      ok: status < 400,
      statusText: 'no\nline',
      headers: new Headers(),
      body: response.body,
    };
    const { fetch, expectAllFree } = gated(() => broken);
    const call = follow(fetch(URL_OF));
    await vi.advanceTimersByTimeAsync(5_000);
    expect(call.now).toMatchObject({ reason: expect.any(TypeError) });
    expect(cancel).toHaveBeenCalledTimes(1);
    await expectAllFree();
  });

  it.each(['text/event-stream', 'text/plain'])(
    'of %s leaves the memory of its chunks alone',
    async (type) => {
      const chunk = new TextEncoder().encode('data: {"a":1}\n\n');
      const stub = async () => {
        const body = new ReadableStream({
          start: (controller) => {
            for (let i = 0; i < 2; i++) controller.enqueue(chunk);
            controller.close();
          },
        });
        return new Response(body, { headers: { 'content-type': type } });
      };
      const fetch = new ServiceGate({ name: 'llm', maxConcurrent: 1 }).fetch({ fetch: stub });
      for (let call = 0; call < 2; call++)
        expect(await (await fetch('http://llm/')).text()).toBe('data: {"a":1}\n\n'.repeat(2));
    },
  );

  it('that comes byte by byte is searched once for its first event', async () => {
    const text = `data: {"text":"${'a'.repeat(20_000)}"}\r\n\r\ndata: [DONE]\n\n`;
    async function* bytes() {
      for (const byte of new TextEncoder().encode(text)) yield Uint8Array.of(byte);
    }
    const { fetch } = gated(() => ({ status: 200, ok: true, headers: new Headers(EVENTS), body: bytes() }));
    const split = vi.spyOn(String.prototype, 'split');
    onTestFinished(() => split.mockRestore());
    const call = fetch(URL_OF);
    await settled();
    expect(await (await call).text()).toBe(text);
    const searched = (split.mock.contexts as string[]).reduce((sum, { length }) => sum + length, 0);
    expect(searched).toBeLessThan(3 * text.length);
  });

  it.each([
    ['\n', '\n'],
    ['\r\n', '\r\n'],
    ['\r\n\r', '\n'],
    ['\n', '\r\n'],
  ])('is returned when its first event is there, whose end %j comes before %j', async (one, other) => {
    const { response, send, end } = scripted(EVENTS);
    const { fetch, expectAllFree } = gated(() => response);
    const call = follow(fetch(URL_OF));
    await settled();
    send(`data: 1${one}`);
    await settled();
    expect(call.now.is).toBe('pending');
    send(other);
    await settled();
    expect(call.now.is).toBe('fulfilled');
    end();
    await ((call.now as { value: unknown }).value as Response).text();
    await expectAllFree();
  });

  it('rejects chunks that are no bytes', async () => {
    const { fetch, expectAllFree } = gated(() => ({
      status: 200,
      ok: true,
      headers: new Headers(),
      body: Readable.from([{ not: 'bytes' }]),
    }));
    await expect((await fetch(URL_OF)).text()).rejects.toThrow(TypeError);
    await expectAllFree();
  });

  it('frees its permit when its service neither sends nor honors the signal', async () => {
    const next = vi.fn(() => new Promise<never>(() => {}));
    const body = { [Symbol.asyncIterator]: () => ({ next, return: () => new Promise<never>(() => {}) }) };
    const { fetch, expectAllFree, held } = gated(() => ({
      status: 200,
      ok: true,
      headers: new Headers(),
      body,
    }));
    const reader = (await fetch(URL_OF)).body!.getReader();
    const read = reader.read();
    await settled();
    const cancelled = reader.cancel();
    await settled();
    expect(held()).toBe(0);
    await vi.advanceTimersByTimeAsync(5_000);
    await Promise.all([cancelled, read]);
    await expectAllFree();
  });

  it.each([
    ['of a response', 200, {}],
    ['of a stream of events', 200, EVENTS],
    ['of a response for the cache', 200, { cacheKey: 'k' }],
    ['of a failure', 422, {}],
  ] as const)('leaves other work its turn while empty chunks %s are skipped', async (_, status, given) => {
    const headers = new Headers('content-type' in given ? given : {});
    let read = 0;
    const body = {
      async *[Symbol.asyncIterator]() {
        for (; read < 5_000; read++) yield new Uint8Array(0);
        yield 'x';
      },
    };
    const { fetch, expectAllFree } = gated(() => ({ status, ok: status < 400, headers, body }), {
      options: () => ('cacheKey' in given ? given : {}),
    });
    const turn = endOfTurn().then(() => read);
    const text = fetch(URL_OF).then((response) => response.text());
    expect(await turn).toBeLessThan(1_000);
    await expect(text).resolves.toBe('x');
    await expectAllFree();
  });

  it('of a failure that stalls ends also where its iterator cannot be ended', async () => {
    const body = { [Symbol.asyncIterator]: () => ({ next: () => new Promise<never>(() => {}) }) };
    const { fetch, expectAllFree } = gated(() => ({ status: 422, ok: false, headers: new Headers(), body }));
    const call = fetch(URL_OF);
    await vi.advanceTimersByTimeAsync(5_000);
    expect([(await call).status, await (await call).text()]).toEqual([422, '']);
    await expectAllFree();
  });

  it('drops the length of a body that was cut off', async () => {
    const long = 'x'.repeat(200_000);
    const { fetch } = gated(
      () => new Response(long, { status: 400, headers: { 'content-length': '200000' } }),
    );
    const response = await fetch(URL_OF);
    expect(response.headers.get('content-length')).toBeNull();
  });

  it('of a failure that stalls is waited for in limited time', async () => {
    const { response, send } = scripted();
    const { fetch, expectAllFree } = gated(() => new Response(response.body, { status: 422 }));
    const call = fetch(URL_OF);
    await settled();
    send('part');
    await vi.advanceTimersByTimeAsync(5_000);
    const answer = await call;
    expect([answer.status, await answer.text()]).toEqual([422, 'part']);
    await expectAllFree();
  });
});

describe('the current request', () => {
  const managerOf = () =>
    createPipelineManager({ config: { poolSize: 1, maxConcurrentRequests: 1 }, create: () => ({}) });

  it('ends its calls also where `options` sets a signal', async () => {
    const { response, cancel } = scripted();
    const { signal } = new AbortController();
    const { fetch, expectAllFree } = gated(() => response, { options: () => ({ signal }) });
    const manager = managerOf();
    const left = await manager.run('t1', () => fetch(URL_OF));
    await manager.shutdown();
    await expectAllFree();
    expect(cancel).toHaveBeenCalledTimes(1);
    await expect(left.text()).rejects.toMatchObject({ name: 'AbortError' });
  });

  it('is named in the events, and ends the bodies that its calls left open', async () => {
    const { response, cancel } = scripted();
    const { fetch, of, expectAllFree } = gated(() => response);
    const manager = managerOf();
    const left = await manager.run('t1', () => fetch(URL_OF, { signal: new AbortController().signal }), {
      tenant: 'a',
    });
    await manager.shutdown();
    await expectAllFree();
    expect(cancel).toHaveBeenCalledTimes(1);
    expect(of('call:started')).toMatchObject([{ taskId: 't1', tenant: 'a' }]);
    expect(of('call:finished')).toMatchObject([{ taskId: 't1', outcome: 'aborted' }]);
    await expect(left.text()).rejects.toMatchObject({ name: 'AbortError' });
  });
});

describe('an abort', () => {
  it.each<[string, () => Response]>([
    ['of a response', () => scripted().response],
    ['of a failure', () => json({}, { status: 400 })],
    ['of a stream of events', () => events(1, 2)],
  ])('in any step %s ends it, and leaves nothing behind', async (_, answer) => {
    for (let steps = 0; steps < 60; steps++) {
      const { fetch, expectAllFree } = gated(answer, {}, { timeoutMs: 1_000 });
      const controller = new AbortController();
      const listeners = countListeners(controller.signal);
      const call = follow(fetch(URL_OF, { signal: controller.signal }));
      await microtasks(steps);
      controller.abort('left');
      await settled();
      expect(listeners.size).toBe(0);
      await expectAllFree();
      const { now } = call;
      if (now.is !== 'fulfilled') expect(now).toEqual({ is: 'rejected', reason: 'left' });
      else if ((now.value as Response).ok) await expect((now.value as Response).text()).rejects.toBe('left');
    }
  });
});

describe('usage', () => {
  const WEIGHT = { rate: [{ limit: 1_000, perMs: 60_000, unit: 'weight' as const }] };
  const usage = (value: unknown) =>
    (value as { usage?: { total_tokens?: number } } | null)?.usage?.total_tokens;
  /** As services say it that count input and output in two events. */
  const inTwoEvents = (value: unknown, previous = 0) => {
    const { message, usage } = value as { message?: { usage: object }; usage?: object };
    const { input_tokens = previous, output_tokens = 0 } = { ...message?.usage, ...usage } as Record<
      string,
      number
    >;
    return input_tokens + output_tokens;
  };
  const used = (gate: ServiceGate) => Math.round((1 - gate.stats().keys[0]!.free) * 1_000);

  it.each<[string, () => Response]>([
    ['a JSON response', () => json({ usage: { total_tokens: 42 } })],
    [
      'the last events of a stream',
      () => events({ n: 1 }, { n: 2 }, { usage: { total_tokens: 42 } }, '[DONE]'),
    ],
  ])('is read from %s when it has been read', async (_, answer) => {
    const { gate, fetch } = gated(answer, { options: () => ({ weight: 500 }) }, { ...WEIGHT, usage });
    const response = await fetch(URL_OF);
    expect(used(gate)).toBe(500);
    await response.text();
    expect(used(gate)).toBe(42);
  });

  it('is read from what `usage` of gate.fetch finds, in place of that of the gate', async () => {
    const { gate, fetch } = gated(
      () => json({ count: 7 }),
      { usage: (value) => (value as { count: number }).count },
      { ...WEIGHT, usage: () => 99 },
    );
    await (await fetch(URL_OF)).text();
    expect(used(gate)).toBe(7);
  });

  it('sums what a service says in the first event and in a late one', async () => {
    const answer = () =>
      events(
        { type: 'message_start', message: { usage: { input_tokens: 40 } } },
        ...Array(50).fill({ type: 'delta' }),
        { usage: { output_tokens: 2 } },
      );
    const { gate, fetch } = gated(
      answer,
      { options: () => ({ weight: 500 }) },
      { ...WEIGHT, usage: inTwoEvents },
    );
    await (await fetch(URL_OF)).text();
    expect(used(gate)).toBe(42);
  });

  it('of a stream that is cancelled leaves an estimate that was not exceeded', async () => {
    const { response, send } = scripted(EVENTS);
    const { gate, fetch } = gated(() => response, { options: () => ({ weight: 100 }) }, { ...WEIGHT, usage });
    const call = fetch(URL_OF);
    await settled();
    send('data: {"usage":{"total_tokens":20}}\n\n');
    const reader = (await call).body!.getReader();
    await reader.read();
    await reader.cancel();
    expect(used(gate)).toBe(100);
  });

  it('is estimated from the request where a window counts it', async () => {
    const estimate = vi.fn((request: unknown) => (request as { max_tokens: number }).max_tokens);
    const { gate, fetch } = gated(() => json({}), {}, { ...WEIGHT, usage, estimate });
    const response = await fetch(URL_OF, { method: 'POST', body: '{"max_tokens":123}' });
    expect([used(gate), estimate.mock.calls]).toEqual([123, [[{ max_tokens: 123 }]]]);
    await response.text();
  });

  it.each(['rate', 'sharedRate'])(
    'is lowered to a new limit of `%s` while its call waits, if it was estimated',
    async (which) => {
      const rateOf = (limit: number) => ({ [which]: [{ limit, perMs: 1_000, unit: 'weight' as const }] });
      const { gate, fetch, expectAllFree } = gated(
        () => json({}),
        {
          options: ({ json: body }) => (body as { given?: object }).given ?? {},
        },
        { ...rateOf(1_000), usage, estimate: () => 900, maxConcurrent: 10 },
      );
      await gate.run(() => {}, { weight: 900 });
      const send = (given?: object) =>
        follow(fetch(URL_OF, { method: 'POST', body: JSON.stringify({ given }) }).then((r) => r.text()));
      const calls = [send(), send({ cacheKey: 'k' }), send({ weight: 900 })];
      await settled();
      gate.setRate(rateOf(200));
      await vi.advanceTimersByTimeAsync(10_000);
      expect(calls.map(({ now }) => now)).toMatchObject([
        { value: '{}' },
        { value: '{}' },
        { value: expect.stringContaining('ERR_KEYS_EXHAUSTED') },
      ]);
      await expectAllFree();
    },
  );

  it.each<[string, (value: unknown) => number]>([
    [
      'throws',
      () => {
        throw new Error('mine');
      },
    ],
    ['returns no number', () => 'many' as never],
    ['returns less than nothing', () => -1],
  ])('that %s changes nothing', async (_, bad) => {
    const { gate, fetch, expectAllFree } = gated(
      () => json({}),
      { usage: bad, options: () => ({ weight: 5 }) },
      WEIGHT,
    );
    expect(await (await fetch(URL_OF)).json()).toEqual({});
    expect(used(gate)).toBe(5);
    await expectAllFree();
  });
});

describe('the cache', () => {
  const CACHE = { cache: { max: 10, ttlMs: 60_000, maxBytes: 1_000 } };
  const options = ({ url }: { url: string }) => ({ cacheKey: url });

  it('answers with a Response of its own, body included', async () => {
    const { fetch, service, of, gate, expectAllFree } = gated(
      () => json({ a: 1 }, { headers: { ...JSON_TYPE, 'x-a': 'b' } }),
      { options },
      CACHE,
    );
    const first = await fetch(URL_OF);
    const second = await fetch(URL_OF);
    expect(await first.json()).toEqual({ a: 1 });
    expect([await second.json(), second.headers.get('x-a'), second.status]).toEqual([{ a: 1 }, 'b', 200]);
    expect(service).toHaveBeenCalledTimes(1);
    expect(of('call:finished').map(({ cache }) => cache)).toEqual(['miss', 'hit']);
    expect(gate.stats().cache.size).toBe(1);
    await expectAllFree();
  });

  it('shares one call among callers, of whom each may leave', async () => {
    const release = deferred<void>();
    const { fetch, service, expectAllFree } = gated(
      async () => {
        await release.promise;
        return events({ n: 1 });
      },
      { options },
    );
    const controller = new AbortController();
    const calls = [fetch(URL_OF, { signal: controller.signal }), fetch(URL_OF), fetch(URL_OF)];
    await settled();
    controller.abort(new Error('left'));
    await expect(calls[0]).rejects.toThrow('left');
    release.resolve();
    for (const call of calls.slice(1)) expect(await (await call)!.text()).toBe('data: {"n":1}\n\n');
    expect(service).toHaveBeenCalledTimes(1);
    await expectAllFree();
  });

  it('keeps no failure, and retries a stream that begins with an error', async () => {
    const answers = [
      events({ error: 'overloaded' }),
      json({ message: 'no' }, { status: 400 }),
      json({ b: 2 }),
    ];
    const { fetch, service } = gated(() => answers.shift(), { options }, CACHE);
    expect((await vi.waitFor(() => fetch(URL_OF), 60_000)).status).toBe(400);
    expect(await (await fetch(URL_OF)).json()).toEqual({ b: 2 });
    expect(service).toHaveBeenCalledTimes(3);
  });

  it('classifies the response of this attempt, and not that of one that was given up', async () => {
    const first = deferred<Response>();
    const second = scripted(JSON_TYPE);
    const answers = [first.promise, second.response];
    const { fetch, service, expectAllFree } = gated(
      () => answers.shift(),
      { options },
      { ...CACHE, attemptTimeoutMs: 100, maxConcurrent: 2 },
    );
    const call = fetch(URL_OF);
    await vi.advanceTimersByTimeAsync(150);
    expect(service).toHaveBeenCalledTimes(2);
    first.resolve(json({ error: 'too late' }, { status: 500 }));
    for (let turns = 0; turns < 5; turns++) await endOfTurn();
    second.send('{}');
    second.end();
    expect((await call).status).toBe(200);
    await expectAllFree();
  });

  it('keeps plain data, which a shared store can write as JSON', async () => {
    const texts = new Map<string, string>();
    const store = {
      get: (key: string) => JSON.parse(texts.get(key) ?? 'null'),
      set: (key: string, value: unknown) => void texts.set(key, JSON.stringify(value)),
    };
    const shouldCache = vi.fn((value: unknown) => (value as CachedResponse).status === 200);
    const cache = { cache: { max: 10, ttlMs: 60_000, shouldCache, store } };
    const binary = new Uint8Array([0, 255, 128, 7]);
    const answers: Record<string, () => Response> = {
      '/text': () => json({ a: 'ä' }),
      '/binary': () => new Response(binary),
      '/none': () => new Response(null),
    };
    const read = async (path: string, response: Response) => {
      expect([response.status, response.body === null]).toEqual([200, path === '/none']);
      return new Uint8Array(await response.arrayBuffer());
    };
    for (const [path, answer] of Object.entries(answers)) {
      const [one, two] = [gated(answer, { options }, cache), gated(answer, { options }, cache)];
      const first = await read(path, await one.fetch(`${URL_OF}${path}`));
      expect(await read(path, await two.fetch(`${URL_OF}${path}`))).toEqual(first);
      expect([one.service.mock.calls.length, two.service.mock.calls.length]).toEqual([1, 0]);
    }
    expect(shouldCache.mock.calls[0]![0]).toMatchObject({ body: '{"a":"ä"}', encoding: 'utf8' });
  });

  it.each([
    ['a result of `run`', { found: ['tides'] }],
    ['nothing', undefined],
    ['a response with another kind of body', { status: 200, headers: [], body: 7, encoding: 'utf8' }],
    ['a response with broken headers', { status: 200, headers: [['a b', '']], body: '', encoding: 'utf8' }],
    ['a body that its status excludes', { status: 204, headers: [], body: 'x', encoding: 'utf8' }],
    ['an unknown encoding', { status: 200, headers: [], body: 'x', encoding: 'rot13' }],
  ])('takes %s in a shared store for a miss, and replaces it', async (_, value) => {
    const set = vi.fn();
    const store = { get: () => ({ value, storedAtMs: Date.now(), ttlMs: 60_000 }), set };
    const { fetch, of } = gated(
      () => json({ a: 1 }),
      { options },
      { cache: { max: 10, ttlMs: 60_000, store } },
    );
    expect(await (await fetch(URL_OF)).json()).toEqual({ a: 1 });
    expect(of('cache:store-failed')).toMatchObject([{ operation: 'get', error: { name: 'TypeError' } }]);
    expect([of('cache:hit').length, of('cache:miss').length]).toEqual([0, 1]);
    expect(set).toHaveBeenCalledOnce();
  });

  it('counts bodies in the size of results', async () => {
    const { fetch, gate } = gated(
      (url) => new Response('x'.repeat(400), { headers: { url } }),
      { options },
      { cache: { ...CACHE.cache, maxBytes: 1_500 } },
    );
    for (const name of ['a', 'b', 'c']) await (await fetch(`${URL_OF}/${name}`)).text();
    expect(gate.stats().cache.size).toBe(2);
  });
});

describe('an adaptive limit', () => {
  it('receives the first event of a stream as it comes, and its end with the tokens generated', async () => {
    const { response, send, end } = scripted(EVENTS);
    const gate = new ServiceGate({ name: 'llm', adaptive: { max: 4 } });
    const { learned } = learnedBy(gate);
    const call = gate.fetch({ fetch: async () => response })(URL_OF);
    await vi.advanceTimersByTimeAsync(30);
    expect(learned).toEqual([]);
    send('data: {"choices":[]}\n\n');
    const text = (await call).text();
    expect(learned).toEqual(['first item']);
    await vi.advanceTimersByTimeAsync(30);
    send('data: {"choices":[],"usage":{"completion_tokens":9,"total_tokens":80}}\n\n');
    end();
    await text;
    expect(learned).toEqual(['first item', { outcome: 'ok', usage: 9 }]);
  });

  it('receives the tokens of a response that is not streamed, and no first item', async () => {
    const gate = new ServiceGate({ name: 'llm', adaptive: { max: 4 } });
    const { learned } = learnedBy(gate);
    const response = Response.json({ usage: { completion_tokens: 5, total_tokens: 40 } });
    await (await gate.fetch({ fetch: async () => response })(URL_OF)).json();
    expect(learned).toEqual([{ outcome: 'ok', usage: 5 }]);
  });
});
