import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { AuthenticationError, RateLimitError, SandboxError, TimeoutError } from '@e2b/code-interpreter';
import OpenAI, { APIConnectionTimeoutError } from 'openai';
import { describe, expect, it, vi } from 'vitest';
import { GateTimeoutError } from '../../src/errors.js';
import {
  classifyOutcome,
  classOfStatus,
  discardResponse,
  isResponse,
  type Judgement,
  verdictOf,
} from '../../src/gate/outcome.js';
import { httpError } from './support.js';

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
    [400, 'stop'],
    [401, 'key-dead'],
    [402, 'key-spent'],
    [403, 'key-dead'],
    [404, 'target'],
    [405, 'stop'],
    [408, 'wait'],
    [409, 'stop'],
    [410, 'target'],
    [413, 'stop'],
    [422, 'target'],
    [425, 'wait'],
    [429, 'other-key'],
    [451, 'target'],
    [500, 'wait'],
    [501, 'stop'],
    [502, 'wait'],
    [503, 'wait'],
    [504, 'wait'],
    [505, 'stop'],
    [522, 'wait'],
    [529, 'wait'],
  ])('takes %i for %s', (status, said) => {
    expect(classOfStatus(status)).toBe(said);
  });
});

describe('classifyOutcome', () => {
  it('takes any result for a success that is no failed response', () => {
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

  it('takes a stream without items for a success', () => {
    expect(classifyOutcome({ kind: 'no-item' })).toEqual({ class: 'ok' });
  });

  it('reads status and headers of a Response', () => {
    const response = new Response(null, { status: 429, headers: { 'retry-after': '3' } });
    expect(classifyOutcome({ kind: 'result', value: response })).toEqual({
      class: 'other-key',
      status: 429,
      retryAfterMs: 3_000,
    });
  });

  it('keeps a time only where there is something to wait for', () => {
    const headers = { 'retry-after': '3' };
    expect(ofError(httpError(404, headers))).toEqual({ class: 'target', status: 404 });
    expect(ofError(httpError(401, headers))).toEqual({ class: 'key-dead', status: 401 });
    expect(ofError(httpError(503, headers))).toEqual({ class: 'wait', status: 503, retryAfterMs: 3_000 });
  });

  it('takes no time from the limits of rate that a failure of another kind tells of', () => {
    const openAi = { 'x-ratelimit-remaining-requests': '4999', 'x-ratelimit-reset-requests': '8.64s' };
    expect(ofError(httpError(500, openAi))).toEqual({ class: 'wait', status: 500 });
    const e2b = { 'ratelimit-remaining': '19990', 'ratelimit-reset': '30' };
    expect(ofError(httpError(502, e2b))).toEqual({ class: 'wait', status: 502 });
    expect(ofError(httpError(402, { 'x-ratelimit-reset-requests': '12ms' }))).toEqual({
      class: 'key-spent',
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
    expect(ofError(Object.assign(new Error('x'), fields))).toMatchObject({ class: 'wait', status: 503 });
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
  ])('takes a 429 with %j for a spent account, whatever its headers say', (fields) => {
    expect(ofError(Object.assign(httpError(429, { 'retry-after': '1' }), fields))).toEqual({
      class: 'key-spent',
      status: 429,
    });
  });

  it('takes for a bug what it does not know', () => {
    for (const error of [new Error('x'), new TypeError('x'), 'x', 7, null, undefined, {}, { status: 200 }]) {
      expect(ofError(error)).toEqual({ class: 'stop' });
    }
    expect(ofError(new DOMException('left', 'AbortError'))).toEqual({ class: 'stop' });
  });

  it('takes timeouts for an overload', () => {
    const timeouts = [
      new DOMException('late', 'TimeoutError'),
      new GateTimeoutError('llm', 'attempt', 5),
      new APIConnectionTimeoutError(),
      new TimeoutError('late'),
      Object.assign(new TypeError('fetch failed'), {
        cause: Object.assign(new Error(), { code: 'UND_ERR_HEADERS_TIMEOUT' }),
      }),
    ];
    for (const error of timeouts) expect(ofError(error)).toEqual({ class: 'wait', overload: true });
  });

  it("knows fetch's failures, from real ones", async () => {
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
    for (const error of broken) expect(ofError(error)).toEqual({ class: 'wait', overload: false });
    const late = await thrownBy(() => fetch(silent.url, { signal: AbortSignal.timeout(20) }));
    expect(ofError(late)).toEqual({ class: 'wait', overload: true });
    const bug = await thrownBy(() => fetch('http://'));
    expect(ofError(bug)).toEqual({ class: 'stop' });
  });

  it("knows the OpenAI SDK's errors, as it makes them", async () => {
    const answer = vi.fn<typeof fetch>();
    const openai = new OpenAI({
      apiKey: 'none',
      baseURL: 'http://127.0.0.1/v1',
      maxRetries: 0,
      fetch: answer,
    });
    const error = (status: number, headers = {}, body: object = { error: { message: 'no' } }) => {
      answer.mockResolvedValueOnce(Response.json(body, { status, headers }));
      return thrownBy(() => openai.models.list());
    };
    expect(ofError(await error(429, { 'x-ratelimit-reset-requests': '4s' }))).toEqual({
      class: 'other-key',
      status: 429,
      retryAfterMs: 4_000,
    });
    expect(ofError(await error(401))).toEqual({ class: 'key-dead', status: 401 });
    expect(ofError(await error(503))).toEqual({ class: 'wait', status: 503 });
    expect(ofError(await error(400))).toEqual({ class: 'stop', status: 400 });
    const quota = { error: { message: 'You exceeded your current quota', code: 'insufficient_quota' } };
    expect(ofError(await error(429, {}, quota))).toEqual({ class: 'key-spent', status: 429 });
    answer.mockRejectedValueOnce(
      Object.assign(new TypeError('fetch failed'), {
        cause: Object.assign(new Error(), { code: 'ECONNRESET' }),
      }),
    );
    expect(ofError(await thrownBy(() => openai.models.list()))).toEqual({ class: 'wait', overload: false });
  });

  it("knows the E2B SDK's errors", () => {
    expect(ofError(new RateLimitError('Rate limit exceeded'))).toEqual({ class: 'other-key', status: 429 });
    expect(ofError(Object.assign(new SandboxError('502: x'), { statusCode: 502 }))).toEqual({
      class: 'wait',
      status: 502,
    });
    expect(ofError(new SandboxError('bad input'))).toEqual({ class: 'stop' });
    expect(ofError(new AuthenticationError('Unauthorized'))).toEqual({ class: 'stop' });
  });

  it('stops at a cause that leads back to itself', () => {
    const error = new Error('x');
    error.cause = error;
    expect(ofError(error)).toEqual({ class: 'stop' });
  });
});

describe('verdictOf', () => {
  it.each<[Judgement | Judgement['class'], string]>([
    ['ok', 'ok'],
    ['wait', 'dropped'],
    ['other-key', 'dropped'],
    ['key-spent', 'ignored'],
    ['key-dead', 'ignored'],
    ['target', 'ignored'],
    ['stop', 'ignored'],
    [{ class: 'wait', status: 429 }, 'dropped'],
    [{ class: 'wait', status: 503 }, 'dropped'],
    [{ class: 'wait', status: 504 }, 'dropped'],
    [{ class: 'wait', status: 529 }, 'dropped'],
    [{ class: 'wait', status: 500 }, 'ignored'],
    [{ class: 'wait', status: 500, overload: true }, 'dropped'],
    [{ class: 'other-key', status: 429, overload: false }, 'ignored'],
  ])('tells an adaptive limit of %j as %s', (answer, load) => {
    expect(verdictOf(answer).load).toBe(load);
  });

  it.each<[Judgement | Judgement['class'], boolean]>([
    ['ok', false],
    ['wait', true],
    ['other-key', true],
    ['key-spent', true],
    ['key-dead', true],
    ['target', false],
    ['stop', false],
    [{ class: 'wait', retry: true }, true],
    [{ class: 'wait', retry: false }, false],
    [{ class: 'other-key', status: 429, retry: false }, false],
    [{ class: 'stop', retry: true }, false],
  ])('tells of %j whether there may be another attempt: %s', (answer, retry) => {
    expect(verdictOf(answer).retry).toBe(retry);
  });

  it.each([0, 0.4])('takes %d ms for no time at all', (retryAfterMs) => {
    expect(verdictOf({ class: 'other-key', retryAfterMs }).retryAfterMs).toBeUndefined();
    expect(verdictOf({ class: 'other-key', retryAfterMs: 1 }).retryAfterMs).toBe(1);
  });

  it.each([
    ['busy', '`class`'],
    [{}, '`class`'],
    [7, 'the answer of `classify`'],
    [{ class: 'wait', retryAfterMs: '5' }, '`retryAfterMs`'],
    [{ class: 'wait', retryAfterMs: Number.NaN }, '`retryAfterMs`'],
    [{ class: 'wait', overload: 1 }, '`overload`'],
    [{ class: 'wait', retry: 'no' }, '`retry`'],
    [{ class: 'wait', retryAfter: 5 }, 'Unknown option `retryAfter`'],
  ])('refuses %j', (answer, message) => {
    expect(() => verdictOf(answer as never)).toThrow(message);
  });
});

describe('isResponse', () => {
  it("knows Node's and undici's, and nothing that only looks a little like one", async () => {
    const undici = await import('undici');
    expect(isResponse(new Response())).toBe(true);
    expect(isResponse(new undici.Response())).toBe(true);
    for (const other of [undefined, null, 'x', {}, { status: 200 }, { status: 200, ok: true }]) {
      expect(isResponse(other)).toBe(false);
    }
  });
});

describe('discardResponse', () => {
  it('cancels a body, once, and does nothing to one that is read or absent', async () => {
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
