import { beforeAll, describe, expect, it } from 'vitest';
import { type LoadReport, runLoad } from '../support/research-loads.js';
import { LIMITS } from '../support/tight-limits.js';
import type { Margins } from '../support/tight-services.js';
import type { Transit } from '../support/tight-stubs.js';

const REQUESTS = 200;
/** At this pace a second takes 140 ms: 80 in which the services count, and the first margin of a gate's window. */
const PACE = { timeScale: 0.14, secondMs: 80 };
/**
 * The first margins are enough on a machine that has something else to do as well; the second, with which the load takes
 * almost two minutes, on one that is swamped.
 */
const MARGINS: readonly [Margins, Margins] = [
  { creationMs: 60, otherMs: 80 },
  { creationMs: 500, otherMs: 500 },
];
const PACE_WITHOUT_GATES = { timeScale: 0.3, secondMs: 300 };
/** Nothing here is about time; a busy machine may take several times as long as a quiet one. */
const PATIENCE_MS = 300_000;

/** Refused for asking too much, by Serper, Jina and E2B. */
const refusals = ({ services: { serper, jina, e2b } }: LoadReport): readonly number[] => [
  serper.refused,
  jina.refused - jina.refusedAtRandom,
  e2b.refused,
];

/** Whether any service saw more in a second than it allows. */
function sawTooMuch(load: LoadReport): boolean {
  const { serper, jina, e2b } = load.services;
  return (
    Math.max(...serper.inASecond) > LIMITS.searchesPerSecond ||
    jina.inASecond > LIMITS.pagesPerSecond ||
    e2b.inASecond > LIMITS.creationsPerSecond ||
    refusals(load).some((count) => count > 0)
  );
}

/** Whether the machine held calls up for longer than the margins: then they arrive together, whatever a gate does. */
function wasSwamped({ services: { serper, jina, e2b } }: LoadReport, margins: Margins): boolean {
  const apartMs = ({ transitMs }: { readonly transitMs: Transit }): number =>
    transitMs.longest - transitMs.shortest;
  return Math.max(apartMs(serper), apartMs(jina)) > margins.otherMs || apartMs(e2b) > margins.creationMs;
}

describe('200 requests at once, through five instances and four gates', () => {
  let load: LoadReport;
  beforeAll(async () => {
    const [margins, longer] = MARGINS;
    load = await runLoad({ requests: REQUESTS, pace: PACE, margins });
    if (sawTooMuch(load) && wasSwamped(load, margins)) {
      load = await runLoad({ requests: REQUESTS, pace: PACE, margins: longer });
    }
  }, PATIENCE_MS);

  it('are all answered', () => {
    expect(load).toMatchObject({ answered: REQUESTS, gaveUp: 0, failed: 0, reasons: [] });
  });

  it('use every service as much as they should', () => {
    const { llm, serper, jina, e2b } = load.services;
    expect(llm.calls).toBe(8 * REQUESTS);
    expect(serper.calls - serper.refused).toBe(4 * REQUESTS);
    expect(jina.calls - jina.refused).toBe(2 * REQUESTS);
    expect(e2b.creations - e2b.refused).toBe(REQUESTS);
  });

  it("never exceed the LLM's batch", () => {
    const { llm } = load.services;
    expect(llm.atOnce).toBeLessThanOrEqual(LIMITS.llmAtOnce);
    expect(llm.refused).toBe(0);
  });

  it("never exceed a key's searches per second, and use both keys", () => {
    for (const peak of load.services.serper.inASecond) {
      expect(peak).toBeLessThanOrEqual(LIMITS.searchesPerSecond);
      expect(peak).toBeGreaterThan(0);
    }
  });

  it("never exceed Jina's pages per second, though the demand is higher", () => {
    expect(load.services.jina.inASecond).toBeLessThanOrEqual(LIMITS.pagesPerSecond);
    expect(load.held.jina).toBeGreaterThan(0);
  });

  it("never exceed the account's sandbox creations per second, nor its concurrent sandboxes", () => {
    const { e2b } = load.services;
    expect(e2b.inASecond).toBe(LIMITS.creationsPerSecond);
    expect(e2b.sandboxes).toBeLessThanOrEqual(LIMITS.sandboxes);
    expect(load.held.e2b).toBeGreaterThan(0);
  });

  it('are never rejected as too many', () => {
    expect(refusals(load)).toEqual([0, 0, 0]);
  });

  it('are not affected by one failing page in twenty', () => {
    const { jina } = load.services;
    expect(jina.refused).toBeGreaterThan(REQUESTS / 20);
    const gate = load.atRest.gates.find(({ name }) => name === 'jina');
    expect(gate).toMatchObject({
      calls: 2 * REQUESTS,
      finished: { ok: 2 * REQUESTS },
      retries: jina.refused,
    });
  });

  it('leave no sandbox, no call in flight and every count at zero', () => {
    const { services, atRest } = load;
    expect(services.e2b.survivors).toBe(0);
    expect(services.underWay).toEqual([0, 0, 0, 0]);
    expect(atRest.manager).toMatchObject({
      active: 0,
      queued: 0,
      requests: REQUESTS,
      limiter: { active: 0, queued: 0, acquired: REQUESTS, rejected: 0 },
      pool: { live: 5, idle: 5, leased: 0, queued: 0, created: 5, acquired: REQUESTS, released: REQUESTS },
    });
    expect(atRest.gates).toHaveLength(4);
    for (const { running, queuedForStart, backingOff, limiter, keys } of atRest.gates) {
      expect({ running, queuedForStart, backingOff }).toEqual({
        running: 0,
        queuedForStart: 0,
        backingOff: 0,
      });
      expect([limiter?.active ?? 0, limiter?.queued ?? 0]).toEqual([0, 0]);
      expect(keys.every(({ inUse }) => inUse === 0)).toBe(true);
    }
  });
});

describe('the same 200 requests without gates', () => {
  let load: LoadReport;
  beforeAll(async () => {
    load = await runLoad({ requests: REQUESTS, pace: PACE_WITHOUT_GATES });
  }, PATIENCE_MS);

  it('exceed the limits of the services, and are rejected', () => {
    const { llm, serper } = load.services;
    expect(llm.atOnce).toBeGreaterThan(LIMITS.llmAtOnce);
    expect(llm.refused).toBeGreaterThan(0);
    expect(Math.max(...serper.inASecond)).toBeGreaterThan(LIMITS.searchesPerSecond);
    expect(serper.refused).toBeGreaterThan(0);
  });

  it('fail, and name what is missing', () => {
    expect(load.answered + load.gaveUp + load.failed).toBe(REQUESTS);
    expect(load.gaveUp + load.failed).toBeGreaterThan(REQUESTS / 10);
    for (const reason of [/Tool search failed: 429/, /503/]) {
      expect(load.reasons).toContainEqual(expect.stringMatching(reason));
    }
  });
});
