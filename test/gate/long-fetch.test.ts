import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import OpenAI from 'openai';
import { Agent, fetch as undiciFetch } from 'undici';
import { describe, expect, it, vi } from 'vitest';
import { longFetch } from '../../src/gate/long-fetch.js';

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

  it('works with undici, under the OpenAI SDK, and still ends by its signal', async () => {
    const server = createServer((request, response) => {
      if (request.url === '/v1/models') {
        response.setHeader('content-type', 'application/json');
        response.end(JSON.stringify({ object: 'list', data: [{ id: 'm' }] }));
      }
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    const { port } = server.address() as AddressInfo;
    const fetch = longFetch({ fetch: undiciFetch, Agent });
    const openai = new OpenAI({
      apiKey: 'none',
      baseURL: `http://127.0.0.1:${port}/v1`,
      maxRetries: 0,
      fetch,
    });
    const models = await openai.models.list();
    expect(models.data).toMatchObject([{ id: 'm' }]);
    const silent = fetch(`http://127.0.0.1:${port}/never`, { signal: AbortSignal.timeout(50) });
    await expect(silent).rejects.toMatchObject({ name: 'TimeoutError' });
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
  });

  it('refuses to do without its parts', () => {
    expect(() => longFetch({ fetch: undiciFetch } as never)).toThrow('`Agent`');
    expect(() => longFetch({ Agent } as never)).toThrow('`fetch`');
    expect(() => longFetch(undefined as never)).toThrow('longFetch');
  });
});
