import type { Attachment } from '../../hooks/attachment.js';
import type { RequestInfo } from '../../manager/request.js';
import { FairQueue, type QueueNode, type Tenant } from '../../queue/fair-queue.js';
import { OTHER_TENANTS, TenantUse } from '../tenant-use.js';

/** What the requests of one tenant did in the window. */
export interface TenantReport {
  readonly name: string;
  /** Requests that ran and that waited, on average. */
  readonly running: number;
  readonly waiting: number;
  /** Requests that began. */
  readonly started: number;
  /** Requests that wait now. */
  readonly queued: number;
  /** The tenant in the limiter, if that is one of this package and has not forgotten it. */
  readonly tenant: Tenant | undefined;
}

export interface TenantsReport {
  /** Those whose requests took longest. */
  readonly all: readonly TenantReport[];
  /** The sum of what is guaranteed to tenants, as far as they want it now. */
  readonly guaranteed: number;
  readonly isByTime: boolean;
  /** The last tenant that was seen to wait for room under its cap, of several the one with the most waiters. */
  readonly capped: CappedTenant | undefined;
}

export interface CappedTenant {
  readonly name: string;
  readonly cap: number;
  readonly queued: number;
  /** Tenants that waited so at that time. */
  readonly tenants: number;
}

/** So many tenants are compared. */
const COMPARED = 10;

/** Follows the tenants of a manager for its diagnosis. */
export class TenantRecorder {
  readonly #use = new TenantUse(COMPARED);
  /** Of a limiter of this package. */
  readonly #queue: FairQueue<QueueNode> | undefined;
  #capped: CappedTenant | undefined;

  constructor(limiter: unknown) {
    const { queue } = limiter as { readonly queue?: unknown };
    if (queue instanceof FairQueue) this.#queue = queue;
  }

  listen(attachment: Attachment, source?: string, current?: readonly RequestInfo[]): void {
    this.#use.listen(attachment, source, current);
  }

  /** Waiters that only the caps of their tenants hold back. */
  get beyondCaps(): number {
    return this.#queue?.excess ?? 0;
  }

  /** Passes on all running totals, and notes whose cap is in the way. */
  read(countTo: (name: `tenant:${string}`, total: number) => void): void {
    for (const [name, { started, runMs, waitMs }] of this.#use.figures()) {
      countTo(`tenant:${name}:started`, started);
      countTo(`tenant:${name}:run.ms`, runMs);
      countTo(`tenant:${name}:wait.ms`, waitMs);
    }
    if (this.beyondCaps > 0) this.#noteCapped();
  }

  /** Notes whose cap is in the way, unless that is known. */
  noteNewlyCapped(): void {
    if (this.#capped === undefined && this.beyondCaps > 0) this.#noteCapped();
  }

  report(ms: number, sum: (name: `tenant:${string}`) => number): TenantsReport {
    const all: TenantReport[] = [];
    for (const [name, { queued }] of this.#use.figures()) {
      if (name === OTHER_TENANTS) continue;
      const started = Math.round(sum(`tenant:${name}:started`));
      const running = ms > 0 ? sum(`tenant:${name}:run.ms`) / ms : 0;
      const waiting = ms > 0 ? sum(`tenant:${name}:wait.ms`) / ms : 0;
      const tenant = this.#queue?.tenants.get(name);
      all.push({ name, running, waiting, started, queued, tenant });
    }
    let guaranteed = 0;
    for (const { limits, held, queued } of this.#queue?.tenants.values() ?? [])
      guaranteed += Math.min(limits.guaranteed, held + queued);
    const isByTime = this.#queue?.isByTime ?? true;
    return { all, guaranteed, isByTime, capped: this.#capped };
  }

  #noteCapped(): void {
    let worst: CappedTenant | undefined;
    let tenants = 0;
    for (const [name, { excess, limits }] of this.#queue?.tenants ?? []) {
      if (excess === 0) continue;
      tenants++;
      if (worst === undefined || excess > worst.queued)
        worst = { name, cap: limits.maxConcurrent, queued: excess, tenants };
    }
    if (worst !== undefined) this.#capped = { ...worst, tenants };
  }
}
