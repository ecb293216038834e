import { setTimeout as sleep } from 'node:timers/promises';
import { Cluster } from 'ioredis';
import { Cluster as Cluster5 } from 'ioredis-5';
import { type RedisClient, RedisLimits } from 'pipeline-pool/redis';
import { createCluster } from 'redis';
import { createCluster as createCluster5 } from 'redis-5';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { hasRedis, RedisServer } from './support/redis-server.js';

const LEASE_MS = 3_000;
const SLOTS = [
  ['0', '5460'],
  ['5461', '10922'],
  ['10923', '16383'],
] as const;

describe.skipIf(!hasRedis)('a Redis Cluster of three nodes', () => {
  let nodes: RedisServer[];
  const closings: (() => unknown)[] = [];

  beforeAll(async () => {
    nodes = await Promise.all(SLOTS.map(() => RedisServer.start(['--cluster-enabled', 'yes'])));
    for (const [index, [from, to]] of SLOTS.entries()) {
      await nodes[index]?.command('CLUSTER', 'ADDSLOTSRANGE', from, to);
    }
    for (const { port } of nodes.slice(1))
      await nodes[0]?.command('CLUSTER', 'MEET', '127.0.0.1', String(port));
    const isWhole = async (node: RedisServer): Promise<boolean> => {
      const info = String(await node.command('CLUSTER', 'INFO'));
      return info.includes('cluster_state:ok') && info.includes('cluster_known_nodes:3');
    };
    while (!(await Promise.all(nodes.map(isWhole))).every(Boolean)) await sleep(100);
  });
  afterAll(async () => {
    for (const close of closings.reverse()) await close();
    for (const node of nodes ?? []) await node[Symbol.asyncDispose]();
  });

  async function clients(): Promise<RedisClient[]> {
    const rootNodes = nodes.map(({ url }) => ({ url }));
    const startNodes = nodes.map(({ port }) => ({ host: '127.0.0.1', port }));
    const six = createCluster({ rootNodes });
    const five = createCluster5({ rootNodes });
    for (const cluster of [six, five]) cluster.on('error', () => {});
    await Promise.all([six.connect(), five.connect()]);
    const ioSix = new Cluster(startNodes);
    const ioFive = new Cluster5(startNodes);
    await Promise.all([ioSix.get('key'), ioFive.get('key')]);
    closings.push(
      () => six.destroy(),
      () => five.destroy(),
      () => ioSix.disconnect(),
      () => ioFive.disconnect(),
    );
    return [six, five, ioSix, ioFive];
  }

  it('holds limits in its different nodes, for clients of all libraries together', async () => {
    const members = (await clients()).map((client) => new RedisLimits({ client, leaseMs: LEASE_MS }));
    closings.push(() => Promise.all(members.map((limits) => limits.close())));
    const results = await Promise.all(
      ['one', 'two', 'three', 'four', 'five'].map(async (name) => {
        let active = 0;
        let peak = 0;
        const work = async (): Promise<void> => {
          peak = Math.max(peak, ++active);
          await sleep(5);
          active--;
        };
        const limiters = members.map((limits) => limits.limiter({ name, maxConcurrent: 3 }));
        const startedMs = performance.now();
        await Promise.all(Array.from({ length: 240 }, (_, index) => limiters[index % 4]?.run(work)));
        return { peak, tookMs: performance.now() - startedMs };
      }),
    );
    for (const { peak } of results) expect(peak).toBe(3);
    // A frozen first lease, and then pushes to subscribers of any node: by heartbeats alone it would take 80 seconds.
    for (const { tookMs } of results) expect(tookMs).toBeLessThan(60_000);
  });
});
