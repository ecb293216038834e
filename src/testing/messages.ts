import {
  type Body,
  isObject,
  type LlmAnswer,
  type LlmInterface,
  type LlmMessage,
  type LlmRequest,
  objectsIn,
  type StreamedEvent,
  sse,
  tokensOf,
} from './llm-answer.js';
import type { Refusal } from './stub-service.js';

const ERRORS: Readonly<Record<number, readonly [type: string, message: string]>> = {
  400: ['invalid_request_error', 'Bad request'],
  401: ['authentication_error', 'invalid x-api-key'],
  402: ['billing_error', 'Your account has a billing issue.'],
  403: ['permission_error', 'Your API key does not have permission to use the specified resource.'],
  404: ['not_found_error', 'Not Found'],
  413: ['request_too_large', 'Request exceeds the maximum size'],
  429: ['rate_limit_error', "This request would exceed your organization's rate limit."],
  504: ['timeout_error', 'The request timed out while processing.'],
  529: ['overloaded_error', 'Overloaded'],
};

/** How the finish reasons of a chat are called. */
const STOP_REASONS = {
  stop: 'end_turn',
  length: 'max_tokens',
  tool_calls: 'tool_use',
  content_filter: 'refusal',
} as const;

/** Anthropic's Messages API. An empty balance is a 400 there. */
export const messages: LlmInterface = {
  path: '/v1/messages',
  tail: '',
  read(body) {
    if (!isObject(body) || typeof body.model !== 'string') return 'model: Field required';
    if (typeof body.max_tokens !== 'number') return 'max_tokens: Field required';
    if (!Array.isArray(body.messages)) return 'messages: Field required';
    return { ...body, messages: messagesOf(body) } as LlmRequest;
  },
  complete: (answer) => ({
    ...messageOf(answer),
    content: contentOf(answer).map(({ block }) => block),
    stop_reason: STOP_REASONS[answer.finishReason],
    usage: usageOf(answer, answer.tokens),
  }),
  *stream(answer) {
    let tokens = 0;
    const event = (type: string, fields: object = {}): StreamedEvent => [
      sse({ type, ...fields }, type),
      tokens,
    ];
    // A token of the reply has been made before the first event is sent.
    yield event('message_start', { message: { ...messageOf(answer), usage: usageOf(answer, 1) } });
    yield event('ping');
    for (const [index, { block, streamed }] of contentOf(answer).entries()) {
      const isText = block.type === 'text';
      if (!isText) tokens++;
      const empty = isText ? { text: '' } : { input: {} };
      yield event('content_block_start', { index, content_block: { ...block, ...empty } });
      for (const piece of tokensOf(streamed)) {
        tokens++;
        const delta = isText
          ? { type: 'text_delta', text: piece }
          : { type: 'input_json_delta', partial_json: piece };
        yield event('content_block_delta', { index, delta });
      }
      yield event('content_block_stop', { index });
    }
    yield event('message_delta', {
      delta: { stop_reason: STOP_REASONS[answer.finishReason], stop_sequence: null },
      usage: { output_tokens: tokens },
    });
    yield event('message_stop');
  },
  error: errorBody,
  errorEvent: (...refused) => sse(errorBody(...refused), 'error'),
  headers: (callId, rate) => ({
    'request-id': `req_${callId}`,
    ...(rate && {
      'anthropic-ratelimit-requests-limit': String(rate.limit),
      'anthropic-ratelimit-requests-remaining': String(rate.remaining),
      'anthropic-ratelimit-requests-reset': new Date(Date.now() + rate.resetMs).toISOString(),
    }),
  }),
};

function errorBody(status: number, { reason }: Refusal, message?: string): unknown {
  const isEmpty = reason === 'quota';
  const [type, text] = isEmpty
    ? ['invalid_request_error', 'Your credit balance is too low to access the Anthropic API.']
    : (ERRORS[status] ?? ['api_error', 'Internal server error']);
  return { type: 'error', error: { type, message: message ?? text } };
}

/** System prompt and content blocks as messages of a chat. */
function messagesOf({ system, messages: given }: Body): readonly LlmMessage[] {
  const prompt = system === undefined ? [] : [{ role: 'system', content: system }];
  return [...prompt, ...objectsIn(given).flatMap(chatMessagesOf)];
}

function chatMessagesOf({ role, content }: Body): readonly LlmMessage[] {
  const blocks = objectsIn(content);
  const results = blocks.filter(({ type }) => type === 'tool_result');
  const tools = results.map(
    (result) => ({ role: 'tool', content: result.content, tool_call_id: result.tool_use_id }) as LlmMessage,
  );
  const calls = blocks
    .filter(({ type }) => type === 'tool_use')
    .map(({ id, name, input }) => ({
      id,
      type: 'function',
      function: { name, arguments: JSON.stringify(input) },
    }));
  const others = Array.isArray(content) ? blocks.filter(({ type }) => type === 'text') : content;
  const isOnlyTools = Array.isArray(others) && others.length === 0 && blocks.length > 0;
  if (isOnlyTools && calls.length === 0) return tools;
  const message = {
    role: String(role),
    content: isOnlyTools ? null : others,
    ...(calls.length > 0 && { tool_calls: calls }),
  };
  return [...tools, message];
}

/** The content blocks, and what of each is streamed. */
function contentOf({ callId, text, toolCalls }: LlmAnswer) {
  const calls = toolCalls.map(({ name, arguments: args }, i) => ({
    block: { type: 'tool_use', id: `toolu_${callId}_${i}`, name, input: parsed(args) },
    streamed: args,
  }));
  if (text === null || (text === '' && calls.length > 0)) return calls;
  return [{ block: { type: 'text', text }, streamed: text }, ...calls];
}

/** Anthropic's tool inputs are objects: what is none becomes an empty one, as when a reply is cut off. */
function parsed(args: string): unknown {
  try {
    return JSON.parse(args);
  } catch {
    return {};
  }
}

const messageOf = ({ callId, request }: LlmAnswer) => ({
  id: `msg_${callId}`,
  type: 'message',
  role: 'assistant',
  model: request.model,
  content: [],
  stop_reason: null as string | null,
  stop_sequence: null,
});

const usageOf = ({ inputTokens }: LlmAnswer, tokens: number) => ({
  input_tokens: inputTokens,
  cache_creation_input_tokens: 0,
  cache_read_input_tokens: 0,
  output_tokens: tokens,
});
