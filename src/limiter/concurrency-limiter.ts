import { DrainTimeoutError } from '../errors.js';
import { LifecycleHooks } from '../hooks/lifecycle-hooks.js';
import { linkedController, withDeadline } from '../internal/abort.js';
import { type Check, callable, checkEach, refusal, text, wholeNumber } from '../internal/validate.js';
import type { FairQueue } from '../queue/fair-queue.js';
import { QUEUE_WATCH } from '../queue/options.js';
import type { AcquireOptions, Limiter, LimiterStats, MapContext, Permit } from './limiter.js';
import {
  type ConcurrencyLimiterOptions,
  checkAcquireOptions,
  checkCloseOptions,
  checkLimiterOptions,
} from './options.js';
import {
  completionOf,
  type Granted,
  type PermitExtras,
  ReadyPermit,
  type RunCompletion,
  Semaphore,
  scoped,
  startRun,
  startSharedRun,
  takeCompletion,
  type WaitingPermit,
  type Work,
} from './semaphore.js';

/*
 * The limiter. In this folder: `semaphore.ts` grants and queues permits, `options.ts` checks what callers pass,
 * `events.ts` emits, `adaptive-limit.ts` adjusts the limit, `limiter.ts` is the interface that gates and managers need.
 */

/**
 * A fair semaphore: admits at most `maxConcurrent` permits at once, in FIFO order. Use it to bound how much work runs at
 * the same time, with priorities, fair sharing between tenants, weights, timeouts, `AbortSignal`s and backpressure.
 *
 * Guarantees:
 * - The weight held never grows past `maxConcurrent`. Lowering the limit revokes nothing, so it may stand above the new
 *   limit for a while; a request heavier than a lowered limit waits and then runs alone.
 * - No overtaking: while there are waiters, newcomers queue behind them, `tryAcquire` included, and a light request never
 *   passes a heavy one of its priority. Priority decides the order, and tenants of one priority share by `fairBy`.
 * - A waiter that aborts or times out leaves at once: its promise rejects, its timer and its listener are removed, and
 *   waiters that its absence makes room for are granted.
 * - `release` has granted the next waiter before it returns.
 *
 * The constructor throws a `TypeError` or `RangeError` that names the wrong option and its value.
 *
 * @example
 * const limiter = new ConcurrencyLimiter({ maxConcurrent: 10, maxQueue: 100 });
 * const answer = await limiter.run(({ signal }) => research(question, signal), { signal, timeoutMs: 30_000 });
 */
export class ConcurrencyLimiter implements Limiter, AsyncDisposable {
  /** The `source` in events and errors. */
  readonly name: string;
  /** Where its events are emitted. */
  readonly hooks: LifecycleHooks;
  readonly #semaphore: Semaphore;
  /** Ends the control by the adaptive limit. */
  readonly #detach: (() => void) | undefined;

  constructor(options: ConcurrencyLimiterOptions) {
    checkLimiterOptions(options);
    this.name = options.name ?? 'limiter';
    this.hooks = options.hooks ?? new LifecycleHooks();
    this.#semaphore = new Semaphore(this, options);
    this.#detach = options.adaptive?.attach(this);
  }

  /** The limit. Raising it admits waiters at once; lowering it revokes nothing. A whole number from 1. */
  get maxConcurrent(): number {
    return this.#semaphore.maxConcurrent;
  }

  set maxConcurrent(value: number) {
    const previous = this.#semaphore.maxConcurrent;
    wholeNumber('maxConcurrent', value);
    if (value === previous) return;
    this.#semaphore.resize(value);
    if (this.hooks.hasListeners('limit:changed')) {
      this.hooks.emit('limit:changed', { source: this.name, previous, maxConcurrent: value });
    }
  }

  /** Weight held now. */
  get activeCount(): number {
    return this.#semaphore.active;
  }

  /** Waiters now. */
  get queuedCount(): number {
    return this.#semaphore.queue.size;
  }

  /** @internal For the diagnosis: the tenants, and who waits for room under a cap. */
  get queue(): FairQueue<WaitingPermit> {
    return this.#semaphore.queue;
  }

  /** A frozen snapshot of the counts. */
  stats(): LimiterStats {
    return this.#semaphore.stats();
  }

  /**
   * Waits for a permit. Release it when the work is over.
   *
   * Rejects with `signal.reason`, `AcquireTimeoutError`, `QueueFullError`, `DeadlineUnmeetableError`,
   * `LimiterClosedError`, `NestedAcquireError`, or a `TypeError` or `RangeError` that names a wrong option.
   *
   * @example
   * using permit = await limiter.acquire({ signal, timeoutMs: 5_000 });
   */
  acquire(options?: AcquireOptions): Promise<Permit> {
    // Small enough to be inlined by its caller; rare cases are in functions of their own.
    if (options === undefined && this.#semaphore.hasRoom)
      return this.#semaphore.take(1, undefined).promised();
    return Promise.resolve(this.#request(options, undefined)) as Promise<Permit>;
  }

  /**
   * A permit if one is free and there are no waiters, else `undefined`. Never waits. With a `tenant`, the permit counts as
   * one of its own, within its cap.
   *
   * @throws {TypeError | RangeError} naming the wrong option
   * @throws whatever `tenants` throws
   */
  tryAcquire(options?: Pick<AcquireOptions, 'weight' | 'tenant'>): Permit | undefined {
    const semaphore = this.#semaphore;
    if (options === undefined && semaphore.hasRoom) return semaphore.take(1, undefined);
    if (options !== undefined) {
      const weight: Check = (option, value) => wholeNumber(option, value, 1, semaphore.maxWeight);
      checkEach('tryAcquire', options, { weight, tenant: text });
    }
    const { weight = 1, tenant } = options ?? {};
    const extras = tenant === undefined ? undefined : { tenant, holder: semaphore.tenant(tenant, weight) };
    return semaphore.isFree(weight, undefined, extras) ? semaphore.take(weight, extras) : undefined;
  }

  /**
   * Runs `fn` under a permit, and releases the permit when `fn` ends, however it ends.
   *
   * Settles as `fn` does. Rejects as `acquire` does where no permit was granted; `fn` was not called then.
   * `options.signal` ends the wait; `fn` receives it and has to honor it itself. A failure of `fn` counts as `ignored` for
   * an adaptive limit, unless `fn` has released the permit with another outcome.
   *
   * @example
   * const page = await limiter.run(({ signal }) => fetch(url, { signal }), { signal, priority: 1 });
   */
  run<R>(fn: Work<R>, options?: AcquireOptions): Promise<R> {
    if (typeof fn !== 'function') return Promise.reject(notAFunction(fn));
    if (options === undefined) {
      const shared = this.#semaphore.takeShared();
      if (shared !== undefined) return startSharedRun(shared, fn);
    }
    const permit = this.#request(options, fn);
    if (permit instanceof ReadyPermit) return this.#start(completionOf(permit), permit, fn);
    return permit.then(this.#startGranted) as Promise<R>;
  }

  /**
   * Returns a function that runs `fn` under this limiter each time it is called.
   *
   * @example
   * const limitedFetch = limiter.wrap((url: string) => fetch(url));
   */
  wrap<A extends unknown[], R>(
    fn: (...args: A) => R | PromiseLike<R>,
    options?: AcquireOptions,
  ): (...args: A) => Promise<R> {
    const own = this.#ownOptions(fn, options);
    return (...args) => this.run(() => fn(...args), own);
  }

  /**
   * Runs `fn` for each item under a permit of its own, and fulfills with the results in the order of the items.
   *
   * Items are taken from the iterable one at a time: the next one is queued when the previous one has its permit, so a
   * long list neither fills the queue nor keeps other callers waiting behind all of it. `options` apply to each item.
   *
   * When an item fails, or `options.signal` aborts, no further item starts and the signal that running items received
   * aborts; the promise rejects with the first failure once all running items have settled.
   * An abort after the last item has started matters only to the items: without a failure, their results are returned.
   *
   * @example
   * const pages = await limiter.map(urls, (url, { signal }) => fetch(url, { signal }), { timeoutMs: 30_000 });
   */
  async map<T, R>(
    items: Iterable<T>,
    fn: (item: T, context: MapContext) => R | PromiseLike<R>,
    options?: AcquireOptions,
  ): Promise<Awaited<R>[]> {
    const given = this.#ownOptions(fn, options);
    const { controller, unlink } = linkedController(given?.signal);
    const { signal } = controller;
    const own = { ...given, signal };
    const results: Awaited<R>[] = [];
    const ends: Promise<void>[] = [];
    const failures: unknown[] = [];
    const fail = (error: unknown): void => {
      failures.push(error);
      controller.abort(error);
    };
    try {
      let index = 0;
      for (const item of items) {
        await new Promise<void>((started) => {
          const at = index++;
          const end = this.run(async ({ permit }) => {
            started();
            try {
              results[at] = await fn(item, { index: at, signal, permit });
            } catch (error) {
              // Before the permit is released: what is queued must not start.
              fail(error);
              throw error;
            }
          }, own).catch(fail);
          ends.push(end);
          void end.then(started);
        });
        if (signal.aborted) break;
      }
      if (signal.aborted) fail(signal.reason);
    } catch (error) {
      // The iterable threw.
      fail(error);
    }
    await Promise.all(ends);
    unlink();
    if (failures.length > 0) throw failures[0];
    return results;
  }

  /**
   * Grants no further permits until `resume`. Held permits are not affected, requests queue up.
   *
   * Pass the `timer` that will call `resume`, if there is one: it then keeps the process alive only while there are waiters.
   *
   * @example
   * limiter.pause(setTimeout(() => limiter.resume(), 5_000));
   */
  pause(timer?: NodeJS.Timeout): void {
    if (timer !== undefined && typeof timer?.unref !== 'function') {
      throw new TypeError(refusal('timer', 'what setTimeout returned', timer));
    }
    this.#semaphore.pause(timer);
  }

  /** Ends a `pause`, and admits waiters as far as the limit allows. */
  resume(): void {
    this.#semaphore.resume();
  }

  /** Fulfills when nothing is held and there are no waiters. */
  onIdle(): Promise<void> {
    return this.#semaphore.onIdle();
  }

  /**
   * Accepts no further requests, and fulfills when nothing is held any more.
   *
   * Waiters are rejected with `LimiterClosedError`, or served first with `drain`. With `timeoutMs` it rejects with
   * `DrainTimeoutError` when that time is up, and rejects the remaining waiters. A second call may turn a drain into an
   * immediate close.
   */
  async close(
    options: { readonly drain?: boolean | undefined; readonly timeoutMs?: number | undefined } = {},
  ): Promise<void> {
    const { drain, timeoutMs } = checkCloseOptions(options);
    if (drain) this.#semaphore.drain();
    else this.#rejectAll();
    await withDeadline(this.onIdle(), timeoutMs, (elapsedMs) => {
      this.#rejectAll();
      return new DrainTimeoutError(this.name, elapsedMs, this.activeCount);
    });
    this.#rejectAll();
  }

  /** `close()`: rejects the waiters, and waits for what is held. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** Checks what `wrap` and `map` take, and copies the options, inherited ones included: the caller may change them. */
  #ownOptions(fn: unknown, options: AcquireOptions | undefined): AcquireOptions | undefined {
    callable('fn', fn);
    if (options === undefined) return undefined;
    checkAcquireOptions(options, this.#semaphore.maxWeight);
    const own: Record<string, unknown> = {};
    for (const option in options) own[option] = options[option as keyof AcquireOptions];
    return own;
  }

  /** Any request: a permit if one is free, else the promise of one. */
  #request(options: AcquireOptions | undefined, work: WaitingPermit['work']): ReadyPermit | Promise<Granted> {
    return options === undefined ? this.#semaphore.requestPlain(work) : this.#requestWith(options, work);
  }

  #requestWith(options: AcquireOptions, work: WaitingPermit['work']): ReadyPermit | Promise<Granted> {
    try {
      checkAcquireOptions(options, this.#semaphore.maxWeight);
      // Read once: the caller may reuse the object for the next request.
      const { signal, timeoutMs, priority = 0, weight = 1, tenant, taskId, requestId } = options;
      if (signal?.aborted) return this.#semaphore.reject('aborted', signal.reason, options);
      const extras: PermitExtras = {
        signal,
        timeoutMs,
        priority,
        tenant,
        taskId,
        requestId,
        queue: undefined,
        previous: undefined,
        holder: undefined,
        order: 0,
      };
      const watch = options[QUEUE_WATCH];
      if (watch !== undefined) extras.watch = watch;
      if (tenant !== undefined) extras.holder = this.#semaphore.tenant(tenant, weight);
      return this.#semaphore.request(weight, extras, work);
    } catch (error) {
      return Promise.reject(error);
    }
  }

  /** Starts a run that had to wait: one function for all of them, and the caller's context from its own `then`. */
  readonly #startGranted = (id: Granted): Promise<unknown> => {
    const completion = takeCompletion(id as number);
    const permit = completion.permit as WaitingPermit;
    const work = permit.work as Work<unknown>;
    permit.work = undefined;
    return this.#start(completion, permit, work);
  };

  /** Starts a run, unless its signal aborted between the grant and now. */
  #start<R>(completion: RunCompletion, permit: ReadyPermit | WaitingPermit, work: Work<R>): Promise<R> {
    const signal = permit.extras?.signal;
    if (!signal?.aborted) {
      return startRun(
        completion,
        { signal, permit },
        this.#semaphore.detectsNested ? scoped(permit, work) : work,
      );
    }
    completion.finish('ignored');
    return Promise.reject(signal.reason);
  }

  #rejectAll(): void {
    this.#semaphore.rejectAll();
    this.#detach?.();
  }
}

const notAFunction = (fn: unknown): TypeError => new TypeError(refusal('fn', 'a function', fn));
