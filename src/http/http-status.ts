import { PipelinePoolError, type PipelinePoolErrorCode } from '../errors.js';

/** What to answer a client whose request the library ended. */
export interface HttpStatus {
  readonly status: 429 | 503 | 504;
  /** For the `Retry-After` header: whole seconds, 1 at least. */
  readonly retryAfterSeconds: number;
}

const STATUS: Readonly<Partial<Record<PipelinePoolErrorCode, HttpStatus['status']>>> = {
  ERR_QUEUE_FULL: 429,
  ERR_ACQUIRE_TIMEOUT: 503,
  ERR_DEADLINE_UNMEETABLE: 503,
  ERR_LIMITER_CLOSED: 503,
  ERR_POOL_CLOSED: 503,
  ERR_MANAGER_CLOSED: 503,
  ERR_GATE_CLOSED: 503,
  ERR_CREATE_FAILED: 503,
  ERR_PREPARE_FAILED: 503,
  ERR_KEYS_EXHAUSTED: 503,
  ERR_LEASE_REVOKED: 503,
  ERR_REQUEST_TIMEOUT: 504,
  ERR_GATE_TIMEOUT: 504,
  ERR_TOOL_TIMEOUT: 504,
};

/**
 * The HTTP answer for an error of this library that a client can do something about: come back later. Gives `undefined`
 * for every other error.
 *
 * @example
 * const http = toHttpStatus(error);
 * if (http === undefined) throw error;
 * response.writeHead(http.status, { 'retry-after': http.retryAfterSeconds }).end();
 */
export function toHttpStatus(error: unknown): HttpStatus | undefined {
  if (!(error instanceof PipelinePoolError)) return undefined;
  const status = STATUS[error.code];
  if (status === undefined) return undefined;
  const { retryAfterMs } = error as { readonly retryAfterMs?: unknown };
  const seconds = typeof retryAfterMs === 'number' ? Math.ceil(retryAfterMs / 1000) : 1;
  return { status, retryAfterSeconds: Math.max(1, seconds) };
}
