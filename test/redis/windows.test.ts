import type { RateWindow, ServiceGate } from 'pipeline-pool';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { httpError } from '../support/gates.js';
import { FAULTS, type Fault, FIRST_SEED, LEASE_MS, LOSSES, SEEDS } from './support/faults.js';
import { hasRedis, RedisServer } from './support/redis-server.js';
import { type SimulatedProcess, Simulation } from './support/simulation.js';

const RUN_MS = 8_000;
const RATE = { limit: 20, perMs: 1_000 };
const SHARED_RATE = { limit: 30, perMs: 1_000 };
const KEYS = ['key-one', 'key-two'];
/** When all know what a call has used, at the latest: a lost connection, and what is sent again. */
const KNOWN_MS = 1_500;

interface Rates {
  readonly rate: readonly RateWindow[];
  readonly sharedRate?: readonly RateWindow[];
  /** The heaviest call, and how long one may take. */
  readonly maxWeight?: number;
  readonly maxMs?: number;
  /** The most that a call uses, by what was estimated; at least a tenth. */
  readonly maxUsed?: number;
}

interface Start {
  readonly key: string;
  /** When it counts from: the gate's last reading of its clock before the first line of the call. */
  readonly atMs: number;
  readonly process: number;
  readonly weight: number;
  /** What it has used so far, and when that was reported. */
  readonly used: { readonly weight: number; readonly atMs: number }[];
}

/** What it counts at least: of what was reported lately, all may not know yet. */
function weightOf({ weight, used }: Start, atMs: number): number {
  let least = weight;
  for (const report of used) {
    if (report.atMs > atMs) break;
    least = report.atMs < atMs - KNOWN_MS ? report.weight : Math.min(least, report.weight);
  }
  return least;
}

interface Caller {
  readonly process: SimulatedProcess;
  readonly gate: ServiceGate;
}

/** A process that calls a gate as fast as it lets it. */
function call(simulation: Simulation, starts: Start[], rates: Rates = BOTH): Promise<Caller> {
  const process = simulation.add();
  const index = simulation.processes.length;
  return new Promise((made) =>
    simulation.schedule(simulation.nowMs, process, () => {
      const { RedisLimits, ServiceGate } = process.library;
      const limits = new RedisLimits({ client: process.client as never, leaseMs: LEASE_MS });
      const { maxWeight = 1, maxMs = 5, maxUsed = 1, ...windows } = rates;
      const gate = new ServiceGate({ name: 'gate', keys: KEYS, ...windows, limits });
      gate.hooks.on('call:started', () => {
        const { likely, maxMs } = process.blocking;
        if (simulation.random() < likely) process.localMs += simulation.between(0, maxMs);
      });
      const loop = async (): Promise<never> => {
        for (;;) {
          const weight = Math.ceil(simulation.between(0, maxWeight));
          const started = gate.run(
            async ({ key, reportUsage }) => {
              const start: Start = { key, atMs: process.readMs, process: index, weight, used: [] };
              starts.push(start);
              const reports = maxWeight === 1 ? 0 : 2;
              for (let report = 1; report <= reports; report++) {
                await process.sleep(simulation.between(0, maxMs / reports));
                const used = Math.ceil(weight * simulation.between(0.1, maxUsed));
                start.used.push({ weight: used, atMs: process.localMs });
                reportUsage(used);
              }
              if (reports === 0) await process.sleep(simulation.between(0, maxMs));
            },
            { weight },
          );
          await started.catch(() => {});
          await process.sleep(0.1);
        }
      };
      for (let i = 0; i < 10; i++) void loop();
      made({ process, gate });
    }),
  );
}
const BOTH: Rates = { rate: [RATE], sharedRate: [SHARED_RATE] };

/** The starts that a strict referee refuses: more than `limit` are within `perMs` up to each. */
function excess({ limit, perMs, unit }: RateWindow, starts: readonly Start[], fromMs = 0): string[] {
  const sorted = [...starts].sort((a, b) => a.atMs - b.atMs);
  return sorted.flatMap(({ atMs, process }, i) => {
    let sum = 0;
    for (let j = i; j >= 0; j--) {
      const other = sorted[j] as Start;
      if (atMs - other.atMs >= perMs) break;
      sum += unit === 'weight' ? weightOf(other, atMs) : 1;
    }
    return sum > limit && atMs >= fromMs ? [`${sum} at ${atMs.toFixed(1)}, by process ${process}`] : [];
  });
}

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
      const add = () => void call(simulation, starts);
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

  it('and used to 98 %, while processes stall and die', async () => {
    for (let seed = FIRST_SEED; seed < FIRST_SEED + SEEDS / 3; seed++) {
      await using simulation = await Simulation.start(server.port, seed);
      const starts: Start[] = [];
      for (let i = 0; i < 5; i++) void call(simulation, starts);
      simulation.after(simulation.between(3_000, 4_000), () => {
        simulation.processes[0]?.kill();
        void call(simulation, starts);
      });
      simulation.after(simulation.between(8_000, 9_000), () => simulation.processes[1]?.stop(2 * LEASE_MS));
      await simulation.run(60_000);
      expect(excess(SHARED_RATE, starts)).toEqual([]);
      // What was reserved by the two is lost for a lease and a window.
      expect(starts.length).toBeGreaterThan(0.98 * 60 * SHARED_RATE.limit);
    }
  });

  it('while a 429 stops all within 150 ms, and one probe goes first', async () => {
    for (let seed = FIRST_SEED; seed < FIRST_SEED + SEEDS; seed++) {
      await using simulation = await Simulation.start(server.port, seed);
      let failsAtMs = 300;
      let failedMs = 0;
      const spans: { readonly startedMs: number; endedMs: number }[] = [];
      for (let i = 0; i < 4; i++) {
        const process = simulation.add();
        simulation.schedule(0, process, () => {
          const { RedisLimits, ServiceGate } = process.library;
          const limits = new RedisLimits({ client: process.client as never, leaseMs: LEASE_MS });
          const gate = new ServiceGate({ name: 'gate', keys: ['key'], limits });
          const loop = async (): Promise<never> => {
            for (;;) {
              await gate.run(async () => {
                const span = { startedMs: process.localMs, endedMs: Number.POSITIVE_INFINITY };
                spans.push(span);
                await process.sleep(simulation.between(20, 40));
                span.endedMs = process.localMs;
                if (process.localMs < failsAtMs) return;
                failsAtMs = Number.POSITIVE_INFINITY;
                failedMs = process.localMs;
                throw httpError(429, { 'retry-after': '1' });
              });
            }
          };
          for (let j = 0; j < 2; j++) void loop();
        });
      }
      await simulation.run(2_000);
      const later = spans.filter(({ startedMs }) => startedMs > failedMs + 150);
      const [probe, ...others] = later.sort((a, b) => a.startedMs - b.startedMs);
      expect(probe?.startedMs).toBeGreaterThanOrEqual(failedMs + 1_000);
      expect(others.length).toBeGreaterThan(10);
      for (const { startedMs } of others) expect(startedMs).toBeGreaterThanOrEqual(probe?.endedMs ?? 0);
    }
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
  it.each([
    ['request', 0],
    ['reply', 0],
    ['request', 1],
    ['reply', 1],
  ] as const)(
    'that are reported again, once, when the %s of the report is lost (%i losses of data follow)',
    async (breaks, losses) => {
      await using simulation = await Simulation.start(server.port, FIRST_SEED);
      const starts: SimulatedProcess[] = [];
      const rate = [{ limit: 6, perMs: 60_000 }];
      const use = (process: SimulatedProcess, atMs: number): void =>
        simulation.schedule(atMs, process, () => {
          const { RedisLimits, ServiceGate } = process.library;
          const limits = new RedisLimits({ client: process.client as never, leaseMs: LEASE_MS });
          const gate = new ServiceGate({ name: 'gate', rate, limits });
          for (let i = 0; i < 5; i++) void gate.run(() => starts.push(process)).catch(() => {});
        });
      const [one, two] = [simulation.add(), simulation.add()];
      use(one, 0);
      await simulation.run(1_000);
      expect(starts).toHaveLength(5);
      let reports = 0;
      one.breaksAt = (args) => (args.includes('M') && ++reports <= 2 ? breaks : undefined);
      await simulation.client.flushAll();
      use(two, 1_000);
      await simulation.run(1_500);
      expect(reports).toBeGreaterThan(1);
      for (let loss = 0; loss < losses; loss++) await simulation.client.flushAll();
      await simulation.run(5_000);
      // Of the second process only the one that is left, in spite of repeated reports.
      expect(starts).toEqual([one, one, one, one, one, two]);
    },
  );

  it.each(['request', 'reply', 'data'] as const)(
    'whose weight was corrected upwards when the %s of their report was lost',
    async (breaks) => {
      await using simulation = await Simulation.start(server.port, FIRST_SEED);
      const rate = [{ limit: 100, perMs: 60_000, unit: 'weight' }] as const;
      const started: number[] = [];
      const use = (process: SimulatedProcess, weights: readonly number[], used: readonly number[]): void =>
        simulation.schedule(simulation.nowMs, process, () => {
          const { RedisLimits, ServiceGate } = process.library;
          const limits = new RedisLimits({ client: process.client as never, leaseMs: LEASE_MS });
          const gate = new ServiceGate({ name: 'gate', rate, limits });
          for (const weight of weights)
            void gate.run(
              async ({ reportUsage }) => {
                started.push(weight);
                for (const [at, amount] of used.entries()) {
                  // While the connection is down, or after the new epoch has begun.
                  await process.sleep(1 + at * (breaks === 'data' ? 500 : 50));
                  reportUsage(amount);
                }
              },
              { weight },
            );
        });
      const [one, two] = [simulation.add(), simulation.add()];
      let reports = 0;
      one.breaksAt = (args) =>
        args.includes('S') && ++reports === 1 ? (breaks === 'data' ? 'request' : breaks) : undefined;
      use(one, [10], [5, 60]);
      while (started.length === 0) await simulation.run(simulation.nowMs + 1);
      await simulation.run(simulation.nowMs + 5);
      if (breaks === 'data') await simulation.client.flushAll();
      await simulation.run(2_000);
      expect(reports).toBeGreaterThan(0);
      use(two, [40, 1], []);
      await simulation.run(20_000);
      expect(started).toEqual([10, 40]);
    },
  );

  const { 'late replies': late, 'broken connections': broken } = FAULTS;
  it.each<[string, number, Fault[]]>([
    ['late', 1.5, [late]],
    ['lost with connections', 1.5, [broken]],
    ['lost with data', 1.5, [broken, ...Object.values(LOSSES)]],
  ])('that count large weights, whose corrections are %s', async (_, maxUsed, faults) => {
    const rate = { limit: 3_000_000_000, perMs: 3_000, unit: 'weight' } as const;
    for (let seed = FIRST_SEED; seed < FIRST_SEED + SEEDS; seed++) {
      await using simulation = await Simulation.start(server.port, seed);
      const starts: Start[] = [];
      const rates = { rate: [rate], maxWeight: 500_000_000, maxMs: 300, maxUsed };
      for (let i = 0; i < 4; i++) void call(simulation, starts, rates);
      await simulation.run(3_000);
      const used = starts.reduce((sum, start) => sum + (start.used.at(-1)?.weight ?? 0), 0);
      expect(used).toBeGreaterThan(0.5 * KEYS.length * rate.limit);
      const fault = async (): Promise<void> => {
        await faults[Math.floor(simulation.random() * faults.length)]?.(simulation, () => {});
        simulation.after(simulation.between(10, 500), fault);
      };
      simulation.after(0, fault);
      await simulation.run(RUN_MS);
      for (const key of KEYS) {
        const own = starts.filter((start) => start.key === key);
        expect(excess(rate, own).map((text) => `seed ${seed}, ${text}`)).toEqual([]);
      }
    }
  });

  it('while the clock of the server jumps by a minute, as it measures time', async () => {
    const rate = { limit: 100, perMs: 120_000 };
    await using simulation = await Simulation.start(server.port, FIRST_SEED);
    const starts: Start[] = [];
    for (let i = 0; i < 3; i++) void call(simulation, starts, { rate: [rate], sharedRate: [rate] });
    let forwardMs = 0;
    const ofServer: Start[] = [];
    const collect = (): void => {
      for (const start of starts.splice(0)) ofServer.push({ ...start, atMs: start.atMs + forwardMs });
    };
    for (const jumpMs of [-60_000, 60_000, -60_000, 0, 60_000, 60_000, -60_000, 60_000, 0, 0]) {
      await simulation.run(simulation.nowMs + simulation.between(10_000, 30_000));
      collect();
      simulation.skewMs += jumpMs;
      forwardMs += Math.max(0, jumpMs);
    }
    collect();
    expect(excess(rate, ofServer)).toEqual([]);
    const lastedMs = simulation.nowMs + forwardMs;
    expect(ofServer.length).toBeGreaterThan(rate.limit * Math.floor(lastedMs / rate.perMs));
  });

  it.each<[string, RateWindow]>([
    ['lower', { limit: 5, perMs: 1_000 }],
    ['higher', { limit: 40, perMs: 1_000 }],
    ['longer', { limit: 20, perMs: 3_000 }],
    ['shorter', { limit: 6, perMs: 300 }],
  ])('after all have set a %s rate', async (_, rate) => {
    for (let seed = FIRST_SEED; seed < FIRST_SEED + SEEDS; seed++) {
      await using simulation = await Simulation.start(server.port, seed);
      const starts: Start[] = [];
      const callers = Array.from({ length: 4 }, () =>
        call(simulation, starts, { rate: [], sharedRate: [RATE] }),
      );
      const changedMs = 2_000 + simulation.between(0, 1_000);
      await simulation.run(1_000);
      for (const { process, gate } of await Promise.all(callers))
        simulation.schedule(changedMs + simulation.between(0, 10), process, () =>
          gate.setRate({ sharedRate: [rate] }),
        );
      await simulation.run(RUN_MS);
      expect(
        excess(
          RATE,
          starts.filter(({ atMs }) => atMs < changedMs),
        ),
      ).toEqual([]);
      expect(excess(rate, starts, changedMs + 50)).toEqual([]);
      const after = starts.filter(({ atMs }) => atMs >= RUN_MS - 3_000);
      expect(after.length).toBeGreaterThan(0.95 * rate.limit * (3_000 / rate.perMs));
    }
  });
});
