/** The data of a recorded timeline, as returned by `timeline.toJSON()`. Times are milliseconds since the first event. */

/** What a request did during a span. */
export type TimelineSpanKind =
  | 'wait-permit' // waiting for a limiter's permit
  | 'permit' // holding a limiter's permit
  | 'wait-lease' // waiting for an instance of a pool
  | 'lease' // holding an instance
  | 'tool' // one call of a tool
  | 'call' // one call through a gate, with all its attempts and waits
  | 'wait-call' // waiting inside a call: for its turn, a rate window, a cooldown or a backoff
  | 'attempt'; // one attempt of a call

/** A span of a request's time. */
export interface TimelineSpan {
  readonly kind: TimelineSpanKind;
  /** The limiter, pool, gate or tool. */
  readonly name: string;
  readonly startMs: number;
  /** Absent while it is in progress. */
  readonly endMs?: number;
  /** For a lease. */
  readonly instanceId?: number;
  /** For a lease: the slot of its instance, from 0. */
  readonly lane?: number;
  /** For a call and its parts. */
  readonly callId?: number;
  /** For a tool call, and for the calls made by it. */
  readonly toolCallId?: number;
  /** For an attempt, from 1. */
  readonly attempt?: number;
  /** Why a call waited. `turn`: for a permit of the gate, or in its queue. */
  readonly reason?: 'turn' | 'rate' | 'cooldown' | 'backoff';
  /** How it ended, if the event includes it. */
  readonly outcome?: string;
}

/** One request of a manager or, without a manager, one task. */
export interface TimelineRequest {
  readonly taskId?: string;
  readonly requestId?: string;
  readonly tenant?: string;
  readonly startMs: number;
  /** Absent while it is in progress. */
  readonly endMs?: number;
  /** How it ended, if an event includes it. */
  readonly outcome?: string;
  readonly spans: readonly TimelineSpan[];
}

/** One instance of a pool. */
export interface TimelineInstance {
  /** The pool's name. */
  readonly pool: string;
  readonly instanceId: number;
  /** Its slot, from 0. The instance that replaces it has the same slot. */
  readonly lane: number;
  /** When its creation started; absent if that was before the recording. */
  readonly startMs?: number;
  /** When its creation was complete. */
  readonly readyMs?: number;
  /** When it was destroyed. */
  readonly endMs?: number;
  /** Why it was destroyed, or `create-failed`. */
  readonly reason?: string;
}

/** A whole recording: requests with their spans, and instances. */
export interface TimelineData {
  readonly version: 1;
  /** The wall-clock time of millisecond 0, in ISO 8601. */
  readonly startedAt: string;
  /** The end of the last event, or the present while anything is in progress. */
  readonly endMs: number;
  readonly requests: readonly TimelineRequest[];
  readonly instances: readonly TimelineInstance[];
  /** What was omitted to bound memory, and the number of events without a task. */
  readonly left: { readonly requests: number; readonly spans: number; readonly unattributed: number };
}
