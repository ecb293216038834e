import { createServer, type IncomingHttpHeaders, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { callable, durationMs, finiteNumber, optional, text, wholeNumber } from '../internal/validate.js';
import { type CallFilter, CallLedger, type StubStats } from './call-ledger.js';
import { Conversation } from './conversation.js';
import {
  checkFault,
  type EnvelopeFault,
  type Fault,
  type RefusalReason,
  type RetryAfter,
  retryAfterHeaders,
  type StatusFault,
  type StreamErrorFault,
} from './fault.js';
import { findRoute, nameOf, type StubRoute } from './routes.js';
import type { StubCall, StubReply } from './stub-call.js';

/** Options that every stub service takes. */
export interface StubServiceOptions {
  /** Milliseconds a call takes, or a function of the call. Refusals and probes take none. @default 0 */
  readonly latencyMs?: number | ((call: StubCall) => number);
  /** Stages a fault for a call, or none. Asked for each call that no queued fault befalls; probes are spared. */
  readonly fault?: (call: StubCall) => Fault | undefined;
  /**
   * Multiplies every duration that the service is configured with: latencies, the windows of rates, lags. 0.01 makes a
   * minute 0.6 s. What a client asks for, and what a fault says, stands as it is. @default 1
   */
  readonly timeScale?: number;
  /** The API keys that are known; any is, if left out. */
  readonly keys?: readonly string[];
  /** How many calls `calls` remembers. Counts and peaks cover all calls. @default 1000 */
  readonly logSize?: number;
}

export const STUB_SERVICE_OPTIONS = ['latencyMs', 'fault', 'timeScale', 'keys', 'logSize'] as const;

/** What a stub service knows of a refusal that it words. */
export interface Refusal {
  readonly reason: RefusalReason;
  readonly retryAfter?: RetryAfter | undefined;
}

type State =
  | { readonly is: 'stopped' }
  | { readonly is: 'starting'; readonly done: Promise<void> }
  | { readonly is: 'running'; readonly url: string }
  | { readonly is: 'stopping'; readonly done: Promise<void> };

/**
 * The base of all stub services: a real HTTP server on loopback that answers as a vendor's service does, can be told to
 * fail in every way that services fail, and counts what it sees.
 *
 * Invariants:
 * - Each call that arrives departs once, whichever way it ends; `inFlight` is 0 when no client is left.
 * - A client that leaves ends the work for it: the call's `signal` aborts.
 * - A fault befalls one call. Nothing that scripts do (throw, reject, hang) reaches another call or the process.
 * - `stop` leaves nothing behind that keeps the process alive; `start` after it listens on the same port again.
 *
 * @example
 * const serper = await new StubSerper({ latencyMs: 20 }).start();
 * serper.faultNext({ type: 'status', status: 429 });
 * const response = await fetch(`${serper.url}/search`, {
 *   method: 'POST',
 *   headers: { 'X-API-KEY': 'key-1' },
 *   body: JSON.stringify({ q: 'pools' }),
 * });
 * response.status; // => 429
 * serper.stats().byKey['key-1']?.calls; // => 1
 * await serper.stop();
 */
export abstract class StubService implements AsyncDisposable {
  readonly name: string;
  readonly timeScale: number;
  protected abstract readonly routes: readonly StubRoute[];
  readonly #latencyMs: number | ((call: StubCall) => number);
  readonly #fault: ((call: StubCall) => Fault | undefined) | undefined;
  readonly #keys: ReadonlySet<string> | undefined;
  readonly #ledger: CallLedger;
  readonly #server = createServer((request, response) => this.#serve(request, response));
  readonly #queuedFaults: { readonly fault: Fault; readonly route: string | undefined }[] = [];
  #state: State = { is: 'stopped' };
  #port = 0;
  #lastId = 0;

  /** Unknown options are refused by the subclass, which knows its own. */
  protected constructor(name: string, options: StubServiceOptions) {
    this.name = name;
    const { latencyMs = 0 } = options;
    this.#latencyMs = typeof latencyMs === 'function' ? latencyMs : durationMs('latencyMs', latencyMs);
    this.#fault = optional('fault', options.fault, callable);
    this.timeScale =
      optional('timeScale', options.timeScale, (option, value) => finiteNumber(option, value, 0.001, 1000)) ??
      1;
    this.#keys = options.keys && new Set(options.keys.map((key, i) => text(`keys[${i}]`, key)));
    this.#ledger = new CallLedger(wholeNumber('logSize', options.logSize ?? 1000));
    // Longer than any test pauses: a client must not find a kept connection closed under its next call.
    this.#server.keepAliveTimeout = 120_000;
  }

  /** Words a refusal as the service does. */
  protected abstract refuse(status: number, refusal: Refusal): StubReply;

  /** The key of a call, from its headers. */
  protected abstract keyOf(headers: IncomingHttpHeaders): string | undefined;

  /** Makes the first event of a stream an error. A call that does not stream is refused with the status itself. */
  protected streamError(_call: StubCall, status: number, refusal: Refusal): StubReply {
    return this.refuse(status, refusal);
  }

  /** Listens on a free port of 127.0.0.1; after a `stop`, on the same port as before. */
  async start(): Promise<this> {
    if (this.#state.is === 'stopping') await this.#state.done;
    if (this.#state.is === 'stopped') this.#state = { is: 'starting', done: this.#listen() };
    if (this.#state.is === 'starting') await this.#state.done;
    return this;
  }

  /** Ends open connections, and with them the calls under way. Stopping again changes nothing. */
  async stop(): Promise<void> {
    if (this.#state.is === 'starting') await this.#state.done;
    if (this.#state.is === 'running') this.#state = { is: 'stopping', done: this.#close() };
    if (this.#state.is === 'stopping') await this.#state.done;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.stop();
  }

  /** `http://127.0.0.1:port`, without a slash at the end. Throws unless the service is running. */
  get url(): string {
    if (this.#state.is !== 'running') throw new Error(`${this.name} is ${this.#state.is}: it has no URL`);
    return this.#state.url;
  }

  /** Stages faults for the next calls, one each, in this order; calls of `route` only, where it is given. */
  faultNext(faults: Fault | readonly Fault[], route?: string): void {
    const names = this.routes.map(nameOf);
    if (route !== undefined && !names.includes(route)) {
      throw new RangeError(
        `${this.name} has no route "${route}"; it has ${names.map((name) => `"${name}"`).join(', ')}`,
      );
    }
    const staged = (Array.isArray(faults) ? faults : [faults]).map((fault: Fault) => ({
      fault: checkFault(fault),
      route,
    }));
    this.#queuedFaults.push(...staged);
  }

  /** The calls seen last, oldest first. */
  get calls(): readonly StubCall[] {
    return this.#ledger.log;
  }

  /** What was counted since the start, or since `resetStats`. */
  stats(): StubStats {
    return this.#ledger.stats();
  }

  /**
   * The most calls that started within any `windowMs`, wherever the window is laid. A start is the arrival of the
   * request's headers here, so it trails the client's own start by up to some milliseconds.
   */
  peakStartsPer(windowMs: number, filter: CallFilter = {}): number {
    return this.#ledger.peakStartsPer(windowMs, filter);
  }

  /** Counts afresh. Calls under way stay counted, as they will end. */
  resetStats(): void {
    this.#ledger.reset();
  }

  /** Whether calls with this key are let in; without `keys`, all are. */
  protected knowsKey(key: string | undefined): boolean {
    return this.#keys === undefined || (key !== undefined && this.#keys.has(key));
  }

  /** Milliseconds that this call takes, not scaled yet. */
  protected latencyOf(call: StubCall): number {
    if (typeof this.#latencyMs === 'number') return this.#latencyMs;
    return durationMs('latencyMs(call)', this.#latencyMs(call));
  }

  /** Waits for some milliseconds, scaled; rejects when the call is over. */
  protected async pause(ms: number, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    if (ms > 0) await sleep(ms * this.timeScale, undefined, { signal });
  }

  #listen(): Promise<void> {
    return new Promise((resolve, reject) => {
      const onError = (error: Error): void => {
        this.#state = { is: 'stopped' };
        reject(error);
      };
      this.#server.once('error', onError);
      this.#server.listen(this.#port, '127.0.0.1', () => {
        this.#server.off('error', onError);
        this.#port = (this.#server.address() as AddressInfo).port;
        this.#state = { is: 'running', url: `http://127.0.0.1:${this.#port}` };
        resolve();
      });
    });
  }

  #close(): Promise<void> {
    return new Promise((resolve) => {
      this.#server.close(() => {
        this.#state = { is: 'stopped' };
        resolve();
      });
      this.#server.closeAllConnections();
    });
  }

  #serve(request: IncomingMessage, response: ServerResponse): void {
    const { method = 'GET', url = '/', headers } = request;
    const mark = url.indexOf('?');
    const path = mark < 0 ? url : url.slice(0, mark);
    const { route, params } = findRoute(this.routes, method, path);
    const arrived = {
      id: ++this.#lastId,
      route: route === undefined ? 'unknown' : nameOf(route),
      method,
      url,
      params,
      query: new URLSearchParams(mark < 0 ? '' : url.slice(mark)),
      headers,
      key: this.keyOf(headers),
      startedAtMs: performance.now(),
    };
    const conversation = new Conversation(arrived, request, response, this.#ledger);
    this.#ledger.arrive(conversation.call);
    this.#converse(conversation, route).catch((error: unknown) => conversation.fail(error, this.name));
  }

  async #converse(conversation: Conversation, route: StubRoute | undefined): Promise<void> {
    const { call } = conversation;
    const readable = await conversation.readBody();
    const answer = async (): Promise<StubReply> => {
      if (route === undefined) return this.refuse(404, { reason: 'rate' });
      return readable ? await route.answer(call) : this.refuse(400, { reason: 'rate' });
    };
    const fault = this.#nextFault(call, route);
    if (fault === undefined) return conversation.send(await answer());
    conversation.noteFault(fault.type);
    switch (fault.type) {
      case 'status':
        return conversation.send(this.#statusReply(fault));
      case 'envelope':
        return conversation.send({ ...this.refuse(fault.status, refusalOf(fault)), status: 200 });
      case 'stream-error':
        return conversation.send(this.streamError(call, fault.status, refusalOf(fault)));
      case 'no-headers':
        return conversation.breakOff('stall');
      case 'stall':
        return conversation.send(await answer(), 'stall');
      case 'reset':
        if (fault.when === 'before-headers') return conversation.breakOff('reset');
        return conversation.send(await answer(), 'reset');
    }
  }

  #statusReply(fault: StatusFault): StubReply {
    const { status, retryAfter } = fault;
    const worded = this.refuse(status, refusalOf(fault));
    const { body = worded.body } = fault;
    return {
      status,
      headers: { ...worded.headers, ...(retryAfter && retryAfterHeaders(retryAfter)), ...fault.headers },
      body: typeof body === 'string' ? body : JSON.stringify(body),
    };
  }

  #nextFault(call: StubCall, route: StubRoute | undefined): Fault | undefined {
    const isProbe = route?.probe === true;
    const next = this.#queuedFaults.findIndex((queued) =>
      queued.route === undefined ? !isProbe : queued.route === call.route,
    );
    if (next >= 0) return this.#queuedFaults.splice(next, 1)[0]?.fault;
    const fault = isProbe ? undefined : this.#fault?.(call);
    return fault && checkFault(fault);
  }
}

const refusalOf = (fault: StatusFault | EnvelopeFault | StreamErrorFault): Refusal => ({
  reason: fault.reason ?? 'rate',
  retryAfter: fault.type === 'status' ? fault.retryAfter : undefined,
});
