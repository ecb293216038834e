import { Readable } from 'node:stream';
import { gzipSync } from 'node:zlib';
import * as undici from 'undici';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { GateTimeoutError } from '../../../src/errors.js';
import { bearer, type GateFetchOptions } from '../../../src/gate/fetch.js';
import { useFakeTimers } from '../../support/fake-timers.js';
import { hastyGate, type LimitedGateOptions } from '../../support/gates.js';
import { until } from '../../support/promises.js';
import { seeded } from '../../support/random-numbers.js';
import { type Answer, TestServer } from './server.js';

let server: TestServer;
// One for each test: a request that its client aborted may arrive at its server when the test is over.
beforeEach(async () => {
  server = await TestServer.start();
});
afterEach(() => server.stop());

type Body = NonNullable<RequestInit['body']>;
const JSON_TYPE = { 'content-type': 'application/json' };
const EVENTS = { 'content-type': 'text/event-stream' };

const fails =
  (status: number, body = '', headers: Record<string, string> = {}): Answer =>
  (response) =>
    response.writeHead(status, headers).end(body);
const events =
  (...data: readonly string[]): Answer =>
  (response) => {
    response.writeHead(200, EVENTS);
    for (const one of data) response.write(`data: ${one}\n\n`);
    response.end();
  };
/** Sends a part of a body, and never the rest. */
const stalls =
  (part = 'part', headers: Record<string, string> = {}): Answer =>
  (response) => {
    response.writeHead(200, headers);
    response.write(part);
  };
/** Sends a part of a body, and breaks the connection when the test says so. */
const breaks =
  (part: string, headers: Record<string, string> = {}): Answer =>
  (response) => {
    response.writeHead(200, headers);
    response.write(part, () => setImmediate(() => response.destroy()));
  };
const echo: Answer = (response, { body }) => response.end(body);

describe.each([
  ['the fetch of this Node', globalThis.fetch as GateFetchOptions['fetch'], globalThis.Request],
  ['the fetch of undici', undici.fetch, undici.Request as unknown as typeof Request],
])('gate.fetch over %s', (_, fetch, RequestClass) => {
  /** A gate with one permit, and its fetch. */
  function gated(fetchOptions: GateFetchOptions = {}, options: LimitedGateOptions = {}) {
    const { gate, of, held } = hastyGate(options);
    /** Everything is free again, and each call has ended once. */
    const expectAllFree = async (): Promise<void> => {
      await until(() => held() === 0 && gate.stats().limiter?.active === 0);
      const { calls, finished, keys } = gate.stats();
      expect(Object.values(finished).reduce((sum, count) => sum + count, 0)).toBe(calls);
      expect(keys.every(({ inUse }) => inUse === 0)).toBe(true);
      expect(of('call:finished')).toHaveLength(calls);
    };
    return { gate, held, of, expectAllFree, fetch: gate.fetch({ fetch, ...fetchOptions }) };
  }

  describe('requests', () => {
    it.each(['GET', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS'])('sends %s', async (method) => {
      const { fetch, expectAllFree } = gated();
      await (await fetch(`${server.url}/a?b=c`, { method })).text();
      expect(server.received).toMatchObject([{ method, path: '/a?b=c' }]);
      await expectAllFree();
    });

    it('takes a URL object', async () => {
      const { fetch } = gated();
      await (await fetch(new URL('/a', server.url))).text();
      expect(server.received[0]).toMatchObject({ method: 'GET', path: '/a' });
    });

    const bytes = new TextEncoder().encode('a body: äöü');
    it.each<[string, () => Body, string?]>([
      ['text', () => 'a body: äöü', 'text/plain;charset=UTF-8'],
      ['an ArrayBuffer', () => bytes.slice().buffer],
      ['a view of a part of a buffer', () => new Uint8Array([0, ...bytes, 0]).subarray(1, bytes.length + 1)],
      ['a Buffer', () => Buffer.from(bytes)],
      ['a Blob', () => new Blob([bytes], { type: 'text/special' }), 'text/special'],
      ['a web stream', () => new Blob([bytes]).stream()],
      ['a Node.js stream', () => Readable.from([Buffer.from(bytes)]) as unknown as Body],
      [
        'an async generator',
        () =>
          (async function* () {
            yield bytes.subarray(0, 3);
            yield bytes.subarray(3);
          })() as unknown as Body,
      ],
    ])('sends %s, and sends it again when the call is retried', async (_name, body, type) => {
      server.answers(fails(503), fails(503), echo);
      const { fetch, expectAllFree } = gated();
      const init = { method: 'POST', body: body(), duplex: 'half' } as RequestInit;
      const response = await fetch(server.url, init);
      expect(await response.text()).toBe('a body: äöü');
      expect(server.received.map((call) => call.body.toString())).toEqual(Array(3).fill('a body: äöü'));
      if (type !== undefined)
        expect(server.received.map(({ headers }) => headers['content-type'])).toEqual(Array(3).fill(type));
      await expectAllFree();
    });

    it('sends URLSearchParams and FormData with their types', async () => {
      server.answers(fails(503), echo, fails(503), echo);
      const { fetch } = gated();
      await (await fetch(server.url, { method: 'POST', body: new URLSearchParams({ a: 'ä' }) })).text();
      const form = new (fetch === undefined ? FormData : formDataOf())();
      form.append('field', 'value');
      form.append('file', new Blob(['content']), 'name.txt');
      await (await fetch(server.url, { method: 'POST', body: form as FormData })).text();
      expect(server.received.map(({ headers }) => headers['content-type']?.split(';')[0])).toEqual([
        'application/x-www-form-urlencoded',
        'application/x-www-form-urlencoded',
        'multipart/form-data',
        'multipart/form-data',
      ]);
      expect(server.received[1]?.body.toString()).toBe('a=%C3%A4');
      expect(server.received[3]?.body.toString()).toMatch(/name="field".*value.*name.txt.*content/s);
    });
    const formDataOf = () =>
      (RequestClass === globalThis.Request ? FormData : undici.FormData) as typeof FormData;

    it('sends what the body was when the call was made', async () => {
      server.answers(echo);
      const { gate, fetch } = gated();
      gate.pause();
      const body = Buffer.from('before');
      const headers = new Headers({ 'x-a': 'before' });
      const response = fetch(server.url, { method: 'POST', body, headers });
      body.write('after!');
      headers.set('x-a', 'after');
      gate.resume();
      expect(await (await response).text()).toBe('before');
      expect(server.received[0]?.headers['x-a']).toBe('before');
    });

    it('does not send a stream of more than `maxReplayBytes` twice', async () => {
      server.answers(fails(503), echo);
      const { fetch, expectAllFree } = gated({ maxReplayBytes: 1_000 });
      const body = () => new Blob(['x'.repeat(1_001)]).stream();
      const init = { method: 'POST', duplex: 'half' } as const;
      expect((await fetch(server.url, { ...init, body: body() } as RequestInit)).status).toBe(503);
      expect(server.received.map((call) => call.body.length)).toEqual([1_001]);
      server.answers(fails(503), echo);
      const exact = new Blob(['x'.repeat(1_000)]).stream();
      const response = await fetch(server.url, { ...init, body: exact } as RequestInit);
      expect((await response.text()).length).toBe(1_000);
      await expectAllFree();
    });

    it('reads a stream only as fast as it is sent, and ends it when the call ends', async () => {
      const cancel = vi.fn();
      let sent = 0;
      server.answers(fails(500));
      const { fetch } = gated({ maxReplayBytes: 1_000 }, { retry: { attempts: 1 } });
      const controller = new AbortController();
      const reason = new Error('enough');
      const body = new ReadableStream(
        {
          async pull(stream) {
            if (++sent === 3) setImmediate(() => controller.abort(reason));
            if (sent < 3) stream.enqueue(new Uint8Array(10));
            else await new Promise(() => {});
          },
          cancel,
        },
        { highWaterMark: 0 },
      );
      const init = { method: 'POST', body, duplex: 'half', signal: controller.signal } as RequestInit;
      await expect(fetch(server.url, init)).rejects.toBe(reason);
      await until(() => cancel.mock.calls.length === 1);
      expect(sent).toBe(3);
    });

    it('passes on a failure of the stream that is sent', async () => {
      const { fetch, expectAllFree } = gated();
      const body = (async function* () {
        yield Buffer.from('part');
        throw new Error('source broke');
      })();
      const init = { method: 'POST', body: body as unknown as Body, duplex: 'half' } as RequestInit;
      await expect(fetch(server.url, init)).rejects.toThrow();
      await expectAllFree();
    });

    it('takes a Request, with its method, headers and body, as often as needed', async () => {
      server.answers(fails(503), echo);
      const { fetch, expectAllFree } = gated();
      const request = new RequestClass(`${server.url}/r`, {
        method: 'PUT',
        headers: { 'x-a': 'b' },
        body: 'content',
      });
      expect(await (await fetch(request)).text()).toBe('content');
      expect(server.received).toHaveLength(2);
      for (const { method, path, headers, body } of server.received)
        expect([method, path, headers['x-a'], headers['content-length'], body.toString()]).toEqual([
          'PUT',
          '/r',
          'b',
          '7',
          'content',
        ]);
      await expect(fetch(request)).rejects.toThrow(TypeError);
      await expectAllFree();
    });

    it('takes a Request with overriding options, and as options', async () => {
      server.answers(echo);
      const { fetch } = gated();
      const request = new RequestClass(`${server.url}/r`, {
        method: 'POST',
        headers: { 'x-a': 'b' },
        body: 'old',
      });
      expect(await (await fetch(request.clone(), { body: 'new' })).text()).toBe('new');
      expect(await (await fetch(`${server.url}/s`, request as RequestInit)).text()).toBe('old');
      expect(server.received.map(({ path, headers }) => [path, headers['x-a']])).toEqual([
        ['/r', 'b'],
        ['/s', 'b'],
      ]);
    });

    it('honors the signal of a Request beside that of the options', async () => {
      server.answers(stalls());
      const { fetch, expectAllFree } = gated();
      const [own, given] = [new AbortController(), new AbortController()];
      const request = () => new RequestClass(server.url, { signal: own.signal as never });
      const first = await fetch(request(), { signal: given.signal });
      given.abort(new Error('given'));
      await expect(first.text()).rejects.toThrow('given');
      await expectAllFree();
      const second = await fetch(request(), { signal: new AbortController().signal });
      own.abort(new Error('own'));
      await expect(second.text()).rejects.toThrow('own');
      await expectAllFree();
    });

    it.each<[string, (fetch: typeof globalThis.fetch) => Promise<unknown>]>([
      ['an invalid URL', (fetch) => fetch('http://')],
      ['a method that does not exist', (fetch) => fetch(server.url, { method: 'A B' })],
      ['an invalid header', (fetch) => fetch(server.url, { headers: { 'a b': 'c' } })],
      ['a signal that is none', (fetch) => fetch(server.url, { signal: {} as AbortSignal })],
      ['a body with GET', (fetch) => fetch(server.url, { body: 'a' })],
    ])('rejects %s as fetch does', async (_name, call) => {
      const { fetch, expectAllFree } = gated();
      await expect(call(fetch)).rejects.toThrow(TypeError);
      expect(server.received).toEqual([]);
      await expectAllFree();
    });

    it('does not gate what reaches no service', async () => {
      const { gate, fetch } = gated();
      expect(await (await fetch('data:,hello')).text()).toBe('hello');
      expect(gate.stats().calls).toBe(0);
    });
  });

  describe('responses', () => {
    it('is a Response as fetch gives it', async () => {
      server.answers((response) => {
        response.writeHead(201, 'Made', [
          ...['x-a', 'b'],
          ...['set-cookie', 'a=1'],
          ...['set-cookie', 'b=2'],
          ...['content-type', 'application/json'],
        ]);
        response.end('{"a":1}');
      });
      const { fetch, expectAllFree } = gated();
      const response = await fetch(`${server.url}/made`);
      expect(response).toBeInstanceOf(Response);
      const { status, statusText, ok, url, redirected, type, headers, bodyUsed } = response;
      expect({ status, statusText, ok, url, redirected, type, bodyUsed }).toEqual({
        status: 201,
        statusText: 'Made',
        ok: true,
        url: `${server.url}/made`,
        redirected: false,
        type: 'basic',
        bodyUsed: false,
      });
      expect([headers.get('x-a'), headers.getSetCookie()]).toEqual(['b', ['a=1', 'b=2']]);
      expect(await response.json()).toEqual({ a: 1 });
      expect(response.bodyUsed).toBe(true);
      await expect(response.text()).rejects.toThrow(TypeError);
      await expectAllFree();
    });

    it('follows redirects', async () => {
      server.answers(fails(302, '', { location: '/next' }), (response) => response.end('there'));
      const { fetch, expectAllFree } = gated();
      const response = await fetch(server.url);
      expect([response.url, response.redirected, await response.text()]).toEqual([
        `${server.url}/next`,
        true,
        'there',
      ]);
      await expectAllFree();
    });

    it('returns or refuses a redirect where the call says so', async () => {
      server.answers(fails(307, 'look there', { location: '/next' }));
      const { fetch, expectAllFree } = gated({}, { retry: { attempts: 1 } });
      const response = await fetch(server.url, { redirect: 'manual' });
      expect([response.status, response.headers.get('location'), await response.text()]).toEqual([
        307,
        '/next',
        'look there',
      ]);
      await expect(fetch(server.url, { redirect: 'error' })).rejects.toThrow(TypeError);
      await expectAllFree();
    });

    it.each([204, 205, 304])('has no body for %i, and holds nothing', async (status) => {
      server.answers(fails(status));
      const { fetch, expectAllFree } = gated();
      const response = await fetch(server.url);
      expect([response.status, response.body, await response.text()]).toEqual([status, null, '']);
      await expectAllFree();
    });

    it('has no body for HEAD, and holds nothing', async () => {
      server.answers((response) => response.writeHead(200, { 'content-length': '5' }).end());
      const { fetch, held } = gated();
      const response = await fetch(server.url, { method: 'HEAD' });
      expect(held()).toBe(0);
      expect([response.headers.get('content-length'), await response.text()]).toEqual(['5', '']);
    });

    it('holds nothing for an empty body', async () => {
      server.answers((response) => response.writeHead(200, { 'content-length': '0' }).end());
      const { fetch, held } = gated();
      const response = await fetch(server.url);
      expect(held()).toBe(0);
      expect(response.body).not.toBeNull();
      expect(await response.text()).toBe('');
    });

    it('decodes gzip', async () => {
      server.answers((response) =>
        response.writeHead(200, { 'content-encoding': 'gzip' }).end(gzipSync('squeezed'.repeat(10_000))),
      );
      const { fetch, expectAllFree } = gated();
      expect(await (await fetch(server.url)).text()).toBe('squeezed'.repeat(10_000));
      await expectAllFree();
    });

    it('rejects as the body does that is broken gzip', async () => {
      server.answers((response) =>
        response.writeHead(200, { 'content-encoding': 'gzip' }).end('no gzip at all'),
      );
      const { fetch, expectAllFree } = gated();
      await expect(fetch(server.url).then((response) => response.text())).rejects.toThrow(TypeError);
      await expectAllFree();
    });

    it.each<[string, (response: Response) => Promise<unknown>, unknown]>([
      ['text', (response) => response.text(), '{"a":1}'],
      ['json', (response) => response.json(), { a: 1 }],
      ['arrayBuffer', async (response) => (await response.arrayBuffer()).byteLength, 7],
      ['blob', async (response) => (await response.blob()).type, 'application/json'],
    ])('is read by %s', async (_name, read, expected) => {
      server.answers((response) => response.writeHead(200, JSON_TYPE).end('{"a":1}'));
      const { fetch, expectAllFree } = gated();
      expect(await read(await fetch(server.url))).toEqual(expected);
      await expectAllFree();
    });

    it('is read into buffers of the reader', async () => {
      server.answers((response) => response.end('abcdef'));
      const { fetch, expectAllFree } = gated();
      const reader = (await fetch(server.url)).body!.getReader({ mode: 'byob' });
      let text = '';
      for (;;) {
        const { done, value } = await reader.read(new Uint8Array(4));
        if (done) break;
        text += Buffer.from(value).toString();
      }
      expect(text).toBe('abcdef');
      await expectAllFree();
    });

    it('passes on a body of many chunks without a change', async () => {
      const sent = Buffer.alloc(3_000_000, 'abcdefghijk');
      server.answers((response) => response.end(sent));
      const { fetch, expectAllFree } = gated();
      expect(Buffer.from(await (await fetch(server.url)).arrayBuffer()).equals(sent)).toBe(true);
      await expectAllFree();
    });

    it('passes on a status outside of HTTP', async () => {
      server.answers(fails(999, 'denied'));
      const { fetch, expectAllFree } = gated();
      const response = await fetch(server.url);
      expect([response.status, response.ok, response.clone().status, await response.text()]).toEqual([
        999,
        false,
        999,
        'denied',
      ]);
      await expectAllFree();
    });

    it('bounds the body of a failure', async () => {
      server.answers((response) => {
        response.writeHead(400);
        const more = (): void => {
          while (response.write('x'.repeat(100_000)));
          response.once('drain', more);
        };
        more();
      });
      const { fetch, expectAllFree } = gated();
      const response = await fetch(server.url);
      const { length } = await response.text();
      expect([response.status, length]).toEqual([400, 65_536]);
      await expectAllFree();
      await until(() => server.active === 0);
    });
  });

  describe('the permit', () => {
    it('is held until the body has been read', async () => {
      server.answers((response) => response.end('x'.repeat(100_000)));
      const { fetch, held, expectAllFree } = gated();
      const response = await fetch(server.url);
      expect(held()).toBe(1);
      await response.text();
      await expectAllFree();
    });

    it('limits what the server sees, bodies included', async () => {
      server.answers((response) => {
        response.writeHead(200, EVENTS);
        response.write('data: 1\n\n');
        setTimeout(() => response.end('data: 2\n\n'), 5);
      });
      const { fetch, expectAllFree } = gated({}, { maxConcurrent: 2 });
      const texts = await Promise.all(
        Array.from({ length: 8 }, async () => (await fetch(server.url)).text()),
      );
      expect(new Set(texts)).toEqual(new Set(['data: 1\n\ndata: 2\n\n']));
      expect([server.received.length, server.peak]).toEqual([8, 2]);
      await expectAllFree();
    });

    it('is released when the body is cancelled, and so is the connection', async () => {
      server.answers(stalls());
      const { fetch, expectAllFree } = gated();
      await (await fetch(server.url)).body!.cancel();
      await expectAllFree();
      await until(() => server.cut === 1);
    });

    it('is released when a reader is cancelled while it waits', async () => {
      server.answers(stalls());
      const { fetch, expectAllFree } = gated();
      const reader = (await fetch(server.url)).body!.getReader();
      await reader.read();
      const waiting = reader.read();
      await reader.cancel();
      expect((await waiting).done).toBe(true);
      await expectAllFree();
      await until(() => server.cut === 1);
    });

    it('is released by `break` in a loop over the body', async () => {
      server.answers(stalls());
      const { fetch, expectAllFree } = gated();
      for await (const chunk of (await fetch(server.url)).body as unknown as AsyncIterable<Uint8Array>) {
        expect(Buffer.from(chunk).toString()).toBe('part');
        break;
      }
      await expectAllFree();
      await until(() => server.cut === 1);
    });

    it('is held until both branches of a tee have ended', async () => {
      server.answers((response) => response.end('both'));
      const { fetch, held, expectAllFree } = gated();
      const [left, right] = (await fetch(server.url)).body!.tee();
      expect(await new Response(left).text()).toBe('both');
      expect(await new Response(right).text()).toBe('both');
      await expectAllFree();
      server.answers(stalls());
      const branches = (await fetch(server.url)).body!.tee();
      const first = branches[0].cancel();
      expect(held()).toBe(1);
      await Promise.all([first, branches[1].cancel()]);
      await expectAllFree();
    });

    it('is held by a clone, which is as the original', async () => {
      server.answers((response) => response.end('cloned'));
      const { fetch, expectAllFree } = gated();
      const response = await fetch(`${server.url}/c`);
      const clone = response.clone();
      expect([clone.url, clone.type, clone.clone().url]).toEqual([response.url, response.type, response.url]);
      expect(await response.text()).toBe('cloned');
      expect(await clone.text()).toBe('cloned');
      await expectAllFree();
    });

    it('is released at the end of pipeTo, and of a pipe that breaks', async () => {
      server.answers((response) => response.end('piped'));
      const { fetch, expectAllFree } = gated();
      let text = '';
      const decoder = new TextDecoder();
      await (await fetch(server.url)).body!.pipeTo(
        new WritableStream({
          write(chunk) {
            text += decoder.decode(chunk);
          },
        }),
      );
      expect(text).toBe('piped');
      await expectAllFree();
      server.answers(stalls());
      const broken = new WritableStream({
        write() {
          throw new Error('full');
        },
      });
      await expect((await fetch(server.url)).body!.pipeTo(broken)).rejects.toThrow('full');
      await expectAllFree();
    });

    it('is released when the connection breaks in the body', async () => {
      server.answers(breaks('part', { 'content-length': '100' }));
      const { fetch, of, expectAllFree } = gated();
      const response = await fetch(server.url);
      await expect(response.text()).rejects.toThrow(TypeError);
      expect(of('call:finished')).toMatchObject([{ outcome: 'retryable', attempts: 1 }]);
      await expectAllFree();
    });

    it('is released when a body is not read for `bodyIdleTimeoutMs`', async () => {
      server.answers(stalls());
      const { fetch, of, expectAllFree } = gated({ bodyIdleTimeoutMs: 20 });
      const response = await fetch(server.url);
      await expectAllFree();
      await until(() => server.cut === 1);
      expect(of('call:finished')).toMatchObject([
        { outcome: 'timeout', error: { code: 'ERR_GATE_TIMEOUT' } },
      ]);
      const error = await response.text().catch((reason: unknown) => reason);
      expect(error).toBeInstanceOf(GateTimeoutError);
      expect(error).toMatchObject({ scope: 'body', timeoutMs: 20, source: 'llm' });
    });

    it('is released when the response is garbage-collected', async () => {
      server.answers(stalls());
      const { fetch, held, expectAllFree } = gated();
      const { signal } = new AbortController();
      // In functions of their own: a frame keeps what its code has touched.
      await (async () => void (await fetch(server.url, { signal })))();
      await until(() => {
        (globalThis as { gc?: () => void }).gc?.();
        return held() === 0;
      });
      await expectAllFree();
      await (async () => {
        const reader = (await fetch(server.url)).body!.getReader();
        await reader.read();
      })();
      await until(() => {
        (globalThis as { gc?: () => void }).gc?.();
        return held() === 0;
      });
      await expectAllFree();
    });

    it('is not released while a reader may still read', async () => {
      server.answers(stalls());
      const { fetch, held } = gated();
      const reader = (await fetch(server.url)).body!.getReader();
      for (let round = 0; round < 5; round++) {
        (globalThis as { gc?: () => void }).gc?.();
        await new Promise((resolve) => setTimeout(resolve, 1));
      }
      expect(held()).toBe(1);
      await reader.cancel();
    });

    it('reads the service only as fast as its reader', async () => {
      let written = 0;
      server.answers((response) => {
        response.writeHead(200);
        const more = (): void => {
          while (written < 50_000_000) {
            written += 50_000;
            if (!response.write(Buffer.alloc(50_000))) break;
          }
          if (written >= 50_000_000) response.end();
          else response.once('drain', more);
        };
        more();
      });
      const { fetch, expectAllFree } = gated();
      const reader = (await fetch(server.url)).body!.getReader();
      await reader.read();
      // Until the buffers of the connection are full.
      for (let before = -1; before !== written; ) {
        before = written;
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
      expect(written).toBeLessThan(40_000_000);
      await reader.cancel();
      await expectAllFree();
    });
  });

  describe('aborts and timeouts', () => {
    it.each<[string, Answer]>([
      ['the headers', () => {}],
      ['the first event', stalls(': waiting\n\n', EVENTS)],
      ['the body of a failure', (response) => response.writeHead(400).write('part')],
    ])('rejects with the reason when it is aborted before %s', async (_name, answer) => {
      server.answers(answer);
      const { fetch, of, expectAllFree } = gated();
      const controller = new AbortController();
      const call = fetch(server.url, { signal: controller.signal });
      await until(() => server.received.length === 1);
      const reason = new Error('enough');
      controller.abort(reason);
      await expect(call).rejects.toBe(reason);
      await expectAllFree();
      await until(() => server.cut === 1);
      expect(of('call:finished')).toMatchObject([{ outcome: 'aborted' }]);
    });

    it('does not start where the signal is aborted, and leaves the queue at an abort', async () => {
      const { gate, fetch, expectAllFree } = gated();
      await expect(fetch(server.url, { signal: AbortSignal.abort(7) })).rejects.toBe(7);
      gate.pause();
      const controller = new AbortController();
      const queued = fetch(server.url, { signal: controller.signal });
      controller.abort(8);
      await expect(queued).rejects.toBe(8);
      expect(server.received).toEqual([]);
      await expectAllFree();
    });

    it('ends a body that is being read, and one that is not', async () => {
      server.answers(stalls());
      const { fetch, expectAllFree } = gated({}, { maxConcurrent: 2 });
      const controller = new AbortController();
      const [read, unread] = await Promise.all(
        [1, 2].map(() => fetch(server.url, { signal: controller.signal })),
      );
      const reading = read!.text();
      await new Promise((resolve) => setTimeout(resolve, 5));
      controller.abort(new Error('enough'));
      await expect(reading).rejects.toBe(controller.signal.reason);
      await expectAllFree();
      await expect(unread!.text()).rejects.toBe(controller.signal.reason);
      await until(() => server.cut === 2);
    });

    it('changes nothing when it is aborted after the body', async () => {
      const { fetch, of, expectAllFree } = gated();
      const controller = new AbortController();
      const response = await fetch(server.url, { signal: controller.signal });
      expect(await response.text()).toBe('ok');
      controller.abort();
      await expectAllFree();
      expect(of('call:finished')).toMatchObject([{ outcome: 'ok' }]);
    });

    it('ends a stalled upstream after `attemptTimeoutMs`, and reports it to the key', async () => {
      server.answers(stalls());
      const { gate, fetch, of, expectAllFree } = gated({}, { attemptTimeoutMs: 50 });
      const response = await fetch(server.url);
      const error = await response.text().catch((reason: unknown) => reason);
      expect(error).toBeInstanceOf(GateTimeoutError);
      expect(error).toMatchObject({ scope: 'attempt', timeoutMs: 50 });
      expect(of('call:finished')).toMatchObject([{ outcome: 'timeout' }]);
      expect(gate.stats().keys[0]).toMatchObject({ inUse: 0 });
      await expectAllFree();
      await until(() => server.cut === 1);
    });

    it('bounds no steady stream as a whole, whatever the timeouts', async () => {
      let write: () => void = () => {};
      server.answers((response) => {
        write = () => void response.write('x');
        response.writeHead(200);
        write();
      });
      useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'performance'] });
      const { fetch, expectAllFree } = gated(
        { bodyIdleTimeoutMs: 300 },
        { attemptTimeoutMs: 300, timeoutMs: 350 },
      );
      const { body } = await fetch(server.url);
      const reader = (body as ReadableStream<Uint8Array>).getReader();
      for (let i = 0; i < 20; i++) {
        expect(Buffer.from((await reader.read()).value ?? []).toString()).toBe('x');
        vi.advanceTimersByTime(200);
        write();
      }
      await reader.cancel();
      vi.useRealTimers();
      await expectAllFree();
    });

    it('ends a body when its gate closes', async () => {
      server.answers(stalls());
      const { gate, fetch, expectAllFree } = gated();
      const response = await fetch(server.url);
      await gate.close();
      await expect(response.text()).rejects.toMatchObject({ code: 'ERR_GATE_CLOSED' });
      await expectAllFree();
    });
  });

  describe('retries', () => {
    it('hides failures that are retried', async () => {
      server.answers(fails(503), fails(500, '{}', JSON_TYPE), (response) => response.end('at last'));
      const { fetch, of, expectAllFree } = gated();
      expect(await (await fetch(server.url)).text()).toBe('at last');
      expect(of('call:retried')).toHaveLength(2);
      expect(of('call:finished')).toMatchObject([{ outcome: 'ok', attempts: 3 }]);
      await expectAllFree();
    });

    it('returns the last failure with its body', async () => {
      server.answers(fails(500, '{"error":"broken"}', JSON_TYPE));
      const { fetch, held, expectAllFree } = gated();
      const response = await fetch(server.url);
      expect(held()).toBe(0);
      expect([response.status, response.url]).toEqual([500, `${server.url}/`]);
      expect(await response.json()).toEqual({ error: 'broken' });
      expect(server.received).toHaveLength(3);
      await expectAllFree();
    });

    it('retries a connection that breaks before the headers', async () => {
      server.answers(
        (response) => response.destroy(),
        (response) => response.end('here'),
      );
      const { fetch, expectAllFree } = gated();
      expect(await (await fetch(server.url)).text()).toBe('here');
      await expectAllFree();
    });

    it('rejects as fetch does when every connection breaks', async () => {
      server.answers((response) => response.destroy());
      const { fetch, expectAllFree } = gated();
      await expect(fetch(server.url)).rejects.toThrow(TypeError);
      expect(server.received).toHaveLength(3);
      await expectAllFree();
    });

    it.each([
      '{"error":{"message":"overloaded","code":503}}',
      '{"error":"no capacity"}',
      '{"object":"error","error":{"message":"bad"}}',
    ])('retries a stream that begins with %s', async (failure) => {
      server.answers(events(failure), events('{"n":1}', '[DONE]'));
      const { fetch, of, expectAllFree } = gated();
      const response = await fetch(server.url);
      expect(await response.text()).toBe('data: {"n":1}\n\ndata: [DONE]\n\n');
      expect(of('call:retried')).toHaveLength(1);
      await expectAllFree();
    });

    it('retries an `error` event, a comment before it, and one that arrives in pieces', async () => {
      server.answers(async (response) => {
        response.writeHead(200, EVENTS);
        for (const part of [': hello\r\n\r\nev', 'ent: err', 'or\r\ndata: no ', 'luck\r\n\r', '\n']) {
          response.write(part);
          await new Promise((resolve) => setTimeout(resolve, 5));
        }
        response.end();
      }, events('1'));
      const { fetch, expectAllFree } = gated();
      expect(await (await fetch(server.url)).text()).toBe('data: 1\n\n');
      await expectAllFree();
    });

    it('retries a stream that breaks before its first event', async () => {
      server.answers(breaks(': hello\n\n', EVENTS), events('1'));
      const { fetch, expectAllFree } = gated();
      expect(await (await fetch(server.url)).text()).toBe('data: 1\n\n');
      await expectAllFree();
    });

    it('returns a stream with its first event, and passes on a later error', async () => {
      server.answers((response) => {
        response.writeHead(200, EVENTS);
        response.write(': hello\n\ndata: {"n":1}\n\n');
        response.write('data: {"error":{"message":"late"}}\n\n');
        response.end();
      });
      const { fetch, of, expectAllFree } = gated();
      const text = await (await fetch(server.url)).text();
      expect(text).toBe(': hello\n\ndata: {"n":1}\n\ndata: {"error":{"message":"late"}}\n\n');
      expect(of('call:retried')).toEqual([]);
      await expectAllFree();
    });

    it('returns the last stream that begins with an error', async () => {
      server.answers(events('{"error":{"message":"overloaded"}}'));
      const { fetch, expectAllFree } = gated();
      const response = await fetch(server.url);
      expect([response.status, await response.text()]).toEqual([
        200,
        'data: {"error":{"message":"overloaded"}}\n\n',
      ]);
      expect(server.received).toHaveLength(3);
      await expectAllFree();
    });

    it('returns an empty stream', async () => {
      server.answers(events());
      const { fetch, expectAllFree } = gated();
      expect(await (await fetch(server.url)).text()).toBe('');
      await expectAllFree();
    });

    it('puts the key of each attempt over what the client sent', async () => {
      server.answers(fails(429, '', { 'retry-after': '60' }), (response) => response.end());
      const { fetch, expectAllFree } = gated({ authorize: bearer }, { keys: ['key-a', 'key-b'] });
      await (await fetch(server.url, { headers: { Authorization: 'Bearer unused' } })).text();
      expect(server.received.map(({ headers }) => headers.authorization)).toEqual([
        'Bearer key-a',
        'Bearer key-b',
      ]);
      await expectAllFree();
    });
  });

  it('leaves nothing behind, whatever the service and the readers do', async () => {
    const random = seeded(7);
    const oneOf = <V>(values: readonly V[]): V => values[Math.floor(random() * values.length)] as V;
    const answers: readonly Answer[] = [
      (response) => response.end('x'.repeat(100_000)),
      (response) => response.writeHead(204).end(),
      fails(503),
      fails(404, 'not here'),
      events('1', '2', '[DONE]'),
      events('{"error":"busy"}'),
      stalls('part'),
      stalls('data: 1\n\n', EVENTS),
      breaks('part', { 'content-length': '100' }),
      (response) => response.destroy(),
      () => {},
    ];
    server.answers((response, received) => oneOf(answers)(response, received));
    const readers: readonly ((response: Response, abort: () => void) => unknown)[] = [
      (response) => response.text(),
      (response) => response.body?.cancel(),
      (response) => Promise.all([response.clone().text(), response.text()]),
      (response) => {
        // Settles only when the other branch, which is dropped, has been cancelled too.
        void response.body?.tee()[0].cancel();
      },
      (response) => response.body?.pipeTo(new WritableStream()),
      async (response) => void (await response.body?.getReader().read()),
      (response, abort) => {
        setTimeout(abort, 3);
        return response.text();
      },
      (_, abort) => abort(),
      () => {},
    ];
    const { gate, fetch, expectAllFree } = gated(
      { bodyIdleTimeoutMs: 30 },
      { maxConcurrent: 4, attemptTimeoutMs: 30, retry: { attempts: 2, baseMs: 1, maxMs: 1, budget: false } },
    );
    await Promise.all(
      Array.from({ length: 150 }, async () => {
        const controller = new AbortController();
        const abort = (): void => controller.abort(new Error('left'));
        if (random() < 0.1) setTimeout(abort, random() * 20);
        try {
          const response = await fetch(server.url, { method: 'POST', body: 'x', signal: controller.signal });
          await oneOf(readers)(response, abort);
        } catch {
          // A failure of any kind is as good as a result here.
        }
      }),
    );
    await expectAllFree();
    expect(gate.stats()).toMatchObject({ calls: 150, queuedForStart: 0, backingOff: 0 });
  });
});
