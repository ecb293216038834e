import { NEUTRAL_CONTEXT } from '../internal/async-context.js';
import { turnMs } from '../internal/clock.js';
import { Lane } from '../internal/lane.js';
import type { Instance } from './instance.js';
import type { PoolSettings } from './pool-options.js';
import type { Roster } from './roster.js';

// Lifetimes end up to this much earlier than allowed, so that instances made together do not go together.
const LIFETIME_JITTER = 0.1;
// Idle instances are looked through this often while one may have gone unvalidated.
const LOOKS_PER_PERIOD = 2;

/** What a keeper works with. */
export interface KeeperParts<T> {
  readonly settings: PoolSettings<T>;
  readonly roster: Roster<T>;
  /** An instance has reached its age. */
  readonly expired: (instance: Instance<T>) => void;
  /** An idle instance has not been validated for long; settles when it has been. */
  readonly recheck: (instance: Instance<T>) => Promise<void>;
}

/** Looks after instances that nobody uses: their age, and whether they are still good. */
export class Keeper<T> {
  readonly #parts: KeeperParts<T>;
  /** One at a time: those that are being validated are out of reach meanwhile. */
  readonly #lane = new Lane({ concurrency: 1 });
  #timer: NodeJS.Timeout | undefined;

  constructor(parts: KeeperParts<T>) {
    this.#parts = parts;
    if (parts.settings.validate !== undefined) NEUTRAL_CONTEXT.run(() => this.#schedule());
  }

  /** Looks after a new instance. */
  adopt(instance: Instance<T>): void {
    const { maxLifetimeMs } = this.#parts.settings;
    if (maxLifetimeMs === undefined) return;
    const lifetimeMs = maxLifetimeMs * (1 - LIFETIME_JITTER * Math.random());
    instance.lifetimeTimer = setTimeout(() => this.#parts.expired(instance), lifetimeMs).unref();
  }

  close(): void {
    clearTimeout(this.#timer);
    this.#lane.clear();
  }

  #schedule(): void {
    const periodMs = this.#parts.settings.validateIdleEveryMs / LOOKS_PER_PERIOD;
    this.#timer = setTimeout(() => {
      this.#look();
      this.#schedule();
    }, periodMs).unref();
  }

  #look(): void {
    if (this.#lane.waiting > 0) return;
    for (const instance of this.#parts.roster) {
      if (this.#isUnchecked(instance)) void this.#lane.run(() => this.#recheck(instance));
    }
  }

  async #recheck(instance: Instance<T>): Promise<void> {
    // Its turn in the lane may come much later.
    if (this.#isUnchecked(instance)) await this.#parts.recheck(instance);
  }

  #isUnchecked({ state, goodMs }: Instance<T>): boolean {
    return state.kind === 'idle' && turnMs() - goodMs >= this.#parts.settings.validateIdleEveryMs;
  }
}
