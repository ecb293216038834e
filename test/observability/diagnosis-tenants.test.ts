import { type CreatePipelineManagerOptions, createPipelineManager, type TenantShare } from 'pipeline-pool';
import { describe, expect, it } from 'vitest';
import type { Finding } from '../../src/observability/diagnosis/finding.js';
import { diagnosisOf } from '../../src/observability/diagnosis/findings.js';
import { Recorder } from '../../src/observability/diagnosis/recorder.js';
import { TenantRecorder } from '../../src/observability/diagnosis/tenants.js';
import { calmMachine } from '../support/diagnosis-scenarios.js';
import { inVirtualTime } from '../support/in-virtual-time.js';
import { sleep } from '../support/promises.js';
import { seeded } from '../support/random-numbers.js';
import { sizeOf } from '../support/soak.js';

const time = inVirtualTime();

/** What one tenant does: it keeps so many requests in the service, or makes one every so often. */
interface Load {
  readonly tenant: string;
  readonly ms: (random: number) => number;
  readonly keeps?: number;
  readonly everyMs?: number;
  readonly priority?: number;
}

type Fairness = Pick<CreatePipelineManagerOptions<object>, 'fairBy' | 'tenants' | 'agingMs'>;

/** What the diagnosis finds after two minutes of these loads on so many instances. */
async function diagnosed(
  limit: number,
  loads: readonly Load[],
  fairness: Fairness = {},
  seed = 1,
): Promise<readonly Finding[]> {
  const manager = createPipelineManager({
    config: { poolSize: limit, maxConcurrentRequests: limit },
    create: () => ({}),
    ...fairness,
  });
  const recorder = new Recorder(manager, 120_000, { machine: calmMachine });
  const random = seeded(seed);
  let isOver = false;
  const ask = ({ tenant, ms, priority, keeps }: Load, load: Load): void => {
    const work = () => sleep(ms(random()));
    manager
      .run('task', work, { tenant, priority })
      .then(() => !isOver && keeps !== undefined && ask(load, load))
      .catch(() => {});
  };
  const pace = async (load: Load): Promise<void> => {
    while (!isOver) {
      ask(load, load);
      await sleep(load.everyMs as number);
    }
  };
  for (const load of loads) {
    for (let i = 0; i < (load.keeps ?? 0); i++) ask(load, load);
    if (load.everyMs !== undefined) void pace(load);
  }
  await time.pass(120_000);
  const { findings } = diagnosisOf(recorder.report());
  isOver = true;
  recorder.stop();
  manager.shutdown({ timeoutMs: 0 }).catch(() => {});
  // Past the grace of all work.
  await time.pass(10_000);
  return findings;
}

const codes = (findings: readonly Finding[]) => findings.map(({ code }) => code);
const about = (findings: readonly Finding[]) => findings.find(({ tenant }) => tenant !== undefined);

const around = (ms: number) => (random: number) => ms * (0.5 + random);

describe('The diagnosis of tenants', () => {
  const urgent: Load = { tenant: 'urgent', keeps: 8, ms: around(2_000), priority: 1 };
  const batch: Load = { tenant: 'batch', keeps: 2, ms: around(2_000) };

  it('names one that waits because the requests of others have a higher priority, and advises `agingMs`', async () => {
    const found = about(await diagnosed(4, [urgent, batch]));
    expect(found).toMatchObject({
      code: 'tenant-starved',
      source: 'limiter',
      tenant: 'batch',
      share: 0.2,
      evidence: { queued: 2, running: 0, runningOfMost: 4, waitMs: 120_000 },
      message: expect.stringMatching(
        /^Requests of tenant batch wait 120 s, while 2\d\d requests of others begin: 0 of them run on average, and 4 of tenant urgent$/,
      ),
      remedy: expect.stringContaining('higher priority: set or lower `agingMs`'),
    });
    expect(about(await diagnosed(4, [urgent, batch], { agingMs: 2_000 }))).toBeUndefined();
  });

  it("names one of short requests that gets less than its share without `fairBy: 'time'`", async () => {
    const loads: Load[] = [
      { tenant: 'heavy', keeps: 12, ms: around(6_000) },
      { tenant: 'light', everyMs: 1_200, ms: () => 800 },
    ];
    for (const fairBy of ['requests', 'weight'] as const)
      expect(about(await diagnosed(4, loads, { fairBy }))).toMatchObject({
        code: 'tenant-starved',
        tenant: 'light',
        remedy: expect.stringContaining('Leave `fairBy` out'),
      });
    expect(about(await diagnosed(4, loads))).toBeUndefined();
  });

  it('names one that the guarantees of others leave nothing', async () => {
    const loads: Load[] = [
      { tenant: 'a', keeps: 4, ms: around(2_000) },
      { tenant: 'b', keeps: 4, ms: around(2_000) },
      { tenant: 'rest', keeps: 2, ms: around(2_000) },
    ];
    const guaranteed = (each: number) => ({
      tenants: (name: string): TenantShare => (name === 'rest' ? {} : { guaranteed: each }),
    });
    expect(about(await diagnosed(5, loads, guaranteed(3)))).toMatchObject({
      code: 'guarantees-too-large',
      tenant: 'rest',
      evidence: { guaranteed: 6, maxConcurrent: 5, running: 0 },
      message: expect.stringContaining('6 of 5 permits are guaranteed to others that use them'),
    });
    expect(about(await diagnosed(5, loads, guaranteed(2)))).toBeUndefined();
  });

  it('names the cap that holds a tenant back while permits are free, and its tenant', async () => {
    const loads: Load[] = [
      { tenant: 'capped', keeps: 4, ms: around(2_000) },
      { tenant: 'also', keeps: 3, ms: around(2_000) },
      { tenant: 'free', keeps: 1, ms: around(2_000) },
    ];
    const tenants = (name: string): TenantShare => (name === 'free' ? {} : { maxConcurrent: 1 });
    const findings = await diagnosed(8, loads, { tenants });
    expect(codes(findings)).toEqual(['tenant-capped']);
    expect(findings).toMatchObject([
      {
        source: 'limiter',
        tenant: 'capped',
        evidence: { queued: 5, maxConcurrent: 8, cap: 1, tenants: 2 },
        message: expect.stringMatching(
          /under the cap of tenant capped \(and of 1 other\), 5 of them .*: it may hold 1 of 8$/,
        ),
      },
    ]);
  });

  it('finds nothing where a guarantee is not used: others use it', async () => {
    const tenants = (name: string): TenantShare => (name === 'a' ? { guaranteed: 4 } : {});
    const loads: Load[] = [
      { tenant: 'a', everyMs: 20_000, ms: () => 1_000 },
      { tenant: 'b', keeps: 4, ms: around(2_000) },
    ];
    expect(await diagnosed(4, loads, { tenants })).toEqual([]);
  });

  it('finds nothing where all are served', async () => {
    const loads: Load[] = ['a', 'b', 'c'].map((tenant) => ({ tenant, keeps: 2, ms: around(2_000) }));
    expect(await diagnosed(6, loads)).toEqual([]);
  });

  it('finds no tenant where all wait for their shares, whatever they ask for', async () => {
    const runs = sizeOf('loads of tenants', 20, 400);
    const random = seeded(17);
    const pick = <T>(...of: T[]): T => of[Math.floor(random() * of.length)] as T;
    for (let run = 0; run < runs; run++) {
      const limit = pick(2, 4, 8);
      const shares: Record<string, TenantShare> = {};
      const loads = Array.from({ length: pick(2, 3, 6, 20) }, (_, i): Load => {
        const tenant = `t${i}`;
        const weight = pick(0.2, 1, 1, 1, 4);
        shares[tenant] = pick<TenantShare>(
          { weight },
          { weight },
          { weight, guaranteed: i === 0 ? limit / 2 : 0 },
          { weight, maxConcurrent: pick(1, 2, 4) },
        );
        const ms = pick(around(500), around(5_000), around(40_000), () => 300_000);
        return pick<Load>(
          { tenant, ms, keeps: pick(1, 3, 10) },
          { tenant, ms, everyMs: pick(500, 5_000, 30_000) },
        );
      });
      const tenants = (name: string): TenantShare => shares[name] as TenantShare;
      const found = about(await diagnosed(limit, loads, { tenants }, run));
      if (found?.code !== 'tenant-capped') expect(found, `run ${run}`).toBeUndefined();
    }
  });
});

describe("A limiter of the host's own", () => {
  it('has no figures by tenant, even if it has a queue', () => {
    const recorder = new TenantRecorder({ queue: { size: 3, eligible: 1 } });
    recorder.noteNewlyCapped();
    expect(recorder.beyondCaps).toBe(0);
    expect(recorder.report(1_000, () => 0)).toEqual({
      all: [],
      guaranteed: 0,
      isByTime: true,
      capped: undefined,
    });
  });
});
