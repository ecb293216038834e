/**
 * The queue that limiter and pool share: guarantees first, then priority, then tenants by the work they received, then
 * FIFO. `tenant.ts` has the tenants and their order, `drain-rate.ts` estimates waiting times.
 */
import { refusal } from '../internal/validate.js';
import { Aging } from './aging.js';
import type { FairnessOptions } from './fairness-options.js';
import { IndexedHeap } from './indexed-heap.js';
import {
  isNext,
  PriorityLevel,
  type QueueNode,
  type QueuePosition,
  smoothed,
  Tenant,
  TenantQueue,
} from './tenant.js';

/** Tenants that are remembered, for their mean, though they hold nothing and have no waiters. */
const REMEMBERED = 1_000;
/** A waiter's position is looked up among so many priorities; beyond, it is the size of the queue. */
const SEARCHED_LEVELS = 256;

const weightOf = (node: QueueNode): number => node.weight ?? 1;

/**
 * Guarantees first, then priority, then tenants by work received, then FIFO.
 *
 *     tenants, the next one first     Tenant a ──┬── Tenant b ──┬── Tenant (none)
 *     its priorities, highest first     TenantQueue 10   TenantQueue 0   TenantQueue 0
 *     elements in a list                a1 → a2 → a3     b1              1 → 2 → 3 → …
 *
 * Start-time fair queueing (Goyal, Vin and Cheng, 1996) with estimated costs, corrected afterwards, as in the virtual
 * token counter (arXiv 2401.00588). A step is O(1) without tenants and priorities, and else O(log n) in those in use.
 *
 * Invariants:
 * - A tenant is in the heap exactly while it has elements and its cap has room for the next of them.
 * - Within a tenant and priority, elements leave from the head in the order in which they came.
 * - A tenant that begins to wait does so at the virtual time of its priority, or later if it has received more.
 * - Work is charged and weight is held from the grant (`take`, `charge`) to its end (`settle`), once tenants are named.
 */
export class FairQueue<W extends QueueNode> {
  readonly #options: FairnessOptions;
  readonly #isByTime: boolean;
  readonly #now: () => number;
  /** @internal The tenants that may be served, the next one first. */
  readonly ready = new IndexedHeap<Tenant>(isNext);
  /** The next tenant, read before every step. */
  #top: Tenant | undefined;
  /** The elements without a tenant, which is the usual case, count as one tenant. */
  readonly #none = new Tenant();
  readonly #tenants = new Map<string, Tenant>();
  readonly #levels = new Map<number, PriorityLevel>();
  // Most queues use one priority only: its level is kept between elements.
  readonly #defaultLevel = new PriorityLevel(0);
  #size = 0;
  #excess = 0;
  #turns = 0;
  /** The work that the tenant of the last grant had received. */
  #virtual = 0;
  /** How long any tenant holds a permit, lately. */
  #meanMs: number | undefined;
  /** How many tenants there must be for the next search for those to forget. */
  #sweepAt = REMEMBERED;
  /** Whether a tenant was named: from then on every grant is charged. Set here only. */
  isShared = false;
  readonly #aging: Aging | undefined;

  constructor(options: FairnessOptions = {}, now: () => number = () => 0) {
    this.#options = options;
    this.#isByTime = (options.fairBy ?? 'time') === 'time';
    this.#now = now;
    this.#levels.set(0, this.#defaultLevel);
    if (options.agingMs !== undefined) this.#aging = new Aging(options.agingMs);
  }

  /** Elements in the queue. */
  get size(): number {
    return this.#size;
  }

  /** Elements in the queue, less those that wait for room under a cap. */
  get eligible(): number {
    return this.#size - this.#excess;
  }

  /** The priority of the next element. */
  get topPriority(): number | undefined {
    return this.#top?.top?.level.priority;
  }

  /**
   * The tenant with this name, for a request of that weight.
   *
   * @throws whatever is wrong with its share
   */
  tenant(name: string, weight = 1): Tenant {
    this.isShared = true;
    let tenant = this.#tenants.get(name);
    if (tenant === undefined) {
      this.#forget();
      tenant = new Tenant();
      this.#tenants.set(name, tenant);
    }
    const { tenants } = this.#options;
    if (tenants !== undefined) {
      if (tenant.held === 0 && tenant.top === undefined) tenant.configure(tenants(name));
      if (weight > tenant.cap)
        throw new RangeError(refusal('weight', `at most ${tenant.cap} for this tenant`, weight));
    }
    return tenant;
  }

  /** Adds an element that leaves only in its turn, with priority 0 and no tenant. */
  push(node: W): void {
    this.#append(node, this.#none.plain ?? this.#queueOf(this.#none, 0));
  }

  /** Adds an element behind those of its priority and tenant. It must not be queued already; `position` is its own. */
  pushAt(position: QueuePosition, node: W, priority = 0, tenant: Tenant = this.#none): void {
    const queue = this.#queueOf(tenant, priority);
    position.queue = queue;
    position.previous = queue.tail;
    position.order = queue.size + queue.taken;
    if (this.#aging !== undefined) position.queuedAtMs = this.#now();
    this.#append(node, queue);
    if (tenant.cap !== Number.POSITIVE_INFINITY) this.#update(tenant);
  }

  /** Finds the position of an element that was queued without one, so that it may leave before its turn. O(n). */
  locate(position: QueuePosition, node: W): void {
    const queue = this.#none.plain;
    let previous: QueueNode | undefined;
    for (let at = queue?.head; at !== node; at = at.next) {
      if (at === undefined) return;
      previous = at;
    }
    position.queue = queue;
    position.previous = previous;
  }

  /** The next element; it stays in the queue. `undefined` also if every tenant with elements is at its cap. */
  peek(): W | undefined {
    return this.#aging === undefined ? (this.#top?.top?.head as W | undefined) : this.#peekAged(this.#aging);
  }

  /** Takes the next element. */
  shift(): W | undefined {
    const next = this.peek();
    if (next !== undefined) this.take(next);
    return next;
  }

  /** Takes the element that `peek` has just returned, and charges its tenant. */
  take(node: W): void {
    const queue = ((this.#aging && node.position?.queue) ?? this.#top?.top) as TenantQueue;
    const { next } = node;
    queue.head = next;
    queue.size--;
    queue.taken++;
    queue.level.size--;
    this.#size--;
    node.next = undefined;
    this.#aging?.place(queue);
    if (next === undefined) this.#endAt(undefined, queue);
    else if (next.position !== undefined) next.position.previous = undefined;
    if (node.position !== undefined) node.position.queue = undefined;
    if (this.isShared) this.#grant(node.position, weightOf(node), queue.tenant, queue.level);
  }

  /** Removes an element from anywhere; `position` is its own. Returns false for one that is not queued. */
  remove(position: QueuePosition, node: W): boolean {
    const { queue, previous } = position;
    if (queue === undefined) return false;
    position.queue = undefined;
    position.previous = undefined;
    const { next } = node;
    if (previous === undefined) queue.head = next;
    else previous.next = next;
    queue.size--;
    queue.level.size--;
    this.#size--;
    node.next = undefined;
    this.#aging?.place(queue);
    if (next === undefined) this.#endAt(previous, queue);
    else if (next.position !== undefined) next.position.previous = previous;
    if (queue.tenant.cap !== Number.POSITIVE_INFINITY) this.#update(queue.tenant);
    return true;
  }

  /** Whether a newcomer would be next. Without a priority it is next only if there is no other. */
  isNext(weight: number, priority: number, tenant: Tenant = this.#none): boolean {
    // Behind its own waiters, which a cap holds back.
    if (tenant.isFull(weight) || (tenant.top !== undefined && tenant.heapIndex < 0)) return false;
    const top = this.#top;
    if (top === undefined) return true;
    if (tenant.isUrgent !== top.isUrgent) return tenant.isUrgent;
    if (priority <= (this.topPriority as number)) return false;
    return this.#aging?.precedes(this.#aging.dueMs(priority, this.#now())) === undefined;
  }

  /** Charges a tenant for a grant to a request that did not wait. */
  charge(position: QueuePosition, weight: number, tenant: Tenant = this.#none): void {
    if (tenant.top === undefined) tenant.received = Math.max(tenant.received, this.#virtual);
    this.#grant(position, weight, tenant, undefined);
  }

  /** A grant has ended: the charge is corrected by what was received. */
  settle(position: QueuePosition, weight: number): void {
    const tenant = position.holder;
    if (tenant === undefined) return;
    position.holder = undefined;
    tenant.held -= weight;
    if (this.#isByTime) {
      const { charged = 0, grantedAtMs = 0 } = position;
      const ms = this.#now() - grantedAtMs;
      tenant.received += (weight * ms) / tenant.share - charged;
      // Exactly 0 without grants: sums of fractions would drift.
      tenant.pending = tenant.held === 0 ? 0 : tenant.pending - charged;
      tenant.since = tenant.held === 0 ? 0 : tenant.since - weight * grantedAtMs;
      tenant.meanMs = smoothed(tenant.meanMs, ms);
      this.#meanMs = smoothed(this.#meanMs, ms);
    }
    this.#update(tenant);
  }

  /** Lets every waiter be next, whatever the caps. */
  liftCaps(): void {
    for (const tenant of this.#tenants.values()) {
      tenant.cap = Number.POSITIVE_INFINITY;
      this.#update(tenant);
    }
  }

  /**
   * How many elements may be taken before one more of this priority and tenant, if no others came. Exact without tenants,
   * and for the first request of one. Else an upper bound by turns: all ahead of it in its own queue, and with each of
   * those one of every other tenant, as far as there are so many. O(1) for few priorities.
   */
  aheadOf(priority = 0, name?: string): number {
    const level = this.#levels.get(priority);
    const tenant = name === undefined ? this.#none : this.#tenants.get(name);
    const own = (level && tenant && this.#find(tenant, level)?.size) ?? 0;
    return this.#ahead(priority, own, own > 0, tenant);
  }

  /** The same for an element in the queue; those ahead of it that left before their turn may still count. */
  aheadOfQueued({ queue, order = 0 }: QueuePosition): number {
    if (queue === undefined) return 0;
    const own = Math.min(queue.size - 1, order - queue.taken);
    return this.#ahead(queue.level.priority, own, true, queue.tenant);
  }

  #ahead(priority: number, own: number, isQueued: boolean, tenant: Tenant | undefined): number {
    if (this.#levels.size > SEARCHED_LEVELS) return this.#size;
    let ahead = 0;
    for (const level of this.#levels.values()) {
      if (level.priority > priority) ahead += level.size;
      else if (level.priority === priority && level.size > 0) {
        const isFirst =
          own === 0 && (tenant === this.#top || (!isQueued && this.#resumesFirst(tenant, level)));
        const others = isFirst ? 0 : level.tenants - (isQueued ? 1 : 0);
        ahead += Math.min(level.size, own + (own + 1) * others);
      }
    }
    return ahead;
  }

  /** The work that a grant is charged, by the tenant's share: an estimate, where it depends on time. */
  costOf(tenant: Tenant, weight: number): number {
    const { fairBy } = this.#options;
    if (fairBy === 'requests') return 1 / tenant.share;
    const ms = fairBy === 'weight' ? 1 : (tenant.meanMs ?? this.#meanMs ?? 0);
    return (weight * ms) / tenant.share;
  }

  #receivedBy(tenant: Tenant): number {
    return this.#isByTime ? tenant.receivedBy(this.#now()) : tenant.received;
  }

  #peekAged(aging: Aging): W | undefined {
    const top = this.#top?.top;
    if (top?.head === undefined || top.tenant.isUrgent) return top?.head as W | undefined;
    const { priority } = top.level;
    const dueMs = aging.dueMs(priority, top.head.position?.queuedAtMs as number);
    return (aging.precedes(dueMs, priority) ?? top.head) as W;
  }

  #grant(
    position: QueuePosition | undefined,
    weight: number,
    tenant: Tenant,
    level: PriorityLevel | undefined,
  ): void {
    const charged = this.costOf(tenant, weight);
    this.#virtual = this.#receivedBy(tenant);
    if (level !== undefined) level.virtual = this.#virtual;
    tenant.received += charged;
    tenant.turn = ++this.#turns;
    if (position !== undefined) {
      position.holder = tenant;
      position.charged = charged;
      tenant.held += weight;
      if (this.#isByTime) {
        position.grantedAtMs = this.#now();
        tenant.pending += charged;
        tenant.since += weight * position.grantedAtMs;
      }
    }
    this.#update(tenant);
  }

  /** Whether a tenant that begins to wait has received less than any other with waiters of this priority. */
  #resumesFirst(tenant: Tenant | undefined, level: PriorityLevel): boolean {
    const top = this.#top;
    if (top?.top?.level !== level) return false;
    return Math.max(tenant?.received ?? 0, level.virtual) < top.received;
  }

  #queueOf(tenant: Tenant, priority: number): TenantQueue {
    // Created for the first element and dropped with the last: each wait writes to its queue, and V8's write barrier costs
    // more for an old object.
    if (priority === 0) {
      tenant.plain ??= new TenantQueue(this.#defaultLevel, tenant);
      return tenant.plain;
    }
    let level = this.#levels.get(priority);
    if (level === undefined) {
      level = new PriorityLevel(priority);
      this.#levels.set(priority, level);
    }
    let queue = level.queues.get(tenant);
    if (queue === undefined) {
      queue = new TenantQueue(level, tenant);
      level.queues.set(tenant, queue);
    }
    return queue;
  }

  #find(tenant: Tenant, level: PriorityLevel): TenantQueue | undefined {
    return level === this.#defaultLevel ? tenant.plain : level.queues.get(tenant);
  }

  #append(node: W, queue: TenantQueue): void {
    const { tail } = queue;
    if (tail === undefined) this.#open(queue, node);
    else tail.next = node;
    queue.tail = node;
    queue.size++;
    queue.level.size++;
    this.#size++;
  }

  /** The first element of a queue that was empty. */
  #open(queue: TenantQueue, first: W): void {
    const { level, tenant } = queue;
    queue.head = first;
    if (level.tenants++ === 0) level.virtual = this.#virtual;
    if (tenant.top === undefined) {
      // No credit for the time in which it wanted nothing.
      const top = this.#top?.top?.level === level ? this.#receivedBy(this.#top as Tenant) : level.virtual;
      tenant.received = Math.max(tenant.received, Math.min(level.virtual, top));
      tenant.turn = ++this.#turns;
    }
    tenant.open(queue);
    this.#update(tenant);
    this.#aging?.place(queue);
  }

  /** The tail is now `last`, or the queue is empty. */
  #endAt(last: QueueNode | undefined, queue: TenantQueue): void {
    queue.tail = last;
    if (last !== undefined) return;
    const { level, tenant } = queue;
    if (level === this.#defaultLevel) tenant.plain = undefined;
    else level.queues.delete(tenant);
    tenant.close(queue);
    if (--level.tenants === 0 && level !== this.#defaultLevel) this.#levels.delete(level.priority);
    this.#update(tenant);
  }

  /** A tenant's place, after anything has changed that it depends on. */
  #update(tenant: Tenant): void {
    const head = tenant.top?.head;
    const wasReady = tenant.heapIndex >= 0;
    if (head === undefined || tenant.isFull(weightOf(head))) this.ready.remove(tenant);
    else this.ready.place(tenant);
    this.#top = this.ready.top;
    if (this.#aging !== undefined && wasReady !== tenant.heapIndex >= 0)
      for (const queue of tenant.queues) this.#aging.place(queue);
    if (tenant.cap === Number.POSITIVE_INFINITY && tenant.excess === 0) return;
    const excess = Math.max(0, tenant.queued - Math.max(0, tenant.cap - tenant.held));
    this.#excess += excess - tenant.excess;
    tenant.excess = excess;
  }

  /** Drops tenants that would resume as a new one does, each time that there are twice as many as were left before. */
  #forget(): void {
    if (this.#tenants.size < this.#sweepAt) return;
    for (const [name, tenant] of this.#tenants) {
      const isIdle = tenant.held === 0 && tenant.top === undefined;
      if (isIdle && (this.#size === 0 || tenant.received <= this.#virtual)) this.#tenants.delete(name);
    }
    this.#sweepAt = Math.max(REMEMBERED, 2 * this.#tenants.size);
  }
}
