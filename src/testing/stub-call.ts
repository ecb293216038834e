import type { IncomingHttpHeaders } from 'node:http';

/** One call to a stub service, as scripts and the log see it. */
export interface StubCall {
  /** Counts from 1. */
  readonly id: number;
  /** Method and path pattern, `POST /sandboxes/:id/pause` say; `unknown` where the service has no such route. */
  readonly route: string;
  readonly method: string;
  /** Path and query, as they were received. */
  readonly url: string;
  /** The parts of the path that stand for something, by the names they have in `route`. */
  readonly params: Readonly<Record<string, string>>;
  readonly query: URLSearchParams;
  readonly headers: IncomingHttpHeaders;
  /** The API key it was made with. */
  readonly key: string | undefined;
  /** The parsed JSON body; `undefined` until it has arrived, and where there is none. */
  readonly body: unknown;
  /** Milliseconds on the monotonic clock of this process (`performance.now()`). */
  readonly startedAtMs: number;
  /** Aborts when the call is over, whichever way: what still works for it should stop. */
  readonly signal: AbortSignal;
  /** How it ended; `undefined` while it is under way. `cut`: the stub itself broke it off. */
  readonly end: StubCallEnd | undefined;
  /** The status that was sent, if any. */
  readonly status: number | undefined;
  /** The type of the fault that was staged, if any. */
  readonly fault: string | undefined;
}

/** How a call ended: answered in full, left by its client (or by `stop`), or cut off by the stub. */
export type StubCallEnd = 'answered' | 'disconnected' | 'cut';

/** What a stub service answers. */
export interface StubReply {
  /** 200 if left out. */
  readonly status?: number;
  readonly headers?: Readonly<Record<string, string>>;
  /** A whole body, or one that is streamed: its headers are sent at once, and each piece as it comes. */
  readonly body?: string | AsyncIterable<string>;
  /** Ends a streamed body. The call counts as over just before it is sent. */
  readonly tail?: string;
}

/** A JSON answer. */
export const json = (
  status: number,
  body: unknown,
  headers: Readonly<Record<string, string>> = {},
): StubReply => ({
  status,
  headers: { 'content-type': 'application/json', ...headers },
  body: JSON.stringify(body),
});

/** Thrown by a stub's own work to cut the connection of the call, as a server does that dies. */
export class ConnectionCut extends Error {}
