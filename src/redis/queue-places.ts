import type { QueuePlace } from '../hooks/events.js';
import type { LifecycleHooks } from '../hooks/lifecycle-hooks.js';
import { turnMs } from '../internal/clock.js';
import type { QueueWatch } from '../queue/options.js';
import type { FleetFigures, Operation } from './member.js';

/** A waiter, as far as its place matters. */
export interface PlacedWaiter {
  readonly state: string;
  /** How many were ahead of it when that was last read, and how many waiters had been granted by then. */
  ahead: number | undefined;
  servedBefore: number;
  /** Reads it again. */
  readonly placeOperation: Operation;
}

/** Places that are read again with one renewal of the lease. */
const READ_AT_ONCE = 100;

/**
 * Where the waiters of this process stand in the queue of the fleet: as last read, less those that were granted since.
 *
 * The script that queues a waiter reads its place, if it matters: to a listener of `permit:queued`, or to a manager. Those
 * of a manager are read again with each renewal.
 */
export class QueuePlaces {
  readonly #hooks: LifecycleHooks;
  /** The one that was read longest ago first. */
  readonly #watched = new Set<PlacedWaiter>();
  readonly #pace = new QueuePace();
  #served = 0;

  constructor(hooks: LifecycleHooks) {
    this.#hooks = hooks;
  }

  /** Lets a manager read the place of a waiter, until `forget`. */
  watch(waiter: PlacedWaiter, watch: QueueWatch, read: () => QueuePlace | undefined): void {
    watch.readPlace = read;
    this.#watched.add(waiter);
  }

  forget(waiter: PlacedWaiter): void {
    this.#watched.delete(waiter);
  }

  /** Whether it matters where this one stands. */
  matters(waiter: PlacedWaiter): boolean {
    return this.#watched.has(waiter) || this.#hooks.hasListeners('permit:queued');
  }

  /** Redis has reported, ahead of what it answers to operations. */
  onFigures({ served, queued }: FleetFigures): void {
    this.#served = served;
    this.#pace.note(served, queued, turnMs());
  }

  /** The place of a waiter was read. */
  set(waiter: PlacedWaiter, ahead: number): void {
    waiter.ahead = ahead;
    waiter.servedBefore = this.#served;
  }

  /** Those to be read again now. */
  due(): PlacedWaiter[] {
    const due = [...this.#watched].slice(0, READ_AT_ONCE);
    for (const waiter of due) {
      this.#watched.delete(waiter);
      this.#watched.add(waiter);
    }
    return due;
  }

  /** Where a waiter stands. `usualMs`: what one position may take, where nothing was observed yet. */
  of({ state, ahead, servedBefore }: PlacedWaiter, usualMs: number): QueuePlace | undefined {
    if (state !== 'waiting' || ahead === undefined) return undefined;
    const position = Math.max(0, ahead - (this.#served - servedBefore)) + 1;
    return { position, estimatedWaitMs: this.estimateMs(position, usualMs) };
  }

  /** Milliseconds until the waiter at this position is granted. */
  estimateMs(position: number, usualMs: number): number {
    return Math.ceil(position * (this.#pace.ms ?? usualMs));
  }
}

/** Waiters that count: enough to be steady, few enough to adapt. */
const MEMORY = 64;

/**
 * How fast the queue of a fleet moves: waiters granted between one report of Redis and the next, while some waited at both.
 * Older ones count less and less.
 */
export class QueuePace {
  #reportedMs = 0;
  #served = 0;
  #queued = 0;
  #elapsedMs = 0;
  #passed = 0;

  /** A report: how many waiters were granted so far, and how many are left. */
  note(served: number, queued: number, nowMs: number): void {
    // A new epoch begins at 0.
    if (this.#queued > 0 && queued > 0 && served >= this.#served) {
      this.#elapsedMs += nowMs - this.#reportedMs;
      this.#passed += served - this.#served;
      while (this.#passed >= MEMORY) {
        this.#passed /= 2;
        this.#elapsedMs /= 2;
      }
    }
    this.#reportedMs = nowMs;
    this.#served = served;
    this.#queued = queued;
  }

  /** Milliseconds from one grant to the next; `undefined` where nothing was observed yet. */
  get ms(): number | undefined {
    return this.#passed === 0 ? undefined : this.#elapsedMs / this.#passed;
  }
}
