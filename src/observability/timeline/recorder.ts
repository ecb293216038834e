import { Attachment } from '../../hooks/attachment.js';
import type { GateEvents, TaskIds, ToolEvents } from '../../hooks/events.js';
import type { LifecycleHooks } from '../../hooks/lifecycle-hooks.js';
import type { TimelineData, TimelineSpan, TimelineSpanKind } from './data.js';
import { InstanceRecords, type OpenSpan, RequestRecord } from './records.js';

interface Emitted extends TaskIds {
  readonly source: string;
}

/**
 * Records what each request spends its time on.
 *
 * Invariants:
 * - At most `maxRequests` requests, each with at most `maxSpansPerRequest` spans, and about as many instances are kept. The
 *   oldest finished request makes room for a new one; if none is finished, the new one is omitted.
 * - A request is identified by its `requestId`; events with only a `taskId` belong to the latest request of that task.
 * - Times are read from the recorder's clock when an event is emitted; the durations in an event are used only for what
 *   started before it was observed.
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
  /** By lease, call and tool call: the request to which its end belongs, whatever the task does meanwhile. */
  readonly #ongoing = new Map<string, RequestRecord>();
  readonly #instances: InstanceRecords;
  #omittedRequests = 0;
  #omittedSpans = 0;
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
    const records = [...this.#records];
    const earliestMs = records.reduce(
      (first, record) => Math.min(first, record.firstMs),
      this.#instances.firstMs,
    );
    const firstMs = Number.isFinite(earliestMs) ? earliestMs : nowMs;
    const requests = records.map((record) => record.data(-firstMs));
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
      left: {
        requests: this.#omittedRequests,
        spans: records.reduce((sum, { omittedSpans }) => sum + omittedSpans, this.#omittedSpans),
        unattributed: this.#unattributed,
      },
    };
  }

  #listen(): void {
    this.#attachment
      .on('request:queued', (p) => this.#record(p)?.manage())
      .on('request:finished', (p) => this.#find(p)?.finish(this.#now(), p.outcome))
      .on('request:rejected', (p) => this.#find(p)?.finish(this.#now(), p.outcome))
      .on('permit:queued', (p) => this.#wait('wait-permit', p))
      .on('permit:acquired', (p) => this.#permitAcquired(p))
      .on('permit:released', (p) => this.#find(p)?.endOpen('permit', p.source, undefined, this.#now()))
      .on('permit:rejected', (p) => this.#rejected('wait-permit', p))
      .on('lease:queued', (p) => this.#wait('wait-lease', p))
      .on('lease:acquired', (p) => this.#leaseAcquired(p))
      .on('lease:released', (p) => this.#leaseEnded(p))
      .on('lease:revoked', (p) => this.#leaseEnded(p, 'revoked'))
      .on('lease:rejected', (p) => this.#rejected('wait-lease', p))
      .on('instance:creating', (p) => this.#instances.creating(p.source, p.instanceId, this.#now()))
      .on('instance:created', (p) => this.#instances.created(p.source, p.instanceId, this.#now()))
      .on('instance:create-failed', (p) => this.#gone(p, 'create-failed'))
      .on('instance:destroyed', (p) => this.#gone(p, p.reason))
      .on('instance:destroy-failed', (p) => this.#gone(p, p.reason))
      .on('call:throttled', (p) => this.#call(callThrottled, p))
      .on('call:started', (p) => this.#call(callStarted, p))
      .on('call:retried', (p) => this.#call(callRetried, p))
      .on('call:finished', (p) => this.#call(callFinished, p))
      .on('tool:started', (p) => this.#toolStarted(p))
      .on('tool:finished', (p) => this.#toolFinished(p));
  }

  #wait(kind: TimelineSpanKind, ids: Emitted): void {
    this.#record(ids)?.begin({ kind, name: ids.source, startMs: this.#now() });
  }

  /** Ends the wait, or adds it as a whole if its start was not observed. */
  #waited(
    record: RequestRecord,
    kind: TimelineSpanKind,
    p: Emitted & { waitMs: number },
    outcome?: string,
  ): void {
    const endMs = this.#now();
    const span = record.open(kind, p.source);
    if (span !== undefined) record.end(span, endMs, outcome);
    else record.add({ kind, name: p.source, startMs: endMs - p.waitMs, endMs, ...(outcome && { outcome }) });
  }

  #permitAcquired(p: Emitted & { waitMs: number }): void {
    const record = this.#record(p);
    if (record === undefined) return;
    this.#waited(record, 'wait-permit', p);
    record.begin({ kind: 'permit', name: p.source, startMs: this.#now() });
  }

  #leaseAcquired(p: Emitted & { waitMs: number; instanceId: number }): void {
    const { source: name, instanceId } = p;
    const lane = this.#instances.laneOf(name, instanceId);
    // An instance has one holder: if the next one is reported first, the previous lease has ended.
    this.#endLease(name, instanceId);
    const record = this.#recordOrUnnamed(p);
    if (record === undefined) return;
    this.#waited(record, 'wait-lease', p);
    record.begin({ kind: 'lease', name, startMs: this.#now(), instanceId, lane });
    this.#ongoing.set(`lease ${name} ${instanceId}`, record);
  }

  #leaseEnded(p: Emitted & { instanceId: number }, outcome?: string): void {
    const holder = this.#ongoing.get(`lease ${p.source} ${p.instanceId}`)?.ids;
    // A late event of a lease that the next one has ended already.
    if (holder?.taskId !== p.taskId) return;
    if (p.requestId !== undefined && holder?.requestId !== p.requestId) return;
    this.#endLease(p.source, p.instanceId, outcome);
  }

  #endLease(pool: string, instanceId: number, outcome?: string): void {
    const record = this.#takeOngoing(`lease ${pool} ${instanceId}`);
    record?.endOpen('lease', pool, instanceId, this.#now(), outcome);
  }

  #rejected(kind: TimelineSpanKind, p: Emitted & { waitMs: number; reason: string }): void {
    const record = this.#recordOrUnnamed(p);
    if (record === undefined) return;
    this.#waited(record, kind, p, p.reason);
    record.rejected(p.reason);
  }

  #gone({ source, instanceId }: Emitted & { instanceId: number }, reason: string): void {
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
    this.#takeOngoing(toolKey(p))?.endOpen('tool', p.tool, p.toolCallId, this.#now(), p.outcome);
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

  /** The request of these ids, created if necessary; none without ids, or if there is no room. */
  #record(ids: TaskIds): RequestRecord | undefined {
    if (isUnnamed(ids)) return undefined;
    const known = this.#find(ids);
    // Without a request id, an event after the end of the task's request starts a new one.
    if (known !== undefined && (ids.requestId !== undefined || !known.ended)) return known;
    return this.#add(ids);
  }

  #recordOrUnnamed(ids: TaskIds): RequestRecord | undefined {
    return isUnnamed(ids) ? this.#add(ids) : this.#record(ids);
  }

  #add({ taskId, requestId, tenant }: TaskIds): RequestRecord | undefined {
    if (this.#records.size >= this.#maxRequests && !this.#dropOldest()) {
      this.#omittedRequests++;
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

  #dropOldest(): boolean {
    for (const record of this.#records) {
      if (!record.over) continue;
      const { requestId, taskId } = record.ids;
      this.#records.delete(record);
      if (requestId !== undefined) this.#byRequest.delete(requestId);
      if (taskId !== undefined && this.#byTask.get(taskId) === record) this.#byTask.delete(taskId);
      this.#omittedRequests++;
      this.#omittedSpans += record.omittedSpans;
      return true;
    }
    return false;
  }
}

const isUnnamed = ({ taskId, requestId }: TaskIds): boolean =>
  taskId === undefined && requestId === undefined;

// Each tool manager numbers its own calls, and each instance has its own managers.
const toolKey = (p: ToolEvents['tool:started']): string =>
  `tool ${p.source} ${p.instanceId} ${p.tool} ${p.toolCallId}`;

type CallEvent = GateEvents['call:started' | 'call:retried' | 'call:throttled' | 'call:finished'];

/*
 * A call becomes known when it is throttled, when its first attempt starts, or at its end (cached or rejected). Earlier times
 * are calculated from the durations in the event.
 */

function callThrottled(record: RequestRecord, p: GateEvents['call:throttled'], atMs: number): void {
  callSpan(record, p, atMs);
  record.endOpen('wait-call', p.source, p.callId, atMs);
  record.begin({ reason: p.reason, ...part('wait-call', p, atMs) });
}

function callStarted(record: RequestRecord, p: GateEvents['call:started'], atMs: number): void {
  const known = record.open('call', p.source, p.callId);
  const arrivedMs = atMs - p.waitMs;
  if (known === undefined) {
    callSpan(record, p, arrivedMs);
    record.add({ endMs: atMs, reason: 'turn', ...part('wait-call', p, arrivedMs) });
  } else {
    record.endOpen('wait-call', p.source, p.callId, atMs);
    // Before it was throttled, the call was queued.
    if (p.attempt === 1 && known.startMs - arrivedMs >= 1) {
      record.add({ endMs: known.startMs, reason: 'turn', ...part('wait-call', p, arrivedMs) });
      known.startMs = arrivedMs;
    }
  }
  record.begin({ attempt: p.attempt, ...part('attempt', p, atMs) });
}

function callRetried(record: RequestRecord, p: GateEvents['call:retried'], atMs: number): void {
  record.endOpen('attempt', p.source, p.callId, atMs, p.class);
  record.begin({ reason: 'backoff', ...part('wait-call', p, atMs) });
}

function callFinished(record: RequestRecord, p: GateEvents['call:finished'], atMs: number): void {
  record.endOpen('wait-call', p.source, p.callId, atMs);
  record.endOpen('attempt', p.source, p.callId, atMs, p.outcome);
  // A call with attempts is known already, unless there was no room for it.
  const span =
    p.attempts === 0 ? callSpan(record, p, atMs - p.durationMs) : record.open('call', p.source, p.callId);
  if (span === undefined) return;
  record.end(
    span,
    atMs,
    p.cache === 'hit' || p.cache === 'shared' ? `${p.outcome}, cache ${p.cache}` : p.outcome,
  );
}

function callSpan(record: RequestRecord, p: CallEvent, startMs: number): OpenSpan | undefined {
  return record.open('call', p.source, p.callId) ?? record.begin(part('call', p, startMs));
}

const part = (kind: 'call' | 'wait-call' | 'attempt', p: CallEvent, startMs: number): TimelineSpan => ({
  kind,
  name: p.source,
  startMs,
  callId: p.callId,
  ...(p.toolCallId === undefined ? {} : { toolCallId: p.toolCallId }),
});
