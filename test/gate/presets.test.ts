import { AuthenticationError, RateLimitError, TimeoutError } from '@e2b/code-interpreter';
import OpenAI from 'openai';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { classifyOutcome, type Observed, type OutcomeJudgement } from '../../src/gate/classify.js';
import { classifyOpenAi, openAiPreset } from '../../src/gate/llm-presets.js';
import {
  classifyE2b,
  classifyJina,
  classifySerper,
  e2bPreset,
  jinaPreset,
  serperPreset,
} from '../../src/gate/presets.js';
import { ServiceGate } from '../../src/gate/service-gate.js';
import { useFakeTimers } from '../support/fake-timers.js';

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
  it('are options that a gate accepts', () => {
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
      { limit: 500, perMs: 60_050 },
      { limit: 200_000, perMs: 60_050, unit: 'weight' },
    ]);
    expect(e2bPreset()).toMatchObject({ maxConcurrent: 20, rate: [{ limit: 1, perMs: 1_050 }] });
  });

  it('serperPreset allows its searches in a window of a second and a margin of 50 ms', () => {
    expect(serperPreset().rate).toEqual([{ limit: 50, perMs: 1_050 }]);
    expect(serperPreset({ perSecond: 300 }).rate).toEqual([{ limit: 300, perMs: 1_050 }]);
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
  ])('%s rejects an invalid option by name', (_, make, message) => {
    expect(make).toThrow(message);
  });

  it('leave a body for the caller to read', async () => {
    const gate = new ServiceGate({ name: 'search', ...serperPreset(), retry: { attempts: 1 } });
    const got = await gate.run(() => Response.json({ message: 'Missing query' }, { status: 400 }));
    await expect(got.json()).resolves.toEqual({ message: 'Missing query' });
  });
});

describe('a response of an intermediary', () => {
  const page = '<!DOCTYPE html><html><body>Attention Required!</body></html>';
  const html = { 'content-type': 'text/html; charset=UTF-8' };
  const shapes: [string, () => Observed][] = [
    ['a Response', () => ({ kind: 'result', value: new Response(page, { status: 403, headers: html }) })],
    ['an error with headers', () => error({ status: 403, headers: new Headers(html) })],
    ['an error with the page in its message', () => error({ status: 403 }, `403 ${page}`)],
    ['an error with a response', () => error({ response: { status: 403, data: page, headers: html } })],
    ['an error of got', () => error({ response: { statusCode: 403, body: page, headers: html } })],
  ];

  it.each(shapes)('does not affect a key, as %s', async (_, observed) => {
    expect(classifyOutcome(observed())).toEqual({ class: 'retryable', status: 403 });
    for (const classify of [classifyOpenAi, classifySerper, classifyJina, classifyE2b]) {
      const judgement = (await classify(observed())) ?? classifyOutcome(observed());
      expect(judgement).toEqual({ class: 'retryable', status: 403 });
    }
  });

  it('quarantines no key, with a preset or without one', async () => {
    vi.spyOn(Math, 'random').mockReturnValue(0);
    for (const preset of [{}, openAiPreset()]) {
      const gate = new ServiceGate({ name: 'llm', ...preset, keys: ['key-1', 'key-2', 'key-3'] });
      const blocked = await gate.run(() => new Response(page, { status: 403, headers: html }));
      expect(blocked.status).toBe(403);
      expect(gate.stats().keys.map(({ state }) => state)).toEqual(['ready', 'ready', 'ready']);
    }
  });

  const text = { 'content-type': 'text/plain' };
  const json = { 'content-type': 'application/json' };
  const foreign: [string, () => Response | Error][] = [
    ['a plain text', () => new Response('no', { status: 401, headers: text })],
    ['nothing', () => new Response(null, { status: 403 })],
    ['JSON of a gateway', () => Response.json({ message: 'Forbidden' }, { status: 403 })],
    ['JSON of another kind', () => Response.json({ fault: { code: 7 } }, { status: 401 })],
    ['JSON that is cut off', () => new Response('{"error":', { status: 403, headers: json })],
    ['a page that says it is JSON', () => new Response(page, { status: 403, headers: json })],
    ['a page that asks for money', () => new Response(page, { status: 402, headers: html })],
    ['an error without a body', () => Object.assign(new Error('Forbidden'), { status: 403 })],
  ];
  const presets = { openAiPreset, serperPreset, jinaPreset, e2bPreset };

  describe.each(Object.entries(presets))('takes no key of %s out of use', (_, preset) => {
    it.each(foreign)('as %s', async (_shape, outcome) => {
      vi.spyOn(Math, 'random').mockReturnValue(0);
      const gate = new ServiceGate({ name: 'service', ...preset(), keys: ['key-1', 'key-2', 'key-3'] });
      const response = await gate
        .run(() => {
          const value = outcome();
          if (value instanceof Error) throw value;
          return value;
        })
        .catch((error: unknown) => error);
      expect(response).toHaveProperty('status', expect.any(Number));
      expect(gate.stats().keys.map(({ state }) => state)).toEqual(['ready', 'ready', 'ready']);
    });
  });

  it('is not assumed if the body has the form of the service', async () => {
    const own = { class: 'unauthorized', status: 401 };
    await expect(classifyOpenAi(response(401, { error: 'Unauthorized' }))).resolves.toEqual(own);
    await expect(classifyOpenAi(response(401, { object: 'error', message: 'no' }))).resolves.toEqual(own);
    await expect(classifyOpenAi(response(401, { error: { code: 'invalid_api_key' } }))).resolves.toEqual(own);
    await expect(classifySerper(response(401, { message: 'No', statusCode: 401 }))).resolves.toEqual(own);
    await expect(classifyJina(response(401, { data: null, code: 401 }))).resolves.toEqual(own);
    await expect(classifyE2b(response(401, { code: 401, message: 'Invalid API key' }))).resolves.toEqual(own);
  });
});

describe('the body of a response', () => {
  const endless = (status: number) => {
    let bytes = 0;
    const chunk = new TextEncoder().encode(`{"x":"${'y'.repeat(16_000)}`);
    const body = new ReadableStream({
      pull: (controller) => {
        bytes += chunk.byteLength;
        controller.enqueue(chunk);
      },
    });
    const headers = { 'content-type': 'application/json', 'retry-after': '7' };
    return { response: new Response(body, { status, headers }), read: () => bytes };
  };

  it('is read up to 64 KiB', async () => {
    const { response: full, read } = endless(429);
    await expect(classifyOpenAi({ kind: 'result', value: full })).resolves.toEqual({
      class: 'rate-limited',
      status: 429,
      retryAfterMs: 7_000,
    });
    expect(read()).toBeLessThan(200_000);
  });

  it('of a failure is awaited for up to five seconds', async () => {
    useFakeTimers();
    const body = new ReadableStream({ pull: () => new Promise(() => {}) });
    const headers = { 'content-type': 'application/json' };
    const judged = classifyOpenAi({ kind: 'result', value: new Response(body, { status: 503, headers }) });
    await vi.advanceTimersByTimeAsync(5_000);
    await expect(judged).resolves.toEqual({ class: 'retryable', status: 503 });
    vi.useRealTimers();
  });

  it('that stalls does not delay the cooldown', async () => {
    useFakeTimers();
    const gate = new ServiceGate({ name: 'llm', ...openAiPreset(), retry: { attempts: 1 } });
    const stalled = () =>
      new Response(new ReadableStream({ pull: () => new Promise(() => {}) }), {
        status: 429,
        headers: { 'content-type': 'application/json', 'retry-after': '5' },
      });
    const code = vi.fn(stalled);
    const calls = [gate.run(code)];
    for (let i = 0; i < 9; i++) {
      await vi.advanceTimersByTimeAsync(50);
      calls.push(gate.run(code));
    }
    expect(code).toHaveBeenCalledTimes(1);
    expect(gate.stats().retryAfterMs).toBeGreaterThan(4_000);
    const settled = Promise.allSettled(calls);
    const closed = gate.close();
    await vi.advanceTimersByTimeAsync(6_000);
    await closed;
    await settled;
    vi.useRealTimers();
  });
});

describe('classifyOpenAi', () => {
  const quota = { error: { message: 'You exceeded your current quota', code: 'insufficient_quota' } };

  it('distinguishes an exhausted quota from a rate limit, in a body or in an error', async () => {
    await expect(classifyOpenAi(response(429, quota))).resolves.toEqual({
      class: 'quota-exhausted',
      status: 429,
    });
    await expect(
      classifyOpenAi(response(429, { error: { code: 'rate_limit_exceeded' } }, { 'retry-after': '2' })),
    ).resolves.toEqual({ class: 'rate-limited', status: 429, retryAfterMs: 2_000 });
    await expect(classifyOpenAi(error({ status: 429, ...quota.error }))).resolves.toMatchObject({
      class: 'quota-exhausted',
    });
  });

  it('honors x-should-retry: false for the call alone: the cooldown of the key is as long as the service says', async () => {
    const headers = { 'x-should-retry': 'false', 'retry-after': '60' };
    await expect(classifyOpenAi(response(429, {}, headers))).resolves.toEqual({
      class: 'rate-limited',
      status: 429,
      retryAfterMs: 60_000,
      retry: false,
    });
    await expect(
      classifyOpenAi(error({ status: 503, headers: new Headers({ 'x-should-retry': 'false' }) })),
    ).resolves.toEqual({ class: 'retryable', status: 503, retry: false });
    await expect(classifyOpenAi(response(409, {}, headers))).resolves.toMatchObject({ class: 'fatal' });
    await expect(classifyOpenAi(response(503, {}, { 'x-should-retry': 'true' }))).resolves.toEqual({
      class: 'retryable',
      status: 503,
    });
  });

  it('ignores it if the key is unauthorized or exhausted: another may serve', async () => {
    const headers = { 'x-should-retry': 'false' };
    for (const [status, body, said] of [
      [401, { error: { code: 'invalid_api_key' } }, 'unauthorized'],
      [402, { error: { message: 'Insufficient balance' } }, 'quota-exhausted'],
      [429, quota, 'quota-exhausted'],
    ] as const) {
      await expect(classifyOpenAi(response(status, body, headers))).resolves.toEqual({ class: said, status });
    }
  });

  it('retries a conflict', async () => {
    await expect(classifyOpenAi(response(409, {}))).resolves.toEqual({ class: 'retryable', status: 409 });
  });

  it('finds an error under status 200, and in the first event of a stream', async () => {
    const full = { object: 'error', error: { message: 'The request queue is full.', code: 503 } };
    await expect(classifyOpenAi(response(200, full))).resolves.toEqual({ class: 'retryable', status: 503 });
    await expect(classifyOpenAi({ kind: 'result', value: full })).resolves.toEqual({
      class: 'retryable',
      status: 503,
    });
    await expect(classifyOpenAi({ kind: 'first-item', value: full })).resolves.toEqual({
      class: 'retryable',
      status: 503,
    });
    await expect(
      classifyOpenAi({ kind: 'first-item', value: { error: { message: 'try again' } } }),
    ).resolves.toEqual({ class: 'retryable' });
    await expect(classifyOpenAi({ kind: 'result', value: quota })).resolves.toEqual({
      class: 'quota-exhausted',
    });
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

  it.each<[string, object, OutcomeJudgement]>([
    ['a number', { message: 'The request queue is full.', code: 503 }, { class: 'retryable', status: 503 }],
    ['a number in a string', { code: '429' }, { class: 'rate-limited', status: 429 }],
    [
      'a full minute',
      { message: 'Rate limit reached', type: 'requests', code: 'rate_limit_exceeded' },
      { class: 'rate-limited', status: 429 },
    ],
    [
      'a refused key',
      { type: 'invalid_request_error', code: 'invalid_api_key' },
      { class: 'unauthorized', status: 401 },
    ],
    [
      "a call that is the host's fault",
      { type: 'invalid_request_error', code: 'context_length_exceeded' },
      { class: 'fatal', status: 400 },
    ],
    [
      'a used-up quota',
      { type: 'insufficient_quota', code: 'insufficient_quota' },
      { class: 'quota-exhausted' },
    ],
    [
      'anything else',
      { message: 'The server had an error', type: 'server_error', code: null },
      { class: 'retryable' },
    ],
  ])(
    'reads an error without a status that reports %s, thrown by the SDK, in an event and in a body',
    async (_, sent, judged) => {
      const thrown = await thrownFor({ error: sent });
      expect(thrown).toBeInstanceOf(OpenAI.APIError);
      await expect(classifyOpenAi({ kind: 'error', error: thrown })).resolves.toEqual(judged);
      await expect(classifyOpenAi({ kind: 'first-item', value: { error: sent } })).resolves.toEqual(judged);
      await expect(classifyOpenAi({ kind: 'result', value: { error: sent } })).resolves.toEqual(judged);
      await expect(classifyOpenAi(response(200, { error: sent }))).resolves.toEqual(judged);
    },
  );

  it.each<[string, object, OutcomeJudgement]>([
    [
      'a full minute',
      { code: 'rate_limit_exceeded', message: 'slow down' },
      { class: 'rate-limited', status: 429 },
    ],
    ['a used-up quota', { code: 'insufficient_quota' }, { class: 'quota-exhausted' }],
    ['a failure of the server', { code: 'server_error', message: 'sorry' }, { class: 'retryable' }],
  ])('reads an event of the Responses API that reports %s', async (_, sent, judged) => {
    for (const value of [
      { type: 'error', ...sent, param: null, sequence_number: 1 },
      { type: 'response.failed', response: { status: 'failed', error: sent } },
    ]) {
      await expect(classifyOpenAi({ kind: 'first-item', value })).resolves.toEqual(judged);
    }
    const begun = { type: 'response.created', response: { status: 'in_progress', error: null } };
    await expect(classifyOpenAi({ kind: 'first-item', value: begun })).resolves.toBeUndefined();
  });

  it('reads the retry time from the headers of the response before such an error', async () => {
    const error = await thrownFor(
      { error: { code: 'rate_limit_exceeded' } },
      { 'x-ratelimit-remaining-requests': '0', 'x-ratelimit-reset-requests': '4s' },
    );
    await expect(classifyOpenAi({ kind: 'error', error })).resolves.toEqual({
      class: 'rate-limited',
      status: 429,
      retryAfterMs: 4_000,
    });
  });

  it('classifies a stream without items as failed', async () => {
    await expect(classifyOpenAi({ kind: 'no-item' })).resolves.toEqual({ class: 'retryable' });
  });

  it('does not reclassify a successful response', async () => {
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

  it('leaves errors without a server response to the default', async () => {
    await expect(classifyOpenAi(error({}))).resolves.toBeUndefined();
    await expect(classifyOpenAi(error({ code: 'ECONNRESET' }))).resolves.toBeUndefined();
    for (const thrown of [new OpenAI.APIUserAbortError(), new OpenAI.APIConnectionError({})]) {
      await expect(classifyOpenAi({ kind: 'error', error: thrown })).resolves.toBeUndefined();
    }
  });
});

describe('classifySerper', () => {
  it.each([
    [429, 'Rate limit exceeded', 'rate-limited'],
    [429, 'Not enough credits', 'quota-exhausted'],
    [400, 'Not enough credits', 'quota-exhausted'],
    [403, 'Unauthorized. Sign up for a free account.', 'unauthorized'],
    [400, 'Missing query parameter', 'fatal'],
    [500, 'Internal error', 'retryable'],
  ])('classifies %i %j as %s, in a response, a body and an error', async (status, message, said) => {
    const expected = { class: said, status };
    await expect(classifySerper(response(status, { message, statusCode: status }))).resolves.toEqual(
      expected,
    );
    await expect(classifySerper({ kind: 'result', value: { message, statusCode: status } })).resolves.toEqual(
      expected,
    );
    await expect(classifySerper(error({ status }, message))).resolves.toEqual(expected);
  });

  it('does not reclassify a successful response', async () => {
    await expect(classifySerper(response(200, { organic: [] }))).resolves.toBeUndefined();
    await expect(classifySerper({ kind: 'result', value: { organic: [] } })).resolves.toBeUndefined();
  });
});

describe('classifyJina', () => {
  const body = (code: number, fields = {}) => ({ data: null, code, ...fields });

  it('reads the retry time from the body if the headers have none', async () => {
    await expect(classifyJina(response(429, body(429, { retryAfter: 3 })))).resolves.toEqual({
      class: 'rate-limited',
      status: 429,
      retryAfterMs: 3_000,
    });
    await expect(
      classifyJina(response(429, body(429, { retryAfter: 3 }), { 'retry-after': '9' })),
    ).resolves.toMatchObject({
      retryAfterMs: 9_000,
    });
    useFakeTimers({ toFake: ['Date'], now: Date.UTC(2026, 0) });
    const date = new Date(Date.now() + 60_000).toISOString();
    const judged = await classifyJina(response(429, body(429, { retryAfterDate: date })));
    vi.useRealTimers();
    expect(judged?.retryAfterMs).toBe(60_000);
    await expect(classifyJina(response(429, body(429)))).resolves.toEqual({
      class: 'rate-limited',
      status: 429,
    });
  });

  it.each([
    [402, {}, 'quota-exhausted'],
    [401, { name: 'AuthenticationRequiredError' }, 'unauthorized'],
    [403, { name: 'AuthenticationFailedError' }, 'unauthorized'],
    [403, { name: 'SecurityCompromiseError' }, 'client-error'],
    [409, { name: 'BudgetExceededError' }, 'client-error'],
    [422, {}, 'client-error'],
    [451, {}, 'client-error'],
    [503, {}, 'retryable'],
  ])('classifies %i %j as %s, also in a body under status 200', async (code, fields, said) => {
    await expect(classifyJina(response(200, body(code, fields)))).resolves.toMatchObject({ class: said });
    await expect(classifyJina(response(code, body(code, fields)))).resolves.toMatchObject({ class: said });
    await expect(classifyJina({ kind: 'result', value: body(code, fields) })).resolves.toMatchObject({
      class: said,
    });
  });

  it('does not reclassify a page, whatever its content', async () => {
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

  it('distinguishes the sandbox limit from the rate limit', async () => {
    const waits = { class: 'retryable', status: 429, retryAfterMs: 1_000 };
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

  it('recognizes an unauthorized key by its class, and distinguishes a slow command from a slow service', async () => {
    await expect(
      classifyE2b({ kind: 'error', error: new AuthenticationError('Unauthorized') }),
    ).resolves.toEqual({
      class: 'unauthorized',
    });
    await expect(
      classifyE2b({ kind: 'error', error: new TimeoutError('[deadline_exceeded] the operation timed out') }),
    ).resolves.toEqual({ class: 'client-error' });
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
