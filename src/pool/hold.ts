import { LeaseReleasedError, type LeaseRevokedError } from '../errors.js';
import type { LeaseRejection } from '../hooks/events.js';
import type { AbortWatcher } from '../internal/abort-watch.js';
import type { AsyncContext } from '../internal/async-context.js';
import type { Lane, Place, QueueNode } from '../limiter/level.js';
import { clockMs } from './clock-ms.js';
import type { HostCall } from './host-call.js';
import type { Instance } from './instance.js';
import type { Lease, ReleaseOptions } from './lease.js';
import type { LeaseOptions } from './pool-options.js';

/** Where in its life a hold is. What belongs to one state only is kept in that state. See docs/lifecycle.md. */
export type HoldState =
  | { readonly kind: 'waiting' }
  | { readonly kind: 'preparing'; readonly call: HostCall<unknown> }
  | { readonly kind: 'held' }
  | HoldEnd
  | { readonly kind: 'rejected'; readonly reason: LeaseRejection; readonly waitMs: number };

/** `done` settles when the instance is back or gone. */
export type HoldEnd =
  | { readonly kind: 'released'; readonly done: Promise<void> }
  | { readonly kind: 'revoked'; readonly done: Promise<void>; readonly error: LeaseRevokedError };

/** For what is over as soon as it has begun. */
export const DONE: Promise<void> = Promise.resolve();

const WAITING: HoldState = { kind: 'waiting' };
export const HELD: HoldState = { kind: 'held' };
export const RELEASED: HoldEnd = { kind: 'released', done: DONE };

/** What only some holds need: made for the first of it. */
export class HoldExtras<T> implements Place {
  /** @internal */ lane: Lane | undefined = undefined;
  /** @internal */ before: QueueNode | undefined = undefined;
  options: LeaseOptions | undefined = undefined;
  /** The task's own context, where `prepare` or `reset` will need it. */
  context: AsyncContext | undefined = undefined;
  /** Where `acquire` was called, where leaks are watched. */
  site: Error | undefined = undefined;
  /** The one instance that is wanted, where it is a certain one. */
  claimed: Instance<T> | undefined = undefined;
  /** The instance that is being created or validated on its behalf; it may yet get another. */
  awaited: Instance<T> | undefined = undefined;
  abandon: ((hold: Hold<T>, reason: unknown) => void) | undefined = undefined;
  waitTimer: NodeJS.Timeout | undefined = undefined;
  revokeTimer: NodeJS.Timeout | undefined = undefined;
  leakTimer: NodeJS.Timeout | undefined = undefined;
  /** Reported as held for too long. */
  isOverdue = false;
  controller: AbortController | undefined = undefined;
  ending: { readonly ended: Promise<void>; readonly tell: (done: Promise<void>) => void } | undefined =
    undefined;
}

/**
 * A hold on an instance, from the moment it is asked for: it waits, is held, and is over. The waiter and the hold are one
 * object, because at a hundred thousand waiters a second one each is what the memory and the collector's time go to.
 *
 * While it is held it is the instance's `leased` state. It never refers to the `Lease` that the holder has, so that a
 * lease that was dropped can be found by the garbage collector.
 */
export class Hold<T> implements QueueNode, AbortWatcher {
  /** @internal */ after: QueueNode | undefined = undefined;
  state = WAITING;
  /** There from the grant on. */
  instance!: Instance<T>;
  /** While waiting, when it began; then, when it was granted. Whole milliseconds of the turn's clock. */
  sinceMs = 0;
  /** Counts up: who came first. */
  arrival = 0;
  /** Settles the promise of `acquire`; a rejected promise fails it, which spares a second function. */
  settle: ((lease: Lease<T> | Promise<never>) => void) | undefined = undefined;
  extras: HoldExtras<T> | undefined;

  constructor(extras: HoldExtras<T> | undefined) {
    this.extras = extras;
  }

  /** As a state of its instance. No field: a hundred thousand waiters would have one each. */
  get kind(): 'leased' {
    return 'leased';
  }

  /** @internal One that wants nothing in particular leaves in its turn, until an instance is made for it. */
  get place(): Place | undefined {
    return this.extras;
  }

  get options(): LeaseOptions | undefined {
    return this.extras?.options;
  }

  /** Milliseconds since `sinceMs`. */
  get elapsedMs(): number {
    return (clockMs() - this.sinceMs) | 0;
  }

  /** Made when somebody looks: most holders never do. */
  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** Settles when the hold has ended and its instance is back or gone. Made when somebody looks. */
  get ended(): Promise<void> {
    const { state } = this;
    if (state.kind === 'released' || state.kind === 'revoked') return state.done;
    this.extras ??= new HoldExtras();
    if (this.extras.ending === undefined) {
      let tell!: (done: Promise<void>) => void;
      const ended = new Promise<void>((resolve) => {
        tell = resolve;
      });
      this.extras.ending = { ended, tell };
    }
    return this.extras.ending.ended;
  }

  /** Ends the hold, however it came to that. */
  end(state: HoldEnd): void {
    this.state = state;
    this.extras?.ending?.tell(state.done);
  }

  /** Aborts `signal`. The first reason stands. */
  abort(reason: unknown): void {
    this.#controller.abort(reason);
  }

  onAbort(reason: unknown): void {
    this.extras?.abandon?.(this, reason);
  }

  get #controller(): AbortController {
    this.extras ??= new HoldExtras();
    this.extras.controller ??= new AbortController();
    return this.extras.controller;
  }
}

/** What a lease needs of the pool that gave it. */
export interface LeaseIssuer<T> {
  readonly name: string;
  release(hold: Hold<T>, options: ReleaseOptions | undefined): Promise<void>;
}

/** The lease that a holder is given for a hold. */
export class PoolLease<T> implements Lease<T> {
  readonly #hold: Hold<T>;
  readonly #issuer: LeaseIssuer<T>;
  readonly waitMs: number;

  constructor(hold: Hold<T>, issuer: LeaseIssuer<T>, waitMs: number) {
    this.#hold = hold;
    this.#issuer = issuer;
    this.waitMs = waitMs;
  }

  get pipeline(): T {
    const { state, instance } = this.#hold;
    if (state.kind === 'held') return instance.pipeline as T;
    throw state.kind === 'revoked' ? state.error : new LeaseReleasedError(this.#issuer.name, instance.id);
  }

  get instanceId(): number {
    return this.#hold.instance.id;
  }

  get taskId(): string | undefined {
    return this.#hold.options?.taskId;
  }

  get signal(): AbortSignal {
    return this.#hold.signal;
  }

  get ended(): Promise<void> {
    return this.#hold.ended;
  }

  get isHeld(): boolean {
    return this.#hold.state.kind === 'held';
  }

  release(options?: ReleaseOptions): Promise<void> {
    return this.#issuer.release(this.#hold, options);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#issuer.release(this.#hold, undefined);
  }
}
