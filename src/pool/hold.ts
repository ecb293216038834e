import { LeaseReleasedError, type LeaseRevokedError } from '../errors.js';
import type { AsyncContext } from '../internal/async-context.js';
import { clockMs } from './clock-ms.js';
import type { Instance } from './instance.js';
import { Lease, type ReleaseOptions } from './lease.js';
import type { LeaseOptions } from './pool-options.js';

/**
 * Where a lease is.
 *
 *     held ──► released
 *       └────► revoked
 */
export type HoldState = { readonly kind: 'held' } | HoldEnd;

/** `done` settles when the instance is back or gone. */
export type HoldEnd =
  | { readonly kind: 'released'; readonly done: Promise<void> }
  | { readonly kind: 'revoked'; readonly done: Promise<void>; readonly error: LeaseRevokedError };

/** How a hold ends. */
export type EndState = Exclude<HoldState, { readonly kind: 'held' }>;

/** For what is over as soon as it has begun. */
export const DONE: Promise<void> = Promise.resolve();

const HELD: HoldState = { kind: 'held' };
export const RELEASED: HoldEnd = { kind: 'released', done: DONE };

/** What a pool keeps of a lease while it is watched: timers, and what a report needs. */
export interface HoldWatch {
  readonly site: Error | undefined;
  overdue: boolean;
  revokeTimer: NodeJS.Timeout | undefined;
  leakTimer: NodeJS.Timeout | undefined;
}

/**
 * What the pool knows of a lease. It is the instance's `leased` state, and never refers to the `Lease` itself, so that a
 * lease that was dropped can be found by the garbage collector.
 */
export class Hold<T> {
  readonly kind = 'leased';
  state: HoldState = HELD;
  watch: HoldWatch | undefined = undefined;
  #controller: AbortController | undefined;
  #ending: { readonly ended: Promise<void>; readonly tell: (done: Promise<void>) => void } | undefined;

  constructor(
    readonly instance: Instance<T>,
    readonly options: LeaseOptions | undefined,
    /** The task's own, where `reset` will need it. */
    readonly context: AsyncContext | undefined,
    /** When it was given, in whole milliseconds of the turn's clock. */
    readonly sinceMs: number,
    readonly waitMs: number,
  ) {}

  /** Milliseconds since it was given. */
  get heldMs(): number {
    return (clockMs() - this.sinceMs) | 0;
  }

  /** Made when somebody looks: most holders never do. */
  get signal(): AbortSignal {
    this.#controller ??= new AbortController();
    return this.#controller.signal;
  }

  /** Settles when the hold has ended and its instance is back or gone. Made when somebody looks. */
  get ended(): Promise<void> {
    if (this.state.kind !== 'held') return this.state.done;
    if (this.#ending === undefined) {
      let tell!: (done: Promise<void>) => void;
      const ended = new Promise<void>((resolve) => {
        tell = resolve;
      });
      this.#ending = { ended, tell };
    }
    return this.#ending.ended;
  }

  /** Ends the hold, however it came to that. */
  end(state: HoldEnd): void {
    this.state = state;
    this.#ending?.tell(state.done);
  }

  /** Aborts `signal`. The first reason stands. */
  abort(reason: unknown): void {
    this.#controller ??= new AbortController();
    this.#controller.abort(reason);
  }
}

/** What a lease needs of the pool that gave it. */
export interface LeaseIssuer<T> {
  readonly name: string;
  release(hold: Hold<T>, options: ReleaseOptions | undefined): Promise<void>;
}

/** The lease that a holder is given for a hold. */
export class PoolLease<T> extends Lease<T> {
  readonly #hold: Hold<T>;
  readonly #issuer: LeaseIssuer<T>;

  constructor(hold: Hold<T>, issuer: LeaseIssuer<T>) {
    super();
    this.#hold = hold;
    this.#issuer = issuer;
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

  get waitMs(): number {
    return this.#hold.waitMs;
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
}
