import type { DestroyReason } from '../hooks/events.js';
import { WaitQueue } from '../limiter/wait-queue.js';
import type { Hold } from './hold.js';
import type { HostCall } from './host-call.js';

/**
 * Where in its life an instance is. What belongs to one state only is kept in that state. The way from one to the next is
 * drawn in docs/lifecycle.md, which a test compares with what happens.
 */
export type InstanceState<T> =
  | { readonly kind: 'creating'; readonly call: HostCall<T> }
  | { readonly kind: 'idle' }
  | { readonly kind: 'validating'; readonly call: HostCall<unknown> }
  | { readonly kind: 'preparing'; readonly call: HostCall<unknown> }
  | Hold<T>
  | { readonly kind: 'resetting'; readonly call: HostCall<unknown> }
  | { readonly kind: 'destroying'; readonly done: Promise<void> }
  | { readonly kind: 'gone' };

export const IDLE = { kind: 'idle' } as const;
export const GONE = { kind: 'gone' } as const;

/** One instance: the host's pipeline and what the pool knows of it. Only `Roster` changes `state` and `doom`. */
export class Instance<T> {
  /** The host's own; there from the end of `create`. */
  pipeline: T | undefined = undefined;
  state: InstanceState<T>;
  /** Why it will be torn down as soon as nobody holds it. */
  doom: DestroyReason | undefined = undefined;
  /** Leases given on it. */
  uses = 0;
  /** When `create` ended. */
  bornMs = 0;
  /** When it was last in somebody's hands. */
  usedMs = 0;
  /** When it was last known to be good: created, returned or found healthy. */
  goodMs = 0;
  /** Whom it is being created or validated for. */
  madeFor: Hold<T> | undefined = undefined;
  lifetimeTimer: NodeJS.Timeout | undefined = undefined;
  #claims: WaitQueue<Hold<T>> | undefined;

  constructor(
    readonly id: number,
    state: InstanceState<T>,
  ) {
    this.state = state;
  }

  /** Those who wait for this instance and no other; made when the first one comes. */
  get claims(): WaitQueue<Hold<T>> {
    this.#claims ??= new WaitQueue();
    return this.#claims;
  }

  get isClaimed(): boolean {
    return this.#claims !== undefined && this.#claims.size > 0;
  }
}
