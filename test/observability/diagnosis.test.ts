import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { describe, expect, it } from 'vitest';
import type { Diagnosis, Finding } from '../../src/observability/diagnosis/diagnosis.js';
import { ProcessMachine } from '../../src/observability/diagnosis/machine.js';
import { Scenario, type ScenarioOptions, times } from '../support/diagnosis-scenarios.js';
import { sleep } from '../support/promises.js';

const nameOf = ({ code, source }: Finding) => `${code} of ${source}`;
const codes = ({ findings }: Diagnosis) => findings.map(nameOf);

/** Runs a scenario, and expects exactly one thing to be named. */
async function only(
  expected: string,
  options: ScenarioOptions,
  act: (scenario: Scenario) => Promise<unknown>,
): Promise<NonNullable<Diagnosis['bottleneck']>> {
  await using scenario = await Scenario.start(options);
  await act(scenario);
  const { findings, healthy, bottleneck } = scenario.diagnose();
  // The stubs run on this machine: where it is busy, calls take longer the more are in flight, which is named as well.
  const named = findings.filter((one) => one.evidence.bestMs === undefined || nameOf(one) === expected);
  expect(named.map(nameOf)).toEqual([expected]);
  expect(healthy).toBe(false);
  expect(bottleneck).toBe(findings[0]);
  return named[0]!;
}

describe('diagnose, against real services', () => {
  it('names nothing in a healthy run', async () => {
    await using scenario = await Scenario.start({
      services: { llm: { latencyMs: 60 }, serper: { latencyMs: 20 } },
      poolSize: 4,
      llm: { maxConcurrent: 8 },
      serper: { rate: [{ limit: 50, perMs: 1_000 }] },
    });
    await times(3, () =>
      scenario.requests(4, async () => {
        await scenario.ask();
        await Promise.all([scenario.search(), scenario.search()]);
        await scenario.ask();
      }),
    );
    expect(scenario.diagnose()).toMatchObject({ healthy: true, findings: [] });
    expect(scenario.diagnose()).not.toHaveProperty('bottleneck');
  });

  it('names a pool that is too small', async () => {
    const { evidence, remedy } = await only(
      'pool-too-small of pool',
      { services: { llm: { latencyMs: 40 } }, poolSize: 2 },
      (scenario) => scenario.requests(8, () => times(3, () => scenario.ask())),
    );
    expect(evidence).toMatchObject({ poolSize: 2 });
    expect(remedy).toMatch(/^Raise `PIPELINE_POOL_SIZE` from 2 towards \d/);
  });

  it('names an admission that is too small', async () => {
    const { evidence, remedy } = await only(
      'admission-too-small of limiter',
      { services: { llm: { latencyMs: 40 } }, poolSize: 8, maxConcurrentRequests: 2 },
      (scenario) => scenario.requests(10, () => times(3, () => scenario.ask())),
    );
    expect(evidence).toMatchObject({ maxConcurrent: 2, poolSize: 8 });
    expect(remedy).toMatch(/^Raise `MAX_CONCURRENT_REQUESTS` from 2 to 8 or more/);
  });

  it('names a limiter that is paused', async () => {
    await only('admission-paused of limiter', { services: { llm: { latencyMs: 20 } } }, async (scenario) => {
      scenario.limiter.pause();
      void scenario.requests(3, () => scenario.ask());
      await sleep(100);
    });
  });

  it('names an LLM with more concurrent calls than its batch holds', async () => {
    const { message, evidence, remedy } = await only(
      'service-at-limit of llm',
      { services: { llm: { latencyMs: 120, maxNumSeqs: 4 } } },
      async (scenario) => {
        await scenario.requests(2, () => times(6, () => scenario.ask()));
        await scenario.requests(16, () => times(3, () => scenario.ask()));
      },
    );
    expect(message).toMatch(/^llm is at its limit: a call takes/);
    expect(evidence.callMs!).toBeGreaterThan(1.75 * evidence.bestMs!);
    expect(remedy).toMatch(/vLLM `--max-num-seqs`/);
    expect(remedy).toMatch(/SGLang `--dp`/);
  });

  it('names the gate of an LLM with a limit that is too low', async () => {
    const { evidence, remedy } = await only(
      'service-at-limit of llm',
      { services: { llm: { latencyMs: 40 } }, llm: { maxConcurrent: 2 } },
      (scenario) => scenario.requests(8, () => times(3, () => scenario.ask())),
    );
    expect(evidence).toMatchObject({ maxConcurrent: 2 });
    expect(remedy).toMatch(/`maxConcurrent` of its gate/);
  });

  it('names an LLM that has become slower at the same concurrency', async () => {
    let latencyMs = 20;
    const { message, remedy } = await only(
      'service-slower of llm',
      { services: { llm: { latencyMs: () => latencyMs } } },
      async (scenario) => {
        await scenario.requests(4, () => times(10, () => scenario.ask()));
        await scenario.skip();
        latencyMs = 400;
        await scenario.requests(4, () => times(3, () => scenario.ask()));
      },
    );
    expect(message).toMatch(/with as many calls in flight/);
    expect(remedy).toMatch(/vLLM `--max-num-seqs`.*SGLang `--dp`/);
  });

  it('names the rate window of a search service', async () => {
    const { evidence, remedy } = await only(
      'rate-window of serper',
      {
        services: { serper: { latencyMs: 5 } },
        serper: { rate: [{ limit: 4, perMs: 200 }], keys: ['key-1'] },
      },
      (scenario) => scenario.requests(4, () => times(4, () => scenario.search())),
    );
    expect(evidence).toMatchObject({ keys: 1 });
    expect(remedy).toMatch(/more keys.*a larger plan.*`cache`/);
  });

  it('names a search service that rejects calls as too many', async () => {
    const { evidence, remedy } = await only(
      'cooldown of serper',
      {
        services: { serper: { latencyMs: 5, rate: { limit: 3, perMs: 200 } } },
        serper: { keys: ['key-1'], cooldown: { baseMs: 100 } },
      },
      (scenario) => scenario.requests(4, () => times(3, () => scenario.search())),
    );
    expect(evidence.rejected!).toBeGreaterThan(0);
    expect(remedy).toMatch(/`rate`.*more keys.*a larger plan.*`cache`/);
  });

  it('names a service whose keys are all unauthorized', async () => {
    const { evidence } = await only(
      'no-keys of serper',
      { services: { serper: { keys: ['another'] } }, serper: { keys: ['key-1', 'key-2'] } },
      (scenario) => scenario.requests(2, () => scenario.search()),
    );
    expect(evidence).toMatchObject({ keys: 2, unauthorized: 2, exhausted: 0 });
  });

  it('names a service that fails', async () => {
    await only(
      'service-failing of serper',
      { services: { serper: { fault: ({ id }) => (id % 2 ? { type: 'status', status: 500 } : undefined) } } },
      (scenario) => scenario.requests(3, () => times(3, () => scenario.search())),
    );
  });

  it('names the creation of instances that each start a sandbox', async () => {
    const { evidence, remedy } = await only(
      'creation-slow of pool',
      {
        services: { llm: { latencyMs: 20 }, e2b: { latencyMs: 300 } },
        create: async (_, { e2b }) => {
          const response = await fetch(`${e2b.url}/v2/sandboxes`, {
            method: 'POST',
            headers: { 'x-api-key': 'key', 'content-type': 'application/json' },
            body: '{"templateID":"base"}',
          });
          return response.json();
        },
      },
      (scenario) => scenario.requests(4, () => scenario.ask()),
    );
    expect(evidence.createMs!).toBeGreaterThan(250);
    expect(remedy).toMatch(/`min: 32`.*`await manager.warmUp\(\)`/);
  });

  it('names instances that cannot be created', async () => {
    const { evidence } = await only(
      'creation-failing of pool',
      {
        services: { e2b: { keys: ['another'] } },
        create: async (_, { e2b }) => {
          const { status } = await fetch(`${e2b.url}/v2/sandboxes`, { method: 'POST' });
          throw new Error(`no sandbox: ${status}`);
        },
      },
      (scenario) => scenario.requests(4, () => scenario.ask()),
    );
    expect(evidence).toMatchObject({ created: 0 });
  });

  it('names the preparation of instances for each task', async () => {
    await only(
      'preparation-slow of pool',
      { services: { llm: { latencyMs: 20 } }, prepare: () => sleep(150) },
      (scenario) => scenario.requests(4, () => scenario.ask()),
    );
  });

  it('names a plan that allows too few sandboxes per second, with its own remedy', async () => {
    const { remedy } = await only(
      'rate-window of e2b',
      { services: { e2b: { latencyMs: 5 } }, e2b: { rate: [{ limit: 1, perMs: 100 }] } },
      (scenario) => scenario.requests(5, () => scenario.sandbox()),
    );
    expect(remedy).toMatch(/a plan with more sandboxes per second, or fewer sandboxes/);
  });

  it('names a blocked event loop, and nothing that is measured through it', async () => {
    const { evidence, remedy } = await only(
      'event-loop-blocked of process',
      { services: { llm: { latencyMs: 20 } }, poolSize: 2, machine: new ProcessMachine(60_000, 1_000) },
      (scenario) =>
        scenario.requests(6, async () => {
          await scenario.ask();
          const until = performance.now() + 200;
          while (performance.now() < until);
        }),
    );
    expect(evidence.longestStallMs!).toBeGreaterThan(100);
    expect(remedy).not.toBe('');
  });

  it('names the memory of a process that its instances nearly fill', async () => {
    const script = fileURLToPath(new URL('../support/short-of-memory.ts', import.meta.url));
    const { stdout } = await promisify(execFile)(process.execPath, [
      '--max-old-space-size=192',
      '--import',
      'tsx',
      script,
      '192',
    ]);
    const diagnosis = JSON.parse(stdout) as Diagnosis;
    expect(codes(diagnosis)).toEqual(['memory-short of process']);
    expect(diagnosis.bottleneck?.evidence).toMatchObject({ instances: 4 });
    expect(diagnosis.bottleneck?.remedy).toMatch(/--max-old-space-size.*PIPELINE_POOL_SIZE/);
  });

  it('does not name the pool if all its instances wait for a service', async () => {
    await only(
      'rate-window of serper',
      {
        services: { serper: { latencyMs: 5 } },
        serper: { rate: [{ limit: 1, perMs: 150 }] },
        poolSize: 3,
      },
      (scenario) => scenario.requests(10, () => scenario.search()),
    );
  });
});
