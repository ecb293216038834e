import { type LimitLossReason, LimitLostError } from '../errors.js';
import type { PermitOutcome, PermitRejection } from '../hooks/events.js';
import type { AbortWatcher } from '../internal/abort.js';
import type { PermitContext } from '../limiter/events.js';
import type { Permit } from '../limiter/limiter.js';
import type { Tenant } from '../queue/tenant.js';
import type { Operation } from './member.js';

/** What a permit needs of its limiter. */
export interface PermitOwner {
  readonly name: string;
  /** Ends whatever the lease no longer covers. */
  checkLease(): void;
  release(permit: FleetPermit, outcome: PermitOutcome): void;
  abandon(permit: FleetPermit, reason: 'aborted' | 'timeout', cause: unknown): void;
  /** The reply to its request: whether it was granted at once, else its number in the queue. */
  onAnswer(permit: FleetPermit, number: string): void;
}

/** What a tenant may use of the limit. */
type TenantLimits = Pick<Tenant, 'share' | 'cap' | 'guaranteed'>;

/**
 * Waiter and permit in one.
 *
 *     waiting ──granted──► held ──► released
 *        │                   └────► lost
 *        └──► aborted, timeout, queue-full, closed, unavailable
 */
export class FleetPermit implements Permit, AbortWatcher {
  readonly id: string;
  readonly weight: number;
  readonly score: string;
  state: 'waiting' | 'held' | 'released' | 'lost' | PermitRejection = 'waiting';
  extras: PermitContext | undefined;
  /** Its number in the fleet's queue, once Redis has given it one: kept, so that order survives a failure. */
  number = '';
  /** Whether Redis may know of it. */
  isSent = false;
  timer: NodeJS.Timeout | undefined;
  /** When it was requested; then when it was granted. */
  sinceMs: number;
  waitMs = 0;
  /** For fair shares: whose it is, and what it is charged in advance. */
  readonly tenant: string | undefined;
  readonly cost: number;
  readonly share: TenantLimits;
  settle: ((answer: this | Promise<never>) => void) | undefined;
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
    cost: number,
    share: TenantLimits,
  ) {
    this.#owner = owner;
    this.id = id;
    this.weight = weight;
    this.score = score;
    this.extras = extras;
    this.sinceMs = sinceMs;
    this.tenant = extras.tenant === undefined ? undefined : encodeURIComponent(extras.tenant);
    this.cost = cost;
    this.share = share;
  }

  /** As what Redis counts it while it is held. */
  get claim(): string {
    const { cap, guaranteed } = this.share;
    const hasLane = this.tenant !== undefined && (Number.isFinite(cap) || guaranteed > 0);
    return hasLane ? `${this.weight}:${this.tenant}` : String(this.weight);
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

  /** Ends the holding against the holder's will. */
  lose(reason: LimitLossReason): void {
    this.state = 'lost';
    this.#loss = new LimitLostError(this.#owner.name, reason);
    this.#controller?.abort(this.#loss);
  }

  onAbort(reason: unknown): void {
    this.#owner.abandon(this, 'aborted', reason);
  }

  /** Asks Redis for it. */
  readonly acquireOperation: Operation = {
    encode: (args) => {
      if (this.state !== 'waiting') return false;
      this.isSent = true;
      if (this.tenant === undefined) args.push('A', this.id, this.score, String(this.weight), this.number);
      else {
        const { share, cap, guaranteed } = this.share;
        args.push('F', this.id, this.score, String(this.weight), this.number, this.tenant, String(this.cost));
        args.push(String(share), Number.isFinite(cap) ? String(cap) : '0', String(guaranteed));
      }
      return true;
    },
    settle: (result) => this.#owner.onAnswer(this, String(result)),
  };

  /** Takes it out of the queue, or releases it if it was granted meanwhile. */
  readonly cancelOperation: Operation = {
    encode: (args) => {
      if (!this.isSent) return false;
      // Without a number it was never queued.
      if (this.number === '') args.push('R', this.id);
      else {
        const weight = this.tenant === undefined ? `${this.weight}` : `${this.weight}:${this.tenant}`;
        args.push('X', this.id, this.score, weight, this.number);
      }
      return true;
    },
    settle: () => {},
  };
}

/** Reports the work that a tenant has received. */
export const workOperation = ({ tenant, weight, share }: FleetPermit, ms: number): Operation => ({
  encode(args) {
    if (tenant === undefined) return false;
    args.push('W', tenant, String(weight), String(Math.round(ms)), String(share.share));
    return true;
  },
  settle() {},
});

/** Releases a permit by its id. */
export const releaseOperation = (id: string): Operation => ({
  encode(args) {
    args.push('R', id);
    return true;
  },
  settle() {},
});
