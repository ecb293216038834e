import type { PermitOutcome, PermitRejection } from '../hooks/events.js';
import type { AbortWatcher } from '../internal/abort-watch.js';
import type { AsyncContext } from '../internal/async-context.js';
import type { Lane, QueueNode } from './level.js';
import type { AcquireOptions, Permit, RunContext } from './limiter.js';

/** Where in its life a permit is; one that was never held ends with the reason. */
export type PermitState = 'waiting' | 'held' | 'released' | PermitRejection;

/** What few permits have. */
export interface PermitExtras extends AcquireOptions {
  /** Ends the waiting. */
  timer?: NodeJS.Timeout;
  /** Whose request it is, kept where the end of it will be told. */
  context?: AsyncContext;
  /** When it was granted, on the clock of the adaptive limit that asks. */
  grantedMs?: number;
}

/** The limiter, as a permit sees it. */
export interface PermitIssuer {
  takeBack(permit: LimiterPermit, outcome: PermitOutcome): void;
  abandon(permit: LimiterPermit, reason: unknown): void;
}

/**
 * A permit, from the moment it is asked for: it waits, is held, and is over. Waiter, queue node and permit are one
 * object without a base class: at a hundred thousand waiters, memory and its collection are what the time goes to.
 *
 *     waiting ──granted──► held ──► released
 *        └──► aborted, timed out, turned away
 */
export class LimiterPermit implements Permit, QueueNode, AbortWatcher {
  // Declared only: a field that is initialised here and set in the constructor would be written twice.
  declare readonly weight: number;
  /** @internal */ declare state: PermitState;
  /** @internal While waiting the moment it was queued, then the milliseconds waited. */
  declare clockMs: number;
  /** @internal */ declare readonly issuer: PermitIssuer;
  /** @internal */ declare extras: PermitExtras | undefined;
  /** @internal What `run` will run. */
  declare work: ((context: RunContext) => unknown) | undefined;
  /** @internal Settles the promise of `acquire`; a rejected promise fails it, which spares a second function. */
  declare settle: ((answer: LimiterPermit | Promise<never>) => void) | undefined;
  /** @internal */ declare lane: Lane | undefined;
  /** @internal */ declare before: QueueNode | undefined;
  /** @internal */ declare after: QueueNode | undefined;

  constructor(issuer: PermitIssuer, weight: number, state: PermitState, extras: PermitExtras | undefined) {
    this.weight = weight;
    this.state = state;
    this.clockMs = 0;
    this.issuer = issuer;
    this.extras = extras;
    this.work = undefined;
    this.settle = undefined;
    this.lane = undefined;
    this.before = undefined;
    this.after = undefined;
  }

  get waitMs(): number {
    return this.clockMs;
  }

  release(outcome: PermitOutcome = 'ok'): void {
    if (this.state !== 'held') return;
    this.state = 'released';
    this.issuer.takeBack(this, outcome);
  }

  [Symbol.dispose](): void {
    this.release();
  }

  /** @internal The waiting has led to a permit. */
  grant(): void {
    this.state = 'held';
    this.settle?.(this);
    this.settle = undefined;
  }

  /** @internal The waiting has led to nothing. */
  fail(reason: PermitRejection, error: unknown): void {
    this.state = reason;
    this.settle?.(Promise.reject(error));
    this.settle = undefined;
  }

  /** @internal */
  onAbort(reason: unknown): void {
    this.issuer.abandon(this, reason);
  }
}
