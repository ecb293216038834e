import type { PermitOutcome, PermitRejection } from '../hooks/events.js';
import type { AbortWatcher } from '../internal/abort-watch.js';
import type { AsyncContext } from '../internal/async-context.js';
import type { Place, QueueNode } from './level.js';
import type { AcquireOptions, Permit, RunContext } from './limiter.js';
import { ticketOf } from './run-end.js';

/** Where in its life a permit is; one that was never held ends with the reason. One that is shared may always be given back. */
export type PermitState = 'waiting' | 'held' | 'released' | 'shared' | PermitRejection;

/** What few permits have. */
export interface PermitExtras extends AcquireOptions, Place {
  /** Ends the waiting. */
  timer?: NodeJS.Timeout;
  /** Whose request it is, kept where the end of it will be told. */
  context?: AsyncContext;
  /** When it was granted, on the clock of the adaptive limit that asks. */
  grantedMs?: number;
}

export type LimiterPermit = ReadyPermit | WaitingPermit;

/** The limiter, as a permit sees it. */
export interface PermitIssuer {
  takeBack(permit: LimiterPermit, outcome: PermitOutcome): void;
  abandon(permit: WaitingPermit, reason: unknown): void;
}

/** Ends the holding. One function for both classes, or V8 inlines all that follows once for each. */
export function giveBack(permit: LimiterPermit, outcome: PermitOutcome): void {
  if (permit.state === 'held') permit.state = 'released';
  else if (permit.state !== 'shared') return;
  permit.issuer.takeBack(permit, outcome);
}

/** A permit that was free when it was asked for. */
export class ReadyPermit implements Permit {
  // Declared only: a field that is initialised here and set in the constructor would be written twice.
  declare readonly weight: number;
  /** @internal */ declare state: PermitState;
  /** @internal Milliseconds waited. */
  declare readonly clockMs: number;
  /** @internal */ declare readonly issuer: PermitIssuer;
  /** @internal */ declare extras: PermitExtras | undefined;

  constructor(issuer: PermitIssuer, weight: number, extras: PermitExtras | undefined) {
    this.weight = weight;
    this.state = 'held';
    this.clockMs = 0;
    this.issuer = issuer;
    this.extras = extras;
  }

  get waitMs(): number {
    return this.clockMs;
  }

  release(outcome: PermitOutcome = 'ok'): void {
    giveBack(this, outcome);
  }

  /** @internal The promise of it. Made here, where V8 knows the shape of what is promised, and need not ask it for a `then`. */
  promised(): Promise<this> {
    return Promise.resolve(this);
  }

  [Symbol.dispose](): void {
    this.release();
  }
}

/**
 * A permit that is waited for, and held then. Waiter, queue node and permit are one object, and a class of its own: a
 * base class makes every wait a tenth dearer, and fields for the waiting every free run a thirtieth.
 *
 *     waiting ──granted──► held ──► released
 *        └──► aborted, timed out, turned away
 */
export class WaitingPermit implements Permit, QueueNode, AbortWatcher {
  declare readonly weight: number;
  /** @internal */ declare state: PermitState;
  /** @internal While waiting the moment it was queued, then the milliseconds waited. */
  declare clockMs: number;
  /** @internal */ declare readonly issuer: PermitIssuer;
  /** @internal */ declare extras: PermitExtras | undefined;
  /** @internal What `run` will run. */
  declare work: ((context: RunContext) => unknown) | undefined;
  /** @internal Settles the promise of `acquire`; a rejected promise fails it, which spares a second function. */
  declare settle: ((answer: Granted | Promise<never>) => void) | undefined;
  /** @internal */ declare after: QueueNode | undefined;

  constructor(
    issuer: PermitIssuer,
    weight: number,
    extras: PermitExtras | undefined,
    work: WaitingPermit['work'],
  ) {
    this.weight = weight;
    this.state = 'waiting';
    this.clockMs = 0;
    this.issuer = issuer;
    this.extras = extras;
    this.work = work;
    this.settle = undefined;
    this.after = undefined;
  }

  get waitMs(): number {
    return this.clockMs;
  }

  /** @internal Most waiters want nothing, and are the smaller for having their place there. */
  get place(): PermitExtras | undefined {
    return this.extras;
  }

  release(outcome: PermitOutcome = 'ok'): void {
    giveBack(this, outcome);
  }

  [Symbol.dispose](): void {
    this.release();
  }

  /** @internal The waiting has led to a permit. */
  grant(): void {
    this.state = 'held';
    this.settle?.(this.work === undefined ? this : ticketOf(this));
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

/** What the promise of a permit brings: itself, or where it stands for a run, the ticket of that (see runner.ts). */
export type Granted = LimiterPermit | number;
