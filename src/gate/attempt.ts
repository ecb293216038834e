import { GateTimeoutError, LimitLostError } from '../errors.js';
import type { PermitOutcome } from '../hooks/events.js';
import {
  type AbortListener,
  type AbortWatcher,
  ignoreRejection,
  unwatchAbort,
  watchAbort,
  withSignal,
} from '../internal/abort.js';
import { settleInTurn } from '../internal/clock.js';
import { wholeNumber } from '../internal/validate.js';
import type { AdaptiveCall } from '../limiter/adaptive-limit.js';
import type { Permit } from '../limiter/limiter.js';
import { lossSignalOf, releasePermit, returnPermit } from '../limiter/semaphore.js';
import type { CallBounds } from './call-context.js';
import type { CallCost } from './call-cost.js';
import type { Classification } from './classify.js';
import { type GateState, GRACE_MS, isWeight } from './gate-state.js';
import type { KeyReservation } from './keys/api-key.js';
import type { UsageReader } from './options.js';
import { type HeaderSource, reportedLimits } from './retry-after.js';
import { inputTokensOf, outputTokensOf } from './token-usage.js';

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
 * - If its permit is lost, it is aborted in that step, and says nothing about its key.
 */
export class Attempt implements AbortListener, AbortWatcher {
  readonly #gate: GateState;
  readonly #call: CallBounds;
  readonly #permit: Permit | undefined;
  readonly #reservation: KeyReservation;
  #controller: AbortController | undefined;
  #aborted = false;
  #permitSignal: AbortSignal | undefined;
  #isPermitLost = false;
  #reason: unknown;
  /** What the host reported, or `usage` read last. */
  #usage: number | undefined;
  #hasReportedUsage = false;
  /** What its call spends from a budget, once the attempt has reserved its part. */
  cost: CallCost | undefined;
  /** Where its call notes tokens, if its events say them. */
  tokens: TokenCounts | undefined;
  /** What an adaptive limit learns from. */
  #timed: AdaptiveCall | undefined;
  #isStream = false;
  #items = 0;
  #outputTokens: number | undefined;
  #step: Step | undefined;
  /** Calls of host code that have not settled. */
  #running = 0;
  #graceTimer: NodeJS.Timeout | undefined;
  #load: PermitOutcome = 'ignored';
  /** What was reported before the body of its response was read. */
  #early: Classification | undefined;
  #state: 'reserved' | 'begun' | 'ended' | 'released' = 'reserved';

  constructor(gate: GateState, call: CallBounds, permit: Permit | undefined, reservation: KeyReservation) {
    this.#gate = gate;
    this.#call = call;
    this.#permit = permit;
    this.#reservation = reservation;
    call.addEventListener('abort', this);
    gate.held++;
    const permitSignal = lossSignalOf(permit);
    if (permitSignal === undefined) return;
    if (permitSignal.aborted) this.#isPermitLost = true;
    else {
      this.#permitSignal = permitSignal;
      watchAbort(permitSignal, this);
    }
  }

  /** The label of its key; `undefined` if the gate has no keys. */
  get keyLabel(): string | undefined {
    return this.#gate.settings.keyed ? this.#reservation.key.label : undefined;
  }

  /** Whether its permit was lost, or its key went into cooldown, after they were chosen. */
  get isStale(): boolean {
    if (this.#losesPermit() || this.#reservation.shared?.isCertain() === false) return true;
    const { key } = this.#reservation;
    return !key.isReady && key.cooldownMs(this.#gate.ring.now()) > 0;
  }

  /** Reads its signal again, which checks the clock: after a stop of the process, no timer may have fired yet. */
  #losesPermit(): boolean {
    if (this.#permitSignal !== undefined) void lossSignalOf(this.#permit);
    return this.#isPermitLost;
  }

  /** Whether the attempt failed because its permit was lost. */
  wasLostWith(error: unknown): boolean {
    return this.#isPermitLost && error === this.#reason;
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

  /** What host code receives as the attempt of this number, with fields of its own, so that it may copy it. */
  context(attempt: number): AttemptContext {
    const reportUsage = (actual: number): void => this.#reportUsage(actual);
    return withSignal({ key: this.#reservation.key.key, attempt, reportUsage }, this);
  }

  #reportUsage(actual: number): void {
    this.#gate.ring.correct(this.#reservation, wholeNumber('reportUsage(actual)', actual, 0));
    this.#hasReportedUsage = true;
    this.#usage = actual;
  }

  /**
   * Reads the usage from a part of the response: an item of a stream, or all of it. Unless the host has reported it, a
   * higher weight than estimated counts at once, a lower one when the response is complete. Never throws.
   */
  readUsage(value: unknown, usage = this.#gate.settings.usage): void {
    if (this.#timed !== undefined) {
      this.#items++;
      this.#outputTokens = outputTokensOf(value) ?? this.#outputTokens;
    }
    if (this.tokens !== undefined) readTokens(value, this.tokens);
    this.#readWeight(value, usage);
    this.readCost(value);
  }

  /** Reads what the attempt cost, if it spends from a budget. Never throws. */
  readCost(value: unknown): void {
    // One that was given up has been counted.
    if (this.#state === 'begun') this.cost?.read(value, this.#usage);
  }

  #readWeight(value: unknown, usage: UsageReader | undefined): void {
    const { ring } = this.#gate;
    if (usage === undefined || this.#hasReportedUsage) return;
    try {
      const actual = usage(value, this.#usage);
      if (!isWeight(actual)) {
        ignoreRejection(actual);
        return;
      }
      this.#usage = Math.ceil(actual);
      if (this.#usage > this.#reservation.weight) ring.correct(this.#reservation, this.#usage);
    } catch {
      // A result that cannot be read leaves the estimate as it is.
    }
  }

  /** Learns from headers what its key may still start. */
  learnLimits(headers: HeaderSource): void {
    const { settings, ring } = this.#gate;
    if (settings.pace === undefined || headers === undefined) return;
    const reported = reportedLimits(headers);
    if (reported.length > 0) ring.learn(this.#reservation, reported);
  }

  /** The response is complete: what was read last is what the call weighed. */
  settleUsage(): void {
    if (this.#state === 'begun') this.cost?.complete();
    const actual = this.#usage;
    if (actual === undefined || this.#hasReportedUsage) return;
    this.#gate.noteUsage(actual);
    this.#gate.ring.correct(this.#reservation, actual);
  }

  /**
   * The host code starts in this step. `streamed`: it delivers items, each through `readUsage`. Throws if the permit or the
   * shared start has been lost since `isStale` was read: a listener of the host may have blocked the event loop.
   */
  begin(streamed = false): void {
    const gate = this.#gate;
    const now = gate.ring.now();
    if (!this.#losesPermit() && this.#reservation.shared?.begin() === false)
      this.onAbort(new LimitLostError(gate.settings.name, 'expired'));
    if (this.#isPermitLost) throw this.#reason;
    this.#state = 'begun';
    gate.attempts++;
    gate.running++;
    this.#isStream = streamed;
    this.#timed = gate.settings.adaptive?.begin({ streamed });
    gate.ring.begin(this.#reservation, now);
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
      this.#running++;
      // A promise of the host may have a `then` of its own.
      Promise.prototype.then.call(
        startOf(work),
        (value: T) => {
          if (!this.#aborted && this.#finishStep(step)) resolve(value);
          else onLate?.(value);
          this.#workSettled();
        },
        (error: unknown) => {
          if (this.#finishStep(step))
            settleInTurn(() => {
              this.cancel(error);
              reject(error);
            });
          this.#workSettled();
        },
      );
    });
  }

  /** Runs host code without a bound; `end` waits for it. */
  watch<T>(work: () => T | PromiseLike<T>): Promise<T> {
    this.#running++;
    const running = startOf(work);
    const settled = (): void => this.#workSettled();
    running.then(settled, settled);
    return running;
  }

  #workSettled(): void {
    if (--this.#running === 0 && this.#state === 'ended') this.#release();
  }

  /** Frees a result that no caller receives, and then cancels what still works on it. Never throws; `end` waits for it. */
  discard(free: () => unknown): void {
    const freed = (): void => this.cancel(new DOMException(DISCARDED, 'AbortError'));
    this.watch(free).then(freed, freed);
  }

  /** The first item of a stream has come, and the service has begun to answer: an adaptive limit learns from its time. */
  firstItem(): void {
    this.#timed?.firstItem();
  }

  /** Reports the outcome to its key; an adaptive limit learns it at the end. */
  report(classification: Classification): void {
    if (this.#state !== 'begun' || this.#isPermitLost) return;
    const { ring } = this.#gate;
    this.#load = classification.load;
    if (this.#isStream && this.#load === 'ok') this.firstItem();
    const early = this.#early;
    // The body has said nothing new: the cooldown that the headers began is not begun again.
    if (early?.class === classification.class && early.retryAfterMs === classification.retryAfterMs) return;
    ring.report(this.#reservation, classification);
  }

  /** Reports to its key what is known before the body of a response is read. */
  reportEarly(classification: Classification): void {
    if (this.#state !== 'begun') return;
    this.#early = classification;
    this.#gate.ring.report(this.#reservation, classification);
  }

  /** Aborts what still runs. */
  cancel(reason: unknown): void {
    if (!this.#aborted) {
      this.#aborted = true;
      this.#reason = reason;
    }
    const step = this.#step;
    if (this.#controller === undefined && step === undefined) return;
    // What follows is the code of the host and of the call, which for thousands of attempts takes long.
    settleInTurn(() => {
      this.#controller?.abort(this.#reason);
      if (step !== undefined && this.#finishStep(step)) step.reject(reason);
    });
  }

  /** The call ended early. */
  handleEvent(): void {
    this.cancel(this.#call.reason);
  }

  /** The permit was lost. */
  onAbort(reason: unknown): void {
    this.#isPermitLost = true;
    this.cancel(reason);
  }

  /** Releases what it holds: at once, or when the host code settles. */
  end(): void {
    if (this.#state === 'ended' || this.#state === 'released') return;
    const hasBegun = this.#state === 'begun';
    if (hasBegun) {
      this.#gate.running--;
      // Before the permit is released, which admits the next call.
      try {
        this.#timed?.end({ outcome: this.#load, usage: this.#generated() });
      } catch {
        // A service may report more tokens than a number can say.
      }
    }
    this.#state = 'ended';
    this.cost?.settle(hasBegun);
    this.#call.removeEventListener('abort', this);
    if (this.#running === 0) this.#release();
    else this.#graceTimer = setTimeout(() => this.#release(), GRACE_MS);
  }

  /** What its duration grows with: the tokens generated, or else its weight or its items. */
  #generated(): number | undefined {
    return this.#outputTokens ?? this.#usage ?? (this.#isStream ? this.#items : undefined);
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
    if (this.#permitSignal !== undefined) unwatchAbort(this.#permitSignal, this);
    this.#gate.ring.end(this.#reservation);
    if (this.#reservation.beganMs === undefined) returnPermit(this.#permit);
    else releasePermit(this.#permit, this.#load);
    this.#gate.releaseHeld();
  }
}

/** Calls host code that may throw as well as reject. */
function startOf<T>(work: () => T | PromiseLike<T>): Promise<T> {
  try {
    return Promise.resolve(work());
  } catch (error) {
    return Promise.reject(error);
  }
}

/** What responses said about tokens, the last of them. */
export interface TokenCounts {
  inputTokens?: number;
  outputTokens?: number;
}

function readTokens(value: unknown, tokens: TokenCounts): void {
  const input = inputTokensOf(value);
  const output = outputTokensOf(value);
  if (input !== undefined) tokens.inputTokens = input;
  if (output !== undefined) tokens.outputTokens = output;
}
