/**
 * The parts of the fair queue, from the inside out: `QueueNode` (an element), `TenantQueue` (those of one tenant and
 * priority), `PriorityLevel` (what those of one priority have in common), `Tenant` (its queues, and what it received).
 */
import { finiteNumber, options, synchronous, wholeNumber } from '../internal/validate.js';
import type { TenantShare } from './fairness-options.js';
import { type HeapItem, IndexedHeap } from './indexed-heap.js';

/** What an element that may leave before its turn has, and what a grant to a tenant is charged to. Owned by the queue. */
export interface QueuePosition {
  /** @internal */ queue?: TenantQueue | undefined;
  /** @internal */ previous?: QueueNode | undefined;
  /** @internal Present from the grant to its end, where tenants are named. */
  holder?: Tenant | undefined;
  /** @internal The work that the grant was charged. */
  charged?: number;
  /** @internal When it was granted. */
  grantedAtMs?: number;
  /** @internal Its place among all that were ever in its queue. */
  order?: number;
  /** @internal When it was queued, with `agingMs`. */
  queuedAtMs?: number;
}

/** An element. The list is intrusive: an element needs no node of its own. */
export interface QueueNode {
  /** @internal Owned by the queue. */
  next: QueueNode | undefined;
  /**
   * Required for an element that may leave before its turn, or that has a priority or a tenant. An element without one
   * has priority 0 and no tenant; one that gets its position while queued is passed to `locate`.
   */
  readonly position: QueuePosition | undefined;
  /** What it counts for. @default 1 */
  readonly weight?: number;
}

/** @internal The elements of one tenant and priority: a FIFO list. */
export class TenantQueue implements HeapItem {
  head: QueueNode | undefined = undefined;
  tail: QueueNode | undefined = undefined;
  size = 0;
  /** Elements that left from the head, in their turn. */
  taken = 0;
  heapIndex = -1;
  /** With `agingMs`. */
  aged: AgedQueue | undefined = undefined;

  constructor(
    readonly level: PriorityLevel,
    readonly tenant: Tenant,
  ) {}
}

/** @internal What all elements of one priority have in common. */
export class PriorityLevel implements HeapItem {
  /** Elements. */
  size = 0;
  /** Tenants that have them. */
  tenants = 0;
  /** The present virtual time: the work that the tenant of its last grant had received. */
  virtual = 0;
  /** The queues of its tenants; those of priority 0 are known to their tenants. */
  readonly queues = new Map<Tenant, TenantQueue>();
  heapIndex = -1;
  /** With `agingMs`: its queues, the one with the oldest element first. */
  aged: IndexedHeap<AgedQueue> | undefined = undefined;

  constructor(readonly priority: number) {}
}

/** @internal A tenant's queue among those of its priority. */
export interface AgedQueue extends HeapItem {
  readonly queue: TenantQueue;
}

/** The share of the last call in a mean. */
const SMOOTHING = 0.2;

/** A mean in which older values count less and less. */
export const smoothed = (mean: number | undefined, value: number): number =>
  mean === undefined ? value : mean + SMOOTHING * (value - mean);

/** A tenant of one queue: what it holds, what it has received, and its waiters. */
export class Tenant implements HeapItem {
  /** @internal Position among those that may be served. */
  heapIndex = -1;
  /** Its waiters of the highest priority. */
  top: TenantQueue | undefined = undefined;
  /** Its queues, where it has waiters of several priorities. */
  several: IndexedHeap<TenantQueue> | undefined = undefined;
  /** That of priority 0, which is the usual one. */
  plain: TenantQueue | undefined = undefined;
  /** Work charged, divided by its share: what it received, and what is still expected of its present grants. */
  received = 0;
  /** The part of it that its present grants were charged. */
  pending = 0;
  /** When they were granted: the sum, by weight. */
  since = 0;
  /** Counts up with each of its grants, and when it begins to wait: of equals the smallest is next. */
  turn = 0;
  /** Weight held. */
  held = 0;
  /** How long it holds a permit, lately. */
  meanMs: number | undefined = undefined;
  share = 1;
  cap = Number.POSITIVE_INFINITY;
  guaranteed = 0;
  /** Waiters beyond what its cap has room for. */
  excess = 0;

  /** Its waiters, one queue for each priority. */
  get queues(): readonly TenantQueue[] {
    return this.several?.items ?? (this.top === undefined ? [] : [this.top]);
  }

  /** Its waiters. */
  get queued(): number {
    let queued = 0;
    for (const { size } of this.queues) queued += size;
    return queued;
  }

  /** Whether it has a cap, and its waiters will take all that is left of it. */
  get isTaken(): boolean {
    return this.cap !== Number.POSITIVE_INFINITY && this.held + this.queued >= this.cap;
  }

  /** A queue of it has its first waiter. */
  open(queue: TenantQueue): void {
    if (this.top === undefined) {
      this.top = queue;
      return;
    }
    if (this.several === undefined) {
      this.several = new IndexedHeap(isHigher);
      this.several.place(this.top);
    }
    this.several.place(queue);
    this.top = this.several.top;
  }

  /** A queue of it has no waiter any more. */
  close(queue: TenantQueue): void {
    this.several?.remove(queue);
    this.top = this.several?.top;
    if (this.top === undefined) this.several = undefined;
  }

  /** Whether it has a claim to whatever is released next. */
  get isUrgent(): boolean {
    return this.held < this.guaranteed;
  }

  /** Whether a permit of this weight would exceed its cap. */
  isFull(weight: number): boolean {
    return this.held + weight > this.cap;
  }

  /** Work received by now. What is still expected of present grants does not count. */
  receivedBy(nowMs: number): number {
    return this.received - this.pending + (this.held * nowMs - this.since) / this.share;
  }

  /** Sets what it may use. Throws for anything invalid. */
  configure(given: TenantShare): void {
    options('tenants()', synchronous('tenants', given), ['weight', 'maxConcurrent', 'guaranteed']);
    const { weight = 1, maxConcurrent = Number.POSITIVE_INFINITY, guaranteed = 0 } = given;
    finiteNumber('weight', weight, 0.001, 1_000);
    if (maxConcurrent !== Number.POSITIVE_INFINITY) wholeNumber('maxConcurrent', maxConcurrent);
    wholeNumber('guaranteed', guaranteed, 0, Math.min(maxConcurrent, Number.MAX_SAFE_INTEGER));
    this.share = weight;
    this.cap = maxConcurrent;
    this.guaranteed = guaranteed;
  }
}

const isHigher = (a: TenantQueue, b: TenantQueue): boolean => a.level.priority > b.level.priority;

/** What the order of tenants depends on. */
export interface Orderable {
  isUrgent: boolean;
  top: TenantQueue | undefined;
  received: number;
  turn: number;
}

/** The order of tenants with waiters: guarantees, then priority, then work received, then turns. */
export function isNext(a: Readonly<Orderable>, b: Readonly<Orderable>): boolean {
  if (a.isUrgent !== b.isUrgent) return a.isUrgent;
  const priorityOfA = (a.top as TenantQueue).level.priority;
  const priorityOfB = (b.top as TenantQueue).level.priority;
  if (priorityOfA !== priorityOfB) return priorityOfA > priorityOfB;
  return a.received === b.received ? a.turn < b.turn : a.received < b.received;
}
