import { PipelinePoolError, type PipelinePoolErrorCode } from '../errors.js';
import { errorBodyOf, errorHeadersOf, errorStatusOf } from '../gate/response-content.js';
import { type HeaderSource, retryAfterMsOf } from '../gate/retry-after.js';
import { fieldOf, readError } from '../internal/redaction.js';

/** Every code, with the HTTP status of its error; `undefined` for a bug of the host, and for what its cause decides. */
export const STATUS_OF_CODE: Readonly<Record<PipelinePoolErrorCode, 429 | 503 | 504 | undefined>> = {
  ERR_QUEUE_FULL: 429,
  ERR_ACQUIRE_TIMEOUT: 504,
  ERR_DEADLINE_UNMEETABLE: 429,
  ERR_NESTED_ACQUIRE: undefined,
  ERR_LIMITER_CLOSED: 503,
  ERR_LIMIT_LOST: 503,
  ERR_LIMITS_UNAVAILABLE: 503,
  ERR_POOL_CLOSED: 503,
  ERR_DRAIN_TIMEOUT: undefined,
  ERR_CREATE_FAILED: 503,
  ERR_PREPARE_FAILED: 503,
  ERR_CALLBACK_TIMEOUT: undefined,
  ERR_LEASE_RELEASED: undefined,
  ERR_LEASE_REVOKED: 503,
  ERR_INSTANCE_GONE: undefined,
  ERR_MANAGER_CLOSED: 503,
  ERR_REQUEST_TIMEOUT: 504,
  ERR_GATE_TIMEOUT: 504,
  ERR_GATE_CLOSED: 503,
  ERR_KEYS_EXHAUSTED: 503,
  ERR_TOOL_UNKNOWN: undefined,
  ERR_TOOL_TIMEOUT: 504,
  ERR_TOOL_FAILED: undefined,
  ERR_BUDGET_EXCEEDED: 429,
};

/** What `findPoolError` returns. */
export type FoundPoolError = PipelinePoolError & {
  /** Milliseconds after which a retry makes sense, where that is known. */
  readonly retryAfterMs?: number | undefined;
};

/**
 * The error of this library in what a client or a framework threw: the error itself, or the first that its `cause`,
 * `errors`, `lastError` or `error` leads to. Gives `undefined` if there is none.
 *
 * Where a client kept only the body of a response that `gate.fetch` returned, or only a `code`, the error is rebuilt: a
 * `PipelinePoolError` with that code, the message, `retryAfterMs` from the `Retry-After` of the response, and `error` as
 * its `cause`. It is of no subclass, whose figures are lost: narrow by `code`.
 *
 * Never throws. Looks at no more than 64 values, eight deep.
 *
 * @example
 * try {
 *   await generateText({ model, prompt });
 * } catch (error) {
 *   if (findPoolError(error)?.code === 'ERR_KEYS_EXHAUSTED') return answerFromArchive();
 *   throw error;
 * }
 */
export function findPoolError(error: unknown): FoundPoolError | undefined {
  for (const link of linksOf(error)) {
    const found = poolErrorIn(link, error);
    if (found !== undefined) return found;
  }
  return undefined;
}

/** One value in the graph of an error. */
export interface ErrorLink {
  readonly value: object;
  /** The HTTP status of a failure. */
  readonly status: number | undefined;
  /** The headers of the value, or else of the one that led to it: a body has none. */
  readonly headers: HeaderSource;
}

const MAX_LINKS = 64;
const MAX_DEPTH = 8;
const MAX_ERRORS = 16;

/** The values that an error leads to, itself first, the nearest first. Never throws. */
export function* linksOf(error: unknown): Generator<ErrorLink, void, undefined> {
  const seen = new Set<unknown>();
  const waiting: { value: unknown; headers: HeaderSource; depth: number }[] = [
    { value: error, headers: undefined, depth: 0 },
  ];
  for (const { value, headers, depth } of waiting) {
    if (typeof value !== 'object' || value === null || seen.has(value)) continue;
    if (seen.size === MAX_LINKS) return;
    seen.add(value);
    const link = { value, status: errorStatusOf(value), headers: errorHeadersOf(value) ?? headers };
    yield link;
    if (depth === MAX_DEPTH) continue;
    for (const next of [
      fieldOf(value, 'cause'),
      fieldOf(value, 'lastError'),
      fieldOf(value, 'error'),
      errorBodyOf(value).parsed,
      ...itemsOf(fieldOf(value, 'errors')),
    ])
      waiting.push({ value: next, headers: link.headers, depth: depth + 1 });
  }
}

/** The error of this library that a value is, or was. */
export function poolErrorIn(
  { value, status, headers }: ErrorLink,
  original: unknown,
): FoundPoolError | undefined {
  if (value instanceof PipelinePoolError) return value;
  const { code, message } = readError(value);
  if (typeof code !== 'string' || !Object.hasOwn(STATUS_OF_CODE, code)) return undefined;
  const source = fieldOf(value, 'source');
  const retryAfterMs = retryAfterMsOf(status ?? 429, headers) ?? fieldOf(value, 'retryAfterMs');
  return new PipelinePoolError(
    code as PipelinePoolErrorCode,
    typeof source === 'string' && source !== '' ? source : 'unknown',
    message || `The request ended with ${code}`,
    typeof retryAfterMs === 'number' && retryAfterMs < Number.POSITIVE_INFINITY
      ? { retryAfterMs }
      : undefined,
    original,
  );
}

/** The first items of an array of the host's. */
function itemsOf(value: unknown): unknown[] {
  const items: unknown[] = [];
  try {
    if (Array.isArray(value))
      for (let i = 0; i < Math.min(value.length, MAX_ERRORS); i++) items.push(value[i]);
  } catch {
    // A proxy that throws has shown all that it shows.
  }
  return items;
}
