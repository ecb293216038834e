import { type Lane, Level, type Place, type QueueNode } from './level.js';
import { LevelHeap } from './level-heap.js';

/**
 * Who is next: priority first, then tenants in turn, then first come, first served.
 *
 *     levels, highest priority first     Level 10 ─ turn ─┐      Level 0 ─ turn ─┐
 *     lanes of a level, in a ring             ┌─ Lane a ◄─┴─ Lane b ─┐      Lane (no tenant)
 *     waiters of a lane, in a list            a1 ⇄ a2 ⇄ a3   b1             1 ⇄ 2 ⇄ 3 ⇄ …
 *
 * Adding, taking and removing are O(1) for any number of waiters and tenants. A priority that nobody is waiting with yet
 * costs O(log n) among those somebody is. The list is intrusive: a waiter is its own node, so that one that gives up
 * leaves at once and a waiter needs no second object.
 *
 * Invariants:
 * - A lane is in its level's ring, and a level is in the heap, exactly while somebody waits there.
 * - Within a lane, waiters leave from the head in the order in which they came.
 * - Between two turns of one tenant, every other tenant of that priority with somebody waiting has one.
 */
export class WaitQueue<W extends QueueNode> {
  readonly #levels = new LevelHeap();
  readonly #byPriority = new Map<number, Level>();
  // Most queues know one priority only: its level is kept between waiters.
  readonly #usual = new Level(0);
  /** The highest level, looked at before every step. */
  #top: Level | undefined;
  #size = 0;

  /** Waiters in the queue. */
  get size(): number {
    return this.#size;
  }

  /** The priority of who is next. */
  get topPriority(): number | undefined {
    return this.#top?.priority;
  }

  /** Adds a waiter that leaves in its turn only, with the usual priority and no tenant. */
  push(waiter: W): void {
    this.#append(waiter, this.#usual.plain ?? this.#usual.laneOf(undefined));
  }

  /** Adds a waiter behind those of its priority and tenant. It must not be in a queue already; `place` is its own. */
  pushAt(place: Place, waiter: W, priority = 0, tenant?: string): void {
    const level = this.#levelOf(priority);
    const lane = level.laneOf(tenant);
    place.lane = lane;
    place.before = lane.tail;
    this.#append(waiter, lane);
  }

  /**
   * Notes where one stands that has waited without a place, so that it may leave before its turn. Passes all who stand
   * before it.
   */
  locate(place: Place, waiter: W): void {
    const lane = this.#usual.plain;
    let before: QueueNode | undefined;
    for (let at = lane?.head; at !== waiter; at = at.after) {
      if (at === undefined) return;
      before = at;
    }
    place.lane = lane;
    place.before = before;
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
    const level = this.#top as Level;
    const lane = level.turn as Lane;
    // From here on what `remove` does, where nobody is before: a function for both made a wait a thirtieth dearer.
    const { after } = next;
    if (lane.following !== lane) level.turn = lane.following;
    lane.head = after;
    lane.size--;
    this.#size--;
    next.after = undefined;
    if (after === undefined) this.#endAt(undefined, lane);
    else if (after.place !== undefined) after.place.before = undefined;
    if (next.place !== undefined) next.place.lane = undefined;
  }

  /** Takes a waiter out, wherever it stands; `place` is its own. Gives false for one that is in no queue. */
  remove(place: Place, waiter: W): boolean {
    const { lane, before } = place;
    if (lane === undefined) return false;
    place.lane = undefined;
    place.before = undefined;
    const { after } = waiter;
    if (before === undefined) lane.head = after;
    else before.after = after;
    lane.size--;
    this.#size--;
    waiter.after = undefined;
    if (after === undefined) this.#endAt(before, lane);
    else if (after.place !== undefined) after.place.before = before;
    return true;
  }

  #append(waiter: W, lane: Lane): void {
    const { tail } = lane;
    if (tail === undefined) this.#open(lane, waiter);
    else tail.after = waiter;
    lane.tail = waiter;
    lane.size++;
    this.#size++;
  }

  /**
   * How many would be taken before one more of this priority and tenant, if nobody else came. Looks at every priority and
   * tenant that somebody waits with.
   */
  aheadOf(priority = 0, tenant?: string): number {
    let ahead = 0;
    for (const level of this.#levels) {
      if (level.priority > priority) ahead += level.size;
      else if (level.priority === priority) ahead += level.aheadOf(tenant);
    }
    return ahead;
  }

  /** All waiters in the order in which they would be taken if nobody else came. */
  *[Symbol.iterator](): Generator<W, void, undefined> {
    for (const level of this.#levels.sorted()) {
      let round: QueueNode[] = [];
      for (const { head } of level.lanes()) if (head !== undefined) round.push(head);
      while (round.length > 0) {
        yield* round as W[];
        round = round.flatMap(({ after }) => after ?? []);
      }
    }
  }

  #levelOf(priority: number): Level {
    return (priority === 0 ? this.#usual : this.#byPriority.get(priority)) ?? new Level(priority);
  }

  /** Somebody waits in a lane where nobody did. */
  #open(lane: Lane, first: W): void {
    const { level } = lane;
    lane.head = first;
    if (level.turn === undefined) {
      if (level !== this.#usual) this.#byPriority.set(level.priority, level);
      this.#levels.add(level);
      this.#top = this.#levels.top;
    }
    level.join(lane);
  }

  /** The lane ends with this one now, or with nobody. */
  #endAt(last: QueueNode | undefined, lane: Lane): void {
    lane.tail = last;
    if (last !== undefined) return;
    const { level } = lane;
    level.leave(lane);
    if (level.turn !== undefined) return;
    if (level !== this.#usual) this.#byPriority.delete(level.priority);
    this.#levels.remove(level);
    this.#top = this.#levels.top;
  }
}
