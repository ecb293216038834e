import type { DestroyReason } from '../hooks/events.js';
import type { LifecycleHooks } from '../hooks/lifecycle-hooks.js';
import {
  abortSignal,
  callable,
  options as checkOptions,
  durationMs,
  refusal,
  text,
  wholeNumber,
} from '../internal/validate.js';

/** Which instance a callback is called for. */
export interface InstanceContext {
  /** Counts from 1, never used again. */
  readonly instanceId: number;
  /** Aborts when the callback's time is up, or when nobody needs its result any more. */
  readonly signal: AbortSignal;
}

/** Which task `prepare` and `reset` are called for. */
export interface TaskContext extends InstanceContext {
  readonly taskId?: string;
  readonly requestId?: string;
  readonly tenant?: string;
}

/** Why `destroy` is called. */
export interface DestroyContext extends InstanceContext {
  readonly reason: DestroyReason;
}

/** Milliseconds between attempts after a creation failed: each wait is drawn between `baseMs` and a ceiling that doubles. */
export interface CreateRetry {
  /** The shortest wait, and the first ceiling's half. @default 100 */
  readonly baseMs?: number;
  /** The highest ceiling. @default 10000 */
  readonly maxMs?: number;
}

/**
 * How a `PipelinePool` is built. Only `size` and `create` are needed.
 *
 * The callbacks are called one at a time for each instance. `create`, `validate` and `destroy` serve the pool: they run
 * outside any request's AsyncLocalStorage context. `prepare` and `reset` serve a task: they run in the context in which
 * that task called `acquire`.
 */
export interface PipelinePoolOptions<T> {
  /** The most instances alive at once, from the start of `create` to the end of `destroy`; a whole number from 1. */
  readonly size: number;
  /** Instances with a use left that are kept ready; a whole number from 0 to `size`. @default 0 */
  readonly min?: number;
  /** Makes an instance. */
  readonly create: (context: InstanceContext) => T | PromiseLike<T>;
  /** Takes an instance apart. Failing is reported (`instance:destroyFailed`) and otherwise harmless. */
  readonly destroy?: (pipeline: T, context: DestroyContext) => unknown;
  /** Says whether an idle instance is still good; anything but `true` replaces it. */
  readonly validate?: (pipeline: T, context: InstanceContext) => boolean | PromiseLike<boolean>;
  /** Readies an instance for a task. Failing rejects that task's `acquire` and replaces the instance. */
  readonly prepare?: (pipeline: T, context: TaskContext) => unknown;
  /** Clears a task's traces away. Failing replaces the instance. */
  readonly reset?: (pipeline: T, context: TaskContext) => unknown;
  /** Milliseconds that anybody waits for a lease at most, where `acquire` does not say. @default none */
  readonly acquireTimeoutMs?: number;
  /** @default 60000 */
  readonly createTimeoutMs?: number;
  /** @default 5000 */
  readonly validateTimeoutMs?: number;
  /** @default 10000 */
  readonly prepareTimeoutMs?: number;
  /** @default 10000 */
  readonly resetTimeoutMs?: number;
  /** @default 10000 */
  readonly destroyTimeoutMs?: number;
  /** Milliseconds unused after which an instance beyond `min` is let go; `Infinity` keeps it. @default 600000 */
  readonly idleTimeoutMs?: number;
  /** Milliseconds unused after which `validate` is asked before the next lease; 0 asks every time. @default 500 */
  readonly validateAfterIdleMs?: number;
  /** Milliseconds unused after which `validate` is asked in the background, again and again. @default 30000 */
  readonly validateIdleEveryMs?: number;
  /** Milliseconds after which an instance is replaced, up to a tenth earlier so that not all go at once. @default none */
  readonly maxLifetimeMs?: number;
  /** Leases after which an instance is replaced. @default none */
  readonly maxUses?: number;
  /** Milliseconds after which a lease is taken back and its instance torn down. @default none */
  readonly maxLeaseMs?: number;
  /** Milliseconds after which a lease still held is reported with the stack of its `acquire`. @default none */
  readonly leakWarningMs?: number;
  /**
   * Requests that may wait beyond those for whom an instance is on its way or can be made; the next is turned away with
   * `QueueFullError`. @default none
   */
  readonly maxQueue?: number;
  /** Creations under way at once. @default as many as `size` allows */
  readonly createConcurrency?: number;
  /** The back-off after failed creations. */
  readonly createRetry?: CreateRetry;
  /** Told as `source` in events and errors. @default 'pool' */
  readonly name?: string;
  /** Where the events go. @default hooks of its own */
  readonly hooks?: LifecycleHooks;
}

/** How a lease is asked for. */
export interface LeaseOptions {
  /** Told in the events, and to `prepare` and `reset`. */
  readonly taskId?: string;
  /** Told in the events. */
  readonly requestId?: string;
  /** Only this instance will do: waits for it, and fails with `InstanceGoneError` when it is gone. */
  readonly instanceId?: number;
  /** Ends the waiting; the promise rejects with `signal.reason`. A lease already given is not touched. */
  readonly signal?: AbortSignal;
  /** Milliseconds to wait at most; then `AcquireTimeoutError`. 0 takes an idle instance or none. */
  readonly timeoutMs?: number;
  /** Higher goes first; a whole number, 0 if left out. */
  readonly priority?: number;
  /** Whose request it is: tenants of one priority take turns. */
  readonly tenant?: string;
}

/** The options with their defaults filled in; what has no default stays absent. */
export type PoolSettings<T> = PipelinePoolOptions<T> & {
  readonly [K in keyof typeof DEFAULTS]: number;
} & { readonly createRetry: Required<CreateRetry>; readonly name: string };

const DEFAULTS = {
  min: 0,
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
} as const;

const RETRY_DEFAULTS: Required<CreateRetry> = { baseMs: 100, maxMs: 10_000 };

type Check = (option: string, value: unknown) => unknown;

const fromOne: Check = (option, value) => wholeNumber(option, value);
const wait: Check = (option, value) => durationMs(option, value);
const deadline: Check = (option, value) => durationMs(option, value, 1);
// biome-ignore lint/complexity/noBannedTypes: any callable is meant
const callback: Check = (option, value) => callable(option, value as Function);

const CHECKS: Record<keyof PipelinePoolOptions<unknown>, Check> = {
  size: fromOne,
  min: (option, value) => wholeNumber(option, value, 0),
  create: callback,
  destroy: callback,
  validate: callback,
  prepare: callback,
  reset: callback,
  acquireTimeoutMs: wait,
  createTimeoutMs: deadline,
  validateTimeoutMs: deadline,
  prepareTimeoutMs: deadline,
  resetTimeoutMs: deadline,
  destroyTimeoutMs: deadline,
  idleTimeoutMs: (option, value) => (value === Number.POSITIVE_INFINITY ? value : deadline(option, value)),
  validateAfterIdleMs: wait,
  validateIdleEveryMs: deadline,
  maxLifetimeMs: deadline,
  maxUses: fromOne,
  maxLeaseMs: deadline,
  leakWarningMs: deadline,
  maxQueue: (option, value) => wholeNumber(option, value, 0),
  createConcurrency: fromOne,
  createRetry: (option, value) => checkOptions(option, value as CreateRetry, ['baseMs', 'maxMs']),
  name: text,
  hooks: (option, value) => {
    if (typeof value !== 'object' || value === null)
      throw new TypeError(refusal(option, 'LifecycleHooks', value));
  },
};

const POOL_OPTIONS = Object.keys(CHECKS) as (keyof PipelinePoolOptions<unknown>)[];

/**
 * Checks the options and fills in the defaults.
 *
 * @throws {TypeError | RangeError} naming the option that is wrong, and its value
 */
export function poolSettings<T>(given: PipelinePoolOptions<T>): PoolSettings<T> {
  checkOptions('PipelinePool', given, POOL_OPTIONS);
  const known: Partial<Record<keyof PipelinePoolOptions<T>, unknown>> = {};
  for (const option of POOL_OPTIONS) {
    const value = given[option];
    if (value === undefined && option !== 'size' && option !== 'create') continue;
    CHECKS[option](option, value);
    known[option] = value;
  }
  for (const option of ['validateAfterIdleMs', 'validateIdleEveryMs'] as const) {
    if (known[option] === undefined || known.validate !== undefined) continue;
    throw new TypeError(refusal(option, 'left out where there is no `validate`', known[option]));
  }
  const settings = {
    name: 'pool',
    ...DEFAULTS,
    ...known,
    createRetry: retrySettings(given.createRetry),
  } as PoolSettings<T>;
  wholeNumber('min', settings.min, 0, settings.size);
  return settings;
}

function retrySettings({ baseMs, maxMs }: CreateRetry = {}): Required<CreateRetry> {
  const base = durationMs('createRetry.baseMs', baseMs ?? RETRY_DEFAULTS.baseMs, 1);
  return {
    baseMs: base,
    maxMs: durationMs('createRetry.maxMs', maxMs ?? Math.max(RETRY_DEFAULTS.maxMs, base), base),
  };
}

const LEASE_CHECKS: Record<keyof LeaseOptions, Check> = {
  taskId: text,
  requestId: text,
  instanceId: fromOne,
  signal: abortSignal,
  timeoutMs: wait,
  priority: (option, value) => wholeNumber(option, value, Number.MIN_SAFE_INTEGER),
  tenant: text,
};

const LEASE_OPTIONS = Object.keys(LEASE_CHECKS) as (keyof LeaseOptions)[];

/** Refuses wrong options of one request for a lease. Looks only at what is there: this stands before every lease. */
export function checkLeaseOptions(where: string, given: LeaseOptions): void {
  if (typeof given !== 'object' || given === null) checkOptions(where, given, LEASE_OPTIONS);
  for (const option in given) {
    const check = LEASE_CHECKS[option as keyof LeaseOptions];
    if (check === undefined) checkOptions(where, given, LEASE_OPTIONS);
    const value = given[option as keyof LeaseOptions];
    if (value !== undefined) check(option, value);
  }
}
