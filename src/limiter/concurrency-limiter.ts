import {
  DrainTimeoutError,
  LimiterClosedError,
  NestedAcquireError,
  type PipelinePoolError,
} from '../errors.js';
import { channels } from '../hooks/diagnostics.js';
import type { PermitOutcome, PermitRejection } from '../hooks/events.js';
import { LifecycleHooks } from '../hooks/lifecycle-hooks.js';
import { withDeadline } from '../internal/deadline.js';
import {
  callable,
  options as checkOptions,
  durationMs,
  flag,
  refusal,
  wholeNumber,
} from '../internal/validate.js';
import type { AdaptiveLimit } from './adaptive-limit.js';
import { Admission } from './admission.js';
import type { AcquireOptions, Limiter, LimiterStats, Permit } from './limiter.js';
import {
  type ConcurrencyLimiterOptions,
  checkAcquireOptions,
  checkLimiterOptions,
  ownOptions,
} from './limiter-options.js';
import {
  type Granted,
  type LimiterPermit,
  type PermitExtras,
  type PermitIssuer,
  ReadyPermit,
  WaitingPermit,
} from './permit.js';
import { reasonOf, tellAcquired, tellRejected, tellReleased, tellWaiting } from './permit-events.js';
import { Runner, runPlain, standInFor, type Work } from './runner.js';

const { 'permit:acquired': ACQUIRED, 'permit:released': RELEASED } = channels;

/**
 * A fair semaphore: at most `maxConcurrent` permits at once, given in the order in which they were asked for.
 *
 * Invariants:
 * - The weight held never grows past `maxConcurrent`. Shrinking revokes nothing, so it may stand above it for a while;
 *   a waiter heavier than a shrunken limit then runs alone.
 * - Nobody overtakes: while somebody waits, everybody waits behind, `tryAcquire` included, and a light request never
 *   passes a heavy one. Priority and tenants decide the order (see `WaitQueue`), size never does.
 * - At rest (nothing held) nobody waits, unless paused.
 * - A waiter that gives up leaves in that step: its promise is rejected, its timer and listener are gone, and whoever
 *   could go on without it does.
 * - `release` has handed over before it returns.
 *
 * @example
 * const limiter = new ConcurrencyLimiter({ maxConcurrent: 10, maxQueue: 100 });
 * const answer = await limiter.run(({ signal }) => research(question, signal), { signal, timeoutMs: 30_000 });
 */
export class ConcurrencyLimiter implements Limiter {
  readonly name: string;
  readonly hooks: LifecycleHooks;
  readonly #admission: Admission;
  readonly #runner: Runner;
  readonly #adaptive: AdaptiveLimit | undefined;
  readonly #undrive: (() => void) | undefined;
  readonly #issuer: PermitIssuer = {
    takeBack: (permit, outcome) => {
      if (outcome === 'ok' && this.#adaptive === undefined) this.#free(permit, outcome);
      else this.#takeBack(permit, outcome);
    },
    abandon: (permit, reason) => this.#admission.giveUp(permit, 'aborted', reason),
  };
  /** Whether nobody is refused who asks without options, while the limiter is open. */
  readonly #refusesNobody: boolean;
  /** What a run gives back that asked for nothing. There is none where something has to be known of each permit. */
  readonly #plain: LimiterPermit | undefined;

  /** @throws {TypeError | RangeError} naming the option that is wrong, and its value */
  constructor(given: ConcurrencyLimiterOptions) {
    checkLimiterOptions(given);
    const { adaptive } = given;
    this.name = given.name ?? 'limiter';
    this.hooks = given.hooks ?? new LifecycleHooks();
    this.#runner = new Runner(given.detectNested === true);
    this.#adaptive = adaptive;
    const maxConcurrent = given.maxConcurrent ?? (adaptive as AdaptiveLimit).limit;
    this.#admission = new Admission(this, maxConcurrent, given);
    this.#refusesNobody = this.#admission.isUnbounded && given.detectNested !== true;
    if (adaptive === undefined && given.detectNested !== true) this.#plain = standInFor(this.#issuer);
    this.#undrive = adaptive?.drive(this);
  }

  /** The limit. Growing it admits at once; shrinking it revokes nothing. */
  get maxConcurrent(): number {
    return this.#admission.maxConcurrent;
  }

  set maxConcurrent(value: number) {
    const previous = this.#admission.maxConcurrent;
    wholeNumber('maxConcurrent', value);
    if (value === previous) return;
    this.#admission.resize(value);
    if (this.hooks.hears('limit:changed')) {
      this.hooks.emit('limit:changed', { source: this.name, previous, maxConcurrent: value });
    }
  }

  /** Weight held now. */
  get activeCount(): number {
    return this.#admission.active;
  }

  /** Waiters now. */
  get queuedCount(): number {
    return this.#admission.queued;
  }

  /** Counts, as they stand. */
  stats(): LimiterStats {
    return this.#admission.stats();
  }

  /**
   * Waits for a permit.
   *
   * Rejects with `signal.reason`, `AcquireTimeoutError`, `QueueFullError`, `DeadlineUnmeetableError`,
   * `LimiterClosedError`, `NestedAcquireError`, or a `TypeError` or `RangeError` naming a wrong option.
   *
   * @example
   * using permit = await limiter.acquire({ signal, timeoutMs: 5_000 });
   */
  acquire(options?: AcquireOptions): Promise<Permit> {
    // Small enough to be inlined where it is called; what is rare is elsewhere.
    if (options === undefined && this.#admission.hasRoom) return this.#take(1, undefined).promised();
    return Promise.resolve(this.#request(options, undefined)) as Promise<Permit>;
  }

  /** A permit, if there is one for the taking and nobody waits for it. */
  tryAcquire(options?: { readonly weight?: number }): Permit | undefined {
    if (options !== undefined) {
      checkOptions('tryAcquire', options, ['weight']);
      if (options.weight !== undefined) wholeNumber('weight', options.weight, 1, this.#heaviest());
    }
    const weight = options?.weight ?? 1;
    return this.#admission.isFree(weight) ? this.#take(weight, undefined) : undefined;
  }

  /**
   * Runs `fn` under a permit and gives the permit back when it ends, however it ends.
   *
   * Settles as `fn` does; rejects as `acquire` does where no permit was given, and then `fn` was not called.
   * `options.signal` ends the waiting; `fn` gets it and has to heed it itself.
   */
  run<R>(fn: Work<R>, options?: AcquireOptions): Promise<R> {
    if (typeof fn !== 'function') return Promise.reject(notAFunction(fn));
    const plain = this.#plain;
    if (options === undefined && this.#admission.hasRoom && plain !== undefined && !this.#isHeard()) {
      this.#admission.takePlain();
      return runPlain(plain, fn);
    }
    const permit = this.#request(options, fn);
    if (permit instanceof ReadyPermit) return this.#runner.run(permit, fn);
    return permit.then(this.#begin) as Promise<R>;
  }

  /**
   * Gives a function that runs under this limiter each time it is called.
   *
   * @example
   * const limitedFetch = limiter.wrap((url: string) => fetch(url));
   */
  wrap<A extends unknown[], R>(
    fn: (...args: A) => R | PromiseLike<R>,
    options?: AcquireOptions,
  ): (...args: A) => Promise<R> {
    callable('fn', fn);
    if (options !== undefined) checkAcquireOptions(options, this.#heaviest());
    const own = options && ownOptions(options);
    return (...args) => this.run(() => fn(...args), own);
  }

  /**
   * Gives no further permits until `resume`. Permits held are not touched, requests queue up.
   *
   * A `timer` that will call `resume` keeps the process alive only while somebody waits, if it is told here.
   *
   * @example
   * limiter.pause(setTimeout(() => limiter.resume(), 5_000));
   */
  pause(timer?: NodeJS.Timeout): void {
    if (timer !== undefined && typeof timer?.unref !== 'function') {
      throw new TypeError(refusal('timer', 'what setTimeout gave', timer));
    }
    this.#admission.pause(timer);
  }

  /** Ends a `pause`. */
  resume(): void {
    this.#admission.resume();
  }

  /** Settles when nothing is held and nobody waits. */
  onIdle(): Promise<void> {
    return this.#admission.onIdle();
  }

  /**
   * Takes no further requests, and settles when nothing is held any more.
   *
   * Those who wait are turned away with `LimiterClosedError`, or served first with `drain`. With `timeoutMs` it rejects
   * with `DrainTimeoutError` when that time is up, and turns away whoever still waits. A second call may turn a drain
   * into a close at once.
   */
  async close(options: { readonly drain?: boolean; readonly timeoutMs?: number } = {}): Promise<void> {
    const { drain, timeoutMs } = checkOptions('close', options, ['drain', 'timeoutMs']);
    if (drain !== undefined) flag('drain', drain);
    if (timeoutMs !== undefined) durationMs('timeoutMs', timeoutMs);
    if (drain) this.#admission.drain();
    else this.#turnAllAway();
    await withDeadline(this.onIdle(), timeoutMs, (elapsedMs) => {
      this.#turnAllAway();
      return new DrainTimeoutError(this.name, elapsedMs, this.activeCount);
    });
    this.#turnAllAway();
  }

  /** The weight that can never be had begins above this. An adaptive limit that is low now comes up again. */
  #heaviest(): number {
    return this.#adaptive?.max ?? this.maxConcurrent;
  }

  #take(weight: number, extras: PermitExtras | undefined): ReadyPermit {
    const permit = new ReadyPermit(this.#issuer, weight, extras);
    this.#admission.take(permit);
    if (this.#isHeard()) tellAcquired(this, permit);
    return permit;
  }

  /** Whether anybody would be told of a permit. A method, since V8 reads a private getter by a call into its runtime. */
  #isHeard(): boolean {
    return this.hooks.hasListeners || ACQUIRED.hasSubscribers || RELEASED.hasSubscribers;
  }

  /** Begins a `run` that had to wait: one function for all of them, and the caller's context from its own `then`. */
  readonly #begin = (ticket: Granted): Promise<unknown> => this.#runner.runNext(ticket as number);

  /** Any request: a permit where one is free, else the promise of one. */
  #request(options: AcquireOptions | undefined, work: WaitingPermit['work']): ReadyPermit | Promise<Granted> {
    if (options !== undefined) return this.#requestWith(options, work);
    if (this.#refusesNobody && this.#admission.isFull) return this.#wait(1, undefined, work);
    return this.#takeOrWait(1, undefined, work);
  }

  #requestWith(options: AcquireOptions, work: WaitingPermit['work']): ReadyPermit | Promise<Granted> {
    try {
      checkAcquireOptions(options, this.#heaviest());
    } catch (error) {
      return Promise.reject(error);
    }
    // Read once: the caller may use the object again for the next request.
    const { signal, timeoutMs, priority = 0, weight = 1, tenant, taskId, requestId } = options;
    if (signal?.aborted) return this.#refuse('aborted', signal.reason, options);
    const extras = {
      signal,
      timeoutMs,
      priority,
      tenant,
      taskId,
      requestId,
      lane: undefined,
      before: undefined,
    };
    return this.#takeOrWait(weight, extras, work);
  }

  /** A permit where one is free, else a place in the queue, unless something speaks against it. */
  #takeOrWait(
    weight: number,
    extras: PermitExtras | undefined,
    work: WaitingPermit['work'],
  ): ReadyPermit | Promise<Granted> {
    if (this.#admission.isFree(weight, extras?.priority ?? 0)) return this.#take(weight, extras);
    const objection = this.#objection(weight, extras);
    if (objection !== undefined) return this.#refuse(reasonOf(objection), objection, extras);
    return this.#wait(weight, extras, work);
  }

  #wait(weight: number, extras: PermitExtras | undefined, work: WaitingPermit['work']): Promise<Granted> {
    const permit = new WaitingPermit(this.#issuer, weight, extras, work);
    return tellWaiting(this, permit, this.#admission.enter(permit));
  }

  /** Why nobody, or not this caller, may wait. */
  #objection(weight: number, extras: PermitExtras | undefined): PipelinePoolError | undefined {
    if (!this.#admission.isOpen) return new LimiterClosedError(this.name);
    if (this.#runner.isInside(this.#issuer)) return new NestedAcquireError(this.name);
    return this.#admission.objection(weight, extras);
  }

  #refuse(reason: PermitRejection, error: unknown, options: AcquireOptions | undefined): Promise<never> {
    this.#admission.reject();
    tellRejected(this, reason, error, 0, options);
    return Promise.reject(error);
  }

  #turnAllAway(): void {
    this.#admission.turnAllAway();
    this.#undrive?.();
  }

  /** Learns from the outcome before the permit is freed: the next waiter is let in under the new limit. */
  #takeBack(permit: LimiterPermit, outcome: PermitOutcome): void {
    if (outcome !== 'dropped' && outcome !== 'ignored' && outcome !== 'ok') {
      // A misspelt outcome must not cost the permit.
      this.#takeBack(permit, 'ignored');
      throw new TypeError(refusal('outcome', '"ok", "dropped" or "ignored"', outcome));
    }
    try {
      if (this.#adaptive !== undefined) this.#sample(permit, outcome, this.#adaptive);
    } finally {
      this.#free(permit, outcome);
    }
  }

  #free(permit: LimiterPermit, outcome: PermitOutcome): void {
    this.#admission.free(permit);
    if (this.hooks.hasListeners || RELEASED.hasSubscribers) tellReleased(this, permit, outcome);
  }

  #sample(permit: LimiterPermit, outcome: PermitOutcome, adaptive: AdaptiveLimit): void {
    // While somebody waits the limit binds, also where the next is too heavy for what is left of it.
    const { queued, isPaused, active, maxConcurrent } = this.#admission;
    const inFlight = queued > 0 && !isPaused ? Math.max(active, maxConcurrent) : active;
    adaptive.onSample({ startedMs: permit.extras?.grantedMs as number, outcome, inFlight });
  }
}

const notAFunction = (fn: unknown): TypeError => new TypeError(refusal('fn', 'a function', fn));
