import { once } from 'node:events';
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
import { findRoute, nameOf, type StubCall, type StubReply, type StubRoute } from './stub-call.js';

/** Options of all stub services. */
export interface StubServiceOptions {
  /** Duration of a call in milliseconds, or a function of the call. Rejections and probes take none. @default 0 */
  readonly latencyMs?: number | ((call: StubCall) => number);
  /** Returns the fault for a call, or none. Called for each call without a queued fault, except probes. @default none */
  readonly fault?: (call: StubCall) => Fault | undefined;
  /**
   * Multiplies all configured durations: latencies, rate windows, lags. 0.01 turns a minute into 0.6 s. Durations requested
   * by a client or stated by a fault are not changed.
   * @default 1
   */
  readonly timeScale?: number;
  /** The valid API keys. @default any key */
  readonly keys?: readonly string[];
  /** Number of calls kept in `calls`. Counts and peaks cover all calls. @default 1000 */
  readonly logSize?: number;
}

export const STUB_SERVICE_OPTIONS = ['latencyMs', 'fault', 'timeScale', 'keys', 'logSize'] as const;

/** The details of a rejection. */
export interface Refusal {
  readonly reason: RefusalReason;
  readonly retryAfter?: RetryAfter | undefined;
}

/** Of a rejection whose status says it all. */
export const NO_DETAILS: Refusal = { reason: 'rate' };

type State =
  | { readonly is: 'stopped' }
  | { readonly is: 'starting'; readonly done: Promise<void> }
  | { readonly is: 'running'; readonly url: string }
  | { readonly is: 'stopping'; readonly done: Promise<void> };

/**
 * The base class of all stub services: a real HTTP server on loopback that responds like a vendor's service, can inject
 * faults of all kinds, and counts its calls. Subclasses define `routes` and reject unknown options.
 *
 * Invariants:
 * - Each call departs exactly once, however it ends; `inFlight` is 0 when no client is connected.
 * - When a client disconnects, the call's `signal` aborts.
 * - A fault affects one call. A script that throws, rejects or hangs affects neither another call nor the process.
 * - After `stop` nothing keeps the process alive; `start` then listens on the same port again.
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
  /** The name of the service, as in its records. */
  readonly name: string;
  /** Multiplies all configured durations. */
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
    // Longer than any pause of a test: a kept-alive connection must not close under the next call.
    this.#server.keepAliveTimeout = 120_000;
  }

  /** The service's response to a rejected call. */
  protected abstract refuse(status: number, refusal: Refusal, call?: StubCall): StubReply;

  /** The key of a call, from its headers. */
  protected abstract keyOf(headers: IncomingHttpHeaders): string | undefined;

  /** A stream whose first event is an error. A call that does not stream is rejected with the status itself. */
  protected streamError(call: StubCall, status: number, refusal: Refusal): StubReply {
    return this.refuse(status, refusal, call);
  }

  /** Listens on a free port of 127.0.0.1; after a `stop`, on the same port as before. */
  async start(): Promise<this> {
    if (this.#state.is === 'stopping') await this.#state.done;
    if (this.#state.is === 'stopped') this.#state = { is: 'starting', done: this.#listen() };
    if (this.#state.is === 'starting') await this.#state.done;
    return this;
  }

  /** Closes all connections, which ends the calls in flight. A second call is a no-op. */
  async stop(): Promise<void> {
    if (this.#state.is === 'starting') await this.#state.done;
    if (this.#state.is === 'running') this.#state = { is: 'stopping', done: this.#close() };
    if (this.#state.is === 'stopping') await this.#state.done;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.stop();
  }

  /**
   * `http://127.0.0.1:port`, without a trailing slash.
   * @throws {Error} unless the service is running
   */
  get url(): string {
    if (this.#state.is !== 'running') throw new Error(`${this.name} is ${this.#state.is}: it has no URL`);
    return this.#state.url;
  }

  /**
   * Queues faults for the next calls (of `route`, if given), one each.
   * @throws {TypeError | RangeError} for an invalid fault or an unknown route
   */
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

  /** The latest calls, oldest first. */
  get calls(): readonly StubCall[] {
    return this.#ledger.log;
  }

  /** Counts since the start or the last `resetStats`. */
  stats(): StubStats {
    return this.#ledger.stats();
  }

  /**
   * The maximum number of calls that started within any window of `windowMs`. A call starts when its headers arrive, up to
   * some milliseconds after the client sent them.
   */
  peakStartsPer(windowMs: number, filter: CallFilter = {}): number {
    return this.#ledger.peakStartsPer(windowMs, filter);
  }

  /** Resets all counts. Calls in flight remain counted. */
  resetStats(): void {
    this.#ledger.reset();
  }

  /** Whether the key is valid. */
  protected knowsKey(key: string | undefined): boolean {
    return this.#keys === undefined || (key !== undefined && this.#keys.has(key));
  }

  /** The unscaled duration of this call in milliseconds. */
  protected latencyOf(call: StubCall): number {
    if (typeof this.#latencyMs === 'number') return this.#latencyMs;
    return durationMs('latencyMs(call)', this.#latencyMs(call));
  }

  /** Waits, with `timeScale` applied; rejects when the call ends. */
  protected async pause(ms: number, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    if (ms > 0) await sleep(ms * this.timeScale, undefined, { signal });
  }

  async #listen(): Promise<void> {
    try {
      this.#server.listen(this.#port, '127.0.0.1');
      await once(this.#server, 'listening');
    } catch (error) {
      this.#state = { is: 'stopped' };
      throw error;
    }
    this.#port = (this.#server.address() as AddressInfo).port;
    this.#state = { is: 'running', url: `http://127.0.0.1:${this.#port}` };
  }

  async #close(): Promise<void> {
    const closed = once(this.#server, 'close');
    this.#server.close();
    this.#server.closeAllConnections();
    await closed;
    this.#state = { is: 'stopped' };
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
    this.#handle(conversation, route).catch((error: unknown) => conversation.fail(error, this.name));
  }

  async #handle(conversation: Conversation, route: StubRoute | undefined): Promise<void> {
    const { call } = conversation;
    const readable = await conversation.readBody();
    const answer = async (): Promise<StubReply> => {
      if (route === undefined) return this.refuse(404, NO_DETAILS, call);
      return readable ? await route.answer(call) : this.refuse(400, NO_DETAILS, call);
    };
    const fault = this.#nextFault(call, route);
    if (fault === undefined) return conversation.send(await answer());
    conversation.noteFault(fault.type);
    switch (fault.type) {
      case 'status':
        return conversation.send(this.#statusReply(fault, call));
      case 'envelope':
        return conversation.send({ ...this.refuse(fault.status, rejectionOf(fault), call), status: 200 });
      case 'stream-error':
        return conversation.send(this.streamError(call, fault.status, rejectionOf(fault)));
      case 'no-headers':
        return conversation.breakOff('stall');
      case 'stall':
        return conversation.send(await answer(), 'stall');
      case 'reset':
        if (fault.when === 'before-headers') return conversation.breakOff('reset');
        return conversation.send(await answer(), 'reset');
    }
  }

  #statusReply(fault: StatusFault, call: StubCall): StubReply {
    const { status, retryAfter } = fault;
    const usual = this.refuse(status, rejectionOf(fault), call);
    const { body = usual.body } = fault;
    return {
      status,
      headers: { ...usual.headers, ...(retryAfter && retryAfterHeaders(retryAfter)), ...fault.headers },
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

const rejectionOf = (fault: StatusFault | EnvelopeFault | StreamErrorFault): Refusal => ({
  reason: fault.reason ?? 'rate',
  retryAfter: fault.type === 'status' ? fault.retryAfter : undefined,
});
