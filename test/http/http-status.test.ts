import OpenAI from 'openai';
import {
  AcquireTimeoutError,
  CreateError,
  DeadlineUnmeetableError,
  GateTimeoutError,
  KeysExhaustedError,
  LimitLostError,
  LimitsUnavailableError,
  ManagerClosedError,
  NestedAcquireError,
  QueueFullError,
  RequestTimeoutError,
  ToolFailedError,
  toHttpStatus,
} from 'pipeline-pool';
import { describe, expect, it } from 'vitest';
import { STRANGE_VALUES } from '../support/strange-values.js';

const queue = { source: 'limiter', waitMs: 0, active: 10, queued: 4, size: 10 };
const pool = { source: 'pool', waitMs: 1, live: 0, idle: 0, leased: 0, queued: 0 };
const keys = new KeysExhaustedError('serper', 59_001);
const withFields = (fields: object): Error => Object.assign(new Error('failed'), fields);

describe('toHttpStatus', () => {
  it.each<[string, unknown, number, number]>([
    ['a full queue', new QueueFullError({ ...queue, retryAfterMs: 2_100 }), 429, 3],
    [
      'a deadline that cannot be met',
      new DeadlineUnmeetableError({ ...queue, retryAfterMs: 5_000, timeoutMs: 9 }),
      429,
      5,
    ],
    ['a budget that is used up', { code: 'ERR_BUDGET_EXCEEDED' }, 429, 1],
    ['a wait that took too long', new AcquireTimeoutError(queue), 504, 1],
    ['a creation that failed', new CreateError(pool, withFields({ status: 500 })), 503, 1],
    ['keys that are used up', keys, 503, 60],
    ['limits that are unavailable', new LimitsUnavailableError('requests'), 503, 1],
    ['a permit that was lost', new LimitLostError('requests', 'expired'), 503, 1],
    ['a shutdown', new ManagerClosedError('manager'), 503, 1],
    ['a request that took too long', new RequestTimeoutError('manager', 't1', 1_000), 504, 1],
    ['a service that took too long', new GateTimeoutError('llm', 'call', 1_000), 504, 1],
    ['a deadline of the host', AbortSignal.abort(new DOMException('late', 'TimeoutError')).reason, 504, 1],
    ['an error of the library in a cause', new Error('Connection error.', { cause: keys }), 503, 60],
    ['a tool that failed for want of a key', new ToolFailedError('tools', 'search', keys), 503, 60],
    [
      'a tool whose service failed',
      new ToolFailedError('tools', 'search', withFields({ status: 500 })),
      502,
      1,
    ],
    [
      'a rejection of a gate that an SDK has wrapped',
      OpenAI.APIError.generate(
        429,
        { error: { code: 'ERR_KEYS_EXHAUSTED' } },
        undefined,
        new Headers({ 'retry-after': '7' }),
      ),
      503,
      7,
    ],
  ])('answers %s', (_, error, status, retryAfterSeconds) => {
    expect(toHttpStatus(error)).toEqual({ status, retryAfterSeconds });
  });

  it.each<[string, unknown]>([
    ['status', withFields({ status: 400 })],
    ['statusCode', withFields({ statusCode: 503 })],
    ['response.status', withFields({ response: { status: 401 } })],
    ['a status in a cause', new Error('agent failed', { cause: withFields({ status: 529 }) })],
    ...[
      'ECONNREFUSED',
      'ECONNRESET',
      'ENOTFOUND',
      'ETIMEDOUT',
      'UND_ERR_SOCKET',
      'UND_ERR_CONNECT_TIMEOUT',
    ].map((code): [string, unknown] => [code, new TypeError('terminated', { cause: withFields({ code }) })]),
    ['a fetch that failed', new TypeError('fetch failed')],
  ])('answers 502 to a failure of an upstream service: %s', (_, error) => {
    expect(toHttpStatus(error)).toEqual({ status: 502, retryAfterSeconds: 1 });
  });

  it('passes on when the upstream service wants the next call', () => {
    const error = withFields({ status: 429, headers: { 'retry-after': '12' } });
    expect(toHttpStatus(error)).toEqual({ status: 502, retryAfterSeconds: 12 });
  });

  it('never lets a client retry at once', () => {
    expect(toHttpStatus(new QueueFullError({ ...queue, retryAfterMs: 0 }))?.retryAfterSeconds).toBe(1);
  });

  it.each<[string, unknown]>([
    ['a bug', new TypeError('x is not a function')],
    ['a bug in the use of the library', new NestedAcquireError('limiter')],
    ['a bug in a tool', new ToolFailedError('tools', 'search', new TypeError('x is not a function'))],
    ['an abort', new DOMException('The client left', 'AbortError')],
    ['an aborted call of undici', withFields({ code: 'UND_ERR_ABORTED' })],
    ['an error of http-errors, as Express throws it', withFields({ status: 413, expose: true })],
    ['an error of Fastify', withFields({ statusCode: 415, code: 'FST_ERR_CTP_INVALID_MEDIA_TYPE' })],
    ['an error of Hono', withFields({ status: 404, getResponse: () => new Response() })],
    ['a status that is no failure', withFields({ status: 200 })],
    ['a string', 'ERR_QUEUE_FULL'],
    ['nothing', undefined],
  ])('has no answer for %s', (_, error) => {
    expect(toHttpStatus(error)).toBeUndefined();
  });

  it.each(Object.entries(STRANGE_VALUES))('reads %s without throwing', (_, make) => {
    expect(toHttpStatus(make())).toBeUndefined();
  });
});
