import {
  Budget,
  BudgetExceededError,
  defineTools,
  type GateCost,
  openAiPreset,
  PipelinePool,
  pipelineFactory,
  ServiceGate,
  toHttpStatus,
  withBudget,
} from 'pipeline-pool';
import { describe, expect, it, vi } from 'vitest';
import { useFakeTimers } from '../support/fake-timers.js';
import { httpError } from '../support/gates.js';
import { recorder } from '../support/hooks.js';
import { deferred, endOfTurn } from '../support/promises.js';

const USD: GateCost<'usd'> = {
  estimate: () => ({ usd: 0.1 }),
  actual: (value) => value as { usd?: number },
};

function gateOf(options: object = {}) {
  const { hooks, of } = recorder();
  return { gate: new ServiceGate({ name: 'llm', hooks, cost: USD, retry: { baseMs: 0 }, ...options }), of };
}

const untilAborted = ({ signal }: { signal: AbortSignal }) =>
  new Promise<never>((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)));

describe('a gate under a budget', () => {
  it('reserves the estimate of an attempt in flight, and replaces it by the actual cost', async () => {
    const { gate, of } = gateOf();
    const budget = new Budget({ usd: 0.5 });
    const work = deferred<object>();
    const call = gate.run(() => work.promise, { budget });
    await endOfTurn();
    expect([budget.reserved.usd, budget.spent.usd, budget.left('usd')]).toEqual([0.1, 0, 0.4]);
    work.resolve({ usd: 0.03 });
    await call;
    expect([budget.reserved.usd, budget.spent.usd, budget.left('usd')]).toEqual([0, 0.03, 0.47]);
    expect(of('call:finished')).toMatchObject([{ cost: { usd: 0.03, calls: 1 } }]);
  });

  it('counts calls in flight: many at once do not exceed a cap together', async () => {
    const { gate } = gateOf();
    const budget = new Budget({ usd: 0.5 });
    const sent = vi.fn();
    const outcomes = await Promise.allSettled(
      Array.from({ length: 50 }, () =>
        gate.run(
          async () => {
            sent();
            await endOfTurn();
            return {};
          },
          { budget },
        ),
      ),
    );
    expect(sent).toHaveBeenCalledTimes(5);
    expect(outcomes.filter(({ status }) => status === 'fulfilled')).toHaveLength(5);
    expect([budget.spent.usd, budget.reserved.usd]).toEqual([0.5, 0]);
  });

  it('rejects a call that does not fit before anything is sent, with the figures', async () => {
    const { gate, of } = gateOf();
    const budget = new Budget({ usd: 0.25 });
    const work = deferred<object>();
    const calls = [gate.run(() => ({ usd: 0.1 }), { budget }), gate.run(() => work.promise, { budget })];
    await endOfTurn();
    const send = vi.fn();
    const error = await gate.run(send, { budget, taskId: 't1' }).catch((thrown: unknown) => thrown);
    expect(error).toBeInstanceOf(BudgetExceededError);
    expect(error).toMatchObject({
      meter: 'usd',
      limit: 0.25,
      spent: 0.1,
      reserved: 0.1,
      wanted: 0.1,
      source: 'llm',
    });
    expect((error as Error).message).toBe(
      'The budget has no room for a call of llm that may cost 0.1 usd: 0.1 of 0.25 usd spent, 0.1 reserved by calls in flight',
    );
    expect(toHttpStatus(error)).toMatchObject({ status: 429 });
    expect(send).not.toHaveBeenCalled();
    expect(of('budget:exceeded')).toMatchObject([
      { taskId: 't1', meter: 'usd', limit: 0.25, reserved: 0.1, wanted: 0.1 },
    ]);
    expect(of('call:finished').at(-1)).toMatchObject({ outcome: 'rejected', attempts: 0, cost: {} });
    work.resolve({});
    await Promise.all(calls);
    expect(gate.stats()).toMatchObject({ running: 0, attempts: 2 });
  });

  it('releases the permit and the key of a call that does not fit when it starts', async () => {
    const { gate } = gateOf({ maxConcurrent: 1, keys: ['a'], rate: [{ limit: 2, perMs: 60_000 }] });
    const budget = new Budget({ usd: 0.1 });
    const work = deferred<object>();
    const first = gate.run(() => work.promise, { budget });
    const second = gate.run(() => ({}), { budget });
    second.catch(() => {});
    await endOfTurn();
    work.resolve({ usd: 0.05 });
    await first;
    await expect(second).rejects.toMatchObject({ spent: 0.05, reserved: 0 });
    expect(gate.stats()).toMatchObject({
      limiter: { active: 0, queued: 0 },
      keys: [{ inUse: 0, free: 0.5 }],
    });
  });

  it('lets a queued call start if those in flight cost less than they might have', async () => {
    const { gate } = gateOf({ maxConcurrent: 1 });
    const budget = new Budget({ usd: 0.1 });
    const work = deferred<object>();
    const first = gate.run(() => work.promise, { budget });
    const second = gate.run(() => ({ usd: 0.1 }), { budget });
    await endOfTurn();
    work.resolve({ usd: 0 });
    await Promise.all([first, second]);
    expect(budget.spent.usd).toBe(0.1);
  });

  it('rejects a call before it waits, once it cannot fit any more', async () => {
    const { gate } = gateOf({ maxConcurrent: 1 });
    const budget = new Budget({ usd: 0.15 });
    await gate.run(() => ({ usd: 0.1 }), { budget });
    const work = deferred<object>();
    const blocker = gate.run(() => work.promise);
    await expect(gate.run(() => ({}), { budget })).rejects.toBeInstanceOf(BudgetExceededError);
    work.resolve({});
    await blocker;
  });

  it.each([
    ['nothing', () => undefined],
    ['another meter', () => ({ tokens: 4 })],
    ['no number', () => ({ usd: '0.2' })],
    ['less than nothing', () => ({ usd: -1 })],
    ['infinitely much', () => ({ usd: Number.POSITIVE_INFINITY })],
    ['a promise', () => Promise.reject(new Error('late'))],
    [
      'an error',
      () => ({
        get usd() {
          throw new Error('no');
        },
      }),
    ],
  ])('counts a cost as estimated where `actual` says %s', async (_, actual) => {
    const { gate } = gateOf({ cost: { ...USD, actual } });
    const budget = new Budget({ usd: 0.5 });
    await gate.run(() => 1, { budget });
    expect(budget.spent.usd).toBe(0.1);
  });

  it('counts a meter that only `actual` names', async () => {
    const { gate } = gateOf();
    const budget = new Budget({ usd: 0.5, images: 2 });
    await gate.run(() => ({ images: 1 }), { budget });
    expect(budget.spent).toEqual({ usd: 0.1, images: 1 });
  });

  it('counts each retry, and rejects one that does not fit with the failure before it', async () => {
    const { gate } = gateOf();
    const budget = new Budget({ usd: 0.25 });
    const failure = httpError(500);
    const fn = vi.fn(() => Promise.reject(failure));
    await expect(gate.run(fn, { budget })).rejects.toMatchObject({
      code: 'ERR_BUDGET_EXCEEDED',
      cause: failure,
    });
    expect(fn).toHaveBeenCalledTimes(2);
    expect([budget.spent.usd, budget.reserved.usd]).toEqual([0.2, 0]);
  });

  it('does not take the late result of an attempt that was given up for that of the next', async () => {
    useFakeTimers();
    try {
      const { gate } = gateOf({ attemptTimeoutMs: 100 });
      const budget = new Budget({ usd: 0.5 });
      const results = [deferred<object>(), deferred<object>()];
      const call = gate.run(({ attempt }) => results[attempt - 1]!.promise, { budget });
      await vi.advanceTimersByTimeAsync(100);
      results[0]!.resolve({ usd: 0.02 });
      await vi.advanceTimersByTimeAsync(1);
      results[1]!.resolve({});
      await call;
      expect([budget.spent.usd, budget.reserved.usd]).toEqual([0.2, 0]);
    } finally {
      vi.useRealTimers();
    }
  });

  it('counts an aborted attempt as estimated, and one that never started as nothing', async () => {
    const { gate } = gateOf({ maxConcurrent: 1 });
    const budget = new Budget({ usd: 0.5 });
    const controller = new AbortController();
    const started = gate.run(untilAborted, { budget, signal: controller.signal });
    const queued = gate.run(untilAborted, { budget, signal: controller.signal });
    await endOfTurn();
    controller.abort();
    await Promise.allSettled([started, queued]);
    expect([budget.spent.usd, budget.reserved.usd]).toEqual([0.1, 0]);
  });

  it('spends nothing if a listener aborts the call as it starts', async () => {
    const { gate } = gateOf();
    const controller = new AbortController();
    gate.hooks.on('call:started', () => controller.abort());
    const budget = new Budget({ usd: 0.5 });
    const fn = vi.fn(() => ({}));
    await expect(gate.run(fn, { budget, signal: controller.signal })).rejects.toThrow();
    expect(fn).not.toHaveBeenCalled();
    expect([budget.spent.usd, budget.reserved.usd]).toEqual([0, 0]);
  });

  it('rejects a call whose estimate fails, and leaves nothing behind', async () => {
    const budget = new Budget({ usd: 0.5 });
    const { gate } = gateOf({
      cost: {
        estimate: () => {
          throw new Error('no price');
        },
      },
      timeoutMs: 1_000,
    });
    await expect(gate.run(() => 1, { budget })).rejects.toThrow('no price');
    const { gate: other } = gateOf({ cost: { estimate: () => ({ usd: Number.NaN }) } });
    await expect(other.run(() => 1, { budget })).rejects.toThrow(
      '`cost.estimate of llm.usd` to be a number from 0',
    );
    const { gate: late } = gateOf({ cost: { estimate: async () => ({ usd: 1 }) } });
    await expect(late.run(() => 1, { budget })).rejects.toThrow('promise');
    expect([budget.spent.usd, budget.reserved.usd]).toEqual([0, 0]);
    expect(gate.stats()).toMatchObject({ running: 0, attempts: 0 });
  });

  it('stays countable where a cost is infinite, or overflows as it is counted', async () => {
    const budget = new Budget({ usd: Number.POSITIVE_INFINITY });
    for (const usd of [Number.POSITIVE_INFINITY, 1e300]) {
      const { gate: estimating } = gateOf({ cost: { estimate: () => ({ usd }) } });
      await expect(estimating.run(() => 1, { budget })).rejects.toThrow(RangeError);
      const { gate: reading } = gateOf({ cost: { estimate: () => ({ usd: 1 }), actual: () => ({ usd }) } });
      await reading.run(() => 1, { budget });
    }
    expect([budget.spent.usd, budget.reserved.usd, budget.left('usd')]).toEqual([
      2,
      0,
      Number.POSITIVE_INFINITY,
    ]);
  });

  it('reads nothing of the cost without a budget', async () => {
    const cost = { estimate: vi.fn(() => ({ usd: 1 })), actual: vi.fn() };
    const { gate, of } = gateOf({ cost });
    await gate.run(() => 1);
    expect(cost.estimate).not.toHaveBeenCalled();
    expect(cost.actual).not.toHaveBeenCalled();
    expect(of('call:finished')[0]).not.toHaveProperty('cost');
  });

  it('spends once for callers that share a call, and nothing for a cached result', async () => {
    const { gate } = gateOf({ cache: { max: 10, ttlMs: 60_000 } });
    const [first, second] = [new Budget({ usd: 1 }), new Budget({ usd: 1 })];
    const fn = async () => ({ usd: 0.04 });
    await Promise.all([first, second].map((budget) => gate.run(fn, { budget, cacheKey: 'k' })));
    await gate.run(fn, { budget: second, cacheKey: 'k' });
    expect([first.spent.usd, second.spent.usd]).toEqual([0.04, 0]);
  });

  it('makes the call for those who have a budget when the one who started it has none left', async () => {
    const { gate } = gateOf();
    const fn = vi.fn(async () => ({ usd: 0.04 }));
    const [poor, rich] = [new Budget({ usd: 0 }), new Budget({ usd: 1 })];
    const calls = [poor, rich].map((budget) => gate.run(fn, { budget, cacheKey: 'k' }));
    await expect(calls[0]).rejects.toBeInstanceOf(BudgetExceededError);
    await expect(calls[1]).resolves.toEqual({ usd: 0.04 });
    expect(rich.spent.usd).toBe(0.04);
    expect(fn).toHaveBeenCalledOnce();
  });

  it('counts `calls` alone without a `cost`, and emits `budget:unmetered` once', async () => {
    const { gate, of } = gateOf({ cost: undefined });
    await gate.run(() => 1, { budget: new Budget({ calls: 1 }) });
    expect(of('budget:unmetered')).toEqual([]);
    const budget = new Budget({ calls: 2, usd: 1 });
    await gate.run(() => 1, { budget });
    await gate.run(() => 1, { budget });
    expect(budget.spent).toEqual({ calls: 2, usd: 0 });
    expect(of('budget:unmetered')).toMatchObject([{ source: 'llm', meters: ['usd'] }]);
    await expect(gate.run(() => 1, { budget })).rejects.toMatchObject({ meter: 'calls', limit: 2, spent: 2 });
  });

  it('passes the weight to `estimate` and `actual`', async () => {
    const { gate } = gateOf({
      cost: {
        estimate: ({ weight }: { weight: number }) => ({ tokens: weight }),
        actual: (_: unknown, weight: number | undefined) => ({ tokens: weight }),
      },
    });
    const budget = new Budget({ tokens: 100 });
    await gate.run(({ reportUsage }) => reportUsage(12), { budget, weight: 20 });
    await gate.run(() => 1, { budget, weight: 30 });
    expect(budget.spent.tokens).toBe(42);
  });

  it('accepts no budget that is none, and no `cost` without an estimate', async () => {
    const { gate } = gateOf();
    await expect(gate.run(() => 1, { budget: {} as never })).rejects.toThrow(
      'Expected `budget` to be a Budget',
    );
    expect(() => gateOf({ cost: {} })).toThrow('`cost.estimate`');
    expect(() => gateOf({ cost: { ...USD, actual: 1 } })).toThrow('`cost.actual`');
    const cost = { estimate: () => ({ usd: 1 }), actual: () => ({ tokens: 1 }) };
    // @ts-expect-error a meter without an estimate
    new ServiceGate({ name: 'llm', cost });
    new ServiceGate({
      name: 'llm',
      ...openAiPreset(),
      cost: { estimate: () => ({ usd: 1, eur: 1 }), actual: () => ({ eur: 2 }) },
    });
  });
});

describe('a stream under a budget', () => {
  const items = [{ usd: 0.01 }, { text: 'a' }, { usd: 0.02 }, { text: 'b' }];
  const stream = (gate: ServiceGate, budget: Budget, end?: () => Promise<never>) =>
    gate.stream(
      async function* () {
        yield* items;
        await end?.();
      },
      { budget },
    );

  it('costs what its last items say, at its end', async () => {
    const { gate, of } = gateOf();
    const budget = new Budget({ usd: 0.5 });
    for await (const _ of stream(gate, budget)) expect(budget.reserved.usd).toBe(0.1);
    expect([budget.spent.usd, budget.reserved.usd]).toEqual([0.02, 0]);
    expect(of('call:finished')).toMatchObject([{ cost: { usd: 0.02 } }]);
  });

  it.each([
    ['is left', undefined],
    ['fails', () => Promise.reject(new Error('broken'))],
  ])('costs at least what was estimated if it %s', async (_, end) => {
    const { gate } = gateOf();
    const budget = new Budget({ usd: 0.5 });
    const read = async () => {
      for await (const item of stream(gate, budget, end)) if (end === undefined && 'text' in item) break;
    };
    await read().catch(() => {});
    expect([budget.spent.usd, budget.reserved.usd]).toEqual([0.1, 0]);
  });

  it('rejects the first `next` if it does not fit, and nothing before', async () => {
    const { gate } = gateOf();
    const never = stream(gate, new Budget({ usd: 0 }));
    await expect(never.next()).rejects.toBeInstanceOf(BudgetExceededError);
  });
});

describe('gate.fetch under a budget', () => {
  const chat = (usage: object) =>
    `data: {"choices":[]}\n\ndata: ${JSON.stringify({ usage })}\n\ndata: [DONE]\n\n`;
  const bodies = {
    json: (usage: object) => Response.json({ usage }),
    stream: (usage: object) =>
      new Response(chat(usage), { headers: { 'content-type': 'text/event-stream' } }),
  };
  const request = { method: 'POST', body: JSON.stringify({ input: 'x'.repeat(40), max_tokens: 90 }) };

  it.each(['json', 'stream'] as const)(
    'spends the tokens of a %s response, estimated from its request',
    async (kind) => {
      const { gate } = gateOf(openAiPreset());
      const budget = new Budget({ tokens: 200, calls: 3 });
      const fetch = gate.fetch({ fetch: async () => bodies[kind]({ total_tokens: 60 }) });
      const read = () => withBudget(budget, () => fetch('http://llm.test/', request));
      const response = await read();
      expect([budget.reserved.tokens, budget.spent.tokens]).toEqual([100, 0]);
      await response.text();
      expect([budget.reserved.tokens, budget.spent.tokens, budget.spent.calls]).toEqual([0, 60, 1]);
      await (await read()).text();
      const refused = await read();
      expect(refused.status).toBe(429);
      expect(await refused.json()).toMatchObject({ error: { code: 'ERR_BUDGET_EXCEEDED' } });
      expect([budget.reserved.tokens, budget.spent.tokens]).toEqual([0, 120]);
    },
  );

  it('spends at least the estimate if the body is not read to its end', async () => {
    const { gate } = gateOf(openAiPreset());
    const budget = new Budget({ tokens: 200 });
    const fetch = gate.fetch({ fetch: async () => bodies.stream({ total_tokens: 60 }) });
    const response = await withBudget(budget, () => fetch('http://llm.test/', request));
    await response.body?.cancel();
    await endOfTurn();
    expect([budget.reserved.tokens, budget.spent.tokens]).toEqual([0, 100]);
  });

  it('reads the actual cost from a body without `usage`', async () => {
    const actual = (value: unknown) => ({ usd: (value as { price?: number }).price });
    const { gate } = gateOf({ cost: { ...USD, actual } });
    const budget = new Budget({ usd: 1 });
    const fetch = gate.fetch({ fetch: async () => Response.json({ price: 0.02 }) });
    await withBudget(budget, async () => (await fetch('http://llm.test/')).json());
    expect(budget.spent.usd).toBe(0.02);
  });

  it('rejects with the error itself where the host wants that', async () => {
    const { gate } = gateOf();
    const fetch = gate.fetch({ fetch: async () => Response.json({}), rejections: 'throw' });
    const outcome = withBudget(new Budget({ usd: 0 }), () => fetch('http://llm.test/'));
    await expect(outcome).rejects.toBeInstanceOf(BudgetExceededError);
  });
});

describe('a tool under a budget', () => {
  it('spends through its gate, and answers an agent why it could not', async () => {
    const { gate } = gateOf();
    const tools = defineTools({
      search: { connect: () => ({}), gate, call: () => ({ usd: 0.06, found: 1 }) },
    });
    await using pool = new PipelinePool({ size: 1, ...pipelineFactory({ mainAgent: tools }) });
    await pool.use(async ({ mainAgentToolManager: manager }) => {
      const budget = new Budget({ usd: 0.1 });
      await withBudget(budget, async () => {
        expect(await manager.answer('search', '{}')).toContain('found');
        expect(await manager.answer('search', '{}')).toBe(
          'Tool search failed: The budget has no room for a call of llm that may cost 0.1 usd: 0.06 of 0.1 usd spent',
        );
        const error = await manager.call('search', {}).catch((thrown: unknown) => thrown);
        expect(error).toMatchObject({ code: 'ERR_TOOL_FAILED', cause: { code: 'ERR_BUDGET_EXCEEDED' } });
        expect(toHttpStatus(error)).toMatchObject({ status: 429 });
      });
      expect(budget.spent.usd).toBe(0.06);
    });
  });
});
