import { NEUTRAL_CONTEXT } from '../internal/async-context.js';
import { JobQueue } from '../internal/job-queue.js';
import type { Instance, InstanceRegistry } from './instances.js';
import type { PoolSettings } from './options.js';
import type { Scheduler } from './scheduler.js';

// Idle instances are looked through this often in `validateIdleEveryMs`.
const LOOKS_PER_PERIOD = 2;

/** Validates idle instances in the background. */
export class Housekeeper<T> {
  readonly #settings: PoolSettings<T>;
  readonly #instances: InstanceRegistry<T>;
  readonly #scheduler: Scheduler<T>;
  /** One at a time: an instance that is being validated is not available meanwhile. */
  readonly #queue = new JobQueue({ concurrency: 1 });
  #timer: NodeJS.Timeout | undefined;

  constructor(settings: PoolSettings<T>, instances: InstanceRegistry<T>, scheduler: Scheduler<T>) {
    this.#settings = settings;
    this.#instances = instances;
    this.#scheduler = scheduler;
    if (settings.validate !== undefined) NEUTRAL_CONTEXT.run(() => this.#schedule());
  }

  close(): void {
    clearTimeout(this.#timer);
    this.#queue.clear();
  }

  #schedule(): void {
    this.#timer = setTimeout(() => {
      this.#look();
      this.#schedule();
    }, this.#settings.validateIdleEveryMs / LOOKS_PER_PERIOD).unref();
  }

  #look(): void {
    if (this.#queue.queued > 0) return;
    for (const instance of this.#instances) {
      if (this.#isDue(instance)) void this.#queue.run(() => this.#validate(instance));
    }
  }

  async #validate(instance: Instance<T>): Promise<void> {
    // Its turn in the queue may come much later.
    if (this.#isDue(instance)) await this.#scheduler.revalidate(instance);
  }

  #isDue({ state, goodMs }: Instance<T>): boolean {
    const { turnNow, validateIdleEveryMs } = this.#settings;
    return state.kind === 'idle' && turnNow() - goodMs >= validateIdleEveryMs;
  }
}
