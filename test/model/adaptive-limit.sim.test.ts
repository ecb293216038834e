import { describe, expect, it } from 'vitest';
import { AdaptiveLimit, type LimitSample } from '../../src/limiter/adaptive-limit.js';
import { seeded } from '../support/random-numbers.js';
import {
  type Controller,
  MinuteService,
  SlotService,
  TOKENS_PER_SECOND,
  Traffic,
  type VirtualService,
} from '../support/virtual-services.js';
import { VirtualTime } from '../support/virtual-time.js';

/*
 * Services under an AdaptiveLimit, in virtual time. Answers have log-normal lengths (mean 270 tokens, sigma 1) at 48
 * tokens a second: 5.6 s on the mean, one in a hundred above 30 s.
 *
 * What is attainable:
 * - of a service with slots, what the same callers get, by the same lengths, behind a limit that always knows the slots
 *   and so is never refused. It stays a few parts in a hundred below slots x 48 tokens a second, since a call that is
 *   in flight at the end counts for none.
 * - of a service with so many calls a minute, that many a minute.
 *
 * The search for the limit is counted too, except where a test says that it looks at what has settled.
 */

const MINUTE = 60_000;
const SEEDS = [1, 2, 3];
const CALLERS = 200;

/** A service, and what happens to it and to its callers over time. */
interface Scenario<S extends VirtualService> {
  readonly service: (time: VirtualTime) => S;
  readonly happens: (traffic: Traffic, service: S) => void;
  readonly minutes: number;
}

type ControllerOf<S> = (time: VirtualTime, service: S, random: () => number) => Controller;

function play<S extends VirtualService>(scenario: Scenario<S>, seed: number, controller: ControllerOf<S>) {
  const time = new VirtualTime();
  const service = scenario.service(time);
  const traffic = new Traffic(time, service, controller(time, service, seeded(seed + 2)), 10 * seed);
  scenario.happens(traffic, service);
  time.runUntil(scenario.minutes * MINUTE);
  return traffic;
}

const adaptive = (time: VirtualTime, _: unknown, random: () => number) =>
  new AdaptiveLimit({ now: () => time.nowMs, random });

/** As `adaptive`, but with samples that differ from what happened. */
const misled =
  (mislead: (sample: LimitSample) => LimitSample): ControllerOf<unknown> =>
  (time, service, random) => {
    const limit = adaptive(time, service, random);
    return {
      get limit() {
        return limit.limit;
      },
      get blockedForMs() {
        return limit.blockedForMs;
      },
      onSample: (sample) => limit.onSample(mislead(sample)),
    };
  };

/** Knows the slots at every moment. */
const allKnowing: ControllerOf<SlotService> = (_, service) => ({
  get limit() {
    return service.slots;
  },
  blockedForMs: 0,
  onSample: () => {},
});

/** A model server: some requests wait inside, further ones are refused. It loses three quarters of itself for a while. */
const capacityStep: Scenario<SlotService> = {
  service: (time) => new SlotService(time, 64, 16),
  happens: (traffic, service) => {
    traffic.join(CALLERS);
    traffic.time.after(10 * MINUTE, () => {
      service.slots = 16;
    });
    traffic.time.after(20 * MINUTE, () => {
      service.slots = 64;
    });
  },
  minutes: 30,
};

const hosted = (slots: number, minutes = 20): Scenario<SlotService> => ({
  service: (time) => new SlotService(time, slots),
  happens: (traffic) => traffic.join(CALLERS),
  minutes,
});

const rate: Scenario<MinuteService> = {
  service: (time) => new MinuteService(time, 120),
  happens: (traffic) => traffic.join(CALLERS),
  minutes: 20,
};

/** Ten quiet minutes, then ten busy ones, which alone are counted. */
const rush: Scenario<SlotService> = {
  service: (time) => new SlotService(time, 20),
  happens: (traffic) => {
    traffic.join(5);
    traffic.settleUntil(10 * MINUTE);
    traffic.join(CALLERS - 5);
  },
  minutes: 20,
};

describe.each(SEEDS)('AdaptiveLimit in front of virtual services, seed %i', (seed) => {
  const expectNearly = (scenario: Scenario<SlotService>, controller: ControllerOf<SlotService>) => {
    const traffic = play(scenario, seed, controller);
    const attainable = play(scenario, seed, allKnowing);
    expect(attainable.refused).toBe(0);
    expect(traffic.tokens / attainable.tokens).toBeGreaterThanOrEqual(0.9);
    expect(traffic.refusedShare).toBeLessThanOrEqual(0.03);
    return traffic;
  };

  it('follows a capacity that goes from 64 to 16 and back', () => {
    expectNearly(capacityStep, adaptive);
  });

  it('follows it with half the refusals or fewer when it reads the gauge of waiting requests', () => {
    const gauged: ControllerOf<SlotService> = (time, service, random) => {
      const limit = adaptive(time, service, random);
      const read = () => {
        limit.onGauge(service.waiting);
        time.after(1000, read);
      };
      read();
      return limit;
    };
    const traffic = expectNearly(capacityStep, gauged);
    expect(traffic.refused).toBeLessThanOrEqual(0.5 * play(capacityStep, seed, adaptive).refused);
  });

  it('finds a hosted cap of 20', () => {
    expectNearly(hosted(20), adaptive);
  });

  it('probes a small cap rarely', () => {
    for (const slots of [1, 2, 3, 5, 8]) {
      const settled: Scenario<SlotService> = {
        ...hosted(slots, 120),
        happens: (traffic) => {
          traffic.join(CALLERS);
          traffic.settleUntil(20 * MINUTE);
        },
      };
      expectNearly(settled, adaptive);
    }
  });

  it('uses up 120 requests a minute and is hardly refused', () => {
    const traffic = play(rate, seed, adaptive);
    expect(traffic.answered / (120 * rate.minutes)).toBeGreaterThanOrEqual(0.9);
    expect(traffic.refusedShare).toBeLessThanOrEqual(0.03);
  });

  it('meets 200 callers after an idle time with 5', () => {
    expectNearly(rush, adaptive);
  });

  it('is back at nine tenths within two minutes after an outage of one minute', () => {
    const outage: Scenario<SlotService> = {
      service: (time) => new SlotService(time, 64),
      happens: (traffic, service) => {
        traffic.join(CALLERS);
        traffic.time.runUntil(5 * MINUTE);
        service.slots = 0;
        traffic.time.runUntil(6 * MINUTE);
        service.slots = 64;
        traffic.settleUntil(8 * MINUTE);
      },
      minutes: 13,
    };
    const traffic = play(outage, seed, adaptive);
    expect(traffic.tokens / (5 * 60 * 64 * TOKENS_PER_SECOND)).toBeGreaterThanOrEqual(0.9);
  });

  describe('misled, to show the effect of each guard', () => {
    it('is refused a tenth of the calls of a rush, when it grows while idle', () => {
      const alwaysBinding = misled((sample) => ({ ...sample, inFlight: CALLERS }));
      expect(play(rush, seed, alwaysBinding).refusedShare).toBeGreaterThan(0.1);
    });

    it('is refused a tenth of the calls at 120 a minute, without their Retry-After', () => {
      const ungated = misled(({ retryAfterMs: _, ...sample }) => sample);
      expect(play(rate, seed, ungated).refusedShare).toBeGreaterThan(0.1);
    });
  });
});
