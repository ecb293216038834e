import {
  AcquireTimeoutError,
  InstanceGoneError,
  type LifecycleStage,
  type PoolFigures,
  type QueueFigures,
  QueueFullError,
} from '../errors.js';
import type { LeaseRejection, QueuePlace } from '../hooks/events.js';
import { unwatchAbort, watchAbort } from '../internal/abort.js';
import { afterThisTurn, PER_TURN } from '../internal/clock.js';
import { DrainRate } from '../queue/drain-rate.js';
import { FairQueue, locate } from '../queue/fair-queue.js';
import { QUEUE_WATCH } from '../queue/options.js';
import { servingOrder } from '../queue/serving-order.js';
import {
  HELD,
  type HostCall,
  type Instance,
  type InstanceRegistry,
  LeaseRequest,
  LeaseRequestExtras,
} from './instances.js';
import type { Lease } from './lease.js';
import type { PoolSettings } from './options.js';

/**
 * The requests that wait for a lease.
 *
 * Invariants:
 * - The order is that of `FairQueue`. Waiters for a certain instance have a queue of their own, by priority and arrival;
 *   between the heads of the two, guarantees come first, then priority, then arrival.
 * - A waiter whose tenant is at its cap delays no other, and no instance is created for it.
 * - A waiter that is aborted, times out, is rejected or served leaves in that step, in O(1), with its timer and listener.
 * - However many waiters are rejected or time out at once, their callers and listeners run in batches, a turn of the event
 *   loop each.
 */
export class Waiters<T> {
  rejected = 0;
  /** Requests without an instance yet. */
  unserved = 0;
  /** Called when a tenant with a cap holds one lease less. */
  onCapFreed!: () => void;
  readonly #settings: PoolSettings<T>;
  readonly #instances: InstanceRegistry<T>;
  readonly #queue: FairQueue<LeaseRequest<T>>;
  /** Instances with a queue of their own. */
  readonly #claimed = new Set<Instance<T>>();
  /** Requests that left the queue with an instance that is being prepared for them. */
  readonly #preparing = new Set<LeaseRequest<T>>();
  /** Made with the first estimate that is asked for. */
  #drainRate: DrainRate | undefined;
  #arrivals = 0;
  /** Whether a tenant with a guarantee was named. */
  #hasGuarantees = false;
  /** Rejections of this turn of the event loop, and those that are left for later turns. */
  #rejections = 0;
  #backlog: (() => void)[] = [];

  constructor(settings: PoolSettings<T>, instances: InstanceRegistry<T>) {
    this.#settings = settings;
    this.#instances = instances;
    this.#queue = new FairQueue(settings, settings.turnNow);
    instances.onEvicted = (instance) => this.rejectClaims(instance);
    if (settings.maxQueue !== Number.POSITIVE_INFINITY)
      this.#drainRate = new DrainRate(this.#settings.turnNow);
  }

  /** Requests that wait for any instance, less those whose tenant is at its cap. */
  get length(): number {
    return this.#queue.size - this.#queue.excess;
  }

  /** Of those, the ones for which no instance is being created or validated. */
  get uncovered(): number {
    return this.length - this.#instances.coming;
  }

  /** Requests without a lease yet. */
  get queued(): number {
    return this.unserved + this.#preparing.size;
  }

  /**
   * Finds the tenant of a request.
   *
   * @throws whatever is wrong with its share
   */
  assignTenant(extras: LeaseRequestExtras<T>, name: string): void {
    extras.holder = this.#queue.tenant(name);
    if (extras.holder.limits.guaranteed > 0) this.#hasGuarantees = true;
  }

  /** Charges a request that did not wait to its tenant, once tenants are named. */
  charge(request: LeaseRequest<T>): void {
    if (!this.#queue.isShared) return;
    request.extras ??= new LeaseRequestExtras();
    this.#queue.charge(request.extras, 1, request.extras.holder);
  }

  /** A lease has ended: corrects the charge. Returns whether there may be room under a cap now. */
  settle({ extras }: LeaseRequest<T>): boolean {
    const tenant = extras?.holder;
    if (extras === undefined || tenant === undefined) return false;
    this.#queue.settle(extras, 1);
    return tenant.hasCap;
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
    if (this.#queue.isShared || (room > 0 && this.#queue.size <= coming))
      waiter.extras ??= new LeaseRequestExtras();
    const timeoutMs = options?.timeoutMs ?? this.#settings.acquireTimeoutMs;
    if (timeoutMs !== undefined || this.#settings.agingMs !== undefined) {
      waiter.extras ??= new LeaseRequestExtras();
      if (timeoutMs !== undefined) waiter.extras.waitTimer = setTimeout(this.#onTimeout, timeoutMs, waiter);
    }
    const own = waiter.extras;
    if (own === undefined) {
      this.#queue.push(waiter);
      this.#drainRate?.begin();
      return waiter;
    }
    const watch = options?.[QUEUE_WATCH];
    if (watch !== undefined)
      watch.readPlace = () => (waiter.state.kind === 'waiting' ? this.placeOf(waiter) : undefined);
    const { claimed } = own;
    if (claimed === undefined) {
      this.#queue.pushAt(waiter, options?.priority, own.holder);
      this.#drainRate?.begin();
    } else {
      const { agingMs, turnNow } = this.#settings;
      claimed.claims ??= new FairQueue({ agingMs }, turnNow);
      claimed.claims.pushAt(waiter, options?.priority);
      if (own.holder !== undefined) own.holder.elsewhere++;
      this.#claimed.add(claimed);
    }
    // Last: what the host's clock aborts meanwhile is not in the queue yet.
    if (options?.signal !== undefined) {
      own.onAbort = this.#onAbort;
      watchAbort(options.signal, waiter);
    }
    return waiter;
  }

  /** Whether a waiter accepts this instance. */
  wants(instance: Instance<T>): boolean {
    return this.length > 0 || this.claims(instance);
  }

  /** Whether a waiter that may be served accepts this instance and no other. */
  claims(instance: Instance<T>): boolean {
    return this.#claimant(instance) !== undefined;
  }

  /** Removes the waiter that is next for this instance. */
  next(instance: Instance<T>): LeaseRequest<T> | undefined {
    const claimant = this.#claimant(instance);
    const first = this.#queue.peek();
    if (claimant === undefined && first === undefined) return undefined;
    this.unserved--;
    // What follows reads the host's clock: an abort in there comes too late.
    if (claimant?.extras !== undefined && (first === undefined || this.#goesBefore(claimant, first))) {
      claimant.state = HELD;
      this.#leaveClaims(claimant, claimant.extras);
      this.charge(claimant);
      return claimant;
    }
    if (first !== undefined) {
      first.state = HELD;
      this.#queue.take(first);
    }
    this.#drainRate?.note(1);
    return first;
  }

  /** The next of the waiters for this instance and no other whose tenants are not at their caps. */
  #claimant({ claims }: Instance<T>): LeaseRequest<T> | undefined {
    if (claims === undefined || claims.size === 0) return undefined;
    const first = claims.peek();
    if (!this.#hasGuarantees && first?.extras?.holder?.isFull(1) !== true) return first;
    let next: LeaseRequest<T> | undefined;
    // They share no order with those of other instances, so caps and guarantees are looked up.
    for (const waiter of servingOrder(claims)) {
      if (waiter.extras?.holder?.isFull(1) === true) continue;
      if (next === undefined || this.#goesBefore(waiter, next)) next = waiter;
    }
    return next;
  }

  /** Removes a waiter from the queue of the instance that it waits for. */
  #leaveClaims(waiter: LeaseRequest<T>, extras: LeaseRequestExtras<T>): void {
    extras.claimed?.claims?.remove(waiter);
    if (extras.holder !== undefined) extras.holder.elsewhere--;
  }

  #goesBefore(a: LeaseRequest<T>, b: LeaseRequest<T>): boolean {
    const isUrgent = a.extras?.holder?.isUrgent === true;
    if (isUrgent !== (b.extras?.holder?.isUrgent === true)) return isUrgent;
    const byPriority = (b.options?.priority ?? 0) - (a.options?.priority ?? 0);
    const { agingMs } = this.#settings;
    const sooner =
      agingMs === undefined
        ? byPriority
        : (a.extras?.queuedAtMs ?? 0) - (b.extras?.queuedAtMs ?? 0) + byPriority * agingMs;
    return sooner === 0 ? a.arrival < b.arrival : sooner < 0;
  }

  /** An instance became idle: the next request need not wait. */
  noteIdle(): void {
    this.#drainRate?.end();
  }

  /**
   * Marks the first waiter that has no instance coming as the one that this instance is made for. `newest` is the waiter
   * that has just joined, if no other has none coming: it saves a search through those ahead of it.
   */
  expect(instance: Instance<T>, newest?: LeaseRequest<T>): void {
    const waiter = newest ?? this.#firstUncovered();
    if (waiter === undefined) return;
    if (waiter.extras === undefined) {
      waiter.extras = new LeaseRequestExtras();
      locate(this.#queue, waiter);
    }
    waiter.extras.awaited = instance;
    instance.madeFor = waiter;
  }

  #firstUncovered(): LeaseRequest<T> | undefined {
    for (const waiter of servingOrder(this.#queue)) {
      if (waiter.extras?.awaited === undefined) return waiter;
    }
    return undefined;
  }

  /** The instance is no longer being created or validated: the waiter that it was for has none coming. */
  unassign(instance: Instance<T>): LeaseRequest<T> | undefined {
    const waiter = instance.madeFor;
    instance.madeFor = undefined;
    if (waiter?.extras !== undefined) waiter.extras.awaited = undefined;
    return waiter;
  }

  /** An instance is being prepared for a waiter that `next` returned. */
  prepares(waiter: LeaseRequest<T>, call: HostCall): void {
    waiter.state = { kind: 'preparing', call };
    this.#preparing.add(waiter);
  }

  /** Resolves the promise of a waiter that `next` returned. */
  serve(waiter: LeaseRequest<T>, lease: Lease<T>): void {
    if (waiter.extras !== undefined) this.#forget(waiter, waiter.extras);
    waiter.settle?.(lease);
    waiter.settle = undefined;
  }

  /** Rejects a waiter that has no lease yet. It leaves the queue now; `schedule` settles its promise. */
  reject(waiter: LeaseRequest<T>, reason: LeaseRejection, error: unknown, schedule = this.#inBatches): void {
    const waitMs = waiter.elapsedMs(this.#settings.turnNow());
    const { state, extras } = waiter;
    // Host code that ran since the caller looked (a listener, a getter of an error) may have rejected it.
    if (state.kind !== 'waiting' && state.kind !== 'preparing') return;
    waiter.state = { kind: 'rejected', reason, waitMs };
    let isCapFreed = false;
    if (state.kind === 'preparing') {
      isCapFreed = this.settle(waiter);
    } else {
      this.unserved--;
      // Without extras it is the first.
      if (extras === undefined) this.#queue.take(waiter);
      else if (extras.claimed === undefined) this.#queue.remove(waiter);
      else this.#leaveClaims(waiter, extras);
    }
    if (extras !== undefined) this.#forget(waiter, extras);
    this.rejected++;
    const { settle } = waiter;
    waiter.settle = undefined;
    schedule(() => settle?.(Promise.reject(error)));
    if (state.kind === 'preparing') state.call.cancel(error);
    this.#instances.onProgress?.();
    if (isCapFreed) this.onCapFreed();
  }

  /** Rejects the waiters for an instance that will not be available again. */
  rejectClaims(instance: Instance<T>): void {
    if (instance.claims === undefined) return;
    this.#claimed.delete(instance);
    if (instance.claims.size === 0) return;
    this.#rejectQueue(
      instance.claims,
      'instance-gone',
      new InstanceGoneError(this.#settings.name, instance.id),
    );
  }

  /** Rejects all waiters with one error: the stacks of 10,000 would block the event loop. */
  rejectAll(reason: LeaseRejection, error: Error): void {
    this.#queue.stopSharing();
    for (const waiter of this.#preparing) this.reject(waiter, reason, error);
    for (const { claims } of this.#claimed) {
      if (claims !== undefined) this.#rejectQueue(claims, reason, error);
    }
    this.#rejectQueue(this.#queue, reason, error);
  }

  #rejectQueue(queue: FairQueue<LeaseRequest<T>>, reason: LeaseRejection, error: Error): void {
    for (let first = queue.peek(); first !== undefined; first = queue.peek())
      this.reject(first, reason, error);
  }

  /** The numbers that an error about an instance carries. */
  poolFigures(instanceId: number, waiter?: LeaseRequest<T>): PoolFigures {
    const { live, idle, leased } = this.#instances;
    const waitMs = waiter?.elapsedMs(this.#settings.turnNow()) ?? 0;
    return { source: this.#settings.name, waitMs, live, idle, leased, queued: this.queued, instanceId };
  }

  /** Where a waiter stands. */
  placeOf(waiter: LeaseRequest<T>): QueuePlace {
    const ahead = (waiter.extras?.claimed?.claims ?? this.#queue).aheadOfQueued(waiter);
    if (this.#drainRate === undefined) {
      this.#drainRate = new DrainRate(this.#settings.turnNow);
      this.#drainRate.begin();
    }
    return { position: ahead + 1, estimatedWaitMs: Math.ceil(this.#drainRate.msFor(ahead + 1)) };
  }

  queueFullError(): QueueFullError {
    const retryAfterMs = Math.ceil(this.#drainRate?.msFor(this.unserved + 1) ?? 0);
    return new QueueFullError({ ...this.#queueFigures(0), retryAfterMs });
  }

  timeoutError(waitMs: number, stage: LifecycleStage, queued = this.queued): AcquireTimeoutError {
    return new AcquireTimeoutError(
      { ...this.#queueFigures(waitMs), queued, stage },
      this.#instances.lastCreateError,
    );
  }

  /** The numbers that an error about the queue carries. */
  #queueFigures(waitMs: number): QueueFigures & { readonly live: number; readonly idle: number } {
    const { live, idle, leased, size } = this.#instances;
    return { source: this.#settings.name, waitMs, active: leased, queued: this.queued, size, live, idle };
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
    const error = this.timeoutError(waitMs, stageOf(waiter), this.queued - 1);
    this.reject(waiter, 'timeout', error, (settle) => settle());
  }

  /** Runs a rejection now, or in a later turn of the event loop if this one has had many. */
  readonly #inBatches = (reject: () => void): void => {
    if (this.#rejections === PER_TURN) {
      this.#backlog.push(reject);
      return;
    }
    if (this.#rejections++ === 0) afterThisTurn(this.#onNextTurn);
    reject();
  };

  readonly #onNextTurn = (): void => {
    this.#rejections = 0;
    for (const reject of this.#backlog.splice(0, PER_TURN)) this.#inBatches(reject);
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
