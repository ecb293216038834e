/**
 * Waiting on abort signals, cheaply and without leaving anything behind.
 *
 * Node looks through all listeners of a signal each time one is added, and warns from the eleventh on. So each distinct
 * signal gets one listener here, however many watchers share it, and loses it with its last watcher.
 */

/** Told once, synchronously, when the watched signal aborts. */
export interface AbortWatcher {
  onAbort(reason: unknown): void;
}

class SignalWatch {
  readonly watchers = new Set<AbortWatcher>();
  readonly #signal: AbortSignal;

  constructor(signal: AbortSignal) {
    this.#signal = signal;
    signal.addEventListener('abort', this);
  }

  /** An EventListener object: no closure for each signal. */
  handleEvent(): void {
    const reason: unknown = this.#signal.reason;
    for (const watcher of this.watchers) {
      // One that is told may take others away; they are not told then.
      this.watchers.delete(watcher);
      watcher.onAbort(reason);
    }
    this.#forget();
  }

  remove(watcher: AbortWatcher): void {
    this.watchers.delete(watcher);
    if (this.watchers.size === 0) this.#forget();
  }

  #forget(): void {
    watches.delete(this.#signal);
    this.#signal.removeEventListener('abort', this);
  }
}

const watches = new WeakMap<AbortSignal, SignalWatch>();

/** Registers a watcher. The signal must not be aborted yet: its event has then passed and nothing would be told. */
export function watchAbort(signal: AbortSignal, watcher: AbortWatcher): void {
  let watch = watches.get(signal);
  if (watch === undefined) {
    watch = new SignalWatch(signal);
    watches.set(signal, watch);
  }
  watch.watchers.add(watcher);
}

/** Forgets a watcher; harmless when it was never registered or has been told already. */
export function unwatchAbort(signal: AbortSignal, watcher: AbortWatcher): void {
  watches.get(signal)?.remove(watcher);
}

/**
 * A controller that also aborts when `parent` does, with the same reason. Call `unlink` when the work is over, so that
 * nothing is left on a long-lived parent.
 */
export function linkedController(parent?: AbortSignal): { controller: AbortController; unlink: () => void } {
  const controller = new AbortController();
  if (parent === undefined) return { controller, unlink: () => {} };
  if (parent.aborted) {
    controller.abort(parent.reason);
    return { controller, unlink: () => {} };
  }
  const watcher: AbortWatcher = { onAbort: (reason) => controller.abort(reason) };
  watchAbort(parent, watcher);
  return { controller, unlink: () => unwatchAbort(parent, watcher) };
}
