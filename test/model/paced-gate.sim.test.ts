import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { openAiPreset } from '../../src/gate/llm-presets.js';
import { ServiceGate } from '../../src/gate/service-gate.js';
import { logNormal, seeded } from '../support/random-numbers.js';
import { sizeOf } from '../support/soak.js';
import { VirtualTime } from '../support/virtual-time.js';

/*
 * More callers than a service can serve, whose limits no one declared, in virtual time. The service counts calls and tokens
 * of each key, in one of the three ways that services have, and reports both in OpenAI's headers. Calls take up to 200 ms to
 * arrive, some longer than others, and some seconds to be answered.
 *
 * The first minute is for learning; the next ten are measured.
 */

const MINUTE = 60_000;
const CALLERS = 60;
const SEEDS = [1, 2, 3, 4, 5, 6, 7, 8].slice(0, sizeOf('seeds of a paced gate', 1, 8));

const clock = new VirtualTime();
beforeEach(() => clock.install());
afterEach(() => {
  clock.restore();
  vi.restoreAllMocks();
});

/** How a service counts one limit. */
interface Meter {
  readonly limit: number;
  remaining(): number;
  take(amount: number): void;
  /** Milliseconds until all is free again. */
  resetMs(): number;
  /** Milliseconds until so much is free. */
  waitMs(amount: number): number;
}

const slidingWindow = (limit: number): Meter => {
  let log: { readonly atMs: number; readonly amount: number }[] = [];
  const remaining = (): number => {
    log = log.filter(({ atMs }) => atMs + MINUTE > clock.nowMs);
    return limit - log.reduce((sum, { amount }) => sum + amount, 0);
  };
  return {
    limit,
    remaining,
    take: (amount) => void log.push({ atMs: clock.nowMs, amount }),
    resetMs: () => (log.at(-1)?.atMs ?? clock.nowMs - MINUTE) + MINUTE - clock.nowMs,
    waitMs: () => log[0]!.atMs + MINUTE - clock.nowMs,
  };
};

const tokenBucket = (limit: number): Meter => {
  let level = limit;
  let atMs = clock.nowMs;
  const remaining = (): number => {
    level = Math.min(limit, level + ((clock.nowMs - atMs) * limit) / MINUTE);
    atMs = clock.nowMs;
    return level;
  };
  return {
    limit,
    remaining,
    take: (amount) => {
      level = remaining() - amount;
    },
    resetMs: () => ((limit - remaining()) * MINUTE) / limit,
    waitMs: (amount) => ((amount - remaining()) * MINUTE) / limit,
  };
};

/** Its minutes begin 17 seconds after those of the clients. */
const fixedWindow = (limit: number): Meter => {
  let window = -1;
  let used = 0;
  const intoMs = (): number => (clock.nowMs + 43_000) % MINUTE;
  const remaining = (): number => {
    const now = Math.floor((clock.nowMs + 43_000) / MINUTE);
    if (now !== window) used = 0;
    window = now;
    return limit - used;
  };
  return {
    limit,
    remaining,
    take: (amount) => {
      used += amount;
    },
    resetMs: () => MINUTE - intoMs(),
    waitMs: () => MINUTE - intoMs(),
  };
};

const duration = (ms: number): string => `${Math.ceil(ms)}ms`;
const after = (ms: number): Promise<void> => new Promise((resolve) => clock.after(ms, resolve));

class Service {
  readonly keys: ReadonlyMap<string, { readonly requests: Meter; readonly tokens: Meter }>;
  sent = 0;
  refused = 0;
  readonly served = new Map<string, { calls: number; tokens: number }>();
  readonly #random: () => number;

  constructor(
    meter: (limit: number) => Meter,
    limits: Record<string, [calls: number, tokens: number]>,
    seed: number,
  ) {
    this.#random = seeded(seed);
    this.keys = new Map(
      Object.entries(limits).map(([key, [calls, tokens]]) => [
        key,
        { requests: meter(calls), tokens: meter(tokens) },
      ]),
    );
    this.forget();
  }

  forget(): void {
    this.sent = 0;
    this.refused = 0;
    for (const key of this.keys.keys()) this.served.set(key, { calls: 0, tokens: 0 });
  }

  async answer(key: string, tokens: number): Promise<Response> {
    await after(1 + this.#random() * 200);
    this.sent++;
    const { requests, tokens: budget } = this.keys.get(key)!;
    const isAdmitted = requests.remaining() >= 1 && budget.remaining() >= tokens;
    if (isAdmitted) {
      requests.take(1);
      budget.take(tokens);
      const served = this.served.get(key)!;
      served.calls++;
      served.tokens += tokens;
    } else this.refused++;
    const waitMs = isAdmitted ? 0 : Math.max(requests.waitMs(1), budget.waitMs(tokens));
    const headers = {
      'x-ratelimit-limit-requests': String(requests.limit),
      'x-ratelimit-remaining-requests': String(Math.max(0, Math.floor(requests.remaining()))),
      'x-ratelimit-reset-requests': duration(requests.resetMs()),
      'x-ratelimit-limit-tokens': String(budget.limit),
      'x-ratelimit-remaining-tokens': String(Math.max(0, Math.floor(budget.remaining()))),
      'x-ratelimit-reset-tokens': duration(budget.resetMs()),
      ...(isAdmitted ? {} : { 'retry-after-ms': String(Math.ceil(waitMs)) }),
    };
    await after(isAdmitted ? 500 + this.#random() * 4_000 : 20);
    return Response.json({ usage: { total_tokens: tokens } }, { status: isAdmitted ? 200 : 429, headers });
  }
}

async function play(
  meter: (limit: number) => Meter,
  limits: Record<string, [number, number]>,
  seed: number,
  pace: 'headers' | undefined,
) {
  clock.restart();
  vi.spyOn(Math, 'random').mockImplementation(seeded(seed + 1));
  const service = new Service(meter, limits, seed);
  const gate = new ServiceGate({
    name: 'llm',
    ...openAiPreset(),
    pace,
    keys: Object.keys(limits),
    maxConcurrent: 50,
  });
  const tokensOf = logNormal(seeded(seed + 2), 300, 0.5);
  let isOver = false;
  const caller = async (): Promise<void> => {
    while (!isOver) {
      const tokens = Math.ceil(tokensOf());
      await gate.run(({ key }) => service.answer(key, tokens), { weight: tokens }).catch(() => after(50));
    }
  };
  for (let i = 0; i < CALLERS; i++) void caller();
  await clock.pass(MINUTE);
  service.forget();
  await clock.pass(10 * MINUTE);
  const used = Object.entries(limits).map(([key, [calls, tokens]]) => {
    const served = service.served.get(key)!;
    return Math.max(served.calls / calls, served.tokens / tokens) / 10;
  });
  const refused = service.refused / service.sent;
  isOver = true;
  const closed = gate.close();
  await clock.pass(10_000);
  await closed;
  return { used, refused };
}

/** The first key is limited by its calls, the second by its tokens. */
const LIMITS: Record<string, [number, number]> = { 'key-1': [60, 1_000_000], 'key-2': [1_000, 20_000] };

describe('a gate that paces itself by headers', () => {
  for (const [name, meter] of [
    ['a sliding window', slidingWindow],
    ['a token bucket', tokenBucket],
    ['a fixed window', fixedWindow],
  ] as const) {
    it.each(SEEDS)(`uses the undeclared limits of ${name}, and is hardly refused (seed %i)`, async (seed) => {
      const { used, refused } = await play(meter, LIMITS, seed, 'headers');
      expect(refused).toBeLessThanOrEqual(0.01);
      for (const share of used) expect(share).toBeGreaterThanOrEqual(0.95);
    });
  }

  it('is refused more often without them', async () => {
    const { refused } = await play(slidingWindow, LIMITS, 1, undefined);
    expect(refused).toBeGreaterThan(0.01);
  });
});
