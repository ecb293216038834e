import { describe, expect, it, vi } from 'vitest';
import * as errors from '../src/errors.js';
import { PipelinePoolError, type PipelinePoolErrorCode } from '../src/errors.js';

const figures = { source: 'admission', waitMs: 12.4, active: 3, queued: 2, size: 3 };
const poolFigures = { source: 'pool', waitMs: 5, live: 2, idle: 0, leased: 1, queued: 4, instanceId: 7 };
const cause = new Error('connect ECONNREFUSED');

/** One of each class that is exported, with its code and what its message must say. */
const EXAMPLES: Record<string, [error: PipelinePoolError, code: PipelinePoolErrorCode, says: string]> = {
  QueueFullError: [
    new errors.QueueFullError({ ...figures, retryAfterMs: 900 }),
    'ERR_QUEUE_FULL',
    'The queue of admission is full (3 of 3 in use, 2 queued)',
  ],
  AcquireTimeoutError: [
    new errors.AcquireTimeoutError(figures, cause),
    'ERR_ACQUIRE_TIMEOUT',
    'Gave up on admission after 12 ms (3 of 3 in use, 2 queued)',
  ],
  DeadlineUnmeetableError: [
    new errors.DeadlineUnmeetableError({ ...figures, retryAfterMs: 900.6, timeoutMs: 500 }),
    'ERR_DEADLINE_UNMEETABLE',
    'admission would take about 901 ms, longer than the 500 ms allowed (3 of 3 in use, 2 queued)',
  ],
  NestedAcquireError: [
    new errors.NestedAcquireError('admission'),
    'ERR_NESTED_ACQUIRE',
    'A run nested in one of admission may wait forever',
  ],
  LimiterClosedError: [
    new errors.LimiterClosedError('admission'),
    'ERR_LIMITER_CLOSED',
    'admission is closed',
  ],
  LimitLostError: [
    new errors.LimitLostError('admission', 'expired'),
    'ERR_LIMIT_LOST',
    'A permit of admission was lost: its lease was not confirmed in time',
  ],
  LimitsUnavailableError: [
    new errors.LimitsUnavailableError('admission', cause),
    'ERR_LIMITS_UNAVAILABLE',
    'The shared limit of admission is unavailable',
  ],
  PoolClosedError: [
    new errors.PoolClosedError('pool', 'draining'),
    'ERR_POOL_CLOSED',
    'pool is draining and gives no further leases',
  ],
  DrainTimeoutError: [
    new errors.DrainTimeoutError('admission', 100, 3),
    'ERR_DRAIN_TIMEOUT',
    'admission is not empty after 100 ms: 3 held',
  ],
  CreateError: [
    new errors.CreateError(poolFigures, cause),
    'ERR_CREATE_FAILED',
    'pool could not create an instance: connect ECONNREFUSED',
  ],
  PrepareError: [
    new errors.PrepareError(poolFigures, 'words'),
    'ERR_PREPARE_FAILED',
    'pool could not prepare an instance: words',
  ],
  CallbackTimeoutError: [
    new errors.CallbackTimeoutError('pool', 'create', 60_000),
    'ERR_CALLBACK_TIMEOUT',
    '`create` of pool took longer than 60000 ms',
  ],
  LeaseReleasedError: [
    new errors.LeaseReleasedError('pool', 7),
    'ERR_LEASE_RELEASED',
    'The lease on instance 7 of pool has ended',
  ],
  LeaseRevokedError: [
    new errors.LeaseRevokedError('pool', 7, 'max-lease'),
    'ERR_LEASE_REVOKED',
    'The lease on instance 7 of pool was revoked: max-lease',
  ],
  InstanceGoneError: [
    new errors.InstanceGoneError('pool', 7),
    'ERR_INSTANCE_GONE',
    'Instance 7 of pool is gone',
  ],
  ManagerClosedError: [
    new errors.ManagerClosedError('manager'),
    'ERR_MANAGER_CLOSED',
    'manager is shut down',
  ],
  RequestTimeoutError: [
    new errors.RequestTimeoutError('manager', 'report', 900),
    'ERR_REQUEST_TIMEOUT',
    'Task report took longer than the 900 ms that manager allows it',
  ],
  GateTimeoutError: [
    new errors.GateTimeoutError('serper', 'attempt', 500, cause),
    'ERR_GATE_TIMEOUT',
    'An attempt through serper took longer than 500 ms',
  ],
  GateClosedError: [new errors.GateClosedError('serper'), 'ERR_GATE_CLOSED', 'serper is closed'],
  KeysExhaustedError: [
    new errors.KeysExhaustedError('serper', 1500, cause),
    'ERR_KEYS_EXHAUSTED',
    'No key of serper can serve this call; the first comes back in 1500 ms',
  ],
  BudgetExceededError: [
    new errors.BudgetExceededError('serper', {
      meter: 'usd',
      limit: 2,
      spent: 1.5,
      reserved: 0.25,
      wanted: 0.5,
    }),
    'ERR_BUDGET_EXCEEDED',
    'The budget has no room for a call of serper that may cost 0.5 usd: 1.5 of 2 usd spent, 0.25 reserved',
  ],
  ToolUnknownError: [
    new errors.ToolUnknownError('mainAgent', 'serch', ['search', 'read']),
    'ERR_TOOL_UNKNOWN',
    'There is no tool "serch"; known are search, read',
  ],
  ToolTimeoutError: [
    new errors.ToolTimeoutError('mainAgent', 'search', 300),
    'ERR_TOOL_TIMEOUT',
    'Tool search took longer than 300 ms',
  ],
  ToolFailedError: [
    new errors.ToolFailedError('mainAgent', 'search', cause, 'connect'),
    'ERR_TOOL_FAILED',
    'Tool search could not connect: connect ECONNREFUSED',
  ],
};

const SOURCES = ['admission', 'pool', 'manager', 'serper'];

type ErrorClass = typeof PipelinePoolError;

const CLASSES: ReadonlyMap<string, unknown> = new Map(Object.entries(errors));
const classOf = (name: string) => CLASSES.get(name) as ErrorClass;

describe('Every error of the library', () => {
  it('has an example here', () => {
    const classes = [...CLASSES.keys()].filter(
      (name) => name.endsWith('Error') && name !== 'PipelinePoolError',
    );
    expect(Object.keys(EXAMPLES).sort()).toEqual(classes.sort());
  });

  it('has a code of its own', () => {
    const codes = Object.values(EXAMPLES).map(([{ code }]) => code);
    expect(new Set(codes).size).toBe(codes.length);
  });

  describe.each(Object.entries(EXAMPLES))('%s', (name, [error, code, says]) => {
    it('says what happened, to a reader and to a switch', () => {
      expect(error.code).toBe(code);
      expect(error.source).toBe(SOURCES.find((source) => says.includes(source)) ?? 'mainAgent');
      expect(error.message).toContain(says);
      expect(error.name).toBe(name);
      expect(String(error)).toBe(`${name}: ${error.message}`);
      expect(error.stack).toContain(says);
    });

    it('is an Error, a PipelinePoolError and one of its own class, and of no other', () => {
      expect(error).toBeInstanceOf(Error);
      expect(error).toBeInstanceOf(PipelinePoolError);
      for (const other of Object.keys(EXAMPLES)) {
        expect(error instanceof classOf(other)).toBe(other === name);
      }
    });

    it('can be written as JSON, code and numbers included', () => {
      const written = JSON.parse(JSON.stringify(error));
      expect(written.code).toBe(code);
      for (const [field, value] of Object.entries(written)) {
        if (typeof value === 'number') expect(error).toHaveProperty(field, value);
      }
    });
  });
});

describe('The figures of an error', () => {
  it('stand on the error itself', () => {
    const error = new errors.QueueFullError({ ...figures, retryAfterMs: 900 });
    expect({ ...error }).toEqual({ code: 'ERR_QUEUE_FULL', ...figures, retryAfterMs: 900 });
  });

  it('say which stage it was', () => {
    expect(new errors.AcquireTimeoutError(figures).stage).toBe('wait');
    expect(new errors.AcquireTimeoutError({ ...figures, stage: 'prepare' }).stage).toBe('prepare');
    expect(new errors.CreateError(poolFigures, cause).stage).toBe('create');
    expect(new errors.ToolFailedError('mainAgent', 'search', cause).stage).toBe('call');
  });

  it('count what is still held, named or not', () => {
    expect(new errors.DrainTimeoutError('admission', 100, 3)).toMatchObject({ held: 3, holders: [] });
    const holders = [{ instanceId: 1, heldMs: 5 }];
    expect(new errors.DrainTimeoutError('pool', 100, 1, holders, 'held is one')).toMatchObject({
      message: 'pool is not empty after 100 ms: held is one',
      held: 1,
      holders,
    });
  });
});

describe('The cause of an error', () => {
  it('is what failed, as it was thrown', () => {
    expect(new errors.CreateError(poolFigures, cause).cause).toBe(cause);
    expect(new errors.CreateError(poolFigures, 'words').cause).toBe('words');
    expect(new errors.AcquireTimeoutError(figures, cause).cause).toBe(cause);
  });

  it('is absent where nothing failed', () => {
    expect(Object.hasOwn(new errors.AcquireTimeoutError(figures), 'cause')).toBe(false);
    expect(Object.hasOwn(new errors.QueueFullError({ ...figures, retryAfterMs: 1 }), 'cause')).toBe(false);
  });

  it('may be anything, even what cannot be read', () => {
    const unshowable = {
      toString() {
        throw new Error('no');
      },
    };
    expect(new errors.CreateError(poolFigures, unshowable).message).toBe(
      'pool could not create an instance: Error',
    );
    expect(new errors.CreateError(poolFigures, Object.create(null)).message).toContain('instance: Error');
    expect(new errors.CreateError(poolFigures, Symbol('why')).message).toContain('Symbol(why)');
    expect(new errors.CreateError(poolFigures, null).message).toContain('null');
  });
});

describe('instanceof', () => {
  it('holds between two copies of the package, both ways, for each class', async () => {
    vi.resetModules();
    const copy: typeof errors = await import('../src/errors.js');
    expect(copy.PipelinePoolError).not.toBe(PipelinePoolError);
    const theirs = new copy.QueueFullError({ ...figures, retryAfterMs: 1 });
    const ours = new errors.QueueFullError({ ...figures, retryAfterMs: 1 });
    expect(theirs).toBeInstanceOf(PipelinePoolError);
    expect(theirs).toBeInstanceOf(errors.QueueFullError);
    expect(theirs).not.toBeInstanceOf(errors.AcquireTimeoutError);
    expect(ours).toBeInstanceOf(copy.PipelinePoolError);
    expect(ours).toBeInstanceOf(copy.QueueFullError);
    expect(ours).not.toBeInstanceOf(copy.LimiterClosedError);
  });

  it('distinguishes a class of the host that extends one of ours', async () => {
    class HostError extends errors.QueueFullError {}
    class DeeperError extends HostError {}
    const host = new DeeperError({ ...figures, retryAfterMs: 1 });
    expect(host).toBeInstanceOf(DeeperError);
    expect(host).toBeInstanceOf(HostError);
    expect(host).toBeInstanceOf(errors.QueueFullError);
    expect(host).toBeInstanceOf(PipelinePoolError);
    const ours = new errors.QueueFullError({ ...figures, retryAfterMs: 1 });
    expect(ours).not.toBeInstanceOf(HostError);
    expect(new HostError({ ...figures, retryAfterMs: 1 })).not.toBeInstanceOf(DeeperError);
    vi.resetModules();
    const copy: typeof errors = await import('../src/errors.js');
    expect(host).toBeInstanceOf(copy.QueueFullError);
  });

  it('is false for anything else', () => {
    const others = [
      null,
      undefined,
      7,
      'ERR_QUEUE_FULL',
      {},
      Object.create(null),
      () => {},
      new Error('plain'),
      { code: 'ERR_QUEUE_FULL' },
    ];
    for (const other of others) expect(other instanceof PipelinePoolError).toBe(false);
    const { proxy, revoke } = Proxy.revocable(new errors.LimiterClosedError('admission'), {});
    expect(proxy instanceof PipelinePoolError).toBe(true);
    revoke();
    expect(proxy instanceof PipelinePoolError).toBe(false);
    expect(Object.create({ constructor: 'no function' }) instanceof PipelinePoolError).toBe(false);
    expect(Object.create({ constructor: class {} }) instanceof errors.QueueFullError).toBe(false);
  });
});

describe('The name of an error', () => {
  it('is not among its data, and can be set by the host', () => {
    const error = new errors.LimiterClosedError('admission');
    expect(Object.keys(error)).toEqual(['code', 'source']);
    error.name = 'HostName';
    expect(String(error)).toBe('HostName: admission is closed');
  });
});
