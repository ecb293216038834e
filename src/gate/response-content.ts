/**
 * What an outcome carries, wherever the host's client keeps it: status, headers and body. Every read of a foreign object
 * is guarded, and every body is bounded.
 */
import type { Readable } from 'node:stream';
import { type HeaderSource, headerOf } from './retry-after.js';

/** What an attempt returned or threw, as a classifier receives it. */
export type Observed =
  | { readonly kind: 'error'; readonly error: unknown }
  | { readonly kind: 'result'; readonly value: unknown }
  /** The first item of a stream: several services open a stream with 200 and report a failure in it. */
  | { readonly kind: 'first-item'; readonly value: unknown }
  /** A stream that ended without an item, and without an error. */
  | { readonly kind: 'no-item' };

export type Fields = Readonly<Record<string, unknown>>;

/** The part of a body that is read; what says why a call failed is shorter. */
const MAX_BODY_BYTES = 65_536;
/** How long the body of a failed response is waited for. Its status is known already. */
const MAX_BODY_MS = 5_000;

/** The status, the headers and the body of an outcome. */
export interface Content {
  /** The fields of a JSON body, with the `message` of an error that has none. */
  readonly body: Fields;
  readonly headers: HeaderSource;
  /** The HTTP status of a failure. */
  readonly status: number | undefined;
  /** `html` is a page of a proxy or a content network, and not a response of the service. */
  readonly format: 'json' | 'html' | 'unknown';
}

/** One field of a foreign value. Never throws. */
export function fieldOf(value: unknown, name: string): unknown {
  if ((typeof value !== 'object' && typeof value !== 'function') || value === null) return undefined;
  try {
    return (value as Fields)[name];
  } catch {
    return undefined;
  }
}

export const fields = (value: unknown): Fields =>
  typeof value === 'object' && value !== null ? (value as Fields) : {};

/** Whether it is the HTTP status of a failure. */
export const isErrorStatus = (value: unknown): value is number =>
  typeof value === 'number' && Number.isInteger(value) && value >= 400 && value <= 599;

/** A `Response` of any realm or library. */
export function isResponse(value: unknown): value is Response {
  return (
    typeof fieldOf(value, 'status') === 'number' &&
    typeof fieldOf(value, 'ok') === 'boolean' &&
    typeof fieldOf(fieldOf(value, 'headers'), 'get') === 'function'
  );
}

/**
 * Frees the connection behind a `Response` that no caller reads. Its body is a web stream, or one of Node.js, as in
 * node-fetch. Never throws, and leaves neither a rejection nor an error event unhandled.
 */
export function discardResponse(value: unknown): void {
  try {
    // A body that is being read belongs to its reader.
    if (!isResponse(value) || value.bodyUsed) return;
    const body = value.body as Partial<ReadableStream & Readable> | null | undefined;
    if (typeof body?.cancel === 'function') {
      Promise.resolve(body.cancel()).catch(() => {});
    } else if (typeof body?.destroy === 'function') {
      body.on?.('error', () => {});
      body.destroy();
    }
  } catch {
    // What cannot be freed is left to the garbage collector.
  }
}

/**
 * The status of a failure: of the error (`status`, `statusCode`), of its response (axios, superagent, got, ky), of a
 * response whose body was cut off (axios), or `code`, where an event of a stream has one.
 */
export function errorStatusOf(error: unknown): number | undefined {
  const response = fieldOf(error, 'response');
  return [
    fieldOf(error, 'status'),
    fieldOf(error, 'statusCode'),
    fieldOf(response, 'status'),
    fieldOf(response, 'statusCode'),
    fieldOf(fieldOf(fieldOf(error, 'request'), 'res'), 'statusCode'),
    fieldOf(error, 'code'),
  ].find(isErrorStatus);
}

/** The headers of a failure: `headers`, `responseHeaders` (AI SDK), or those of its response. */
export function errorHeadersOf(error: unknown): HeaderSource {
  const candidates = [
    fieldOf(error, 'headers'),
    fieldOf(error, 'responseHeaders'),
    fieldOf(fieldOf(error, 'response'), 'headers'),
    fieldOf(fieldOf(fieldOf(error, 'request'), 'res'), 'headers'),
  ];
  return candidates.find((headers) => typeof headers === 'object' && headers !== null) as HeaderSource;
}

/** What a thrown error carries. Its body may be an object, or JSON text, and may have been cut off. */
export function errorContentOf(error: unknown): Content {
  const response = fieldOf(error, 'response');
  const headers = errorHeadersOf(error);
  const message = textOf(fieldOf(error, 'message'));
  const parts = [
    // The SDKs put the body's `error` on theirs; others keep the body.
    fieldOf(error, 'error'),
    fieldOf(error, 'body'),
    fieldOf(response, 'data'),
    fieldOf(response, 'body'),
    fieldOf(error, 'data'),
    fieldOf(error, 'responseBody'),
  ];
  const found = parts.find((part) => part !== undefined && part !== null && part !== '');
  const parsed = parsedBody(found) ?? parsedBody(message);
  const isHtml = isHtmlType(headers) || isHtmlText(found) || isHtmlText(message);
  return {
    // Without a body, the fields may be on the error itself.
    body: { message, ...copyOf(parsed ?? error) },
    headers,
    status: errorStatusOf(error),
    format: isHtml ? 'html' : parsed !== undefined || isJsonType(headers) ? 'json' : 'unknown',
  };
}

/** What any outcome carries. Rejects if the body of a successful response does not come to its end. */
export async function contentOf(observed: Observed): Promise<Content> {
  if (observed.kind === 'error') return errorContentOf(observed.error);
  const value = observed.kind === 'no-item' ? undefined : observed.value;
  if (!isResponse(value))
    return { body: fields(value), headers: undefined, status: undefined, format: 'json' };
  const { headers } = value;
  const isJson = isJsonType(headers);
  return {
    body: isJson ? await jsonOf(value) : {},
    headers,
    status: value.ok ? undefined : value.status,
    format: isJson ? 'json' : isHtmlType(headers) ? 'html' : 'unknown',
  };
}

/** The fields of a foreign object; none if it cannot be read. */
function copyOf(value: unknown): Fields {
  try {
    return { ...fields(value) };
  } catch {
    return {};
  }
}

export const textOf = (value: unknown): string => (typeof value === 'string' ? value : '');

const isJsonType = (headers: HeaderSource): boolean =>
  /\bjson\b/i.test(headerOf(headers, 'content-type') ?? '');
const isHtmlType = (headers: HeaderSource): boolean =>
  /\bhtml\b/i.test(headerOf(headers, 'content-type') ?? '');
const isHtmlText = (value: unknown): boolean =>
  typeof value === 'string' && /<(!doctype html|html|head|body)\b/i.test(value.slice(0, 1_000));

function parsedBody(body: unknown): Fields | undefined {
  if (typeof body === 'object' && body !== null) return body as Fields;
  if (typeof body !== 'string' || body.length > MAX_BODY_BYTES) return undefined;
  const start = body.indexOf('{');
  // An SDK may put the status in front of the text.
  if (start < 0 || start > 40) return undefined;
  try {
    return fields(JSON.parse(body.slice(start)));
  } catch {
    return undefined;
  }
}

/** The JSON body of a response that the caller will still read; empty if it is none, or was read already. */
async function jsonOf(response: Response): Promise<Fields> {
  const { body, bodyUsed, ok } = response;
  if (bodyUsed || body?.locked) return {};
  // The copy of a Node.js stream, as in node-fetch, stalls if it is long and the caller does not read along.
  if (ok && typeof body?.cancel !== 'function') return {};
  try {
    return fields(JSON.parse(await boundedTextOf(response.clone(), ok ? undefined : MAX_BODY_MS)));
  } catch (error) {
    // The status of a failure stands without its body.
    if (ok && !(error instanceof SyntaxError)) throw error;
    return {};
  }
}

/** The beginning of a body, read in limited time where `timeoutMs` is given. */
async function boundedTextOf(response: Response, timeoutMs: number | undefined): Promise<string> {
  const body = response.body as (ReadableStream<Uint8Array> & Readable) | null | undefined;
  if (body === null || body === undefined) return response.text();
  const cancel = (): void => {
    if (reader !== undefined) reader.cancel().catch(() => {});
    else body.destroy();
  };
  const reader = typeof body.getReader === 'function' ? body.getReader() : undefined;
  const timer = timeoutMs === undefined ? undefined : setTimeout(cancel, timeoutMs);
  const decoder = new TextDecoder();
  let text = '';
  let bytes = 0;
  const add = (chunk: Uint8Array): boolean => {
    bytes += chunk.byteLength;
    text += decoder.decode(chunk, { stream: true });
    return bytes >= MAX_BODY_BYTES;
  };
  try {
    if (reader === undefined) {
      for await (const chunk of body as AsyncIterable<Uint8Array>) if (add(chunk)) break;
    } else {
      for (let read = await reader.read(); !read.done; read = await reader.read())
        if (add(read.value)) {
          cancel();
          break;
        }
    }
    return text;
  } finally {
    clearTimeout(timer);
  }
}
