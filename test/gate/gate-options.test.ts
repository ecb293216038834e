import { describe, expect, it } from 'vitest';
import { ServiceGate } from '../../src/gate/service-gate.js';
import { AdaptiveLimit } from '../../src/limiter/adaptive-limit.js';
import { ConcurrencyLimiter } from '../../src/limiter/concurrency-limiter.js';

const make = (options: object) => () => new ServiceGate({ name: 'llm', ...options });

describe('the options of a ServiceGate', () => {
  it.each([
    [{ name: '' }, TypeError, '`name`'],
    [{ maxConcurent: 1 }, TypeError, 'Unknown option `maxConcurent` in ServiceGate'],
    [{ maxConcurrent: 0 }, RangeError, '`maxConcurrent`'],
    [{ limiter: {} }, TypeError, '`limiter`'],
    [{ hooks: {} }, TypeError, '`hooks`'],
    [{ adaptive: { maximum: 3 } }, TypeError, 'Unknown option `maximum`'],
    [{ rate: { limit: 1, perMs: 1 } }, TypeError, '`rate` to be an array'],
    [{ sharedRate: [{ limit: 1.5, perMs: 1 }] }, RangeError, '`sharedRate[0].limit`'],
    [{ keys: [] }, TypeError, 'at least one key'],
    [{ keys: [{ key: 'k', rate: [{}] }] }, TypeError, '`keys[0].rate[0].limit`'],
    [{ keys: [{ key: 'k', name: 'n' }] }, TypeError, 'Unknown option `name` in keys[0]'],
    [{ keys: ['a', 'b', 'a'] }, RangeError, '`keys[2]` is there twice'],
    [{ retry: { attempts: 0 } }, RangeError, '`retry.attempts`'],
    [{ retry: { baseMs: 10, maxMs: 5 } }, RangeError, '`retry.maxMs` to be at least `baseMs` (10), got 5'],
    [{ retry: { budget: { ratio: -1 } } }, RangeError, '`retry.budget.ratio`'],
    [{ retry: { budget: { perMinute: 1.5 } } }, RangeError, '`retry.budget.perMinute`'],
    [{ retry: { budget: true } }, TypeError, 'retry.budget'],
    [{ retry: { tries: 3 } }, TypeError, 'Unknown option `tries` in retry'],
    [{ rest: { throttledMs: 0 } }, RangeError, '`rest.throttledMs`'],
    [{ rest: { maxMs: 500 } }, RangeError, '`rest.maxMs`'],
    [{ rest: { spentMs: -1 } }, RangeError, '`rest.spentMs`'],
    [{ rest: { deadMs: 'never' } }, TypeError, '`rest.deadMs`'],
    [{ attemptTimeoutMs: 0 }, RangeError, '`attemptTimeoutMs`'],
    [{ timeoutMs: 2 ** 31 }, RangeError, '`timeoutMs`'],
    [{ classify: 'status' }, TypeError, '`classify`'],
  ])('refuse %j', (options, kind, message) => {
    expect(make(options)).toThrow(kind);
    expect(make(options)).toThrow(message);
  });

  it('refuse more than one bound on attempts', () => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 1 });
    const several = 'takes one of `maxConcurrent`, `adaptive` and `limiter`';
    expect(make({ maxConcurrent: 1, limiter })).toThrow(several);
    expect(make({ maxConcurrent: 1, adaptive: {} })).toThrow(several);
    expect(make({ limiter, adaptive: {} })).toThrow(several);
  });

  it.each([
    [{ keys: 'secret-key' }],
    [{ keys: [7_777_777] }],
    [{ keys: [{ key: 7_777_777 }] }],
    [{ keys: [''] }],
    [{ keys: [undefined] }],
  ])('never show a key that they refuse: %j', (options) => {
    expect(make(options)).toThrow(TypeError);
    expect(make(options)).toThrow(/^(?!.*(secret-key|7777777)).*keys/);
  });

  it('take an adaptive limit as options, or as one that the host feeds itself', () => {
    const own = new AdaptiveLimit({ initial: 4 });
    const gate = new ServiceGate({ name: 'llm', adaptive: own });
    expect(gate.adaptive).toBe(own);
    expect(gate.stats().limiter!.maxConcurrent).toBe(4);
    own.onGauge(100);
    expect(gate.stats().limiter!.maxConcurrent).toBe(3);
    expect(new ServiceGate({ name: 'llm', adaptive: { initial: 5 } }).stats().limiter!.maxConcurrent).toBe(5);
    expect(new ServiceGate({ name: 'llm' }).adaptive).toBeUndefined();
  });
});
