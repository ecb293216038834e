import OpenAI, { APIError, APIUserAbortError } from 'openai';
import { bearer, type GateFetchOptions, longFetch, openAiPreset } from 'pipeline-pool';
import { type Fault, StubLlm } from 'pipeline-pool/testing';
import { Agent, fetch as undiciFetch } from 'undici';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { hastyGate, type LimitedGateOptions } from '../support/gates.js';
import { until } from '../support/promises.js';

const QUESTION = { model: 'm', messages: [{ role: 'user' as const, content: 'why?' }] };
const STREAM = { ...QUESTION, stream: true as const };
const WHOLE = { ...QUESTION, stream: false as const };
const SAID = 'This is the answer of a stub to: why?';

const llm = new StubLlm({ perTokenMs: 2 });
beforeAll(() => llm.start());
afterAll(() => llm.stop());
afterEach(async () => {
  await until(() => llm.stats().inFlight === 0);
  llm.resetStats();
});

/** The `openai` SDK behind a gate of two permits. */
function openaiBehind(options: LimitedGateOptions = {}, fetchOptions: GateFetchOptions = {}) {
  const { gate, of } = hastyGate({ ...openAiPreset(), maxConcurrent: 2, ...options });
  const openai = new OpenAI({
    baseURL: llm.baseUrl,
    apiKey: 'unused',
    maxRetries: 0,
    fetch: gate.fetch({ authorize: bearer, ...fetchOptions }),
  });
  const expectAllFree = async (): Promise<void> => {
    await until(() => gate.stats().running === 0 && gate.stats().limiter?.active === 0);
    await until(() => llm.stats().inFlight === 0);
  };
  return { gate, openai, of, expectAllFree };
}

async function textOf(stream: AsyncIterable<OpenAI.ChatCompletionChunk>): Promise<string> {
  let said = '';
  for await (const chunk of stream) said += chunk.choices[0]?.delta.content ?? '';
  return said;
}

describe('the openai SDK behind gate.fetch', () => {
  it('never has more streams at the server than the limit', async () => {
    const { openai, expectAllFree, of } = openaiBehind();
    const said = await Promise.all(
      Array.from({ length: 8 }, async () => textOf(await openai.chat.completions.create(STREAM))),
    );
    expect(said).toEqual(Array(8).fill(SAID));
    const { calls, peakInFlight } = llm.stats();
    expect({ calls, peakInFlight }).toEqual({ calls: 8, peakInFlight: 2 });
    expect(of('call:finished').map(({ outcome }) => outcome)).toEqual(Array(8).fill('ok'));
    await expectAllFree();
  });

  it('frees the permits of streams that are left, in any way', async () => {
    const { openai, expectAllFree } = openaiBehind({}, { bodyIdleTimeoutMs: 50 });
    for (let i = 0; i < 3; i++) llm.faultNext({ type: 'stall' });
    // By `break`, by an abort, and by not reading it at all.
    for await (const _ of await openai.chat.completions.create(STREAM)) break;
    const aborted = await openai.chat.completions.create(STREAM);
    aborted.controller.abort();
    await expectAllFree();
    await openai.chat.completions.create(STREAM);
    await expectAllFree();
    expect(await textOf(await openai.chat.completions.create(STREAM))).toBe(SAID);
    await expectAllFree();
  });

  it('honors an abort before, while and after the response', async () => {
    const { openai, expectAllFree } = openaiBehind();
    llm.faultNext({ type: 'no-headers' });
    const controller = new AbortController();
    const call = openai.chat.completions.create(STREAM, { signal: controller.signal });
    await until(() => llm.stats().inFlight === 1);
    controller.abort();
    await expect(call).rejects.toThrow(APIUserAbortError);
    await expectAllFree();
  });

  it('rotates the keys of the gate, whatever key the client has', async () => {
    const { openai, gate, expectAllFree } = openaiBehind({ keys: ['key-a', 'key-b'] });
    llm.faultNext({ type: 'status', status: 429, retryAfter: { as: 'seconds', ms: 60_000 } });
    for (let i = 0; i < 3; i++) {
      const { choices } = await openai.chat.completions.create(WHOLE);
      expect(choices[0]?.message.content).toBe(SAID);
    }
    const { 'key-a': first, 'key-b': second, unused } = llm.stats().byKey;
    expect([first?.calls, second?.calls, unused?.calls ?? 0]).toEqual([1, 3, 0]);
    expect(gate.stats().keys.map(({ state }) => state)).toEqual(['cooldown', 'ready']);
    await expectAllFree();
  });

  it.each<[string, Fault]>([
    ['a failure', { type: 'status', status: 500 }],
    ['an error under 200', { type: 'envelope', status: 503 }],
    ['a connection that is reset', { type: 'reset', when: 'before-headers' }],
    ['a stream that begins with an error', { type: 'stream-error', status: 503 }],
  ])('does not see %s that is retried', async (_, fault) => {
    const { openai, of, expectAllFree } = openaiBehind();
    llm.faultNext(fault);
    if (fault.type === 'envelope')
      expect((await openai.chat.completions.create(WHOLE)).choices[0]?.message.content).toBe(SAID);
    else expect(await textOf(await openai.chat.completions.create(STREAM))).toBe(SAID);
    expect(of('call:retried')).toHaveLength(1);
    await expectAllFree();
  });

  it('throws its own typed error for the last failure of the service', async () => {
    const { openai, expectAllFree } = openaiBehind({ retry: { attempts: 1 } });
    llm.faultNext({ type: 'status', status: 400 });
    const error = await openai.chat.completions.create(WHOLE).catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(APIError);
    expect(error).toMatchObject({ status: 400, type: expect.any(String) });
    await expectAllFree();
  });

  it.each([0, 2])('asks a gate that rejects only once, with %i retries of its own', async (maxRetries) => {
    const { gate, openai } = openaiBehind();
    await gate.close();
    const error = await openai.chat.completions
      .create(WHOLE, { maxRetries })
      .catch((reason: unknown) => reason);
    expect(error).toMatchObject({ status: 503, code: 'ERR_GATE_CLOSED', type: 'pipeline_pool' });
    expect((error as APIError).headers?.get('retry-after')).toBe('1');
  });

  it('corrects the weight of whole responses and of streams', async () => {
    const tokens = 1_000_000;
    const { gate, openai } = openaiBehind(openAiPreset({ tokensPerMinute: tokens }));
    const used = () => Math.round((1 - gate.stats().keys[0]!.free) * tokens);
    const { usage } = await openai.chat.completions.create(WHOLE);
    expect(used()).toBe(usage?.total_tokens);
    const stream = await openai.chat.completions.create({
      ...STREAM,
      stream_options: { include_usage: true },
    });
    await textOf(stream);
    await until(() => gate.stats().running === 0);
    expect(used()).toBe(2 * usage!.total_tokens);
  });

  it('finds out once whether files can be uploaded, without a call through the gate', async () => {
    const sent: string[] = [];
    const fetch: typeof globalThis.fetch = async (input, init) => {
      if (String(input).startsWith('data:')) return globalThis.fetch(input, init);
      sent.push(await new Response(init?.body as FormData).text());
      return Response.json({ id: 'file-1' });
    };
    const { openai, gate } = openaiBehind({}, { fetch });
    await openai.files.create({ file: new File(['content'], 'a.jsonl'), purpose: 'batch' });
    expect(sent).toEqual([expect.stringMatching(/a\.jsonl.*content/s)]);
    expect(gate.stats()).toMatchObject({ calls: 1, attempts: 1 });
  });

  it('may have a longFetch behind the gate', async () => {
    const { openai, expectAllFree } = openaiBehind({}, { fetch: longFetch({ fetch: undiciFetch, Agent }) });
    expect(await textOf(await openai.chat.completions.create(STREAM))).toBe(SAID);
    await expectAllFree();
  });
});
