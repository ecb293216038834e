import { createServer, request as httpRequest, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { serve } from '@hono/node-server';
import express from 'express';
import fastify from 'fastify';
import { Hono } from 'hono';
import { createPipelineManager, type Health, healthHandler, type PipelineManager } from 'pipeline-pool';
import { afterEach, describe, expect, it } from 'vitest';

const closers: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0)) await close();
});

const buildManager = () =>
  createPipelineManager({ config: { poolSize: 5, maxConcurrentRequests: 10 }, create: () => ({}) });

async function listen(server: Server): Promise<string> {
  if (!server.listening) await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  closers.push(() => new Promise((resolve) => server.close(resolve)));
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

type Mount = (manager: PipelineManager<object>) => Promise<string>;

/** A service on each framework, with `/health` and `/health/live`. */
const frameworks: Readonly<Record<string, Mount>> = {
  "Node's http": async (manager) => {
    const ready = healthHandler(manager);
    const live = healthHandler(manager, { probe: 'liveness' });
    return listen(
      createServer((request, response) => (request.url === '/health' ? ready : live)(request, response)),
    );
  },
  Express: async (manager) => {
    const app = express();
    app.get('/health', healthHandler(manager));
    app.get('/health/live', healthHandler(manager, { probe: 'liveness' }));
    return listen(createServer(app));
  },
  Fastify: async (manager) => {
    const app = fastify();
    const mount = (path: string, handler: ReturnType<typeof healthHandler>): void => {
      app.get(path, (request, reply) => {
        reply.hijack();
        handler(request.raw, reply.raw);
      });
    };
    mount('/health', healthHandler(manager));
    mount('/health/live', healthHandler(manager, { probe: 'liveness' }));
    closers.push(() => app.close());
    return app.listen({ port: 0, host: '127.0.0.1' });
  },
  Hono: async (manager) => {
    const app = new Hono();
    const ready = healthHandler(manager);
    const live = healthHandler(manager, { probe: 'liveness' });
    app.get('/health', ({ req }) => ready(req.raw));
    app.get('/health/live', ({ req }) => live(req.raw));
    const server = await new Promise<Server>((resolve) => {
      const started = serve({ fetch: app.fetch, port: 0, hostname: '127.0.0.1' }, () =>
        resolve(started as Server),
      );
    });
    return listen(server);
  },
};

describe.each(Object.entries(frameworks))('healthHandler under %s', (_, mount) => {
  it('answers 200 with the health as JSON that must not be cached', async () => {
    const manager = buildManager();
    const response = await fetch(`${await mount(manager)}/health`);
    expect(response.status).toBe(200);
    expect(response.headers.get('content-type')).toBe('application/json; charset=utf-8');
    expect(response.headers.get('cache-control')).toBe('no-store');
    expect(await response.text()).toMatch(/^\{"status":"healthy","active_requests":0,"pool_size":5,.*\}\n$/);
  });

  it('answers 503 to readiness and 200 to liveness while it shuts down', async () => {
    const manager = buildManager();
    const url = await mount(manager);
    await manager.shutdown();
    const [ready, live] = await Promise.all([fetch(`${url}/health`), fetch(`${url}/health/live`)]);
    expect(ready.status).toBe(503);
    expect(live.status).toBe(200);
    expect(((await ready.json()) as Health).status).toBe('draining');
    expect(((await live.json()) as Health).status).toBe('draining');
  });
});

describe('healthHandler', () => {
  it('stays ready while degraded: the requests would wait elsewhere too', async () => {
    const degraded = { ...buildManager().health(), status: 'degraded' } as const;
    const url = await listen(createServer(healthHandler({ health: () => degraded })));
    expect((await fetch(url)).status).toBe(200);
  });

  it('answers 503 while unhealthy', async () => {
    const unhealthy = { ...buildManager().health(), status: 'unhealthy' } as const;
    const url = await listen(createServer(healthHandler({ health: () => unhealthy })));
    expect((await fetch(url)).status).toBe(503);
  });

  it('answers 503, and keeps the process alive, when a limiter or a gate of the host cannot be read', async () => {
    const health = (): Health => {
      throw new Error('the store of the limiter does not answer');
    };
    const url = await listen(createServer(healthHandler({ health })));
    const response = await fetch(url);
    expect(response.status).toBe(503);
    expect(await response.json()).toEqual({
      status: 'unhealthy',
      reasons: ['The figures cannot be read'],
    });
  });

  it('answers HEAD with the headers alone', async () => {
    const url = await listen(createServer(healthHandler(buildManager())));
    const response = await fetch(url, { method: 'HEAD' });
    expect(response.status).toBe(200);
    expect(Number(response.headers.get('content-length'))).toBeGreaterThan(50);
    expect(await response.text()).toBe('');
  });

  it('answers other methods with 405', async () => {
    const url = await listen(createServer(healthHandler(buildManager())));
    const response = await fetch(url, { method: 'POST', body: 'x' });
    expect(response.status).toBe(405);
    expect(response.headers.get('allow')).toBe('GET, HEAD');
  });

  it('answers a web Request with a Response, whatever its server passes beside it', async () => {
    const GET: (request: Request, context: object) => Response = healthHandler(buildManager());
    const response = GET(new Request('http://localhost/health'), { params: {} });
    expect(response.status).toBe(200);
    expect(response.headers.get('cache-control')).toBe('no-store');
    expect(await response.json()).toMatchObject({ status: 'healthy', pool_size: 5 });
    const head = GET(new Request('http://localhost/health', { method: 'HEAD' }), {});
    expect([head.status, await head.text()]).toEqual([200, '']);
    expect(GET(new Request('http://localhost/health', { method: 'POST' }), {}).status).toBe(405);
  });

  it('survives a client that leaves before the answer', async () => {
    const url = await listen(createServer(healthHandler(buildManager())));
    const client = httpRequest(url);
    client.on('error', () => {});
    client.flushHeaders();
    client.destroy();
    expect((await fetch(url)).status).toBe(200);
  });

  it('rejects what is not a manager, and unknown options', () => {
    expect(() => healthHandler({} as never)).toThrow(/Expected `manager` to be a PipelineManager/);
    expect(() => healthHandler(buildManager(), { probe: 'startup' as never })).toThrow(/`probe`.*"startup"/);
    expect(() => healthHandler(buildManager(), { path: '/health' } as never)).toThrow(
      /Unknown option `path`/,
    );
  });
});
