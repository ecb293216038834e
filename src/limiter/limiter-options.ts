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
import type { AdaptiveLimit } from './adaptive-limit.js';
import type { AcquireOptions } from './limiter.js';

/** How a `ConcurrencyLimiter` is built. Exactly one of `maxConcurrent` and `adaptive` is needed. */
export interface ConcurrencyLimiterOptions {
  /** Weight that may be held at once; a whole number from 1. */
  readonly maxConcurrent?: number;
  /** Finds the limit from the outcomes of releases, and moves `maxConcurrent` from then on. */
  readonly adaptive?: AdaptiveLimit;
  /** Waiters that may queue; the next is turned away with `QueueFullError`. 0 queues nobody. @default none */
  readonly maxQueue?: number;
  /** Milliseconds that anybody waits at most, where `acquire` does not say. @default none */
  readonly queueTimeoutMs?: number;
  /** Turns away on arrival, with `DeadlineUnmeetableError`, who would wait longer than its timeout. @default false */
  readonly refuseUnmeetable?: boolean;
  /**
   * Refuses, with `NestedAcquireError`, whoever would wait for this limiter inside a `run` of it: for what only the end
   * of that `run` may free. Off by default, since tracking who is inside makes every `await` of the host dearer on
   * Node 20. @default false
   */
  readonly detectNested?: boolean;
  /** Told as `source` in events and errors. @default 'limiter' */
  readonly name?: string;
  /** Where the events go. @default hooks of its own */
  readonly hooks?: LifecycleHooks;
}

const LIMITER_OPTIONS: readonly (keyof ConcurrencyLimiterOptions)[] = [
  'maxConcurrent',
  'adaptive',
  'maxQueue',
  'queueTimeoutMs',
  'refuseUnmeetable',
  'detectNested',
  'name',
  'hooks',
];

/** Refuses wrong options of a limiter. */
export function checkLimiterOptions(given: ConcurrencyLimiterOptions): ConcurrencyLimiterOptions {
  checkOptions('ConcurrencyLimiter', given, LIMITER_OPTIONS);
  const { maxConcurrent, adaptive, maxQueue, queueTimeoutMs, refuseUnmeetable, detectNested, name, hooks } =
    given;
  if (adaptive === undefined) wholeNumber('maxConcurrent', maxConcurrent);
  else if (typeof adaptive?.drive !== 'function' || typeof adaptive.onSample !== 'function') {
    throw new TypeError(refusal('adaptive', 'an AdaptiveLimit', adaptive));
  } else if (maxConcurrent !== undefined) {
    throw new TypeError(refusal('maxConcurrent', 'left out where `adaptive` finds it', maxConcurrent));
  }
  if (maxQueue !== undefined) wholeNumber('maxQueue', maxQueue, 0);
  if (queueTimeoutMs !== undefined) durationMs('queueTimeoutMs', queueTimeoutMs);
  if (refuseUnmeetable !== undefined) flag('refuseUnmeetable', refuseUnmeetable);
  if (detectNested !== undefined) flag('detectNested', detectNested);
  if (name !== undefined) text('name', name);
  if (hooks !== undefined) checkHooks(hooks);
  return given;
}

const ACQUIRE_OPTIONS: Readonly<Record<keyof AcquireOptions, true>> = {
  signal: true,
  timeoutMs: true,
  priority: true,
  weight: true,
  tenant: true,
  taskId: true,
  requestId: true,
};

/** Refuses wrong options of one request. */
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

/** The options as they stand, inherited ones too, in an object that nobody else changes. */
export function ownOptions(given: AcquireOptions): AcquireOptions {
  const { signal, timeoutMs, priority, weight, tenant, taskId, requestId } = given;
  return { signal, timeoutMs, priority, weight, tenant, taskId, requestId };
}
