import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';

/** A response before its headers: its status and its body. */
export interface PlainAnswer {
  readonly status: number;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: string;
}

/** Where the events go. It calls `onRoom` when it can take more, and `onGone` once, when the client has left. */
export interface EventSink {
  onRoom: () => void;
  onGone: () => void;
  /** Whether the client has left already. */
  readonly isGone: boolean;
  /** Whether the request is a HEAD: the response has no body. */
  readonly isHead: boolean;
  /** Sends the headers of the stream. */
  open(): void;
  /** Sends a part of the body; returns whether there is room for more. */
  write(text: string): boolean;
  /** Answers with something else than a stream. */
  answer(plain: PlainAnswer): void;
  end(): void;
  /** Breaks the connection off. */
  destroy(): void;
}

const HEADERS = {
  'content-type': 'text/event-stream; charset=utf-8',
  // `no-transform` prevents buffering in compression middleware, the next header in nginx.
  'cache-control': 'no-store, no-transform',
  'x-accel-buffering': 'no',
} as const;

const nothing = (): void => {};

/** Writes to the response of Node's `http`. Headers that the host has set are kept. */
export class NodeSink implements EventSink {
  onRoom = nothing;
  onGone = nothing;
  readonly isHead: boolean;
  readonly #response: ServerResponse;
  /** Of the request: that of the response is missing while it waits behind another of its connection (pipelining). */
  readonly #socket: Socket | undefined | null;

  constructor(response: ServerResponse, request: IncomingMessage | undefined) {
    this.#response = response;
    const { method, socket } = request ?? response.req ?? {};
    this.isHead = method === 'HEAD';
    this.#socket = socket;
    // A response that waits for its socket gets no `close` with the connection.
    const waiting = response.socket === null ? socket : undefined;
    const onClose = (): void => {
      waiting?.removeListener('close', onClose);
      this.onGone();
    };
    waiting?.on('close', onClose);
    response.on('close', onClose);
    response.on('drain', () => this.onRoom());
    // A broken connection is reported by `close` too; without a listener, its error would end the process.
    response.on('error', nothing);
  }

  get isGone(): boolean {
    // HTTP/2 says it by the socket alone, which is null once the stream is closed.
    return this.#response.destroyed || this.#socket === null || this.#socket?.destroyed === true;
  }

  open(): void {
    this.#response.writeHead(200, HEADERS);
    this.#response.flushHeaders();
  }

  write(text: string): boolean {
    return this.#response.write(text);
  }

  answer({ status, headers, body }: PlainAnswer): void {
    this.#response.writeHead(status, headers).end(body);
  }

  end(): void {
    try {
      this.#response.end();
    } catch {
      // Middleware of the host may have wrapped it.
      this.destroy();
    }
  }

  destroy(): void {
    this.#response.destroy();
  }
}

/** How many bytes wait for the reader before the source is held up, as in a response of Node.js. */
const ROOM_BYTES = 16_384;

/** Makes a web `Response`. */
export class WebSink implements EventSink {
  onRoom = nothing;
  onGone = nothing;
  readonly isHead: boolean;
  /** Resolves once the status is known. */
  readonly response: Promise<Response>;
  #respond: (response: Response) => void = nothing;
  #controller: ReadableStreamDefaultController<Uint8Array> | undefined;
  readonly #encoder = new TextEncoder();
  /** Not its signal alone: in Node.js that aborts only as long as the request itself is not collected. */
  readonly #request: Request | undefined;

  constructor(request: Request | undefined) {
    this.isHead = request?.method === 'HEAD';
    this.#request = request;
    this.response = new Promise((resolve) => {
      this.#respond = resolve;
    });
    request?.signal.addEventListener('abort', this.#onAbort, { once: true });
  }

  get isGone(): boolean {
    return this.#request?.signal.aborted === true;
  }

  open(): void {
    const body = new ReadableStream<Uint8Array>(
      {
        start: (controller) => {
          this.#controller = controller;
        },
        pull: () => this.onRoom(),
        cancel: () => {
          this.#controller = undefined;
          this.onGone();
        },
      },
      { highWaterMark: ROOM_BYTES, size: (chunk) => chunk.byteLength },
    );
    this.#respond(new Response(body, { headers: HEADERS }));
  }

  write(text: string): boolean {
    const controller = this.#controller;
    if (controller === undefined) return false;
    controller.enqueue(this.#encoder.encode(text));
    return (controller.desiredSize ?? 0) > 0;
  }

  answer({ status, headers, body }: PlainAnswer): void {
    this.#unlink();
    this.#respond(new Response(this.isHead ? null : body, { status, headers }));
  }

  end(): void {
    this.#unlink();
    this.#controller?.close();
    this.#controller = undefined;
  }

  destroy(): void {
    this.#unlink();
    this.#controller?.error(new DOMException('The client did not read the stream', 'AbortError'));
    this.#controller = undefined;
    // Where the client left before the status was known, nothing reads this.
    this.#respond(new Response(null, { status: 499 }));
  }

  readonly #onAbort = (): void => this.onGone();

  #unlink(): void {
    this.#request?.signal.removeEventListener('abort', this.#onAbort);
  }
}
