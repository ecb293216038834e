import { isNetworkFailure } from '../gate/classify.js';
import { retryAfterMsOf } from '../gate/retry-after.js';
import { fieldOf, readError } from '../internal/redaction.js';
import { type ErrorLink, linksOf, poolErrorIn, STATUS_OF_CODE } from './find-pool-error.js';

/** What to answer a client whose request failed for a reason that passes. */
export interface HttpStatus {
  /** 429: too many requests. 502: an upstream service failed. 503: not available now. 504: it took too long. */
  readonly status: 429 | 502 | 503 | 504;
  /** For the `Retry-After` header: whole seconds, 1 at least. */
  readonly retryAfterSeconds: number;
}

/**
 * The HTTP answer for an error that a client can do something about, by coming back later: an error of this library,
 * wherever `findPoolError` finds one, or a failure of an upstream service (`status`, `statusCode` or `response.status` of
 * 400 or more, or the code of a network failure), which is a 502. Gives `undefined` for every other error, never 500: a
 * bug of the host, an abort, and the HTTP errors of Express, Fastify and Hono, which say their own status.
 *
 * @example
 * const http = toHttpStatus(error);
 * if (http === undefined) throw error;
 * response.writeHead(http.status, { 'retry-after': http.retryAfterSeconds }).end();
 */
export function toHttpStatus(error: unknown): HttpStatus | undefined {
  const links = [...linksOf(error)];
  for (const link of links) {
    const found = poolErrorIn(link, error);
    const status = found && STATUS_OF_CODE[found.code];
    if (status !== undefined) return answer(status, found?.retryAfterMs);
  }
  for (const link of links) {
    if (isHostsOwn(link)) return undefined;
    const { status } = link;
    if (status !== undefined) return answer(502, retryAfterMsOf(status, link.headers));
    if (readError(link.value).name === 'TimeoutError') return answer(504);
    if (isNetworkFailure(link.value)) return answer(502);
  }
  return undefined;
}

const answer = (status: HttpStatus['status'], retryAfterMs?: number): HttpStatus => ({
  status,
  retryAfterSeconds: Math.max(1, Math.ceil((retryAfterMs ?? 0) / 1_000)),
});

/** An HTTP error that the host's framework made for the host's own client: of http-errors, Fastify, or Hono. */
const isHostsOwn = ({ value }: ErrorLink): boolean =>
  typeof fieldOf(value, 'expose') === 'boolean' ||
  typeof fieldOf(value, 'getResponse') === 'function' ||
  String(readError(value).code).startsWith('FST_');
