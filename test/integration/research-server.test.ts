import { spawn } from 'node:child_process';
import { setTimeout as sleep } from 'node:timers/promises';
import { type StubServices, startStubServices } from 'pipeline-pool/testing';
import { afterEach, describe, expect, it } from 'vitest';
import { serviceSettings } from '../../examples/host-clients.js';
import { type ResearchServerOptions, startResearchServer } from '../../examples/research-server/server.js';
import { sizeOf } from '../support/soak.js';

const closers: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

/** What the server logged, by level. */
class Lines {
  readonly info: string[] = [];
  readonly warnings: string[] = [];
  readonly errors: string[] = [];
  readonly logger = {
    debug: () => {},
    info: (line: object | string) => this.info.push(String(line)),
    warn: (line: object | string) => this.warnings.push(String(line)),
    error: (line: object | string) => this.errors.push(String(line)),
  };
}

async function start(more: Partial<ResearchServerOptions> = {}) {
  const stubs = await startStubServices({
    llm: { latencyMs: 10, perTokenMs: 1, maxNumSeqs: 16 },
    serper: { latencyMs: 5 },
    jina: { latencyMs: 5 },
    e2b: { latencyMs: 5, maxSandboxes: 20 },
  });
  const lines = new Lines();
  const server = await startResearchServer({
    services: serviceSettings({}, stubs),
    // The plans' rates would make the load last for minutes.
    gates: { llm: { maxConcurrent: 16 }, serper: { rate: [] }, jina: { rate: [] }, e2b: { rate: [] } },
    logger: lines.logger,
    ...more,
  });
  closers.push(
    () => stubs.stop(),
    () => server.close({ timeoutMs: 0 }),
  );
  return { server, stubs, lines };
}

interface ServerEvent {
  readonly event: string;
  readonly data: Record<string, unknown>;
}

/** Reads the events of one answer, until `leave` says to leave: then the connection is cut. */
async function ask(
  url: string,
  question: string,
  {
    leave = () => false,
    signal,
  }: { leave?: (emitted: readonly ServerEvent[]) => boolean; signal?: AbortSignal } = {},
) {
  const response = await fetch(`${url}/research`, {
    method: 'POST',
    body: JSON.stringify({ question }),
    ...(signal === undefined ? {} : { signal }),
  });
  const emitted: ServerEvent[] = [];
  if (!response.ok) return { status: response.status, headers: response.headers, emitted };
  let text = '';
  for await (const chunk of response.body!) {
    text += Buffer.from(chunk).toString();
    for (let end = text.indexOf('\n\n'); end >= 0; end = text.indexOf('\n\n')) {
      const [, event = '', data = ''] = /^event: (.*)\ndata: (.*)$/.exec(text.slice(0, end)) ?? [];
      emitted.push({ event, data: JSON.parse(data) as Record<string, unknown> });
      text = text.slice(end + 2);
    }
    if (leave(emitted)) break;
  }
  // After a break the rest of the body is cancelled by then, and its connection with it.
  return { status: response.status, headers: response.headers, emitted };
}

/** What anybody still holds, anywhere. */
function held(server: Awaited<ReturnType<typeof startResearchServer>>, stubs: StubServices) {
  const { active, queued, limiter, pool } = server.manager.stats();
  const gates = Object.values(server.gates).map((gate) => gate.stats());
  const calls = gates.map((gate) => gate.running + gate.queuedForStart + gate.backingOff);
  const permits = gates.map((gate) => (gate.limiter?.active ?? 0) + (gate.limiter?.queued ?? 0));
  const services = [stubs.llm, stubs.serper, stubs.jina, stubs.e2b].map((stub) => stub.stats().inFlight);
  return {
    requests: active + queued,
    admitted: limiter.active + limiter.queued,
    leases: pool.leased + pool.queued + pool.resetting + pool.readying,
    calls: calls.reduce((a, b) => a + b),
    permits: permits.reduce((a, b) => a + b),
    atTheServices: services.reduce((a, b) => a + b),
    batch: stubs.llm.batch().running + stubs.llm.batch().queued,
    sandboxes: stubs.e2b.sandboxes.length,
  };
}

const NOTHING = {
  requests: 0,
  admitted: 0,
  leases: 0,
  calls: 0,
  permits: 0,
  atTheServices: 0,
  batch: 0,
  sandboxes: 0,
};

const STREAMS = sizeOf('streams of a research server', 60, 300);

describe('the research server', () => {
  it('streams the steps and then the answer', async () => {
    const { server, stubs, lines } = await start();
    const { status, headers, emitted } = await ask(server.url, 'Why do glaciers look blue?');
    expect(status).toBe(200);
    expect(headers.get('content-type')).toBe('text/event-stream; charset=utf-8');
    const steps = emitted.flatMap(({ event, data }) => (event === 'step' ? [data.step] : []));
    expect(steps).toEqual(['plan', 'search', 'read', 'calculate', 'answer']);
    const answer = emitted.flatMap(({ event, data }) => (event === 'token' ? [data.text] : [])).join('');
    expect(answer).toMatch(
      /^This is the answer of a stub to: Answer from [\s\S]*Why do glaciers look blue\?/,
    );
    expect(answer).not.toMatch(/failed|cannot be used/);
    expect(emitted.at(-1)).toEqual({
      event: 'done',
      data: { sources: [expect.any(String), expect.any(String), expect.any(String)] },
    });
    await expect.poll(() => held(server, stubs)).toEqual(NOTHING);
    expect([...lines.warnings, ...lines.errors]).toEqual([]);
  });

  it('runs standalone on stub services, and drains before it exits', async () => {
    // The test runner sets a BASE_URL of its own, and a developer may have real keys: neither is meant here.
    const {
      BASE_URL: _,
      API_KEY,
      SERPER_API_KEY,
      SERPER_URL,
      JINA_API_KEY,
      JINA_URL,
      E2B_API_KEY,
      ...env
    } = process.env;
    const child = spawn(process.execPath, ['--import', 'tsx', 'examples/research-server/main.ts'], {
      env: { ...env, PORT: '0' },
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    closers.push(async () => child.kill('SIGKILL'));
    let said = '';
    child.stdout.on('data', (chunk: Buffer) => {
      said += chunk.toString();
    });
    const code = new Promise((resolve) => child.on('close', resolve));
    await expect.poll(() => said).toMatch(/^Research: /);
    const url = /^Research: (.*)$/m.exec(said)![1]!;
    const answer = ask(url, 'How old is the oldest tree?');
    await expect.poll(() => said).toMatch(/^Acquired pipeline instance 1/m);
    child.kill('SIGTERM');
    expect((await answer).emitted.at(-1)?.event).toBe('done');
    expect(await code).toBe(0);
    expect(said).toMatch(/^SIGTERM: draining, 1 requests are under way\.$/m);
    expect(said).toMatch(/^Nothing is left\.$/m);
  });

  it('shows its operator everything', async () => {
    const { server } = await start();
    await ask(server.url, 'How deep is the sea?');
    const get = (path: string) => fetch(`${server.url}${path}`);
    expect(await (await get('/health')).json()).toMatchObject({ status: 'healthy', pool_size: 5 });
    expect((await get('/health/live')).status).toBe(200);
    expect(await (await get('/live')).text()).toMatch(/^<!doctype html>/);
    expect(await (await get('/metrics')).text()).toMatch(
      /pipeline_requests_total\{[^}]*outcome="ok"[^}]*\} 1/,
    );
    expect(await (await get('/timeline.svg')).text()).toMatch(/^<svg/);
    expect(await (await get('/diagnosis')).json()).toMatchObject({ findings: expect.any(Array) });
    expect((await get('/nothing')).status).toBe(404);
  });

  it('denies its live page to everyone else', async () => {
    const { server } = await start({
      isOperator: ({ headers }) => headers.authorization === 'Bearer operator',
    });
    expect((await fetch(`${server.url}/live`)).status).toBe(403);
    const headers = { authorization: 'Bearer operator' };
    expect((await fetch(`${server.url}/live`, { headers })).status).toBe(200);
  });

  it('rejects a body that is not a question', async () => {
    const { server } = await start();
    for (const body of ['', 'nonsense', '{}', '{"question":7}', '{"question":""}', 'null']) {
      const { status } = await fetch(`${server.url}/research`, { method: 'POST', body });
      expect(status, body).toBe(400);
    }
  });

  it('rejects a body above its limit with 413, and reads no further', async () => {
    const { server, stubs } = await start();
    const body = JSON.stringify({ question: 'x'.repeat(1_000_000) });
    const statuses = await Promise.all(
      Array.from({ length: 20 }, async () => {
        const response = await fetch(`${server.url}/research`, { method: 'POST', body });
        await response.text();
        return response.status;
      }),
    );
    expect(new Set(statuses)).toEqual(new Set([413]));
    // Without a length in its header, the body is counted as it arrives.
    let sent = 0;
    const chunks = new ReadableStream<Uint8Array>({
      pull: async (controller) => {
        await new Promise((resolve) => setImmediate(resolve));
        if (sent++ < 10) controller.enqueue(new Uint8Array(20_000));
        else controller.close();
      },
    });
    const init = { method: 'POST', body: chunks, duplex: 'half' } as RequestInit;
    expect((await fetch(`${server.url}/research`, init)).status).toBe(413);
    expect(held(server, stubs)).toEqual(NOTHING);
  });

  it.each(['serper', 'jina'] as const)('bounds the cached responses of %s in bytes', async (service) => {
    const { server } = await start();
    const gate = server.gates[service];
    let calls = 0;
    const page = async () => {
      calls++;
      return Buffer.alloc(24 * 1024 ** 2);
    };
    const fetchPage = (cacheKey: string) => gate.run(page, { cacheKey });
    await fetchPage('a');
    await fetchPage('a');
    expect(calls).toBe(1);
    for (const key of ['b', 'c', 'd']) await fetchPage(key);
    expect(gate.stats().cache.size).toBe(2);
  });

  it('treats an empty x-tenant header as no tenant', async () => {
    const { server } = await start();
    const tenants: unknown[] = [];
    server.manager.hooks.on('request:queued', ({ tenant }) => tenants.push(tenant));
    for (const tenant of ['', '  ', 'acme']) {
      const response = await fetch(`${server.url}/research`, {
        method: 'POST',
        headers: { 'x-tenant': tenant },
        body: JSON.stringify({ question: 'Why?' }),
      });
      expect(response.status).toBe(200);
      await response.body?.cancel();
    }
    expect(tenants).toEqual([undefined, undefined, 'acme']);
  });

  it('rejects a request with 429 and Retry-After when its queue is full', async () => {
    const { server } = await start({
      config: { poolSize: 1, maxConcurrentRequests: 1, maxQueue: 0 },
    });
    const first = ask(server.url, 'first');
    await expect.poll(() => server.manager.stats().active).toBe(1);
    const { status, headers } = await ask(server.url, 'second');
    expect(status).toBe(429);
    expect(Number(headers.get('retry-after'))).toBeGreaterThanOrEqual(1);
    expect((await first).emitted.at(-1)?.event).toBe('done');
  });

  it.each(['plan', 'search', 'read', 'calculate', 'answer'])(
    'gives everything back when its client leaves during the step "%s"',
    async (step) => {
      const { server, stubs, lines } = await start();
      await ask(server.url, 'Why?', { leave: (emitted) => emitted.some(({ data }) => data.step === step) });
      await expect.poll(() => held(server, stubs)).toEqual(NOTHING);
      expect((await ask(server.url, 'And now?')).emitted.at(-1)?.event).toBe('done');
      expect([...lines.warnings, ...lines.errors]).toEqual([]);
    },
  );

  it('drains its running requests when it is shut down', async () => {
    const { server, stubs } = await start();
    const answers = ['a', 'b', 'c'].map((question) => ask(server.url, question));
    await expect.poll(() => server.manager.stats().active).toBe(3);
    await server.close({ timeoutMs: 60_000 });
    for (const { emitted } of await Promise.all(answers)) expect(emitted.at(-1)?.event).toBe('done');
    expect(held(server, stubs)).toEqual(NOTHING);
    await expect(ask(server.url, 'too late')).rejects.toThrow();
  });

  it(`serves ${STREAMS} streams, of which a third is abandoned at random, and ends with every count at zero`, async () => {
    const { server, stubs, lines } = await start({
      config: { poolSize: 10, maxConcurrentRequests: 20 },
    });
    let seed = 20_261_122;
    const random = (): number => {
      seed = (seed * 16_807) % 2_147_483_647;
      return seed / 2_147_483_647;
    };
    const clients = Array.from({ length: STREAMS }, async (_, i) => {
      const question = `Question ${i}`;
      if (i % 3 !== 0) return { stays: true, ...(await ask(server.url, question)) };
      // Some leave in the queue, some at a step, some in the middle of the answer.
      const afterEvents = Math.floor(random() * 20);
      const afterMs = Math.floor(random() * 3_000);
      const signal = i % 2 === 0 ? AbortSignal.timeout(afterMs) : undefined;
      const left = ask(server.url, question, {
        leave: (emitted) => emitted.length >= afterEvents,
        ...(signal === undefined ? {} : { signal }),
      });
      return { stays: false, ...(await left.catch(() => ({ status: 0, emitted: [] }))) };
    });
    const answers = await Promise.all(clients);

    const stayed = answers.filter(({ stays }) => stays);
    expect(stayed).toHaveLength((STREAMS / 3) * 2);
    for (const { status, emitted } of stayed) {
      expect(status).toBe(200);
      expect(emitted.at(-1)?.event).toBe('done');
    }
    await expect.poll(() => held(server, stubs)).toEqual(NOTHING);
    expect(server.manager.health()).toMatchObject({ active_requests: 0, queued_requests: 0 });
    expect(server.manager.stats().pool).toMatchObject({ rejected: expect.any(Number), revoked: 0 });
    expect(lines.errors).toEqual([]);
    expect(lines.warnings.filter((line) => !/ rejected after .*: aborted: /.test(line))).toEqual([]);
    expect(stubs.llm.stats().peakInFlight).toBeLessThanOrEqual(16);
    expect(stubs.e2b.peakSandboxes).toBeLessThanOrEqual(10);
    // Nothing of those who left is still at work for them.
    const calls = stubs.llm.stats().calls;
    await sleep(100);
    expect(stubs.llm.stats().calls).toBe(calls);
  });
});
