import { checkHooks, type LifecycleHooks } from '../hooks/lifecycle-hooks.js';
import {
  abortSignal,
  type Checks,
  callable,
  checkEach,
  durationMs,
  flag,
  fromZero,
  integer,
  optionsObject,
  positiveMs,
  refusal,
  text,
  unknownOption,
  wholeNumber,
} from '../internal/validate.js';
import { type FairnessOptions, fairByOption } from '../queue/options.js';
import type { AdaptiveLimit } from './adaptive-limit.js';
import type { AcquireOptions, Limiter } from './limiter.js';

/** Options of every `ConcurrencyLimiter`, whatever sets its limit. */
interface CommonLimiterOptions extends FairnessOptions {
  /** Waiters that may queue; the next request rejects with `QueueFullError`. 0 queues none. @default unlimited */
  readonly maxQueue?: number | undefined;
  /** Milliseconds that a request waits at most, where it has no `timeoutMs` of its own. @default unlimited */
  readonly acquireTimeoutMs?: number | undefined;
  /** Rejects a request at once, with `DeadlineUnmeetableError`, if its estimated wait exceeds its timeout. @default false */
  readonly rejectUnmeetable?: boolean | undefined;
  /**
   * What becomes of a request that would have to wait inside a `run` of the same limiter, for a permit that only the end of
   * that `run` may free. `'reject'` (or `true`) rejects it with `NestedAcquireError`. With `'lend'` a nested `run` takes over
   * the permit of the `run` around it, one at a time; the others queue, for that permit or another. The two then count
   * once. A nested `acquire` is rejected as with `'reject'`. Optional, since the AsyncLocalStorage behind it makes every
   * `await` of the host slower on Node.js 20. @default false
   */
  readonly detectNested?: boolean | 'reject' | 'lend' | undefined;
  /** The `source` in events and errors. @default 'limiter' */
  readonly name?: string | undefined;
  /** Where events are emitted. @default hooks of its own */
  readonly hooks?: LifecycleHooks | undefined;
}

/** Options of a `ConcurrencyLimiter`: a fixed limit or an adaptive one, and what both have in common. */
export type ConcurrencyLimiterOptions = CommonLimiterOptions &
  (
    | {
        /** Weight that may be held at once; a whole number from 1. */
        readonly maxConcurrent: number;
        readonly adaptive?: undefined;
      }
    | {
        /** Adjusts `maxConcurrent` from the outcomes of releases. */
        readonly adaptive: AdaptiveLimit;
        readonly maxConcurrent?: undefined;
      }
  );

const LIMITER_CHECKS: Checks<ConcurrencyLimiterOptions> = {
  maxConcurrent: wholeNumber,
  adaptive: (option, value) => {
    const adaptive = value as AdaptiveLimit | null;
    if (typeof adaptive?.attach !== 'function' || typeof adaptive.onSample !== 'function')
      throw new TypeError(refusal(option, 'an AdaptiveLimit', value));
  },
  maxQueue: fromZero,
  acquireTimeoutMs: durationMs,
  rejectUnmeetable: flag,
  detectNested: (option, value) => {
    if (typeof value !== 'boolean' && value !== 'reject' && value !== 'lend')
      throw new TypeError(refusal(option, 'a boolean, "reject" or "lend"', value));
  },
  fairBy: fairByOption,
  tenants: callable,
  agingMs: positiveMs,
  name: text,
  hooks: checkHooks,
};

/** Throws for a wrong option of a limiter. */
export function checkLimiterOptions(given: ConcurrencyLimiterOptions): ConcurrencyLimiterOptions {
  const { maxConcurrent, adaptive } = checkEach('ConcurrencyLimiter', given, LIMITER_CHECKS);
  if (adaptive === undefined) wholeNumber('maxConcurrent', maxConcurrent);
  else if (maxConcurrent !== undefined)
    throw new TypeError(refusal('maxConcurrent', 'omitted where `adaptive` sets it', maxConcurrent));
  return given;
}

const ACQUIRE_OPTIONS: Readonly<Record<keyof AcquireOptions & string, 1>> = {
  signal: 1,
  timeoutMs: 1,
  priority: 1,
  weight: 1,
  tenant: 1,
  taskId: 1,
  requestId: 1,
};

/**
 * Throws for a wrong option of one request. A hot path: with a table of checks, a request with options was a sixth slower.
 */
export function checkAcquireOptions(given: AcquireOptions, maxWeight: number): void {
  optionsObject('acquire', given);
  for (const option in given)
    if (!(option in ACQUIRE_OPTIONS)) throw unknownOption('acquire', option, Object.keys(ACQUIRE_OPTIONS));
  const { signal, timeoutMs, priority, weight, tenant, taskId, requestId } = given;
  if (signal !== undefined) abortSignal('signal', signal);
  if (timeoutMs !== undefined) durationMs('timeoutMs', timeoutMs);
  if (priority !== undefined) integer('priority', priority);
  if (weight !== undefined) wholeNumber('weight', weight, 1, maxWeight);
  if (tenant !== undefined) text('tenant', tenant);
  if (taskId !== undefined) text('taskId', taskId);
  if (requestId !== undefined) text('requestId', requestId);
}

type CloseOptions = NonNullable<Parameters<Limiter['close']>[0]>;

/** Checks what `close` takes, of any limiter. */
export function checkCloseOptions(given: CloseOptions): CloseOptions {
  return checkEach('close', given, { drain: flag, timeoutMs: durationMs });
}
