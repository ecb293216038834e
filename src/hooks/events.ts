/**
 * The lifecycle events: one payload type each, all plain objects. `source` is the `name` of the component that tells;
 * durations are milliseconds on the monotonic clock and are there only where the event knows them.
 */

/** Whose event it is. */
export interface TaskIds {
  /** The host's own name for the work. */
  readonly taskId?: string;
  /** One pass through a manager; two requests of one task differ in it. */
  readonly requestId?: string;
  /** Whose request it is, for fair sharing. */
  readonly tenant?: string;
}

interface Told extends TaskIds {
  readonly source: string;
}

interface LimiterTold extends Told {
  /** Weight held after this event. */
  readonly active: number;
  /** Waiters queued after this event. */
  readonly queued: number;
  /** The limit in force. */
  readonly maxConcurrent: number;
  /** What this permit counts for. */
  readonly weight: number;
}

/** Why a limiter turned a request away. */
export type PermitRejection = 'queue-full' | 'deadline' | 'timeout' | 'aborted' | 'closed' | 'nested';

/** How the work under a permit ended, as its holder sees it; `dropped` tells an adaptive limit of overload. */
export type PermitOutcome = 'ok' | 'dropped' | 'ignored';

/** What a `ConcurrencyLimiter` tells. */
export interface LimiterEvents {
  'permit:queued': LimiterTold;
  'permit:acquired': LimiterTold & { readonly waitMs: number };
  'permit:released': LimiterTold & { readonly outcome: PermitOutcome };
  'permit:rejected': LimiterTold & {
    readonly reason: PermitRejection;
    readonly waitMs: number;
    readonly error: unknown;
  };
  'limit:changed': { readonly source: string; readonly previous: number; readonly maxConcurrent: number };
}

interface PoolTold extends Told {
  /** Instances alive after this event: being created, idle, leased or being torn down. */
  readonly live: number;
  /** Leases held after this event. */
  readonly leased: number;
  /** Requests waiting for a lease after this event. */
  readonly waiting: number;
  /** The most instances the pool keeps. */
  readonly size: number;
}

interface InstanceTold extends PoolTold {
  readonly instanceId: number;
}

/** Why an instance was torn down. */
export type DestroyReason =
  | 'idle' // longer unused than `idleTimeoutMs`
  | 'lifetime' // older than `maxLifetimeMs`
  | 'uses' // leased `maxUses` times
  | 'unhealthy' // `validate` did not answer `true`
  | 'prepare-failed'
  | 'reset-failed'
  | 'discarded' // `release({ discard: true })`
  | 'revoked' // the lease was taken back
  | 'refreshed'
  | 'resized' // more instances than the new size
  | 'late' // `create` answered after its deadline
  | 'closed';

/** Why a pool gave no lease. */
export type LeaseRejection =
  | 'queue-full'
  | 'timeout'
  | 'aborted'
  | 'closed'
  | 'create-failed'
  | 'prepare-failed'
  | 'instance-gone';

/** Why a lease was taken back. */
export type RevocationReason = 'max-lease' | 'closed' | 'abandoned';

/** What a `PipelinePool` tells. */
export interface PoolEvents {
  'instance:creating': InstanceTold;
  'instance:created': InstanceTold & { readonly createMs: number };
  'instance:createFailed': InstanceTold & {
    readonly error: unknown;
    readonly createMs: number;
    /** Failures in a row, this one included. */
    readonly failures: number;
    /** Milliseconds until the next creation may begin. */
    readonly retryInMs: number;
  };
  'instance:unhealthy': InstanceTold & {
    /** The callback that found it out. */
    readonly stage: 'validate' | 'prepare' | 'reset';
    readonly error?: unknown;
  };
  'instance:destroyed': InstanceTold & {
    readonly reason: DestroyReason;
    readonly destroyMs: number;
    readonly ageMs: number;
    readonly uses: number;
  };
  'instance:destroyFailed': InstanceTold & {
    readonly reason: DestroyReason;
    readonly destroyMs: number;
    readonly error: unknown;
  };
  'lease:queued': PoolTold;
  'lease:acquired': InstanceTold & { readonly waitMs: number };
  'lease:released': InstanceTold & { readonly heldMs: number; readonly discarded: boolean };
  'lease:rejected': PoolTold & {
    readonly reason: LeaseRejection;
    readonly waitMs: number;
    readonly error: unknown;
  };
  'lease:leaked': InstanceTold & {
    readonly heldMs: number;
    /** `overdue`: still held at `leakWarningMs`; `returned`: it came back after all; `collected`: dropped without release. */
    readonly kind: 'overdue' | 'returned' | 'collected';
    /** Where it was acquired. */
    readonly stack?: string;
  };
  'lease:revoked': InstanceTold & { readonly heldMs: number; readonly reason: RevocationReason };
}

interface RequestTold extends Told {
  readonly taskId: string;
  readonly requestId: string;
}

/** How a request ended. */
export type RequestOutcome = 'ok' | 'failed' | 'aborted' | 'timeout' | 'revoked' | 'shutdown';

/** What a `PipelineManager` tells. */
export interface ManagerEvents {
  'request:queued': RequestTold;
  'request:started': RequestTold & {
    readonly instanceId: number;
    /** From the call to the start of the host's code. */
    readonly queuedMs: number;
    /** The part of it spent waiting to be admitted. */
    readonly admissionMs: number;
    /** The part of it spent waiting for an instance. */
    readonly leaseMs: number;
  };
  'request:finished': RequestTold & {
    readonly instanceId: number;
    readonly outcome: RequestOutcome;
    /** From the start of the host's code to its end. */
    readonly durationMs: number;
    readonly error?: unknown;
  };
  /** Turned away or failed before the host's code began. */
  'request:rejected': RequestTold & {
    readonly outcome: Exclude<RequestOutcome, 'ok'>;
    readonly queuedMs: number;
    readonly error: unknown;
  };
}

interface CallTold extends Told {
  /** One call through the gate, all its attempts included. */
  readonly callId: number;
  /** The tool call that this call serves, where a `ToolManager` made it. */
  readonly toolCallId?: number;
}

/** What an attempt's result means for the call and for the key that made it. See `classify` of `ServiceGate`. */
export type OutcomeClass =
  | 'ok'
  | 'wait' // the service is busy: cool down, try again
  | 'other-key' // this key has met its limit: cool it down, try another
  | 'key-spent' // the account is empty: rest this key, try another
  | 'key-dead' // the key is refused: quarantine it, try another
  | 'target' // the thing asked for is at fault, not the service: do not try again
  | 'stop'; // a bug or a refusal: do not try again

/** What a `ServiceGate` tells. Keys are masked, and an `error` is a copy without keys, credentials and inputs. */
export interface GateEvents {
  /** An attempt begins. */
  'call:started': CallTold & { readonly attempt: number; readonly key?: string; readonly waitMs: number };
  /** An attempt failed and another will follow. */
  'call:retried': CallTold & {
    readonly attempt: number;
    readonly key?: string;
    readonly class: OutcomeClass;
    readonly status?: number;
    readonly delayMs: number;
  };
  /** The call has to wait for a rate window, a cool-down or a back-off. */
  'call:throttled': CallTold & { readonly reason: 'rate' | 'cooldown' | 'backoff'; readonly waitMs: number };
  'call:finished': CallTold & {
    readonly outcome: OutcomeClass | 'aborted' | 'timeout' | 'rejected';
    readonly attempts: number;
    readonly key?: string;
    readonly durationMs: number;
    /** The part of the duration spent waiting for permits, windows, cool-downs and back-offs. */
    readonly waitMs: number;
    /** `off`: no cache key; `shared`: another caller's call in flight answered. */
    readonly cache: 'off' | 'hit' | 'miss' | 'shared';
    readonly error?: unknown;
  };
  'key:cooledDown': {
    readonly source: string;
    readonly key: string;
    readonly forMs: number;
    readonly status?: number;
  };
  'key:quarantined': {
    readonly source: string;
    readonly key: string;
    readonly reason: 'dead' | 'spent';
    readonly forMs?: number;
  };
  'key:restored': { readonly source: string; readonly key: string };
  'cache:hit': Told & { readonly shared: boolean };
  'cache:miss': Told;
}

interface ToolTold extends Told {
  readonly tool: string;
  readonly instanceId?: number;
  /** One call of one tool. */
  readonly toolCallId: number;
}

/** What a `ToolManager` tells. Inputs and results are left out, of an `error` too: they are the task's own business. */
export interface ToolEvents {
  'tool:started': ToolTold;
  'tool:finished': ToolTold & {
    readonly outcome: 'ok' | 'failed' | 'timeout' | 'aborted';
    readonly durationMs: number;
    readonly error?: unknown;
  };
  /** Letting a tool's client go failed or took too long. Nobody waits for it any longer, but it may be alive still. */
  'tool:disconnectFailed': Told & {
    /** The first of the tools that the client serves. */
    readonly tool: string;
    /** Absent for a client that all instances share. */
    readonly instanceId?: number;
    readonly error: unknown;
  };
}

/** What any component tells when a listener of yours failed. */
export interface HookEvents {
  'hook:error': { readonly event: LifecycleEventName; readonly error: unknown };
}

/** All events and their payloads. */
export interface LifecycleEvents
  extends LimiterEvents,
    PoolEvents,
    ManagerEvents,
    GateEvents,
    ToolEvents,
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
  'instance:createFailed': 0,
  'instance:unhealthy': 0,
  'instance:destroyed': 0,
  'instance:destroyFailed': 0,
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
  'key:cooledDown': 0,
  'key:quarantined': 0,
  'key:restored': 0,
  'cache:hit': 0,
  'cache:miss': 0,
  'tool:started': 0,
  'tool:finished': 0,
  'tool:disconnectFailed': 0,
  'hook:error': 0,
} satisfies Record<LifecycleEventName, 0>;

/** Every event name, in the order of a request's way through. */
export const LIFECYCLE_EVENTS: readonly LifecycleEventName[] = Object.freeze(
  Object.keys(NAMES) as LifecycleEventName[],
);
