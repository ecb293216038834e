import { AuthenticationError, RateLimitError, TimeoutError } from '@e2b/code-interpreter';
import OpenAI from 'openai';
import { afterEach, describe, expect, it, vi } from 'vitest';
import type { Judgement, Observed } from '../../src/gate/outcome.js';
import {
  classifyE2b,
  classifyJina,
  classifyOpenAi,
  classifySerper,
  e2bPreset,
  jinaPreset,
  openAiPreset,
  serperPreset,
} from '../../src/gate/presets.js';
import { ServiceGate } from '../../src/gate/service-gate.js';

afterEach(() => {
  vi.restoreAllMocks();
});

const response = (status: number, body: unknown, headers = {}): Observed => ({
  kind: 'result',
  value: Response.json(body, { status, headers }),
});
const error = (fields: object, message = 'x'): Observed => ({
  kind: 'error',
  error: Object.assign(new Error(message), fields),
});

describe('the presets', () => {
  it('are options that a gate takes', () => {
    for (const preset of [
      openAiPreset(),
      openAiPreset({ requestsPerMinute: 500, tokensPerMinute: 200_000 }),
      serperPreset(),
      serperPreset({ perSecond: 300 }),
      jinaPreset({ perMinute: 5_000 }),
      e2bPreset(),
      e2bPreset({ sandboxes: 100, createsPerSecond: 5 }),
    ]) {
      expect(new ServiceGate({ name: 'service', ...preset }).stats().keys).toHaveLength(1);
    }
    expect(openAiPreset({ requestsPerMinute: 500, tokensPerMinute: 200_000 }).rate).toEqual([
      { limit: 500, perMs: 60_025 },
      { limit: 200_000, perMs: 60_025, unit: 'weight' },
    ]);
    expect(e2bPreset()).toMatchObject({ maxConcurrent: 20, rate: [{ limit: 1, perMs: 1_025 }] });
  });

  it.each<[string, () => unknown, string]>([
    [
      'openAiPreset',
      () => openAiPreset({ requestsPerSecond: 5 } as never),
      'Unknown option `requestsPerSecond`',
    ],
    ['openAiPreset', () => openAiPreset({ tokensPerMinute: 0 }), '`tokensPerMinute`'],
    ['openAiPreset', () => openAiPreset({ requestsPerMinute: 1.5 }), '`requestsPerMinute`'],
    ['serperPreset', () => serperPreset({ perMinute: 5 } as never), 'Unknown option `perMinute`'],
    ['serperPreset', () => serperPreset({ perSecond: Number.NaN }), '`perSecond`'],
    ['jinaPreset', () => jinaPreset({ perSecond: 5 } as never), 'Unknown option `perSecond`'],
    ['jinaPreset', () => jinaPreset({ perMinute: '9' as never }), '`perMinute`'],
    ['e2bPreset', () => e2bPreset({ createPerSecond: 5 } as never), 'Unknown option `createPerSecond`'],
    ['e2bPreset', () => e2bPreset({ sandboxes: 0 }), '`sandboxes`'],
    ['e2bPreset', () => e2bPreset({ createsPerSecond: -1 }), '`createsPerSecond`'],
  ])('%s refuses a wrong option by its own name', (_, make, message) => {
    expect(make).toThrow(message);
  });

  it('leave a body for the caller to read', async () => {
    const gate = new ServiceGate({ name: 'search', ...serperPreset(), retry: { attempts: 1 } });
    const got = await gate.run(() => Response.json({ message: 'Missing query' }, { status: 400 }));
    await expect(got.json()).resolves.toEqual({ message: 'Missing query' });
  });
});

describe('classifyOpenAi', () => {
  const quota = { error: { message: 'You exceeded your current quota', code: 'insufficient_quota' } };

  it('knows a used-up quota from a full minute, in a body or in an error', async () => {
    await expect(classifyOpenAi(response(429, quota))).resolves.toEqual({ class: 'key-spent', status: 429 });
    await expect(
      classifyOpenAi(response(429, { error: { code: 'rate_limit_exceeded' } }, { 'retry-after': '2' })),
    ).resolves.toEqual({ class: 'other-key', status: 429, retryAfterMs: 2_000 });
    await expect(classifyOpenAi(error({ status: 429, ...quota.error }))).resolves.toMatchObject({
      class: 'key-spent',
    });
  });

  it('heeds x-should-retry: false for the call alone: the key rests as long as was said', async () => {
    const headers = { 'x-should-retry': 'false', 'retry-after': '60' };
    await expect(classifyOpenAi(response(429, {}, headers))).resolves.toEqual({
      class: 'other-key',
      status: 429,
      retryAfterMs: 60_000,
      retry: false,
    });
    await expect(
      classifyOpenAi(error({ status: 503, headers: new Headers({ 'x-should-retry': 'false' }) })),
    ).resolves.toEqual({ class: 'wait', status: 503, retry: false });
    await expect(classifyOpenAi(response(409, {}, headers))).resolves.toMatchObject({ class: 'stop' });
    await expect(classifyOpenAi(response(503, {}, { 'x-should-retry': 'true' }))).resolves.toEqual({
      class: 'wait',
      status: 503,
    });
  });

  it('does not heed it where the key is lost: another may do', async () => {
    const headers = { 'x-should-retry': 'false' };
    for (const [status, body, said] of [
      [401, {}, 'key-dead'],
      [402, {}, 'key-spent'],
      [429, quota, 'key-spent'],
    ] as const) {
      await expect(classifyOpenAi(response(status, body, headers))).resolves.toEqual({ class: said, status });
    }
  });

  it('tries a conflict again', async () => {
    await expect(classifyOpenAi(response(409, {}))).resolves.toEqual({ class: 'wait', status: 409 });
  });

  it('finds the error under 200, and in the first event of a stream', async () => {
    const full = { object: 'error', error: { message: 'The request queue is full.', code: 503 } };
    await expect(classifyOpenAi(response(200, full))).resolves.toEqual({ class: 'wait', status: 503 });
    await expect(classifyOpenAi({ kind: 'result', value: full })).resolves.toEqual({
      class: 'wait',
      status: 503,
    });
    await expect(classifyOpenAi({ kind: 'first-item', value: full })).resolves.toEqual({
      class: 'wait',
      status: 503,
    });
    await expect(
      classifyOpenAi({ kind: 'first-item', value: { error: { message: 'try again' } } }),
    ).resolves.toEqual({ class: 'wait' });
    await expect(classifyOpenAi({ kind: 'result', value: quota })).resolves.toEqual({ class: 'key-spent' });
  });

  /** What the SDK throws, or gives, when a stream begins with this event. */
  async function thrownFor(event: object, headers: Record<string, string> = {}): Promise<unknown> {
    const openai = new OpenAI({
      apiKey: 'none',
      maxRetries: 0,
      fetch: async () =>
        new Response(`data: ${JSON.stringify(event)}\n\n`, {
          headers: { 'content-type': 'text/event-stream', ...headers },
        }),
    });
    const stream = await openai.chat.completions.create({ model: 'm', messages: [], stream: true });
    try {
      for await (const _ of stream) throw new Error('there should be no item');
    } catch (thrown) {
      return thrown;
    }
    throw new Error('there should be an error');
  }

  it.each<[string, object, Judgement]>([
    ['a number', { message: 'The request queue is full.', code: 503 }, { class: 'wait', status: 503 }],
    ['a number in a string', { code: '429' }, { class: 'other-key', status: 429 }],
    [
      'a full minute',
      { message: 'Rate limit reached', type: 'requests', code: 'rate_limit_exceeded' },
      { class: 'other-key', status: 429 },
    ],
    [
      'a refused key',
      { type: 'invalid_request_error', code: 'invalid_api_key' },
      { class: 'key-dead', status: 401 },
    ],
    [
      "a call that is the host's fault",
      { type: 'invalid_request_error', code: 'context_length_exceeded' },
      { class: 'stop', status: 400 },
    ],
    ['a used-up quota', { type: 'insufficient_quota', code: 'insufficient_quota' }, { class: 'key-spent' }],
    [
      'anything else',
      { message: 'The server had an error', type: 'server_error', code: null },
      { class: 'wait' },
    ],
  ])(
    'reads an error without a status that tells of %s, thrown by the SDK, in an event and in a body',
    async (_, told, judged) => {
      const thrown = await thrownFor({ error: told });
      expect(thrown).toBeInstanceOf(OpenAI.APIError);
      await expect(classifyOpenAi({ kind: 'error', error: thrown })).resolves.toEqual(judged);
      await expect(classifyOpenAi({ kind: 'first-item', value: { error: told } })).resolves.toEqual(judged);
      await expect(classifyOpenAi({ kind: 'result', value: { error: told } })).resolves.toEqual(judged);
      await expect(classifyOpenAi(response(200, { error: told }))).resolves.toEqual(judged);
    },
  );

  it.each<[string, object, Judgement]>([
    [
      'a full minute',
      { code: 'rate_limit_exceeded', message: 'slow down' },
      { class: 'other-key', status: 429 },
    ],
    ['a used-up quota', { code: 'insufficient_quota' }, { class: 'key-spent' }],
    ['a failure of the server', { code: 'server_error', message: 'sorry' }, { class: 'wait' }],
  ])('reads an event of the Responses API that tells of %s', async (_, told, judged) => {
    for (const value of [
      { type: 'error', ...told, param: null, sequence_number: 1 },
      { type: 'response.failed', response: { status: 'failed', error: told } },
    ]) {
      await expect(classifyOpenAi({ kind: 'first-item', value })).resolves.toEqual(judged);
    }
    const begun = { type: 'response.created', response: { status: 'in_progress', error: null } };
    await expect(classifyOpenAi({ kind: 'first-item', value: begun })).resolves.toBeUndefined();
  });

  it('takes the time from the headers that came before such an error', async () => {
    const error = await thrownFor(
      { error: { code: 'rate_limit_exceeded' } },
      { 'x-ratelimit-remaining-requests': '0', 'x-ratelimit-reset-requests': '4s' },
    );
    await expect(classifyOpenAi({ kind: 'error', error })).resolves.toEqual({
      class: 'other-key',
      status: 429,
      retryAfterMs: 4_000,
    });
  });

  it('takes a stream without any item for one that failed', async () => {
    await expect(classifyOpenAi({ kind: 'no-item' })).resolves.toEqual({ class: 'wait' });
  });

  it('leaves an answer alone', async () => {
    for (const value of [
      { choices: [] },
      { choices: [], code: 429, type: 'invalid_request_error' },
      'text',
      undefined,
    ]) {
      await expect(classifyOpenAi({ kind: 'result', value })).resolves.toBeUndefined();
    }
    await expect(classifyOpenAi(response(200, { choices: [] }))).resolves.toBeUndefined();
    await expect(
      classifyOpenAi({ kind: 'result', value: { error: null, output: [] } }),
    ).resolves.toBeUndefined();
  });

  it('leaves to the default what no server has told of', async () => {
    await expect(classifyOpenAi(error({}))).resolves.toBeUndefined();
    await expect(classifyOpenAi(error({ code: 'ECONNRESET' }))).resolves.toBeUndefined();
    for (const thrown of [new OpenAI.APIUserAbortError(), new OpenAI.APIConnectionError({})]) {
      await expect(classifyOpenAi({ kind: 'error', error: thrown })).resolves.toBeUndefined();
    }
  });
});

describe('classifySerper', () => {
  it.each([
    [429, 'Rate limit exceeded', 'other-key'],
    [429, 'Not enough credits', 'key-spent'],
    [400, 'Not enough credits', 'key-spent'],
    [403, 'Unauthorized. Sign up for a free account.', 'key-dead'],
    [400, 'Missing query parameter', 'stop'],
    [500, 'Internal error', 'wait'],
  ])('takes %i %j for %s, in a response, a body and an error', async (status, message, said) => {
    const expected = { class: said, status };
    await expect(classifySerper(response(status, { message, statusCode: status }))).resolves.toEqual(
      expected,
    );
    await expect(classifySerper({ kind: 'result', value: { message, statusCode: status } })).resolves.toEqual(
      expected,
    );
    await expect(classifySerper(error({ status }, message))).resolves.toEqual(expected);
  });

  it('leaves an answer alone', async () => {
    await expect(classifySerper(response(200, { organic: [] }))).resolves.toBeUndefined();
    await expect(classifySerper({ kind: 'result', value: { organic: [] } })).resolves.toBeUndefined();
  });
});

describe('classifyJina', () => {
  const body = (code: number, fields = {}) => ({ data: null, code, ...fields });

  it('takes the time from the body where the headers have none', async () => {
    await expect(classifyJina(response(429, body(429, { retryAfter: 3 })))).resolves.toEqual({
      class: 'other-key',
      status: 429,
      retryAfterMs: 3_000,
    });
    await expect(
      classifyJina(response(429, body(429, { retryAfter: 3 }), { 'retry-after': '9' })),
    ).resolves.toMatchObject({
      retryAfterMs: 9_000,
    });
    const date = new Date(Date.now() + 60_000).toISOString();
    const judged = await classifyJina(response(429, body(429, { retryAfterDate: date })));
    expect(judged!.retryAfterMs).toBeGreaterThan(55_000);
    expect(judged!.retryAfterMs).toBeLessThanOrEqual(60_000);
    await expect(classifyJina(response(429, body(429)))).resolves.toEqual({
      class: 'other-key',
      status: 429,
    });
  });

  it.each([
    [402, {}, 'key-spent'],
    [401, { name: 'AuthenticationRequiredError' }, 'key-dead'],
    [403, { name: 'AuthenticationFailedError' }, 'key-dead'],
    [403, { name: 'SecurityCompromiseError' }, 'target'],
    [409, { name: 'BudgetExceededError' }, 'target'],
    [422, {}, 'target'],
    [451, {}, 'target'],
    [503, {}, 'wait'],
  ])('takes %i %j for %s, also in a body under 200', async (code, fields, said) => {
    await expect(classifyJina(response(200, body(code, fields)))).resolves.toMatchObject({ class: said });
    await expect(classifyJina(response(code, body(code, fields)))).resolves.toMatchObject({ class: said });
    await expect(classifyJina({ kind: 'result', value: body(code, fields) })).resolves.toMatchObject({
      class: said,
    });
  });

  it('leaves a page alone, whatever it is', async () => {
    await expect(classifyJina(response(200, { code: 200, data: { content: 'x' } }))).resolves.toBeUndefined();
    await expect(
      classifyJina({
        kind: 'result',
        value: new Response('# page', { headers: { 'content-type': 'text/plain' } }),
      }),
    ).resolves.toBeUndefined();
    await expect(
      classifyJina({
        kind: 'result',
        value: new Response('{', { headers: { 'content-type': 'application/json' } }),
      }),
    ).resolves.toBeUndefined();
  });
});

describe('classifyE2b', () => {
  const cap =
    'you have reached the maximum number of concurrent E2B sandboxes (20). If you need more, please visit';

  it('knows the cap on sandboxes from the rate', async () => {
    const waits = { class: 'wait', status: 429, retryAfterMs: 1_000 };
    await expect(classifyE2b(response(429, { code: 429, message: cap }))).resolves.toEqual(waits);
    await expect(
      classifyE2b({
        kind: 'error',
        error: new RateLimitError(`Rate limit exceeded, please try again later - ${cap}`),
      }),
    ).resolves.toEqual(waits);
    await expect(
      classifyE2b({ kind: 'error', error: new RateLimitError('Rate limit exceeded') }),
    ).resolves.toBeUndefined();
    await expect(
      classifyE2b(response(429, { code: 429, message: 'Rate limit exceeded' })),
    ).resolves.toBeUndefined();
  });

  it('knows a refused key by its class, and a slow command from a slow service', async () => {
    await expect(
      classifyE2b({ kind: 'error', error: new AuthenticationError('Unauthorized') }),
    ).resolves.toEqual({
      class: 'key-dead',
    });
    await expect(
      classifyE2b({ kind: 'error', error: new TimeoutError('[deadline_exceeded] the operation timed out') }),
    ).resolves.toEqual({ class: 'target' });
    await expect(
      classifyE2b({ kind: 'error', error: new TimeoutError('[canceled] late') }),
    ).resolves.toBeUndefined();
  });

  it('leaves everything else to the default', async () => {
    for (const error of [new TypeError('bug'), undefined, null, 'x']) {
      await expect(classifyE2b({ kind: 'error', error })).resolves.toBeUndefined();
    }
    await expect(classifyE2b({ kind: 'result', value: { sandboxId: 's' } })).resolves.toBeUndefined();
  });
});
