import { describe, expect, it } from 'vitest';
import { nowMs, turnMs } from '../../src/internal/clock.js';
import { poolSettings } from '../../src/pool/options.js';
import { PipelinePool } from '../../src/pool/pipeline-pool.js';

const create = (): object => ({});

describe('the options of a pool', () => {
  it.each([
    [{}, TypeError, 'Expected `size` to be a whole number from 1, got undefined (undefined)'],
    [{ size: 0 }, RangeError, 'Expected `size` to be a whole number from 1, got 0 (number)'],
    [{ size: '5' }, TypeError, '`size`'],
    [{ size: 2.5 }, RangeError, '`size`'],
    [{ size: 2 }, TypeError, 'Expected `create` to be a function, got undefined (undefined)'],
    [
      { size: 2, create, min: 3 },
      RangeError,
      'Expected `min` to be a whole number from 0 to 2, got 3 (number)',
    ],
    [{ size: 2, create, min: -1 }, RangeError, '`min`'],
    [
      { size: 2, create, minIdle: 3 },
      RangeError,
      'Expected `minIdle` to be a whole number from 0 to 2, got 3 (number)',
    ],
    [{ size: 2, create, minIdle: 0.5 }, RangeError, '`minIdle`'],
    [
      { size: 2, create, onCreateFailure: 'ignore' },
      TypeError,
      'Expected `onCreateFailure` to be one of "reject", "retry", got "ignore" (string)',
    ],
    [{ size: 2, create, now: 5 }, TypeError, '`now`'],
    [{ size: 2, create, now: (): number => Number.NaN }, RangeError, '`now()`'],
    [{ size: 2, create, now: (): string => 'noon' }, TypeError, '`now()`'],
    [{ size: 2, create, destroy: 'x' }, TypeError, '`destroy`'],
    [{ size: 2, create, validate: null }, TypeError, '`validate`'],
    [{ size: 2, create, prepare: 1 }, TypeError, '`prepare`'],
    [{ size: 2, create, reset: {} }, TypeError, '`reset`'],
    [{ size: 2, create, acquireTimeoutMs: -1 }, RangeError, '`acquireTimeoutMs`'],
    [{ size: 2, create, createTimeoutMs: 0 }, RangeError, '`createTimeoutMs`'],
    [{ size: 2, create, createTimeoutMs: 2 ** 31 }, RangeError, '`createTimeoutMs`'],
    [{ size: 2, create, validateTimeoutMs: '1s' }, TypeError, '`validateTimeoutMs`'],
    [{ size: 2, create, prepareTimeoutMs: Number.NaN }, RangeError, '`prepareTimeoutMs`'],
    [{ size: 2, create, resetTimeoutMs: 0 }, RangeError, '`resetTimeoutMs`'],
    [{ size: 2, create, destroyTimeoutMs: 0 }, RangeError, '`destroyTimeoutMs`'],
    [{ size: 2, create, idleTimeoutMs: 0 }, RangeError, '`idleTimeoutMs`'],
    [{ size: 2, create, validate: create, validateAfterIdleMs: -5 }, RangeError, '`validateAfterIdleMs`'],
    [{ size: 2, create, validate: create, validateIdleEveryMs: 0 }, RangeError, '`validateIdleEveryMs`'],
    [
      { size: 2, create, validateAfterIdleMs: 5 },
      TypeError,
      'Expected `validateAfterIdleMs` to be left out where there is no `validate`, got 5 (number)',
    ],
    [{ size: 2, create, validateIdleEveryMs: 5 }, TypeError, '`validateIdleEveryMs`'],
    [{ size: 2, create, maxLifetimeMs: 0 }, RangeError, '`maxLifetimeMs`'],
    [{ size: 2, create, maxUses: 0 }, RangeError, '`maxUses`'],
    [{ size: 2, create, maxLeaseMs: 0 }, RangeError, '`maxLeaseMs`'],
    [{ size: 2, create, leakWarningMs: 0 }, RangeError, '`leakWarningMs`'],
    [{ size: 2, create, maxQueue: -1 }, RangeError, '`maxQueue`'],
    [{ size: 2, create, createConcurrency: 0 }, RangeError, '`createConcurrency`'],
    [{ size: 2, create, createRetry: { baseMs: 0 } }, RangeError, '`createRetry.baseMs`'],
    [{ size: 2, create, createRetry: { baseMs: 100, maxMs: 50 } }, RangeError, '`createRetry.maxMs`'],
    [{ size: 2, create, createRetry: { base: 1 } }, TypeError, 'Unknown option `base` in createRetry'],
    [{ size: 2, create, name: '' }, TypeError, '`name`'],
    [{ size: 2, create, hooks: 'x' }, TypeError, '`hooks`'],
    [{ size: 2, create, max: 5 }, TypeError, 'Unknown option `max` in PipelinePool'],
    [undefined, TypeError, '`PipelinePool`'],
  ] as const)('refuse %o', (options, kind, message) => {
    let error: unknown;
    try {
      new PipelinePool(options as never);
    } catch (thrown) {
      error = thrown;
    }
    expect(error).toBeInstanceOf(kind);
    expect((error as Error).message).toContain(message);
  });

  it('have the documented defaults', () => {
    expect(poolSettings({ size: 3, create })).toEqual({
      size: 3,
      create,
      min: 0,
      minIdle: 0,
      onCreateFailure: 'reject',
      name: 'pool',
      now: nowMs,
      turnNow: turnMs,
      createTimeoutMs: 60_000,
      validateTimeoutMs: 5_000,
      prepareTimeoutMs: 10_000,
      resetTimeoutMs: 10_000,
      destroyTimeoutMs: 10_000,
      idleTimeoutMs: 600_000,
      validateAfterIdleMs: 500,
      validateIdleEveryMs: 30_000,
      maxUses: Number.POSITIVE_INFINITY,
      maxQueue: Number.POSITIVE_INFINITY,
      createConcurrency: Number.POSITIVE_INFINITY,
      createRetry: { baseMs: 100, maxMs: 10_000 },
    });
  });

  it('may be undefined, and raise the ceiling of the backoff with its base', () => {
    const settings = poolSettings({
      size: 3,
      create,
      min: undefined,
      hooks: undefined,
      createRetry: { baseMs: 60_000 },
    });
    expect(settings.min).toBe(0);
    expect(settings.createRetry).toEqual({ baseMs: 60_000, maxMs: 60_000 });
  });

  it('are read once: changing the object afterwards has no effect', async () => {
    const options = { size: 1, create };
    const pool = new PipelinePool(options);
    options.size = 9;
    expect(pool.stats().size).toBe(1);
    const request = { taskId: 'a' };
    const given = pool.acquire(request);
    request.taskId = 'b';
    expect((await given).taskId).toBe('a');
  });
});

describe('the stats of a pool', () => {
  it('are a frozen, plain snapshot', async () => {
    const pool = new PipelinePool({ size: 2, create });
    const before = pool.stats();
    await pool.acquire();
    expect(Object.isFrozen(before)).toBe(true);
    expect(before).toEqual({
      size: 2,
      min: 0,
      minIdle: 0,
      live: 0,
      creating: 0,
      idle: 0,
      readying: 0,
      leased: 0,
      resetting: 0,
      destroying: 0,
      queued: 0,
      created: 0,
      createFailed: 0,
      destroyed: 0,
      acquired: 0,
      released: 0,
      revoked: 0,
      rejected: 0,
      state: 'open',
      paused: false,
    });
    expect(pool.stats()).toMatchObject({ live: 1, leased: 1, created: 1, acquired: 1 });
  });
});
