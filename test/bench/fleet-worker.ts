/**
 * A member of a fleet, of one library: takes and releases permits, and reports what happened within the window that the
 * parent gives. Run by `fleet.ts`.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Grant, WorkerConfig } from './fleet.js';

const config = JSON.parse(process.argv[2] ?? '') as WorkerConfig;
const nowMs = (): number => Number(process.hrtime.bigint() / 1_000n) / 1_000;
process.on('unhandledRejection', () => {});

/** Takes a permit; fulfills with its release. One for each loop. */
type Taker = () => Promise<() => unknown>;

async function takers(): Promise<() => Taker> {
  const { port, name, limit, leaseMs } = config;
  if (config.library === 'ours') {
    const { Redis } = await import('ioredis');
    const { RedisLimits } = await import('pipeline-pool/redis');
    const client = new Redis(port, '127.0.0.1');
    await client.ping();
    const limits = new RedisLimits({ client, leaseMs });
    const limiter = limits.limiter({ name, maxConcurrent: limit });
    return () => async () => {
      const permit = await limiter.acquire();
      return () => permit.release();
    };
  }
  if (config.library === 'redis-semaphore') {
    const { Redis } = await import('ioredis');
    const { Semaphore } = await import('redis-semaphore');
    const client = new Redis(port, '127.0.0.1');
    await client.ping();
    return () => async () => {
      const semaphore = new Semaphore(client as never, name, limit, {
        acquireTimeout: 600_000,
        onLockLost: () => {},
      });
      await semaphore.acquire();
      return () => semaphore.release();
    };
  }
  const { default: Bottleneck } = await import('bottleneck');
  const { default: Redis } = await import('ioredis-5');
  const limiter = new Bottleneck({
    id: name,
    maxConcurrent: limit,
    datastore: 'ioredis',
    Redis,
    clientOptions: { port, host: '127.0.0.1' },
    clearDatastore: false,
  } as never);
  await limiter.ready();
  return () => () =>
    new Promise((granted, failed) => {
      limiter.schedule(() => new Promise<void>((release) => granted(() => release()))).catch(failed);
    });
}

const make = await takers();
process.once('message', async ({ fromMs, untilMs }: { fromMs: number; untilMs: number }) => {
  const grants: Grant[] = [];
  let count = 0;
  const loop = async (): Promise<void> => {
    const take = make();
    while (nowMs() < untilMs) {
      const askedMs = nowMs();
      const release = await take();
      const grantedMs = nowMs();
      if (config.records) grants.push([askedMs, grantedMs]);
      if (config.holdMs > 0) await sleep(config.holdMs);
      // The rate counts what ended within the window that is common to all members.
      const releasing = release();
      if (config.awaitsRelease !== false) await releasing;
      const endMs = nowMs();
      if (endMs >= fromMs && endMs < untilMs) count++;
    }
  };
  await Promise.race([
    Promise.all(Array.from({ length: config.loops }, loop)),
    sleep(untilMs - nowMs() + 2_000),
  ]);
  process.send?.({ count, grants });
  process.exit(0);
});
process.send?.('ready');
