import type { Readable } from 'node:stream';
import { GateTimeoutError } from '../errors.js';
import type { OutcomeClass, PermitOutcome } from '../hooks/events.js';
import { flag, oneOf, options, refusal } from '../internal/validate.js';
import { type HeaderSource, retryAfterMsOf } from './retry-after.js';

/** What came of an attempt, as a classifier is shown it. */
export type Observed =
  | { readonly kind: 'error'; readonly error: unknown }
  | { readonly kind: 'result'; readonly value: unknown }
  /** The first item of a stream: several services open a stream well and say in it that they failed. */
  | { readonly kind: 'first-item'; readonly value: unknown }
  /** A stream that ended well before its first item. */
  | { readonly kind: 'no-item' };

/** What an attempt's outcome means. */
export interface Judgement {
  readonly class: OutcomeClass;
  /** The HTTP status, for the events. */
  readonly status?: number;
  /** Milliseconds from now for which the service wants no further call by this key. Less than 1 says nothing. */
  readonly retryAfterMs?: number;
  /**
   * `false` where this call is not to be tried again, whatever its class says of the key and of the load.
   * @default as the class says
   */
  readonly retry?: boolean;
  /**
   * Whether it tells an adaptive limit of too many calls at once. If left out, `wait` and `other-key` do, unless their
   * status is known and none of 429, 503, 504 and 529.
   */
  readonly overload?: boolean;
}

/**
 * Tells what an attempt's outcome means. `undefined` leaves it to the default, so a classifier of your own need only
 * know what is special about your service. It may be asynchronous, to read the body of a `Response`: that is a part of
 * the attempt, and if it fails, so has the attempt. Of anything else it is to be told within five seconds.
 */
export type Classifier = (
  observed: Observed,
) => OutcomeClass | Judgement | undefined | PromiseLike<OutcomeClass | Judgement | undefined>;

const CLASSES: readonly OutcomeClass[] = [
  'ok',
  'wait',
  'other-key',
  'key-spent',
  'key-dead',
  'target',
  'stop',
];
const OVERLOADED: readonly number[] = [429, 503, 504, 529];
const SPENT_CODES: readonly unknown[] = [
  'insufficient_quota',
  'billing_hard_limit_reached',
  'billing_not_active',
];
/** Whether a service's error code says that the account is used up. */
export const isSpentCode = (code: unknown): boolean => SPENT_CODES.includes(code);

const TIMEOUT_CODE = /^(ETIMEDOUT|UND_ERR_(CONNECT|HEADERS|BODY)_TIMEOUT)$/;
const NETWORK_CODE =
  /^(ECONN(RESET|REFUSED|ABORTED)|EPIPE|ENOTFOUND|EAI_AGAIN|EHOSTUNREACH|ENETUNREACH|UND_ERR_(SOCKET|CLOSED))$/;

/** The class of an HTTP status, where nothing else is known. */
export function classOfStatus(status: number): OutcomeClass {
  if (status < 400) return 'ok';
  switch (status) {
    case 401:
    case 403:
      return 'key-dead';
    case 402:
      return 'key-spent';
    case 404:
    case 410:
    case 422:
    case 451:
      return 'target';
    case 408:
    case 425:
      return 'wait';
    case 429:
      return 'other-key';
    default:
      // 501 and 505 say that it will never be served.
      return status >= 500 && status !== 501 && status !== 505 ? 'wait' : 'stop';
  }
}

/**
 * The default classifier, for what the usual clients give: errors with a `status` or `statusCode` and, if they have
 * them, `headers` (the OpenAI and E2B SDKs and many others), failures of `fetch`, timeouts, and `Response` objects.
 * Any other error is taken for a bug, and is not tried again.
 *
 * @example
 * classify: (observed) => (isEmptyPage(observed) ? 'wait' : undefined) // and the default for the rest
 */
export function classifyOutcome(observed: Observed): Judgement {
  if (observed.kind === 'no-item') return { class: 'ok' };
  if (observed.kind !== 'error') {
    if (!isResponse(observed.value)) return { class: 'ok' };
    return judgeStatus(observed.value.status, observed.value.headers);
  }
  const { error } = observed;
  if (error instanceof GateTimeoutError) return { class: 'wait', overload: true };
  if (typeof error !== 'object' || error === null) return { class: 'stop' };
  const status = statusOf(error);
  if (status !== undefined) {
    const said = judgeStatus(status, headersOf(error));
    return isSpentCode(codeOf(error)) ? spent(said) : said;
  }
  const symptom = symptomOf(error);
  return symptom === undefined ? { class: 'stop' } : { class: 'wait', overload: symptom === 'timeout' };
}

/** What a status and its headers mean. */
export function judgeStatus(status: number, headers?: HeaderSource): Judgement {
  const said = classOfStatus(status);
  if (said === 'ok') return { class: said, status };
  const retryAfterMs = retryAfterMsOf(status, headers);
  return retryAfterMs === undefined || said === 'stop' || said === 'target' || said === 'key-dead'
    ? { class: said, status }
    : { class: said, status, retryAfterMs };
}

/** The same, of an account that is used up. Its limits of rate say nothing about when it will be filled again. */
export const spent = ({ status }: Judgement): Judgement => ({
  class: 'key-spent',
  ...(status === undefined ? {} : { status }),
});

/** What the gate goes by: a judgement with nothing left open. */
export interface Verdict {
  readonly class: OutcomeClass;
  readonly status: number | undefined;
  /** At least 1. */
  readonly retryAfterMs: number | undefined;
  /** Whether another attempt may follow. */
  readonly retry: boolean;
  /** For an adaptive limit. */
  readonly load: PermitOutcome;
}

/** Whether it is the service that failed, or its key: not the page that was asked for, and not the host. */
export const isOfService = ({ class: said }: Pick<Verdict, 'class'>): boolean =>
  said === 'wait' || said === 'other-key' || said === 'key-spent' || said === 'key-dead';

/** Completes what a classifier answered; refuses what is no answer. */
export function verdictOf(answer: OutcomeClass | Judgement): Verdict {
  const said: Judgement = typeof answer === 'string' ? { class: answer } : answer;
  options('the answer of `classify`', said, ['class', 'status', 'retryAfterMs', 'retry', 'overload']);
  const { status, retryAfterMs = 0, retry = true, overload } = said;
  oneOf('class', said.class, CLASSES);
  flag('retry', retry);
  if (overload !== undefined) flag('overload', overload);
  if (!(typeof retryAfterMs === 'number' && retryAfterMs >= 0)) {
    throw new TypeError(refusal('retryAfterMs', 'a number of milliseconds from 0', retryAfterMs));
  }
  return {
    class: said.class,
    status,
    // A rest of no length would make the retries a hot loop.
    retryAfterMs: retryAfterMs < 1 ? undefined : retryAfterMs,
    retry: retry && isOfService(said),
    load: loadOf(said),
  };
}

function loadOf({ class: said, status, overload }: Judgement): PermitOutcome {
  if (said === 'ok') return 'ok';
  if (said !== 'wait' && said !== 'other-key') return 'ignored';
  return (overload ?? (status === undefined || OVERLOADED.includes(status))) ? 'dropped' : 'ignored';
}

/** A `Response` of whichever realm or library. */
export function isResponse(value: unknown): value is Response {
  const response = value as Response;
  return (
    typeof response === 'object' &&
    response !== null &&
    typeof response.status === 'number' &&
    typeof response.ok === 'boolean' &&
    typeof response.headers?.get === 'function'
  );
}

/**
 * Frees the socket behind a `Response` that nobody will read. Its body is a web stream, or one of Node's, as in
 * node-fetch. Never throws, and leaves no rejection and no error event to anybody.
 */
export function discardResponse(value: unknown): void {
  try {
    // A body that is being read already belongs to its reader.
    if (!isResponse(value) || value.bodyUsed) return;
    const body = value.body as Partial<ReadableStream & Readable> | null | undefined;
    if (typeof body?.cancel === 'function') {
      Promise.resolve(body.cancel()).catch(() => {});
    } else if (typeof body?.destroy === 'function') {
      body.on?.('error', () => {});
      body.destroy();
    }
  } catch {
    // What cannot be freed is the garbage collector's.
  }
}

type Fields = { readonly [name: string]: unknown };
const fieldsOf = (value: unknown): Fields =>
  typeof value === 'object' && value !== null ? (value as Fields) : {};

/** An error in the middle of an event stream has a `code` for its status, the one of the headers having been 200. */
function statusOf(error: object): number | undefined {
  const { status, statusCode, response, code } = error as Fields;
  return [status, statusCode, fieldsOf(response).status, code].find(isErrorStatus);
}

/** Whether it is the HTTP status of a failure. */
export const isErrorStatus = (value: unknown): value is number =>
  typeof value === 'number' && Number.isInteger(value) && value >= 400 && value <= 599;

function headersOf(error: object): HeaderSource {
  const { headers, response } = error as Fields;
  return (headers ?? fieldsOf(response).headers) as HeaderSource;
}

/** `code`, or `type`, of the error or of the body that it carries. */
function codeOf(error: object): unknown {
  const { code, type, error: body } = error as Fields;
  if (isSpentCode(code)) return code;
  if (isSpentCode(type)) return type;
  const inner = fieldsOf(fieldsOf(body).error ?? body);
  return inner.code ?? inner.type;
}

/** What went wrong below HTTP. `fetch` says `TypeError: fetch failed` and hides it in `cause`; SDKs wrap that once more. */
function symptomOf(error: object): 'timeout' | 'network' | undefined {
  let link: unknown = error;
  for (let depth = 0; depth < 5 && typeof link === 'object' && link !== null; depth++) {
    const { name, code, cause } = link as Fields;
    const says = typeof code === 'string' ? code : '';
    // The SDKs' timeouts have a class of their own, but not always a name or a code.
    if (
      name === 'TimeoutError' ||
      TIMEOUT_CODE.test(says) ||
      /TimeoutError$/.test(link.constructor?.name ?? '')
    ) {
      return 'timeout';
    }
    if (NETWORK_CODE.test(says)) return 'network';
    link = cause;
  }
  return undefined;
}
