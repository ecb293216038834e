import { type AbortWatcher, unwatchAbort, watchAbort } from '../internal/abort-watch.js';
import { nowMs } from '../internal/clock.js';

/** What bounds a call. */
export interface ScopeBounds {
  readonly signal: AbortSignal | undefined;
  readonly timeoutMs: number | undefined;
  /** Makes the error of a call whose time is up. */
  readonly timeoutError: (timeoutMs: number) => Error;
}

/** The caller's signal and deadline as one signal. `end` leaves nothing behind on either. */
export class CallScope implements AbortWatcher {
  readonly #controller = new AbortController();
  readonly #parent: AbortSignal | undefined;
  readonly #timer: NodeJS.Timeout | undefined;
  /** When the call must be over, on the monotonic clock; `Infinity` without a timeout. */
  readonly deadlineMs: number;

  constructor({ signal, timeoutMs, timeoutError }: ScopeBounds) {
    this.deadlineMs = timeoutMs === undefined ? Number.POSITIVE_INFINITY : nowMs() + timeoutMs;
    if (signal?.aborted) {
      this.abort(signal.reason);
      return;
    }
    this.#parent = signal;
    if (signal !== undefined) watchAbort(signal, this);
    if (timeoutMs !== undefined) {
      this.#timer = setTimeout(() => this.abort(timeoutError(timeoutMs)), timeoutMs);
    }
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** Ends the call with this reason, unless it has ended. */
  abort(reason: unknown): void {
    this.end();
    this.#controller.abort(reason);
  }

  onAbort(reason: unknown): void {
    this.abort(reason);
  }

  end(): void {
    clearTimeout(this.#timer);
    if (this.#parent !== undefined) unwatchAbort(this.#parent, this);
  }
}
