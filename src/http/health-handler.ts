import type { IncomingMessage, ServerResponse } from 'node:http';
import { checkEach, oneOf, refusal } from '../internal/validate.js';
import type { Health } from '../manager/health.js';

/** Options of `healthHandler`. */
export interface HealthHandlerOptions {
  /**
   * `readiness` answers 503 while no request can be served (`draining` or `unhealthy`), so that no more are sent here.
   * `liveness` always answers 200: that there is an answer is the proof, and nothing that health looks at is mended by
   * a restart.
   * @default 'readiness'
   */
  readonly probe?: 'readiness' | 'liveness' | undefined;
}

/** A handler of Node's `http`, which answers a web `Request` with a `Response` as well. */
export interface HttpHandler {
  (request: IncomingMessage, response: ServerResponse): void;
  (request: Request): Response;
}

/**
 * Answers health checks with the result of `health()` as JSON: 200 when the service can take requests, 503 when not.
 *
 * The handler fits Node's `http` and Express as it is. For Fastify pass `request.raw` and `reply.raw`; for Hono, Next.js,
 * Bun and Deno pass the web `Request` alone, and return the `Response`.
 *
 * @throws {TypeError} for a wrong option
 *
 * @example
 * app.get('/health', healthHandler(manager));
 * app.get('/health/live', healthHandler(manager, { probe: 'liveness' }));
 *
 * @example
 * const health = healthHandler(manager);
 * app.get('/health', ({ req }) => health(req.raw));
 */
export function healthHandler(
  manager: { health(): Health },
  options: HealthHandlerOptions = {},
): HttpHandler {
  if (typeof manager?.health !== 'function') {
    throw new TypeError(refusal('manager', 'a PipelineManager', manager));
  }
  const { probe } = checkEach('healthHandler', options, {
    probe: (option, value) => oneOf(option, value, ['readiness', 'liveness']),
  });
  const answerTo = (method?: string): [number, Record<string, string>, string?] => {
    if (method !== 'GET' && method !== 'HEAD') return [405, { allow: 'GET, HEAD' }];
    const health = read(manager);
    const ready = health.status === 'healthy' || health.status === 'degraded';
    const body = `${JSON.stringify(health)}\n`;
    const headers = {
      'content-type': 'application/json; charset=utf-8',
      'content-length': String(Buffer.byteLength(body)),
      'cache-control': 'no-store',
    };
    return [ready || probe === 'liveness' ? 200 : 503, headers, method === 'HEAD' ? undefined : body];
  };
  return ((request: { readonly method?: string }, response?: ServerResponse) => {
    const [status, headers, body] = answerTo(request.method);
    if (typeof response?.writeHead !== 'function') return new Response(body ?? null, { status, headers });
    response.writeHead(status, headers).end(body);
    return undefined;
  }) as HttpHandler;
}

/** A limiter or a gate of the host's own may fail to count: that must not end the process. */
function read(manager: { health(): Health }): Pick<Health, 'status' | 'reasons'> {
  try {
    return manager.health();
  } catch {
    return { status: 'unhealthy', reasons: ['The figures cannot be read'] };
  }
}
