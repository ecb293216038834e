import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { json } from 'node:stream/consumers';
import {
  createPipelineManager,
  healthHandler,
  LifecycleHooks,
  type Logger,
  livePage,
  loadConfig,
  logTo,
  type PipelineConfig,
  pipelineFactory,
  recordTimeline,
  toHttpStatus,
} from 'pipeline-pool';
import { traceTo } from 'pipeline-pool/opentelemetry';
import { collectMetrics } from 'pipeline-pool/prometheus';
import { Registry } from 'prom-client';
import { connectClients, type ServiceSettings } from './clients.js';
import { buildGates, buildTools, type GateSettings, type Progress, research } from './research.js';

export interface ResearchServerOptions {
  readonly services: ServiceSettings;
  /** @default loadConfig() */
  readonly config?: PipelineConfig;
  readonly gates?: GateSettings;
  /** @default 0, any that is free */
  readonly port?: number;
  /** @default console */
  readonly logger?: Logger;
  /** Who may see the live page. @default whoever has this machine's loopback address */
  readonly isOperator?: (request: IncomingMessage) => boolean;
}

/**
 * A research service: `POST /research` with `{ "question": "…" }` answers with server-sent events. A client that leaves
 * ends its request, wherever that is, and gives back what it held.
 */
export async function startResearchServer({
  services,
  config = loadConfig(),
  gates: gateSettings = {},
  port = 0,
  logger = console,
  isOperator = ({ socket }) => socket.remoteAddress === '127.0.0.1' || socket.remoteAddress === '::1',
}: ResearchServerOptions) {
  const hooks = new LifecycleHooks();
  const clients = connectClients(services);
  const gates = buildGates(services, gateSettings, hooks);
  const factory = pipelineFactory({ mainAgent: buildTools(clients, gates), hooks });
  const manager = createPipelineManager({
    ...factory,
    config,
    gates: Object.values(gates),
    diagnosis: true,
    hooks,
  });

  // All that looks on. None of it stands in a request's way.
  logTo(hooks, logger);
  const registry = new Registry();
  collectMetrics(hooks, { registry, sources: manager });
  const tracing = traceTo(hooks);
  const timeline = recordTimeline(hooks, { maxRequests: 200 });
  const live = livePage(manager, { authorise: isOperator });

  const answer = async (request: IncomingMessage, response: ServerResponse): Promise<void> => {
    const question = await questionOf(request);
    if (question === undefined) {
      sendJson(response, 400, { error: 'Expected a JSON object with a `question`' });
      return;
    }
    const left = new AbortController();
    response.once('close', () => left.abort());
    const tenant = request.headers['x-tenant']?.toString();
    const stream = manager.stream(
      randomUUID(),
      (context) => tracing.withSpan(context, () => research(context, question, clients, gates)),
      { signal: left.signal, ...(tenant === undefined ? {} : { tenant }) },
    );
    try {
      // The first item comes when the request has begun: until then it can still be refused with a status of its own.
      for await (const progress of stream) await send(response, progress, left.signal);
      response.end();
    } catch (error) {
      if (left.signal.aborted) return;
      fail(response, error);
    }
  };

  const routes: Record<string, (request: IncomingMessage, response: ServerResponse) => unknown> = {
    'POST /research': answer,
    'GET /health': healthHandler(manager),
    'GET /health/live': healthHandler(manager, { probe: 'liveness' }),
    'GET /live': live,
    'GET /diagnosis': (_, response) => sendJson(response, 200, manager.diagnose()),
    'GET /timeline.svg': (_, response) => {
      response.writeHead(200, { 'content-type': 'image/svg+xml' }).end(timeline.toSvg());
    },
    'GET /metrics': async (_, response) => {
      const metrics = await registry.metrics();
      response.writeHead(200, { 'content-type': registry.contentType }).end(metrics);
    },
  };
  const server = createServer((request, response) => {
    const route = routes[`${request.method} ${request.url?.split('?')[0]}`];
    if (route === undefined) {
      sendJson(response, 404, { error: 'There is no such thing' });
      return;
    }
    Promise.resolve(route(request, response)).catch((error: unknown) => fail(response, error));
  });
  server.listen(port, '127.0.0.1');
  await once(server, 'listening');

  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    manager,
    gates,
    timeline,
    /** Takes no further requests, gives those under way `timeoutMs`, and ends. */
    async close({ timeoutMs = 15_000 }: { readonly timeoutMs?: number } = {}): Promise<void> {
      await manager.shutdown({ timeoutMs });
      await factory.close();
      live.close();
      tracing.stop();
      server.closeIdleConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

async function questionOf(request: IncomingMessage): Promise<string | undefined> {
  const body = await json(request).catch(() => undefined);
  const { question } = (body ?? {}) as { readonly question?: unknown };
  return typeof question === 'string' && question !== '' ? question : undefined;
}

/** Writes one event, and waits where the client reads more slowly than the model speaks. */
async function send(
  response: ServerResponse,
  { event, ...data }: Progress,
  signal: AbortSignal,
): Promise<void> {
  if (!response.headersSent) {
    response.writeHead(200, { 'content-type': 'text/event-stream', 'cache-control': 'no-store' });
  }
  const taken = response.write(`event: ${event}\ndata: ${JSON.stringify(data)}\n\n`);
  if (!taken) await once(response, 'drain', { signal });
}

/** Says what went wrong: with a status while that is possible, and as the last event after that. */
function fail(response: ServerResponse, error: unknown): void {
  const http = toHttpStatus(error);
  if (response.headersSent) {
    response.end(`event: error\ndata: ${JSON.stringify({ retry: http !== undefined })}\n\n`);
    return;
  }
  if (http !== undefined) response.setHeader('retry-after', http.retryAfterSeconds);
  sendJson(response, http?.status ?? 500, {
    error: http === undefined ? 'It went wrong' : 'Come back later',
  });
}

function sendJson(response: ServerResponse, status: number, body: object): void {
  response.writeHead(status, { 'content-type': 'application/json' }).end(`${JSON.stringify(body)}\n`);
}
