import { findPoolError, type RequestOptions, toHttpStatus } from 'pipeline-pool';
import { StubSerper } from 'pipeline-pool/testing';
import { afterEach, describe, expect, it } from 'vitest';
import { createResearch } from '../../examples/frameworks/mcp/main.js';
import { startToolServer } from './mcp-server.js';
import { linesOfHostCode } from './support.js';

const KEY = 'search-key';
const toClose: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of toClose.splice(0).reverse()) await close();
});

async function setUp(latencyMs = 20) {
  const serper = await new StubSerper({ keys: [KEY], latencyMs }).start();
  toClose.push(() => serper.stop());
  const server = await startToolServer(serper.url, KEY);
  toClose.push(server.stop);
  const research = createResearch(server);
  toClose.push(() => research.manager.shutdown({ timeoutMs: 0 }));
  const answer = (question: string, options?: RequestOptions) =>
    research.manager.run(question, (context) => research.answer(context, question), options);
  const isIdle = () =>
    expect.poll(() => [research.search.stats().running, serper.stats().inFlight]).toEqual([0, 0]);
  return { serper, server, research, answer, isIdle };
}

describe('mcp', () => {
  it('is at most 40 lines of host code beside the imports', () => {
    expect(linesOfHostCode('examples/frameworks/mcp/main.ts')).toBeLessThanOrEqual(40);
  });

  it('keeps to the limit, and mixes no answers', async () => {
    const { serper, server, research, answer, isIdle } = await setUp();
    const tasks = Array.from({ length: 20 }, (_, i) => `question-${i}x`);
    const answers = await Promise.all(tasks.map((question) => answer(question)));
    for (const [i, text] of answers.entries())
      expect(new Set(text.match(/question-\w+/g))).toEqual(new Set([tasks[i]]));
    expect(serper.stats()).toMatchObject({ calls: 20, statuses: { 200: 20 }, disconnects: 0 });
    expect(serper.stats().peakInFlight).toBeLessThanOrEqual(2);
    expect(research.search.stats()).toMatchObject({ calls: 20, attempts: 20 });
    expect(server.sessions.size).toBe(10);
    await isIdle();
    await research.manager.shutdown();
    expect(server.sessions.size).toBe(0);
  });

  it('retries a tool that its service rejects for its rate', async () => {
    const { serper, answer, isIdle } = await setUp();
    serper.faultNext({ type: 'status', status: 429 });
    expect(await answer('question-a')).toContain('question-a');
    expect(serper.stats().statuses).toEqual({ 200: 1, 429: 1 });
    await isIdle();
  });

  it('returns what a tool says that fails', async () => {
    const { serper, answer, isIdle } = await setUp();
    serper.faultNext({ type: 'status', status: 404 });
    expect(await answer('question-a')).toMatch(/^404 /);
    expect(serper.stats().calls).toBe(1);
    await isIdle();
  });

  it('ends the tool in progress when its request is aborted', async () => {
    const { serper, answer, isIdle } = await setUp(600_000);
    const controller = new AbortController();
    const aborted = answer('question-a', { signal: controller.signal });
    await expect.poll(() => serper.stats().inFlight).toBe(1);
    controller.abort(new Error('the client left'));
    await expect(aborted).rejects.toThrow('the client left');
    await isIdle();
    expect(serper.stats()).toMatchObject({ calls: 1, disconnects: 1 });
  });

  it('leaves the error of a gate to findPoolError and toHttpStatus', async () => {
    const { serper, research, answer } = await setUp();
    await research.search.close();
    const error = await answer('question-a').catch((thrown: unknown) => thrown);
    expect(findPoolError(error)?.code).toBe('ERR_GATE_CLOSED');
    expect(toHttpStatus(error)).toMatchObject({ status: 503 });
    expect(serper.stats().calls).toBe(0);
  });

  it('leaves a server that is gone to toHttpStatus', async () => {
    const { server, answer, isIdle } = await setUp();
    await answer('question-a');
    server.stop();
    const error = await answer('question-b').catch((thrown: unknown) => thrown);
    expect(findPoolError(error)).toBeUndefined();
    expect(toHttpStatus(error)).toMatchObject({ status: 502 });
    await isIdle();
  });
});
