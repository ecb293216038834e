import { describe, expect, it, vi } from 'vitest';
import {
  AdaptiveLimit,
  type AdaptiveLimitOptions,
  type LimitSample,
} from '../../src/limiter/adaptive-limit.js';
import { ConcurrencyLimiter } from '../../src/limiter/concurrency-limiter.js';
import { onFakeTimers, useFakeTimers } from '../support/fake-timers.js';
import { seeded } from '../support/random-numbers.js';
import { VirtualTime } from '../support/virtual-time.js';

/** A limit on a clock that the test moves, with one sample at a time: each call starts just after the one before ended. */
function setUp(given: AdaptiveLimitOptions = {}) {
  const clock = { ms: 0 };
  const adaptive = new AdaptiveLimit({ now: () => clock.ms, random: () => 0, ...given });
  const call = (sample: Partial<LimitSample> = {}) => {
    const startedMs = clock.ms + 1;
    clock.ms += 1000;
    adaptive.onSample({ startedMs, outcome: 'ok', inFlight: adaptive.limit, ...sample });
  };
  const calls = (count: number, sample?: Partial<LimitSample>) => {
    for (let i = 0; i < count; i++) call(sample);
  };
  return { clock, adaptive, call, calls };
}

describe('AdaptiveLimit', () => {
  describe('its bounds', () => {
    it('starts at 8, or at the bound nearest to it', () => {
      expect(new AdaptiveLimit().limit).toBe(8);
      expect(new AdaptiveLimit({ max: 3 }).limit).toBe(3);
      expect(new AdaptiveLimit({ min: 20 }).limit).toBe(20);
      expect(new AdaptiveLimit({ initial: 5 }).limit).toBe(5);
    });

    it('never exceeds max: 200 by default', () => {
      const { adaptive, calls } = setUp();
      calls(1000);
      expect(adaptive.limit).toBe(200);
    });

    it('never goes below min: 1 by default', () => {
      const { adaptive, calls } = setUp();
      calls(100, { outcome: 'dropped' });
      expect(adaptive.limit).toBe(1);
      const four = setUp({ min: 4 });
      four.calls(100, { outcome: 'dropped' });
      expect(four.adaptive.limit).toBe(4);
    });

    it('is constant where min equals max', () => {
      const { adaptive, calls } = setUp({ min: 6, max: 6 });
      calls(10);
      calls(10, { outcome: 'dropped' });
      calls(10);
      expect(adaptive.limit).toBe(6);
    });

    it.each([
      [{ min: 0 }, RangeError, 'Expected `min` to be a whole number from 1, got 0 (number)'],
      [{ min: 9, max: 8 }, RangeError, 'Expected `max` to be a whole number from 9, got 8 (number)'],
      [
        { initial: 9, max: 8 },
        RangeError,
        'Expected `initial` to be a whole number from 1 to 8, got 9 (number)',
      ],
      [{ initial: 2.5 }, RangeError, 'Expected `initial`'],
      [{ max: Number.NaN }, RangeError, 'Expected `max`'],
      [{ max: '8' as never }, TypeError, 'Expected `max`'],
      [{ now: 0 as never }, TypeError, 'Expected `now`'],
      [{ random: 0 as never }, TypeError, 'Expected `random`'],
      [{ maximum: 8 } as never, TypeError, 'Unknown option `maximum`'],
    ])('rejects the options %o', (given, kind, message) => {
      expect(() => new AdaptiveLimit(given)).toThrow(kind);
      expect(() => new AdaptiveLimit(given)).toThrow(message);
    });
  });

  describe('growth', () => {
    it('adds one for each success until the first overload', () => {
      const { adaptive, calls } = setUp();
      calls(5);
      expect(adaptive.limit).toBe(13);
    });

    it('requires nine tenths of the limit in use', () => {
      const { adaptive, calls } = setUp({ initial: 20 });
      calls(10, { inFlight: 17 });
      expect(adaptive.limit).toBe(20);
      calls(1, { inFlight: 18 });
      expect(adaptive.limit).toBe(21);
    });

    it('slows down towards the last overload, to half a step per round trip', () => {
      const { adaptive, call, calls } = setUp({ initial: 100 });
      call({ outcome: 'dropped' });
      expect(adaptive.limit).toBe(85);
      // The way back to 100: in each round trip about half of what is left, and no less than half a step.
      const trips = Array.from({ length: 8 }, () => {
        calls(adaptive.limit);
        return adaptive.limit;
      });
      expect(trips).toEqual([90, 94, 96, 97, 98, 99, 99, 100]);
    });

    it('speeds up well beyond the last overload, up to a factor of 1.5 per round trip', () => {
      const { adaptive, call, calls } = setUp({ initial: 20, max: 1000 });
      call({ outcome: 'dropped' });
      const gains: number[] = [];
      for (let trip = 0; trip < 16; trip++) {
        const before = adaptive.limit;
        calls(before);
        gains.push(adaptive.limit / before);
      }
      expect(Math.max(...gains.slice(0, 6))).toBeLessThan(1.12);
      expect(Math.max(...gains)).toBeGreaterThan(1.35);
      expect(Math.max(...gains)).toBeLessThanOrEqual(1.65);
    });

    it('can leave a limit of 1 again', () => {
      const { adaptive, calls } = setUp();
      calls(50, { outcome: 'dropped' });
      expect(adaptive.limit).toBe(1);
      calls(30);
      expect(adaptive.limit).toBeGreaterThanOrEqual(6);
    });

    it('takes more than thirty calls to retry a limit of 2 that was too high', () => {
      const { adaptive, call, calls } = setUp({ initial: 2 });
      call({ outcome: 'dropped' });
      calls(30);
      expect(adaptive.limit).toBe(1);
      calls(20);
      expect(adaptive.limit).toBe(2);
    });

    it('recovers towards the limit before an outage, not towards those during it', () => {
      const { adaptive, call, calls } = setUp({ initial: 64 });
      call();
      calls(30, { outcome: 'dropped' });
      expect(adaptive.limit).toBe(1);
      calls(120);
      expect(adaptive.limit).toBeGreaterThan(30);
    });

    it('recovers from an outage by a factor of 1.5 per round trip, not at once', () => {
      const { adaptive, call, calls } = setUp({ initial: 64 });
      call();
      calls(30, { outcome: 'dropped' });
      calls(3);
      expect(adaptive.limit).toBeLessThanOrEqual(3);
    });
  });

  describe('cuts', () => {
    it('decreases by 15 % when a call is dropped', () => {
      const { adaptive, call } = setUp({ initial: 100 });
      call({ outcome: 'dropped' });
      expect(adaptive.limit).toBe(85);
    });

    it('cuts once for all the calls of one burst', () => {
      const { adaptive, clock } = setUp({ initial: 100 });
      clock.ms = 1000;
      for (let i = 0; i < 50; i++) {
        clock.ms += 10;
        adaptive.onSample({ startedMs: 500, outcome: 'dropped', inFlight: 50 - i });
      }
      expect(adaptive.limit).toBe(85);
    });

    it('cuts again for a call that started after the cut', () => {
      const { adaptive, call } = setUp({ initial: 100 });
      call({ outcome: 'dropped' });
      call();
      call({ outcome: 'dropped' });
      expect(adaptive.limit).toBe(72);
    });

    it('counts a call that started at the moment of the cut as sent before it', () => {
      const { adaptive, clock } = setUp({ initial: 100 });
      adaptive.onSample({ startedMs: clock.ms - 1, outcome: 'dropped', inFlight: 100 });
      adaptive.onSample({ startedMs: clock.ms, outcome: 'dropped', inFlight: 100 });
      expect(adaptive.limit).toBe(85);
    });

    it('ignores the success of a call that was sent before the cut', () => {
      const { adaptive, call } = setUp({ initial: 10 });
      call({ outcome: 'dropped' });
      for (let i = 0; i < 100; i++) adaptive.onSample({ startedMs: 0, outcome: 'ok', inFlight: 10 });
      expect(adaptive.limit).toBe(8);
    });

    it('ignores a call with the outcome ignored', () => {
      const { adaptive, calls } = setUp({ initial: 10 });
      calls(100, { outcome: 'ignored' });
      expect(adaptive.limit).toBe(10);
    });
  });

  describe('Retry-After', () => {
    it('blocks new calls for as long as the service says', () => {
      const { adaptive, clock, call } = setUp();
      expect(adaptive.blockedForMs).toBe(0);
      call({ outcome: 'dropped', retryAfterMs: 2000 });
      expect(adaptive.blockedForMs).toBe(2000);
      clock.ms += 1500;
      expect(adaptive.blockedForMs).toBe(500);
      clock.ms += 501;
      expect(adaptive.blockedForMs).toBe(0);
    });

    it('is never shortened', () => {
      const { adaptive } = setUp();
      adaptive.blockFor(5000);
      adaptive.blockFor(100);
      adaptive.blockFor(0);
      expect(adaptive.blockedForMs).toBe(5000);
    });

    it('honors the Retry-After of calls from before the cut, and of ignored ones', () => {
      const { adaptive, call, clock } = setUp();
      call({ outcome: 'dropped' });
      adaptive.onSample({ startedMs: 0, outcome: 'dropped', inFlight: 1, retryAfterMs: 3000 });
      expect(adaptive.blockedForMs).toBe(3000);
      adaptive.onSample({ startedMs: clock.ms, outcome: 'ignored', inFlight: 1, retryAfterMs: 4000 });
      expect(adaptive.blockedForMs).toBe(4000);
    });

    it('adds up to a tenth of jitter, and never subtracts', () => {
      const { adaptive } = setUp({ random: () => 0.999 });
      adaptive.blockFor(10_000);
      expect(adaptive.blockedForMs).toBeCloseTo(10_999);
    });
  });

  describe('the gauge of waiting requests', () => {
    it('cuts by as many as wait, when more wait than 7 % of the limit', () => {
      const { adaptive } = setUp({ initial: 100 });
      adaptive.onGauge(7);
      expect(adaptive.limit).toBe(100);
      adaptive.onGauge(8);
      expect(adaptive.limit).toBe(92);
    });

    it('cuts from the calls in flight, where these are fewer than the limit', () => {
      const { adaptive } = setUp({ initial: 100 });
      adaptive.onSample({ startedMs: 0, outcome: 'ignored', inFlight: 81 });
      adaptive.onGauge(20);
      expect(adaptive.limit).toBe(60);
    });

    it('cuts by half at most', () => {
      const { adaptive } = setUp({ initial: 100 });
      adaptive.onGauge(90);
      expect(adaptive.limit).toBe(50);
    });

    it('tolerates two waiting requests at any limit', () => {
      const { adaptive } = setUp({ initial: 10 });
      adaptive.onGauge(2);
      expect(adaptive.limit).toBe(10);
      adaptive.onGauge(3);
      expect(adaptive.limit).toBe(7);
    });

    it('cuts again only after no more calls are in flight than the last cut left, and one of them succeeded', () => {
      const { adaptive, call } = setUp({ initial: 100 });
      for (let i = 0; i < 50; i++) adaptive.onGauge(20);
      expect(adaptive.limit).toBe(80);
      adaptive.onSample({ startedMs: 0, outcome: 'ok', inFlight: 90 });
      adaptive.onGauge(20);
      adaptive.onSample({ startedMs: 0, outcome: 'ok', inFlight: 80 });
      adaptive.onGauge(20);
      expect(adaptive.limit).toBe(80);
      call({ inFlight: 60 });
      adaptive.onGauge(20);
      expect(adaptive.limit).toBe(40);
    });
  });

  describe('the times of the calls that `begin` follows', () => {
    /** A limit, and a service that has as many calls as it allows, each a second long after its first item. */
    const serving = (given: AdaptiveLimitOptions) => {
      const time = new VirtualTime();
      const adaptive = new AdaptiveLimit({ now: () => time.nowMs, random: () => 0, ...given });
      let inFlight = 0;
      let firstMs = 0;
      const fill = () => {
        if (inFlight >= adaptive.limit) return;
        inFlight++;
        const call = adaptive.begin({ streamed: true });
        time.after(firstMs, call.firstItem);
        time.after(firstMs + 1_000, () => {
          call.end({ outcome: 'ok', usage: 50 });
          inFlight--;
          fill();
          fill();
        });
      };
      for (let i = 0; i < adaptive.limit; i++) time.after((i * 1_000) / adaptive.limit, fill);
      /** For so many milliseconds, first items come after `ms`. */
      const serve = (forMs: number, ms: number) => {
        firstMs = ms;
        time.runUntil(time.nowMs + forMs);
      };
      return { adaptive, serve, time };
    };

    it('cut by the share of the calls that only wait', () => {
      const { adaptive, serve } = serving({ initial: 40, max: 40 });
      serve(4_000, 20);
      expect(adaptive.limit).toBe(40);
      serve(2_000, 1_020);
      // Half of the time is spent waiting: about half of the calls are too many.
      expect(adaptive.limit).toBeGreaterThanOrEqual(18);
      expect(adaptive.limit).toBeLessThanOrEqual(30);
    });

    it('stop the growth at a first alarm of few that wait, and cut if it repeats', () => {
      const { adaptive, serve } = serving({ initial: 40, max: 400 });
      serve(900, 20);
      const before = adaptive.limit;
      const limits = Array.from({ length: 20 }, () => {
        serve(100, 200);
        return adaptive.limit;
      });
      expect(Math.max(...limits)).toBeLessThan(before + 8);
      expect(adaptive.limit).toBeLessThan(before);
    });

    it('keep growing where the first item comes as fast as ever', () => {
      const { adaptive, serve } = serving({ initial: 10, max: 400 });
      serve(8_000, 20);
      expect(adaptive.limit).toBe(400);
    });

    it('count a call that waits for longer than the others with its age', () => {
      const { adaptive, serve, time } = serving({ initial: 40, max: 40 });
      serve(3_000, 20);
      serve(500, 1e6);
      expect(adaptive.limit).toBe(40);
      // Nothing has come for three seconds but one first item.
      const one = adaptive.begin({ streamed: true });
      time.runUntil(time.nowMs + 3_000);
      one.firstItem();
      const two = adaptive.begin({ streamed: true });
      two.firstItem();
      const three = adaptive.begin({ streamed: true });
      three.firstItem();
      expect(adaptive.limit).toBeLessThan(40);
    });

    it('say nothing about calls that began before a cut took effect', () => {
      const { adaptive, serve, time } = serving({ initial: 40, max: 40 });
      serve(3_000, 20);
      const before = Array.from({ length: 20 }, () => adaptive.begin({ streamed: true }));
      adaptive.onGauge(15);
      const { limit } = adaptive;
      expect(limit).toBeLessThan(40);
      time.runUntil(time.nowMs + 500);
      for (const call of before) call.firstItem();
      for (const call of before) call.end({ outcome: 'ok' });
      expect(adaptive.limit).toBe(limit);
    });

    it('show the wait of plain calls by what a call takes that uses nothing', () => {
      const { adaptive, clock } = setUp({ initial: 40, max: 40 });
      const random = seeded(1);
      const plain = (waitMs: number) => {
        for (let round = 0; round < 3; round++) {
          const startedMs = clock.ms;
          const calls = Array.from({ length: adaptive.limit }, () => ({
            call: adaptive.begin(),
            usage: Math.ceil(100 * random()),
          })).sort((a, b) => a.usage - b.usage);
          for (const { call, usage } of calls) {
            clock.ms = startedMs + waitMs + 10 * usage;
            call.end({ outcome: 'ok', usage });
          }
          clock.ms++;
        }
      };
      plain(20);
      expect(adaptive.limit).toBe(40);
      plain(500);
      expect(adaptive.limit).toBeLessThanOrEqual(30);
    });

    it('stop the growth of a service that only becomes slower', () => {
      const { adaptive, clock } = setUp({ initial: 4, max: 400 });
      const slowing = (perItemMs: number) => {
        for (let i = 0; i < 200; i++) {
          const calls = Array.from({ length: adaptive.limit }, () => adaptive.begin());
          clock.ms += 50 * perItemMs;
          for (const call of calls.slice(1)) call.end({ outcome: 'ignored' });
          calls[0]!.end({ outcome: 'ok', usage: 50 });
          if (adaptive.limit === 400) return;
        }
      };
      for (let i = 0; i < 20; i++) adaptive.begin().end({ outcome: 'ok', usage: 50 });
      clock.ms += 1;
      for (let i = 0; i < 30; i++) {
        const call = adaptive.begin();
        clock.ms += 500;
        call.end({ outcome: 'ok', usage: 50 });
      }
      slowing(100);
      expect(adaptive.limit).toBeLessThan(60);
    });

    it('are read once for each call', () => {
      const { adaptive } = setUp({ initial: 4 });
      const calls = Array.from({ length: 4 }, () => adaptive.begin());
      calls[0]!.end({ outcome: 'ok' });
      expect(() => calls[1]!.end({ outcome: 'ok', retryAfterMs: -1 })).toThrow('`retryAfterMs`');
      expect(() => calls[1]!.end({ outcome: 'ok', usage: Number.NaN })).toThrow('`usage`');
      calls[0]!.end({ outcome: 'dropped' });
      calls[0]!.firstItem();
      expect(adaptive.limit).toBe(5);
      calls[1]!.end({ outcome: 'ok', retryAfterMs: 500 });
      expect(adaptive.blockedForMs).toBe(500);
    });
  });

  it.each([
    [{ startedMs: Number.NaN }, '`startedMs`'],
    [{ outcome: 'failed' as never }, '`outcome`'],
    [{ inFlight: -1 }, '`inFlight`'],
    [{ retryAfterMs: Number.NaN }, '`retryAfterMs`'],
  ])('rejects the sample %o and learns nothing from it', (wrong, field) => {
    const { adaptive, clock } = setUp();
    const sample = { startedMs: clock.ms, outcome: 'dropped', inFlight: 8, ...wrong } as const;
    expect(() => adaptive.onSample(sample)).toThrow(field);
    expect(adaptive.limit).toBe(8);
    expect(adaptive.blockedForMs).toBe(0);
  });

  it('rejects a gauge or a block that is not a number', () => {
    const { adaptive } = setUp();
    expect(() => adaptive.onGauge(Number.NaN)).toThrow('`waiting`');
    expect(() => adaptive.onGauge(-1)).toThrow('`waiting`');
    expect(() => adaptive.blockFor(Number.NaN)).toThrow('`retryAfterMs`');
  });
});

describe('AdaptiveLimit attached to a ConcurrencyLimiter', () => {
  onFakeTimers();

  const held = () => {
    const adaptive = new AdaptiveLimit({ initial: 4, random: () => 0 });
    const limiter = new ConcurrencyLimiter({ adaptive });
    const order: number[] = [];
    const permits = Array.from({ length: 4 }, () => limiter.tryAcquire()!);
    const waiters = Array.from({ length: 8 }, (_, i) => limiter.acquire().then(() => order.push(i)));
    return { adaptive, limiter, permits, waiters, order };
  };

  it('sets maxConcurrent to its limit', () => {
    expect(held().limiter.maxConcurrent).toBe(4);
  });

  it('grows with the release of a success, and admits one more', async () => {
    const { limiter, permits, order } = held();
    await vi.advanceTimersByTimeAsync(1000);
    permits[0]!.release();
    await vi.advanceTimersByTimeAsync(0);
    expect(limiter.maxConcurrent).toBe(5);
    expect(order).toEqual([0, 1]);
  });

  it('shrinks with a dropped release, before that release admits a waiter', async () => {
    const { limiter, permits, order } = held();
    await vi.advanceTimersByTimeAsync(1000);
    permits[0]!.release('dropped');
    await vi.advanceTimersByTimeAsync(0);
    expect(limiter.maxConcurrent).toBe(3);
    expect(order).toEqual([]);
    permits[1]!.release('ignored');
    await vi.advanceTimersByTimeAsync(0);
    expect(order).toEqual([0]);
  });

  it('changes the limit on the gauge, without waiting for a release', () => {
    const { adaptive, limiter } = held();
    adaptive.onGauge(50);
    expect(limiter.maxConcurrent).toBe(2);
  });

  it('admits no one until a Retry-After has passed, and then in the old order', async () => {
    const { adaptive, limiter, permits, order } = held();
    await vi.advanceTimersByTimeAsync(1000);
    adaptive.blockFor(5000);
    for (const permit of permits) permit.release('ignored');
    await vi.advanceTimersByTimeAsync(4999);
    expect(order).toEqual([]);
    expect(limiter.tryAcquire()).toBeUndefined();
    await vi.advanceTimersByTimeAsync(2);
    expect(order).toEqual([0, 1, 2, 3]);
    expect(limiter.activeCount).toBe(4);
    expect(vi.getTimerCount()).toBe(0);
  });

  it('waits longer when a longer Retry-After comes meanwhile', async () => {
    const { adaptive, permits, order } = held();
    adaptive.blockFor(1000);
    for (const permit of permits) permit.release('ignored');
    await vi.advanceTimersByTimeAsync(900);
    adaptive.blockFor(1000);
    expect(vi.getTimerCount()).toBe(1);
    await vi.advanceTimersByTimeAsync(999);
    expect(order).toEqual([]);
    await vi.advanceTimersByTimeAsync(2);
    expect(order).toEqual([0, 1, 2, 3]);
  });

  it('keeps a Retry-After that, with its jitter, is longer than a timer can be', () => {
    const adaptive = new AdaptiveLimit({ random: () => 0.5 });
    adaptive.attach(new ConcurrencyLimiter({ maxConcurrent: 1 }));
    const timers = vi.spyOn(globalThis, 'setTimeout');
    const longest = 2 ** 31 - 1;
    adaptive.blockFor(longest);
    expect(timers.mock.calls.map(([, ms]) => ms)).toEqual([longest]);
  });

  it('pauses before it grows, so that no waiter is admitted in between', async () => {
    const adaptive = new AdaptiveLimit({ initial: 4 });
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 4 });
    const stop = adaptive.attach(limiter);
    for (let i = 0; i < 4; i++) limiter.tryAcquire();
    const waiting = limiter.acquire();
    const startedMs = adaptive.clockMs();
    await vi.advanceTimersByTimeAsync(10);
    adaptive.onSample({ startedMs, outcome: 'ok', inFlight: 4, retryAfterMs: 1000 });
    expect(limiter.maxConcurrent).toBe(5);
    expect(limiter.activeCount).toBe(4);
    stop();
    await waiting;
  });

  it('attaches to one limiter at a time, until it is detached', () => {
    const adaptive = new AdaptiveLimit();
    const first = new ConcurrencyLimiter({ maxConcurrent: 100 });
    const second = new ConcurrencyLimiter({ maxConcurrent: 100 });
    const stop = adaptive.attach(first);
    expect(first.maxConcurrent).toBe(8);
    expect(() => adaptive.attach(second)).toThrow('attaches to one limiter at a time');
    stop();
    const stopSecond = adaptive.attach(second);
    stop();
    adaptive.onGauge(50);
    expect([first.maxConcurrent, second.maxConcurrent]).toEqual([8, 4]);
    stopSecond();
  });

  it('ends its pause and its timer when it is detached, and leaves the limit as it is', () => {
    const adaptive = new AdaptiveLimit();
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 3 });
    const stop = adaptive.attach(limiter);
    adaptive.blockFor(60_000);
    expect(limiter.stats().paused).toBe(true);
    stop();
    expect(limiter.stats()).toMatchObject({ paused: false, maxConcurrent: 8 });
    expect(vi.getTimerCount()).toBe(0);
  });

  it('does not end a pause of the host', () => {
    const adaptive = new AdaptiveLimit();
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 3 });
    limiter.pause();
    adaptive.attach(limiter)();
    expect(limiter.stats().paused).toBe(true);
  });
});

describe('AdaptiveLimit with a broken random source', () => {
  it.each([Number.NaN, 2, -0.1, Number.POSITIVE_INFINITY])(
    'refuses %d from it, and keeps the gate as it was',
    (broken) => {
      let chance = 0;
      const { adaptive, clock } = setUp({ random: () => chance });
      const limiter = new ConcurrencyLimiter({ adaptive });
      useFakeTimers();
      try {
        adaptive.blockFor(5000);
        chance = broken;
        const message = `Expected \`random()\` to be a number from 0 to 1, got ${broken} (number)`;
        expect(() => adaptive.blockFor(60_000)).toThrow(RangeError);
        expect(() => adaptive.blockFor(60_000)).toThrow(message);
        const sample = {
          startedMs: clock.ms,
          outcome: 'ignored',
          inFlight: 1,
          retryAfterMs: 60_000,
        } as const;
        expect(() => adaptive.onSample(sample)).toThrow(message);
        expect(adaptive.blockedForMs).toBe(5000);
        expect(limiter.tryAcquire()).toBeUndefined();
        chance = 1;
        adaptive.blockFor(5000);
        expect(adaptive.blockedForMs).toBe(5500);
      } finally {
        vi.clearAllTimers();
        vi.useRealTimers();
      }
    },
  );

  it('rejects what is not a number', () => {
    const { adaptive } = setUp({ random: () => '0.5' as never });
    expect(() => adaptive.blockFor(1000)).toThrow(TypeError);
    expect(adaptive.blockedForMs).toBe(0);
  });
});

describe('AdaptiveLimit with a broken clock', () => {
  it('rejects a clock that returns no number, or throws', () => {
    expect(() => new AdaptiveLimit({ now: () => Number.NaN })).toThrow(/`now\(\)`/);
    expect(() => new AdaptiveLimit({ now: () => 'soon' as never })).toThrow(/`now\(\)`/);
    const broken = () => {
      throw new Error('no clock');
    };
    expect(() => new AdaptiveLimit({ now: broken })).toThrow('no clock');
  });

  it('does not extend a block when it is set back', () => {
    let ms = 10_000;
    const adaptive = new AdaptiveLimit({ now: () => ms, random: () => 0 });
    adaptive.blockFor(1_000);
    ms = 100;
    expect(adaptive.blockedForMs).toBe(1_000);
    ms = 1_100;
    expect(adaptive.blockedForMs).toBe(0);
  });

  it('loses no permit when it breaks while one is held', async () => {
    let isBroken = false;
    let ms = 0;
    const now = () => {
      if (isBroken) throw new Error('no clock');
      return ++ms;
    };
    const limiter = new ConcurrencyLimiter({ adaptive: new AdaptiveLimit({ max: 1, now }) });
    const permit = await limiter.acquire();
    isBroken = true;
    permit.release('dropped');
    expect(limiter.activeCount).toBe(0);
    isBroken = false;
    expect(limiter.tryAcquire()).toBeDefined();
  });
});
