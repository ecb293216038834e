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
    [{ now: () => Number.NaN }, RangeError, '`now()`'],
    [{ adaptive: { maximum: 3 } }, TypeError, 'Unknown option `maximum`'],
    [{ rate: { limit: 1, perMs: 1 } }, TypeError, '`rate` to be an array'],
    [{ sharedRate: [{ limit: 1.5, perMs: 1 }] }, RangeError, '`sharedRate[0].limit`'],
    [{ keys: [] }, TypeError, 'at least one key'],
    [{ keys: [undefined] }, TypeError, '`keys[0]` to be a key or an object with one, got undefined'],
    [{ keys: [{ key: 'k', rate: [{}] }] }, TypeError, '`keys[0].rate[0].limit`'],
    [{ keys: [{ key: 'k', name: 'n' }] }, TypeError, 'Unknown option `name` in keys[0]'],
    [{ keys: ['a', 'b', 'a'] }, RangeError, '`keys[2]` is a duplicate'],
    [{ retry: { attempts: 0 } }, RangeError, '`retry.attempts`'],
    [{ retry: { baseMs: 10, maxMs: 5 } }, RangeError, '`retry.maxMs` to be at least `baseMs` (10), got 5'],
    [{ retry: { budget: { ratio: -1 } } }, RangeError, '`retry.budget.ratio`'],
    [{ retry: { budget: { perMinute: 1.5 } } }, RangeError, '`retry.budget.perMinute`'],
    [{ retry: { budget: true } }, TypeError, 'retry.budget'],
    [{ retry: { tries: 3 } }, TypeError, 'Unknown option `tries` in retry'],
    [{ cooldown: { baseMs: 0 } }, RangeError, '`cooldown.baseMs`'],
    [{ cooldown: { maxMs: 500 } }, RangeError, '`cooldown.maxMs`'],
    [{ cooldown: { exhaustedMs: -1 } }, RangeError, '`cooldown.exhaustedMs`'],
    [{ cooldown: { quarantinedMs: 'never' } }, TypeError, '`cooldown.quarantinedMs`'],
    [{ attemptTimeoutMs: 0 }, RangeError, '`attemptTimeoutMs`'],
    [{ timeoutMs: 2 ** 31 }, RangeError, '`timeoutMs`'],
    [{ classify: 'status' }, TypeError, '`classify`'],
    [{ usage: 'total_tokens' }, TypeError, '`usage`'],
    [{ estimate: 500 }, TypeError, '`estimate`'],
    [{ pace: 'fast' }, TypeError, '`pace`'],
  ])('reject %j', (options, kind, message) => {
    expect(make(options)).toThrow(kind);
    expect(make(options)).toThrow(message);
  });

  it('raise the longest backoff to the first', () => {
    expect(make({ retry: { baseMs: 60_000 } })).not.toThrow();
    expect(make({ retry: { baseMs: 'soon' } })).toThrow('`retry.baseMs`');
  });

  it('allow only one of maxConcurrent, adaptive and limiter', () => {
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
  ])('never show a rejected key: %j', (options) => {
    expect(make(options)).toThrow(TypeError);
    expect(make(options)).toThrow(/^(?!.*(secret-key|7777777)).*keys/);
  });

  it('accept an adaptive limit as options, or as an instance of the host', () => {
    const own = new AdaptiveLimit({ initial: 4 });
    const gate = new ServiceGate({ name: 'llm', adaptive: own });
    expect(gate.adaptive).toBe(own);
    expect(gate.stats().limiter!.maxConcurrent).toBe(4);
    own.onGauge(100);
    expect(gate.stats().limiter!.maxConcurrent).toBe(2);
    expect(new ServiceGate({ name: 'llm', adaptive: { initial: 5 } }).stats().limiter!.maxConcurrent).toBe(5);
    expect(new ServiceGate({ name: 'llm' }).adaptive).toBeUndefined();
  });
});
