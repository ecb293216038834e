import type { DestroyReason } from '../hooks/events.js';
import { checkHooks, type LifecycleHooks } from '../hooks/lifecycle-hooks.js';
import { guardedClock, nowMs, turnMs } from '../internal/clock.js';
import {
  abortSignal,
  type Checks,
  callable,
  checkEach,
  clock,
  durationMs,
  fromZero,
  integer,
  oneOf,
  positiveMs,
  refusal,
  text,
  wholeNumber,
} from '../internal/validate.js';
import { type FairnessOptions, fairByOption, type QUEUE_WATCH, type QueueWatch } from '../queue/options.js';

/** The instance that a callback is called for. */
export interface InstanceContext {
  /** Starts at 1 and is never reused. */
  readonly instanceId: number;
  /** Aborts at the callback's deadline, or when its result is no longer needed. */
  readonly signal: AbortSignal;
}

/** The task that `prepare` or `reset` is called for. */
export interface TaskContext extends InstanceContext {
  readonly taskId?: string;
  readonly requestId?: string;
  readonly tenant?: string;
}

/** The instance that `destroy` is called for, and why. */
export interface DestroyContext extends InstanceContext {
  readonly reason: DestroyReason;
}

/** The backoff after a failed creation, drawn at random between `baseMs` and a ceiling that doubles with each backoff. */
export interface CreateRetry {
  /** The shortest backoff in milliseconds, and half of the first ceiling. @default 100 */
  readonly baseMs?: number | undefined;
  /** The highest ceiling in milliseconds. @default 10000 */
  readonly maxMs?: number | undefined;
}

/**
 * The options of a `PipelinePool`. Only `size` and `create` are required.
 *
 * The callbacks of one instance never overlap. `create`, `validate` and `destroy` serve the pool: they run outside any
 * request's AsyncLocalStorage context. `prepare` and `reset` serve a task: they run in the context in which that task
 * called `acquire`.
 */
export interface PipelinePoolOptions<T> extends FairnessOptions {
  /** The most instances alive at once, from the start of `create` to the end of `destroy`; a whole number from 1. */
  readonly size: number;
  /** Live instances with a use left that are kept, leased ones included; a whole number from 0 to `size`. @default 0 */
  readonly min?: number | undefined;
  /**
   * Spare instances that are kept in addition to those in use, as far as `size` allows; a whole number from 0 to `size`.
   * @default 0
   */
  readonly minIdle?: number | undefined;
  /**
   * What becomes of the waiter that a failed creation was started for: `'reject'` rejects it with `CreateError`, `'retry'`
   * keeps its position in the queue until its own deadline, whose error carries the failure as `cause`. With `'retry'`,
   * `warmUp` waits in the same way. @default 'reject'
   */
  readonly onCreateFailure?: 'reject' | 'retry' | undefined;
  /** Creates an instance. */
  readonly create: (context: InstanceContext) => T | PromiseLike<T>;
  /** Destroys an instance. A failure is reported by `instance:destroy-failed` and affects no caller. @default nothing */
  readonly destroy?: ((pipeline: T, context: DestroyContext) => unknown) | undefined;
  /** Whether an idle instance is still healthy: only `true` is; otherwise it is replaced. @default always healthy */
  readonly validate?: ((pipeline: T, context: InstanceContext) => boolean | PromiseLike<boolean>) | undefined;
  /** Prepares an instance for a task. A failure rejects that task's `acquire` and replaces the instance. @default nothing */
  readonly prepare?: ((pipeline: T, context: TaskContext) => unknown) | undefined;
  /** Clears the state of a task after its lease. A failure replaces the instance. @default nothing */
  readonly reset?: ((pipeline: T, context: TaskContext) => unknown) | undefined;
  /** Milliseconds that a request may wait, unless `acquire` sets its own. @default unlimited */
  readonly acquireTimeoutMs?: number | undefined;
  /** @default 60000 */
  readonly createTimeoutMs?: number | undefined;
  /** @default 5000 */
  readonly validateTimeoutMs?: number | undefined;
  /** @default 10000 */
  readonly prepareTimeoutMs?: number | undefined;
  /** @default 10000 */
  readonly resetTimeoutMs?: number | undefined;
  /** @default 10000 */
  readonly destroyTimeoutMs?: number | undefined;
  /** Milliseconds unused after which an instance beyond `min` is destroyed; `Infinity` keeps it. @default 600000 */
  readonly idleTimeoutMs?: number | undefined;
  /** Milliseconds unused after which `validate` runs before the next lease; 0 runs it every time. @default 500 */
  readonly validateAfterIdleMs?: number | undefined;
  /** Milliseconds between validations of an idle instance in the background. @default 30000 */
  readonly validateIdleEveryMs?: number | undefined;
  /** Milliseconds after which an instance is replaced, up to a tenth earlier, at random. @default unlimited */
  readonly maxLifetimeMs?: number | undefined;
  /** Leases after which an instance is replaced. @default unlimited */
  readonly maxUses?: number | undefined;
  /** Milliseconds after which a lease is revoked and its instance destroyed. @default unlimited */
  readonly maxLeaseMs?: number | undefined;
  /** Milliseconds after which `lease:leaked` reports a lease with the stack of its `acquire`. @default off */
  readonly leakWarningMs?: number | undefined;
  /**
   * Requests that may queue, beyond those for which an instance is being created or can be; the next is rejected with
   * `QueueFullError`. @default unlimited
   */
  readonly maxQueue?: number | undefined;
  /** Creations in progress at once. @default as many as `size` allows */
  readonly createConcurrency?: number | undefined;
  /** The backoff after failed creations. @default { baseMs: 100, maxMs: 10_000 } */
  readonly createRetry?: CreateRetry | undefined;
  /** Milliseconds on a monotonic clock, such as that of a test's fake timers. @default performance.now */
  readonly now?: (() => number) | undefined;
  /** The `source` of events and errors. @default 'pool' */
  readonly name?: string | undefined;
  /** Emits the events; may be shared with limiters, gates and a manager. @default hooks of its own */
  readonly hooks?: LifecycleHooks | undefined;
}

/** The options of `acquire` and `use`. */
export interface LeaseOptions {
  /** Included in event payloads, and passed to `prepare` and `reset`. @default none */
  readonly taskId?: string | undefined;
  /** Included in event payloads, and passed to `prepare` and `reset`. @default none */
  readonly requestId?: string | undefined;
  /** Waits for this instance and no other; rejects with `InstanceGoneError` when it is gone. @default any */
  readonly instanceId?: number | undefined;
  /** Cancels the wait: the promise rejects with `signal.reason`. Does not affect a lease that was granted.
   * @default none */
  readonly signal?: AbortSignal | undefined;
  /** Milliseconds to wait; then rejects with `AcquireTimeoutError`. 0 takes an idle instance or rejects at once.
   * @default `acquireTimeoutMs` of the pool */
  readonly timeoutMs?: number | undefined;
  /** A whole number; higher is served first. @default 0 */
  readonly priority?: number | undefined;
  /** The owner of the request: tenants with the same priority share fairly. @default none */
  readonly tenant?: string | undefined;
  /** @internal Learns where the request stands while it is queued. */
  readonly [QUEUE_WATCH]?: QueueWatch | undefined;
}

/** The state of a pool at one moment. Every number is counted, not derived. */
export interface PoolStats {
  /** The most instances that may be alive. */
  readonly size: number;
  readonly min: number;
  readonly minIdle: number;
  /** Instances alive: the sum of the next six. */
  readonly live: number;
  readonly creating: number;
  readonly idle: number;
  /** Being validated, or prepared for a task. */
  readonly readying: number;
  readonly leased: number;
  readonly resetting: number;
  readonly destroying: number;
  /** Requests without a lease yet. */
  readonly queued: number;
  /** Instances created, failed creations and instances destroyed so far. */
  readonly created: number;
  readonly createFailed: number;
  readonly destroyed: number;
  /** Leases granted, released and revoked so far. */
  readonly acquired: number;
  readonly released: number;
  readonly revoked: number;
  /** Requests rejected so far, for any reason. */
  readonly rejected: number;
  readonly state: 'open' | 'draining' | 'closed';
  /** Between `pause()` and `resume()`; never once it drains or is closed. */
  readonly paused: boolean;
}

/** The options with their defaults filled in; what has no default stays absent. */
export type PoolSettings<T> = PipelinePoolOptions<T> & {
  readonly [K in keyof typeof DEFAULTS]: number;
} & Required<Pick<PipelinePoolOptions<T>, 'name' | 'now' | 'onCreateFailure'>> & {
    readonly createRetry: Required<CreateRetry>;
    /** `now`, or by default a clock that is read once in a turn of the event loop. */
    readonly turnNow: () => number;
  };

// Not `Number.POSITIVE_INFINITY`: a bundler must keep top-level code that reads a property.
const UNLIMITED = Infinity;

const DEFAULTS = {
  min: 0,
  minIdle: 0,
  createTimeoutMs: 60_000,
  validateTimeoutMs: 5_000,
  prepareTimeoutMs: 10_000,
  resetTimeoutMs: 10_000,
  destroyTimeoutMs: 10_000,
  idleTimeoutMs: 600_000,
  validateAfterIdleMs: 500,
  validateIdleEveryMs: 30_000,
  maxUses: UNLIMITED,
  maxQueue: UNLIMITED,
  createConcurrency: UNLIMITED,
} as const;

const RETRY_CHECKS: Checks<CreateRetry> = {
  baseMs: (_, value) => positiveMs('createRetry.baseMs', value),
  maxMs: (_, value) => positiveMs('createRetry.maxMs', value),
};

const CHECKS: Checks<PipelinePoolOptions<unknown>> = {
  size: wholeNumber,
  min: fromZero,
  minIdle: fromZero,
  onCreateFailure: (option, value) => oneOf(option, value, ['reject', 'retry']),
  create: callable,
  destroy: callable,
  validate: callable,
  prepare: callable,
  reset: callable,
  acquireTimeoutMs: durationMs,
  createTimeoutMs: positiveMs,
  validateTimeoutMs: positiveMs,
  prepareTimeoutMs: positiveMs,
  resetTimeoutMs: positiveMs,
  destroyTimeoutMs: positiveMs,
  idleTimeoutMs: (option, value) => (value === Number.POSITIVE_INFINITY ? value : positiveMs(option, value)),
  validateAfterIdleMs: durationMs,
  validateIdleEveryMs: positiveMs,
  maxLifetimeMs: positiveMs,
  maxUses: wholeNumber,
  maxLeaseMs: positiveMs,
  leakWarningMs: positiveMs,
  maxQueue: fromZero,
  createConcurrency: wholeNumber,
  createRetry: (option, value) => checkEach(option, value as CreateRetry, RETRY_CHECKS),
  fairBy: fairByOption,
  tenants: callable,
  agingMs: positiveMs,
  now: clock,
  name: text,
  hooks: checkHooks,
};

/**
 * Checks the options and fills in the defaults.
 *
 * @throws {TypeError | RangeError} naming the option that is wrong, and its value
 */
export function poolSettings<T>(given: PipelinePoolOptions<T>): PoolSettings<T> {
  checkEach('PipelinePool', given, CHECKS);
  wholeNumber('size', given.size);
  callable('create', given.create);
  const known: Partial<Record<keyof PipelinePoolOptions<T>, unknown>> = {};
  for (const option in CHECKS) {
    const value = given[option as keyof typeof CHECKS];
    if (value !== undefined) known[option as keyof typeof CHECKS] = value;
  }
  for (const option of ['validateAfterIdleMs', 'validateIdleEveryMs'] as const) {
    if (known[option] === undefined || known.validate !== undefined) continue;
    throw new TypeError(refusal(option, 'left out where there is no `validate`', known[option]));
  }
  const hostClock = given.now && guardedClock(given.now);
  const settings = {
    name: 'pool',
    onCreateFailure: 'reject',
    ...DEFAULTS,
    ...known,
    now: hostClock ?? nowMs,
    turnNow: hostClock ?? turnMs,
    createRetry: retrySettings(given.createRetry),
  } as PoolSettings<T>;
  wholeNumber('min', settings.min, 0, settings.size);
  wholeNumber('minIdle', settings.minIdle, 0, settings.size);
  return settings;
}

function retrySettings({
  baseMs = 100,
  maxMs = Math.max(10_000, baseMs),
}: CreateRetry = {}): Required<CreateRetry> {
  return { baseMs, maxMs: durationMs('createRetry.maxMs', maxMs, baseMs) };
}

/** The checks of `LeaseOptions`. Functions of one file, since this stands before every lease. */
export const LEASE_CHECKS: Checks<LeaseOptions> = {
  taskId: text,
  requestId: text,
  instanceId: wholeNumber,
  signal: abortSignal,
  timeoutMs: durationMs,
  priority: integer,
  tenant: text,
};
