import type { TimelineInstance } from './timeline-data.js';

type InstanceRecord = { -readonly [K in keyof TimelineInstance]: TimelineInstance[K] };

/**
 * The instances of the pools while they are recorded, each in a lane: the lowest that no living instance of its pool is
 * in. As at most `size` instances live, so many lanes are used, and an instance follows its predecessor in its lane.
 */
export class InstanceRecords {
  readonly #max: number;
  /** By pool and instance, in the order they came. */
  readonly #records = new Map<string, InstanceRecord>();
  /** By pool: the instance in each lane. */
  readonly #lanes = new Map<string, (number | undefined)[]>();

  constructor(max: number) {
    this.#max = max;
  }

  /** Creation begins. */
  creating(pool: string, instanceId: number, atMs: number): void {
    this.#add(pool, instanceId).startMs ??= atMs;
  }

  created(pool: string, instanceId: number, atMs: number): void {
    this.#add(pool, instanceId).readyMs ??= atMs;
  }

  gone(pool: string, instanceId: number, atMs: number, reason: string): void {
    const record = this.#records.get(`${pool} ${instanceId}`);
    if (record === undefined || record.endMs !== undefined) return;
    record.endMs = atMs;
    record.reason = reason;
    const lanes = this.#lanes.get(pool) ?? [];
    if (lanes[record.lane] === instanceId) lanes[record.lane] = undefined;
  }

  /** The lane of an instance that is leased, whether its creation was heard or not. */
  laneOf(pool: string, instanceId: number): number {
    return this.#add(pool, instanceId).lane;
  }

  get firstMs(): number {
    let first = Number.POSITIVE_INFINITY;
    for (const { startMs, readyMs } of this.#records.values()) {
      first = Math.min(first, startMs ?? readyMs ?? first);
    }
    return first;
  }

  data(shiftMs: number): TimelineInstance[] {
    return [...this.#records.values()].map((record) => {
      const moved = { ...record };
      for (const time of ['startMs', 'readyMs', 'endMs'] as const) {
        const value = record[time];
        if (value !== undefined) moved[time] = value + shiftMs;
      }
      return moved;
    });
  }

  #add(pool: string, instanceId: number): InstanceRecord {
    const key = `${pool} ${instanceId}`;
    const known = this.#records.get(key);
    if (known !== undefined) return known;
    let lanes = this.#lanes.get(pool);
    if (lanes === undefined) {
      lanes = [];
      this.#lanes.set(pool, lanes);
    }
    const free = lanes.indexOf(undefined);
    const lane = free === -1 ? lanes.length : free;
    lanes[lane] = instanceId;
    const record: InstanceRecord = { pool, instanceId, lane };
    this.#records.set(key, record);
    if (this.#records.size > this.#max) this.#forgetOldest();
    return record;
  }

  // Only what is gone is forgotten: what lives is at most the pools' sizes.
  #forgetOldest(): void {
    for (const [key, { endMs }] of this.#records) {
      if (endMs === undefined) continue;
      this.#records.delete(key);
      return;
    }
  }
}
