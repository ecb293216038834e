/**
 * Abort signals and deadlines: everything here leaves no listener and no timer behind once it is over.
 *
 * - `watchAbort`, `unwatchAbort`: any number of watchers on one signal, at the price of one listener
 * - `LazySignal`: what can be aborted, and makes an AbortSignal only when one is read
 * - `withSignal`: an object with a `signal` that is made when it is read
 * - `linkedController`: a controller that follows other signals; `anySignal`: only its signal
 * - `boundedCall`: one call of host code, bounded by a time and a signal
 * - `withDeadline`: work of our own, bounded by a time
 * - `ignoreRejection`: for a promise where a plain value is expected
 */

/** Called once, synchronously, when the watched signal aborts. */
export interface AbortWatcher {
  onAbort(reason: unknown): void;
}

/**
 * The one listener on a signal. Node searches all listeners of a signal each time one is added, and warns from the
 * eleventh on; so all watchers of a signal share one listener, which goes with the last of them.
 */
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
      // A watcher may remove others, which are then not called.
      this.watchers.delete(watcher);
      watcher.onAbort(reason);
    }
    this.#stop();
  }

  remove(watcher: AbortWatcher): void {
    this.watchers.delete(watcher);
    if (this.watchers.size === 0) this.#stop();
  }

  #stop(): void {
    watches.delete(this.#signal);
    try {
      this.#signal.removeEventListener('abort', this);
    } catch {
      // Of a signal that the host made: the waiter keeps its grant.
    }
  }
}

const watches = /* @__PURE__ */ new WeakMap<AbortSignal, SignalWatch>();

/** Adds a watcher. The signal must not be aborted yet: its event has passed then, and the watcher is never called. */
export function watchAbort(signal: AbortSignal, watcher: AbortWatcher): void {
  if ((signal as Partial<LazySignal>).watch?.(watcher) === true) return;
  let watch = watches.get(signal);
  if (watch === undefined) {
    watch = new SignalWatch(signal);
    watches.set(signal, watch);
  }
  watch.watchers.add(watcher);
}

/** Removes a watcher; harmless if it was never added or has been called already. */
export function unwatchAbort(signal: AbortSignal, watcher: AbortWatcher): void {
  if ((signal as Partial<LazySignal>).unwatch?.(watcher) === true) return;
  watches.get(signal)?.remove(watcher);
}

/** The part of an EventListener object that a `LazySignal` calls. */
export interface AbortListener {
  handleEvent(): void;
}

const NO_LISTENERS: readonly AbortListener[] = [];

/**
 * What can be aborted, without the cost of an AbortController, which is as much as the rest of a call: one is made when
 * host code reads `signal`. Code of this library that only uses `watchAbort` is given `watchable`.
 */
export class LazySignal {
  #aborted = false;
  #reason: unknown;
  #controller: AbortController | undefined;
  #listeners: readonly AbortListener[] = NO_LISTENERS;
  #watcher: AbortWatcher | undefined;

  get aborted(): boolean {
    return this.#aborted;
  }

  get reason(): unknown {
    return this.#reason;
  }

  /** A real AbortSignal, for host code. */
  get signal(): AbortSignal {
    if (this.#controller === undefined) {
      this.#controller = new AbortController();
      if (this.#aborted) this.#controller.abort(this.#reason);
    }
    return this.#controller.signal;
  }

  /** As the signal of code that only watches it with `watchAbort`. */
  get watchable(): AbortSignal {
    return this as unknown as AbortSignal;
  }

  throwIfAborted(): void {
    if (this.#aborted) throw this.#reason;
  }

  addEventListener(_type: 'abort', listener: AbortListener): void {
    this.#listeners = [...this.#listeners, listener];
  }

  removeEventListener(_type: 'abort', listener: AbortListener): void {
    if (this.#listeners.length === 1 && this.#listeners[0] === listener) this.#listeners = NO_LISTENERS;
    else this.#listeners = this.#listeners.filter((other) => other !== listener);
  }

  /** @internal Takes the one watcher that most have, without a `SignalWatch` for it. Returns whether it did. */
  watch(watcher: AbortWatcher): boolean {
    if (this.#watcher !== undefined) return false;
    this.#watcher = watcher;
    return true;
  }

  /** @internal */
  unwatch(watcher: AbortWatcher): boolean {
    if (this.#watcher !== watcher) return false;
    this.#watcher = undefined;
    return true;
  }

  /** Aborts. The first reason counts. */
  fire(reason: unknown): void {
    if (this.#aborted) return;
    this.#aborted = true;
    this.#reason = reason;
    this.#controller?.abort(reason);
    const watcher = this.#watcher;
    this.#watcher = undefined;
    watcher?.onAbort(reason);
    // Code of the host that runs meanwhile may end what others wait for: they leave, and are not called.
    for (let next = this.#listeners[0]; next !== undefined; next = this.#listeners[0]) {
      this.removeEventListener('abort', next);
      next.handleEvent();
    }
  }
}

/** Where an object keeps what makes its signal. A symbol, so that copies of the object have it too. */
const SIGNAL_SOURCE = /* @__PURE__ */ Symbol('signal source');

const SIGNAL = {
  get(this: { readonly [SIGNAL_SOURCE]: { readonly signal: AbortSignal } }): AbortSignal {
    return this[SIGNAL_SOURCE].signal;
  },
  enumerable: true,
  configurable: true,
};

/**
 * Gives an object that host code receives a `signal` of its own, made when it is read. All objects share one getter: with a
 * getter in an object literal, which is a new function each time, V8 makes each object a dictionary, at four times the cost.
 */
export function withSignal<O extends object>(
  object: O,
  source: { readonly signal: AbortSignal },
): O & { readonly signal: AbortSignal } {
  (object as { [SIGNAL_SOURCE]?: unknown })[SIGNAL_SOURCE] = source;
  return Object.defineProperty(object, 'signal', SIGNAL) as O & { readonly signal: AbortSignal };
}

const NOTHING_LINKED = (): void => {};

/**
 * A controller that also aborts when one of `parents` does, with the same reason. Call `unlink` when the work is over:
 * until then the parents hold the controller.
 */
export function linkedController(...parents: readonly (AbortSignal | undefined)[]): {
  readonly controller: AbortController;
  readonly unlink: () => void;
} {
  const controller = new AbortController();
  const signals: AbortSignal[] = [];
  for (const parent of parents) {
    if (parent === undefined) continue;
    if (parent.aborted) {
      controller.abort(parent.reason);
      return { controller, unlink: NOTHING_LINKED };
    }
    signals.push(parent);
  }
  if (signals.length === 0) return { controller, unlink: NOTHING_LINKED };
  const unlink = (): void => {
    for (const signal of signals) unwatchAbort(signal, watcher);
  };
  const watcher: AbortWatcher = {
    onAbort(reason) {
      unlink();
      controller.abort(reason);
    },
  };
  for (const signal of signals) watchAbort(signal, watcher);
  return { controller, unlink };
}

/** A signal that aborts when either does, with its reason. Call `unlink` when the work is over. */
export function anySignal(
  first: AbortSignal,
  second: AbortSignal | undefined,
): { readonly signal: AbortSignal; readonly unlink: () => void } {
  if (second === undefined || first === second) return { signal: first, unlink: NOTHING_LINKED };
  const { controller, unlink } = linkedController(first, second);
  return { signal: controller.signal, unlink };
}

/** What bounds a call of host code. Without a time the call may take forever. */
export type CallBounds<T> = {
  /** Aborting it ends the call with its reason, and aborts the callback's own signal. */
  readonly signal?: AbortSignal | undefined;
  /** Receives a result that arrives after the call has failed, such as an instance to destroy. Should not throw. */
  readonly onLate?: ((result: T) => void) | undefined;
} & (
  | {
      /** Milliseconds until the call counts as failed. */
      readonly timeoutMs: number | undefined;
      /** Makes the error of a call that exceeded `timeoutMs`. */
      readonly timeoutError: (timeoutMs: number) => Error;
    }
  | { readonly timeoutMs?: undefined; readonly timeoutError?: undefined }
);

/**
 * Calls host code, which may return, reject, throw synchronously, settle late or never settle. The returned promise
 * settles in every case in which a bound is set; a late rejection is swallowed.
 *
 * The callback receives a signal of its own, which aborts when the time is up or `bounds.signal` aborts.
 */
export function boundedCall<T>(
  callback: (signal: AbortSignal) => T | PromiseLike<T>,
  bounds: CallBounds<T>,
): Promise<T> {
  const { timeoutMs, timeoutError, onLate } = bounds;
  const { controller, unlink } = linkedController(bounds.signal);
  const { signal } = controller;
  if (signal.aborted) return Promise.reject(signal.reason);

  return new Promise<T>((resolve, reject) => {
    let settled = false;
    let timer: NodeJS.Timeout | undefined;
    const settle = (): boolean => {
      if (settled) return false;
      settled = true;
      clearTimeout(timer);
      unlink();
      signal.removeEventListener('abort', onAbort);
      return true;
    };
    const onAbort = (): void => {
      if (settle()) reject(signal.reason);
    };
    signal.addEventListener('abort', onAbort);
    if (timeoutMs !== undefined) {
      timer = setTimeout(() => controller.abort(timeoutError(timeoutMs)), timeoutMs);
    }

    const fail = (error: unknown): void => {
      if (settle()) reject(error);
    };
    try {
      // In here as well: a promise may have a `constructor` or a `then` of its own that throws.
      Promise.resolve(callback(signal)).then((result) => {
        if (settle()) resolve(result);
        else deliverLate(result, onLate);
      }, fail);
    } catch (error) {
      fail(error);
    }
  });
}

function deliverLate<T>(result: T, onLate: ((result: T) => void) | undefined): void {
  try {
    onLate?.(result);
  } catch {
    // The caller settled long ago: a throw here would only end the process.
  }
}

/** Keeps a promise that is not awaited from becoming an unhandled rejection. Never throws. */
export function ignoreRejection(value: unknown): void {
  try {
    if (typeof (value as PromiseLike<unknown> | null | undefined)?.then === 'function')
      Promise.resolve(value).then(undefined, () => {});
  } catch {
    // Nothing of it can reject then.
  }
}

/**
 * Settles as `work` does, or rejects with `onDeadline(timeoutMs)` if the time is up first. Without `timeoutMs` it is
 * `work` itself.
 */
export function withDeadline<T>(
  work: Promise<T>,
  timeoutMs: number | undefined,
  onDeadline: (timeoutMs: number) => Error,
): Promise<T> {
  if (timeoutMs === undefined) return work;
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(onDeadline(timeoutMs)), timeoutMs);
    work.then(resolve, reject).finally(() => clearTimeout(timer));
  });
}
