import { createHash } from 'node:crypto';
import { LIVE_PAGE_SCRIPT } from './live-page-script.js';
import { LIVE_PAGE_STYLE } from './live-page-style.js';

const ICON =
  "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Cg fill='%232b6be0'%3E%3Crect x='1' y='2' width='10' height='3' rx='1.5'/%3E%3Crect x='4' y='6.5' width='11' height='3' rx='1.5'/%3E%3Crect x='2' y='11' width='7' height='3' rx='1.5'/%3E%3C/g%3E%3C/svg%3E";

const tile = (id: string, name: string, bar: 'bar' | 'bar wait' | 'bar none', more = ''): string => `
<section class="card tile"><div class="name">${name}</div>
<div class="value"><span id="${id}">–</span>${more}</div>
<div class="${bar}"><i id="${id}-bar"></i></div><div class="note" id="${id}-note"></div></section>`;

/** The whole page. All that changes is filled in by its script. */
export const LIVE_PAGE = `<!doctype html>
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
<div class="tiles">${tile('active', 'Active requests', 'bar', '<small id="most"></small>')}${tile('waiting', 'Waiting', 'bar wait')}${tile('rate', 'Finished a minute', 'bar none')}${tile('wait', 'Wait to begin', 'bar none')}
</div>
<section class="card verdict" id="verdict"><div class="mark" id="mark" aria-hidden="true">…</div><div>
<p class="what" id="what">…</p><p class="remedy" id="remedy"></p><p class="quiet" id="reasons"></p><ul id="others" hidden></ul></div></section>
<section class="card half-a"><h2>Instances <span id="slots-note"></span></h2><div class="slots" id="slots"></div></section>
<section class="card half-b"><h2>Requests <span>the last two minutes</span></h2>
<div class="chart"><svg viewBox="0 0 1000 100" preserveAspectRatio="none" aria-hidden="true">
<path class="grid" d="M0 100L1000 100"/><path class="area" id="chart-area"/><path class="limit" id="chart-limit"/>
<path class="active" id="chart-active"/><path class="queued" id="chart-queued"/></svg><b id="chart-label"></b></div>
<div class="legend"><span><i></i>active</span><span><i class="queued"></i>waiting</span></div></section>
<div><h2>Services <span id="no-gates" hidden>the manager was given no gates</span></h2><div class="gates" id="gates"></div></div>
</main>
<footer>Read-only. Rates are of the last 30 seconds.</footer>
<script>${LIVE_PAGE_SCRIPT}</script></body></html>
`;

const hashOf = (text: string): string => `'sha256-${createHash('sha256').update(text).digest('base64')}'`;

/** Nothing but what stands on the page itself, and its own updates. */
export const LIVE_PAGE_POLICY = [
  "default-src 'none'",
  `script-src ${hashOf(LIVE_PAGE_SCRIPT)}`,
  `style-src ${hashOf(LIVE_PAGE_STYLE)}`,
  "connect-src 'self'",
  'img-src data:',
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'",
].join('; ');
