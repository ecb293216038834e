import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { AdaptiveLimit } from '../../src/limiter/adaptive-limit.js';
import { ConcurrencyLimiter } from '../../src/limiter/concurrency-limiter.js';
import { sleep } from '../support/promises.js';
import { logNormal, seeded } from '../support/random-numbers.js';
import { TOKENS_PER_SECOND } from '../support/virtual-services.js';
import { VirtualTime } from '../support/virtual-time.js';

/*
 * Callers, a ConcurrencyLimiter by an AdaptiveLimit, and a service behind it, in virtual time: the samples that the
 * limiter passes on, and what the adaptive limit makes of them, decide the result. Answers have log-normal lengths (mean 270
 * tokens, sigma 1) at 48 tokens a second: 5.6 s on the mean.
 *
 * What is attainable is what the same callers get behind a limiter that always knows the slots, and so is never refused.
 * The search for the limit is counted too.
 */

const MINUTE = 60_000;
const CALLERS = 200;
const REFUSAL_MS = 50;
const RETRY_WITHIN_MS = 2_000;

const time = new VirtualTime();
beforeEach(() => time.install());
afterEach(() => time.restore());

interface Answer {
  readonly ok: boolean;
  readonly retryAfterMs?: number;
}

/** Something that answers calls, and counts them. */
abstract class Service {
  sent = 0;
  refused = 0;
  answered = 0;
  tokens = 0;

  countFromHere(): void {
    this.sent = 0;
    this.refused = 0;
    this.answered = 0;
    this.tokens = 0;
  }

  async call(tokens: number): Promise<Answer> {
    this.sent++;
    const answer = await this.answer(tokens);
    if (answer.ok) {
      this.answered++;
      this.tokens += tokens;
    } else this.refused++;
    return answer;
  }

  protected abstract answer(tokens: number): Promise<Answer>;
}

const atFullSpeed = (tokens: number): Promise<void> => sleep((tokens / TOKENS_PER_SECOND) * 1_000);

/** So many calls at once, some more that wait inside, and the rest refused. Fewer slots do not end what runs. */
class SlotService extends Service {
  readonly #waiting: (() => void)[] = [];
  #running = 0;

  constructor(
    public slots: number,
    readonly mayWait: number,
  ) {
    super();
  }

  protected async answer(tokens: number): Promise<Answer> {
    if (this.#running >= this.slots) {
      if (this.#waiting.length >= this.mayWait) {
        await sleep(REFUSAL_MS);
        return { ok: false };
      }
      await new Promise<void>((resolve) => this.#waiting.push(resolve));
    } else this.#running++;
    await atFullSpeed(tokens);
    const next = this.#running <= this.slots ? this.#waiting.shift() : undefined;
    if (next === undefined) this.#running--;
    else next();
    return { ok: true };
  }
}

/** So many calls a minute, counted from the full minute; a refusal says when the next begins. */
class MinuteService extends Service {
  #minute = -1;
  #left = 0;

  constructor(readonly perMinute: number) {
    super();
  }

  protected async answer(tokens: number): Promise<Answer> {
    const minute = Math.floor(time.nowMs / MINUTE);
    if (minute !== this.#minute) this.#left = this.perMinute;
    this.#minute = minute;
    if (this.#left > 0) {
      this.#left--;
      await atFullSpeed(tokens);
      return { ok: true };
    }
    await sleep(REFUSAL_MS);
    return { ok: false, retryAfterMs: (minute + 1) * MINUTE - time.nowMs };
  }
}

/** What happens, after so many minutes. */
interface Change<S> {
  readonly after: number;
  readonly happens: (service: S, join: (callers: number) => void) => void;
}

interface Scenario<S extends Service> {
  readonly service: () => S;
  readonly minutes: number;
  /** Callers from the start on. */
  readonly callers?: number;
  readonly changes?: readonly Change<S>[];
}

const slotsBecome = (slots: number) => (service: SlotService) => {
  service.slots = slots;
};

const SLOTS: Record<string, Scenario<SlotService>> = {
  'a capacity that goes from 64 to 16 and back': {
    service: () => new SlotService(64, 16),
    changes: [
      { after: 10, happens: slotsBecome(16) },
      { after: 20, happens: slotsBecome(64) },
    ],
    minutes: 30,
  },
  'a hosted cap of 20': { service: () => new SlotService(20, 0), minutes: 20 },
  'a hosted cap of 20 that 200 callers meet after an idle time with 5': {
    service: () => new SlotService(20, 0),
    callers: 5,
    changes: [
      {
        after: 10,
        happens: (service, join) => {
          service.countFromHere();
          join(CALLERS);
        },
      },
    ],
    minutes: 20,
  },
};

/** How a caller uses the limiter: the caller reports the outcome. */
type Call = (limiter: ConcurrencyLimiter, send: () => Promise<Answer>, tenant: string) => Promise<boolean>;

const byRun: Call = (limiter, send) =>
  limiter.run(async ({ permit }) => {
    const { ok } = await send();
    if (!ok) permit.release('dropped');
    return ok;
  });

const byAcquire: Call = async (limiter, send, tenant) => {
  const permit = await limiter.acquire({ tenant });
  const { ok } = await send();
  permit.release(ok ? 'ok' : 'dropped');
  return ok;
};

type LimiterOf<S extends Service> = (service: S) => {
  readonly limiter: ConcurrencyLimiter;
  readonly adaptive?: AdaptiveLimit;
};

async function play<S extends Service>(
  scenario: Scenario<S>,
  seed: number,
  limiterOf: LimiterOf<S>,
  call = byRun,
) {
  const service = scenario.service();
  const { limiter, adaptive } = limiterOf(service);
  const lengthOf = logNormal(seeded(10 * seed), 270, 1);
  const chance = seeded(10 * seed + 1);
  const endMs = time.nowMs + scenario.minutes * MINUTE;
  const send = async (tokens: number): Promise<Answer> => {
    const answer = await service.call(tokens);
    if (answer.retryAfterMs !== undefined) adaptive?.blockFor(answer.retryAfterMs);
    return answer;
  };
  let callers = 0;
  const caller = async (tenant: string): Promise<void> => {
    for (let tokens = lengthOf(); time.nowMs < endMs; ) {
      if (await call(limiter, () => send(tokens), tenant)) tokens = lengthOf();
      else await sleep(RETRY_WITHIN_MS * chance());
    }
  };
  const join = (count: number): void => {
    for (; callers < count; callers++) void caller(`tenant ${callers % 3}`);
  };
  for (const { after, happens } of scenario.changes ?? []) {
    setTimeout(() => happens(service, join), after * MINUTE);
  }
  join(scenario.callers ?? CALLERS);
  await time.pass(scenario.minutes * MINUTE);
  const { sent, refused, answered, tokens } = service;
  // The last ones end.
  await time.pass(30 * MINUTE);
  expect(limiter.stats()).toMatchObject({ active: 0, queued: 0 });
  await limiter.close();
  return { refused, refusedShare: refused / sent, answered, tokens };
}

const finding = (seed: number) => () => {
  const adaptive = new AdaptiveLimit({ random: seeded(seed + 2) });
  return { limiter: new ConcurrencyLimiter({ adaptive }), adaptive };
};

/** Looks at the slots a moment after each change. */
const allKnowing =
  ({ changes = [] }: Scenario<SlotService>): LimiterOf<SlotService> =>
  (service) => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: service.slots });
    for (const { after } of changes) {
      setTimeout(
        () => {
          limiter.maxConcurrent = service.slots;
        },
        after * MINUTE + 1,
      );
    }
    return { limiter };
  };

describe.each([1, 2, 3])(
  'A ConcurrencyLimiter by an AdaptiveLimit in front of a service, seed %i',
  (seed) => {
    it.each(Object.entries(SLOTS))('makes good use of %s, and is hardly refused', async (_, scenario) => {
      const attainable = await play(scenario, seed, allKnowing(scenario));
      expect(attainable.refused).toBe(0);
      for (const call of [byRun, byAcquire]) {
        const found = await play(scenario, seed, finding(seed), call);
        expect(found.tokens / attainable.tokens).toBeGreaterThanOrEqual(0.9);
        expect(found.refusedShare).toBeLessThanOrEqual(0.03);
      }
    });

    it('uses up 120 requests a minute by honoring each Retry-After, and is hardly refused', async () => {
      const minutes = 20;
      for (const call of [byRun, byAcquire]) {
        const found = await play(
          { service: () => new MinuteService(120), minutes },
          seed,
          finding(seed),
          call,
        );
        expect(found.answered / (120 * minutes)).toBeGreaterThanOrEqual(0.9);
        expect(found.refusedShare).toBeLessThanOrEqual(0.03);
      }
    });
  },
);
