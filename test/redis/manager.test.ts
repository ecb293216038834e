import {
  createPipelineManager,
  LifecycleHooks,
  ManagerClosedError,
  type PipelineManager,
  ServiceGate,
} from 'pipeline-pool';
import { diagnose, recordDiagnosis } from 'pipeline-pool/diagnosis';
import { collectMetrics } from 'pipeline-pool/prometheus';
import { RedisLimits, type RedisLimitsOptions } from 'pipeline-pool/redis';
import { Registry } from 'prom-client';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { deferred, follow, sleep, until } from '../support/promises.js';
import { CLIENTS } from './support/clients.js';
import { hasRedis, RedisServer } from './support/redis-server.js';

/** A busy machine may hold a process up for a while. */
const LEASE_MS = 2_000;

/** A process of the service, as far as its limits are concerned: a client, a manager and a gate of its own. */
interface Member {
  readonly limits: RedisLimits;
  readonly manager: PipelineManager<number>;
  readonly gate: ServiceGate;
  readonly hooks: LifecycleHooks;
}

describe.skipIf(!hasRedis)('managers that share a limit', () => {
  let server: RedisServer;
  let names = 0;
  const cleanups: (() => unknown)[] = [];

  beforeAll(async () => {
    server = await RedisServer.start();
    await sleep(2 * LEASE_MS + 100);
  });
  afterEach(async () => {
    for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
    names++;
  });
  afterAll(() => server[Symbol.asyncDispose]());

  async function member({
    maxConcurrent = 2,
    gateLimit = 3,
    leaseMs = LEASE_MS,
    reconnectMs = 20,
    ...more
  }: Partial<RedisLimitsOptions> & {
    maxConcurrent?: number;
    gateLimit?: number;
    reconnectMs?: number;
  } = {}): Promise<Member> {
    const owned = await CLIENTS['node-redis 6'](server.port, { reconnectMs });
    cleanups.push(() => owned[Symbol.asyncDispose]());
    const hooks = new LifecycleHooks();
    const limits = new RedisLimits({ client: owned.client, leaseMs, hooks, ...more });
    cleanups.push(() => limits.close());
    const gate = new ServiceGate({
      name: `service-${names}`,
      keys: ['key'],
      maxConcurrent: gateLimit,
      limits,
      hooks,
    });
    const manager = createPipelineManager<number>({
      config: { poolSize: 4 },
      limiter: limits.limiter({ name: `requests-${names}`, maxConcurrent }),
      gates: [gate],
      create: ({ instanceId }) => instanceId,
      hooks,
    });
    cleanups.push(() => manager.shutdown({ timeoutMs: 0 }));
    return { limits, manager, gate, hooks };
  }
  const fleetOf = ({ manager }: Member) => manager.stats().limiter.fleet;

  it('admit requests of all within the limit, and list each its own, with the figures of all beside', async () => {
    const [a, b] = [await member(), await member()];
    const [first, rest] = [deferred(), deferred()];
    const started: string[] = [];
    const run = (of: Member, taskId: string) =>
      of.manager.run(taskId, async () => {
        started.push(taskId);
        await (taskId === 'a1' ? first : rest).promise;
      });
    const done = [run(a, 'a1'), run(a, 'a2')];
    await until(() => started.length === 2);
    done.push(run(b, 'b1'));
    await until(() => fleetOf(b)?.queued === 1);
    done.push(run(a, 'a3'));
    await until(() => fleetOf(a)?.queued === 2);
    expect(a.manager.requests()).toMatchObject([
      { taskId: 'a1', state: 'running' },
      { taskId: 'a2', state: 'running' },
      { taskId: 'a3', state: 'queued', waitsFor: 'permit' },
    ]);
    expect(b.manager.requests()).toMatchObject([{ taskId: 'b1', state: 'queued', waitsFor: 'permit' }]);
    expect(b.manager.stats()).toMatchObject({ active: 0, queued: 1, pool: { leased: 0, queued: 0 } });
    expect(a.manager.health()).toMatchObject({
      status: 'healthy',
      active_requests: 2,
      queued_requests: 1,
      max_concurrent_requests: 2,
      fleet: { active: 2, queued: 2, members: 2, available: true, frozen: false, lost: 0 },
    });
    first.resolve();
    await until(() => started.length === 3);
    rest.resolve();
    await Promise.all(done);
    expect(started).toEqual(['a1', 'a2', 'b1', 'a3']);
    await until(() => fleetOf(a)?.active === 0);
  });

  it('say that Redis is unavailable, what was lost by it, and that it is back', async () => {
    const a = await member({ commandTimeoutMs: 200 });
    recordDiagnosis(a.manager);
    const registry = new Registry();
    collectMetrics(a.hooks, { registry, sources: a.manager });
    const metric = async (of: string): Promise<number> => {
      const text = await registry.metrics();
      return Number(
        text.match(new RegExp(`^pipeline_fleet_${of}\\{limit="requests-${names}"\\} (\\d+)$`, 'm'))?.[1],
      );
    };
    const codes = () =>
      diagnose(a.manager)
        .findings.filter(({ code }) => code === 'limits-unavailable' || code === 'permits-lost')
        .map(({ code, source }) => `${code} of ${source}`);
    const outcomes: string[] = [];
    a.hooks.on('request:finished', ({ outcome }) => outcomes.push(outcome));
    const running = follow(a.manager.run('held', ({ signal }) => aborted(signal)));
    // Retried with a permit of the Redis that comes back.
    const called = a.gate.run(({ signal, attempt }) => (attempt === 1 ? aborted(signal) : 'answer'));
    await until(() => a.gate.stats().running === 1 && fleetOf(a)?.active === 1);
    expect([await metric('available'), await metric('permits_lost_total')]).toEqual([1, 0]);
    expect(codes()).toEqual([]);

    await server.kill();
    await until(() => a.manager.health().status === 'degraded');
    expect(a.manager.health().reasons).toEqual([
      'The server of the shared request limit cannot be reached',
      `The server of the shared limits of service-${names} cannot be reached`,
    ]);
    expect(await metric('available')).toBe(0);
    expect(codes()).toContain(`limits-unavailable of requests-${names}`);
    expect(codes()).toContain(`limits-unavailable of service-${names}`);
    await until(() => running.now.is === 'rejected' && a.gate.stats().limiter?.fleet?.lost === 1);
    expect(running.now).toMatchObject({ reason: { code: 'ERR_LIMIT_LOST' } });
    expect(outcomes).toEqual(['revoked']);
    expect(await metric('permits_lost_total')).toBe(1);
    expect(a.gate.stats().limiter?.fleet).toMatchObject({ available: false, lost: 1 });
    expect(codes()).toContain(`permits-lost of requests-${names}`);
    expect(codes()).toContain(`permits-lost of service-${names}`);

    await server.start();
    await a.manager.run('next', () => {});
    expect(await called).toBe('answer');
    await until(() => a.manager.health().status === 'healthy');
    expect(await metric('available')).toBe(1);
  });

  it('report a limit of a manager or of a gate that differs from the one in force, until one is set', async () => {
    const a = await member({ maxConcurrent: 2, gateLimit: 3 });
    await a.manager.run('first', () => a.gate.run(() => {}));
    const b = await member({ maxConcurrent: 5, gateLimit: 7 });
    const mismatches: unknown[] = [];
    b.hooks.on('limit:mismatch', (payload) => mismatches.push(payload));
    await b.manager.run('second', () => b.gate.run(() => {}));
    expect(mismatches).toEqual(
      expect.arrayContaining([
        { source: `requests-${names}`, maxConcurrent: 5, fleetMaxConcurrent: 2 },
        { source: `service-${names}`, maxConcurrent: 7, fleetMaxConcurrent: 3 },
      ]),
    );
    expect(mismatches).toHaveLength(2);
    const found = () =>
      diagnose(b.manager).findings.map(({ code, source, evidence }) => ({ code, source, evidence }));
    expect(found()).toEqual([
      {
        code: 'limits-mismatched',
        source: `requests-${names}`,
        evidence: { configured: 5, maxConcurrent: 2, members: 2 },
      },
      {
        code: 'limits-mismatched',
        source: `service-${names}`,
        evidence: { configured: 7, maxConcurrent: 3, members: 2 },
      },
    ]);
    a.limits.limiter({ name: `requests-${names}`, maxConcurrent: 2 }).maxConcurrent = 4;
    await until(() => b.manager.stats().limiter.maxConcurrent === 4);
    expect(found()).toMatchObject([{ source: `service-${names}` }]);
  });

  it('name the shared limit as the bottleneck while another process holds it', async () => {
    const [a, b] = [await member(), await member()];
    const work = deferred();
    const held = [a.manager.run('a1', () => work.promise), a.manager.run('a2', () => work.promise)];
    await until(() => fleetOf(a)?.active === 2);
    recordDiagnosis(b.manager);
    const waiting = b.manager.run('b1', () => {});
    await until(() => fleetOf(b)?.queued === 1);
    await until(() => diagnose(b.manager).bottleneck?.code === 'fleet-at-limit');
    expect(diagnose(b.manager).bottleneck).toMatchObject({
      source: `requests-${names}`,
      evidence: { maxConcurrent: 2, fleetActive: 2, fleetQueued: 1, members: 2 },
    });
    work.resolve();
    await Promise.all([...held, waiting]);
  });

  it('serve what they have accepted when they shut down, and return their permits', async () => {
    const [a, b] = [await member(), await member()];
    const [work, order] = [deferred(), [] as string[]];
    const held = [a.manager.run('a1', () => work.promise), a.manager.run('a2', () => work.promise)];
    await until(() => fleetOf(a)?.active === 2);
    const queued = a.manager.run('a3', () => void order.push('a3'));
    await until(() => fleetOf(a)?.queued === 1);
    const closing = a.manager.shutdown().then(() => order.push('closed'));
    await expect(a.manager.run('late', () => {})).rejects.toThrow(ManagerClosedError);
    expect(a.manager.health().status).toBe('draining');
    expect(order).toEqual([]);
    work.resolve();
    await Promise.all([...held, queued, closing]);
    expect(order).toEqual(['a3', 'closed']);
    // It has left the fleet: the other holds the whole limit.
    const rest = deferred();
    const others = [b.manager.run('b1', () => rest.promise), b.manager.run('b2', () => rest.promise)];
    await until(() => fleetOf(b)?.active === 2 && fleetOf(b)?.members === 1);
    rest.resolve();
    await Promise.all(others);
  });

  it('end what is left at the deadline of a shutdown, and let others continue', async () => {
    const [a, b] = [await member(), await member()];
    const held = follow(a.manager.run('a1', ({ signal }) => aborted(signal)));
    const other = follow(a.manager.run('a2', ({ signal }) => aborted(signal)));
    await until(() => fleetOf(a)?.active === 2);
    const queued = follow(a.manager.run('a3', () => {}));
    const waiting = b.manager.run('b1', () => 'served');
    await until(() => fleetOf(b)?.queued === 2);
    await a.manager.shutdown({ timeoutMs: 20 });
    for (const { now } of [held, other, queued])
      expect(now).toMatchObject({ is: 'rejected', reason: expect.any(ManagerClosedError) });
    expect(await waiting).toBe('served');
  });
});

const aborted = (signal: AbortSignal): Promise<never> =>
  new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)));
