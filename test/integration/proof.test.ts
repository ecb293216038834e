import { beforeAll, describe, expect, it } from 'vitest';
import { type LoadReport, runLoad } from './research-load.js';
import { LIMITS } from './tight-services.js';

const REQUESTS = 200;
/** A second of the services takes 40 ms here, and 70 ms by the gates: see `TightServices.counts`. */
const TIME_SCALE = 0.04;
const SLACK_MS = 30;
/** Nothing here is about time; a busy machine may take several times as long as a quiet one. */
const PATIENCE_MS = 240_000;

describe('200 requests at once, through five instances and four gates', () => {
  let load: LoadReport;
  beforeAll(async () => {
    load = await runLoad({ requests: REQUESTS, timeScale: TIME_SCALE, slackMs: SLACK_MS });
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

  it('never put more on the LLM than its batch holds', () => {
    const { llm } = load.services;
    expect(llm.atOnce).toBeLessThanOrEqual(LIMITS.llmAtOnce);
    expect(llm.refused).toBe(0);
  });

  it('never search more in a second than a key allows, and use both keys', () => {
    const { serper } = load.services;
    for (const peak of [...serper.left, ...serper.arrived]) {
      expect(peak).toBeLessThanOrEqual(LIMITS.searchesPerSecond);
      expect(peak).toBeGreaterThan(0);
    }
  });

  it('never create more sandboxes in a second, nor have more at once, than the account allows', () => {
    const { e2b } = load.services;
    expect(e2b.left).toBe(LIMITS.creationsPerSecond);
    expect(e2b.arrived).toBe(LIMITS.creationsPerSecond);
    expect(e2b.sandboxes).toBeLessThanOrEqual(LIMITS.sandboxes);
  });

  it('do not notice that Jina refuses one page in twenty', () => {
    const { jina } = load.services;
    expect(jina.refused).toBeGreaterThan(REQUESTS / 20);
    const gate = load.atRest.gates.find(({ name }) => name === 'jina');
    expect(gate).toMatchObject({
      calls: 2 * REQUESTS,
      finished: { ok: 2 * REQUESTS },
      retries: jina.refused,
    });
  });

  it('leave no sandbox behind, no call under way, and every count at rest', () => {
    const { services, atRest } = load;
    expect(services.e2b.survivors).toBe(0);
    expect(services.underWay).toEqual([0, 0, 0, 0]);
    expect(atRest.manager).toMatchObject({
      active: 0,
      waiting: 0,
      requests: REQUESTS,
      limiter: { active: 0, queued: 0, acquired: REQUESTS, rejected: 0 },
      pool: { live: 5, idle: 5, leased: 0, waiting: 0, created: 5, acquired: REQUESTS, released: REQUESTS },
    });
    expect(atRest.gates).toHaveLength(4);
    for (const { running, waitingForStart, backingOff, limiter, keys } of atRest.gates) {
      expect({ running, waitingForStart, backingOff }).toEqual({
        running: 0,
        waitingForStart: 0,
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
    load = await runLoad({ requests: REQUESTS, timeScale: TIME_SCALE });
  }, PATIENCE_MS);

  it('put more on services than they allow, and are refused', () => {
    const { serper, e2b } = load.services;
    expect(Math.max(...serper.seen)).toBeGreaterThan(LIMITS.searchesPerSecond);
    expect(e2b.seen).toBeGreaterThan(LIMITS.creationsPerSecond);
    expect(serper.refused).toBeGreaterThan(0);
    expect(e2b.refused).toBeGreaterThan(0);
  });

  it('fail, and say for want of what', () => {
    expect(load.answered + load.gaveUp + load.failed).toBe(REQUESTS);
    expect(load.gaveUp + load.failed).toBeGreaterThan(REQUESTS / 10);
    for (const reason of [/Tool search failed: 429/, /Tool read failed: 429/, /Tool python failed: /]) {
      expect(load.reasons).toContainEqual(expect.stringMatching(reason));
    }
  });
});
