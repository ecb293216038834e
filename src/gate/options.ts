import { checkHooks, LifecycleHooks } from '../hooks/lifecycle-hooks.js';
import { clockOf } from '../internal/clock.js';
import {
  abortSignal,
  type Check,
  type Checks,
  callable,
  checkEach,
  clock,
  durationMs,
  MAX_TIMER_MS,
  oneOf,
  optional,
  options,
  positiveMs,
  refusal,
  text,
  wholeNumber,
} from '../internal/validate.js';
import { AdaptiveLimit, type AdaptiveLimitOptions } from '../limiter/adaptive-limit.js';
import type { Limiter } from '../limiter/limiter.js';
import { type FairnessOptions, fairByOption } from '../queue/options.js';
import { type Amounts, type Budget, isBudget } from '../request/budget.js';
import type { CacheOptions, CacheStore } from './cache.js';
import { CALL_CONTEXT, type CallContext } from './call-context.js';
import type { Classifier } from './classify.js';
import type { CooldownSettings, KeySpec } from './keys/api-key.js';
import { checkWindows, type RateWindow } from './keys/sliding-window.js';
import { type RetryOptions, type RetryPolicy, retryPolicy } from './retry.js';
import type { SharedLimits } from './shared-limits.js';

/** An API key, with windows of its own in place of the gate's `rate`. */
export type GateKeyOption =
  | string
  | { readonly key: string; readonly rate?: readonly RateWindow[] | undefined };

/** How long a key is not used where the service names no time. */
export interface CooldownOptions {
  /** Milliseconds after a 429; doubled after each further one in a row. @default 1_000 */
  readonly baseMs?: number | undefined;
  /** Maximum in milliseconds of the doubled time. @default 60_000 */
  readonly maxMs?: number | undefined;
  /** Milliseconds after the quota is exhausted (402, `insufficient_quota`). @default 3_600_000 (an hour) */
  readonly exhaustedMs?: number | undefined;
  /** Milliseconds after the service refused the key (401, 403). @default until `restoreKey` */
  readonly quarantinedMs?: number | undefined;
}

/** What limits the attempts that run concurrently. */
export type GateConcurrency =
  | {
      readonly maxConcurrent?: undefined;
      /** Adjusts the maximum to the outcomes of the attempts. Pass an `AdaptiveLimit` to feed it a gauge as well. */
      readonly adaptive: AdaptiveLimit | AdaptiveLimitOptions;
      readonly limiter?: undefined;
      readonly limits?: SharedLimits | undefined;
    }
  | {
      /** Maximum number of concurrent attempts of all processes; a whole number from 1. */
      readonly maxConcurrent: number;
      /** Adjusts the maximum of this process, below the shared one. */
      readonly adaptive: AdaptiveLimit | AdaptiveLimitOptions;
      readonly limiter?: undefined;
      readonly limits: SharedLimits;
    }
  | {
      readonly maxConcurrent?: undefined;
      readonly adaptive?: undefined;
      /** A limiter that this gate shares with others. It stays open when the gate closes. */
      readonly limiter: Limiter;
      readonly limits?: undefined;
    }
  | {
      /** Maximum number of concurrent attempts, of all processes with `limits`; a whole number from 1. @default unlimited */
      readonly maxConcurrent?: number | undefined;
      readonly adaptive?: undefined;
      readonly limiter?: undefined;
      /**
       * Limits that gates of this name share in several processes: `RedisLimits` of `pipeline-pool/redis`. They hold for
       * `maxConcurrent`, all windows, and the cooldown, quarantine and probe of each key. @default none
       */
      readonly limits?: SharedLimits | undefined;
    };

/** A call, as `cost.estimate` receives it. */
export interface CallToEstimate {
  /** The `weight` of the call, or the gate's estimate of it. */
  readonly weight: number;
  readonly tenant: string | undefined;
  readonly taskId: string | undefined;
  readonly cacheKey: string | undefined;
}

/**
 * What calls cost, by meter. The meters are those of the host's budgets; `calls` needs no cost: each attempt counts as one.
 *
 * @typeParam M the meters that the gate spends from
 */
export interface GateCost<M extends string = string> {
  /**
   * What one attempt may cost, at most: it is reserved before each attempt. An error that it throws rejects the call,
   * and so does an amount that is not a number from 0 to `Number.MAX_SAFE_INTEGER`. The caps of a budget hold as far as estimates are upper bounds.
   */
  estimate(call: CallToEstimate): Amounts<M>;
  /**
   * What an attempt did cost, from what `usage` receives: its result, the JSON body of a `Response` (the `Response` itself
   * comes first), or an item of its stream; and from its weight, where `reportUsage` or `usage` has given it. The last value
   * of each meter counts. A meter that it leaves out counts as estimated.
   *
   * @default as estimated
   */
  actual?(
    value: unknown,
    weight: number | undefined,
  ): Readonly<Partial<Record<NoInfer<M>, number | undefined>>> | undefined;
}
/**
 * Reads what a call actually weighed, its tokens for example, from what the service sent: a result, a JSON body, or an item
 * of a stream. `previous` is what it returned for an earlier item of the same stream. `undefined`: this value does not say.
 *
 * A call without a `weight` is estimated at the average of the calls before it. The last value read corrects the estimate
 * when the response is complete; before that, only a higher one does.
 *
 * @example
 * const usage: UsageReader = (value) => (value as { usage?: { total_tokens?: number } } | null)?.usage?.total_tokens;
 */
export type UsageReader = (value: unknown, previous: number | undefined) => number | undefined;

/**
 * Estimates, before an attempt, what a call will weigh: from the JSON body of its request, as the service receives it.
 * `undefined` leaves it to the average of earlier calls. An estimate above the smallest window is lowered to it.
 *
 * @example
 * const preset = openAiPreset({ tokensPerMinute: 200_000 });
 * await gate.run(() => openai.responses.create(request), { weight: preset.estimate?.(request) });
 */
export type WeightEstimator = (request: unknown) => number | undefined;

/** Options of a `ServiceGate`. */
export type ServiceGateOptions<M extends string = string> = GateConcurrency &
  FairnessOptions & {
    /** The `source` in events and errors. */
    readonly name: string;
    /** Rate limits of each key; all of them apply. @default none */
    readonly rate?: readonly RateWindow[] | undefined;
    /** Rate limits of all keys together. @default none */
    readonly sharedRate?: readonly RateWindow[] | undefined;
    /** The API keys of the service. Without them, the client uses its own. @default none */
    readonly keys?: readonly GateKeyOption[] | undefined;
    /** Attempts, backoff and retry budget. */
    readonly retry?: RetryOptions | undefined;
    /** How long a key is not used where the service names no time. */
    readonly cooldown?: CooldownOptions | undefined;
    /** Milliseconds that one attempt, or one item of a stream, may take. @default unlimited */
    readonly attemptTimeoutMs?: number | undefined;
    /** Milliseconds that a whole call may take, waiting and retries included. @default unlimited */
    readonly timeoutMs?: number | undefined;
    /** Caches the results of calls with a `cacheKey`. @default nothing cached; concurrent calls still share one flight */
    readonly cache?: CacheOptions | undefined;
    /** Classifies outcomes that the default does not know. @default classifyOutcome */
    readonly classify?: Classifier | undefined;
    /** Reads the actual weight of a call from its result. @default none; a call without a `weight` weighs 1 */
    readonly usage?: UsageReader | undefined;
    /** Estimates the weight of a call of `fetch` from its request. @default none; the average of the calls before it */
    readonly estimate?: WeightEstimator | undefined;
    /**
     * Learns the limits of each key from the headers of responses (`x-ratelimit-*`, `anthropic-ratelimit-*`, `RateLimit`), and
     * slows down before the first 429. Headers are seen by `fetch`, in a `Response`, in the result of an SDK's `withResponse()`,
     * and in errors. @default limits are those of `rate` alone
     */
    readonly pace?: 'headers' | undefined;
    /** What calls cost, for the budgets that they spend from. @default one of `calls` for each attempt */
    readonly cost?: GateCost<M> | undefined;
    /**
     * Whose model it is, as the conventions of OpenTelemetry name it (`openai`, `anthropic`, `gcp.gemini`): `call:finished`
     * then carries it, with the tokens that `usage` receives. @default none
     */
    readonly provider?: string | undefined;
    /** Milliseconds on a monotonic clock, for windows, cooldowns, the cache and the retry budget. @default performance.now */
    readonly now?: (() => number) | undefined;
    /** Where events are emitted. @default hooks of its own */
    readonly hooks?: LifecycleHooks | undefined;
  };

/** Options of one call. */
export interface GateCallOptions {
  /** Aborts the call at any stage; it rejects with `signal.reason`. @default that of the current request */
  readonly signal?: AbortSignal | undefined;
  /** Milliseconds that the whole call may take. @default the gate's `timeoutMs` */
  readonly timeoutMs?: number | undefined;
  /** Higher goes first; a whole number. @default that of the current request, or 0 */
  readonly priority?: number | undefined;
  /** The owner of the request: tenants with the same priority share the permits fairly. @default that of the current request */
  readonly tenant?: string | undefined;
  /** What the call counts in windows of that unit; a whole number from 0. @default 1 */
  readonly weight?: number | undefined;
  /** Included in event payloads. @default that of the current request */
  readonly taskId?: string | undefined;
  /** Included in event payloads. @default that of the current request */
  readonly requestId?: string | undefined;
  /** Included in event payloads: the tool call that this call serves. @default none */
  readonly toolCallId?: number | undefined;
  /**
   * What the attempts of the call spend from, together with the budget of the current request. A call that shares another's
   * result spends nothing.
   * @default that of the current request
   */
  readonly budget?: Budget | undefined;
  /**
   * Calls with the same key share a result, so it must include everything that the result depends on. The first call's
   * function and options are used; it continues while any caller waits for it.
   * @default not cached, and not merged with other calls
   */
  readonly cacheKey?: string | undefined;
  /** @internal The signal and deadline of the tool call that makes this call, in place of `signal` and `timeoutMs`. */
  readonly [CALL_CONTEXT]?: CallContext | undefined;
}

/** Checked options, with all defaults. */
export interface GateSettings {
  readonly name: string;
  readonly hooks: LifecycleHooks;
  readonly maxConcurrent: number | undefined;
  readonly adaptive: AdaptiveLimit | undefined;
  readonly limiter: Limiter | undefined;
  readonly limits: SharedLimits | undefined;
  readonly fairness: FairnessOptions;
  readonly keyed: boolean;
  readonly keys: readonly KeySpec[];
  readonly sharedRate: readonly RateWindow[];
  readonly cooldown: CooldownSettings;
  readonly retry: RetryPolicy;
  readonly attemptTimeoutMs: number | undefined;
  readonly timeoutMs: number | undefined;
  readonly cache: CacheOptions | undefined;
  readonly classify: Classifier | undefined;
  readonly usage: UsageReader | undefined;
  readonly estimate: WeightEstimator | undefined;
  readonly cost: GateCost | undefined;
  readonly pace: 'headers' | undefined;
  readonly provider: string | undefined;
  readonly now: () => number;
}

/** What reads such an option checks it as well. */
const whenRead: Check = () => {};

const GATE_CHECKS: Checks<ServiceGateOptions> = {
  name: text,
  maxConcurrent: wholeNumber,
  adaptive: whenRead,
  limiter: (option, value) => {
    if (typeof (value as Limiter | null)?.acquire !== 'function')
      throw new TypeError(refusal(option, 'a Limiter', value));
  },
  limits: (option, value) => {
    if (typeof (value as SharedLimits | null)?.gate !== 'function')
      throw new TypeError(refusal(option, 'a RedisLimits', value));
  },
  fairBy: fairByOption,
  tenants: callable,
  agingMs: positiveMs,
  rate: whenRead,
  sharedRate: whenRead,
  keys: whenRead,
  retry: whenRead,
  cooldown: whenRead,
  attemptTimeoutMs: positiveMs,
  timeoutMs: positiveMs,
  cache: whenRead,
  classify: callable,
  usage: callable,
  estimate: callable,
  cost: whenRead,
  pace: (option, value) => oneOf(option, value, ['headers']),
  provider: text,
  now: clock,
  hooks: checkHooks,
};

/** Checks the options of a gate. */
export function gateSettings(given: ServiceGateOptions): GateSettings {
  checkEach('ServiceGate', given, GATE_CHECKS);
  const { maxConcurrent, adaptive, limiter, limits } = given;
  const isSet = (way: unknown): boolean => way !== undefined;
  if (
    (limits === undefined ? [maxConcurrent, adaptive, limiter] : [limiter, limits]).filter(isSet).length > 1
  ) {
    throw new TypeError(
      'A ServiceGate takes one of `maxConcurrent`, `adaptive` and `limiter`, or `limits` with the first two, got several',
    );
  }
  const { fairBy, tenants, agingMs } = given;
  const fairness = { fairBy, tenants, agingMs };
  if (maxConcurrent === undefined && adaptive === undefined) {
    for (const [option, value] of Object.entries(fairness)) {
      if (value !== undefined)
        throw new TypeError(`A ServiceGate takes \`${option}\` only with \`maxConcurrent\` or \`adaptive\``);
    }
  }
  const rate = checkWindows('rate', given.rate ?? []);
  const sharedRate = checkWindows('sharedRate', given.sharedRate ?? []);
  const keys =
    given.keys === undefined ? [{ key: '', rate, hasOwnRate: false }] : checkKeys(given.keys, rate);
  return {
    name: text('name', given.name),
    hooks: given.hooks ?? new LifecycleHooks(),
    maxConcurrent,
    adaptive: adaptive === undefined || isAdaptive(adaptive) ? adaptive : new AdaptiveLimit(adaptive),
    limiter,
    limits,
    fairness,
    keyed: given.keys !== undefined,
    keys,
    sharedRate,
    cooldown: checkCooldown(given.cooldown),
    retry: retryPolicy(given.retry),
    attemptTimeoutMs: given.attemptTimeoutMs,
    timeoutMs: given.timeoutMs,
    cache: optional('cache', given.cache, checkCache),
    classify: given.classify,
    usage: given.usage,
    estimate: given.estimate,
    cost: optional('cost', given.cost, checkCost),
    pace: given.pace,
    provider: given.provider,
    now: clockOf(given.now),
  };
}

const isAdaptive = (value: AdaptiveLimit | AdaptiveLimitOptions): value is AdaptiveLimit =>
  typeof (value as AdaptiveLimit)?.begin === 'function';

/** Its errors do not show the value: it might be a key. */
function checkKeys(given: readonly GateKeyOption[], rate: readonly RateWindow[]): readonly KeySpec[] {
  if (!Array.isArray(given) || given.length === 0) {
    throw new TypeError(
      'Expected `keys` to be an array with at least one key; omit it for a gate without keys',
    );
  }
  const seen = new Set<string>();
  return given.map((entry: GateKeyOption, i) => {
    if (typeof entry !== 'string' && (typeof entry !== 'object' || entry === null)) {
      throw new TypeError(
        `Expected \`keys[${i}]\` to be a key or an object with one, got ${entry === null ? entry : typeof entry}`,
      );
    }
    const own = typeof entry === 'string' ? { key: entry } : options(`keys[${i}]`, entry, ['key', 'rate']);
    if (typeof own.key !== 'string' || own.key === '') {
      throw new TypeError(`Expected the key in \`keys[${i}]\` to be a non-empty string`);
    }
    const { key } = own;
    if (seen.has(key)) throw new RangeError(`\`keys[${i}]\` is a duplicate`);
    seen.add(key);
    return own.rate === undefined
      ? { key, rate, hasOwnRate: false }
      : { key, rate: checkWindows(`keys[${i}].rate`, own.rate), hasOwnRate: true };
  });
}

function checkCooldown(given: CooldownOptions = {}): CooldownSettings {
  options('cooldown', given, ['baseMs', 'maxMs', 'exhaustedMs', 'quarantinedMs']);
  const baseMs = durationMs('cooldown.baseMs', given.baseMs ?? 1_000, 1);
  const maxMs = given.maxMs ?? Math.max(60_000, baseMs);
  return {
    baseMs,
    maxMs: durationMs('cooldown.maxMs', maxMs, baseMs),
    exhaustedMs: durationMs('cooldown.exhaustedMs', given.exhaustedMs ?? 3_600_000, 1),
    quarantinedMs:
      optional('cooldown.quarantinedMs', given.quarantinedMs, (o, v) => durationMs(o, v, 1)) ??
      Number.POSITIVE_INFINITY,
  };
}

function checkCost(option: string, given: GateCost): GateCost {
  options(option, given, ['estimate', 'actual']);
  callable('cost.estimate', given.estimate);
  optional('cost.actual', given.actual, callable);
  return given;
}

function checkCache(option: string, given: CacheOptions): CacheOptions {
  options(option, given, ['max', 'maxBytes', 'ttlMs', 'staleIfErrorMs', 'shouldCache', 'store']);
  const { ttlMs } = given;
  return {
    max: wholeNumber('cache.max', given.max),
    maxBytes: optional('cache.maxBytes', given.maxBytes, (o, v) => wholeNumber(o, v)),
    ttlMs: typeof ttlMs === 'function' ? ttlMs : wholeNumber('cache.ttlMs', ttlMs, 1, MAX_TIMER_MS),
    staleIfErrorMs: optional('cache.staleIfErrorMs', given.staleIfErrorMs, durationMs),
    shouldCache: optional('cache.shouldCache', given.shouldCache, callable),
    store: optional('cache.store', given.store, checkStore),
  };
}

function checkStore(option: string, store: CacheStore): CacheStore {
  if (typeof store?.get !== 'function' || typeof store.set !== 'function') {
    throw new TypeError(refusal(option, 'an object with `get` and `set`', store));
  }
  return store;
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
  'budget',
  'cacheKey',
];

const STREAM_OPTIONS = /* @__PURE__ */ CALL_OPTIONS.slice(0, -1);

/** The start queue needs room for half a step between two priorities. */
const FARTHEST_PRIORITY = 2_147_483_648;

/** Checks what calls of gates and of tools have in common. A tool call has checked its signal and its time already. */
export function checkSharedCallOptions(
  given: Pick<GateCallOptions, 'signal' | 'timeoutMs' | 'priority'>,
  leastTimeoutMs: number,
  isBounded = false,
): void {
  if (!isBounded) {
    optional('signal', given.signal, abortSignal);
    optional('timeoutMs', given.timeoutMs, (o, v) => durationMs(o, v, leastTimeoutMs));
  }
  optional('priority', given.priority, (o, v) => wholeNumber(o, v, -FARTHEST_PRIORITY, FARTHEST_PRIORITY));
}

/** The fields of a request's context that are no options of a call. */
const REQUEST_FIELDS = ['pipeline', 'instanceId'] as readonly string[] as typeof CALL_OPTIONS;

/** Checks the options of a call; the context of a request is accepted as it is. */
export function checkCallOptions(
  method: 'run' | 'stream' | 'fetch',
  given: GateCallOptions,
  maxWeight: number,
): void {
  const known = method === 'stream' ? STREAM_OPTIONS : CALL_OPTIONS;
  const isRequest =
    typeof given === 'object' && given !== null && 'pipeline' in given && 'requestId' in given;
  options(method, given, isRequest ? [...known, ...REQUEST_FIELDS] : known);
  checkSharedCallOptions(given, 0, given[CALL_CONTEXT] !== undefined);
  optional('tenant', given.tenant, text);
  optional('weight', given.weight, (o, v) => wholeNumber(o, v, 0, maxWeight));
  optional('taskId', given.taskId, text);
  optional('requestId', given.requestId, text);
  optional('toolCallId', given.toolCallId, (o, v) => wholeNumber(o, v, 0));
  optional('cacheKey', given.cacheKey, text);
  if (given.budget !== undefined && !isBudget(given.budget))
    throw new TypeError(refusal('budget', 'a Budget', given.budget));
}
