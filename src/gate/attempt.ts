import { GateTimeoutError } from '../errors.js';
import type { PermitOutcome } from '../hooks/events.js';
import { linkedController } from '../internal/abort-watch.js';
import { boundedCall } from '../internal/bounded-call.js';
import { nowMs } from '../internal/clock.js';
import { wholeNumber } from '../internal/validate.js';
import type { Permit } from '../limiter/limiter.js';
import { type GateCore, GRACE_MS } from './gate-core.js';
import type { KeyUse } from './gate-key.js';
import type { Verdict } from './outcome.js';

/** What the code of an attempt is given. */
export interface AttemptContext {
  /** Aborts when the attempt is over its time, and whenever the call ends early. Pass it on to the client. */
  readonly signal: AbortSignal;
  /** The key to use; empty where the gate has none. */
  readonly key: string;
  /** Counts from 1. */
  readonly attempt: number;
  /**
   * Corrects the call's `weight` once the real one is known: the tokens in an answer's `usage`, say. Counts in windows
   * of that unit, for as long as the attempt counts there. A whole number from 0.
   */
  settle(actual: number): void;
}

const NOT_WANTED = 'What this attempt gave is not wanted';

/**
 * One attempt: its permit and its use of a key.
 *
 * Invariants:
 * - It is charged in the step in which the host's code starts, neither earlier nor later.
 * - Permit and key are given back exactly once, after `end`: when the host's code has come to its end, because until
 *   then the service may still be at work. Code that does not heed its signal is waited for no longer than `GRACE_MS`.
 */
export class Attempt {
  readonly context: AttemptContext;
  readonly #core: GateCore;
  readonly #permit: Permit | undefined;
  readonly #use: KeyUse;
  readonly #controller: AbortController;
  readonly #unlink: () => void;
  /** On the clock of the adaptive limit. */
  #startedMs = 0;
  /** What the host's code is still doing; never rejects. */
  #busy: Promise<void> | undefined;
  #load: Verdict['load'] = 'ignored';
  #state: 'charged' | 'begun' | 'ended' | 'over' = 'charged';

  constructor(core: GateCore, attempt: number, permit: Permit | undefined, use: KeyUse, signal: AbortSignal) {
    this.#core = core;
    this.#permit = permit;
    this.#use = use;
    const { controller, unlink } = linkedController(signal);
    this.#controller = controller;
    this.#unlink = unlink;
    this.context = {
      signal: controller.signal,
      key: use.key.key,
      attempt,
      settle: (actual) => core.ring.settle(use, wholeNumber('actual', actual, 0)),
    };
    core.held++;
  }

  /** The key, masked; `undefined` where the gate has none. */
  get key(): string | undefined {
    return this.#core.settings.keyed ? this.#use.key.label : undefined;
  }

  /** Whether its key was sent to rest since it was chosen, by an answer that came in the steps between. */
  get isStale(): boolean {
    return this.#use.key.restMs(nowMs()) > 0;
  }

  /** Milliseconds since the host's code started. */
  get ageMs(): number {
    return nowMs() - (this.#use.beganMs ?? nowMs());
  }

  /** The host's code starts in this step. */
  begin(): void {
    const core = this.#core;
    this.#state = 'begun';
    core.attempts++;
    core.running++;
    this.#startedMs = core.settings.adaptive?.clockMs() ?? 0;
    core.ring.begin(this.#use, nowMs());
  }

  /**
   * Runs code of the host, bounded by the attempt's timeout and by the call's signal. Where it fails or is given up, the
   * attempt's own signal aborts; `onLate` gets what it brings after all.
   */
  async step<T>(work: () => T | PromiseLike<T>, onLate?: (value: T) => void): Promise<T> {
    const { name, attemptTimeoutMs } = this.#core.settings;
    try {
      return await boundedCall(() => this.watch(work), {
        signal: this.context.signal,
        ...(attemptTimeoutMs === undefined ? {} : { timeoutMs: attemptTimeoutMs }),
        timeoutError: (ms) => new GateTimeoutError(name, 'attempt', ms),
        ...(onLate === undefined ? {} : { onLate }),
      });
    } catch (error) {
      this.cancel(error);
      throw error;
    }
  }

  /** Runs code of the host without a bound; `end` will wait for it. */
  watch<T>(work: () => T | PromiseLike<T>): Promise<T> {
    const running = (async () => work())();
    const before = this.#busy;
    const busy: Promise<void> = running
      .then(
        () => before,
        () => before,
      )
      .then(() => {
        if (this.#busy === busy) this.#busy = undefined;
      });
    this.#busy = busy;
    return running;
  }

  /** Frees a result that nobody will get, and then ends whatever still works on it. Never throws; `end` waits for it. */
  discard(free: () => unknown): void {
    const freed = (): void => this.cancel(new DOMException(NOT_WANTED, 'AbortError'));
    this.watch(free).then(freed, freed);
  }

  /** Makes known what became of it, to its key and to the adaptive limit. */
  judge(verdict: Verdict): void {
    if (this.#state !== 'begun') return;
    const { ring, settings, running } = this.#core;
    this.#load = verdict.load;
    ring.judge(this.#use, verdict, nowMs());
    settings.adaptive?.onSample({ startedMs: this.#startedMs, outcome: verdict.load, inFlight: running });
  }

  /** Whatever still runs is not wanted any more. */
  cancel(reason: unknown): void {
    this.#controller.abort(reason);
  }

  /** Gives back what it holds; at once, or as soon as the host's code lets go. */
  end(): void {
    if (this.#state === 'ended' || this.#state === 'over') return;
    if (this.#state === 'begun') this.#core.running--;
    this.#state = 'ended';
    this.#unlink();
    if (this.#busy === undefined) {
      this.#giveBack();
      return;
    }
    const timer = setTimeout(() => this.#giveBack(), GRACE_MS);
    void this.#busy.then(() => {
      clearTimeout(timer);
      this.#giveBack();
    });
  }

  #giveBack(): void {
    if (this.#state === 'over') return;
    this.#state = 'over';
    this.#core.ring.end(this.#use);
    this.#core.letGo();
    giveBack(this.#permit, this.#load);
  }
}

/** Gives a permit back. A limiter from elsewhere that fails here has a fault of its own: no call's result is lost for it. */
export function giveBack(permit: Permit | undefined, outcome: PermitOutcome): void {
  try {
    permit?.release(outcome);
  } catch {}
}
