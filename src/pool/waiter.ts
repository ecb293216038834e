import type { LifecycleStage } from '../errors.js';
import type { LeaseRejection } from '../hooks/events.js';
import type { AbortWatcher } from '../internal/abort-watch.js';
import type { AsyncContext } from '../internal/async-context.js';
import { QueueNode } from '../limiter/wait-queue.js';
import type { HostCall } from './host-call.js';
import type { Instance } from './instance.js';
import type { Lease } from './lease.js';
import type { LeaseOptions } from './pool-options.js';

/**
 * Where a request for a lease is.
 *
 *     queued ──► preparing ──► served
 *        └──────────┴────────► rejected
 */
export type WaiterState =
  | { readonly kind: 'queued' }
  | { readonly kind: 'preparing'; readonly call: HostCall<unknown> }
  | { readonly kind: 'served' }
  | { readonly kind: 'rejected'; readonly reason: LeaseRejection };

const QUEUED: WaiterState = { kind: 'queued' };
export const SERVED: WaiterState = { kind: 'served' };

/** One request for a lease that could not be served at once. */
export class Waiter<T> extends QueueNode implements AbortWatcher {
  state = QUEUED;
  /** Settles the promise of `acquire`; a rejected promise fails it, which spares a second function. */
  settle: ((lease: Lease<T> | Promise<never>) => void) | undefined = undefined;
  /** While waiting, when it came; afterwards how long it waited. Whole milliseconds, which stay off the heap. */
  clockMs = 0;
  /** The instance that is being created or validated on its behalf; it may yet take another. */
  awaited: Instance<T> | undefined = undefined;
  timer: NodeJS.Timeout | undefined = undefined;

  constructor(
    /** Counts up: who came first. */
    readonly arrival: number,
    readonly options: LeaseOptions | undefined,
    /** The one instance it wants, where it wants a certain one. */
    readonly claimed: Instance<T> | undefined,
    /** The task's own, where `prepare` or `reset` will need it. */
    readonly context: AsyncContext | undefined,
    /** Where `acquire` was called, where leaks are watched. */
    readonly site: Error | undefined,
    readonly abandon: (waiter: Waiter<T>, reason: unknown) => void,
  ) {
    super();
  }

  /** What is being done on its behalf. */
  get stage(): LifecycleStage {
    if (this.state.kind === 'preparing') return 'prepare';
    switch (this.awaited?.state.kind) {
      case 'creating':
        return 'create';
      case 'validating':
        return 'validate';
      default:
        return 'wait';
    }
  }

  onAbort(reason: unknown): void {
    this.abandon(this, reason);
  }
}
