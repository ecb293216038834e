import { afterThisTurn, PER_TURN } from '../../internal/clock.js';
import type { CallBounds } from '../call-context.js';
import { WakeUpTimer, waitWithin } from '../wait.js';
import type { KeyRing } from './key-ring.js';

/** A call that waits for the end of a cooldown. */
export interface CooldownRequest {
  readonly weight: number;
  /** Higher goes first; a whole number. */
  readonly priority: number;
  /** When the call first asked, as a number that grows: with the same priority, lower goes first. */
  readonly turn: number;
  readonly bounds: CallBounds;
}

interface Waiter extends CooldownRequest {
  readonly release: () => void;
}

/**
 * Where calls wait while all keys that could serve them are in cooldown, holding nothing.
 *
 * Invariants:
 * - When a cooldown ends, all calls that the key can serve go on, in the order of their priorities and turns, and no call
 *   that arrives meanwhile goes before them.
 * - A call that ends early leaves in that step.
 * - It waits on one timer, and on none while it is empty.
 * - An arrival, and a check that changes nothing, cost the same however many wait; a turn of the event loop releases no
 *   more than `PER_TURN`.
 */
export class CooldownQueue {
  readonly #ring: KeyRing;
  /** The waiters of each weight class, first to go first. */
  readonly #classes = new Map<number, Waiter[]>();
  /** The change of the rates after which these are the classes. */
  #rateChanges = 0;
  #queued = 0;
  /** Waiters that were released and have not continued yet: that takes a microtask. */
  #leaving = 0;
  readonly #timer = new WakeUpTimer(() => this.check());
  /** Whether a batch was released in this turn of the event loop, and more may follow in the next. */
  #isPacing = false;

  constructor(ring: KeyRing) {
    this.#ring = ring;
  }

  /** Calls that wait here. */
  get queued(): number {
    return this.#queued;
  }

  /** Whether no call is here that a new one could pass. */
  get isEmpty(): boolean {
    return this.#queued === 0 && this.#leaving === 0;
  }

  /**
   * Waits until a key that could serve the call is out of its cooldown, and then runs `next` in its turn. Rejects with the
   * call's reason.
   */
  async enter<R>(request: CooldownRequest, next: () => R | PromiseLike<R>): Promise<R> {
    await this.#wait(request);
    this.#leaving--;
    return next();
  }

  /** Checks whether a key is out of its cooldown: something has changed. */
  check(): void {
    if (this.#queued === 0 || this.#isPacing) return;
    const now = this.#ring.now();
    this.#regroup();
    const rateChanges = this.#rateChanges;
    let soonestMs = Number.POSITIVE_INFINITY;
    const open: Waiter[][] = [];
    for (const [weightClass, waiters] of this.#classes) {
      if (waiters.length === 0) continue;
      // One that has become too heavy for every key continues, and is rejected.
      const closedMs = weightClass === Infinity ? 0 : this.#ring.retryAfterMs(now, weightClass);
      if (closedMs > 0) soonestMs = Math.min(soonestMs, closedMs);
      else open.push(waiters);
    }
    // A listener of `key:restored` changed the rates meanwhile, which has checked again.
    if (this.#rateChanges !== rateChanges) return;
    if (open.length > 0) this.#releaseBatch(open);
    if (this.#queued === 0) this.#timer.stop();
    else if (!this.#isPacing) this.#timer.set(now, soonestMs);
  }

  /** After a change of the rates: the classes are others. */
  #regroup(): void {
    if (this.#rateChanges === this.#ring.rateChanges) return;
    this.#rateChanges = this.#ring.rateChanges;
    const waiters = [...this.#classes.values()].flat().sort(inOrder);
    this.#classes.clear();
    for (const waiter of waiters) this.#insert(waiter);
  }

  #releaseBatch(open: readonly Waiter[][]): void {
    const batch = open.flatMap((waiters) => waiters.slice(0, PER_TURN)).sort(inOrder);
    batch.length = Math.min(batch.length, PER_TURN);
    // What goes first over all is also first in its class: one removal for each class.
    const leaving = new Set(batch);
    for (const waiters of open) {
      const staying = waiters.findIndex((waiter) => !leaving.has(waiter));
      waiters.splice(0, staying === -1 ? waiters.length : staying);
    }
    this.#queued -= batch.length;
    // Before a listener or an event of theirs can come back here.
    this.#isPacing = open.some((waiters) => waiters.length > 0);
    if (this.#isPacing)
      afterThisTurn(() => {
        this.#isPacing = false;
        this.check();
      });
    this.#leaving += batch.length;
    for (const { release } of batch) release();
  }

  #wait(request: CooldownRequest): Promise<void> {
    const released = waitWithin<void>(request.bounds, (release) => {
      const waiter: Waiter = { ...request, release };
      this.#insert(waiter);
      this.#queued++;
      return () => this.#remove(waiter);
    });
    this.check();
    return released;
  }

  #remove(waiter: Waiter): void {
    this.#regroup();
    const waiters = this.#classOf(waiter);
    const position = positionOf(waiter, waiters);
    if (waiters[position] !== waiter) return;
    waiters.splice(position, 1);
    if (--this.#queued === 0) this.#timer.stop();
  }

  #insert(waiter: Waiter): void {
    const waiters = this.#classOf(waiter);
    waiters.splice(positionOf(waiter, waiters), 0, waiter);
  }

  #classOf({ weight }: Waiter): Waiter[] {
    const weightClass = this.#ring.weightClassOf(weight);
    let waiters = this.#classes.get(weightClass);
    if (waiters === undefined) {
      waiters = [];
      this.#classes.set(weightClass, waiters);
    }
    return waiters;
  }
}

const inOrder = (a: Waiter, b: Waiter): number => b.priority - a.priority || a.turn - b.turn;

/** Where a waiter is, or belongs, in sorted waiters. */
function positionOf(waiter: Waiter, waiters: readonly Waiter[]): number {
  let low = 0;
  let high = waiters.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (inOrder(waiters[middle] as Waiter, waiter) < 0) low = middle + 1;
    else high = middle;
  }
  return low;
}
