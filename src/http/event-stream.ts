import type { IncomingMessage, ServerResponse } from 'node:http';
import { ignoreRejection } from '../internal/abort.js';
import { CheckedIterator } from '../internal/iteration.js';
import {
  type Checks,
  callable,
  checkEach,
  options as checkOptions,
  oneOf,
  positiveMs,
  refusal,
  synchronous,
} from '../internal/validate.js';
import { type EventSink, NodeSink, type PlainAnswer, WebSink } from './event-sinks.js';
import { findPoolError } from './find-pool-error.js';
import { toHttpStatus } from './http-status.js';

/** Anything to iterate asynchronously: `manager.stream`, `gate.stream`, a generator. */
type Items<T> = AsyncIterable<T> | AsyncIterator<T>;

/**
 * What `eventStream` sends: the items, or a function that returns them. Its signal aborts when the client leaves; a
 * generator that waits for something else than its request's signal needs it.
 */
export type EventStreamSource<T> = Items<T> | Opener<T>;

type Opener<T> = (context: { readonly signal: AbortSignal }) => Items<T> | PromiseLike<Items<T>>;

/** Options of `eventStream`. */
export interface EventStreamOptions<T> {
  /** Milliseconds without an event after which a comment is sent, so that proxies keep the connection. @default 15000 */
  readonly heartbeatMs?: number | undefined;
  /** The name of an item's event. @default none: browsers dispatch it as `message` */
  readonly event?: ((item: T) => string | undefined) | undefined;
  /** The data of an item's event, as text. @default the item as JSON */
  readonly data?: ((item: T) => string) | undefined;
  /**
   * When the headers are sent. With `first-item` an error before the first item, such as a full queue, is answered with its
   * own status; nothing is sent until then. With `early` the headers are sent at once, and heartbeats while the request is
   * queued; every error is then an `event: error`.
   * @default 'first-item'
   */
  readonly headers?: 'early' | 'first-item' | undefined;
  /** Milliseconds for which a client may read nothing while an event waits; then it counts as gone. @default 60000 */
  readonly stallTimeoutMs?: number | undefined;
  /** Receives the error that ended the stream, for logs. It affects nothing. @default nothing */
  readonly onError?: ((error: unknown) => void) | undefined;
}

/** Node's response; for Fastify `reply.raw`, after `reply.hijack()`. */
export interface NodeTarget {
  readonly request?: IncomingMessage | undefined;
  readonly response: ServerResponse;
}

/** The web request: it says that the client has left before there is a `Response` whose body could be cancelled. */
export interface WebTarget {
  readonly request?: Request | undefined;
  readonly response?: undefined;
}

/**
 * Sends the items of a stream as server-sent events: to a response of Node's `http` (Express, Fastify), or as a web
 * `Response` (Hono, Next.js, Bun, Deno).
 *
 * - The next item is requested when the client has taken the last one (backpressure).
 * - When the client leaves, `return` of the source is called, which aborts a request of `manager.stream` and frees what it
 *   holds, and the signal of a source that is a function aborts.
 * - An error before the headers is answered with the status and `Retry-After` of `toHttpStatus`, or else 500; after them
 *   it is an `event: error`. Both have `{ "error": { "message", "code"?, "retryAfterSeconds"? } }`, in which the message is
 *   that of the status: nothing of the error itself is sent.
 *
 * The promise never rejects. For Node's response it resolves when the stream is over; else with the `Response`, as soon as
 * its status is known.
 *
 * @throws {TypeError | RangeError} naming the wrong argument or option
 *
 * @example
 * app.post('/research', (request, response) =>
 *   eventStream(manager.stream(request.id, research), { request, response }, { event: ({ type }) => type }),
 * );
 *
 * @example
 * app.post('/research', ({ req }) => eventStream(manager.stream(id, research), { request: req.raw }));
 */
export function eventStream<T>(
  source: EventStreamSource<T>,
  target: NodeTarget,
  options?: EventStreamOptions<T>,
): Promise<void>;
export function eventStream<T>(
  source: EventStreamSource<T>,
  target?: WebTarget,
  options?: EventStreamOptions<T>,
): Promise<Response>;
export function eventStream<T>(
  source: EventStreamSource<T>,
  target: NodeTarget | WebTarget = {},
  options: EventStreamOptions<T> = {},
): Promise<unknown> {
  checkEach('eventStream', options, CHECKS);
  const { heartbeatMs = 15_000, stallTimeoutMs = 60_000 } = options;
  const settings = { ...options, heartbeatMs, stallTimeoutMs };
  const { request, response } = checkOptions('the target', target, ['request', 'response']);
  const items = typeof source === 'function' ? source : CheckedIterator.of(source, 'source', EXPECTED);
  if (response !== undefined) {
    if (typeof response?.writeHead !== 'function' || response.headersSent)
      throw new TypeError(refusal('response', 'a response of Node.js that has no headers yet', response));
    return new EventStream(new NodeSink(response, request as IncomingMessage), settings).run(items);
  }
  if (request !== undefined && typeof (request as Request)?.signal?.aborted !== 'boolean')
    throw new TypeError(refusal('request', 'a web Request, where there is no `response`', request));
  const sink = new WebSink(request as Request | undefined);
  ignoreRejection(new EventStream(sink, settings).run(items));
  return sink.response;
}

type Settings<T> = EventStreamOptions<T> & {
  readonly heartbeatMs: number;
  readonly stallTimeoutMs: number;
};

const CHECKS: Checks<EventStreamOptions<unknown>> = {
  heartbeatMs: positiveMs,
  event: callable,
  data: callable,
  headers: (option, value) => oneOf(option, value, ['early', 'first-item']),
  stallTimeoutMs: positiveMs,
  onError: callable,
};

const EXPECTED = 'an async iterable, or a function that returns one';
const GONE = Symbol('the client has left');
/** Of the parts in which events are written: at most 12 KiB, since a UTF-16 unit takes at most three bytes. */
const PART_LENGTH = 4_096;

/**
 * One stream.
 *
 *     waiting ──first item, or `early`──► open ──last item, or error──► over
 *        ├──error: answered with a status────────────────────────────► over
 *        └──the client leaves or stalls, in any state────────────────► over
 *
 * Invariants:
 * - When the client leaves, `return` of the source is called at once, whatever the source is doing.
 * - It is over in every case in which the client has left, even if the source never settles.
 * - Nothing is written and no timer runs after the end.
 */
class EventStream<T> {
  readonly #sink: EventSink;
  readonly #settings: Settings<T>;
  readonly #left = new AbortController();
  #isOpen = false;
  #isOver = false;
  #heartbeat: NodeJS.Timeout | undefined;
  /** Whether an event waits for room: nothing may be written into it. */
  #isBlocked = false;
  /** Ends the present wait, for the source or for room. */
  #endWait: () => void = () => {};

  constructor(sink: EventSink, settings: Settings<T>) {
    this.#sink = sink;
    this.#settings = settings;
    sink.onGone = () => this.#leave();
    if (sink.isGone) this.#leave();
  }

  async run(source: CheckedIterator<T> | Opener<T>): Promise<void> {
    try {
      if (this.#sink.isHead) this.#open();
      else {
        if (this.#settings.headers === 'early') this.#open();
        const iterator = await this.#begin(source);
        if (iterator !== GONE) await this.#sendAll(iterator);
        // A stream without an item.
        this.#open();
      }
    } catch (error) {
      this.#fail(error);
    } finally {
      this.#isOver = true;
      clearTimeout(this.#heartbeat);
      if (this.#left.signal.aborted) this.#sink.destroy();
      else if (this.#isOpen) this.#sink.end();
    }
  }

  #leave(): void {
    if (this.#isOver || this.#left.signal.aborted) return;
    this.#left.abort(new DOMException('The client has left the stream', 'AbortError'));
    this.#endWait();
  }

  async #begin(source: CheckedIterator<T> | Opener<T>): Promise<CheckedIterator<T> | typeof GONE> {
    if (typeof source !== 'function') return source;
    const { signal } = this.#left;
    if (signal.aborted) return GONE;
    const open = async () => CheckedIterator.of(await source({ signal }), 'source', EXPECTED);
    const opening = open();
    const iterator = await this.#orGone(opening);
    // What arrives late has no reader.
    if (iterator === GONE) ignoreRejection(opening.then((late) => late.return()));
    return iterator;
  }

  async #sendAll(iterator: CheckedIterator<T>): Promise<void> {
    while (!this.#left.signal.aborted) {
      // If it rejects, the source is over.
      const result = await this.#orGone(iterator.next());
      if (result === GONE) break;
      if (result.done) return;
      try {
        const sending = this.#send(result.value);
        if (sending !== undefined) await sending;
      } catch (error) {
        ignoreRejection(iterator.return());
        throw error;
      }
    }
    ignoreRejection(iterator.return());
  }

  /** Settles as `work` does, or when the client leaves. */
  #orGone<R>(work: Promise<R>): Promise<R | typeof GONE> {
    return new Promise((resolve, reject) => {
      this.#endWait = () => resolve(GONE);
      // The source itself may have aborted the request.
      if (this.#left.signal.aborted) resolve(GONE);
      work.then(resolve, reject);
    });
  }

  /** Sends one item. Its promise, if there is one, resolves when there is room for the next, or the client has left. */
  #send(item: T): Promise<void> | undefined {
    const { event, data } = this.#settings;
    const text = eventText(
      synchronous('event', event?.(item)),
      data === undefined ? (JSON.stringify(item) ?? 'null') : synchronous('data', data(item)),
    );
    this.#open();
    this.#heartbeat?.refresh();
    return this.#write(text);
  }

  /** Writes in parts, each of which shows that the client reads. */
  #write(text: string): Promise<void> | undefined {
    for (let from = 0; from < text.length && !this.#left.signal.aborted; ) {
      let to = from + PART_LENGTH;
      // Never in the middle of a surrogate pair.
      if ((text.charCodeAt(to) & 0xfc00) === 0xdc00) to++;
      const part = text.slice(from, to);
      from = to;
      if (!this.#sink.write(part)) return this.#room().then(() => this.#write(text.slice(from)));
    }
    return undefined;
  }

  /** Waits for room. A client that takes nothing for too long counts as gone. */
  #room(): Promise<void> {
    this.#isBlocked = true;
    return new Promise((resolve) => {
      const stalled = setTimeout(() => this.#leave(), this.#settings.stallTimeoutMs);
      const settle = (): void => {
        clearTimeout(stalled);
        this.#sink.onRoom = () => {};
        this.#isBlocked = false;
        resolve();
      };
      this.#sink.onRoom = settle;
      this.#endWait = settle;
      // The write itself may have shown that the client has left.
      if (this.#left.signal.aborted) settle();
    });
  }

  /** Sends the headers, once. */
  #open(): void {
    if (this.#isOpen || this.#left.signal.aborted) return;
    this.#sink.open();
    this.#isOpen = true;
    this.#heartbeat = setTimeout(() => {
      try {
        if (!this.#isBlocked) this.#sink.write(':\n\n');
      } catch {
        // Middleware of the host may have wrapped it.
        this.#leave();
      }
      this.#heartbeat?.refresh();
    }, this.#settings.heartbeatMs);
  }

  #fail(error: unknown): void {
    if (this.#left.signal.aborted) return;
    try {
      ignoreRejection(this.#settings.onError?.(error));
    } catch {
      // An observer: it affects nothing.
    }
    try {
      const plain = answerTo(error);
      if (this.#isOpen) this.#sink.write(eventText('error', plain.body));
      else this.#sink.answer(plain);
    } catch {
      // The host has answered by itself meanwhile.
      this.#sink.destroy();
    }
  }
}

function answerTo(error: unknown): PlainAnswer {
  const http = toHttpStatus(error);
  const { status = 500, retryAfterSeconds } = http ?? {};
  const code = findPoolError(error)?.code;
  // A host that streams events has this module loaded; others need not load it.
  const { STATUS_CODES } = process.getBuiltinModule('node:http');
  return {
    status,
    headers: {
      'content-type': 'application/json; charset=utf-8',
      'cache-control': 'no-store',
      ...(retryAfterSeconds === undefined ? {} : { 'retry-after': String(retryAfterSeconds) }),
    },
    body: JSON.stringify({ error: { message: STATUS_CODES[status], code, retryAfterSeconds } }),
  };
}

/** An event as text (HTML, "Server-sent events", 9.2.6). */
function eventText(event: string | undefined, data: string): string {
  if (event !== undefined && (typeof event !== 'string' || /[\r\n]/.test(event)))
    throw new TypeError(refusal('event', 'a function that returns one line of text', event));
  if (typeof data !== 'string')
    throw new TypeError(refusal('data', 'a function that returns a string', data));
  const lines = data.split(/\r\n|\r|\n/).map((line) => `data: ${line}\n`);
  return `${event === undefined ? '' : `event: ${event}\n`}${lines.join('')}\n`;
}
