import type { CheckedIterator } from '../internal/iteration.js';
import { abortSignal } from '../internal/validate.js';
import { bytesOfChunk, chunksOf, fields, joined } from './response-content.js';

/** What `fetch` is called with. */
export type FetchInput = Parameters<typeof globalThis.fetch>[0];

/** What a client passed to a gated `fetch`, for the callbacks of the host. */
export interface GateFetchRequest {
  readonly url: string;
  /** In upper case. */
  readonly method: string;
  readonly headers: Headers;
  /** As the client passed it; the bytes of a `Request`'s body; `undefined` for a stream, which can be read only once. */
  readonly body: unknown;
  /** The body parsed as JSON; `undefined` where it is no JSON text. */
  readonly json: unknown;
}

/** The parts of a request, as `RequestInit` names them. Those of a `Request` are getters, which a spread does not copy. */
const PARTS = [
  'method',
  'headers',
  'body',
  'redirect',
  'referrer',
  'referrerPolicy',
  'mode',
  'credentials',
  'cache',
  'integrity',
  'keepalive',
  'duplex',
] as const;

/** A `Request` of any realm or library. */
const isRequest = (input: unknown): input is Request =>
  typeof input === 'object' &&
  input !== null &&
  typeof (input as Request).url === 'string' &&
  'method' in input;

/**
 * The request of a call, which can be sent once per attempt. Headers and body are copied when the call is made, as `fetch`
 * does: it may wait for its permit long after its caller has gone on.
 */
export class FetchRequest implements GateFetchRequest {
  readonly url: string;
  readonly method: string;
  readonly headers: Headers;
  /** Whatever aborts the call. */
  readonly signals: AbortSignal[];
  /** Whether it is a `Request` with a body. Once read, that has a length, and can be shown to the host. */
  readonly isToBeRead: boolean;
  readonly #parts: RequestInit;
  readonly #body: unknown;
  readonly #stream: BodyStream | undefined;
  #json: { readonly value: unknown } | undefined;

  /** @throws {TypeError} as `fetch` does, for headers, a signal or a body that it does not take */
  constructor(input: FetchInput, init: RequestInit | undefined, maxReplayBytes: number) {
    const given = init ?? {};
    const request = isRequest(input) ? input : undefined;
    this.url = request?.url ?? String(input);
    this.#parts = { ...partsOf(request), ...given, ...partsOf(given) };
    const { method = 'GET', headers, body } = this.#parts;
    this.method = method.toUpperCase();
    this.headers = new Headers(headers);
    // As in `fetch`, `null` detaches the call from the signal of the `Request`.
    this.signals = [given.signal, given.signal === null ? null : request?.signal]
      .filter((signal) => signal !== undefined && signal !== null)
      .map((signal) => abortSignal('signal', signal));
    if (request?.bodyUsed === true && body === request.body)
      throw new TypeError('Cannot send a Request whose body has been used already');
    this.#stream = isStream(body) ? new BodyStream(body, maxReplayBytes) : undefined;
    this.#body = this.#stream === undefined ? copyOf(body) : undefined;
    this.isToBeRead = this.#stream !== undefined && request !== undefined;
  }

  get body(): unknown {
    return this.#body ?? this.#stream?.bytes;
  }

  get json(): unknown {
    this.#json ??= { value: parsed(this.body) };
    return this.#json.value;
  }

  /** Whether it can be sent once more. */
  get isRepeatable(): boolean {
    return this.#stream?.isRepeatable ?? true;
  }

  /** Reads the body, up to the bound. */
  async read(): Promise<void> {
    await this.#stream?.read();
  }

  /** What the next attempt passes to `fetch`. */
  init(signal: AbortSignal, authorize: (headers: Headers) => void): RequestInit {
    const headers = new Headers(this.headers);
    authorize(headers);
    const body = (this.#stream?.next() ?? this.#body) as RequestInit['body'];
    const init: RequestInit & { duplex?: string } = { ...this.#parts, headers, signal };
    delete init.body;
    if (body !== undefined) init.body = body;
    if (isStream(body)) init.duplex = 'half';
    return init;
  }

  /** The call is over: ends a body of which not everything was sent. */
  end(): void {
    this.#stream?.end();
  }
}

function partsOf(source: RequestInit | Request | undefined): RequestInit {
  if (source === undefined) return {};
  const parts: Record<string, unknown> = {};
  for (const name of PARTS) {
    const value = fields(source)[name];
    if (value !== undefined) parts[name] = value;
  }
  return parts;
}

/** Whether a body can be read only once: a web stream, or any other async iterable. */
function isStream(body: unknown): body is AsyncIterable<unknown> {
  return (
    typeof body === 'object' &&
    body !== null &&
    typeof (body as Partial<AsyncIterable<unknown>>)[Symbol.asyncIterator] === 'function'
  );
}

/** A body that its caller may change afterwards is copied. */
function copyOf(body: unknown): unknown {
  if (body instanceof URLSearchParams) return new URLSearchParams(body);
  if (ArrayBuffer.isView(body))
    return new Uint8Array(body.buffer as ArrayBuffer, body.byteOffset, body.byteLength).slice();
  return body instanceof ArrayBuffer ? body.slice(0) : body;
}

function parsed(body: unknown): unknown {
  try {
    const text = body instanceof Uint8Array ? new TextDecoder().decode(body) : body;
    return typeof text === 'string' ? JSON.parse(text) : undefined;
  } catch {
    return undefined;
  }
}

/**
 * A body that can be read only once, kept for the next attempt while it is read.
 *
 * Invariants:
 * - Each attempt receives the body from its beginning, without a gap, also where an earlier one ended during a read.
 * - At most `maxBytes` and one chunk are kept; then the body cannot be sent again.
 * - Nothing is read before the service asks for it.
 */
class BodyStream {
  readonly #source: CheckedIterator<unknown>;
  readonly #maxBytes: number;
  readonly #kept: Uint8Array<ArrayBuffer>[] = [];
  #keptBytes = 0;
  #hasEnded = false;
  isRepeatable = true;
  #reading: Promise<Uint8Array<ArrayBuffer> | undefined> | undefined;

  constructor(body: AsyncIterable<unknown>, maxBytes: number) {
    this.#source = chunksOf(body);
    this.#maxBytes = maxBytes;
  }

  /** The whole body, once it is known. */
  get bytes(): Uint8Array<ArrayBuffer> | undefined {
    return this.#hasEnded && this.isRepeatable ? joined(this.#kept) : undefined;
  }

  /** Reads it to its end, or until it cannot be kept. */
  async read(): Promise<void> {
    while (!this.#hasEnded && this.isRepeatable) await this.#advance();
  }

  /** The body for the next attempt. */
  next(): NonNullable<RequestInit['body']> {
    const { bytes } = this;
    if (bytes !== undefined) return bytes;
    let at = 0;
    return new ReadableStream<Uint8Array>(
      {
        pull: async (controller) => {
          // What is read for an attempt that is over stays for the next.
          if (at === this.#kept.length) {
            const chunk = await this.#advance();
            if (at === this.#kept.length) {
              if (chunk === undefined) controller.close();
              else controller.enqueue(chunk);
              return;
            }
          }
          controller.enqueue(this.#kept[at++] as Uint8Array);
        },
      },
      { highWaterMark: 0 },
    );
  }

  end(): void {
    if (this.#hasEnded) return;
    this.#hasEnded = true;
    this.isRepeatable = false;
    this.#source.return().catch(() => {});
  }

  /** Reads one chunk; `undefined` at the end. One read at a time. */
  #advance(): Promise<Uint8Array<ArrayBuffer> | undefined> {
    this.#reading ??= this.#read().finally(() => {
      this.#reading = undefined;
    });
    return this.#reading;
  }

  async #read(): Promise<Uint8Array<ArrayBuffer> | undefined> {
    if (this.#hasEnded) return undefined;
    try {
      const { done, value } = await this.#source.next();
      if (done) {
        this.#hasEnded = true;
        return undefined;
      }
      const chunk = bytesOfChunk(value);
      if (!this.isRepeatable) return chunk;
      this.#kept.push(chunk);
      this.#keptBytes += chunk.byteLength;
      this.isRepeatable = this.#keptBytes <= this.#maxBytes;
      return chunk;
    } catch (error) {
      this.isRepeatable = false;
      throw error;
    }
  }
}
