import { AcquireTimeoutError, InstanceGoneError, type LifecycleStage, QueueFullError } from '../errors.js';
import type { LeaseRejection } from '../hooks/events.js';
import { unwatchAbort, watchAbort } from '../internal/abort-watch.js';
import { AsyncContext } from '../internal/async-context.js';
import { DrainRate } from '../limiter/drain-rate.js';
import { WaitQueue } from '../limiter/wait-queue.js';
import { clockMs } from './clock-ms.js';
import type { HostCall } from './host-call.js';
import type { Instance } from './instance.js';
import type { Lease } from './lease.js';
import type { LeaseOptions, PoolSettings } from './pool-options.js';
import type { PoolTeller } from './pool-teller.js';
import { SERVED, Waiter } from './waiter.js';

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
  readonly #preparing = new Set<Waiter<T>>();
  readonly #queue = new WaitQueue<Waiter<T>>();
  readonly #claimed = new Set<Instance<T>>();
  readonly #settings: PoolSettings<T>;
  readonly #teller: PoolTeller<T>;
  readonly #lastCreateError: () => unknown;
  readonly #left: () => void;
  readonly #drainRate = new DrainRate();
  readonly #keepsContext: boolean;
  #claiming = 0;
  #arrivals = 0;

  constructor({ settings, teller, lastCreateError, left }: WaitingLineParts<T>) {
    this.#settings = settings;
    this.#teller = teller;
    this.#lastCreateError = lastCreateError;
    this.#left = left;
    this.#keepsContext = settings.prepare !== undefined || settings.reset !== undefined;
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
  join(
    options: LeaseOptions | undefined,
    claimed: Instance<T> | undefined,
    site: Error | undefined,
  ): Waiter<T> {
    const waiter = new Waiter<T>(++this.#arrivals, options, claimed, this.context(), site, this.#onAbort);
    waiter.clockMs = clockMs();
    const timeoutMs = options?.timeoutMs ?? this.#settings.acquireTimeoutMs;
    if (timeoutMs !== undefined) waiter.timer = setTimeout(this.#onTimeout, timeoutMs, waiter);
    if (options?.signal !== undefined) watchAbort(options.signal, waiter);
    if (claimed === undefined) {
      this.#queue.push(waiter, options?.priority, options?.tenant);
      this.#drainRate.begin();
    } else {
      claimed.claims.push(waiter, options?.priority, options?.tenant);
      this.#claimed.add(claimed);
      this.#claiming++;
    }
    return waiter;
  }

  /** The context of the task that calls now, where `prepare` or `reset` will need it. */
  context(): AsyncContext | undefined {
    return this.#keepsContext ? new AsyncContext() : undefined;
  }

  /** Whether somebody waits whom this instance could serve. */
  wants(instance: Instance<T>): boolean {
    return this.#queue.size > 0 || instance.isClaimed;
  }

  /** Takes out whoever is next for this instance. */
  next(instance: Instance<T>): Waiter<T> | undefined {
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

  /** The first for whom nothing is on its way. */
  firstWithout(): Waiter<T> | undefined {
    for (const waiter of this.#queue) if (waiter.awaited === undefined) return waiter;
    return undefined;
  }

  /** An instance is being prepared for somebody who was taken out. */
  prepares(waiter: Waiter<T>, call: HostCall<unknown>): void {
    waiter.state = { kind: 'preparing', call };
    this.#preparing.add(waiter);
  }

  serve(waiter: Waiter<T>, lease: Lease<T>): void {
    this.#end(waiter);
    waiter.state = SERVED;
    waiter.settle?.(lease);
  }

  /** Turns somebody away who has no lease yet. */
  reject(waiter: Waiter<T>, reason: LeaseRejection, error: unknown): void {
    const { state, claimed } = waiter;
    if (state.kind === 'preparing') state.call.cancel(error);
    else if (claimed === undefined) this.#queue.remove(waiter);
    else if (claimed.claims.remove(waiter)) this.#claiming--;
    this.#end(waiter);
    this.rejected++;
    waiter.state = { kind: 'rejected', reason };
    waiter.settle?.(Promise.reject(error));
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
  told(waiter: Waiter<T>, served: Promise<Lease<T>>): Promise<Lease<T>> {
    const { options } = waiter;
    const teller = this.#teller;
    if (!teller.hearsOfWaiters) return served;
    if (waiter.state.kind === 'queued') teller.queued(options);
    return served.then(
      (lease) => {
        teller.acquired(lease.instanceId, options, waiter.clockMs);
        return lease;
      },
      (error: unknown) => {
        if (waiter.state.kind === 'rejected') {
          teller.rejected(options, waiter.state.reason, waiter.clockMs, error);
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

  /** Milliseconds that somebody has waited so far. */
  waitedMs(waiter: Waiter<T>): number {
    return (clockMs() - waiter.clockMs) | 0;
  }

  #end(waiter: Waiter<T>): void {
    clearTimeout(waiter.timer);
    const signal = waiter.options?.signal;
    if (signal !== undefined) unwatchAbort(signal, waiter);
    this.#preparing.delete(waiter);
    waiter.clockMs = this.waitedMs(waiter);
  }

  readonly #onAbort = (waiter: Waiter<T>, reason: unknown): void => this.reject(waiter, 'aborted', reason);

  readonly #onTimeout = (waiter: Waiter<T>): void => {
    this.reject(waiter, 'timeout', this.timeoutError(this.waitedMs(waiter), waiter.stage));
  };
}

function goesBefore<T>(a: Waiter<T>, b: Waiter<T>): boolean {
  const priorityOfA = a.options?.priority ?? 0;
  const priorityOfB = b.options?.priority ?? 0;
  return priorityOfA === priorityOfB ? a.arrival < b.arrival : priorityOfA > priorityOfB;
}
