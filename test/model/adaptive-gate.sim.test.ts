import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import type { ServiceGateOptions } from '../../src/gate/options.js';
import { ServiceGate } from '../../src/gate/service-gate.js';
import { ConcurrencyLimiter } from '../../src/limiter/concurrency-limiter.js';
import { httpError } from '../support/gates.js';
import { logNormal, seeded } from '../support/random-numbers.js';
import { sizeOf } from '../support/soak.js';
import { TOKENS_PER_SECOND } from '../support/virtual-services.js';
import { VirtualTime } from '../support/virtual-time.js';

/*
 * 200 callers and a server like vLLM, with a gate between them, in virtual time. The server runs 64 requests at once,
 * lets 16 wait inside and refuses the rest with 503; for the second five of fifteen minutes it loses three quarters of itself. Answers have
 * log-normal lengths (mean 270 tokens, sigma 1) at 48 tokens a second: 5.6 s on the mean.
 *
 * What is attainable is what the same callers get behind a limit that always knows the slots.
 */

const PHASE = 5 * 60_000;
const CALLERS = 200;
const REFUSAL_MS = 50;

const clock = new VirtualTime();
beforeEach(() => clock.install());
afterEach(() => clock.restore());

class ModelServer {
  slots = 64;
  sent = 0;
  refused = 0;
  tokens = 0;
  #running = 0;
  readonly #waiting: (() => void)[] = [];

  async answer(tokens: number): Promise<void> {
    this.sent++;
    if (this.#running >= this.slots) {
      if (this.#waiting.length >= 16) {
        this.refused++;
        await new Promise<void>((resolve) => clock.after(REFUSAL_MS, resolve));
        throw httpError(503);
      }
      await new Promise<void>((resolve) => this.#waiting.push(resolve));
    } else this.#running++;
    await new Promise<void>((resolve) => clock.after((tokens / TOKENS_PER_SECOND) * 1_000, resolve));
    this.tokens += tokens;
    const next = this.#running <= this.slots ? this.#waiting.shift() : undefined;
    if (next === undefined) this.#running--;
    else next();
  }
}

async function play(seed: number, bound: (server: ModelServer) => Partial<ServiceGateOptions>) {
  clock.restart();
  vi.spyOn(Math, 'random').mockImplementation(seeded(seed + 1));
  const server = new ModelServer();
  const gate = new ServiceGate({ name: 'llm', ...bound(server) } as ServiceGateOptions);
  const lengthOf = logNormal(seeded(seed), 270, 1);
  let failed = 0;
  const caller = async (): Promise<void> => {
    while (clock.nowMs < 3 * PHASE) {
      const tokens = lengthOf();
      await gate.run(() => server.answer(tokens)).catch(() => failed++);
    }
  };
  for (let i = 0; i < CALLERS; i++) void caller();
  clock.after(PHASE, () => {
    server.slots = 16;
  });
  clock.after(2 * PHASE, () => {
    server.slots = 64;
  });
  await clock.pass(3 * PHASE);
  const { sent, refused, tokens } = server;
  return { sent, refused, tokens, failed, refusedShare: refused / sent, stats: gate.stats() };
}

const allKnowing = (server: ModelServer) => {
  const limiter = new ConcurrencyLimiter({ maxConcurrent: 64 });
  for (const at of [1, 2]) {
    clock.after(at * PHASE + 1, () => {
      limiter.maxConcurrent = server.slots;
    });
  }
  return { limiter };
};

describe('a ServiceGate in front of a model server that loses capacity', () => {
  it.each([1, 2, 3].slice(0, sizeOf('seeds of a gate with an adaptive limit', 1, 3)))(
    'keeps it busy by an adaptive limit, and is hardly ever refused, seed %i',
    async (seed) => {
      const adaptive = await play(seed, () => ({ adaptive: {} }));
      const attainable = await play(seed, allKnowing);
      expect(attainable.refused).toBe(0);
      expect(adaptive.tokens / attainable.tokens).toBeGreaterThan(0.9);
      expect(adaptive.refusedShare).toBeLessThan(0.03);
      // What was refused was tried again, and served.
      expect(adaptive.failed).toBe(0);
      if (seed > 1) return;
      // Without a bound the rests after each refusal keep it busy as well, but at more than ten times as many.
      const unbound = await play(seed, () => ({}));
      expect(unbound.tokens / attainable.tokens).toBeGreaterThan(0.8);
      expect(unbound.refused).toBeGreaterThan(10 * adaptive.refused);
    },
  );
});
