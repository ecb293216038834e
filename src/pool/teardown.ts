import type { DestroyReason } from '../hooks/events.js';
import { NEUTRAL_CONTEXT } from '../internal/async-context.js';
import { DONE, GONE, Instance } from './instances.js';
import type { PoolState } from './pool-state.js';

/**
 * Destroys instances.
 *
 * Invariants:
 * - An instance counts as live until its `destroy` has ended or exceeded its deadline.
 * - Whatever `destroy` does, the slot is freed, and the failure is emitted and goes no further.
 */
export class Teardown<T> {
  /** Called when an instance stopped being usable and when its slot is free: a successor may be due. */
  onChange: ((instance: Instance<T>) => void) | undefined = undefined;
  readonly #pool: PoolState<T>;
  readonly #late = new Set<Promise<void>>();

  constructor(pool: PoolState<T>) {
    this.#pool = pool;
  }

  /** Destroys an instance that has no holder; settles when it is gone, and never rejects. */
  destroy(instance: Instance<T>, reason: DestroyReason): Promise<void> {
    const { settings, instances } = this.#pool;
    clearTimeout(instance.lifetimeTimer);
    instances.evict(instance, reason);
    let done = DONE;
    if (settings.destroy === undefined) {
      instances.move(instance, { kind: 'destroying', done });
      NEUTRAL_CONTEXT.run(() => this.#finish(instance, reason, 0));
    } else {
      let end!: () => void;
      done = new Promise<void>((resolve) => {
        end = resolve;
      });
      instances.move(instance, { kind: 'destroying', done });
      void NEUTRAL_CONTEXT.run(() => this.#call(instance, reason)).then(end);
    }
    this.onChange?.(instance);
    return done;
  }

  /** Destroys what `create` returned after its deadline. It gave up its slot then, so it does not count as live. */
  destroyLate(instanceId: number, pipeline: T): void {
    const instance = new Instance<T>(instanceId, GONE);
    instance.pipeline = pipeline;
    instance.bornMs = this.#pool.settings.turnNow();
    const gone = NEUTRAL_CONTEXT.run(() => this.#call(instance, 'late'));
    this.#late.add(gone);
    void gone.then(() => this.#late.delete(gone));
  }

  /** Settles when the late instances that are being destroyed are gone. */
  async lateOnesGone(): Promise<void> {
    await Promise.all(this.#late);
  }

  async #call(instance: Instance<T>, reason: DestroyReason): Promise<void> {
    const { callbacks, settings } = this.#pool;
    const startMs = settings.turnNow();
    let failure: { readonly error: unknown } | undefined;
    try {
      await callbacks.destroy(instance, reason).run();
    } catch (error) {
      failure = { error };
    }
    this.#finish(instance, reason, settings.turnNow() - startMs, failure);
  }

  #finish(
    instance: Instance<T>,
    reason: DestroyReason,
    destroyMs: number,
    failure?: { readonly error: unknown },
  ): void {
    const { settings, instances, events } = this.#pool;
    if (instance.state !== GONE) instances.leave(instance);
    instances.destroyed++;
    if (failure === undefined)
      events.destroyed(instance, reason, destroyMs, settings.turnNow() - instance.bornMs);
    else events.destroyFailed(instance.id, reason, destroyMs, failure.error);
    instances.onProgress?.();
    this.onChange?.(instance);
  }
}
