import { callable, options } from '../internal/validate.js';

/** The two parts of undici that `longFetch` needs; they must come from one copy of it. */
export interface FetchParts {
  /** undici's own `fetch`. */
  // biome-ignore lint/suspicious/noExplicitAny: whichever version of undici the host has
  readonly fetch: (input: any, init?: any) => Promise<any>;
  readonly Agent: new (options: { headersTimeout: number; bodyTimeout: number }) => object;
}

/**
 * A `fetch` that waits as long as its caller does.
 *
 * Node's own gives up after five minutes without headers, or between two parts of a body (`UND_ERR_HEADERS_TIMEOUT`,
 * `UND_ERR_BODY_TIMEOUT`), whatever the signal or the SDK's timeout says; an LLM may think for half an hour. This one
 * has no such limits: let `attemptTimeoutMs` of the gate bound it. Install `undici` for it; Node's built-in copy cannot
 * be configured.
 *
 * It takes what Node's own takes, Node's `Request` and `FormData` too. What it gives are undici's responses.
 *
 * @throws {TypeError} when a part is missing
 *
 * @example
 * import { Agent, fetch } from 'undici';
 * const openai = new OpenAI({ fetch: longFetch({ fetch, Agent }), maxRetries: 0, timeout: 1_800_000 });
 */
export function longFetch(parts: FetchParts): typeof globalThis.fetch {
  options('longFetch', parts, ['fetch', 'Agent']);
  const { fetch, Agent } = parts;
  callable('fetch', fetch);
  callable('Agent', Agent);
  const dispatcher = new Agent({ headersTimeout: 0, bodyTimeout: 0 });
  const long: typeof globalThis.fetch = async (input, init) => {
    if (!(input instanceof Request) && !(init?.body instanceof FormData)) {
      return fetch(input, { ...init, dispatcher });
    }
    const request = new Request(input, init);
    return fetch(request.url, { ...(await contentOf(request, input)), dispatcher });
  };
  // The OpenAI SDK looks at this class for whether Node's FormData can be sent, and refuses uploads if not.
  return Object.assign(long, { Response });
}

/** A request of Node's in words that undici knows: its own classes are others, and it would send `[object FormData]`. */
async function contentOf(request: Request, input: unknown): Promise<object> {
  const { method, headers, redirect, integrity, signal } = request;
  // An abort reaches the signal of a request only while somebody has that request, and the one it was made from.
  signal.addEventListener('abort', () => [request, input]);
  // Whole, so that it has a length, and can be sent again where a redirect asks for that.
  const body = request.body === null ? null : await request.arrayBuffer();
  return { method, headers, redirect, integrity, signal, body };
}
