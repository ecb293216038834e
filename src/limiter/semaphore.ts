/**
 * The fair semaphore behind `ConcurrencyLimiter`, in the order in which this file builds it up:
 *
 * - `ReadyPermit`, `WaitingPermit`: a permit that was free, and one that is queued first
 * - `RunCompletion`, `RunPermit`: what ends a run, pooled, and the permit of a run without options
 * - `startRun` and `RunScope`: calling the host's function, and finding nested waits
 * - `Semaphore`: counts what is held, queues what is not free, and hands over what is released
 *
 * These are hot paths: decisions 0010 and 0016 say what each shape costs, and what was measured.
 */
import { AsyncLocalStorage } from 'node:async_hooks';
import {
  AcquireTimeoutError,
  DeadlineUnmeetableError,
  LimiterClosedError,
  NestedAcquireError,
  QueueFullError,
} from '../errors.js';
import type { PermitOutcome, PermitRejection, QueuePlace } from '../hooks/events.js';
import { type AbortWatcher, unwatchAbort, watchAbort } from '../internal/abort.js';
import { settleInTurn, turnMs, wholeTurnMs } from '../internal/clock.js';
import { Condition } from '../internal/condition.js';
import { sharedStack } from '../internal/shared-stack.js';
import { abortSignal, refusal } from '../internal/validate.js';
import { DrainRate } from '../queue/drain-rate.js';
import { FairQueue, type QueueNode, type QueuePosition, refund, type Tenant } from '../queue/fair-queue.js';
import { type QueueWatch, UNUSED } from '../queue/options.js';
import type { AdaptiveLimit } from './adaptive-limit.js';
import {
  emitAcquired,
  emitRejected,
  emitReleased,
  isObserved,
  type ObservableLimiter,
  observeWait,
  type PermitContext,
  queueFigures,
  RELEASED,
} from './events.js';
import type { LimiterStats, Permit, RunContext } from './limiter.js';
import type { ConcurrencyLimiterOptions } from './options.js';

/** A permit that was never held ends with the reason of its rejection. A shared one may be released any number of times. */
export type PermitState = 'waiting' | 'held' | 'released' | 'shared' | PermitRejection;

/** What few permits have. */
export interface PermitExtras extends PermitContext, QueuePosition {
  /** Ends the wait. */
  timer?: NodeJS.Timeout;
  /** When it was granted, on the clock of the adaptive limit. */
  grantedMs?: number;
  /** The permit of the run around this one, which it runs under, or may while it waits. */
  lender?: LimiterPermit | undefined;
  /** Whether a nested run holds it now. */
  isLent?: boolean;
  /** Nested runs that wait for it, or for any other. */
  nested?: Set<WaitingPermit>;
  /** The outcome of a run that has ended while a nested one still holds its permit. */
  outcome?: PermitOutcome;
  watch?: QueueWatch;
}

export type LimiterPermit = ReadyPermit | WaitingPermit;

/** What the promise of a queued permit fulfills with: the permit, or for a run the id of its completion. */
export type Granted = LimiterPermit | number;

/** Ends the holding. One function for both classes, or V8 inlines all that follows once for each. */
function endHolding(permit: LimiterPermit, outcome: PermitOutcome): void {
  if (permit.state === 'held') permit.state = 'released';
  else if (permit.state !== 'shared') return;
  permit.semaphore.release(permit, outcome);
}

/** A permit that was free when it was requested. */
export class ReadyPermit implements Permit {
  // Declared only: a field that is initialized here and set in the constructor would be written twice.
  declare readonly weight: number;
  /** @internal */ declare state: PermitState;
  /** @internal Milliseconds waited. */
  declare readonly clockMs: number;
  /** @internal */ declare readonly semaphore: Semaphore;
  /** @internal */ declare extras: PermitExtras | undefined;

  constructor(semaphore: Semaphore, weight: number, extras: PermitExtras | undefined) {
    this.weight = weight;
    this.state = 'held';
    this.clockMs = 0;
    this.semaphore = semaphore;
    this.extras = extras;
  }

  get waitMs(): number {
    return this.clockMs;
  }

  release(outcome: PermitOutcome = 'ok'): void {
    endHolding(this, outcome);
  }

  /** @internal A promise of it. Made here, where V8 knows the shape of the value and need not look up its `then`. */
  promised(): Promise<this> {
    return Promise.resolve(this);
  }

  [Symbol.dispose](): void {
    this.release();
  }
}

/**
 * A permit that is queued before it is held. Waiter, queue node and permit are one object, of a class of its own: a base
 * class makes every wait a tenth slower, and fields for the waiting make every uncontended run a thirtieth slower.
 *
 *     waiting ──granted──► held ──► released
 *        └──► aborted, timeout, closed
 */
export class WaitingPermit implements Permit, QueueNode, AbortWatcher {
  declare readonly weight: number;
  /** @internal */ declare state: PermitState;
  /** @internal While waiting, when it was queued; afterwards, the milliseconds waited. */
  declare clockMs: number;
  /** @internal */ declare readonly semaphore: Semaphore;
  /** @internal */ declare extras: PermitExtras | undefined;
  /** @internal What `run` will call. */
  declare work: ((context: RunContext) => unknown) | undefined;
  /** @internal Settles the promise of `acquire`; a rejected promise rejects it, which spares a second function. */
  declare settle: ((answer: Granted | Promise<never>) => void) | undefined;
  /** @internal */ declare next: QueueNode | undefined;

  constructor(
    semaphore: Semaphore,
    weight: number,
    extras: PermitExtras | undefined,
    work: WaitingPermit['work'],
  ) {
    this.weight = weight;
    this.state = 'waiting';
    this.clockMs = 0;
    this.semaphore = semaphore;
    this.extras = extras;
    this.work = work;
    this.settle = undefined;
    this.next = undefined;
  }

  get waitMs(): number {
    return this.clockMs;
  }

  /** @internal Most waiters have no options, and are smaller without fields for their position. */
  get position(): PermitExtras | undefined {
    return this.extras;
  }

  release(outcome: PermitOutcome = 'ok'): void {
    endHolding(this, outcome);
  }

  [Symbol.dispose](): void {
    this.release();
  }

  /** @internal */
  grant(): void {
    this.state = 'held';
    this.settle?.(this.work === undefined ? this : completionIdOf(this));
    this.settle = undefined;
  }

  /** @internal */
  reject(error: unknown): void {
    this.settle?.(Promise.reject(error));
    this.settle = undefined;
  }

  /** @internal Where it stands while it waits. */
  place(): QueuePlace | undefined {
    return this.state === 'waiting' ? this.semaphore.placeOf(this) : undefined;
  }

  /** @internal */
  onAbort(reason: unknown): void {
    this.semaphore.abandon(this, 'aborted', reason);
  }
}

/**
 * What follows the end of a run, reused for run after run: two functions created for each would be a twentieth of the
 * cost of an uncontended one. As many exist as ever ran at once.
 */
export class RunCompletion {
  /** What the end releases, unless that has happened before. */
  permit: LimiterPermit | undefined = undefined;
  /** Counts starts and ends of its runs: odd while it has one. */
  generation = 0;
  /** @internal */ next: RunCompletion | undefined = undefined;
  /** @internal */ readonly id = granted.push(undefined) - 1;

  readonly onResult = (result: unknown): unknown => {
    this.finish('ok');
    return result;
  };

  readonly onError = (error: unknown): never => {
    this.finish('ignored');
    throw error;
  };

  finish(outcome: PermitOutcome): void {
    // A promise that hides a `then` of its own has called back before.
    if ((this.generation & 1) === 0) return;
    // Past the largest small integer it goes on below zero, where odd and even are the same.
    this.generation = (this.generation + 1) | 0;
    const { permit } = this;
    this.permit = undefined;
    this.next = spareCompletion;
    spareCompletion = this;
    if (permit !== undefined) endHolding(permit, outcome);
  }

  /** Releases the permit of the run of that generation, if it is held, while the run goes on. */
  release(generation: number, outcome: PermitOutcome): void {
    const { permit } = this;
    if (this.generation !== generation || permit === undefined) return;
    this.permit = undefined;
    endHolding(permit, outcome);
  }
}

/**
 * The permit of a run without options. It knows its completion, and no completion knows it: V8's write barrier records
 * every pointer from an old object to a young one, which was a fifteenth of the cost of an uncontended run.
 */
export class RunPermit implements Permit {
  /** @internal */ declare readonly completion: RunCompletion;
  /** @internal */ declare readonly generation: number;

  constructor(completion: RunCompletion) {
    this.completion = completion;
    this.generation = completion.generation;
  }

  get weight(): number {
    return 1;
  }

  get waitMs(): number {
    return 0;
  }

  release(outcome: PermitOutcome = 'ok'): void {
    this.completion.release(this.generation, outcome);
  }

  [Symbol.dispose](): void {
    this.release();
  }
}

/**
 * The completions of runs that are granted and have not started, by their ids. A run that has started is not kept here:
 * one that never ends is collected together with its limiter.
 */
const granted: (RunCompletion | undefined)[] = [];
/** A list of those without a run. */
let spareCompletion: RunCompletion | undefined;

/** The completion of a run that starts. */
export function completionOf(permit: LimiterPermit): RunCompletion {
  const completion = spareCompletion ?? new RunCompletion();
  spareCompletion = completion.next;
  completion.generation++;
  completion.permit = permit;
  return completion;
}

/** What a queued run's promise fulfills with: a number, since V8 looks up a `then` on every object. */
function completionIdOf(permit: LimiterPermit): number {
  const completion = completionOf(permit);
  granted[completion.id] = completion;
  return completion.id;
}

/** The completion with this id; to be asked for once. */
export function takeCompletion(id: number): RunCompletion {
  const completion = granted[id] as RunCompletion;
  granted[id] = undefined;
  return completion;
}

/** What a host passes to `run`. */
export type Work<R> = (context: RunContext) => R | PromiseLike<R>;

/**
 * Calls the host's function and releases the permit when it ends, however it ends. Settles as the function does.
 *
 * Plain `then` calls: an async function would be a third slower.
 */
export function startRun<R>(completion: RunCompletion, context: RunContext, work: Work<R>): Promise<R> {
  const { generation } = completion;
  try {
    const given = work(context);
    const answer = isPlainPromise(given) ? given : promiseOf(given);
    return answer.then(completion.onResult as (result: R) => R, completion.onError);
  } catch (error) {
    // Unless a promise that hides a `then` of its own has called back before it threw: it may serve another run by now.
    if (completion.generation === generation) completion.finish('ignored');
    return Promise.reject(error);
  }
}

/** Runs under a permit that is shared by all runs without options. */
export function startSharedRun<R>(shared: LimiterPermit, work: Work<R>): Promise<R> {
  const completion = completionOf(shared);
  return startRun(completion, { signal: undefined, permit: new RunPermit(completion) }, work);
}

/** One with a `then` of its own might call back twice, and a completion serves another run by then. */
const isPlainPromise = <R>(given: R | PromiseLike<R>): given is Promise<R> =>
  (given as Promise<R> | undefined)?.constructor === Promise &&
  (given as Promise<R>).then === Promise.prototype.then;

const promiseOf = <R>(given: R | PromiseLike<R>): Promise<R> => new Promise((resolve) => resolve(given));

/** A run that code is inside of, and the one around it. */
interface RunScope {
  readonly permit: LimiterPermit;
  outer: RunScope | undefined;
}

// One for all limiters: each that was ever used makes every `await` of the process slower, for as long as it lives.
const runScopes = /* @__PURE__ */ new AsyncLocalStorage<RunScope>();

/** The innermost run whose permit is still held. */
function innermostHeld(from: RunScope | undefined): RunScope | undefined {
  let scope = from;
  while (scope !== undefined && scope.permit.state !== 'held') scope = scope.outer;
  return scope;
}

/** The innermost permit of this semaphore that the caller runs under, at any depth. */
function enclosing(semaphore: Semaphore): LimiterPermit | undefined {
  let scope = innermostHeld(runScopes.getStore());
  while (scope !== undefined && scope.permit.semaphore !== semaphore) scope = innermostHeld(scope.outer);
  return scope?.permit;
}

/** The same function, called inside a scope of this permit. */
export function scoped<R>(permit: LimiterPermit, work: Work<R>): Work<R> {
  const outer = innermostHeld(runScopes.getStore());
  // Scopes that have ended are cut out, so that work which starts its own successor, over and over, builds no chain.
  if (outer !== undefined) outer.outer = innermostHeld(outer.outer);
  return (context) => runScopes.run({ permit, outer }, work, context);
}

/**
 * Counts the permits held, queues requests, and hands over what is released. Validating options and running work are the
 * limiter's part.
 *
 * Invariants:
 * - The weight held never grows past `maxConcurrent`, but for one request that is heavier and runs alone.
 * - While `hasRoom`, the queue is empty, nothing is paused or closed, and a permit of weight 1 is free.
 * - Waiters precede newcomers: `isFree` is false for a newcomer, unless its priority is higher than all of theirs.
 * - A permit is `waiting` exactly while it is queued; the code that takes it out grants or rejects it synchronously.
 * - A waiter that leaves takes everything along: its timer is cleared, its signal is no longer watched.
 * - `release`, `resize`, `resume` and `abandon` have handed over whatever is free before they return.
 * - Never runs user code while it hands over: settling a promise only schedules it.
 */
export class Semaphore {
  readonly queue: FairQueue<WaitingPermit>;
  /** Whether runs have a scope, in which nested ones are found. */
  readonly detectsNested: boolean;
  readonly #limiter: ObservableLimiter;
  readonly #adaptive: AdaptiveLimit | undefined;
  readonly #maxQueue: number;
  readonly #acquireTimeoutMs: number | undefined;
  readonly #rejectUnmeetable: boolean;
  readonly #lends: boolean;
  /** Whether nothing bounds the wait of a request without options. */
  #isUnbounded: boolean;
  /** What runs without options release. `undefined` where something has to be known of each permit. */
  #sharedPermit: LimiterPermit | undefined;
  /** Whether nothing has to be known of a permit when it is granted and released. */
  #isPlain: boolean;
  readonly #drainRate = new DrainRate();
  /** What the waiters weigh beyond one each. */
  #extraWeight = 0;
  #maxConcurrent: number;
  /** The highest limit so far: no request may be heavier. */
  #highestLimit: number;
  #active = 0;
  #acquired = 0;
  #rejected = 0;
  #paused = false;
  /** What will end the pause, where that is known. */
  #pauseTimer: NodeJS.Timeout | undefined;
  #hasRoom = true;
  #isOpen = true;
  #idle: Condition | undefined;

  constructor(limiter: ObservableLimiter, options: ConcurrencyLimiterOptions) {
    const { adaptive, acquireTimeoutMs, detectNested = false } = options;
    this.#limiter = limiter;
    this.#adaptive = adaptive;
    this.#maxQueue = options.maxQueue ?? Infinity;
    this.#acquireTimeoutMs = acquireTimeoutMs;
    this.#rejectUnmeetable = options.rejectUnmeetable === true;
    this.detectsNested = detectNested !== false;
    this.#lends = detectNested === 'lend';
    this.queue = new FairQueue(options, turnMs);
    this.#isPlain = adaptive === undefined && !this.#lends;
    this.#isUnbounded =
      options.maxQueue === undefined &&
      acquireTimeoutMs === undefined &&
      options.agingMs === undefined &&
      !this.detectsNested;
    this.#maxConcurrent = options.maxConcurrent ?? (adaptive as AdaptiveLimit).limit;
    this.#highestLimit = adaptive?.max ?? this.#maxConcurrent;
    if (adaptive === undefined && !this.detectsNested) {
      this.#sharedPermit = new ReadyPermit(this, 1, undefined);
      this.#sharedPermit.state = 'shared';
    }
  }

  /** Whether a newcomer of weight 1 gets a permit at once. While not, a release hands over, and the drain rate is measured. */
  get hasRoom(): boolean {
    return this.#hasRoom;
  }

  get maxConcurrent(): number {
    return this.#maxConcurrent;
  }

  /** The greatest weight of a request. One above a lowered limit runs alone; an adaptive limit rises again. */
  get maxWeight(): number {
    return this.#highestLimit;
  }

  /** Weight held. */
  get active(): number {
    return this.#active;
  }

  stats(): LimiterStats {
    return Object.freeze({
      maxConcurrent: this.#maxConcurrent,
      active: this.#active,
      queued: this.queue.size,
      acquired: this.#acquired,
      rejected: this.#rejected,
      // Once closed, a pause holds back only those that still wait.
      paused: this.#paused && (this.#isOpen || this.queue.size > 0),
      closed: !this.#isOpen,
    });
  }

  /** Whether a newcomer is next and there is room for it. Without a priority it is next only if the queue is empty. */
  isFree(weight: number, priority = -Infinity, extras?: PermitExtras): boolean {
    return this.#isServing() && this.#fits(weight) && this.queue.isNext(weight, priority, extras?.holder);
  }

  /**
   * The tenant of a request. From the first one on, every permit is charged to a tenant, and none is shared.
   *
   * @throws whatever is wrong with its share
   */
  tenant(name: string, weight: number): Tenant {
    this.#isPlain = false;
    this.#isUnbounded = false;
    this.#sharedPermit = undefined;
    return this.queue.tenant(name, weight);
  }

  /** Takes a permit that is free. */
  take(weight: number, extras: PermitExtras | undefined): ReadyPermit {
    const permit = new ReadyPermit(this, weight, extras);
    if (this.queue.isShared) this.#charge(permit);
    this.#count(permit);
    if (this.#active >= this.#maxConcurrent) this.#saturate();
    // The charge may have put a lighter waiter of another tenant before a heavy one that has no room.
    else if (!this.#isPlain && this.queue.size > 0) this.#admit();
    if (isObserved(this.#limiter.hooks)) emitAcquired(this.#limiter, permit);
    return permit;
  }

  /** Takes the permit that all runs without options share, if one of weight 1 is free and nothing has to be known of it. */
  takeShared(): LimiterPermit | undefined {
    const shared = this.#sharedPermit;
    if (!this.#hasRoom || shared === undefined || isObserved(this.#limiter.hooks)) return undefined;
    this.#active++;
    this.#acquired++;
    if (this.#active >= this.#maxConcurrent) this.#saturate();
    return shared;
  }

  /** A request without options: most of those that wait, so they take a shorter way. `work` is what a run will call. */
  requestPlain(work: WaitingPermit['work']): ReadyPermit | Promise<Granted> {
    if (this.#isUnbounded && this.#active >= this.#maxConcurrent && this.#isServing())
      return this.#wait(1, undefined, work);
    return this.request(1, undefined, work);
  }

  /** A permit if one is free, else the promise of one. `work` is what a run will call. */
  request(
    weight: number,
    extras: PermitExtras | undefined,
    work: WaitingPermit['work'],
  ): ReadyPermit | Promise<Granted> {
    // Only a run ends in its caller's scope, and gives back what it was lent.
    const lender = this.#lends && this.#isOpen && work !== undefined ? enclosing(this) : undefined;
    if (lender !== undefined) {
      if (weight > lender.weight)
        return Promise.reject(
          new RangeError(refusal('weight', `at most ${lender.weight}, as of the run around it`, weight)),
        );
      if (lender.extras?.isLent !== true) return this.#takeLent(lender, weight, extras);
    }
    if (this.isFree(weight, extras?.priority ?? 0, extras)) return this.take(weight, extras);
    return (
      this.#rejectArrival(weight, extras, lender === undefined) ??
      this.#wait(weight, lender === undefined ? extras : { ...extras, lender }, work)
    );
  }

  /** A permit for a nested run, in place of that of the run around it. */
  #takeLent(lender: LimiterPermit, weight: number, extras: PermitExtras | undefined): ReadyPermit {
    const permit = new ReadyPermit(this, weight, { ...extras, lender });
    lender.extras ??= {};
    lender.extras.isLent = true;
    this.#acquired++;
    if (isObserved(this.#limiter.hooks)) emitAcquired(this.#limiter, permit);
    return permit;
  }

  /** Lends a permit that has come back to the next nested run that waits for it. */
  #lendNext(lender: LimiterPermit): void {
    const lent = lender.extras as PermitExtras;
    const [next] = lent.nested ?? [];
    if (next === undefined) return;
    this.#leave(next);
    (next.extras as PermitExtras).lender = lender;
    lent.isLent = true;
    this.#acquired++;
    next.grant();
    // It may have been next, with no room for what it weighs, ahead of a lighter waiter.
    this.#admit();
  }

  /** Counts and reports a request that is rejected on arrival. */
  reject(reason: PermitRejection, error: unknown, extras: PermitContext | undefined): Promise<never> {
    this.#rejected++;
    emitRejected(this.#limiter, reason, error, 0, extras);
    return Promise.reject(error);
  }

  /** Takes a permit back and hands its weight over. */
  release(permit: LimiterPermit, outcome: PermitOutcome): void {
    if (outcome === 'ok' && this.#isPlain) this.#free(permit, outcome);
    else this.#learnAndFree(permit, outcome);
  }

  /** A waiter leaves without a permit, and waiters that its absence makes room for are granted. */
  abandon(permit: WaitingPermit, reason: 'aborted' | 'timeout', cause: unknown): void {
    if (!this.#leave(permit)) return;
    this.#rejectWaiter(permit, reason, () =>
      reason === 'timeout' ? new AcquireTimeoutError(queueFigures(this.#limiter, permit.waitMs)) : cause,
    );
    if (this.queue.size === 0) this.#pauseTimer?.unref();
    this.#admit();
  }

  /** Rejects a waiter that has left the queue; of many at once, most in the next turns. */
  #rejectWaiter(permit: WaitingPermit, reason: PermitRejection, makeError: () => unknown): void {
    this.#rejected++;
    permit.state = reason;
    settleInTurn(() => permit.reject(makeError()));
  }

  /** Raising the limit admits at once; lowering it revokes nothing. */
  resize(maxConcurrent: number): void {
    this.#drainRate.rescale(maxConcurrent / this.#maxConcurrent);
    this.#maxConcurrent = maxConcurrent;
    this.#highestLimit = Math.max(this.#highestLimit, maxConcurrent);
    this.#admit();
    if (this.#active >= maxConcurrent) this.#saturate();
  }

  /** Grants nothing until `resume`; a `timer` that will call it keeps the process alive only while there are waiters. */
  pause(timer: NodeJS.Timeout | undefined): void {
    this.#paused = true;
    this.#hasRoom = false;
    this.#drainRate.end();
    this.#pauseTimer = timer;
    if (this.queue.size === 0) timer?.unref();
    else timer?.ref();
  }

  resume(): void {
    this.#paused = false;
    this.#pauseTimer?.unref();
    this.#pauseTimer = undefined;
    this.#admit();
    if (!this.#hasRoom) this.#saturate();
  }

  /** Settles when nothing is held and the queue is empty. */
  onIdle(): Promise<void> {
    this.#idle ??= new Condition(() => this.#active === 0 && this.queue.size === 0);
    return this.#idle.reached();
  }

  /** Accepts no new requests, and serves the waiters. */
  drain(): void {
    this.#stopAccepting();
    // A paused limiter would never empty. A Retry-After ends by itself, and holds till then.
    if (this.#blockedMs() === 0) this.resume();
    else this.#admit();
  }

  /** Accepts no new requests, and rejects the waiters. */
  rejectAll(): void {
    this.#stopAccepting();
    const { queue } = this;
    queue.stopSharing();
    const closedError = sharedStack(() => new LimiterClosedError(this.#limiter.name));
    for (let next = queue.peek(); next !== undefined; next = queue.peek()) {
      this.#takeNext(next);
      this.#rejectWaiter(next, 'closed', closedError);
    }
    this.#pauseTimer?.unref();
    this.#admit();
  }

  #stopAccepting(): void {
    this.#isOpen = false;
    this.#hasRoom = false;
  }

  /** Whether newcomers may have permits at all. */
  #isServing(): boolean {
    return this.#isOpen && !this.#paused;
  }

  /** Whether the limit has room. A request heavier than a lowered limit has room when nothing else is held. */
  #fits(weight: number): boolean {
    return this.#active + weight <= this.#maxConcurrent || this.#active === 0;
  }

  #count(permit: LimiterPermit): void {
    this.#active += permit.weight;
    this.#acquired++;
    if (this.#adaptive !== undefined) this.#stamp(permit, this.#adaptive);
  }

  /** Charges the tenant of a permit that was free; one that waits is charged as it leaves the queue. */
  #charge(permit: ReadyPermit): void {
    permit.extras ??= {};
    this.queue.charge(permit.extras, permit.weight, permit.extras.holder);
  }

  #stamp(permit: LimiterPermit, adaptive: AdaptiveLimit): void {
    permit.extras ??= {};
    permit.extras.grantedMs = adaptive.clockMs();
  }

  /** Rejects a request that may not be queued, if there is a reason. */
  #rejectArrival(
    weight: number,
    extras: PermitExtras | undefined,
    refusesNested: boolean,
  ): Promise<never> | undefined {
    const limiter = this.#limiter;
    if (!this.#isOpen) return this.reject('closed', new LimiterClosedError(limiter.name), extras);
    if (this.detectsNested && refusesNested && enclosing(this) !== undefined)
      return this.reject('nested', new NestedAcquireError(limiter.name), extras);
    const timeoutMs = extras?.timeoutMs ?? this.#acquireTimeoutMs;
    if (this.queue.size >= this.#maxQueue) {
      const retryAfterMs = this.#estimateMs(weight, extras);
      const error = new QueueFullError({ ...queueFigures(limiter, 0), retryAfterMs });
      return this.reject('queue-full', error, extras);
    }
    if (timeoutMs === 0)
      return this.reject('timeout', new AcquireTimeoutError(queueFigures(limiter, 0)), extras);
    if (timeoutMs === undefined || !this.#rejectUnmeetable) return undefined;
    // A Retry-After is known, measured or not.
    if (!this.#drainRate.isKnown && this.#blockedMs() <= timeoutMs) return undefined;
    const retryAfterMs = this.#estimateMs(weight, extras);
    if (retryAfterMs <= timeoutMs) return undefined;
    const error = new DeadlineUnmeetableError({ ...queueFigures(limiter, 0), retryAfterMs, timeoutMs });
    return this.reject('deadline', error, extras);
  }

  /**
   * How long a request arriving now would wait, in whole milliseconds: until the weight that it and those ahead of it
   * need has been released, and any Retry-After is over.
   */
  #estimateMs(weight: number, extras: PermitExtras | undefined): number {
    return this.#estimateBehind(this.queue.aheadOf(extras?.priority, extras?.holder), weight);
  }

  /** Where a waiter stands. */
  placeOf(permit: WaitingPermit): QueuePlace {
    const ahead = this.queue.aheadOfQueued(permit);
    return { position: ahead + 1, estimatedWaitMs: this.#estimateBehind(ahead, permit.weight) };
  }

  #estimateBehind(ahead: number, weight: number): number {
    const { size } = this.queue;
    const meanWeight = size === 0 ? 0 : (size + this.#extraWeight) / size;
    const missing = ahead * meanWeight + weight + this.#active - this.#maxConcurrent;
    const blockedMs = this.#blockedMs();
    // Behind a Retry-After there may be room enough.
    const drainMs =
      blockedMs > 0 && missing <= 0
        ? 0
        : this.#drainRate.msFor(Math.max(weight, missing), this.#active, this.#maxConcurrent);
    return Math.ceil(blockedMs + drainMs);
  }

  #blockedMs(): number {
    return this.#adaptive?.blockedForMs ?? 0;
  }

  #wait(weight: number, extras: PermitExtras | undefined, work: WaitingPermit['work']): Promise<Granted> {
    const permit = new WaitingPermit(this, weight, extras, work);
    return observeWait(this.#limiter, permit, this.#enqueue(permit));
  }

  /** Queues a permit; its signal must not be aborted yet. The promise settles as it is granted or rejected. */
  #enqueue(permit: WaitingPermit): Promise<Granted> {
    if (this.#hasRoom) this.#saturate();
    permit.clockMs = wholeTurnMs();
    const answer = new Promise<Granted>((resolve) => {
      permit.settle = resolve;
    });
    if (permit.extras === undefined && this.#isUnbounded) this.queue.push(permit);
    else this.#enqueueBounded(permit);
    this.#pauseTimer?.ref();
    return answer;
  }

  #enqueueBounded(permit: WaitingPermit): void {
    permit.extras ??= {};
    const { extras } = permit;
    const { timeoutMs = this.#acquireTimeoutMs, signal, priority = 0, holder, watch, lender } = extras;
    // First: the signal is the host's, and may throw.
    if (signal !== undefined) watchAbort(signal, permit);
    if (watch !== undefined) watch.readPlace = () => permit.place();
    if (lender !== undefined) {
      lender.extras ??= {};
      lender.extras.nested ??= new Set();
      lender.extras.nested.add(permit);
    }
    if (timeoutMs !== undefined) extras.timer = setTimeout(onTimeout, timeoutMs, permit);
    this.#extraWeight += permit.weight - 1;
    this.queue.pushAt(permit, priority, holder);
    // It may be next. Or only its tenant's cap holds it back, which leaves the room to others.
    if (this.queue.isShared) this.#admit();
  }

  /** Takes the next waiter out, as `peek` has just returned it. */
  #takeNext(next: WaitingPermit): void {
    this.queue.take(next);
    if (next.extras === undefined) next.clockMs = (wholeTurnMs() - next.clockMs) | 0;
    else this.#endWait(next, next.extras);
  }

  /** Takes a waiter out before its turn. Returns whether it was in the queue. */
  #leave(permit: WaitingPermit): boolean {
    if (permit.extras === undefined || !this.queue.remove(permit)) return false;
    this.#endWait(permit, permit.extras);
    return true;
  }

  /** Clears what bounded the wait of a permit that has left the queue. */
  #endWait(permit: WaitingPermit, extras: PermitExtras): void {
    const { timer, signal, lender } = extras;
    permit.clockMs = (wholeTurnMs() - permit.clockMs) | 0;
    this.#extraWeight -= permit.weight - 1;
    if (timer !== undefined) clearTimeout(timer);
    if (signal !== undefined) unwatchAbort(signal, permit);
    if (lender === undefined) return;
    lender.extras?.nested?.delete(permit);
    extras.lender = undefined;
  }

  #free(permit: LimiterPermit, outcome: PermitOutcome): void {
    this.#active -= permit.weight;
    if (!this.#hasRoom) {
      this.#drainRate.note(permit.weight, this.#active, this.#maxConcurrent);
      this.#admit();
    } else if (this.#active === 0) this.#idle?.check();
    const limiter = this.#limiter;
    // On the hottest path there is one check less.
    if (limiter.hooks.hasAnyListeners || RELEASED.hasSubscribers) emitReleased(limiter, permit, outcome);
  }

  /** The adaptive limit gets its sample before the permit is freed: the next waiter is admitted under the new limit. */
  #learnAndFree(permit: LimiterPermit, outcome: PermitOutcome): void {
    if (outcome !== 'dropped' && outcome !== 'ignored' && outcome !== 'ok') {
      // A misspelt outcome must not cost the permit.
      this.#learnAndFree(permit, 'ignored');
      throw new TypeError(refusal('outcome', '"ok", "dropped" or "ignored"', outcome));
    }
    try {
      if (this.#adaptive !== undefined) this.#sample(permit, outcome, this.#adaptive);
    } finally {
      this.#end(permit, outcome);
    }
  }

  /** Frees a permit that its holder has released; one that is lent, when it comes back. */
  #end(permit: LimiterPermit, outcome: PermitOutcome): void {
    const { extras } = permit;
    if (extras?.isLent) {
      extras.outcome = outcome;
      return;
    }
    const lender = extras?.lender;
    if (lender === undefined) {
      if (extras !== undefined) this.queue.settle(extras, permit.weight);
      // There may be room under its tenant's cap.
      if (this.#hasRoom && this.queue.peek() !== undefined) this.#saturate();
      this.#free(permit, outcome);
      return;
    }
    const lent = lender.extras as PermitExtras;
    lent.isLent = false;
    if (lender.state === 'held') this.#lendNext(lender);
    else this.#end(lender, lent.outcome as PermitOutcome);
    if (isObserved(this.#limiter.hooks)) emitReleased(this.#limiter, permit, outcome);
  }

  #sample(permit: LimiterPermit, outcome: PermitOutcome, adaptive: AdaptiveLimit): void {
    // While there are waiters the limit binds, also where the next is too heavy for what is left of it.
    const binds = this.queue.size > 0 && !this.#paused;
    const inFlight = binds ? Math.max(this.#active, this.#maxConcurrent) : this.#active;
    const startedMs = permit.extras?.grantedMs;
    if (startedMs !== undefined) adaptive.onSample({ startedMs, outcome, inFlight });
  }

  /** From now on a newcomer has to wait. */
  #saturate(): void {
    this.#hasRoom = false;
    // The pace of releases means nothing while nothing is granted.
    if (!this.#paused) this.#drainRate.begin();
  }

  /** Hands permits to the waiters, in order, as far as they go. */
  #admit(): void {
    const { queue } = this;
    while (this.#active < this.#maxConcurrent) {
      const next = queue.peek();
      if (next === undefined) {
        this.#desaturate();
        return;
      }
      if (this.#paused) return;
      // Only a waiter with extras may be heavier than 1, or aborted.
      if (next.extras !== undefined && !this.#admits(next, next.extras.signal)) {
        if (next.state === 'waiting') return;
        continue;
      }
      this.#takeNext(next);
      next.grant();
      this.#count(next);
    }
  }

  /** Whether the next waiter may have its permit now. If not, it waits on, or has been rejected. */
  #admits(next: WaitingPermit, signal: AbortSignal | undefined): boolean {
    if (!this.#fits(next.weight)) return false;
    if (!signal?.aborted) return true;
    // A listener of that signal, ahead of ours, made room: the abort came first all the same.
    this.#leave(next);
    this.#rejectWaiter(next, 'aborted', () => signal.reason);
    return false;
  }

  /** The queue is empty and there is room. */
  #desaturate(): void {
    this.#idle?.check();
    if (!this.#isServing()) return;
    this.#hasRoom = true;
    this.#drainRate.end();
  }
}

const onTimeout = (permit: WaitingPermit): void => permit.semaphore.abandon(permit, 'timeout', undefined);

/** Releases a permit of any limiter. An error of a foreign one must not cost a call its result. */
export function releasePermit(permit: Permit | undefined, outcome?: PermitOutcome): void {
  try {
    permit?.release(outcome);
  } catch {}
}

/** Releases a permit that was not used, so that its request is charged when it is used, and once. */
export function returnPermit(permit: Permit | undefined): void {
  const isOurs = permit instanceof ReadyPermit || permit instanceof WaitingPermit;
  if (isOurs && permit.extras !== undefined) refund(permit.extras);
  try {
    permit?.[UNUSED]?.();
  } catch {}
  releasePermit(permit, 'ignored');
}

/** The signal that aborts when the permit is lost, as far as a foreign limiter gives one. Never throws. */
export function lossSignalOf(permit: Permit | undefined): AbortSignal | undefined {
  try {
    const signal = permit?.signal;
    return signal === undefined ? undefined : abortSignal('permit.signal', signal);
  } catch {
    return undefined;
  }
}
