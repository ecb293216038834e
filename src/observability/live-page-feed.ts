import type { ServerResponse } from 'node:http';
import { NEUTRAL_CONTEXT } from '../internal/async-context.js';
import { nowMs } from '../internal/clock.js';

/** How a feed is built. */
export interface LiveFeedParts {
  /** One update, without line breaks; `undefined` if there is none to be had. */
  readonly update: () => string | undefined;
  /** Whether this was the last one. */
  readonly isOver: () => boolean;
  readonly everyMs: number;
  readonly maxClients: number;
}

interface Client {
  readonly response: ServerResponse;
  readonly sinceMs: number;
  /** Since when it has not taken what it was sent. */
  behindSinceMs: number | undefined;
}

/** A client that takes nothing for so long is not there any more, or on a line that cannot bear it. */
const PATIENCE_MS = 10_000;
/** Then it comes again, and is asked again whether it may look. */
const LONGEST_MS = 600_000;

/**
 * Server-sent events for everybody who watches.
 *
 * Invariants:
 * - The timer goes round only while somebody watches, and each update is made once for all.
 * - Never more than `maxClients`, and never more than one update kept for a client that is behind.
 */
export class LiveFeed {
  readonly #parts: LiveFeedParts;
  readonly #clients = new Set<Client>();
  #timer: NodeJS.Timeout | undefined;
  #closed = false;

  constructor(parts: LiveFeedParts) {
    this.#parts = parts;
  }

  get clients(): number {
    return this.#clients.size;
  }

  /** Lets one watch; whether there was room. */
  add(response: ServerResponse): boolean {
    if (this.#closed || this.#clients.size >= this.#parts.maxClients) return false;
    const client: Client = { response, sinceMs: nowMs(), behindSinceMs: undefined };
    this.#clients.add(client);
    response.on('close', () => this.#remove(client));
    // A broken connection is told by `close` as well; unheard, its error would end the process.
    response.on('error', () => {});
    // The stream takes its connection with it: kept alive it would hold a closing server up. HTTP/2 has no such header.
    if (response.req.httpVersionMajor === 1) response.setHeader('connection', 'close');
    response.writeHead(200, {
      'content-type': 'text/event-stream; charset=utf-8',
      // `no-transform` keeps compressing middleware from holding updates back, the third line nginx.
      'cache-control': 'no-store, no-transform',
      'x-accel-buffering': 'no',
      'x-content-type-options': 'nosniff',
    });
    response.write('retry: 2000\n\n');
    const update = this.#parts.update();
    if (update !== undefined) this.#send(client, update);
    this.#timer ??= NEUTRAL_CONTEXT.run(() => setInterval(() => this.#tick(), this.#parts.everyMs).unref());
    return true;
  }

  /** Ends every stream, and takes nobody any more. */
  close(): void {
    this.#closed = true;
    for (const { response } of this.#clients) response.end();
  }

  #tick(): void {
    const now = nowMs();
    const update = this.#parts.update();
    for (const client of this.#clients) {
      if (client.response.writableNeedDrain) {
        client.behindSinceMs ??= now;
        if (now - client.behindSinceMs >= PATIENCE_MS) client.response.destroy();
        continue;
      }
      client.behindSinceMs = undefined;
      if (update !== undefined) this.#send(client, update);
      if (now - client.sinceMs >= LONGEST_MS) client.response.end();
    }
    if (this.#parts.isOver()) this.close();
  }

  #send({ response }: Client, update: string): void {
    if (!response.writableEnded) response.write(`data: ${update}\n\n`);
  }

  #remove(client: Client): void {
    this.#clients.delete(client);
    if (this.#clients.size > 0) return;
    clearInterval(this.#timer);
    this.#timer = undefined;
  }
}
