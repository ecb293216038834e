import { checkHooks, LifecycleHooks } from '../hooks/lifecycle-hooks.js';
import { MASK, type Mask } from '../internal/told-error.js';
import {
  abortSignal,
  callable,
  durationMs,
  MAX_TIMER_MS,
  optional,
  options,
  refusal,
  text,
  wholeNumber,
} from '../internal/validate.js';
import { AdaptiveLimit, type AdaptiveLimitOptions } from '../limiter/adaptive-limit.js';
import type { Limiter } from '../limiter/limiter.js';
import type { Rests } from './gate-key.js';
import type { KeySpec } from './key-ring.js';
import type { Classifier } from './outcome.js';
import { checkWindows, heaviest, type RateWindow } from './rate-window.js';
import type { CacheOptions } from './request-cache.js';
import { type RetryOptions, type RetryPolicy, retryPolicy } from './retry.js';

/** A key of an outside service; the same `rate` for all keys need not be said of each. */
export type GateKeyOption = string | { readonly key: string; readonly rate?: readonly RateWindow[] };

/** How long a key rests where the service does not say. */
export interface RestOptions {
  /** After a 429, in milliseconds; twice as long after each further one in a row. @default 1_000 */
  readonly throttledMs?: number;
  /** The most that doubling makes of it, in milliseconds. @default 60_000 */
  readonly maxMs?: number;
  /** After the account is found empty (402, `insufficient_quota`), in milliseconds. @default 3_600_000 (an hour) */
  readonly spentMs?: number;
  /** After the key is refused (401, 403), in milliseconds. @default for good, or until `restoreKey` */
  readonly deadMs?: number;
}

/** How a `ServiceGate` is built. */
export interface ServiceGateOptions {
  /** Told as `source` in events and errors. */
  readonly name: string;
  /** Attempts under way at once; a whole number from 1. @default no bound */
  readonly maxConcurrent?: number;
  /** Finds `maxConcurrent` from how the attempts end. Give an `AdaptiveLimit` of your own to feed it a gauge as well. */
  readonly adaptive?: AdaptiveLimit | AdaptiveLimitOptions;
  /** A limiter that this gate shares with others, here or on other machines, instead of one of its own. */
  readonly limiter?: Limiter;
  /** What each key may do; all of these windows hold at once. @default none */
  readonly rate?: readonly RateWindow[];
  /** What all keys together may do. @default none */
  readonly sharedRate?: readonly RateWindow[];
  /** The service's keys. A gate without keys has one that it does not know, the host's own. @default none */
  readonly keys?: readonly GateKeyOption[];
  /** How often and how soon a failed call is tried again. */
  readonly retry?: RetryOptions;
  /** How long a key rests where the service does not say. */
  readonly rest?: RestOptions;
  /** Milliseconds that one attempt may take, or one item of a stream. @default no bound */
  readonly attemptTimeoutMs?: number;
  /** Milliseconds that a whole call may take, waiting and retries included. @default no bound */
  readonly timeoutMs?: number;
  /** Keeps the answers of calls that have a `cacheKey`. @default none kept; calls at the same time are merged anyway */
  readonly cache?: CacheOptions;
  /** Tells what an attempt's outcome means, where the default does not know. @default classifyOutcome */
  readonly classify?: Classifier;
  /** Where the events go. @default hooks of its own */
  readonly hooks?: LifecycleHooks;
}

/** How one call is made. */
export interface GateCallOptions {
  /** Ends the call wherever it is; it rejects with `signal.reason`. */
  readonly signal?: AbortSignal;
  /** Milliseconds that the whole call may take. @default the gate's `timeoutMs` */
  readonly timeoutMs?: number;
  /** Higher goes first; a whole number. @default 0 */
  readonly priority?: number;
  /** Whose request it is: tenants of one priority take turns at the permits. */
  readonly tenant?: string;
  /** What the call counts for in windows of that unit; a whole number from 0. @default 1 */
  readonly weight?: number;
  /** Told in the events. */
  readonly taskId?: string;
  /** Told in the events. */
  readonly requestId?: string;
  /** Told in the events: the tool call that this call serves. */
  readonly toolCallId?: number;
  /**
   * Calls with the same key share an answer. It must tell apart whatever the answer depends on. The code and the options
   * of the first of them make the call; it goes on as long as anybody waits for it.
   */
  readonly cacheKey?: string;
  /** @internal What must not be told of this call, besides keys. */
  readonly [MASK]?: Mask | undefined;
}

/** Checked, with every default in its place. */
export interface GateSettings {
  readonly name: string;
  readonly hooks: LifecycleHooks;
  readonly maxConcurrent: number | undefined;
  readonly adaptive: AdaptiveLimit | undefined;
  readonly limiter: Limiter | undefined;
  readonly keyed: boolean;
  readonly keys: readonly KeySpec[];
  readonly sharedRate: readonly RateWindow[];
  readonly rests: Rests;
  readonly retry: RetryPolicy;
  readonly attemptTimeoutMs: number | undefined;
  readonly timeoutMs: number | undefined;
  readonly cache: CacheOptions | undefined;
  readonly classify: Classifier | undefined;
  /** What a call may weigh at most, so that some key can ever serve it. */
  readonly maxWeight: number;
}

const GATE_OPTIONS: readonly (keyof ServiceGateOptions)[] = [
  'name',
  'maxConcurrent',
  'adaptive',
  'limiter',
  'rate',
  'sharedRate',
  'keys',
  'retry',
  'rest',
  'attemptTimeoutMs',
  'timeoutMs',
  'cache',
  'classify',
  'hooks',
];

/** Refuses wrong options of a gate. */
export function gateSettings(given: ServiceGateOptions): GateSettings {
  options('ServiceGate', given, GATE_OPTIONS);
  const { maxConcurrent, adaptive, limiter } = given;
  if ([maxConcurrent, adaptive, limiter].filter((way) => way !== undefined).length > 1) {
    throw new TypeError('A ServiceGate takes one of `maxConcurrent`, `adaptive` and `limiter`, got several');
  }
  if (limiter !== undefined && typeof limiter?.acquire !== 'function') {
    throw new TypeError(refusal('limiter', 'a Limiter', limiter));
  }
  if (given.hooks !== undefined) checkHooks(given.hooks);
  const rate = checkWindows('rate', given.rate ?? []);
  const sharedRate = checkWindows('sharedRate', given.sharedRate ?? []);
  const keys = given.keys === undefined ? [{ key: '', rate }] : checkKeys(given.keys, rate);
  return {
    name: text('name', given.name),
    hooks: given.hooks ?? new LifecycleHooks(),
    maxConcurrent: optional('maxConcurrent', maxConcurrent, (option, value) => wholeNumber(option, value)),
    adaptive: optional('adaptive', adaptive, (_, value) =>
      isAdaptive(value) ? value : new AdaptiveLimit(value),
    ),
    limiter,
    keyed: given.keys !== undefined,
    keys,
    sharedRate,
    rests: checkRests(given.rest),
    retry: retryPolicy(given.retry),
    attemptTimeoutMs: optional('attemptTimeoutMs', given.attemptTimeoutMs, (o, v) => durationMs(o, v, 1)),
    timeoutMs: optional('timeoutMs', given.timeoutMs, (o, v) => durationMs(o, v, 1)),
    cache: optional('cache', given.cache, checkCache),
    classify: optional('classify', given.classify, callable),
    maxWeight: Math.min(heaviest(sharedRate), Math.max(...keys.map((key) => heaviest(key.rate)))),
  };
}

const isAdaptive = (value: AdaptiveLimit | AdaptiveLimitOptions): value is AdaptiveLimit =>
  typeof (value as AdaptiveLimit)?.onSample === 'function';

/** Never shows what it refuses: it might be a key. */
function checkKeys(given: readonly GateKeyOption[], rate: readonly RateWindow[]): readonly KeySpec[] {
  if (!Array.isArray(given) || given.length === 0) {
    throw new TypeError(
      'Expected `keys` to be an array with at least one key; leave it out for a gate without keys',
    );
  }
  const seen = new Set<string>();
  return given.map((entry: GateKeyOption, i) => {
    if (typeof entry !== 'string' && (typeof entry !== 'object' || entry === null)) {
      throw new TypeError(`Expected \`keys[${i}]\` to be a key or an object with one, got neither`);
    }
    const own = typeof entry === 'string' ? { key: entry } : options(`keys[${i}]`, entry, ['key', 'rate']);
    if (typeof own.key !== 'string' || own.key === '') {
      throw new TypeError(`Expected the key in \`keys[${i}]\` to be a non-empty string`);
    }
    const { key } = own;
    if (seen.has(key)) throw new RangeError(`\`keys[${i}]\` is there twice`);
    seen.add(key);
    return { key, rate: own.rate === undefined ? rate : checkWindows(`keys[${i}].rate`, own.rate) };
  });
}

function checkRests(given: RestOptions = {}): Rests {
  options('rest', given, ['throttledMs', 'maxMs', 'spentMs', 'deadMs']);
  const throttledMs = durationMs('rest.throttledMs', given.throttledMs ?? 1_000, 1);
  const maxMs = given.maxMs ?? Math.max(60_000, throttledMs);
  return {
    throttledMs,
    maxMs: durationMs('rest.maxMs', maxMs, throttledMs),
    spentMs: durationMs('rest.spentMs', given.spentMs ?? 3_600_000, 1),
    deadMs: optional('rest.deadMs', given.deadMs, (o, v) => durationMs(o, v, 1)) ?? Number.POSITIVE_INFINITY,
  };
}

function checkCache(option: string, given: CacheOptions): CacheOptions {
  options(option, given, ['max', 'ttlMs']);
  return {
    max: wholeNumber('cache.max', given.max),
    ttlMs: wholeNumber('cache.ttlMs', given.ttlMs, 1, MAX_TIMER_MS),
  };
}

const CALL_OPTIONS: readonly (keyof GateCallOptions & string)[] = [
  'signal',
  'timeoutMs',
  'priority',
  'tenant',
  'weight',
  'taskId',
  'requestId',
  'toolCallId',
  'cacheKey',
];

/** The turnstile needs room for half a step between two priorities. */
const FARTHEST_PRIORITY = 2 ** 31;

/** Refuses wrong options of a call. */
export function checkCallOptions(
  given: GateCallOptions,
  maxWeight: number,
  stream: boolean,
): GateCallOptions {
  options(stream ? 'stream' : 'run', given, stream ? CALL_OPTIONS.slice(0, -1) : CALL_OPTIONS);
  optional('signal', given.signal, abortSignal);
  optional('timeoutMs', given.timeoutMs, durationMs);
  optional('priority', given.priority, (o, v) => wholeNumber(o, v, -FARTHEST_PRIORITY, FARTHEST_PRIORITY));
  optional('tenant', given.tenant, text);
  optional('weight', given.weight, (o, v) => wholeNumber(o, v, 0, maxWeight));
  optional('taskId', given.taskId, text);
  optional('requestId', given.requestId, text);
  optional('toolCallId', given.toolCallId, (o, v) => wholeNumber(o, v, 0));
  optional('cacheKey', given.cacheKey, text);
  return given;
}
