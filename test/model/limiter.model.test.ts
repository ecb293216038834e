import fc from 'fast-check';
import { afterAll, beforeAll, describe, it, vi } from 'vitest';
import { Pair, type Setting, SIGNALS, type Step } from '../support/limiter-models.js';
import { endOfTurn } from '../support/promises.js';
import { sizeOf } from '../support/soak.js';

const RUNS = sizeOf('schedules of a limiter against its model', 500, 10_000);

const askedWith = fc.record(
  {
    weight: fc.constantFrom(1, 1, 2, 2, 3, 5),
    priority: fc.integer({ min: -1, max: 1 }),
    tenant: fc.constantFrom('a', 'b', 'c'),
    signal: fc.nat({ max: SIGNALS - 1 }),
    timeoutMs: fc.integer({ min: 0, max: 20 }),
  },
  { requiredKeys: [] },
);

// Who asks for nothing takes ways of its own through the limiter.
const asked = fc.oneof({ weight: 2, arbitrary: askedWith }, { weight: 1, arbitrary: fc.constant({}) });

const going = fc.record({
  ends: fc.constantFrom('answered' as const, 'answered' as const, 'failed' as const, 'thrown' as const),
  honorsSignal: fc.boolean(),
  early: fc.integer({ min: 0, max: 4 }).map((one) => one === 4),
});

const index = fc.nat({ max: 20 });
const signal = fc.nat({ max: SIGNALS - 1 });

const just = <D extends Step['do']>(name: D) => fc.constant(name);

const step: fc.Arbitrary<Step> = fc.oneof(
  { weight: 50, arbitrary: fc.record({ do: just('acquire'), asked }) },
  { weight: 50, arbitrary: fc.record({ do: just('run'), asked, going }) },
  { weight: 15, arbitrary: fc.record({ do: just('tryAcquire'), weight: fc.integer({ min: 1, max: 5 }) }) },
  { weight: 40, arbitrary: fc.record({ do: just('release'), index }) },
  { weight: 10, arbitrary: fc.record({ do: just('releaseAgain'), index }) },
  { weight: 40, arbitrary: fc.record({ do: just('waitOne') }) },
  { weight: 20, arbitrary: fc.record({ do: just('abort'), signal }) },
  { weight: 10, arbitrary: fc.record({ do: just('scheduleAbort'), signal }) },
  { weight: 25, arbitrary: fc.record({ do: just('renew'), signal }) },
  { weight: 15, arbitrary: fc.record({ do: just('advance'), ms: fc.integer({ min: 1, max: 15 }) }) },
  { weight: 10, arbitrary: fc.record({ do: just('resize'), to: fc.integer({ min: 1, max: 6 }) }) },
  { weight: 5, arbitrary: fc.record({ do: just('pause') }) },
  { weight: 10, arbitrary: fc.record({ do: just('resume') }) },
  { weight: 25, arbitrary: fc.record({ do: just('settle'), microtasks: fc.integer({ min: 0, max: 6 }) }) },
  { weight: 1, arbitrary: fc.record({ do: just('close'), drain: fc.boolean() }) },
);

const setting: fc.Arbitrary<Setting> = fc.record({
  maxConcurrent: fc.integer({ min: 1, max: 6 }),
  maxQueue: fc.constantFrom(Number.POSITIVE_INFINITY, Number.POSITIVE_INFINITY, 0, 1, 3),
  acquireTimeoutMs: fc.constantFrom(undefined, undefined, undefined, 0, 4, 15),
  heard: fc.boolean(),
});

describe('ConcurrencyLimiter against its model', () => {
  beforeAll(async () => {
    vi.useFakeTimers();
    await endOfTurn();
  });
  afterAll(async () => {
    vi.useRealTimers();
    await endOfTurn();
  });

  it('counts and grants as the model does after every step, in any order of ends and aborts, and holds nothing in the end', async () => {
    const property = fc.asyncProperty(
      fc.scheduler(),
      setting,
      fc.array(step, { maxLength: 60, size: 'max' }),
      async (scheduler, given, steps) => {
        const pair = new Pair(given, scheduler);
        for (const one of steps) {
          const passing = pair.take(one);
          // Without this no microtask passes between two steps that need none.
          if (passing !== undefined) await passing;
        }
        await pair.checkOutcomes();
        await pair.releaseAll();
      },
    );
    // What a failed run leaves behind must not fail those that look for a smaller one.
    property.beforeEach(() => void vi.clearAllTimers());
    await fc.assert(property, { numRuns: RUNS });
  });
});
