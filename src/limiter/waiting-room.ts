import { AcquireTimeoutError, DeadlineUnmeetableError, QueueFullError } from '../errors.js';
import { unwatchAbort, watchAbort } from '../internal/abort-watch.js';
import { wholeTurnMs } from '../internal/clock.js';
import type { AdaptiveLimit } from './adaptive-limit.js';
import type { DrainRate } from './drain-rate.js';
import type { Limiter } from './limiter.js';
import type { ConcurrencyLimiterOptions } from './limiter-options.js';
import type { Granted, PermitExtras, WaitingPermit } from './permit.js';
import { figuresOf } from './permit-events.js';
import { WaitQueue } from './wait-queue.js';

/** Why a request is not let in. */
export type WaitingObjection = QueueFullError | AcquireTimeoutError | DeadlineUnmeetableError;

/** What bounds the waiting. */
type WaitingRules = Pick<
  ConcurrencyLimiterOptions,
  'maxQueue' | 'queueTimeoutMs' | 'refuseUnmeetable' | 'adaptive'
>;

/**
 * Where permits wait, each with its promise, its timer and its watch on a signal; `WaitQueue` says in which order.
 *
 * Invariants:
 * - A permit is `waiting` exactly while it is in here.
 * - Whoever leaves takes everything along: its timer is cleared, its signal is no longer watched.
 * - Whoever is taken out is granted or failed by the taker in the same step.
 */
export class WaitingRoom {
  readonly #limiter: Limiter;
  readonly #drainRate: DrainRate;
  readonly #adaptive: AdaptiveLimit | undefined;
  readonly #maxQueue: number;
  readonly #queueTimeoutMs: number | undefined;
  readonly #refuseUnmeetable: boolean;
  /** Whether nothing bounds the waiting of one that asks for no bounds itself. */
  readonly isUnbounded: boolean;
  readonly #onTimeout: (permit: WaitingPermit) => void;
  readonly #queue = new WaitQueue<WaitingPermit>();
  /** What those count for beyond one each. */
  #beyondOne = 0;

  /** `onTimeout` is told of a permit whose time is up; it is still in here then. */
  constructor(
    limiter: Limiter,
    { maxQueue = Number.POSITIVE_INFINITY, queueTimeoutMs, refuseUnmeetable = false, adaptive }: WaitingRules,
    drainRate: DrainRate,
    onTimeout: (permit: WaitingPermit) => void,
  ) {
    this.#limiter = limiter;
    this.#drainRate = drainRate;
    this.#adaptive = adaptive;
    this.#maxQueue = maxQueue;
    this.#queueTimeoutMs = queueTimeoutMs;
    this.#refuseUnmeetable = refuseUnmeetable;
    this.isUnbounded = maxQueue === Number.POSITIVE_INFINITY && queueTimeoutMs === undefined;
    this.#onTimeout = onTimeout;
  }

  /** Waiters. */
  get size(): number {
    return this.#queue.size;
  }

  /** Whether a newcomer of this priority would be next. */
  isBehind(priority: number): boolean {
    const top = this.#queue.topPriority;
    return top === undefined || priority > top;
  }

  /** Who is next. */
  get next(): WaitingPermit | undefined {
    return this.#queue.peek();
  }

  /** Why a request is not even let in, if there is a reason. */
  objection(weight: number, extras: PermitExtras | undefined): WaitingObjection | undefined {
    const timeoutMs = extras?.timeoutMs ?? this.#queueTimeoutMs;
    const isFull = this.#queue.size >= this.#maxQueue;
    if (!isFull && timeoutMs === undefined) return undefined;
    const limiter = this.#limiter;
    if (isFull) {
      return new QueueFullError({ ...figuresOf(limiter, 0), retryAfterMs: this.#estimateMs(weight, extras) });
    }
    if (timeoutMs === 0) return new AcquireTimeoutError(figuresOf(limiter, 0));
    if (timeoutMs === undefined || !this.#refuseUnmeetable) return undefined;
    // A Retry-After is known, measured or not.
    if (!this.#drainRate.isKnown && this.#blockedMs <= timeoutMs) return undefined;
    const retryAfterMs = this.#estimateMs(weight, extras);
    if (retryAfterMs <= timeoutMs) return undefined;
    return new DeadlineUnmeetableError({ ...figuresOf(limiter, 0), retryAfterMs, timeoutMs });
  }

  /** Lets a permit wait; its signal must not be aborted yet. The promise settles as the permit is granted or failed. */
  enter(permit: WaitingPermit): Promise<Granted> {
    permit.clockMs = wholeTurnMs();
    const granted = new Promise<Granted>((resolve) => {
      permit.settle = resolve;
    });
    if (permit.extras === undefined && this.isUnbounded) this.#queue.push(permit);
    else this.#enterBounded(permit);
    return granted;
  }

  #enterBounded(permit: WaitingPermit): void {
    permit.extras ??= {};
    const { extras } = permit;
    const { timeoutMs = this.#queueTimeoutMs, signal, priority = 0, tenant } = extras;
    if (timeoutMs !== undefined) extras.timer = setTimeout(this.#onTimeout, timeoutMs, permit);
    if (signal !== undefined) watchAbort(signal, permit);
    this.#beyondOne += permit.weight - 1;
    this.#queue.pushAt(extras, permit, priority, tenant);
  }

  /** Takes out who is next, as `next` has just told. */
  take(next: WaitingPermit): void {
    this.#queue.take(next);
    next.clockMs = (wholeTurnMs() - next.clockMs) | 0;
    if (next.extras !== undefined) this.#unbind(next, next.extras);
  }

  /** Takes out a permit, wherever it stands. Gives false for one that has left already. */
  remove(permit: WaitingPermit): boolean {
    if (permit.extras === undefined || !this.#queue.remove(permit.extras, permit)) return false;
    permit.clockMs = (wholeTurnMs() - permit.clockMs) | 0;
    this.#unbind(permit, permit.extras);
    return true;
  }

  /**
   * How long a request arriving now would wait, in whole milliseconds: until so much weight has come back as it and
   * those ahead of it need, and any Retry-After is over.
   */
  #estimateMs(weight: number, extras: PermitExtras | undefined): number {
    const ahead = this.size === 0 ? 0 : this.#queue.aheadOf(extras?.priority, extras?.tenant) / this.size;
    const { activeCount, maxConcurrent } = this.#limiter;
    const missing = ahead * (this.size + this.#beyondOne) + weight + activeCount - maxConcurrent;
    const blockedMs = this.#blockedMs;
    // Behind a Retry-After there may be room enough.
    const drainMs =
      blockedMs > 0 && missing <= 0
        ? 0
        : this.#drainRate.msFor(Math.max(weight, missing), activeCount, maxConcurrent);
    return Math.ceil(blockedMs + drainMs);
  }

  get #blockedMs(): number {
    return this.#adaptive?.blockedForMs ?? 0;
  }

  /** Takes along what bounded its waiting. */
  #unbind(permit: WaitingPermit, { timer, signal }: PermitExtras): void {
    this.#beyondOne -= permit.weight - 1;
    if (timer !== undefined) clearTimeout(timer);
    if (signal !== undefined) unwatchAbort(signal, permit);
  }
}
