import {
  AcquireTimeoutError,
  DrainTimeoutError,
  LimiterClosedError,
  type LimitLossReason,
  type LimitsUnavailableError,
  QueueFullError,
} from '../errors.js';
import type { PermitOutcome, PermitRejection, QueuePlace } from '../hooks/events.js';
import type { LifecycleHooks } from '../hooks/lifecycle-hooks.js';
import { anySignal, unwatchAbort, watchAbort, withDeadline } from '../internal/abort.js';
import { AsyncContext } from '../internal/async-context.js';
import { inBatches, nowMs, settleInTurn, turnMs } from '../internal/clock.js';
import { Condition } from '../internal/condition.js';
import { summaryOf } from '../internal/error-summary.js';
import { sharedStack } from '../internal/shared-stack.js';
import { callable, oneOf, wholeNumber } from '../internal/validate.js';
import { emitAcquired, emitRejected, emitReleased, permitPayload, queueFigures } from '../limiter/events.js';
import type {
  AcquireOptions,
  FleetStats,
  Limiter,
  LimiterStats,
  Permit,
  RunContext,
} from '../limiter/limiter.js';
import { checkAcquireOptions, checkCloseOptions } from '../limiter/options.js';
import { checkWeight, QUEUE_WATCH, tenantLimits, UNLIMITED, UNUSED } from '../queue/options.js';
import type { CommandConnection, Subscriber } from './client.js';
import { FleetPermit, type PermitOwner, releaseOperation } from './fleet-permit.js';
import { LocalShare } from './local-share.js';
import { type FleetFigures, FleetMember, type MemberOwner, type Operation } from './member.js';
import type { FleetLimiterOptions, FleetOptions } from './options.js';
import { QueuePlaces } from './queue-places.js';

/** A snapshot of a fleet limiter: this process's own counts, and the fleet's as Redis last reported them. */
export interface FleetLimiterStats extends LimiterStats {
  readonly fleet: FleetStats;
}

/** What work under a fleet limiter receives. */
export interface FleetRunContext extends RunContext {
  /** Aborts with the caller's signal, or when the permit is lost. */
  readonly signal: AbortSignal;
}

/**
 * A limit that several processes share over Redis. Made by `RedisLimits.limiter`.
 *
 * Invariants:
 * - A permit is `waiting` exactly while it is in `#waiting`, and `held` exactly while it is in `#held`.
 * - A permit is held only while the lease of this member is certain; when the lease ends, its holders' signals have aborted
 *   before Redis may give the permits to others.
 * - What Redis counts as held here and is neither waiting nor held is released.
 * - A waiter that leaves takes everything along: its timer is cleared, its signal is no longer watched, and it leaves the
 *   queue in Redis.
 *
 * @example
 * const limiter = new RedisLimits({ client }).limiter({ name: 'llm', maxConcurrent: 200 });
 * await limiter.run(({ signal }) => complete(prompt, signal));
 */
export class FleetLimiter implements Limiter, AsyncDisposable, PermitOwner, MemberOwner {
  /** The `source` in events and errors, and the name that members share. */
  readonly name: string;
  /** Where its events are emitted. */
  readonly hooks: LifecycleHooks;
  /** @internal Where its waiters stand. */
  readonly places: QueuePlaces;
  readonly #options: FleetLimiterOptions;
  readonly #fleet: FleetOptions;
  /** @internal */
  readonly member: FleetMember;
  readonly #maxQueue: number;
  readonly #waiting = new Map<string, FleetPermit>();
  readonly #held = new Map<string, FleetPermit>();
  readonly #idle = new Condition(() => this.#held.size === 0 && this.#waiting.size === 0);
  #limit: number;
  #highestLimit: number;
  #nextId = 0;
  #active = 0;
  /** Waiters that Redis has queued. */
  #queued = 0;
  #acquired = 0;
  #rejected = 0;
  #lost = 0;
  /** The limit it was made with, where another was in force when it joined, until somebody sets one. */
  #configured: number | undefined;
  #isOpen = true;
  #unavailable: LimitsUnavailableError | undefined;
  #joinedMs = Number.POSITIVE_INFINITY;
  /** Present while this member works with its share of the limit, without Redis. */
  #share: LocalShare | undefined;
  /** Until others can have no more than theirs, it grants nothing of it. */
  #shareTimer: NodeJS.Timeout | undefined;
  /** The mean time for which a permit was held lately. */
  #meanHeldMs = 1_000;

  /** @internal */
  constructor(
    options: FleetLimiterOptions,
    fleet: FleetOptions,
    connection: CommandConnection,
    subscriber: Subscriber,
  ) {
    this.name = options.name;
    this.hooks = options.hooks ?? fleet.hooks;
    this.places = new QueuePlaces(this.hooks);
    this.#options = options;
    this.#fleet = fleet;
    this.#limit = options.maxConcurrent;
    this.#highestLimit = options.maxConcurrent;
    this.#maxQueue = options.maxQueue ?? Number.POSITIVE_INFINITY;
    this.member = new FleetMember(this, connection, subscriber, {
      source: this.name,
      keyPrefix: `${encodeURIComponent(fleet.prefix)}:${encodeURIComponent(this.name)}`,
      leaseMs: fleet.leaseMs,
      commandTimeoutMs: fleet.commandTimeoutMs,
      keepsShare: fleet.whenUnavailable === 'local',
    });
  }

  /** The limit in force for all members. Setting it sets it for all of them: the last one counts. A whole number from 1. */
  get maxConcurrent(): number {
    return this.#limit;
  }

  set maxConcurrent(value: number) {
    wholeNumber('maxConcurrent', value);
    this.#setLimit(value);
    this.member.setLimit(value);
  }

  /** Weight held by this process. */
  get activeCount(): number {
    return this.#active;
  }

  /** Waiters of this process. */
  get queuedCount(): number {
    return this.#waiting.size;
  }

  /** A frozen snapshot of the counts. */
  stats(): FleetLimiterStats {
    const { active, queued, members, frozen } = this.member.figures;
    return Object.freeze({
      maxConcurrent: this.#limit,
      active: this.#active,
      queued: this.#waiting.size,
      acquired: this.#acquired,
      rejected: this.#rejected,
      paused: false,
      closed: !this.#isOpen,
      fleet: Object.freeze({
        active,
        queued,
        members,
        available: this.member.isAvailable,
        frozen,
        lost: this.#lost,
        configured: this.#configured,
      }),
    });
  }

  /**
   * Waits for a permit. Release it when the work is over, and stop the work when its `signal` aborts.
   *
   * Rejects with `signal.reason`, `AcquireTimeoutError`, `QueueFullError`, `LimiterClosedError`, `LimitsUnavailableError`
   * (with `whenUnavailable: 'fail'`), or a `TypeError` or `RangeError` that names a wrong option.
   *
   * @example
   * using permit = await limiter.acquire({ signal, timeoutMs: 5_000 });
   * await work({ signal: permit.signal });
   */
  acquire(options: AcquireOptions = {}): Promise<Permit & { readonly signal: AbortSignal }> {
    try {
      return this.#request(options);
    } catch (error) {
      return Promise.reject(error);
    }
  }

  #request(options: AcquireOptions): Promise<FleetPermit> {
    checkAcquireOptions(options, this.#highestLimit);
    // Read once: the caller may reuse the object for the next request.
    const { signal, timeoutMs = this.#options.acquireTimeoutMs, priority = 0, weight = 1 } = options;
    const { tenant, taskId, requestId } = options;
    const watch = options[QUEUE_WATCH];
    let limits = UNLIMITED;
    // First: it is the host's, and may close this limiter or abort the signal.
    if (tenant !== undefined && this.#options.tenants !== undefined) {
      limits = tenantLimits(this.#options.tenants(tenant));
      checkWeight(limits, weight);
    }
    const extras = { signal, timeoutMs, priority, weight, tenant, taskId, requestId };
    if (signal?.aborted) return this.#reject('aborted', signal.reason, extras);
    const rejection = this.#rejection(timeoutMs);
    if (rejection !== undefined) return this.#reject(...rejection, extras);
    const permit = new FleetPermit(
      this,
      (this.#nextId++).toString(36),
      weight,
      this.#scoreOf(priority),
      extras,
      turnMs(),
      { by: this.#options.fairBy ?? 'time', ages: this.#options.agingMs !== undefined, limits },
    );
    if (watch !== undefined) {
      this.places.watch(permit, watch, () => this.#placeOf(permit));
    }
    if (this.hooks.hasListeners('permit:queued')) permit.extras = { ...extras, context: new AsyncContext() };
    const answer = new Promise<FleetPermit>((resolve) => {
      permit.resolve = resolve;
    });
    if (timeoutMs !== undefined && timeoutMs > 0) {
      permit.timer = setTimeout(() => this.abandon(permit, 'timeout', undefined), timeoutMs);
    }
    if (signal !== undefined) watchAbort(signal, permit);
    this.#waiting.set(permit.id, permit);
    this.member.send(permit);
    this.#share?.add(permit);
    this.#grantShare();
    return this.#observed(permit, answer);
  }

  /**
   * Runs `fn` under a permit, and releases the permit when `fn` ends, however it ends.
   *
   * `fn` receives a signal that aborts with the caller's or when the permit is lost, and has to honor it itself. Settles as
   * `fn` does; rejects as `acquire` does where no permit was granted.
   *
   * @example
   * const page = await limiter.run(({ signal }) => fetch(url, { signal }), { priority: 1 });
   */
  async run<R>(
    fn: (context: FleetRunContext) => R | PromiseLike<R>,
    options?: AcquireOptions,
  ): Promise<Awaited<R>> {
    callable('fn', fn);
    const permit = await this.acquire(options);
    const { signal, unlink } = anySignal(permit.signal, options?.signal);
    try {
      if (signal.aborted) permit[UNUSED]?.();
      signal.throwIfAborted();
      const result = await fn({ signal, permit });
      permit.release();
      return result;
    } catch (error) {
      permit.release('ignored');
      throw error;
    } finally {
      unlink();
    }
  }

  /** Fulfills when this process holds nothing and has no waiters. */
  onIdle(): Promise<void> {
    return this.#idle.reached();
  }

  /**
   * Accepts no further requests of this process, and fulfills when it holds nothing any more and has left the fleet.
   *
   * Waiters are rejected with `LimiterClosedError`, or served first with `drain`. With `timeoutMs` it rejects with
   * `DrainTimeoutError` when that time is up, and rejects the remaining waiters; it then leaves the fleet when the last
   * permit is released. `RedisLimits.close` takes the permits back.
   */
  async close(
    options: { readonly drain?: boolean | undefined; readonly timeoutMs?: number | undefined } = {},
  ): Promise<void> {
    const { drain, timeoutMs } = checkCloseOptions(options);
    this.#isOpen = false;
    if (!drain) await this.#rejectWaiters('closed', () => new LimiterClosedError(this.name));
    const left = this.onIdle().then(() => this.member.leave());
    await withDeadline(left, timeoutMs, (elapsedMs) => {
      void this.#rejectWaiters('closed', () => new LimiterClosedError(this.name));
      return new DrainTimeoutError(this.name, elapsedMs, this.#active);
    });
  }

  /** @internal Closes at once: aborts the signals of held permits, then leaves the fleet, which releases them. */
  async terminate(): Promise<void> {
    this.#isOpen = false;
    await this.#rejectWaiters('closed', () => new LimiterClosedError(this.name));
    this.#endShare();
    this.#loseAll('closed');
    await this.member.leave();
  }

  /** `close()`: rejects the waiters, and waits for what is held. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  // For the permits.

  /** @internal */
  checkLease(): void {
    this.member.checkLease();
  }

  /** @internal */
  release(permit: FleetPermit, outcome: PermitOutcome): void {
    if (permit.state === 'held') {
      permit.state = 'released';
      this.#held.delete(permit.id);
      this.#active -= permit.weight;
      if (!permit.isUnused) this.#meanHeldMs += (turnMs() - permit.sinceMs - this.#meanHeldMs) / 16;
      this.#share?.release(permit);
      this.member.send(releaseOperation(permit.id, permit.isUnused));
      emitReleased(this, permit, outcome);
      this.#idle.check();
      this.#grantShare();
    }
    oneOf('outcome', outcome, ['ok', 'dropped', 'ignored']);
  }

  /** @internal */
  abandon(permit: FleetPermit, reason: 'aborted' | 'timeout', cause: unknown): void {
    if (permit.state !== 'waiting') return;
    permit.waitMs = turnMs() - permit.sinceMs;
    this.#endWait(
      permit,
      reason,
      reason === 'timeout' ? new AcquireTimeoutError(queueFigures(this, permit.waitMs)) : cause,
    );
  }

  /** @internal */
  onAnswer(permit: FleetPermit, number: string): void {
    if (permit.state !== 'waiting') {
      // It left meanwhile: its cancellation follows, and needs the number.
      if (number !== '0') permit.number = number;
      return;
    }
    if (number === '0') {
      this.#grant(permit);
      return;
    }
    const isNew = permit.number === '';
    permit.number = number;
    if (!isNew) return;
    this.#queued++;
    if (permit.extras?.timeoutMs === 0) this.abandon(permit, 'timeout', undefined);
    else if (this.#queued > this.#maxQueue) this.#endWait(permit, 'queue-full', this.#queueFullError());
    else if (this.hooks.hasListeners('permit:queued')) {
      const payload = permitPayload(this, permit.weight, permit.extras);
      const emit = (): void => this.hooks.emit('permit:queued', { ...payload, ...this.#placeOf(permit) });
      const { context } = permit.extras ?? {};
      if (context === undefined) emit();
      else context.run(emit);
    }
  }

  // For the member.

  /** @internal */
  onFigures(figures: FleetFigures): void {
    this.places.onFigures(figures);
  }

  /** @internal */
  onRenewal(): void {
    for (const { placeOperation } of this.places.due()) this.member.send(placeOperation);
  }

  /** @internal */
  get limit(): number {
    return this.#limit;
  }

  /** @internal */
  get hasWaiters(): boolean {
    return this.#waiting.size > 0;
  }

  /** @internal */
  *claims(): Generator<readonly [string, string]> {
    for (const permit of this.#held.values()) yield [permit.id, permit.claim];
  }

  /** @internal */
  waiters(): Operation[] {
    return [...this.#waiting.values()];
  }

  /** @internal */
  onJoined(isFirst: boolean): void {
    this.#unavailable = undefined;
    this.#endShare();
    if (isFirst) this.#joinedMs = nowMs();
    const { maxConcurrent } = this.#options;
    if (!isFirst) return;
    if (this.hooks.hasListeners('fleet:joined')) {
      const { members } = this.member.figures;
      this.hooks.emit('fleet:joined', { source: this.name, maxConcurrent: this.#limit, members });
    }
    if (this.#limit === maxConcurrent) return;
    this.#configured = maxConcurrent;
    if (this.hooks.hasListeners('limit:mismatch')) {
      const payload = { source: this.name, maxConcurrent, fleetMaxConcurrent: this.#limit };
      this.hooks.emit('limit:mismatch', payload);
    }
  }

  /** @internal */
  onGranted(id: string): void {
    const permit = this.#waiting.get(id);
    if (permit !== undefined) this.#grant(permit);
  }

  /** @internal */
  onHeld(ids: readonly string[]): void {
    for (const id of ids) {
      if (this.#waiting.has(id)) this.onGranted(id);
      else if (!this.#held.has(id)) this.member.send(releaseOperation(id));
    }
  }

  /** @internal */
  onLost(ids: readonly string[]): void {
    for (const id of ids) {
      const permit = this.#held.get(id);
      if (permit !== undefined) this.#lose(permit, 'revoked');
    }
  }

  /** @internal */
  onLimit(limit: number): void {
    this.#setLimit(limit);
  }

  /** @internal */
  onLeaseEnd(isOutage: boolean): void {
    if (isOutage && this.#fleet.whenUnavailable === 'local') this.#keepShare();
    else this.#loseAll('expired');
  }

  /** @internal */
  onStillUnavailable(): void {
    this.#grantShare();
  }

  /** @internal */
  onUnavailable(error: LimitsUnavailableError): void {
    this.#unavailable = error;
    if (this.hooks.hasListeners('fleet:unavailable')) {
      this.hooks.emit('fleet:unavailable', { source: this.name, error: summaryOf(error) });
    }
    if (this.#fleet.whenUnavailable === 'fail') void this.#rejectWaiters('unavailable', () => error);
    else {
      for (const permit of this.#waiting.values()) {
        if (permit.extras?.timeoutMs === 0) this.abandon(permit, 'timeout', undefined);
      }
    }
  }

  /** @internal */
  onAvailable(outageMs: number): void {
    if (this.hooks.hasListeners('fleet:restored')) {
      this.hooks.emit('fleet:restored', { source: this.name, outageMs });
    }
  }

  /** Lower goes first; with aging, a priority is worth as much time. */
  #scoreOf(priority: number): string {
    const { agingMs } = this.#options;
    if (agingMs === undefined) return priority === 0 ? '0' : String(-priority);
    // Exact for what any waiter lives to see.
    return `+${Math.max(-9e15, Math.min(9e15, Math.round(-priority * agingMs)))}`;
  }

  /** What a position in the queue may take, judging by what was held here. */
  get #usualMs(): number {
    return this.#meanHeldMs / this.#limit;
  }

  #placeOf(permit: FleetPermit): QueuePlace | undefined {
    return this.member.isAvailable ? this.places.of(permit, this.#usualMs) : undefined;
  }

  /** Without Redis: permits beyond this member's share are lost, the latest first. */
  #keepShare(): void {
    const { members, rank } = this.member.figures;
    // The others have learned of a member by half a lease after its first join.
    const isKnown = nowMs() > this.#joinedMs + this.#fleet.leaseMs / 2;
    const share = new LocalShare(this.#limit, isKnown ? members : 0, rank, this.#options);
    for (const permit of [...this.#held.values()]) if (!share.keep(permit)) this.#lose(permit, 'excess');
    for (const permit of this.#waiting.values()) share.add(permit);
    this.#share = share;
    // Until then, another member may hold more than its share: its lease may have been confirmed a third of a lease later.
    this.#shareTimer = setTimeout(() => {
      this.#shareTimer = undefined;
      this.#grantShare();
    }, 0.45 * this.#fleet.leaseMs).unref();
  }

  #grantShare(): void {
    const share = this.#share;
    // While a join is under way, Redis may grant as well.
    if (share === undefined || this.#shareTimer !== undefined || !this.member.isOut) return;
    for (let next = share.next(); next !== undefined; next = share.next()) this.#grant(next);
  }

  #endShare(): void {
    clearTimeout(this.#shareTimer);
    this.#shareTimer = undefined;
    this.#share = undefined;
  }

  /** Why a request is rejected on arrival, if it is. */
  #rejection(timeoutMs: number | undefined): [PermitRejection, Error] | undefined {
    if (!this.#isOpen) return ['closed', new LimiterClosedError(this.name)];
    if (this.#unavailable !== undefined) {
      if (this.#fleet.whenUnavailable === 'fail') return ['unavailable', this.#unavailable];
      if (timeoutMs === 0 && this.#share === undefined) {
        return ['timeout', new AcquireTimeoutError(queueFigures(this, 0))];
      }
      if (this.#waiting.size >= this.#maxQueue) return ['queue-full', this.#queueFullError()];
    }
    // A waiter of this process has been queued, so a newcomer would be queued behind it. How many of the requests that are
    // on their way will be queued is known when Redis answers.
    if (this.#queued > 0 && this.#queued >= this.#maxQueue) return ['queue-full', this.#queueFullError()];
    return undefined;
  }

  #queueFullError(): QueueFullError {
    const retryAfterMs = this.places.estimateMs(this.member.figures.queued + 1, this.#usualMs);
    return new QueueFullError({ ...queueFigures(this, 0), retryAfterMs });
  }

  #reject(reason: PermitRejection, error: unknown, extras: AcquireOptions): Promise<never> {
    this.#rejected++;
    emitRejected(this, reason, error, 0, extras);
    return Promise.reject(error);
  }

  /** Reports how a wait ends, in the context of its caller. */
  #observed(permit: FleetPermit, answer: Promise<FleetPermit>): Promise<FleetPermit> {
    return answer.then(
      (granted) => {
        emitAcquired(this, granted);
        return granted;
      },
      (error: unknown) => {
        emitRejected(this, permit.state as PermitRejection, error, permit.waitMs, permit.extras);
        throw error;
      },
    );
  }

  #grant(permit: FleetPermit): void {
    this.#leaveQueue(permit);
    const now = turnMs();
    permit.waitMs = now - permit.sinceMs;
    permit.sinceMs = now;
    permit.state = 'held';
    this.#held.set(permit.id, permit);
    this.#active += permit.weight;
    this.#acquired++;
    this.#settle(permit, () => permit);
  }

  /** Ends a wait without a permit, here and in Redis. */
  #endWait(permit: FleetPermit, reason: PermitRejection, error: unknown): void {
    this.#leaveQueue(permit);
    this.#share?.remove(permit);
    permit.state = reason;
    this.#rejected++;
    if (permit.isSent) this.member.send(permit.cancelOperation);
    this.#settle(permit, () => Promise.reject(error));
    this.#idle.check();
  }

  #settle(permit: FleetPermit, answer: () => FleetPermit | Promise<never>): void {
    const { resolve } = permit;
    permit.resolve = undefined;
    settleInTurn(() => resolve?.(answer()));
  }

  #leaveQueue(permit: FleetPermit): void {
    this.#waiting.delete(permit.id);
    this.places.forget(permit);
    if (permit.number !== '') this.#queued--;
    clearTimeout(permit.timer);
    const { signal } = permit.extras ?? {};
    if (signal !== undefined) unwatchAbort(signal, permit);
  }

  #rejectWaiters(reason: 'closed' | 'unavailable', makeError: () => Error): Promise<void> {
    const error = sharedStack(makeError);
    const now = turnMs();
    const ended = inBatches([...this.#waiting.values()], (permit) => {
      if (permit.state !== 'waiting') return;
      permit.waitMs = now - permit.sinceMs;
      this.#endWait(permit, reason, error());
    });
    return ended ?? Promise.resolve();
  }

  #loseAll(reason: LimitLossReason): void {
    for (const permit of [...this.#held.values()]) this.#lose(permit, reason);
  }

  #lose(permit: FleetPermit, reason: LimitLossReason): void {
    if (permit.state !== 'held') return;
    this.#held.delete(permit.id);
    this.#active -= permit.weight;
    this.#share?.release(permit);
    this.#lost++;
    permit.lose(reason);
    if (this.hooks.hasListeners('permit:lost')) {
      const heldMs = nowMs() - permit.sinceMs;
      this.hooks.emit('permit:lost', { ...permitPayload(this, permit.weight, permit.extras), heldMs });
    }
    this.#idle.check();
  }

  #setLimit(limit: number): void {
    const previous = this.#limit;
    if (limit === previous) return;
    this.#limit = limit;
    this.#configured = undefined;
    this.#highestLimit = Math.max(this.#highestLimit, limit);
    if (this.hooks.hasListeners('limit:changed')) {
      this.hooks.emit('limit:changed', { source: this.name, previous, maxConcurrent: limit });
    }
  }
}
