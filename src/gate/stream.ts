import { type AbortListener, boundedCall } from '../internal/abort.js';
import { AsyncContext } from '../internal/async-context.js';
import { CheckedIterator } from '../internal/iteration.js';
import type { Attempt, AttemptContext } from './attempt.js';
import type { GateCall, Work } from './call.js';
import type { CallContext } from './call-context.js';
import { GRACE_MS } from './gate-state.js';

/** The host code behind a stream. */
export type GateStreamSource<T> = (
  context: AttemptContext,
) => AsyncIterable<T> | PromiseLike<AsyncIterable<T>>;

/** A stream whose first item has arrived. */
export interface OpenedStream<T> {
  readonly iterator: CheckedIterator<T>;
  readonly first: IteratorResult<T>;
}

/** A call that has begun, as the gate passes it to a stream. */
export interface StreamCall<T> {
  readonly context: CallContext;
  readonly call: GateCall<OpenedStream<T>>;
  /** Its first item has been classified as the result of the call. */
  onOpen?(): void;
  /** An item after the first has arrived. */
  onItem?(attempt: Attempt, item: T): void;
  /** No further item will arrive. */
  onEnd?(attempt: Attempt): void;
  /** Counts and emits its end, and leaves nothing behind on the caller's signal. */
  finish(error?: { readonly error: unknown }): void;
}

/**
 *     new ──next──► opening ──first item──► open ──last item, error, return──► over
 *      └──return──────────────────────────────┴──abort──► failed ──thrown once►┘
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
  readonly iterator: CheckedIterator<T>;
  /** Asks the iterator for an item. */
  readonly ask: () => unknown;
  /** Receives what that resolves with, and why it rejects. */
  readonly onItem: (answer: unknown) => Result<T> | Promise<Result<T>>;
  readonly onFailure: (error: unknown) => Promise<Result<T>>;
  /** Whether the reader waits for an item. */
  pulling: boolean;
  /** That of the reader: an abort comes in another. */
  readonly scope: AsyncContext;
}

type Result<T> = IteratorResult<T, undefined>;

const LEFT = 'The stream was left by its reader';

/**
 * A stream through a gate, which holds its permit until the last item.
 *
 * Invariants:
 * - Nothing is held before the first `next`.
 * - However it ends (last item, error, `break`, `return`, `throw`, abort, deadline), what it holds is released once.
 * - An abort ends it in that step, whether the reader waits for an item or not. The reader gets the reason from the
 *   pending `next`, or else from the following one.
 */
export class GateStream<T> implements AsyncIterableIterator<T>, AbortListener {
  readonly #begin: (work: Work<OpenedStream<T>>) => StreamCall<T>;
  readonly #work: Work<OpenedStream<T>>;
  #state: StreamState<T> = { is: 'new' };
  /** Calls of `next` that have not settled. They settle in the order in which they were made: each waits for the last one. */
  #pending = 0;
  #last: Promise<Result<T>> | undefined;

  constructor(begin: (work: Work<OpenedStream<T>>) => StreamCall<T>, work: Work<OpenedStream<T>>) {
    this.#begin = begin;
    this.#work = work;
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  next(): Promise<Result<T>> {
    const state = this.#state;
    const isFirst = this.#pending++ === 0;
    this.#last = isFirst && state.is === 'open' ? this.#read(state) : this.#nextAfter(this.#last);
    return this.#last;
  }

  async #nextAfter(last: Promise<Result<T>> | undefined): Promise<Result<T>> {
    if (last !== undefined) await last.catch(() => {});
    const state = this.#state;
    if (state.is === 'open') return this.#read(state);
    try {
      return await this.#notOpen(state);
    } finally {
      this.#settled();
    }
  }

  /** Requests an item. No async function and no closure: a stream has thousands of items. */
  #read(state: OpenState<T>): Promise<Result<T>> {
    state.pulling = true;
    return state.attempt.step(state.ask).then(state.onItem, state.onFailure);
  }

  #onItem(state: OpenState<T>, answer: unknown): Result<T> | Promise<Result<T>> {
    let item: IteratorResult<T>;
    try {
      item = CheckedIterator.read(answer);
      if (!item.done) state.begun.onItem?.(state.attempt, item.value);
    } catch (error) {
      return this.#onFailure(state, error);
    }
    state.pulling = false;
    try {
      // It may have been left or aborted meanwhile, even in the step in which the item arrived.
      if (this.#state !== state) return this.#ended(state.begun);
      return item.done ? this.#close(state) : item;
    } finally {
      this.#settled();
    }
  }

  async #onFailure(state: OpenState<T>, error: unknown): Promise<Result<T>> {
    const { attempt, begun } = state;
    state.pulling = false;
    try {
      if (this.#state === state) await begun.call.failLater(attempt, error);
      if (this.#state !== state) return this.#ended(begun);
      this.#state = { is: 'over' };
      this.#drop(state, { error });
      throw error;
    } finally {
      this.#settled();
    }
  }

  #settled(): void {
    if (--this.#pending === 0) this.#last = undefined;
  }

  /** Ends the stream. Settles when the source has ended as well, or has been given up. */
  async return(): Promise<Result<T>> {
    await this.#leave();
    return { done: true, value: undefined };
  }

  async throw(error?: unknown): Promise<Result<T>> {
    await this.#leave();
    throw error;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#leave();
  }

  /** Ends the stream from outside; its reader gets `reason`. */
  abort(reason: unknown): void {
    if (this.#state.is === 'open') this.#state.begun.context.abort(reason, 'gate');
  }

  /** The caller's signal or deadline, while the stream is open. */
  handleEvent(): void {
    const state = this.#state;
    if (state.is !== 'open') return;
    const { reason } = state.begun.context;
    this.#state = { is: 'failed', reason };
    // A reader that waits for no item has used the time itself.
    if (state.pulling) state.begun.call.abortLater(state.attempt);
    state.scope.run(() => this.#drop(state, { error: reason }));
  }

  async #notOpen(state: Exclude<StreamState<T>, { readonly is: 'open' }>): Promise<Result<T>> {
    if (state.is === 'new') return this.#open();
    this.#state = { is: 'over' };
    if (state.is === 'failed') throw state.reason;
    return { done: true, value: undefined };
  }

  async #open(): Promise<Result<T>> {
    this.#state = { is: 'over' };
    const begun = this.#begin(this.#work);
    const opening = { is: 'opening', begun } as const;
    this.#state = opening;
    let value: OpenedStream<T>;
    try {
      value = await begun.call.perform();
    } catch (error) {
      const left = this.#state !== opening;
      this.#state = { is: 'over' };
      begun.finish({ error });
      if (left) return { done: true, value: undefined };
      throw error;
    }
    const attempt = begun.call.attempt as Attempt;
    const { iterator, first } = value;
    const open: OpenState<T> = {
      is: 'open',
      begun,
      attempt,
      iterator,
      ask: () => iterator.ask(),
      onItem: (answer) => this.#onItem(open, answer),
      onFailure: (error) => this.#onFailure(open, error),
      pulling: false,
      scope: new AsyncContext(),
    };
    if (this.#state !== opening || begun.context.aborted) {
      // Left, or aborted, in the step in which it opened.
      const left = this.#state !== opening;
      this.#state = { is: 'over' };
      this.#drop(open, { error: begun.context.reason });
      if (left) return { done: true, value: undefined };
      throw begun.context.reason;
    }
    if (first.done) return this.#close(open);
    this.#state = open;
    begun.context.addEventListener('abort', this);
    begun.onOpen?.();
    return first;
  }

  /** What a waiting reader receives when the stream was aborted or left. An aborted one must never look complete. */
  #ended({ context }: StreamCall<T>): Result<T> {
    this.#state = { is: 'over' };
    context.throwIfAborted();
    return { done: true, value: undefined };
  }

  #close(state: OpenState<T>): Result<T> {
    this.#state = { is: 'over' };
    state.begun.onEnd?.(state.attempt);
    state.attempt.settleUsage();
    this.#release(state);
    return { done: true, value: undefined };
  }

  async #leave(): Promise<void> {
    const state = this.#state;
    this.#state = { is: 'over' };
    if (state.is === 'opening') state.begun.context.abort(new DOMException(LEFT, 'AbortError'), 'gate');
    if (state.is !== 'open') return;
    const { attempt, iterator, begun, pulling } = state;
    const left = new DOMException(LEFT, 'AbortError');
    // A source that works on an item is aborted; one that is idle may finish by itself.
    if (pulling) attempt.cancel(left);
    begun.onEnd?.(attempt);
    const ended = attempt.watch(() => iterator.return());
    this.#release(state);
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
      // One without a `return` is aborted by this.
      attempt.cancel(left);
    }
  }

  /** Ends a stream whose source must not continue. */
  #drop(state: OpenState<T>, failure: { readonly error: unknown }): void {
    const { attempt, iterator, begun } = state;
    attempt.cancel(failure.error);
    begun.onEnd?.(attempt);
    attempt.watch(() => iterator.return()).catch(() => {});
    this.#release(state, failure);
  }

  #release({ attempt, begun }: OpenState<T>, failure?: { readonly error: unknown }): void {
    begun.context.removeEventListener('abort', this);
    attempt.end();
    begun.finish(failure);
  }
}

/** The work of a call whose stream is opened by host code. */
export function streamWork<T>(source: GateStreamSource<T>): Work<OpenedStream<T>> {
  return {
    isStream: true,
    keepsAttempt: true,
    run: async (context) => {
      const iterator = CheckedIterator.of(await source(context), 'fn()', 'an async iterable');
      return { iterator, first: await iterator.next() };
    },
    observe: ({ first }) => (first.done ? { kind: 'no-item' } : { kind: 'first-item', value: first.value }),
    discard: ({ iterator }) => iterator.return(),
  };
}
