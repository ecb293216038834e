import { type AbortWatcher, unwatchAbort, watchAbort } from '../internal/abort-watch.js';
import { nowMs } from '../internal/clock.js';
import { MAX_TIMER_MS } from '../internal/validate.js';
import type { KeyRing } from './key-ring.js';

/** Who waits. */
export interface Guest {
  readonly weight: number;
  /** Higher goes first; a whole number. */
  readonly priority: number;
  /** When it first asked, as a number that grows: of one priority, lower goes first. */
  readonly turn: number;
  readonly signal: AbortSignal;
}

interface Seat extends Guest {
  readonly leave: () => void;
}

/**
 * Where calls wait while all keys rest that could take them, holding nothing.
 *
 * Invariants:
 * - When a key is out of its rest, all go on that it could take, in the order of their priorities and turns, and nobody
 *   who comes meanwhile goes before them.
 * - Who aborts is out in that step.
 * - It waits on one timer, and on none where nobody is here.
 */
export class RestRoom {
  readonly #ring: KeyRing;
  readonly #seats = new Set<Seat>();
  /** Who may go and has not gone yet, because a promise is heard only after the step that kept it. */
  #leaving = 0;
  #timer: NodeJS.Timeout | undefined;

  constructor(ring: KeyRing) {
    this.#ring = ring;
  }

  /** Who waits here now. */
  get waiting(): number {
    return this.#seats.size;
  }

  /** Whether nobody is here before whom a newcomer might go. */
  get isEmpty(): boolean {
    return this.#seats.size === 0 && this.#leaving === 0;
  }

  /** Waits until some key that could take it is out of its rest, and then does `next` in its turn. Rejects with the signal's reason. */
  async enter<R>(guest: Guest, next: () => R | PromiseLike<R>): Promise<R> {
    await this.#sit(guest);
    this.#leaving--;
    return next();
  }

  /** Looks whether some key is out of its rest: something has changed. */
  look(): void {
    if (this.#seats.size === 0) return;
    const now = nowMs();
    const open: Seat[] = [];
    let soonestMs = Number.POSITIVE_INFINITY;
    for (const seat of [...this.#seats]) {
      const forMs = this.#ring.opensInMs(now, seat.weight);
      if (forMs > 0) soonestMs = Math.min(soonestMs, forMs);
      else open.push(seat);
    }
    // A listener of `key:restored` may have let some go under us.
    const seats = open.filter((seat) => this.#seats.delete(seat));
    clearTimeout(this.#timer);
    if (this.#seats.size > 0) {
      // A timer may fire a moment early: it looks again, and finds what is left.
      this.#timer = setTimeout(() => this.look(), Math.min(Math.ceil(soonestMs), MAX_TIMER_MS));
    }
    seats.sort((a, b) => b.priority - a.priority || a.turn - b.turn);
    this.#leaving += seats.length;
    for (const { leave } of seats) leave();
  }

  #sit(guest: Guest): Promise<void> {
    const { signal } = guest;
    if (signal.aborted) return Promise.reject(signal.reason);
    return new Promise((resolve, reject) => {
      const watcher: AbortWatcher = {
        onAbort: (reason) => {
          this.#seats.delete(seat);
          if (this.#seats.size === 0) clearTimeout(this.#timer);
          reject(reason);
        },
      };
      const seat: Seat = {
        ...guest,
        leave: () => {
          unwatchAbort(signal, watcher);
          resolve();
        },
      };
      watchAbort(signal, watcher);
      this.#seats.add(seat);
      this.look();
    });
  }
}
