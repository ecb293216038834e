/**
 * Who is next: priority first, then tenants in turn, then first come, first served.
 *
 *     #levels, highest priority first     Level 10 ─ turn ─┐      Level 0 ─ turn ─┐
 *     lanes of a level, in a ring              ┌─ Lane a ◄─┴─ Lane b ─┐      Lane (no tenant)
 *     waiters of a lane, in a list             a1 ⇄ a2 ⇄ a3   b1             1 ⇄ 2 ⇄ 3 ⇄ …
 *
 * Adding, taking and removing are O(1) for any number of waiters and tenants; a priority nobody is waiting with costs
 * one binary search among those somebody is. The list is intrusive: a waiter is its own node, so that one that gives up
 * leaves at once and a waiter needs no second object.
 *
 * Invariants:
 * - A lane is in its level's ring, and a level is in `#levels`, exactly while somebody waits there.
 * - Within a lane, waiters leave from the head in the order in which they came.
 * - Between two turns of one tenant, every other tenant of that priority with somebody waiting has one.
 */

/** What can wait. The fields belong to the queue; extend this class and leave them alone. */
export abstract class QueueNode {
  /** @internal */ lane: Lane | undefined = undefined;
  /** @internal */ before: QueueNode | undefined = undefined;
  /** @internal */ after: QueueNode | undefined = undefined;
}

/** @internal The waiters of one tenant and priority. */
export class Lane {
  head: QueueNode | undefined = undefined;
  tail: QueueNode | undefined = undefined;
  previous: Lane = this;
  following: Lane = this;

  constructor(
    readonly level: Level,
    readonly tenant: string | undefined,
  ) {}
}

class Level {
  /** The lane whose head is next. */
  turn: Lane | undefined = undefined;
  /** Waiters without a tenant: the usual case, kept so that nothing is made or looked up for it. */
  readonly plain = new Lane(this, undefined);
  readonly tenants = new Map<string, Lane>();

  constructor(readonly priority: number) {}

  laneOf(tenant: string): Lane {
    let lane = this.tenants.get(tenant);
    if (lane === undefined) {
      lane = new Lane(this, tenant);
      this.tenants.set(tenant, lane);
    }
    return lane;
  }

  /** A lane that joins has its turn after all others. */
  join(lane: Lane): void {
    const { turn } = this;
    if (turn === undefined) {
      lane.previous = lane;
      lane.following = lane;
      this.turn = lane;
      return;
    }
    lane.previous = turn.previous;
    lane.following = turn;
    turn.previous.following = lane;
    turn.previous = lane;
  }

  leave(lane: Lane): void {
    if (lane.following === lane) {
      this.turn = undefined;
    } else {
      lane.previous.following = lane.following;
      lane.following.previous = lane.previous;
      if (this.turn === lane) this.turn = lane.following;
    }
    if (lane.tenant !== undefined) this.tenants.delete(lane.tenant);
  }
}

/** A queue by priority, tenant and order of arrival. */
export class WaitQueue<W extends QueueNode> {
  readonly #levels: Level[] = [];
  /** The first of them, looked at before every step. */
  #top: Level | undefined;
  // Most queues know one priority only: its level is kept between waiters.
  readonly #usual = new Level(0);
  #size = 0;

  /** Waiters in the queue. */
  get size(): number {
    return this.#size;
  }

  /** The priority of who is next. */
  get topPriority(): number | undefined {
    return this.#top?.priority;
  }

  /** Adds a waiter behind those of its priority and tenant. It must not be in a queue already. */
  push(waiter: W, priority = 0, tenant?: string): void {
    const top = this.#top;
    const level = top !== undefined && top.priority === priority ? top : this.#levelOf(priority);
    const lane = tenant === undefined ? level.plain : level.laneOf(tenant);
    const { tail } = lane;
    waiter.lane = lane;
    if (tail === undefined) {
      lane.head = waiter;
      level.join(lane);
    } else {
      tail.after = waiter;
      waiter.before = tail;
    }
    lane.tail = waiter;
    this.#size++;
  }

  /** Who is next; stays in the queue. */
  peek(): W | undefined {
    return this.#top?.turn?.head as W | undefined;
  }

  /** Takes out who is next; the turn passes to the next tenant. */
  shift(): W | undefined {
    const next = this.peek();
    if (next !== undefined) this.take(next);
    return next;
  }

  /** Takes out who is next, as `peek` has just told. */
  take(next: W): void {
    const lane = next.lane as Lane;
    const { after } = next;
    lane.level.turn = lane.following;
    if (after === undefined) {
      this.remove(next);
      return;
    }
    // What `remove` does, where there is nobody before and somebody after.
    lane.head = after;
    after.before = undefined;
    next.lane = undefined;
    next.after = undefined;
    this.#size--;
  }

  /** Takes a waiter out, wherever it stands. Gives false for one that is in no queue. */
  remove(waiter: W): boolean {
    const { lane, before, after } = waiter;
    if (lane === undefined) return false;
    if (before === undefined) lane.head = after;
    else before.after = after;
    if (after === undefined) lane.tail = before;
    else after.before = before;
    waiter.lane = undefined;
    waiter.before = undefined;
    waiter.after = undefined;
    this.#size--;
    if (lane.head === undefined) {
      const { level } = lane;
      level.leave(lane);
      if (level.turn === undefined) this.#splice(this.#indexOf(level.priority), 1);
    }
    return true;
  }

  /** All waiters in the order in which they would be taken if nobody else came. */
  *[Symbol.iterator](): Generator<W, void, undefined> {
    for (const { turn } of this.#levels) {
      let round: QueueNode[] = [];
      let lane = turn;
      do {
        if (lane?.head !== undefined) round.push(lane.head);
        lane = lane?.following;
      } while (lane !== turn);
      while (round.length > 0) {
        yield* round as W[];
        round = round.flatMap(({ after }) => after ?? []);
      }
    }
  }

  #levelOf(priority: number): Level {
    const index = this.#indexOf(priority);
    const found = this.#levels[index];
    if (found?.priority === priority) return found;
    const level = priority === 0 ? this.#usual : new Level(priority);
    this.#splice(index, 0, level);
    return level;
  }

  #splice(index: number, remove: number, ...levels: Level[]): void {
    this.#levels.splice(index, remove, ...levels);
    this.#top = this.#levels[0];
  }

  /** Where a priority stands, or would stand, in `#levels`. */
  #indexOf(priority: number): number {
    let low = 0;
    let high = this.#levels.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#levels[middle]!.priority > priority) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}
