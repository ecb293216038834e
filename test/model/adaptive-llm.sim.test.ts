import { afterEach, describe, expect, it } from 'vitest';
import { ServiceGate } from '../../src/gate/service-gate.js';
import {
  adaptive,
  between,
  fixed,
  jobs,
  type LlmScenario,
  median,
  medians,
  play,
  reached,
} from '../support/llm-load.js';
import { LlmServer } from '../support/llm-server.js';
import { deferred } from '../support/promises.js';
import { seeded } from '../support/random-numbers.js';
import { isSoak, sizeOf } from '../support/soak.js';
import { VirtualTime } from '../support/virtual-time.js';

/*
 * 400 callers of an LLM server with an unbounded queue, in virtual time, with the step times of a real one. For a while 48
 * callers of higher priority take most of it. The figures are shares of what the best of many fixed limits reaches, which
 * is another one in each phase. All seeds and fixed limits: SOAK=full.
 */

const SEEDS = [1, 2, 3, 4, 5, 6, 7].slice(0, sizeOf('seeds of an LLM server', 3, 7));
const LIMITS = isSoak
  ? [4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 48, 56, 64, 72, 80, 88, 96, 104, 128]
  : [32, 48, 64, 80, 96, 104];

const played = (more: Partial<LlmScenario>, gaugeMs?: number) =>
  medians(SEEDS.map((seed) => reached({ seed, ...more }, adaptive(gaugeMs), LIMITS)));

describe('AdaptiveLimit in front of an LLM server that refuses nothing', () => {
  it('finds the knee from the times of streams, and follows a loss of capacity and its return', () => {
    const { found, first, timeouts, lost, returned } = played({});
    expect(found).toBeGreaterThanOrEqual(0.95);
    expect(first).toBeLessThanOrEqual(2.5);
    expect(timeouts).toBe(0);
    expect(lost).toBeGreaterThanOrEqual(0.92);
    expect(returned).toBeGreaterThanOrEqual(0.9);
  });

  it('finds it from one stream in ten', () => {
    const { found, lost, returned } = played({ streamed: 0.1 });
    expect(Math.min(found, lost, returned)).toBeGreaterThanOrEqual(0.9);
  });

  it('finds it from the tokens of plain calls', () => {
    const { found, lost, returned } = played({ streamed: 0, usage: true });
    expect(Math.min(found, lost, returned)).toBeGreaterThanOrEqual(0.9);
  });

  it('finds it with a gauge', () => {
    const { found, first, timeouts, returned } = played({}, 500);
    expect(found).toBeGreaterThanOrEqual(0.95);
    expect(first).toBeLessThanOrEqual(2.5);
    expect(timeouts).toBe(0);
    expect(returned).toBeGreaterThanOrEqual(0.9);
  });

  it('is simulated by a server that serves as much as the real one', () => {
    // Tokens per second that an H200 served under fixed limits.
    const measured = [
      [4, 905],
      [8, 1_548],
      [16, 2_296],
      [32, 3_342],
      [64, 4_455],
      [96, 4_862],
      [128, 4_794],
    ] as const;
    for (const [limit, real] of measured) {
      const { tokens, firstMs } = between(play({ seed: 7, phases: [[12, 0]] }, fixed(limit)), 2, 12);
      expect(tokens / 10 / real).toBeGreaterThan(0.93);
      expect(tokens / 10 / real).toBeLessThan(1.07);
      if (limit === 96) expect(median(firstMs)).toBeLessThan(60);
      if (limit === 128) expect(median(firstMs)).toBeGreaterThan(300);
    }
  });
});

describe('a ServiceGate in front of that server', () => {
  const time = new VirtualTime();
  afterEach(() => time.restore());

  it('finds the knee by itself from its streams', async () => {
    time.install();
    const server = new LlmServer(time);
    const gate = new ServiceGate({ name: 'llm', adaptive: { max: 400 } });
    const next = jobs(3);
    const network = seeded(4);
    let tokens = 0;
    const arrive = () => new Promise<void>((resolve) => time.after(3 * (0.5 + network()), resolve));
    const caller = async (): Promise<void> => {
      while (time.nowMs < 9_000) {
        const { promptTokens, maxTokens } = next();
        const stream = gate.stream(async function* () {
          await arrive();
          const first = deferred<void>();
          const done = deferred<void>();
          const onToken = (isFirst: boolean) => {
            if (time.nowMs > 5_000) tokens++;
            if (isFirst) first.resolve();
          };
          server.submit({ promptTokens, maxTokens, priority: 0, onToken, onDone: done.resolve });
          await first.promise;
          yield { choices: [] };
          await done.promise;
          yield { usage: { completion_tokens: maxTokens } };
        });
        for await (const _ of stream);
      }
    };
    for (let i = 0; i < 400; i++) void caller();
    await time.pass(9_000);
    const best = between(play({ seed: 3, phases: [[9, 0]] }, fixed(96)), 5, 9).tokens;
    expect(tokens / best).toBeGreaterThan(0.9);
    expect(server.waiting).toBeLessThan(20);
  });
});
