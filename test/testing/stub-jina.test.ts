import { StubJina, type StubJinaOptions } from 'pipeline-pool/testing';
import { afterEach, describe, expect, it } from 'vitest';

const running: StubJina[] = [];
afterEach(async () => {
  await Promise.all(running.splice(0).map((service) => service.stop()));
});

async function start(options: StubJinaOptions = {}): Promise<StubJina> {
  const jina = await new StubJina(options).start();
  running.push(jina);
  return jina;
}

const read = (jina: StubJina, target: string, headers: Record<string, string> = {}) =>
  fetch(`${jina.url}/${target}`, { headers });
const bearer = (key: string) => ({ authorization: `Bearer ${key}` });
const asJson = { accept: 'application/json' };

describe('StubJina', () => {
  it('reads a page as text, with title and source, query and all', async () => {
    const jina = await start();
    const response = await read(jina, 'https://example.com/a/b?x=1&y=2');
    expect(response.headers.get('content-type')).toContain('text/plain');
    expect(await response.text()).toBe(
      [
        'Title: Page at https://example.com/a/b?x=1&y=2',
        '',
        'URL Source: https://example.com/a/b?x=1&y=2',
        '',
        'Markdown Content:',
        'What a stub read at https://example.com/a/b?x=1&y=2.',
        '',
      ].join('\n'),
    );
  });

  it('reads a page as JSON for a client that accepts it, its URL encoded or not', async () => {
    const jina = await start({ page: (url) => ({ title: 'T', content: `four words about ${url}` }) });
    for (const target of ['https://example.com/a', encodeURIComponent('https://example.com/a')]) {
      expect(await (await read(jina, target, asJson)).json()).toEqual({
        code: 200,
        status: 20000,
        data: {
          title: 'T',
          description: '',
          url: 'https://example.com/a',
          content: 'four words about https://example.com/a',
          usage: { tokens: 4 },
        },
        meta: { usage: { tokens: 4 } },
      });
    }
  });

  it('rejects an invalid URL with 400', async () => {
    const jina = await start();
    for (const target of ['', 'pools', 'https://', 'ftp://example.com', 'https%3A%2F%2F%']) {
      const rejected = await read(jina, target);
      expect(rejected.status, target).toBe(400);
      expect(await rejected.json()).toMatchObject({ code: 400, name: 'ParamValidationError', status: 40001 });
    }
  });

  it('accepts calls without a key, and rejects an unknown key with 401', async () => {
    const jina = await start({ keys: ['good'] });
    expect((await read(jina, 'https://example.com')).status).toBe(200);
    expect((await read(jina, 'https://example.com', bearer('good'))).status).toBe(200);
    const rejected = await read(jina, 'https://example.com', bearer('bad'));
    expect(rejected.status).toBe(401);
    expect(await rejected.json()).toMatchObject({
      data: null,
      code: 401,
      name: 'AuthenticationRequiredError',
    });
  });

  it('rejects calls beyond the rate per key, with retryAfter in body and header', async () => {
    const jina = await start({
      rate: { limit: 2, perMs: 60_000 },
      keylessRate: { limit: 1, perMs: 60_000 },
    });
    const statuses = [];
    for (const key of ['a', 'a', 'b']) {
      statuses.push((await read(jina, 'https://example.com', bearer(key))).status);
    }
    statuses.push((await read(jina, 'https://example.com')).status);
    expect(statuses).toEqual([200, 200, 200, 200]);
    expect((await read(jina, 'https://example.com')).status).toBe(429);
    const rejected = await read(jina, 'https://example.com', bearer('a'));
    expect(rejected.status).toBe(429);
    const body = (await rejected.json()) as { retryAfter: number };
    expect(body).toEqual({
      data: null,
      retryAfter: expect.any(Number),
      retryAfterDate: expect.stringMatching(/^\d{4}-\d\d-\d\dT/),
      code: 429,
      name: 'RateLimitTriggeredError',
      status: 42903,
      message: 'Rate limit exceeded.',
      readableMessage: 'RateLimitTriggeredError: Rate limit exceeded.',
    });
    expect(body.retryAfter).toBeGreaterThan(50);
    expect(rejected.headers.get('retry-after')).toBe(String(body.retryAfter));
  });

  it('has the error format of Jina, whose detailed status distinguishes key from page', async () => {
    const jina = await start();
    const worded = [
      [402, 40203, 'InsufficientBalanceError'],
      [409, 40904, 'BudgetExceededError'],
      [422, 42206, 'AssertionFailureError'],
      [451, 45102, 'SecurityCompromiseError'],
    ] as const;
    jina.faultNext(worded.map(([status]) => ({ type: 'status', status })));
    for (const [code, status, name] of worded) {
      const rejected = await read(jina, 'https://example.com');
      expect(rejected.status).toBe(code);
      expect(await rejected.json()).toMatchObject({ data: null, code, status, name });
    }
  });

  it('sends an error envelope with status 200', async () => {
    const jina = await start();
    jina.faultNext({ type: 'envelope', status: 402 });
    const answer = await read(jina, 'https://example.com', asJson);
    expect(answer.status).toBe(200);
    expect(await answer.json()).toMatchObject({ code: 402, status: 40203 });
  });

  it('states the retry time in the body too, if an injected 429 states it as a date', async () => {
    const jina = await start();
    jina.faultNext({ type: 'status', status: 429, retryAfter: { as: 'date', ms: 5000 } });
    const rejected = await read(jina, 'https://example.com');
    expect(rejected.headers.get('retry-after')).toMatch(/GMT$/);
    expect(await rejected.json()).toMatchObject({ retryAfter: 5 });
  });
});
