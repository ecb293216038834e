import {
  Budget,
  BudgetExceededError,
  createPipelineManager,
  currentRequest,
  ServiceGate,
  withBudget,
} from 'pipeline-pool';
import { describe, expect, expectTypeOf, it } from 'vitest';
import { endOfTurn } from '../support/promises.js';

const managerOf = (options: { trackRequests?: boolean } = {}) =>
  createPipelineManager({
    config: { poolSize: 3, maxConcurrentRequests: 5 },
    create: () => ({}),
    ...options,
  });

/** A gate whose calls cost 0.1 USD. */
const gateOf = () => new ServiceGate({ name: 'llm', cost: { estimate: () => ({ usd: 0.1 }) } });

describe('Budget', () => {
  it('counts decimals exactly', async () => {
    const budget = new Budget({ usd: 0.3 });
    const gate = gateOf();
    for (let i = 0; i < 3; i++) await gate.run(() => 1, { budget });
    expect(budget.spent).toEqual({ usd: 0.3 });
    expect(budget.left('usd')).toBe(0);
    await expect(gate.run(() => 1, { budget })).rejects.toBeInstanceOf(BudgetExceededError);
  });

  it('counts the smallest amounts, and more than four billion', async () => {
    const budget = new Budget({ tiny: 1e-9, tokens: 4e9 });
    const gate = new ServiceGate({
      name: 'llm',
      cost: { estimate: () => ({ tiny: 1e-12, tokens: 4e9 - 1 }) },
    });
    await gate.run(() => 1, { budget });
    expect(budget.spent).toEqual({ tiny: 1e-9, tokens: 4e9 - 1 });
    expect(budget.left('tokens')).toBe(1);
    await expect(gate.run(() => 1, { budget })).rejects.toMatchObject({ meter: 'tiny' });
  });

  it('gives a child its parent’s meters, and the smaller cap of both', () => {
    const budget = new Budget({ calls: 10, usd: 0.5 });
    const child = budget.child({ usd: 2 });
    expectTypeOf(child).toEqualTypeOf<Budget<'calls' | 'usd'>>();
    expect(child.limits).toEqual({ calls: Number.POSITIVE_INFINITY, usd: 2 });
    expect(child.left('usd')).toBe(0.5);
    expect(child.child({ usd: 0.2 }).left('usd')).toBe(0.2);
    expect(child.left('calls')).toBe(10);
  });

  it('spends from all budgets above a child, and from none if one has no room', async () => {
    const gate = gateOf();
    const budget = new Budget({ usd: 0.2 });
    const [first, second] = [budget.child({ usd: 1 }), budget.child({ usd: 0.1 })];
    await gate.run(() => 1, { budget: second });
    await expect(gate.run(() => 1, { budget: second })).rejects.toMatchObject({ limit: 0.1, spent: 0.1 });
    await gate.run(() => 1, { budget: first });
    await expect(gate.run(() => 1, { budget: first })).rejects.toMatchObject({ limit: 0.2, spent: 0.2 });
    expect([budget.spent.usd, first.spent.usd, second.spent.usd]).toEqual([0.2, 0.1, 0.1]);
    expect([budget.reserved.usd, first.reserved.usd, second.reserved.usd]).toEqual([0, 0, 0]);
  });

  it('aborts its signal, and those of its children, when a call is rejected', async () => {
    const gate = gateOf();
    const budget = new Budget({ usd: 0.1 });
    const child = budget.child({ usd: 0 });
    const early = child.signal;
    const refused = await gate.run(() => 1, { budget: child }).catch((error: unknown) => error);
    expect(early.reason).toBe(refused);
    expect(budget.signal.aborted).toBe(false);
    const sibling = budget.child({});
    const ofSibling = sibling.signal;
    await gate.run(() => 1, { budget });
    expect(ofSibling.aborted).toBe(false);
    const error = await gate.run(() => 1, { budget }).catch((thrown: unknown) => thrown);
    expect([budget.signal.reason, ofSibling.reason, budget.child({}).signal.reason]).toEqual([
      error,
      error,
      error,
    ]);
  });

  it('aborts its signal when a call cost more than its cap', async () => {
    const budget = new Budget({ usd: 0.5 });
    const gate = new ServiceGate({
      name: 'llm',
      cost: { estimate: () => ({ usd: 0.1 }), actual: () => ({ usd: 0.7 }) },
    });
    await gate.run(() => 1, { budget });
    expect(budget.spent.usd).toBe(0.7);
    expect(budget.left('usd')).toBe(0);
    expect(budget.signal.reason).toMatchObject({
      code: 'ERR_BUDGET_EXCEEDED',
      meter: 'usd',
      spent: 0.7,
      limit: 0.5,
    });
    expect(budget.signal.reason.message).toBe(
      'A call of llm cost more than the budget allows: 0.7 of 0.5 usd spent',
    );
  });

  it.each([
    [undefined, TypeError],
    [[1], TypeError],
    [{ usd: '1' }, TypeError],
    [{ usd: undefined }, TypeError],
    [{ usd: -1 }, RangeError],
    [{ usd: Number.NaN }, RangeError],
  ])('rejects the caps %j', (caps, kind) => {
    expect(() => new Budget(caps as never)).toThrow(kind);
    expect(() => new Budget(caps as never)).toThrow('budget');
  });

  it('throws for a meter that it does not have', () => {
    const budget = new Budget({ usd: 1 });
    // @ts-expect-error a misspelt meter
    expect(() => budget.left('uds')).toThrow('Expected `meter` to be one of usd, got "uds" (string)');
    // @ts-expect-error a misspelt meter
    budget.child({ uds: 1 });
  });
});

describe('the budget of a request', () => {
  it('bounds what the request calls, however deep', async () => {
    const gate = gateOf();
    const deep = async () => {
      await endOfTurn();
      return gate.run(() => 1);
    };
    const budget = new Budget({ usd: 0.1 });
    const outcome = managerOf().run('t1', async () => [await deep(), await deep()], { budget });
    await expect(outcome).rejects.toMatchObject({ code: 'ERR_BUDGET_EXCEEDED', source: 'llm', spent: 0.1 });
    expect(budget.spent.usd).toBe(0.1);
  });

  it('may be given as caps, and is in the context', async () => {
    const manager = managerOf();
    const { budget } = await manager.run(
      't1',
      async (context) => {
        await gateOf().run(() => 1);
        expect(currentRequest()?.budget).toBe(context.budget);
        expect(manager.requests()[0]?.budget).toEqual({
          limits: { usd: 0.5 },
          spent: { usd: 0.1 },
          reserved: { usd: 0 },
        });
        return context;
      },
      { budget: { usd: 0.5 } },
    );
    expect(budget?.left('usd')).toBe(0.4);
    await expect(manager.run('t2', () => 1, { budget: { usd: -1 } })).rejects.toThrow('`budget.usd`');
    expect(manager.requests()).toEqual([]);
  });

  it('bounds the requests that it makes, whether they have a budget, caps or nothing of their own', async () => {
    const manager = managerOf();
    const gate = gateOf();
    await manager.run(
      'outer',
      async (outer) => {
        await manager.run('inner', ({ budget }) => {
          expect(budget).toBe(outer.budget);
          return gate.run(() => 1);
        });
        const run = manager.run('capped', ({ budget }) => gate.run(() => budget?.left('usd')), {
          budget: { usd: 0.15 },
        });
        expect(await run).toBeCloseTo(0.05);
        const own = new Budget({ usd: 9 });
        await manager.run('own', () => gate.run(() => 1), { budget: own });
        expect(own.spent.usd).toBe(0.1);
        expect(outer.budget?.spent.usd).toBe(0.3);
      },
      { budget: { usd: 0.5 } },
    );
  });

  it('is an option of a gate’s call where requests are not tracked', async () => {
    const budget = new Budget({ usd: 0.5 });
    await managerOf({ trackRequests: false }).run('t1', (request) => gateOf().run(() => 1, request), {
      budget,
    });
    expect(budget.spent.usd).toBe(0.1);
  });

  it('stands in `request:finished`', async () => {
    const manager = managerOf();
    const ends: unknown[] = [];
    manager.hooks.on('request:finished', ({ budget }) => ends.push(budget));
    await manager.run('t1', () => gateOf().run(() => 1), { budget: { usd: 1 } });
    await manager.run('t2', () => 1);
    expect(ends).toEqual([{ limits: { usd: 1 }, spent: { usd: 0.1 }, reserved: { usd: 0 } }, undefined]);
  });
});

describe('A budget inside another one', () => {
  const inRequest = <R>(usd: number, work: (outer: Budget) => Promise<R>): Promise<R> =>
    managerOf().run('outer', ({ budget }) => work(budget as Budget), { budget: { usd } });

  it('is spent from together with it, in a request, in withBudget and in a call', async () => {
    const gate = gateOf();
    const own = new Budget({ usd: 9, calls: 9 });
    await inRequest(0.25, async (outer) => {
      await managerOf().run('inner', () => gate.run(() => 1), { budget: own });
      await withBudget(own, () => gate.run(() => 1));
      expect([outer.spent.usd, own.spent.usd, own.spent.calls]).toEqual([0.2, 0.2, 2]);
      for (const attempt of [
        () => managerOf().run('inner', () => gate.run(() => 1), { budget: own }),
        () => withBudget(own, () => gate.run(() => 1)),
        () => withBudget(own, () => withBudget(new Budget({ usd: 5 }), () => gate.run(() => 1))),
        () => gate.run(() => 1, { budget: own }),
      ])
        await expect(attempt()).rejects.toMatchObject({ meter: 'usd', limit: 0.25, spent: 0.2 });
      expect([own.spent.usd, own.reserved.usd, outer.reserved.usd]).toEqual([0.2, 0, 0]);
    });
    await gate.run(() => 1, { budget: own });
    expect(own.spent.usd).toBe(0.3);
  });

  it('is spent from once, where it is one above it, a child of it, or another child of the same one', async () => {
    const gate = gateOf();
    await inRequest(5, async (outer) => {
      const child = outer.child({ usd: 1 });
      const sibling = outer.child({ usd: 1 });
      await withBudget(child, () => gate.run(() => 1, { budget: outer }));
      expect([outer.spent.usd, child.spent.usd]).toEqual([0.1, 0.1]);
      await withBudget(child, () => gate.run(() => 1, { budget: sibling }));
      expect([outer.spent.usd, child.spent.usd, sibling.spent.usd]).toEqual([0.2, 0.2, 0.1]);
      await withBudget(child, () => gate.run(() => 1, { budget: child.child({}) }));
      expect([outer.spent.usd, child.spent.usd]).toEqual([0.3, 0.3]);
    });
  });

  it('aborts its own signal for a call that the other has no room for', async () => {
    const own = new Budget({ usd: 9 });
    await inRequest(0, async (outer) => {
      let signal: AbortSignal | undefined;
      const error = await managerOf()
        .run(
          'inner',
          ({ budget }) => {
            signal = budget?.signal;
            return gateOf().run(() => 1);
          },
          { budget: own },
        )
        .catch((thrown: unknown) => thrown);
      expect([own.signal.reason, signal?.reason]).toEqual([error, error]);
      expect(outer.signal.aborted).toBe(false);
    });
  });
});

describe('withBudget', () => {
  it('replaces the budget of the request for what it calls, and nothing else of it', async () => {
    const gate = gateOf();
    await managerOf().run(
      't1',
      async (request) => {
        const child = request.budget?.child({ usd: 0.1 }) as Budget;
        await withBudget(child, async () => {
          await endOfTurn();
          await gate.run(() => 1);
          const { budget, ...rest } = currentRequest() ?? {};
          expect(budget).toBe(child);
          const { budget: _, ...others } = request;
          expect(rest).toEqual(others);
          await expect(gate.run(() => 1)).rejects.toThrow(BudgetExceededError);
        });
        expect(currentRequest()).toBe(request);
        await gate.run(() => 1);
        expect([request.budget?.spent.usd, child.spent.usd]).toEqual([0.2, 0.1]);
      },
      { budget: { usd: 0.5 } },
    );
  });

  it('rejects by name what is no Budget, and no function', () => {
    for (const wrong of [{}, { usd: 1 }, 5, null, undefined])
      expect(() => withBudget(wrong as never, () => 1)).toThrow('Expected `budget` to be a Budget, got');
    expect(() => withBudget(new Budget({ usd: 1 }), 5 as never)).toThrow('Expected `work` to be a function');
  });

  it('works outside of a request', async () => {
    const budget = new Budget({ usd: 0.5 });
    await withBudget(budget, async () => {
      expect(currentRequest()).toBeUndefined();
      await gateOf().run(() => 1);
    });
    expect(budget.spent.usd).toBe(0.1);
  });
});
