import type { DestroyReason } from '../hooks/events.js';
import { NEUTRAL_CONTEXT } from '../internal/async-context.js';
import { turnMs } from '../internal/clock.js';
import { DONE } from './hold.js';
import type { HostCallbacks } from './host-callbacks.js';
import { GONE, Instance } from './instance.js';
import type { PoolSettings } from './pool-options.js';
import type { PoolTeller } from './pool-teller.js';
import type { Roster } from './roster.js';

/** What a teardown works with. */
export interface TeardownParts<T> {
  readonly settings: PoolSettings<T>;
  readonly roster: Roster<T>;
  readonly teller: PoolTeller<T>;
  readonly callbacks: HostCallbacks<T>;
  /** A slot is free. */
  readonly gone: () => void;
}

/**
 * Takes instances apart.
 *
 * Invariants:
 * - An instance counts as live until its `destroy` has ended, or used up its time.
 * - Whatever `destroy` does, the slot comes back, and the failure is told and goes no further.
 */
export class Teardown<T> {
  readonly #parts: TeardownParts<T>;
  readonly #stragglers = new Set<Promise<void>>();

  constructor(parts: TeardownParts<T>) {
    this.#parts = parts;
  }

  /** Tears an instance down that nobody holds; settles when it is gone, and never rejects. */
  retire(instance: Instance<T>, reason: DestroyReason): Promise<void> {
    const { settings, roster } = this.#parts;
    clearTimeout(instance.lifetimeTimer);
    roster.doom(instance, reason);
    if (settings.destroy === undefined) {
      roster.move(instance, { kind: 'destroying', done: DONE });
      NEUTRAL_CONTEXT.run(() => this.#strikeOff(instance, reason, 0));
      return DONE;
    }
    let end!: () => void;
    const done = new Promise<void>((resolve) => {
      end = resolve;
    });
    roster.move(instance, { kind: 'destroying', done });
    void NEUTRAL_CONTEXT.run(() => this.#takeApart(instance, reason)).then(end);
    return done;
  }

  /** Takes apart what `create` gave after its time was up. Its slot was given up then: it does not count as live. */
  retireLate(instanceId: number, pipeline: T): void {
    const instance = new Instance<T>(instanceId, GONE);
    instance.pipeline = pipeline;
    instance.bornMs = turnMs();
    const gone = NEUTRAL_CONTEXT.run(() => this.#takeApart(instance, 'late'));
    this.#stragglers.add(gone);
    void gone.then(() => this.#stragglers.delete(gone));
  }

  /** Settles when the late ones under way are gone too. */
  async stragglersGone(): Promise<void> {
    await Promise.all(this.#stragglers);
  }

  async #takeApart(instance: Instance<T>, reason: DestroyReason): Promise<void> {
    const beganMs = turnMs();
    const call = this.#parts.callbacks.destroy(instance, reason);
    let failure: { readonly error: unknown } | undefined;
    try {
      await call.run();
    } catch (error) {
      failure = { error };
    }
    this.#strikeOff(instance, reason, turnMs() - beganMs, failure);
  }

  #strikeOff(
    instance: Instance<T>,
    reason: DestroyReason,
    destroyMs: number,
    failure?: { readonly error: unknown },
  ): void {
    const { roster, teller, gone } = this.#parts;
    if (instance.state !== GONE) roster.leave(instance);
    roster.destroyed++;
    if (failure === undefined) teller.destroyed(instance, reason, destroyMs);
    else teller.destroyFailed(instance.id, reason, destroyMs, failure.error);
    gone();
  }
}
