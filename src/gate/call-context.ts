import type { GateEvents } from '../hooks/events.js';
import { type AbortWatcher, LazySignal, unwatchAbort, watchAbort } from '../internal/abort.js';
import { nowMs } from '../internal/clock.js';

/** How a call ended, for `call:finished`. */
export type GateOutcome = GateEvents['call:finished']['outcome'];

/** What ended a call early: its caller's signal, its deadline, or the gate. */
export type EndedBy = 'signal' | 'deadline' | 'gate';

const TIMEOUT_CODES: readonly unknown[] = ['ERR_GATE_TIMEOUT', 'ERR_TOOL_TIMEOUT', 'ERR_REQUEST_TIMEOUT'];

/** Whether a call ended because a deadline passed: its own, its tool's, its request's, or one that the host set. */
export function isTimeout(reason: unknown): boolean {
  const { name, code } = Object(reason) as { readonly name?: unknown; readonly code?: unknown };
  return name === 'TimeoutError' || TIMEOUT_CODES.includes(code);
}

/** What bounds a call, and where it leaves its outcome. */
export abstract class CallBounds extends LazySignal {
  /** What the last attempt means; `undefined` where no attempt ended the call. */
  outcome: GateOutcome | undefined;

  /** Milliseconds until the call must be over; `Infinity` without a deadline. */
  abstract readonly remainingMs: number;

  /** Keeps what an attempt threw, for the error of a call that exceeds its deadline. */
  abstract failedWith(error: unknown): void;

  /** Ends the call, if it cannot wait for so long. */
  abstract rejectUnmeetable(waitMs: number, reason: () => unknown): void;
}

/** The option by which a tool passes the context of its call on to its gate. */
export const CALL_CONTEXT: unique symbol = Symbol('call context');

/** What one caller sets. */
export interface CallContextOptions {
  readonly signal: AbortSignal | undefined;
  /** A second signal that ends the call: of a tool call's lease. */
  readonly ownerSignal?: AbortSignal | undefined;
  readonly timeoutMs: number | undefined;
  /** Makes the error of a call that exceeds its deadline. */
  readonly timeoutError: (timeoutMs: number, lastFailure: unknown) => Error;
  /** The clock on which the rest of its time is compared with windows and cooldowns. @default the monotonic clock */
  readonly now?: () => number;
}

/**
 * The signal and the deadline of one call, made once: by the tool where a tool makes the call, else by the gate. `end`
 * removes its timer and its listeners.
 */
export class CallContext extends CallBounds implements AbortWatcher {
  #deadlineMs: number;
  readonly #now: () => number;
  endedBy: EndedBy | undefined;
  readonly #signal: AbortSignal | undefined;
  readonly #ownerSignal: AbortSignal | undefined;
  #timer: NodeJS.Timeout | undefined;
  #lastFailure: unknown;

  constructor({ signal, ownerSignal, timeoutMs, timeoutError, now = nowMs }: CallContextOptions) {
    super();
    this.#now = now;
    this.#signal = signal;
    this.#ownerSignal = ownerSignal;
    this.#deadlineMs = timeoutMs === undefined ? Number.POSITIVE_INFINITY : now() + timeoutMs;
    const aborted = ownerSignal?.aborted ? ownerSignal : signal?.aborted ? signal : undefined;
    if (aborted !== undefined) this.abort(aborted.reason, 'signal');
    else if (timeoutMs === 0) this.abort(timeoutError(0, undefined), 'deadline');
    else {
      if (signal !== undefined) watchAbort(signal, this);
      if (ownerSignal !== undefined) watchAbort(ownerSignal, this);
      if (timeoutMs !== undefined) {
        const expire = (): void => this.abort(timeoutError(timeoutMs, this.#lastFailure), 'deadline');
        this.#timer = setTimeout(expire, timeoutMs);
      }
    }
  }

  abort(reason: unknown, by: EndedBy): void {
    this.end();
    this.endedBy ??= by;
    this.fire(reason);
  }

  failedWith(error: unknown): void {
    this.#lastFailure = error;
  }

  get remainingMs(): number {
    return this.#deadlineMs === Number.POSITIVE_INFINITY ? this.#deadlineMs : this.#deadlineMs - this.#now();
  }

  rejectUnmeetable(waitMs: number, reason: () => unknown): void {
    if (waitMs >= this.remainingMs) this.abort(reason(), 'gate');
  }

  onAbort(reason: unknown): void {
    this.abort(reason, 'signal');
  }

  /** Lifts the deadline: what follows is bounded otherwise. */
  liftDeadline(): void {
    if (this.#timer !== undefined) clearTimeout(this.#timer);
    this.#deadlineMs = Number.POSITIVE_INFINITY;
  }

  end(): void {
    if (this.#timer !== undefined) clearTimeout(this.#timer);
    if (this.#signal !== undefined) unwatchAbort(this.#signal, this);
    if (this.#ownerSignal !== undefined) unwatchAbort(this.#ownerSignal, this);
  }
}
