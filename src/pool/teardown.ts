import type { DestroyReason } from '../hooks/events.js';
import { NEUTRAL_CONTEXT } from '../internal/async-context.js';
import type { PoolEventEmitter } from './events.js';
import { DONE, type Failure, GONE, HostCall, Instance, type InstanceRegistry } from './instances.js';
import type { PoolSettings } from './options.js';

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
  readonly #settings: PoolSettings<T>;
  readonly #instances: InstanceRegistry<T>;
  readonly #events: PoolEventEmitter<T>;
  readonly #late = new Set<Promise<void>>();

  constructor(settings: PoolSettings<T>, instances: InstanceRegistry<T>, events: PoolEventEmitter<T>) {
    this.#settings = settings;
    this.#instances = instances;
    this.#events = events;
  }

  /** Destroys an instance that has no holder; settles when it is gone, and never rejects. */
  destroy(instance: Instance<T>, reason: DestroyReason): Promise<void> {
    // Node keeps the list of an unref'd timer's duration, which is like no other, until the timer would have fired.
    clearTimeout(instance.lifetimeTimer?.ref());
    this.#instances.evict(instance, reason);
    let done = DONE;
    if (this.#settings.destroy === undefined) {
      this.#instances.move(instance, { kind: 'destroying', done });
      NEUTRAL_CONTEXT.run(() => this.#finish(instance, reason, 0));
    } else {
      let end!: () => void;
      done = new Promise<void>((resolve) => {
        end = resolve;
      });
      this.#instances.move(instance, { kind: 'destroying', done });
      void NEUTRAL_CONTEXT.run(() => this.#call(instance, reason)).then(end);
    }
    this.onChange?.(instance);
    return done;
  }

  /** Destroys what `create` returned after its deadline. It gave up its slot then, so it does not count as live. */
  destroyLate(instanceId: number, pipeline: T): void {
    const instance = new Instance<T>(instanceId, GONE);
    instance.pipeline = pipeline;
    instance.bornMs = this.#settings.turnNow();
    const gone = NEUTRAL_CONTEXT.run(() => this.#call(instance, 'late'));
    this.#late.add(gone);
    void gone.then(() => this.#late.delete(gone));
  }

  /** Settles when the late instances that are being destroyed are gone. */
  async lateOnesGone(): Promise<void> {
    await Promise.all(this.#late);
  }

  async #call(instance: Instance<T>, reason: DestroyReason): Promise<void> {
    const { id: instanceId, pipeline } = instance;
    const startMs = this.#settings.turnNow();
    const { failure } = await new HostCall(this.#settings).run('destroy', (signal) =>
      this.#settings.destroy?.(pipeline as T, { instanceId, reason, signal }),
    );
    this.#finish(instance, reason, this.#settings.turnNow() - startMs, failure);
  }

  #finish(instance: Instance<T>, reason: DestroyReason, destroyMs: number, failure?: Failure): void {
    const { id: instanceId, uses, bornMs } = instance;
    if (instance.state !== GONE) this.#instances.leave(instance);
    this.#instances.destroyed++;
    if (failure === undefined) {
      const ageMs = this.#settings.turnNow() - bornMs;
      this.#events.emit('instance:destroyed', { instanceId, reason, destroyMs, ageMs, uses });
    } else this.#events.emit('instance:destroy-failed', { instanceId, reason, destroyMs }, failure);
    this.#instances.onProgress?.();
    this.onChange?.(instance);
  }
}
