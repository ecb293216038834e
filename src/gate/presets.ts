import { optional, options, wholeNumber } from '../internal/validate.js';
import type { ServiceGateOptions } from './gate-options.js';
import {
  classifyOutcome,
  isErrorStatus,
  isResponse,
  isSpentCode,
  type Judgement,
  judgeStatus,
  type Observed,
} from './outcome.js';
import { type HeaderSource, headerOf, parseRetryAfter } from './retry-after.js';

/** Options that suit one kind of service; spread them into those of a `ServiceGate`, and put your own after them. */
export type GatePreset = Pick<ServiceGateOptions, 'maxConcurrent' | 'rate' | 'attemptTimeoutMs' | 'classify'>;

/** How much longer than others a call may take to arrive: a window is longer by this, so that it holds there as well. */
const ARRIVAL_MS = 25;
const SECOND_MS = 1_000 + ARRIVAL_MS;
const MINUTE_MS = 60_000 + ARRIVAL_MS;
/** Half an hour: a long answer of a reasoning model. */
const LLM_TIMEOUT_MS = 1_800_000;

const limitOf = (option: string, value: unknown): number => wholeNumber(option, value);

/**
 * An LLM behind an OpenAI-compatible interface: OpenAI itself, vLLM, SGLang and many others. Give the SDK
 * `maxRetries: 0`, and a fetch from `longFetch` where an answer may take longer than five minutes.
 *
 * Tokens a minute are counted by `weight`: estimate it per call, and `settle` it from the answer's `usage`.
 *
 * @example
 * const llm = new ServiceGate({ name: 'llm', ...openAiPreset({ tokensPerMinute: 200_000 }), adaptive: { max: 64 } });
 */
export function openAiPreset(
  limits: { readonly requestsPerMinute?: number; readonly tokensPerMinute?: number } = {},
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
  };
}

/** Web search by Serper. It sends no headers about its limits: 50 to 300 requests a second, by the pack bought. */
export function serperPreset(limits: { readonly perSecond?: number } = {}): GatePreset {
  options('serperPreset', limits, ['perSecond']);
  const limit = limitOf('perSecond', limits.perSecond ?? 50);
  return {
    rate: [{ limit, perMs: SECOND_MS }],
    attemptTimeoutMs: 20_000,
    classify: classifySerper,
  };
}

/** Jina's reader (500 requests a minute with a key) and search (100). Ask for JSON: its errors come under 200 as well. */
export function jinaPreset(limits: { readonly perMinute?: number } = {}): GatePreset {
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
  limits: { readonly sandboxes?: number; readonly createsPerSecond?: number } = {},
): GatePreset {
  options('e2bPreset', limits, ['sandboxes', 'createsPerSecond']);
  return {
    maxConcurrent: limitOf('sandboxes', limits.sandboxes ?? 20),
    rate: [{ limit: limitOf('createsPerSecond', limits.createsPerSecond ?? 1), perMs: SECOND_MS }],
    classify: classifyE2b,
  };
}

/** The statuses that OpenAI's words stand for, where an error comes without one: in an event, or under 200. */
const STATUS_OF: ReadonlyMap<unknown, number> = new Map([
  ['rate_limit_exceeded', 429],
  ['invalid_api_key', 401],
  ['invalid_request_error', 400],
]);

/** What OpenAI-compatible servers add to HTTP: used-up quotas under 429, errors under 200, advice on retrying. */
export async function classifyOpenAi(observed: Observed): Promise<Judgement | undefined> {
  // A stream has a chunk at least for the role. Where an error came under 200 instead, the SDK finds no event in it.
  if (observed.kind === 'no-item') return { class: 'wait' };
  const { body, headers, status } = await contentOf(observed);
  const inBody = body.error ?? errorOfEvent(body);
  const error = fields(inBody ?? body);
  // The server's own words: the SDK has them on its error, and none where it failed itself.
  const told = (observed.kind === 'error' ? fields(observed.error).error : undefined) ?? inBody;
  const wasTold = typeof told === 'object' && told !== null;
  const failed = status ?? (wasTold ? statusIn(error) : undefined);
  if (isSpentCode(error.code) || isSpentCode(error.type)) return known('key-spent', failed);
  if (failed === undefined) return wasTold ? { class: 'wait' } : undefined;
  const isFinal = headerOf(headers, 'x-should-retry') === 'false';
  // A conflict is a lock that was not free in time.
  const judged = failed === 409 && !isFinal ? known('wait', failed) : judgeStatus(failed, headers);
  // A lost key is another matter: the advice is not about the next one.
  const isAdvised = judged.class === 'wait' || judged.class === 'other-key';
  return isFinal && isAdvised ? { ...judged, retry: false } : judged;
}

/** What an event of the Responses API tells of a failure. Its SDK gives such an event as it gives any other. */
function errorOfEvent({ type, response, ...rest }: Fields): unknown {
  return type === 'response.failed' ? fields(response).error : type === 'error' ? rest : undefined;
}

/** The status that an error names by a number, or by a word of OpenAI's. */
function statusIn({ code, type }: Fields): number | undefined {
  return [Number(code), STATUS_OF.get(code), STATUS_OF.get(type)].find(isErrorStatus);
}

/** Serper says 429 for too many requests and, like 400, for an empty balance: the text tells them apart. */
export async function classifySerper(observed: Observed): Promise<Judgement | undefined> {
  const { body, status } = await contentOf(observed);
  const failed = status ?? body.statusCode;
  if (!isErrorStatus(failed)) return undefined;
  return /credit|balance|quota/i.test(textOf(body.message))
    ? known('key-spent', failed)
    : judgeStatus(failed);
}

/** Jina's body has the truth, under whatever status, and a time in it where the headers have none. */
export async function classifyJina(observed: Observed): Promise<Judgement | undefined> {
  const { body, headers, status } = await contentOf(observed);
  const failed = isErrorStatus(body.code) && body.data === null ? body.code : status;
  if (!isErrorStatus(failed)) return undefined;
  // The page has run over the budget of tokens that the caller set for it.
  if (failed === 409) return known('target', failed);
  // Refusing a page is not refusing the key.
  if (failed === 403 && !/auth|key/i.test(textOf(body.name))) return known('target', failed);
  const judged = judgeStatus(failed, headers);
  if (judged.class !== 'other-key' || judged.retryAfterMs !== undefined) return judged;
  const seconds = typeof body.retryAfter === 'number' && body.retryAfter >= 0 ? body.retryAfter : undefined;
  const retryAfterMs =
    seconds === undefined ? parseRetryAfter(asHttpDate(body.retryAfterDate)) : seconds * 1_000;
  return retryAfterMs === undefined ? judged : { ...judged, retryAfterMs };
}

/** E2B counts a killed sandbox for a moment longer: its cap passes soon, unlike the rate, for which it gives a time. */
export async function classifyE2b(observed: Observed): Promise<Judgement | undefined> {
  const { body, status } = await contentOf(observed);
  const failed = status ?? body.code;
  const said = `${textOf(body.message)} ${observed.kind === 'error' ? textOf(fields(observed.error).message) : ''}`;
  if (failed === 429 && /maximum number of concurrent/i.test(said)) {
    return { class: 'wait', status: 429, retryAfterMs: 1_000 };
  }
  if (observed.kind !== 'error') return undefined;
  // The SDK's own class for 401 has neither status nor code.
  if (fields(observed.error).name === 'AuthenticationError') return { class: 'key-dead' };
  // The command was too slow, not the service.
  return said.includes('[deadline_exceeded]') ? { class: 'target' } : undefined;
}

type Fields = Readonly<Record<string, unknown>>;

const fields = (value: unknown): Fields =>
  typeof value === 'object' && value !== null ? (value as Fields) : {};
const textOf = (value: unknown): string => (typeof value === 'string' ? value : '');
const asHttpDate = (value: unknown): string => {
  const moment = Date.parse(textOf(value));
  return Number.isNaN(moment) ? '' : new Date(moment).toUTCString();
};

function known(said: Judgement['class'], status: unknown): Judgement {
  return isErrorStatus(status) ? { class: said, status } : { class: said };
}

/** The status, the headers and the JSON body, wherever this client keeps them. */
async function contentOf(
  observed: Observed,
): Promise<{ readonly body: Fields; readonly headers: HeaderSource; readonly status: number | undefined }> {
  if (observed.kind === 'error') {
    const error = fields(observed.error);
    const { status } = classifyOutcome(observed);
    const headers = (error.headers ?? fields(error.response).headers) as HeaderSource;
    // The SDKs put the body's `error` on theirs; others keep the body.
    const body = fields(error.error ?? error.body ?? fields(error.response).data ?? error);
    return { body: { message: error.message, ...body }, headers, status };
  }
  const value = observed.kind === 'no-item' ? undefined : observed.value;
  if (!isResponse(value)) return { body: fields(value), headers: undefined, status: undefined };
  return { body: await jsonOf(value), headers: value.headers, status: value.ok ? undefined : value.status };
}

/**
 * The body of a response that the caller will still read. Not JSON, or read already: nothing is known of it. Rejects
 * where the body does not come to its end: then there is no answer.
 */
async function jsonOf(response: Response): Promise<Fields> {
  const { body, bodyUsed, headers, ok } = response;
  if (bodyUsed || body?.locked || !/\bjson\b/i.test(headers.get('content-type') ?? '')) return {};
  // The copy of a stream of Node, as in node-fetch, stalls where it is long and the caller does not read along.
  if (ok && typeof body?.cancel !== 'function') return {};
  const text = await response.clone().text();
  try {
    return fields(JSON.parse(text));
  } catch {
    return {};
  }
}
