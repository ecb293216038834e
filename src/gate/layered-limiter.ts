import { lossSignalOf, releasePermit, returnPermit } from '../limiter/foreign-permit.js';
import type { AcquireOptions, Limiter, LimiterStats, Permit } from '../limiter/limiter.js';

/** A local limit below one that is shared: a permit of both, the local one first. */
export class LayeredLimiter implements Limiter {
  readonly #local: Limiter;
  readonly #shared: Limiter;

  constructor(local: Limiter, shared: Limiter) {
    this.#local = local;
    this.#shared = shared;
  }

  get name(): string {
    return this.#local.name;
  }

  get maxConcurrent(): number {
    return Math.min(this.#local.maxConcurrent, this.#shared.maxConcurrent);
  }

  get activeCount(): number {
    return this.#shared.activeCount;
  }

  get queuedCount(): number {
    return this.#local.queuedCount + this.#shared.queuedCount;
  }

  async acquire(options?: AcquireOptions): Promise<Permit> {
    const local = await this.#local.acquire(options);
    let shared: Permit;
    try {
      shared = await this.#shared.acquire(options);
    } catch (error) {
      returnPermit(local);
      throw error;
    }
    const release: Permit['release'] = (outcome) => {
      releasePermit(shared, outcome);
      releasePermit(local, outcome);
    };
    return {
      weight: shared.weight,
      waitMs: local.waitMs + shared.waitMs,
      get signal() {
        return lossSignalOf(shared);
      },
      release,
      [Symbol.dispose]: () => release(),
    };
  }

  stats(): LimiterStats {
    return {
      ...this.#shared.stats(),
      maxConcurrent: this.maxConcurrent,
      queued: this.queuedCount,
    };
  }

  close(options?: Parameters<Limiter['close']>[0]): Promise<void> {
    return this.#local.close(options);
  }
}
