import { fieldOf } from '../internal/redaction.js';
import { optional, options, wholeNumber } from '../internal/validate.js';
import { type Classifier, isSpentCode, known, type Observed, type OutcomeJudgement } from './classify.js';
import type { GateCost, UsageReader } from './options.js';
import { type GatePreset, judged, MINUTE_MS } from './presets.js';
import { contentOf, type Fields, fields, isErrorStatus, textOf } from './response-content.js';
import { type HeaderSource, headerOf } from './retry-after.js';
import { anthropicUsage, geminiUsage, openAiUsage } from './token-usage.js';

/**
 * An LLM behind an OpenAI-compatible interface: OpenAI itself, vLLM, SGLang and many others. Give the SDK
 * `maxRetries: 0`, and a fetch from `longFetch` if a response may take longer than five minutes.
 *
 * Tokens per minute are counted by `weight`. A call without one is estimated, by `fetch` from its request and otherwise at
 * the average of the calls before it, and corrected from the `usage` of its response: of a chat completion, of the Responses
 * API, and of their streams. A stream of chat completions has it with `stream_options: { include_usage: true }`.
 *
 * @example
 * const llm = new ServiceGate({ name: 'llm', ...openAiPreset({ tokensPerMinute: 200_000 }), adaptive: { max: 64 } });
 */
export const openAiPreset = (limits: LlmLimits = {}): GatePreset =>
  llmPreset('openAiPreset', 'openai', limits, classifyOpenAi, openAiUsage);

/**
 * Claude behind Anthropic's Messages API. Give the SDK `maxRetries: 0`. Tokens are counted as `openAiPreset` does, input and
 * output together, without what is read from the prompt cache; Anthropic limits each of them, so declare the smaller limit,
 * or let `pace: 'headers'` follow both.
 *
 * @example
 * const claude = new ServiceGate({ name: 'claude', ...anthropicPreset({ requestsPerMinute: 50 }), keys });
 */
export const anthropicPreset = (limits: LlmLimits = {}): GatePreset =>
  llmPreset('anthropicPreset', 'anthropic', limits, classifyAnthropic, anthropicUsage);

/**
 * Gemini behind Google's `generateContent`, of the Gemini API or of Vertex AI. It sends no headers about its limits, but the
 * time of the next attempt in the body of a 429. Tokens are counted as `openAiPreset` does.
 *
 * @example
 * const gemini = new ServiceGate({ name: 'gemini', ...geminiPreset({ requestsPerMinute: 10 }), keys });
 */
export const geminiPreset = (limits: LlmLimits = {}): GatePreset =>
  llmPreset('geminiPreset', 'gcp.gemini', limits, classifyGemini, geminiUsage);

/** Limits of the account, or of each key. */
export interface LlmLimits {
  readonly requestsPerMinute?: number | undefined;
  readonly tokensPerMinute?: number | undefined;
}

/** Half an hour: a long response of a reasoning model. */
const LLM_TIMEOUT_MS = 1_800_000;

function llmPreset(
  name: string,
  provider: string,
  limits: LlmLimits,
  classify: Classifier,
  usage: UsageReader,
): GatePreset {
  options(name, limits, ['requestsPerMinute', 'tokensPerMinute']);
  const requests = optional('requestsPerMinute', limits.requestsPerMinute, wholeNumber);
  const tokens = optional('tokensPerMinute', limits.tokensPerMinute, wholeNumber);
  return {
    rate: [
      ...(requests === undefined ? [] : [{ limit: requests, perMs: MINUTE_MS }]),
      ...(tokens === undefined ? [] : [{ limit: tokens, perMs: MINUTE_MS, unit: 'weight' as const }]),
    ],
    attemptTimeoutMs: LLM_TIMEOUT_MS,
    classify,
    usage,
    estimate: estimateTokens,
    cost: TOKENS,
    provider,
  };
}

/** An LLM spends tokens: those that the weight of a call stands for. */
const TOKENS: GateCost<'tokens'> = {
  estimate: ({ weight }) => ({ tokens: weight }),
  actual: (_, weight) => ({ tokens: weight }),
};

/** English text has about four characters to a token. */
const CHARS_PER_TOKEN = 4;
/** What a response is taken to have where the request sets no maximum. */
const RESPONSE_TOKENS = 500;
/** How many values of a request are read. */
const MAX_VALUES = 100_000;
const MAX_TOKENS = ['max_completion_tokens', 'max_output_tokens', 'max_tokens', 'maxOutputTokens'];

/** The text of a request over four, and the tokens that it allows for the response. Images and files are not counted. */
function estimateTokens(request: unknown): number | undefined {
  if (typeof request !== 'object' || request === null) return undefined;
  // Gemini has it in the settings of the response, as REST and its SDK call them.
  const settings = [request, fieldOf(request, 'generationConfig'), fieldOf(request, 'config')];
  const limited = settings.flatMap((from) => MAX_TOKENS.map((name) => fieldOf(from, name)));
  const response = limited.find((value) => typeof value === 'number') ?? RESPONSE_TOKENS;
  return Math.ceil(charsIn(request) / CHARS_PER_TOKEN) + (response as number);
}

/** The characters of all text in a request, without encoded data. */
function charsIn(request: object): number {
  const parts: unknown[] = [request];
  let chars = 0;
  for (let i = 0; i < parts.length; i++) {
    const part = parts[i];
    if (typeof part === 'string' && !part.startsWith('data:')) chars += part.length;
    if (typeof part !== 'object' || part === null || parts.length > MAX_VALUES) continue;
    if (Array.isArray(part)) for (const value of part.slice(0, MAX_VALUES)) parts.push(value);
    else
      for (const [name, value] of Object.entries(part))
        if (!/^(data|file_data)$/.test(name)) parts.push(value);
  }
  return chars;
}

/** The statuses that OpenAI's error codes stand for, where an error has none: in an event, or under 200. */
const STATUS_OF: ReadonlyMap<unknown, number> = /* @__PURE__ */ new Map([
  ['rate_limit_exceeded', 429],
  ['invalid_api_key', 401],
  ['invalid_request_error', 400],
]);

/**
 * What OpenAI-compatible servers add to HTTP: exhausted quotas under 429, errors under 200, advice on retries.
 *
 * @example
 * new ServiceGate({ name: 'llm', keys, classify: classifyOpenAi });
 */
export async function classifyOpenAi(observed: Observed): Promise<OutcomeJudgement | undefined> {
  // A stream has at least the chunk of the role. In an error under 200 the SDK finds no event.
  if (observed.kind === 'no-item') return { class: 'retryable' };
  const content = await contentOf(observed);
  const { body, headers, status } = content;
  const inBody = body.error ?? errorOfEvent(body);
  const error = fields(inBody ?? body);
  // The error object of the server: the SDK has it on its own error, and none if it failed itself.
  const sent = (observed.kind === 'error' ? fieldOf(observed.error, 'error') : undefined) ?? inBody;
  const isSent = typeof sent === 'object' && sent !== null;
  const failed = status ?? (isSent ? statusIn(error) : undefined);
  if (isSpentCode(error.code) || isSpentCode(error.type)) return known('quota-exhausted', failed);
  if (failed === undefined) return isSent ? { class: 'retryable' } : undefined;
  // A conflict is a lock that was not free in time.
  // vLLM and SGLang refuse a key with no more than a text, others with an object that is an error itself.
  const isOwn = content.format === 'json' && (isSent || textOf(sent) !== '' || body.object === 'error');
  const isLocked = failed === 409 && !isFinal(headers);
  return advised(isLocked ? known('retryable', failed) : judged(failed, content, isOwn), headers);
}

/** The error of a failure event of the Responses API. Its SDK yields such an event like any other. */
function errorOfEvent(body: Fields): unknown {
  if (body.type === 'response.failed') return fields(body.response).error;
  return body.type === 'error' ? { code: body.code } : undefined;
}

/** The status that an error names by a number, or by a code of OpenAI. */
function statusIn({ code, type }: Fields): number | undefined {
  return [Number(code), STATUS_OF.get(code), STATUS_OF.get(type)].find(isErrorStatus);
}

/** The statuses that Anthropic's types of errors stand for, where an error has none: in an event of a stream. */
const ANTHROPIC_STATUS: ReadonlyMap<unknown, number> = /* @__PURE__ */ new Map([
  ['invalid_request_error', 400],
  ['authentication_error', 401],
  ['billing_error', 402],
  ['permission_error', 403],
  ['not_found_error', 404],
  ['request_too_large', 413],
  ['rate_limit_error', 429],
  ['api_error', 500],
  ['timeout_error', 504],
  ['overloaded_error', 529],
]);

/**
 * Anthropic reports an empty balance and a spend limit under 400 or 429, and overload in events of a stream that has begun.
 *
 * @example
 * new ServiceGate({ name: 'claude', keys, classify: classifyAnthropic });
 */
export async function classifyAnthropic(observed: Observed): Promise<OutcomeJudgement | undefined> {
  if (observed.kind === 'no-item') return { class: 'retryable' };
  const content = await contentOf(observed);
  const { body, headers } = content;
  const error = fields(body.error);
  const isOwn = body.type === 'error' && ANTHROPIC_STATUS.has(error.type);
  const failed = content.status ?? (isOwn ? ANTHROPIC_STATUS.get(error.type) : undefined);
  if (failed === undefined) return undefined;
  const isSpent =
    fieldOf(error.details, 'error_code') === 'enforced_spend_limit_reached' ||
    (failed === 400 &&
      /credit balance is too low|reached your specified API usage limits/i.test(textOf(error.message)));
  if (isOwn && isSpent) return known('quota-exhausted', failed);
  return advised(judged(failed, content, isOwn), headers);
}

/**
 * Gemini rejects a wrong key with 400, and says by the name of the quota whether a 429 is about a minute or a day: the time
 * that it gives for a day is too short.
 *
 * @example
 * new ServiceGate({ name: 'gemini', keys, classify: classifyGemini });
 */
export async function classifyGemini(observed: Observed): Promise<OutcomeJudgement | undefined> {
  if (observed.kind === 'no-item') return { class: 'retryable' };
  const content = await contentOf(observed);
  const error = googleErrorIn(content.body);
  const isOwn = isErrorStatus(error.code) && typeof error.status === 'string';
  const failed = content.status ?? (isOwn ? error.code : undefined);
  if (!isErrorStatus(failed)) return undefined;
  const details = itemsIn(error.details);
  const reasons = details
    .map((detail) => textOf(fieldOf(detail, 'reason')))
    .filter((reason) => reason !== '');
  if (isOwn && reasons.includes('API_KEY_INVALID')) return known('unauthorized', failed);
  const violations = details.flatMap((detail) => itemsIn(fieldOf(detail, 'violations')));
  const isDaily = violations.some((violation) => /PerDay/i.test(textOf(fieldOf(violation, 'quotaId'))));
  if (isOwn && failed === 429 && isDaily) return known('quota-exhausted', failed);
  // Refusing a file or a model is not refusing the key.
  if (isOwn && failed === 403 && reasons.length === 0 && !/api key/i.test(textOf(error.message)))
    return known('client-error', failed);
  return judged(failed, { ...content, body: error }, isOwn);
}

/** The first items of a foreign list. */
const itemsIn = (value: unknown): readonly unknown[] => (Array.isArray(value) ? value.slice(0, 20) : []);

/** The `error` of a body. A stream puts it into a list; its SDK, as text, into the message of another one. */
function googleErrorIn(body: Fields): Fields {
  const error = fields(body.error ?? fieldOf(body['0'], 'error') ?? body);
  const message = textOf(error.message);
  if (!message.startsWith('{')) return error;
  try {
    return fields(fieldOf(JSON.parse(message), 'error') ?? error);
  } catch {
    return error;
  }
}

const isFinal = (headers: HeaderSource): boolean => headerOf(headers, 'x-should-retry') === 'false';

/** The service's own advice about retries, which is not about the next key. */
function advised(judgement: OutcomeJudgement, headers: HeaderSource): OutcomeJudgement {
  const isAbout = judgement.class === 'retryable' || judgement.class === 'rate-limited';
  return isAbout && isFinal(headers) ? { ...judgement, retry: false } : judgement;
}
