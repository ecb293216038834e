import Anthropic from '@anthropic-ai/sdk';
import { StubLlm } from 'pipeline-pool/testing';
import { afterEach, describe, expect, it, vi } from 'vitest';
import type { Observed } from '../../src/gate/classify.js';
import {
  anthropicPreset,
  classifyAnthropic,
  classifyGemini,
  geminiPreset,
  openAiPreset,
} from '../../src/gate/llm-presets.js';
import { ServiceGate } from '../../src/gate/service-gate.js';
import { useFakeTimers } from '../support/fake-timers.js';

const response = (status: number, body: unknown, headers = {}): Observed => ({
  kind: 'result',
  value: Response.json(body, { status, headers }),
});
const page = (status: number): Observed => ({ kind: 'result', value: new Response('<html>', { status }) });
const first = (value: unknown): Observed => ({ kind: 'first-item', value });
const thrown = (fields: object, message = 'x'): Observed => ({
  kind: 'error',
  error: Object.assign(new Error(message), fields),
});

const anthropic = (type: string, message = 'x', details?: object) => ({
  type: 'error',
  error: { type, message, ...(details && { details }) },
  request_id: 'req_1',
});
const google = (code: number, status: string, details: readonly object[] = [], message = 'x') => ({
  error: { code, status, message, details },
});
const quota = (quotaId: string) => ({
  '@type': 'type.googleapis.com/google.rpc.QuotaFailure',
  violations: [{ quotaMetric: 'generativelanguage.googleapis.com/x', quotaId }],
});
const retryIn = (retryDelay: string) => ({ '@type': 'type.googleapis.com/google.rpc.RetryInfo', retryDelay });
const reason = (name: string) => ({ '@type': 'type.googleapis.com/google.rpc.ErrorInfo', reason: name });

describe('classifyAnthropic', () => {
  it.each<[string, Observed, object | undefined]>([
    [
      'a rate limit, with its time',
      response(429, anthropic('rate_limit_error'), { 'retry-after': '7' }),
      { class: 'rate-limited', status: 429, retryAfterMs: 7_000 },
    ],
    [
      'overload: of the service, not of the key',
      response(529, anthropic('overloaded_error')),
      { class: 'retryable', status: 529 },
    ],
    [
      'overload as the first event of a stream',
      first(anthropic('overloaded_error')),
      { class: 'retryable', status: 529 },
    ],
    [
      'a rate limit as the first event',
      first(anthropic('rate_limit_error')),
      { class: 'rate-limited', status: 429 },
    ],
    ['a wrong key', response(401, anthropic('authentication_error')), { class: 'unauthorized', status: 401 }],
    [
      'a key without permission',
      response(403, anthropic('permission_error')),
      { class: 'unauthorized', status: 403 },
    ],
    ['a page of an intermediary', page(403), { class: 'retryable', status: 403 }],
    ['JSON of an intermediary', response(401, { error: 'denied' }), { class: 'retryable', status: 401 }],
    [
      'a billing problem',
      response(402, anthropic('billing_error')),
      { class: 'quota-exhausted', status: 402 },
    ],
    [
      'an empty balance under 400',
      response(
        400,
        anthropic('invalid_request_error', 'Your credit balance is too low to access the Anthropic API.'),
      ),
      { class: 'quota-exhausted', status: 400 },
    ],
    [
      'a spend limit under 400',
      response(400, anthropic('invalid_request_error', 'You have reached your specified API usage limits.')),
      { class: 'quota-exhausted', status: 400 },
    ],
    [
      'a spend limit under 429',
      response(429, anthropic('rate_limit_error', 'x', { error_code: 'enforced_spend_limit_reached' })),
      { class: 'quota-exhausted', status: 429 },
    ],
    ['a wrong request', response(400, anthropic('invalid_request_error')), { class: 'fatal', status: 400 }],
    [
      'advice against a retry',
      response(500, anthropic('api_error'), { 'x-should-retry': 'false' }),
      { class: 'retryable', status: 500, retry: false },
    ],
    ['a stream without an event', { kind: 'no-item' }, { class: 'retryable' }],
    ['a message', response(200, { type: 'message' }), undefined],
    ['the first event of a message', first({ type: 'message_start' }), undefined],
    ['an error of the host', thrown({}), undefined],
  ])('knows %s', async (_, observed, judgement) => {
    expect(await classifyAnthropic(observed)).toEqual(judgement);
  });

  it('reads the time from the reset of the limit that is used up', async () => {
    useFakeTimers({ toFake: ['Date'], now: Date.UTC(2026, 0) });
    const headers = {
      'anthropic-ratelimit-requests-remaining': '3',
      'anthropic-ratelimit-requests-reset': new Date(Date.now() + 50_000).toISOString(),
      'anthropic-ratelimit-input-tokens-remaining': '0',
      'anthropic-ratelimit-input-tokens-reset': new Date(Date.now() + 20_000).toISOString(),
    };
    const judgement = await classifyAnthropic(response(429, anthropic('rate_limit_error'), headers));
    vi.useRealTimers();
    expect(judgement?.retryAfterMs).toBe(20_000);
  });
});

describe('anthropicPreset, with the SDK', () => {
  const running: StubLlm[] = [];
  afterEach(() => Promise.all(running.splice(0).map((llm) => llm.stop())));
  const request = {
    model: 'm',
    max_tokens: 20,
    messages: [{ role: 'user' as const, content: 'one two three' }],
  };

  async function claude(tokensPerMinute = 1_000) {
    const llm = await new StubLlm({ reply: () => 'four five' }).start();
    running.push(llm);
    const client = new Anthropic({ baseURL: llm.url, apiKey: 'any', maxRetries: 0 });
    const gate = new ServiceGate({
      name: 'claude',
      ...anthropicPreset({ tokensPerMinute }),
      retry: { baseMs: 0 },
      cooldown: { baseMs: 1 },
    });
    return { llm, client, gate };
  }

  it('counts the tokens of a message, and of a stream', async () => {
    const { client, gate } = await claude();
    await gate.run(() => client.messages.create(request));
    expect(gate.stats().keys[0]?.free).toBeCloseTo(0.995);
    for await (const _ of gate.stream(() => client.messages.create({ ...request, stream: true })));
    expect(gate.stats().keys[0]?.free).toBeCloseTo(0.99);
  });

  it.each([
    ['before a stream', { type: 'status', status: 529 }],
    ['in its first event', { type: 'stream-error', status: 529 }],
  ] as const)('retries overload %s, unseen by the reader', async (_, fault) => {
    const { llm, client, gate } = await claude();
    llm.faultNext(fault);
    const types = [];
    for await (const { type } of gate.stream(() => client.messages.create({ ...request, stream: true }))) {
      types.push(type);
    }
    expect(types[0]).toBe('message_start');
    expect(gate.stats()).toMatchObject({ attempts: 2, finished: { ok: 1 } });
  });
});

describe('classifyGemini', () => {
  it.each<[string, Observed, object | undefined]>([
    [
      'a limit per minute, with the time of its details',
      response(
        429,
        google(429, 'RESOURCE_EXHAUSTED', [
          quota('GenerateRequestsPerMinutePerProjectPerModel'),
          retryIn('12s'),
        ]),
      ),
      { class: 'rate-limited', status: 429, retryAfterMs: 12_000 },
    ],
    [
      'a limit per day, whose time is too short',
      response(
        429,
        google(429, 'RESOURCE_EXHAUSTED', [
          quota('GenerateRequestsPerDayPerProjectPerModel-FreeTier'),
          retryIn('12s'),
        ]),
      ),
      { class: 'quota-exhausted', status: 429 },
    ],
    ['an overloaded model', response(503, google(503, 'UNAVAILABLE')), { class: 'retryable', status: 503 }],
    [
      'a wrong key, under 400',
      response(400, google(400, 'INVALID_ARGUMENT', [reason('API_KEY_INVALID')])),
      { class: 'unauthorized', status: 400 },
    ],
    ['a wrong request', response(400, google(400, 'INVALID_ARGUMENT')), { class: 'fatal', status: 400 }],
    [
      'a key that is blocked',
      response(403, google(403, 'PERMISSION_DENIED', [], 'Your API key was reported as leaked.')),
      { class: 'unauthorized', status: 403 },
    ],
    [
      'a project without the API',
      response(403, google(403, 'PERMISSION_DENIED', [reason('SERVICE_DISABLED')])),
      { class: 'unauthorized', status: 403 },
    ],
    [
      "a file that is not the caller's",
      response(403, google(403, 'PERMISSION_DENIED', [], 'You do not have permission to access the File.')),
      { class: 'client-error', status: 403 },
    ],
    ['a page of an intermediary', page(403), { class: 'retryable', status: 403 }],
    [
      'an error in a list',
      response(429, [google(429, 'RESOURCE_EXHAUSTED', [retryIn('3.5s')])]),
      { class: 'rate-limited', status: 429, retryAfterMs: 3_500 },
    ],
    [
      'an error of its SDK',
      thrown(
        { name: 'ApiError', status: 429 },
        JSON.stringify(google(429, 'RESOURCE_EXHAUSTED', [retryIn('2s')])),
      ),
      { class: 'rate-limited', status: 429, retryAfterMs: 2_000 },
    ],
    [
      'an error of its SDK about a stream, with the body as text in it',
      thrown(
        { name: 'ApiError', status: 429 },
        JSON.stringify({
          error: {
            message: JSON.stringify(google(429, 'RESOURCE_EXHAUSTED', [quota('RequestsPerDay')])),
            code: 429,
            status: 'Too Many Requests',
          },
        }),
      ),
      { class: 'quota-exhausted', status: 429 },
    ],
    ['an error as the first chunk', first(google(503, 'UNAVAILABLE')), { class: 'retryable', status: 503 }],
    ['a chunk', first({ candidates: [] }), undefined],
    ['a response', response(200, { candidates: [] }), undefined],
    ['an error of the host', thrown({}), undefined],
  ])('knows %s', async (_, observed, judgement) => {
    expect(await classifyGemini(observed)).toEqual(judgement);
  });
});

describe('the usage of LLM presets', () => {
  it.each<[string, readonly unknown[], number]>([
    ['a message of Anthropic', [{ usage: { input_tokens: 100, output_tokens: 20 } }], 120],
    [
      'a prompt that is written to the cache',
      [
        {
          usage: {
            input_tokens: 1,
            cache_creation_input_tokens: 9,
            cache_read_input_tokens: 900,
            output_tokens: 5,
          },
        },
      ],
      15,
    ],
    [
      'a stream of Anthropic',
      [
        { type: 'message_start', message: { usage: { input_tokens: 100, output_tokens: 1 } } },
        { type: 'content_block_delta' },
        { type: 'message_delta', usage: { output_tokens: 20 } },
      ],
      120,
    ],
    [
      'a stream that counts its request again, and its response twice',
      [
        { type: 'message_start', message: { usage: { input_tokens: 100, output_tokens: 1 } } },
        { type: 'message_delta', usage: { input_tokens: 110, output_tokens: 10 } },
        { type: 'message_delta', usage: { input_tokens: 110, output_tokens: 20 } },
      ],
      130,
    ],
  ])('counts %s', (_, items, tokens) => {
    const { usage } = anthropicPreset();
    expect(
      items.reduce<number | undefined>((previous, item) => usage?.(item, previous) ?? previous, undefined),
    ).toBe(tokens);
  });

  it.each([
    ['a chat completion', { usage: { prompt_tokens: 100, completion_tokens: 20, total_tokens: 120 } }, 120],
    ['a response', { usage: { input_tokens: 100, output_tokens: 20 } }, 120],
    ['an event', { response: { usage: { input_tokens: 100, output_tokens: 20, total_tokens: 120 } } }, 120],
    ['a chunk without it', { choices: [], usage: null }, undefined],
  ])('counts the tokens of %s of OpenAI', (_, value, tokens) => {
    expect(openAiPreset().usage?.(value, undefined)).toBe(tokens);
  });

  it('counts a response of Gemini, and its limit of tokens in either place', () => {
    const { usage, estimate } = geminiPreset();
    expect(usage?.({ usageMetadata: { promptTokenCount: 4, totalTokenCount: 9 } }, undefined)).toBe(9);
    expect(usage?.({ candidates: [] }, undefined)).toBeUndefined();
    const contents = [{ parts: [{ text: 'x'.repeat(40) }, { inlineData: { data: 'x'.repeat(400) } }] }];
    expect(estimate?.({ contents, generationConfig: { maxOutputTokens: 7 } })).toBe(17);
    expect(estimate?.({ contents, config: { maxOutputTokens: 7 } })).toBe(17);
  });

  it('takes limits per minute', () => {
    for (const preset of [openAiPreset, anthropicPreset, geminiPreset]) {
      expect(preset({ requestsPerMinute: 5, tokensPerMinute: 1_000 }).rate).toEqual([
        { limit: 5, perMs: 60_050 },
        { limit: 1_000, perMs: 60_050, unit: 'weight' },
      ]);
      expect(() => preset({ requestsPerSecond: 5 } as never)).toThrow('Unknown option `requestsPerSecond`');
    }
  });
});
