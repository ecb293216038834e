import {
  ConcurrencyLimiter,
  createPipelineManager,
  type FairnessOptions,
  PipelinePool,
  ServiceGate,
} from 'pipeline-pool';
import { describe, expect, it } from 'vitest';
import { inVirtualTime } from '../support/in-virtual-time.js';
import { sleep } from '../support/promises.js';

const time = inVirtualTime();

interface Request {
  readonly tenant?: string;
  readonly priority?: number;
  /** Counts in a limiter and a manager only. */
  readonly weight?: number;
}

type Run = (work: () => Promise<void>, request: Request) => Promise<unknown>;

const create = () => ({});

const managerOf = (poolSize: number, maxConcurrentRequests: number, fairness: FairnessOptions): Run => {
  const manager = createPipelineManager({
    config: { poolSize, maxConcurrentRequests },
    create,
    ...fairness,
  });
  return (work, request) => manager.run('task', work, request);
};

/** Each component that queues, with a limit. */
const COMPONENTS: Record<string, (limit: number, fairness: FairnessOptions) => Run> = {
  'a limiter': (maxConcurrent, fairness) => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent, ...fairness });
    return (work, request) => limiter.run(work, request);
  },
  'a pool': (size, fairness) => {
    const pool = new PipelinePool({ size, create, ...fairness });
    return (work, { tenant, priority }) => pool.use(work, { tenant, priority });
  },
  'a gate': (maxConcurrent, fairness) => {
    const gate = new ServiceGate({ name: 'llm', maxConcurrent, ...fairness });
    return (work, { tenant, priority }) => gate.run(work, { tenant, priority });
  },
  "a manager's limiter": (limit, fairness) => managerOf(limit, limit, fairness),
  "a manager's pool": (limit, fairness) => managerOf(limit, 100, fairness),
};

/** Makes requests of a component; each name is added to `order` when its work starts, and takes the milliseconds given. */
function setUp(run: Run) {
  const order: string[] = [];
  const ends: Promise<unknown>[] = [];
  const ask = (name: string, ms: number, request: Request = {}): void => {
    const work = () => {
      order.push(name);
      return sleep(ms);
    };
    ends.push(run(work, { tenant: name.slice(0, 1), ...request }));
  };
  /** The order of the first starts, once everything has ended. */
  const served = async (count?: number) => {
    await time.pass(1_000);
    await Promise.all(ends);
    return order.slice(0, count).join(' ');
  };
  return { ask, served };
}

describe.each(Object.entries(COMPONENTS))('The fairness options of %s', (name, component) => {
  /** Tenant `l` has long requests and `s` short ones, of which more are waiting than of `l`. */
  const longAndShort = async (fairness: FairnessOptions, weight?: number) => {
    const { ask, served } = setUp(component(weight ?? 1, fairness));
    ask('x', 5, { tenant: undefined as never, weight });
    await time.pass(1);
    for (let i = 1; i <= 3; i++) ask(`l${i}`, 30, { weight });
    for (let i = 1; i <= 7; i++) ask(`s${i}`, 10);
    return served(9);
  };

  it("share by the time that permits are held, with `fairBy: 'time'` and by default", async () => {
    const expected = 'x l1 s1 s2 s3 l2 s4 s5 s6';
    expect(await longAndShort({})).toBe(expected);
    expect(await longAndShort({ fairBy: 'time' })).toBe(expected);
  });

  it("share by turns, with `fairBy: 'requests'`", async () => {
    expect(await longAndShort({ fairBy: 'requests' })).toBe('x l1 s1 l2 s2 l3 s3 s4 s5');
  });

  it("share by the weight of each grant, with `fairBy: 'weight'`", async () => {
    expect(await longAndShort({ fairBy: 'weight' })).toBe('x l1 s1 l2 s2 l3 s3 s4 s5');
    if (name === 'a limiter' || name === "a manager's limiter")
      expect(await longAndShort({ fairBy: 'weight' }, 2)).toBe('x l1 s1 s2 l2 s3 s4 l3 s5');
  });

  it('divide in proportion to `weight`', async () => {
    const { ask, served } = setUp(
      component(1, { fairBy: 'requests', tenants: (tenant) => ({ weight: tenant === 'b' ? 3 : 1 }) }),
    );
    ask('x', 5);
    for (let i = 1; i <= 3; i++) ask(`a${i}`, 10);
    for (let i = 1; i <= 6; i++) ask(`b${i}`, 10);
    expect(await served()).toBe('x a1 b1 b2 b3 a2 b4 b5 b6 a3');
  });

  it('cap what a tenant holds, and others pass it', async () => {
    const { ask, served } = setUp(
      component(3, { tenants: (tenant) => (tenant === 'c' ? { maxConcurrent: 1 } : {}) }),
    );
    for (const each of ['c1', 'c2', 'c3']) ask(each, 30, { priority: 9 });
    for (const each of ['o1', 'o2', 'o3']) ask(each, 10);
    expect(await served()).toBe('c1 o1 o2 o3 c2 c3');
  });

  it('serve a tenant below its guarantee first, ahead of priorities', async () => {
    const { ask, served } = setUp(
      component(1, { tenants: (tenant) => (tenant === 'g' ? { guaranteed: 1 } : {}) }),
    );
    ask('o1', 10);
    await time.pass(1);
    ask('o2', 10, { priority: 9 });
    ask('g1', 10);
    ask('g2', 10);
    expect(await served()).toBe('o1 g1 g2 o2');
  });

  it('raise the priority of a waiter with its age, by `agingMs`', async () => {
    const order = async (fairness: FairnessOptions) => {
      const { ask, served } = setUp(component(1, fairness));
      ask('first', 300);
      ask('old', 10, { priority: -1 });
      await time.pass(101);
      ask('late', 10);
      return served();
    };
    expect(await order({ agingMs: 100 })).toBe('first old late');
    expect(await order({})).toBe('first late old');
  });

  it('charge a tenant for what it received before there was a queue', async () => {
    const { ask, served } = setUp(component(2, {}));
    ask('a1', 300);
    ask('b1', 310);
    await time.pass(200);
    ask('a2', 10);
    ask('b2', 10);
    expect(await served()).toBe('a1 b1 b2 a2');
  });
});
