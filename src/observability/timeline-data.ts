/**
 * What a recorded timeline holds: plain data, as `timeline.toJSON()` gives it. Times are milliseconds since the first
 * thing recorded.
 */

/** What a stretch of a request's time was spent on. */
export type TimelineSpanKind =
  | 'wait-permit' // waiting to be admitted by a limiter
  | 'permit' // holding a limiter's permit
  | 'wait-lease' // waiting for an instance of a pool
  | 'lease' // holding an instance
  | 'tool' // one call of a tool
  | 'call' // one call through a gate, with all its attempts and waits
  | 'wait-call' // the part of a call before an attempt: its turn, a rate window, a cool-down, a back-off
  | 'attempt'; // the part of a call in which the service is at work

/** One stretch of a request's time. */
export interface TimelineSpan {
  readonly kind: TimelineSpanKind;
  /** The limiter, pool, gate or tool. */
  readonly name: string;
  readonly startMs: number;
  /** Absent while it goes on. */
  readonly endMs?: number;
  /** Of a lease. */
  readonly instanceId?: number;
  /** Of a lease: the slot its instance stands in, from 0. */
  readonly lane?: number;
  /** Of a call and its parts. */
  readonly callId?: number;
  /** Of a tool call, and of the calls that serve it. */
  readonly toolCallId?: number;
  /** Of an attempt, from 1. */
  readonly attempt?: number;
  /** Why a part of a call waited; `turn` is for a permit of the gate or room in its windows. */
  readonly reason?: 'turn' | 'rate' | 'cooldown' | 'backoff';
  /** How it ended, where the event said so. */
  readonly outcome?: string;
}

/** One request: one pass through a manager, or, without a manager, one task. */
export interface TimelineRequest {
  readonly taskId?: string;
  readonly requestId?: string;
  readonly tenant?: string;
  readonly startMs: number;
  /** Absent while it goes on. */
  readonly endMs?: number;
  /** How it ended, where an event said so. */
  readonly outcome?: string;
  readonly spans: readonly TimelineSpan[];
}

/** One instance of a pool. */
export interface TimelineInstance {
  /** The pool's name. */
  readonly pool: string;
  readonly instanceId: number;
  /** The slot it stands in, from 0; an instance that comes after it in the same slot has the same. */
  readonly lane: number;
  /** When its creation began; absent where that was before the recording. */
  readonly startMs?: number;
  /** When it had been created. */
  readonly readyMs?: number;
  /** When it was gone. */
  readonly endMs?: number;
  /** Why it was torn down, or `create-failed`. */
  readonly reason?: string;
}

/** A whole recording. */
export interface TimelineData {
  readonly version: 1;
  /** The wall time of millisecond 0, in ISO form. */
  readonly startedAt: string;
  /** The end of the last thing recorded; the present while anything goes on. */
  readonly endMs: number;
  readonly requests: readonly TimelineRequest[];
  readonly instances: readonly TimelineInstance[];
  /** What the bounds on memory left out, and events without a task to put them under. */
  readonly left: { readonly requests: number; readonly spans: number; readonly unattributed: number };
}
