import type { IncomingMessage, ServerResponse } from 'node:http';
import { options as checkOptions, oneOf, optional, refusal } from '../internal/validate.js';
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

/** A handler of Node's `http`, and of every framework that gives access to Node's request and response. */
export type HttpHandler = (request: IncomingMessage, response: ServerResponse) => void;

/**
 * Answers health checks with what `health()` says, as JSON: 200 when the service can take requests, 503 when not.
 *
 * It is a handler of Node's `http` and of Express as it is. Fastify and Hono have Node's own request and response as
 * `request.raw` and `reply.raw`, `c.env.incoming` and `c.env.outgoing`; see docs/operations.md.
 *
 * @throws {TypeError} for a wrong option
 *
 * @example
 * app.get('/health', healthHandler(manager));
 * app.get('/health/live', healthHandler(manager, { probe: 'liveness' }));
 */
export function healthHandler(
  manager: { health(): Health },
  options: HealthHandlerOptions = {},
): HttpHandler {
  if (typeof manager?.health !== 'function') {
    throw new TypeError(refusal('manager', 'a PipelineManager', manager));
  }
  checkOptions('healthHandler', options, ['probe']);
  const probe = optional('probe', options.probe, (option, value) =>
    oneOf(option, value, ['readiness', 'liveness']),
  );
  return ({ method }, response) => {
    if (method !== 'GET' && method !== 'HEAD') {
      response.writeHead(405, { allow: 'GET, HEAD' }).end();
      return;
    }
    const health = read(manager);
    const ready = health.status === 'healthy' || health.status === 'degraded';
    const body = `${JSON.stringify(health)}\n`;
    response.writeHead(ready || probe === 'liveness' ? 200 : 503, {
      'content-type': 'application/json; charset=utf-8',
      'content-length': Buffer.byteLength(body),
      'cache-control': 'no-store',
    });
    response.end(method === 'HEAD' ? undefined : body);
  };
}

/** A limiter or a gate of the host's own may fail to count: that must not end the process. */
function read(manager: { health(): Health }): Pick<Health, 'status' | 'reasons'> {
  try {
    return manager.health();
  } catch {
    return { status: 'unhealthy', reasons: ['The figures cannot be read'] };
  }
}
