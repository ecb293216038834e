import { callable, durationMs, oneOf } from '../internal/validate.js';

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

/** Throws for a wrong option. */
export function checkFairness({ fairBy, tenants, agingMs }: FairnessOptions): void {
  if (fairBy !== undefined) oneOf('fairBy', fairBy, ['time', 'weight', 'requests']);
  if (tenants !== undefined) callable('tenants', tenants);
  if (agingMs !== undefined) durationMs('agingMs', agingMs, 1);
}
