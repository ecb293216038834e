import {
  AcquireTimeoutError,
  InstanceGoneError,
  type LifecycleStage,
  type PoolFigures,
  type QueueFigures,
  QueueFullError,
} from '../errors.js';
import type { LeaseRejection } from '../hooks/events.js';
import { type AbortWatcher, unwatchAbort, watchAbort } from '../internal/abort.js';
import { afterThisTurn } from '../internal/clock.js';
import { DrainRate } from '../queue/drain-rate.js';
import { FairQueue } from '../queue/fair-queue.js';
import type { CallbackInvocation } from './callbacks.js';
import { type Instance, type InstanceRegistry, LeaseRequest, LeaseRequestExtras } from './instances.js';
import type { Lease } from './lease.js';
import type { PoolSettings } from './options.js';

// Rejections beyond this many in one turn of the event loop are delivered in later turns.
const REJECTIONS_PER_TURN = 1_000;

/** Settles a `warmUp`, with an error if there is one. */
type SettleWarmUp = (failure?: { readonly error: unknown }) => void;

/**
 * The requests that wait for a lease, and the calls of `warmUp` that wait for `min` and `minIdle` instances.
 *
 * Invariants:
 * - The order is by priority, then tenants in turn, then arrival (see `FairQueue`). Waiters for a certain instance have a
 *   queue of their own, and of the two heads the higher priority is served first, then the earlier arrival.
 * - A waiter that is aborted, times out, is rejected or served leaves in that step, in O(1), with its timer and listener.
 * - However many waiters are rejected or time out at once, their callers and listeners run in batches, a turn of the event
 *   loop each.
 */
export class Waiters<T> {
  rejected = 0;
  /** Requests without an instance yet. */
  unserved = 0;
  readonly #settings: PoolSettings<T>;
  readonly #instances: InstanceRegistry<T>;
  readonly #queue = new FairQueue<LeaseRequest<T>>();
  /** Instances with a queue of their own. */
  readonly #claimed = new Set<Instance<T>>();
  /** Requests that left the queue with an instance that is being prepared for them. */
  readonly #preparing = new Set<LeaseRequest<T>>();
  readonly #warmUps = new Set<SettleWarmUp>();
  /** Only `QueueFullError` needs an estimate of the wait. */
  readonly #drainRate: DrainRate | undefined;
  #arrivals = 0;
  /** Rejections of this turn of the event loop, and those that are left for later turns. */
  #rejections = 0;
  #backlog: (() => void)[] = [];
  #isRejecting = false;

  constructor(settings: PoolSettings<T>, instances: InstanceRegistry<T>) {
    this.#settings = settings;
    this.#instances = instances;
    instances.onEvicted = (instance) => this.rejectClaims(instance);
    if (settings.maxQueue !== Number.POSITIVE_INFINITY) this.#drainRate = new DrainRate();
  }

  /** Requests that wait for any instance. */
  get length(): number {
    return this.#queue.size;
  }

  /** Requests without a lease yet. */
  get queued(): number {
    return this.unserved + this.#preparing.size;
  }

  /** Adds a waiter, for a certain instance or for any. */
  join(extras: LeaseRequestExtras<T> | undefined): LeaseRequest<T> {
    const waiter = new LeaseRequest(extras);
    const options = extras?.options;
    waiter.arrival = ++this.#arrivals;
    waiter.sinceMs = this.#settings.turnNow() | 0;
    this.unserved++;
    const { room, coming } = this.#instances;
    // A creation starts for it: then it may leave before its turn.
    if (room > 0 && this.#queue.size <= coming) waiter.extras ??= new LeaseRequestExtras();
    const timeoutMs = options?.timeoutMs ?? this.#settings.acquireTimeoutMs;
    if (timeoutMs !== undefined) {
      waiter.extras ??= new LeaseRequestExtras();
      waiter.extras.waitTimer = setTimeout(this.#onTimeout, timeoutMs, waiter);
    }
    const own = waiter.extras;
    if (own === undefined) {
      this.#queue.push(waiter);
      this.#drainRate?.begin();
      return waiter;
    }
    if (options?.signal !== undefined) {
      own.onAbort = this.#onAbort;
      watchAbort(options.signal, waiter);
    }
    const { claimed } = own;
    if (claimed === undefined) {
      this.#queue.pushAt(own, waiter, options?.priority, options?.tenant);
      this.#drainRate?.begin();
    } else {
      claimed.claims ??= new FairQueue();
      claimed.claims.pushAt(own, waiter, options?.priority, options?.tenant);
      this.#claimed.add(claimed);
    }
    return waiter;
  }

  /** Whether a waiter accepts this instance. */
  wants(instance: Instance<T>): boolean {
    return this.#queue.size > 0 || this.claims(instance);
  }

  /** Whether a waiter accepts this instance and no other. */
  claims(instance: Instance<T>): boolean {
    return instance.claims !== undefined && instance.claims.size > 0;
  }

  /** Removes the waiter that is next for this instance. */
  next(instance: Instance<T>): LeaseRequest<T> | undefined {
    const claimant = instance.claims?.peek();
    const first = this.#queue.peek();
    if (claimant === undefined && first === undefined) return undefined;
    this.unserved--;
    if (claimant !== undefined && (first === undefined || goesBefore(claimant, first))) {
      return instance.claims?.shift();
    }
    this.#drainRate?.note(1);
    return this.#queue.shift();
  }

  /** An instance became idle: the next request need not wait. */
  noteIdle(): void {
    this.#drainRate?.end();
  }

  /**
   * Marks the first waiter that has no instance coming as the one that this instance is made for. `newest` is the waiter
   * that has just joined, if no other has none coming: it saves a search through those ahead of it.
   */
  expect(instance: Instance<T>, newest?: LeaseRequest<T>): LeaseRequest<T> | undefined {
    if (newest?.extras !== undefined && newest.extras.claimed === undefined) {
      newest.extras.awaited = instance;
      return newest;
    }
    for (const waiter of this.#queue) {
      if (waiter.extras?.awaited !== undefined) continue;
      if (waiter.extras === undefined) {
        waiter.extras = new LeaseRequestExtras();
        this.#queue.locate(waiter.extras, waiter);
      }
      waiter.extras.awaited = instance;
      return waiter;
    }
    return undefined;
  }

  /** An instance is being prepared for a waiter that `next` returned. */
  prepares(waiter: LeaseRequest<T>, call: CallbackInvocation<unknown>): void {
    waiter.state = { kind: 'preparing', call };
    this.#preparing.add(waiter);
  }

  /** Resolves the promise of a waiter that `next` returned. */
  serve(waiter: LeaseRequest<T>, lease: Lease<T>): void {
    if (waiter.extras !== undefined) this.#forget(waiter, waiter.extras);
    waiter.settle?.(lease);
    waiter.settle = undefined;
  }

  /** Rejects a waiter that has no lease yet. */
  reject(waiter: LeaseRequest<T>, reason: LeaseRejection, error: unknown): void {
    const { state, extras } = waiter;
    if (state.kind === 'preparing') {
      state.call.cancel(error);
    } else {
      this.unserved--;
      // Without extras it is the first.
      if (extras === undefined) this.#queue.take(waiter);
      else (extras.claimed?.claims ?? this.#queue).remove(extras, waiter);
    }
    if (extras !== undefined) this.#forget(waiter, extras);
    this.rejected++;
    waiter.state = { kind: 'rejected', reason, waitMs: waiter.elapsedMs(this.#settings.turnNow()) };
    const { settle } = waiter;
    waiter.settle = undefined;
    if (settle !== undefined) this.#inBatches(() => settle(Promise.reject(error)));
    this.#instances.onProgress?.();
  }

  /** Rejects the waiters for an instance that will not be available again. */
  rejectClaims(instance: Instance<T>): void {
    if (instance.claims === undefined) return;
    this.#claimed.delete(instance);
    if (instance.claims.size === 0) return;
    const error = new InstanceGoneError(this.#settings.name, instance.id);
    for (let first = instance.claims.peek(); first !== undefined; first = instance.claims.peek()) {
      this.reject(first, 'instance-gone', error);
    }
  }

  /** Rejects all waiters, `warmUp` included, with one error: the stacks of 10,000 would block the event loop. */
  rejectAll(reason: LeaseRejection, error: Error): void {
    for (const waiter of this.#preparing) this.reject(waiter, reason, error);
    for (const { claims } of this.#claimed) {
      for (let first = claims?.peek(); first !== undefined; first = claims?.peek()) {
        this.reject(first, reason, error);
      }
    }
    for (let first = this.#queue.peek(); first !== undefined; first = this.#queue.peek()) {
      this.reject(first, reason, error);
    }
    this.failWarmUps(() => error);
  }

  /** Settles when `min` and `minIdle` instances exist; rejects when a creation fails, the signal aborts or the time is up. */
  warmUp(signal: AbortSignal | undefined, timeoutMs: number | undefined): Promise<void> {
    if (this.#isWarm()) return Promise.resolve();
    return new Promise((resolve, reject) => {
      const settle: SettleWarmUp = (failure) => {
        this.#warmUps.delete(settle);
        clearTimeout(timer);
        if (signal !== undefined) unwatchAbort(signal, watcher);
        if (failure === undefined) resolve();
        else reject(failure.error);
      };
      const watcher: AbortWatcher = { onAbort: (error) => settle({ error }) };
      const onTimeout = (waitMs: number): void => settle({ error: this.timeoutError(waitMs, 'create') });
      const timer = timeoutMs === undefined ? undefined : setTimeout(onTimeout, timeoutMs, timeoutMs);
      if (signal !== undefined) watchAbort(signal, watcher);
      this.#warmUps.add(settle);
    });
  }

  /** An instance was created. */
  checkWarmUps(): void {
    if (this.#warmUps.size === 0 || !this.#isWarm()) return;
    for (const settle of this.#warmUps) settle();
  }

  failWarmUps(makeError: () => Error): void {
    if (this.#warmUps.size === 0) return;
    const error = makeError();
    for (const settle of this.#warmUps) settle({ error });
  }

  /** The numbers that an error about an instance carries. */
  poolFigures(waitMs: number, instanceId: number): PoolFigures {
    const { live, idle, leased } = this.#instances;
    return { source: this.#settings.name, waitMs, live, idle, leased, queued: this.queued, instanceId };
  }

  queueFullError(): QueueFullError {
    const retryAfterMs = Math.ceil(this.#drainRate?.msFor(this.unserved + 1) ?? 0);
    return new QueueFullError({ ...this.#queueFigures(0), retryAfterMs });
  }

  timeoutError(waitMs: number, stage: LifecycleStage): AcquireTimeoutError {
    return new AcquireTimeoutError({ ...this.#queueFigures(waitMs), stage }, this.#instances.lastCreateError);
  }

  /** The numbers that an error about the queue carries. */
  #queueFigures(waitMs: number): QueueFigures & { readonly live: number; readonly idle: number } {
    const { live, idle, leased, size } = this.#instances;
    return { source: this.#settings.name, waitMs, active: leased, queued: this.queued, size, live, idle };
  }

  #isWarm(): boolean {
    const { usable, creating, min, idle, minIdle, live, size } = this.#instances;
    return usable - creating >= min && (idle >= minIdle || live - creating >= size);
  }

  #forget(waiter: LeaseRequest<T>, { options, waitTimer }: LeaseRequestExtras<T>): void {
    clearTimeout(waitTimer);
    if (options?.signal !== undefined) unwatchAbort(options.signal, waiter);
    this.#preparing.delete(waiter);
  }

  readonly #onAbort = (waiter: LeaseRequest<T>, reason: unknown): void =>
    this.reject(waiter, 'aborted', reason);

  readonly #onTimeout = (waiter: LeaseRequest<T>): void => this.#inBatches(() => this.#expire(waiter));

  #expire(waiter: LeaseRequest<T>): void {
    // In a later turn it may have been served or rejected.
    if (waiter.state.kind !== 'waiting' && waiter.state.kind !== 'preparing') return;
    const waitMs = waiter.elapsedMs(this.#settings.turnNow());
    this.reject(waiter, 'timeout', this.timeoutError(waitMs, stageOf(waiter)));
  }

  /** Runs a rejection now, or in a later turn of the event loop if this one has had many. */
  #inBatches(reject: () => void): void {
    if (this.#isRejecting) {
      reject();
      return;
    }
    if (this.#rejections === 0) afterThisTurn(this.#onNextTurn);
    if (this.#rejections === REJECTIONS_PER_TURN) {
      this.#backlog.push(reject);
      return;
    }
    this.#rejections++;
    this.#isRejecting = true;
    reject();
    this.#isRejecting = false;
  }

  readonly #onNextTurn = (): void => {
    this.#rejections = 0;
    for (const reject of this.#backlog.splice(0, REJECTIONS_PER_TURN)) this.#inBatches(reject);
  };
}

/** What a waiter was waiting for. */
function stageOf<T>({ state, extras }: LeaseRequest<T>): LifecycleStage {
  if (state.kind === 'preparing') return 'prepare';
  switch (extras?.awaited?.state.kind) {
    case 'creating':
      return 'create';
    case 'validating':
      return 'validate';
    default:
      return 'wait';
  }
}

function goesBefore<T>(a: LeaseRequest<T>, b: LeaseRequest<T>): boolean {
  const priorityOfA = a.options?.priority ?? 0;
  const priorityOfB = b.options?.priority ?? 0;
  return priorityOfA === priorityOfB ? a.arrival < b.arrival : priorityOfA > priorityOfB;
}
