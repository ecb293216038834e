import type { GateEvents } from '../hooks/events.js';
import type { TimelineSpan } from './timeline-data.js';
import type { OpenSpan, RequestRecord } from './timeline-request.js';

/** What a gate tells of one call. */
export type CallEvent = GateEvents['call:started' | 'call:retried' | 'call:throttled' | 'call:finished'];

/*
 * A call is first heard of when it is throttled, when its first attempt begins, or when it is over (from the cache, or
 * turned away). What came before is known from the durations the event carries.
 */

/** The call has to wait. */
export function callThrottled(record: RequestRecord, p: GateEvents['call:throttled'], atMs: number): void {
  callSpan(record, p, atMs);
  endPart(record, 'wait-call', p, atMs);
  record.begin({ ...part('wait-call', p, atMs), reason: p.reason });
}

/** An attempt begins. */
export function callStarted(record: RequestRecord, p: GateEvents['call:started'], atMs: number): void {
  const known = record.open('call', p.source, p.callId);
  const arrivedMs = atMs - p.waitMs;
  if (known === undefined) {
    callSpan(record, p, arrivedMs);
    record.add({ ...part('wait-call', p, arrivedMs), endMs: atMs, reason: 'turn' });
  } else {
    endPart(record, 'wait-call', p, atMs);
    // Before the call was throttled it had waited its turn.
    if (p.attempt === 1 && known.startMs - arrivedMs >= 1) {
      record.add({ ...part('wait-call', p, arrivedMs), endMs: known.startMs, reason: 'turn' });
      known.startMs = arrivedMs;
    }
  }
  record.begin({ ...part('attempt', p, atMs), attempt: p.attempt });
}

/** An attempt failed, and the call waits for the next. */
export function callRetried(record: RequestRecord, p: GateEvents['call:retried'], atMs: number): void {
  endPart(record, 'attempt', p, atMs, p.class);
  record.begin({ ...part('wait-call', p, atMs), reason: 'backoff' });
}

/** The call is over. */
export function callFinished(record: RequestRecord, p: GateEvents['call:finished'], atMs: number): void {
  endPart(record, 'wait-call', p, atMs);
  endPart(record, 'attempt', p, atMs, p.outcome);
  // A call that made an attempt was heard of before: if it is not known, there was no room for it.
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
  const known = record.open('call', p.source, p.callId);
  if (known !== undefined) return known;
  record.begin(part('call', p, startMs));
  return record.open('call', p.source, p.callId);
}

function endPart(
  record: RequestRecord,
  kind: 'wait-call' | 'attempt',
  p: CallEvent,
  atMs: number,
  outcome?: string,
): void {
  const span = record.open(kind, p.source, p.callId);
  if (span !== undefined) record.end(span, atMs, outcome);
}

const part = (kind: 'call' | 'wait-call' | 'attempt', p: CallEvent, startMs: number): TimelineSpan => ({
  kind,
  name: p.source,
  startMs,
  callId: p.callId,
  ...(p.toolCallId === undefined ? {} : { toolCallId: p.toolCallId }),
});
