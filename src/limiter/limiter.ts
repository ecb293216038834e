import type { PermitOutcome } from '../hooks/events.js';
import type { QUEUE_WATCH, QueueWatch, UNUSED } from '../queue/options.js';

/** Options of a request for a permit. */
export interface AcquireOptions {
  /** Ends the wait; the promise rejects with `signal.reason`. A granted permit is not affected. @default none */
  readonly signal?: AbortSignal | undefined;
  /** Milliseconds to wait at most; then `AcquireTimeoutError`. 0 does not wait at all. @default the limiter's */
  readonly timeoutMs?: number | undefined;
  /** Higher goes first; a whole number. @default 0 */
  readonly priority?: number | undefined;
  /**
   * What the permit counts for; a whole number from 1 to the highest `maxConcurrent` that the limiter has had (an adaptive
   * limit: to its `max`). A request heavier than a lowered limit waits and runs alone. @default 1
   */
  readonly weight?: number | undefined;
  /** Whose request it is: tenants of one priority share fairly. @default none */
  readonly tenant?: string | undefined;
  /** Included in event payloads. @default none */
  readonly taskId?: string | undefined;
  /** Included in event payloads. @default none */
  readonly requestId?: string | undefined;
  /** @internal Learns where the request stands while it is queued. */
  readonly [QUEUE_WATCH]?: QueueWatch | undefined;
}

/** A share of a limit. Release it exactly when the work is over; a second release does nothing. */
export interface Permit extends Disposable {
  /** What it counts for. */
  readonly weight: number;
  /** Milliseconds waited for it, exact to one turn of the event loop. */
  readonly waitMs: number;
  /**
   * Aborts with `LimitLostError` when the permit is lost before its release, because another process may hold it from then
   * on. Reading it checks the clock: read it before work starts. Absent where no permit can be lost, as in a
   * `ConcurrencyLimiter`.
   */
  readonly signal?: AbortSignal | undefined;
  /** Releases it. `outcome` is for an adaptive limit. @default 'ok' */
  release(outcome?: PermitOutcome): void;
  /** @internal Its release, which follows, charges no tenant. */
  [UNUSED]?(): void;
}

/** What work under a limiter receives. */
export interface RunContext {
  /** The caller's own signal, as it was passed. */
  readonly signal?: AbortSignal | undefined;
  readonly permit: Permit;
}

/** What `map` passes to its function, besides the item. */
export interface MapContext extends RunContext {
  /** Aborts when another item fails or the caller's signal aborts. */
  readonly signal: AbortSignal;
  /** The item's place in the iterable. */
  readonly index: number;
}

/** What all processes that share a limit do together, as its server last reported it to this one. */
export interface FleetStats {
  /** Weight held; of the starts of a gate, those that were granted and have not begun. */
  readonly active: number;
  /** Waiters. */
  readonly queued: number;
  /** Processes that share the limit. */
  readonly members: number;
  /** Whether the server answers. */
  readonly available: boolean;
  /** Whether nothing is granted, for one lease after a loss of data. */
  readonly frozen: boolean;
  /** Permits that this process has lost before their release. */
  readonly lost: number;
  /** The limit that this process was started with, where another one was in force already. */
  readonly configured?: number | undefined;
}

/** A snapshot of a limiter. Counted, not derived. */
export interface LimiterStats {
  readonly maxConcurrent: number;
  /** Weight held. */
  readonly active: number;
  /** Waiters. */
  readonly queued: number;
  /** Permits granted so far. */
  readonly acquired: number;
  /** Requests rejected so far, for whatever reason. */
  readonly rejected: number;
  /** Whether a pause holds back what it grants; not once it is closed and no request waits. */
  readonly paused: boolean;
  readonly closed: boolean;
  /** Of all processes that share the limit; absent if none do. */
  readonly fleet?: FleetStats | undefined;
}

/**
 * What a gate or a manager needs of a limiter. A limit that several processes share implements it as well: nothing here is
 * synchronous, and a permit may be lost. `limiterConformance` of `pipeline-pool/testing` checks an implementation.
 */
export interface Limiter {
  readonly name: string;
  readonly maxConcurrent: number;
  readonly activeCount: number;
  readonly queuedCount: number;
  acquire(options?: AcquireOptions): Promise<Permit>;
  stats(): LimiterStats;
  close(options?: {
    readonly drain?: boolean | undefined;
    readonly timeoutMs?: number | undefined;
  }): Promise<void>;
}
