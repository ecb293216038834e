import { fieldOf } from '../internal/redaction.js';
import { options, wholeNumber } from '../internal/validate.js';
import { judgeStatus, known, type Observed, type OutcomeJudgement, withBodyTime } from './classify.js';
import type { ServiceGateOptions } from './options.js';
import { type Content, contentOf, isErrorStatus, textOf } from './response-content.js';

/**
 * What a gate needs to know about one kind of service: its limits (`rate`), how long an attempt may take, what its outcomes
 * mean (`classify`), and, where it counts tokens, how to read them from a response (`usage`), to estimate them from a request
 * (`estimate`), to spend them from a budget (`cost`), and whose model it is (`provider`). Spread it into the options of a `ServiceGate`, before your own.
 */
export type GatePreset = Pick<
  ServiceGateOptions<'tokens'>,
  'rate' | 'attemptTimeoutMs' | 'classify' | 'usage' | 'estimate' | 'cost' | 'provider'
>;

/** Windows are 50 ms longer than the limit says: calls take different times to arrive, on a busy machine even more so. */
const SECOND_MS = 1_050;
export const MINUTE_MS = 60_050;

/**
 * What a status means with its headers and its body. Only the form of the service itself takes a key out of use: any other
 * body, also in JSON, is that of an intermediary.
 */
export const judged = (status: number, { body, headers }: Content, isOwn: boolean): OutcomeJudgement =>
  withBodyTime(judgeStatus(status, headers, !isOwn), body);

/**
 * Web search by Serper. It sends no headers about its limits: 50 to 300 requests a second, by the pack bought.
 *
 * @example
 * const serper = new ServiceGate({ name: 'serper', keys, ...serperPreset({ perSecond: 100 }) });
 */
export function serperPreset(limits: { readonly perSecond?: number | undefined } = {}): GatePreset {
  options('serperPreset', limits, ['perSecond']);
  const limit = wholeNumber('perSecond', limits.perSecond ?? 50);
  return {
    rate: [{ limit, perMs: SECOND_MS }],
    attemptTimeoutMs: 20_000,
    classify: classifySerper,
  };
}

/**
 * Jina's reader (500 requests a minute with a key) and search (100). Ask for JSON: its errors come under 200 as well.
 *
 * @example
 * const jina = new ServiceGate({ name: 'jina', keys, ...jinaPreset() });
 */
export function jinaPreset(limits: { readonly perMinute?: number | undefined } = {}): GatePreset {
  options('jinaPreset', limits, ['perMinute']);
  const limit = wholeNumber('perMinute', limits.perMinute ?? 500);
  return { rate: [{ limit, perMs: MINUTE_MS }], attemptTimeoutMs: 60_000, classify: classifyJina };
}

/**
 * Sandboxes by E2B: so many alive at once, so many created a second; the defaults are the smallest plan's. Keep a
 * sandbox inside one call, from `Sandbox.create` to `kill`, and its permit is its place. Give the SDK `retries: 0`.
 *
 * Only creations are worth another attempt, so let what happens in the sandbox fail with errors of your own.
 *
 * @example
 * const e2b = new ServiceGate({ name: 'e2b', keys, ...e2bPreset({ sandboxes: 20 }) });
 */
export function e2bPreset(
  limits: { readonly sandboxes?: number | undefined; readonly createsPerSecond?: number | undefined } = {},
): GatePreset & { readonly maxConcurrent: number } {
  options('e2bPreset', limits, ['sandboxes', 'createsPerSecond']);
  return {
    maxConcurrent: wholeNumber('sandboxes', limits.sandboxes ?? 20),
    rate: [{ limit: wholeNumber('createsPerSecond', limits.createsPerSecond ?? 1), perMs: SECOND_MS }],
    classify: classifyE2b,
  };
}

/**
 * Serper uses 429 for too many requests and, like 400, for an empty balance: only the text differs.
 *
 * @example
 * new ServiceGate({ name: 'serper', keys, classify: classifySerper });
 */
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

/**
 * The body of Jina has the actual status, whatever that of HTTP, and a time where the headers have none.
 *
 * @example
 * new ServiceGate({ name: 'jina', keys, classify: classifyJina });
 */
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
  return judged(failed, content, isErrorStatus(body.code));
}

/**
 * E2B counts a killed sandbox for a moment longer: its cap passes soon, unlike the rate, for which it gives a time.
 *
 * @example
 * new ServiceGate({ name: 'e2b', keys, classify: classifyE2b });
 */
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
