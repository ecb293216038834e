import OpenAI, {
  APIConnectionError,
  APIError,
  APIUserAbortError,
  AuthenticationError,
  BadRequestError,
  InternalServerError,
  NotFoundError,
  PermissionDeniedError,
  RateLimitError,
} from 'openai';
import { type LlmReply, StubLlm, type StubLlmOptions } from 'pipeline-pool/testing';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { until } from '../support/promises.js';

const running: StubLlm[] = [];
afterEach(async () => {
  await Promise.all(running.splice(0).map((llm) => llm.stop()));
});

async function llmWith(options: StubLlmOptions = {}) {
  const llm = await new StubLlm(options).start();
  running.push(llm);
  return { llm, client: new OpenAI({ baseURL: llm.baseUrl, apiKey: 'key-1', maxRetries: 0 }) };
}

const ask = (content: string) => ({ model: 'm', messages: [{ role: 'user' as const, content }] });

/** Holds every reply back until it is given by hand. */
function heldReplies() {
  const held: ((reply: LlmReply) => void)[] = [];
  return { held, reply: () => new Promise<LlmReply>((resolve) => held.push(resolve)) };
}

/** What a promise was rejected with. */
async function rejectionOf(promise: PromiseLike<unknown>): Promise<APIError> {
  const error = await promise.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  if (!(error instanceof APIError)) throw new Error(`Not an APIError: ${String(error)}`);
  return error;
}

describe('StubLlm and the openai SDK', () => {
  it('answers 500 with the reason where the script returns no reply', async () => {
    const { client } = await llmWith({ reply: () => ({ content: 'tides' }) as never });
    await expect(client.chat.completions.create(ask('why?'))).rejects.toThrow(
      /500 .*Unknown option `content` in the reply; it takes `text`, `toolCalls`, `finishReason`/,
    );
  });

  it('answers a chat with text, a finish reason and consistent usage', async () => {
    const { client } = await llmWith({ reply: ({ messages }) => `You said: ${messages[0]?.content}` });
    const completion = await client.chat.completions.create(ask('three short words'));
    expect(completion).toMatchObject({
      object: 'chat.completion',
      model: 'm',
      choices: [
        {
          index: 0,
          finish_reason: 'stop',
          message: { role: 'assistant', content: 'You said: three short words' },
        },
      ],
      usage: { prompt_tokens: 3, completion_tokens: 5, total_tokens: 8 },
    });
    expect(completion._request_id).toBe('req_1');
  });

  it('returns the same text for the same question by default', async () => {
    const { client } = await llmWith();
    const first = await client.chat.completions.create(ask('why pools?'));
    const second = await client.chat.completions.create(ask('why pools?'));
    const other = await client.chat.completions.create(ask('why gates?'));
    expect(first.choices[0]?.message.content).toContain('why pools?');
    expect(second.choices[0]?.message.content).toBe(first.choices[0]?.message.content);
    expect(other.choices[0]?.message.content).not.toBe(first.choices[0]?.message.content);
  });

  it('streams the same reply in tokens, and its usage if requested', async () => {
    const { client } = await llmWith({ reply: () => 'one two  three\n' });
    const stream = await client.chat.completions.create({
      ...ask('count'),
      stream: true,
      stream_options: { include_usage: true },
    });
    const pieces: string[] = [];
    let usage: unknown;
    let finish: unknown;
    for await (const chunk of stream) {
      expect(chunk.object).toBe('chat.completion.chunk');
      const content = chunk.choices[0]?.delta.content;
      if (content) pieces.push(content);
      finish = chunk.choices[0]?.finish_reason ?? finish;
      usage = chunk.usage ?? usage;
    }
    expect(pieces).toEqual(['one', ' two', '  three', '\n']);
    expect(finish).toBe('stop');
    expect(usage).toEqual({ prompt_tokens: 1, completion_tokens: 4, total_tokens: 5 });
  });

  it('omits the usage of a stream unless requested', async () => {
    const { client } = await llmWith();
    const stream = await client.chat.completions.create({ ...ask('x'), stream: true });
    for await (const chunk of stream) {
      expect(chunk.usage).toBeUndefined();
      expect(chunk.choices).toHaveLength(1);
    }
  });

  const callTools = (): LlmReply => ({
    toolCalls: [
      { name: 'search', arguments: { q: 'connection pools', num: 3 } },
      { name: 'read', arguments: '{"broken": ' },
    ],
  });
  const toolCalls = [
    {
      id: 'call_1_0',
      type: 'function',
      function: { name: 'search', arguments: '{"q":"connection pools","num":3}' },
    },
    { id: 'call_1_1', type: 'function', function: { name: 'read', arguments: '{"broken": ' } },
  ];

  it('calls tools in a completion', async () => {
    const { client } = await llmWith({ reply: callTools });
    const { choices } = await client.chat.completions.create(ask('find'));
    expect(choices[0]).toMatchObject({
      finish_reason: 'tool_calls',
      message: { content: null, tool_calls: toolCalls },
    });
  });

  it('calls tools in a stream, their arguments in pieces that the SDK puts together', async () => {
    const { client } = await llmWith({ reply: callTools });
    const stream = client.chat.completions.stream(ask('find'));
    const pieces: string[] = [];
    stream.on('chunk', (chunk) => {
      for (const { function: called } of chunk.choices[0]?.delta.tool_calls ?? []) {
        if (called?.arguments) pieces.push(called.arguments);
      }
    });
    const { choices } = await stream.finalChatCompletion();
    expect(choices[0]?.finish_reason).toBe('tool_calls');
    expect(choices[0]?.message.tool_calls).toMatchObject(toolCalls);
    expect(pieces).toEqual(['{"q":"connection', ' pools","num":3}', '{"broken":', ' ']);
  });

  it('passes the request and the call to the script', async () => {
    const reply = vi.fn(() => 'ok');
    const { client } = await llmWith({ reply });
    await client.chat.completions.create({ ...ask('x'), temperature: 0.5 });
    expect(reply).toHaveBeenCalledWith(
      expect.objectContaining({ model: 'm', temperature: 0.5 }),
      expect.objectContaining({ id: 1, key: 'key-1', route: 'POST /v1/chat/completions' }),
    );
  });

  it('lists its models, and rejects others with 404', async () => {
    const { client } = await llmWith({ models: ['small', 'large'] });
    const models = await client.models.list();
    expect(models.data.map(({ id }) => id)).toEqual(['small', 'large']);
    const rejected = await rejectionOf(client.chat.completions.create(ask('x')));
    expect(rejected).toBeInstanceOf(NotFoundError);
    expect(rejected).toMatchObject({ status: 404, code: 'model_not_found' });
  });

  it('rejects an unknown key with 401, and an invalid body with 400', async () => {
    const { llm, client } = await llmWith({ keys: ['key-1'] });
    const stranger = client.withOptions({ apiKey: 'other' });
    const rejected = await rejectionOf(stranger.chat.completions.create(ask('x')));
    expect(rejected).toBeInstanceOf(AuthenticationError);
    expect(rejected).toMatchObject({ status: 401, code: 'invalid_api_key' });
    const keyless = await fetch(`${llm.baseUrl}/chat/completions`, { method: 'POST', body: '{}' });
    expect(keyless.status).toBe(401);
    const several = await rejectionOf(client.chat.completions.create({ ...ask('x'), n: 2 }));
    expect(several).toBeInstanceOf(BadRequestError);
    expect(llm.stats().statuses).toEqual({ 400: 1, 401: 2 });
  });
});

describe('StubLlm with faults', () => {
  const statuses = [
    [400, BadRequestError],
    [401, AuthenticationError],
    [403, PermissionDeniedError],
    [404, NotFoundError],
    [429, RateLimitError],
    [500, InternalServerError],
    [503, InternalServerError],
  ] as const;
  for (const [status, ErrorClass] of statuses) {
    it(`makes the SDK throw ${ErrorClass.name} for ${status}, streamed or not`, async () => {
      const { llm, client } = await llmWith();
      llm.faultNext([
        { type: 'status', status },
        { type: 'status', status },
      ]);
      const whole = await rejectionOf(client.chat.completions.create(ask('x')));
      const streamed = await rejectionOf(client.chat.completions.create({ ...ask('x'), stream: true }));
      for (const rejected of [whole, streamed]) {
        expect(rejected).toBeInstanceOf(ErrorClass);
        expect(rejected.status).toBe(status);
        expect(rejected.message).not.toContain('no body');
      }
      await expect(client.chat.completions.create(ask('x'))).resolves.toBeDefined();
    });
  }

  it('distinguishes a rate limit from an exhausted quota by code', async () => {
    const { llm, client } = await llmWith();
    llm.faultNext([
      { type: 'status', status: 429 },
      { type: 'status', status: 429, reason: 'quota' },
      { type: 'status', status: 402 },
    ]);
    const codes = [];
    for (let i = 0; i < 3; i++) {
      const rejected = await rejectionOf(client.chat.completions.create(ask('x')));
      codes.push([rejected.status, rejected.code]);
    }
    expect(codes).toEqual([
      [429, 'rate_limit_exceeded'],
      [429, 'insufficient_quota'],
      [402, 'insufficient_quota'],
    ]);
  });

  it('has the 503 format of vLLM, without a retry time', async () => {
    const { llm, client } = await llmWith();
    llm.faultNext({ type: 'status', status: 503 });
    const rejected = await rejectionOf(client.chat.completions.create(ask('x')));
    expect(rejected.error).toEqual({
      message: expect.stringContaining('try again'),
      type: 'Service Unavailable',
      param: null,
      code: 503,
    });
    expect([...(rejected.headers?.keys() ?? [])].filter((name) => /retry|ratelimit/.test(name))).toEqual([]);
  });

  it('sends Retry-After in seconds, which the SDK exposes', async () => {
    const { llm, client } = await llmWith();
    llm.faultNext({ type: 'status', status: 429, retryAfter: { as: 'seconds', ms: 1500 } });
    const rejected = await rejectionOf(client.chat.completions.create(ask('x')));
    expect(rejected.headers?.get('retry-after')).toBe('2');
  });

  it('sends an error envelope with status 200, which the SDK takes for a completion', async () => {
    const { llm, client } = await llmWith();
    llm.faultNext({ type: 'envelope', status: 429 });
    const answer: unknown = await client.chat.completions.create(ask('x'));
    expect(answer).toMatchObject({ error: { code: 'rate_limit_exceeded' } });
    expect(answer).not.toHaveProperty('choices');
  });

  it('opens a stream whose first event is an error', async () => {
    const { llm, client } = await llmWith();
    llm.faultNext({ type: 'stream-error', status: 503 });
    const stream = await client.chat.completions.create({ ...ask('x'), stream: true });
    const rejected = await rejectionOf(stream[Symbol.asyncIterator]().next());
    expect(rejected.error).toMatchObject({ code: 503 });
    expect(llm.stats().statuses).toEqual({ 200: 1 });
  });

  it('rejects with the status itself if the call does not stream', async () => {
    const { llm, client } = await llmWith();
    llm.faultNext({ type: 'stream-error', status: 503 });
    const rejected = await rejectionOf(client.chat.completions.create(ask('x')));
    expect(rejected.status).toBe(503);
  });

  it('never sends headers, and detects that the client gives up', async () => {
    const { llm, client } = await llmWith();
    llm.faultNext({ type: 'no-headers' });
    const abort = new AbortController();
    const asked = rejectionOf(client.chat.completions.create(ask('x'), { signal: abort.signal }));
    await until(() => llm.calls[0]?.fault === 'no-headers');
    abort.abort();
    expect(await asked).toBeInstanceOf(APIUserAbortError);
    await until(() => llm.stats().inFlight === 0);
    expect(llm.stats()).toMatchObject({ disconnects: 1, statuses: {} });
  });

  it('stalls a stream after its first event', async () => {
    const { llm, client } = await llmWith({ maxNumSeqs: 1 });
    llm.faultNext({ type: 'stall' });
    const abort = new AbortController();
    const stream = await client.chat.completions.create(
      { ...ask('x'), stream: true },
      { signal: abort.signal },
    );
    const events = stream[Symbol.asyncIterator]();
    expect((await events.next()).value?.choices[0]?.delta.role).toBe('assistant');
    expect(llm.batch().running).toBe(1);
    abort.abort();
    expect(await events.next()).toEqual({ done: true, value: undefined });
    await until(() => llm.batch().running === 0);
  });

  it('resets the connection before the headers', async () => {
    const { llm, client } = await llmWith();
    llm.faultNext({ type: 'reset', when: 'before-headers' });
    const rejected = await rejectionOf(client.chat.completions.create(ask('x')));
    expect(rejected).toBeInstanceOf(APIConnectionError);
    expect(rejected.status).toBeUndefined();
    expect(llm.calls[0]).toMatchObject({ end: 'cut', status: undefined });
  });

  it('resets the connection in the middle of a stream', async () => {
    const { llm, client } = await llmWith();
    llm.faultNext({ type: 'reset', when: 'mid-body' });
    const stream = await client.chat.completions.create({ ...ask('x'), stream: true });
    const received: unknown[] = [];
    await expect(
      (async () => {
        for await (const chunk of stream) received.push(chunk);
      })(),
    ).rejects.toThrow('terminated');
    expect(received.length).toBeLessThanOrEqual(1);
    expect(llm.calls[0]).toMatchObject({ end: 'cut', status: 200 });
  });

  it('responds with 500 if the script fails, and cuts a started stream', async () => {
    const { llm, client } = await llmWith({
      reply: () => {
        throw new Error('broken script');
      },
    });
    const rejected = await fetch(`${llm.baseUrl}/chat/completions`, {
      method: 'POST',
      body: JSON.stringify(ask('x')),
    });
    expect(rejected.status).toBe(500);
    expect(await rejected.text()).toContain('broken script');
    const stream = await client.chat.completions.create({ ...ask('x'), stream: true });
    await expect(stream[Symbol.asyncIterator]().next()).rejects.toThrow('terminated');
    expect(llm.batch().running).toBe(0);
  });
});

describe('The batch of a StubLlm', () => {
  it('runs maxNumSeqs calls at once, and queues the others in FIFO order', async () => {
    const { held, reply } = heldReplies();
    const { llm, client } = await llmWith({ maxNumSeqs: 2, reply });
    const answered: number[] = [];
    const calls = [];
    for (let i = 0; i < 5; i++) {
      calls.push(client.chat.completions.create(ask(`${i}`)).then(() => answered.push(i)));
      await until(() => llm.stats().calls === i + 1 && llm.batch().running + llm.batch().queued === i + 1);
    }
    expect(llm.batch()).toEqual({ running: 2, queued: 3, peakRunning: 2, peakQueued: 3 });
    expect(held).toHaveLength(2);
    for (let i = 0; i < 5; i++) {
      held[i]?.('ok');
      await until(() => answered.length === i + 1);
    }
    expect(answered).toEqual([0, 1, 2, 3, 4]);
    expect(llm.batch()).toEqual({ running: 0, queued: 0, peakRunning: 2, peakQueued: 3 });
    await Promise.all(calls);
  });

  it('responds with 503 at once when maxQueued calls are queued', async () => {
    const { held, reply } = heldReplies();
    const { llm, client } = await llmWith({ maxNumSeqs: 1, maxQueued: 1, reply });
    const first = client.chat.completions.create(ask('1'));
    await until(() => llm.batch().running === 1);
    const second = client.chat.completions.create(ask('2'));
    await until(() => llm.batch().queued === 1);
    const rejected = await rejectionOf(client.chat.completions.create({ ...ask('3'), stream: true }));
    expect(rejected).toMatchObject({ status: 503, type: 'Service Unavailable' });
    held[0]?.('ok');
    await first;
    await until(() => held.length === 2);
    held[1]?.('ok');
    await second;
  });

  it('accepts no call beyond the running ones with maxQueued 0', async () => {
    const { held, reply } = heldReplies();
    const { llm, client } = await llmWith({ maxNumSeqs: 1, maxQueued: 0, reply });
    const first = client.chat.completions.create(ask('1'));
    await until(() => llm.batch().running === 1);
    expect((await rejectionOf(client.chat.completions.create(ask('2')))).status).toBe(503);
    held[0]?.('ok');
    await first;
  });

  it('ends the call of a client that disconnects, running or queued', async () => {
    const { held, reply } = heldReplies();
    const { llm, client } = await llmWith({ maxNumSeqs: 1, reply });
    const [leaver, waiter] = [new AbortController(), new AbortController()];
    const first = rejectionOf(client.chat.completions.create(ask('1'), { signal: leaver.signal }));
    await until(() => llm.batch().running === 1);
    const second = rejectionOf(client.chat.completions.create(ask('2'), { signal: waiter.signal }));
    await until(() => llm.batch().queued === 1);
    const third = client.chat.completions.create(ask('3'));
    await until(() => llm.batch().queued === 2);
    waiter.abort();
    await until(() => llm.batch().queued === 1);
    leaver.abort();
    await until(() => held.length === 2);
    held[1]?.('the third has it');
    expect((await third).choices[0]?.message.content).toBe('the third has it');
    await Promise.all([first, second]);
    expect(llm.batch()).toMatchObject({ running: 0, queued: 0, peakRunning: 1 });
    expect(llm.stats()).toMatchObject({ inFlight: 0, disconnects: 2 });
  });

  it('sends the headers of a queued stream', async () => {
    const { held, reply } = heldReplies();
    const { llm, client } = await llmWith({ maxNumSeqs: 1, reply });
    const first = client.chat.completions.create(ask('1'));
    await until(() => llm.batch().running === 1);
    const stream = await client.chat.completions.create({ ...ask('2'), stream: true });
    expect(llm.batch().queued).toBe(1);
    held[0]?.('ok');
    await first;
    await until(() => held.length === 2);
    held[1]?.('streamed');
    const pieces: string[] = [];
    for await (const chunk of stream) pieces.push(chunk.choices[0]?.delta.content ?? '');
    expect(pieces.join('')).toBe('streamed');
  });

  it('loses and gains capacity while it runs', async () => {
    const { held, reply } = heldReplies();
    const { llm, client } = await llmWith({ maxNumSeqs: 1, reply });
    const calls = [1, 2, 3].map((i) => client.chat.completions.create(ask(`${i}`)));
    await until(() => llm.batch().queued === 2);
    llm.maxNumSeqs = 3;
    await until(() => held.length === 3);
    expect(llm.batch()).toMatchObject({ running: 3, queued: 0 });
    llm.maxNumSeqs = 1;
    expect(llm.batch()).toMatchObject({ running: 3, queued: 0 });
    const fourth = client.chat.completions.create(ask('4'));
    await until(() => llm.batch().queued === 1);
    held[0]?.('ok');
    await calls[0];
    expect(llm.batch()).toMatchObject({ running: 2, queued: 1 });
    for (const release of held) release('ok');
    await until(() => held.length === 4);
    held[3]?.('ok');
    await Promise.all([...calls, fourth]);
  });

  it('exposes the load gauges and the health route of vLLM', async () => {
    const { held, reply } = heldReplies();
    const { llm, client } = await llmWith({ maxNumSeqs: 2, reply });
    const calls = [1, 2, 3].map((i) => client.chat.completions.create(ask(`${i}`)));
    await until(() => llm.batch().queued === 1);
    const metrics = await (await fetch(`${llm.url}/metrics`)).text();
    expect(metrics).toMatch(/^# TYPE vllm:num_requests_running gauge$/m);
    expect(metrics).toMatch(/^vllm:num_requests_running\{model_name="stub-model"\} 2$/m);
    expect(metrics).toMatch(/^vllm:num_requests_waiting\{model_name="stub-model"\} 1$/m);
    expect(metrics).toMatch(/^vllm:kv_cache_usage_perc\{model_name="stub-model"\} 1$/m);
    expect((await fetch(`${llm.url}/health`)).status).toBe(200);
    held[0]?.('ok');
    held[1]?.('ok');
    await until(() => held.length === 3);
    held[2]?.('ok');
    await Promise.all(calls);
  });
});

describe('StubLlm with a rate', () => {
  it('rejects calls beyond it per key, like OpenAI', async () => {
    const { llm, client } = await llmWith({ rate: { limit: 2, perMs: 60_000 } });
    const { response } = await client.chat.completions.create(ask('x')).withResponse();
    expect(response.headers.get('x-ratelimit-limit-requests')).toBe('2');
    expect(response.headers.get('x-ratelimit-remaining-requests')).toBe('1');
    expect(response.headers.get('x-ratelimit-reset-requests')).toMatch(/^(59\.\d+s|1m0s)$/);
    await client.chat.completions.create(ask('x'));
    const rejected = await rejectionOf(client.chat.completions.create(ask('x')));
    expect(rejected).toBeInstanceOf(RateLimitError);
    expect(rejected).toMatchObject({ code: 'rate_limit_exceeded', type: 'requests' });
    expect(rejected.message).toMatch(/Rate limit reached for m .*Limit 2, Used 2, Requested 1/);
    expect(rejected.headers?.get('x-ratelimit-remaining-requests')).toBe('0');
    expect(rejected.headers?.get('x-ratelimit-reset-requests')).toMatch(/^(5\d\.\d+s|1m0s)$/);
    expect(rejected.headers?.get('retry-after')).toMatch(/^(5\d|60)$/);
    expect(Number(rejected.headers?.get('retry-after-ms'))).toBeGreaterThan(50_000);
    const other = client.withOptions({ apiKey: 'key-2' });
    await expect(other.chat.completions.create(ask('x'))).resolves.toBeDefined();
    expect(llm.stats().byKey).toMatchObject({
      'key-1': { calls: 3, statuses: { 200: 2, 429: 1 } },
      'key-2': { calls: 1, statuses: { 200: 1 } },
    });
  });

  it('admits calls again after the scaled window', async () => {
    const { client } = await llmWith({ rate: { limit: 1, perMs: 20_000 }, timeScale: 0.001 });
    await client.chat.completions.create(ask('x'));
    await until(async () => {
      return client.chat.completions.create(ask('x')).then(
        () => true,
        () => false,
      );
    });
  });
});

describe('StubLlm with latencies', () => {
  it('takes the time to the first event and the time of each token, scaled', async () => {
    const { client } = await llmWith({
      latencyMs: 10_000,
      perTokenMs: 5_000,
      timeScale: 0.001,
      reply: () => 'one two three four',
    });
    const startedAtMs = performance.now();
    await client.chat.completions.create(ask('x'));
    const wholeMs = performance.now() - startedAtMs;
    const stream = await client.chat.completions.create({ ...ask('x'), stream: true });
    for await (const _ of stream);
    const bothMs = performance.now() - startedAtMs;
    // Lower bounds only: a busy machine may be late, but nothing may be early (timers round by up to 1 ms).
    expect(wholeMs).toBeGreaterThan(28);
    expect(bothMs - wholeMs).toBeGreaterThan(28);
  });
});
