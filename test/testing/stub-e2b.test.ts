import {
  AuthenticationError,
  NotFoundError,
  RateLimitError,
  Sandbox,
  SandboxError,
  ServiceBusyError,
  TimeoutError,
} from '@e2b/code-interpreter';
import { StubE2b, type StubE2bOptions, type StubExecution } from 'pipeline-pool/testing';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { until } from '../support/promises.js';

const running: StubE2b[] = [];
afterEach(async () => {
  vi.unstubAllEnvs();
  await Promise.all(running.splice(0).map((service) => service.stop()));
});

async function start(options: StubE2bOptions = {}) {
  const e2b = await new StubE2b(options).start();
  running.push(e2b);
  return { e2b, opts: { ...e2b.connection, retries: 0 } };
}

const failureOf = (promise: Promise<unknown>): Promise<unknown> =>
  promise.then(
    () => undefined,
    (error: unknown) => error,
  );

describe('StubE2b and the @e2b/code-interpreter SDK', () => {
  it('creates a sandbox, runs code in it and kills it', async () => {
    const { e2b, opts } = await start({
      execute: (code) => ({ stdout: [`ran ${code}\n`, 'more\n'], stderr: ['warned\n'], text: '2' }),
    });
    const sandbox = await Sandbox.create({ ...opts, metadata: { lease: '7' }, timeoutMs: 60_000 });
    expect(e2b.sandboxes).toMatchObject([
      {
        sandboxId: sandbox.sandboxId,
        templateId: 'code-interpreter-v1',
        metadata: { lease: '7' },
        state: 'running',
      },
    ]);
    const lines: string[] = [];
    const execution = await sandbox.runCode('1 + 1', {
      onStdout: ({ line }) => {
        lines.push(line);
      },
    });
    expect(execution.text).toBe('2');
    expect(execution.logs).toEqual({ stdout: ['ran 1 + 1\n', 'more\n'], stderr: ['warned\n'] });
    expect(execution.executionCount).toBe(1);
    expect(execution.error).toBeUndefined();
    expect(lines).toEqual(execution.logs.stdout);
    expect((await sandbox.runCode('2')).executionCount).toBe(2);
    expect(await sandbox.isRunning()).toBe(true);
    expect(await sandbox.kill()).toBe(true);
    expect(e2b.sandboxes).toEqual([]);
    expect(await sandbox.isRunning()).toBe(false);
    expect(await sandbox.kill()).toBe(false);
  });

  it('is found through environment variables, without a change of the host', async () => {
    const { e2b } = await start();
    vi.stubEnv('E2B_API_URL', e2b.connection.apiUrl);
    vi.stubEnv('E2B_SANDBOX_URL', e2b.connection.sandboxUrl);
    vi.stubEnv('E2B_API_KEY', e2b.connection.apiKey);
    const sandbox = await Sandbox.create();
    expect((await sandbox.runCode('x')).text).toBe('the result of 1 characters of code');
    await sandbox.kill();
    expect(e2b.sandboxes).toEqual([]);
  });

  it('returns the error of failing code', async () => {
    const { opts } = await start({
      execute: () => ({
        error: { name: 'ZeroDivisionError', value: 'division by zero', traceback: 'line 1' },
      }),
    });
    const sandbox = await Sandbox.create(opts);
    const { error, results } = await sandbox.runCode('1 / 0');
    expect(error).toEqual({ name: 'ZeroDivisionError', value: 'division by zero', traceback: 'line 1' });
    expect(results).toEqual([]);
  });

  it('returns a sandbox, lists sandboxes by metadata, and sets their timeout', async () => {
    const { opts } = await start();
    const sandbox = await Sandbox.create({ ...opts, metadata: { task: 'a b&c' }, timeoutMs: 60_000 });
    await Sandbox.create({ ...opts, metadata: { task: 'other' } });
    const info = await sandbox.getInfo();
    expect(info).toMatchObject({
      sandboxId: sandbox.sandboxId,
      metadata: { task: 'a b&c' },
      state: 'running',
    });
    expect(info.endAt.getTime() - info.startedAt.getTime()).toBe(60_000);
    const found = await Sandbox.list({ ...opts, query: { metadata: { task: 'a b&c' } } }).nextItems();
    expect(found.map(({ sandboxId }) => sandboxId)).toEqual([sandbox.sandboxId]);
    await sandbox.setTimeout(600_000);
    const extended = await sandbox.getInfo();
    expect(extended.endAt.getTime() - info.endAt.getTime()).toBeGreaterThan(500_000);
  });

  it('pauses a sandbox, which then runs nothing, and resumes it on connect', async () => {
    const { e2b, opts } = await start({ maxSandboxes: 1 });
    const sandbox = await Sandbox.create(opts);
    expect(await sandbox.pause()).toBe(true);
    expect(await sandbox.pause()).toBe(false);
    expect(await sandbox.isRunning()).toBe(false);
    expect(await failureOf(sandbox.runCode('x'))).toBeInstanceOf(TimeoutError);
    const paused = await Sandbox.list({ ...opts, query: { state: ['paused'] } }).nextItems();
    expect(paused).toHaveLength(1);
    const other = await Sandbox.create(opts);
    expect(await failureOf(Sandbox.connect(sandbox.sandboxId, opts))).toBeInstanceOf(RateLimitError);
    await other.kill();
    const resumed = await Sandbox.connect(sandbox.sandboxId, opts);
    expect((await resumed.runCode('x')).text).toBeDefined();
    expect(e2b.sandboxes).toMatchObject([{ state: 'running' }]);
    await sandbox.pause();
    await resumed.kill();
    await expect(Sandbox.create(opts)).resolves.toBeDefined();
    expect(await failureOf(Sandbox.create(opts))).toBeInstanceOf(RateLimitError);
  });

  it('never shortens the time of a running sandbox on connect', async () => {
    const { e2b, opts } = await start();
    const { sandboxId } = await Sandbox.create({ ...opts, timeoutMs: 600_000 });
    const before = e2b.sandboxes[0]?.endAt;
    await Sandbox.connect(sandboxId, { ...opts, timeoutMs: 1_000 });
    expect(e2b.sandboxes[0]?.endAt).toEqual(before);
    await Sandbox.connect(sandboxId, { ...opts, timeoutMs: 6_000_000 });
    expect(e2b.sandboxes[0]?.endAt).not.toEqual(before);
  });

  it('kills a sandbox whose time is up, or pauses it with autoPause', async () => {
    const { e2b, opts } = await start();
    const killed = await Sandbox.create({ ...opts, timeoutMs: 60_000 });
    const paused = await Sandbox.create({
      ...opts,
      timeoutMs: 60_000,
      lifecycle: { onTimeout: 'pause' },
    });
    await Promise.all([killed.setTimeout(0), paused.setTimeout(0)]);
    await until(() => e2b.sandboxes.length === 1 && e2b.sandboxes[0]?.state === 'paused');
    expect(e2b.sandboxes[0]?.sandboxId).toBe(paused.sandboxId);
  });

  it('interrupts the code of a killed sandbox', async () => {
    const { e2b, opts } = await start({ execute: () => new Promise<StubExecution>(() => {}) });
    const sandbox = await Sandbox.create(opts);
    const failure = failureOf(sandbox.runCode('while True: pass'));
    await until(() => e2b.stats().byRoute['POST /execute']?.inFlight === 1);
    await Sandbox.kill(sandbox.sandboxId, opts);
    expect(await failure).toBeInstanceOf(TimeoutError);
    expect(String(await failure)).toContain('was killed');
    expect(e2b.calls.find(({ route }) => route === 'POST /execute')?.end).toBe('cut');
  });

  it('serves the older routes too', async () => {
    const { e2b } = await start();
    const headers = { 'X-API-KEY': 'e2b_1', 'content-type': 'application/json' };
    const created = await fetch(`${e2b.url}/sandboxes`, {
      method: 'POST',
      headers,
      body: JSON.stringify({ templateID: 'base' }),
    });
    expect(created.status).toBe(201);
    const { sandboxID } = (await created.json()) as { sandboxID: string };
    const connected = await fetch(`${e2b.url}/sandboxes/${sandboxID}/connect`, {
      method: 'POST',
      headers,
      body: JSON.stringify({ timeout: 60 }),
    });
    expect(connected.status).toBe(200);
    expect(await (await fetch(`${e2b.url}/sandboxes`, { headers })).json()).toHaveLength(1);
    expect((await fetch(`${e2b.url}/health`)).status).toBe(204);
    const removed = await fetch(`${e2b.url}/sandboxes/${sandboxID}`, { method: 'DELETE', headers });
    expect(removed.status).toBe(204);
  });

  it('rejects unknown keys, unknown sandboxes and invalid bodies', async () => {
    const { e2b, opts } = await start({ keys: [`e2b_${'0'.repeat(4)}`] });
    expect(await failureOf(Sandbox.create(opts))).toBeInstanceOf(AuthenticationError);
    const known = { ...opts, apiKey: 'e2b_0000' };
    expect(await Sandbox.kill('unknown', known)).toBe(false);
    expect(await failureOf(Sandbox.getInfo('unknown', known))).toBeInstanceOf(NotFoundError);
    const rejected = await fetch(`${e2b.url}/v2/sandboxes`, {
      method: 'POST',
      headers: { 'X-API-KEY': 'e2b_0000' },
      body: JSON.stringify({ templateID: 'base', timeout: 'long' }),
    });
    expect(rejected.status).toBe(400);
    const unnamed = await fetch(`${e2b.url}/execute`, { method: 'POST', body: '{"code":"x"}' });
    expect(unnamed.status).toBe(502);
  });
});

describe('StubE2b: limits', () => {
  it('rejects sandboxes beyond the limit, without a retry time', async () => {
    const { e2b, opts } = await start({ maxSandboxes: 2 });
    const first = await Sandbox.create(opts);
    await Sandbox.create(opts);
    const failure = await failureOf(Sandbox.create(opts));
    expect(failure).toBeInstanceOf(RateLimitError);
    expect(failure).toMatchObject({
      statusCode: 429,
      message: expect.stringContaining('maximum number of concurrent E2B sandboxes (2)'),
    });
    const raw = await fetch(`${e2b.url}/v2/sandboxes`, {
      method: 'POST',
      headers: { 'X-API-KEY': 'e2b_1' },
      body: JSON.stringify({ templateID: 'base' }),
    });
    expect(raw.headers.get('retry-after')).toBeNull();
    await first.kill();
    await expect(Sandbox.create(opts)).resolves.toBeDefined();
    expect(e2b.peakSandboxes).toBe(2);
  });

  it('counts sandboxes being created against the limit', async () => {
    const { e2b, opts } = await start({ maxSandboxes: 1, latencyMs: 50 });
    const outcomes = await Promise.allSettled([1, 2, 3].map(() => Sandbox.create(opts)));
    expect(outcomes.filter(({ status }) => status === 'fulfilled')).toHaveLength(1);
    expect(e2b.peakSandboxes).toBe(1);
  });

  it('rejects creations beyond the rate, with a retry time', async () => {
    const { e2b, opts } = await start({ createRate: { limit: 1, perMs: 60_000 } });
    await Sandbox.create(opts);
    const failure = await failureOf(Sandbox.create(opts));
    expect(failure).toBeInstanceOf(RateLimitError);
    expect(String(failure)).not.toContain('concurrent');
    const raw = await fetch(`${e2b.url}/v2/sandboxes`, {
      method: 'POST',
      headers: { 'X-API-KEY': opts.apiKey },
      body: JSON.stringify({ templateID: 'base' }),
    });
    expect(await raw.json()).toEqual({ code: 429, message: 'Rate limit exceeded' });
    expect(Number(raw.headers.get('retry-after'))).toBeGreaterThan(50);
    expect(raw.headers.get('ratelimit-limit')).toBe('1');
    expect(raw.headers.get('ratelimit-remaining')).toBe('0');
    expect(raw.headers.get('ratelimit-reset')).toBe(raw.headers.get('retry-after'));
    expect(e2b.sandboxes).toHaveLength(1);
  });

  it('is retried by the SDK if its retries are enabled', async () => {
    const { e2b, opts } = await start();
    e2b.faultNext({ type: 'status', status: 429, retryAfter: { as: 'seconds', ms: 0 } });
    await Sandbox.create({ ...opts, retries: 1 });
    expect(e2b.stats().byRoute['POST /v2/sandboxes']?.statuses).toEqual({ 201: 1, 429: 1 });
  });

  it('counts a deleted sandbox for killLagMs, without listing it', async () => {
    const { e2b, opts } = await start({ maxSandboxes: 1, killLagMs: 60_000 });
    const sandbox = await Sandbox.create(opts);
    await sandbox.kill();
    expect(e2b.sandboxes).toEqual([]);
    expect(String(await failureOf(Sandbox.create(opts)))).toContain('maximum number of concurrent');
  });

  it('creates no sandbox for a client that disconnects meanwhile, and frees its place', async () => {
    const { e2b, opts } = await start({ maxSandboxes: 1, latencyMs: ({ id }) => (id === 1 ? 600_000 : 0) });
    const abort = new AbortController();
    const failure = failureOf(Sandbox.create({ ...opts, signal: abort.signal }));
    await until(() => e2b.stats().inFlight === 1 && e2b.peakSandboxes === 1);
    abort.abort();
    expect(await failure).toBeDefined();
    await until(() => e2b.stats().inFlight === 0);
    expect(e2b.sandboxes).toEqual([]);
    await expect(Sandbox.create(opts)).resolves.toBeDefined();
  });
});

describe('StubE2b with faults', () => {
  it('makes the SDK throw its own classes', async () => {
    const { e2b, opts } = await start();
    const staged = [
      [401, AuthenticationError],
      [403, SandboxError],
      [429, RateLimitError],
      [503, ServiceBusyError],
    ] as const;
    for (const [status, ErrorClass] of staged) {
      e2b.faultNext({ type: 'status', status });
      const failure = await failureOf(Sandbox.create(opts));
      expect(failure).toBeInstanceOf(ErrorClass);
      expect(String(failure)).not.toContain('undefined');
    }
    e2b.faultNext({ type: 'status', status: 429, reason: 'quota' });
    expect(String(await failureOf(Sandbox.create(opts)))).toContain('maximum number of concurrent');
  });

  it('refuses to run code, or returns an error as the first line', async () => {
    const { e2b, opts } = await start();
    const sandbox = await Sandbox.create(opts);
    e2b.faultNext([
      { type: 'status', status: 502 },
      { type: 'stream-error', status: 503 },
    ]);
    expect(await failureOf(sandbox.runCode('x'))).toBeInstanceOf(TimeoutError);
    const { error } = await sandbox.runCode('x');
    expect(error?.value).toContain('503');
  });

  it('interrupts an execution: reset before, reset in the middle, stalled', async () => {
    const { e2b, opts } = await start();
    const sandbox = await Sandbox.create(opts);
    e2b.faultNext([
      { type: 'reset', when: 'before-headers' },
      { type: 'reset', when: 'mid-body' },
      { type: 'stall' },
    ]);
    for (let i = 0; i < 2; i++) {
      const failure = await failureOf(sandbox.runCode('x'));
      expect(failure).toBeInstanceOf(TypeError);
      expect(failure).not.toBeInstanceOf(TimeoutError);
    }
    const stalled = await failureOf(sandbox.runCode('x', { timeoutMs: 50 }));
    expect(stalled).toBeInstanceOf(TimeoutError);
    await until(() => e2b.stats().inFlight === 0);
    expect((await sandbox.runCode('x')).text).toBeDefined();
  });

  it('sends nothing if the interrupted response has no body', async () => {
    const { e2b, opts } = await start();
    const sandbox = await Sandbox.create(opts);
    e2b.faultNext({ type: 'reset', when: 'mid-body' }, 'DELETE /sandboxes/:id');
    expect(await failureOf(sandbox.kill())).toBeInstanceOf(TypeError);
    expect(e2b.calls.at(-1)).toMatchObject({ end: 'cut', status: undefined });
    expect(e2b.sandboxes).toEqual([]);
  });

  it('excludes the health route from faults that are not queued for it', async () => {
    const { e2b, opts } = await start({ fault: () => ({ type: 'status', status: 503 }) });
    expect((await fetch(`${e2b.url}/health`)).status).toBe(204);
    e2b.faultNext({ type: 'status', status: 500 });
    expect((await fetch(`${e2b.url}/health`)).status).toBe(204);
    e2b.faultNext({ type: 'status', status: 500 }, 'GET /health');
    expect((await fetch(`${e2b.url}/health`)).status).toBe(500);
    expect(await failureOf(Sandbox.create(opts))).toBeInstanceOf(SandboxError);
  });
});
