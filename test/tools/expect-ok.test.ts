import { once } from 'node:events';
import { createServer, type RequestListener } from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterEach, describe, expect, it } from 'vitest';
import { defineTools, expectOk, ResponseError, ServiceGate, toHttpStatus } from '../../src/index.js';
import { managerOf } from '../support/tool-managers.js';

const closers: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0)) await close();
});

async function listen(serve: RequestListener): Promise<string> {
  const server = createServer(serve).listen(0, '127.0.0.1');
  await once(server, 'listening');
  closers.push(() => {
    server.closeAllConnections();
    server.close();
  });
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}/search?key=secret`;
}

const failureOf = (work: Promise<unknown>): Promise<ResponseError> =>
  work.then(
    () => expect.unreachable(),
    (error) => error,
  );

describe('expectOk', () => {
  it('returns a response that is ok, with its body unread', async () => {
    const response = await fetch(await listen((_, reply) => reply.end('fine')));
    expect(await expectOk(response)).toBe(response);
    expect(await response.text()).toBe('fine');
  });

  it('throws the status, the headers and the beginning of the body of any other', async () => {
    const url = await listen((_, reply) =>
      reply.writeHead(503, { 'retry-after': '7' }).end('ä'.repeat(10_000)),
    );
    const error = await failureOf(expectOk(await fetch(url), { maxBytes: 5 }));
    expect(error).toBeInstanceOf(ResponseError);
    expect(error).toMatchObject({ name: 'ResponseError', status: 503, body: 'ää' });
    expect(error.headers.get('retry-after')).toBe('7');
    expect(error.message).toBe(`503 Service Unavailable from ${url.split('?')[0]}: ää`);
    expect(toHttpStatus(error)).toMatchObject({ status: 502 });
  });

  it('frees the connection of a body that never ends', async () => {
    let closed: Promise<unknown> | undefined;
    const url = await listen((_, reply) => {
      closed = once(reply, 'close');
      reply.writeHead(500);
      const timer = setInterval(() => reply.write('x'.repeat(65_536)), 1);
      reply.on('close', () => clearInterval(timer));
    });
    const error = await failureOf(expectOk(await fetch(url)));
    expect(error.body).toHaveLength(4_096);
    await closed;
  });

  it.each<[string, () => object]>([
    [
      'is being read elsewhere',
      () => {
        const response = new Response('taken', { status: 429 });
        response.body?.getReader();
        return response;
      },
    ],
    [
      'cannot be read',
      () => ({ status: 429, ok: false, headers: new Headers(), statusText: '', url: '', body: undefined }),
    ],
  ])('throws the status alone where the body %s', async (_, responseOf) => {
    const error = await failureOf(expectOk(responseOf() as Response));
    expect(error).toMatchObject({ name: 'ResponseError', status: 429, body: '' });
  });

  it('makes a gate retry, and an agent read the reason', async () => {
    let calls = 0;
    const url = await listen((_, reply) => {
      calls++;
      reply.writeHead(calls === 1 ? 503 : 400).end('{"error":"no such page"}');
    });
    const gate = new ServiceGate({ name: 'reader', retry: { baseMs: 1 }, cooldown: { baseMs: 1 } });
    const { tools } = await managerOf(
      defineTools({
        read: {
          connect: () => url,
          gate,
          call: async (from, _: unknown, { signal }) => expectOk(await fetch(from, { signal })),
        },
      }),
    );
    expect(await tools.answer('read', {})).toMatch(/^Tool read failed: 400 Bad Request from .*no such page/);
    expect(calls).toBe(2);
  });

  it('rejects wrong arguments', async () => {
    await expect(expectOk({} as never)).rejects.toThrow(/Expected `response` to be a Response/);
    await expect(expectOk(new Response(), { maxBytes: -1 })).rejects.toThrow(/maxBytes/);
    await expect(expectOk(new Response(), { max: 1 } as never)).rejects.toThrow(/max/);
  });
});
