import { goDuration } from './fault.js';
import {
  isObject,
  type LlmAnswer,
  type LlmInterface,
  type LlmRequest,
  type StreamedEvent,
  sse,
  tokensOf,
} from './llm-answer.js';
import type { RateDecision } from './stub-rate.js';
import type { Refusal } from './stub-service.js';

const REFUSALS: Readonly<Record<number, string>> = {
  403: 'You do not have access to this resource.',
  404: 'Not Found',
};

/** vLLM's error format: `type` is the reason phrase, `code` the status. */
const FAILURES: Readonly<Record<number, readonly [type: string, message: string]>> = {
  503: ['Service Unavailable', 'The server is overloaded, please try again later.'],
  504: ['Gateway Timeout', 'The server did not answer in time.'],
};

/** The `error` of OpenAI and, from 500 on, of vLLM. */
export function openAiError(
  status: number,
  { reason, retryAfter }: Refusal,
  message?: string,
): { readonly message: string; readonly type: string; readonly param: null; readonly code: unknown } {
  const error = (text: string, type: string, code: unknown = null) => ({
    message: message ?? text,
    type,
    param: null,
    code,
  });
  if (status === 429 && reason === 'rate') {
    const wait = retryAfter === undefined ? '' : ` Please try again in ${goDuration(retryAfter.ms)}.`;
    return error(`Rate limit reached for requests.${wait}`, 'requests', 'rate_limit_exceeded');
  }
  if (status === 429 || status === 402) {
    const text = 'You exceeded your current quota, please check your plan and billing details.';
    return error(text, 'insufficient_quota', 'insufficient_quota');
  }
  if (status === 401) return error('Incorrect API key provided.', 'invalid_request_error', 'invalid_api_key');
  if (status < 500) {
    const code = status === 404 && message !== undefined ? 'model_not_found' : null;
    return error(REFUSALS[status] ?? 'Bad request', 'invalid_request_error', code);
  }
  const [type, text] = FAILURES[status] ?? ['Internal Server Error', 'The server had an error.'];
  return error(text, type, status);
}

export const openAiHeaders = (callId: number, rate: RateDecision | undefined): Record<string, string> => ({
  'x-request-id': `req_${callId}`,
  ...(rate && {
    'x-ratelimit-limit-requests': String(rate.limit),
    'x-ratelimit-remaining-requests': String(rate.remaining),
    'x-ratelimit-reset-requests': goDuration(rate.resetMs),
  }),
  ...(rate?.admitted === false && { 'retry-after-ms': String(Math.ceil(rate.waitMs)) }),
});

/** OpenAI's chat completions, as vLLM, SGLang and many others serve them too. */
export const chatCompletions: LlmInterface = {
  path: '/v1/chat/completions',
  tail: 'data: [DONE]\n\n',
  read: (body) =>
    isObject(body) && typeof body.model === 'string' && Array.isArray(body.messages) && (body.n ?? 1) === 1
      ? (body as LlmRequest)
      : 'The body must be JSON with a model and a list of messages, for one choice.',
  complete: (answer) => ({
    ...envelope(answer, 'chat.completion'),
    choices: [
      {
        index: 0,
        message: {
          role: 'assistant',
          content: answer.text,
          refusal: null,
          ...(answer.toolCalls.length > 0 && {
            tool_calls: answer.toolCalls.map((call, i) => ({
              id: `call_${answer.callId}_${i}`,
              type: 'function',
              function: call,
            })),
          }),
        },
        logprobs: null,
        finish_reason: answer.finishReason,
      },
    ],
    usage: usageOf(answer),
  }),
  /** Role, tokens, finish reason, and usage if requested. */
  *stream(answer) {
    let tokens = 0;
    const event = (delta: object, finishReason: string | null = null): StreamedEvent => {
      const choice = { index: 0, delta, logprobs: null, finish_reason: finishReason };
      return [sse({ ...envelope(answer, 'chat.completion.chunk'), choices: [choice] }), tokens];
    };
    const token = (delta: object): StreamedEvent => {
      tokens++;
      return event(delta);
    };
    yield event({ role: 'assistant', content: '' });
    for (const content of tokensOf(answer.text ?? '')) yield token({ content });
    for (const [index, { name, arguments: args }] of answer.toolCalls.entries()) {
      const id = `call_${answer.callId}_${index}`;
      yield token({ tool_calls: [{ index, id, type: 'function', function: { name, arguments: '' } }] });
      for (const piece of tokensOf(args))
        yield token({ tool_calls: [{ index, function: { arguments: piece } }] });
    }
    yield event({}, answer.finishReason);
    if (answer.request.stream_options?.include_usage === true) {
      const usage = { ...envelope(answer, 'chat.completion.chunk'), choices: [], usage: usageOf(answer) };
      yield [sse(usage), tokens];
    }
  },
  error: (...refused) => ({ error: openAiError(...refused) }),
  errorEvent: (...refused) => sse({ error: openAiError(...refused) }),
  headers: openAiHeaders,
};

const envelope = ({ callId, created, request }: LlmAnswer, object: string) => ({
  id: `chatcmpl-${callId}`,
  object,
  created,
  model: request.model,
});

const usageOf = ({ inputTokens, tokens }: LlmAnswer) => ({
  prompt_tokens: inputTokens,
  completion_tokens: tokens,
  total_tokens: inputTokens + tokens,
});
