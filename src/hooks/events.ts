import type { RevocationReason } from '../errors.js';
import type { ErrorSummary } from '../internal/error-summary.js';

export type { RevocationReason } from '../errors.js';
export type { ErrorSummary } from '../internal/error-summary.js';

/**
 * The lifecycle events: one payload type each, all plain objects. `source` is the `name` of the component that emits the
 * event. Durations are in milliseconds on the monotonic clock. An `error` is an `ErrorSummary`: never the error that was
 * thrown, but a redacted copy of its name, `code`, `status`, message and causes.
 */

/** The ids of the work that an event belongs to, as far as they are known. */
export interface TaskIds {
  /** The host's own id of the task. */
  readonly taskId?: string;
  /** One request through a manager; two requests of the same task have different ids. */
  readonly requestId?: string;
  /** The owner of the request, used for fair sharing. */
  readonly tenant?: string;
}

interface ComponentEvent extends TaskIds {
  readonly source: string;
}

interface PermitEvent extends ComponentEvent {
  /** Weight held after this event. */
  readonly active: number;
  /** Waiters queued after this event. */
  readonly queued: number;
  /** The current limit. */
  readonly maxConcurrent: number;
  /** The weight of this permit. */
  readonly weight: number;
}

/** Where a waiter stands, as far as its limiter knows. */
export interface QueuePlace {
  /**
   * Its place in the queue, 1 for the next. Exact without tenants; with tenants at most so many, as if each other tenant had
   * a turn before each of its own.
   */
  readonly position: number;
  /** Milliseconds that it may still have to wait, from the pace of recent releases. */
  readonly estimatedWaitMs: number;
}

/** Why a limiter rejected a request. */
export type PermitRejection =
  | 'queue-full'
  | 'deadline'
  | 'timeout'
  | 'aborted'
  | 'closed'
  | 'nested'
  | 'unavailable';

/** How the work under a permit ended, as its holder reports it; `dropped` signals overload to an adaptive limit. */
export type PermitOutcome = 'ok' | 'dropped' | 'ignored';

/** The events of a `ConcurrencyLimiter`. */
export interface LimiterEvents {
  'permit:queued': PermitEvent & Partial<QueuePlace>;
  'permit:acquired': PermitEvent & { readonly waitMs: number };
  'permit:released': PermitEvent & { readonly outcome: PermitOutcome };
  'permit:rejected': PermitEvent & {
    readonly reason: PermitRejection;
    readonly waitMs: number;
    readonly error: ErrorSummary;
  };
  'limit:changed': { readonly source: string; readonly previous: number; readonly maxConcurrent: number };
}

/** The events of a limit that several processes share (`pipeline-pool/redis`). */
export interface FleetEvents {
  /** This process has joined the limit. */
  'fleet:joined': {
    readonly source: string;
    readonly maxConcurrent: number;
    /** Processes that share the limit, this one included. */
    readonly members: number;
  };
  /** The server cannot be reached. */
  'fleet:unavailable': { readonly source: string; readonly error: ErrorSummary };
  /** It answers again, and this process has joined again. */
  'fleet:restored': { readonly source: string; readonly outageMs: number };
  /** This process was configured with another limit than the one in force. */
  'limit:mismatch': {
    readonly source: string;
    readonly maxConcurrent: number;
    /** The limit in force. */
    readonly fleetMaxConcurrent: number;
  };
  /** A held permit was lost; its `signal` has aborted. */
  'permit:lost': PermitEvent & { readonly heldMs: number };
}

interface PoolEvent extends ComponentEvent {
  /** Instances alive after this event: being created, idle, leased or being destroyed. */
  readonly live: number;
  /** Leases held after this event. */
  readonly leased: number;
  /** Requests waiting for a lease after this event. */
  readonly queued: number;
  /** The maximum number of instances. */
  readonly size: number;
}

interface InstanceEvent extends PoolEvent {
  readonly instanceId: number;
}

/** Why an instance was destroyed. */
export type DestroyReason =
  | 'idle' // idle for longer than `idleTimeoutMs`
  | 'lifetime' // older than `maxLifetimeMs`
  | 'uses' // leased `maxUses` times
  | 'unhealthy' // `validate` did not return `true`
  | 'prepare-failed'
  | 'reset-failed'
  | 'discarded' // `release({ discard: true })`
  | 'revoked' // the lease was revoked
  | 'refreshed'
  | 'resized' // more instances than the new `size`
  | 'late' // `create` returned after its deadline
  | 'closed';

/** Why a pool rejected a request. */
export type LeaseRejection =
  | 'queue-full'
  | 'timeout'
  | 'aborted'
  | 'closed'
  | 'create-failed'
  | 'prepare-failed'
  | 'instance-gone';

/** The events of a `PipelinePool`. */
export interface PoolEvents {
  'instance:creating': InstanceEvent;
  'instance:created': InstanceEvent & { readonly createMs: number };
  'instance:create-failed': InstanceEvent & {
    readonly error: ErrorSummary;
    readonly createMs: number;
    /** Failures in a row, this one included. */
    readonly failures: number;
    /** Milliseconds until the next creation may start. */
    readonly retryAfterMs: number;
  };
  'instance:unhealthy': InstanceEvent & {
    /** The callback that failed. */
    readonly stage: 'validate' | 'prepare' | 'reset';
    readonly error?: ErrorSummary;
  };
  'instance:destroyed': InstanceEvent & {
    readonly reason: DestroyReason;
    readonly destroyMs: number;
    readonly ageMs: number;
    readonly uses: number;
  };
  'instance:destroy-failed': InstanceEvent & {
    readonly reason: DestroyReason;
    readonly destroyMs: number;
    readonly error: ErrorSummary;
  };
  'lease:queued': PoolEvent & Partial<QueuePlace>;
  'lease:acquired': InstanceEvent & { readonly waitMs: number };
  'lease:released': InstanceEvent & { readonly heldMs: number; readonly discarded: boolean };
  'lease:rejected': PoolEvent & {
    readonly reason: LeaseRejection;
    readonly waitMs: number;
    readonly error: ErrorSummary;
  };
  'lease:leaked': InstanceEvent & {
    readonly heldMs: number;
    /** `overdue`: still held after `leakWarningMs`; `returned`: released after that; `collected`: garbage-collected without a release. */
    readonly kind: 'overdue' | 'returned' | 'collected';
    /** Where it was acquired. */
    readonly stack?: string;
  };
  'lease:revoked': InstanceEvent & { readonly heldMs: number; readonly reason: RevocationReason };
}

/** What a budget allows and what has been spent of it, by meter. */
export interface BudgetFigures {
  readonly limits: Readonly<Record<string, number>>;
  readonly spent: Readonly<Record<string, number>>;
  /** What attempts in flight may cost. */
  readonly reserved: Readonly<Record<string, number>>;
}

interface RequestEvent extends ComponentEvent {
  readonly taskId: string;
  readonly requestId: string;
}

/** How a request ended; `revoked`: its lease was revoked, or its permit lost. */
export type RequestOutcome = 'ok' | 'failed' | 'aborted' | 'timeout' | 'revoked' | 'shutdown';

/** The events of a `PipelineManager`. */
export interface ManagerEvents {
  'request:queued': RequestEvent;
  'request:started': RequestEvent & {
    readonly instanceId: number;
    /** From the call of `run` or `stream` to the start of the host's code. */
    readonly waitMs: number;
    /** The part of `waitMs` spent waiting for a permit. */
    readonly admissionMs: number;
    /** The part of `waitMs` spent waiting for an instance. */
    readonly leaseMs: number;
  };
  'request:finished': RequestEvent & {
    readonly instanceId: number;
    readonly outcome: RequestOutcome;
    /** From the start of the host's code to its end. */
    readonly durationMs: number;
    /** The request's budget, if it has one. Attempts that have not settled are still reserved. */
    readonly budget?: BudgetFigures;
    readonly error?: ErrorSummary;
  };
  /** Rejected or failed before the host's code started. */
  'request:rejected': RequestEvent & {
    readonly outcome: Exclude<RequestOutcome, 'ok'>;
    readonly waitMs: number;
    readonly error: ErrorSummary;
  };
}

interface CallEvent extends ComponentEvent {
  /** One call through the gate, including all its attempts. */
  readonly callId: number;
  /** The tool call that made this call, if a `ToolManager` did. */
  readonly toolCallId?: number;
}

/** What the result of an attempt means for the call and for its key. See `classify` of `ServiceGate`. */
export type OutcomeClass =
  | 'ok'
  | 'retryable' // the service is busy or unreachable: retry with backoff
  | 'rate-limited' // this key has reached its limit: put it in cooldown, use another
  | 'quota-exhausted' // the account has no quota left: put its key out of use for long, use another
  | 'unauthorized' // the key is rejected: quarantine it, use another
  | 'client-error' // the service is well, this request is wrong: do not retry
  | 'fatal'; // nothing known: do not retry

/** The events of a `ServiceGate`. A `key` is its position and its last four characters: `#2…9f3a`. */
export interface GateEvents {
  /** An attempt starts. */
  'call:started': CallEvent & {
    readonly attempt: number;
    readonly key?: string;
    readonly waitMs: number;
    /** The host of the service, where the gate knows it: in calls of `fetch`. */
    readonly serverAddress?: string;
  };
  /** An attempt failed and is retried. */
  'call:retried': CallEvent & {
    readonly attempt: number;
    readonly key?: string;
    readonly class: OutcomeClass;
    readonly status?: number;
    readonly retryAfterMs: number;
  };
  /** The call waits for a rate window, a cooldown or a backoff. */
  'call:throttled': CallEvent & { readonly reason: 'rate' | 'cooldown' | 'backoff'; readonly waitMs: number };
  'call:finished': CallEvent & {
    readonly outcome: OutcomeClass | 'aborted' | 'timeout' | 'rejected';
    readonly attempts: number;
    readonly key?: string;
    readonly durationMs: number;
    /** The part of `durationMs` spent waiting for permits, windows, cooldowns and backoffs. */
    readonly waitMs: number;
    /** `off`: the call has no cache key; `shared`: it shared another caller's in-flight call. */
    readonly cache: 'off' | 'hit' | 'miss' | 'shared';
    /** What its attempts spent of a budget, by meter; absent without a budget. */
    readonly cost?: Readonly<Record<string, number>>;
    /** The `provider` of the gate. */
    readonly provider?: string;
    /** What its last response said about its request, from the cache of prompts or not; absent where it said nothing. */
    readonly inputTokens?: number;
    /** What its last response said about itself, reasoning included. */
    readonly outputTokens?: number;
    readonly error?: ErrorSummary;
  };
  'key:cooldown': {
    readonly source: string;
    readonly key: string;
    readonly retryAfterMs: number;
    readonly status?: number;
  };
  'key:quarantined': {
    readonly source: string;
    readonly key: string;
    readonly reason: 'quarantined' | 'exhausted';
    readonly retryAfterMs?: number;
  };
  'key:restored': { readonly source: string; readonly key: string };
  'cache:hit': ComponentEvent & { readonly shared: boolean };
  'cache:miss': ComponentEvent;
  /** The shared store of a cache failed, or took too long. A lookup counts as a miss. */
  'cache:store-failed': {
    readonly source: string;
    readonly operation: 'get' | 'set' | 'delete';
    readonly error: ErrorSummary;
  };
  /** An attempt was not made: it may cost `wanted`, and the budget has less left. */
  'budget:exceeded': CallEvent & {
    readonly meter: string;
    readonly limit: number;
    readonly spent: number;
    readonly reserved: number;
    readonly wanted: number;
  };
  /** The first call, per gate, under a budget with meters that the gate does not spend from. */
  'budget:unmetered': CallEvent & { readonly meters: readonly string[] };
}

interface ToolEvent extends ComponentEvent {
  readonly tool: string;
  readonly instanceId?: number;
  /** One call of one tool. */
  readonly toolCallId: number;
  /** The id that the model gave the call, if the host passed it. */
  readonly modelCallId?: string;
}

/** The events of a `ToolManager`. They carry neither inputs nor results. */
export interface ToolEvents {
  'tool:started': ToolEvent;
  'tool:finished': ToolEvent & {
    readonly outcome: 'ok' | 'failed' | 'timeout' | 'aborted';
    readonly durationMs: number;
    readonly error?: ErrorSummary;
  };
  /** The `disconnect` of a client failed or exceeded its deadline. The client may still be connected. */
  'tool:disconnect-failed': ComponentEvent & {
    /** The first of the tools that share the client. */
    readonly tool: string;
    /** Absent for a client of scope `shared`. */
    readonly instanceId?: number;
    readonly error: ErrorSummary;
  };
}

/** A listener threw or rejected. */
export interface HookEvents {
  'hook:error': { readonly event: LifecycleEventName; readonly error: ErrorSummary };
}

/** All events and their payloads. */
export interface LifecycleEvents
  extends LimiterEvents,
    PoolEvents,
    ManagerEvents,
    GateEvents,
    ToolEvents,
    FleetEvents,
    HookEvents {}

/** The name of an event. */
export type LifecycleEventName = keyof LifecycleEvents;

const NAMES = {
  'permit:queued': 0,
  'permit:acquired': 0,
  'permit:released': 0,
  'permit:rejected': 0,
  'limit:changed': 0,
  'instance:creating': 0,
  'instance:created': 0,
  'instance:create-failed': 0,
  'instance:unhealthy': 0,
  'instance:destroyed': 0,
  'instance:destroy-failed': 0,
  'lease:queued': 0,
  'lease:acquired': 0,
  'lease:released': 0,
  'lease:rejected': 0,
  'lease:leaked': 0,
  'lease:revoked': 0,
  'request:queued': 0,
  'request:started': 0,
  'request:finished': 0,
  'request:rejected': 0,
  'call:started': 0,
  'call:retried': 0,
  'call:throttled': 0,
  'call:finished': 0,
  'key:cooldown': 0,
  'key:quarantined': 0,
  'key:restored': 0,
  'cache:hit': 0,
  'cache:miss': 0,
  'cache:store-failed': 0,
  'budget:exceeded': 0,
  'budget:unmetered': 0,
  'tool:started': 0,
  'tool:finished': 0,
  'tool:disconnect-failed': 0,
  'fleet:joined': 0,
  'fleet:unavailable': 0,
  'fleet:restored': 0,
  'limit:mismatch': 0,
  'permit:lost': 0,
  'hook:error': 0,
} satisfies Record<LifecycleEventName, 0>;

/** Every event name, in the order in which a request passes the components. */
export const LIFECYCLE_EVENTS: readonly LifecycleEventName[] = /* @__PURE__ */ Object.freeze(
  /* @__PURE__ */ Object.keys(NAMES) as LifecycleEventName[],
);
