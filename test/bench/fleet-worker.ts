/**
 * A member of a fleet, of one library: takes and releases permits, or makes calls through a gate, and reports what happened
 * until the parent's moment. Run by `fleet.ts`.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { GateConfig, Grant, MemberReport, PermitConfig, WorkerConfig } from './fleet.js';

const config = JSON.parse(process.argv[2] ?? '') as WorkerConfig;
const nowMs = (): number => Number(process.hrtime.bigint() / 1_000n) / 1_000;
// A library may reject behind our back: what is missing then shows in its figures.
process.on('unhandledRejection', () => {});

/** Takes a permit; fulfills with its release. One for each loop. */
type Taker = () => Promise<() => unknown>;

async function takers({ library, port, name, limit, leaseMs }: PermitConfig): Promise<() => Taker> {
  if (library === 'ours') {
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
  if (library === 'redis-semaphore') {
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

type Span = { readonly fromMs: number; readonly untilMs: number };
type Run = (span: Span, report: MemberReport) => Promise<void>;

async function permits(permitConfig: PermitConfig): Promise<Run> {
  const make = await takers(permitConfig);
  return async ({ fromMs, untilMs }, report) => {
    const take = make();
    while (nowMs() < untilMs) {
      const askedMs = nowMs();
      const release = await take();
      const grantedMs = nowMs();
      // Until then members join one after another, and find out what they have missed.
      if (permitConfig.records && askedMs >= fromMs) report.grants.push([askedMs, grantedMs] satisfies Grant);
      if (permitConfig.holdMs > 0) await sleep(permitConfig.holdMs);
      // The rate counts what ended within the window that is common to all members.
      await release();
      const endMs = nowMs();
      if (endMs >= fromMs && endMs < untilMs) report.count++;
    }
  };
}

async function calls({ port, gate: options, holdMs, leaseMs }: GateConfig): Promise<Run> {
  const { Redis } = await import('ioredis');
  const { ServiceGate } = await import('pipeline-pool');
  const { RedisLimits } = await import('pipeline-pool/redis');
  const client = new Redis(port, '127.0.0.1');
  await client.ping();
  const gate = new ServiceGate({ ...options, limits: new RedisLimits({ client, leaseMs }) });
  let mustFail = false;
  process.on('message', (message) => {
    if (message === 'fail') mustFail = true;
  });
  return async ({ untilMs }, report) => {
    const call = async () => {
      report.starts.push(nowMs());
      report.count++;
      if (mustFail) {
        mustFail = false;
        report.failedMs = nowMs();
        throw Object.assign(new Error('too many'), { status: 429, headers: { 'retry-after': '60' } });
      }
      if (holdMs > 0) await sleep(holdMs);
    };
    // A cooldown rejects calls at once: without a pause this would hold the event loop, and what has to be sent.
    while (nowMs() < untilMs) await gate.run(call).catch(() => sleep(10));
  };
}

/** The CPU time of this process in the window that is common to all members. */
async function cpuWithin({ fromMs, untilMs }: Span): Promise<number> {
  await sleep(fromMs - nowMs());
  const before = process.cpuUsage();
  await sleep(untilMs - nowMs());
  const { user, system } = process.cpuUsage(before);
  return (user + system) / 1_000;
}

const run = await ('gate' in config ? calls(config) : permits(config));
process.on('message', async (message: Span | 'fail') => {
  if (message === 'fail') return;
  const report: MemberReport = { count: 0, cpuMs: 0, grants: [], starts: [] };
  void cpuWithin(message).then((ms) => {
    report.cpuMs = ms;
  });
  const loop = () =>
    run(message, report).catch(({ message }: Error) => {
      report.error ??= message;
    });
  await Promise.race([
    Promise.all(Array.from({ length: config.loops }, loop)),
    sleep(message.untilMs - nowMs() + 2_000),
  ]);
  process.send?.(report, () => process.exit(0));
});
process.send?.('ready');
