import { GateTimeoutError } from '../errors.js';
import type { PermitOutcome } from '../hooks/events.js';
import type { AbortListener } from '../internal/abort.js';
import { wholeNumber } from '../internal/validate.js';
import type { Permit } from '../limiter/limiter.js';
import type { CallBounds } from './call-context.js';
import type { Classification } from './classify.js';
import { type GateState, GRACE_MS } from './gate-state.js';
import type { KeyReservation } from './keys/api-key.js';

/** What the code of an attempt receives. */
export interface AttemptContext {
  /** Aborts when the attempt exceeds its timeout, and when the call ends early. Pass it on to the client. */
  readonly signal: AbortSignal;
  /** The key to use; empty if the gate has no keys. */
  readonly key: string;
  /** Counts from 1. */
  readonly attempt: number;
  /**
   * Corrects the call's `weight` once the actual one is known: the tokens in a response's `usage`, for example. It counts
   * in windows of that unit, as long as the attempt counts there. A whole number from 0.
   */
  reportUsage(actual: number): void;
}

const DISCARDED = 'The result of this attempt was discarded';

/** Host code under the attempt's timeout. */
interface Step {
  readonly reject: (reason: unknown) => void;
  readonly timer: NodeJS.Timeout | undefined;
}

/**
 * One attempt: its permit and its reservation of a key.
 *
 * Invariants:
 * - Its windows are charged in the step in which the host code starts, neither earlier nor later.
 * - Permit and key are released exactly once, after `end`: when the host code has settled, because the service may be
 *   busy until then. For code that ignores its signal, that is no later than `GRACE_MS`.
 */
export class Attempt implements AbortListener {
  readonly #gate: GateState;
  readonly #call: CallBounds;
  readonly #permit: Permit | undefined;
  readonly #reservation: KeyReservation;
  #controller: AbortController | undefined;
  #aborted = false;
  #reason: unknown;
  #hasReportedUsage = false;
  /** On the clock of the adaptive limit. */
  #startedMs = 0;
  #step: Step | undefined;
  /** Calls of host code that have not settled. */
  #running = 0;
  #graceTimer: NodeJS.Timeout | undefined;
  #load: PermitOutcome = 'ignored';
  #state: 'reserved' | 'begun' | 'ended' | 'released' = 'reserved';

  constructor(gate: GateState, call: CallBounds, permit: Permit | undefined, reservation: KeyReservation) {
    this.#gate = gate;
    this.#call = call;
    this.#permit = permit;
    this.#reservation = reservation;
    call.addEventListener('abort', this);
    gate.held++;
  }

  /** The label of its key; `undefined` if the gate has no keys. */
  get keyLabel(): string | undefined {
    return this.#gate.settings.keyed ? this.#reservation.key.label : undefined;
  }

  /** Whether its key went into cooldown after it was chosen. */
  get isStale(): boolean {
    return this.#reservation.key.cooldownMs(this.#gate.ring.now()) > 0;
  }

  /** Milliseconds since the host code started. */
  get ageMs(): number {
    return this.#reservation.beganMs === undefined ? 0 : this.#gate.ring.now() - this.#reservation.beganMs;
  }

  /** Its signal, made when the host reads it. */
  get signal(): AbortSignal {
    if (this.#controller === undefined) {
      this.#controller = new AbortController();
      if (this.#aborted) this.#controller.abort(this.#reason);
    }
    return this.#controller.signal;
  }

  /** What host code receives as the attempt of this number. */
  context(attempt: number): AttemptContext {
    return contextOf(this, this.#reservation.key.key, attempt);
  }

  reportUsage(actual: number): void {
    this.#gate.ring.correct(this.#reservation, wholeNumber('actual', actual, 0));
    this.#hasReportedUsage = true;
  }

  /** Corrects the weight by what `usage` reads from a result, unless the host has reported it. Never throws. */
  readUsage(result: unknown): void {
    const { usage } = this.#gate.settings;
    if (usage === undefined || this.#hasReportedUsage) return;
    try {
      const actual = usage(result);
      if (typeof actual !== 'number' || !Number.isFinite(actual) || actual < 0) return;
      this.#gate.noteUsage(actual);
      this.#gate.ring.correct(this.#reservation, Math.ceil(actual));
    } catch {
      // A result that cannot be read leaves the estimate as it is.
    }
  }

  /** The host code starts in this step. */
  begin(): void {
    const gate = this.#gate;
    this.#state = 'begun';
    gate.attempts++;
    gate.running++;
    this.#startedMs = gate.settings.adaptive?.clockMs() ?? 0;
    gate.ring.begin(this.#reservation, gate.ring.now());
  }

  /**
   * Runs host code, bounded by the attempt's timeout and the call. If it fails or is given up, the attempt's signal
   * aborts; `onLate` receives a result that arrives afterwards. One step at a time.
   */
  step<T>(work: () => T | PromiseLike<T>, onLate?: (value: T) => void): Promise<T> {
    if (this.#aborted) return Promise.reject(this.#reason);
    const { name, attemptTimeoutMs } = this.#gate.settings;
    return new Promise<T>((resolve, reject) => {
      const timer =
        attemptTimeoutMs === undefined
          ? undefined
          : setTimeout(
              () => this.cancel(new GateTimeoutError(name, 'attempt', attemptTimeoutMs)),
              attemptTimeoutMs,
            );
      const step: Step = { reject, timer };
      this.#step = step;
      this.watch(work).then(
        (value) => {
          if (this.#finishStep(step)) resolve(value);
          else onLate?.(value);
        },
        (error: unknown) => {
          if (!this.#finishStep(step)) return;
          this.cancel(error);
          reject(error);
        },
      );
    });
  }

  /** Runs host code without a bound; `end` waits for it. */
  watch<T>(work: () => T | PromiseLike<T>): Promise<T> {
    this.#running++;
    let running: Promise<T>;
    try {
      running = Promise.resolve(work());
    } catch (error) {
      running = Promise.reject(error);
    }
    const settled = (): void => {
      if (--this.#running === 0 && this.#state === 'ended') this.#release();
    };
    running.then(settled, settled);
    return running;
  }

  /** Frees a result that no caller receives, and then cancels what still works on it. Never throws; `end` waits for it. */
  discard(free: () => unknown): void {
    const freed = (): void => this.cancel(new DOMException(DISCARDED, 'AbortError'));
    this.watch(free).then(freed, freed);
  }

  /** Reports the outcome to its key and to the adaptive limit. */
  report(classification: Classification): void {
    if (this.#state !== 'begun') return;
    const { ring, settings, running } = this.#gate;
    this.#load = classification.load;
    ring.report(this.#reservation, classification, this.#gate.ring.now());
    settings.adaptive?.onSample({
      startedMs: this.#startedMs,
      outcome: classification.load,
      inFlight: running,
    });
  }

  /** Reports to its key what is known before the body of a response is read. */
  reportEarly(classification: Classification): void {
    if (this.#state === 'begun')
      this.#gate.ring.report(this.#reservation, classification, this.#gate.ring.now());
  }

  /** Aborts what still runs. */
  cancel(reason: unknown): void {
    if (!this.#aborted) {
      this.#aborted = true;
      this.#reason = reason;
      this.#controller?.abort(reason);
    }
    const step = this.#step;
    if (step !== undefined && this.#finishStep(step)) step.reject(reason);
  }

  /** The call ended early. */
  handleEvent(): void {
    this.cancel(this.#call.reason);
  }

  /** Releases what it holds: at once, or when the host code settles. */
  end(): void {
    if (this.#state === 'ended' || this.#state === 'released') return;
    if (this.#state === 'begun') this.#gate.running--;
    this.#state = 'ended';
    this.#call.removeEventListener('abort', this);
    if (this.#running === 0) this.#release();
    else this.#graceTimer = setTimeout(() => this.#release(), GRACE_MS);
  }

  #finishStep(step: Step): boolean {
    if (this.#step !== step) return false;
    this.#step = undefined;
    if (step.timer !== undefined) clearTimeout(step.timer);
    return true;
  }

  #release(): void {
    if (this.#state === 'released') return;
    this.#state = 'released';
    if (this.#graceTimer !== undefined) clearTimeout(this.#graceTimer);
    this.#gate.ring.end(this.#reservation);
    releasePermit(this.#permit, this.#load);
    this.#gate.releaseHeld();
  }
}

/** With fields of its own, so that host code may copy it. */
function contextOf(attempt: Attempt, key: string, number: number): AttemptContext {
  return {
    get signal() {
      return attempt.signal;
    },
    key,
    attempt: number,
    reportUsage: (actual) => attempt.reportUsage(actual),
  };
}

/** Releases a permit. An error of a foreign limiter must not cost a call its result. */
export function releasePermit(permit: Permit | undefined, outcome: PermitOutcome): void {
  try {
    permit?.release(outcome);
  } catch {}
}
