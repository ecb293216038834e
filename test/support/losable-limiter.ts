import { LimitLostError } from '../../src/errors.js';
import { ConcurrencyLimiter } from '../../src/limiter/concurrency-limiter.js';
import type { AcquireOptions, Limiter, LimiterStats, Permit } from '../../src/limiter/limiter.js';

/** A limiter of which no more is known than the interface, and whose permits can be lost. */
export class LosableLimiter implements Limiter {
  readonly name = 'fleet';
  readonly #limiter: ConcurrencyLimiter;
  /** The permits that are held, the oldest first. */
  readonly #held = new Set<AbortController>();
  /** Called when the signal of a permit is read. */
  onRead: () => void = () => {};

  constructor(maxConcurrent: number) {
    this.#limiter = new ConcurrencyLimiter({ maxConcurrent, name: this.name });
  }

  get maxConcurrent(): number {
    return this.#limiter.maxConcurrent;
  }

  get activeCount(): number {
    return this.#limiter.activeCount;
  }

  get queuedCount(): number {
    return this.#limiter.queuedCount;
  }

  async acquire(options?: AcquireOptions): Promise<Permit> {
    const permit = await this.#limiter.acquire(options);
    const controller = new AbortController();
    this.#held.add(controller);
    const release = (outcome?: Parameters<Permit['release']>[0]): void => {
      this.#held.delete(controller);
      permit.release(outcome);
    };
    const onRead = (): void => this.onRead();
    return {
      weight: permit.weight,
      waitMs: permit.waitMs,
      get signal() {
        onRead();
        return controller.signal;
      },
      release,
      [Symbol.dispose]: release,
    };
  }

  stats(): LimiterStats {
    return this.#limiter.stats();
  }

  close(options?: Parameters<Limiter['close']>[0]): Promise<void> {
    return this.#limiter.close(options);
  }

  /** The oldest permit is lost. */
  lose(): LimitLostError {
    const [controller] = this.#held;
    if (controller === undefined) throw new Error('no permit is held');
    const error = new LimitLostError(this.name, 'expired');
    this.#held.delete(controller);
    controller.abort(error);
    return error;
  }
}
