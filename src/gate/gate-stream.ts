import { type AbortWatcher, unwatchAbort, watchAbort } from '../internal/abort-watch.js';
import { boundedCall } from '../internal/bounded-call.js';
import { refusal } from '../internal/validate.js';
import type { Attempt, AttemptContext } from './attempt.js';
import type { CallScope } from './call-scope.js';
import type { GateCall, Work } from './gate-call.js';
import { GRACE_MS } from './gate-core.js';

/** The host's code behind a stream. */
export type GateStreamSource<T> = (
  context: AttemptContext,
) => AsyncIterable<T> | PromiseLike<AsyncIterable<T>>;

interface Opened<T> {
  readonly iterator: AsyncIterator<T>;
  readonly first: IteratorResult<T>;
}

/** A call that has begun, as the gate gives it to a stream. */
export interface StreamCall<T> {
  readonly scope: CallScope;
  readonly call: GateCall<Opened<T>>;
  /** Tells that it is over, and leaves nothing behind on the caller's signal. */
  finish(error?: { readonly error: unknown }): void;
}

/**
 *     new ──next──► opening ──first item──► open ──last item, error, return──► over
 *      └──return──────────────────────────────┴──abort──► failed ──told once──►┘
 */
type StreamState<T> =
  | { readonly is: 'new' }
  | { readonly is: 'opening'; readonly begun: StreamCall<T> }
  | OpenState<T>
  | { readonly is: 'failed'; readonly reason: unknown }
  | { readonly is: 'over' };

interface OpenState<T> {
  readonly is: 'open';
  readonly begun: StreamCall<T>;
  readonly attempt: Attempt;
  readonly iterator: AsyncIterator<T>;
  /** Whether somebody waits for an item. */
  pulling: boolean;
}

type Taken<T> = { readonly item: IteratorResult<T> } | { readonly error: unknown };

const LEFT = 'The stream was left by its reader';

/**
 * A stream through a gate, which holds its permit to the last item.
 *
 * Invariants:
 * - Nothing is held before the first `next`.
 * - However it ends (last item, error, `break`, `return`, `throw`, abort, deadline), what it holds is given back once.
 * - An abort ends it in that step, whether somebody waits for an item or not. The reader is told: by the item that it waits
 *   for, or else by the next one.
 */
export class GateStream<T> implements AsyncIterableIterator<T>, AbortWatcher {
  readonly #begin: (work: Work<Opened<T>>) => StreamCall<T>;
  readonly #source: GateStreamSource<T>;
  #state: StreamState<T> = { is: 'new' };
  /** Items are given in the order in which they were asked for. */
  #turn: Promise<unknown> = Promise.resolve();

  constructor(begin: (work: Work<Opened<T>>) => StreamCall<T>, source: GateStreamSource<T>) {
    this.#begin = begin;
    this.#source = source;
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  next(): Promise<IteratorResult<T, undefined>> {
    const answer = this.#turn.then(() => this.#next());
    this.#turn = answer.catch(() => {});
    return answer;
  }

  /** Ends the stream. Settles when the source has ended as well, or has been given up. */
  async return(): Promise<IteratorResult<T, undefined>> {
    await this.#leave();
    return { done: true, value: undefined };
  }

  async throw(error?: unknown): Promise<IteratorResult<T, undefined>> {
    await this.#leave();
    throw error;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#leave();
  }

  /** The caller's signal or deadline, while the stream is open. */
  onAbort(reason: unknown): void {
    const state = this.#state;
    if (state.is !== 'open') return;
    this.#state = { is: 'failed', reason };
    // Whoever waits for no item has spent the time himself.
    if (state.pulling) state.begun.call.abortLater(state.attempt);
    this.#drop(state, { error: reason });
  }

  async #next(): Promise<IteratorResult<T, undefined>> {
    const state = this.#state;
    switch (state.is) {
      case 'new':
        return this.#open();
      case 'open':
        return this.#pull(state);
      case 'failed':
        this.#state = { is: 'over' };
        throw state.reason;
      default:
        return { done: true, value: undefined };
    }
  }

  async #open(): Promise<IteratorResult<T, undefined>> {
    this.#state = { is: 'over' };
    const begun = this.#begin(this.#work());
    const opening = { is: 'opening', begun } as const;
    this.#state = opening;
    let opened: Awaited<ReturnType<typeof begun.call.perform>>;
    try {
      opened = await begun.call.perform();
    } catch (error) {
      const left = this.#state !== opening;
      this.#state = { is: 'over' };
      begun.finish({ error });
      if (left) return { done: true, value: undefined };
      throw error;
    }
    const { attempt, value } = opened;
    const { iterator, first } = value;
    const open: OpenState<T> = { is: 'open', begun, attempt, iterator, pulling: false };
    if (this.#state !== opening || begun.scope.signal.aborted) {
      // Left, or aborted, in the step in which it opened.
      const left = this.#state !== opening;
      this.#state = { is: 'over' };
      this.#drop(open, { error: begun.scope.signal.reason });
      if (left) return { done: true, value: undefined };
      throw begun.scope.signal.reason;
    }
    if (first.done) return this.#close(open);
    this.#state = open;
    watchAbort(begun.scope.signal, this);
    return first;
  }

  async #pull(state: OpenState<T>): Promise<IteratorResult<T, undefined>> {
    const { attempt, begun } = state;
    state.pulling = true;
    const taken = await this.#take(state);
    state.pulling = false;
    if ('error' in taken && this.#state === state) await begun.call.failLater(attempt, taken.error);
    // It may have been left, or aborted, meanwhile, and be it in the very step in which the item came.
    if (this.#state !== state) return this.#ended(begun);
    if ('item' in taken) return taken.item.done ? this.#close(state) : taken.item;
    this.#state = { is: 'over' };
    this.#drop(state, taken);
    throw taken.error;
  }

  async #take({ attempt, iterator }: OpenState<T>): Promise<Taken<T>> {
    try {
      const item = await attempt.step(async () => iterator.next());
      if (Object(item) !== item) throw new TypeError(refusal('an item', 'an iterator result', item));
      return { item };
    } catch (error) {
      return { error };
    }
  }

  /** What one gets who waited while the stream was aborted or left. An aborted one must never look complete. */
  #ended({ scope }: StreamCall<T>): IteratorResult<T, undefined> {
    this.#state = { is: 'over' };
    if (scope.signal.aborted) throw scope.signal.reason;
    return { done: true, value: undefined };
  }

  #close(state: OpenState<T>): IteratorResult<T, undefined> {
    this.#state = { is: 'over' };
    unwatchAbort(state.begun.scope.signal, this);
    state.attempt.end();
    state.begun.finish();
    return { done: true, value: undefined };
  }

  async #leave(): Promise<void> {
    const state = this.#state;
    this.#state = { is: 'over' };
    if (state.is === 'opening') state.begun.scope.abort(new DOMException(LEFT, 'AbortError'));
    if (state.is !== 'open') return;
    const { attempt, iterator, begun, pulling } = state;
    unwatchAbort(begun.scope.signal, this);
    const left = new DOMException(LEFT, 'AbortError');
    // A source that is at work on an item ends by its signal; one that rests may end in its own way.
    if (pulling) attempt.cancel(left);
    const ended = attempt.watch(async () => iterator.return?.());
    attempt.end();
    begun.finish();
    try {
      const { signal } = begun.call.options;
      await boundedCall(() => ended, {
        timeoutMs: GRACE_MS,
        timeoutError: () => left,
        ...(signal === undefined ? {} : { signal }),
      });
    } catch (error) {
      if (error !== left) throw error;
    } finally {
      // One without a `return` of its own ends by this.
      attempt.cancel(left);
    }
  }

  /** Ends a stream whose source must not go on. */
  #drop(state: OpenState<T>, error: { readonly error: unknown }): void {
    const { attempt, iterator, begun } = state;
    unwatchAbort(begun.scope.signal, this);
    attempt.cancel(error.error);
    attempt.watch(async () => iterator.return?.()).catch(() => {});
    attempt.end();
    begun.finish(error);
  }

  #work(): Work<Opened<T>> {
    return {
      run: async (context) => {
        const source = await this.#source(context);
        if (typeof source?.[Symbol.asyncIterator] !== 'function') {
          throw new TypeError(refusal('the result of `fn`', 'an async iterable', source));
        }
        const iterator = source[Symbol.asyncIterator]();
        return { iterator, first: await iterator.next() };
      },
      observe: ({ first }) => (first.done ? { kind: 'no-item' } : { kind: 'first-item', value: first.value }),
      discard: async ({ iterator }) => iterator.return?.(),
    };
  }
}
