import { type LimitLossReason, LimitLostError } from '../errors.js';
import type { PermitOutcome, PermitRejection } from '../hooks/events.js';
import type { AbortWatcher } from '../internal/abort.js';
import { wellFormed } from '../internal/redaction.js';
import type { PermitContext } from '../limiter/events.js';
import type { Permit } from '../limiter/limiter.js';
import type { QueueNode, QueuePosition } from '../queue/fair-queue.js';
import { type TenantLimits, UNUSED } from '../queue/options.js';
import { type Operation, operation } from './member.js';
import type { PlacedWaiter, QueuePlaces } from './queue-places.js';

/** What a permit needs of its limiter. */
export interface PermitOwner {
  readonly name: string;
  /** Ends whatever the lease no longer covers. */
  checkLease(): void;
  release(permit: FleetPermit, outcome: PermitOutcome): void;
  abandon(permit: FleetPermit, reason: 'aborted' | 'timeout', cause: unknown): void;
  readonly places: QueuePlaces;
  /** The reply to its request: `0` if it was granted at once, else its number in the queue. */
  onAnswer(permit: FleetPermit, number: string): void;
}

/** How tenants share the limit, and what the one of a request may use of it. */
interface Sharing {
  readonly by: 'time' | 'weight' | 'requests';
  readonly ages: boolean;
  readonly limits: TenantLimits;
}

/**
 * Waiter and permit in one.
 *
 *     waiting ──granted──► held ──► released
 *        │                   └────► lost
 *        └──► aborted, timeout, queue-full, closed, unavailable
 */
export class FleetPermit implements Permit, QueueNode, AbortWatcher, PlacedWaiter, Operation {
  readonly id: string;
  readonly weight: number;
  readonly priority: number;
  readonly score: string;
  state: 'waiting' | 'held' | 'released' | 'lost' | PermitRejection = 'waiting';
  extras: PermitContext | undefined;
  /** Its place in the queue of a member that works without Redis. */
  next: QueueNode | undefined = undefined;
  position: QueuePosition | undefined = undefined;
  /** Where it stands in the fleet's queue (see `QueuePlaces`). */
  ahead: number | undefined = undefined;
  servedBefore = 0;
  /** Its number in the fleet's queue, once Redis has given it one: kept, so that order survives a failure. */
  number = '';
  /** Whether Redis may know of it. */
  isSent = false;
  /** Whether it was held and not used. */
  isUnused = false;
  timer: NodeJS.Timeout | undefined;
  /** When it was requested; then when it was granted. */
  sinceMs: number;
  waitMs = 0;
  /** Whose it is, as Redis knows it. */
  readonly tenant: string | undefined;
  readonly sharing: Sharing;
  resolve: ((answer: this | Promise<never>) => void) | undefined;
  readonly #owner: PermitOwner;
  #controller: AbortController | undefined;
  #loss: LimitLostError | undefined;

  constructor(
    owner: PermitOwner,
    id: string,
    weight: number,
    score: string,
    extras: PermitContext,
    sinceMs: number,
    sharing: Sharing,
  ) {
    this.#owner = owner;
    this.id = id;
    this.weight = weight;
    this.priority = extras.priority ?? 0;
    this.score = score;
    this.extras = extras;
    this.sinceMs = sinceMs;
    this.tenant = extras.tenant === undefined ? undefined : encodeURIComponent(wellFormed(extras.tenant));
    this.sharing = sharing;
  }

  /** As what Redis counts it while it is held. */
  get claim(): string {
    return `${this.tenant !== undefined && this.sharing.ages ? '+' : ''}${this.#queuedWeight}`;
  }

  get #queuedWeight(): string {
    return this.tenant === undefined ? String(this.weight) : `${this.weight}:${this.tenant}`;
  }

  get signal(): AbortSignal {
    if (this.state === 'held') this.#owner.checkLease();
    if (this.#controller === undefined) {
      this.#controller = new AbortController();
      if (this.#loss !== undefined) this.#controller.abort(this.#loss);
    }
    return this.#controller.signal;
  }

  release(outcome: PermitOutcome = 'ok'): void {
    this.#owner.release(this, outcome);
  }

  [Symbol.dispose](): void {
    this.release();
  }

  [UNUSED](): void {
    this.isUnused = true;
  }

  /** Ends the holding against the holder's will. */
  lose(reason: LimitLossReason): void {
    this.state = 'lost';
    this.#loss = new LimitLostError(this.#owner.name, reason);
    this.#controller?.abort(this.#loss);
  }

  onAbort(reason: unknown): void {
    this.#owner.abandon(this, 'aborted', reason);
  }

  /** As an operation, it asks Redis for a permit. */
  encode(args: string[]): boolean {
    if (this.state !== 'waiting') return false;
    this.isSent = true;
    const number = this.#owner.places.matters(this) ? `${this.number}?` : this.number;
    args.push(this.tenant === undefined ? 'A' : 'F', this.id, this.score, String(this.weight), number);
    if (this.tenant !== undefined) {
      const { by, limits } = this.sharing;
      const cap = Number.isFinite(limits.maxConcurrent) ? limits.maxConcurrent : 0;
      args.push(this.tenant, by, String(limits.weight), String(cap), String(limits.guaranteed));
    }
    return true;
  }

  settle(result: unknown): void {
    const [number = '', ahead] = String(result).split(' ');
    this.#setPlace(ahead);
    this.#owner.onAnswer(this, number);
  }

  #setPlace(ahead: string | undefined): void {
    if (ahead !== undefined) this.#owner.places.set(this, Number(ahead));
  }

  /** Asks Redis again where it stands. */
  get placeOperation(): Operation {
    return operation(
      () =>
        this.state === 'waiting' && this.number !== ''
          ? ['P', this.id, this.score, this.#queuedWeight, this.number]
          : undefined,
      (result) => this.#setPlace(String(result).split(' ')[1]),
    );
  }

  /** Takes it out of the queue, or releases it if it was granted meanwhile. */
  get cancelOperation(): Operation {
    return operation(() => {
      if (!this.isSent) return undefined;
      // Without a number it was never queued.
      return this.number === ''
        ? ['R', this.id]
        : ['X', this.id, this.score, this.#queuedWeight, this.number];
    });
  }
}

/** Releases a permit by its id; an unused one is not charged to its tenant. */
export const releaseOperation = (id: string, isUnused = false): Operation =>
  operation(() => [isUnused ? 'B' : 'R', id]);
