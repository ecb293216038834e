import type { ManagedRequest, RequestContext } from './request.js';

/** The host's generator: what it yields goes to the consumer one by one, each when it is asked for. */
export type StreamSource<T, Y, R = unknown> = (
  context: RequestContext<T>,
) => AsyncIterable<Y, R> | AsyncIterator<Y, R>;

type Command<Y, R> = {
  readonly perform: (iterator: AsyncIterator<Y, R>) => Promise<IteratorResult<Y, R>>;
  readonly settle: (result: IteratorResult<Y, R> | Promise<never>) => void;
};

/**
 * Where a stream is.
 *
 *     idle ──first next──► open ──last item, break, throw, abort──► over
 *       └──return, throw──────────────────────────────────────────►┘
 */
type StreamState<T> =
  | { readonly kind: 'idle' }
  | { readonly kind: 'open'; readonly request: ManagedRequest<T> }
  | { readonly kind: 'over' };

const OVER = { kind: 'over' } as const;
const END = Object.freeze({ done: true, value: undefined });

/**
 * A request whose results come one by one. It is a request like any other, whose work takes the consumer's commands
 * (`next`, `return`, `throw`) in order and carries each out on the host's generator.
 *
 * Invariants:
 * - Nothing is held until the first `next`, and nothing after the end, however it comes: the last item, `break`,
 *   `return`, a throw on either side, an abort.
 * - The generator runs only while an item is asked for: a slow consumer holds it back.
 * - `return` does not wait for an item under way: it aborts the request, and the item's `next` gives the end.
 */
export class RequestStream<T, Y, R> implements AsyncIterableIterator<Y, R | undefined> {
  readonly #open: () => ManagedRequest<T>;
  readonly #source: StreamSource<T, Y, R>;
  readonly #commands: Command<Y, R>[] = [];
  #state: StreamState<T> = { kind: 'idle' };
  #wake: (() => void) | undefined;
  /** The command that the generator is carrying out. */
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
    if (this.#state.kind === 'over' || this.#returned) return Promise.resolve(END);
    const item = this.#send((iterator) => iterator.next());
    if (this.#state.kind === 'idle') this.#begin();
    return item;
  }

  return(): Promise<IteratorResult<Y, R | undefined>> {
    const { kind } = this.#state;
    if (kind !== 'open' || this.#returned) {
      this.#state = kind === 'idle' ? OVER : this.#state;
      return Promise.resolve(END);
    }
    this.#returned = true;
    if (this.#current === undefined && this.#commands.length === 0) {
      return this.#send(async (iterator) => {
        await iterator.return?.();
        // Over, even where the generator would rather yield once more.
        return END as IteratorResult<Y, R>;
      });
    }
    this.#state.request.end('aborted', new DOMException('The consumer left the stream', 'AbortError'));
    return Promise.resolve(END);
  }

  throw(error?: unknown): Promise<IteratorResult<Y, R | undefined>> {
    if (this.#state.kind !== 'open' || this.#returned) {
      this.#state = this.#state.kind === 'idle' ? OVER : this.#state;
      return Promise.reject(error);
    }
    return this.#send((iterator) => {
      if (iterator.throw !== undefined) return iterator.throw(error);
      throw error;
    });
  }

  #send(perform: Command<Y, R>['perform']): Promise<IteratorResult<Y, R>> {
    return new Promise((settle) => {
      this.#commands.push({ perform, settle });
      this.#wake?.();
    });
  }

  #begin(): void {
    let request: ManagedRequest<T>;
    try {
      request = this.#open();
    } catch (error) {
      this.#finish(Promise.reject(error));
      return;
    }
    this.#state = { kind: 'open', request };
    request
      .run((context) => this.#work(context))
      .then(
        () => this.#finish(undefined),
        (error: unknown) => this.#finish(this.#returned ? undefined : Promise.reject(error)),
      );
  }

  /** The request's work: carries out one command after another until the generator is done. */
  async #work(context: RequestContext<T>): Promise<void> {
    const made = this.#source(context);
    const iterator = Symbol.asyncIterator in made ? made[Symbol.asyncIterator]() : made;
    let done = false;
    context.signal.addEventListener('abort', () => this.#wake?.(), { once: true });
    try {
      while (!done) {
        const command = await this.#nextCommand(context.signal);
        this.#current = command;
        const result = await command.perform(iterator);
        this.#current = undefined;
        done = result.done === true;
        command.settle(result);
      }
    } finally {
      // Aborted between two items: the generator's own `finally` must run all the same.
      if (!done && this.#current === undefined) await iterator.return?.();
    }
  }

  async #nextCommand(signal: AbortSignal): Promise<Command<Y, R>> {
    for (;;) {
      if (signal.aborted) throw signal.reason;
      const command = this.#commands.shift();
      if (command !== undefined) return command;
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
      this.#wake = undefined;
    }
  }

  /** Answers whoever still waits: the first with the failure, if there is one, the rest with the end. */
  #finish(failure: Promise<never> | undefined): void {
    this.#state = OVER;
    const waiting = this.#current === undefined ? this.#commands : [this.#current, ...this.#commands];
    const [first, ...others] = waiting.splice(0);
    this.#commands.length = 0;
    this.#current = undefined;
    if (first === undefined) failure?.catch(() => {});
    else first.settle(failure ?? (END as IteratorResult<Y, R>));
    for (const { settle } of others) settle(END as IteratorResult<Y, R>);
  }
}
