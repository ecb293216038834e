import { CreateError, PoolClosedError } from '../errors.js';
import { LifecycleHooks } from '../hooks/lifecycle-hooks.js';
import { AsyncContext, NEUTRAL_CONTEXT } from '../internal/async-context.js';
import { turnMs } from '../internal/clock.js';
import {
  abortSignal,
  options as checkOptions,
  durationMs,
  refusal,
  wholeNumber,
} from '../internal/validate.js';
import { Closing } from './closing.js';
import { Creator } from './creator.js';
import { Dispatcher } from './dispatcher.js';
import { HoldExtras } from './hold.js';
import { HostCallbacks } from './host-callbacks.js';
import { IdleStock } from './idle-stock.js';
import type { Instance } from './instance.js';
import { Keeper } from './keeper.js';
import type { Lease } from './lease.js';
import { LeaseDesk } from './lease-desk.js';
import {
  checkLeaseOptions,
  type LeaseOptions,
  type PipelinePoolOptions,
  type PoolSettings,
  poolSettings,
} from './pool-options.js';
import type { PoolStats } from './pool-stats.js';
import { PoolTeller } from './pool-teller.js';
import { Roster } from './roster.js';
import { Teardown } from './teardown.js';
import { WaitingLine } from './waiting-line.js';
import { WarmUp } from './warm-up.js';

/**
 * Leases stateful, expensive instances to one holder at a time.
 *
 * Invariants:
 * - At most `size` instances are alive at any moment, counted from the start of `create` to the end of `destroy`. A
 *   callback that outlives its deadline gives its slot up, and that is reported.
 * - An instance has at most one holder, and only a healthy one is given to anybody.
 * - Nobody overtakes. A request is served, or rejected with a reason of its own, and leaves nothing behind.
 * - Whatever a callback does (reject, throw at once, never settle, answer nonsense) costs at most the request that it
 *   served: never a slot, never another waiter, never an unhandled rejection.
 *
 * Creation is apart from those who wait: whoever is next takes whichever instance is free first, the one made for it or
 * one released meanwhile.
 *
 * @example
 * const pool = new PipelinePool({
 *   size: 5,
 *   create: ({ instanceId, signal }) => ResearchPipeline.start(instanceId, { signal }),
 *   reset: (pipeline) => pipeline.forgetTask(),
 *   destroy: (pipeline) => pipeline.stop(),
 * });
 * const answer = await pool.use((pipeline, { signal }) => pipeline.research(question, signal), { taskId });
 */
export class PipelinePool<T> implements AsyncDisposable {
  readonly name: string;
  readonly hooks: LifecycleHooks;
  readonly #settings: PoolSettings<T>;
  readonly #roster: Roster<T>;
  readonly #teller: PoolTeller<T>;
  readonly #line: WaitingLine<T>;
  readonly #stock: IdleStock<T>;
  readonly #desk: LeaseDesk<T>;
  readonly #creator: Creator<T>;
  readonly #teardown: Teardown<T>;
  readonly #dispatcher: Dispatcher<T>;
  readonly #keeper: Keeper<T>;
  readonly #warmUp: WarmUp;
  readonly #closing: Closing<T>;
  readonly #keepsContext: boolean;

  /** @throws {TypeError | RangeError} naming the option that is wrong, and its value */
  constructor(options: PipelinePoolOptions<T>) {
    const settings = poolSettings(options);
    const { name } = settings;
    const hooks = settings.hooks ?? new LifecycleHooks();
    const giveUp = new AbortController();
    const roster = new Roster<T>(settings, (instance) => this.#line.dismissClaims(instance));
    const teller = new PoolTeller(name, hooks, roster, () => this.#line.waiting);
    const callbacks = new HostCallbacks(settings, giveUp.signal);
    const retire: Teardown<T>['retire'] = (instance, reason) => {
      const gone = this.#teardown.retire(instance, reason);
      // It no longer counts for `min`, and with room left its successor need not wait for its end.
      this.#dispatcher.pump();
      return gone;
    };
    const letGo: Dispatcher<T>['letGo'] = (instance, reason) => this.#dispatcher.letGo(instance, reason);
    const changed = (): void => this.#closing.check();
    const parts = { settings, roster, teller, callbacks, retire };

    this.name = name;
    this.hooks = hooks;
    this.#settings = settings;
    this.#keepsContext = settings.prepare !== undefined || settings.reset !== undefined;
    this.#roster = roster;
    this.#teller = teller;
    this.#teardown = new Teardown({ ...parts, gone: () => this.#onGone() });
    this.#line = new WaitingLine({ ...parts, lastCreateError: () => this.#creator.lastError, left: changed });
    this.#stock = new IdleStock({
      idleTimeoutMs: settings.idleTimeoutMs,
      maySpare: ({ usedMs }) => turnMs() - usedMs >= settings.idleTimeoutMs && roster.usable > roster.min,
      letGo: (instance) => retire(instance, 'idle'),
    });
    this.#desk = new LeaseDesk({ ...parts, cameBack: (instance) => this.#dispatcher.offer(instance) });
    this.#creator = new Creator({
      ...parts,
      needed: () => this.#dispatcher.creationsNeeded(),
      began: (instance) => this.#dispatcher.assign(instance),
      done: (instance) => this.#onCreated(instance),
      failed: (instance, error) => this.#onCreateFailed(instance, error),
      late: (instanceId, pipeline) => this.#teardown.retireLate(instanceId, pipeline),
    });
    this.#dispatcher = new Dispatcher({
      ...parts,
      line: this.#line,
      stock: this.#stock,
      desk: this.#desk,
      wantCreations: (count) => this.#creator.want(count, this.#line.waiting > 0),
      rested: changed,
    });
    this.#keeper = new Keeper({
      settings,
      roster,
      expired: (instance) => letGo(instance, 'lifetime'),
      recheck: (instance) => this.#dispatcher.recheck(instance),
    });
    this.#warmUp = new WarmUp(() => roster.usable - roster.creating >= roster.min);
    this.#closing = new Closing({
      name,
      roster,
      line: this.#line,
      stock: this.#stock,
      desk: this.#desk,
      creator: this.#creator,
      keeper: this.#keeper,
      teardown: this.#teardown,
      warmUp: this.#warmUp,
      giveUp,
      letGo,
    });
    // Not in this step: the host's `create` may refer to the pool that is being built.
    NEUTRAL_CONTEXT.run(() => queueMicrotask(() => this.#dispatcher.pump()));
  }

  /**
   * Leases an instance, now or when its turn comes.
   *
   * Rejects with `signal.reason`, `AcquireTimeoutError`, `QueueFullError`, `CreateError`, `PrepareError`,
   * `InstanceGoneError`, `PoolClosedError`, or a `TypeError` or `RangeError` naming a wrong option.
   *
   * With `instanceId` it waits for that instance and no other: among those who want the same one by priority, tenant and
   * arrival, and between them and those who take any, the higher priority first, then whoever came first.
   *
   * @example
   * await using lease = await pool.acquire({ taskId, signal, timeoutMs: 5_000 });
   */
  acquire(options?: LeaseOptions): Promise<Lease<T>> {
    let extras: HoldExtras<T> | undefined;
    if (options !== undefined) {
      try {
        checkLeaseOptions('acquire', options);
      } catch (error) {
        return Promise.reject(error);
      }
      extras = new HoldExtras();
      // A copy: the caller may use the object again for the next request.
      extras.options = { ...options };
      if (options.signal?.aborted) return this.#line.refuse(options, 'aborted', options.signal.reason);
    }
    const { state } = this.#closing;
    if (state !== 'open') {
      return this.#line.refuse(options, 'closed', new PoolClosedError(this.name, state));
    }
    if (this.#keepsContext) {
      extras ??= new HoldExtras();
      extras.context = new AsyncContext();
    }
    if (this.#settings.leakWarningMs !== undefined) {
      extras ??= new HoldExtras();
      extras.site = new Error('The lease was acquired here');
      Error.captureStackTrace(extras.site, this.acquire);
    }
    return this.#dispatcher.acquire(extras);
  }

  /**
   * Runs `fn` with a leased instance and gives the lease back when it ends, however it ends. A failure of `fn` does not
   * discard the instance: `lease.release({ discard: true })` does.
   *
   * Settles as `fn` does, without waiting for `reset`; rejects as `acquire` does where no lease was given.
   */
  async use<R>(fn: (pipeline: T, lease: Lease<T>) => R | PromiseLike<R>, options?: LeaseOptions): Promise<R> {
    if (typeof fn !== 'function') throw new TypeError(refusal('fn', 'a function', fn));
    const lease = await this.acquire(options);
    try {
      return await fn(lease.pipeline, lease);
    } finally {
      void lease.release();
    }
  }

  /**
   * Settles when `min` instances are there. The pool fills up to `min` by itself in any case; this waits for it, and
   * rejects with `CreateError` as soon as a creation fails, `AcquireTimeoutError`, `PoolClosedError` or `signal.reason`.
   */
  async warmUp(options: { readonly signal?: AbortSignal; readonly timeoutMs?: number } = {}): Promise<void> {
    const { signal, timeoutMs } = checkOptions('warmUp', options, ['signal', 'timeoutMs']);
    if (signal !== undefined) abortSignal('signal', signal).throwIfAborted();
    if (timeoutMs !== undefined) durationMs('timeoutMs', timeoutMs);
    const { state } = this.#closing;
    if (state !== 'open') throw new PoolClosedError(this.name, state);
    this.#dispatcher.pump();
    return this.#warmUp.wait(signal, timeoutMs, (elapsedMs) => this.#line.timeoutError(elapsedMs, 'create'));
  }

  /**
   * Changes how many instances may live. Growing serves those who wait at once; shrinking lets idle ones go, the longest
   * unused first, and those that are leased when they come back.
   */
  resize(size: number): void {
    const roster = this.#roster;
    roster.size = wholeNumber('size', size, Math.max(1, this.#settings.min));
    const idle = [...roster].filter(({ state }) => state.kind === 'idle');
    idle.sort((a, b) => a.usedMs - b.usedMs);
    for (const instance of idle) {
      if (roster.surplus > 0) this.#dispatcher.letGo(instance, 'resized');
    }
    this.#dispatcher.pump();
  }

  /**
   * Replaces all instances: idle ones now, the others when they come back. Waits for no holder. For a change that every
   * instance has to pick up, such as rotated keys or new prompts.
   */
  refresh(): void {
    for (const instance of [...this.#roster]) this.#dispatcher.letGo(instance, 'refreshed');
  }

  /** Counts, as they stand. */
  stats(): PoolStats {
    const roster = this.#roster;
    return Object.freeze({
      size: roster.size,
      min: this.#settings.min,
      live: roster.live,
      creating: roster.creating,
      idle: roster.idle,
      readying: roster.validating + roster.preparing,
      leased: roster.leased,
      resetting: roster.resetting,
      destroying: roster.destroying,
      waiting: this.#line.waiting,
      created: roster.created,
      createFailed: roster.createFailed,
      destroyed: roster.destroyed,
      acquired: this.#desk.acquired,
      released: this.#desk.released,
      revoked: this.#desk.revoked,
      rejected: this.#line.rejected,
      state: this.#closing.state,
    });
  }

  /**
   * Gives no further leases, serves those who wait, and settles when every lease is back. Idle instances stay until
   * `close`. With `timeoutMs` it rejects with `DrainTimeoutError`, naming the holders, when that time is up first.
   */
  drain(options: { readonly timeoutMs?: number } = {}): Promise<void> {
    return this.#closing.drain(options);
  }

  /**
   * Gives no further leases, turns those who wait away with `PoolClosedError`, aborts the signals of all holders and
   * callbacks, tears down what is idle, and settles when every instance is gone. Never rejects.
   *
   * Holders have `timeoutMs` (5 s; `Infinity` for as long as they like) to release. Then their leases are taken back,
   * callbacks under way are no longer waited for, and what is left is torn down, each within `destroyTimeoutMs`. A second
   * call may shorten the time, not lengthen it.
   */
  close(options: { readonly timeoutMs?: number } = {}): Promise<void> {
    return this.#closing.close(options);
  }

  /** `close()` with its default time. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #onCreated(instance: Instance<T>): void {
    this.#keeper.adopt(instance);
    this.#dispatcher.creationDone(instance);
    this.#warmUp.check();
  }

  #onCreateFailed(instance: Instance<T>, error: unknown): void {
    this.#warmUp.fail(new CreateError(this.#teller.poolFigures(0, instance.id), error));
    this.#dispatcher.creationFailed(instance, error);
    this.#closing.check();
  }

  #onGone(): void {
    this.#closing.check();
    this.#dispatcher.pump();
  }
}
