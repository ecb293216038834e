import type { CheckedIterator } from '../internal/iteration.js';
import { fieldOf } from '../internal/redaction.js';
import type { Attempt } from './attempt.js';
import type { Observed } from './classify.js';
import type { UsageReader } from './options.js';
import {
  bytesOfChunk,
  chunksOf,
  discardResponse,
  failureBytesOf,
  isJsonType,
  joined,
} from './response-content.js';
import { headerOf } from './retry-after.js';

/** Statuses of responses without a body. */
const NO_BODY: readonly number[] = [101, 103, 204, 205, 304];
/** How much of a server-sent stream is read for its first event. */
const MAX_FIRST_EVENT_BYTES = 65_536;
/** What is kept of a body for its usage: all of a JSON response up to this, or the last part of a stream. */
const MAX_USAGE_BYTES = 4_194_304;
/** How many events at the end of a stream are read for its usage. */
const MAX_USAGE_EVENTS = 16;

const isEventStream = (headers: Headers): boolean =>
  /^\s*text\/event-stream\b/i.test(headerOf(headers, 'content-type') ?? '');

/** A response of `gate.fetch` as the gate caches it: plain data, which a shared store can keep. */
export interface CachedResponse {
  readonly status: number;
  readonly statusText: string;
  readonly headers: readonly (readonly [name: string, value: string])[];
  readonly url: string;
  readonly redirected: boolean;
  readonly type: Response['type'];
  /** `null` if it has none. */
  readonly body: string | null;
  /** How `body` holds its bytes: `base64` where they are no text. */
  readonly encoding: 'utf8' | 'base64';
}

/** A response without its body, as `fetch` describes it. */
type ResponseHead = Omit<CachedResponse, 'headers' | 'body' | 'encoding'> & { readonly headers: Headers };

/** A `Response` with the properties that only `fetch` can set otherwise. */
function responseOf(head: ResponseHead, body: ConstructorParameters<typeof Response>[0]): Response {
  const { status, statusText, headers } = head;
  // Some services answer with a status outside of HTTP, which `fetch` passes on.
  const isUsual = status >= 200 && status <= 599;
  return withHead(new Response(body, { status: isUsual ? status : 200, statusText, headers }), head);
}

function withHead(response: Response, head: ResponseHead): Response {
  const { status, url, redirected, type } = head;
  const clone = (): Response => withHead(Response.prototype.clone.call(response), head);
  const shown = {
    url,
    redirected,
    type,
    clone,
    ...(response.status === status ? {} : { status, ok: false }),
  };
  for (const [name, value] of Object.entries(shown))
    Object.defineProperty(response, name, { value, configurable: true });
  return response;
}

export function responseOfCached({ headers, body, encoding, ...head }: CachedResponse): Response {
  return responseOf(
    { ...head, headers: new Headers(headers as [string, string][]) },
    body === null ? null : new Uint8Array(Buffer.from(body, encoding)),
  );
}

/** Whether a value, which another program may have stored, is a response as the gate caches it. */
export function isCachedResponse(value: unknown): value is CachedResponse {
  try {
    const cached = value as CachedResponse;
    const { status, body } = cached;
    // Anything else of which no response can be made throws.
    return (
      typeof status === 'number' &&
      (body === null || typeof body === 'string') &&
      responseOfCached(cached).status === status
    );
  } catch {
    return false;
  }
}

function cachedOf({ headers, ...head }: ResponseHead, body: Uint8Array | null): CachedResponse {
  const { isUtf8 } = process.getBuiltinModule('node:buffer');
  const encoding = body === null || isUtf8(body) ? 'utf8' : 'base64';
  return {
    ...head,
    headers: [...headers],
    body: body === null ? null : Buffer.from(body).toString(encoding),
    encoding,
  };
}

/**
 * A response of the service: what is known when its call is classified, and an iterator of the chunks of its body.
 *
 * Invariant: once it is open, the service is read only when a reader waits for a chunk.
 */
export class ResponseSource implements AsyncIterator<Uint8Array<ArrayBuffer>, undefined> {
  readonly #upstream: Response;
  readonly #head: ResponseHead;
  /** All of the body, where nothing is left to be read from the service; `null` if it has none. */
  #whole: Uint8Array<ArrayBuffer> | null | undefined;
  /** What was read of the body for its first event, in one chunk, until it is passed on. */
  readonly #begun: Uint8Array<ArrayBuffer>[] = [];
  #body: CheckedIterator<unknown> | undefined;
  readonly #readUsage: UsageReader | undefined;
  readonly #tap: UsageTap | undefined;
  #firstEvent: Observed | undefined;
  #isOver = false;

  private constructor(upstream: Response, read: UsageReader | undefined, isRead: boolean) {
    const { status, statusText, headers, url, redirected, type } = upstream;
    this.#upstream = upstream;
    this.#head = {
      status,
      statusText: statusText ?? '',
      headers: new Headers([...headers]),
      url: url ?? '',
      redirected: redirected === true,
      type: type ?? 'default',
    };
    this.#readUsage = read;
    if (isRead) this.#tap = new UsageTap(this.#head.headers);
  }

  /**
   * Reads what the call is classified by.
   *
   * @param isRead whether its body is read for what the call weighed, cost or generated
   */
  static async open(
    upstream: Response,
    read: UsageReader | undefined,
    isRead: boolean,
  ): Promise<ResponseSource> {
    const source = new ResponseSource(upstream, read, isRead);
    const { status, headers, body } = upstream;
    if (body === null || body === undefined || NO_BODY.includes(status)) source.#complete(null);
    else if (status >= 400) source.#complete(await failureBytesOf(upstream));
    else if (isEventStream(headers)) await source.#readFirstEvent();
    else if (headerOf(headers, 'content-length') === '0') {
      discardResponse(upstream);
      source.#complete(new Uint8Array(0));
    }
    return source;
  }

  get headers(): Headers {
    return this.#head.headers;
  }

  /** For the classifier. */
  observe(): Observed {
    return this.#firstEvent ?? { kind: 'result', value: this.whole() ?? this.#upstream };
  }

  /** The response, if nothing is left to be read from the service. */
  whole(): Response | undefined {
    return this.#whole === undefined ? undefined : responseOf(this.#head, this.#whole);
  }

  /** Reads what the call weighed, from what was read of the body. */
  readUsage(attempt: Attempt): void {
    for (const value of this.#tap?.take() ?? []) attempt.readUsage(value, this.#readUsage);
  }

  /** Notes when the first event of a stream came, and reads what it says: services report there what is known by then. */
  readFirstUsage(attempt: Attempt): void {
    const event = this.#firstEvent;
    if (event !== undefined) attempt.firstItem();
    if (event !== undefined && 'value' in event) attempt.readUsage(event.value, this.#readUsage);
  }

  /** A response with this body. */
  withBody(body: ReadableStream<Uint8Array>): Response {
    return responseOf(this.#head, body);
  }

  /** Reads all of it. */
  async read(): Promise<CachedResponse> {
    if (this.#whole === undefined) {
      const chunks: Uint8Array[] = [];
      for (let chunk = await this.#nextChunk(); chunk !== undefined; chunk = await this.#nextChunk())
        chunks.push(chunk);
      this.#complete(joined(chunks));
    }
    return cachedOf(this.#head, this.#whole ?? null);
  }

  async next(): Promise<IteratorResult<Uint8Array<ArrayBuffer>, undefined>> {
    const value = await this.#nextChunk();
    return value === undefined ? { done: true, value } : { done: false, value };
  }

  /** Frees the connection. */
  async return(): Promise<IteratorReturnResult<undefined>> {
    const wasOver = this.#isOver;
    this.#isOver = true;
    if (this.#body === undefined) discardResponse(this.#upstream);
    else if (!wasOver) await this.#body.return();
    return { done: true, value: undefined };
  }

  async #nextChunk(): Promise<Uint8Array<ArrayBuffer> | undefined> {
    const chunk = this.#begun.shift() ?? (await this.#read());
    if (chunk !== undefined) this.#tap?.add(chunk);
    return chunk;
  }

  /** Reads a chunk from the service. */
  async #read(): Promise<Uint8Array<ArrayBuffer> | undefined> {
    while (!this.#isOver) {
      // Not earlier: a classifier may have made a clone of it.
      this.#body ??= chunksOf(this.#upstream.body);
      const { done, value } = await this.#body.next();
      if (done) this.#isOver = true;
      else {
        const chunk = bytesOfChunk(value);
        if (chunk.byteLength > 0) return chunk;
      }
    }
    return undefined;
  }

  #complete(body: Uint8Array<ArrayBuffer> | null): void {
    this.#isOver = true;
    this.#whole = body;
    const { headers } = this.#head;
    // That of a failure may have been cut off.
    if (body !== null && headers.get('content-length') !== String(body.byteLength))
      headers.delete('content-length');
  }

  async #readFirstEvent(): Promise<void> {
    const decoder = new TextDecoder();
    const chunks: Uint8Array[] = [];
    let bytes = 0;
    let text = '';
    let end = '';
    let event: Observed | undefined;
    while (event === undefined && bytes < MAX_FIRST_EVENT_BYTES) {
      const chunk = await this.#read();
      if (chunk === undefined) {
        // The last one may end with the stream.
        event = firstEventIn([text]) ?? { kind: 'no-item' };
        break;
      }
      chunks.push(chunk);
      bytes += chunk.byteLength;
      const piece = decoder.decode(chunk, { stream: true });
      text += piece;
      // Only what is new is searched, with what may have begun an empty line: chunks may be single bytes.
      end = end.slice(-3) + piece;
      if (!EMPTY_LINE.test(end)) continue;
      const blocks = blocksIn(text);
      // The last one is incomplete, and comments before it are done with.
      text = blocks.pop() ?? '';
      event = firstEventIn(blocks);
    }
    this.#firstEvent = event ?? { kind: 'first-item', value: undefined };
    if (this.#isOver && event?.kind === 'no-item') this.#complete(joined(chunks));
    else this.#begun.push(joined(chunks));
  }
}

/** One event of a server-sent stream (HTML Standard, 9.2.6). A comment has no data. */
interface ServerSentEvent {
  readonly name: string | undefined;
  readonly data: string | undefined;
}

/** What ends an event. A service may end its lines, and a proxy the event, in different ways. */
const EMPTY_LINE = /\n\r?\n|\r\r/;

/** The texts of events, of which the last may be incomplete. */
const blocksIn = (text: string): string[] => text.split(EMPTY_LINE);

/** The first of these events, as a classifier receives it; `undefined` if all are comments. */
function firstEventIn(blocks: readonly string[]): Observed | undefined {
  const event = blocks.map(eventIn).find(({ data }) => data !== undefined);
  if (event === undefined) return undefined;
  return event.data === '[DONE]' ? { kind: 'no-item' } : { kind: 'first-item', value: contentOf(event) };
}

function eventIn(block: string): ServerSentEvent {
  const lines = block.split(/\r\n|\n|\r/);
  const data = lines.flatMap((line) => fieldIn(line, 'data'));
  return {
    name: lines.flatMap((line) => fieldIn(line, 'event')).at(-1),
    data: data.length === 0 ? undefined : data.join('\n'),
  };
}

const fieldIn = (line: string, name: string): readonly string[] =>
  line === name ? [''] : line.startsWith(`${name}:`) ? [line.slice(name.length + 1).replace(/^ /, '')] : [];

/** What an event carries: its data as JSON, else as text. An `error` event is an object with an `error`. */
function contentOf({ name, data = '' }: ServerSentEvent): unknown {
  const value = jsonIn(data) ?? data;
  return name === 'error' && fieldOf(value, 'error') === undefined ? { type: name, error: value } : value;
}

function jsonIn(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** Keeps what says how much a call weighed: a JSON response, or the last events of a stream. */
class UsageTap {
  readonly #kind: 'json' | 'events' | 'none';
  #chunks: Uint8Array[] = [];
  #bytes = 0;

  constructor(headers: Headers) {
    this.#kind = isEventStream(headers) ? 'events' : isJsonType(headers) ? 'json' : 'none';
  }

  add(chunk: Uint8Array): void {
    if (this.#kind === 'none') return;
    // A copy: the memory of a chunk goes to its reader.
    this.#chunks.push(chunk.slice());
    this.#bytes += chunk.byteLength;
    if (this.#bytes <= MAX_USAGE_BYTES) return;
    if (this.#kind === 'json') this.#chunks = [];
    else while (this.#bytes > MAX_USAGE_BYTES) this.#bytes -= this.#chunks.shift()?.byteLength ?? this.#bytes;
  }

  /** The JSON values of what was added, once. */
  take(): readonly unknown[] {
    const chunks = this.#chunks;
    this.#chunks = [];
    if (chunks.length === 0) return [];
    const text = new TextDecoder().decode(joined(chunks));
    if (this.#kind === 'json') return [jsonIn(text)];
    return blocksIn(text)
      .slice(-MAX_USAGE_EVENTS)
      .map((block) => jsonIn(eventIn(block).data ?? ''));
  }
}
