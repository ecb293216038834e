import { createPipelineManager, LifecycleHooks } from 'pipeline-pool';
import { type FleetLimiterOptions, RedisLimits } from 'pipeline-pool/redis';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { type PlacedWaiter, QueuePace, QueuePlaces } from '../../src/redis/queue-places.js';
import { deferred, sleep, until } from '../support/promises.js';
import { CLIENTS } from './support/clients.js';
import { hasRedis, RedisServer } from './support/redis-server.js';

const LEASE_MS = 2_000;

describe.skipIf(!hasRedis)('a waiter of a fleet limiter', () => {
  let server: RedisServer;
  let names = 0;
  const cleanups: (() => unknown)[] = [];

  beforeAll(async () => {
    server = await RedisServer.start();
    // A younger one might be one that has lost its data.
    await sleep(LEASE_MS + 1_100);
  });
  afterEach(async () => {
    for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
    names++;
  });
  afterAll(() => server[Symbol.asyncDispose]());

  const limit = (more: Partial<FleetLimiterOptions> = {}): FleetLimiterOptions => ({
    name: `limit-${names}`,
    maxConcurrent: 1,
    ...more,
  });

  async function member(hooks = new LifecycleHooks()): Promise<RedisLimits> {
    const owned = await CLIENTS['node-redis 6'](server.port);
    cleanups.push(() => owned[Symbol.asyncDispose]());
    const limits = new RedisLimits({ client: owned.client, leaseMs: LEASE_MS, hooks });
    cleanups.push(() => limits.close());
    return limits;
  }

  /** Two members whose waiters arrive one after another; returns the events of both. */
  async function queue(
    options: FleetLimiterOptions,
    waiters: readonly { tenant?: string; priority?: number }[],
  ) {
    const hooks = new LifecycleHooks();
    const queued: unknown[] = [];
    hooks.on('permit:queued', ({ tenant, position, estimatedWaitMs }) =>
      queued.push({ tenant, position, isEstimated: (estimatedWaitMs as number) > 0 }),
    );
    const limiters = [(await member(hooks)).limiter(options), (await member(hooks)).limiter(options)];
    const holder = await limiters[0]?.acquire();
    const waits: Promise<void>[] = [];
    for (const [at, waiter] of waiters.entries()) {
      const limiter = limiters[at % 2] as (typeof limiters)[0];
      waits.push(limiter.run(() => {}, waiter));
      await until(() => queued.length === at + 1);
    }
    holder?.release();
    await Promise.all(waits);
    return queued;
  }

  it('learns its position among those of all members, and an estimate of its wait', async () => {
    const queued = await queue(limit(), [{}, {}, {}, { priority: 1 }, { priority: -1 }, {}]);
    expect(queued).toEqual([1, 2, 3, 1, 5, 5].map((position) => ({ position, isEstimated: true })));
  });

  it('of a tenant learns the latest position that turns allow', async () => {
    const tenants = ['a', 'a', 'a', 'b', 'c', 'b'];
    const queued = await queue(
      limit({ fairBy: 'requests' }),
      tenants.map((tenant) => ({ tenant })),
    );
    expect(queued).toMatchObject([1, 2, 3, 2, 3, 6].map((position) => ({ position })));
  });

  it('in `requests()` moves up as waiters of any member are granted, and down behind a higher priority', async () => {
    const options = limit();
    const [own, other] = [(await member()).limiter(options), (await member()).limiter(options)];
    const manager = createPipelineManager<number>({
      limiter: own,
      config: { poolSize: 1 },
      create: ({ instanceId }) => instanceId,
    });
    cleanups.push(() => manager.shutdown({ timeoutMs: 0 }));
    const position = (): number | undefined => manager.requests()[0]?.position;
    const holder = await other.acquire();
    const ahead = [other.acquire(), other.acquire()];
    await until(() => other.stats().fleet.queued === 2);
    const end = deferred();
    const request = manager.run('task', () => end.promise);
    await until(() => position() === 3);
    expect(manager.requests()).toMatchObject([{ state: 'queued', waitsFor: 'permit', position: 3 }]);
    expect(manager.requests()[0]?.estimatedWaitMs).toBeGreaterThan(0);
    // Read again with each renewal.
    const first = other.acquire({ priority: 5 });
    await until(() => position() === 4);
    holder.release();
    (await first).release();
    await until(() => position() === 2);
    for (const permit of ahead) (await permit).release();
    await until(() => manager.requests()[0]?.state === 'running');
    expect(position()).toBeUndefined();
    expect(own.places.due()).toEqual([]);
    end.resolve();
    await request;
  });

  it('is granted without an event where it goes first in the script that queues it', async () => {
    const hooks = new LifecycleHooks();
    let events = 0;
    hooks.on('permit:queued', () => events++);
    const limiter = (await member(hooks)).limiter(limit({ maxConcurrent: 3 }));
    const holder = await limiter.acquire({ weight: 2 });
    const heavy = limiter.acquire({ weight: 3 });
    await until(() => events === 1);
    // Ahead of the heavy one, and there is room for it.
    const urgent = await limiter.acquire({ priority: 1, timeoutMs: 0 });
    expect(events).toBe(1);
    for (const permit of [holder, urgent]) permit.release();
    (await heavy).release();
  });

  it('costs one script, as without a listener', async () => {
    const hooks = new LifecycleHooks();
    let events = 0;
    hooks.on('permit:queued', () => events++);
    const limiter = (await member(hooks)).limiter(limit());
    const holder = await limiter.acquire();
    const before = await server.scriptCalls();
    const waits = Array.from({ length: 50 }, () => limiter.acquire());
    await until(() => events === 50);
    // All in one script; a renewal of each connection may come between.
    expect((await server.scriptCalls()) - before).toBeLessThan(5);
    holder.release();
    for (const permit of waits) (await permit).release();
  });
});

describe('the places of waiters', () => {
  it('move up with each that is granted, and never past the first', () => {
    const places = new QueuePlaces(new LifecycleHooks());
    const figures = { active: 1, queued: 5, members: 2, rank: 0, frozen: false };
    const waiter = {
      state: 'waiting',
      servedBefore: 0,
      placeOperation: { encode: () => true, settle: () => {} },
    };
    const placed: PlacedWaiter = { ...waiter, ahead: undefined };
    expect(places.of(placed, 10)).toBeUndefined();
    places.onFigures({ ...figures, served: 7 });
    places.set(placed, 4);
    expect(places.of(placed, 10)).toEqual({ position: 5, estimatedWaitMs: 50 });
    places.onFigures({ ...figures, served: 9 });
    expect(places.of(placed, 10)).toMatchObject({ position: 3 });
    places.onFigures({ ...figures, served: 20 });
    expect(places.of(placed, 10)).toMatchObject({ position: 1 });
    expect(places.of({ ...placed, state: 'held' }, 10)).toBeUndefined();
  });

  it('are read again in turn, 100 at a time, each once', () => {
    const places = new QueuePlaces(new LifecycleHooks());
    const waiters = Array.from(
      { length: 150 },
      (): PlacedWaiter => ({
        state: 'waiting',
        ahead: undefined,
        servedBefore: 0,
        placeOperation: { encode: () => true, settle: () => {} },
      }),
    );
    for (const waiter of waiters) places.watch(waiter, { readPlace: undefined }, () => undefined);
    expect(places.due()).toEqual(waiters.slice(0, 100));
    expect(places.due()).toEqual([...waiters.slice(100), ...waiters.slice(0, 50)]);
    for (const waiter of waiters.slice(3)) places.forget(waiter);
    expect(places.due()).toHaveLength(3);
  });
});

describe('the pace of a fleet queue', () => {
  it('is unknown until waiters were granted while others waited', () => {
    const pace = new QueuePace();
    pace.note(0, 0, 0);
    pace.note(5, 3, 1_000);
    expect(pace.ms).toBeUndefined();
    pace.note(5, 3, 1_500);
    expect(pace.ms).toBeUndefined();
  });

  it('is that of the grants between reports, idle times aside', () => {
    const pace = new QueuePace();
    pace.note(0, 10, 1_000);
    pace.note(4, 10, 1_200);
    expect(pace.ms).toBe(50);
    // The queue was empty in between.
    pace.note(20, 0, 9_000);
    pace.note(20, 5, 20_000);
    expect(pace.ms).toBe(50);
  });

  it('follows a change, and begins anew with an epoch', () => {
    const pace = new QueuePace();
    for (let at = 0; at <= 100; at++) pace.note(at, 9, at * 10);
    for (let at = 1; at <= 200; at++) pace.note(100 + at, 9, 1_000 + at * 40);
    expect(pace.ms).toBeGreaterThan(30);
    const before = pace.ms;
    pace.note(0, 9, 20_000);
    expect(pace.ms).toBe(before);
  });
});
