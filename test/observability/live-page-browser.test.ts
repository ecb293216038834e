import { existsSync } from 'node:fs';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import {
  ConcurrencyLimiter,
  LifecycleHooks,
  PipelineManager,
  PipelinePool,
  ServiceGate,
} from 'pipeline-pool';
import { type LivePage, type LivePageOptions, livePage } from 'pipeline-pool/live-page';
import { type Browser, type BrowserContextOptions, chromium, type Page } from 'playwright-core';
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from 'vitest';
import { CHROMIUM, FLAGS } from '../support/browsers.js';
import { fleetStats } from '../support/fleet-stats.js';

const isThere = existsSync(CHROMIUM);
if (!isThere) console.log(`Not tested in a browser: there is no ${CHROMIUM} (Debian's package chromium)`);

/** Measured in the browser; as text, since nothing here is built for one. */
const LIGHTNESS = `(() => {
  const of = (element, property) =>
    getComputedStyle(element)[property].match(/\\d+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0) / 3;
  return {
    paper: of(document.body, 'backgroundColor'),
    ink: of(document.body, 'color'),
    card: of(document.querySelector('.card'), 'backgroundColor'),
  };
})()`;
/** WCAG 2.2: 4.5 to 1, on every element that has a text of its own. */
const POOR_CONTRASTS = `(() => {
  const channels = (color) => color.match(/[\\d.]+/g).map(Number);
  const luminance = (color) => {
    const [r, g, b] = channels(color).map((c) => (c <= 10 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    const color = getComputedStyle(element).backgroundColor;
    return channels(color)[3] === 0 ? behind(element.parentElement) : color;
  };
  return [...document.querySelectorAll('body *:not(script)')]
    .filter((element) => element.checkVisibility())
    .filter(({ childNodes }) => [...childNodes].some((node) => node.nodeType === 3 && node.data.trim() !== ''))
    .map((element) => {
      const [a, b] = [luminance(getComputedStyle(element).color), luminance(behind(element))];
      return element.textContent + ': ' + ((Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)).toFixed(2);
    })
    .filter((measured) => Number(measured.split(': ').pop()) < 4.5);
})()`;
const EXTENT = `({
  width: document.documentElement.scrollWidth,
  widest: Math.max(...[...document.querySelectorAll('body *')].map((element) => element.getBoundingClientRect().right)),
})`;

const PHONE = { viewport: { width: 390, height: 844 } };

describe.runIf(isThere)('the live page in Chromium', () => {
  let browser: Browser;
  const closers: (() => unknown)[] = [];
  beforeAll(async () => {
    browser = await chromium.launch({ executablePath: CHROMIUM, args: FLAGS });
  }, 120_000);
  afterAll(() => browser.close());
  afterEach(async () => {
    for (const close of closers.splice(0).reverse()) await close();
  });

  function build({ size = 3, maxConcurrent = 4 } = {}) {
    const hooks = new LifecycleHooks();
    const gate = new ServiceGate({
      name: 'serper',
      keys: ['sk-very-secret-0123456789-9f3a', 'sk-very-secret-0123456789-c41d'],
      rate: [{ limit: 100, perMs: 1_000 }],
      hooks,
    });
    const manager = new PipelineManager<object>({
      name: 'research',
      pool: new PipelinePool<object>({ size, create: () => ({}), hooks }),
      limiter: new ConcurrencyLimiter({ maxConcurrent, hooks }),
      gates: [gate],
      hooks,
    });
    closers.push(() => manager.shutdown({ timeoutMs: 0 }));
    return { manager, gate };
  }

  async function listen(server: Server): Promise<string> {
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    closers.push(() => {
      server.closeAllConnections();
      return new Promise((resolve) => server.close(resolve));
    });
    return `http://127.0.0.1:${(server.address() as AddressInfo).port}/live`;
  }

  /** A tab, and all that went wrong in it. */
  async function open(
    page: LivePage,
    context: BrowserContextOptions = {},
  ): Promise<{ tab: Page; faults: string[] }> {
    closers.push(() => page.close());
    const url = await listen(createServer(page));
    const opened = await browser.newContext(context);
    closers.push(() => opened.close());
    const tab = await opened.newPage();
    tab.setDefaultTimeout(100_000);
    const faults: string[] = [];
    tab.on('pageerror', (error) => faults.push(error.message));
    tab.on('console', (message) => {
      if (message.type() === 'error' || message.type() === 'warning') faults.push(message.text());
    });
    tab.on('request', (request) => {
      // The page confirms to its own server that it reads.
      const isOwn = request.url() === url || request.url().startsWith(`${url}?watcher=`);
      if (!isOwn && !request.url().startsWith('data:')) faults.push(`asked for ${request.url()}`);
    });
    await tab.goto(url);
    await tab.getByText('live', { exact: true }).waitFor();
    return { tab, faults };
  }

  const show = (manager: ReturnType<typeof build>['manager'], more: LivePageOptions = {}) =>
    livePage(manager, { updateEveryMs: 250, ...more });
  const hold = (signal: AbortSignal) =>
    new Promise<never>((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)));
  const text = (tab: Page, id: string) => tab.locator(`#${id}`).textContent();

  it('shows an idle service, makes no external request, and violates no rule of its policy', async () => {
    const { tab, faults } = await open(show(build().manager));
    expect(await tab.title()).toBe('0/4 · research');
    expect(await text(tab, 'name')).toBe('research');
    expect(await text(tab, 'status')).toBe('healthy');
    expect(await text(tab, 'what')).toBe('Nothing delays requests.');
    expect(await tab.locator('.slot.empty').count()).toBe(3);
    expect(await tab.locator('.gate h3').first().textContent()).toBe('serper');
    expect(faults).toEqual([]);
  });

  it('updates itself without a reload', async () => {
    const { manager, gate } = build({ size: 2 });
    const { tab, faults } = await open(show(manager));
    for (let i = 0; i < 6; i++) manager.run(`t${i}`, ({ signal }) => hold(signal)).catch(() => {});
    await tab.locator('.slot.running').nth(1).waitFor();
    expect(await text(tab, 'active')).toBe('4');
    expect(await text(tab, 'waiting')).toBe('4');
    expect(await text(tab, 'waiting-note')).toBe('2 for admission, 2 for an instance');
    await tab.getByText(/^Every instance is in use/).waitFor();
    expect(await tab.locator('#remedy code').first().textContent()).toBe('PIPELINE_POOL_SIZE');
    expect(await tab.locator('#chart-active').getAttribute('d')).toMatch(/^M[\d.]+ [\d.]+L/);
    await gate
      .run(async () => {
        throw Object.assign(new Error('denied'), { status: 401 });
      })
      .catch(() => {});
    await tab.getByText('no key left').waitFor();
    expect(await tab.locator('.key .label').allTextContents()).toEqual(['#1…9f3a', '#2…c41d']);
    expect(await tab.locator('.key.bad .state').allTextContents()).toEqual(['quarantined', 'quarantined']);
    await tab.getByText('degraded').waitFor();
    await manager.shutdown({ timeoutMs: 0 });
    await tab.getByText('draining').waitFor();
    expect(faults).toEqual([]);
  });

  it('shows a line for each limit that several processes share', async () => {
    const { manager, gate } = build();
    const limiter = manager.limiter.stats();
    const service = gate.stats();
    let isAvailable = true;
    vi.spyOn(manager.limiter, 'stats').mockImplementation(() => ({ ...limiter, fleet: fleetStats() }));
    vi.spyOn(gate, 'stats').mockImplementation(() => {
      const fleet = fleetStats({ available: isAvailable });
      return { ...service, limiter: { ...limiter, maxConcurrent: 200, fleet }, fleet };
    });
    const { tab, faults } = await open(show(manager));
    expect(await text(tab, 'active-note')).toBe(
      '0 have an instance · 4 processes together: 150 of 4 in use, 12 waiting',
    );
    expect(await tab.locator('.gate .fleet').textContent()).toBe(
      '4 processes together: 150 of 200 in use, 24 waiting',
    );
    isAvailable = false;
    await tab.getByText('limits unavailable').waitFor();
    expect(await tab.locator('.gate .fleet').textContent()).toBe(
      'The server of the shared limits cannot be reached',
    );
    expect(await tab.evaluate(POOR_CONTRASTS)).toEqual([]);
    expect(faults).toEqual([]);
  });

  it('shows a key in cooldown, without its capacity', async () => {
    const { manager, gate } = build();
    const { tab } = await open(show(manager));
    const slowDown = () => new Response('slow down', { status: 429, headers: { 'retry-after': '60' } });
    await gate.run(({ attempt }) => (attempt === 1 ? slowDown() : 'found'));
    await tab.locator('.key.wait .state', { hasText: 'cooldown' }).waitFor();
    expect(await tab.locator('.key.cooldown .bar').isVisible()).toBe(false);
    expect(await tab.locator('.key:not(.cooldown) .bar').isVisible()).toBe(true);
  });

  it('displays names as text, whatever they contain', async () => {
    const hooks = new LifecycleHooks();
    const name = '<img src=x onerror=alert(1)>';
    const manager = new PipelineManager<object>({
      name,
      pool: new PipelinePool<object>({ size: 1, create: () => ({}), hooks }),
      limiter: new ConcurrencyLimiter({ maxConcurrent: 1, hooks }),
      gates: [new ServiceGate({ name: '</script><b>bold</b>', hooks })],
      hooks,
    });
    closers.push(() => manager.shutdown({ timeoutMs: 0 }));
    const { tab, faults } = await open(show(manager, { showTaskIds: true }));
    manager.run('"><svg onload=alert(2)>', ({ signal }) => hold(signal)).catch(() => {});
    await tab.locator('.slot.running').waitFor();
    expect(await text(tab, 'name')).toBe(name);
    expect(await tab.locator('.gate h3 span').textContent()).toBe('</script><b>bold</b>');
    expect(await tab.locator('.slot em').textContent()).toMatch(/"><svg onload=alert\(2\)>$/);
    expect(await tab.locator('img, b b, svg[onload]').count()).toBe(0);
    expect(faults).toEqual([]);
  });

  it.each(['light', 'dark'] as const)('follows the preference for %s', async (colorScheme) => {
    const { tab } = await open(show(build().manager), { colorScheme });
    const lightness = await tab.evaluate<Record<'paper' | 'ink' | 'card', number>>(LIGHTNESS);
    if (colorScheme === 'light') {
      expect(lightness.paper).toBeGreaterThan(200);
      expect(lightness.card).toBeGreaterThan(200);
      expect(lightness.ink).toBeLessThan(80);
    } else {
      expect(lightness.paper).toBeLessThan(60);
      expect(lightness.card).toBeLessThan(60);
      expect(lightness.ink).toBeGreaterThan(200);
    }
  });

  it.each(['light', 'dark'] as const)('has texts that can be read in %s', async (colorScheme) => {
    const { manager, gate } = build({ size: 2 });
    const { tab } = await open(show(manager), { colorScheme });
    for (let i = 0; i < 5; i++) manager.run(`t${i}`, ({ signal }) => hold(signal)).catch(() => {});
    await gate
      .run(async () => {
        throw Object.assign(new Error('denied'), { status: 401 });
      })
      .catch(() => {});
    await tab.getByText('no key left').waitFor();
    await tab.locator('#others li').waitFor();
    expect(await tab.evaluate(POOR_CONTRASTS)).toEqual([]);
  });

  it('fits a phone: one column, nothing to scroll sideways, no text cut off at the edge', async () => {
    const { manager, gate } = build({ size: 12, maxConcurrent: 12 });
    const { tab } = await open(show(manager), PHONE);
    const tenant = 'a customer whose name is longer than a phone is wide';
    for (let i = 0; i < 12; i++) {
      const work = async ({ signal }: { readonly signal: AbortSignal }) => {
        for (let call = 0; call < 4; call++) await gate.run(() => 'found').catch(() => {});
        return hold(signal);
      };
      manager.run(`t${i}`, work, { tenant, budget: { usd: 123_456.789, calls: 3 } }).catch(() => {});
    }
    await tab.locator('.slot.running').nth(3).waitFor();
    await tab.getByText('12 running, 0 waiting · 36 calls').waitFor();
    expect(await tab.locator('#budgets .tenant').allTextContents()).toEqual([
      'calls100 %36 spent, 0 reserved, 0 left of 36 · 12 calls rejected',
      'usd0 %0 spent, 0 reserved, 1,480,000 left of 1,480,000',
    ]);
    expect(await tab.locator('.slot').first().getAttribute('title')).toMatch(/ · 3 of 3 calls$/);
    const { width, widest } = await tab.evaluate<Record<'width' | 'widest', number>>(EXTENT);
    expect(width).toBe(390);
    expect(widest).toBeLessThanOrEqual(390);
  });

  it('shows a lost connection, and reconnects by itself', async () => {
    const { manager } = build();
    const page = show(manager);
    closers.push(() => page.close());
    const serve = () => createServer(page);
    let server = serve();
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    const { port } = server.address() as AddressInfo;
    const context = await browser.newContext();
    closers.push(() => context.close());
    const tab = await context.newPage();
    await tab.goto(`http://127.0.0.1:${port}/`);
    await tab.getByText('live', { exact: true }).waitFor();
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
    await tab.getByText('no connection').waitFor();
    server = serve();
    await new Promise<void>((resolve) => server.listen(port, '127.0.0.1', resolve));
    closers.push(() => {
      server.closeAllConnections();
      return new Promise((resolve) => server.close(resolve));
    });
    await tab.getByText('live', { exact: true }).waitFor();
  });
});
