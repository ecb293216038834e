import { connect } from 'node:net';
import { StubJina, StubSerper, type StubSerperOptions } from 'pipeline-pool/testing';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { until } from '../support/promises.js';

const running: StubSerper[] = [];
afterEach(async () => {
  await Promise.all(running.splice(0).map((service) => service.stop()));
});

async function start(options: StubSerperOptions = {}): Promise<StubSerper> {
  const service = await new StubSerper(options).start();
  running.push(service);
  return service;
}

const search = (service: StubSerper, key = 'key-1', init: RequestInit = {}): Promise<Response> =>
  fetch(`${service.url}/search`, {
    method: 'POST',
    headers: { 'X-API-KEY': key },
    body: JSON.stringify({ q: 'pools' }),
    ...init,
  });

/** Holds every search back until it is let go. */
function heldSearches() {
  const held: (() => void)[] = [];
  const results = () => new Promise<[]>((resolve) => held.push(() => resolve([])));
  return { held, results };
}

describe('StubService: start and stop', () => {
  it('has a URL while it runs, and throws otherwise', async () => {
    const service = new StubSerper();
    expect(() => service.url).toThrow('StubSerper is stopped');
    await service.start();
    expect(service.url).toMatch(/^http:\/\/127\.0\.0\.1:\d+$/);
    await service.stop();
    expect(() => service.url).toThrow('StubSerper is stopped');
  });

  it('starts once and stops once, however often called', async () => {
    const service = new StubSerper();
    await Promise.all([service.start(), service.start()]);
    const { url } = service;
    await service.start();
    expect(service.url).toBe(url);
    await Promise.all([service.stop(), service.stop()]);
    await service.stop();
  });

  it('refuses connections while stopped, and restarts on the same port', async () => {
    const service = await start();
    const { url } = service;
    await service.stop();
    await expect(fetch(url)).rejects.toMatchObject({ cause: { code: 'ECONNREFUSED' } });
    await service.start();
    expect(service.url).toBe(url);
    expect((await search(service)).status).toBe(200);
  });

  it('ends calls in flight and idle connections when stopped', async () => {
    const { held, results } = heldSearches();
    const service = await start({ results });
    const asked = search(service).catch((error: unknown) => error);
    await until(() => held.length === 1);
    const idle = connect(Number(new URL(service.url).port), '127.0.0.1');
    await new Promise((resolve) => idle.once('connect', resolve));
    const idleClosed = new Promise((resolve) => idle.once('close', resolve));
    await service.stop();
    expect(await asked).toBeInstanceOf(TypeError);
    await idleClosed;
    await until(() => service.stats().inFlight === 0);
    expect(service.calls[0]?.signal.aborted).toBe(true);
  });

  it('stops at the end of an await using block', async () => {
    let url: string;
    {
      await using service = await new StubSerper().start();
      url = service.url;
    }
    await expect(fetch(url)).rejects.toThrow();
  });
});

describe('StubService: counts', () => {
  it('counts calls, statuses and peaks, in total, by route and by key', async () => {
    const { held, results } = heldSearches();
    const service = await start({ results });
    const asked = [search(service, 'a'), search(service, 'a'), search(service, 'b')];
    await until(() => held.length === 3);
    expect(service.stats()).toMatchObject({ calls: 3, inFlight: 3, peakInFlight: 3, statuses: {} });
    for (const release of held) release();
    await Promise.all(asked);
    expect((await fetch(`${service.url}/nothing`)).status).toBe(404);
    expect(service.stats()).toEqual({
      calls: 4,
      inFlight: 0,
      peakInFlight: 3,
      disconnects: 0,
      statuses: { 200: 3, 404: 1 },
      byRoute: {
        'POST /search': { calls: 3, inFlight: 0, peakInFlight: 3, disconnects: 0, statuses: { 200: 3 } },
        unknown: { calls: 1, inFlight: 0, peakInFlight: 1, disconnects: 0, statuses: { 404: 1 } },
      },
      byKey: {
        a: { calls: 2, inFlight: 0, peakInFlight: 2, disconnects: 0, statuses: { 200: 2 } },
        b: { calls: 1, inFlight: 0, peakInFlight: 1, disconnects: 0, statuses: { 200: 1 } },
      },
    });
  });

  it('never counts two concurrent calls of a sequential client', async () => {
    const service = await start();
    for (let i = 0; i < 50; i++) await (await search(service)).text();
    expect(service.stats()).toMatchObject({ calls: 50, inFlight: 0, peakInFlight: 1 });
  });

  it('resets its counts, keeping calls in flight', async () => {
    const { held, results } = heldSearches();
    const service = await start({ results });
    const first = search(service);
    const second = search(service);
    await until(() => held.length === 2);
    held[0]?.();
    await Promise.race([first, second]);
    service.resetStats();
    expect(service.stats()).toMatchObject({ calls: 1, inFlight: 1, peakInFlight: 1, statuses: {} });
    expect(service.peakStartsPer(1000)).toBe(0);
    expect(service.calls).toEqual([]);
    held[1]?.();
    await Promise.all([first, second]);
    expect(service.stats()).toMatchObject({ calls: 1, inFlight: 0, statuses: { 200: 1 } });
  });

  it('finds the most starts within a window, by route and key', async () => {
    const service = await start();
    await Promise.all([search(service, 'a'), search(service, 'a'), search(service, 'b')]);
    await fetch(`${service.url}/nothing`);
    expect(service.peakStartsPer(60_000)).toBe(4);
    expect(service.peakStartsPer(60_000, { route: 'POST /search' })).toBe(3);
    expect(service.peakStartsPer(60_000, { key: 'a' })).toBe(2);
    expect(service.peakStartsPer(60_000, { route: 'unknown', key: 'a' })).toBe(0);
    expect(() => service.peakStartsPer(0)).toThrow(RangeError);
  });

  it('keeps the latest calls, at most logSize', async () => {
    const service = await start({ logSize: 3 });
    for (let i = 0; i < 10; i++) await search(service);
    expect(service.calls.map(({ id }) => id)).toEqual([8, 9, 10]);
    expect(service.stats().calls).toBe(10);
    expect(service.peakStartsPer(60_000)).toBe(10);
  });

  it('records each call and how it ended', async () => {
    const service = await start();
    await search(service, 'a');
    expect(service.calls[0]).toMatchObject({
      id: 1,
      route: 'POST /search',
      method: 'POST',
      url: '/search',
      key: 'a',
      body: { q: 'pools' },
      end: 'answered',
      status: 200,
      fault: undefined,
    });
  });
});

describe('StubService: faults', () => {
  it('injects queued faults in order, one each', async () => {
    const service = await start();
    service.faultNext([
      { type: 'status', status: 503 },
      { type: 'status', status: 429 },
    ]);
    const statuses = [];
    for (let i = 0; i < 3; i++) statuses.push((await search(service)).status);
    expect(statuses).toEqual([503, 429, 200]);
    expect(service.calls.map(({ fault }) => fault)).toEqual(['status', 'status', undefined]);
  });

  it('injects a fault for one route only, if named', async () => {
    const service = await start();
    service.faultNext({ type: 'status', status: 503 }, 'POST /search');
    expect((await fetch(`${service.url}/nothing`)).status).toBe(404);
    expect((await search(service)).status).toBe(503);
    expect(() => service.faultNext({ type: 'stall' }, 'POST /serach')).toThrow(
      'StubSerper has no route "POST /serach"; it has "POST /search"',
    );
  });

  it('calls the fault function for calls without a queued fault', async () => {
    const fault = vi.fn(({ key }) => (key === 'bad' ? { type: 'status' as const, status: 403 } : undefined));
    const service = await start({ fault });
    service.faultNext({ type: 'status', status: 503 });
    expect((await search(service, 'bad')).status).toBe(503);
    expect(fault).not.toHaveBeenCalled();
    expect((await search(service, 'bad')).status).toBe(403);
    expect((await search(service, 'good')).status).toBe(200);
  });

  it('sends the body and headers of a status fault', async () => {
    const service = await start();
    service.faultNext([
      { type: 'status', status: 418, body: { of: 'its own' }, headers: { 'x-extra': '1' } },
      { type: 'status', status: 502, body: '<html>bad gateway</html>' },
    ]);
    const teapot = await search(service);
    expect([teapot.status, teapot.headers.get('x-extra'), await teapot.json()]).toEqual([
      418,
      '1',
      { of: 'its own' },
    ]);
    expect(await (await search(service)).text()).toBe('<html>bad gateway</html>');
  });

  it('states the retry time in each format', async () => {
    const service = await start();
    const ways = ['seconds', 'date', 'milliseconds', 'reset-requests', 'reset-tokens'] as const;
    service.faultNext(ways.map((as) => ({ type: 'status', status: 429, retryAfter: { as, ms: 90_500 } })));
    const headers = [];
    for (const _ of ways) headers.push((await search(service)).headers);
    expect(headers[0]?.get('retry-after')).toBe('91');
    const date = headers[1]?.get('retry-after') ?? '';
    expect(date).toMatch(/^\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT$/);
    expect(Date.parse(date) - Date.now()).toBeGreaterThan(80_000);
    expect(headers[2]?.get('retry-after-ms')).toBe('90500');
    expect(headers[3]?.get('x-ratelimit-reset-requests')).toBe('1m30.5s');
    expect(headers[3]?.get('x-ratelimit-remaining-requests')).toBe('0');
    expect(headers[4]?.get('x-ratelimit-reset-tokens')).toBe('1m30.5s');
    expect(headers[4]?.get('retry-after')).toBeNull();
  });

  it('never sends headers, until the client disconnects', async () => {
    const service = await start();
    service.faultNext({ type: 'no-headers' });
    const abort = new AbortController();
    const asked = search(service, 'a', { signal: abort.signal }).catch((error: Error) => error.name);
    await until(() => service.calls[0]?.fault === 'no-headers');
    abort.abort();
    expect(await asked).toBe('AbortError');
    await until(() => service.stats().inFlight === 0);
    expect(service.calls[0]).toMatchObject({ end: 'disconnected', status: undefined });
  });

  it('stalls a body after its first part', async () => {
    const service = await start();
    service.faultNext({ type: 'stall' });
    const abort = new AbortController();
    const response = await search(service, 'a', { signal: abort.signal });
    expect(response.status).toBe(200);
    const reader = response.body!.getReader();
    const { value } = await reader.read();
    const whole = Number(response.headers.get('content-length'));
    expect(value?.length).toBe(Math.ceil(whole / 2));
    const remaining = reader.read().catch((error: Error) => error.name);
    expect(service.stats().inFlight).toBe(1);
    abort.abort();
    expect(await remaining).toBe('AbortError');
    await until(() => service.stats().inFlight === 0);
  });

  it('resets the connection before the headers', async () => {
    const service = await start();
    service.faultNext({ type: 'reset', when: 'before-headers' });
    await expect(search(service)).rejects.toMatchObject({ cause: { code: 'ECONNRESET' } });
    expect(service.calls[0]).toMatchObject({ end: 'cut', status: undefined });
    expect(service.stats()).toMatchObject({ inFlight: 0, disconnects: 1, statuses: {} });
  });

  it('resets the connection in the middle of the body', async () => {
    const service = await start();
    service.faultNext({ type: 'reset', when: 'mid-body' });
    // The reset may overtake what was sent, headers included: the client fails in either case.
    await expect(search(service).then((response) => response.text())).rejects.toThrow(TypeError);
    expect(service.calls[0]).toMatchObject({ end: 'cut', status: 200 });
    expect((await search(service)).status).toBe(200);
  });

  it('rejects an invalid fault', () => {
    const service = new StubSerper();
    const wrong: [unknown, string][] = [
      [{ type: 'statsu', status: 429 }, 'fault.type'],
      [{ type: 'status', status: 200 }, 'fault.status'],
      [{ type: 'status' }, 'fault.status'],
      [{ type: 'status', status: 429, retryAfter: { as: 'hours', ms: 1 } }, 'fault.retryAfter.as'],
      [{ type: 'status', status: 429, retryAfter: { as: 'date', ms: -1 } }, 'fault.retryAfter.ms'],
      [{ type: 'status', status: 429, retryafter: 1 }, 'retryafter'],
      [{ type: 'status', status: 429, reason: 'whim' }, 'fault.reason'],
      [{ type: 'envelope', status: 99 }, 'fault.status'],
      [{ type: 'stream-error' }, 'fault.status'],
      [{ type: 'reset', when: 'later' }, 'fault.when'],
      [{ type: 'stall', ms: 5 }, 'ms'],
      [null, 'fault'],
    ];
    for (const [fault, named] of wrong) {
      expect(() => service.faultNext(fault as never), JSON.stringify(fault)).toThrow(named);
    }
  });
});

describe('StubService: scripts that fail', () => {
  it('responds with 500 and the error if a script throws', async () => {
    let works = false;
    const service = await start({
      results: () => {
        if (works) return [];
        throw new Error('no such luck');
      },
    });
    const rejected = await search(service);
    expect(rejected.status).toBe(500);
    expect(await rejected.json()).toMatchObject({ message: 'A script of StubSerper failed: no such luck' });
    works = true;
    expect((await search(service)).status).toBe(200);
    expect(service.stats()).toMatchObject({ inFlight: 0, statuses: { 200: 1, 500: 1 } });
  });

  it('responds with 500 for an invalid latency or fault of a call', async () => {
    const service = await start({ latencyMs: () => Number.NaN });
    expect(await (await search(service)).text()).toContain('latencyMs(call)');
    const other = await start({ fault: () => ({ type: 'status', status: 7 }) });
    expect(await (await search(other)).text()).toContain('fault.status');
  });

  it('drops a script that never settles when its client disconnects', async () => {
    const service = await start({ results: () => new Promise(() => {}) });
    const abort = new AbortController();
    const asked = search(service, 'a', { signal: abort.signal }).catch(() => 'left');
    await until(() => service.stats().inFlight === 1 && service.calls[0]?.body !== undefined);
    abort.abort();
    await asked;
    await until(() => service.stats().inFlight === 0);
  });

  it('detects a client that disconnects during its request', async () => {
    const service = await start();
    const socket = connect(Number(new URL(service.url).port), '127.0.0.1');
    socket.write('POST /search HTTP/1.1\r\nHost: stub\r\nContent-Length: 100\r\n\r\n{"q":');
    await until(() => service.stats().inFlight === 1);
    socket.destroy();
    await until(() => service.stats().inFlight === 0);
    expect(service.stats()).toMatchObject({ disconnects: 1, statuses: {} });
  });
});

describe('StubService: options', () => {
  it('accepts a latency per call, and scales it', async () => {
    const service = await start({
      latencyMs: ({ key }) => (key === 'slow' ? 40_000 : 0),
      timeScale: 0.001,
    });
    const startedAtMs = performance.now();
    await search(service, 'slow');
    // A lower bound only: a busy machine may be late, but nothing may be early.
    expect(performance.now() - startedAtMs).toBeGreaterThan(38);
  });

  it('rejects invalid values, naming the option', () => {
    const wrong: [object, string][] = [
      [{ latencyMs: -1 }, 'latencyMs'],
      [{ latencyMs: '5' }, 'latencyMs'],
      [{ timeScale: 0 }, 'timeScale'],
      [{ logSize: 0 }, 'logSize'],
      [{ keys: [''] }, 'keys[0]'],
      [{ fault: 'all' }, 'fault'],
      [{ latency: 5 }, 'latency'],
      [{ rate: { limit: 0, perMs: 1000 } }, 'rate.limit'],
      [{ rate: { limit: 1, perMs: 0 } }, 'rate.perMs'],
      [{ credits: -1 }, 'credits'],
      [{ results: [] }, 'results'],
    ];
    for (const [options, named] of wrong) {
      expect(() => new StubSerper(options), JSON.stringify(options)).toThrow(named);
    }
    expect(() => new StubJina({ page: 'x' as never })).toThrow('page');
  });
});
