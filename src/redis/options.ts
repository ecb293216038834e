import { checkHooks, LifecycleHooks } from '../hooks/lifecycle-hooks.js';
import { wellFormed } from '../internal/redaction.js';
import {
  type Checks,
  callable,
  checkEach,
  durationMs,
  fromZero,
  oneOf,
  positiveMs,
  refusal,
  text,
  wholeNumber,
} from '../internal/validate.js';
import { fairByOption, type TenantShare } from '../queue/options.js';
import { checkClient, type RedisClient } from './client.js';

/** What to do with requests while Redis cannot be reached. */
export type WhenUnavailable = 'wait' | 'fail' | 'local';

/** Options of `RedisLimits`. */
export interface RedisLimitsOptions {
  /**
   * The host's own client, connected: node-redis >= 5 (`redis`) or ioredis >= 5. It is never closed; subscriptions use a
   * duplicate of it, which is.
   */
  readonly client: RedisClient;
  /** Members with the same prefix and the same name of a limit share that limit; well-formed Unicode. @default 'pipeline-pool' */
  readonly prefix?: string | undefined;
  /**
   * Milliseconds after which a member that Redis has not heard of loses its permits; from 100. Renewed every third of it.
   * The same in all members. @default 15,000
   */
  readonly leaseMs?: number | undefined;
  /** Milliseconds after which a command counts as failed; less than `leaseMs`. @default 2,000, at most a third of `leaseMs` */
  readonly commandTimeoutMs?: number | undefined;
  /**
   * While Redis cannot be reached: `wait` until the caller's own deadline; `fail` with `LimitsUnavailableError`; or work on
   * with this member's `local` share of the limit. It begins one lease after the last confirmation, with what is held; permits
   * beyond the share are lost. New ones are granted 1.4 leases after it, when no other member can hold more than its share.
   * If only some members lose Redis, their shares come on top of the limit.
   * @default 'wait'
   */
  readonly whenUnavailable?: WhenUnavailable | undefined;
  /** The `source` in errors of `RedisLimits` itself. @default 'limits' */
  readonly name?: string | undefined;
  /** Where its limiters emit their events, where they have no hooks of their own. @default hooks of its own */
  readonly hooks?: LifecycleHooks | undefined;
}

/** Options of a fleet limiter. */
export interface FleetLimiterOptions {
  /** What members share the limit by, and the `source` in events and errors; well-formed Unicode. */
  readonly name: string;
  /**
   * Weight that all members together may hold at once; a whole number from 1. Where the limit exists already, its value
   * stays, and `limit:mismatch` is emitted; set `maxConcurrent` of the limiter to change it for all.
   */
  readonly maxConcurrent: number;
  /** Waiters of this process that may queue; the next request rejects with `QueueFullError`. 0 queues none. @default unlimited */
  readonly maxQueue?: number | undefined;
  /** Milliseconds that a request waits at most, where it has no `timeoutMs` of its own. @default unlimited */
  readonly acquireTimeoutMs?: number | undefined;
  /**
   * What tenants of one priority share equally: permit-time (`time`: weight times time held, estimated at the grant from what
   * the tenant's permits took lately, and corrected at the release), `weight`, or the number of `requests`.
   * @default 'time'
   */
  readonly fairBy?: 'time' | 'weight' | 'requests' | undefined;
  /**
   * Returns what a tenant may use: its `weight` in shares, what it may hold at once in all processes, and what is
   * `guaranteed` to it. Called for each request of a tenant, and the last answer counts in all processes: return the same
   * in each. If it throws, or returns something invalid, that request is rejected with the error. With
   * `whenUnavailable: 'local'`, each process keeps to its share of caps and guarantees while Redis cannot be reached.
   * @default the same for all
   */
  readonly tenants?: ((name: string) => TenantShare) | undefined;
  /**
   * A waiter counts as one priority higher per `agingMs` waited, so that the lowest priority is served in bounded time; from 1.
   * @default waiting changes no priority
   */
  readonly agingMs?: number | undefined;
  /** Where events are emitted. @default those of the `RedisLimits` */
  readonly hooks?: LifecycleHooks | undefined;
}

/** The options of `RedisLimits` that its limiters need, complete. */
export interface FleetOptions {
  readonly prefix: string;
  readonly leaseMs: number;
  readonly commandTimeoutMs: number;
  readonly whenUnavailable: WhenUnavailable;
  readonly hooks: LifecycleHooks;
}

/** A name that becomes part of a key: a lone surrogate has no UTF-8, and two names with one would share a key. */
export function keyText(option: string, value: unknown): string {
  const name = text(option, value);
  if (wellFormed(name) !== name) throw new RangeError(refusal(option, 'well-formed Unicode', name));
  return name;
}

const LIMITER_CHECKS: Checks<FleetLimiterOptions> = {
  name: keyText,
  maxConcurrent: wholeNumber,
  maxQueue: fromZero,
  acquireTimeoutMs: durationMs,
  fairBy: fairByOption,
  tenants: callable,
  agingMs: positiveMs,
  hooks: checkHooks,
};

/** The options that a second call for the same limiter must repeat. */
export const LIMITER_OPTIONS = Object.keys(LIMITER_CHECKS) as readonly (keyof FleetLimiterOptions)[];

/** Throws for a wrong option; fills in the defaults. */
export function checkRedisLimitsOptions(
  given: RedisLimitsOptions,
): FleetOptions & { readonly name?: string | undefined } {
  const options = checkEach('RedisLimits', given, {
    client: () => {},
    prefix: keyText,
    leaseMs: (option, value) => durationMs(option, value, 100),
    commandTimeoutMs: positiveMs,
    whenUnavailable: (option, value) => oneOf(option, value, ['wait', 'fail', 'local']),
    name: text,
    hooks: checkHooks,
  });
  const { prefix = 'pipeline-pool', leaseMs = 15_000, whenUnavailable = 'wait', name } = options;
  const { commandTimeoutMs = Math.min(2_000, leaseMs / 3), hooks = new LifecycleHooks() } = options;
  checkClient(options.client);
  if (commandTimeoutMs >= leaseMs) {
    throw new RangeError(refusal('commandTimeoutMs', `less than \`leaseMs\` (${leaseMs})`, commandTimeoutMs));
  }
  return { prefix, leaseMs, commandTimeoutMs, whenUnavailable, hooks, name };
}

/** Throws for a wrong option of one limiter. */
export function checkLimiterOptions(given: FleetLimiterOptions): FleetLimiterOptions {
  const options = { ...checkEach('limiter', given, LIMITER_CHECKS) };
  keyText('name', options.name);
  wholeNumber('maxConcurrent', options.maxConcurrent);
  return options;
}
