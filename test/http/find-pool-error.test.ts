import OpenAI from 'openai';
import { findPoolError, KeysExhaustedError, PipelinePoolError, QueueFullError } from 'pipeline-pool';
import { describe, expect, it } from 'vitest';
import { STRANGE_VALUES } from '../support/strange-values.js';

const exhausted = new KeysExhaustedError('serper', 30_000);
const body = {
  error: { message: 'No key of llm can serve this call', type: 'pipeline_pool', code: 'ERR_KEYS_EXHAUSTED' },
};

describe('findPoolError', () => {
  it.each<[string, unknown]>([
    ['itself', exhausted],
    [
      'its cause',
      new Error('Connection error.', { cause: new TypeError('fetch failed', { cause: exhausted }) }),
    ],
    [
      'one of its errors',
      new AggregateError([new Error('first'), new Error('second', { cause: exhausted })]),
    ],
    ['its last error', Object.assign(new Error('Failed after 3 attempts'), { lastError: exhausted })],
    ['its error', Object.assign(new Error('Run failed'), { error: exhausted })],
    ['the error of its error', { error: { error: exhausted } }],
  ])('finds the error in %s', (_, error) => {
    expect(findPoolError(error)).toBe(exhausted);
  });

  it('prefers the error that is nearest', () => {
    const outer = new QueueFullError({
      source: 'l',
      waitMs: 0,
      active: 1,
      queued: 0,
      size: 1,
      retryAfterMs: 5,
    });
    const error = new AggregateError([new Error('x', { cause: exhausted }), outer]);
    expect(findPoolError(error)).toBe(outer);
  });

  const sdkError = OpenAI.APIError.generate(429, body, undefined, new Headers({ 'retry-after': '7' }));
  it.each<[string, unknown, number | undefined]>([
    ['the code of an SDK', sdkError, 7_000],
    ['the code of an SDK, in a cause', new Error('agent failed', { cause: sdkError }), 7_000],
    [
      'a parsed body',
      Object.assign(new Error('Too Many Requests'), { statusCode: 429, data: body }),
      undefined,
    ],
    [
      'the text of a body',
      Object.assign(new Error('Too Many Requests'), {
        statusCode: 429,
        responseBody: JSON.stringify(body),
        responseHeaders: { 'Retry-After': '7' },
      }),
      7_000,
    ],
    ['JSON in a message', new Error(`429 ${JSON.stringify(body)}`), undefined],
    ['an axios response', Object.assign(new Error(), { response: { status: 429, data: body } }), undefined],
    ['a bare code', { code: 'ERR_KEYS_EXHAUSTED', retryAfterMs: 9 }, 9],
    ['a code with no usable time', { code: 'ERR_KEYS_EXHAUSTED', retryAfterMs: Number.NaN }, undefined],
    ['a code with no end', { code: 'ERR_KEYS_EXHAUSTED', retryAfterMs: Number.POSITIVE_INFINITY }, undefined],
  ])('rebuilds the error from %s', (_, error, retryAfterMs) => {
    const found = findPoolError(error);
    expect(found).toBeInstanceOf(PipelinePoolError);
    expect(found).toMatchObject({ code: 'ERR_KEYS_EXHAUSTED', source: 'unknown' });
    expect(found?.cause).toBe(error);
    expect(found?.retryAfterMs).toBe(retryAfterMs);
    // Its figures are lost, so it does not claim to have them.
    expect(found).not.toBeInstanceOf(KeysExhaustedError);
  });

  it('keeps the message that survived', () => {
    expect(findPoolError({ data: body })?.message).toBe('No key of llm can serve this call');
    expect(findPoolError({ code: 'ERR_GATE_CLOSED' })?.message).toBe(
      'The request ended with ERR_GATE_CLOSED',
    );
  });

  it('finds nothing in other errors', () => {
    for (const error of [
      undefined,
      'ERR_QUEUE_FULL',
      new Error('ERR_QUEUE_FULL'),
      Object.assign(new Error(), { code: 'ERR_INVALID_ARG_TYPE' }),
      { code: 'constructor' },
      OpenAI.APIError.generate(429, { error: { code: 'rate_limit_exceeded' } }, undefined, new Headers()),
    ])
      expect(findPoolError(error)).toBeUndefined();
  });

  it('looks at no more than 64 values, eight deep', () => {
    const deep = (depth: number): unknown =>
      depth === 0 ? exhausted : new Error('outer', { cause: deep(depth - 1) });
    expect(findPoolError(deep(8))).toBe(exhausted);
    expect(findPoolError(deep(9))).toBeUndefined();
    let reads = 0;
    const endless = (): object =>
      new Proxy(new AggregateError([]), {
        get: (_, field) => {
          reads++;
          return field === 'errors' ? Array.from({ length: 1_000 }, endless) : undefined;
        },
      });
    expect(findPoolError(endless())).toBeUndefined();
    expect(reads).toBeLessThan(64 * 100);
  });

  it.each(Object.entries(STRANGE_VALUES))('reads %s without throwing', (_, make) => {
    expect(findPoolError(make())).toBeUndefined();
    expect(
      findPoolError({ cause: make(), errors: [make()], lastError: make(), error: make() }),
    ).toBeUndefined();
  });
});
