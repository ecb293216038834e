import type { TaskIds, ToolEvents } from '../hooks/events.js';
import type { LifecycleHooks } from '../hooks/lifecycle-hooks.js';
import { Attachment } from './attachment.js';
import { type CallEvent, callFinished, callRetried, callStarted, callThrottled } from './timeline-calls.js';
import type { TimelineData, TimelineSpanKind } from './timeline-data.js';
import { InstanceRecords } from './timeline-instances.js';
import { RequestRecord } from './timeline-request.js';

interface Told extends TaskIds {
  readonly source: string;
}

/**
 * Listens, and keeps what each request spent its time on.
 *
 * Invariants:
 * - At most `maxRequests` requests, each of at most `maxSpansPerRequest` spans, and about as many instances are kept.
 *   The oldest that is over makes room for a new one; while none is over, the new one is left out.
 * - A request is known by its `requestId`; events that carry only a `taskId` belong to that task's latest request.
 * - Its own clock is read where an event happens; an event's durations are used only for what was not heard from the start.
 */
export class TimelineRecorder {
  readonly #now: () => number;
  readonly #maxRequests: number;
  readonly #maxSpans: number;
  readonly #attachment: Attachment;
  readonly #wallOffsetMs: number;
  readonly #records = new Set<RequestRecord>();
  readonly #byRequest = new Map<string, RequestRecord>();
  readonly #byTask = new Map<string, RequestRecord>();
  /** By lease, call and tool call: what their ends belong to, whatever has become of the task meanwhile. */
  readonly #ongoing = new Map<string, RequestRecord>();
  readonly #instances: InstanceRecords;
  #leftRequests = 0;
  #leftSpans = 0;
  #unattributed = 0;
  #stoppedMs: number | undefined;

  constructor(hooks: LifecycleHooks, maxRequests: number, maxSpans: number, now: () => number) {
    this.#now = now;
    this.#maxRequests = maxRequests;
    this.#maxSpans = maxSpans;
    this.#instances = new InstanceRecords(maxRequests);
    this.#attachment = new Attachment(hooks);
    this.#wallOffsetMs = Date.now() - now();
    this.#listen();
  }

  stop(): void {
    this.#stoppedMs ??= this.#now();
    this.#attachment.detach();
  }

  data(): TimelineData {
    const nowMs = this.#stoppedMs ?? this.#now();
    let firstMs = this.#instances.firstMs;
    let leftSpans = this.#leftSpans;
    for (const record of this.#records) {
      firstMs = Math.min(firstMs, record.firstMs);
      leftSpans += record.leftSpans;
    }
    if (firstMs === Number.POSITIVE_INFINITY) firstMs = nowMs;
    const requests = [...this.#records].map((record) => record.data(-firstMs));
    const instances = this.#instances.data(-firstMs);
    let endMs = 0;
    for (const request of requests) endMs = Math.max(endMs, request.endMs ?? nowMs - firstMs);
    for (const { startMs = 0, readyMs = startMs } of instances) endMs = Math.max(endMs, readyMs);
    return {
      version: 1,
      startedAt: new Date(this.#wallOffsetMs + firstMs).toISOString(),
      endMs,
      requests,
      instances,
      left: { requests: this.#leftRequests, spans: leftSpans, unattributed: this.#unattributed },
    };
  }

  #listen(): void {
    this.#attachment
      .on('request:queued', (p) => this.#record(p)?.manage())
      .on('request:finished', (p) => this.#find(p)?.finish(this.#now(), p.outcome))
      .on('request:rejected', (p) => this.#find(p)?.finish(this.#now(), p.outcome))
      .on('permit:queued', (p) => this.#wait('wait-permit', p))
      .on('permit:acquired', (p) => this.#permitAcquired(p))
      .on('permit:released', (p) => this.#permitReleased(p))
      .on('permit:rejected', (p) => this.#rejected('wait-permit', p))
      .on('lease:queued', (p) => this.#wait('wait-lease', p))
      .on('lease:acquired', (p) => this.#leaseAcquired(p))
      .on('lease:released', (p) => this.#leaseEnded(p))
      .on('lease:revoked', (p) => this.#leaseEnded(p, 'revoked'))
      .on('lease:rejected', (p) => this.#rejected('wait-lease', p))
      .on('instance:creating', (p) => this.#instances.creating(p.source, p.instanceId, this.#now()))
      .on('instance:created', (p) => this.#instances.created(p.source, p.instanceId, this.#now()))
      .on('instance:createFailed', (p) => this.#gone(p, 'create-failed'))
      .on('instance:destroyed', (p) => this.#gone(p, p.reason))
      .on('instance:destroyFailed', (p) => this.#gone(p, p.reason))
      .on('call:throttled', (p) => this.#call(callThrottled, p))
      .on('call:started', (p) => this.#call(callStarted, p))
      .on('call:retried', (p) => this.#call(callRetried, p))
      .on('call:finished', (p) => this.#call(callFinished, p))
      .on('tool:started', (p) => this.#toolStarted(p))
      .on('tool:finished', (p) => this.#toolFinished(p));
  }

  #wait(kind: TimelineSpanKind, told: Told): void {
    this.#record(told)?.begin({ kind, name: told.source, startMs: this.#now() });
  }

  /** Ends the wait; one that was not heard from its beginning is added whole. */
  #waited(
    record: RequestRecord,
    kind: TimelineSpanKind,
    p: Told & { waitMs: number },
    outcome?: string,
  ): void {
    const endMs = this.#now();
    const span = record.open(kind, p.source);
    if (span !== undefined) record.end(span, endMs, outcome);
    else record.add({ kind, name: p.source, startMs: endMs - p.waitMs, endMs, ...(outcome && { outcome }) });
  }

  #permitAcquired(p: Told & { waitMs: number }): void {
    const record = this.#record(p);
    if (record === undefined) return;
    this.#waited(record, 'wait-permit', p);
    record.begin({ kind: 'permit', name: p.source, startMs: this.#now() });
  }

  #permitReleased(p: Told): void {
    const record = this.#find(p);
    const span = record?.open('permit', p.source);
    if (span !== undefined) record?.end(span, this.#now());
  }

  #leaseAcquired(p: Told & { waitMs: number; instanceId: number }): void {
    const { source: name, instanceId } = p;
    const lane = this.#instances.laneOf(name, instanceId);
    // An instance has one holder: where the next is told of first, the last one's lease is over.
    this.#endLease(name, instanceId);
    const record = this.#recordOrUnnamed(p);
    if (record === undefined) return;
    this.#waited(record, 'wait-lease', p);
    record.begin({ kind: 'lease', name, startMs: this.#now(), instanceId, lane });
    this.#ongoing.set(`lease ${name} ${instanceId}`, record);
  }

  #leaseEnded(p: Told & { instanceId: number }, outcome?: string): void {
    const holder = this.#ongoing.get(`lease ${p.source} ${p.instanceId}`)?.ids;
    // Told late, of a lease that the next one has ended already.
    if (holder?.taskId !== p.taskId) return;
    if (p.requestId !== undefined && holder?.requestId !== p.requestId) return;
    this.#endLease(p.source, p.instanceId, outcome);
  }

  #endLease(pool: string, instanceId: number, outcome?: string): void {
    const record = this.#takeOngoing(`lease ${pool} ${instanceId}`);
    const span = record?.open('lease', pool, instanceId);
    if (span !== undefined) record?.end(span, this.#now(), outcome);
  }

  #rejected(kind: TimelineSpanKind, p: Told & { waitMs: number; reason: string }): void {
    const record = this.#recordOrUnnamed(p);
    if (record === undefined) return;
    this.#waited(record, kind, p, p.reason);
    record.rejected(p.reason);
  }

  #gone({ source, instanceId }: Told & { instanceId: number }, reason: string): void {
    this.#instances.gone(source, instanceId, this.#now(), reason);
  }

  #call<P extends CallEvent>(step: (record: RequestRecord, p: P, atMs: number) => void, p: P): void {
    const key = `call ${p.source} ${p.callId}`;
    const record = this.#ongoing.get(key) ?? this.#attributed(p);
    if (record === undefined) return;
    step(record, p, this.#now());
    if (record.open('call', p.source, p.callId) === undefined) this.#ongoing.delete(key);
    else this.#ongoing.set(key, record);
  }

  #toolStarted(p: ToolEvents['tool:started']): void {
    const { tool: name, toolCallId } = p;
    const record = this.#attributed(p);
    if (record === undefined) return;
    record.begin({ kind: 'tool', name, toolCallId, startMs: this.#now() });
    this.#ongoing.set(toolKey(p), record);
  }

  #toolFinished(p: ToolEvents['tool:finished']): void {
    const record = this.#takeOngoing(toolKey(p));
    const span = record?.open('tool', p.tool, p.toolCallId);
    if (span !== undefined) record?.end(span, this.#now(), p.outcome);
  }

  #takeOngoing(key: string): RequestRecord | undefined {
    const record = this.#ongoing.get(key);
    this.#ongoing.delete(key);
    return record;
  }

  #attributed(ids: TaskIds): RequestRecord | undefined {
    if (isUnnamed(ids)) this.#unattributed++;
    return this.#record(ids);
  }

  #find({ requestId, taskId }: TaskIds): RequestRecord | undefined {
    if (requestId !== undefined) return this.#byRequest.get(requestId);
    return taskId === undefined ? undefined : this.#byTask.get(taskId);
  }

  /** The request these ids belong to, new if need be; none without ids, or while there is no room. */
  #record(ids: TaskIds): RequestRecord | undefined {
    if (isUnnamed(ids)) return undefined;
    const known = this.#find(ids);
    // Without a request id, what begins after the manager's request of this task has ended is something new.
    if (known !== undefined && (ids.requestId !== undefined || !known.ended)) return known;
    return this.#add(ids);
  }

  #recordOrUnnamed(ids: TaskIds): RequestRecord | undefined {
    return isUnnamed(ids) ? this.#add(ids) : this.#record(ids);
  }

  #add({ taskId, requestId, tenant }: TaskIds): RequestRecord | undefined {
    if (this.#records.size >= this.#maxRequests && !this.#forgetOldest()) {
      this.#leftRequests++;
      return undefined;
    }
    const ids = {
      ...(taskId === undefined ? {} : { taskId }),
      ...(requestId === undefined ? {} : { requestId }),
      ...(tenant === undefined ? {} : { tenant }),
    };
    const record = new RequestRecord(ids, this.#now(), this.#maxSpans);
    this.#records.add(record);
    if (requestId !== undefined) this.#byRequest.set(requestId, record);
    if (taskId !== undefined) this.#byTask.set(taskId, record);
    return record;
  }

  #forgetOldest(): boolean {
    for (const record of this.#records) {
      if (!record.over) continue;
      const { requestId, taskId } = record.ids;
      this.#records.delete(record);
      if (requestId !== undefined) this.#byRequest.delete(requestId);
      if (taskId !== undefined && this.#byTask.get(taskId) === record) this.#byTask.delete(taskId);
      this.#leftRequests++;
      this.#leftSpans += record.leftSpans;
      return true;
    }
    return false;
  }
}

const isUnnamed = ({ taskId, requestId }: TaskIds): boolean =>
  taskId === undefined && requestId === undefined;

// Each tool manager may count its calls for itself, and each instance has managers of its own.
const toolKey = (p: ToolEvents['tool:started']): string =>
  `tool ${p.source} ${p.instanceId} ${p.tool} ${p.toolCallId}`;
