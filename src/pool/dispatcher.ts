import { CreateError, InstanceGoneError, PrepareError } from '../errors.js';
import type { DestroyReason, LeaseRejection } from '../hooks/events.js';
import { NEUTRAL_CONTEXT } from '../internal/async-context.js';
import { turnMs } from '../internal/clock.js';
import { DONE, Hold, type HoldExtras } from './hold.js';
import type { HostCallbacks } from './host-callbacks.js';
import type { IdleStock } from './idle-stock.js';
import { IDLE, type Instance } from './instance.js';
import type { Lease } from './lease.js';
import type { LeaseDesk } from './lease-desk.js';
import type { LeaseOptions, PoolSettings } from './pool-options.js';
import type { PoolTeller } from './pool-teller.js';
import type { Roster } from './roster.js';
import type { WaitingLine } from './waiting-line.js';

/** What a dispatcher works with. */
export interface DispatcherParts<T> {
  readonly settings: PoolSettings<T>;
  readonly roster: Roster<T>;
  readonly line: WaitingLine<T>;
  readonly stock: IdleStock<T>;
  readonly desk: LeaseDesk<T>;
  readonly teller: PoolTeller<T>;
  readonly callbacks: HostCallbacks<T>;
  /** Sees to it that so many creations begin. */
  readonly wantCreations: (count: number) => void;
  readonly retire: (instance: Instance<T>, reason: DestroyReason) => Promise<void>;
  /** An instance came to rest. */
  readonly rested: () => void;
}

/**
 * Brings those who wait and the instances together.
 *
 * Invariants:
 * - A free instance goes to whoever is next, in the step in which it is free; it is idle only if nobody waits.
 * - Nobody overtakes: while anybody waits, whoever comes waits behind.
 * - A waiter keeps its place until an instance is there that is healthy, and never sees another.
 * - As many instances are on their way as there are waiters, as far as there is room: no fewer, and no more.
 */
export class Dispatcher<T> {
  readonly #parts: DispatcherParts<T>;
  readonly #settings: PoolSettings<T>;
  readonly #roster: Roster<T>;
  readonly #line: WaitingLine<T>;
  readonly #stock: IdleStock<T>;
  readonly #desk: LeaseDesk<T>;
  /** Settled instances on their way out of the inventory. */
  #fetching = 0;

  constructor(parts: DispatcherParts<T>) {
    this.#parts = parts;
    this.#settings = parts.settings;
    this.#roster = parts.roster;
    this.#line = parts.line;
    this.#stock = parts.stock;
    this.#desk = parts.desk;
  }

  /** Serves a request, now or when its turn comes. */
  acquire(extras: HoldExtras<T> | undefined): Promise<Lease<T>> {
    const instance = extras?.options?.instanceId === undefined ? this.#free() : undefined;
    if (instance === undefined) return this.#wait(extras);
    this.#stock.pop();
    const lease = this.#desk.grant(instance, new Hold(extras));
    this.#parts.teller.acquired(instance.id, extras?.options, 0);
    if (instance.doom !== undefined) this.pump();
    return Promise.resolve(lease);
  }

  /**
   * Takes in an instance that is in nobody's hands, and gives it to whoever is next. What it gives settles when an
   * instance that has to go is gone.
   */
  offer(instance: Instance<T>, isGood = false): Promise<void> {
    const reason = instance.doom ?? (this.#roster.surplus > 0 ? 'resized' : undefined);
    if (reason !== undefined) return this.#parts.retire(instance, reason);
    if (!this.#line.wants(instance)) {
      this.#line.atRest();
      this.#roster.move(instance, IDLE);
      this.#stock.park(instance);
      this.#parts.rested();
    } else if (!isGood && this.#isDue(instance)) {
      void NEUTRAL_CONTEXT.run(() => this.#validate(instance));
    } else {
      this.#give(instance);
    }
    return DONE;
  }

  /** Brings about what is missing: instances for those who wait, and `min`. */
  pump(): void {
    for (let idle = this.#stock.peek(); idle !== undefined; idle = this.#stock.peek()) {
      if (this.#line.length === 0 || (this.#isDue(idle) && this.#uncovered() < 1)) break;
      this.#stock.pop();
      void this.offer(idle);
    }
    while (this.#stock.settled > this.#fetching && this.#uncovered() > 0) this.#fetch();
    const needed = this.creationsNeeded();
    if (needed > 0) this.#parts.wantCreations(needed);
  }

  /** Creations needed beyond those under way, as far as there is room. */
  creationsNeeded(): number {
    const forMin = this.#roster.min - this.#roster.usable;
    return Math.min(this.#roster.room, Math.max(forMin, this.#uncovered()));
  }

  /** Notes whom an instance that is on its way is for: the first for whom nothing is. */
  assign(instance: Instance<T>): void {
    const waiter = this.#line.expect(instance);
    if (waiter !== undefined) instance.madeFor = waiter;
  }

  creationDone(instance: Instance<T>): void {
    this.#unassign(instance);
    void this.offer(instance, true);
    this.pump();
  }

  /** Rejects the one that a failed creation was for, if it still waits, and no other. */
  creationFailed(instance: Instance<T>, error: unknown): void {
    const waiter = this.#unassign(instance);
    this.#line.dismissClaims(instance);
    if (waiter?.state.kind === 'waiting') {
      const figures = this.#parts.teller.poolFigures(waiter.elapsedMs, instance.id);
      this.#line.reject(waiter, 'create-failed', new CreateError(figures, error));
    }
    this.pump();
  }

  /** Asks whether an idle instance is still good, and goes on with it or without it; settles when that is known. */
  recheck(instance: Instance<T>): Promise<void> {
    this.#stock.remove(instance);
    return NEUTRAL_CONTEXT.run(() => this.#validate(instance));
  }

  /** Tears an instance down: now if it is idle, otherwise when it comes back. */
  letGo(instance: Instance<T>, reason: DestroyReason): void {
    if (instance.state.kind === 'idle') {
      this.#stock.remove(instance);
      void this.#parts.retire(instance, reason);
    } else {
      this.#roster.doom(instance, reason);
      this.pump();
    }
  }

  /** The parked instance that can be leased in this step, if nobody waits and nothing has to be asked first. */
  #free(): Instance<T> | undefined {
    if (this.#line.length > 0 || this.#settings.prepare !== undefined) return undefined;
    const idle = this.#stock.peek();
    return idle === undefined || this.#isDue(idle) ? undefined : idle;
  }

  #wait(extras: HoldExtras<T> | undefined): Promise<Lease<T>> {
    const options = extras?.options;
    const refused = this.#refusalOf(options);
    if (refused !== undefined) return this.#line.refuse(options, refused.reason, refused.error);
    let claimed: Instance<T> | undefined;
    if (extras !== undefined && options?.instanceId !== undefined) {
      claimed = this.#roster.find(options.instanceId);
      extras.claimed = claimed;
    }
    const waiter = this.#line.join(extras);
    const served = new Promise<Lease<T>>((resolve) => {
      waiter.settle = resolve;
    });
    if (claimed?.state.kind === 'idle') {
      this.#stock.remove(claimed);
      void this.offer(claimed);
    }
    this.pump();
    return this.#line.told(waiter, served);
  }

  #refusalOf(
    options: LeaseOptions | undefined,
  ): { readonly reason: LeaseRejection; readonly error: Error } | undefined {
    const { name, maxQueue } = this.#settings;
    let isIdle = this.#stock.parked + this.#stock.settled - this.#fetching > this.#line.length;
    let unserved = this.#line.unserved;
    if (options?.instanceId === undefined) {
      // Whoever an instance can be fetched or made for does not queue.
      unserved += 1 - this.#roster.coming - this.#stock.settled - this.#stock.parked;
      unserved -= Math.max(0, this.#roster.room);
    } else {
      const claimed = this.#roster.find(options.instanceId);
      if (claimed === undefined || claimed.doom !== undefined) {
        return { reason: 'instance-gone', error: new InstanceGoneError(name, options.instanceId) };
      }
      isIdle = claimed.state.kind === 'idle';
      if (!isIdle) unserved++;
    }
    if (!isIdle && options?.timeoutMs === 0) {
      return { reason: 'timeout', error: this.#line.timeoutError(0, 'wait') };
    }
    return unserved > maxQueue ? { reason: 'queue-full', error: this.#line.fullError() } : undefined;
  }

  /** Waiters for whom nothing is on its way. */
  #uncovered(): number {
    return this.#line.length - this.#roster.coming - this.#fetching;
  }

  #isDue({ goodMs }: Instance<T>): boolean {
    const { validate, validateAfterIdleMs } = this.#settings;
    return validate !== undefined && turnMs() - goodMs >= validateAfterIdleMs;
  }

  #fetch(): void {
    this.#fetching++;
    void this.#stock.fetch().then(() => {
      this.#fetching--;
      this.pump();
    });
  }

  #unassign(instance: Instance<T>): Hold<T> | undefined {
    const waiter = instance.madeFor;
    instance.madeFor = undefined;
    if (waiter?.extras !== undefined) waiter.extras.awaited = undefined;
    return waiter;
  }

  #give(instance: Instance<T>): void {
    const waiter = this.#line.next(instance);
    if (waiter === undefined) return;
    if (this.#settings.prepare === undefined) this.#serve(instance, waiter);
    else void (waiter.extras?.context ?? NEUTRAL_CONTEXT).run(() => this.#prepare(instance, waiter));
  }

  #serve(instance: Instance<T>, waiter: Hold<T>): void {
    this.#line.serve(waiter, this.#desk.grant(instance, waiter));
    // Its last use: it no longer counts for `min`.
    if (instance.doom !== undefined) this.pump();
  }

  async #prepare(instance: Instance<T>, waiter: Hold<T>): Promise<void> {
    const { callbacks, teller, retire } = this.#parts;
    const { options } = waiter;
    const call = callbacks.prepare(instance, options, waiter.extras?.context);
    this.#roster.move(instance, { kind: 'preparing', call });
    this.#line.prepares(waiter, call);
    let failure: { readonly error: unknown } | undefined;
    try {
      await call.run();
    } catch (error) {
      failure = { error };
    }
    // Whoever it was for may have given up: what is half prepared for one task is not given to another.
    const stillWanted = waiter.state.kind === 'preparing';
    if (failure === undefined && stillWanted) {
      this.#serve(instance, waiter);
      return;
    }
    if (stillWanted) {
      teller.unhealthy(instance.id, 'prepare', failure, options);
      const figures = teller.poolFigures(waiter.elapsedMs, instance.id);
      this.#line.reject(waiter, 'prepare-failed', new PrepareError(figures, failure?.error));
    }
    void retire(instance, instance.doom ?? 'prepare-failed');
  }

  async #validate(instance: Instance<T>): Promise<void> {
    const { callbacks, teller, retire } = this.#parts;
    const call = callbacks.validate(instance);
    this.#roster.move(instance, { kind: 'validating', call });
    this.assign(instance);
    let verdict: unknown;
    let failure: { readonly error: unknown } | undefined;
    try {
      verdict = await call.run();
    } catch (error) {
      failure = { error };
    }
    this.#unassign(instance);
    if (verdict === true) {
      instance.goodMs = turnMs();
      void this.offer(instance, true);
      this.pump();
    } else {
      teller.unhealthy(instance.id, 'validate', failure);
      void retire(instance, instance.doom ?? 'unhealthy');
    }
  }
}
