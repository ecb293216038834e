import { AcquireTimeoutError, InstanceGoneError, type LifecycleStage, QueueFullError } from '../errors.js';
import type { LeaseRejection } from '../hooks/events.js';
import { unwatchAbort, watchAbort } from '../internal/abort-watch.js';
import { DrainRate } from '../limiter/drain-rate.js';
import { WaitQueue } from '../limiter/wait-queue.js';
import { clockMs } from './clock-ms.js';
import { Hold, HoldExtras } from './hold.js';
import type { HostCall } from './host-call.js';
import type { Instance } from './instance.js';
import type { Lease } from './lease.js';
import type { LeaseOptions, PoolSettings } from './pool-options.js';
import type { PoolTeller } from './pool-teller.js';

/** What a line works with. */
export interface WaitingLineParts<T> {
  readonly settings: PoolSettings<T>;
  readonly teller: PoolTeller<T>;
  /** What the last creation failed with, until one succeeds. */
  readonly lastCreateError: () => unknown;
  /** Somebody was turned away. */
  readonly left: () => void;
}

/**
 * Those who wait for a lease.
 *
 * Invariants:
 * - By priority, tenants in turn, first come first served (see `WaitQueue`); those who want a certain instance stand in
 *   a queue of its own, and between the two heads the higher priority goes first, then whoever came first.
 * - Whoever gives up, is turned away or served leaves in that step, in O(1): its timer and its listener are gone.
 */
export class WaitingLine<T> {
  rejected = 0;
  /** Those who left the queue with an instance that is being prepared for them. */
  readonly #preparing = new Set<Hold<T>>();
  readonly #queue = new WaitQueue<Hold<T>>();
  readonly #claimed = new Set<Instance<T>>();
  readonly #settings: PoolSettings<T>;
  readonly #teller: PoolTeller<T>;
  readonly #lastCreateError: () => unknown;
  readonly #left: () => void;
  readonly #drainRate = new DrainRate();
  readonly #acquireTimeoutMs: number | undefined;
  #claiming = 0;
  #arrivals = 0;

  constructor({ settings, teller, lastCreateError, left }: WaitingLineParts<T>) {
    this.#settings = settings;
    this.#teller = teller;
    this.#lastCreateError = lastCreateError;
    this.#left = left;
    this.#acquireTimeoutMs = settings.acquireTimeoutMs;
  }

  /** Those who wait for any instance. */
  get length(): number {
    return this.#queue.size;
  }

  /** Those who have no lease yet, whatever they wait for. */
  get waiting(): number {
    return this.#queue.size + this.#claiming + this.#preparing.size;
  }

  /** Those who have no instance yet. */
  get unserved(): number {
    return this.#queue.size + this.#claiming;
  }

  /** Joins the line, for this instance or for any. */
  join(extras: HoldExtras<T> | undefined): Hold<T> {
    const waiter = new Hold(extras);
    const options = extras?.options;
    waiter.arrival = ++this.#arrivals;
    waiter.sinceMs = clockMs();
    const timeoutMs = options?.timeoutMs ?? this.#acquireTimeoutMs;
    if (timeoutMs !== undefined) {
      waiter.extras ??= new HoldExtras();
      waiter.extras.waitTimer = setTimeout(this.#onTimeout, timeoutMs, waiter);
    }
    const own = waiter.extras;
    if (own === undefined) {
      this.#queue.push(waiter);
      this.#drainRate.begin();
      return waiter;
    }
    const { claimed } = own;
    if (options?.signal !== undefined) {
      own.abandon = this.#onAbort;
      watchAbort(options.signal, waiter);
    }
    if (claimed === undefined) {
      this.#queue.pushAt(own, waiter, options?.priority, options?.tenant);
      this.#drainRate.begin();
    } else {
      claimed.claims.pushAt(own, waiter, options?.priority, options?.tenant);
      this.#claimed.add(claimed);
      this.#claiming++;
    }
    return waiter;
  }

  /** Whether somebody waits whom this instance could serve. */
  wants(instance: Instance<T>): boolean {
    return this.#queue.size > 0 || instance.isClaimed;
  }

  /** Takes out whoever is next for this instance. */
  next(instance: Instance<T>): Hold<T> | undefined {
    const claimant = instance.isClaimed ? instance.claims.peek() : undefined;
    const first = this.#queue.peek();
    if (claimant !== undefined && (first === undefined || goesBefore(claimant, first))) {
      this.#claiming--;
      return instance.claims.shift();
    }
    if (first !== undefined) this.#drainRate.note(1);
    return this.#queue.shift();
  }

  /** Nobody waits any more who could be served by the next instance. */
  atRest(): void {
    this.#drainRate.end();
  }

  /** Notes that this instance is on its way for the first for whom nothing is yet; gives that one. */
  expect(instance: Instance<T>): Hold<T> | undefined {
    for (const waiter of this.#queue) {
      if (waiter.extras?.awaited !== undefined) continue;
      if (waiter.extras === undefined) {
        // Should nothing come of the instance, it leaves before its turn.
        waiter.extras = new HoldExtras();
        this.#queue.locate(waiter.extras, waiter);
      }
      waiter.extras.awaited = instance;
      return waiter;
    }
    return undefined;
  }

  /** An instance is being prepared for somebody who was taken out. */
  prepares(waiter: Hold<T>, call: HostCall<unknown>): void {
    waiter.state = { kind: 'preparing', call };
    this.#preparing.add(waiter);
  }

  /** Somebody has a lease: nothing of the waiting stays behind. */
  serve(waiter: Hold<T>, lease: Lease<T>): void {
    if (waiter.extras !== undefined) this.#forget(waiter, waiter.extras);
    waiter.settle?.(lease);
    waiter.settle = undefined;
  }

  /** Turns somebody away who has no lease yet. */
  reject(waiter: Hold<T>, reason: LeaseRejection, error: unknown): void {
    const { state, extras } = waiter;
    if (state.kind === 'preparing') state.call.cancel(error);
    // Without any, it is the first.
    else if (extras === undefined) this.#queue.take(waiter);
    else if (extras.claimed === undefined) this.#queue.remove(extras, waiter);
    else if (extras.claimed.claims.remove(extras, waiter)) this.#claiming--;
    if (extras !== undefined) this.#forget(waiter, extras);
    this.rejected++;
    waiter.state = { kind: 'rejected', reason, waitMs: waiter.elapsedMs };
    waiter.settle?.(Promise.reject(error));
    waiter.settle = undefined;
    this.#left();
  }

  /** Turns those away who want an instance that will never be free again. */
  dismissClaims(instance: Instance<T>): void {
    this.#claimed.delete(instance);
    while (instance.isClaimed) {
      const waiter = instance.claims.peek();
      if (waiter === undefined) return;
      this.reject(waiter, 'instance-gone', new InstanceGoneError(this.#settings.name, instance.id));
    }
  }

  /** Turns everybody away. */
  rejectAll(reason: LeaseRejection, errorOf: () => Error): void {
    for (const waiter of this.#preparing) this.reject(waiter, reason, errorOf());
    for (const { claims } of this.#claimed) {
      for (let first = claims.peek(); first !== undefined; first = claims.peek()) {
        this.reject(first, reason, errorOf());
      }
    }
    for (let first = this.#queue.peek(); first !== undefined; first = this.#queue.peek()) {
      this.reject(first, reason, errorOf());
    }
  }

  /** Turns a request away that has not joined. */
  refuse(options: LeaseOptions | undefined, reason: LeaseRejection, error: unknown): Promise<never> {
    this.rejected++;
    this.#teller.rejected(options, reason, 0, error);
    return Promise.reject(error);
  }

  /**
   * Has it told what becomes of somebody, if anybody listens. Tells after the caller's own await: elsewhere a listener
   * would see the context of whoever released or aborted.
   */
  told(waiter: Hold<T>, served: Promise<Lease<T>>): Promise<Lease<T>> {
    const teller = this.#teller;
    if (!teller.hearsOfWaiters) return served;
    const { options } = waiter;
    if (waiter.state.kind === 'waiting') teller.queued(options);
    return served.then(
      (lease) => {
        teller.acquired(lease.instanceId, options, lease.waitMs);
        return lease;
      },
      (error: unknown) => {
        if (waiter.state.kind === 'rejected') {
          teller.rejected(options, waiter.state.reason, waiter.state.waitMs, error);
        }
        throw error;
      },
    );
  }

  /** The error of one for whom there is no room to wait. */
  fullError(): QueueFullError {
    const retryAfterMs = Math.ceil(this.#drainRate.msFor(this.unserved + 1));
    return new QueueFullError({ ...this.#teller.queueFigures(0), retryAfterMs });
  }

  timeoutError(waitedMs: number, stage: LifecycleStage): AcquireTimeoutError {
    const figures = { ...this.#teller.queueFigures(waitedMs), stage };
    return new AcquireTimeoutError(figures, this.#lastCreateError());
  }

  #forget(waiter: Hold<T>, { options, waitTimer }: HoldExtras<T>): void {
    clearTimeout(waitTimer);
    if (options?.signal !== undefined) unwatchAbort(options.signal, waiter);
    this.#preparing.delete(waiter);
  }

  readonly #onAbort = (waiter: Hold<T>, reason: unknown): void => this.reject(waiter, 'aborted', reason);

  readonly #onTimeout = (waiter: Hold<T>): void => {
    this.reject(waiter, 'timeout', this.timeoutError(waiter.elapsedMs, stageOf(waiter)));
  };
}

/** What is being done on behalf of somebody who waits. */
function stageOf<T>({ state, extras }: Hold<T>): LifecycleStage {
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

function goesBefore<T>(a: Hold<T>, b: Hold<T>): boolean {
  const priorityOfA = a.options?.priority ?? 0;
  const priorityOfB = b.options?.priority ?? 0;
  return priorityOfA === priorityOfB ? a.arrival < b.arrival : priorityOfA > priorityOfB;
}
