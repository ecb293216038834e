import type { QueuePlace } from '../hooks/events.js';
import {
  type Check,
  type Checks,
  checkEach,
  finiteNumber,
  oneOf,
  refusal,
  synchronous,
  wholeNumber,
} from '../internal/validate.js';

/** What a tenant may use. */
export interface TenantShare {
  /** Its share relative to those of others with the same priority; from 0.001 to 1,000. @default 1 */
  readonly weight?: number | undefined;
  /** What it may hold at once; a whole number from 1. Its further requests wait, and block no other. @default unlimited */
  readonly maxConcurrent?: number | undefined;
  /**
   * While it holds less, it is next for whatever is released, ahead of all other tenants and priorities. Others may use
   * what it leaves. A whole number from 0 to `maxConcurrent`. @default 0
   */
  readonly guaranteed?: number | undefined;
}

/** How waiters share a limit: options of a limiter, a pool and a gate. */
export interface FairnessOptions {
  /**
   * By what tenants of one priority share: the time for which permits are held, times their weight; the weight alone; or
   * the number of requests. @default 'time'
   */
  readonly fairBy?: 'time' | 'weight' | 'requests' | undefined;
  /**
   * Returns what a tenant may use. Called when a tenant that holds nothing and has no waiters makes a request; if it
   * throws, or returns something invalid, that request is rejected with the error. @default the same for all
   */
  readonly tenants?: ((name: string) => TenantShare) | undefined;
  /**
   * Milliseconds of waiting that count as one priority more, so that the lowest priority is served in bounded time.
   * @default waiting changes no priority
   */
  readonly agingMs?: number | undefined;
}

export const fairByOption: Check = (option, value) => oneOf(option, value, ['time', 'weight', 'requests']);

/** What a tenant may use, with the defaults. */
export type TenantLimits = { readonly [K in keyof TenantShare]-?: number };

/** `Infinity` and not `Number.POSITIVE_INFINITY`: a bundler must keep top-level code that reads a property. */
export const UNLIMITED: TenantLimits = { weight: 1, maxConcurrent: Infinity, guaranteed: 0 };

const SHARE_CHECKS: Checks<TenantShare> = {
  weight: (_, value) => finiteNumber('tenants().weight', value, 0.001, 1_000),
  maxConcurrent: (_, value) => value === Infinity || wholeNumber('tenants().maxConcurrent', value),
  guaranteed: (_, value) => wholeNumber('tenants().guaranteed', value, 0),
};

/** What `tenants` has returned for a tenant. Throws for anything invalid. */
export function tenantLimits(given: TenantShare): TenantLimits {
  checkEach('tenants()', synchronous('tenants', given), SHARE_CHECKS);
  const { weight = 1, maxConcurrent = Infinity, guaranteed = 0 } = given;
  wholeNumber('tenants().guaranteed', guaranteed, 0, Math.min(maxConcurrent, Number.MAX_SAFE_INTEGER));
  return { weight, maxConcurrent, guaranteed };
}

/** Throws for a request that a tenant's cap never has room for. */
export function checkWeight({ maxConcurrent }: TenantLimits, weight: number): void {
  if (weight > maxConcurrent)
    throw new RangeError(refusal('weight', `at most ${maxConcurrent} for this tenant`, weight));
}

/** The option by which a manager learns where its request stands, from a limiter and a pool of this package. */
export const QUEUE_WATCH: unique symbol = /* @__PURE__ */ Symbol('queue watch');

/** The method of a permit that says, before its release, that it was not used: its tenant is not charged for it. */
export const UNUSED: unique symbol = /* @__PURE__ */ Symbol('unused');

/** What a limiter or a pool gives a way to read the place of a request that is queued. */
export interface QueueWatch {
  /** Reads the place; `undefined` once the request waits no longer. */
  readPlace: (() => QueuePlace | undefined) | undefined;
}
