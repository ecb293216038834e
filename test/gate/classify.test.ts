import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { AuthenticationError, RateLimitError, SandboxError, TimeoutError } from '@e2b/code-interpreter';
import OpenAI, { APIConnectionTimeoutError } from 'openai';
import { describe, expect, it, vi } from 'vitest';
import { GateTimeoutError, KeysExhaustedError } from '../../src/errors.js';
import {
  checkedClassification,
  classifyOutcome,
  classOfStatus,
  type OutcomeJudgement,
} from '../../src/gate/classify.js';
import { discardResponse, isResponse } from '../../src/gate/response-content.js';
import { httpError } from '../support/gates.js';

const ofError = (error: unknown) => classifyOutcome({ kind: 'error', error });
const thrownBy = async (work: () => unknown): Promise<unknown> => {
  try {
    await work();
  } catch (error) {
    return error;
  }
  throw new Error('nothing was thrown');
};

/** A server that does this to every connection, and its address. */
async function server(behave: Parameters<typeof createServer>[1]) {
  const http = createServer(behave as never);
  await new Promise<void>((resolve) => http.listen(0, '127.0.0.1', resolve));
  const { port } = http.address() as AddressInfo;
  return {
    url: `http://127.0.0.1:${port}/`,
    async [Symbol.asyncDispose]() {
      http.closeAllConnections();
      await new Promise((resolve) => http.close(resolve));
    },
  };
}

describe('classOfStatus', () => {
  it.each([
    [200, 'ok'],
    [204, 'ok'],
    [301, 'ok'],
    [400, 'fatal'],
    [401, 'unauthorized'],
    [402, 'quota-exhausted'],
    [403, 'unauthorized'],
    [404, 'client-error'],
    [405, 'fatal'],
    [408, 'retryable'],
    [409, 'fatal'],
    [410, 'client-error'],
    [413, 'fatal'],
    [422, 'client-error'],
    [425, 'retryable'],
    [429, 'rate-limited'],
    [451, 'client-error'],
    [500, 'retryable'],
    [501, 'fatal'],
    [502, 'retryable'],
    [503, 'retryable'],
    [504, 'retryable'],
    [505, 'fatal'],
    [522, 'retryable'],
    [529, 'retryable'],
  ])('classifies %i as %s', (status, said) => {
    expect(classOfStatus(status)).toBe(said);
  });
});

describe('classifyOutcome', () => {
  it('classifies any result that is not a failed response as ok', () => {
    for (const value of [
      undefined,
      null,
      0,
      'x',
      {},
      { status: 500 },
      { error: 'x' },
      new Response('page'),
    ]) {
      expect(classifyOutcome({ kind: 'result', value })).toMatchObject({ class: 'ok' });
      expect(classifyOutcome({ kind: 'first-item', value })).toMatchObject({ class: 'ok' });
    }
  });

  it('classifies a stream without items as ok', () => {
    expect(classifyOutcome({ kind: 'no-item' })).toEqual({ class: 'ok' });
  });

  it('reads status and headers of a Response', () => {
    const response = new Response(null, { status: 429, headers: { 'retry-after': '3' } });
    expect(classifyOutcome({ kind: 'result', value: response })).toEqual({
      class: 'rate-limited',
      status: 429,
      retryAfterMs: 3_000,
    });
  });

  it('keeps a retry time only for classes that wait', () => {
    const headers = { 'retry-after': '3' };
    expect(ofError(httpError(404, headers))).toEqual({ class: 'client-error', status: 404 });
    expect(ofError(httpError(401, headers))).toEqual({ class: 'unauthorized', status: 401 });
    expect(ofError(httpError(503, headers))).toEqual({
      class: 'retryable',
      status: 503,
      retryAfterMs: 3_000,
    });
  });

  it('ignores the rate limit headers of a failure that is no rate limit', () => {
    const openAi = { 'x-ratelimit-remaining-requests': '4999', 'x-ratelimit-reset-requests': '8.64s' };
    expect(ofError(httpError(500, openAi))).toEqual({ class: 'retryable', status: 500 });
    const e2b = { 'ratelimit-remaining': '19990', 'ratelimit-reset': '30' };
    expect(ofError(httpError(502, e2b))).toEqual({ class: 'retryable', status: 502 });
    expect(ofError(httpError(402, { 'x-ratelimit-reset-requests': '12ms' }))).toEqual({
      class: 'quota-exhausted',
      status: 402,
    });
    expect(ofError(httpError(402, { 'retry-after': '60' }))).toMatchObject({ retryAfterMs: 60_000 });
  });

  it.each([
    ['status', { status: 503 }],
    ['statusCode', { statusCode: 503 }],
    ['response.status', { response: { status: 503, headers: {} } }],
    ['a numeric code', { code: 503 }],
  ])('finds the status of an error at %s', (_, fields) => {
    expect(ofError(Object.assign(new Error('x'), fields))).toMatchObject({ class: 'retryable', status: 503 });
  });

  it('finds the headers of an error beside its status, or in its response', () => {
    const headers = { 'Retry-After': '2' };
    expect(ofError(Object.assign(new Error(), { status: 429, headers }))).toMatchObject({
      retryAfterMs: 2_000,
    });
    expect(ofError(Object.assign(new Error(), { response: { status: 429, headers } }))).toMatchObject({
      retryAfterMs: 2_000,
    });
  });

  it.each([
    [{ code: 'insufficient_quota' }],
    [{ type: 'insufficient_quota' }],
    [{ error: { code: 'billing_hard_limit_reached' } }],
    [{ error: { error: { type: 'insufficient_quota' } } }],
  ])('classifies a 429 with %j as quota-exhausted, whatever its headers say', (fields) => {
    expect(ofError(Object.assign(httpError(429, { 'retry-after': '1' }), fields))).toEqual({
      class: 'quota-exhausted',
      status: 429,
    });
  });

  it('classifies an unknown error as fatal', () => {
    for (const error of [new Error('x'), new TypeError('x'), 'x', 7, null, undefined, {}, { status: 200 }]) {
      expect(ofError(error)).toEqual({ class: 'fatal' });
    }
    expect(ofError(new DOMException('left', 'AbortError'))).toEqual({ class: 'fatal' });
  });

  it('classifies timeouts as overload', () => {
    const timeouts = [
      new DOMException('late', 'TimeoutError'),
      new GateTimeoutError('llm', 'attempt', 5),
      new APIConnectionTimeoutError(),
      new TimeoutError('late'),
      Object.assign(new TypeError('fetch failed'), {
        cause: Object.assign(new Error(), { code: 'UND_ERR_HEADERS_TIMEOUT' }),
      }),
    ];
    for (const error of timeouts) expect(ofError(error)).toEqual({ class: 'retryable', overload: true });
  });

  it('classifies the errors that fetch throws', async () => {
    await using cut = await server((request) => void request.socket.destroy());
    await using half = await server((_, response) => {
      response.writeHead(200, { 'content-length': '100' });
      response.write('half');
      setTimeout(() => response.destroy(), 10);
    });
    await using silent = await server(() => {});
    const gone = await server(() => {});
    await gone[Symbol.asyncDispose]();
    const broken = [
      await thrownBy(() => fetch(gone.url)),
      await thrownBy(() => fetch(cut.url)),
      await thrownBy(async () => (await fetch(half.url)).text()),
    ];
    for (const error of broken) expect(ofError(error)).toEqual({ class: 'retryable', overload: false });
    const late = await thrownBy(() => fetch(silent.url, { signal: AbortSignal.timeout(20) }));
    expect(ofError(late)).toEqual({ class: 'retryable', overload: true });
    const bug = await thrownBy(() => fetch('http://'));
    expect(ofError(bug)).toEqual({ class: 'fatal' });
  });

  it('recognizes the connection failures of fetch in Deno, which have no code', () => {
    const causes = [
      'error sending request for url (http://127.0.0.1:9/): client error (Connect): tcp connect error: Connection refused (os error 111)',
      'error sending request from 127.0.0.1:5 for http://127.0.0.1:9/ (127.0.0.1:9): client error (SendRequest): connection closed before message completed',
    ];
    for (const message of causes) {
      const error = new TypeError('fetch failed', { cause: new Error(message) });
      expect(ofError(error)).toEqual({ class: 'retryable', overload: false });
    }
  });

  it('classifies the errors of the OpenAI SDK', async () => {
    const respond = vi.fn<typeof fetch>();
    const openai = new OpenAI({
      apiKey: 'none',
      baseURL: 'http://127.0.0.1/v1',
      maxRetries: 0,
      fetch: respond,
    });
    const error = (status: number, headers = {}, body: object = { error: { message: 'no' } }) => {
      respond.mockResolvedValueOnce(Response.json(body, { status, headers }));
      return thrownBy(() => openai.models.list());
    };
    expect(ofError(await error(429, { 'x-ratelimit-reset-requests': '4s' }))).toEqual({
      class: 'rate-limited',
      status: 429,
      retryAfterMs: 4_000,
    });
    expect(ofError(await error(401))).toEqual({ class: 'unauthorized', status: 401 });
    expect(ofError(await error(503))).toEqual({ class: 'retryable', status: 503 });
    expect(ofError(await error(400))).toEqual({ class: 'fatal', status: 400 });
    const quota = { error: { message: 'You exceeded your current quota', code: 'insufficient_quota' } };
    expect(ofError(await error(429, {}, quota))).toEqual({ class: 'quota-exhausted', status: 429 });
    respond.mockRejectedValueOnce(
      Object.assign(new TypeError('fetch failed'), {
        cause: Object.assign(new Error(), { code: 'ECONNRESET' }),
      }),
    );
    expect(ofError(await thrownBy(() => openai.models.list()))).toEqual({
      class: 'retryable',
      overload: false,
    });
  });

  it('classifies the errors of the E2B SDK', () => {
    expect(ofError(new RateLimitError('Rate limit exceeded'))).toEqual({
      class: 'rate-limited',
      status: 429,
    });
    expect(ofError(Object.assign(new SandboxError('502: x'), { statusCode: 502 }))).toEqual({
      class: 'retryable',
      status: 502,
    });
    expect(ofError(new SandboxError('bad input'))).toEqual({ class: 'fatal' });
    expect(ofError(new AuthenticationError('Unauthorized'))).toEqual({ class: 'fatal' });
  });

  it('stops at a circular cause', () => {
    const error = new Error('x');
    error.cause = error;
    expect(ofError(error)).toEqual({ class: 'fatal' });
  });
});

describe('checkedClassification', () => {
  it.each<[OutcomeJudgement | OutcomeJudgement['class'], string]>([
    ['ok', 'ok'],
    ['retryable', 'dropped'],
    ['rate-limited', 'dropped'],
    ['quota-exhausted', 'ignored'],
    ['unauthorized', 'ignored'],
    ['client-error', 'ignored'],
    ['fatal', 'ignored'],
    [{ class: 'retryable', status: 429 }, 'dropped'],
    [{ class: 'retryable', status: 503 }, 'dropped'],
    [{ class: 'retryable', status: 504 }, 'dropped'],
    [{ class: 'retryable', status: 529 }, 'dropped'],
    [{ class: 'retryable', status: 500 }, 'ignored'],
    [{ class: 'retryable', status: 500, overload: true }, 'dropped'],
    [{ class: 'rate-limited', status: 429, overload: false }, 'ignored'],
  ])('reports %j to an adaptive limit as %s', (outcome, load) => {
    expect(checkedClassification(outcome).load).toBe(load);
  });

  it.each<[OutcomeJudgement | OutcomeJudgement['class'], boolean]>([
    ['ok', false],
    ['retryable', true],
    ['rate-limited', true],
    ['quota-exhausted', true],
    ['unauthorized', true],
    ['client-error', false],
    ['fatal', false],
    [{ class: 'retryable', retry: true }, true],
    [{ class: 'retryable', retry: false }, false],
    [{ class: 'rate-limited', status: 429, retry: false }, false],
    [{ class: 'fatal', retry: true }, false],
  ])('allows another attempt after %j: %s', (outcome, retry) => {
    expect(checkedClassification(outcome).retry).toBe(retry);
  });

  it.each([0, 0.4])('treats %d ms as no retry time', (retryAfterMs) => {
    expect(checkedClassification({ class: 'rate-limited', retryAfterMs }).retryAfterMs).toBeUndefined();
    expect(checkedClassification({ class: 'rate-limited', retryAfterMs: 1 }).retryAfterMs).toBe(1);
  });

  it.each([
    ['busy', '`classify().class`'],
    [{}, '`classify().class`'],
    [7, 'Expected `classify()` to be an options object'],
    [{ class: 'retryable', retryAfterMs: '5' }, '`classify().retryAfterMs`'],
    [{ class: 'retryable', retryAfterMs: Number.NaN }, '`classify().retryAfterMs`'],
    [{ class: 'retryable', overload: 1 }, '`classify().overload`'],
    [{ class: 'retryable', retry: 'no' }, '`classify().retry`'],
    [{ class: 'retryable', retryAfter: 5 }, 'Unknown option `retryAfter` in classify()'],
  ])('rejects %j', (outcome, message) => {
    expect(() => checkedClassification(outcome as never)).toThrow(message);
  });
});

describe('isResponse', () => {
  it('accepts the Response of Node and of undici, and nothing less complete', async () => {
    const undici = await import('undici');
    expect(isResponse(new Response())).toBe(true);
    expect(isResponse(new undici.Response())).toBe(true);
    for (const other of [undefined, null, 'x', {}, { status: 200 }, { status: 200, ok: true }]) {
      expect(isResponse(other)).toBe(false);
    }
  });
});

describe('discardResponse', () => {
  it('cancels an unread body once, and ignores one that is read or absent', async () => {
    const cancel = vi.fn();
    const response = new Response(new ReadableStream({ cancel }));
    discardResponse(response);
    await Promise.resolve();
    expect(cancel).toHaveBeenCalledTimes(1);
    const read = new Response('x');
    await read.text();
    discardResponse(read);
    discardResponse(new Response(null));
    discardResponse('no response');
    const locked = new Response('x');
    locked.body!.getReader();
    discardResponse(locked);
  });
});

describe('the errors of other clients', () => {
  const headers = { 'retry-after': '7' };
  it.each<[string, object]>([
    ['got', { response: { statusCode: 429, headers } }],
    ['the AI SDK', { statusCode: 429, responseHeaders: headers, responseBody: '{}' }],
    ['axios', { response: { status: 429, headers, data: {} } }],
    [
      'axios, with a body that was cut off',
      { code: 'ERR_BAD_RESPONSE', request: { res: { statusCode: 429, headers } } },
    ],
    ['superagent', { status: 429, response: { status: 429, headers, body: {} } }],
    ['ky', { response: new Response('', { status: 429, headers }) }],
    ['Google', { status: 429, error: { details: [{ retryDelay: '7s' }] } }],
    ['a client with a JSON text as its message', { status: 429, message: '{"retry_after":7}' }],
  ])('are classified by status and time: %s', (_, shape) => {
    const error = Object.assign(new Error('x'), shape);
    expect(classifyOutcome({ kind: 'error', error })).toEqual({
      class: 'rate-limited',
      status: 429,
      retryAfterMs: 7_000,
    });
  });

  it.each(['ERR_BAD_RESPONSE', 'ERR_NETWORK', 'ERR_STREAM_PREMATURE_CLOSE'])(
    'without a status are retried: %s',
    (code) => {
      const error = Object.assign(new Error('stream has been aborted'), { code });
      expect(classifyOutcome({ kind: 'error', error })).toMatchObject({ class: 'retryable' });
    },
  );

  it('are fatal if they cannot be read', () => {
    const { proxy, revoke } = Proxy.revocable(new Error('x'), {});
    revoke();
    const throwing = Object.defineProperty(new Error('x'), 'status', {
      get: () => {
        throw new Error('no');
      },
    });
    for (const error of [proxy, throwing])
      expect(classifyOutcome({ kind: 'error', error })).toEqual({ class: 'fatal' });
  });
});

describe('an error whose status is that of another object', () => {
  const late = { 'retry-after': '7' };

  it.each<[string, unknown]>([
    ['its cause', new Error('Search failed', { cause: httpError(429, late) })],
    ['a cause further down', new Error('a', { cause: new Error('b', { cause: httpError(429, late) }) })],
    ['`lastError`', Object.assign(new Error('Failed after 3 attempts'), { lastError: httpError(429, late) })],
    ['`res`', Object.assign(new Error('x'), { res: { statusCode: 429, headers: late } })],
    ['`response`', Object.assign(new Error('x'), { response: { status: 429, headers: late } })],
    [
      '`$metadata`',
      Object.assign(new Error('x'), { $metadata: { httpStatusCode: 429 }, $response: { headers: late } }),
    ],
  ])('is classified by it: %s', (_, error) => {
    expect(ofError(error)).toEqual({ class: 'rate-limited', status: 429, retryAfterMs: 7_000 });
  });

  it('is classified by its own status first', () => {
    const error = Object.assign(new Error('x', { cause: httpError(429) }), { status: 404 });
    expect(ofError(error)).toEqual({ class: 'client-error', status: 404 });
  });

  it('is not one of another gate', () => {
    expect(ofError(new KeysExhaustedError('other', 1_000, httpError(429)))).toEqual({ class: 'fatal' });
  });

  it('is read in bounded steps, whatever its getters do', () => {
    const circular: { cause?: unknown } & Error = new Error('circular');
    circular.cause = circular;
    expect(ofError(circular)).toEqual({ class: 'fatal' });
    const hostile = new Error('x');
    for (const field of ['cause', 'lastError', 'res', 'response', '$metadata'])
      Object.defineProperty(hostile, field, {
        get: () => {
          throw new Error('hostile');
        },
      });
    expect(ofError(hostile)).toEqual({ class: 'fatal' });
    const { proxy, revoke } = Proxy.revocable({}, {});
    revoke();
    expect(ofError(new Error('x', { cause: proxy }))).toEqual({ class: 'fatal' });
  });

  it('keeps its time where headers are lists', () => {
    const headers = { 'Retry-After': ['7'] };
    expect(ofError(Object.assign(new Error('x'), { response: { status: 429, headers } }))).toMatchObject({
      retryAfterMs: 7_000,
    });
    expect(
      ofError(Object.assign(new Error('x'), { status: 429, headers: new Map([['retry-after', ['7']]]) })),
    ).toMatchObject({
      retryAfterMs: 7_000,
    });
  });
});
