import fc from 'fast-check';
import { afterEach, describe, expect, vi } from 'vitest';
import type { AttemptContext } from '../../src/gate/attempt.js';
import type { RateWindow } from '../../src/gate/keys/sliding-window.js';
import { ServiceGate } from '../../src/gate/service-gate.js';
import { LifecycleHooks } from '../../src/hooks/lifecycle-hooks.js';
import { httpError } from '../support/gates.js';
import { prop } from '../support/property.js';
import { sizeOf } from '../support/soak.js';

/*
 * A gate under random load, on a clock that misbehaves as clocks do: the event loop stands still at any moment, also
 * between two microtasks; timers fire early and late; the wall clock steps. Whatever happens, an observer with the same
 * monotonic clock sees no window exceeded, no permit too many and no key used during its cooldown. At the end nothing
 * is left.
 */

/** Milliseconds that the monotonic clock is ahead of the timers, and how fast it runs next to them. */
let stalledMs = 0;
let pace = 1;
const stall = (ms: number) => {
  stalledMs += ms;
};

const stopClock = () => {
  vi.restoreAllMocks();
  vi.useRealTimers();
};
afterEach(stopClock);

/** Each run has a clock of its own: what a failed one leaves behind does not fail those that look for a smaller one. */
function startClock(runsAt: number): void {
  stopClock();
  vi.useFakeTimers();
  const timersNow = performance.now.bind(performance);
  stalledMs = 0;
  pace = runsAt;
  vi.spyOn(performance, 'now').mockImplementation(() => timersNow() * pace + stalledMs);
}

interface Start {
  readonly key: string;
  readonly atMs: number;
  weight: number;
}

const window: fc.Arbitrary<RateWindow> = fc.record({
  limit: fc.integer({ min: 4, max: 20 }),
  perMs: fc.constantFrom(1, 7, 50, 333, 1000),
  unit: fc.constantFrom('calls' as const, 'weight' as const),
});

const callPlan = fc.record({
  /** After the call before. */
  afterMs: fc.oneof({ weight: 3, arbitrary: fc.constant(0) }, fc.integer({ min: 0, max: 400 })),
  weight: fc.integer({ min: 0, max: 4 }),
  priority: fc.integer({ min: 0, max: 2 }),
  tenant: fc.constantFrom('a', 'b'),
  takesMs: fc.oneof(fc.constant(0), fc.integer({ min: 0, max: 300 })),
  /** What it weighed in the end, which may be more than was said, and more than a window holds. */
  actualWeight: fc.option(fc.integer({ min: 0, max: 30 }), { nil: undefined }),
  abortsAfterMs: fc.option(fc.integer({ min: 0, max: 1500 }), { nil: undefined, freq: 4 }),
  /** One for each attempt; more attempts go well. */
  fates: fc.array(
    fc.constantFrom('fine', 'fine', 'fine', 'bug', 'busy', 'down', 'cooldown', 'throttled for long'),
    { maxLength: 3 },
  ),
});

const hazard = fc.record({
  atMs: fc.integer({ min: 0, max: 3000 }),
  stallMs: fc.integer({ min: 0, max: 1200 }),
  wallStepMs: fc.integer({ min: -1e9, max: 1e9 }),
});

const plan = fc.record({
  rate: fc.array(window, { maxLength: 3 }),
  sharedRate: fc.array(window, { maxLength: 2 }),
  keys: fc.integer({ min: 0, max: 3 }),
  maxConcurrent: fc.option(fc.integer({ min: 1, max: 8 }), { nil: undefined }),
  calls: fc.array(callPlan, { minLength: 1, maxLength: 60 }),
  hazards: fc.array(hazard, { maxLength: 8 }),
  /** Stalls in the step before a start, in turn. */
  stallsAtStart: fc.array(fc.constantFrom(0, 0, 0, 1, 40, 900), { minLength: 1, maxLength: 5 }),
  pace: fc.constantFrom(1, 0.97, 1.03),
});

type CallPlan = typeof callPlan extends fc.Arbitrary<infer T> ? T : never;

function attempt(call: CallPlan, fate: string | undefined, context: AttemptContext): Promise<string> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => {
      if (call.actualWeight !== undefined) context.reportUsage(call.actualWeight);
      if (fate === undefined || fate === 'fine') resolve('fine');
      else if (fate === 'bug') reject(new TypeError('bug'));
      else if (fate === 'busy') reject(httpError(503));
      else if (fate === 'down') reject(httpError(500));
      else reject(httpError(429, fate === 'cooldown' ? {} : { 'retry-after-ms': '2500' }));
    }, call.takesMs);
    context.signal.addEventListener('abort', () => {
      clearTimeout(timer);
      reject(context.signal.reason);
    });
  });
}

describe('ServiceGate under any load, on any clock', () => {
  const numRuns = sizeOf('loads of a gate', 150, 2_000);
  prop([plan], { numRuns })('exceeds no limit and leaks nothing', async (given) => {
    startClock(given.pace);
    const { rate, sharedRate, maxConcurrent } = given;
    const keys = Array.from({ length: given.keys }, (_, i) => `key-${i}`);
    const hooks = new LifecycleHooks();
    const gate = new ServiceGate({
      name: 'service',
      hooks,
      rate,
      sharedRate,
      retry: { baseMs: 50, budget: false },
      ...(keys.length > 0 && { keys }),
      ...(maxConcurrent !== undefined && { maxConcurrent }),
    });

    let started = 0;
    const cooldownUntil = new Map<string, number>();
    hooks.on('call:started', () => {
      stall(given.stallsAtStart[started++ % given.stallsAtStart.length]!);
    });
    hooks.on('key:cooldown', ({ key, retryAfterMs }) => {
      cooldownUntil.set(key, performance.now() + retryAfterMs);
    });

    const starts: Start[] = [];
    const faults: string[] = [];
    let inFlight = 0;
    const observe = (key: string, weight: number): Start => {
      const start = { key, atMs: performance.now(), weight };
      starts.push(start);
      const label = keys.length === 0 ? 'service' : `#${keys.indexOf(key) + 1}`;
      if (start.atMs < (cooldownUntil.get(label) ?? 0)) faults.push(`${label} is used during its cooldown`);
      if (++inFlight > (maxConcurrent ?? Number.POSITIVE_INFINITY)) faults.push(`${inFlight} at once`);
      for (const [windows, mine] of [
        [rate, (other: Start) => other.key === key],
        [sharedRate, () => true],
      ] as const) {
        for (const { limit, perMs, unit } of windows) {
          const counted = starts
            .filter((other) => mine(other) && start.atMs - other.atMs < perMs)
            .reduce((sum, other) => sum + (unit === 'weight' ? other.weight : 1), 0);
          // What weighs nothing may begin in a window that reported usage has filled beyond its limit.
          const adds = unit === 'weight' ? weight : 1;
          if (counted > limit && adds > 0) faults.push(`${counted} of ${limit} ${unit} in ${perMs} ms`);
        }
      }
      return start;
    };

    for (const { atMs, stallMs, wallStepMs } of given.hazards) {
      setTimeout(() => {
        vi.setSystemTime(Date.now() + wallStepMs);
        // Once in this step, and once in the middle of whatever it sets off.
        stall(stallMs);
        queueMicrotask(() => queueMicrotask(() => stall(stallMs)));
      }, atMs);
    }

    let afterMs = 0;
    const outcomes = given.calls.map(
      (call) =>
        new Promise<string>((resolve) => {
          afterMs += call.afterMs;
          setTimeout(() => {
            const { weight, priority, tenant } = call;
            const control = new AbortController();
            const { abortsAfterMs } = call;
            if (abortsAfterMs !== undefined) setTimeout(() => control.abort(), abortsAfterMs);
            gate
              .run(
                async (context) => {
                  const start = observe(context.key, weight);
                  try {
                    return await attempt(call, call.fates[context.attempt - 1], {
                      ...context,
                      reportUsage: (actual) => {
                        context.reportUsage(actual);
                        start.weight = actual;
                      },
                    });
                  } finally {
                    inFlight--;
                  }
                },
                { weight, priority, tenant, signal: control.signal },
              )
              .then(
                () => resolve('fine'),
                (error: Error) => resolve(error.name),
              );
          }, afterMs);
        }),
    );

    await vi.runAllTimersAsync();
    const ends = await Promise.all(outcomes);
    expect(faults).toEqual([]);
    expect(ends.filter((end) => !['fine', 'AbortError', 'TypeError', 'Error'].includes(end))).toEqual([]);
    for (const [i, call] of given.calls.entries()) {
      if (call.abortsAfterMs === undefined && call.fates.every((fate) => fate === 'fine'))
        expect(ends[i]).toBe('fine');
    }
    expect(gate.stats()).toMatchObject({ running: 0, queuedForStart: 0, backingOff: 0 });
    expect(gate.stats().limiter ?? { active: 0, queued: 0 }).toMatchObject({ active: 0, queued: 0 });
    for (const { inUse } of gate.stats().keys) expect(inUse).toBe(0);
    expect(vi.getTimerCount()).toBe(0);
    // Once everything has left the windows, they are empty: nothing was counted twice or never released.
    await vi.advanceTimersByTimeAsync(60_000);
    for (const { free } of gate.stats().keys) expect(free).toBe(1);
  });
});
