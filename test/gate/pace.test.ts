import { describe, expect, it } from 'vitest';
import { bearer } from '../../src/gate/fetch.js';
import { openAiPreset } from '../../src/gate/llm-presets.js';
import { reportedLimits } from '../../src/gate/retry-after.js';
import { ServiceGate } from '../../src/gate/service-gate.js';
import { httpError } from '../support/gates.js';

const openAi = (limit: number, remaining: number, reset: string, what = 'requests') => ({
  [`x-ratelimit-limit-${what}`]: String(limit),
  [`x-ratelimit-remaining-${what}`]: String(remaining),
  [`x-ratelimit-reset-${what}`]: reset,
});

describe('the limits that headers report', () => {
  it.each<[string, Record<string, string>, readonly object[]]>([
    [
      'OpenAI',
      { ...openAi(500, 499, '120ms'), ...openAi(30_000, 29_000, '6m0s', 'tokens') },
      [
        { unit: 'calls', limit: 500, remaining: 499, resetMs: 120 },
        { unit: 'weight', limit: 30_000, remaining: 29_000, resetMs: 360_000 },
      ],
    ],
    [
      'a limit without a reset',
      { 'x-ratelimit-limit-requests': '5', 'x-ratelimit-remaining-requests': '4' },
      [],
    ],
    ['a limit of images', openAi(5, 4, '1s', 'images'), []],
    ['no limit at all', openAi(0, 0, '1s'), []],
    [
      'a generic one',
      { 'ratelimit-limit': '10', 'ratelimit-remaining': '9', 'ratelimit-reset': '30' },
      [{ unit: 'calls', limit: 10, remaining: 9, resetMs: 30_000 }],
    ],
    [
      'the standard in preparation',
      {
        'ratelimit-policy': '"burst";q=100;w=60,"day";q=1000;w=86400',
        ratelimit: '"burst";r=50;t=30, "day";r=900;t=99',
      },
      [
        { limit: 100, remaining: 50, resetMs: 30_000, perMs: 60_000 },
        { limit: 1_000, remaining: 900, resetMs: 99_000, perMs: 86_400_000 },
      ],
    ],
    [
      'what cannot be read',
      { ratelimit: ';;=,', 'ratelimit-policy': '"a";q=x', 'x-ratelimit-limit': 'many' },
      [],
    ],
  ])('%s', (_, headers, limits) => {
    expect(reportedLimits(new Headers(headers))).toMatchObject(limits);
    expect(reportedLimits(headers)).toHaveLength(limits.length);
  });

  it('Anthropic, whose tokens are the tighter limit of input and output', () => {
    const of = (what: string, limit: number) => ({
      [`anthropic-ratelimit-${what}-limit`]: String(limit),
      [`anthropic-ratelimit-${what}-remaining`]: '9',
      [`anthropic-ratelimit-${what}-reset`]: new Date(Date.now() + 60_000).toISOString(),
    });
    const split = { ...of('input-tokens', 20), ...of('output-tokens', 30) };
    expect(reportedLimits({ ...of('requests', 10), ...of('tokens', 20), ...split })).toMatchObject([
      { unit: 'calls', limit: 10, remaining: 9 },
      { unit: 'weight', limit: 20, remaining: 9 },
    ]);
    expect(reportedLimits(split)).toMatchObject([{ limit: 20 }, { limit: 30 }]);
  });
});

describe("`pace: 'headers'`", () => {
  const headers = openAi(10, 4, '59s');

  it.each<[string, (gate: ServiceGate) => Promise<unknown>]>([
    ['a `Response`', (gate) => gate.run(() => Response.json({}, { headers }))],
    [
      'the result of `withResponse()`',
      (gate) => gate.run(() => ({ data: {}, response: Response.json({}, { headers }) })),
    ],
    ['an error', (gate) => gate.run(() => Promise.reject(httpError(400, headers))).catch(() => {})],
    [
      '`fetch`',
      (gate) =>
        gate.fetch({ fetch: async () => Response.json({}, { headers }), authorize: bearer })('http://a'),
    ],
    [
      'a stream of `fetch`',
      (gate) => {
        const event = 'data: {"choices":[]}\n\n';
        const fetch = async () =>
          new Response(event, { headers: { ...headers, 'content-type': 'text/event-stream' } });
        return gate
          .fetch({ fetch, authorize: bearer })('http://a')
          .then((response) => response.text());
      },
    ],
  ])('learns from the headers of %s', async (_, call) => {
    const gate = new ServiceGate({ name: 'llm', pace: 'headers', keys: ['a', 'b'] });
    await call(gate);
    // Six of ten are used, by this call and by others; of the other key nothing is known.
    expect(gate.stats().keys.map(({ free }) => free)).toEqual([0.4, 1]);
    await gate.close();
  });

  it('learns nothing without the option', async () => {
    const gate = new ServiceGate({ name: 'llm' });
    await gate.run(() => Response.json({}, { headers }));
    expect(gate.stats().keys[0]?.free).toBe(1);
  });

  it('starts nothing more where nothing remains, and as much as remains otherwise', async () => {
    let remaining = 3;
    const gate = new ServiceGate({ name: 'llm', pace: 'headers' });
    const call = () =>
      gate.run(() => Response.json({}, { headers: openAi(10, --remaining, '60s') }), { timeoutMs: 20 });
    for (let i = 0; i < 3; i++) await call();
    await expect(call()).rejects.toMatchObject({ code: 'ERR_KEYS_EXHAUSTED' });
    expect(gate.stats().attempts).toBe(3);
  });

  it('follows a limit that is raised or lowered', async () => {
    const gate = new ServiceGate({ name: 'llm', pace: 'headers' });
    for (const [limit, remaining, free] of [
      [10, 9, 0.9],
      [100, 98, 0.98],
      [4, 1, 0.25],
    ] as const) {
      await gate.run(() => Response.json({}, { headers: openAi(limit, remaining, '60s') }));
      expect(gate.stats().keys[0]?.free).toBeCloseTo(free);
    }
  });

  it('keeps what it has learned, and the declared windows, when the rate is replaced', async () => {
    const gate = new ServiceGate({ name: 'llm', pace: 'headers', rate: [{ limit: 20, perMs: 60_000 }] });
    await gate.run(() => Response.json({}, { headers }));
    gate.setRate({ rate: [{ limit: 2, perMs: 60_000 }] });
    expect(gate.stats().keys[0]?.free).toBeCloseTo(0.4);
    gate.setRate({ rate: [] });
    expect(gate.stats().keys[0]?.free).toBeCloseTo(0.4);
  });

  it('lets a call run alone that is heavier than a limit of tokens', async () => {
    const gate = new ServiceGate({ name: 'llm', pace: 'headers' });
    const tokens = openAi(100, 100, '1ms', 'tokens');
    await gate.run(() => Response.json({}, { headers: tokens }), { weight: 10 });
    await gate.run(() => 'heavy', { weight: 5_000, timeoutMs: 60_000 });
    expect(gate.stats().keys[0]?.free).toBe(0);
  });

  it('estimates tokens once a limit of tokens is known', async () => {
    const gate = new ServiceGate({ name: 'llm', ...openAiPreset(), pace: 'headers' });
    const body = { usage: { total_tokens: 400 } };
    await gate.run(() => Response.json(body, { headers: openAi(1_000, 600, '60s', 'tokens') }));
    await gate.run(() => ({}));
    expect(gate.stats().keys[0]?.free).toBeCloseTo(0.2);
  });
});

describe('the clock of a gate', () => {
  it('counts the time of a call too: no attempt follows that its deadline would end', async () => {
    let clockMs = 0;
    const gate = new ServiceGate({ name: 'llm', now: () => clockMs, retry: { baseMs: 0 } });
    const failing = () => {
      clockMs += 1_500;
      return Promise.reject(httpError(503, { 'retry-after-ms': '1000' }));
    };
    await expect(gate.run(failing, { timeoutMs: 2_000 })).rejects.toMatchObject({ status: 503 });
    expect(gate.stats().attempts).toBe(1);
    await gate.close();
  });
});
