import type { IncomingMessage, ServerResponse } from 'node:http';
import { ConnectionCut, json, type StubCall, type StubCallEnd, type StubReply } from './stub-call.js';

/** How a response is interrupted. */
export type Break = 'stall' | 'reset';

/** Counts responses and departures. */
export interface ConversationObserver {
  answer(call: StubCall, status: number): void;
  depart(call: StubCall, disconnected: boolean): void;
}

type Mutable<T> = { -readonly [P in keyof T]: T[P] };

/** A call whose headers have arrived. */
export type ArrivedCall = Omit<StubCall, 'body' | 'signal' | 'end' | 'status' | 'fault'>;

/** The HTTP exchange of one call: reads the body, sends the response, complete or interrupted, and detects a disconnect. */
export class Conversation {
  readonly #call: Mutable<StubCall>;
  readonly #over = new AbortController();
  readonly #request: IncomingMessage;
  readonly #response: ServerResponse;
  readonly #observer: ConversationObserver;

  constructor(
    arrived: ArrivedCall,
    request: IncomingMessage,
    response: ServerResponse,
    observer: ConversationObserver,
  ) {
    const { signal } = this.#over;
    this.#call = { ...arrived, body: undefined, signal, end: undefined, status: undefined, fault: undefined };
    this.#request = request;
    this.#response = response;
    this.#observer = observer;
    response.once('close', () => this.#depart('disconnected'));
  }

  get call(): StubCall {
    return this.#call;
  }

  /** Reads the body into `call.body`; returns false if it is not JSON. */
  async readBody(): Promise<boolean> {
    const pieces: Buffer[] = [];
    for await (const piece of this.#request as AsyncIterable<Buffer>) pieces.push(piece);
    if (pieces.length === 0) return true;
    try {
      this.#call.body = JSON.parse(Buffer.concat(pieces).toString());
      return true;
    } catch {
      return false;
    }
  }

  noteFault(type: string): void {
    this.#call.fault = type;
  }

  /** Sends a response; with `broken`, only its first part. */
  async send(reply: StubReply, broken?: Break): Promise<void> {
    const { status = 200, headers = {}, body = '', tail = '' } = reply;
    if (this.#call.end !== undefined) return;
    // Without a body, the headers would be the complete response.
    if (broken !== undefined && body === '') return this.breakOff(broken);
    this.#call.status = status;
    this.#observer.answer(this.#call, status);
    if (typeof body === 'string') {
      const bytes = Buffer.from(body);
      const length = bytes.length > 0 ? { 'content-length': String(bytes.length) } : {};
      this.#response.writeHead(status, { ...headers, ...length });
      if (broken === undefined) return this.#end(bytes);
      await this.#write(bytes.subarray(0, Math.ceil(bytes.length / 2)));
      return this.breakOff(broken);
    }
    this.#response.writeHead(status, headers);
    this.#response.flushHeaders();
    for await (const piece of body) {
      if (this.#call.end !== undefined) return;
      await this.#write(piece);
      if (broken !== undefined) return this.breakOff(broken);
    }
    this.#end(tail);
  }

  /** `stall`: sends nothing more. `reset`: resets the connection. */
  breakOff(how: Break): void {
    if (how === 'stall') return;
    this.#depart('cut');
    this.#request.socket.resetAndDestroy();
  }

  /** Ends a call whose handling threw: the client disconnected, the connection is to be cut, or a script failed. */
  fail(error: unknown, service: string): void {
    if (this.#call.end !== undefined) return;
    if (error instanceof ConnectionCut || this.#response.headersSent) {
      this.breakOff('reset');
      return;
    }
    const text = error instanceof Error ? error.message : String(error);
    // A distinct message, so that a broken script is not mistaken for an injected fault.
    const message = `A script of ${service} failed: ${text}`;
    // Where the client of each service looks for it.
    void this.send(json(500, { message, error: { message } }));
  }

  #end(last: string | Buffer): void {
    if (this.#call.end !== undefined) return;
    this.#depart('answered');
    this.#response.end(last);
  }

  /** Writes, and waits until the data is flushed or the client has disconnected. */
  #write(piece: string | Buffer): Promise<void> {
    return new Promise((resolve) => {
      this.#response.write(piece, () => resolve());
    });
  }

  #depart(end: StubCallEnd): void {
    if (this.#call.end !== undefined) return;
    this.#call.end = end;
    this.#observer.depart(this.#call, end !== 'answered');
    this.#over.abort();
  }
}
