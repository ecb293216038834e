import { type LeaseHolder, LeaseRevokedError } from '../errors.js';
import type { DestroyReason, RevocationReason } from '../hooks/events.js';
import { NEUTRAL_CONTEXT } from '../internal/async-context.js';
import { turnMs } from '../internal/clock.js';
import { options as checkOptions, flag } from '../internal/validate.js';
import { clockMs } from './clock-ms.js';
import { DONE, HELD, type Hold, HoldExtras, type LeaseIssuer, PoolLease, RELEASED } from './hold.js';
import type { HostCallbacks } from './host-callbacks.js';
import type { Instance } from './instance.js';
import type { Lease, ReleaseOptions } from './lease.js';
import type { PoolSettings } from './pool-options.js';
import type { PoolTeller } from './pool-teller.js';
import type { Roster } from './roster.js';

/** What a desk works with. */
export interface LeaseDeskParts<T> {
  readonly settings: PoolSettings<T>;
  readonly roster: Roster<T>;
  readonly teller: PoolTeller<T>;
  readonly callbacks: HostCallbacks<T>;
  /** An instance came back; settles when it is ready for the next task, or gone. */
  readonly cameBack: (instance: Instance<T>) => Promise<void>;
  /** Tears down an instance that came back; settles when it is gone. */
  readonly retire: (instance: Instance<T>, reason: DestroyReason) => Promise<void>;
}

/**
 * Gives leases and takes them back.
 *
 * Invariants:
 * - An instance has at most one hold, and a hold ends once: by release or by revocation, whichever comes first.
 * - Whatever a holder does after that reaches nobody else.
 */
export class LeaseDesk<T> implements LeaseIssuer<T> {
  acquired = 0;
  released = 0;
  revoked = 0;
  readonly #parts: LeaseDeskParts<T>;
  readonly #settings: PoolSettings<T>;
  readonly #roster: Roster<T>;
  readonly #teller: PoolTeller<T>;
  readonly #isWatched: boolean;
  /** Finds leases that were dropped without release; what it keeps is the hold, never the lease. */
  readonly #dropped: FinalizationRegistry<Hold<T>> | undefined;

  constructor(parts: LeaseDeskParts<T>) {
    const { leakWarningMs, maxLeaseMs } = parts.settings;
    this.#parts = parts;
    this.#settings = parts.settings;
    this.#roster = parts.roster;
    this.#teller = parts.teller;
    this.#isWatched = leakWarningMs !== undefined || maxLeaseMs !== undefined;
    if (leakWarningMs !== undefined) this.#dropped = new FinalizationRegistry(this.#onDropped);
  }

  get name(): string {
    return this.#settings.name;
  }

  /** Leases an instance that is in nobody's hands. */
  grant(instance: Instance<T>, hold: Hold<T>): Lease<T> {
    const now = clockMs();
    // One that never waited has no beginning.
    const waitMs = hold.arrival === 0 ? 0 : (now - hold.sinceMs) | 0;
    hold.sinceMs = now;
    hold.state = HELD;
    hold.instance = instance;
    this.#roster.move(instance, hold);
    this.acquired++;
    const lease = new PoolLease(hold, this, waitMs);
    if (this.#isWatched) this.#watch(hold, lease);
    if (++instance.uses >= this.#settings.maxUses) this.#roster.doom(instance, 'uses');
    return lease;
  }

  release(hold: Hold<T>, options: ReleaseOptions | undefined): Promise<void> {
    if (options === undefined) return this.#end(hold, false);
    let discard = true;
    try {
      discard = checkOptions('release', options, ['discard']).discard ?? false;
      flag('discard', discard);
    } catch (error) {
      // A misspelt option must not cost the slot; what it meant is unknown, so the instance is not trusted.
      void this.#end(hold, true);
      throw error;
    }
    return this.#end(hold, discard);
  }

  /** Tells a holder, by the lease's signal, that it had better wind up. The lease stands. */
  warn(hold: Hold<T>, reason: unknown): void {
    (hold.extras?.context ?? NEUTRAL_CONTEXT).run(() => hold.abort(reason));
  }

  /** Takes a lease back: the holder's signal aborts, the instance is torn down. */
  revoke(hold: Hold<T>, reason: RevocationReason): void {
    if (hold.state.kind !== 'held') return;
    const { instance, options } = hold;
    const error = new LeaseRevokedError(this.name, instance.id, reason);
    hold.state = { kind: 'revoked', done: DONE, error };
    if (this.#isWatched) this.#unwatch(hold);
    (hold.extras?.context ?? NEUTRAL_CONTEXT).run(() => {
      hold.abort(error);
      this.revoked++;
      const done = this.#parts.retire(instance, reason === 'closed' ? 'closed' : 'revoked');
      hold.end({ kind: 'revoked', done, error });
      this.#teller.revoked(instance.id, options, hold.elapsedMs, reason);
    });
  }

  /** Who holds a lease now, the longest alive instance first. */
  holders(): LeaseHolder[] {
    const holders: LeaseHolder[] = [];
    for (const { id: instanceId, state } of this.#roster) {
      if (state.kind !== 'leased') continue;
      const taskId = state.options?.taskId;
      const stack = state.extras?.site?.stack;
      holders.push({
        instanceId,
        heldMs: state.elapsedMs,
        ...(taskId === undefined ? {} : { taskId }),
        ...(stack === undefined ? {} : { stack }),
      });
    }
    return holders;
  }

  #end(hold: Hold<T>, discard: boolean): Promise<void> {
    const { state, instance } = hold;
    if (state.kind === 'released' || state.kind === 'revoked') return state.done;
    hold.state = RELEASED;
    this.released++;
    const now = turnMs();
    if (this.#isWatched) this.#unwatch(hold);
    instance.usedMs = now;
    instance.goodMs = now;
    const goesOn = instance.doom === undefined && this.#roster.surplus <= 0;
    let done: Promise<void>;
    if (discard) done = this.#parts.retire(instance, 'discarded');
    else if (goesOn && this.#settings.reset !== undefined) done = this.#reset(hold);
    else done = this.#parts.cameBack(instance);
    hold.end(done === DONE ? RELEASED : { kind: 'released', done });
    if (hold.extras?.isOverdue) this.#tellLeaked(hold, 'returned');
    this.#teller.released(instance.id, hold.options, hold.elapsedMs, discard);
    return done;
  }

  async #reset({ instance, options, extras }: Hold<T>): Promise<void> {
    const { callbacks, retire, cameBack } = this.#parts;
    const call = callbacks.reset(instance, options, extras?.context);
    this.#roster.move(instance, { kind: 'resetting', call });
    try {
      await call.run();
    } catch (error) {
      this.#teller.unhealthy(instance.id, 'reset', { error }, options);
      return retire(instance, instance.doom ?? 'reset-failed');
    }
    instance.goodMs = turnMs();
    return cameBack(instance);
  }

  #watch(hold: Hold<T>, lease: Lease<T>): void {
    const { maxLeaseMs, leakWarningMs } = this.#settings;
    hold.extras ??= new HoldExtras();
    const { extras } = hold;
    // The timers must not keep the context alive of whoever happened to release the instance.
    NEUTRAL_CONTEXT.run(() => {
      if (maxLeaseMs !== undefined) {
        extras.revokeTimer = setTimeout(this.#onOverstayed, maxLeaseMs, hold).unref();
      }
      if (leakWarningMs !== undefined) {
        extras.leakTimer = setTimeout(this.#onOverdue, leakWarningMs, hold).unref();
      }
    });
    this.#dropped?.register(lease, hold, hold);
  }

  #unwatch(hold: Hold<T>): void {
    clearTimeout(hold.extras?.revokeTimer);
    clearTimeout(hold.extras?.leakTimer);
    this.#dropped?.unregister(hold);
  }

  #tellLeaked(hold: Hold<T>, kind: 'overdue' | 'returned' | 'collected'): void {
    const { instance, options, elapsedMs, extras } = hold;
    this.#teller.leaked(instance.id, options, elapsedMs, kind, extras?.site?.stack);
  }

  readonly #onOverstayed = (hold: Hold<T>): void => this.revoke(hold, 'max-lease');

  readonly #onOverdue = (hold: Hold<T>): void => {
    if (hold.extras !== undefined) hold.extras.isOverdue = true;
    NEUTRAL_CONTEXT.run(() => this.#tellLeaked(hold, 'overdue'));
  };

  readonly #onDropped = (hold: Hold<T>): void => {
    if (hold.state.kind !== 'held') return;
    NEUTRAL_CONTEXT.run(() => this.#tellLeaked(hold, 'collected'));
    this.revoke(hold, 'abandoned');
  };
}
