import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { hasRedis, RedisServer } from './support/redis-server.js';
import { type SimulatedProcess, Simulation } from './support/simulation.js';

/** Each seed is a run of its own; `SEEDS=100` and `SEED=1` (the first) look for more. */
const SEEDS = Number(process.env.SEEDS ?? 3);
const FIRST_SEED = Number(process.env.SEED ?? 1);
const LEASE_MS = 600;
const RUN_MS = 8_000;
const RATE = { limit: 20, perMs: 1_000 };
const SHARED_RATE = { limit: 30, perMs: 1_000 };
const KEYS = ['key-one', 'key-two'];

interface Start {
  readonly key: string;
  /** When it counts from: the gate's last reading of its clock before the first line of the call. */
  readonly atMs: number;
  readonly process: number;
}

/** A process that calls a gate as fast as it lets it. */
function call(simulation: Simulation, starts: Start[]): void {
  const process = simulation.add();
  const index = simulation.processes.length;
  simulation.schedule(simulation.nowMs, process, () => {
    const { RedisLimits, ServiceGate } = process.library;
    const limits = new RedisLimits({ client: process.client as never, leaseMs: LEASE_MS });
    const gate = new ServiceGate({
      name: 'gate',
      keys: KEYS,
      rate: [RATE],
      sharedRate: [SHARED_RATE],
      limits,
    });
    gate.hooks.on('call:started', () => {
      const { likely, maxMs } = process.blocking;
      if (simulation.random() < likely) process.localMs += simulation.between(0, maxMs);
    });
    const loop = async (): Promise<never> => {
      for (;;) {
        const started = gate.run(async ({ key }) => {
          starts.push({ key, atMs: process.readMs, process: index });
          await process.sleep(simulation.between(0, 5));
        });
        await started.catch(() => {});
        await process.sleep(0.1);
      }
    };
    for (let i = 0; i < 10; i++) void loop();
  });
}

/** The starts that a strict referee refuses: `limit` others are within `perMs` before each. */
function excess({ limit, perMs }: typeof RATE, starts: readonly Start[]): string[] {
  const sorted = [...starts].sort((a, b) => a.atMs - b.atMs);
  return sorted.slice(limit).flatMap(({ atMs, process }, i) => {
    const ms = atMs - (sorted[i] as Start).atMs;
    return ms < perMs ? [`at ${atMs.toFixed(1)}, within ${ms.toFixed(1)} ms, by process ${process}`] : [];
  });
}

function anyOf(simulation: Simulation): SimulatedProcess {
  const living = simulation.processes.filter(({ isDead }) => !isDead);
  return living[Math.floor(simulation.random() * living.length)] as SimulatedProcess;
}

type Fault = (simulation: Simulation, add: () => void) => unknown;
const FAULTS = {
  'stopped processes': (s) => anyOf(s).stop(s.between(20, 3 * LEASE_MS)),
  'processes stopped within a step': (s) => {
    anyOf(s).stall = { likely: s.random() < 0.5 ? 0 : 0.02, maxMs: s.between(1, 2 * LEASE_MS) };
  },
  'listeners that block': (s) => {
    anyOf(s).blocking = { likely: s.random() < 0.5 ? 0 : 0.1, maxMs: 2 * LEASE_MS };
  },
  'killed processes': (s, add) => {
    anyOf(s).kill();
    add();
  },
  'a frozen Redis': (s) => {
    s.frozenUntilMs = s.nowMs + s.between(20, 2 * LEASE_MS);
  },
  'broken connections': (s) => anyOf(s).disconnect(s.between(1, LEASE_MS)),
  'late replies': (s) => {
    s.latencyMs = s.random() < 0.5 ? 2 : s.between(2, LEASE_MS / 2);
  },
  'lost pushes': (s) => {
    anyOf(s).pushLoss = s.random() < 0.5 ? 0 : s.random();
  },
  'a clock that runs back': (s) => {
    s.skewMs -= s.between(0, 5_000);
  },
} satisfies Record<string, Fault>;
/** They freeze all grants for a lease. */
const LOSSES = {
  'lost keys': async (s) => {
    const keys = (await s.client.keys('{*')).sort();
    const key = keys[Math.floor(s.random() * (keys.length + 2))];
    if (key === undefined) await s.client.flushAll();
    else await s.client.del(key);
  },
  'another server': (s) => {
    s.runId += 'a';
  },
} satisfies Record<string, Fault>;

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
  ] as const)('and the caps of tenants hold, and all is used again, under %s', async (_, [fault]) => {
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
      const check = (): void => {
        for (const [permit, { process }] of inside) {
          // One that is stopped does nothing until it wakes, and then learns first that its permits are lost.
          if (process.isDead || process.busyUntilMs > simulation.nowMs + LEASE_MS / 2) inside.delete(permit);
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
              const permit = await limiter.acquire({ tenant, signal: signal?.signal }).catch(() => undefined);
              if (permit === undefined) {
                await process.sleep(1);
                continue;
              }
              if (!permit.signal.aborted) {
                inside.set(permit, { process, tenant });
                grants++;
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
        await (fault as Fault)(simulation, add);
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
      check();
    }
  });
});

describe.skipIf(!hasRedis)('windows of a fleet are exceeded by no start', () => {
  let server: RedisServer;
  beforeAll(async () => {
    server = await RedisServer.start();
  });
  afterAll(() => server[Symbol.asyncDispose]());

  /** Returns what a referee found, and the share of the windows that was used. */
  async function run(faults: readonly Fault[], gapMs: number): Promise<{ found: string[]; used: number }> {
    const found: string[] = [];
    let used = 0;
    for (let seed = FIRST_SEED; seed < FIRST_SEED + SEEDS; seed++) {
      await using simulation = await Simulation.start(server.port, seed);
      const starts: Start[] = [];
      const add = () => call(simulation, starts);
      for (let i = 0; i < 4; i++) add();
      const fault = async (): Promise<void> => {
        await faults[Math.floor(simulation.random() * faults.length)]?.(simulation, add);
        simulation.after(simulation.between(10, gapMs), fault);
      };
      if (faults.length > 0) simulation.after(500, fault);
      await simulation.run(RUN_MS);
      for (const key of KEYS) {
        const own = starts.filter((start) => start.key === key);
        found.push(...excess(RATE, own).map((text) => `seed ${seed}, ${key} ${text}`));
      }
      found.push(...excess(SHARED_RATE, starts).map((text) => `seed ${seed}, all keys ${text}`));
      used += starts.length / (SHARED_RATE.limit * (RUN_MS / SHARED_RATE.perMs)) / SEEDS;
    }
    return { found, used };
  }

  it('and used in full, without faults', async () => {
    const { found, used } = await run([], 0);
    expect(found).toEqual([]);
    expect(used).toBeGreaterThan(0.98);
  });

  it.each(Object.entries(FAULTS))('under %s', async (_, fault) => {
    const { found, used } = await run([fault], 500);
    expect(found).toEqual([]);
    expect(used).toBeGreaterThan(0.2);
  });

  it('under all of them', async () => {
    expect((await run(Object.values(FAULTS), 500)).found).toEqual([]);
  });

  it.each(Object.entries(LOSSES))('of living processes under %s', async (_, loss) => {
    const { found, used } = await run([loss, FAULTS['lost pushes'], FAULTS['broken connections']], 1_500);
    expect(found).toEqual([]);
    expect(used).toBeGreaterThan(0.2);
  });

  it('whose reports after a loss of data were lost', async () => {
    for (let breaksMs = 1; breaksMs < 40; breaksMs++) {
      await using simulation = await Simulation.start(server.port, breaksMs);
      const starts: number[] = [];
      const [one, two] = [simulation.add(), simulation.add()];
      const rate = [{ limit: 5, perMs: 60_000 }];
      for (const process of [one, two])
        simulation.schedule(process === one ? 0 : 1_000, process, () => {
          const { RedisLimits, ServiceGate } = process.library;
          const limits = new RedisLimits({ client: process.client as never, leaseMs: LEASE_MS });
          const gate = new ServiceGate({ name: 'gate', rate, limits });
          for (let i = 0; i < 5; i++) void gate.run(() => starts.push(process.readMs)).catch(() => {});
        });
      await simulation.run(1_500);
      await simulation.client.flushAll();
      await simulation.run(1_500 + breaksMs * 5);
      one.disconnect(100);
      await simulation.run(10_000);
      expect(starts).toHaveLength(5);
    }
  });
});
