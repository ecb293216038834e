import { openAiError, openAiHeaders } from './chat-completions.js';
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

/**
 * OpenAI's Responses API, without stored state: a request has all its items in `input`. Tool calls and their outputs are
 * items, and events have names and sequence numbers.
 */
export const responses: LlmInterface = {
  path: '/v1/responses',
  tail: '',
  read(body) {
    if (!isObject(body) || typeof body.model !== 'string')
      return 'The body must be JSON with a model and an input.';
    if (typeof body.input !== 'string' && !Array.isArray(body.input)) {
      return "Missing required parameter: 'input'.";
    }
    if (typeof body.previous_response_id === 'string') {
      return `Previous response with id '${body.previous_response_id}' not found.`;
    }
    return { ...body, messages: messagesOf(body) } as LlmRequest;
  },
  complete: (answer) => responseOf(answer, 'completed', outputOf(answer)),
  *stream(answer) {
    let sequence = 0;
    let tokens = 0;
    const event = (type: string, fields: object): StreamedEvent => [
      sse({ type, sequence_number: sequence++, ...fields }, type),
      tokens,
    ];
    const started = { response: responseOf(answer, 'in_progress', []) };
    yield event('response.created', started);
    yield event('response.in_progress', started);
    const output = outputOf(answer);
    for (const [output_index, item] of output.entries()) {
      const at = { item_id: item.id, output_index };
      const empty = item.type === 'message' ? { content: [] } : { arguments: '' };
      if (item.type === 'function_call') tokens++;
      yield event('response.output_item.added', {
        output_index,
        item: { ...item, ...empty, status: 'in_progress' },
      });
      if (item.type === 'message') {
        const [part] = item.content;
        const inPart = { ...at, content_index: 0 };
        yield event('response.content_part.added', { ...inPart, part: { ...part, text: '' } });
        for (const delta of tokensOf(part.text)) {
          tokens++;
          yield event('response.output_text.delta', { ...inPart, delta, logprobs: [] });
        }
        yield event('response.output_text.done', { ...inPart, text: part.text, logprobs: [] });
        yield event('response.content_part.done', { ...inPart, part });
      } else {
        for (const delta of tokensOf(item.arguments)) {
          tokens++;
          yield event('response.function_call_arguments.delta', { ...at, delta });
        }
        const { name, arguments: args } = item;
        yield event('response.function_call_arguments.done', { ...at, name, arguments: args });
      }
      yield event('response.output_item.done', { output_index, item });
    }
    const response = responseOf(answer, 'completed', output);
    yield event(`response.${response.status}`, { response });
  },
  error: (...refused) => ({ error: openAiError(...refused) }),
  errorEvent(...refused) {
    const { code, message, param } = openAiError(...refused);
    const name = typeof code === 'string' ? code : 'server_error';
    return sse({ type: 'error', code: name, message, param, sequence_number: 0 }, 'error');
  },
  headers: openAiHeaders,
};

/** The items of a request as messages of a chat. */
function messagesOf({ instructions, input }: Body): readonly LlmMessage[] {
  const system = typeof instructions === 'string' ? [{ role: 'system', content: instructions }] : [];
  if (typeof input === 'string') return [...system, { role: 'user', content: input }];
  return [...system, ...objectsIn(input).flatMap(messageOf)];
}

function messageOf(item: Body): readonly LlmMessage[] {
  const { type = 'message', call_id: id } = item;
  if (type === 'function_call') {
    const call = { id, type: 'function', function: { name: item.name, arguments: item.arguments } };
    return [{ role: 'assistant', content: null, tool_calls: [call] } as LlmMessage];
  }
  if (type === 'function_call_output') {
    return [{ role: 'tool', content: item.output, tool_call_id: id } as LlmMessage];
  }
  // Reasoning and references have no counterpart.
  return type === 'message' ? [{ role: String(item.role), content: item.content }] : [];
}

function outputOf({ callId, text, toolCalls }: LlmAnswer) {
  const calls = toolCalls.map((call, i) => ({
    id: `fc_${callId}_${i}`,
    type: 'function_call' as const,
    status: 'completed',
    call_id: `call_${callId}_${i}`,
    ...call,
  }));
  if (text === null) return calls;
  const message = {
    id: `msg_${callId}`,
    type: 'message' as const,
    status: 'completed',
    role: 'assistant',
    content: [{ type: 'output_text', text, annotations: [], logprobs: [] }] as const,
  };
  return [message, ...calls];
}

function responseOf(answer: LlmAnswer, state: 'in_progress' | 'completed', output: readonly object[]) {
  const { callId, created, request, finishReason, inputTokens, tokens } = answer;
  const cutOff = { length: 'max_output_tokens', content_filter: 'content_filter' }[finishReason as string];
  const isCutOff = state === 'completed' && cutOff !== undefined;
  return {
    id: `resp_${callId}`,
    object: 'response',
    created_at: created,
    status: isCutOff ? 'incomplete' : state,
    error: null,
    incomplete_details: isCutOff ? { reason: cutOff } : null,
    instructions: request.instructions ?? null,
    max_output_tokens: request.max_output_tokens ?? null,
    model: request.model,
    output,
    parallel_tool_calls: request.parallel_tool_calls ?? true,
    previous_response_id: null,
    reasoning: { effort: null, summary: null },
    store: request.store ?? true,
    temperature: request.temperature ?? 1,
    text: request.text ?? { format: { type: 'text' } },
    tool_choice: request.tool_choice ?? 'auto',
    tools: request.tools ?? [],
    top_p: request.top_p ?? 1,
    truncation: 'disabled',
    usage:
      state === 'in_progress'
        ? null
        : {
            input_tokens: inputTokens,
            input_tokens_details: { cached_tokens: 0 },
            output_tokens: tokens,
            output_tokens_details: { reasoning_tokens: 0 },
            total_tokens: inputTokens + tokens,
          },
    metadata: request.metadata ?? {},
  };
}
