import { AsyncResource } from 'node:async_hooks';
import { GateTimeoutError, KeysExhaustedError } from '../errors.js';
import { boundedCall, ignoreRejection } from '../internal/abort.js';
import { afterThisTurn } from '../internal/clock.js';
import type { AcquireOptions, Permit } from '../limiter/limiter.js';
import { releasePermit, returnPermit } from '../limiter/semaphore.js';
import { Attempt, type AttemptContext, type TokenCounts } from './attempt.js';
import { type CallBounds, isTimeout } from './call-context.js';
import { CallCost } from './call-cost.js';
import {
  type Classification,
  classificationOf,
  classify,
  classifyOutcome,
  isOfService,
  type Judge,
  losesKey,
  type Observed,
} from './classify.js';
import { type CallEventEmitter, FailureSummary } from './events.js';
import { type GateState, GRACE_MS, type OpenCall } from './gate-state.js';
import type { KeyReservation } from './keys/api-key.js';
import type { GateCallOptions } from './options.js';
import { contentOf, discardResponse, errorHeadersOf, headersIn, isResponse } from './response-content.js';
import { backoffMs } from './retry.js';
import type { HeaderSource } from './retry-after.js';
import { sleep } from './wait.js';

/** What the attempts of a call do, and how its results are treated. */
export interface Work<T> extends Judge {
  run(context: AttemptContext): T | PromiseLike<T>;
  /** Whether the weight in the call's options is only an estimate, for which no window is too small. */
  readonly isEstimated?: boolean | undefined;
  /** Whether a result is the first item of a stream, and its end comes later. */
  readonly isStream?: boolean | undefined;
  /** Whether a result is only a beginning: its receiver ends the attempt. */
  readonly keepsAttempt?: boolean | undefined;
  /** What a classifier receives of a result. */
  observe(value: T): Observed;
  /** Whether it can be done again. @default always */
  isRepeatable?(): boolean;
  /** Reads what a result weighed, where that is not what `usage` makes of the value that a classifier receives. */
  readUsage?(value: T, attempt: Attempt): void;
  /** Of the request, where the gate sends it. */
  readonly url?: string | undefined;
  /** The headers of a response, where the value that a classifier receives is none. */
  headersOf?(value: T): HeaderSource;
  /** Whether it can return what a shared store has as its result. @default anything */
  acceptsStored?(value: unknown): boolean;
  /** Frees what a result holds that no caller receives. Settles when that is done, in either way. */
  discard(value: T): unknown;
}

/** Receives how a call ended. */
export type CallEnd = (call: GateCall<unknown>, failure: { readonly error: unknown } | undefined) => void;

/** What host code returned. A `Response` has been classified already. */
interface Returned<T> {
  readonly value: T;
  readonly classification?: Classification | undefined;
}
type Result<T> = Returned<T> | { readonly error: unknown };
type Tried<T> = Result<T> & { readonly classification: Classification };

const OK = /* @__PURE__ */ classificationOf({ class: 'ok' });
const FATAL = /* @__PURE__ */ classificationOf({ class: 'fatal' });
/** The permit was lost: this says nothing about the service or the key, and another attempt needs another permit. */
const LOST = /* @__PURE__ */ classificationOf({ class: 'retryable', overload: false });
const TIMED_OUT = /* @__PURE__ */ classificationOf({ class: 'retryable' });

/**
 * One call through the gate, attempt by attempt, in this order: the start of an attempt (permit, then key), the attempt itself,
 * its classification, and the decision about the next one.
 *
 * Invariants:
 * - Each attempt runs in the AsyncLocalStorage context of its caller.
 * - Between attempts, and while all keys are in cooldown, the call holds neither a permit nor a place in front of others.
 * - A permit that was granted and is not used is released in that step.
 * - The caller receives what the last attempt returned or threw; its outcome is left in the call's bounds.
 */
export class GateCall<T> implements OpenCall {
  readonly options: GateCallOptions;
  readonly events: CallEventEmitter;
  readonly #gate: GateState;
  readonly bounds: CallBounds;
  readonly #work: Work<T>;
  /** When the call began, on the gate's clock. */
  readonly openedMs: number;
  /** When it began to wait: for a permit and a key, or for the end of a backoff. */
  #waitsSinceMs: number | undefined;
  #attemptWaitMs = 0;
  #lostStarts = 0;
  attempts = 0;
  /** An attempt that only finds its key unusable costs nothing; but keys come back, and each is lost for free only once. */
  #freeLosses = 0;
  /** Milliseconds spent waiting for permits, starts and backoffs. */
  waitMs = 0;
  /** The last attempt, where the work keeps it: `end` it. */
  attempt: Attempt | undefined;
  /** The label of the last attempt's key. */
  key: string | undefined;
  /** What the call spends from its budget, if it has one. */
  cost: CallCost | undefined;
  /** Receives the end of the call, once. */
  readonly #onEnd: CallEnd | undefined;
  /** What its responses say about tokens, where the gate is that of an LLM. */
  readonly tokens: TokenCounts | undefined;
  /** The last failure of the service that this call met itself, and what was thrown. */
  #met: { readonly failure: FailureSummary; readonly error: unknown } | undefined;

  constructor(
    gate: GateState,
    events: CallEventEmitter,
    options: GateCallOptions,
    bounds: CallBounds,
    work: Work<T>,
    onEnd?: CallEnd,
  ) {
    this.#gate = gate;
    this.#onEnd = onEnd;
    this.openedMs = gate.ring.now();
    gate.open.add(this);
    this.events = events;
    this.options = options;
    this.bounds = bounds;
    this.#work = work;
    const { provider, hooks } = gate.settings;
    this.tokens = provider !== undefined && hooks.hasListeners('call:finished') ? {} : undefined;
  }

  /** Makes attempts until one is the last, and settles as it did. */
  perform(): Promise<T> {
    try {
      const { budget } = this.options;
      if (budget !== undefined) {
        this.bounds.throwIfAborted();
        this.cost = new CallCost(this.#gate, this.events, budget, this.options);
      }
      this.#gate.settings.retry.budget?.noteCall(this.openedMs);
      return this.#next(this.openedMs);
    } catch (error) {
      return Promise.reject(this.#failed(error));
    }
  }

  // The start of an attempt: a permit, then a key with capacity in all its windows. Plain `then` calls, since most calls of a
  // busy gate are here: an async function would hold its frame and another promise for each of them.

  /** Starts at once, or waits for its turn. */
  #next(nowMs: number): Promise<T> {
    this.#attemptWaitMs = 0;
    const attempt = this.#startNow(nowMs);
    if (attempt !== undefined) return this.#attempt(attempt);
    this.cost?.check();
    const gate = this.#gate;
    this.#waitsSinceMs = nowMs;
    gate.queued++;
    return this.#waitForPermit(gate.nextTurn(), nowMs);
  }

  /** Starts at once, if no call waits ahead, and a permit and a key are free. */
  #startNow(nowMs: number): Attempt | undefined {
    const gate = this.#gate;
    const { ownLimiter, ring } = gate;
    this.bounds.throwIfAborted();
    if (gate.queued > 0 || !gate.startsAtOnce) return undefined;
    const { tenant } = this.options;
    const permit = tenant === undefined ? ownLimiter?.tryAcquire() : ownLimiter?.tryAcquire({ tenant });
    if (ownLimiter !== undefined && permit === undefined) return undefined;
    const reservation = ring.take(this.#weight(), nowMs);
    if ('key' in reservation) return new Attempt(gate, this.bounds, permit, reservation);
    returnPermit(permit);
    return undefined;
  }

  /** In the order of the calls. A call that is sent back keeps its turn. */
  #waitForPermit(turn: number, nowMs = this.#gate.ring.now()): Promise<T> {
    return this.#after(
      () => this.#permit(turn, nowMs),
      (permit) =>
        this.#after(
          () => this.#reserve(),
          (reservation) => this.#start(turn, permit, reservation),
          permit,
        ),
    );
  }

  /** Goes on with what a wait results in, in the same step where there is none. A failure ends the call. */
  #after<G>(wait: () => Promise<G> | G, goOn: (result: G) => Promise<T>, permit?: Permit): Promise<T> {
    let result: Promise<G> | G;
    try {
      this.bounds.throwIfAborted();
      result = wait();
    } catch (error) {
      result = Promise.reject(error);
    }
    if (!(result instanceof Promise)) return goOn(result);
    return result.then(goOn, (error: unknown) => {
      returnPermit(permit);
      this.#endWait('queued');
      throw this.#failed(error);
    });
  }

  /** Starts, unless there is no key now, or what it has was lost meanwhile. */
  #start(turn: number, permit: Permit | undefined, reservation: KeyReservation | undefined): Promise<T> {
    if (reservation === undefined) {
      returnPermit(permit);
      return this.#waitForPermit(turn);
    }
    const attempt = new Attempt(this.#gate, this.bounds, permit, reservation);
    if (attempt.isStale) {
      attempt.end();
      if (this.#lostStarts++ === 0) return this.#waitForPermit(turn);
      // A limiter that grants only permits which are lost already must not keep the call's deadline from passing.
      return new Promise(afterThisTurn).then(() => this.#waitForPermit(turn));
    }
    this.#endWait('queued');
    return this.#attempt(attempt);
  }

  #endWait(count: 'queued' | 'backingOff'): void {
    const gate = this.#gate;
    gate[count]--;
    const waitedMs = gate.ring.now() - (this.#waitsSinceMs as number);
    this.#waitsSinceMs = undefined;
    this.waitMs += waitedMs;
    this.#attemptWaitMs += waitedMs;
  }

  /** Waits for the end of a cooldown of all keys, if there is one, and for a permit. */
  #permit(turn: number, nowMs: number): Promise<Permit | undefined> | undefined {
    const { ring, cooldownQueue } = this.#gate;
    const bounds = this.bounds;
    const { priority = 0 } = this.options;
    const weight = this.#weight();
    const closedMs = ring.retryAfterMs(nowMs, weight);
    if (closedMs > 0) {
      this.#rejectUnmeetable(closedMs);
      bounds.throwIfAborted();
      this.events.throttled('cooldown', closedMs);
    }
    if (closedMs === 0 && cooldownQueue.isEmpty) return this.#acquire();
    return cooldownQueue.enter({ weight, priority, turn, bounds }, () => this.#acquire());
  }

  #weight(): number {
    const { weight } = this.options;
    if (weight === undefined) return this.#gate.estimateWeight();
    return this.#work.isEstimated ? Math.min(weight, this.#gate.ring.maxWeight) : weight;
  }

  #acquire(): Promise<Permit> | undefined {
    const { ownLimiter, foreignLimiter: limiter } = this.#gate;
    if (limiter === undefined) return ownLimiter?.acquire(this.#acquireOptions(this.bounds.watchable));
    // A foreign limiter may ignore the signal, and grant a permit to a call that is over.
    return boundedCall<Permit>((signal) => limiter.acquire(this.#acquireOptions(signal)), {
      signal: this.bounds.signal,
      onLate: (late) => releasePermit(late, 'ignored'),
    });
  }

  #acquireOptions(signal: AbortSignal): AcquireOptions {
    const { priority, tenant, taskId, requestId } = this.options;
    return { signal, priority, tenant, taskId, requestId };
  }

  /** A key with capacity in all its windows; `undefined` if all keys are in cooldown now. */
  #reserve(): KeyReservation | Promise<KeyReservation | undefined> {
    const { startQueue, settings } = this.#gate;
    const { priority = 0 } = this.options;
    const weight = this.#weight();
    const reservation = startQueue.tryEnter(weight);
    if (reservation !== undefined) return reservation;
    return startQueue.enter({
      weight,
      priority,
      bounds: this.bounds,
      onUnmeetable: (closedMs) => this.#rejectUnmeetable(closedMs),
      // Runs in the step of the call that made room: the event belongs in the context of this caller.
      onWait: settings.hooks.hasListeners('call:throttled')
        ? AsyncResource.bind(({ retryAfterMs, reason }) => this.events.throttled(reason, retryAfterMs))
        : undefined,
    });
  }

  // The attempt.

  /** Makes an attempt and, if it is not the last, those that follow. */
  #attempt(attempt: Attempt): Promise<T> {
    try {
      // Aborted in the microtasks between its start and this step: an attempt does not hear of what was before it.
      this.bounds.throwIfAborted();
      // What waits reserves nothing.
      this.cost?.reserve(this.#met?.error);
      attempt.cost = this.cost;
      attempt.tokens = this.tokens;
      this.attempts++;
      this.key = attempt.keyLabel;
      this.events.started(this.attempts, this.key, this.#attemptWaitMs, this.#work.url);
      const returned = attempt.step(
        () => this.#run(attempt),
        ({ value }) => this.#discard(attempt, value),
      );
      return returned.then(
        (result) => {
          // Only data, which needs no classifier, ends here; the rest is in a function of its own, which few processes run.
          if (result.classification !== OK || this.bounds.aborted) return this.#goOn(attempt, result);
          attempt.report(OK);
          return this.#succeeded(attempt, result.value, OK);
        },
        (error: unknown) => this.#goOn(attempt, { error }),
      );
    } catch (error) {
      attempt.end();
      return Promise.reject(this.#failed(error));
    }
  }

  /** Runs the host code, and reads what it returns. */
  #run(attempt: Attempt): Promise<Returned<T>> {
    attempt.begin(this.#work.isStream);
    const running = Promise.resolve(this.#work.run(attempt.context(this.attempts)));
    // As `await` does, at less cost: a promise of the host may have a `then` of its own, which returns anything.
    const read = Promise.prototype.then.call(running, (value: T) => this.#read(attempt, value));
    return read as Promise<Returned<T>>;
  }

  #read(attempt: Attempt, value: T): Returned<T> | Promise<Returned<T>> {
    const { settings } = this.#gate;
    const observed = this.#work.observe(value);
    if (!('value' in observed)) return { value };
    if (settings.pace !== undefined)
      attempt.learnLimits(this.#work.headersOf?.(value) ?? headersIn(observed.value));
    if (Object(observed.value) === observed.value && isResponse(observed.value))
      return this.#readResponse(attempt, value, observed);
    if (this.#work.readUsage !== undefined) this.#work.readUsage(value, attempt);
    else {
      attempt.readUsage(observed.value);
      if (observed.kind === 'result') attempt.settleUsage();
    }
    const isData = settings.classify === undefined && this.#work.judge === undefined;
    return { value, classification: isData ? OK : undefined };
  }

  /**
   * What a `Response` means may stand in its body, and reading it is a part of the attempt: it is bounded by the attempt's
   * timeout, and fails as the network does.
   */
  async #readResponse(
    attempt: Attempt,
    value: T,
    observed: Observed & { readonly value: unknown },
  ): Promise<Returned<T>> {
    attempt.readCost(observed.value);
    try {
      const classification = this.#classify(observed);
      // The status is known before the body: a cooldown begins now, and not when a body has come to its end.
      if (classification instanceof Promise) {
        ignoreRejection(classification);
        const byStatus = classificationOf(classifyOutcome(observed));
        if (byStatus.class === 'rate-limited' || byStatus.retryAfterMs !== undefined)
          attempt.reportEarly(byStatus);
      }
      const known = await classification;
      if (known.class !== 'ok') return { value, classification: known };
      const readsBody = this.#gate.settings.usage !== undefined || attempt.cost?.readsActual;
      if (this.#work.readUsage !== undefined) this.#work.readUsage(value, attempt);
      else if (observed.kind === 'result' && readsBody) {
        attempt.readUsage((await contentOf(observed)).body);
        attempt.settleUsage();
      }
      return { value, classification: known };
    } catch (error) {
      discardResponse(observed.value);
      if (observed.value !== value) attempt.watch(() => this.#work.discard(value)).catch(() => {});
      throw error;
    }
  }

  #discard(attempt: Attempt, value: T): void {
    attempt.discard(() => this.#work.discard(value));
  }

  // What the attempt means.

  /** Classifies what an attempt came to, and makes those that follow. */
  async #goOn(attempt: Attempt, result: Result<T>): Promise<T> {
    const bounds = this.bounds;
    try {
      const tried = await this.#classified(attempt, result);
      const { classification } = tried;
      const retryAfterMs = this.#retryAfterMs(classification);
      const isLastKeyLost = retryAfterMs === undefined && this.#isLastKeyLost(classification);
      if ('value' in tried) {
        if (retryAfterMs === undefined && !bounds.aborted && !isLastKeyLost)
          return this.#succeeded(attempt, tried.value, classification);
        this.#discard(attempt, tried.value);
      }
      attempt.end();
      bounds.throwIfAborted();
      if (retryAfterMs === undefined) {
        const error = 'error' in tried ? tried.error : undefined;
        bounds.outcome = error instanceof GateTimeoutError ? 'timeout' : classification.class;
        throw isLastKeyLost ? this.#keysExhausted(this.#closedMs()) : error;
      }
      await this.#backOff(classification, retryAfterMs);
      // Not awaited: it reports its own failure.
      return this.#next(this.#gate.ring.now());
    } catch (error) {
      throw this.#failed(error);
    }
  }

  #succeeded(attempt: Attempt, value: T, classification: Classification): T {
    this.bounds.outcome = classification.class;
    if (this.#work.keepsAttempt) this.attempt = attempt;
    else attempt.end();
    this.#onEnd?.(this, undefined);
    return value;
  }

  /** Reports the end of the call. Returns the error. */
  #failed(error: unknown): unknown {
    this.#onEnd?.(this, { error });
    return error;
  }

  async #classified(attempt: Attempt, result: Result<T>): Promise<Tried<T>> {
    const bounds = this.bounds;
    let tried: Tried<T>;
    if ('error' in result && this.#gate.settings.pace !== undefined)
      attempt.learnLimits(errorHeadersOf(result.error));
    try {
      const classification = bounds.aborted
        ? this.#classificationOfAbort(attempt)
        : 'error' in result && attempt.wasLostWith(result.error)
          ? LOST
          : await this.#classificationOf(result);
      tried = { ...result, classification };
    } catch (error) {
      // The host's classifier failed, or the call ended meanwhile: no caller receives this result.
      if ('value' in result) this.#discard(attempt, result.value);
      tried = { error, classification: FATAL };
    }
    if (!bounds.aborted) this.#note(tried);
    attempt.report(tried.classification);
    return tried;
  }

  #classificationOf(result: Result<T>): Classification | Promise<Classification> {
    const { settings } = this.#gate;
    if ('value' in result && result.classification !== undefined) return result.classification;
    const observed: Observed =
      'error' in result ? { kind: 'error', error: result.error } : this.#work.observe(result.value);
    if (settings.classify === undefined) return this.#classify(observed);
    // No body has to be read, so this cannot take long.
    return boundedCall(() => this.#classify(observed), {
      signal: this.bounds.signal,
      timeoutMs: GRACE_MS,
      timeoutError: (ms) => new TypeError(`\`classify\` of ${settings.name} took longer than ${ms} ms`),
    });
  }

  #classify(observed: Observed): Classification | Promise<Classification> {
    return classify(observed, this.#gate.settings.classify, this.#work);
  }

  /**
   * A call whose deadline passed in an attempt that had most of the time shows a slow service; any other abort shows
   * nothing. The time is that of the deadline itself: the last seconds of a request do not measure a service. Where the
   * reason does not name it, it is the time since this call began, waiting included.
   */
  #classificationOfAbort(attempt: Attempt): Classification {
    const { reason } = this.bounds;
    if (!isTimeout(reason)) return FATAL;
    const { timeoutMs } = Object(reason) as { readonly timeoutMs?: unknown };
    const allowedMs = typeof timeoutMs === 'number' ? timeoutMs : this.#gate.ring.now() - this.openedMs;
    return attempt.ageMs > allowedMs / 2 ? TIMED_OUT : FATAL;
  }

  /** Keeps a failure: its error for this call alone, and a summary for all others. */
  #note(tried: Tried<T>): void {
    const { classification } = tried;
    const error = 'error' in tried ? tried.error : undefined;
    if (error !== undefined) this.bounds.failedWith(error);
    // A bug of the host, or a page that does not exist, is no reason why a key cannot serve.
    if (classification === LOST || !isOfService(classification)) return;
    const failure = new FailureSummary(classification, error);
    this.#gate.lastFailure = failure;
    this.#met = { failure, error };
  }

  // The next attempt.

  /** Milliseconds of the call's own backoff, to which a cooldown may be added; `undefined` if this attempt is the last. */
  #retryAfterMs(classification: Classification): number | undefined {
    if (!classification.retry || this.bounds.aborted || this.#work.isRepeatable?.() === false)
      return undefined;
    const { retry, keyed, keys } = this.#gate.settings;
    const isFree = losesKey(classification) && this.#freeLosses < keys.length;
    if (isFree) this.#freeLosses++;
    const counted = this.attempts - this.#freeLosses;
    if (counted >= retry.attempts || (losesKey(classification) && !keyed)) return undefined;
    const ownMs = classification.class === 'retryable' ? backoffMs(retry, counted) : 0;
    if (Math.max(ownMs, this.#closedMs()) >= this.bounds.remainingMs) return undefined;
    return isFree || (retry.budget?.tryTake(this.#gate.ring.now()) ?? true) ? ownMs : undefined;
  }

  /** Waits before the next attempt, holding nothing. A cooldown is waited for elsewhere: it may end early. */
  async #backOff(classification: Classification, retryAfterMs: number): Promise<void> {
    const gate = this.#gate;
    gate.retries++;
    const closedMs = this.#closedMs();
    this.events.retried(this.attempts, this.key, classification, Math.max(retryAfterMs, closedMs));
    if (retryAfterMs === 0) return;
    if (closedMs > 0) this.#rejectUnmeetable(closedMs);
    this.events.throttled('backoff', retryAfterMs);
    this.#waitsSinceMs = gate.ring.now();
    gate.backingOff++;
    try {
      await sleep(retryAfterMs, this.bounds);
    } finally {
      this.#endWait('backingOff');
    }
  }

  /** Whether this attempt lost the last key. Its caller gets the error of the calls that follow, also in place of a `Response`. */
  #isLastKeyLost(classification: Classification): boolean {
    return losesKey(classification) && this.#gate.settings.keyed && this.#closedMs() > 0;
  }

  /** For how long all keys are in cooldown that could serve this call. */
  #closedMs(): number {
    const { ring } = this.#gate;
    return ring.retryAfterMs(ring.now(), this.#weight());
  }

  /** No key can serve for so long. A call that cannot wait until then is rejected now. */
  #rejectUnmeetable(closedMs: number, bounds = this.bounds): void {
    bounds.rejectUnmeetable(closedMs, () => this.#keysExhausted(closedMs));
  }

  #keysExhausted(closedMs: number): KeysExhaustedError {
    const { settings, lastFailure } = this.#gate;
    const isOwn = this.#met !== undefined && this.#met.failure === lastFailure;
    const cause = (isOwn ? this.#met?.error : undefined) ?? lastFailure?.toError();
    return new KeysExhaustedError(settings.name, Number.isFinite(closedMs) ? closedMs : undefined, cause);
  }

  // What happens to a call from outside.

  /** A stream failed after its first item: too late for another attempt, but not for its key. */
  async failLater(attempt: Attempt, error: unknown): Promise<void> {
    const { classification } = await this.#classified(attempt, { error });
    if (!this.bounds.aborted)
      this.bounds.outcome = error instanceof GateTimeoutError ? 'timeout' : classification.class;
  }

  /** A stream was aborted after its first item. Only an exceeded deadline says anything about the service. */
  abortLater(attempt: Attempt): void {
    const classification = this.#classificationOfAbort(attempt);
    if (classification === TIMED_OUT) attempt.report(classification);
  }

  /** Keys went into cooldown, or a caller joined with its own `bounds`: can a waiting call still meet them? */
  recheck(bounds = this.bounds): boolean {
    if (this.bounds.aborted || this.#waitsSinceMs === undefined) return false;
    const closedMs = this.#closedMs();
    if (closedMs > 0) this.#rejectUnmeetable(closedMs, bounds);
    return this.bounds.aborted;
  }
}
