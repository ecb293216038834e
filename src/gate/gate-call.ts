import { GateTimeoutError, KeysExhaustedError } from '../errors.js';
import { nowMs } from '../internal/clock.js';
import { Attempt, type AttemptContext } from './attempt.js';
import { CallEntry } from './call-entry.js';
import { type CallBounds, isTimeout } from './call-scope.js';
import type { CallTeller } from './call-teller.js';
import type { GateCore, WaitingCall } from './gate-core.js';
import type { GateCallOptions } from './gate-options.js';
import { MetFailure } from './met-failure.js';
import {
  discardResponse,
  isOfService,
  isResponse,
  type Observed,
  type Verdict,
  verdictOf,
} from './outcome.js';
import { backoffMs, waitOut } from './retry.js';

/** What a call's attempts do, and how its results are treated. */
export interface Work<T> {
  run(context: AttemptContext): T | PromiseLike<T>;
  /** What a classifier is shown of a result. */
  observe(value: T): Observed;
  /** Frees what a result holds that nobody will get. Settles when that is done; how, does not matter. */
  discard(value: T): unknown;
}

type Tried<T> = ({ readonly value: T } | { readonly error: unknown }) & { readonly verdict: Verdict };

const STOP = verdictOf('stop');
const TIMED_OUT = verdictOf('wait');

const losesKey = (verdict: Verdict): boolean => verdict.class === 'key-dead' || verdict.class === 'key-spent';

/**
 * One call's way through the gate, from attempt to attempt.
 *
 * Invariants:
 * - Each attempt runs in the caller's own AsyncLocalStorage context.
 * - Between attempts, and while all keys rest, the call holds nothing.
 * - What the last attempt gave is what the caller gets: its result, or its error. What it meant is left in the bounds.
 */
export class GateCall<T> implements WaitingCall {
  readonly options: GateCallOptions;
  readonly teller: CallTeller;
  readonly #core: GateCore;
  readonly #bounds: CallBounds;
  readonly #work: Work<T>;
  readonly #entry: CallEntry;
  attempts = 0;
  /** Milliseconds waited for permits, starts and back-offs. */
  waitMs = 0;
  /** The key of the last attempt, masked. */
  key: string | undefined;
  readonly #openedMs = nowMs();
  #attemptWaitMs = 0;
  /** The last failure of the service that this call met itself, and what was thrown. */
  #met: { readonly failure: MetFailure; readonly error: unknown } | undefined;

  constructor(
    core: GateCore,
    teller: CallTeller,
    options: GateCallOptions,
    bounds: CallBounds,
    work: Work<T>,
  ) {
    this.#core = core;
    this.teller = teller;
    this.options = options;
    this.#bounds = bounds;
    this.#work = work;
    const onClosed = (forMs: number): void => this.#turnAway(forMs);
    this.#entry = new CallEntry({ core, options, bounds, teller, onClosed });
  }

  /** Tries until it is done. The attempt that comes with the result still holds its permit: `end` it. */
  async perform(): Promise<{ readonly value: T; readonly attempt: Attempt }> {
    const { signal } = this.#bounds;
    this.#core.settings.retry.budget?.noteCall(nowMs());
    // Finding out that a key is no good costs no attempt; but keys come back, and each can be lost only once for free.
    let free = this.#core.settings.keys.length;
    let counted = 0;
    for (;;) {
      const turn = this.#core.nextTurn();
      let attempt = await this.#enter(turn);
      while (attempt.isStale) {
        attempt.end();
        attempt = await this.#enter(turn);
      }
      const tried = await this.#try(attempt);
      const { verdict } = tried;
      const isFree = losesKey(verdict) && free-- > 0;
      if (!isFree) counted++;
      const delayMs = signal.aborted ? undefined : this.#retryInMs(verdict, counted, isFree);
      if ('value' in tried && delayMs === undefined && !signal.aborted) {
        this.#bounds.outcome = verdict.class;
        return { value: tried.value, attempt };
      }
      if ('value' in tried) this.#discard(attempt, tried.value);
      attempt.end();
      signal.throwIfAborted();
      if (delayMs !== undefined) await this.#backOff(verdict, delayMs);
      else if ('error' in tried) {
        this.#bounds.outcome = tried.error instanceof GateTimeoutError ? 'timeout' : verdict.class;
        throw tried.error;
      }
    }
  }

  /** Learns that a stream failed after its first item: too late for another attempt, but not for its key to know. */
  async failLater(attempt: Attempt, error: unknown): Promise<void> {
    const { verdict } = await this.#judge(attempt, { error });
    if (!this.#bounds.signal.aborted)
      this.#bounds.outcome = error instanceof GateTimeoutError ? 'timeout' : verdict.class;
  }

  /** Learns that a stream was aborted after its first item. Only a time that was up says anything of the service. */
  abortLater(attempt: Attempt): void {
    const verdict = this.#verdictOfAbort(attempt);
    if (verdict === TIMED_OUT) attempt.judge(verdict);
  }

  /** Keys rest, or somebody has joined it who may have less time than the others: if it waits, does it for too long? */
  recheck(): void {
    if (!this.#core.waiting.has(this)) return;
    const closedMs = this.#closedMs();
    if (closedMs > 0) this.#turnAway(closedMs);
  }

  /** While it waits: no key can serve for so many milliseconds. Who cannot wait for so long is told at once. */
  #turnAway(forMs: number): void {
    this.#bounds.turnAway(nowMs() + forMs, () => this.#exhausted(forMs));
  }

  /** For how long all keys rest that could take it. */
  #closedMs(): number {
    return this.#core.ring.opensInMs(nowMs(), this.options.weight);
  }

  /** Waits for everything that an attempt needs. */
  async #enter(turn: number): Promise<Attempt> {
    const core = this.#core;
    const askedMs = nowMs();
    core.waiting.add(this);
    try {
      const { permit, use } = await this.#entry.enter(turn);
      return new Attempt(core, this.attempts + 1, permit, use, this.#bounds.signal);
    } finally {
      core.waiting.delete(this);
      this.#attemptWaitMs = nowMs() - askedMs;
      this.waitMs += this.#attemptWaitMs;
    }
  }

  /** Makes the attempt and judges it. Never rejects. */
  async #try(attempt: Attempt): Promise<Tried<T>> {
    this.attempts++;
    this.key = attempt.key;
    this.teller.started(this.attempts, this.key, this.#attemptWaitMs);
    try {
      const result = await attempt.step(
        () => {
          attempt.begin();
          return this.#result(attempt.context);
        },
        ({ value }) => this.#discard(attempt, value),
      );
      return await this.#judge(attempt, result);
    } catch (error) {
      return this.#judge(attempt, { error });
    }
  }

  /**
   * Runs the host's code. What a `Response` means may stand in its body, and reading that is a part of the attempt: it
   * takes the attempt's time, ends with it, and fails as the network does.
   */
  async #result(context: AttemptContext): Promise<{ readonly value: T; readonly verdict?: Verdict }> {
    const value = await this.#work.run(context);
    if (!isResponse(value)) return { value };
    try {
      return { value, verdict: await this.#core.classify({ kind: 'result', value }) };
    } catch (error) {
      discardResponse(value);
      throw error;
    }
  }

  async #judge(
    attempt: Attempt,
    result: { readonly value: T; readonly verdict?: Verdict } | { readonly error: unknown },
  ): Promise<Tried<T>> {
    let judged: Tried<T>;
    try {
      const { signal } = this.#bounds;
      const verdict = signal.aborted ? this.#verdictOfAbort(attempt) : await this.#verdictOf(result);
      judged = { ...result, verdict };
    } catch (error) {
      // The host's classifier is at fault, or the call ended meanwhile: nobody gets this result.
      if ('value' in result) this.#discard(attempt, result.value);
      judged = { error, verdict: STOP };
    }
    if (!this.#bounds.signal.aborted) this.#note(judged);
    attempt.judge(judged.verdict);
    return judged;
  }

  #verdictOf(
    result: { readonly value: T; readonly verdict?: Verdict } | { readonly error: unknown },
  ): Verdict | Promise<Verdict> {
    if ('value' in result && result.verdict !== undefined) return result.verdict;
    const observed: Observed =
      'error' in result ? { kind: 'error', error: result.error } : this.#work.observe(result.value);
    return this.#core.judge(observed, this.#bounds.signal);
  }

  /** Keeps a failure: its error for this call alone, and for all others what it was. */
  #note(tried: Tried<T>): void {
    const { verdict } = tried;
    const error = 'error' in tried ? tried.error : undefined;
    if (error !== undefined) {
      this.#bounds.lastFailure = error;
      this.teller.mark(error);
    }
    // A bug of the host, or a page that is not there, is no reason why a key is not.
    if (!isOfService(verdict)) return;
    const failure = new MetFailure(verdict, error);
    this.#core.lastFailure = failure;
    this.#met = { failure, error };
  }

  #discard(attempt: Attempt, value: T): void {
    attempt.discard(() => this.#work.discard(value));
  }

  /**
   * A call whose time was up in an attempt that had most of it shows a slow service; any other end shows nothing. The
   * time is what the reason says was allowed: a request's last seconds are no measure of a service. Where it says
   * nothing, it is that of this call, waiting included: then the service was slow, and not the line.
   */
  #verdictOfAbort(attempt: Attempt): Verdict {
    const { reason } = this.#bounds.signal;
    if (!isTimeout(reason)) return STOP;
    const { timeoutMs } = Object(reason) as { readonly timeoutMs?: unknown };
    const allowedMs = typeof timeoutMs === 'number' ? timeoutMs : nowMs() - this.#openedMs;
    return attempt.ageMs > allowedMs / 2 ? TIMED_OUT : STOP;
  }

  /** Milliseconds of its own back-off, to which a rest of the keys may be added; `undefined` if there will be no other attempt. */
  #retryInMs(verdict: Verdict, counted: number, isFree: boolean): number | undefined {
    const { settings } = this.#core;
    const { retry, keyed } = settings;
    if (!verdict.retry) return undefined;
    if (counted >= retry.attempts || (losesKey(verdict) && !keyed)) return undefined;
    const now = nowMs();
    const ownMs = verdict.class === 'wait' ? backoffMs(retry, counted) : 0;
    if (now + Math.max(ownMs, this.#closedMs()) >= this.#bounds.deadlineMs) return undefined;
    return isFree || (retry.budget?.tryTake(now) ?? true) ? ownMs : undefined;
  }

  /** Waits before the next attempt, holding nothing. A rest of the keys is waited out where it may end early. */
  async #backOff(verdict: Verdict, delayMs: number): Promise<void> {
    const core = this.#core;
    core.retries++;
    const closedMs = this.#closedMs();
    this.teller.retried(this.attempts, this.key, verdict, Math.max(delayMs, closedMs));
    if (delayMs === 0) return;
    const fromMs = nowMs();
    if (closedMs > 0) this.#turnAway(closedMs);
    this.teller.throttled('backoff', delayMs);
    core.waiting.add(this);
    core.backingOff++;
    try {
      await waitOut(delayMs, this.#bounds.signal);
    } finally {
      core.backingOff--;
      core.waiting.delete(this);
      this.waitMs += nowMs() - fromMs;
    }
  }

  #exhausted(forMs: number): KeysExhaustedError {
    const { settings, lastFailure } = this.#core;
    const retryAfterMs = Number.isFinite(forMs) ? forMs : undefined;
    const own = this.#met?.failure === lastFailure ? this.#met?.error : undefined;
    const cause = own === undefined ? lastFailure?.toError() : this.teller.cause(own);
    return new KeysExhaustedError(settings.name, retryAfterMs, cause);
  }
}
