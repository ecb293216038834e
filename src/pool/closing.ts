import { DrainTimeoutError, PoolClosedError } from '../errors.js';
import type { DestroyReason } from '../hooks/events.js';
import { withDeadline } from '../internal/deadline.js';
import { Milestone } from '../internal/milestone.js';
import { options as checkOptions, durationMs } from '../internal/validate.js';
import type { Creator } from './creator.js';
import type { IdleStock } from './idle-stock.js';
import type { Instance } from './instance.js';
import type { Keeper } from './keeper.js';
import type { LeaseDesk } from './lease-desk.js';
import type { Roster } from './roster.js';
import type { Teardown } from './teardown.js';
import type { WaitingLine } from './waiting-line.js';
import type { WarmUp } from './warm-up.js';

/** How long holders have to wind up after `close`, where it is not told. */
const CLOSE_GRACE_MS = 5_000;

/** What a closing works with. */
export interface ClosingParts<T> {
  readonly name: string;
  readonly roster: Roster<T>;
  readonly line: WaitingLine<T>;
  readonly stock: IdleStock<T>;
  readonly desk: LeaseDesk<T>;
  readonly creator: Creator<T>;
  readonly keeper: Keeper<T>;
  readonly teardown: Teardown<T>;
  readonly warmUp: WarmUp;
  /** Ends the calls of the host's callbacks that are under way. */
  readonly giveUp: AbortController;
  readonly letGo: (instance: Instance<T>, reason: DestroyReason) => void;
}

/**
 * The end of a pool.
 *
 *     open ──► draining ──► closed
 *       └──────────────────►─┘
 *
 * Invariants:
 * - Whatever has begun comes to an end: every waiter and every promise is settled, whenever and however often `drain` and
 *   `close` are called.
 * - A closed pool has no timers and, once `close` has settled, no instances.
 */
export class Closing<T> {
  readonly #parts: ClosingParts<T>;
  readonly #rest: Milestone;
  readonly #gone: Milestone;
  #state: 'open' | 'draining' | 'closed' = 'open';

  constructor(parts: ClosingParts<T>) {
    const { roster, line } = parts;
    this.#parts = parts;
    this.#rest = new Milestone(
      () => line.waiting + roster.leased + roster.preparing + roster.resetting === 0,
    );
    this.#gone = new Milestone(() => roster.live === 0);
  }

  get state(): 'open' | 'draining' | 'closed' {
    return this.#state;
  }

  /** Somebody left, or an instance came to rest or is gone. */
  check(): void {
    if (this.#state === 'open') return;
    this.#rest.check();
    this.#gone.check();
  }

  async drain(options: { readonly timeoutMs?: number }): Promise<void> {
    const { timeoutMs } = checkOptions('drain', options, ['timeoutMs']);
    if (timeoutMs !== undefined) durationMs('timeoutMs', timeoutMs);
    const { name, roster, desk, warmUp } = this.#parts;
    if (this.#state === 'open') {
      this.#state = 'draining';
      roster.min = 0;
      warmUp.fail(new PoolClosedError(name, 'draining'));
    }
    return withDeadline(
      this.#rest.reached(),
      timeoutMs,
      (elapsedMs) => new DrainTimeoutError(name, elapsedMs, desk.holders()),
    );
  }

  async close(options: { readonly timeoutMs?: number }): Promise<void> {
    const { timeoutMs = CLOSE_GRACE_MS } = checkOptions('close', options, ['timeoutMs']);
    const waitsForEver = timeoutMs === Number.POSITIVE_INFINITY;
    if (!waitsForEver) durationMs('timeoutMs', timeoutMs);
    if (this.#state !== 'closed') this.#shut();
    const timer = waitsForEver ? undefined : setTimeout(this.#force, timeoutMs);
    await this.#gone.reached();
    clearTimeout(timer);
    await this.#parts.teardown.stragglersGone();
    await this.#parts.stock.close();
  }

  /** Turns everybody away, and asks holders and callbacks to come to an end. */
  #shut(): void {
    const { name, roster, line, desk, creator, keeper, warmUp, letGo } = this.#parts;
    const error = (): PoolClosedError => new PoolClosedError(name, 'closed');
    this.#state = 'closed';
    roster.min = 0;
    creator.close();
    keeper.close();
    line.rejectAll('closed', error);
    warmUp.fail(error());
    for (const instance of [...roster]) {
      letGo(instance, 'closed');
      const { state } = instance;
      if (state.kind === 'leased') desk.warn(state, error());
      else if ('call' in state) state.call.cancel(error());
    }
  }

  /** Waits for nobody any longer. */
  readonly #force = (): void => {
    const { name, roster, desk, giveUp } = this.#parts;
    giveUp.abort(new PoolClosedError(name, 'closed'));
    for (const { state } of [...roster]) {
      if (state.kind === 'leased') desk.revoke(state, 'closed');
    }
  };
}
