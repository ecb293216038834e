import { describe, expect, it } from 'vitest';
import { ConcurrencyLimiter } from '../../src/limiter/concurrency-limiter.js';
import type { AcquireOptions } from '../../src/limiter/limiter.js';

/** A limiter of one with a queue, and what it gives permits to, one after the other, once it is let go. */
function setUp() {
  const limiter = new ConcurrencyLimiter({ maxConcurrent: 1 });
  const holder = limiter.tryAcquire();
  const order: string[] = [];
  const asked: Promise<void>[] = [];
  const ask = (name: string, options?: AcquireOptions) => {
    asked.push(limiter.run(() => void order.push(name), options));
  };
  const served = async () => {
    holder?.release();
    await Promise.all(asked);
    return order;
  };
  return { limiter, order, ask, served };
}

describe('Tenants of one priority', () => {
  it('take turns, one request each, however many they have queued', async () => {
    const { ask, served } = setUp();
    for (const name of ['a1', 'a2', 'a3', 'a4']) ask(name, { tenant: 'a' });
    for (const name of ['b1', 'b2']) ask(name, { tenant: 'b' });
    ask('c1', { tenant: 'c' });
    expect(await served()).toEqual(['a1', 'b1', 'c1', 'a2', 'b2', 'a3', 'a4']);
  });

  it('with 10,000 queued delay the single request of another by one grant', async () => {
    const { ask, served } = setUp();
    for (let i = 0; i < 10_000; i++) ask('crowd', { tenant: 'crowd' });
    ask('single', { tenant: 'single' });
    const order = await served();
    expect(order.indexOf('single')).toBeLessThanOrEqual(1);
    expect(order).toHaveLength(10_001);
  });

  it('delay the single request of another by at most one grant each', async () => {
    const { ask, served } = setUp();
    const tenants = Array.from({ length: 20 }, (_, i) => `tenant ${i}`);
    for (let round = 0; round < 100; round++) for (const tenant of tenants) ask(tenant, { tenant });
    ask('single', { tenant: 'single' });
    expect((await served()).indexOf('single')).toBeLessThanOrEqual(tenants.length);
  });

  it('get no more by requesting again each time they are served', async () => {
    const { limiter, order, ask, served } = setUp();
    const again: Promise<void>[] = [];
    const keen = (times: number) => {
      const work = () => {
        order.push('keen');
        if (times > 1) keen(times - 1);
      };
      again.push(limiter.run(work, { tenant: 'keen' }));
    };
    for (let i = 0; i < 4; i++) ask('crowd', { tenant: 'crowd' });
    keen(4);
    await served();
    await limiter.onIdle();
    await Promise.all(again);
    expect(order).toEqual(['crowd', 'keen', 'crowd', 'keen', 'crowd', 'keen', 'crowd', 'keen']);
  });

  it('take turns with requests without a tenant, which count as one tenant', async () => {
    const { ask, served } = setUp();
    for (const name of ['n1', 'n2', 'n3']) ask(name);
    for (const name of ['a1', 'a2']) ask(name, { tenant: 'a' });
    expect(await served()).toEqual(['n1', 'a1', 'n2', 'a2', 'n3']);
  });

  it('are each served in FIFO order', async () => {
    const { ask, served } = setUp();
    const names: string[] = [];
    for (let i = 0; i < 300; i++) {
      const tenant = `t${(i * 7) % 5}`;
      names.push(`${tenant} ${i}`);
      ask(`${tenant} ${i}`, { tenant });
    }
    const order = await served();
    for (let t = 0; t < 5; t++) {
      const own = (name: string) => name.startsWith(`t${t} `);
      expect(order.filter(own)).toEqual(names.filter(own));
    }
  });

  it('are charged for what `tryAcquire` takes, within their caps', () => {
    const limiter = new ConcurrencyLimiter({
      maxConcurrent: 3,
      tenants: (name) => {
        if (name === 'unknown') throw new Error('no such tenant');
        return { maxConcurrent: 1 };
      },
    });
    const permit = limiter.tryAcquire({ tenant: 'a' });
    expect(limiter.tryAcquire({ tenant: 'a' })).toBeUndefined();
    expect(limiter.tryAcquire({ tenant: 'b' })).toBeDefined();
    expect(() => limiter.tryAcquire({ tenant: 'unknown' })).toThrow('no such tenant');
    expect(() => limiter.tryAcquire({ tenant: 'a', weight: 2 })).toThrow(RangeError);
    permit?.release();
    expect(limiter.tryAcquire({ tenant: 'a' })).toBeDefined();
    expect(limiter.stats()).toMatchObject({ active: 2 });
  });

  it('keep the turns of the others when one gives up', async () => {
    const { limiter, ask, served } = setUp();
    const controller = new AbortController();
    ask('a1', { tenant: 'a' });
    const left = limiter.acquire({ tenant: 'b', signal: controller.signal }).catch(() => 'left');
    ask('c1', { tenant: 'c' });
    ask('a2', { tenant: 'a' });
    ask('c2', { tenant: 'c' });
    controller.abort();
    expect(await left).toBe('left');
    expect(await served()).toEqual(['a1', 'c1', 'a2', 'c2']);
  });
});

describe('Priority and tenants together', () => {
  it('admit a light waiter at once where a grant ahead of the queue makes it precede a heavy one', async () => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 3, fairBy: 'requests' });
    const holder = limiter.tryAcquire();
    const heavy = limiter.acquire({ weight: 3, tenant: 'b' });
    const light = limiter.acquire();
    expect(limiter.stats()).toMatchObject({ active: 1, queued: 2 });
    const urgent = limiter.acquire({ priority: 1, tenant: 'b' });
    expect(limiter.stats()).toMatchObject({ active: 3, queued: 1 });
    for (const permit of [holder, await light, await urgent]) permit?.release();
    (await heavy).release();
    expect(limiter.stats()).toMatchObject({ active: 0, queued: 0 });
  });

  it('go by priority first, and within each the one served longest ago is next', async () => {
    const { ask, served } = setUp();
    for (const name of ['a low 1', 'a low 2']) ask(name, { tenant: 'a' });
    for (const name of ['b low 1', 'b low 2']) ask(name, { tenant: 'b' });
    for (const name of ['a high 1', 'a high 2']) ask(name, { tenant: 'a', priority: 9 });
    ask('b high 1', { tenant: 'b', priority: 9 });
    ask('middle', { priority: 3 });
    expect(await served()).toEqual([
      'a high 1',
      'b high 1',
      'a high 2',
      'middle',
      // `a` has had two grants of high priority since `b` had one.
      'b low 1',
      'a low 1',
      'b low 2',
      'a low 2',
    ]);
  });

  it('do not delay a high priority behind 10,000 of a low one', async () => {
    const { ask, served } = setUp();
    for (let i = 0; i < 10_000; i++) ask('low', { tenant: `t${i % 3}`, priority: -5 });
    ask('high', { tenant: 't0' });
    expect((await served())[0]).toBe('high');
  });
});
