import { durationMs, finiteNumber, oneOf, options, refusal, wholeNumber } from '../internal/validate.js';

/**
 * How a rejection states when to retry.
 *
 * - `seconds`: `Retry-After` as a whole number of seconds, rounded up.
 * - `date`: `Retry-After` as an HTTP date, rounded up to the next whole second.
 * - `milliseconds`: `retry-after-ms`.
 * - `reset-requests`, `reset-tokens`: `x-ratelimit-reset-*` as a Go duration (`6m0s`, `120ms`), with 0 remaining.
 */
export interface RetryAfter {
  readonly as: 'seconds' | 'date' | 'milliseconds' | 'reset-requests' | 'reset-tokens';
  /** Milliseconds from now. */
  readonly ms: number;
}

/** Why a service rejects a call: its rate limit, or an exhausted quota. */
export type RefusalReason = 'rate' | 'quota';

/** An error status, with the body of the real service unless `body` is set. */
export interface StatusFault {
  readonly type: 'status';
  /** From 400 to 599. */
  readonly status: number;
  /** Distinguishes the two kinds of 429. @default 'rate' */
  readonly reason?: RefusalReason;
  /** @default the response does not state when to retry */
  readonly retryAfter?: RetryAfter;
  readonly headers?: Readonly<Record<string, string>>;
  /** A string is sent as is, anything else as JSON. */
  readonly body?: unknown;
}

/** An error body with HTTP status 200. */
export interface EnvelopeFault {
  readonly type: 'envelope';
  /** The status in the body, from 400 to 599. */
  readonly status: number;
  /** @default 'rate' */
  readonly reason?: RefusalReason;
}

/** A stream whose first event is an error. A call that does not stream gets the status itself. */
export interface StreamErrorFault {
  readonly type: 'stream-error';
  /** The status in the event, from 400 to 599. */
  readonly status: number;
  /** @default 'rate' */
  readonly reason?: RefusalReason;
}

/** The call gets no response; the connection stays open until the client disconnects. */
export interface NoHeadersFault {
  readonly type: 'no-headers';
}

/** The headers and the first part of the real response, then nothing. A response without a body sends nothing. */
export interface StallFault {
  readonly type: 'stall';
}

/**
 * The connection is reset (TCP RST), at once or after the first part of the real response. A response without a body is
 * reset before its headers.
 */
export interface ResetFault {
  readonly type: 'reset';
  readonly when: 'before-headers' | 'mid-body';
}

/** A fault of one call to a stub service. */
export type Fault = StatusFault | EnvelopeFault | StreamErrorFault | NoHeadersFault | StallFault | ResetFault;

const FIELDS: Readonly<Record<Fault['type'], readonly string[]>> = {
  status: ['type', 'status', 'reason', 'retryAfter', 'headers', 'body'],
  envelope: ['type', 'status', 'reason'],
  'stream-error': ['type', 'status', 'reason'],
  'no-headers': ['type'],
  stall: ['type'],
  reset: ['type', 'when'],
};
const TYPES = Object.keys(FIELDS) as Fault['type'][];
const RETRY_FORMS = ['seconds', 'date', 'milliseconds', 'reset-requests', 'reset-tokens'] as const;

/** Validates a fault. */
export function checkFault(fault: Fault): Fault {
  if (typeof fault !== 'object' || fault === null) throw new TypeError(refusal('fault', 'an object', fault));
  options<object>('fault', fault, FIELDS[oneOf('fault.type', fault.type, TYPES)] as never[]);
  if (fault.type === 'reset') oneOf('fault.when', fault.when, ['before-headers', 'mid-body']);
  if (fault.type === 'status' || fault.type === 'envelope' || fault.type === 'stream-error') {
    wholeNumber('fault.status', fault.status, 400, 599);
    if (fault.reason !== undefined) oneOf('fault.reason', fault.reason, ['rate', 'quota']);
  }
  if (fault.type === 'status' && fault.retryAfter !== undefined) {
    const { as, ms } = options('fault.retryAfter', fault.retryAfter, ['as', 'ms']);
    oneOf('fault.retryAfter.as', as, RETRY_FORMS);
    durationMs('fault.retryAfter.ms', ms);
  }
  return fault;
}

/** The headers that state when to retry. */
export function retryAfterHeaders(retryAfter: RetryAfter): Record<string, string> {
  const { as, ms } = retryAfter;
  switch (as) {
    case 'seconds':
      return { 'retry-after': String(Math.ceil(ms / 1000)) };
    case 'date':
      return { 'retry-after': new Date(Math.ceil((Date.now() + ms) / 1000) * 1000).toUTCString() };
    case 'milliseconds':
      return { 'retry-after-ms': String(ms) };
    case 'reset-requests':
      return { 'x-ratelimit-remaining-requests': '0', 'x-ratelimit-reset-requests': goDuration(ms) };
    case 'reset-tokens':
      return { 'x-ratelimit-remaining-tokens': '0', 'x-ratelimit-reset-tokens': goDuration(ms) };
  }
}

/** A duration in Go's format, which OpenAI's headers use: `12ms`, `33.023s`, `6m0s`, `1h23m31s`. */
export function goDuration(ms: number): string {
  const whole = Math.ceil(ms);
  if (whole === 0) return '0s';
  if (whole < 1000) return `${whole}ms`;
  const hours = Math.floor(whole / 3_600_000);
  const minutes = Math.floor(whole / 60_000) % 60;
  const seconds = (whole % 60_000) / 1000;
  return `${hours > 0 ? `${hours}h` : ''}${hours > 0 || minutes > 0 ? `${minutes}m` : ''}${seconds}s`;
}

/**
 * Injects a fault into random calls, the same ones in every run with the same `seed`.
 *
 * @example
 * const jina = new StubJina({ fault: randomFault(0.1, { type: 'status', status: 429 }) });
 */
export function randomFault(probability: number, fault: Fault, seed = 1): () => Fault | undefined {
  finiteNumber('probability', probability, 0, 1);
  checkFault(fault);
  let state = wholeNumber('seed', seed, 0, 0xffff_ffff);
  // Mulberry32 (Tommy Ettinger, 2017).
  const draw = (): number => {
    state = (state + 0x6d2b_79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
  return () => (draw() < probability ? fault : undefined);
}
