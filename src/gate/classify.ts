import { GateTimeoutError } from '../errors.js';
import type { OutcomeClass, PermitOutcome } from '../hooks/events.js';
import { fieldAt, fieldOf, readError } from '../internal/redaction.js';
import { flag, oneOf, options, refusal } from '../internal/validate.js';
import {
  errorContentOf,
  isErrorStatus,
  isHtmlType,
  isPage,
  isResponse,
  type Observed,
  textOf,
} from './response-content.js';
import { type HeaderSource, retryAfterMsInBody, retryAfterMsOf } from './retry-after.js';

export type { Observed } from './response-content.js';

/** What the outcome of an attempt means. */
export interface OutcomeJudgement {
  readonly class: OutcomeClass;
  /** The HTTP status, for the events. */
  readonly status?: number | undefined;
  /** Milliseconds for which the service wants no further call with this key. Less than 1 means unknown. */
  readonly retryAfterMs?: number | undefined;
  /**
   * `false` if this call must not be retried, whatever its class means for the key and the load.
   * @default by class
   */
  readonly retry?: boolean | undefined;
  /**
   * Whether it counts as overload for an adaptive limit. By default `retryable` and `rate-limited` do, unless their status
   * is known and none of 429, 503, 504 and 529.
   */
  readonly overload?: boolean | undefined;
}

/**
 * Says what the outcome of an attempt means. `undefined` leaves it to the default, so a classifier needs to know only what
 * is special about its service. It may be asynchronous, to read the body of a `Response`: that is a part of the attempt,
 * and if it fails, so does the attempt. For anything else it has five seconds.
 *
 * @example
 * const classify: Classifier = ({ kind, value }) => (kind === 'result' && value === '' ? 'retryable' : undefined);
 */
export type Classifier = (
  observed: Observed,
) => OutcomeClass | OutcomeJudgement | undefined | PromiseLike<OutcomeClass | OutcomeJudgement | undefined>;

const CLASSES: readonly OutcomeClass[] = [
  'ok',
  'retryable',
  'rate-limited',
  'quota-exhausted',
  'unauthorized',
  'client-error',
  'fatal',
];
const OVERLOADED: readonly number[] = [429, 503, 504, 529];
const SPENT_CODES: readonly unknown[] = [
  'insufficient_quota',
  'billing_hard_limit_reached',
  'billing_not_active',
];
/** Whether an error code of a service says that the quota of the account is exhausted. */
export const isSpentCode = (code: unknown): boolean => SPENT_CODES.includes(code);

const TIMEOUT_CODE = /^(ETIMEDOUT|UND_ERR_(CONNECT|HEADERS|BODY)_TIMEOUT)$/;
const NETWORK_CODE =
  /^(ECONN(RESET|REFUSED|ABORTED)|EPIPE|ENOTFOUND|EAI_AGAIN|EHOSTUNREACH|ENETUNREACH|UND_ERR_(SOCKET|CLOSED)|ERR_NETWORK|ERR_BAD_RESPONSE|ERR_STREAM_PREMATURE_CLOSE)$/;
/** Also failures that a retry does not mend: a certificate, a response that is no HTTP. */
const BROKEN_CODE =
  /^(UND_ERR_(?!ABORTED|INVALID|NOT_SUPPORTED|INFO)|HPE_|CERT_|ERR_TLS_|SELF_SIGNED_|UNABLE_TO_|DEPTH_ZERO_)/;
/** The `fetch` of Deno fails without a code. */
const DENO_NETWORK_MESSAGE = /^error sending request (?:for|from)\b/;

/** The class of an HTTP status, if nothing else is known. */
export function classOfStatus(status: number): OutcomeClass {
  if (status < 400) return 'ok';
  switch (status) {
    case 401:
    case 403:
      return 'unauthorized';
    case 402:
      return 'quota-exhausted';
    case 404:
    case 410:
    case 422:
    case 451:
      return 'client-error';
    case 408:
    case 425:
      return 'retryable';
    case 429:
      return 'rate-limited';
    default:
      // 501 and 505 are permanent.
      return status >= 500 && status !== 501 && status !== 505 ? 'retryable' : 'fatal';
  }
}

/**
 * The default classifier. It knows errors with a status (`status`, `statusCode`, or that of a `response`) and, if they
 * have them, headers and a body, as the usual clients throw them; failures of `fetch`; timeouts; and `Response` objects.
 * Any other error counts as a bug of the host, and is not retried.
 *
 * @example
 * classify: (observed) => (isEmptyPage(observed) ? 'retryable' : undefined) // and the default for the rest
 */
export function classifyOutcome(observed: Observed): OutcomeJudgement {
  if (observed.kind === 'no-item') return OK;
  if (observed.kind !== 'error') {
    if (!isResponse(observed.value)) return OK;
    const { status, headers } = observed.value;
    return judgeStatus(status, headers, isHtmlType(headers));
  }
  const { error } = observed;
  if (error instanceof GateTimeoutError) return { class: 'retryable', overload: true };
  if (typeof error !== 'object' || error === null) return { class: 'fatal' };
  const { status, headers, body, format } = errorContentOf(error);
  if (status !== undefined) {
    const judged = withBodyTime(judgeStatus(status, headers, format === 'html'), body);
    // Its rate limits do not say when that changes.
    return isSpentCode(codeOf(error, body)) ? known('quota-exhausted', status) : judged;
  }
  const symptom = symptomOf(error);
  return symptom === undefined ? { class: 'fatal' } : { class: 'retryable', overload: symptom === 'timeout' };
}

const OK: OutcomeJudgement = { class: 'ok' };

/**
 * What a status and its headers mean. 401, 402 and 403 of a proxy or a content network say nothing about the key: the call
 * is retried.
 */
export function judgeStatus(status: number, headers?: HeaderSource, isForeign = false): OutcomeJudgement {
  const byStatus = classOfStatus(status);
  const outcome = isForeign && losesKey({ class: byStatus }) ? 'retryable' : byStatus;
  const passes = outcome !== 'unauthorized' && isOfService({ class: outcome });
  const retryAfterMs = passes ? retryAfterMsOf(status, headers) : undefined;
  return retryAfterMs === undefined ? { class: outcome, status } : { class: outcome, status, retryAfterMs };
}

/** Adds the time that the body names, where the headers name none. */
export function withBodyTime(judged: OutcomeJudgement, body: unknown): OutcomeJudgement {
  if (judged.retryAfterMs !== undefined || (judged.class !== 'rate-limited' && judged.status !== 503))
    return judged;
  const retryAfterMs = retryAfterMsInBody(body);
  return retryAfterMs === undefined ? judged : { ...judged, retryAfterMs };
}

/** A judgement that does not depend on headers or body. */
export const known = (said: OutcomeClass, status: unknown): OutcomeJudgement =>
  isErrorStatus(status) ? { class: said, status } : { class: said };

/** A judgement with all defaults. */
export interface Classification {
  readonly class: OutcomeClass;
  readonly status: number | undefined;
  /** At least 1. */
  readonly retryAfterMs: number | undefined;
  /** Whether another attempt may follow. */
  readonly retry: boolean;
  /** For an adaptive limit. */
  readonly load: PermitOutcome;
}

/** Whether the service failed, or its key: not the page that was requested, and not the host. */
export const isOfService = ({ class: said }: Pick<Classification, 'class'>): boolean =>
  said === 'retryable' || said === 'rate-limited' || losesKey({ class: said });

/** Whether it puts a key out of use. */
export const losesKey = ({ class: said }: Pick<Classification, 'class'>): boolean =>
  said === 'unauthorized' || said === 'quota-exhausted';

/** Says what an outcome means that the host's classifier leaves to the default; `undefined` leaves it to `classifyOutcome`. */
export interface Judge {
  judge?(observed: Observed): OutcomeJudgement | undefined;
}

/**
 * What an outcome means: to the host's classifier, to the work that made it, or by default. Rejects where the classifier fails or
 * returns something else than a class.
 */
export function classify(
  observed: Observed,
  classifier: Classifier | undefined,
  work: Judge,
): Classification | Promise<Classification> {
  if (classifier === undefined) return byDefault(observed, work);
  return (async () => {
    const answer = await classifier(observed);
    return answer === undefined || answer === null
      ? byDefault(observed, work)
      : checkedClassification(answer);
  })();
}

/** A page under a status that refuses a key is that of an intermediary, and says nothing about the key. */
function byDefault(observed: Observed, work: Judge): Classification | Promise<Classification> {
  const judged = work.judge?.(observed) ?? classifyOutcome(observed);
  const byStatus = classificationOf(judged);
  if (!losesKey(byStatus) || !('value' in observed) || !isResponse(observed.value)) return byStatus;
  return isPage(observed.value).then((isForeign) =>
    isForeign ? classificationOf({ ...judged, class: 'retryable' }) : byStatus,
  );
}

/** Completes what a host's classifier returned. Throws where that is not one of its results. */
export function checkedClassification(answer: OutcomeClass | OutcomeJudgement): Classification {
  const said: OutcomeJudgement = typeof answer === 'string' ? { class: answer } : answer;
  options('classify()', said, ['class', 'status', 'retryAfterMs', 'retry', 'overload']);
  const { retryAfterMs, retry, overload } = said;
  oneOf('classify().class', said.class, CLASSES);
  if (retry !== undefined) flag('classify().retry', retry);
  if (overload !== undefined) flag('classify().overload', overload);
  if (retryAfterMs !== undefined && !(typeof retryAfterMs === 'number' && retryAfterMs >= 0)) {
    throw new TypeError(refusal('classify().retryAfterMs', 'a number of milliseconds from 0', retryAfterMs));
  }
  return classificationOf(said);
}

/** Completes a judgement. */
export function classificationOf(said: OutcomeJudgement): Classification {
  const { status, retryAfterMs = 0, retry = true } = said;
  return {
    class: said.class,
    status,
    // A cooldown of no length would make the retries a hot loop.
    retryAfterMs: retryAfterMs < 1 ? undefined : retryAfterMs,
    retry: retry && isOfService(said),
    load: loadOf(said),
  };
}

function loadOf({ class: said, status, overload }: OutcomeJudgement): PermitOutcome {
  if (said === 'ok') return 'ok';
  if (said !== 'retryable' && said !== 'rate-limited') return 'ignored';
  return (overload ?? (status === undefined || OVERLOADED.includes(status))) ? 'dropped' : 'ignored';
}

/** `code`, or `type`, of the error or of the body that it carries. */
function codeOf(error: unknown, body: unknown): unknown {
  const code = fieldOf(error, 'code');
  const type = fieldOf(error, 'type');
  if (isSpentCode(code)) return code;
  if (isSpentCode(type)) return type;
  const inner = fieldOf(body, 'error') ?? body;
  return fieldOf(inner, 'code') ?? fieldOf(inner, 'type');
}

/** Whether an error says, by itself and not by its cause, that the connection to a service failed. */
export function isNetworkFailure(error: unknown): boolean {
  const { code, message } = readError(error);
  return (
    [TIMEOUT_CODE, NETWORK_CODE, BROKEN_CODE].some((pattern) => pattern.test(String(code))) ||
    message === 'fetch failed' ||
    DENO_NETWORK_MESSAGE.test(message)
  );
}

/** What failed below HTTP. `fetch` hides it in the cause of `TypeError: fetch failed`; SDKs wrap that once more. */
function symptomOf(error: unknown): 'timeout' | 'network' | undefined {
  let current = error;
  for (let depth = 0; depth < 5 && typeof current === 'object' && current !== null; depth++) {
    const { name, code, message, cause } = readError(current);
    const text = String(code);
    // The timeouts of SDKs have a class of their own, but not always a name or a code.
    const className = textOf(fieldAt(current, 'constructor.name'));
    if (name === 'TimeoutError' || TIMEOUT_CODE.test(text) || /TimeoutError$/.test(className))
      return 'timeout';
    if (NETWORK_CODE.test(text) || DENO_NETWORK_MESSAGE.test(message)) return 'network';
    current = cause;
  }
  return undefined;
}
