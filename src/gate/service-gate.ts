import { BudgetExceededError, GateClosedError, GateTimeoutError, KeysExhaustedError } from '../errors.js';
import type { LifecycleHooks } from '../hooks/lifecycle-hooks.js';
import { inBatches } from '../internal/clock.js';
import { redactError } from '../internal/redaction.js';
import { sharedStack } from '../internal/shared-stack.js';
import { options as checkOptions, optional, refusal, text } from '../internal/validate.js';
import type { AdaptiveLimit } from '../limiter/adaptive-limit.js';
import { currentScope, inheritedPriority } from '../request/current-request.js';
import type { AttemptContext } from './attempt.js';
import { RequestCache, type StoreOperation } from './cache.js';
import { type CallEnd, GateCall, type Work } from './call.js';
import { CALL_CONTEXT, type CallBounds, CallContext, type GateOutcome, isTimeout } from './call-context.js';

import { CallEventEmitter } from './events.js';
import { type GateFetchOptions, gatedFetch } from './fetch.js';
import { GateState, type GateStats, type OpenCall } from './gate-state.js';
import { checkWindows, type RateWindow } from './keys/sliding-window.js';
import { checkCallOptions, type GateCallOptions, gateSettings, type ServiceGateOptions } from './options.js';
import { discardResponse, isResponse, type Observed } from './response-content.js';
import {
  GateStream,
  type GateStreamSource,
  type OpenedStream,
  type StreamCall,
  streamWork,
} from './stream.js';

export type { GateStats } from './gate-state.js';

/*
 * In this folder: `call.ts` is one call from attempt to attempt, `attempt.ts` one attempt, `stream.ts` a call that returns
 * a stream; `call-context.ts` holds the signal and deadline of a call, `gate-state.ts` what all calls share, `classify.ts`
 * and `presets.ts` say what an outcome means, `retry-after.ts` reads the times that services send, `retry.ts` is backoff and
 * retry budget, `wait.ts` how calls wait, `cache.ts` cache and single flight, `events.ts` the events of a call. `keys/` holds
 * the API keys, their rate windows, declared and learned, and the queues in front of them.
 */

/** What answers a call, and how. */
interface Answer<T> {
  /** The call itself, or the one of a flight that was started for it. */
  call: GateCall<T>;
  /** Where the outcome of the call is left: its context, or the flight that it waits for. */
  bounds: CallBounds;
  cache: 'off' | 'hit' | 'miss' | 'shared';
}

/**
 * The guard of one upstream service. All calls of the process to it go through the gate, on the host's own client.
 *
 * A call passes the cache, single flight and its deadline; then, for each attempt, it takes a permit (in order of
 * priority, fair between tenants) and a key with capacity in all its windows, charged in one step. A call holds nothing
 * during a backoff or a cooldown of all keys.
 *
 * Invariants:
 * - No window is exceeded, at any alignment, by any burst, blocked event loop or step of the wall clock.
 * - At most `maxConcurrent` attempts are in progress; a stream counts until its last item.
 * - A rejected key is not used until its cooldown ends; then one attempt goes first, as a probe.
 * - An abort settles the caller in that step, at any stage, and leaves nothing behind. Beyond the first 50 that are
 *   aborted in one turn of the event loop, callers are settled in the following turns.
 * - The caller receives what the last attempt returned or threw. A `Response` that is a failure is returned, not thrown.
 *
 * The constructor throws a `TypeError` or `RangeError` that names the wrong option.
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
export class ServiceGate<M extends string = string> {
  /** The `source` of its events and errors. */
  readonly name: string;
  /** Where its events go. */
  readonly hooks: LifecycleHooks;
  /** The adaptive limit, if the gate has one; feed it a gauge if the service provides one. */
  readonly adaptive: AdaptiveLimit | undefined;
  /** @internal Its attempts are bounded by the context of a tool call. */
  declare readonly [CALL_CONTEXT]: true;
  readonly #state: GateState;
  readonly #cache: RequestCache;
  readonly #finished = new Map<GateOutcome, number>();
  readonly #cacheCounts = { off: 0, hit: 0, miss: 0, shared: 0 };
  readonly #timeoutError = (ms: number, lastFailure: unknown) =>
    new GateTimeoutError(this.name, 'call', ms, lastFailure);
  #calls = 0;
  #closed: Promise<void> | undefined;

  constructor(options: ServiceGateOptions<M>) {
    const settings = gateSettings(options);
    this.name = settings.name;
    this.hooks = settings.hooks;
    this.adaptive = settings.adaptive;
    // Here, since a bundler must keep a class whose body computes a name.
    this[CALL_CONTEXT] = true;
    this.#state = new GateState(settings);
    this.#cache = new RequestCache(settings.cache, {
      name: settings.name,
      now: settings.now,
      onStoreFailed: (operation, error) => this.#emitStoreFailed(operation, error),
    });
  }

  /**
   * Makes a call. `fn` runs once per attempt; `classify` decides what its result or error means. Read the body of a
   * `Response` in `fn`: when it returns, the call is over, and neither its signal nor its timeout ends the body.
   *
   * With a `cacheKey`, a cached result or another caller's in-flight call may answer instead. Results are shared without
   * copying: treat them as read-only, and return data rather than a `Response`, whose body can be read only once.
   *
   * Rejects with what the last attempt threw; with `signal.reason`; with `GateTimeoutError` when the call or its last
   * attempt exceeds its time; with `KeysExhaustedError` as soon as it is certain that no key can serve it in time; with
   * `GateClosedError`; with the error of a limiter that rejects it; or with a `TypeError` or `RangeError` that names a
   * wrong option.
   *
   * Inside a request, `signal`, `priority`, `tenant` and the ids come from `currentRequest()` unless the call sets them. The
   * context of a request is accepted as `options`.
   *
   * @example
   * const page = await gate.run(({ signal, key }) => readPage(url, { signal, key }), { signal, timeoutMs: 60_000 });
   */
  run<R>(
    fn: (context: AttemptContext) => R | PromiseLike<R>,
    options: GateCallOptions = NO_OPTIONS,
  ): Promise<R> {
    try {
      const checked = this.#check('run', fn, options);
      const run =
        checked.cacheKey === undefined ? fn : async (context: AttemptContext) => dataOnly(await fn(context));
      return this.#answer<R>(checked, { run, observe: asResult, discard: discardResponse });
    } catch (error) {
      return Promise.reject(error);
    }
  }

  /**
   * Makes a call that returns a stream, and holds its permit until the last item. The first item is classified like a
   * result: a stream that begins with an error is retried, and the reader does not see it. Later errors reach the reader.
   *
   * `attemptTimeoutMs` bounds the wait for the first item and for each later one, `timeoutMs` the whole stream. Nothing
   * happens before the first `next`. It rejects as `run` does.
   *
   * @throws {TypeError | RangeError} naming the wrong option
   *
   * @example
   * const tokens = llm.stream(({ signal }) => openai.chat.completions.create({ ...request, stream: true }, { signal }));
   * for await (const chunk of tokens) process.stdout.write(chunk.choices[0]?.delta.content ?? '');
   */
  stream<T>(
    fn: GateStreamSource<T>,
    options: Omit<GateCallOptions, 'cacheKey'> = NO_OPTIONS,
  ): AsyncIterableIterator<T> & AsyncDisposable {
    const checked = this.#check('stream', fn, options);
    return new GateStream<T>(
      (work) => ({
        ...this.#begin(checked, work),
        onItem: (attempt, item) => attempt.readUsage(item),
      }),
      streamWork(fn),
    );
  }

  /**
   * A `fetch` whose calls go through this gate, for a client that accepts one. It takes what `fetch` takes and returns what
   * `fetch` returns; set the client's own retries to 0.
   *
   * A call holds its permit and its key until the body has been read, cancelled, failed or garbage-collected, or until the
   * request that made it is over. A response is classified before it is returned: its status, its headers, the body of a
   * failure, and the first event of a server-sent stream. So the client never sees what is retried. `timeoutMs` and
   * `attemptTimeoutMs` bound the call until then; later, `attemptTimeoutMs` bounds each wait for the next chunk, and
   * `bodyIdleTimeoutMs` the time in which nothing is read.
   *
   * The returned function rejects with `signal.reason`, and as `fetch` does. A call that the gate itself rejects gets a
   * `Response` (429, 503 or 504), unless `rejections` is `'throw'`.
   *
   * @throws {TypeError | RangeError} naming the wrong option
   *
   * @example
   * const openai = new OpenAI({ apiKey: 'unused', maxRetries: 0, fetch: llm.fetch({ authorize: bearer }) });
   */
  fetch(options: GateFetchOptions = {}): typeof globalThis.fetch {
    return gatedFetch(options, this.#state.settings, {
      check: (given) => this.#check('fetch', this.fetch, given),
      estimate: (json, budget) => this.#state.estimateRequest(json, budget !== undefined),
      begin: (given, work) => this.#begin(given, work),
      answer: (given, work) => this.#answer(given, work),
    });
  }

  /** Puts a key back into use that is in cooldown, exhausted or quarantined. Returns whether the gate has such a key. */
  restoreKey(key: string): boolean {
    return this.#state.ring.restore(key);
  }

  /**
   * Drops a cached result, here and in the shared store, or all results that are cached here. A call in flight still
   * answers those who wait for it, but later calls do not join it, and its result is not cached.
   */
  forget(cacheKey?: string): void {
    this.#cache.forget(optional('cacheKey', cacheKey, text));
  }

  /**
   * Replaces the rate limits of all keys without limits of their own (`rate`), or those of all keys together
   * (`sharedRate`). What began before counts in the new windows, as far as the present ones remember it. A waiting call
   * whose `weight` is above a new limit rejects with `KeysExhaustedError`: where a limiter lets a request run alone that is
   * heavier than its lowered limit, a window is never exceeded.
   *
   * @throws {TypeError | RangeError} naming the wrong option
   *
   * @example
   * gate.setRate({ rate: [{ limit: 100, perMs: 1_000 }] });
   */
  setRate(rates: {
    readonly rate?: readonly RateWindow[] | undefined;
    readonly sharedRate?: readonly RateWindow[] | undefined;
  }): void {
    checkOptions('setRate', rates, ['rate', 'sharedRate']);
    const rate = optional('rate', rates.rate, checkWindows);
    const sharedRate = optional('sharedRate', rates.sharedRate, checkWindows);
    this.#state.ring.setRate(rate, sharedRate);
  }

  /** Starts no further attempt until `resume`. Calls wait, within their deadlines; attempts in progress continue. */
  pause(): void {
    this.#state.pause();
  }

  /** Ends a `pause`. */
  resume(): void {
    this.#state.resume();
  }

  /** Counts at this moment. */
  stats(): GateStats {
    const {
      ownLimiter,
      foreignLimiter = ownLimiter,
      shared,
      ring,
      settings,
      startQueue,
      cooldownQueue,
      attempts,
      retries,
      running,
      backingOff,
    } = this.#state;
    const now = ring.now();
    return Object.freeze({
      name: this.name,
      closed: this.#closed !== undefined,
      paused: this.#closed === undefined && this.#state.isPaused,
      calls: this.#calls,
      finished: Object.freeze(Object.fromEntries(this.#finished)),
      attempts,
      retries,
      running,
      queuedForStart: startQueue.queued,
      backingOff: backingOff + cooldownQueue.queued,
      limiter: foreignLimiter?.stats(),
      ...(shared && { fleet: shared.starts.fleet }),
      retriesLeft: settings.retry.budget?.left(now) ?? Number.POSITIVE_INFINITY,
      retryAfterMs: ring.retryAfterMs(now),
      keys: Object.freeze(ring.stats(now)),
      cache: Object.freeze({
        size: this.#cache.size,
        inFlight: this.#cache.inFlight,
        hits: this.#cacheCounts.hit,
        shared: this.#cacheCounts.shared,
        misses: this.#cacheCounts.miss,
      }),
    });
  }

  /**
   * Rejects all calls with `GateClosedError`, aborts those in progress, and accepts no more. Settles when nothing is held;
   * it waits for code that ignores its signal for at most five seconds. A shared limiter stays open.
   */
  close(): Promise<void> {
    this.#closed ??= this.#close();
    return this.#closed;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #close(): Promise<void> {
    const closedError = sharedStack(() => new GateClosedError(this.name));
    // The latest first: what is queued must not start in place of what is running.
    const { open } = this.#state;
    const aborting = inBatches([...open].reverse(), (call) => {
      if (open.has(call) && call.bounds instanceof CallContext) call.bounds.abort(closedError(), 'gate');
    });
    if (aborting !== undefined) await aborting;
    this.#cache.forget();
    await this.#state.close();
  }

  #check(method: 'run' | 'stream' | 'fetch', fn: unknown, options: GateCallOptions): GateCallOptions {
    if (typeof fn !== 'function') throw new TypeError(refusal('fn', 'a function', fn));
    if (options !== NO_OPTIONS) checkCallOptions(method, options, this.#state.ring.maxWeight);
    return withRequest(options);
  }

  /** Its context is that of the tool call which makes it, if there is one. */
  #open<T>(options: GateCallOptions, work: Work<T>, onEnd?: CallEnd): GateCall<T> {
    if (this.#closed !== undefined) throw new GateClosedError(this.name);
    const { settings } = this.#state;
    const context =
      options[CALL_CONTEXT] ??
      new CallContext({
        signal: options.signal,
        timeoutMs: options.timeoutMs ?? settings.timeoutMs,
        timeoutError: this.#timeoutError,
        now: settings.now,
      });
    context.outcome = undefined;
    const events = new CallEventEmitter(settings, ++this.#calls, options);
    return new GateCall(this.#state, events, options, context, work, onEnd);
  }

  /** Begins a call that returns a stream. */
  #begin<T>(options: GateCallOptions, work: Work<OpenedStream<T>>): StreamCall<T> {
    const call = this.#open(options, work);
    return { context: contextOf(call), call, finish: (failure) => this.#ended(call, failure) };
  }

  /** Makes a call that returns a complete result. */
  #answer<R>(options: GateCallOptions, work: Work<R>): Promise<R> {
    const { cacheKey } = options;
    if (cacheKey === undefined) return this.#open(options, work, this.#ended).perform();
    const call = this.#open(options, work);
    const answer: Answer<R> = { call, bounds: call.bounds, cache: 'off' };
    return this.#share(call, answer, cacheKey, work).then(
      (value) => {
        this.#ended(call, undefined, answer);
        return value;
      },
      (error: unknown) => {
        this.#ended(call, { error }, answer);
        throw error;
      },
    );
  }

  /** Answers from the cache, or from an in-flight call with the same key, or makes one that others can join. */
  async #share<R>(call: GateCall<R>, answer: Answer<R>, cacheKey: string, work: Work<R>): Promise<R> {
    const context = contextOf(call);
    context.throwIfAborted();
    const cached = this.#cache.result(cacheKey);
    if (cached !== undefined) {
      answer.cache = 'hit';
      context.outcome = 'ok';
      call.events.cacheHit(false);
      return cached.value as R;
    }
    const inFlight = this.#cache.flight(cacheKey);
    answer.cache = inFlight === undefined ? 'miss' : 'shared';
    if (inFlight !== undefined) call.events.cacheHit(true);
    else if (!this.#cache.hasStore) call.events.cacheMiss();
    // A listener may have aborted it, and a call that no caller waits for would never end.
    context.throwIfAborted();
    const isOwn = inFlight === undefined;
    const flight =
      inFlight ??
      this.#cache.start(cacheKey, {
        onStored: () => {
          answer.cache = 'hit';
          call.events.cacheHit(false);
        },
        onMiss: () => call.events.cacheMiss(),
        acceptsStored: (value) => work.acceptsStored?.(value) ?? true,
        call: (bounds) => {
          const made = new GateCall(this.#state, call.events, call.options, bounds, work, (flown) =>
            this.#state.open.delete(flown),
          );
          answer.call = made;
          bounds.onJoin = (waiter) => made.recheck(waiter);
          return made.perform();
        },
      });
    answer.bounds = flight;
    try {
      return (await flight.join(context)) as R;
    } catch (failure) {
      // A caller may leave as the call fails, before it hears of that.
      const { aborted } = context;
      const error = aborted ? context.reason : failure;
      // The budget of the caller that started it: this one has its own.
      if (!isOwn && error instanceof BudgetExceededError && flight.outcome === undefined)
        return this.#share(call, answer, cacheKey, work);
      const stale = this.#cache.result(cacheKey, true);
      if (stale === undefined || !isFailureOfService(aborted ? undefined : flight.outcome, error))
        throw error;
      answer.cache = 'hit';
      answer.bounds = context;
      context.outcome = 'ok';
      return stale.value as R;
    }
  }

  #emitStoreFailed(operation: StoreOperation, error: unknown): void {
    if (!this.hooks.hasListeners('cache:store-failed')) return;
    const source = this.name;
    this.hooks.emit('cache:store-failed', {
      source,
      operation,
      error: redactError(error, this.hooks.redact),
    });
  }

  /** Counts and emits the end of a call, once. One function for all calls: each that is queued would hold another. */
  readonly #ended = (
    opened: GateCall<unknown>,
    failure: { readonly error: unknown } | undefined,
    { call, bounds, cache }: Answer<unknown> = { call: opened, bounds: opened.bounds, cache: 'off' },
  ): void => {
    if (!this.#state.open.delete(opened)) return;
    const context = contextOf(opened);
    if (opened.options[CALL_CONTEXT] === undefined) context.end();
    this.#cacheCounts[cache]++;
    const left = failure !== undefined && context.aborted;
    const outcome = (left ? undefined : bounds.outcome) ?? outcomeOf(failure?.error, left);
    this.#finished.set(outcome, (this.#finished.get(outcome) ?? 0) + 1);
    if (!this.hooks.hasListeners('call:finished')) return;
    this.hooks.emit('call:finished', {
      outcome,
      attempts: call.attempts,
      durationMs: this.#state.ring.now() - opened.openedMs,
      waitMs: call.waitMs,
      cache,
      ...call.events.ids(),
      ...(call.key === undefined ? {} : { key: call.key }),
      ...(call.cost === undefined ? {} : { cost: call.cost.spent }),
      ...(call.tokens && { provider: this.#state.settings.provider as string, ...call.tokens }),
      ...(failure === undefined ? {} : { error: call.events.error(failure.error) }),
    });
  };
}

/** Of a call that has a caller, and is no flight's. */
const contextOf = ({ bounds }: OpenCall): CallContext => bounds as CallContext;

const asResult = <R>(value: R): Observed => ({ kind: 'result', value });

const NO_OPTIONS: GateCallOptions = /* @__PURE__ */ Object.freeze({});

/** Whether an expired result may answer: not where the request is wrong, its caller left, or the host has a bug. */
function isFailureOfService(outcome: GateOutcome | undefined, error: unknown): boolean {
  if (error instanceof KeysExhaustedError || error instanceof GateTimeoutError) return true;
  return outcome !== undefined && outcome !== 'ok' && outcome !== 'client-error' && outcome !== 'fatal';
}

/** A result that several callers can share. */
function dataOnly<R>(value: R): R {
  if (!isResponse(value)) return value;
  discardResponse(value);
  throw new TypeError(
    'A call with a `cacheKey` must return data: the body of a `Response` can be read only once',
  );
}

/** The outcome of a call that no attempt ended. */
function outcomeOf(error: unknown, left: boolean): GateOutcome {
  if (error instanceof GateTimeoutError || (left && isTimeout(error))) return 'timeout';
  if (!left || error instanceof GateClosedError || error instanceof KeysExhaustedError) return 'rejected';
  return 'aborted';
}

/** The options of a call; what it does not set comes from the request that makes it. */
function withRequest(given: GateCallOptions): GateCallOptions {
  // A tool has done it.
  if (given[CALL_CONTEXT] !== undefined) return given;
  const scope = currentScope();
  if (scope === undefined) return given;
  const request = scope.requestId === undefined ? undefined : scope;
  // A budget of its own applies within that of the request.
  const budget = given.budget?.within(scope.budget) ?? scope.budget;
  // Each option by its name, which the type requires: a spread costs several times as much.
  const merged: { readonly [K in keyof GateCallOptions & string]-?: GateCallOptions[K] } = {
    signal: given.signal ?? request?.signal,
    timeoutMs: given.timeoutMs,
    priority: given.priority ?? (request && inheritedPriority(request)),
    tenant: given.tenant ?? request?.tenant,
    weight: given.weight,
    taskId: given.taskId ?? request?.taskId,
    requestId: given.requestId ?? request?.requestId,
    toolCallId: given.toolCallId,
    budget,
    cacheKey: given.cacheKey,
  };
  return merged;
}
