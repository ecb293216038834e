import { optional, options, wholeNumber } from '../internal/validate.js';
import { isSpentCode, judgeStatus, type Observed, type OutcomeJudgement, withBodyTime } from './classify.js';
import type { ServiceGateOptions } from './options.js';
import {
  type Content,
  contentOf,
  type Fields,
  fieldOf,
  fields,
  isErrorStatus,
  textOf,
} from './response-content.js';
import { headerOf, parseRetryAfter } from './retry-after.js';

/** Options for one kind of service: spread them into those of a `ServiceGate`, before your own. */
export type GatePreset = Pick<ServiceGateOptions, 'rate' | 'attemptTimeoutMs' | 'classify' | 'usage'>;

/** Windows are 50 ms longer than the limit says: calls take different times to arrive, on a busy machine even more so. */
const SECOND_MS = 1_050;
const MINUTE_MS = 60_050;
/** Half an hour: a long response of a reasoning model. */
const LLM_TIMEOUT_MS = 1_800_000;

const limitOf = (option: string, value: unknown): number => wholeNumber(option, value);

/**
 * An LLM behind an OpenAI-compatible interface: OpenAI itself, vLLM, SGLang and many others. Give the SDK
 * `maxRetries: 0`, and a fetch from `longFetch` if a response may take longer than five minutes.
 *
 * Tokens per minute are counted by `weight`. A call without one is estimated at the average of the calls before it, and
 * corrected from the `usage` of its result; of a stream, that takes `stream_options: { include_usage: true }`.
 *
 * @example
 * const llm = new ServiceGate({ name: 'llm', ...openAiPreset({ tokensPerMinute: 200_000 }), adaptive: { max: 64 } });
 */
export function openAiPreset(
  limits: {
    readonly requestsPerMinute?: number | undefined;
    readonly tokensPerMinute?: number | undefined;
  } = {},
): GatePreset {
  options('openAiPreset', limits, ['requestsPerMinute', 'tokensPerMinute']);
  const requests = optional('requestsPerMinute', limits.requestsPerMinute, limitOf);
  const tokens = optional('tokensPerMinute', limits.tokensPerMinute, limitOf);
  return {
    rate: [
      ...(requests === undefined ? [] : [{ limit: requests, perMs: MINUTE_MS }]),
      ...(tokens === undefined ? [] : [{ limit: tokens, perMs: MINUTE_MS, unit: 'weight' as const }]),
    ],
    attemptTimeoutMs: LLM_TIMEOUT_MS,
    classify: classifyOpenAi,
    ...(tokens === undefined ? {} : { usage: openAiUsage }),
  };
}

/** The tokens of a completion, of the last chunk of a stream, or of an event of the Responses API. */
function openAiUsage(result: unknown): number | undefined {
  const usage = fieldOf(result, 'usage') ?? fieldOf(fieldOf(result, 'response'), 'usage');
  const tokens = fieldOf(usage, 'total_tokens');
  return typeof tokens === 'number' ? tokens : undefined;
}

/** Web search by Serper. It sends no headers about its limits: 50 to 300 requests a second, by the pack bought. */
export function serperPreset(limits: { readonly perSecond?: number | undefined } = {}): GatePreset {
  options('serperPreset', limits, ['perSecond']);
  const limit = limitOf('perSecond', limits.perSecond ?? 50);
  return {
    rate: [{ limit, perMs: SECOND_MS }],
    attemptTimeoutMs: 20_000,
    classify: classifySerper,
  };
}

/** Jina's reader (500 requests a minute with a key) and search (100). Ask for JSON: its errors come under 200 as well. */
export function jinaPreset(limits: { readonly perMinute?: number | undefined } = {}): GatePreset {
  options('jinaPreset', limits, ['perMinute']);
  const limit = limitOf('perMinute', limits.perMinute ?? 500);
  return { rate: [{ limit, perMs: MINUTE_MS }], attemptTimeoutMs: 60_000, classify: classifyJina };
}

/**
 * Sandboxes by E2B: so many alive at once, so many created a second; the defaults are the smallest plan's. Keep a
 * sandbox inside one call, from `Sandbox.create` to `kill`, and its permit is its place. Give the SDK `retries: 0`.
 *
 * Only creations are worth another attempt, so let what happens in the sandbox fail with errors of your own.
 */
export function e2bPreset(
  limits: { readonly sandboxes?: number | undefined; readonly createsPerSecond?: number | undefined } = {},
): GatePreset & { readonly maxConcurrent: number } {
  options('e2bPreset', limits, ['sandboxes', 'createsPerSecond']);
  return {
    maxConcurrent: limitOf('sandboxes', limits.sandboxes ?? 20),
    rate: [{ limit: limitOf('createsPerSecond', limits.createsPerSecond ?? 1), perMs: SECOND_MS }],
    classify: classifyE2b,
  };
}

/** The statuses that OpenAI's error codes stand for, where an error has none: in an event, or under 200. */
const STATUS_OF: ReadonlyMap<unknown, number> = /* @__PURE__ */ new Map([
  ['rate_limit_exceeded', 429],
  ['invalid_api_key', 401],
  ['invalid_request_error', 400],
]);

/** What OpenAI-compatible servers add to HTTP: exhausted quotas under 429, errors under 200, advice on retries. */
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
  const isFinal = headerOf(headers, 'x-should-retry') === 'false';
  // A conflict is a lock that was not free in time.
  // vLLM and SGLang refuse a key with no more than a text, others with an object that is an error itself.
  const isOwn = content.format === 'json' && (isSent || textOf(sent) !== '' || body.object === 'error');
  const judgement = failed === 409 && !isFinal ? known('retryable', failed) : judged(failed, content, isOwn);
  // The advice is not about the next key.
  const isAdvised = judgement.class === 'retryable' || judgement.class === 'rate-limited';
  return isFinal && isAdvised ? { ...judgement, retry: false } : judgement;
}

/**
 * What a status means with its headers and its body. Only the form of the service itself takes a key out of use: any other
 * body, also in JSON, is that of an intermediary.
 */
const judged = (status: number, { body, headers }: Content, isOwn: boolean): OutcomeJudgement =>
  withBodyTime(judgeStatus(status, headers, !isOwn), body);

/** The error of a failure event of the Responses API. Its SDK yields such an event like any other. */
function errorOfEvent({ type, response, ...rest }: Fields): unknown {
  return type === 'response.failed' ? fields(response).error : type === 'error' ? rest : undefined;
}

/** The status that an error names by a number, or by a code of OpenAI. */
function statusIn({ code, type }: Fields): number | undefined {
  return [Number(code), STATUS_OF.get(code), STATUS_OF.get(type)].find(isErrorStatus);
}

/** Serper uses 429 for too many requests and, like 400, for an empty balance: only the text differs. */
export async function classifySerper(observed: Observed): Promise<OutcomeJudgement | undefined> {
  const content = await contentOf(observed);
  const { body, status } = content;
  const failed = status ?? body.statusCode;
  if (!isErrorStatus(failed)) return undefined;
  const message = textOf(body.message);
  if (/credit|balance|quota/i.test(message)) return known('quota-exhausted', failed);
  // Its own words may have become the message of a client's error.
  const isOwn =
    content.format !== 'html' && (/unauthorized/i.test(message) || isErrorStatus(body.statusCode));
  return judged(failed, content, isOwn);
}

/** The body of Jina has the actual status, whatever that of HTTP, and a time where the headers have none. */
export async function classifyJina(observed: Observed): Promise<OutcomeJudgement | undefined> {
  const content = await contentOf(observed);
  const { body, status } = content;
  const failed = isErrorStatus(body.code) && body.data === null ? body.code : status;
  if (!isErrorStatus(failed)) return undefined;
  // The page has run over the budget of tokens that the caller set for it.
  if (failed === 409) return known('client-error', failed);
  // Refusing a page is not refusing the key.
  if (failed === 403 && content.format === 'json' && !/auth|key/i.test(textOf(body.name)))
    return known('client-error', failed);
  const judgement = judged(failed, content, isErrorStatus(body.code));
  if (judgement.class !== 'rate-limited' || judgement.retryAfterMs !== undefined) return judgement;
  const seconds = typeof body.retryAfter === 'number' && body.retryAfter >= 0 ? body.retryAfter : undefined;
  const retryAfterMs =
    seconds === undefined ? parseRetryAfter(asHttpDate(body.retryAfterDate)) : seconds * 1_000;
  return retryAfterMs === undefined ? judgement : { ...judgement, retryAfterMs };
}

/** E2B counts a killed sandbox for a moment longer: its cap passes soon, unlike the rate, for which it gives a time. */
export async function classifyE2b(observed: Observed): Promise<OutcomeJudgement | undefined> {
  const content = await contentOf(observed);
  const { body, status } = content;
  const failed = status ?? body.code;
  const said = `${textOf(body.message)} ${observed.kind === 'error' ? textOf(fieldOf(observed.error, 'message')) : ''}`;
  if (failed === 429 && /maximum number of concurrent/i.test(said)) {
    return { class: 'retryable', status: 429, retryAfterMs: 1_000 };
  }
  if (observed.kind === 'error') {
    // The SDK's own class for 401 has neither status nor code.
    if (fieldOf(observed.error, 'name') === 'AuthenticationError') return { class: 'unauthorized' };
    // The command was too slow, not the service.
    if (said.includes('[deadline_exceeded]')) return { class: 'client-error' };
  }
  if (failed !== 401 && failed !== 402 && failed !== 403) return undefined;
  // The SDK keeps of a body only its message, behind the status.
  const isOfSdk = content.format !== 'html' && said.trim().startsWith(`${failed}: `);
  return judged(failed, content, isErrorStatus(body.code) || isOfSdk);
}

const asHttpDate = (value: unknown): string => {
  const moment = Date.parse(textOf(value));
  return Number.isNaN(moment) ? '' : new Date(moment).toUTCString();
};

function known(said: OutcomeJudgement['class'], status: unknown): OutcomeJudgement {
  return isErrorStatus(status) ? { class: said, status } : { class: said };
}
