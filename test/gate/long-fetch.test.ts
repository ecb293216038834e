import { createServer, type IncomingHttpHeaders, type RequestListener } from 'node:http';
import type { AddressInfo } from 'node:net';
import { text } from 'node:stream/consumers';
import OpenAI, { toFile } from 'openai';
import { Agent, fetch as undiciFetch } from 'undici';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { longFetch } from '../../src/gate/long-fetch.js';

let stop = async (): Promise<void> => {};
afterEach(() => stop());

/** A server for one test, and its address. */
async function serve(listener: RequestListener): Promise<string> {
  const server = createServer(listener);
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  stop = () => {
    server.closeAllConnections();
    return new Promise((resolve) => server.close(() => resolve()));
  };
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

interface Seen {
  readonly method: string;
  readonly headers: IncomingHttpHeaders;
  readonly body: string;
}

/** A server that echoes the request. */
const mirror = (): Promise<string> =>
  serve(async (request, response) => {
    const { method, headers } = request;
    response.end(JSON.stringify({ method, headers, body: await text(request) }));
  });

const fetch = longFetch({ fetch: undiciFetch, Agent });
const seenBy = async (response: Promise<Response>): Promise<Seen> => (await (await response).json()) as Seen;

describe('longFetch', () => {
  it('has neither a timeout for headers nor one for a body', async () => {
    const made: object[] = [];
    class Spy {
      constructor(options: object) {
        made.push(options);
      }
    }
    const inner = vi.fn(async (_input: unknown, _init?: object) => new Response('x'));
    const fetch = longFetch({ fetch: inner, Agent: Spy });
    await fetch('http://127.0.0.1/', { method: 'POST' });
    await fetch('http://127.0.0.1/');
    expect(made).toEqual([{ headersTimeout: 0, bodyTimeout: 0 }]);
    expect(inner.mock.calls[0]).toEqual([
      'http://127.0.0.1/',
      { method: 'POST', dispatcher: expect.any(Spy) },
    ]);
    expect(inner.mock.calls[1]).toEqual(['http://127.0.0.1/', { dispatcher: expect.any(Spy) }]);
  });

  it('waits for headers and body parts beyond the timeouts of a default agent', async () => {
    let answer: () => void = () => {};
    const timeToAnswer = new Promise<void>((resolve) => (answer = resolve));
    const url = await serve((request, response) => {
      if (request.url === '/body') response.write('la');
      void timeToAnswer.then(() => response.end(request.url === '/body' ? 'te' : 'late'));
    });
    const dispatcher = new Agent({ headersTimeout: 100, bodyTimeout: 100 });
    const bounded = async (path: string) => (await undiciFetch(`${url}${path}`, { dispatcher })).text();
    const long = async (path: string) => (await fetch(`${url}${path}`)).text();
    const waiting = [long('/headers'), long('/body')];
    await Promise.all([
      expect(bounded('/headers')).rejects.toMatchObject({ cause: { code: 'UND_ERR_HEADERS_TIMEOUT' } }),
      expect(bounded('/body')).rejects.toMatchObject({ cause: { code: 'UND_ERR_BODY_TIMEOUT' } }),
    ]);
    answer();
    expect(await Promise.all(waiting)).toEqual(['late', 'late']);
    await dispatcher.close();
  });

  it('works with undici, under the OpenAI SDK, and still honors its signal', async () => {
    const url = await serve((request, response) => {
      if (request.url === '/v1/models') {
        response.setHeader('content-type', 'application/json');
        response.end(JSON.stringify({ object: 'list', data: [{ id: 'm' }] }));
      }
    });
    const openai = new OpenAI({ apiKey: 'none', baseURL: `${url}/v1`, maxRetries: 0, fetch });
    const models = await openai.models.list();
    expect(models.data).toMatchObject([{ id: 'm' }]);
    const silent = fetch(`${url}/never`, { signal: AbortSignal.timeout(50) });
    await expect(silent).rejects.toMatchObject({ name: 'TimeoutError' });
  });

  it("sends Node's own FormData as a form", async () => {
    const url = await mirror();
    const body = new FormData();
    body.append('purpose', 'a test');
    body.append('file', new File(['some text'], 'a.txt', { type: 'text/plain' }));
    const seen = await seenBy(fetch(url, { method: 'POST', body, headers: { 'x-mine': '1' } }));
    expect(seen.method).toBe('POST');
    expect(seen.headers).toMatchObject({ 'x-mine': '1', 'content-length': String(seen.body.length) });
    const form = await new Response(seen.body, {
      headers: { 'content-type': seen.headers['content-type'] as string },
    }).formData();
    expect(form.get('purpose')).toBe('a test');
    expect(form.get('file')).toMatchObject({ name: 'a.txt', type: 'text/plain' });
    await expect((form.get('file') as File).text()).resolves.toBe('some text');
  });

  it('uploads a file for the OpenAI SDK', async () => {
    let sent = '';
    const url = await serve(async (request, response) => {
      sent = await text(request);
      response.setHeader('content-type', 'application/json');
      response.end(JSON.stringify({ id: 'file-1', object: 'file' }));
    });
    const openai = new OpenAI({ apiKey: 'none', baseURL: url, maxRetries: 0, fetch });
    const file = await toFile(Buffer.from('some text'), 'a.jsonl');
    await expect(openai.files.create({ file, purpose: 'batch' })).resolves.toMatchObject({ id: 'file-1' });
    expect(sent).toMatch(/name="file"; filename="a.jsonl"[\s\S]*some text/);
  });

  it("accepts Node's own Request, with its method, headers and body", async () => {
    const url = await mirror();
    const request = new Request(url, { method: 'PUT', body: 'some text', headers: { 'x-mine': '1' } });
    await expect(seenBy(fetch(request))).resolves.toMatchObject({
      method: 'PUT',
      headers: { 'x-mine': '1', 'content-length': '9', 'content-type': 'text/plain;charset=UTF-8' },
      body: 'some text',
    });
    expect(request.bodyUsed).toBe(true);
    await expect(fetch(request)).rejects.toThrow(TypeError);
    await expect(seenBy(fetch(new Request(url)))).resolves.toMatchObject({ method: 'GET', body: '' });
    const other = { method: 'POST', body: 'other', headers: { 'x-mine': '2' } };
    await expect(seenBy(fetch(new Request(url), other))).resolves.toMatchObject({
      method: 'POST',
      headers: { 'x-mine': '2' },
      body: 'other',
    });
  });

  it('honors the redirect mode of a Request', async () => {
    const url = await serve((request, response) => {
      if (request.url === '/old') response.writeHead(307, { location: '/new' });
      text(request).then((body) => response.end(body));
    });
    const old = (redirect: 'follow' | 'manual') =>
      new Request(`${url}/old`, { method: 'POST', body: 'some text', redirect });
    const followed = await fetch(old('follow'));
    await expect(followed.text()).resolves.toBe('some text');
    expect((await fetch(old('manual'))).status).toBe(307);
  });

  it('honors the signal of a Request that has no other reference', async () => {
    const url = await serve((_, response) => void response.write('half'));
    const control = new AbortController();
    const response = await fetch(new Request(url, { signal: control.signal }));
    for (let i = 0; i < 5; i++) {
      await new Promise((resolve) => setImmediate(resolve));
      (globalThis as unknown as { gc(): void }).gc();
    }
    const reading = response.text();
    control.abort();
    await expect(reading).rejects.toMatchObject({ name: 'AbortError' });
  });

  it('throws if a required part is missing', () => {
    expect(() => longFetch({ fetch: undiciFetch } as never)).toThrow('`Agent`');
    expect(() => longFetch({ Agent } as never)).toThrow('`fetch`');
    expect(() => longFetch(undefined as never)).toThrow('longFetch');
  });
});
