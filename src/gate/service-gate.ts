import { GateClosedError, GateTimeoutError, KeysExhaustedError } from '../errors.js';
import type { LifecycleHooks } from '../hooks/lifecycle-hooks.js';
import { nowMs } from '../internal/clock.js';
import { MASK } from '../internal/told-error.js';
import { callable } from '../internal/validate.js';
import type { AdaptiveLimit } from '../limiter/adaptive-limit.js';
import type { AttemptContext } from './attempt.js';
import { type CallBounds, CallScope, type GateOutcome, isTimeout } from './call-scope.js';
import { CallTeller } from './call-teller.js';
import { GateCall, type Work } from './gate-call.js';
import { GateCore } from './gate-core.js';
import {
  checkCallOptions,
  type GateCallOptions,
  gateSettings,
  type ServiceGateOptions,
} from './gate-options.js';
import type { GateStats } from './gate-stats.js';
import { GateStream, type GateStreamSource } from './gate-stream.js';
import { discardResponse, isResponse } from './outcome.js';
import { RequestCache } from './request-cache.js';

export type { GateStats } from './gate-stats.js';

/** A call that has begun, as the gate keeps book of it. */
interface OpenCall<T> {
  readonly scope: CallScope;
  readonly startedMs: number;
  call: GateCall<T>;
  /** Where what became of the call is left: its scope, or the flight that it waits for. */
  bounds: CallBounds;
  cache: 'off' | 'hit' | 'miss' | 'shared';
}

/**
 * The guard of one outside service: every call of this process to it goes through here, on the host's own client.
 *
 * The way of a call: the cache, a call for the same answer that is under way, the deadline; then for each attempt a
 * permit (in order, by priority, tenants in turn), a key with room in all its windows, taken in one step, and the
 * attempt itself. A back-off holds nothing, and neither does waiting while all keys rest.
 *
 * Invariants:
 * - No window is exceeded, at any alignment, by any burst, stall of the event loop or step of the wall clock.
 * - Never more than `maxConcurrent` attempts are under way, streams counted to their last item.
 * - A key that was refused is used by nobody until its rest is over; then one attempt goes first.
 * - An abort, wherever it comes, settles the caller in that step and leaves nothing behind.
 * - What the last attempt gave is what the caller gets. A `Response` that is a failure is returned, not thrown.
 *
 * @example
 * const serper = new ServiceGate({ name: 'serper', keys, rate: [{ limit: 50, perMs: 1_000 }], attemptTimeoutMs: 20_000 });
 * const found = await serper.run(
 *   async ({ key, signal }) => {
 *     const response = await fetch('https://google.serper.dev/search', {
 *       method: 'POST',
 *       headers: { 'X-API-KEY': key, 'content-type': 'application/json' },
 *       body: JSON.stringify({ q: question }),
 *       signal,
 *     });
 *     const { ok, status, headers } = response;
 *     if (!ok) throw Object.assign(new Error(await response.text()), { status, headers });
 *     return response.json(); // within the attempt: its time, its signal and its permit end with it
 *   },
 *   { signal, timeoutMs: 60_000 },
 * );
 */
export class ServiceGate {
  readonly name: string;
  readonly hooks: LifecycleHooks;
  /** Finds the limit, where the gate was made with `adaptive`; feed it a gauge if the service has one. */
  readonly adaptive: AdaptiveLimit | undefined;
  readonly #core: GateCore;
  readonly #cache: RequestCache;
  readonly #scopes = new Set<CallScope>();
  readonly #finished = new Map<GateOutcome, number>();
  readonly #cacheCounts = { off: 0, hit: 0, miss: 0, shared: 0 };
  #calls = 0;
  #closed: Promise<void> | undefined;

  /** @throws {TypeError | RangeError} naming the option that is wrong */
  constructor(given: ServiceGateOptions) {
    const settings = gateSettings(given);
    this.name = settings.name;
    this.hooks = settings.hooks;
    this.adaptive = settings.adaptive;
    this.#core = new GateCore(settings);
    this.#cache = new RequestCache(settings.cache);
  }

  /**
   * Makes a call. `fn` runs once for each attempt; whatever it returns or throws is judged by `classify`. Read the body of
   * a `Response` in `fn`: once it is returned the call is over, and neither its signal nor its time ends the body.
   *
   * With a `cacheKey`, a kept answer or another's call under way may answer instead. Answers are shared as they are:
   * treat them as read-only, and return data, not a `Response`, whose body can be read once.
   *
   * Rejects with what the last attempt threw; with `signal.reason`; with `GateTimeoutError` when the call or its last
   * attempt is over its time; with `KeysExhaustedError` as soon as it is certain that no key can serve it in time; with
   * `GateClosedError`; with the error of a limiter that turns it away; or with a `TypeError` or `RangeError` naming a
   * wrong option.
   */
  async run<R>(
    fn: (context: AttemptContext) => R | PromiseLike<R>,
    options: GateCallOptions = {},
  ): Promise<R> {
    callable('fn', fn);
    checkCallOptions(options, this.#core.settings.maxWeight, false);
    const work: Work<R> = {
      run: options.cacheKey === undefined ? fn : async (context) => dataOnly(await fn(context)),
      observe: (value) => ({ kind: 'result', value }),
      discard: discardResponse,
    };
    const open = this.#open(options, work);
    try {
      const { cacheKey } = options;
      const value = await (cacheKey === undefined
        ? this.#land(open.call)
        : this.#share(open, cacheKey, work));
      this.#finish(open);
      return value;
    } catch (error) {
      this.#finish(open, { error });
      throw error;
    }
  }

  /**
   * Makes a call whose answer is a stream, and holds its permit to the last item. The first item is judged like a
   * result: a stream that opens with an error is tried again, and nobody sees it. Later errors are the reader's.
   *
   * `attemptTimeoutMs` bounds the wait for the first item and for each one after it, `timeoutMs` the whole. Nothing
   * happens before the first `next`. It rejects as `run` does.
   *
   * @throws {TypeError | RangeError} naming the option that is wrong
   *
   * @example
   * const tokens = llm.stream(({ signal }) => openai.chat.completions.create({ ...request, stream: true }, { signal }));
   * for await (const chunk of tokens) process.stdout.write(chunk.choices[0]?.delta.content ?? '');
   */
  stream<T>(
    fn: GateStreamSource<T>,
    options: Omit<GateCallOptions, 'cacheKey'> = {},
  ): AsyncIterableIterator<T> & AsyncDisposable {
    callable('fn', fn);
    checkCallOptions(options, this.#core.settings.maxWeight, true);
    return new GateStream<T>((work) => {
      const open = this.#open(options, work);
      return { scope: open.scope, call: open.call, finish: (failure) => this.#finish(open, failure) };
    }, fn);
  }

  /** Puts a key back to use that was refused, spent or throttled; whether the gate has such a key. */
  restoreKey(key: string): boolean {
    return this.#core.ring.restore(key);
  }

  /** Counts, as they stand. */
  stats(): GateStats {
    const { limiter, ring, settings, turnstile, restRoom, attempts, retries, running, backingOff } =
      this.#core;
    const now = nowMs();
    return Object.freeze({
      name: this.name,
      closed: this.#closed !== undefined,
      calls: this.#calls,
      finished: Object.freeze(Object.fromEntries(this.#finished)),
      attempts,
      retries,
      running,
      waitingForStart: turnstile.waiting,
      backingOff: backingOff + restRoom.waiting,
      limiter: limiter?.stats(),
      retriesLeft: settings.retry.budget?.left(now) ?? Number.POSITIVE_INFINITY,
      opensInMs: ring.opensInMs(now),
      keys: Object.freeze(ring.stats(now)),
      cache: Object.freeze({
        size: this.#cache.size,
        inFlight: this.#cache.flights,
        hits: this.#cacheCounts.hit,
        shared: this.#cacheCounts.shared,
        misses: this.#cacheCounts.miss,
      }),
    });
  }

  /**
   * Ends every call with `GateClosedError`, those under way by their signal, and takes no more. Settles when nothing is
   * held any longer; code that does not heed its signal is waited for five seconds. A limiter from elsewhere stays open.
   */
  close(): Promise<void> {
    this.#closed ??= this.#close();
    return this.#closed;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #close(): Promise<void> {
    for (const scope of this.#scopes) scope.abort(new GateClosedError(this.name));
    this.#cache.clear();
    this.#core.closeLimiter();
    await this.#core.onIdle();
  }

  #open<T>(options: GateCallOptions, work: Work<T>): OpenCall<T> {
    if (this.#closed !== undefined) throw new GateClosedError(this.name);
    const { mask, settings } = this.#core;
    const teller = new CallTeller(settings, ++this.#calls, options, mask);
    const scope = new CallScope({
      signal: options.signal,
      timeoutMs: options.timeoutMs ?? settings.timeoutMs,
      timeoutError: (ms, lastFailure) =>
        new GateTimeoutError(this.name, 'call', ms, teller.cause(lastFailure)),
    });
    const call = new GateCall(this.#core, teller, options, scope, work);
    const open: OpenCall<T> = { scope, startedMs: nowMs(), call, bounds: scope, cache: 'off' };
    this.#scopes.add(scope);
    return open;
  }

  /** Performs a call whose result is complete. */
  async #land<T>(call: GateCall<T>): Promise<T> {
    const { value, attempt } = await call.perform();
    attempt.end();
    return value;
  }

  /** Answers from the cache, or by a call for the same answer that is under way, or by one that others may join. */
  async #share<R>(open: OpenCall<R>, cacheKey: string, work: Work<R>): Promise<R> {
    const { scope, call } = open;
    scope.signal.throwIfAborted();
    const kept = this.#cache.answer(cacheKey);
    if (kept !== undefined) {
      open.cache = 'hit';
      scope.outcome = 'ok';
      this.#tellHit(call, false);
      return kept.value as R;
    }
    const under = this.#cache.flight(cacheKey);
    open.cache = under === undefined ? 'miss' : 'shared';
    if (under !== undefined) this.#tellHit(call, true);
    else if (this.hooks.hears('cache:miss')) this.hooks.emit('cache:miss', call.teller.told());
    // A listener may have ended it: a call that nobody waits for has no end.
    scope.signal.throwIfAborted();
    const flight =
      under ??
      this.#cache.launch(cacheKey, call.options[MASK], (bounds) => {
        const made = new GateCall(this.#core, call.teller, call.options, bounds, work);
        open.call = made;
        bounds.onJoin = () => made.recheck();
        return this.#land(made);
      });
    open.bounds = flight;
    if (flight.mask !== undefined) call.options[MASK]?.join?.(flight.mask);
    return (await flight.join(scope)) as R;
  }

  #tellHit(call: GateCall<unknown>, shared: boolean): void {
    if (this.hooks.hears('cache:hit')) this.hooks.emit('cache:hit', { ...call.teller.told(), shared });
  }

  /** Keeps book of the end of a call, once. */
  #finish<T>(open: OpenCall<T>, failure?: { readonly error: unknown }): void {
    const { scope, call, bounds, cache, startedMs } = open;
    if (!this.#scopes.delete(scope)) return;
    scope.end();
    this.#cacheCounts[cache]++;
    const left = failure !== undefined && scope.signal.aborted;
    const outcome = (left ? undefined : bounds.outcome) ?? outcomeOf(failure?.error, left);
    this.#finished.set(outcome, (this.#finished.get(outcome) ?? 0) + 1);
    if (!this.hooks.hears('call:finished')) return;
    this.hooks.emit('call:finished', {
      ...call.teller.told(),
      outcome,
      attempts: call.attempts,
      ...(call.key === undefined ? {} : { key: call.key }),
      durationMs: nowMs() - startedMs,
      waitMs: call.waitMs,
      cache,
      ...(failure === undefined ? {} : { error: call.teller.failure(failure.error) }),
    });
  }
}

/** What several callers can share. */
function dataOnly<R>(value: R): R {
  if (!isResponse(value)) return value;
  discardResponse(value);
  throw new TypeError(
    'A call with a `cacheKey` must return data: the body of a `Response` can be read only once',
  );
}

/** How a call ended that no attempt ended. */
function outcomeOf(error: unknown, left: boolean): GateOutcome {
  if (error instanceof GateTimeoutError || (left && isTimeout(error))) return 'timeout';
  if (!left || error instanceof GateClosedError || error instanceof KeysExhaustedError) return 'rejected';
  return 'aborted';
}
