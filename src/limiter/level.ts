/** Where in its queue a waiter stands. It belongs to the queue; have it, and leave it alone. */
export interface Place {
  /** @internal */ lane?: Lane | undefined;
  /** @internal */ before?: QueueNode | undefined;
}

/** What can wait. */
export interface QueueNode {
  /** @internal Belongs to the queue. */
  after: QueueNode | undefined;
  /**
   * For one that may leave before its turn, or stands in a lane of its own. What has none stands with priority 0, without
   * a tenant. Given to one that waits, it has to be told to the queue (`locate`).
   */
  readonly place: Place | undefined;
}

/** @internal The waiters of one tenant and priority. */
export class Lane {
  head: QueueNode | undefined = undefined;
  tail: QueueNode | undefined = undefined;
  size = 0;
  previous: Lane = this;
  following: Lane = this;

  constructor(
    readonly level: Level,
    readonly tenant: string | undefined,
  ) {}
}

/** @internal The waiters of one priority: a ring of the tenants' lanes, which take turns. */
export class Level {
  /** The lane whose head is next. */
  turn: Lane | undefined = undefined;
  /** Those without a tenant, which is the usual case. */
  plain: Lane | undefined = undefined;
  readonly tenants = new Map<string, Lane>();
  /** Where it stands in the heap of levels. */
  place = 0;

  constructor(readonly priority: number) {}

  /**
   * Made when somebody waits there, and dropped with the last: a queue writes to its lane all the time, and V8 has more to
   * do for writing to what is old.
   */
  laneOf(tenant: string | undefined): Lane {
    if (tenant === undefined) {
      this.plain ??= new Lane(this, undefined);
      return this.plain;
    }
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
    if (lane.tenant === undefined) this.plain = undefined;
    else this.tenants.delete(lane.tenant);
  }

  /** The lanes with somebody waiting, in the order of their turns. */
  *lanes(): Generator<Lane, void, undefined> {
    const { turn } = this;
    if (turn === undefined) return;
    let lane = turn;
    do {
      yield lane;
      lane = lane.following;
    } while (lane !== turn);
  }

  /** Waiters of all tenants together. */
  get size(): number {
    let size = 0;
    for (const lane of this.lanes()) size += lane.size;
    return size;
  }

  /** How many have their turn before one more of this tenant would. */
  aheadOf(tenant: string | undefined): number {
    const own = (tenant === undefined ? this.plain : this.tenants.get(tenant))?.size ?? 0;
    let ahead = 0;
    for (const lane of this.lanes()) ahead += lane.tenant === tenant ? own : Math.min(lane.size, own + 1);
    return ahead;
  }
}
