import type { GateEvents } from '../hooks/events.js';
import { type AbortWatcher, unwatchAbort, watchAbort } from '../internal/abort-watch.js';
import { nowMs } from '../internal/clock.js';

/** How a call ended, for `call:finished`. */
export type GateOutcome = GateEvents['call:finished']['outcome'];

const TIMEOUT_CODES: readonly unknown[] = ['ERR_GATE_TIMEOUT', 'ERR_TOOL_TIMEOUT', 'ERR_REQUEST_TIMEOUT'];

/** Whether a call ended because some time was up: its own, its tool's, its request's, or one that the host has set. */
export function isTimeout(reason: unknown): boolean {
  const { name, code } = Object(reason) as { readonly name?: unknown; readonly code?: unknown };
  return name === 'TimeoutError' || TIMEOUT_CODES.includes(code);
}

/** What bounds a call, and where it leaves what became of it. */
export interface CallBounds {
  readonly signal: AbortSignal;
  /** When the call must be over, on the monotonic clock; `Infinity` without a timeout. */
  readonly deadlineMs: number;
  /** What its last attempt threw. */
  lastFailure: unknown;
  /** What the attempt meant that ended the call; `undefined` where no attempt did. */
  outcome: GateOutcome | undefined;
  /** Ends the call with this reason. */
  abort(reason: unknown): void;
  /** Ends it for everybody who cannot wait for so long, counted on the monotonic clock. */
  turnAway(untilMs: number, reason: () => unknown): void;
}

/** The bounds that one caller sets. */
export interface ScopeOptions {
  readonly signal: AbortSignal | undefined;
  readonly timeoutMs: number | undefined;
  /** Makes the error of a call whose time is up. */
  readonly timeoutError: (timeoutMs: number, lastFailure: unknown) => Error;
}

/** The caller's signal and deadline as one signal. `end` leaves nothing behind on either. */
export class CallScope implements CallBounds, AbortWatcher {
  readonly #controller = new AbortController();
  readonly #parent: AbortSignal | undefined;
  readonly #timer: NodeJS.Timeout | undefined;
  readonly deadlineMs: number;
  lastFailure: unknown;
  outcome: GateOutcome | undefined;

  constructor({ signal, timeoutMs, timeoutError }: ScopeOptions) {
    this.deadlineMs = timeoutMs === undefined ? Number.POSITIVE_INFINITY : nowMs() + timeoutMs;
    if (signal?.aborted) this.abort(signal.reason);
    else if (timeoutMs === 0) this.abort(timeoutError(0, undefined));
    else {
      this.#parent = signal;
      if (signal !== undefined) watchAbort(signal, this);
      if (timeoutMs !== undefined) {
        this.#timer = setTimeout(() => this.abort(timeoutError(timeoutMs, this.lastFailure)), timeoutMs);
      }
    }
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  abort(reason: unknown): void {
    this.end();
    this.#controller.abort(reason);
  }

  turnAway(untilMs: number, reason: () => unknown): void {
    if (untilMs >= this.deadlineMs) this.abort(reason());
  }

  onAbort(reason: unknown): void {
    this.abort(reason);
  }

  end(): void {
    clearTimeout(this.#timer);
    if (this.#parent !== undefined) unwatchAbort(this.#parent, this);
  }
}
