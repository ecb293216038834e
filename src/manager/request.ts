import {
  LeaseRevokedError,
  LimitLostError,
  ManagerClosedError,
  PoolClosedError,
  RequestTimeoutError,
} from '../errors.js';
import type {
  BudgetFigures,
  LifecycleEvents,
  ManagerEvents,
  QueuePlace,
  RequestOutcome,
} from '../hooks/events.js';
import type { LifecycleHooks } from '../hooks/lifecycle-hooks.js';
import {
  type AbortWatcher,
  boundedCall,
  LazySignal,
  unwatchAbort,
  watchAbort,
  withSignal,
} from '../internal/abort.js';
import { continueInTurn, nowMs } from '../internal/clock.js';
import { Condition } from '../internal/condition.js';
import { redactError } from '../internal/redaction.js';
import { abortSignal, options as checkOptions, durationMs, text, wholeNumber } from '../internal/validate.js';
import { ConcurrencyLimiter } from '../limiter/concurrency-limiter.js';
import type { AcquireOptions, Limiter, Permit } from '../limiter/limiter.js';
import { lossSignalOf, releasePermit } from '../limiter/semaphore.js';
import type { Lease } from '../pool/lease.js';
import type { PipelinePool } from '../pool/pipeline-pool.js';
import { QUEUE_WATCH, type QueueWatch } from '../queue/options.js';
import { Budget, type BudgetOption, countedAmounts, isBudget } from '../request/budget.js';
import { currentScope, type RequestContext, runInRequest } from '../request/current-request.js';

/** How a request is served. */
export interface RequestOptions {
  /** The caller's own signal: aborting it ends the request, queued or running. @default none */
  readonly signal?: AbortSignal | undefined;
  /** Milliseconds that the whole request may take, queueing included. @default the manager's `requestTimeoutMs` */
  readonly timeoutMs?: number | undefined;
  /** Higher goes first; an integer. @default 0 */
  readonly priority?: number | undefined;
  /** The owner of the request: tenants of the same priority share the limiter and the pool. @default none */
  readonly tenant?: string | undefined;
  /** What the request counts as in the limiter; an integer from 1. @default 1 */
  readonly weight?: number | undefined;
  /** Waits for this instance and no other (see `PipelinePool.acquire`). @default any */
  readonly instanceId?: number | undefined;
  /**
   * What the request and everything under it may spend: a `Budget`, or its caps. Inside another request it applies together
   * with the budget of that one: what is spent is spent from both.
   * @default the budget of the request that makes this one, or none
   */
  readonly budget?: BudgetOption | undefined;
}

/** One of the current requests of a manager. */
export interface RequestInfo {
  readonly taskId: string;
  readonly requestId: string;
  readonly tenant?: string;
  readonly state: 'queued' | 'running';
  /** What a queued request waits for. */
  readonly waitsFor?: 'permit' | 'instance';
  /** Its place in the queue that it waits in, 1 for the next (see `permit:queued`); absent where the limiter cannot say. */
  readonly position?: number;
  /** Milliseconds that it may still have to wait in that queue, from the pace of recent releases. */
  readonly estimatedWaitMs?: number;
  /** The instance of a running request. */
  readonly instanceId?: number;
  /** Milliseconds since the request came. */
  readonly ageMs: number;
  /** Milliseconds that it was queued, so far or in all. */
  readonly waitMs: number;
  /** What its budget allows, and what has been spent of it. */
  readonly budget?: BudgetFigures;
}

/** What a request takes from its manager. */
export interface RequestDependencies<T> {
  readonly name: string;
  readonly hooks: LifecycleHooks;
  readonly limiter: Limiter;
  readonly pool: PipelinePool<T>;
  readonly abortGraceMs: number;
  readonly trackRequests: boolean;
  readonly requests: RequestRegistry<T>;
}

/** One for all requests: to make it costs as much as half a request. */
let requestOver: DOMException | undefined;

type EarlyEnd = Exclude<RequestOutcome, 'ok' | 'failed'>;

const REQUEST_OPTIONS: readonly (keyof RequestOptions)[] = [
  'signal',
  'timeoutMs',
  'priority',
  'tenant',
  'weight',
  'instanceId',
  'budget',
];

/** Rejects wrong options of one request. */
export function checkRequest(taskId: string, given: RequestOptions): void {
  text('taskId', taskId);
  checkOptions('the request', given, REQUEST_OPTIONS);
  const { signal, timeoutMs, priority, tenant, weight, instanceId, budget } = given;
  if (signal !== undefined) abortSignal('signal', signal);
  if (timeoutMs !== undefined) durationMs('timeoutMs', timeoutMs);
  if (priority !== undefined) wholeNumber('priority', priority, Number.MIN_SAFE_INTEGER);
  if (tenant !== undefined) text('tenant', tenant);
  if (weight !== undefined) wholeNumber('weight', weight);
  if (instanceId !== undefined) wholeNumber('instanceId', instanceId);
  if (budget !== undefined && !isBudget(budget)) countedAmounts('budget', budget, Number.POSITIVE_INFINITY);
}

/** The budget of a request that is made now. */
function budgetOf(given: BudgetOption | undefined): Budget | undefined {
  const current = currentScope()?.budget;
  if (given === undefined) return current;
  if (isBudget(given)) return given.within(current);
  return current?.child(given) ?? new Budget(given);
}

/** The current requests of a manager: from the call until permit and instance are back. */
export class RequestRegistry<T> {
  /** In the order in which they came. */
  readonly #current = new Set<ManagedRequest<T>>();
  readonly #empty = new Condition(() => this.#current.size === 0);
  /** Requests so far. */
  total = 0;
  /** Current requests that hold a permit. */
  admitted = 0;

  get queued(): number {
    return this.#current.size - this.admitted;
  }

  /** Milliseconds for which the longest waiting request has waited; 0 if none is queued. */
  get longestWaitMs(): number {
    for (const request of this.#current) if (request.isQueued) return request.waitMs;
    return 0;
  }

  [Symbol.iterator](): IterableIterator<ManagedRequest<T>> {
    return this.#current.values();
  }

  add(request: ManagedRequest<T>): void {
    this.#current.add(request);
    this.total++;
  }

  /** Counts once, however often it is called. */
  delete(request: ManagedRequest<T>): void {
    if (!this.#current.delete(request)) return;
    if (request.isAdmitted) this.admitted--;
    this.#empty.check();
  }

  /** Settles when no request is left. */
  empty(): Promise<void> {
    return this.#empty.reached();
  }
}

/**
 * One request: admitted, given an instance, run, and both returned.
 *
 *     queued for a permit ──► queued for an instance ──► running ──► settled ──► ended
 *        └──────────────────────────┴── rejected ──────────────────────────────►┘
 *
 * Invariants:
 * - The permit is held from before the lease until after it: a request that waits for an instance has been admitted.
 * - The caller is settled in the step of the abort. Lease and permit stay until the host's code has settled too, or
 *   `abortGraceMs` is over and the instance is destroyed: an instance never serves two tasks at once.
 * - However the lease ends, the permit is released with it, once. If the permit is lost, the request ends in that step.
 * - Once the request is over, for whatever reason, its signal is aborted: code that it left running ends too.
 */
export class ManagedRequest<T> implements AbortWatcher, QueueWatch {
  readonly requestId = crypto.randomUUID();
  readonly taskId: string;
  /** Set by the limiter and the pool. */
  readPlace: (() => QueuePlace | undefined) | undefined;
  readonly #dependencies: RequestDependencies<T>;
  readonly #options: RequestOptions;
  /** Most host code never reads its signal, and an AbortController is dear. */
  readonly abortable = new LazySignal();
  readonly #openedMs = nowMs();
  readonly #budget: Budget | undefined;
  #timer: NodeJS.Timeout | undefined;
  #earlyEnd: EarlyEnd | undefined;
  #admittedMs: number | undefined;
  #startedMs: number | undefined;
  #instanceId: number | undefined;
  #stopWaiting: ((reason: unknown) => void) | undefined;

  constructor(
    dependencies: RequestDependencies<T>,
    taskId: string,
    options: RequestOptions,
    timeoutMs: number | undefined,
  ) {
    this.#dependencies = dependencies;
    this.taskId = taskId;
    // A copy: the caller may reuse the object for the next request.
    this.#options = { ...options };
    this.#budget = budgetOf(options.budget);
    const { signal } = this.#options;
    if (signal?.aborted) this.onAbort(signal.reason);
    else if (signal !== undefined) watchAbort(signal, this);
    if (timeoutMs !== undefined) {
      this.#timer = setTimeout(() => {
        this.end('timeout', new RequestTimeoutError(dependencies.name, taskId, timeoutMs));
      }, timeoutMs);
    }
    dependencies.requests.add(this);
    this.#emit('request:queued', {});
  }

  get isAdmitted(): boolean {
    return this.#admittedMs !== undefined;
  }

  get isQueued(): boolean {
    return this.#startedMs === undefined;
  }

  get waitMs(): number {
    return (this.#startedMs ?? nowMs()) - this.#openedMs;
  }

  info(): RequestInfo {
    const { taskId, requestId, isQueued, waitMs } = this;
    const { tenant } = this.#options;
    const instanceId = this.#instanceId;
    return Object.freeze({
      taskId,
      requestId,
      ...(tenant === undefined ? {} : { tenant }),
      ...(isQueued
        ? {
            state: 'queued' as const,
            waitsFor: this.isAdmitted ? ('instance' as const) : ('permit' as const),
            ...this.readPlace?.(),
          }
        : { state: 'running' as const }),
      ...(instanceId === undefined ? {} : { instanceId }),
      ageMs: nowMs() - this.#openedMs,
      waitMs,
      ...(this.#budget === undefined ? {} : { budget: this.#budget.figures() }),
    });
  }

  /** The caller aborted. */
  onAbort(reason: unknown): void {
    this.end('aborted', reason);
  }

  /** The manager is closing. */
  shutDown(): void {
    this.end('shutdown', new ManagerClosedError(this.#dependencies.name, 'has aborted this request'));
  }

  /** Ends the request early; the first reason counts. */
  end(outcome: EarlyEnd, reason: unknown): void {
    if (this.abortable.aborted) return;
    this.#earlyEnd = outcome;
    this.abortable.fire(reason);
    this.#stopWaiting?.(reason);
  }

  /**
   * Waits for a permit and an instance. The permit is released when the lease ends.
   *
   * @param untilReleased whether the host holds the lease from here on, and its end is the end of the request
   */
  async enter(untilReleased = false): Promise<Lease<T>> {
    const { pool, requests, abortGraceMs } = this.#dependencies;
    const { priority, tenant, weight, instanceId } = this.#options;
    const { watchable } = this.abortable;
    const { taskId, requestId } = this;
    try {
      const permit = await this.#permit({
        taskId,
        requestId,
        priority,
        tenant,
        signal: watchable,
        weight,
        [QUEUE_WATCH]: this,
      });
      const admittedMs = nowMs();
      this.#admittedMs = admittedMs;
      this.readPlace = undefined;
      requests.admitted++;
      const permitWatch = PermitWatch.of(permit, this);
      let lease: Lease<T>;
      try {
        const turn = continueInTurn();
        if (turn !== undefined) await turn;
        lease = await pool.acquire({
          taskId,
          requestId,
          priority,
          tenant,
          signal: watchable,
          instanceId,
          [QUEUE_WATCH]: this,
        });
      } catch (error) {
        permitWatch?.stop();
        releasePermit(permit, 'ignored');
        throw error;
      }
      const startedMs = nowMs();
      this.#startedMs = startedMs;
      this.readPlace = undefined;
      this.#instanceId = lease.instanceId;
      this.#emit('request:started', {
        instanceId: lease.instanceId,
        waitMs: startedMs - this.#openedMs,
        admissionMs: admittedMs - this.#openedMs,
        leaseMs: startedMs - admittedMs,
      });
      // The request must not keep the lease itself alive: a leaked lease is found by the garbage collector.
      const { watchable: leaseSignal } = lease;
      const leaseWatcher: AbortWatcher = {
        onAbort: (reason) => this.end(reason instanceof PoolClosedError ? 'shutdown' : 'revoked', reason),
      };
      if (leaseSignal.aborted) leaseWatcher.onAbort(leaseSignal.reason);
      else watchAbort(leaseSignal, leaseWatcher);
      // `timeoutMs` and the caller's signal bound the wait for a lease that the host holds itself.
      if (untilReleased) this.#stopWatching();
      permitWatch?.check(permit, untilReleased ? lease : undefined, abortGraceMs);
      void lease.ended.then(() => {
        unwatchAbort(leaseSignal, leaseWatcher);
        permitWatch?.stop();
        releasePermit(permit);
        if (untilReleased) this.#finish(leaseSignal.aborted ? 'revoked' : 'ok');
        this.#close();
      });
      return lease;
    } catch (error) {
      const outcome = this.#outcomeOf(error);
      this.#close();
      this.#emit('request:rejected', { outcome, waitMs: nowMs() - this.#openedMs, error });
      throw error;
    }
  }

  #permit(options: AcquireOptions): Promise<Permit> {
    const { limiter } = this.#dependencies;
    if (limiter instanceof ConcurrencyLimiter) return limiter.acquire(options);
    // A foreign limiter may do more with a signal than to watch it, or ignore it and grant a permit to a request that is over.
    return boundedCall((signal) => limiter.acquire({ ...options, signal }), {
      signal: this.abortable.signal,
      onLate: (late) => releasePermit(late, 'ignored'),
    });
  }

  /** Serves a request whose work is one function. */
  async run<R>(work: (context: RequestContext<T>) => R | PromiseLike<R>): Promise<R> {
    const lease = await this.enter();
    const { aborted, reason } = this.abortable;
    const answer = new Promise<R>((resolve, reject) => {
      // Aborted between the grant and this step: nothing has begun.
      if (aborted) reject(reason);
      else resolve(this.#call(work, lease));
    });
    try {
      const result = await this.#unlessEnded(answer);
      this.#finish('ok');
      return result;
    } catch (error) {
      this.#finish(this.#outcomeOf(error), error);
      throw error;
    } finally {
      this.#release(lease, answer);
    }
  }

  #call<R>(work: (context: RequestContext<T>) => R, { pipeline, instanceId }: Lease<T>): R {
    const { taskId, requestId } = this;
    const { tenant, priority } = this.#options;
    const given = {
      pipeline,
      taskId,
      instanceId,
      requestId,
      ...(tenant === undefined ? {} : { tenant }),
      ...(priority === undefined ? {} : { priority }),
      ...(this.#budget === undefined ? {} : { budget: this.#budget }),
    };
    const context: RequestContext<T> = withSignal(given, this.abortable);
    return this.#dependencies.trackRequests ? runInRequest(context, work) : work(context);
  }

  /** Settles as `answer` does, or rejects in the step in which the request is ended early. */
  #unlessEnded<R>(answer: Promise<R>): Promise<R> {
    return new Promise((resolve, reject) => {
      if (this.abortable.aborted) reject(this.abortable.reason);
      this.#stopWaiting = reject;
      answer.then(resolve, reject);
    });
  }

  /** Returns the instance once the host's code has settled, or discards it after the grace period. */
  #release(lease: Lease<T>, answer: Promise<unknown>): void {
    let grace: NodeJS.Timeout | undefined;
    const release = (): void => {
      clearTimeout(grace);
      void lease.release();
    };
    if (this.#earlyEnd === undefined) {
      release();
      return;
    }
    grace = setTimeout(() => void lease.release({ discard: true }), this.#dependencies.abortGraceMs);
    answer.then(release, release);
  }

  #outcomeOf(error: unknown): Exclude<RequestOutcome, 'ok'> {
    if (this.#earlyEnd !== undefined && error === this.abortable.reason) return this.#earlyEnd;
    return error instanceof LeaseRevokedError || error instanceof LimitLostError ? 'revoked' : 'failed';
  }

  /** Permit and instance are back. */
  #close(): void {
    this.#stopWatching();
    this.#dependencies.requests.delete(this);
  }

  /** The host's code is over, or no longer waited for. */
  #finish(outcome: RequestOutcome, error?: unknown): void {
    this.#stopWatching();
    // Whatever the host's code left running must not outlive its instance.
    requestOver ??= new DOMException('The request is over', 'AbortError');
    this.abortable.fire(requestOver);
    this.#emit('request:finished', {
      instanceId: this.#instanceId as number,
      outcome,
      durationMs: nowMs() - (this.#startedMs as number),
      ...(this.#budget === undefined ? {} : { budget: this.#budget.figures() }),
      error,
    });
  }

  /** Nothing can end it early any more. */
  #stopWatching(): void {
    clearTimeout(this.#timer);
    if (this.#options.signal !== undefined) unwatchAbort(this.#options.signal, this);
  }

  #emit<E extends keyof ManagerEvents>(event: E, more: Details<E> & { readonly error?: unknown }): void {
    const { hooks, name } = this.#dependencies;
    if (!hooks.hasListeners(event)) return;
    const { taskId, requestId } = this;
    const { tenant } = this.#options;
    const { error } = more;
    const payload: Record<string, unknown> = { source: name, taskId, requestId, tenant, ...more };
    if (error !== undefined) payload.error = redactError(error, hooks.redact);
    hooks.emit(event, payload as unknown as LifecycleEvents[E]);
  }
}

/** Ends a request whose permit is lost. Only permits that can be lost have one. */
class PermitWatch<T> implements AbortWatcher {
  readonly #signal: AbortSignal;
  readonly #request: ManagedRequest<T>;
  /** A leaked lease is found by the garbage collector. */
  #lease: WeakRef<Lease<T>> | undefined;
  #graceMs = 0;
  #grace: NodeJS.Timeout | undefined;

  static of<T>(permit: Permit, request: ManagedRequest<T>): PermitWatch<T> | undefined {
    const signal = lossSignalOf(permit);
    return signal === undefined ? undefined : new PermitWatch(signal, request);
  }

  constructor(signal: AbortSignal, request: ManagedRequest<T>) {
    this.#signal = signal;
    this.#request = request;
    if (signal.aborted) this.onAbort(signal.reason);
    else watchAbort(signal, this);
  }

  /** Before the work starts. `lease`: one that the host holds itself, which its own signal and the grace period end. */
  check(permit: Permit, lease: Lease<T> | undefined, graceMs: number): void {
    this.#graceMs = graceMs;
    if (lease !== undefined) this.#lease = new WeakRef(lease);
    // Reading it checks the clock: after a stop of the process, no timer may have fired yet.
    if (lossSignalOf(permit)?.aborted) this.onAbort(this.#signal.reason);
  }

  onAbort(reason: unknown): void {
    this.#request.end('revoked', reason);
    const lease = this.#lease?.deref();
    if (lease === undefined || this.#grace !== undefined) return;
    lease.abort(reason);
    this.#grace = setTimeout(() => void lease.release({ discard: true }), this.#graceMs);
  }

  stop(): void {
    clearTimeout(this.#grace);
    unwatchAbort(this.#signal, this);
  }
}

type Details<E extends keyof ManagerEvents> = Omit<ManagerEvents[E], keyof Ids | 'error'>;

interface Ids {
  readonly source: string;
  readonly taskId: string;
  readonly requestId: string;
  readonly tenant?: string | undefined;
}
