import { type IsolatedStubServices, type StubCall, startStubServices } from 'pipeline-pool/testing';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { until } from '../support/promises.js';

// From source, the program of the stubs is TypeScript: a child process takes the flags of this one.
beforeAll(() => void process.execArgv.push('--import', 'tsx'));
afterAll(() => void process.execArgv.splice(-2));

const chat = (services: IsolatedStubServices, content: string, signal?: AbortSignal) =>
  fetch(`${services.llm.baseUrl}/chat/completions`, {
    method: 'POST',
    headers: { authorization: 'Bearer key-1' },
    body: JSON.stringify({ model: 'm', messages: [{ role: 'user', content }] }),
    ...(signal === undefined ? {} : { signal }),
  });

describe('isolated stub services', () => {
  it('answer, fail, limit and count as those of this process do', async () => {
    await using services = await startStubServices({
      isolated: true,
      llm: { rate: { limit: 1, perMs: 60_000 } },
    });
    const { llm, serper, jina, e2b } = services;
    await llm.faultNext({ type: 'status', status: 503 });
    const fromMs = performance.now();
    const statuses = [];
    for (const content of ['first', 'second', 'third']) statuses.push((await chat(services, content)).status);
    expect(statuses).toEqual([503, 200, 429]);
    expect(await llm.stats()).toMatchObject({
      calls: 3,
      inFlight: 0,
      statuses: { 200: 1, 429: 1, 503: 1 },
      byKey: { 'key-1': { calls: 3 } },
    });
    expect(await llm.peakStartsPer(60_000, { key: 'key-1' })).toBe(3);
    const calls = await llm.calls();
    expect(calls[0]).toMatchObject({
      fault: 'status',
      body: { messages: [{ content: 'first' }] },
      end: 'answered',
    });
    expect(calls[0]?.query.size).toBe(0);
    // On the clock of this process, up to what the clocks of two processes may differ.
    for (const { startedAtMs } of calls) {
      expect(startedAtMs).toBeGreaterThan(fromMs - 50);
      expect(startedAtMs).toBeLessThan(performance.now() + 50);
    }
    expect([serper.name, jina.timeScale, e2b.connection.apiUrl]).toEqual(['StubSerper', 1, e2b.url]);
    expect(await serper.creditsLeft('key-1')).toBe(Number.POSITIVE_INFINITY);
    expect(await e2b.sandboxes()).toEqual([]);
    await services.resetStats();
    expect((await llm.stats()).calls).toBe(0);
  });

  it('run the script of a reply here, with a signal that aborts when the client leaves', async () => {
    let held: StubCall | undefined;
    const uncloneable = Object.assign(() => {}, { content: 'x' });
    await using services = await startStubServices({
      isolated: true,
      llm: {
        reply: ({ messages }, call) => {
          if (messages[0]?.content === 'fail') throw new Error('no reply');
          if (messages[0]?.content === 'uncloneable') return { toolCalls: [uncloneable as never] };
          if (messages[0]?.content === 'answer') return `for ${call.key}`;
          held = call;
          return new Promise(() => {});
        },
      },
    });
    expect(await (await chat(services, 'answer')).text()).toContain('for key-1');
    expect(await (await chat(services, 'fail')).text()).toContain('A script of StubLlm failed: no reply');
    expect(await (await chat(services, 'uncloneable')).text()).toContain('could not be cloned');
    const leaving = new AbortController();
    const left = chat(services, 'hold', leaving.signal).catch(() => 'left');
    await until(() => held !== undefined);
    expect(held?.signal.aborted).toBe(false);
    leaving.abort();
    await until(() => held?.signal.aborted === true);
    expect(await left).toBe('left');
  });

  it('run the script of an execution here, with its sandbox as it is then', async () => {
    let given: unknown;
    await using services = await startStubServices({
      isolated: true,
      e2b: {
        execute: (code, sandbox) => {
          given = sandbox;
          return { text: `${code} in ${sandbox.sandboxId}` };
        },
      },
    });
    const { url, sandboxes } = services.e2b;
    const post = (path: string, body: object, headers: Record<string, string>) =>
      fetch(`${url}${path}`, { method: 'POST', body: JSON.stringify(body), headers });
    const created = await post('/sandboxes', { templateID: 't', metadata: { a: 'b' } }, { 'x-api-key': 'k' });
    const { sandboxID } = (await created.json()) as { sandboxID: string };
    const run = await post('/execute', { code: 'x' }, { 'e2b-sandbox-id': sandboxID });
    expect(await run.text()).toContain(`x in ${sandboxID}`);
    expect(given).toMatchObject({ templateId: 't', metadata: { a: 'b' }, state: 'running' });
    expect([given]).toEqual(await sandboxes());
  });

  it('reject what they reject in this process, and functions that cannot cross', async () => {
    await expect(startStubServices({ isolated: true, serper: { credits: -1 } })).rejects.toThrow(RangeError);
    await expect(startStubServices({ isolated: true, llm: { latencyMs: () => 1 } })).rejects.toThrow(
      'Expected `llm.latencyMs` to be no function',
    );
    await using services = await startStubServices({ isolated: true });
    await expect(services.jina.faultNext({ type: 'status', status: 99 })).rejects.toThrow('`fault.status`');
  });

  it('leave nothing behind when they stop, and answer no more', async () => {
    const services = await startStubServices({ isolated: true });
    const asked = services.llm.stats().catch((error: unknown) => error);
    await services.stop();
    await services.stop();
    await asked;
    await expect(services.llm.stats()).rejects.toThrow('The stub services are stopped');
    await expect(fetch(services.llm.url)).rejects.toThrow('fetch failed');
  });
});
