import { type AbortWatcher, unwatchAbort, watchAbort } from '../internal/abort-watch.js';
import { nowMs } from '../internal/clock.js';
import { Lane } from '../internal/lane.js';
import { MAX_TIMER_MS } from '../internal/validate.js';
import type { KeyUse } from './gate-key.js';
import type { KeyRing, NoRoom } from './key-ring.js';

/** Who wants to start. */
export interface StartRequest {
  readonly weight: number;
  /** Higher goes first; a whole number. */
  readonly priority: number;
  readonly signal: AbortSignal;
  /** Told how long it certainly cannot start, whenever this one is first and that is looked at; may abort the signal. */
  readonly onClosed: (forMs: number) => void;
  /** Told once, when this one is first in line and has to wait. */
  readonly onWait: ((room: NoRoom) => void) | undefined;
}

class Ticket implements AbortWatcher {
  readonly request: StartRequest;
  readonly #turnstile: Turnstile;
  readonly #resolve: (use: KeyUse | undefined) => void;
  readonly #reject: (reason: unknown) => void;
  /** Its place in the lane; half a step up once it has been first. */
  rank: number;
  settled = false;
  told = false;

  constructor(
    turnstile: Turnstile,
    request: StartRequest,
    resolve: (use: KeyUse | undefined) => void,
    reject: (reason: unknown) => void,
  ) {
    this.#turnstile = turnstile;
    this.request = request;
    this.rank = request.priority;
    this.#resolve = resolve;
    this.#reject = reject;
    watchAbort(request.signal, this);
  }

  admit(use: KeyUse): void {
    this.#settle();
    this.#resolve(use);
  }

  sendBack(): void {
    this.#settle();
    this.#resolve(undefined);
  }

  refuse(reason: unknown): void {
    this.#settle();
    this.#reject(reason);
  }

  onAbort(reason: unknown): void {
    this.refuse(reason);
    this.#turnstile.leave(this);
  }

  #settle(): void {
    this.settled = true;
    unwatchAbort(this.request.signal, this);
  }
}

/** The turn of whoever is first; it lasts until `endTurn`. */
interface Turn {
  readonly ticket: Ticket;
  readonly endTurn: () => void;
}

/**
 * Hands out starts, one at a time and in order. A lane of concurrency 1 keeps the line; the job of whoever is first
 * holds the turn until some key has room in all its windows, and charges them in that step.
 *
 * Invariants:
 * - Whoever is first goes first: nothing behind it starts, however light, unless its priority is higher. Then the first
 *   steps back behind it, and stays in front of its equals.
 * - It waits for an exact time, on one timer; nothing is polled.
 * - Who aborts is out of the line in that step, and costs nobody else anything.
 * - Who cannot start within its deadline is told so as soon as that is certain.
 * - While all keys rest nobody is in the line: who holds a permit waits only for windows, or for a probe to end.
 */
export class Turnstile {
  readonly #ring: KeyRing;
  readonly #lane = new Lane({ concurrency: 1 });
  #first: Turn | undefined;
  #timer: NodeJS.Timeout | undefined;
  readonly #tickets = new Set<Ticket>();

  constructor(ring: KeyRing) {
    this.#ring = ring;
  }

  /** Who waits here now. */
  get waiting(): number {
    return this.#tickets.size;
  }

  /**
   * Waits for a start; `undefined` if all keys rest now. Rejects with the signal's reason.
   */
  enter(request: StartRequest): Promise<KeyUse | undefined> {
    if (request.signal.aborted) return Promise.reject(request.signal.reason);
    return new Promise((resolve, reject) => {
      const ticket = new Ticket(this, request, resolve, reject);
      this.#tickets.add(ticket);
      const first = this.#first;
      if (first !== undefined && request.priority > first.ticket.request.priority) this.#stepBack(first);
      this.#join(ticket);
    });
  }

  /** Looks again whether the first can start: something has changed. */
  look(): void {
    if (this.#first !== undefined) this.#offer(this.#first);
  }

  /** Somebody gave up. */
  leave(ticket: Ticket): void {
    this.#tickets.delete(ticket);
    if (this.#first?.ticket === ticket) this.#endTurn(this.#first);
  }

  #join(ticket: Ticket): void {
    // The signal takes a ticket out of the lane that is not first yet; the job itself never fails.
    const { signal } = ticket.request;
    this.#lane.run(() => this.#serve(ticket), { priority: ticket.rank, signal }).catch(() => {});
  }

  #serve(ticket: Ticket): Promise<void> | void {
    if (ticket.settled) return;
    return new Promise((endTurn) => {
      this.#first = { ticket, endTurn };
      this.#offer(this.#first);
    });
  }

  #offer(first: Turn): void {
    const { ticket } = first;
    const { weight, onClosed, onWait } = ticket.request;
    const now = nowMs();
    const answer = this.#ring.take(weight, now);
    if (this.#first !== first) {
      // A listener of `key:restored` changed the line under us.
      if (!('forMs' in answer)) this.#ring.end(answer);
      return;
    }
    if (!('forMs' in answer)) {
      ticket.admit(answer);
      this.leave(ticket);
      return;
    }
    if (this.#ring.opensInMs(now, weight) > 0) {
      this.#sendBack(now);
      return;
    }
    const closedMs = this.#ring.surelyClosedMs(weight, now);
    if (closedMs > 0) onClosed(closedMs);
    if (ticket.settled) return;
    clearTimeout(this.#timer);
    // A timer may fire a moment early: it looks again, and finds what is left.
    this.#timer = setTimeout(() => this.#offer(first), Math.min(Math.ceil(answer.forMs), MAX_TIMER_MS));
    if (!ticket.told) {
      ticket.told = true;
      onWait?.(answer);
    }
  }

  /** All keys rest, or all that could take a call. Nobody waits that out here, where each holds a permit. */
  #sendBack(nowMs: number): void {
    for (const ticket of this.#tickets) {
      if (this.#ring.opensInMs(nowMs, ticket.request.weight) === 0) continue;
      ticket.sendBack();
      this.leave(ticket);
    }
  }

  /** Lets somebody of higher priority pass. The lane looks for its next job only after this step, so both are in it. */
  #stepBack(first: Turn): void {
    // Priorities are whole numbers: half a step up is in front of all equals, and behind everybody higher.
    first.ticket.rank = first.ticket.request.priority + 0.5;
    this.#endTurn(first);
    this.#join(first.ticket);
  }

  #endTurn(first: Turn): void {
    clearTimeout(this.#timer);
    this.#first = undefined;
    first.endTurn();
  }
}
