import { checkHooks, type LifecycleHooks } from '../hooks/lifecycle-hooks.js';
import {
  abortSignal,
  options as checkOptions,
  durationMs,
  flag,
  refusal,
  text,
  wholeNumber,
} from '../internal/validate.js';
import { checkFairness, type FairnessOptions } from '../queue/fairness-options.js';
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

const LIMITER_OPTIONS: readonly (keyof ConcurrencyLimiterOptions)[] = [
  'maxConcurrent',
  'adaptive',
  'maxQueue',
  'acquireTimeoutMs',
  'rejectUnmeetable',
  'detectNested',
  'fairBy',
  'tenants',
  'agingMs',
  'name',
  'hooks',
];

/** Throws for a wrong option of a limiter. */
export function checkLimiterOptions(given: ConcurrencyLimiterOptions): ConcurrencyLimiterOptions {
  checkOptions('ConcurrencyLimiter', given, LIMITER_OPTIONS);
  const { maxConcurrent, adaptive, maxQueue, acquireTimeoutMs, rejectUnmeetable, detectNested, name, hooks } =
    given;
  if (adaptive === undefined) wholeNumber('maxConcurrent', maxConcurrent);
  else if (typeof adaptive?.attach !== 'function' || typeof adaptive.onSample !== 'function') {
    throw new TypeError(refusal('adaptive', 'an AdaptiveLimit', adaptive));
  } else if (maxConcurrent !== undefined) {
    throw new TypeError(refusal('maxConcurrent', 'omitted where `adaptive` sets it', maxConcurrent));
  }
  if (maxQueue !== undefined) wholeNumber('maxQueue', maxQueue, 0);
  if (acquireTimeoutMs !== undefined) durationMs('acquireTimeoutMs', acquireTimeoutMs);
  if (rejectUnmeetable !== undefined) flag('rejectUnmeetable', rejectUnmeetable);
  if (
    detectNested !== undefined &&
    typeof detectNested !== 'boolean' &&
    detectNested !== 'reject' &&
    detectNested !== 'lend'
  )
    throw new TypeError(refusal('detectNested', 'a boolean, "reject" or "lend"', detectNested));
  checkFairness(given);
  if (name !== undefined) text('name', name);
  if (hooks !== undefined) checkHooks(hooks);
  return given;
}

const ACQUIRE_OPTIONS: Readonly<Record<keyof AcquireOptions & string, true>> = {
  signal: true,
  timeoutMs: true,
  priority: true,
  weight: true,
  tenant: true,
  taskId: true,
  requestId: true,
};

/** Throws for a wrong option of one request. */
export function checkAcquireOptions(given: AcquireOptions, maxWeight: number): void {
  if (typeof given !== 'object' || given === null || Array.isArray(given))
    throw new TypeError(refusal('options', 'an options object', given));
  for (const key in given) {
    if (!(key in ACQUIRE_OPTIONS)) checkOptions('acquire', given, Object.keys(ACQUIRE_OPTIONS) as never);
  }
  const { signal, timeoutMs, priority, weight, tenant, taskId, requestId } = given;
  if (signal !== undefined) abortSignal('signal', signal);
  if (timeoutMs !== undefined) durationMs('timeoutMs', timeoutMs);
  if (priority !== undefined) wholeNumber('priority', priority, Number.MIN_SAFE_INTEGER);
  if (weight !== undefined) wholeNumber('weight', weight, 1, maxWeight);
  if (tenant !== undefined) text('tenant', tenant);
  if (taskId !== undefined) text('taskId', taskId);
  if (requestId !== undefined) text('requestId', requestId);
}

/** A copy of the options, inherited ones included, that the caller cannot change. */
export function ownOptions(given: AcquireOptions): AcquireOptions {
  const own: Record<string, unknown> = {};
  for (const option in given) own[option] = given[option as keyof AcquireOptions];
  return own;
}

type CloseOptions = NonNullable<Parameters<Limiter['close']>[0]>;

/** Checks what `close` takes, of any limiter. */
export function checkCloseOptions(given: CloseOptions): CloseOptions {
  const { drain, timeoutMs } = checkOptions('close', given, ['drain', 'timeoutMs']);
  if (drain !== undefined) flag('drain', drain);
  if (timeoutMs !== undefined) durationMs('timeoutMs', timeoutMs);
  return { drain, timeoutMs };
}
