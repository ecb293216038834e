import type { PermitOutcome } from '../hooks/events.js';

/** How a permit is asked for. */
export interface AcquireOptions {
  /** Ends the waiting; the promise rejects with `signal.reason`. A permit already given is not touched. */
  readonly signal?: AbortSignal;
  /** Milliseconds to wait at most; then `AcquireTimeoutError`. 0 does not wait at all. */
  readonly timeoutMs?: number;
  /** Higher goes first; a whole number, 0 if left out. */
  readonly priority?: number;
  /** What the permit counts for; a whole number from 1 to `maxConcurrent` (with an adaptive limit: to its `max`), 1 if left out. */
  readonly weight?: number;
  /** Whose request it is: tenants of one priority take turns. */
  readonly tenant?: string;
  /** Told in the events. */
  readonly taskId?: string;
  /** Told in the events. */
  readonly requestId?: string;
}

/** One holder's share of a limit. Release it exactly when the work is over; a second release does nothing. */
export interface Permit extends Disposable {
  /** What it counts for. */
  readonly weight: number;
  /** Milliseconds waited for it, exact to one turn of the event loop. */
  readonly waitMs: number;
  /** Gives it back; the next waiter has it before this returns. `outcome` is for an adaptive limit, `ok` if left out. */
  release(outcome?: PermitOutcome): void;
}

/** What work under a limiter is given. */
export interface RunContext {
  /** The caller's own signal, as it was passed. */
  readonly signal?: AbortSignal;
  readonly permit: Permit;
}

/** Figures of a limiter, counted, not derived. */
export interface LimiterStats {
  readonly maxConcurrent: number;
  /** Weight held. */
  readonly active: number;
  /** Waiters. */
  readonly queued: number;
  /** Permits given so far. */
  readonly acquired: number;
  /** Requests turned away so far, whatever the reason. */
  readonly rejected: number;
  readonly paused: boolean;
  readonly closed: boolean;
}

/** What a gate or a manager needs of a limiter; another machine's limit can stand behind it. */
export interface Limiter {
  readonly name: string;
  readonly maxConcurrent: number;
  readonly activeCount: number;
  readonly queuedCount: number;
  acquire(options?: AcquireOptions): Promise<Permit>;
  tryAcquire(options?: { readonly weight?: number }): Permit | undefined;
  stats(): LimiterStats;
  close(options?: { readonly drain?: boolean; readonly timeoutMs?: number }): Promise<void>;
}
