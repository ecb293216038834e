import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { httpError } from '../support/gates.js';
import { FAULTS, type Fault, FIRST_SEED, LEASE_MS, LOSSES, SEEDS } from './support/faults.js';
import { hasRedis, RedisServer } from './support/redis-server.js';
import { type SimulatedProcess, Simulation } from './support/simulation.js';

/** So long that each member works with its share. */
const OUTAGE: Fault = (s) => {
  if (s.nowMs > s.frozenUntilMs + 2 * LEASE_MS) s.frozenUntilMs = s.nowMs + 5 * LEASE_MS;
};

describe.skipIf(!hasRedis)('a fleet limit, in a simulation', () => {
  let server: RedisServer;
  beforeAll(async () => {
    server = await RedisServer.start();
  });
  afterAll(() => server[Symbol.asyncDispose]());

  it.each([
    ['killed processes', [FAULTS['killed processes']]],
    ['broken connections', [FAULTS['broken connections']]],
    ['late replies', [FAULTS['late replies']]],
    ['lost pushes', [FAULTS['lost pushes']]],
    ['a frozen Redis', [FAULTS['a frozen Redis']]],
    ['lost keys', [LOSSES['lost keys']]],
    ['stopped processes', [FAULTS['stopped processes']]],
    ['outages that each spends with its share', [OUTAGE, 'local']],
  ] as const)(
    'and the caps of tenants hold, and all is used again, under %s',
    async (_, [fault, whenUnavailable = 'wait']: readonly [Fault, ('wait' | 'local')?]) => {
      const limit = 6;
      const shares = {
        a: { maxConcurrent: 2 },
        b: { guaranteed: 2, maxConcurrent: 4 },
        c: { weight: 3 },
        d: {},
      };
      for (let seed = FIRST_SEED; seed < FIRST_SEED + SEEDS; seed++) {
        await using simulation = await Simulation.start(server.port, seed);
        const inside = new Map<object, { readonly process: SimulatedProcess; readonly tenant: string }>();
        let grants = 0;
        let grantsWithoutRedis = 0;
        const check = (): void => {
          for (const [permit, { process }] of inside) {
            // One that is stopped does nothing until it wakes, and then learns first that its permits are lost.
            const { isDead, busyUntilMs, localMs } = process;
            const isStopped = busyUntilMs > simulation.nowMs && busyUntilMs > localMs + LEASE_MS / 2;
            if (isDead || isStopped) inside.delete(permit);
          }
          expect(inside.size).toBeLessThanOrEqual(limit);
          const tenants = [...inside.values()].map(({ tenant }) => tenant);
          expect(tenants.filter((tenant) => tenant === 'a').length).toBeLessThanOrEqual(2);
          expect(tenants.filter((tenant) => tenant === 'b').length).toBeLessThanOrEqual(4);
        };
        const add = (): void => {
          const process = simulation.add();
          simulation.schedule(simulation.nowMs, process, () => {
            const limits = new process.library.RedisLimits({
              client: process.client as never,
              leaseMs: LEASE_MS,
              whenUnavailable,
            });
            const limiter = limits.limiter({
              name: 'limit',
              maxConcurrent: limit,
              tenants: (name) => shares[name as keyof typeof shares],
            });
            const loop = async (tenant: string): Promise<never> => {
              for (;;) {
                const signal = simulation.random() < 0.1 ? new AbortController() : undefined;
                if (signal !== undefined)
                  void process.sleep(simulation.between(0, 50)).then(() => signal.abort());
                const permit = await limiter
                  .acquire({ tenant, signal: signal?.signal })
                  .catch(() => undefined);
                if (permit === undefined) {
                  await process.sleep(1);
                  continue;
                }
                if (!permit.signal.aborted) {
                  inside.set(permit, { process, tenant });
                  grants++;
                  if (simulation.frozenUntilMs > simulation.nowMs) grantsWithoutRedis++;
                  permit.signal.addEventListener('abort', () => inside.delete(permit));
                  check();
                }
                await process.sleep(simulation.between(1, 40));
                inside.delete(permit);
                permit.release();
              }
            };
            for (const tenant of ['a', 'a', 'a', 'b', 'b', 'c', 'd']) void loop(tenant);
          });
        };
        for (let i = 0; i < 4; i++) add();
        const faultAgain = async (): Promise<void> => {
          if (simulation.nowMs > 4_000) return;
          await fault(simulation, add);
          simulation.after(simulation.between(10, 500), faultAgain);
        };
        simulation.after(500, faultAgain);
        await simulation.run(5_000);
        for (const process of simulation.processes) process.pushLoss = 0;
        simulation.latencyMs = 2;
        await simulation.run(7_000);
        const before = grants;
        await simulation.run(8_000);
        // Six permits that are held for 20 ms each, of which some wait for a push.
        expect(grants - before).toBeGreaterThan(150);
        if (whenUnavailable === 'local') expect(grantsWithoutRedis).toBeGreaterThan(50);
        check();
      }
    },
  );

  it('and the caps of tenants hold for all weights and priorities, while it is changed and under all faults', async () => {
    const HIGHEST = 8;
    const CAP = 3;
    const faults: Fault[] = [...Object.values(FAULTS), ...Object.values(LOSSES)];
    for (let seed = FIRST_SEED; seed < FIRST_SEED + SEEDS; seed++) {
      await using simulation = await Simulation.start(server.port, seed);
      const inside = new Map<
        object,
        { process: SimulatedProcess; weight: number; tenant: string | undefined }
      >();
      const limiters = new Map<SimulatedProcess, { maxConcurrent: number }>();
      const below = (max: number): number => Math.floor(simulation.random() * max);
      let grants = 0;
      const check = (): void => {
        let all = 0;
        let capped = 0;
        for (const [permit, { process, weight, tenant }] of inside) {
          const { isDead, busyUntilMs, localMs } = process;
          const isStopped = busyUntilMs > simulation.nowMs && busyUntilMs > localMs + LEASE_MS / 2;
          if (isDead || isStopped) inside.delete(permit);
          // One in the middle of a step does nothing until the step goes on.
          else if (localMs <= simulation.nowMs + 1) {
            all += weight;
            if (tenant === 'capped') capped += weight;
          }
        }
        expect(all, `seed ${seed}`).toBeLessThanOrEqual(HIGHEST);
        expect(capped, `seed ${seed}`).toBeLessThanOrEqual(CAP);
      };
      const add = (): void => {
        const process = simulation.add();
        simulation.schedule(simulation.nowMs, process, () => {
          const limits = new process.library.RedisLimits({
            client: process.client as never,
            leaseMs: LEASE_MS,
          });
          const limiter = limits.limiter({
            name: 'limit',
            maxConcurrent: HIGHEST,
            agingMs: 200,
            tenants: (name) => (name === 'capped' ? { maxConcurrent: CAP } : { guaranteed: 2 }),
          });
          limiters.set(process, limiter);
          const loop = async (tenant: string | undefined): Promise<never> => {
            for (;;) {
              const weight = 1 + below(3);
              const timeoutMs = below(5) === 0 ? below(3) * 50 : undefined;
              const permit = await limiter
                .acquire({ tenant, weight, priority: below(3), timeoutMs })
                .catch(() => undefined);
              if (permit !== undefined && !permit.signal.aborted) {
                inside.set(permit, { process, weight, tenant });
                grants++;
                permit.signal.addEventListener('abort', () => inside.delete(permit));
                check();
              }
              await process.sleep(simulation.between(1, 40));
              if (permit !== undefined) inside.delete(permit);
              permit?.release();
            }
          };
          for (const tenant of ['capped', 'capped', 'other', 'other', undefined, undefined])
            void loop(tenant);
        });
      };
      for (let i = 0; i < 4; i++) add();
      const faultAgain = async (): Promise<void> => {
        if (simulation.nowMs > 5_000) return;
        await faults[below(faults.length)]?.(simulation, add);
        simulation.after(simulation.between(10, 500), faultAgain);
      };
      const changeAgain = (): void => {
        const [process, limiter] = [...limiters][below(limiters.size)] as [
          SimulatedProcess,
          { maxConcurrent: number },
        ];
        simulation.schedule(simulation.nowMs, process, () => {
          limiter.maxConcurrent = HIGHEST - below(2);
        });
        if (simulation.nowMs < 5_000) simulation.after(simulation.between(100, 800), changeAgain);
      };
      simulation.after(500, faultAgain);
      simulation.after(700, changeAgain);
      await simulation.run(6_000);
      for (const process of simulation.processes) {
        process.pushLoss = 0;
        process.stall = { likely: 0, maxMs: 0 };
      }
      simulation.latencyMs = 2;
      await simulation.run(9_000);
      const known = [...limiters].flatMap(([{ isDead }, { maxConcurrent }]) => (isDead ? [] : maxConcurrent));
      expect(new Set(known).size, `seed ${seed}`).toBe(1);
      const before = grants;
      await simulation.run(11_000);
      expect(grants - before, `seed ${seed}`).toBeGreaterThan(10 * (known[0] as number));
    }
  });
});

/** In the time of the simulation: what it takes on a machine that is not busy. */
describe.skipIf(!hasRedis)('a fleet limit is in full use again', () => {
  const LIMIT = 6;
  let server: RedisServer;
  beforeAll(async () => {
    server = await RedisServer.start();
  });
  afterAll(() => server[Symbol.asyncDispose]());

  /** Those inside, as they are seen from outside: one that is dead does nothing, nor one that is stopped. */
  class Inside {
    readonly #permits = new Map<object, SimulatedProcess>();
    readonly #simulation: Simulation;
    constructor(simulation: Simulation) {
      this.#simulation = simulation;
    }

    get count(): number {
      const { nowMs } = this.#simulation;
      return [...this.#permits.values()].filter((p) => !p.isDead && p.busyUntilMs < nowMs + LEASE_MS / 2)
        .length;
    }

    /** A process that takes permits in six loops, and holds each for so long. */
    add(holdMs: number): SimulatedProcess {
      const simulation = this.#simulation;
      const process = simulation.add();
      simulation.schedule(simulation.nowMs, process, () => {
        const limits = new process.library.RedisLimits({
          client: process.client as never,
          leaseMs: LEASE_MS,
        });
        const limiter = limits.limiter({ name: 'limit', maxConcurrent: LIMIT });
        const loop = async (): Promise<never> => {
          for (;;) {
            const permit = await limiter.acquire();
            if (!permit.signal.aborted) {
              this.#permits.set(permit, process);
              permit.signal.addEventListener('abort', () => this.#permits.delete(permit));
              expect(this.count).toBeLessThanOrEqual(LIMIT);
            }
            await process.sleep(holdMs * simulation.between(0.5, 1));
            this.#permits.delete(permit);
            permit.release();
          }
        };
        for (let i = 0; i < 6; i++) void loop();
      });
      return process;
    }

    /** The milliseconds until all permits are in use. */
    async full(): Promise<number> {
      const sinceMs = this.#simulation.nowMs;
      do await this.#simulation.run(this.#simulation.nowMs + 1);
      while (this.count < LIMIT && this.#simulation.nowMs < sinceMs + 10 * LEASE_MS);
      return this.#simulation.nowMs - sinceMs;
    }
  }

  type Loss = (simulation: Simulation, holder: SimulatedProcess, inside: Inside) => unknown;
  const [LONG_MS, SHORT_MS] = [1e9, 60];
  it.each<[string, number, Loss]>([
    ['1.2 leases after the death of the holder', LONG_MS, (_, holder) => holder.kill()],
    ['1.2 leases after the holder was stopped', LONG_MS, (_, holder) => holder.stop(3 * LEASE_MS)],
    ['a lease after all data was lost', SHORT_MS, (s) => s.client.flushAll()],
    ...['meta', 'queue', 'holds', 'leases'].map((key): [string, number, Loss] => [
      `a lease after the key ${key} was lost`,
      SHORT_MS,
      (s) => s.client.del(`{pipeline-pool:limit}:${key}`),
    ]),
    [
      'a lease after all data was lost and a newcomer came first',
      SHORT_MS,
      async (s, _, inside) => {
        await s.client.flushAll();
        inside.add(SHORT_MS);
      },
    ],
    [
      'a lease after a failover to another server',
      SHORT_MS,
      (s) => {
        s.runId += 'a';
      },
    ],
    [
      'a lease after Redis is back, empty',
      SHORT_MS,
      async (s) => {
        for (const process of s.processes) process.disconnect(100);
        await s.run(s.nowMs + 100);
        await s.client.flushAll();
      },
    ],
    [
      'a lease after Redis can be reached again',
      SHORT_MS,
      async (s) => {
        for (const process of s.processes) process.disconnect(5 * LEASE_MS);
        await s.run(s.nowMs + 5 * LEASE_MS);
      },
    ],
    [
      'a lease after Redis goes on',
      LONG_MS,
      async (s) => {
        s.frozenUntilMs = s.nowMs + 3 * LEASE_MS;
        await s.run(s.frozenUntilMs);
      },
    ],
  ])('%s', async (_, holdMs, lose) => {
    for (let seed = FIRST_SEED; seed < FIRST_SEED + SEEDS; seed++) {
      await using simulation = await Simulation.start(server.port, seed);
      const inside = new Inside(simulation);
      const holder = inside.add(holdMs);
      await simulation.run(100);
      for (let i = 0; i < 3; i++) inside.add(holdMs);
      await simulation.run(simulation.between(1_000, 1_000 + LEASE_MS));
      await lose(simulation, holder, inside);
      // What was in flight at that moment ends first.
      if (holdMs < LONG_MS) await simulation.run(simulation.nowMs + SHORT_MS + 10);
      expect(await inside.full()).toBeLessThan(1.2 * LEASE_MS);
    }
  });
});

describe.skipIf(!hasRedis)('the tenants of a fleet', () => {
  let server: RedisServer;
  beforeAll(async () => {
    server = await RedisServer.start();
  });
  afterAll(() => server[Symbol.asyncDispose]());

  it.each([undefined, { max: 8 }])(
    'share without those calls that were sent back to wait for the end of a cooldown, with adaptive: %j',
    async (adaptive) => {
      await using simulation = await Simulation.start(server.port, FIRST_SEED);
      const process = simulation.add();
      const order: string[] = [];
      simulation.schedule(0, process, () => {
        const { RedisLimits, ServiceGate } = process.library;
        const limits = new RedisLimits({ client: process.client as never, leaseMs: LEASE_MS });
        const rateOf = (limit: number) => ({ rate: [{ limit, perMs: 1, unit: 'weight' as const }] });
        const keys = [
          { key: 'large', ...rateOf(100) },
          { key: 'small', ...rateOf(10) },
        ];
        const gate = new ServiceGate({
          ...{ name: 'gate', limits, maxConcurrent: 1, adaptive, fairBy: 'requests', keys },
          retry: { attempts: 1 },
        });
        const call = (name: string, tenant: string, weight: number): void =>
          void gate.run(() => order.push(name), { tenant, weight });
        const limited = gate.run(
          async () => {
            // Only the key that is about to cool down has room for these.
            for (const name of ['A1', 'A2', 'A3']) call(name, 'a', 50);
            for (const name of ['b1', 'b2', 'b3', 'b4']) call(name, 'b', 1);
            for (const name of ['a1', 'a2', 'a3']) call(name, 'a', 1);
            await process.sleep(20);
            throw httpError(429, { 'retry-after': '5' });
          },
          { weight: 50 },
        );
        limited.catch(() => {});
      });
      await simulation.run(1_000);
      expect(order).toEqual(['b1', 'a1', 'b2', 'a2', 'b3', 'a3', 'b4']);
      await simulation.run(10_000);
      expect(order.slice(7).sort()).toEqual(['A1', 'A2', 'A3']);
    },
  );
});
