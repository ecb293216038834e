import type { ServerResponse } from 'node:http';
import { NEUTRAL_CONTEXT } from '../../internal/async-context.js';
import { nowMs } from '../../internal/clock.js';
import type { StateSource } from './state.js';

interface Watcher {
  readonly response: ServerResponse;
  /** Chosen by the page; other clients have none. */
  readonly id: string | undefined;
  readonly sinceMs: number;
  /** When the page last confirmed that it reads. */
  confirmedMs: number;
  /** Since when its socket has had unsent data. */
  undrainedSinceMs: number | undefined;
}

/** A watcher whose socket has unsent data for this long is dropped. */
const DRAIN_TIMEOUT_MS = 10_000;
/** Then the stream ends, and the client reconnects and is authorized again. */
const MAX_STREAM_MS = 600_000;
/** After the last watcher has left, its page may reconnect. */
const LINGER_MS = 5_000;

/**
 * Server-sent events for all watchers.
 *
 * Invariants:
 * - The timer runs, and the source is attached, only while there are watchers; each update is created once for all.
 * - There are at most `maxClients` watchers, and at most one update is buffered for a watcher that does not read.
 * - Kernel buffers hide for minutes that a client does not read. So a watcher that has not confirmed lately gives way to a
 *   new one once `maxClients` is reached.
 */
export class LiveFeed {
  readonly #source: StateSource;
  readonly #everyMs: number;
  readonly #maxClients: number;
  readonly #watchers = new Set<Watcher>();
  #timer: NodeJS.Timeout | undefined;
  #linger: NodeJS.Timeout | undefined;
  #updatedMs = 0;
  #closed = false;

  constructor(source: StateSource, everyMs: number, maxClients: number) {
    this.#source = source;
    this.#everyMs = everyMs;
    this.#maxClients = maxClients;
  }

  get clients(): number {
    return this.#watchers.size;
  }

  /** Adds a watcher and sends the first update; returns whether there was room. */
  add(response: ServerResponse, id?: string): boolean {
    if (this.#closed || (this.#watchers.size >= this.#maxClients && !this.#dropUnconfirmed())) return false;
    const now = nowMs();
    const watcher: Watcher = { response, id, sinceMs: now, confirmedMs: now, undrainedSinceMs: undefined };
    this.#watchers.add(watcher);
    response.on('close', () => this.#remove(watcher));
    // A broken connection is reported by `close` too; without a listener, its error would end the process.
    response.on('error', () => {});
    // A connection kept alive after the stream would delay a server's close. HTTP/2 has no such header.
    if (response.req.httpVersionMajor === 1) response.setHeader('connection', 'close');
    response.writeHead(200, {
      'content-type': 'text/event-stream; charset=utf-8',
      // `no-transform` prevents buffering in compression middleware, the next header in nginx.
      'cache-control': 'no-store, no-transform',
      'x-accel-buffering': 'no',
      'x-content-type-options': 'nosniff',
    });
    response.write('retry: 2000\n\n');
    clearTimeout(this.#linger);
    this.#source.attach();
    const update = this.#source.update();
    if (update !== undefined) send(watcher, update);
    if (this.#timer === undefined) {
      this.#updatedMs = now;
      // Watchers that do not read are noticed in time even if updates are rare.
      const periodMs = Math.min(this.#everyMs, DRAIN_TIMEOUT_MS / 2);
      this.#timer = NEUTRAL_CONTEXT.run(() => setInterval(() => this.#tick(), periodMs).unref());
    }
    return true;
  }

  /** The page with this id reads its updates. */
  confirm(id: string): void {
    for (const watcher of this.#watchers) if (watcher.id === id) watcher.confirmedMs = nowMs();
  }

  /** Ends all streams and accepts no further watcher. */
  close(): void {
    this.#closed = true;
    clearTimeout(this.#linger);
    this.#source.detach();
    for (const { response } of this.#watchers) response.end();
  }

  #tick(): void {
    const now = nowMs();
    // The last update is sent whether one is due or not: no other follows.
    const { isOver } = this.#source;
    const isDue = isOver || now - this.#updatedMs >= this.#everyMs;
    if (isDue) this.#updatedMs = now;
    const update = isDue ? this.#source.update() : undefined;
    for (const watcher of this.#watchers) {
      const { response } = watcher;
      if (!isOver && (response.writableNeedDrain || response.writableLength > 0)) {
        watcher.undrainedSinceMs ??= now;
        if (now - watcher.undrainedSinceMs >= DRAIN_TIMEOUT_MS) response.destroy();
        continue;
      }
      watcher.undrainedSinceMs = undefined;
      if (update !== undefined) send(watcher, update);
      if (now - watcher.sinceMs >= MAX_STREAM_MS) response.end();
    }
    if (isOver) this.close();
  }

  #dropUnconfirmed(): boolean {
    const staleMs = nowMs() - Math.max(DRAIN_TIMEOUT_MS, 2 * this.#everyMs);
    for (const watcher of this.#watchers) {
      if (watcher.confirmedMs > staleMs) continue;
      watcher.response.destroy();
      this.#remove(watcher);
      return true;
    }
    return false;
  }

  #remove(watcher: Watcher): void {
    if (!this.#watchers.delete(watcher) || this.#watchers.size > 0) return;
    clearInterval(this.#timer);
    this.#timer = undefined;
    if (this.#closed) return;
    this.#linger = NEUTRAL_CONTEXT.run(() => setTimeout(() => this.#source.detach(), LINGER_MS).unref());
  }
}

function send({ response }: Watcher, update: string): void {
  if (!response.writableEnded) response.write(`data: ${update}\n\n`);
}
