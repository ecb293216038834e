import type { IncomingHttpHeaders } from 'node:http';

/** One call to a stub service, as passed to scripts and listed in `calls`. */
export interface StubCall {
  /** From 1. */
  readonly id: number;
  /** Method and path pattern, such as `POST /sandboxes/:id/pause`; `unknown` if the service has no such route. */
  readonly route: string;
  readonly method: string;
  /** Path and query as received. */
  readonly url: string;
  /** The path parameters, by their names in `route`. */
  readonly params: Readonly<Record<string, string>>;
  readonly query: URLSearchParams;
  readonly headers: IncomingHttpHeaders;
  /** The API key of the request. */
  readonly key: string | undefined;
  /** The parsed JSON body; `undefined` before it has arrived, or if there is none. */
  readonly body: unknown;
  /** Milliseconds on the monotonic clock of this process (`performance.now()`). */
  readonly startedAtMs: number;
  /** Aborts when the call ends for any reason; scripts should stop then. */
  readonly signal: AbortSignal;
  /** How it ended; `undefined` while it is in flight. `cut`: the stub closed the connection. */
  readonly end: StubCallEnd | undefined;
  /** The HTTP status, once it is sent. */
  readonly status: number | undefined;
  /** The type of the injected fault, if any. */
  readonly fault: string | undefined;
}

/** How a call ended: completely answered, disconnected by the client or by `stop`, or cut by the stub. */
export type StubCallEnd = 'answered' | 'disconnected' | 'cut';

/** A response of a stub service. */
export interface StubReply {
  /** @default 200 */
  readonly status?: number;
  readonly headers?: Readonly<Record<string, string>>;
  /** The body, or a stream: its headers are sent at once, and each piece as it arrives. */
  readonly body?: string | AsyncIterable<string>;
  /** The last piece of a streamed body. The call counts as ended just before it is sent. */
  readonly tail?: string;
}

/** A JSON response. */
export const json = (
  status: number,
  body: unknown,
  headers: Readonly<Record<string, string>> = {},
): StubReply => ({
  status,
  headers: { 'content-type': 'application/json', ...headers },
  body: JSON.stringify(body),
});

/** The same response with more headers. */
export const withHeaders = (reply: StubReply, headers: Readonly<Record<string, string>>): StubReply => ({
  ...reply,
  headers: { ...reply.headers, ...headers },
});

/** Thrown by a stub to cut the connection of a call, as a crashing server does. */
export class ConnectionCut extends Error {}

/** One route of a stub service. */
export interface StubRoute {
  readonly method: string;
  /** `:name` matches one segment, a final `*` all remaining ones. */
  readonly path: string;
  /** A health or metrics route: it gets only faults that are queued for it by name. */
  readonly probe?: boolean;
  readonly answer: (call: StubCall) => StubReply | Promise<StubReply>;
}

/** The name under which a route's calls are counted. */
export const nameOf = ({ method, path }: StubRoute): string => `${method} ${path}`;

/** The first matching route, and its path parameters. */
export function findRoute(
  routes: readonly StubRoute[],
  method: string,
  path: string,
): { readonly route: StubRoute | undefined; readonly params: Record<string, string> } {
  for (const route of routes) {
    const params = route.method === method ? paramsOf(route.path, path) : undefined;
    if (params !== undefined) return { route, params };
  }
  return { route: undefined, params: {} };
}

function paramsOf(pattern: string, path: string): Record<string, string> | undefined {
  const params: Record<string, string> = {};
  const expected = pattern.split('/');
  const given = path.split('/');
  for (const [i, part] of expected.entries()) {
    if (part === '*') return given.length > i ? params : undefined;
    const found = given[i];
    if (found === undefined) return undefined;
    if (part.startsWith(':') && found !== '') params[part.slice(1)] = found;
    else if (part !== found) return undefined;
  }
  return given.length === expected.length ? params : undefined;
}
