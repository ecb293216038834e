import type { IncomingMessage, ServerResponse } from 'node:http';
import { boundedCall } from '../internal/bounded-call.js';
import {
  callable,
  options as checkOptions,
  flag,
  optional,
  refusal,
  wholeNumber,
} from '../internal/validate.js';
import { LiveFeed } from './live-page-feed.js';
import { LIVE_PAGE, LIVE_PAGE_POLICY } from './live-page-html.js';
import { LiveStateSource, type Watched } from './live-page-state.js';

/** Options of `livePage`. */
export interface LivePageOptions {
  /**
   * Whether this client may look; anything but `true` is answered 403. It may answer by itself instead, with a redirect
   * to a login or a 401. Asked for the page, for its updates, and again every ten minutes.
   * @default everybody may who can reach the page
   */
  readonly authorise?: (request: IncomingMessage, response: ServerResponse) => boolean | PromiseLike<boolean>;
  /**
   * Whether the page shows which task an instance works for. Task ids are often made from names of users or customers.
   * @default false
   */
  readonly showTaskIds?: boolean;
  /** Milliseconds between two updates; 250 to 60,000. @default 500 */
  readonly updateEveryMs?: number;
  /** How many may watch at once; one more is answered 503. @default 20 */
  readonly maxClients?: number;
}

/** A handler of Node's `http` that serves the page, and its updates under the same address. */
export interface LivePage {
  (request: IncomingMessage, response: ServerResponse): void;
  /** Who watches now. */
  readonly clients: number;
  /** Ends all streams and stops listening; a server can then be closed. Happens by itself when the manager is shut down. */
  close(): void;
}

const OPTIONS: readonly (keyof LivePageOptions)[] = [
  'authorise',
  'showTaskIds',
  'updateEveryMs',
  'maxClients',
];

/** A check that takes longer lets nobody in. */
const AUTHORISE_MS = 10_000;

/**
 * A page that shows, live, what a manager does: instances, queues, gates, keys, rates, and what holds requests up.
 *
 * One self-contained page that asks nobody outside for anything. It is read-only, and nothing of what the tasks are about
 * is on it. It follows the reader's preference for light or dark, and fits a phone. Mount it behind an authorisation:
 * how busy a service is, and with whose help, is nobody else's business.
 *
 * While nobody watches it has no timer. Being watched begins the recording for `manager.diagnose()`.
 *
 * @throws {TypeError | RangeError} naming the option that is wrong, and its value
 *
 * @example
 * app.get('/live', livePage(manager, { authorise: (request) => isOperator(request) }));
 */
export function livePage(manager: Watched, options: LivePageOptions = {}): LivePage {
  if (typeof manager?.health !== 'function' || typeof manager.diagnose !== 'function') {
    throw new TypeError(refusal('manager', 'a PipelineManager', manager));
  }
  checkOptions('livePage', options, OPTIONS);
  const authorise = optional('authorise', options.authorise, callable);
  const showTaskIds = optional('showTaskIds', options.showTaskIds, flag) ?? false;
  const everyMs =
    optional('updateEveryMs', options.updateEveryMs, (option, value) =>
      wholeNumber(option, value, 250, 60_000),
    ) ?? 500;
  const maxClients = optional('maxClients', options.maxClients, (option, value) =>
    wholeNumber(option, value),
  );
  const source = new LiveStateSource(manager, showTaskIds);
  const feed = new LiveFeed({
    update: () => {
      try {
        return JSON.stringify(source.state());
      } catch {
        // A limiter or a gate of the host's own may fail to count; the page shows what it had.
        return undefined;
      }
    },
    isOver: () => manager.pool.stats().state === 'closed',
    everyMs,
    maxClients: maxClients ?? 20,
  });

  const serve = async (request: IncomingMessage, response: ServerResponse): Promise<void> => {
    if (request.method !== 'GET' && request.method !== 'HEAD') {
      response.writeHead(405, { allow: 'GET, HEAD' }).end();
      return;
    }
    if (authorise !== undefined) {
      const may = await boundedCall<boolean>(() => authorise(request, response), {
        timeoutMs: AUTHORISE_MS,
        timeoutError: (ms) => new Error(`\`authorise\` took longer than ${ms} ms`),
      });
      // It has answered by itself, or nobody is there any more.
      if (response.headersSent || response.destroyed) return;
      if (may !== true) {
        refuse(response, 403, 'You may not look at this page.');
        return;
      }
    }
    if (request.method === 'GET' && /\btext\/event-stream\b/.test(request.headers.accept ?? '')) {
      if (!feed.add(response)) refuse(response, 503, 'Too many are watching, or the service is closed.');
      return;
    }
    response.writeHead(200, {
      'content-type': 'text/html; charset=utf-8',
      'content-length': Buffer.byteLength(LIVE_PAGE),
      'content-security-policy': LIVE_PAGE_POLICY,
      'cache-control': 'no-store',
      vary: 'accept',
      'referrer-policy': 'no-referrer',
      'x-content-type-options': 'nosniff',
    });
    response.end(request.method === 'HEAD' ? undefined : LIVE_PAGE);
  };

  const handler = (request: IncomingMessage, response: ServerResponse): void => {
    serve(request, response).catch(() => {
      if (!response.headersSent) refuse(response, 500, 'Whether you may look could not be found out.');
    });
  };
  return Object.defineProperties(handler, {
    clients: { get: () => feed.clients },
    close: {
      value: () => {
        feed.close();
        source.close();
      },
    },
  }) as LivePage;
}

function refuse(response: ServerResponse, status: 403 | 500 | 503, words: string): void {
  response.writeHead(status, {
    'content-type': 'text/plain; charset=utf-8',
    'cache-control': 'no-store',
    ...(status === 503 ? { 'retry-after': '10' } : {}),
  });
  response.end(`${words}\n`);
}
