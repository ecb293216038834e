import { type AbortWatcher, unwatchAbort, watchAbort } from '../internal/abort-watch.js';

/** Those who wait for `min` instances to be there. All of them hear of the first creation that fails. */
export class WarmUp {
  readonly #isWarm: () => boolean;
  readonly #waiting = new Set<(error?: { readonly error: unknown }) => void>();

  constructor(isWarm: () => boolean) {
    this.#isWarm = isWarm;
  }

  /** Settles when the pool is warm; rejects when a creation fails, or the caller gives up. */
  wait(
    signal: AbortSignal | undefined,
    timeoutMs: number | undefined,
    timeoutError: (timeoutMs: number) => Error,
  ): Promise<void> {
    if (this.#isWarm()) return Promise.resolve();
    return new Promise((resolve, reject) => {
      const settle = (failure?: { readonly error: unknown }): void => {
        this.#waiting.delete(settle);
        clearTimeout(timer);
        if (signal !== undefined) unwatchAbort(signal, watcher);
        if (failure === undefined) resolve();
        else reject(failure.error);
      };
      const watcher: AbortWatcher = { onAbort: (error) => settle({ error }) };
      const timer =
        timeoutMs === undefined
          ? undefined
          : setTimeout(() => settle({ error: timeoutError(timeoutMs) }), timeoutMs);
      if (signal !== undefined) watchAbort(signal, watcher);
      this.#waiting.add(settle);
    });
  }

  /** Another instance is there. */
  check(): void {
    if (this.#waiting.size === 0 || !this.#isWarm()) return;
    for (const settle of this.#waiting) settle();
  }

  fail(error: unknown): void {
    for (const settle of this.#waiting) settle({ error });
  }
}
