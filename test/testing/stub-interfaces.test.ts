import Anthropic from '@anthropic-ai/sdk';
import OpenAI from 'openai';
import {
  type Fault,
  type LlmReply,
  type LlmRequest,
  StubLlm,
  type StubLlmOptions,
} from 'pipeline-pool/testing';
import { afterEach, describe, expect, it } from 'vitest';

const running: StubLlm[] = [];
afterEach(async () => {
  await Promise.all(running.splice(0).map((llm) => llm.stop()));
});

async function llmWith(options: StubLlmOptions = {}) {
  const llm = await new StubLlm(options).start();
  running.push(llm);
  return {
    llm,
    openai: new OpenAI({ baseURL: llm.baseUrl, apiKey: 'key-1', maxRetries: 0 }),
    anthropic: new Anthropic({ baseURL: llm.url, apiKey: 'key-1', maxRetries: 0 }),
  };
}

/** A reply with text and two tool calls, and the requests that were replied to. */
function scripted(reply: LlmReply = { text: 'Let me look.', toolCalls: TOOL_CALLS }) {
  const requests: LlmRequest[] = [];
  return {
    requests,
    reply: (request: LlmRequest): LlmReply => {
      requests.push(request);
      return reply;
    },
  };
}

const TOOL_CALLS = [
  { name: 'search', arguments: { q: 'spring tides' } },
  { name: 'now', arguments: {} },
];

async function all<T>(items: AsyncIterable<T>): Promise<T[]> {
  const taken: T[] = [];
  for await (const item of items) taken.push(item);
  return taken;
}

const thrown = (work: Promise<unknown>): Promise<unknown> =>
  work.then(
    () => undefined,
    (error) => error,
  );

describe('the Responses API of StubLlm, with the openai SDK', () => {
  const ask = { model: 'm', input: 'What makes tides?' };

  it('answers with text and usage', async () => {
    const { openai } = await llmWith({ reply: () => 'The moon does.' });
    const response = await openai.responses.create({ ...ask, instructions: 'Be brief.' });
    expect(response).toMatchObject({ object: 'response', status: 'completed', instructions: 'Be brief.' });
    expect(response.output_text).toBe('The moon does.');
    expect(response.usage).toMatchObject({ input_tokens: 5, output_tokens: 3, total_tokens: 8 });
  });

  it('answers with tool calls', async () => {
    const { openai } = await llmWith({ reply: scripted().reply });
    const { output } = await openai.responses.create(ask);
    expect(output).toMatchObject([
      { type: 'message', content: [{ type: 'output_text', text: 'Let me look.' }] },
      { type: 'function_call', call_id: 'call_1_0', name: 'search', arguments: '{"q":"spring tides"}' },
      { type: 'function_call', call_id: 'call_1_1', name: 'now', arguments: '{}' },
    ]);
  });

  it('shows the items of a request to the script as messages of a chat', async () => {
    const { requests, reply } = scripted('Done.');
    const { openai } = await llmWith({ reply });
    await openai.responses.create({
      model: 'm',
      instructions: 'Be brief.',
      input: [
        { role: 'user', content: 'What makes tides?' },
        { type: 'function_call', call_id: 'call_1_0', name: 'search', arguments: '{}' },
        { type: 'function_call_output', call_id: 'call_1_0', output: 'The moon.' },
      ],
    });
    expect(requests[0]?.messages).toEqual([
      { role: 'system', content: 'Be brief.' },
      { role: 'user', content: 'What makes tides?' },
      {
        role: 'assistant',
        content: null,
        tool_calls: [{ id: 'call_1_0', type: 'function', function: { name: 'search', arguments: '{}' } }],
      },
      { role: 'tool', content: 'The moon.', tool_call_id: 'call_1_0' },
    ]);
  });

  it('streams the same response in named, numbered events', async () => {
    const { openai } = await llmWith({ reply: scripted().reply });
    const whole = await openai.responses.create(ask);
    const events = await all(await openai.responses.create({ ...ask, stream: true }));
    expect(events.map(({ sequence_number }) => sequence_number)).toEqual([...events.keys()]);
    expect(events.map(({ type }) => type.replace('response.', ''))).toEqual([
      'created',
      'in_progress',
      'output_item.added',
      'content_part.added',
      ...Array(3).fill('output_text.delta'),
      'output_text.done',
      'content_part.done',
      'output_item.done',
      'output_item.added',
      ...Array(2).fill('function_call_arguments.delta'),
      'function_call_arguments.done',
      'output_item.done',
      'output_item.added',
      'function_call_arguments.delta',
      'function_call_arguments.done',
      'output_item.done',
      'completed',
    ]);
    const last = events.at(-1);
    expect(last?.type === 'response.completed' && last.response.usage).toEqual(whole.usage);
    expect(
      events.flatMap((event) => (event.type === 'response.output_text.delta' ? [event.delta] : [])).join(''),
    ).toBe('Let me look.');
  });

  it('sends each event with its name on the wire', async () => {
    const { llm } = await llmWith({ reply: () => 'Yes.' });
    const text = await sent(llm, '/v1/responses', { ...ask, stream: true });
    expect(namesOf(text)).toEqual(typesOf(text));
    expect(text).not.toContain('[DONE]');
  });

  it('ends a reply that was cut off as incomplete', async () => {
    const { openai } = await llmWith({ reply: scripted({ text: 'The', finishReason: 'length' }).reply });
    const response = await openai.responses.create(ask);
    expect(response).toMatchObject({
      status: 'incomplete',
      incomplete_details: { reason: 'max_output_tokens' },
    });
    const events = await all(await openai.responses.create({ ...ask, stream: true }));
    expect(events.at(-1)?.type).toBe('response.incomplete');
  });

  it('rejects a body without an input, and a response that it has not kept', async () => {
    const { openai } = await llmWith();
    expect(await thrown(openai.responses.create({ model: 'm' }))).toMatchObject({ status: 400 });
    expect(await thrown(openai.responses.create({ ...ask, previous_response_id: 'resp_0' }))).toMatchObject({
      status: 400,
      message: expect.stringContaining('resp_0'),
    });
  });

  it('reports a failure in a stream as an event', async () => {
    const { llm, openai } = await llmWith();
    llm.faultNext({ type: 'stream-error', status: 429 });
    expect(await all(await openai.responses.create({ ...ask, stream: true }))).toMatchObject([
      { type: 'error', code: 'rate_limit_exceeded' },
    ]);
  });
});

describe('the Messages API of StubLlm, with the Anthropic SDK', () => {
  const ask = {
    model: 'm',
    max_tokens: 100,
    messages: [{ role: 'user' as const, content: 'What makes tides?' }],
  };

  it('answers with text and usage', async () => {
    const { llm, anthropic } = await llmWith({ reply: () => 'The moon does.' });
    const message = await anthropic.messages.create({ ...ask, system: 'Be brief.' });
    expect(message).toMatchObject({
      type: 'message',
      role: 'assistant',
      content: [{ type: 'text', text: 'The moon does.' }],
      stop_reason: 'end_turn',
      usage: { input_tokens: 5, output_tokens: 3 },
    });
    expect(llm.calls[0]?.key).toBe('key-1');
  });

  it('answers with tool calls', async () => {
    const { anthropic } = await llmWith({ reply: scripted().reply });
    const { content, stop_reason } = await anthropic.messages.create(ask);
    expect(stop_reason).toBe('tool_use');
    expect(content).toMatchObject([
      { type: 'text', text: 'Let me look.' },
      { type: 'tool_use', id: 'toolu_1_0', name: 'search', input: { q: 'spring tides' } },
      { type: 'tool_use', id: 'toolu_1_1', name: 'now', input: {} },
    ]);
  });

  it('shows the blocks of a request to the script as messages of a chat', async () => {
    const { requests, reply } = scripted('Done.');
    const { anthropic } = await llmWith({ reply });
    await anthropic.messages.create({
      ...ask,
      system: 'Be brief.',
      messages: [
        ...ask.messages,
        {
          role: 'assistant',
          content: [{ type: 'tool_use', id: 'toolu_1_0', name: 'search', input: { q: 'x' } }],
        },
        { role: 'user', content: [{ type: 'tool_result', tool_use_id: 'toolu_1_0', content: 'The moon.' }] },
      ],
    });
    expect(requests[0]?.messages).toEqual([
      { role: 'system', content: 'Be brief.' },
      { role: 'user', content: 'What makes tides?' },
      {
        role: 'assistant',
        content: null,
        tool_calls: [
          { id: 'toolu_1_0', type: 'function', function: { name: 'search', arguments: '{"q":"x"}' } },
        ],
      },
      { role: 'tool', content: 'The moon.', tool_call_id: 'toolu_1_0' },
    ]);
  });

  it('streams the same message', async () => {
    const { anthropic } = await llmWith({ reply: scripted().reply });
    const whole = await anthropic.messages.create(ask);
    const streamed = await anthropic.messages.stream(ask).finalMessage();
    expect(streamed).toMatchObject({
      ...whole,
      id: 'msg_2',
      content: [{}, { id: 'toolu_2_0' }, { id: 'toolu_2_1' }],
    });
    expect(streamed.content[1]).toMatchObject({ input: { q: 'spring tides' } });
  });

  it('sends each event with its name on the wire, the usage of the request first', async () => {
    const { llm } = await llmWith({ reply: () => 'Yes.' });
    const text = await sent(llm, '/v1/messages', { ...ask, stream: true });
    expect(namesOf(text)).toEqual(typesOf(text));
    expect(namesOf(text)).toEqual([
      'message_start',
      'ping',
      'content_block_start',
      'content_block_delta',
      'content_block_stop',
      'message_delta',
      'message_stop',
    ]);
  });

  it.each<[string, Fault, object]>([
    [
      'overload',
      { type: 'status', status: 529 },
      { status: 529, error: { error: { type: 'overloaded_error' } } },
    ],
    [
      'a rate limit',
      { type: 'status', status: 429 },
      { status: 429, error: { error: { type: 'rate_limit_error' } } },
    ],
    [
      'a wrong key',
      { type: 'status', status: 401 },
      { status: 401, error: { error: { type: 'authentication_error' } } },
    ],
    [
      'an empty balance',
      { type: 'status', status: 400, reason: 'quota' },
      { status: 400, message: expect.stringContaining('credit balance is too low') },
    ],
    [
      'overload, in a stream',
      { type: 'stream-error', status: 529 },
      { error: { error: { type: 'overloaded_error' } } },
    ],
  ])('reports %s as Anthropic does', async (_, fault, error) => {
    const { llm, anthropic } = await llmWith();
    llm.faultNext(fault);
    expect(await thrown(anthropic.messages.stream(ask).finalMessage())).toMatchObject(error);
  });

  it('rejects a body without a maximum of tokens', async () => {
    const { anthropic } = await llmWith();
    expect(await thrown(anthropic.messages.create({ ...ask, max_tokens: undefined as never }))).toMatchObject(
      {
        status: 400,
        error: { error: { message: 'max_tokens: Field required' } },
      },
    );
  });

  it('limits the rate of a key, with the headers of Anthropic', async () => {
    const { anthropic } = await llmWith({ rate: { limit: 1, perMs: 60_000 } });
    const { response } = await anthropic.messages.create(ask).withResponse();
    expect(response.headers.get('anthropic-ratelimit-requests-remaining')).toBe('0');
    const error = (await thrown(anthropic.messages.create(ask))) as { headers: Headers };
    expect(error).toMatchObject({ status: 429 });
    expect(Number(error.headers.get('retry-after'))).toBeGreaterThan(50);
    expect(Date.parse(error.headers.get('anthropic-ratelimit-requests-reset') ?? '')).toBeGreaterThan(
      Date.now(),
    );
  });
});

async function sent(llm: StubLlm, path: string, body: object): Promise<string> {
  const headers = { 'content-type': 'application/json' };
  const response = await fetch(`${llm.url}${path}`, { method: 'POST', headers, body: JSON.stringify(body) });
  return response.text();
}

const namesOf = (text: string): string[] => [...text.matchAll(/^event: (.+)$/gm)].map(([, name]) => name!);
const typesOf = (text: string): string[] =>
  [...text.matchAll(/^data: (.+)$/gm)].map(([, data]) => (JSON.parse(data!) as { type: string }).type);
