import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { BATCH_STATE } from '../../src/redis/script.js';
import { until } from '../support/promises.js';
import type { ClientName } from './support/clients.js';
import { Fleet, type Member } from './support/fleet.js';
import { hasRedis, RedisServer, skewed } from './support/redis-server.js';
import { TcpProxy } from './support/tcp-proxy.js';

const LEASE_MS = 1_000;
const nowNs = (): bigint => process.hrtime.bigint();

/** The limit held, no process ended by itself, nothing was unhandled. */
async function expectSound(fleet: Fleet): Promise<void> {
  const codes = await fleet.finish();
  expect(fleet.errors('fatal')).toEqual([]);
  expect(codes.every((code) => code === 0)).toBe(true);
  expect(fleet.peak()).toBeLessThanOrEqual(fleet.limit);
}

describe.skipIf(!hasRedis)('a fleet limit under faults', () => {
  let server: RedisServer;
  let names = 0;

  beforeAll(async () => {
    server = await RedisServer.start();
    await sleep(LEASE_MS + 1_100);
  });
  afterAll(() => server[Symbol.asyncDispose]());

  const fleetOf = (options: Partial<ConstructorParameters<typeof Fleet>[0]> = {}): Fleet =>
    new Fleet({ port: server.port, name: `limit-${names++}`, leaseMs: LEASE_MS, ...options });

  it('holds for 20 processes under load', async () => {
    await using fleet = fleetOf();
    await fleet.start(20);
    await until(() => fleet.grants() > 100);
    await fleet.full();
    await expectSound(fleet);
  });

  it('gets the permits of killed holders back', async () => {
    await using fleet = fleetOf({ holdMs: 10_000, loops: 5 });
    const [holder] = await fleet.start(1);
    await fleet.full();
    await fleet.start(3);
    fleet.kill(holder as Member);
    // The others hold all of them long before they release any.
    await fleet.full(nowNs() + 1_000_000n);
    await expectSound(fleet);
  });

  it('holds while processes are killed and started', async () => {
    await using fleet = fleetOf();
    await fleet.start(6);
    for (let round = 0; round < 4; round++) {
      await sleep(300);
      const victims = fleet.members.filter(({ killedAt }) => killedAt === undefined).slice(0, 2);
      for (const victim of victims) fleet.kill(victim);
      await fleet.start(2);
    }
    await fleet.full(nowNs());
    await expectSound(fleet);
  });

  it('holds when holders are stopped, and when their event loops are blocked, for longer than a lease', async () => {
    await using fleet = fleetOf({ holdMs: 150 });
    await fleet.start(8);
    await fleet.full();
    const stopped = fleet.members.slice(0, 3);
    for (const { process } of stopped) process.kill('SIGSTOP');
    for (const { process } of fleet.members.slice(3, 6)) process.send({ type: 'block', ms: 1.6 * LEASE_MS });
    await sleep(1.7 * LEASE_MS);
    // Those that still run hold all permits.
    await fleet.full(nowNs());
    for (const { process } of stopped) process.kill('SIGCONT');
    await sleep(LEASE_MS);
    await fleet.full(nowNs());
    await expectSound(fleet);
  });

  it('holds when all data is lost, when single keys are, and when a newcomer comes first afterwards', async () => {
    await using fleet = fleetOf();
    await fleet.start(5);
    const keys = ['meta', 'queue', 'holds', 'leases'].map((part) => `{pipeline-pool:${fleet.name}}:${part}`);
    await fleet.full();
    for (const key of keys) {
      await server.command('DEL', key);
      await sleep(1.5 * LEASE_MS);
    }
    const newcomer = fleet.start(1);
    await server.command('FLUSHALL');
    await newcomer;
    await sleep(LEASE_MS);
    await fleet.full(nowNs());
    await expectSound(fleet);
  });

  it('holds while scripts are flushed and subscribers are disconnected', async () => {
    await using fleet = fleetOf();
    await fleet.start(6);
    await fleet.full();
    const since = nowNs();
    for (let round = 0; round < 15 || (fleet.grants(since) <= 40 && round < 300); round++) {
      await server.command('SCRIPT', 'FLUSH');
      if (round % 2 === 0) await server.command('CLIENT', 'KILL', 'TYPE', 'pubsub');
      await sleep(150);
    }
    expect(fleet.grants(since)).toBeGreaterThan(40);
    await expectSound(fleet);
  });

  it('holds while Redis is frozen, by CLIENT PAUSE, by DEBUG SLEEP and by SIGSTOP', async () => {
    await using fleet = fleetOf({ holdMs: 2 * LEASE_MS });
    await fleet.start(6);
    await fleet.full();
    await server.command('CLIENT', 'PAUSE', String(1.5 * LEASE_MS));
    await sleep(2.6 * LEASE_MS);
    void server.command('DEBUG', 'SLEEP', '1.5').catch(() => {});
    await sleep(2.6 * LEASE_MS);
    server.pause();
    await sleep(1.5 * LEASE_MS);
    server.resume();
    await fleet.full(nowNs() + BigInt(LEASE_MS) * 1_000_000n);
    await expectSound(fleet);
    expect(fleet.times('event', 'permit:lost').length).toBeGreaterThan(0);
  });

  it('holds over 100 ms of latency, and when the connections for pushes hang half-open', async () => {
    await using proxy = await TcpProxy.start(server.port);
    await using fleet = fleetOf({ port: proxy.port, leaseMs: 1_500 });
    await fleet.start(6);
    proxy.latencyMs = 50;
    await sleep(1_500);
    proxy.latencyMs = 0;
    proxy.hang('subscribers');
    const since = nowNs();
    await until(() => fleet.grants(since) > 40);
    await expectSound(fleet);
  });

  it('holds when all connections hang half-open, of clients that have a socket timeout', async () => {
    await using proxy = await TcpProxy.start(server.port);
    await using fleet = fleetOf({ port: proxy.port, client: { socketTimeoutMs: 700 } });
    await fleet.start(6);
    await fleet.full();
    proxy.hang();
    // Whatever was held then is lost by now.
    await fleet.full(nowNs() + 1_500_000_000n);
    await expectSound(fleet);
  });

  it('leaves nothing behind when every member is gone', async () => {
    await using fleet = fleetOf();
    const members = await fleet.start(4);
    await fleet.full();
    for (const member of members) fleet.kill(member);
    await until(async () => (await server.keys()).length === 0);
    await fleet.start(4);
    await fleet.full(nowNs());
    await expectSound(fleet);
  });

  it('holds for members whose clocks differ by a minute either way', async () => {
    await using fleet = fleetOf();
    await fleet.start(2);
    await fleet.start(2, skewed('+60s'));
    await fleet.start(2, skewed('-60s'));
    await sleep(LEASE_MS);
    await fleet.full(nowNs());
    await expectSound(fleet);
  });
});

describe.skipIf(!hasRedis)('a fleet limit over a Redis that fails', () => {
  const LIBRARIES: ClientName[][] = [
    ['node-redis 6', 'node-redis 5'],
    ['ioredis 6', 'ioredis 5'],
  ];

  it.each(LIBRARIES)('holds when Redis is killed and restarted empty (%s, %s)', async (...libraries) => {
    await using server = await RedisServer.start();
    await using fleet = new Fleet({
      port: server.port,
      name: 'limit',
      leaseMs: LEASE_MS,
      holdMs: 300,
      libraries,
    });
    await fleet.start(6);
    await fleet.full();
    await server.kill();
    await server.start();
    await sleep(LEASE_MS);
    await fleet.full(nowNs());
    await expectSound(fleet);
  });

  it.each(['wait', 'fail'] as const)(
    'holds while Redis is down for three leases (%s)',
    async (whenUnavailable) => {
      await using server = await RedisServer.start();
      await using fleet = new Fleet({
        ...{ port: server.port, name: 'limit', leaseMs: LEASE_MS, holdMs: 10_000, whenUnavailable },
      });
      await fleet.start(6);
      await fleet.full();
      await server.kill();
      await sleep(3 * LEASE_MS);
      await server.start();
      const upAt = nowNs();
      await fleet.full(upAt);
      await expectSound(fleet);
      // Holders have learned of it long before.
      const lost = fleet.times('event', 'permit:lost').filter((at) => at < upAt);
      expect(lost).toHaveLength(fleet.limit);
      const codes = fleet.errors('rejected').filter((code) => code !== 'ERR_LIMITER_CLOSED');
      expect(codes).toEqual(whenUnavailable === 'fail' ? ['ERR_LIMITS_UNAVAILABLE'] : []);
    },
  );

  it('holds while Redis is down, and each member works on with its share', async () => {
    // The margin between the end of one member's lease and the share of another is a part of it: more than a busy machine delays.
    const leaseMs = 3_000;
    await using server = await RedisServer.start();
    await using fleet = new Fleet({
      ...{
        port: server.port,
        name: 'limit',
        leaseMs,
        holdMs: 100,
        whenUnavailable: 'local' as const,
        // Members that came back later than a lease after the first would have been in a partial outage.
        client: { reconnectMs: 50 },
      },
    });
    await fleet.start(4);
    await fleet.full();
    await server.kill();
    await sleep(leaseMs);
    // From 1.4 leases after the last confirmation on.
    const since = nowNs();
    await fleet.full(since);
    await until(() => fleet.grants(since) > 40);
    await server.start();
    await sleep(1.5 * leaseMs);
    await fleet.full(nowNs());
    await expectSound(fleet);
  });

  it('holds when the clock of Redis jumps by a minute, back and forth', async () => {
    await using server = await RedisServer.start();
    await using fleet = new Fleet({ port: server.port, name: 'limit', leaseMs: LEASE_MS });
    await fleet.start(5);
    await fleet.full();
    // The times that it has stored are changed instead of its clock: its allocator does not bear libfaketime.
    const shift = `
      local by, state = ARGV[1], { struct.unpack('${BATCH_STATE}', redis.call('HGET', KEYS[1], 'b')) }
      -- When the last batch came, when the first lease ends, and until when nothing is granted.
      for _, i in ipairs({ 1, 4, 6 }) do state[i] = state[i] + by end
      redis.call('HSET', KEYS[1], 'b', struct.pack('${BATCH_STATE}', unpack(state, 1, 10)))
      for _, member in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do redis.call('ZINCRBY', KEYS[2], ARGV[1], member) end`;
    const keys = ['meta', 'leases'].map((part) => `{pipeline-pool:limit}:${part}`);
    await server.command('EVAL', shift, '2', ...keys, '60000');
    await sleep(2 * LEASE_MS);
    await server.command('EVAL', shift, '2', ...keys, '-60000');
    await sleep(LEASE_MS);
    await fleet.full(nowNs());
    await expectSound(fleet);
  });

  it('holds when a replica that lacks the last writes is promoted', async () => {
    await using primary = await RedisServer.start();
    await using replica = await RedisServer.start(['--replicaof', `127.0.0.1 ${primary.port}`]);
    await using proxy = await TcpProxy.start(primary.port);
    await using fleet = new Fleet({ port: proxy.port, name: 'limit', leaseMs: LEASE_MS, holdMs: 500 });
    await fleet.start(6);
    await fleet.full();
    await replica.command('REPLICAOF', 'NO', 'ONE');
    await sleep(300);
    proxy.retarget(replica.port);
    await sleep(LEASE_MS);
    await fleet.full(nowNs());
    await expectSound(fleet);
  });
});
