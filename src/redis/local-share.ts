import { turnMs } from '../internal/clock.js';
import { FairQueue, refund, type Tenant } from '../queue/fair-queue.js';
import type { FairnessOptions } from '../queue/options.js';
import type { FleetPermit } from './fleet-permit.js';

/**
 * What a member works with while it cannot reach Redis (`whenUnavailable: 'local'`): its share of the limit, and of each
 * tenant's cap and guarantee. The order is that of a local limiter, with no work received before.
 *
 * Invariants:
 * - What is held here never exceeds the share of the limit, nor a tenant's share of its cap.
 * - A permit is in the queue exactly while it waits, and counts for its tenant exactly while it is held.
 */
export class LocalShare {
  readonly #size: number;
  readonly #members: number;
  readonly #rank: number;
  readonly #queue: FairQueue<FleetPermit>;
  #active = 0;
  /** When the request came that is being added. */
  #arrivedMs: number | undefined;

  /** `members` is 0 for one that the others may not know of: it has no share. */
  constructor(
    limit: number,
    members: number,
    rank: number,
    { fairBy, agingMs }: Pick<FairnessOptions, 'fairBy' | 'agingMs'>,
  ) {
    this.#members = members;
    this.#rank = rank;
    this.#size = this.#shareOf(limit);
    this.#queue = new FairQueue({ fairBy, agingMs }, () => this.#arrivedMs ?? turnMs());
  }

  /** Whether a permit that is held already stays within the share, where it then counts. */
  keep(permit: FleetPermit): boolean {
    const tenant = this.#tenantOf(permit);
    if (this.#active + permit.weight > this.#size || tenant?.isFull(permit.weight)) return false;
    permit.position = {};
    this.#active += permit.weight;
    this.#queue.charge(permit.position, permit.weight, tenant);
    return true;
  }

  add(permit: FleetPermit): void {
    permit.position = {};
    this.#arrivedMs = permit.sinceMs;
    this.#queue.pushAt(permit, permit.priority, this.#tenantOf(permit));
    this.#arrivedMs = undefined;
  }

  /** A waiter leaves without a permit. */
  remove(permit: FleetPermit): void {
    this.#queue.remove(permit);
  }

  /** A permit is no longer held. */
  release(permit: FleetPermit): void {
    if (permit.position === undefined) return;
    this.#active -= permit.weight;
    if (permit.isUnused) refund(permit.position);
    this.#queue.settle(permit.position, permit.weight);
  }

  /** Takes the next waiter out of the queue, if there is room for it. */
  next(): FleetPermit | undefined {
    const next = this.#queue.peek();
    if (next === undefined || this.#active + next.weight > this.#size) return undefined;
    this.#queue.take(next);
    this.#active += next.weight;
    return next;
  }

  /** By how many members joined before it, so that all shares together are the whole. */
  #shareOf(whole: number): number {
    if (this.#members === 0) return 0;
    if (!Number.isFinite(whole)) return whole;
    return Math.floor(whole / this.#members) + (this.#rank < whole % this.#members ? 1 : 0);
  }

  #tenantOf({ tenant: name, sharing }: FleetPermit): Tenant | undefined {
    if (name === undefined) return undefined;
    // Of any weight: its share of the cap may be less.
    const tenant = this.#queue.tenant(name, 0);
    const { weight, maxConcurrent, guaranteed } = sharing.limits;
    tenant.limits = {
      weight,
      maxConcurrent: this.#shareOf(maxConcurrent),
      guaranteed: this.#shareOf(guaranteed),
    };
    return tenant;
  }
}
