import { CallbackTimeoutError, type LifecycleStage } from '../errors.js';
import { linkedController } from '../internal/abort-watch.js';
import type { AsyncContext } from '../internal/async-context.js';
import { boundedCall } from '../internal/bounded-call.js';

/** The steps that are the host's. */
export type HostStage = Exclude<LifecycleStage, 'wait'>;

/** How a callback of the host is called. */
export interface HostCallOptions<R> {
  /** The pool's name. */
  readonly source: string;
  readonly stage: HostStage;
  readonly timeoutMs: number;
  /** Whose AsyncLocalStorage stores the callback sees. */
  readonly context: AsyncContext;
  /** Ends the call at once when it aborts, whatever the callback does. */
  readonly giveUp?: AbortSignal | undefined;
  /** Takes what the callback gives after the call had already failed. */
  readonly onLate?: (result: R) => void;
}

/**
 * One call of a callback of the host.
 *
 * It ends when the callback does or when its time is up, and not before: callbacks of one instance never overlap, short
 * of a deadline. `cancel` only tells the callback, by its signal, that nobody needs the result any more.
 */
export class HostCall<R> {
  readonly #callback: (signal: AbortSignal) => R | PromiseLike<R>;
  readonly #options: HostCallOptions<R>;
  #controller: AbortController | undefined;
  #cancelled: { readonly reason: unknown } | undefined;

  constructor(callback: (signal: AbortSignal) => R | PromiseLike<R>, options: HostCallOptions<R>) {
    this.#callback = callback;
    this.#options = options;
  }

  /** Makes the call. Never throws; the promise settles in every case. */
  run(): Promise<R> {
    const { source, stage, timeoutMs, context, giveUp, onLate } = this.#options;
    return context.run(() =>
      boundedCall<R>(
        (ended) => {
          const { controller } = linkedController(ended);
          this.#controller = controller;
          if (this.#cancelled !== undefined) controller.abort(this.#cancelled.reason);
          return this.#callback(controller.signal);
        },
        {
          timeoutMs,
          timeoutError: () => new CallbackTimeoutError(source, stage, timeoutMs),
          ...(giveUp === undefined ? {} : { signal: giveUp }),
          ...(onLate === undefined ? {} : { onLate }),
        },
      ),
    );
  }

  /** Tells the callback that its result is no longer wanted. The call goes on until the callback heeds it. */
  cancel(reason: unknown): void {
    this.#cancelled ??= { reason };
    this.#controller?.abort(reason);
  }
}
