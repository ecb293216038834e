import type { TaskIds } from '../../hooks/events.js';
import type { TimelineInstance, TimelineRequest, TimelineSpan, TimelineSpanKind } from './data.js';
import { withTimes } from './times.js';

type Writable<T> = { -readonly [K in keyof T]: T[K] };
/** A span that may not have ended yet. */
export type OpenSpan = Writable<TimelineSpan>;

/**
 * The recording of one request.
 *
 * Invariants: a span is in `#open` exactly from its start to its end; at most `maxSpans` are kept, the earliest.
 */
export class RequestRecord {
  readonly ids: TaskIds;
  /** Spans omitted because there were too many. */
  omittedSpans = 0;
  readonly #startMs: number;
  readonly #maxSpans: number;
  readonly #spans: OpenSpan[] = [];
  readonly #open: OpenSpan[] = [];
  /** A manager emits events for this request, and decides when it ends. */
  #managed = false;
  #endMs: number | undefined;
  #outcome: string | undefined;

  constructor(ids: TaskIds, startMs: number, maxSpans: number) {
    this.ids = ids;
    this.#startMs = startMs;
    this.#maxSpans = maxSpans;
  }

  manage(): void {
    this.#managed = true;
  }

  /** The manager's request has ended. */
  get ended(): boolean {
    return this.#endMs !== undefined;
  }

  /** Nothing of it is in progress, so it may be dropped. */
  get over(): boolean {
    return this.#open.length === 0 && (this.ended || !this.#managed);
  }

  finish(endMs: number, outcome: string): void {
    this.#endMs = endMs;
    this.#outcome = outcome;
  }

  /** Without a manager, a rejection is the only known outcome. */
  rejected(reason: string): void {
    this.#outcome ??= reason;
  }

  /** Records a span from its start, unless there are too many. */
  begin(span: TimelineSpan): OpenSpan | undefined {
    if (this.#spans.length >= this.#maxSpans) {
      this.omittedSpans++;
      return undefined;
    }
    const open = { ...span };
    this.#spans.push(open);
    this.#open.push(open);
    return open;
  }

  /** Adds a span that is known only at its end. */
  add(span: TimelineSpan & { readonly endMs: number }): void {
    if (isWait(span) && span.endMs <= span.startMs) return;
    const open = this.begin(span);
    if (open !== undefined) this.end(open, span.endMs);
  }

  /** The oldest open span of this kind and name, and of this id if several can be open at once. */
  open(kind: TimelineSpanKind, name: string, id?: number): OpenSpan | undefined {
    return this.#open.find((span) => span.kind === kind && span.name === name && id === idOf(span));
  }

  end(span: OpenSpan, endMs: number, outcome?: string): void {
    span.endMs = endMs;
    if (outcome !== undefined) span.outcome = outcome;
    this.#open.splice(this.#open.indexOf(span), 1);
    // It took no time.
    if (isWait(span) && endMs <= span.startMs) this.#spans.splice(this.#spans.lastIndexOf(span), 1);
  }

  /** Ends the open span of this kind, name and id, if there is one. */
  endOpen(
    kind: TimelineSpanKind,
    name: string,
    id: number | undefined,
    endMs: number,
    outcome?: string,
  ): void {
    const span = this.open(kind, name, id);
    if (span !== undefined) this.end(span, endMs, outcome);
  }

  /** The recorded data, its times shifted by `shiftMs`. */
  data(shiftMs: number): TimelineRequest {
    const lastMs = this.#spans.reduce((last, { endMs = last }) => Math.max(last, endMs), this.#startMs);
    const endMs = this.over ? Math.max(this.#endMs ?? lastMs, lastMs) : undefined;
    return {
      ...this.ids,
      startMs: this.firstMs + shiftMs,
      ...(endMs === undefined ? {} : { endMs: endMs + shiftMs }),
      ...(this.#outcome === undefined ? {} : { outcome: this.#outcome }),
      spans: this.#spans.map((span) => withTimes(span, (ms) => ms + shiftMs)),
    };
  }

  /** The earliest start; a wait may become known only at its end. */
  get firstMs(): number {
    return this.#spans.reduce((first, { startMs }) => Math.min(first, startMs), this.#startMs);
  }
}

const isWait = ({ kind }: TimelineSpan): boolean => kind.startsWith('wait-');

const idOf = (span: TimelineSpan): number | undefined =>
  span.kind === 'tool' ? span.toolCallId : (span.callId ?? span.instanceId);

type InstanceRecord = { -readonly [K in keyof TimelineInstance]: TimelineInstance[K] };

/**
 * The recording of the pools' instances. Each instance occupies the lowest free lane of its pool while it is live, so a pool
 * uses at most `size` lanes, and an instance takes over the lane of its predecessor.
 */
export class InstanceRecords {
  readonly #max: number;
  /** By pool and instance, in order of arrival. */
  readonly #records = new Map<string, InstanceRecord>();
  /** By pool, the instance in each lane. */
  readonly #lanes = new Map<string, (number | undefined)[]>();

  constructor(max: number) {
    this.#max = max;
  }

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
    this.#lanes.get(pool)?.splice(record.lane, 1, undefined);
  }

  /** The lane of a leased instance, even if its creation was not observed. */
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
    return [...this.#records.values()].map((record) => withTimes(record, (ms) => ms + shiftMs));
  }

  #add(pool: string, instanceId: number): InstanceRecord {
    const key = `${pool} ${instanceId}`;
    const known = this.#records.get(key);
    if (known !== undefined) return known;
    const lanes = this.#lanes.get(pool) ?? [];
    this.#lanes.set(pool, lanes);
    const free = lanes.indexOf(undefined);
    const lane = free === -1 ? lanes.length : free;
    lanes[lane] = instanceId;
    const record: InstanceRecord = { pool, instanceId, lane };
    this.#records.set(key, record);
    if (this.#records.size > this.#max) this.#dropOldest();
    return record;
  }

  // Live instances are kept: there are at most as many as the pools' sizes.
  #dropOldest(): void {
    for (const [key, { endMs }] of this.#records) {
      if (endMs === undefined) continue;
      this.#records.delete(key);
      return;
    }
  }
}
