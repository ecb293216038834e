import { CallbackTimeoutError, type LeaseRevokedError, type LifecycleStage } from '../errors.js';
import type { DestroyReason, LeaseRejection } from '../hooks/events.js';
import { type AbortWatcher, boundedCall, LazySignal } from '../internal/abort.js';
import { type AsyncContext, NEUTRAL_CONTEXT } from '../internal/async-context.js';
import type { FairQueue, QueueNode, QueuePosition, Tenant, TenantQueue } from '../queue/fair-queue.js';
import type { Lease } from './lease.js';
import type { LeaseOptions, PoolSettings, TaskContext } from './options.js';

/** For work that is over as soon as it has begun. */
export const DONE: Promise<void> = /* @__PURE__ */ Promise.resolve();

/**
 * The state of an instance. Data that exists in one state only is kept in that state. docs/lifecycle.md draws the
 * transitions, and a test compares the drawing with what happens.
 */
export type InstanceState<T> =
  | { readonly kind: 'creating' | 'validating' | 'preparing' | 'resetting'; readonly call: HostCall }
  | { readonly kind: 'idle' }
  | LeaseRequest<T>
  | { readonly kind: 'destroying'; readonly done: Promise<void> }
  | { readonly kind: 'gone' };

export const IDLE = { kind: 'idle' } as const;
export const GONE = { kind: 'gone' } as const;

/** The state of a request for a lease, from `acquire` to the end of the lease. See docs/lifecycle.md. */
export type LeaseRequestState =
  | { readonly kind: 'waiting' }
  | { readonly kind: 'preparing'; readonly call: HostCall }
  | { readonly kind: 'held' }
  | LeaseEnd
  | { readonly kind: 'rejected'; readonly reason: LeaseRejection; readonly waitMs: number };

/** `done` settles when the instance is back or gone. */
export type LeaseEnd =
  | { readonly kind: 'released'; readonly done: Promise<void> }
  | { readonly kind: 'revoked'; readonly done: Promise<void>; readonly error: LeaseRevokedError };

const WAITING: LeaseRequestState = { kind: 'waiting' };
export const HELD: LeaseRequestState = { kind: 'held' };
export const RELEASED: LeaseEnd = { kind: 'released', done: DONE };

/** The stages that run a callback of the host. */
type CallbackStage = Exclude<LifecycleStage, 'wait'>;
type CallSettings = Pick<PoolSettings<unknown>, 'name' | `${CallbackStage}TimeoutMs`>;

/** What a callback of the host threw or rejected with, or that it took too long. */
export interface Failure {
  readonly error: unknown;
}

type CallOutcome<R> =
  | { readonly value: R; readonly failure?: undefined }
  | { readonly value?: undefined; readonly failure: Failure };

/**
 * One call of a callback of the host, in the AsyncLocalStorage context of its caller.
 *
 * It ends when the callback does or at its deadline, and not before: callbacks of one instance never overlap, short of a
 * deadline. `cancel` only aborts the callback's signal.
 */
export class HostCall {
  readonly #settings: CallSettings;
  readonly #abandoned: AbortSignal | undefined;
  readonly #controller = new AbortController();

  /** It also ends when `abandoned` aborts. */
  constructor(settings: CallSettings, abandoned?: AbortSignal) {
    this.#settings = settings;
    this.#abandoned = abandoned;
  }

  /** Makes the call. Never rejects, and settles in every case. `onLate` receives a result that comes after that. */
  async run<R>(
    stage: CallbackStage,
    callback: (signal: AbortSignal) => R | PromiseLike<R>,
    onLate?: (result: R) => void,
  ): Promise<CallOutcome<R>> {
    const { name, [`${stage}TimeoutMs` as const]: timeoutMs } = this.#settings;
    const call = (ended: AbortSignal): R | PromiseLike<R> => {
      ended.addEventListener('abort', () => this.cancel(ended.reason));
      return callback(this.#controller.signal);
    };
    const timeoutError = (): Error => new CallbackTimeoutError(name, stage, timeoutMs);
    try {
      return { value: await boundedCall(call, { timeoutMs, timeoutError, signal: this.#abandoned, onLate }) };
    } catch (error) {
      return { failure: { error } };
    }
  }

  /** Aborts the callback's signal: its result is no longer needed. The call goes on until the callback ends. */
  cancel(reason: unknown): void {
    this.#controller.abort(reason);
  }
}

/** The host's pipeline and what the pool knows of it. Only `InstanceRegistry` changes `state` and `evictionReason`. */
export class Instance<T> {
  /** The host's own; present from the end of `create`. */
  pipeline: T | undefined = undefined;
  state: InstanceState<T>;
  /** Why the instance will be destroyed as soon as it has no holder. */
  evictionReason: DestroyReason | undefined = undefined;
  /** Leases granted on it. */
  uses = 0;
  /** When `create` ended. */
  bornMs = 0;
  /** When it was last leased. */
  usedMs = 0;
  /** When it was last known to be healthy: created, released or validated. */
  goodMs = 0;
  /** The waiter for which it is being created or validated. */
  madeFor: LeaseRequest<T> | undefined = undefined;
  lifetimeTimer: NodeJS.Timeout | undefined = undefined;
  /** Waiters for this instance and no other; made when the first one arrives. */
  claims: FairQueue<LeaseRequest<T>> | undefined = undefined;

  constructor(
    readonly id: number,
    state: InstanceState<T>,
  ) {
    this.state = state;
  }
}

/** Fields that only some requests need: made with the first of them. */
export class LeaseRequestExtras<T> implements QueuePosition {
  /** @internal */ queue: TenantQueue | undefined = undefined;
  /** @internal */ previous: QueueNode | undefined = undefined;
  /** The tenant; from the grant on also of a request without one, where tenants are named. */
  holder: Tenant | undefined = undefined;
  declare charged?: number;
  declare grantedAtMs?: number;
  declare queuedAtMs?: number;
  options: LeaseOptions | undefined = undefined;
  /** The task's own context, where `prepare` or `reset` will need it. */
  context: AsyncContext | undefined = undefined;
  /** Where `acquire` was called, if `leakWarningMs` is set. */
  site: Error | undefined = undefined;
  /** The one instance that the request accepts, if it names one. */
  claimed: Instance<T> | undefined = undefined;
  /** The instance that is being created or validated for it; it may yet get another. */
  awaited: Instance<T> | undefined = undefined;
  onAbort: ((request: LeaseRequest<T>, reason: unknown) => void) | undefined = undefined;
  waitTimer: NodeJS.Timeout | undefined = undefined;
  revokeTimer: NodeJS.Timeout | undefined = undefined;
  leakTimer: NodeJS.Timeout | undefined = undefined;
  /** Reported as held for longer than `leakWarningMs`. */
  isOverdue = false;
  abortable: LazySignal | undefined = undefined;
  ending: { readonly ended: Promise<void>; readonly settle: (done: Promise<void>) => void } | undefined =
    undefined;
}

/**
 * A request for a lease, from `acquire` on: it waits, is held, and ends. The waiter and the holder are one object,
 * because at 100,000 waiters a second object each dominates memory and garbage collection.
 *
 * While it is held it is the `leased` state of its instance. It never refers to the `Lease` that the holder has, so that a
 * lease that was dropped can be found by the garbage collector.
 */
export class LeaseRequest<T> implements QueueNode, AbortWatcher {
  /** @internal */ next: QueueNode | undefined = undefined;
  state = WAITING;
  /** Present once granted. */
  instance!: Instance<T>;
  /**
   * While waiting, when it began; then, when it was granted. Whole milliseconds as a 32-bit integer: V8 stores those
   * without a heap object. It wraps around; differences, taken with `| 0`, survive that.
   */
  sinceMs = 0;
  /** Counts up in the order of arrival; 0 for a request that did not wait. */
  arrival = 0;
  /** Settles the promise of `acquire`. A rejected promise fails it, which saves a second function. */
  settle: ((lease: Lease<T> | Promise<never>) => void) | undefined = undefined;
  extras: LeaseRequestExtras<T> | undefined;

  constructor(extras: LeaseRequestExtras<T> | undefined) {
    this.extras = extras;
  }

  /** As a state of its instance. A getter, because a field would cost memory in each of 100,000 waiters. */
  get kind(): 'leased' {
    return 'leased';
  }

  /** @internal A plain request leaves the queue in its turn only, until an instance is made for it. */
  get position(): QueuePosition | undefined {
    return this.extras;
  }

  get options(): LeaseOptions | undefined {
    return this.extras?.options;
  }

  /** The context of its task, as far as `prepare` or `reset` needs it. */
  get context(): AsyncContext {
    return this.extras?.context ?? NEUTRAL_CONTEXT;
  }

  /** What `prepare` and `reset` receive. */
  taskContext(instanceId: number, signal: AbortSignal): TaskContext {
    const { taskId, requestId, tenant } = this.options ?? {};
    return {
      instanceId,
      signal,
      ...(taskId === undefined ? {} : { taskId }),
      ...(requestId === undefined ? {} : { requestId }),
      ...(tenant === undefined ? {} : { tenant }),
    };
  }

  /** Milliseconds from `sinceMs` to this time of the pool's clock. */
  elapsedMs(nowMs: number): number {
    return ((nowMs | 0) - this.sinceMs) | 0;
  }

  /** Made on first access: most holders never read it. */
  get abortable(): LazySignal {
    this.extras ??= new LeaseRequestExtras();
    this.extras.abortable ??= new LazySignal();
    return this.extras.abortable;
  }

  /** Settles when the lease has ended and its instance is back or gone. Made on first access. */
  get ended(): Promise<void> {
    const { state } = this;
    if (state.kind === 'released' || state.kind === 'revoked') return state.done;
    this.extras ??= new LeaseRequestExtras();
    if (this.extras.ending === undefined) {
      let settle!: (done: Promise<void>) => void;
      const ended = new Promise<void>((resolve) => {
        settle = resolve;
      });
      this.extras.ending = { ended, settle };
    }
    return this.extras.ending.ended;
  }

  /** Ends the lease. */
  end(state: LeaseEnd): void {
    this.state = state;
    this.extras?.ending?.settle(state.done);
  }

  onAbort(reason: unknown): void {
    this.extras?.onAbort?.(this, reason);
  }
}

/**
 * All live instances, and how many are in each state. The only place that changes a state, so that every number is
 * counted and none is derived.
 *
 * Invariants:
 * - `live` is the number of instances from the start of `create` to the end of `destroy`. It never grows past `size`;
 *   after `resize` to a smaller size it may exceed it until leases are released.
 * - `usable` counts those that are neither evicted nor being destroyed: `min` refers to them.
 * - `coming` counts those of them that become available without a release: being created or validated.
 */
export class InstanceRegistry<T> {
  size: number;
  /** Usable instances to keep; 0 once the pool is draining or closed. */
  min: number;
  /** Idle instances to keep; 0 once the pool is draining or closed. */
  minIdle: number;
  usable = 0;
  coming = 0;
  /** Instances created and destroyed, and failed creations, since the pool was built. */
  created = 0;
  destroyed = 0;
  createFailed = 0;
  /** The failure of the last creation, until one succeeds. */
  lastCreateError: unknown = undefined;
  // How many are in each state. Plain fields and a switch: a table looked up by name took a fifth of a lease's time.
  creating = 0;
  idle = 0;
  validating = 0;
  preparing = 0;
  leased = 0;
  resetting = 0;
  destroying = 0;
  /** Called when an instance is marked for eviction. */
  onEvicted: ((instance: Instance<T>) => void) | undefined = undefined;
  /** Called when an instance became idle or gone, or a waiter left. Set while the pool is draining or closed. */
  onProgress: (() => void) | undefined = undefined;
  readonly #settings: PoolSettings<T>;
  readonly #instances = new Map<number, Instance<T>>();
  readonly #abandoned = new AbortController();
  #lastId = 0;

  constructor(settings: PoolSettings<T>) {
    this.#settings = settings;
    this.size = settings.size;
    this.min = settings.min;
    this.minIdle = settings.minIdle;
  }

  get live(): number {
    return this.#instances.size;
  }

  /** How many more may be created now. */
  get room(): number {
    return this.size - this.#instances.size;
  }

  /** Live instances beyond `size` that are not being destroyed yet. */
  get surplus(): number {
    return this.#instances.size - this.destroying - this.size;
  }

  find(id: number): Instance<T> | undefined {
    return this.#instances.get(id);
  }

  /** Adds an instance that is about to be created by `call`, with the next id. */
  enter(): { readonly instance: Instance<T>; readonly call: HostCall } {
    const call = this.#newCall();
    const instance = new Instance<T>(++this.#lastId, { kind: 'creating', call });
    this.#instances.set(instance.id, instance);
    this.#count(instance, 1);
    return { instance, call };
  }

  /** Moves an instance to a state in which a callback of the host runs; returns the call to make. */
  begin(instance: Instance<T>, kind: 'validating' | 'preparing' | 'resetting'): HostCall {
    const call = this.#newCall();
    this.move(instance, { kind, call });
    return call;
  }

  /** Ends all calls in progress, except those of `destroy`. */
  abandonCalls(reason: unknown): void {
    this.#abandoned.abort(reason);
  }

  move(instance: Instance<T>, state: InstanceState<T>): void {
    this.#count(instance, -1);
    instance.state = state;
    this.#count(instance, 1);
  }

  /** Marks an instance to be destroyed as soon as it has no holder. The first reason stands. */
  evict(instance: Instance<T>, reason: DestroyReason): void {
    if (instance.evictionReason !== undefined) return;
    this.#count(instance, -1);
    instance.evictionReason = reason;
    this.#count(instance, 1);
    this.onEvicted?.(instance);
  }

  /** Removes an instance: its slot is free. */
  leave(instance: Instance<T>): void {
    this.#count(instance, -1);
    instance.state = GONE;
    this.#instances.delete(instance.id);
  }

  /** All live instances, the oldest first. */
  [Symbol.iterator](): IterableIterator<Instance<T>> {
    return this.#instances.values();
  }

  #newCall(): HostCall {
    return new HostCall(this.#settings, this.#abandoned.signal);
  }

  #count({ state, evictionReason }: Instance<T>, by: 1 | -1): void {
    if (evictionReason === undefined) this.usable += by;
    switch (state.kind) {
      case 'leased':
        this.leased += by;
        break;
      case 'idle':
        this.idle += by;
        break;
      case 'creating':
        this.creating += by;
        if (evictionReason === undefined) this.coming += by;
        break;
      case 'validating':
        this.validating += by;
        if (evictionReason === undefined) this.coming += by;
        break;
      case 'preparing':
        this.preparing += by;
        break;
      case 'resetting':
        this.resetting += by;
        break;
      case 'destroying':
        this.destroying += by;
        break;
    }
  }
}
