import type { AbortListener, LazySignal } from '../internal/abort.js';
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

/** Performs a command on the host's iterator. What it returns is to be awaited, and checked. */
type Perform = (iterator: CheckedIterator<unknown>) => unknown;

const NEXT: Perform = (iterator) => iterator.ask();
const RETURN: Perform = async (iterator) => {
  await iterator.return();
  // Over, even if the generator yields once more.
  return END;
};

interface Command<Y, R> {
  readonly perform: Perform;
  readonly settle: (result: IteratorResult<Y, R> | Promise<never>) => void;
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
  | { readonly kind: 'open'; readonly request: ManagedRequest<T> }
  /** Ended with an error that the consumer has not seen yet: it did not wait for an item at that time. */
  | { readonly kind: 'failed'; readonly error: unknown }
  | { readonly kind: 'over' };

const OVER = { kind: 'over' } as const;
const END = /* @__PURE__ */ Object.freeze({ done: true, value: undefined });

/**
 * A request whose results come one by one. It is a request like any other, whose work performs the consumer's commands
 * (`next`, `return`, `throw`) in order on the host's iterator.
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
  /** Gives a command to the work, which waits for one; or none, because the request was ended early. */
  #give: ((command: Command<Y, R> | undefined) => void) | undefined;
  /** The command that is being performed. */
  #current: Command<Y, R> | undefined;
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
    if (this.#current === undefined && this.#commands.length === 0) {
      return this.#send(RETURN);
    }
    state.request.end('aborted', new DOMException('The consumer left the stream', 'AbortError'));
    return Promise.resolve(END);
  }

  throw(error?: unknown): Promise<IteratorResult<Y, R | undefined>> {
    if (this.#state.kind !== 'open' || this.#returned) {
      if (this.#state.kind !== 'open') this.#state = OVER;
      return Promise.reject(error);
    }
    return this.#send((iterator) => iterator.throw(error));
  }

  #send(perform: Perform): Promise<IteratorResult<Y, R>> {
    return new Promise((settle) => {
      const command = { perform, settle };
      const give = this.#give;
      if (give === undefined) this.#commands.push(command);
      else {
        this.#give = undefined;
        this.#current = command;
        give(command);
      }
    });
  }

  #begin(): void {
    let request: ManagedRequest<T>;
    try {
      request = this.#open();
    } catch (error) {
      this.#finish({ error });
      return;
    }
    this.#state = { kind: 'open', request };
    request
      .run((context) => this.#work(context, request.abortable))
      .then(
        () => this.#finish(undefined),
        (error: unknown) => this.#finish(this.#returned ? undefined : { error }),
      );
  }

  /** The request was ended early: `#work` must not wait for a command. */
  handleEvent(): void {
    this.#give?.(undefined);
  }

  /**
   * The request's work: performs one command after another until the source is done. In one function, without a promise or
   * a closure for an item that can be done without: an item costs little more than a step of the source.
   */
  async #work(context: RequestContext<T>, abortable: LazySignal): Promise<void> {
    const items = await this.#source(context);
    const iterator = CheckedIterator.of(items, 'generator', 'a function that returns an async iterable');
    // Whether the iterator is neither busy nor over, so that its `return` must be called.
    let open = true;
    abortable.addEventListener('abort', this);
    try {
      for (let done = false; !done; ) {
        abortable.throwIfAborted();
        const command =
          this.#commands.shift() ??
          (await new Promise<Command<Y, R> | undefined>((resolve) => {
            this.#give = resolve;
          }));
        abortable.throwIfAborted();
        this.#current = command as Command<Y, R>;
        open = false;
        const result = CheckedIterator.read<Y, R>(await this.#current.perform(iterator));
        done = result.done === true;
        open = !done;
        // A source that ends quietly because it was aborted has not come to its end.
        abortable.throwIfAborted();
        const { settle } = this.#current;
        this.#current = undefined;
        settle(result);
      }
    } finally {
      abortable.removeEventListener('abort', this);
      if (open) await iterator.return();
    }
  }

  /** Settles all commands: the first with the failure, if there is one, the others with the end. */
  #finish(failure: { readonly error: unknown } | undefined): void {
    const commands = this.#current === undefined ? [] : [this.#current];
    commands.push(...this.#commands.splice(0));
    this.#current = undefined;
    const [first, ...others] = commands;
    if (failure !== undefined && first === undefined) {
      this.#state = { kind: 'failed', error: failure.error };
      return;
    }
    this.#state = OVER;
    first?.settle(failure === undefined ? (END as IteratorResult<Y, R>) : Promise.reject(failure.error));
    for (const { settle } of others) settle(END as IteratorResult<Y, R>);
  }
}
