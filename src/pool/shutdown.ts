import { DrainTimeoutError, PoolClosedError } from '../errors.js';
import { withDeadline } from '../internal/abort.js';
import { Condition } from '../internal/condition.js';
import { options as checkOptions, durationMs } from '../internal/validate.js';
import type { Creator } from './creator.js';
import type { Housekeeper } from './housekeeper.js';
import type { IdleInstances } from './idle-instances.js';
import type { Leases } from './leases.js';
import type { PoolState } from './pool-state.js';
import type { Scheduler } from './scheduler.js';
import type { Teardown } from './teardown.js';

/** How long `close` waits for the holders by default. */
const CLOSE_GRACE_MS = 5_000;

/** The parts of a pool that `close` ends. */
interface Closable<T> {
  readonly scheduler: Scheduler<T>;
  readonly leases: Leases<T>;
  readonly idle: IdleInstances<T>;
  readonly creator: Creator<T>;
  readonly teardown: Teardown<T>;
  readonly housekeeper: Housekeeper<T>;
}

/**
 * The end of a pool.
 *
 *     open ──► draining ──► closed
 *       └──────────────────►─┘
 *
 * Invariants:
 * - Everything that has begun ends: every waiter and every promise is settled, whenever and however often `drain` and
 *   `close` are called.
 * - A closed pool has no timers and, once `close` has settled, no instances.
 */
export class Shutdown<T> {
  readonly #pool: PoolState<T>;
  readonly #parts: Closable<T>;
  readonly #unused: Condition;
  readonly #gone: Condition;

  constructor(pool: PoolState<T>, parts: Closable<T>) {
    const { waiters, instances } = pool;
    this.#pool = pool;
    this.#parts = parts;
    this.#unused = new Condition(
      () => waiters.queued + instances.leased + instances.preparing + instances.resetting === 0,
    );
    this.#gone = new Condition(() => instances.live === 0);
  }

  async drain(options: { readonly timeoutMs?: number | undefined }): Promise<void> {
    const { timeoutMs } = checkOptions('drain', options, ['timeoutMs']);
    if (timeoutMs !== undefined) durationMs('timeoutMs', timeoutMs);
    const { name } = this.#pool.settings;
    if (this.#pool.status === 'open') {
      this.#end('draining');
      this.#pool.waiters.failWarmUps(() => new PoolClosedError(name, 'draining'));
      // The waiters are to be served.
      this.#parts.scheduler.resume();
    }
    return withDeadline(
      this.#unused.reached(),
      timeoutMs,
      (afterMs) => new DrainTimeoutError(name, afterMs, this.#parts.leases.holders()),
    );
  }

  async close(options: { readonly timeoutMs?: number | undefined }): Promise<void> {
    const { timeoutMs = CLOSE_GRACE_MS } = checkOptions('close', options, ['timeoutMs']);
    const isEndless = timeoutMs === Number.POSITIVE_INFINITY;
    if (!isEndless) durationMs('timeoutMs', timeoutMs);
    if (this.#pool.status !== 'closed') this.#askToEnd();
    const timer = isEndless ? undefined : setTimeout(this.#force, timeoutMs);
    await this.#gone.reached();
    clearTimeout(timer);
    await this.#parts.teardown.lateOnesGone();
    await this.#parts.idle.close();
  }

  /** No further leases, and no instances for `min`. */
  #end(status: 'draining' | 'closed'): void {
    const { instances } = this.#pool;
    this.#pool.status = status;
    instances.min = 0;
    instances.minIdle = 0;
    instances.onProgress = () => {
      this.#unused.check();
      this.#gone.check();
    };
  }

  /** Rejects all waiters, destroys what is idle, and aborts the signals of holders and callbacks. */
  #askToEnd(): void {
    const { settings, instances, waiters } = this.#pool;
    const { scheduler, leases, creator, housekeeper } = this.#parts;
    const error = new PoolClosedError(settings.name, 'closed');
    this.#end('closed');
    creator.close();
    housekeeper.close();
    waiters.rejectAll('closed', error);
    this.#pool.paused = false;
    for (const instance of [...instances]) {
      scheduler.evict(instance, 'closed');
      const { state } = instance;
      if (state.kind === 'leased') leases.abort(state, error);
      else if ('call' in state) state.call.cancel(error);
    }
  }

  /** Revokes the leases that are left, and waits no longer for any callback but `destroy`. */
  readonly #force = (): void => {
    const { settings, instances, callbacks } = this.#pool;
    callbacks.abandon(new PoolClosedError(settings.name, 'closed'));
    for (const { state } of [...instances]) {
      if (state.kind === 'leased') this.#parts.leases.revoke(state, 'closed');
    }
  };
}
