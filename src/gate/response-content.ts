/**
 * What an outcome carries, wherever the host's client keeps it: status, headers and body. Every read of a foreign object
 * is guarded, and every body is bounded.
 */
import type { Readable } from 'node:stream';
import { PipelinePoolError } from '../errors.js';
import { boundedCall, ignoreRejection } from '../internal/abort.js';
import { afterThisTurn } from '../internal/clock.js';
import { CheckedIterator } from '../internal/iteration.js';
import { fieldAt, fieldOf } from '../internal/redaction.js';
import { refusal } from '../internal/validate.js';
import { type HeaderSource, headerOf, knownNamesOf } from './retry-after.js';

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
 * The status of a failure: of the error (`status`, `statusCode`), of its response (axios, superagent, got, ky; `res` of older
 * clients), of a response whose body was cut off (axios), of its metadata (AWS), or `code`, where an event of a stream has
 * one.
 */
export const errorStatusOf = (error: unknown): number | undefined =>
  [
    'status',
    'statusCode',
    'response.status',
    'response.statusCode',
    'res.status',
    'res.statusCode',
    'request.res.statusCode',
    '$metadata.httpStatusCode',
    'code',
  ]
    .map((path) => fieldAt(error, path))
    .find(isErrorStatus);

/** The headers of a failure: `headers`, `responseHeaders` (AI SDK), or those of its response. */
export const errorHeadersOf = (error: unknown): HeaderSource =>
  [
    'headers',
    'responseHeaders',
    'response.headers',
    'res.headers',
    '$response.headers',
    'request.res.headers',
  ]
    .map((path) => fieldAt(error, path))
    .find((headers) => typeof headers === 'object' && headers !== null) as HeaderSource;

/** The headers of a result: of a `Response`, or of the one beside the data (`withResponse()` of the SDKs). */
export function headersIn(value: unknown): HeaderSource {
  const response = isResponse(value) ? value : fieldOf(value, 'response');
  return isResponse(response) ? response.headers : undefined;
}

/** How many errors behind one another are read. */
const MAX_ERRORS = 5;

/**
 * What a thrown error carries: itself, or, where it has no status, the first error behind it (`cause`, `lastError`) that has
 * one. An error of this library stands for itself.
 */
export function errorContentOf(error: unknown): Content {
  const own = ownContentOf(error);
  let behind = error;
  for (let content = own, depth = 1; ; content = ownContentOf(behind), depth++) {
    if (content.status !== undefined) return content;
    if (depth === MAX_ERRORS || behind instanceof PipelinePoolError) return own;
    behind = fieldOf(behind, 'cause') ?? fieldOf(behind, 'lastError');
    if (typeof behind !== 'object' || behind === null) return own;
  }
}

function ownContentOf(error: unknown): Content {
  const message = textOf(fieldOf(error, 'message'));
  const { found, parsed } = errorBodyOf(error, message);
  const headers = errorHeadersOf(error);
  const isHtml = isHtmlType(headers) || isHtmlText(found) || isHtmlText(message);
  return {
    // Without a body, the fields may be on the error itself.
    body: { message, ...copyOf(parsed ?? error) },
    headers,
    status: errorStatusOf(error),
    format: isHtml ? 'html' : parsed !== undefined || isJsonType(headers) ? 'json' : 'unknown',
  };
}

/** The body that a client attached to its error: an object, or JSON text, which may be in the message, and may have been cut off. */
export function errorBodyOf(
  error: unknown,
  message = textOf(fieldOf(error, 'message')),
): { readonly found: unknown; readonly parsed: Fields | undefined } {
  // The SDKs put the body's `error` on theirs; others keep the body.
  const found = ['error', 'body', 'response.data', 'response.body', 'data', 'responseBody']
    .map((path) => fieldAt(error, path))
    .find((part) => part !== undefined && part !== null && part !== '');
  return { found, parsed: parsedBody(found) ?? parsedBody(message) };
}

/** Whether the body of a failed response is a page, whatever its headers say. Its caller can still read it. Never rejects. */
export async function isPage(response: Response): Promise<boolean> {
  if (isHtmlType(response.headers)) return true;
  if (response.bodyUsed || response.body?.locked) return false;
  try {
    return isHtmlText(await boundedTextOf(response.clone(), MAX_BODY_MS));
  } catch {
    return false;
  }
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

/** The fields of a foreign object that are read; none if it cannot be. */
function copyOf(value: unknown): Fields {
  const from = fields(value);
  return Object.fromEntries(knownNamesOf(from).map((name) => [name, fieldOf(from, name)]));
}

/** The beginning of a text. */
export const textOf = (value: unknown): string =>
  typeof value === 'string' ? value.slice(0, MAX_BODY_BYTES) : '';

export const isJsonType = (headers: HeaderSource): boolean =>
  /\bjson\b/i.test(headerOf(headers, 'content-type') ?? '');
export const isHtmlType = (headers: HeaderSource): boolean =>
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

/** Read once for all who ask: a classifier, and `usage`. */
const jsonBodies = /* @__PURE__ */ new WeakMap<Response, Promise<Fields>>();

/** The JSON body of a response that the caller will still read; empty if it is none, or was read already. */
function jsonOf(response: Response): Promise<Fields> {
  const known = jsonBodies.get(response) ?? readJson(response);
  jsonBodies.set(response, known);
  return known;
}

async function readJson(response: Response): Promise<Fields> {
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

/** The beginning of a body as text. */
const boundedTextOf = async (response: Response, timeoutMs: number | undefined): Promise<string> =>
  new TextDecoder().decode(await boundedBytesOf(response, timeoutMs));

/** The beginning of the body of a failed response, in limited time. The status stands without its body: never rejects. */
export const failureBytesOf = async (response: Response): Promise<Uint8Array<ArrayBuffer>> =>
  (await boundedBytesOf(response, MAX_BODY_MS)).slice(0, MAX_BODY_BYTES);

/** The beginning of a body. With `timeoutMs`, what has arrived until then, or until it broke off. */
async function boundedBytesOf(
  response: Response,
  timeoutMs: number | undefined,
): Promise<Uint8Array<ArrayBuffer>> {
  const chunks: Uint8Array[] = [];
  let body: CheckedIterator<unknown> | undefined;
  try {
    const source = chunksOf(response.body ?? textIn(response));
    body = source;
    const read = async (signal: AbortSignal): Promise<void> => {
      for (let bytes = 0; bytes < MAX_BODY_BYTES && !signal.aborted; ) {
        const { done, value } = await source.next();
        if (done) return;
        const chunk = bytesOfChunk(value);
        bytes += chunk.byteLength;
        if (chunk.byteLength > 0) chunks.push(chunk);
      }
    };
    await boundedCall(read, { timeoutMs, timeoutError: () => new Error() });
  } catch (error) {
    if (timeoutMs === undefined) throw error;
  } finally {
    ignoreRejection(body?.return());
  }
  return joined(chunks);
}

/** The body of a response that shows none. */
async function* textIn(response: Response): AsyncGenerator<string> {
  yield await response.text();
}

/** All chunks in one, in memory of its own. */
export function joined(chunks: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  const all = new Uint8Array(chunks.reduce((sum, { byteLength }) => sum + byteLength, 0));
  let at = 0;
  for (const chunk of chunks) {
    all.set(chunk, at);
    at += chunk.byteLength;
  }
  return all;
}

/**
 * A chunk of a body as bytes in memory of its own, which may be transferred: what the chunk came in may serve others too, as
 * the constant of a stub does, or a `Buffer`.
 *
 * @throws {TypeError} for anything else than bytes and text
 */
export function bytesOfChunk(chunk: unknown): Uint8Array<ArrayBuffer> {
  if (typeof chunk === 'string') return new TextEncoder().encode(chunk);
  if (!(chunk instanceof Uint8Array))
    throw new TypeError(refusal('a chunk of a body', 'a Uint8Array', chunk));
  return new Uint8Array(chunk);
}

/** How many chunks of a body are read before timers and other work have their turn: all of them may be there already. */
const CHUNKS_PER_TURN = 256;

/**
 * The chunks of a body: a web stream, one of Node.js, or any other async iterable. Its `return` ends the body at once, also
 * while a chunk is waited for; that of the iterators of streams would wait for the chunk.
 *
 * @throws {TypeError} for anything else, and for a stream that is locked
 */
export function chunksOf(body: unknown): CheckedIterator<unknown> {
  const { getReader, destroy } = Object(body) as Partial<ReadableStream & Readable>;
  let iterator: unknown = body;
  if (typeof getReader === 'function') {
    const reader = (body as ReadableStream).getReader();
    iterator = { next: () => reader.read(), return: () => reader.cancel() };
  } else if (typeof destroy === 'function') {
    const chunks = (body as Readable)[Symbol.asyncIterator]();
    iterator = { next: () => chunks.next(), return: async () => void (body as Readable).destroy() };
  }
  const [option, expected] = ['a body', 'an async iterable'] as const;
  const source = CheckedIterator.of(iterator as AsyncIterable<unknown>, option, expected);
  let asked = 0;
  const next = (): unknown =>
    ++asked % CHUNKS_PER_TURN === 0
      ? new Promise<void>(afterThisTurn).then(() => source.ask())
      : source.ask();
  const paced = { next, return: () => source.return() };
  return CheckedIterator.of(paced as unknown as AsyncIterator<unknown>, option, expected);
}
