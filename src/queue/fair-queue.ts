/**
 * The queue that limiter and pool share: priority first, then tenants round robin, then FIFO. `FairQueue` is at the end;
 * before it, from the inside out: `QueueNode` (an element), `TenantQueue` (the elements of one tenant),
 * `PriorityLevel` (the tenants of one priority), `PriorityHeap` (the priorities). `drain-rate.ts` estimates waiting times.
 */

/** The position of an element that may leave before its turn. Owned by the queue. */
export interface QueuePosition {
  /** @internal */ queue?: TenantQueue | undefined;
  /** @internal */ previous?: QueueNode | undefined;
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
}

/** @internal The elements of one tenant and priority: a FIFO list. */
export class TenantQueue {
  head: QueueNode | undefined = undefined;
  tail: QueueNode | undefined = undefined;
  size = 0;
  /** Neighbors in the ring of the level. */
  previous: TenantQueue = this;
  following: TenantQueue = this;

  constructor(
    readonly level: PriorityLevel,
    readonly tenant: string | undefined,
  ) {}
}

/** @internal The elements of one priority: a ring of tenant queues, which take turns. */
export class PriorityLevel {
  /** The tenant queue whose head is next. */
  turn: TenantQueue | undefined = undefined;
  /** The elements without a tenant, which is the usual case. */
  untenanted: TenantQueue | undefined = undefined;
  readonly tenants = new Map<string, TenantQueue>();
  /** Index in the heap of levels. */
  heapIndex = 0;

  constructor(readonly priority: number) {}

  /**
   * Created for the first element and dropped with the last: each wait writes to its tenant queue, and V8's write barrier
   * costs more for an old object.
   */
  queueOf(tenant: string | undefined): TenantQueue {
    if (tenant === undefined) {
      this.untenanted ??= new TenantQueue(this, undefined);
      return this.untenanted;
    }
    let queue = this.tenants.get(tenant);
    if (queue === undefined) {
      queue = new TenantQueue(this, tenant);
      this.tenants.set(tenant, queue);
    }
    return queue;
  }

  /** A tenant queue that joins has its turn after all others. */
  join(queue: TenantQueue): void {
    const { turn } = this;
    if (turn === undefined) {
      queue.previous = queue;
      queue.following = queue;
      this.turn = queue;
      return;
    }
    queue.previous = turn.previous;
    queue.following = turn;
    turn.previous.following = queue;
    turn.previous = queue;
  }

  leave(queue: TenantQueue): void {
    if (queue.following === queue) {
      this.turn = undefined;
    } else {
      queue.previous.following = queue.following;
      queue.following.previous = queue.previous;
      if (this.turn === queue) this.turn = queue.following;
    }
    if (queue.tenant === undefined) this.untenanted = undefined;
    else this.tenants.delete(queue.tenant);
  }

  /** The tenant queues in the order of their turns. */
  *queues(): Generator<TenantQueue, void, undefined> {
    const { turn } = this;
    if (turn === undefined) return;
    let queue = turn;
    do {
      yield queue;
      queue = queue.following;
    } while (queue !== turn);
  }

  /** Elements of all tenants together. */
  get size(): number {
    let size = 0;
    for (const queue of this.queues()) size += queue.size;
    return size;
  }

  /** Elements that have their turn before one more of this tenant. */
  aheadOf(tenant: string | undefined): number {
    const own = (tenant === undefined ? this.untenanted : this.tenants.get(tenant))?.size ?? 0;
    let ahead = 0;
    for (const queue of this.queues()) ahead += queue.tenant === tenant ? own : Math.min(queue.size, own + 1);
    return ahead;
  }
}

/**
 * @internal The levels in use, the highest priority first: a binary heap in which each level knows its index, so that it
 * can leave from anywhere. O(log n) for n priorities, in whatever order they come (deadlines as priorities: one by one,
 * each new).
 *
 * Invariant: no level is higher than its parent, `levels[(index - 1) >> 1]`.
 */
export class PriorityHeap {
  readonly #levels: PriorityLevel[] = [];

  /** The highest level. */
  get top(): PriorityLevel | undefined {
    return this.#levels[0];
  }

  add(level: PriorityLevel): void {
    this.#levels.push(level);
    this.#siftUp(level, this.#levels.length - 1);
  }

  remove({ heapIndex }: PriorityLevel): void {
    const last = this.#levels.pop() as PriorityLevel;
    if (heapIndex === this.#levels.length) return;
    // The last fills the gap. It may belong above or below.
    this.#siftUp(last, heapIndex);
    this.#siftDown(last, last.heapIndex);
  }

  /** All levels, the highest first. */
  sorted(): readonly PriorityLevel[] {
    if (this.#levels.length < 2) return this.#levels;
    return [...this.#levels].sort((a, b) => b.priority - a.priority);
  }

  /** All levels, in no order. */
  [Symbol.iterator](): IterableIterator<PriorityLevel> {
    return this.#levels.values();
  }

  #siftUp(level: PriorityLevel, from: number): void {
    let index = from;
    while (index > 0) {
      const parent = this.#levels[(index - 1) >> 1] as PriorityLevel;
      if (parent.priority > level.priority) break;
      this.#put(parent, index);
      index = (index - 1) >> 1;
    }
    this.#put(level, index);
  }

  #siftDown(level: PriorityLevel, from: number): void {
    let index = from;
    for (let child = this.#higherChild(index); child !== undefined; child = this.#higherChild(index)) {
      if (level.priority > child.priority) break;
      const next = child.heapIndex;
      this.#put(child, index);
      index = next;
    }
    this.#put(level, index);
  }

  #higherChild(index: number): PriorityLevel | undefined {
    const left = this.#levels[2 * index + 1];
    const right = this.#levels[2 * index + 2];
    if (left === undefined || right === undefined) return left;
    return right.priority > left.priority ? right : left;
  }

  #put(level: PriorityLevel, index: number): void {
    this.#levels[index] = level;
    level.heapIndex = index;
  }
}

/**
 * Priority first, then tenants round robin, then FIFO.
 *
 *     levels, highest priority first     PriorityLevel 10 ─ turn ─┐      PriorityLevel 0 ─ turn ─┐
 *     tenant queues of a level, in a ring     ┌─ TenantQueue a ◄─┴─ TenantQueue b ─┐      TenantQueue (no tenant)
 *     elements of a tenant, in a list         a1 ⇄ a2 ⇄ a3   b1             1 ⇄ 2 ⇄ 3 ⇄ …
 *
 * Adding, taking and removing are O(1) for any number of elements and tenants. A priority that is not in use yet costs
 * O(log n) among those in use.
 *
 * Invariants:
 * - A tenant queue is in its level's ring, and a level is in the heap, exactly while it has elements.
 * - Within a tenant queue, elements leave from the head in the order in which they came.
 * - Between two turns of one tenant, every other tenant queued with that priority has one.
 */
export class FairQueue<W extends QueueNode> {
  readonly #levels = new PriorityHeap();
  readonly #byPriority = new Map<number, PriorityLevel>();
  // Most queues use one priority only: its level is kept between elements.
  readonly #defaultLevel = new PriorityLevel(0);
  /** The highest level, read before every step. */
  #top: PriorityLevel | undefined;
  #size = 0;

  /** Elements in the queue. */
  get size(): number {
    return this.#size;
  }

  /** The priority of the next element. */
  get topPriority(): number | undefined {
    return this.#top?.priority;
  }

  /** Adds an element that leaves only in its turn, with priority 0 and no tenant. */
  push(node: W): void {
    this.#append(node, this.#defaultLevel.untenanted ?? this.#defaultLevel.queueOf(undefined));
  }

  /** Adds an element behind those of its priority and tenant. It must not be queued already; `position` is its own. */
  pushAt(position: QueuePosition, node: W, priority = 0, tenant?: string): void {
    const level =
      (priority === 0 ? this.#defaultLevel : this.#byPriority.get(priority)) ?? new PriorityLevel(priority);
    const queue = level.queueOf(tenant);
    position.queue = queue;
    position.previous = queue.tail;
    this.#append(node, queue);
  }

  /** Finds the position of an element that was queued without one, so that it may leave before its turn. O(n). */
  locate(position: QueuePosition, node: W): void {
    const queue = this.#defaultLevel.untenanted;
    let previous: QueueNode | undefined;
    for (let at = queue?.head; at !== node; at = at.next) {
      if (at === undefined) return;
      previous = at;
    }
    position.queue = queue;
    position.previous = previous;
  }

  /** The next element; it stays in the queue. */
  peek(): W | undefined {
    return this.#top?.turn?.head as W | undefined;
  }

  /** Takes the next element; the turn passes to the next tenant. */
  shift(): W | undefined {
    const next = this.peek();
    if (next !== undefined) this.take(next);
    return next;
  }

  /** Takes the element that `peek` has just returned. */
  take(node: W): void {
    const level = this.#top as PriorityLevel;
    const queue = level.turn as TenantQueue;
    // From here on as `remove` does for a head; a function shared by both made a wait a thirtieth slower.
    const { next } = node;
    if (queue.following !== queue) level.turn = queue.following;
    queue.head = next;
    queue.size--;
    this.#size--;
    node.next = undefined;
    if (next === undefined) this.#endAt(undefined, queue);
    else if (next.position !== undefined) next.position.previous = undefined;
    if (node.position !== undefined) node.position.queue = undefined;
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
    this.#size--;
    node.next = undefined;
    if (next === undefined) this.#endAt(previous, queue);
    else if (next.position !== undefined) next.position.previous = previous;
    return true;
  }

  #append(node: W, queue: TenantQueue): void {
    const { tail } = queue;
    if (tail === undefined) this.#open(queue, node);
    else tail.next = node;
    queue.tail = node;
    queue.size++;
    this.#size++;
  }

  /**
   * How many elements would be taken before one more of this priority and tenant, if no others came. O(n) in the
   * priorities and tenants in use.
   */
  aheadOf(priority = 0, tenant?: string): number {
    let ahead = 0;
    for (const level of this.#levels) {
      if (level.priority > priority) ahead += level.size;
      else if (level.priority === priority) ahead += level.aheadOf(tenant);
    }
    return ahead;
  }

  /** All elements in the order in which they would be taken if no others came. */
  *[Symbol.iterator](): Generator<W, void, undefined> {
    for (const level of this.#levels.sorted()) {
      if (level.turn?.following === level.turn) {
        for (let at = level.turn?.head; at !== undefined; at = at.next) yield at as W;
        continue;
      }
      let round: QueueNode[] = [];
      for (const { head } of level.queues()) if (head !== undefined) round.push(head);
      while (round.length > 0) {
        yield* round as W[];
        round = round.flatMap(({ next }) => next ?? []);
      }
    }
  }

  /** The first element of a tenant queue that was empty. */
  #open(queue: TenantQueue, first: W): void {
    const { level } = queue;
    queue.head = first;
    if (level.turn === undefined) {
      if (level !== this.#defaultLevel) this.#byPriority.set(level.priority, level);
      this.#levels.add(level);
      this.#top = this.#levels.top;
    }
    level.join(queue);
  }

  /** The tail is now `last`, or the tenant queue is empty. */
  #endAt(last: QueueNode | undefined, queue: TenantQueue): void {
    queue.tail = last;
    if (last !== undefined) return;
    const { level } = queue;
    level.leave(queue);
    if (level.turn !== undefined) return;
    if (level !== this.#defaultLevel) this.#byPriority.delete(level.priority);
    this.#levels.remove(level);
    this.#top = this.#levels.top;
  }
}
