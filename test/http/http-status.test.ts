import {
  AcquireTimeoutError,
  CreateError,
  GateTimeoutError,
  KeysExhaustedError,
  ManagerClosedError,
  NestedAcquireError,
  QueueFullError,
  RequestTimeoutError,
  toHttpStatus,
} from 'pipeline-pool';
import { describe, expect, it } from 'vitest';

const queue = { source: 'limiter', waitMs: 0, active: 10, queued: 4, size: 10 };
const pool = { source: 'pool', waitMs: 1, live: 0, idle: 0, leased: 0, queued: 0 };

describe('toHttpStatus', () => {
  it.each([
    ['a full queue', new QueueFullError({ ...queue, retryAfterMs: 2_100 }), 429, 3],
    ['a wait that took too long', new AcquireTimeoutError(queue), 503, 1],
    ['a creation that failed', new CreateError(pool, new Error('no template')), 503, 1],
    ['keys that are used up', new KeysExhaustedError('serper', 59_001), 503, 60],
    ['a shutdown', new ManagerClosedError('manager'), 503, 1],
    ['a request that took too long', new RequestTimeoutError('manager', 't1', 1_000), 504, 1],
    ['a service that took too long', new GateTimeoutError('llm', 'call', 1_000), 504, 1],
  ])('answers %s', (_, error, status, retryAfterSeconds) => {
    expect(toHttpStatus(error)).toEqual({ status, retryAfterSeconds });
  });

  it('never lets a client retry at once', () => {
    expect(toHttpStatus(new QueueFullError({ ...queue, retryAfterMs: 0 }))?.retryAfterSeconds).toBe(1);
  });

  it('has no status for bugs and for foreign errors', () => {
    expect(toHttpStatus(new NestedAcquireError('limiter'))).toBeUndefined();
    expect(toHttpStatus(new TypeError('x is not a function'))).toBeUndefined();
    expect(toHttpStatus('ERR_QUEUE_FULL')).toBeUndefined();
    expect(toHttpStatus(undefined)).toBeUndefined();
  });
});
