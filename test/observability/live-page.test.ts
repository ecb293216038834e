import { createHash } from 'node:crypto';
import { createServer, get, request as httpRequest, type IncomingMessage, type Server } from 'node:http';
import { type AddressInfo, connect, type Socket } from 'node:net';
import { type HttpBindings, serve } from '@hono/node-server';
import { RESPONSE_ALREADY_SENT } from '@hono/node-server/utils/response';
import express from 'express';
import fastify from 'fastify';
import { Hono } from 'hono';
import {
  ConcurrencyLimiter,
  LIFECYCLE_EVENTS,
  LifecycleHooks,
  PipelineManager,
  PipelinePool,
  type PipelinePoolOptions,
  ServiceGate,
} from 'pipeline-pool';
import { recordDiagnosis } from 'pipeline-pool/diagnosis';
import { type LivePage, type LivePageOptions, livePage } from 'pipeline-pool/live-page';
import { afterEach, describe, expect, it, vi } from 'vitest';
import type { LiveState } from '../../src/observability/live-page/state.js';
import { fleetStats } from '../support/fleet-stats.js';

const closers: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

function build(more: Partial<PipelinePoolOptions<object>> = {}) {
  const hooks = new LifecycleHooks();
  const gate = new ServiceGate({
    name: 'serper',
    keys: ['sk-very-secret-0123456789-9f3a', 'sk-very-secret-0123456789-c41d'],
    rate: [{ limit: 4, perMs: 60_000 }],
    hooks,
  });
  const manager = new PipelineManager<object>({
    name: 'research',
    pool: new PipelinePool<object>({ size: 3, create: () => ({}), hooks, ...more }),
    limiter: new ConcurrencyLimiter({ maxConcurrent: 4, hooks }),
    gates: [gate],
    hooks,
  });
  closers.push(() => manager.shutdown({ timeoutMs: 0 }));
  return { manager, gate, hooks };
}

async function listen(server: Server): Promise<string> {
  if (!server.listening) await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  closers.push(() => {
    server.closeAllConnections();
    return new Promise((resolve) => server.close(resolve));
  });
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

async function serveAlone(page: LivePage): Promise<string> {
  closers.push(() => page.close());
  return listen(createServer(page));
}

/** A client that reads updates one at a time. */
class Watcher {
  readonly status: number;
  readonly headers: Headers;
  readonly #reader: ReadableStreamDefaultReader<Uint8Array>;
  readonly #controller: AbortController;
  #text = '';

  private constructor(response: Response, controller: AbortController) {
    this.status = response.status;
    this.headers = response.headers;
    this.#reader = response.body!.getReader();
    this.#controller = controller;
  }

  static async open(url: string): Promise<Watcher> {
    const controller = new AbortController();
    const response = await fetch(url, {
      headers: { accept: 'text/event-stream' },
      signal: controller.signal,
    });
    return new Watcher(response, controller);
  }

  /** The next update, or `undefined` when the stream has ended. */
  async next(): Promise<LiveState | undefined> {
    for (;;) {
      const found = /data: (.*)\n\n/.exec(this.#text);
      if (found !== null) {
        this.#text = this.#text.slice(found.index + found[0].length);
        return JSON.parse(found[1]!) as LiveState;
      }
      const { value, done } = await this.#reader.read();
      if (done) return undefined;
      this.#text += Buffer.from(value).toString();
    }
  }

  /** The next update for which this holds. */
  async until(holds: (state: LiveState) => boolean): Promise<LiveState> {
    for (;;) {
      const state = await this.next();
      if (state === undefined) throw new Error('The stream has ended');
      if (holds(state)) return state;
    }
  }

  leave(): void {
    this.#controller.abort();
  }
}

const watch = async (page: LivePage): Promise<Watcher> => Watcher.open(await serveAlone(page));
const hold = (signal: AbortSignal) =>
  new Promise<never>((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)));

describe('livePage', () => {
  it('serves a self-contained page that may load nothing else', async () => {
    const response = await fetch(await serveAlone(livePage(build().manager)));
    const html = await response.text();
    expect(response.status).toBe(200);
    expect(response.headers.get('content-type')).toBe('text/html; charset=utf-8');
    expect(response.headers.get('cache-control')).toBe('no-store');
    expect(response.headers.get('x-content-type-options')).toBe('nosniff');
    expect(response.headers.get('referrer-policy')).toBe('no-referrer');
    expect(html).toMatch(/^<!doctype html>/);
    expect(html).not.toMatch(/\b(src|href)="(?!data:)/);
    expect(html).not.toMatch(/\son\w+="|style="/);

    const policy = response.headers.get('content-security-policy')!;
    const hashOf = (tag: string) => {
      const inside = new RegExp(`<${tag}>([\\s\\S]*)</${tag}>`).exec(html)![1]!;
      return `'sha256-${createHash('sha256').update(inside).digest('base64')}'`;
    };
    expect(policy.split('; ')).toEqual([
      "default-src 'none'",
      `script-src ${hashOf('script')}`,
      `style-src ${hashOf('style')}`,
      "connect-src 'self'",
      'img-src data:',
      "base-uri 'none'",
      "form-action 'none'",
      "frame-ancestors 'none'",
    ]);
  });

  it('sends updates under the same URL to a client that accepts event streams', async () => {
    const { manager } = build();
    const watcher = await watch(livePage(manager));
    expect(watcher.status).toBe(200);
    expect(watcher.headers.get('content-type')).toBe('text/event-stream; charset=utf-8');
    expect(watcher.headers.get('cache-control')).toBe('no-store, no-transform');
    expect(watcher.headers.get('connection')).toBe('close');
    expect(await watcher.next()).toMatchObject({
      name: 'research',
      status: 'healthy',
      reasons: [],
      requests: { active: 0, limit: 4, queued: 0, ok: 0, failed: 0, rejected: 0 },
      pool: { size: 3, live: 0, leased: 0, queued: 0, slots: [] },
      gates: [{ name: 'serper', running: 0, limit: null, queued: 0, retryAfterMs: 0 }],
      diagnosis: { findings: [] },
    });
  });

  it('updates requests and instances', async () => {
    const { manager } = build();
    const watcher = await watch(livePage(manager, { updateEveryMs: 250 }));
    await watcher.next();
    const controller = new AbortController();
    const running = manager.run('t', ({ signal }) => hold(signal), { signal: controller.signal });
    const busy = await watcher.until(({ pool }) => pool.leased === 1);
    expect(busy.requests).toMatchObject({ active: 1, started: 1 });
    expect(busy.pool.slots).toEqual([
      { place: 0, instanceId: 1, state: 'running', ageMs: expect.any(Number) },
    ]);
    controller.abort();
    await expect(running).rejects.toThrow();
    const idle = await watcher.until(({ pool }) => pool.leased === 0);
    expect(idle.pool.slots).toMatchObject([{ place: 0, instanceId: 1, state: 'idle' }]);
    expect(idle.requests).toMatchObject({ active: 0, ok: 1, failed: 0 });
  });

  it('shows what delays requests', async () => {
    const { manager } = build();
    for (let i = 0; i < 4; i++) manager.run(`t${i}`, ({ signal }) => hold(signal)).catch(() => {});
    const watcher = await watch(livePage(manager, { updateEveryMs: 250 }));
    const { diagnosis } = await watcher.until(({ diagnosis: { findings } }) => findings.length > 0);
    expect(diagnosis.findings[0]).toMatchObject({ code: 'pool-too-small' });
  });

  it('shows nothing secret: no keys, no tasks, no inputs, no errors', async () => {
    const { manager, gate } = build();
    const watcher = await watch(livePage(manager, { updateEveryMs: 250 }));
    await manager.run('customer-4711', async ({ signal }) => {
      await gate.run(async () => 'a private answer', { signal, cacheKey: 'a private question' });
      await gate
        .run(async ({ key }) => {
          throw Object.assign(new Error(`${key} was denied`), { status: 401 });
        })
        .catch(() => {});
    });
    const state = await watcher.until(({ gates }) => gates[0]?.retryAfterMs === null);
    const text = JSON.stringify(state);
    expect(text).not.toMatch(/very-secret|customer|private|denied/);
    expect(state.gates[0]?.keys).toEqual([
      { key: '#1…9f3a', state: 'quarantined', free: expect.any(Number) },
      { key: '#2…c41d', state: 'quarantined', free: expect.any(Number) },
    ]);
  });

  it('shows task ids with showTaskIds', async () => {
    const { manager } = build();
    const watcher = await watch(livePage(manager, { showTaskIds: true, updateEveryMs: 250 }));
    manager.run('task-7\u202e', ({ signal }) => hold(signal)).catch(() => {});
    const { pool } = await watcher.until(({ pool: { leased } }) => leased === 1);
    expect(pool.slots).toMatchObject([{ taskId: 'task-7\\u202e' }]);
  });

  it('shows of a budget the meter that has the least left', async () => {
    const { manager } = build();
    const watcher = await watch(livePage(manager, { updateEveryMs: 250 }));
    const gate = new ServiceGate({ name: 'llm', cost: { estimate: () => ({ usd: 0.3 }) } });
    const work = async ({ signal }: { signal: AbortSignal }) => {
      await gate.run(() => 1);
      return hold(signal);
    };
    manager
      .run('t', work, { budget: { calls: 9, usd: 0.5, tokens: Number.POSITIVE_INFINITY } })
      .catch(() => {});
    const { pool } = await watcher.until(({ pool: { slots } }) => (slots[0]?.budget?.spent ?? 0) > 0);
    expect(pool.slots).toMatchObject([{ budget: { meter: 'usd', spent: 0.3, limit: 0.5 } }]);
  });

  it('shows what all processes do under the limits that they share', async () => {
    const { manager, gate } = build();
    const [limiter, service] = [manager.limiter.stats(), gate.stats()];
    const fleet = fleetStats({ available: false });
    vi.spyOn(manager.limiter, 'stats').mockReturnValue({
      ...limiter,
      maxConcurrent: 200,
      fleet: fleetStats(),
    });
    vi.spyOn(gate, 'stats').mockReturnValue({ ...service, fleet });
    const watcher = await watch(livePage(manager, { updateEveryMs: 250 }));
    const { requests, gates, diagnosis } = (await watcher.next()) as LiveState;
    expect(requests).toMatchObject({
      active: 0,
      fleet: { active: 150, maxConcurrent: 200, queued: 12, members: 4 },
    });
    expect(gates[0]?.fleet).toMatchObject({ queued: 12, available: false });
    expect(diagnosis.findings).toMatchObject([{ code: 'limits-unavailable', source: 'serper' }]);
  });

  it('keeps each instance at its place, and reuses a free place', async () => {
    const { manager } = build();
    const watcher = await watch(livePage(manager, { updateEveryMs: 250 }));
    const leases = await Promise.all(['a', 'b'].map((task) => manager.pool.acquire({ taskId: task })));
    await leases[0]!.release({ discard: true });
    const third = await manager.pool.acquire();
    const { pool } = await watcher.until(({ pool: { leased } }) => leased === 2);
    expect(pool.slots).toMatchObject([
      { place: 0, instanceId: 3 },
      { place: 1, instanceId: 2 },
    ]);
    await Promise.all([third.release(), leases[1]!.release()]);
  });

  it('has one timer while there are watchers, and none otherwise', async () => {
    const timers = new Set<unknown>();
    vi.spyOn(globalThis, 'setInterval').mockImplementation(((...args: Parameters<typeof setTimeout>) => {
      const timer = setTimeout(...args);
      timers.add(timer);
      return timer;
    }) as never);
    vi.spyOn(globalThis, 'clearInterval').mockImplementation((timer) => {
      timers.delete(timer);
      clearTimeout(timer as never);
    });
    closers.push(() => vi.restoreAllMocks());
    const page = livePage(build().manager, { updateEveryMs: 60_000 });
    const url = await serveAlone(page);
    expect(timers.size).toBe(0);
    const watchers = await Promise.all([Watcher.open(url), Watcher.open(url)]);
    await Promise.all(watchers.map((watcher) => watcher.next()));
    expect([page.clients, timers.size]).toEqual([2, 1]);
    for (const watcher of watchers) watcher.leave();
    await expect.poll(() => [page.clients, timers.size]).toEqual([0, 0]);
  });

  it('accepts maxClients watchers, and another when one has left', async () => {
    const page = livePage(build().manager, { maxClients: 1 });
    const url = await serveAlone(page);
    const first = await Watcher.open(url);
    const second = await Watcher.open(url);
    expect(second.status).toBe(503);
    expect(second.headers.get('retry-after')).toBe('10');
    first.leave();
    await expect.poll(() => page.clients).toBe(0);
    expect((await Watcher.open(url)).status).toBe(200);
  });

  it('sends nothing to a watcher whose socket has not drained, and drops it after ten seconds', async () => {
    vi.useFakeTimers({ toFake: ['setInterval', 'clearInterval', 'performance'] });
    closers.push(() => vi.useRealTimers());
    const page = livePage(build().manager, { updateEveryMs: 250 });
    let updates = 0;
    let isBehind = false;
    const server = createServer((request, response) => {
      Object.defineProperty(response, 'writableNeedDrain', { get: () => isBehind });
      const write = response.write.bind(response);
      response.write = ((chunk: string) => {
        updates++;
        return write(chunk);
      }) as typeof response.write;
      page(request, response);
    });
    const watcher = await Watcher.open(await listen(server));
    await watcher.next();
    updates = 0;
    await vi.advanceTimersByTimeAsync(1_000);
    expect(updates).toBe(4);
    isBehind = true;
    await vi.advanceTimersByTimeAsync(9_000);
    isBehind = false;
    await vi.advanceTimersByTimeAsync(250);
    expect([page.clients, updates]).toEqual([1, 5]);
    isBehind = true;
    await vi.advanceTimersByTimeAsync(9_000);
    expect(page.clients).toBe(1);
    await vi.advanceTimersByTimeAsync(1_250);
    expect(updates).toBe(5);
    vi.useRealTimers();
    await expect.poll(() => page.clients).toBe(0);
  });

  it('costs nothing without watchers: it attaches its listeners with the first and removes them after the last', async () => {
    const { manager, hooks } = build();
    const listeners = () =>
      LIFECYCLE_EVENTS.map((event) => hooks.listenerCount(event)).reduce((sum, count) => sum + count);
    // The manager itself listens from the first call of `health` on.
    manager.health();
    const before = listeners();
    const page = livePage(manager);
    const url = await serveAlone(page);
    await fetch(url);
    expect(listeners()).toBe(before);
    const first = await Watcher.open(url);
    await first.next();
    const attached = listeners();
    expect(attached).toBeGreaterThan(before + 10);
    const second = await Watcher.open(url);
    await second.next();
    expect(listeners()).toBe(attached);
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
    closers.push(() => vi.useRealTimers());
    first.leave();
    second.leave();
    while (page.clients > 0) await new Promise((resolve) => setImmediate(resolve));
    await vi.advanceTimersByTimeAsync(4_000);
    expect(listeners()).toBe(attached);
    await vi.advanceTimersByTimeAsync(1_000);
    expect(listeners()).toBe(before);
  });

  it('keeps listening when a watcher reconnects', async () => {
    const { manager, hooks } = build();
    const page = livePage(manager);
    const url = await serveAlone(page);
    const first = await Watcher.open(url);
    await first.next();
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
    closers.push(() => vi.useRealTimers());
    first.leave();
    while (page.clients > 0) await new Promise((resolve) => setImmediate(resolve));
    const again = await Watcher.open(url);
    await vi.advanceTimersByTimeAsync(60_000);
    expect(hooks.hasListeners('lease:acquired')).toBe(true);
    again.leave();
  });

  it('leaves the recording of the host alone', async () => {
    const { manager, hooks } = build();
    const stop = recordDiagnosis(manager);
    const before = hooks.listenerCount('call:retried');
    const page = livePage(manager);
    const watcher = await watch(page);
    await watcher.next();
    expect(hooks.listenerCount('call:retried')).toBe(before);
    page.close();
    expect(hooks.listenerCount('call:retried')).toBe(before);
    stop();
    const again = livePage(manager);
    await (await watch(again)).next();
    expect(hooks.listenerCount('call:retried')).toBe(before);
    again.close();
    expect(hooks.listenerCount('call:retried')).toBe(before - 1);
  });

  it('drops a watcher that has not confirmed for ten seconds in favor of a new one', async () => {
    vi.useFakeTimers({ toFake: ['setInterval', 'clearInterval', 'performance'] });
    closers.push(() => vi.useRealTimers());
    const page = livePage(build().manager, { maxClients: 2 });
    const url = await serveAlone(page);
    const reads = await Watcher.open(`${url}?watcher=page1`);
    const silent = await Watcher.open(url);
    await vi.advanceTimersByTimeAsync(9_000);
    expect((await Watcher.open(url)).status).toBe(503);
    const confirmed = await fetch(`${url}?watcher=page1`, { headers: { accept: 'text/plain' } });
    expect([confirmed.status, await confirmed.text()]).toEqual([204, '']);
    await vi.advanceTimersByTimeAsync(2_000);
    expect((await Watcher.open(url)).status).toBe(200);
    while ((await silent.next().catch(() => undefined)) !== undefined);
    expect(await reads.next()).toMatchObject({ name: 'research' });
    expect(page.clients).toBe(2);
    expect((await Watcher.open(url)).status).toBe(503);
  });

  it('drops watchers that never read, so that an operator is let in', async () => {
    vi.useFakeTimers({ toFake: ['performance'] });
    closers.push(() => vi.useRealTimers());
    const page = livePage(build().manager);
    const url = new URL(await serveAlone(page));
    for (let i = 0; i < 20; i++) {
      const socket = connect(Number(url.port), url.hostname).pause();
      socket.on('error', () => {});
      closers.push(() => socket.destroy());
      socket.write('GET / HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\n\r\n');
    }
    await expect.poll(() => page.clients).toBe(20);
    expect((await Watcher.open(url.href)).status).toBe(503);
    vi.advanceTimersByTime(10_000);
    const operator = await Watcher.open(url.href);
    expect(operator.status).toBe(200);
    expect(await operator.next()).toMatchObject({ name: 'research' });
  });

  it('rejects a foreign origin, for the page, its updates and its confirmations', async () => {
    const page = livePage(build().manager);
    const url = await serveAlone(page);
    const open = async (origin: string, accept: string, path = '') => {
      const controller = new AbortController();
      const response = await fetch(`${url}${path}`, {
        headers: { origin, accept },
        signal: controller.signal,
      });
      controller.abort();
      return response.status;
    };
    for (const origin of ['https://evil.example', 'null', 'http://127.0.0.1:1', 'http://']) {
      expect(await open(origin, 'text/html')).toBe(403);
      expect(await open(origin, 'text/event-stream')).toBe(403);
      expect(await open(origin, 'text/plain', '?watcher=page1')).toBe(403);
    }
    expect(await open(url, 'text/event-stream')).toBe(200);
    expect(page.clients).toBeLessThanOrEqual(1);
  });

  it('ends a stream after ten minutes, so that its client is authorized again', async () => {
    vi.useFakeTimers({ toFake: ['setInterval', 'clearInterval', 'performance'] });
    closers.push(() => vi.useRealTimers());
    const page = livePage(build().manager, { updateEveryMs: 60_000 });
    const watcher = await watch(page);
    await watcher.next();
    await vi.advanceTimersByTimeAsync(540_000);
    expect(page.clients).toBe(1);
    await vi.advanceTimersByTimeAsync(60_000);
    vi.useRealTimers();
    await expect.poll(() => page.clients).toBe(0);
  });

  it('skips an update if a limiter or a gate of the host cannot be read', async () => {
    const { manager } = build();
    const page = livePage(manager, { updateEveryMs: 250 });
    const watcher = await watch(page);
    await watcher.next();
    const stats = vi.spyOn(manager.limiter, 'stats').mockImplementation(() => {
      throw new Error('the store does not respond');
    });
    await expect.poll(() => stats).toHaveBeenCalled();
    stats.mockRestore();
    expect(await watcher.next()).toMatchObject({ name: 'research' });
  });

  it('ends its streams when the manager is shut down, so that a server can close', async () => {
    const { manager } = build();
    const page = livePage(manager, { updateEveryMs: 250 });
    const server = createServer(page);
    const watcher = await Watcher.open(await listen(server));
    await watcher.next();
    await manager.shutdown();
    await new Promise((resolve) => server.close(resolve));
    expect(page.clients).toBe(0);
    let last: LiveState | undefined;
    for (let state = await watcher.next(); state !== undefined; state = await watcher.next()) last = state;
    expect(last).toMatchObject({ status: 'draining' });
  });

  it('sends the last state before it ends a stream, even if no update is due', async () => {
    vi.useFakeTimers({ toFake: ['setInterval', 'clearInterval', 'performance'] });
    closers.push(() => vi.useRealTimers());
    const { manager } = build();
    const watcher = await watch(livePage(manager, { updateEveryMs: 60_000 }));
    await watcher.next();
    await manager.shutdown();
    await vi.advanceTimersByTimeAsync(5_000);
    expect(await watcher.next()).toMatchObject({ status: 'draining' });
    expect(await watcher.next()).toBeUndefined();
  });

  it('removes its listeners when closed, and rejects further watchers', async () => {
    const { manager, hooks } = build();
    const page = livePage(manager);
    const url = await serveAlone(page);
    const watcher = await Watcher.open(url);
    await watcher.next();
    expect(hooks.listenerCount('lease:acquired')).toBe(1);
    page.close();
    expect(hooks.listenerCount('lease:acquired')).toBe(0);
    expect(await watcher.next()).toBeUndefined();
    expect((await Watcher.open(url)).status).toBe(503);
  });

  it('rejects invalid options, and a value that is no manager', () => {
    const { manager } = build();
    expect(() => livePage({} as never)).toThrow(/`manager`/);
    expect(() => livePage(manager, { authorize: true as never })).toThrow(/`authorize`/);
    expect(() => livePage(manager, { updateEveryMs: 100 })).toThrow(/`updateEveryMs`.*100/);
    expect(() => livePage(manager, { maxClients: 0 })).toThrow(/`maxClients`.*0/);
    expect(() => livePage(manager, { showTaskIds: 1 as never })).toThrow(/`showTaskIds`/);
    expect(() => livePage(manager, { path: '/live' } as never)).toThrow(/Unknown option `path`/);
  });

  it('answers HEAD with the headers only, and rejects other methods', async () => {
    const url = await serveAlone(livePage(build().manager));
    const head = await fetch(url, { method: 'HEAD', headers: { accept: 'text/event-stream' } });
    expect(head.headers.get('content-type')).toBe('text/html; charset=utf-8');
    const post = await fetch(url, { method: 'POST' });
    expect([post.status, post.headers.get('allow')]).toEqual([405, 'GET, HEAD']);
  });

  it('survives clients that disconnect at any time', async () => {
    const page = livePage(build().manager, { updateEveryMs: 250 });
    const url = await serveAlone(page);
    const vanished = Array.from({ length: 10 }, () => {
      const client = httpRequest(url, { headers: { accept: 'text/event-stream' } });
      client.on('error', () => {});
      client.on('socket', (socket: Socket) => socket.on('connect', () => socket.resetAndDestroy()));
      client.end();
      return new Promise((resolve) => client.on('close', resolve));
    });
    await Promise.all(vanished);
    const watcher = await Watcher.open(url);
    await watcher.next();
    await watcher.next();
    expect(page.clients).toBe(1);
  });
});

describe("livePage's authorization", () => {
  const open = async (authorize: LivePageOptions['authorize']) => {
    const url = await serveAlone(livePage(build().manager, { authorize }));
    const answer = async (accept: string) => {
      const controller = new AbortController();
      const response = await fetch(url, {
        headers: { accept, 'x-role': 'operator' },
        signal: controller.signal,
      });
      controller.abort();
      return response.status;
    };
    return Promise.all([answer('text/html'), answer('text/event-stream')]);
  };

  it('admits clients that the host authorizes, to the page and to its updates', async () => {
    expect(await open(({ headers }) => headers['x-role'] === 'operator')).toEqual([200, 200]);
    expect(await open(async () => true)).toEqual([200, 200]);
  });

  it('rejects all others', async () => {
    expect(await open(() => false)).toEqual([403, 403]);
    expect(await open(async () => 'yes' as never)).toEqual([403, 403]);
    expect(await open(() => undefined as never)).toEqual([403, 403]);
  });

  it('rejects all clients if the callback fails, and does not expose the error', async () => {
    const url = await serveAlone(
      livePage(build().manager, {
        authorize: () => {
          throw new Error('the password is hunter2');
        },
      }),
    );
    const response = await fetch(url);
    expect(response.status).toBe(500);
    expect(await response.text()).not.toMatch(/hunter2/);
    expect(await open(() => Promise.reject(new Error('no')))).toEqual([500, 500]);
  });

  it('rejects a client if the callback does not settle', async () => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
    closers.push(() => vi.useRealTimers());
    let asked = false;
    const page = livePage(build().manager, {
      authorize: () => {
        asked = true;
        return new Promise(() => {});
      },
    });
    const url = await serveAlone(page);
    const response = new Promise<IncomingMessage>((resolve) => get(url, { agent: false }, resolve));
    while (!asked) await new Promise((resolve) => setImmediate(resolve));
    await vi.advanceTimersByTimeAsync(10_000);
    expect((await response).statusCode).toBe(500);
  });

  it('lets the callback respond by itself', async () => {
    const url = await serveAlone(
      livePage(build().manager, {
        authorize: (_, response) => {
          response.writeHead(302, { location: '/login' }).end();
          return false;
        },
      }),
    );
    const response = await fetch(url, { redirect: 'manual' });
    expect([response.status, response.headers.get('location')]).toEqual([302, '/login']);
  });

  it('ignores a client that has disconnected meanwhile', async () => {
    let decide = (_: boolean): void => {};
    const page = livePage(build().manager, {
      authorize: () => new Promise<boolean>((resolve) => (decide = resolve)),
    });
    const url = await serveAlone(page);
    const controller = new AbortController();
    const asked = fetch(url, { headers: { accept: 'text/event-stream' }, signal: controller.signal });
    const undecided = decide;
    await expect.poll(() => decide).not.toBe(undecided);
    controller.abort();
    await expect(asked).rejects.toThrow();
    await new Promise((resolve) => setTimeout(resolve, 50));
    decide(true);
    await new Promise((resolve) => setImmediate(resolve));
    expect(page.clients).toBe(0);
  });
});

describe('livePage under a framework', () => {
  const works = async (url: string) => {
    expect((await fetch(url)).headers.get('content-type')).toBe('text/html; charset=utf-8');
    const watcher = await Watcher.open(url);
    expect(await watcher.next()).toMatchObject({ name: 'research' });
    watcher.leave();
  };

  it('is a handler of Express', async () => {
    const page = livePage(build().manager);
    const app = express();
    app.get('/admin/live', page);
    closers.push(() => page.close());
    await works(`${await listen(createServer(app))}/admin/live`);
  });

  it('is a handler of Fastify, given the raw request and reply', async () => {
    const page = livePage(build().manager);
    const app = fastify({ forceCloseConnections: true });
    app.get('/admin/live', (request, reply) => {
      reply.hijack();
      page(request.raw, reply.raw);
    });
    closers.push(
      () => app.close(),
      () => page.close(),
    );
    await works(`${await app.listen({ port: 0, host: '127.0.0.1' })}/admin/live`);
  });

  it('throws for anything but the response of Node, where a framework passes a web Request', () => {
    const page = livePage(build().manager) as (request: unknown, response?: unknown) => void;
    expect(() => page(new Request('http://localhost/'))).toThrow(
      /Expected `response` to be the response of Node's http, got undefined/,
    );
  });

  it('is a handler of Hono, given the incoming and the outgoing message', async () => {
    const page = livePage(build().manager);
    const app = new Hono<{ Bindings: HttpBindings }>();
    app.get('/admin/live', ({ env }) => {
      page(env.incoming, env.outgoing);
      return RESPONSE_ALREADY_SENT;
    });
    closers.push(() => page.close());
    const server = await new Promise<Server>((resolve) => {
      const started = serve({ fetch: app.fetch, port: 0, hostname: '127.0.0.1' }, () =>
        resolve(started as Server),
      );
    });
    await works(`${await listen(server)}/admin/live`);
  });
});
