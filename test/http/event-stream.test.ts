import { EventEmitter } from 'node:events';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import * as http2 from 'node:http2';
import { type AddressInfo, connect, type Socket } from 'node:net';
import { Duplex } from 'node:stream';
import { setImmediate as turn } from 'node:timers/promises';
import { serve } from '@hono/node-server';
import express from 'express';
import fastify from 'fastify';
import { Hono } from 'hono';
import {
  createPipelineManager,
  type EventStreamOptions,
  eventStream,
  type NodeTarget,
  QueueFullError,
  ServiceGate,
} from 'pipeline-pool';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { deferred } from '../support/promises.js';
import { STRANGE_VALUES } from '../support/strange-values.js';

const closers: (() => unknown)[] = [];
afterEach(async () => {
  vi.useRealTimers();
  for (const close of closers.splice(0).reverse()) await close();
});

const full = new QueueFullError({
  source: 'l',
  waitMs: 0,
  active: 1,
  queued: 0,
  size: 1,
  retryAfterMs: 2_500,
});

/** A source whose items the test sends. */
function controlled<T>() {
  const log: string[] = [];
  const ready: Promise<IteratorResult<T>>[] = [];
  let wanted: ((result: Promise<IteratorResult<T>>) => void) | undefined;
  const give = (result: Promise<IteratorResult<T>>): void => {
    if (wanted === undefined) ready.push(result);
    else wanted(result);
    wanted = undefined;
    result.catch(() => {});
  };
  const source: AsyncIterator<T> = {
    next: () => {
      log.push('next');
      return (
        ready.shift() ??
        new Promise((resolve) => {
          wanted = resolve;
        })
      );
    },
    return: async () => {
      log.push('return');
      return { done: true, value: undefined };
    },
  };
  return {
    source,
    log,
    yield: (value: T) => give(Promise.resolve({ done: false, value })),
    end: () => give(Promise.resolve({ done: true, value: undefined })),
    fail: (error: unknown) => give(Promise.reject(error)),
  };
}

const read = async (response: Response): Promise<string> =>
  Buffer.from(await response.arrayBuffer()).toString();

async function* items<T>(...values: T[]): AsyncGenerator<T> {
  yield* values;
}

describe('eventStream as a web Response', () => {
  it('sends each item as an event, as JSON by default', async () => {
    const response = await eventStream(items<unknown>({ step: 'search' }, 'text\n', null, undefined));
    expect(response.status).toBe(200);
    expect(Object.fromEntries(response.headers)).toEqual({
      'content-type': 'text/event-stream; charset=utf-8',
      'cache-control': 'no-store, no-transform',
      'x-accel-buffering': 'no',
    });
    expect(await read(response)).toBe(
      'data: {"step":"search"}\n\ndata: "text\\n"\n\ndata: null\n\ndata: null\n\n',
    );
  });

  it('takes the name and the data of an event from the item, one line of data for each line', async () => {
    const response = await eventStream(
      items({ type: 'token', text: 'a\r\nb\rc\nd' }, { text: '' }),
      undefined,
      {
        event: ({ type }: { type?: string; text: string }) => type,
        data: ({ text }) => text,
      },
    );
    expect(await read(response)).toBe('event: token\ndata: a\ndata: b\ndata: c\ndata: d\n\ndata: \n\n');
  });

  it('sends the headers with the first item, so that an error before it has its own status', async () => {
    const seen: unknown[] = [];
    const { source, fail } = controlled();
    const response = eventStream(source, {}, { onError: (error) => seen.push(error) });
    fail(full);
    const { status, headers } = await response;
    expect([status, headers.get('retry-after'), headers.get('cache-control')]).toEqual([
      429,
      '3',
      'no-store',
    ]);
    expect(await (await response).json()).toEqual({
      error: { message: 'Too Many Requests', code: 'ERR_QUEUE_FULL', retryAfterSeconds: 3 },
    });
    expect(seen).toEqual([full]);
  });

  it('answers 500 to a bug, without its message', async () => {
    const { source, fail } = controlled();
    const response = eventStream(source);
    fail(new TypeError('secret is not a function'));
    expect((await response).status).toBe(500);
    expect(await (await response).json()).toEqual({ error: { message: 'Internal Server Error' } });
  });

  it('sends an error after the headers as an event', async () => {
    const { source, fail, ...sent } = controlled();
    const response = eventStream(source);
    sent.yield('a');
    const body = read(await response);
    await turn();
    fail(full);
    expect(await body).toBe(
      'data: "a"\n\nevent: error\ndata: {"error":{"message":"Too Many Requests","code":"ERR_QUEUE_FULL","retryAfterSeconds":3}}\n\n',
    );
  });

  it('sends headers and heartbeats while the request is queued, with early headers', async () => {
    vi.useFakeTimers();
    const { source, fail } = controlled();
    const response = await eventStream(source, {}, { headers: 'early', heartbeatMs: 1_000 });
    expect(response.status).toBe(200);
    await vi.advanceTimersByTimeAsync(2_500);
    fail(full);
    expect(await read(response)).toMatch(/^:\n\n:\n\nevent: error\n/);
    expect(vi.getTimerCount()).toBe(0);
  });

  it('sends a heartbeat only where no event was sent for that long', async () => {
    vi.useFakeTimers();
    const { source, end, ...sent } = controlled();
    const response = eventStream(source, {}, { heartbeatMs: 1_000 });
    sent.yield(1);
    await vi.advanceTimersByTimeAsync(900);
    sent.yield(2);
    await vi.advanceTimersByTimeAsync(900);
    sent.yield(3);
    await vi.advanceTimersByTimeAsync(1_100);
    end();
    expect(await read(await response)).toBe('data: 1\n\ndata: 2\n\ndata: 3\n\n:\n\n');
    expect(vi.getTimerCount()).toBe(0);
  });

  it('requests the next item only when the client has taken the last ones', async () => {
    let made = 0;
    const response = await eventStream(
      (async function* () {
        for (;;) yield String(++made).padEnd(10_000);
      })(),
    );
    for (let i = 0; i < 20; i++) await turn();
    expect(made).toBe(2);
    const reader = response.body!.getReader();
    await reader.read();
    await turn();
    expect(made).toBe(3);
    await reader.cancel();
    for (let i = 0; i < 20; i++) await turn();
    expect(made).toBe(3);
  });

  it('calls `return` as soon as the client leaves, while an item is being made', async () => {
    const { source, log, ...sent } = controlled();
    const response = eventStream(source);
    sent.yield(1);
    const reader = (await response).body!.getReader();
    await reader.read();
    await turn();
    const cancelled = reader.cancel();
    await cancelled;
    await turn();
    expect(log).toEqual(['next', 'next', 'return']);
  });

  it('calls `return` when the request is aborted before there is a response', async () => {
    const { source, log } = controlled();
    const client = new AbortController();
    const response = eventStream(source, { request: new Request('http://x/', { signal: client.signal }) });
    await turn();
    client.abort();
    expect((await response).status).toBe(499);
    expect(log).toEqual(['next', 'return']);
  });

  it('keeps the request, without which Node.js does not abort its signal', async () => {
    const client = new AbortController();
    const { source, log } = controlled();
    const start = () => eventStream(source, { request: new Request('http://x/', { signal: client.signal }) });
    const response = start();
    for (let i = 0; i < 3; i++) {
      await turn();
      (globalThis as unknown as { gc(): void }).gc();
    }
    client.abort();
    expect((await response).status).toBe(499);
    expect(log).toEqual(['next', 'return']);
  });

  it('is over where the source aborts the request and never settles', async () => {
    const client = new AbortController();
    const source = {
      next: () => {
        client.abort();
        return new Promise<never>(() => {});
      },
    };
    const response = eventStream(source, { request: new Request('http://x/', { signal: client.signal }) });
    expect((await response).status).toBe(499);
  });

  it('aborts the signal of a source that is a function, and drops what it returns too late', async () => {
    const client = new AbortController();
    const { source, log } = controlled();
    let resolve = (_: AsyncIterator<unknown>): void => {};
    let signal: AbortSignal | undefined;
    const response = eventStream(
      (context) => {
        signal = context.signal;
        return new Promise<AsyncIterator<unknown>>((made) => {
          resolve = made;
        });
      },
      { request: new Request('http://x/', { signal: client.signal }) },
    );
    client.abort();
    expect((await response).status).toBe(499);
    expect(signal?.aborted).toBe(true);
    resolve(source);
    await turn();
    expect(log).toEqual(['return']);
  });

  it('drops a client that reads nothing', async () => {
    vi.useFakeTimers();
    const { source, log, ...sent } = controlled();
    const response = eventStream(source, {}, { stallTimeoutMs: 5_000 });
    sent.yield('x'.repeat(20_000));
    const { body } = await response;
    await vi.advanceTimersByTimeAsync(5_000);
    expect(log).toEqual(['next', 'return']);
    const reader = body!.getReader();
    await expect(reader.read()).rejects.toThrow('did not read');
    expect(vi.getTimerCount()).toBe(0);
  });

  it('keeps a client that reads large events slowly, and writes no heartbeat into an event', async () => {
    vi.useFakeTimers();
    const text = 'ä€😀'.repeat(10_000);
    const source = async function* () {
      yield* [text, text];
      await new Promise((resolve) => setTimeout(resolve, 5_000));
    };
    const response = await eventStream(source(), {}, { stallTimeoutMs: 5_000, heartbeatMs: 1_000 });
    const bytes: number[] = [];
    const read = async (): Promise<void> => {
      for await (const part of response.body!) {
        bytes.push(...part);
        await new Promise((resolve) => setTimeout(resolve, part.byteLength / 10));
      }
    };
    const reading = read();
    await vi.advanceTimersByTimeAsync(30_000);
    await reading;
    const body = Buffer.from(bytes).toString().replaceAll(text, 'all of it');
    expect(body).toMatch(/^(data: "all of it"\n\n){2}(:\n\n)+$/);
    expect(vi.getTimerCount()).toBe(0);
  });

  it.each([4_092, 4_093, 4_095, 16_383])('severs no character of %i units and more', async (length) => {
    const text = `${'x'.repeat(length - 6)}😀\ud83d😀`;
    const response = await eventStream(items(text), {}, { data: (item) => item });
    expect(await read(response)).toBe(`data: ${Buffer.from(text)}\n\n`);
  });

  it('sends parts that a reader may take over', async () => {
    const text = 'x'.repeat(50_000);
    const reader = (await eventStream(items(text), {}, { data: (item) => item })).body!.getReader();
    // A byte stream transfers the memory of what it is given.
    const body = new ReadableStream({
      type: 'bytes',
      async pull(controller) {
        const { done, value } = await reader.read();
        if (done) controller.close();
        else controller.enqueue(value);
      },
    });
    expect(await new Response(body).text()).toBe(`data: ${text}\n\n`);
  });

  it('starts no source for HEAD', async () => {
    const { source, log } = controlled();
    const response = await eventStream(source, { request: new Request('http://x/', { method: 'HEAD' }) });
    expect([response.status, await read(response), log]).toEqual([200, '', []]);
  });

  it('ends the source where `event` or `data` fails', async () => {
    for (const options of [
      { event: () => 'two\nlines' },
      { data: () => 5 as unknown as string },
      { event: () => Promise.reject(new Error('broken')) as never },
      { data: () => Promise.reject(new Error('broken')) as never },
      {
        data: (): string => {
          throw new Error('broken');
        },
      },
    ]) {
      const { source, log, ...sent } = controlled();
      const response = eventStream(source, {}, options);
      sent.yield(1);
      expect((await response).status).toBe(500);
      expect(log).toEqual(['next', 'return']);
    }
  });

  it('survives an `onError` that throws or rejects', async () => {
    for (const onError of [
      () => {
        throw new Error('logger');
      },
      () => Promise.reject(new Error('logger')),
    ]) {
      const response = await eventStream(() => Promise.reject(full), {}, { onError: onError as () => void });
      expect(response.status).toBe(429);
    }
  });

  it('opens a source that is in a promise with a `then` of its own', async () => {
    const thens = [
      () => undefined,
      (resolve: (source: unknown) => void) => {
        resolve(items(2));
        return Promise.reject(new Error('no one waits for it'));
      },
    ];
    for (const then of thens) {
      const response = await eventStream(() => Object.assign(Promise.resolve(items(1)), { then }) as never);
      expect(await read(response)).toBe('data: 1\n\n');
    }
  });

  it.each(Object.entries(STRANGE_VALUES))('answers 500 to a source that throws %s', async (_, make) => {
    const failing = eventStream(() => {
      throw make();
    });
    expect((await failing).status).toBe(500);
  });

  it('checks its arguments at once', () => {
    const { source } = controlled();
    expect(() => eventStream(5 as never)).toThrow('`source` to be an async iterable');
    expect(() => eventStream(source, { reply: 1 } as never)).toThrow('Unknown option `reply`');
    expect(() => eventStream(source, { response: {} } as never)).toThrow('`response`');
    expect(() => eventStream(source, { request: {} } as never)).toThrow('`request`');
    expect(() => eventStream(source, {}, { heartbeatMs: 0 })).toThrow('`heartbeatMs`');
    expect(() => eventStream(source, {}, { stallTimeoutMs: 0 })).toThrow('`stallTimeoutMs`');
    expect(() => eventStream(source, {}, { headers: 'late' as never })).toThrow('`headers`');
    expect(() => eventStream(source, {}, { event: 'x' as never })).toThrow('`event`');
    expect(() => eventStream(source, {}, { data: 'x' as never })).toThrow('`data`');
    expect(() => eventStream(source, {}, { onError: 'x' as never })).toThrow('`onError`');
    expect(() => eventStream(source, {}, { heartbeat: 5 } as never)).toThrow('Unknown option `heartbeat`');
  });
});

interface Item {
  readonly type: string;
  readonly text: string;
}
type Run = (mode: string) => AsyncIterable<Item>;
const OPTIONS: EventStreamOptions<Item> = {
  event: ({ type }) => type,
  data: ({ text }) => text,
  stallTimeoutMs: 300,
};

async function listen(server: Server | http2.Http2Server): Promise<number> {
  if (!server.listening) await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  closers.push(() => {
    if ('closeAllConnections' in server) server.closeAllConnections();
    return new Promise((resolve) => server.close(resolve));
  });
  return (server.address() as AddressInfo).port;
}

/** A service on each framework, with `/:mode`. */
const frameworks: Readonly<Record<string, (run: Run) => Promise<number>>> = {
  "Node's http": (run) =>
    listen(
      createServer((request: IncomingMessage, response: ServerResponse) => {
        void eventStream(run(request.url!.slice(1)), { request, response }, OPTIONS);
      }),
    ),
  Express: (run) => {
    const app = express();
    app.get('/:mode', (request, response) =>
      eventStream(run(request.params.mode!), { request, response }, OPTIONS),
    );
    return listen(createServer(app));
  },
  Fastify: async (run) => {
    const app = fastify();
    app.get<{ Params: { mode: string } }>('/:mode', (request, reply) => {
      reply.hijack();
      return eventStream(run(request.params.mode), { request: request.raw, response: reply.raw }, OPTIONS);
    });
    await app.ready();
    return listen(app.server);
  },
  Hono: (run) => {
    const app = new Hono();
    app.get('/:mode', ({ req }) => eventStream(run(req.param('mode')), { request: req.raw }, OPTIONS));
    return new Promise<number>((resolve) => {
      const server = serve({ fetch: app.fetch, port: 0, hostname: '127.0.0.1' }, () =>
        resolve(listen(server as Server)),
      );
    });
  },
};

/** One pipeline, one permit of a gate: a leak of either stops every later request. */
function build() {
  const manager = createPipelineManager({
    config: { poolSize: 1, maxConcurrentRequests: 1, maxQueue: 1 },
    create: () => ({}),
  });
  const gate = new ServiceGate({ name: 'llm', maxConcurrent: 1 });
  closers.push(
    () => gate.close(),
    () => manager.shutdown({ timeoutMs: 0 }),
  );
  let tasks = 0;
  const aborted: string[] = [];
  const run: Run = (mode) =>
    manager.stream(`${mode}-${++tasks}`, ({ taskId, signal }) => {
      signal.addEventListener('abort', () => aborted.push(taskId));
      return gate.stream(async function* ({ signal: calls }) {
        for (let i = 1; mode !== 'three' || i <= 3; i++) {
          yield { type: 'token', text: mode === 'flood' ? 'x'.repeat(65_536) : `${mode} ${i}` };
          // A model that thinks: only its signal ends it.
          if (mode === 'hang')
            await new Promise((_, reject) => calls.addEventListener('abort', () => reject(calls.reason)));
          await turn();
        }
      });
    });
  const held = () => {
    const { active, queued, limiter, pool } = manager.stats();
    const { running, queuedForStart, limiter: permits } = gate.stats();
    return [
      active,
      queued,
      limiter.active,
      limiter.queued,
      pool.leased,
      running,
      queuedForStart,
      permits?.active,
    ];
  };
  return { run, held, manager, gate, aborted };
}

const NOTHING = [0, 0, 0, 0, 0, 0, 0, 0];

/** A client that shows what it does with its socket. */
async function client(port: number, path: string): Promise<Socket> {
  const socket = connect(port, '127.0.0.1');
  closers.push(() => socket.destroy());
  socket.on('error', () => {});
  socket.write(`GET /${path} HTTP/1.1\r\nHost: localhost\r\n\r\n`);
  return socket;
}

const firstData = (socket: Socket): Promise<string> =>
  new Promise((resolve) => socket.once('data', (data) => resolve(data.toString())));

describe.each(Object.entries(frameworks))('eventStream under %s', (_, mount) => {
  it('sends the events of a request', async () => {
    const { run, held } = build();
    const response = await fetch(`http://127.0.0.1:${await mount(run)}/three`);
    expect(response.headers.get('content-type')).toBe('text/event-stream; charset=utf-8');
    expect(await response.text()).toBe([1, 2, 3].map((i) => `event: token\ndata: three ${i}\n\n`).join(''));
    expect(held()).toEqual(NOTHING);
  });

  it.each<[string, string, (socket: Socket) => unknown]>([
    ['leaves', 'hang', (socket) => socket.destroy()],
    ['ends its side and then leaves', 'endless', (socket) => socket.end(() => socket.destroy())],
    ['resets the connection', 'hang', (socket) => socket.resetAndDestroy()],
    ['resets the connection while items flow', 'endless', (socket) => socket.resetAndDestroy()],
    ['stalls', 'flood', (socket) => socket.pause()],
  ])('holds nothing once the client %s', async (_does, mode, leave) => {
    const { run, held, aborted } = build();
    const port = await mount(run);
    const socket = await client(port, mode);
    expect(await firstData(socket)).toContain('200 OK');
    leave(socket);
    await vi.waitFor(() => expect(held()).toEqual(NOTHING), { timeout: 60_000 });
    expect(aborted).toEqual([`${mode}-1`]);
    // The pipeline and the permit serve the next request.
    expect((await fetch(`http://127.0.0.1:${port}/three`)).status).toBe(200);
  });

  it('takes a client that leaves out of the queue, and answers 429 when that is full', async () => {
    const { run, held, manager } = build();
    const port = await mount(run);
    const running = await client(port, 'hang');
    await firstData(running);
    const queued = await client(port, 'hang');
    await vi.waitFor(() => expect(manager.stats().limiter.queued).toBe(1), { timeout: 60_000 });
    const rejected = await fetch(`http://127.0.0.1:${port}/hang`);
    expect([rejected.status, rejected.headers.get('retry-after')]).toEqual([
      429,
      expect.stringMatching(/^\d+$/),
    ]);
    expect(await rejected.json()).toMatchObject({ error: { code: 'ERR_QUEUE_FULL' } });
    queued.resetAndDestroy();
    await vi.waitFor(() => expect(manager.stats().limiter.queued).toBe(0), { timeout: 60_000 });
    running.destroy();
    await vi.waitFor(() => expect(held()).toEqual(NOTHING), { timeout: 60_000 });
  });
});

describe("eventStream on Node's response", () => {
  it('keeps the headers that the host has set, and resolves at the end', async () => {
    let over = false;
    const port = await listen(
      createServer(async (request, response) => {
        response.setHeader('access-control-allow-origin', '*');
        await eventStream(items(1), { request, response });
        over = true;
      }),
    );
    const response = await fetch(`http://127.0.0.1:${port}`);
    expect([response.headers.get('access-control-allow-origin'), await response.text()]).toEqual([
      '*',
      'data: 1\n\n',
    ]);
    expect(over).toBe(true);
    expect(await (await fetch(`http://127.0.0.1:${port}`, { method: 'HEAD' })).text()).toBe('');
  });

  it('keeps a client whose socket takes one large event slowly', async () => {
    vi.useFakeTimers();
    const text = 'x'.repeat(200_000);
    const server = createServer((request, response) => {
      void eventStream(items(text, 'next'), { request, response }, { stallTimeoutMs: 10_000 });
    });
    let received = '';
    const socket = new Duplex({
      read() {},
      write(bytes: Buffer, _, taken) {
        received += bytes;
        setTimeout(taken, bytes.byteLength / 10);
      },
    });
    server.emit('connection', socket);
    socket.push('GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n');
    await vi.advanceTimersByTimeAsync(30_000);
    const body = received.slice(received.indexOf('data')).replaceAll(/\r\n[0-9a-f]+\r\n/g, '');
    expect(body.replace(text, 'all of it')).toMatch(/^data: "all of it"\n\ndata: "next"\n\n/);
  });

  it('ends the source of a client that has left before', async () => {
    const { source, log } = controlled();
    const { promise, resolve } = deferred<void>();
    const port = await listen(
      createServer((request, response) => {
        response.once('close', () => resolve(eventStream(source, { request, response })));
        socket.destroy();
      }),
    );
    const socket = await client(port, '');
    await promise;
    expect(log).toEqual(['return']);
  });

  it.each([false, true])(
    'ends the source of an HTTP/2 client that has left before (session: %s)',
    async (all) => {
      const { source, log } = controlled();
      const { promise, resolve } = deferred<void>();
      const server = http2.createServer((request, response) => {
        const target = { request, response } as unknown as NodeTarget;
        request.once('close', () => setImmediate(() => resolve(eventStream(source, target))));
        if (all) session.destroy();
        else stream.close(http2.constants.NGHTTP2_CANCEL);
      });
      const session = http2.connect(`http://127.0.0.1:${await listen(server)}`);
      closers.push(() => session.destroy());
      const stream = session.request({ ':path': '/' }).on('error', () => {});
      await promise;
      expect(log).toEqual(['return']);
    },
  );

  it('ends the source whose response waits behind another, when their connection ends', async () => {
    const streams: Promise<void>[] = [];
    const all = deferred<void>();
    const logs: string[][] = [];
    const server = createServer((request, response) => {
      const { source, log } = controlled();
      logs.push(log);
      streams.push(eventStream(source, { request, response }));
      if (streams.length === 2) all.resolve();
    });
    const socket = await client(await listen(server), 'first');
    socket.write('GET /second HTTP/1.1\r\nHost: localhost\r\n\r\n');
    await all.promise;
    socket.destroy();
    await Promise.all(streams);
    expect(logs).toEqual([
      ['next', 'return'],
      ['next', 'return'],
    ]);
  });

  it.each(['write', 'end'] as const)('survives middleware whose `%s` throws', async (method) => {
    const port = await listen(
      createServer(async (request, response) => {
        response[method] = () => {
          throw new Error('broken');
        };
        const source = method === 'end' ? items() : controlled().source;
        await eventStream(source, { request, response }, { headers: 'early', heartbeatMs: 1 });
      }),
    );
    const response = await fetch(`http://127.0.0.1:${port}`);
    await expect(response.text()).rejects.toThrow('terminated');
  });

  it('is over if a write itself shows that the client has left', async () => {
    const { source, log, ...sent } = controlled();
    const response = Object.assign(new EventEmitter(), {
      writeHead() {},
      flushHeaders() {},
      write: () => !response.emit('close'),
      destroy() {},
    });
    const over = eventStream(source, { response: response as never });
    sent.yield(1);
    await over;
    expect(log).toEqual(['next', 'return']);
  });

  it('breaks the connection off if the host answers meanwhile', async () => {
    const { source, log, ...sent } = controlled();
    const port = await listen(
      createServer((request, response) => {
        const over = eventStream(source, { request, response });
        response.writeHead(200).flushHeaders();
        sent.yield(1);
        void over;
      }),
    );
    await expect(fetch(`http://127.0.0.1:${port}`).then((response) => response.text())).rejects.toThrow();
    expect(log).toEqual(['next', 'return']);
    expect(() => eventStream(source, { response: { headersSent: true, writeHead() {} } as never })).toThrow(
      'no headers yet',
    );
  });
});
