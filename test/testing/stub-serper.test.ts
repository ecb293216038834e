import { StubSerper, type StubSerperOptions } from 'pipeline-pool/testing';
import { afterEach, describe, expect, it } from 'vitest';
import { until } from '../support/promises.js';

const running: StubSerper[] = [];
afterEach(async () => {
  await Promise.all(running.splice(0).map((service) => service.stop()));
});

async function start(options: StubSerperOptions = {}): Promise<StubSerper> {
  const serper = await new StubSerper(options).start();
  running.push(serper);
  return serper;
}

const search = (serper: StubSerper, key: string, body: unknown = { q: 'connection pools' }) =>
  fetch(`${serper.url}/search`, {
    method: 'POST',
    headers: { 'X-API-KEY': key, 'Content-Type': 'application/json' },
    body: typeof body === 'string' ? body : JSON.stringify(body),
  });

describe('StubSerper', () => {
  it('returns the requested number of results, the same for the same query', async () => {
    const serper = await start();
    const answer = await search(serper, 'k', { q: 'pools', num: 3, page: 2, gl: 'de' });
    const found = (await answer.json()) as { organic: { position: number }[] };
    expect(found).toMatchObject({
      searchParameters: { q: 'pools', gl: 'de', hl: 'en', num: 3, page: 2, type: 'search', engine: 'google' },
      credits: 1,
    });
    expect(found.organic.map(({ position }) => position)).toEqual([1, 2, 3]);
    expect(found.organic[0]).toEqual({
      title: 'pools: result 4',
      link: 'https://example.com/pools/4',
      snippet: 'What a stub found at rank 4 for pools.',
      position: 1,
    });
    expect(await (await search(serper, 'k', { q: 'pools', num: 3, page: 2, gl: 'de' })).json()).toEqual(
      found,
    );
  });

  it('returns the results of the script', async () => {
    const serper = await start({
      results: ({ q }, call) => [{ title: q, link: 'https://a.example/', snippet: `call ${call.id}` }],
    });
    const found = (await (await search(serper, 'k', { q: 'x' })).json()) as { organic: unknown };
    expect(found.organic).toEqual([
      { title: 'x', link: 'https://a.example/', snippet: 'call 1', position: 1 },
    ]);
  });

  it('rejects an unknown key with 403, and a missing query with 400', async () => {
    const serper = await start({ keys: ['good'] });
    const rejected = await search(serper, 'bad');
    expect(rejected.status).toBe(403);
    expect(await rejected.json()).toEqual({
      message: 'Unauthorized. Sign up for a free account.',
      statusCode: 403,
    });
    const keyless = await fetch(`${serper.url}/search`, { method: 'POST', body: '{"q":"x"}' });
    expect(keyless.status).toBe(403);
    expect((await search(serper, 'good', {})).status).toBe(400);
    expect((await search(serper, 'good', '{"q":')).status).toBe(400);
    expect((await search(serper, 'good')).status).toBe(200);
  });

  it('rejects calls beyond the rate per key with 429, without a retry time', async () => {
    const serper = await start({ rate: { limit: 2, perMs: 60_000 } });
    const answers = await Promise.all(['a', 'a', 'a', 'b'].map((key) => search(serper, key)));
    const rejected = answers.filter(({ status }) => status === 429);
    expect(rejected).toHaveLength(1);
    expect(await rejected[0]?.json()).toEqual({ message: 'Too many requests', statusCode: 429 });
    expect([...(rejected[0]?.headers.keys() ?? [])].filter((name) => /retry|ratelimit/.test(name))).toEqual(
      [],
    );
    expect(serper.stats().byKey.b?.statuses).toEqual({ 200: 1 });
  });

  it('does not count a rejected call in its window', async () => {
    const serper = await start({ rate: { limit: 1, perMs: 30_000 }, timeScale: 0.001 });
    await search(serper, 'a');
    // Asked all the time: were refusals counted, the window would never empty.
    await until(async () => (await search(serper, 'a')).status === 200);
    expect(serper.stats().statuses[200]).toBe(2);
  });

  it('uses a credit per success, and responds with another 429 without credits', async () => {
    const serper = await start({ credits: 2 });
    serper.faultNext({ type: 'status', status: 503 });
    expect((await search(serper, 'a')).status).toBe(503);
    expect(serper.creditsLeft('a')).toBe(2);
    await search(serper, 'a');
    await search(serper, 'a');
    expect(serper.creditsLeft('a')).toBe(0);
    const rejected = await search(serper, 'a');
    expect(rejected.status).toBe(429);
    expect(await rejected.json()).toEqual({ message: 'Not enough credits', statusCode: 429 });
    expect((await search(serper, 'b')).status).toBe(200);
  });

  it('injects both kinds of 429, and an error with status 200', async () => {
    const serper = await start();
    serper.faultNext([
      { type: 'status', status: 429 },
      { type: 'status', status: 429, reason: 'quota' },
      { type: 'envelope', status: 403 },
    ]);
    const answers = [];
    for (let i = 0; i < 3; i++) {
      const answer = await search(serper, 'a');
      answers.push([answer.status, await answer.json()]);
    }
    expect(answers).toEqual([
      [429, { message: 'Too many requests', statusCode: 429 }],
      [429, { message: 'Not enough credits', statusCode: 429 }],
      [200, { message: 'Unauthorized. Sign up for a free account.', statusCode: 403 }],
    ]);
  });
});
