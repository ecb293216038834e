import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import {
  createPipelineManager,
  eventStream,
  healthHandler,
  LifecycleHooks,
  type Logger,
  loadConfig,
  logTo,
  type PipelineConfig,
  pipelineFactory,
} from 'pipeline-pool';
import { diagnose, recordDiagnosis } from 'pipeline-pool/diagnosis';
import { livePage } from 'pipeline-pool/live-page';
import { traceTo } from 'pipeline-pool/opentelemetry';
import { collectMetrics } from 'pipeline-pool/prometheus';
import { recordTimeline } from 'pipeline-pool/timeline';
import { Registry } from 'prom-client';
import type { ServiceSettings } from '../host-clients.js';
import { connectResearchClients } from './clients.js';
import { buildGates, buildTools, type GateSettings, research } from './research.js';

/** The longest question with its JSON around it: a larger body is rejected before it is read. */
const MAX_BODY_BYTES = 64 * 1024;

export interface ResearchServerOptions {
  readonly services: ServiceSettings;
  /** @default loadConfig() */
  readonly config?: PipelineConfig;
  readonly gates?: GateSettings;
  /** @default 0, any free port */
  readonly port?: number;
  /** @default console */
  readonly logger?: Logger;
  /** Whether a client may view the live page. @default loopback addresses only */
  readonly isOperator?: (request: IncomingMessage) => boolean;
}

/**
 * A research service: `POST /research` with `{ "question": "…" }` answers with server-sent events. A client that
 * disconnects ends its request in any state, and frees what it held.
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
  const clients = connectResearchClients(services);
  const gates = buildGates(services, gateSettings, hooks);
  const factory = pipelineFactory({ mainAgent: buildTools(clients, gates), hooks });
  const manager = createPipelineManager({ ...factory, config, gates: Object.values(gates), hooks });

  // Observers. None of them affects a request.
  logTo(hooks, logger);
  const registry = new Registry();
  collectMetrics(hooks, { registry, sources: manager });
  const tracing = traceTo(hooks);
  recordDiagnosis(manager);
  const timeline = recordTimeline(hooks, { maxRequests: 200 });
  const live = livePage(manager, { authorize: isOperator });

  const answer = async (request: IncomingMessage, response: ServerResponse): Promise<void> => {
    const body = await bodyOf(request);
    if (body === undefined) {
      // What is still being sent is not kept, and the connection ends with the response.
      request.resume();
      response.setHeader('connection', 'close');
      sendJson(response, 413, { error: `The body must not exceed ${MAX_BODY_BYTES} bytes` });
      return;
    }
    const question = questionIn(body);
    if (question === undefined) {
      sendJson(response, 400, { error: 'Expected a JSON object with a `question`' });
      return;
    }
    // An empty header is none.
    const tenant = request.headers['x-tenant']?.toString().trim() || undefined;
    const stream = manager.stream(
      randomUUID(),
      (context) => tracing.withSpan(context, () => research(context, question, clients, gates)),
      { tenant },
    );
    // The first item arrives when the request has started: until then it can be rejected with its own HTTP status.
    await eventStream(
      stream,
      { request, response },
      { event: ({ event }) => event, data: ({ event: _, ...data }) => JSON.stringify(data) },
    );
  };

  const routes: Record<string, (request: IncomingMessage, response: ServerResponse) => unknown> = {
    'POST /research': answer,
    'GET /health': healthHandler(manager),
    'GET /health/live': healthHandler(manager, { probe: 'liveness' }),
    'GET /live': live,
    'GET /diagnosis': (_, response) => sendJson(response, 200, diagnose(manager)),
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
    Promise.resolve(route(request, response)).catch(() => {
      if (response.headersSent) response.destroy();
      else sendJson(response, 500, { error: 'It went wrong' });
    });
  });
  server.listen(port, '127.0.0.1');
  await once(server, 'listening');

  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    manager,
    gates,
    timeline,
    /** Rejects new requests, gives running ones `timeoutMs`, and ends. */
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

/** The body of a request; `undefined` if it exceeds the limit, as soon as that is known. */
async function bodyOf(request: IncomingMessage): Promise<string | undefined> {
  if (Number(request.headers['content-length']) > MAX_BODY_BYTES) return undefined;
  const chunks: Buffer[] = [];
  let bytes = 0;
  // Not destroyed at `return`: the response goes through the same socket.
  for await (const chunk of request.iterator({ destroyOnReturn: false })) {
    bytes += (chunk as Buffer).length;
    if (bytes > MAX_BODY_BYTES) return undefined;
    chunks.push(chunk as Buffer);
  }
  return Buffer.concat(chunks).toString();
}

function questionIn(body: string): string | undefined {
  try {
    const { question } = (JSON.parse(body) ?? {}) as { readonly question?: unknown };
    return typeof question === 'string' && question !== '' ? question : undefined;
  } catch {
    return undefined;
  }
}

function sendJson(response: ServerResponse, status: number, body: object): void {
  response.writeHead(status, { 'content-type': 'application/json' }).end(`${JSON.stringify(body)}\n`);
}
