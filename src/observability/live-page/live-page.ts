/**
 * The entry point `pipeline-pool/live-page`: a page that shows, live, what a manager does.
 *
 * - `live-page.ts` (here): `livePage`, the HTTP handler, and the HTML page
 * - `feed.ts`: the watchers and their server-sent events
 * - `state.ts`: the content of an update
 * - `script.ts`, `style.ts`: what runs in the browser, and its look
 *
 * @module pipeline-pool/live-page
 */

import { createHash } from 'node:crypto';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { boundedCall } from '../../internal/abort.js';
import {
  callable,
  options as checkOptions,
  flag,
  optional,
  refusal,
  wholeNumber,
} from '../../internal/validate.js';
import { LiveFeed } from './feed.js';
import { LIVE_PAGE_SCRIPT } from './script.js';
import { StateSource, type Watched } from './state.js';
import { LIVE_PAGE_STYLE } from './style.js';

export type { Watched } from './state.js';

/** Options of `livePage`. */
export interface LivePageOptions {
  /**
   * Whether the client may watch. Anything but `true` is answered with 403, unless the callback has already responded, for
   * example with a redirect to a login. Called for the page, for its updates, and again every ten minutes; it must settle
   * within ten seconds. Check the `Host` header here if the server is reachable under names that are not yours.
   * @default every client may
   */
  readonly authorize?:
    | ((request: IncomingMessage, response: ServerResponse) => boolean | PromiseLike<boolean>)
    | undefined;
  /**
   * Whether the page shows the task ids of the running requests. Task ids often contain names of users or customers.
   * @default false
   */
  readonly showTaskIds?: boolean | undefined;
  /**
   * Milliseconds between two updates; 250 to 60,000.
   * @default 500
   */
  readonly updateEveryMs?: number | undefined;
  /**
   * Maximum number of watchers; a further one gets a 503, unless one of them has not read its updates lately.
   * @default 20
   */
  readonly maxClients?: number | undefined;
}

/** A `node:http` request handler that serves the page, and its updates under the same URL. */
export interface LivePage {
  (request: IncomingMessage, response: ServerResponse): void;
  /** The number of watchers. */
  readonly clients: number;
  /** Ends all streams and removes all listeners. Happens by itself once the manager is shut down. */
  close(): void;
}

const AUTHORIZE_TIMEOUT_MS = 10_000;

/**
 * Creates a page that shows, live, what a manager does: instances, queues, gates, API keys, rates, and what delays requests.
 *
 * The page is self-contained and read-only, and shows nothing of the contents of tasks. It follows the preferred color
 * scheme and fits a phone. Mount it behind an authorization. A request with a foreign `Origin` is rejected.
 *
 * It listens to events, and has a timer, only while there are watchers. Unless `recordDiagnosis` has been called, it records
 * for the diagnosis during that time only.
 *
 * @throws {TypeError | RangeError} for an invalid option, naming the option and the value
 * @example
 * app.get('/live', livePage(manager, { authorize: (request) => isOperator(request) }));
 */
export function livePage(manager: Watched, options: LivePageOptions = {}): LivePage {
  if (typeof manager?.health !== 'function' || typeof manager.pool?.stats !== 'function') {
    throw new TypeError(refusal('manager', 'a PipelineManager', manager));
  }
  checkOptions('livePage', options, ['authorize', 'showTaskIds', 'updateEveryMs', 'maxClients']);
  const { authorize, showTaskIds = false, updateEveryMs = 500, maxClients = 20 } = options;
  optional('authorize', authorize, callable);
  flag('showTaskIds', showTaskIds);
  wholeNumber('updateEveryMs', updateEveryMs, 250, 60_000);
  wholeNumber('maxClients', maxClients);
  const feed = new LiveFeed(new StateSource(manager, showTaskIds), updateEveryMs, maxClients);
  const html = htmlPage();
  const policy = contentSecurityPolicy();

  const serve = async (request: IncomingMessage, response: ServerResponse): Promise<void> => {
    const { method, headers, url = '' } = request;
    if (method !== 'GET' && method !== 'HEAD') {
      response.writeHead(405, { allow: 'GET, HEAD' }).end();
      return;
    }
    if (isForeign(request)) {
      refuse(response, 403, 'This page can only be used from its own origin.');
      return;
    }
    const isStream = method === 'GET' && /\btext\/event-stream\b/.test(headers.accept ?? '');
    const watcher = /[?&]watcher=(\w{1,64})/.exec(url)?.[1];
    if (watcher !== undefined && !isStream) {
      // Neither changes nor reveals anything, so it needs no authorization.
      feed.confirm(watcher);
      response.writeHead(204, { 'cache-control': 'no-store' }).end();
      return;
    }
    if (authorize !== undefined) {
      const allowed = await boundedCall<boolean>(() => authorize(request, response), {
        timeoutMs: AUTHORIZE_TIMEOUT_MS,
        timeoutError: (ms) => new Error(`\`authorize\` took longer than ${ms} ms`),
      });
      if (response.headersSent || response.destroyed) return;
      if (allowed !== true) {
        refuse(response, 403, 'You are not allowed to see this page.');
        return;
      }
    }
    if (isStream) {
      if (!feed.add(response, watcher))
        refuse(response, 503, 'There are too many watchers, or the service is closed.');
      return;
    }
    response.writeHead(200, {
      'content-type': 'text/html; charset=utf-8',
      'content-length': Buffer.byteLength(html),
      'content-security-policy': policy,
      'cache-control': 'no-store',
      vary: 'accept',
      'referrer-policy': 'no-referrer',
      'x-content-type-options': 'nosniff',
    });
    response.end(method === 'HEAD' ? undefined : html);
  };

  const handler = (request: IncomingMessage, response: ServerResponse): void => {
    if (typeof response?.writeHead !== 'function')
      throw new TypeError(refusal('response', "the response of Node's http", response));
    serve(request, response).catch(() => {
      if (!response.headersSent) refuse(response, 500, 'The authorization failed.');
    });
  };
  return Object.defineProperties(handler, {
    clients: { get: () => feed.clients },
    close: { value: () => feed.close() },
  }) as LivePage;
}

/** Browsers send no `Origin` with a same-origin GET, so behind a proxy that changes `Host` this rejects no page of ours. */
function isForeign({ headers }: IncomingMessage): boolean {
  const { origin, host = headers[':authority'] } = headers;
  if (origin === undefined) return false;
  return !URL.canParse(origin) || new URL(origin).host !== host;
}

function refuse(response: ServerResponse, status: 403 | 500 | 503, message: string): void {
  response.writeHead(status, {
    'content-type': 'text/plain; charset=utf-8',
    'cache-control': 'no-store',
    ...(status === 503 ? { 'retry-after': '10' } : {}),
  });
  response.end(`${message}\n`);
}

/** Permits nothing but the page's own script, style and icon, and its updates. */
function contentSecurityPolicy(): string {
  const hashOf = (text: string): string => `'sha256-${createHash('sha256').update(text).digest('base64')}'`;
  return [
    "default-src 'none'",
    `script-src ${hashOf(LIVE_PAGE_SCRIPT)}`,
    `style-src ${hashOf(LIVE_PAGE_STYLE)}`,
    "connect-src 'self'",
    'img-src data:',
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
  ].join('; ');
}

const ICON =
  "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Cg fill='%232b6be0'%3E%3Crect x='1' y='2' width='10' height='3' rx='1.5'/%3E%3Crect x='4' y='6.5' width='11' height='3' rx='1.5'/%3E%3Crect x='2' y='11' width='7' height='3' rx='1.5'/%3E%3C/g%3E%3C/svg%3E";

const tile = (id: string, name: string, bar: 'bar' | 'bar wait' | 'bar none', more = ''): string => `
<section class="card tile"><div class="name">${name}</div>
<div class="value"><span id="${id}">–</span>${more}</div>
<div class="${bar}" id="${id}-bar"><i></i></div><div class="note" id="${id}-note"></div></section>`;

/** The page. Everything that changes is filled in by its script. */
const htmlPage = (): string => `<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="robots" content="noindex">
<title>pipeline-pool</title>
<link rel="icon" href="${ICON}">
<style>${LIVE_PAGE_STYLE}</style></head>
<body class="stale">
<header><h1 id="name">pipeline-pool</h1><span class="pill" id="status" role="status">…</span>
<span class="quiet" id="uptime"></span><span class="spring"></span>
<span class="quiet" id="connection" role="status">connecting</span>
<noscript>This page needs JavaScript.</noscript></header>
<main>
<div class="tiles">${tile('active', 'Active requests', 'bar', '<small id="limit"></small>')}${tile('waiting', 'Waiting', 'bar wait')}${tile('rate', 'Finished a minute', 'bar none')}${tile('wait', 'Wait to begin', 'bar none')}
</div>
<section class="card diagnosis" id="diagnosis"><div class="mark" id="mark" aria-hidden="true">…</div><div>
<p class="what" id="what">…</p><p class="remedy" id="remedy"></p><p class="quiet" id="reasons"></p><ul id="others" hidden></ul></div></section>
<section class="card half-a"><h2>Instances <span id="slots-note"></span></h2><div class="slots" id="slots"></div></section>
<section class="card half-b"><h2>Requests <span>the last two minutes</span></h2>
<div class="chart"><svg viewBox="0 0 1000 100" preserveAspectRatio="none" aria-hidden="true">
<path class="grid" d="M0 100L1000 100"/><path class="area" id="chart-area"/><path class="limit" id="chart-limit"/>
<path class="active" id="chart-active"/><path class="queued" id="chart-queued"/></svg><b id="chart-label"></b></div>
<div class="legend"><span><i></i>active</span><span><i class="queued"></i>waiting</span></div></section>
<section class="card" id="tenants-card" hidden><h2>Tenants <span>share of the work of the last 30 seconds</span></h2>
<div class="tenants" id="tenants"></div></section>
<section class="card" id="budgets-card" hidden><h2>Budgets <span>of the current requests together</span></h2>
<div class="tenants" id="budgets"></div></section>
<div><h2>Services <span id="no-gates" hidden>the manager has no gates</span></h2><div class="gates" id="gates"></div></div>
</main>
<footer>Read-only. Rates are of the last 30 seconds.</footer>
<script>${LIVE_PAGE_SCRIPT}</script></body></html>
`;
