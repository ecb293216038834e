import { setTimeout as sleep } from 'node:timers/promises';
import { ConcurrencyLimiter, LifecycleHooks, ServiceGate } from 'pipeline-pool';
import { type FleetLimiterOptions, RedisLimits, type RedisLimitsOptions } from 'pipeline-pool/redis';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { PER_TURN } from '../../src/internal/clock.js';
import { endOfTurn, until } from '../support/promises.js';
import { seeded } from '../support/random-numbers.js';
import { CLIENTS, type ClientName, type TestClient } from './support/clients.js';
import { hasRedis, RedisServer } from './support/redis-server.js';

/** Longer than a busy machine delays a process. */
const LEASE_MS = 5_000;

describe.skipIf(!hasRedis).each(Object.keys(CLIENTS) as ClientName[])(
  'a fleet limiter over %s',
  (library) => {
    let server: RedisServer;
    const cleanups: (() => unknown)[] = [];
    let names = 0;

    beforeAll(async () => {
      server = await RedisServer.start();
      // A younger one might be one that has lost its data.
      await sleep(LEASE_MS + 1_100);
    });
    afterEach(async () => {
      for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
    });
    afterAll(() => server[Symbol.asyncDispose]());

    async function member(options: Partial<RedisLimitsOptions> = {}): Promise<RedisLimits> {
      const owned = await CLIENTS[library](server.port);
      cleanups.push(() => owned[Symbol.asyncDispose]());
      const limits = new RedisLimits({ client: owned.client, leaseMs: LEASE_MS, ...options });
      cleanups.push(() => limits.close());
      return limits;
    }

    const limit = (options: Partial<FleetLimiterOptions> = {}): FleetLimiterOptions => ({
      name: `limit-${names++}`,
      maxConcurrent: 1,
      ...options,
    });

    it('hands a permit from one member to another', async () => {
      const [a, b] = [await member(), await member()];
      const options = limit();
      const first = await a.limiter(options).acquire();
      let granted = false;
      const second = b.limiter(options).acquire();
      void second.then(() => {
        granted = true;
      });
      await until(() => b.limiter(options).stats().fleet.members === 2);
      expect(granted).toBe(false);
      expect(b.limiter(options).stats()).toMatchObject({ active: 0, queued: 1, fleet: { active: 1 } });
      first.release();
      (await second).release();
    });

    it('leaves nothing behind when it closes while it joins', async () => {
      const options = limit();
      const limits = await member();
      const waiter = limits.limiter(options).acquire();
      await Promise.all([
        limits.close(),
        expect(waiter).rejects.toMatchObject({ code: 'ERR_LIMITER_CLOSED' }),
      ]);
      expect((await server.keys()).filter((key) => key.includes(`:${options.name}}`))).toEqual([]);
    });

    it('rejects in batches those that one signal aborts', async () => {
      const limiter = (await member()).limiter(limit());
      const permit = await limiter.acquire();
      const controller = new AbortController();
      let rejected = 0;
      const waits = Array.from({ length: 1_000 }, () =>
        limiter.acquire({ signal: controller.signal }).catch(() => void rejected++),
      );
      await until(() => limiter.stats().fleet.queued === 1_000);
      controller.abort();
      const counts: number[] = [];
      while (rejected < 1_000) {
        const before = rejected;
        await endOfTurn();
        counts.push(rejected - before);
      }
      await Promise.all(waits);
      expect(Math.max(...counts)).toBeLessThanOrEqual(2 * PER_TURN);
      permit.release();
    });

    it('grants in the order of arrival at Redis, higher priorities first', async () => {
      const members = await Promise.all([member(), member(), member()]);
      const options = limit();
      const limiters = members.map((limits) => limits.limiter(options));
      const holder = await limiters[0]?.acquire();
      const order: number[] = [];
      const waits: Promise<void>[] = [];
      for (let at = 0; at < 9; at++) {
        const limiter = limiters[at % 3] as (typeof limiters)[0];
        waits.push(limiter.run(() => void order.push(at), { priority: at === 7 ? 5 : at === 8 ? -5 : 0 }));
        await until(() => limiter.stats().fleet.queued === at + 1);
      }
      holder?.release();
      await Promise.all(waits);
      expect(order).toEqual([7, 0, 1, 2, 3, 4, 5, 6, 8]);
    });

    it('lets nothing pass a heavy waiter, and runs one that exceeds a lowered limit alone', async () => {
      const [a, b] = [await member(), await member()];
      const options = limit({ maxConcurrent: 3 });
      const [la, lb] = [a.limiter(options), b.limiter(options)];
      const first = await la.acquire({ weight: 2 });
      const order: string[] = [];
      const heavy = lb.acquire({ weight: 3 }).then((permit) => {
        order.push('heavy');
        return permit;
      });
      await until(() => lb.stats().fleet.queued === 1);
      const light = la.acquire().then((permit) => {
        order.push('light');
        return permit;
      });
      await until(() => la.stats().fleet.queued === 2);
      expect(order).toEqual([]);
      la.maxConcurrent = 2;
      await until(() => lb.maxConcurrent === 2);
      first.release();
      const permit = await heavy;
      expect(order).toEqual(['heavy']);
      permit.release();
      (await light).release();
    });

    it('gives the permits of a member that ends to others within its lease', async () => {
      const options = limit();
      const a = await member();
      const b = await member();
      const permit = await a.limiter(options).acquire();
      const waiting = b.limiter(options).acquire();
      await a.close();
      expect(permit.signal.aborted).toBe(true);
      expect(permit.signal.reason).toMatchObject({ code: 'ERR_LIMIT_LOST', reason: 'closed' });
      (await waiting).release();
    });

    it('may have a lease that is no whole number of milliseconds', async () => {
      const limits = await member({ leaseMs: LEASE_MS - 0.3 });
      await expect(limits.limiter(limit()).run(() => 'ran')).resolves.toBe('ran');
    });

    it('rejects at maxQueue, at its timeout, and when its signal aborts', async () => {
      const options = limit({ maxQueue: 1, acquireTimeoutMs: 1_000 });
      const limiter = (await member()).limiter(options);
      const permit = await limiter.acquire({ timeoutMs: 30_000 });
      const results = await Promise.allSettled([
        limiter.acquire(),
        limiter.acquire(),
        limiter.acquire({ timeoutMs: 0 }),
      ]);
      const codes = results.map(
        (result) => result.status === 'rejected' && (result.reason.code ?? result.reason.name),
      );
      expect(codes.sort()).toEqual(['ERR_ACQUIRE_TIMEOUT', 'ERR_ACQUIRE_TIMEOUT', 'ERR_QUEUE_FULL'].sort());
      const signal = AbortSignal.timeout(10);
      await expect(limiter.acquire({ signal, timeoutMs: 30_000 })).rejects.toThrow('aborted due to timeout');
      permit.release();
      (await limiter.acquire({ timeoutMs: 0 })).release();
    });

    it('is the same for the same name, and refuses other options', async () => {
      const limits = await member();
      const options = limit();
      const limiter = limits.limiter(options);
      expect(limits.limiter({ ...options })).toBe(limiter);
      expect(() => limits.limiter({ ...options, maxConcurrent: 2 })).toThrow(TypeError);
      expect(() => limits.limiter({ ...options, maxConcurrent: 0 })).toThrow(RangeError);
      // @ts-expect-error an unknown option
      expect(() => limits.limiter({ ...options, maxQueues: 1 })).toThrow(TypeError);
    });

    it('names the option and the value where a name cannot become part of a key', async () => {
      const limits = await member();
      const name = 'lone \ud800';
      const refused = (option: string) =>
        new RangeError(`Expected \`${option}\` to be well-formed Unicode, got "${name}" (string)`);
      await expect(member({ prefix: name })).rejects.toThrow(refused('prefix'));
      expect(() => limits.limiter(limit({ name }))).toThrow(refused('name'));
      expect(() => new ServiceGate({ name, limits })).toThrow(refused('name'));
      expect(() => new ServiceGate({ name, limits, maxConcurrent: 1 })).toThrow(refused('name'));
    });

    it('keeps the limit of the fleet, and reports that a member was configured with another', async () => {
      const hooks = new LifecycleHooks();
      const mismatches: unknown[] = [];
      hooks.on('limit:mismatch', (payload) => mismatches.push(payload));
      const options = limit({ maxConcurrent: 4 });
      const first = (await member()).limiter(options);
      await first.run(() => {});
      const second = (await member({ hooks })).limiter({ ...options, maxConcurrent: 6 });
      await second.run(() => {});
      expect(second.maxConcurrent).toBe(4);
      expect(mismatches).toEqual([{ source: options.name, maxConcurrent: 6, fleetMaxConcurrent: 4 }]);
    });

    it('lets 10,000 waiters leave at once, and serves the next', async () => {
      const limiter = (await member()).limiter(limit());
      const permit = await limiter.acquire();
      const controller = new AbortController();
      const waiting = Array.from({ length: 10_000 }, () => limiter.acquire({ signal: controller.signal }));
      const ends = Promise.allSettled(waiting);
      await sleep(300);
      controller.abort(new Error('enough'));
      const results = await ends;
      expect(results.every(({ status }) => status === 'rejected')).toBe(true);
      permit.release();
      await limiter.run(() => {});
      await until(() => limiter.stats().fleet.queued === 0);
      expect(limiter.stats()).toMatchObject({ active: 0, queued: 0 });
    });

    it('leaves no key behind', async () => {
      const limits = await member();
      await limits.limiter(limit()).run(() => {});
      await limits.close();
      expect((await server.keys()).filter((key) => key.includes(`limit-${names - 1}`))).toEqual([]);
    });
  },
);

describe('a fleet limiter without Redis', () => {
  const client = { isReady: false, evalSha: () => {}, duplicate() {}, on() {}, off() {} };
  const unreachable = (): RedisLimits => new RedisLimits({ client: client as never });

  it.each(['closes the limiter', 'aborts the request'])('ends a request whose `tenants` %s', async (what) => {
    const limits = unreachable();
    const controller = new AbortController();
    const reason = new Error('left');
    const limiter = limits.limiter({
      name: 'limit',
      maxConcurrent: 1,
      tenants: () => {
        if (what === 'closes the limiter') void limiter.close();
        else controller.abort(reason);
        return {};
      },
    });
    const request = limiter.acquire({ tenant: 'a', signal: controller.signal });
    await expect(request).rejects.toThrow(what === 'closes the limiter' ? 'closed' : 'left');
    expect(limiter.stats()).toMatchObject({ queued: 0, rejected: 1 });
    await limits.close();
  });

  it('says of a run that was aborted before it began that its permit was not used', async () => {
    const sent: string[] = [];
    const subscriber = {
      connect: async () => {},
      on() {},
      subscribe: async () => {},
      unsubscribe: async () => {},
    };
    const granting = {
      ...client,
      isReady: true,
      duplicate: () => ({ ...subscriber, destroy() {} }),
      evalSha: async (_: string, { arguments: args }: { arguments: string[] }) => {
        sent.push(...args.filter((word) => /^[ABR]$/.test(word)));
        return [0, 'epoch', 1_000, 1, 0, 1, 0, 1, 0, 0, [], null, [], ['0', '0'], null, 0];
      },
    };
    const limits = new RedisLimits({ client: granting as never });
    const limiter = limits.limiter({ name: 'limit', maxConcurrent: 1 });
    const controller = new AbortController();
    limits.hooks.on('permit:acquired', () => controller.abort(new Error('left')));
    const run = limiter.run(() => expect.unreachable(), { signal: controller.signal });
    await expect(run).rejects.toThrow('left');
    await until(() => sent.length === 2);
    expect(sent).toEqual(['A', 'B']);
    await limits.close();
  });

  it('rejects a request whose options throw when they are read, and never throws it', async () => {
    const limits = unreachable();
    const limiter = limits.limiter({ name: 'limit', maxConcurrent: 1 });
    for (let reads = 0; reads < 4; reads++) {
      let left = reads;
      const hostile = {
        get taskId() {
          if (left-- === 0) throw new Error('hostile');
          return 'task';
        },
      };
      const request = limiter.acquire(hostile).catch((error: Error) => error.message);
      // One that is read less often than that waits.
      expect(['hostile', undefined]).toContain(await Promise.race([request, endOfTurn()]));
    }
    await limits.close();
  });
});

describe.skipIf(!hasRedis)('tenants of a fleet limiter', () => {
  let server: RedisServer;
  let clients: TestClient[];
  let limits: RedisLimits;
  let others: RedisLimits;

  beforeAll(async () => {
    server = await RedisServer.start();
    clients = await Promise.all([1, 2].map(() => CLIENTS['node-redis 6'](server.port)));
    [limits, others] = clients.map(({ client }) => new RedisLimits({ client, leaseMs: LEASE_MS })) as [
      RedisLimits,
      RedisLimits,
    ];
    await sleep(LEASE_MS + 1_100);
  });
  afterAll(async () => {
    for (const one of [limits, others]) await one.close();
    for (const client of clients) await client[Symbol.asyncDispose]();
    await server[Symbol.asyncDispose]();
  });

  it('share permit-time, not requests', async () => {
    const limiter = limits.limiter({ name: 'shared', maxConcurrent: 2 });
    const work = { long: 0, short: 0 };
    let finished = false;
    const loop = async (tenant: 'long' | 'short', ms: number): Promise<void> => {
      while (!finished) {
        await limiter.run(
          async () => {
            const startedMs = performance.now();
            await sleep(ms);
            work[tenant] += performance.now() - startedMs;
          },
          { tenant },
        );
      }
    };
    const loops = Array.from({ length: 8 }, () => [loop('long', 50), loop('short', 5)]).flat();
    await sleep(2_500);
    finished = true;
    await Promise.all(loops);
    const share = work.long / (work.long + work.short);
    // By requests it would be 0.9.
    expect(share).toBeGreaterThan(0.25);
    expect(share).toBeLessThan(0.75);
  });

  it('that leave take their charge along', async () => {
    const limiter = limits.limiter({ name: 'left', maxConcurrent: 1, fairBy: 'requests' });
    const holder = await limiter.acquire({ tenant: 'c' });
    const gone = await Promise.allSettled(
      Array.from({ length: 50 }, () => limiter.acquire({ tenant: 'a', timeoutMs: 20 })),
    );
    expect(gone.every(({ status }) => status === 'rejected')).toBe(true);
    const order: string[] = [];
    const waits = Array.from({ length: 10 }, () => limiter.run(() => void order.push('b'), { tenant: 'b' }));
    await until(() => limiter.stats().fleet.queued === 10);
    waits.push(limiter.run(() => void order.push('a'), { tenant: 'a' }));
    await until(() => limiter.stats().fleet.queued === 11);
    holder.release();
    await Promise.all(waits);
    expect(order.indexOf('a')).toBeLessThanOrEqual(2);
  });

  /** Waiters of two members that arrive one after another, and the order in which they are served one at a time. */
  async function orderOf(
    options: FleetLimiterOptions,
    arrivals: readonly { readonly tenant: string; readonly priority?: number }[],
  ): Promise<string[]> {
    const members = [limits.limiter(options), others.limiter(options)];
    const holder = await members[0]?.acquire({ weight: options.maxConcurrent });
    const order: string[] = [];
    const waits: Promise<void>[] = [];
    for (const [at, arrival] of arrivals.entries()) {
      const limiter = members[at % 2] as (typeof members)[0];
      waits.push(
        limiter.run(() => void order.push(arrival.tenant), { ...arrival, weight: options.maxConcurrent }),
      );
      await until(() => limiter.stats().fleet.queued === at + 1);
    }
    holder?.release();
    await Promise.all(waits);
    return order;
  }
  const arrivalsOf = (tenants: string) => [...tenants].map((tenant) => ({ tenant }));

  it('share by their weights', async () => {
    const order = await orderOf(
      {
        name: 'weights',
        maxConcurrent: 1,
        fairBy: 'requests',
        tenants: (name) => ({ weight: name === 'a' ? 3 : 1 }),
      },
      arrivalsOf('bbbbaaaaaaaa'),
    );
    expect(order.slice(0, 8).filter((tenant) => tenant === 'a')).toHaveLength(6);
  });

  it('are next, whatever the priority, while they hold less than is guaranteed to them', async () => {
    const order = await orderOf(
      {
        name: 'guarantees',
        maxConcurrent: 1,
        fairBy: 'requests',
        tenants: (name) => ({ guaranteed: name === 'a' ? 1 : 0 }),
      },
      [
        { tenant: 'b', priority: 5 },
        { tenant: 'c' },
        { tenant: 'a', priority: -5 },
        { tenant: 'b', priority: 5 },
        { tenant: 'a', priority: -9 },
      ],
    );
    expect(order).toEqual(['a', 'a', 'b', 'b', 'c']);
  });

  it('may have half a character in their names', async () => {
    const limiter = limits.limiter({ name: 'cut', maxConcurrent: 1 });
    (await limiter.acquire({ tenant: '\u{1f600}'.slice(0, 1) })).release();
  });

  it('never hold more than their caps over all members, and block no other', async () => {
    const options: FleetLimiterOptions = {
      name: 'caps',
      maxConcurrent: 4,
      tenants: (name) => (name === 'a' ? { maxConcurrent: 2 } : {}),
    };
    const members = [limits.limiter(options), others.limiter(options)];
    let [active, peak] = [0, 0];
    const opened = new Set<() => void>();
    const capped = Array.from({ length: 10 }, (_, at) =>
      members[at % 2]?.run(
        async () => {
          peak = Math.max(peak, ++active);
          await new Promise<void>((open) => opened.add(open));
          active--;
        },
        { tenant: 'a' },
      ),
    );
    await until(() => active === 2 && members[0]?.stats().fleet.queued === 8);
    // Those that wait for room under the cap block neither a tenant nor one without.
    await members[1]?.run(() => {}, { tenant: 'b', priority: -1 });
    await members[0]?.run(() => {}, { priority: -1 });
    const timer = setInterval(() => {
      for (const open of opened) open();
      opened.clear();
    }, 2);
    await Promise.all(capped);
    clearInterval(timer);
    expect(peak).toBe(2);
    await until(() => members.every((limiter) => limiter.stats().fleet.queued === 0));
  });

  it('reject a request that is heavier than the cap, or whose share is invalid', async () => {
    const limiter = limits.limiter({
      name: 'invalid',
      maxConcurrent: 4,
      tenants: (name) => (name === 'bad' ? { weight: 0 } : { maxConcurrent: 2 }),
    });
    await expect(limiter.acquire({ tenant: 'a', weight: 3 })).rejects.toThrow(RangeError);
    await expect(limiter.acquire({ tenant: 'bad' })).rejects.toThrow(RangeError);
    expect(limiter.stats()).toMatchObject({ active: 0, queued: 0 });
  });

  it('are served in the order of a local limiter, turns of equals aside', async () => {
    const random = seeded(7);
    for (let round = 0; round < 5; round++) {
      const share = (name: string) => ({
        weight: name === 'a' ? 2 : 1,
        guaranteed: name === 'c' && round % 2 === 0 ? 1 : 0,
      });
      const options = { maxConcurrent: 1, fairBy: 'requests' as const, tenants: share };
      const arrivals = arrivalsOf(
        Array.from({ length: 24 }, () => 'abcd'[Math.floor(random() * 4)]).join(''),
      );
      const local = new ConcurrencyLimiter(options);
      const expected: string[] = [];
      const holder = await local.acquire();
      const waits = arrivals.map((arrival) => local.run(() => void expected.push(arrival.tenant), arrival));
      holder.release();
      await Promise.all(waits);
      const order = await orderOf({ name: `conformance-${round}`, ...options }, arrivals);
      for (let served = 1; served <= order.length; served++)
        for (const tenant of 'abcd') {
          const count = (list: string[]) => list.slice(0, served).filter((name) => name === tenant).length;
          expect(Math.abs(count(order) - count(expected))).toBeLessThanOrEqual(1);
        }
    }
  });

  it('rise in priority with agingMs', async () => {
    const limiter = limits.limiter({ name: 'aging', maxConcurrent: 1, agingMs: 1_000 });
    const holder = await limiter.acquire();
    const order: string[] = [];
    const waits = [limiter.run(() => void order.push('low'), { priority: 0 })];
    await until(() => limiter.stats().fleet.queued === 1);
    waits.push(limiter.run(() => void order.push('high'), { priority: 1 }));
    await until(() => limiter.stats().fleet.queued === 2);
    await sleep(1_500);
    waits.push(limiter.run(() => void order.push('late'), { priority: 1 }));
    await until(() => limiter.stats().fleet.queued === 3);
    holder.release();
    await Promise.all(waits);
    expect(order).toEqual(['high', 'low', 'late']);
  });
});
