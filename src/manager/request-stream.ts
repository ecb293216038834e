import type { AbortListener, LazySignal } from '../internal/abort.js';
import { AsyncContext } from '../internal/async-context.js';
import { CheckedIterator } from '../internal/iteration.js';
import type { RequestContext } from '../request/current-request.js';
import type { ManagedRequest } from './request.js';

// Not `AsyncIterable<Y, R>`: before TypeScript 5.6 it has one parameter.
interface Iterable<Y, R> {
  [Symbol.asyncIterator](): AsyncIterator<Y, R>;
}

/** What a stream can be read from. */
type Items<Y, R> = Iterable<Y, R> | AsyncIterator<Y, R>;

/** An `AsyncIterableIterator` with a return value. */
export interface StreamIterator<Y, R> extends AsyncIterator<Y, R> {
  [Symbol.asyncIterator](): StreamIterator<Y, R>;
}

/**
 * The host's generator, or a function that returns or resolves with anything to iterate asynchronously. What it yields
 * goes to the consumer one by one, each when it is asked for.
 */
export type StreamSource<T, Y, R = unknown> = (
  context: RequestContext<T>,
) => Items<Y, R> | PromiseLike<Items<Y, R>>;

/** A command on the host's iterator. What it resolves with is checked. */
type Perform = (iterator: CheckedIterator<unknown>) => Promise<unknown>;

const NEXT: Perform = (iterator) => iterator.ask();
const RETURN: Perform = async (iterator) => {
  await iterator.return();
  // Over, even if the generator yields once more.
  return END;
};

type Settle<Y, R> = (result: IteratorResult<Y, R> | Promise<never>) => void;

interface Command<Y, R> {
  readonly perform: Perform;
  readonly settle: Settle<Y, R>;
}

/** The host's iterator, from when it is there until the request's work ends. */
interface Work {
  readonly iterator: CheckedIterator<unknown>;
  readonly abortable: LazySignal;
  /** That of the request: the source runs in it, wherever its items are asked for. */
  readonly context: AsyncContext;
  /** Whether the iterator is neither busy nor over, so that its `return` must be called. */
  isIdle: boolean;
  readonly end: () => void;
  readonly fail: (error: unknown) => void;
}

/**
 * The state of a stream.
 *
 *     idle ──first next──► open ──last item, break, throw──► over
 *       │                    └──abort, failure──► failed ──next──► over
 *       └──return, throw────────────────────────────────────────► over
 */
type StreamState<T> =
  | { readonly kind: 'idle' }
  | OpenState<T>
  /** Ended with an error that the consumer has not seen yet: it did not wait for an item at that time. */
  | { readonly kind: 'failed'; readonly error: unknown }
  | { readonly kind: 'over' };

interface OpenState<T> {
  readonly kind: 'open';
  /** None while it is made: listeners of the host are called then, and may use the stream. */
  request: ManagedRequest<T> | undefined;
}

const OVER = { kind: 'over' } as const;
const END = /* @__PURE__ */ Object.freeze({ done: true, value: undefined });

/**
 * A request whose results come one by one. It is a request like any other, whose work lasts while the consumer's commands
 * (`next`, `return`, `throw`) are performed, in order, on the host's iterator.
 *
 * Invariants:
 * - Nothing is held until the first `next`, and nothing after the end, however it comes: the last item, `break`,
 *   `return`, a throw on either side, an abort.
 * - It ends normally only if its source did. Any other end rejects the `next` that waits, or else the next one.
 * - Every command is settled.
 * - The source runs only while an item is asked for: backpressure.
 * - `return` does not wait for an item that is being made: it aborts the request, and that item's `next` is done.
 */
export class RequestStream<T, Y, R> implements StreamIterator<Y, R | undefined>, AbortListener {
  readonly #open: () => ManagedRequest<T>;
  readonly #source: StreamSource<T, Y, R>;
  readonly #commands: Command<Y, R>[] = [];
  #state: StreamState<T> = { kind: 'idle' };
  #work: Work | undefined;
  /** Settles the command that is being performed. */
  #settle: Settle<Y, R> | undefined;
  #returned = false;

  constructor(open: () => ManagedRequest<T>, source: StreamSource<T, Y, R>) {
    this.#open = open;
    this.#source = source;
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  next(): Promise<IteratorResult<Y, R | undefined>> {
    const state = this.#state;
    if (state.kind === 'failed') {
      this.#state = OVER;
      return Promise.reject(state.error);
    }
    if (state.kind === 'over' || this.#returned) return Promise.resolve(END);
    const item = this.#send(NEXT);
    if (state.kind === 'idle') this.#begin();
    return item;
  }

  return(): Promise<IteratorResult<Y, R | undefined>> {
    const state = this.#state;
    if (state.kind !== 'open' || this.#returned) {
      // A consumer that leaves by itself asks for no error.
      if (state.kind !== 'open') this.#state = OVER;
      return Promise.resolve(END);
    }
    this.#returned = true;
    if (this.#settle === undefined && this.#commands.length === 0) return this.#send(RETURN);
    this.#leave(state);
    return Promise.resolve(END);
  }

  #leave({ request }: OpenState<T>): void {
    request?.end('aborted', new DOMException('The consumer left the stream', 'AbortError'));
  }

  async throw(error?: unknown): Promise<IteratorResult<Y, R | undefined>> {
    if (this.#state.kind !== 'open') this.#state = OVER;
    else if (!this.#returned) {
      const result = await this.#send((iterator) => iterator.throw(error));
      if (result !== END) return result;
    }
    // The source is over, or was when the error's turn came.
    throw error;
  }

  /** Performs a command now, or after those that came before it. */
  #send(perform: Perform): Promise<IteratorResult<Y, R>> {
    return new Promise((settle) => {
      const work = this.#work;
      if (work?.isIdle && !work.abortable.aborted) this.#perform(work, perform, settle);
      else this.#commands.push({ perform, settle });
    });
  }

  #begin(): void {
    const state: OpenState<T> = { kind: 'open', request: undefined };
    this.#state = state;
    let request: ManagedRequest<T>;
    try {
      request = this.#open();
    } catch (error) {
      this.#finish({ error });
      return;
    }
    state.request = request;
    if (this.#returned) this.#leave(state);
    request
      .run((context) => this.#read(context, request.abortable))
      .then(
        () => this.#finish(undefined),
        (error: unknown) => this.#finish(this.#returned ? undefined : { error }),
      );
  }

  /** The request's work. */
  async #read(context: RequestContext<T>, abortable: LazySignal): Promise<void> {
    const items = await this.#source(context);
    const iterator = CheckedIterator.of(items, 'generator', 'a function that returns an async iterable');
    let work: Work | undefined;
    try {
      await new Promise<void>((end, fail) => {
        work = { iterator, abortable, context: new AsyncContext(), isIdle: true, end, fail };
        this.#work = work;
        abortable.addEventListener('abort', this);
        if (abortable.aborted) fail(abortable.reason);
        else this.#performNext(work);
      });
    } finally {
      abortable.removeEventListener('abort', this);
      if (work?.isIdle) await iterator.return();
    }
  }

  #performNext(work: Work): void {
    const command = this.#commands.shift();
    if (command !== undefined) this.#perform(work, command.perform, command.settle);
  }

  /** Without a closure for an item, and with one promise: it costs little more than a step of the source. */
  #perform(work: Work, perform: Perform, settle: Settle<Y, R>): void {
    work.isIdle = false;
    this.#settle = settle;
    try {
      const answer = work.context.run(perform, work.iterator);
      // A promise of the host may have a `then` of its own.
      Promise.prototype.then.call(answer, this.#onAnswer, work.fail);
    } catch (error) {
      work.fail(error);
    }
  }

  readonly #onAnswer = (answer: unknown): void => {
    const work = this.#work as Work;
    let result: IteratorResult<Y, R>;
    try {
      result = CheckedIterator.read<Y, R>(answer);
      work.isIdle = result.done !== true;
      // A source that ends quietly because it was aborted has not come to its end.
      work.abortable.throwIfAborted();
    } catch (error) {
      work.fail(error);
      return;
    }
    const settle = this.#settle;
    this.#settle = undefined;
    settle?.(result);
    if (result.done) work.end();
    else if (this.#commands.length > 0) this.#performNext(work);
  };

  /** The request was ended early. What is being performed ends by its signal. */
  handleEvent(): void {
    const work = this.#work as Work;
    if (work.isIdle) work.fail(work.abortable.reason);
  }

  /** Settles all commands: the first with the failure, if there is one, the others with the end. */
  #finish(failure: { readonly error: unknown } | undefined): void {
    const settles = this.#commands.splice(0).map(({ settle }) => settle);
    if (this.#settle !== undefined) settles.unshift(this.#settle);
    this.#settle = undefined;
    const [first, ...others] = settles;
    if (failure !== undefined && first === undefined) {
      this.#state = { kind: 'failed', error: failure.error };
      return;
    }
    this.#state = OVER;
    first?.(failure === undefined ? (END as IteratorResult<Y, R>) : Promise.reject(failure.error));
    for (const settle of others) settle(END as IteratorResult<Y, R>);
  }
}
