/** How many tokens a response, or an item of a stream, reports. `undefined` for what reports none. */
import { fieldOf } from '../internal/redaction.js';

/** How many tokens a model has generated, as OpenAI, Anthropic and Gemini report it. */
export function outputTokensOf(value: unknown): number | undefined {
  const usage = usageOf(value);
  const gemini = fieldOf(value, 'usageMetadata');
  return (
    countIn(usage, 'completion_tokens') ??
    countIn(usage, 'output_tokens') ??
    sumIn(gemini, 'candidatesTokenCount', 'thoughtsTokenCount')
  );
}

/** How many tokens a request had, as OpenAI, Anthropic (which counts those of its cache apart) and Gemini report it. */
export function inputTokensOf(value: unknown): number | undefined {
  const usage = usageOf(value) ?? fieldOf(fieldOf(value, 'message'), 'usage');
  return (
    countIn(usage, 'prompt_tokens') ??
    sumIn(usage, 'input_tokens', 'cache_creation_input_tokens', 'cache_read_input_tokens') ??
    countIn(fieldOf(value, 'usageMetadata'), 'promptTokenCount')
  );
}

/** All tokens of a call, as OpenAI reports them. */
export function openAiUsage(value: unknown): number | undefined {
  const usage = usageOf(value);
  const input = countIn(usage, 'input_tokens');
  const output = countIn(usage, 'output_tokens');
  return (
    countIn(usage, 'total_tokens') ??
    (input === undefined || output === undefined ? undefined : input + output)
  );
}

/**
 * All tokens of a message. A stream has those of the request in its first event, and counts those of the response up in later
 * ones, where newer versions of the API repeat the former. A prompt that is read from the cache counts against no limit.
 */
export function anthropicUsage(value: unknown, previous: number | undefined): number | undefined {
  const isStart = fieldOf(value, 'type') === 'message_start';
  const usage = fieldOf(isStart ? fieldOf(value, 'message') : value, 'usage');
  const request = sumIn(usage, 'input_tokens', 'cache_creation_input_tokens') ?? previous;
  if (isStart || request === undefined) return request;
  const output = countIn(usage, 'output_tokens');
  return output === undefined ? undefined : request + output;
}

/** All tokens of a response, or of a chunk: each has those of the chunks before it. */
export const geminiUsage = (value: unknown): number | undefined =>
  countIn(fieldOf(value, 'usageMetadata'), 'totalTokenCount');

/** The usage in a completion, in the last chunk of a stream, or in an event of the Responses API. */
const usageOf = (value: unknown): unknown =>
  fieldOf(value, 'usage') ?? fieldOf(fieldOf(value, 'response'), 'usage');

function countIn(usage: unknown, name: string): number | undefined {
  const tokens = fieldOf(usage, name);
  return typeof tokens === 'number' && tokens >= 0 && tokens < Number.POSITIVE_INFINITY ? tokens : undefined;
}

/** The first count with those that are there besides. */
function sumIn(usage: unknown, name: string, ...others: readonly string[]): number | undefined {
  const count = countIn(usage, name);
  return count === undefined
    ? undefined
    : others.reduce((sum, other) => sum + (countIn(usage, other) ?? 0), count);
}
