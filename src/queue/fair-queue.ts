/**
 * The queue that limiter and pool share: guarantees first, then priority, then tenants by the work they received, then
 * FIFO. From the outside in:
 *
 * - `QueueNode`, `QueuePosition`: an element
 * - `FairQueue`
 * - `Tenant`: its queues, what it received and what it may use; `isNext`: the order of tenants
 * - `PriorityLevel`: what all elements of one priority have in common; `TenantQueue`: those of one tenant and priority
 * - `Aging`: the oldest waiter of each priority, where waiting counts
 *
 * `heap` keeps tenants in order, `serving-order` previews the order, `drain-rate` estimates waiting times, `options` has what
 * limiter and pool pass on.
 */
import { type HeapItem, IndexedHeap, type OrderedItem, OrderedItems } from './heap.js';
import { checkWeight, type FairnessOptions, tenantLimits, UNLIMITED } from './options.js';

/** What an element that may leave before its turn has, and what a grant to a tenant is charged to. Owned by the queue. */
export interface QueuePosition {
  /** @internal */ queue?: TenantQueue | undefined;
  /** @internal */ previous?: QueueNode | undefined;
  /** @internal Present from the grant to its end, where tenants are named. */
  holder?: Tenant | undefined;
  /** @internal The work that the grant was charged. */
  charged?: number | undefined;
  /** @internal When it was granted. */
  grantedAtMs?: number | undefined;
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
   * Required for an element that may leave before its turn, or that has a priority or a tenant, and with `agingMs`. One that
   * gets its position while queued is passed to `locate`.
   */
  readonly position: QueuePosition | undefined;
  /** What it counts for. @default 1 */
  readonly weight?: number;
}

/** Tenants that are remembered, for their mean, though they hold nothing and have no waiters. */
const REMEMBERED = 1_000;
/** While others wait, so many are remembered for what they have received: where new ones never end, nothing else bounds them. */
const MAX_IDLE = 4_000;
/** A waiter's position is looked up among so many priorities; beyond, it is the size of the queue. */
const SEARCHED_LEVELS = 256;
/** The share of the last grant in a mean. */
const SMOOTHING = 0.2;

const smoothed = (mean: number | undefined, value: number): number =>
  mean === undefined ? value : mean + SMOOTHING * (value - mean);

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
  readonly #shareOf: FairnessOptions['tenants'];
  readonly #isByRequests: boolean;
  /** @internal Whether tenants share by time. */
  readonly isByTime: boolean;
  readonly #now: () => number;
  /** @internal The tenants that may be served, the next one first. */
  readonly ready = new OrderedItems<Tenant>(isNext);
  /** The next tenant, read before every step. */
  #top: Tenant | undefined;
  /** @internal The elements without a tenant, which is the usual case, count as one tenant. */
  readonly none = new Tenant();
  /** @internal Those that wait or hold something, and others that are remembered. */
  readonly tenants = new Map<string, Tenant>();
  readonly #levels = new Map<number, PriorityLevel>();
  // Most queues use one priority only: its level is kept between elements.
  readonly #defaultLevel = new PriorityLevel(0);
  #size = 0;
  /** Elements that wait for room under a cap. Set here only. */
  excess = 0;
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
    const { fairBy = 'time', tenants, agingMs } = options;
    this.#shareOf = tenants;
    this.#isByRequests = fairBy === 'requests';
    this.isByTime = fairBy === 'time';
    this.#now = now;
    this.#levels.set(0, this.#defaultLevel);
    if (agingMs !== undefined) this.#aging = new Aging(agingMs);
  }

  /** Elements in the queue. */
  get size(): number {
    return this.#size;
  }

  /**
   * The tenant with this name, for a request of that weight.
   *
   * @throws whatever is wrong with its share
   */
  tenant(name: string, weight = 1): Tenant {
    const shareOf = this.#shareOf;
    // First: it is the host's, and may come back here.
    const limits =
      shareOf === undefined || this.tenants.get(name)?.isIdle === false
        ? undefined
        : tenantLimits(shareOf(name));
    this.isShared = true;
    let tenant = this.tenants.get(name);
    if (tenant === undefined) {
      this.#forget();
      tenant = new Tenant();
      this.tenants.set(name, tenant);
    }
    if (limits !== undefined && tenant.isIdle) tenant.limits = limits;
    checkWeight(tenant.limits, weight);
    return tenant;
  }

  /** Adds an element without a position, with priority 0 and no tenant. */
  push(node: W): void {
    this.#append(node, this.none.plain ?? this.#queueOf(this.none, 0));
  }

  /** Adds an element with a position behind those of its priority and tenant. It must not be queued already. */
  pushAt(node: W, priority = 0, tenant: Tenant = this.none): void {
    const position = node.position as QueuePosition;
    // First: the host's clock may remove the others.
    if (this.#aging !== undefined) position.queuedAtMs = this.#now();
    const queue = this.#queueOf(tenant, priority);
    position.queue = queue;
    position.previous = queue.tail;
    position.order = queue.size + queue.taken;
    this.#append(node, queue);
    if (tenant.hasCap) this.#update(tenant);
  }

  /** The next element; it stays in the queue. `undefined` also if every tenant with elements is at its cap. */
  peek(): W | undefined {
    return this.#aging === undefined ? (this.#top?.top?.head as W | undefined) : this.#peekAged(this.#aging);
  }

  /** Takes the element that `peek` has just returned, and charges its tenant. */
  take(node: W): void {
    const queue = ((this.#aging && node.position?.queue) ?? this.#top?.top) as TenantQueue;
    queue.taken++;
    this.#unlink(node, undefined, queue);
    if (node.position !== undefined) node.position.queue = undefined;
    if (this.isShared) this.#grant(node.position, weightOf(node), queue.tenant, queue.level);
    else if (queue.head === undefined) this.#update(queue.tenant);
  }

  /** Removes an element from anywhere. Returns false for one that is not queued, or that has no position. */
  remove(node: W): boolean {
    const { position } = node;
    if (position?.queue === undefined) return false;
    const { queue, previous } = position;
    position.queue = undefined;
    position.previous = undefined;
    this.#unlink(node, previous, queue);
    if (queue.head === undefined || queue.tenant.hasCap) this.#update(queue.tenant);
    return true;
  }

  /** Whether a newcomer would be next. Without a priority it is next only if there is no other. */
  isNext(weight: number, priority: number, tenant: Tenant = this.none): boolean {
    // Behind its own waiters, which a cap holds back.
    if (tenant.isFull(weight) || (tenant.top !== undefined && tenant.index === -1)) return false;
    const top = this.#top;
    if (top === undefined) return true;
    if (tenant.isUrgent !== top.isUrgent) return tenant.isUrgent;
    if (priority <= top.priority) return false;
    return this.#aging?.precedes(this.#aging.dueMs(priority, this.#now())) === undefined;
  }

  /** Charges a tenant for a grant to a request that did not wait. */
  charge(position: QueuePosition, weight: number, tenant: Tenant = this.none): void {
    if (tenant.top === undefined) tenant.received = Math.max(tenant.received, this.#virtual);
    this.#grant(position, weight, tenant, undefined);
  }

  /** A grant has ended: the charge is corrected by what was received. */
  settle(position: QueuePosition, weight: number): void {
    const tenant = position.holder;
    if (tenant === undefined) return;
    position.holder = undefined;
    tenant.held -= weight;
    if (this.isByTime) {
      const { charged = 0, grantedAtMs } = position as Required<QueuePosition>;
      const ms = this.#now() - grantedAtMs;
      tenant.received += (weight * ms) / tenant.limits.weight - charged;
      // Exactly 0 without grants: sums of fractions would drift.
      tenant.pending = tenant.held === 0 ? 0 : tenant.pending - charged;
      tenant.since = tenant.held === 0 ? 0 : tenant.since - weight * grantedAtMs;
      if (position.charged !== undefined) {
        tenant.meanMs = smoothed(tenant.meanMs, ms);
        this.#meanMs = smoothed(this.#meanMs, ms);
      }
    }
    if (tenant.top !== undefined) this.#update(tenant);
  }

  /** Lets every waiter be next, whatever the caps, and charges nothing: for a queue that grants nothing any more. */
  stopSharing(): void {
    this.isShared = false;
    for (const tenant of this.tenants.values()) {
      if (!tenant.hasCap) continue;
      tenant.limits = UNLIMITED;
      // The place of one that might be served stands.
      if (tenant.index === -1) this.#update(tenant);
    }
  }

  /**
   * How many elements may be taken before one more of this priority and tenant, if no others came. Exact without tenants,
   * and for the first request of one. Else an upper bound by turns: all ahead of it in its own queue, and with each of
   * those one of every other tenant, as far as there are so many. O(1) for few priorities.
   */
  aheadOf(priority = 0, tenant: Tenant = this.none): number {
    const queue = priority === 0 ? tenant.plain : this.#levels.get(priority)?.queues.get(tenant);
    return this.#ahead(priority, tenant, queue?.size ?? 0, 0);
  }

  /**
   * The same for an element in the queue; those ahead of it that left before their turn may still count. One that was queued
   * without a position counts as the last without a tenant.
   */
  aheadOfQueued({ position }: W): number {
    const queue = position === undefined ? this.none.plain : position.queue;
    if (queue === undefined) return 0;
    const own = Math.min(queue.size - 1, (position?.order ?? Infinity) - queue.taken);
    return this.#ahead(queue.level.priority, queue.tenant, own, 1);
  }

  /** `own`: how many of its tenant and priority precede the element; `self`: how many of its level are the element itself. */
  #ahead(priority: number, tenant: Tenant, own: number, self: 0 | 1): number {
    if (this.#levels.size > SEARCHED_LEVELS) return this.#size - self;
    const isQueued = own + self > 0;
    const top = this.#top;
    let ahead = 0;
    for (const level of this.#levels.values()) {
      if (level.priority > priority) ahead += level.size;
      else if (level.priority === priority && level.size > 0) {
        // A tenant that begins to wait may have received less than any other with waiters of this priority.
        const resumesFirst =
          top?.top?.level === level && Math.max(tenant.received, level.virtual) < top.received;
        const isFirst = own === 0 && (tenant === top || (!isQueued && resumesFirst));
        const others = isFirst ? 0 : level.tenants - (isQueued ? 1 : 0);
        ahead += Math.min(level.size - self, own + (own + 1) * others);
      }
    }
    return ahead;
  }

  /** The work that a grant is charged, by the tenant's share: an estimate, where it depends on time. */
  costOf(tenant: Tenant, weight: number): number {
    const ms = this.isByTime ? (tenant.meanMs ?? this.#meanMs ?? 0) : 1;
    return ((this.#isByRequests ? 1 : weight) * ms) / tenant.limits.weight;
  }

  #receivedBy(tenant: Tenant): number {
    return this.isByTime ? tenant.receivedBy(this.#now()) : tenant.received;
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
      if (this.isByTime) {
        position.grantedAtMs = this.#now();
        tenant.pending += charged;
        tenant.since += weight * position.grantedAtMs;
      }
    }
    this.#update(tenant);
  }

  #queueOf(tenant: Tenant, priority: number): TenantQueue {
    // Without a tenant, created for the first element and dropped with the last: each wait writes to its queue, and V8's
    // write barrier costs more for an old object. A tenant keeps its own: with many, to make one costs more than to write.
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

  /** Takes an element out of the list; `previous` precedes it. Its tenant's place is yet to be updated. */
  #unlink(node: QueueNode, previous: QueueNode | undefined, queue: TenantQueue): void {
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
  }

  /** The tail is now `last`, or the queue is empty. */
  #endAt(last: QueueNode | undefined, queue: TenantQueue): void {
    queue.tail = last;
    if (last !== undefined) return;
    const { level, tenant } = queue;
    if (level !== this.#defaultLevel) level.queues.delete(tenant);
    else if (tenant === this.none) tenant.plain = undefined;
    tenant.close(queue);
    if (--level.tenants === 0 && level !== this.#defaultLevel) this.#levels.delete(level.priority);
  }

  /** A tenant's place, after anything has changed that it depends on. */
  #update(tenant: Tenant): void {
    const head = tenant.top?.head;
    const wasOut = tenant.index === -1;
    this.ready.update(tenant, head !== undefined && !tenant.isFull(weightOf(head)));
    this.#top = this.ready.next;
    if (!tenant.hasCap && tenant.excess === 0) return;
    const room = Math.max(0, tenant.limits.maxConcurrent - tenant.held);
    // A cap may have room for another of them now. Not for each that is queued: of many priorities there are many.
    if (this.#aging !== undefined && (room !== tenant.room || wasOut !== (tenant.index === -1)))
      for (const queue of tenant.queues) this.#aging.place(queue);
    tenant.room = room;
    const excess = Math.max(0, tenant.queued - room);
    this.excess += excess - tenant.excess;
    tenant.excess = excess;
  }

  /**
   * Drops tenants that would resume as a new one does, and the first where there are too many, each time that there are
   * twice as many as were left before.
   */
  #forget(): void {
    if (this.tenants.size < this.#sweepAt) return;
    for (const [name, tenant] of this.tenants) {
      if (tenant.isIdle && (tenant.received <= this.#virtual || this.tenants.size > (this.#size && MAX_IDLE)))
        this.tenants.delete(name);
    }
    this.#sweepAt = Math.max(REMEMBERED, 2 * this.tenants.size);
  }
}

/** Finds the position of an element that was queued without one, so that it may leave before its turn. O(n). */
export function locate<W extends QueueNode>({ none }: FairQueue<W>, node: W): void {
  const position = node.position as QueuePosition;
  position.queue = none.plain;
  for (let at = none.plain?.head; at !== node && at !== undefined; at = at.next) position.previous = at;
}

/** A tenant of one queue: what it holds, what it has received, and its waiters. */
export class Tenant implements OrderedItem<Tenant> {
  /** @internal Position among those that may be served. */
  index = -1;
  /** @internal */
  previous: Tenant | undefined;
  /** @internal */
  next: Tenant | undefined;
  /** Its waiters of the highest priority. */
  top: TenantQueue | undefined;
  /** Theirs. Kept here for the heap: with 10,000 tenants each further object costs a cache miss. */
  priority = 0;
  /** Its queues, where it has waiters of several priorities. */
  several: IndexedHeap<TenantQueue> | undefined;
  /** That of priority 0, which is the usual one. */
  plain: TenantQueue | undefined;
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
  meanMs: number | undefined;
  /** What it may use. */
  limits = UNLIMITED;
  /** The room that its cap had at its last step. */
  room = 0;
  /** Waiters beyond what its cap has room for. */
  excess = 0;
  /** Its waiters in other queues. Changed by the owner of the queue. */
  elsewhere = 0;

  /** Whether it holds nothing and waits for nothing. */
  get isIdle(): boolean {
    return this.held === 0 && this.top === undefined && this.elsewhere === 0;
  }

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

  get hasCap(): boolean {
    return this.limits.maxConcurrent !== Infinity;
  }

  /** A queue of it has its first waiter. */
  open(queue: TenantQueue): void {
    if (this.top !== undefined) {
      if (this.several === undefined) {
        this.several = new IndexedHeap(isHigher);
        this.several.place(this.top);
      }
      this.several.place(queue);
    }
    this.#setTop(this.several?.top ?? queue);
  }

  /** A queue of it has no waiter any more. */
  close(queue: TenantQueue): void {
    this.several?.remove(queue);
    this.#setTop(this.several?.top);
  }

  #setTop(top: TenantQueue | undefined): void {
    this.top = top;
    if (top === undefined) this.several = undefined;
    else this.priority = top.level.priority;
  }

  /** Whether it has a claim to whatever is released next. */
  get isUrgent(): boolean {
    return this.held < this.limits.guaranteed;
  }

  /** Whether a permit of this weight would exceed its cap. */
  isFull(weight: number): boolean {
    return this.held + weight > this.limits.maxConcurrent;
  }

  /** Work received by now. What is still expected of present grants does not count. */
  receivedBy(nowMs: number): number {
    return this.received - this.pending + (this.held * nowMs - this.since) / this.limits.weight;
  }
}

const isHigher = (a: TenantQueue, b: TenantQueue): boolean => a.level.priority > b.level.priority;

/** What the order of tenants depends on. */
export interface Orderable {
  isUrgent: boolean;
  priority: number;
  received: number;
  turn: number;
}

/** The order of tenants with waiters: guarantees, then priority, then work received, then turns. */
export function isNext(a: Readonly<Orderable>, b: Readonly<Orderable>): boolean {
  if (a.isUrgent !== b.isUrgent) return a.isUrgent;
  if (a.priority !== b.priority) return a.priority > b.priority;
  return a.received === b.received ? a.turn < b.turn : a.received < b.received;
}

/**
 * Takes back the charge of a grant that was not used, before it is settled. By time, `settle` still charges how long it was
 * held, which says nothing about how long the next will be.
 */
export function refund(position: QueuePosition): void {
  const { holder, charged = 0, grantedAtMs } = position;
  if (holder === undefined) return;
  holder.received -= charged;
  if (grantedAtMs !== undefined) holder.pending -= charged;
  position.charged = undefined;
}

/** @internal The elements of one tenant and priority: a FIFO list. */
export class TenantQueue implements HeapItem {
  head: QueueNode | undefined;
  tail: QueueNode | undefined;
  size = 0;
  /** Elements that left from the head, in their turn. */
  taken = 0;
  index = -1;
  /** With `agingMs`. */
  aged: AgedQueue | undefined;

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
  index = -1;
  /** With `agingMs`: its queues, the one with the oldest element first. */
  aged: IndexedHeap<AgedQueue> | undefined;

  constructor(readonly priority: number) {}
}

/** @internal A tenant's queue among those of its priority. */
export interface AgedQueue extends HeapItem {
  readonly queue: TenantQueue;
}

const queuedAtMs = (queue: TenantQueue): number => queue.head?.position?.queuedAtMs ?? 0;

/**
 * The oldest waiter of each priority, for a queue in which waiting counts.
 *
 * A waiter of priority p is as urgent as one of a higher priority P that arrives (P − p) × `agingMs` later. That order does
 * not change as time passes, so nothing has to be moved: `dueMs` is when a waiter arrived, minus its priority × `agingMs`.
 * Tenants of the same priority still share by work received.
 */
export class Aging {
  readonly #agingMs: number;
  readonly #levels = new IndexedHeap<PriorityLevel>((a, b) => this.#levelDueMs(a) < this.#levelDueMs(b));

  constructor(agingMs: number) {
    this.#agingMs = agingMs;
  }

  dueMs(priority: number, arrivedMs: number): number {
    return arrivedMs - priority * this.#agingMs;
  }

  /** The first of a queue has changed, or whether its tenant's cap has room for it. */
  place(queue: TenantQueue): void {
    const { level, tenant } = queue;
    queue.aged ??= { queue, index: -1 };
    level.aged ??= new IndexedHeap<AgedQueue>((a, b) => queuedAtMs(a.queue) < queuedAtMs(b.queue));
    if (queue.head === undefined || tenant.index === -1 || tenant.isFull(weightOf(queue.head)))
      level.aged.remove(queue.aged);
    else level.aged.place(queue.aged);
    if (level.aged.top === undefined) this.#levels.remove(level);
    else this.#levels.place(level);
  }

  /** The waiter of another priority that precedes one due at that time: the oldest of them all. */
  precedes(dueMs: number, priority?: number): QueueNode | undefined {
    // The one with that priority may be on top: then one of the two below it is the first of the others.
    const [first, left, right] = this.#levels.items;
    let level = first;
    if (first?.priority === priority) {
      level =
        left !== undefined && right !== undefined && this.#levelDueMs(right) < this.#levelDueMs(left)
          ? right
          : left;
    }
    return level !== undefined && this.#levelDueMs(level) <= dueMs ? level.aged?.top?.queue.head : undefined;
  }

  #levelDueMs({ priority, aged }: PriorityLevel): number {
    const oldest = aged?.top?.queue;
    return oldest === undefined ? Infinity : this.dueMs(priority, queuedAtMs(oldest));
  }
}
