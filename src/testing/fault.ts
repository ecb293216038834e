import {
  durationMs,
  finiteNumber,
  oneOf,
  optional,
  options,
  refusal,
  wholeNumber,
} from '../internal/validate.js';

/**
 * How a refusal says when to come back. Services differ, and some say nothing at all.
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

/** Why a service refuses: called too often, or all that was paid for is used up. */
export type RefusalReason = 'rate' | 'quota';

/** An error status with the body that the service itself would send, unless `body` says otherwise. */
export interface StatusFault {
  readonly type: 'status';
  /** From 400 to 599. */
  readonly status: number;
  /** Tells the two kinds of 429 apart; `rate` if left out. */
  readonly reason?: RefusalReason;
  /** Left out: the answer does not say when to come back. */
  readonly retryAfter?: RetryAfter;
  readonly headers?: Readonly<Record<string, string>>;
  /** Sent as JSON, or as it stands when it is a string. */
  readonly body?: unknown;
}

/** The body of an error under HTTP 200. */
export interface EnvelopeFault {
  readonly type: 'envelope';
  /** The status that the body tells of, from 400 to 599. */
  readonly status: number;
  /** `rate` if left out. */
  readonly reason?: RefusalReason;
}

/** A stream that opens well, and whose first event is an error. A call that does not stream gets the status itself. */
export interface StreamErrorFault {
  readonly type: 'stream-error';
  /** The status that the event tells of, from 400 to 599. */
  readonly status: number;
  /** `rate` if left out. */
  readonly reason?: RefusalReason;
}

/** The call is taken and never answered; the connection stays open until the client leaves. */
export interface NoHeadersFault {
  readonly type: 'no-headers';
}

/** Headers and the first part of the real answer, then silence. An answer without a body sends nothing at all. */
export interface StallFault {
  readonly type: 'stall';
}

/**
 * The connection is reset (TCP RST), at once or after the first part of the real answer; an answer without a body is
 * reset before its headers.
 */
export interface ResetFault {
  readonly type: 'reset';
  readonly when: 'before-headers' | 'mid-body';
}

/** Everything that can be made to go wrong with one call to a stub service. */
export type Fault = StatusFault | EnvelopeFault | StreamErrorFault | NoHeadersFault | StallFault | ResetFault;

const errorStatus = (value: unknown): number => wholeNumber('fault.status', value, 400, 599);
const reason = (option: string, value: unknown): string => oneOf(option, value, ['rate', 'quota']);

/** Refuses a fault that could not be staged as it is written. */
export function checkFault(fault: Fault): Fault {
  if (typeof fault !== 'object' || fault === null) throw new TypeError(refusal('fault', 'an object', fault));
  switch (fault.type) {
    case 'status': {
      options('fault', fault, ['type', 'status', 'reason', 'retryAfter', 'headers', 'body']);
      errorStatus(fault.status);
      optional('fault.reason', fault.reason, reason);
      const { retryAfter } = fault;
      if (retryAfter !== undefined) {
        options('fault.retryAfter', retryAfter, ['as', 'ms']);
        oneOf('fault.retryAfter.as', retryAfter.as, [
          'seconds',
          'date',
          'milliseconds',
          'reset-requests',
          'reset-tokens',
        ]);
        durationMs('fault.retryAfter.ms', retryAfter.ms);
      }
      return fault;
    }
    case 'envelope':
    case 'stream-error':
      options('fault', fault, ['type', 'status', 'reason']);
      errorStatus(fault.status);
      optional('fault.reason', fault.reason, reason);
      return fault;
    case 'no-headers':
    case 'stall':
      return options('fault', fault, ['type']);
    case 'reset':
      options('fault', fault, ['type', 'when']);
      oneOf('fault.when', fault.when, ['before-headers', 'mid-body']);
      return fault;
    default: {
      const { type } = fault as { type?: unknown };
      throw new TypeError(
        refusal(
          'fault.type',
          'one of "status", "envelope", "stream-error", "no-headers", "stall", "reset"',
          type,
        ),
      );
    }
  }
}

/** The headers by which a refusal says when to come back. */
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

/** A duration as Go prints it, and OpenAI's headers carry it: `12ms`, `33.023s`, `6m0s`, `1h23m31s`. */
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
 * A fault that befalls calls at random, the same ones in every run with the same `seed`.
 *
 * @example
 * const jina = new StubJina({ fault: randomFault(0.1, { type: 'status', status: 429 }) });
 */
export function randomFault(probability: number, fault: Fault, seed = 1): () => Fault | undefined {
  finiteNumber('probability', probability, 0, 1);
  checkFault(fault);
  let state = wholeNumber('seed', seed, 0, 0xffff_ffff);
  // Mulberry32 (Tommy Ettinger, 2017): 32 bits of state are plenty for choosing calls, and the order is reproducible.
  const draw = (): number => {
    state = (state + 0x6d2b_79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
  return () => (draw() < probability ? fault : undefined);
}
