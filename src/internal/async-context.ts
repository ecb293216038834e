import { AsyncResource } from 'node:async_hooks';

/**
 * Whose AsyncLocalStorage stores host code sees. Code of ours runs in the context of whoever happened to make room, end
 * a timer or abort a signal; host code must see that of the task it serves, or none.
 */
export class AsyncContext {
  readonly #resource = new AsyncResource('pipeline-pool', { requireManualDestroy: true });

  /** Calls `fn` in the context in which this was made. */
  run<R>(fn: () => R): R {
    return this.#resource.runInAsyncScope(fn);
  }
}

/** The context in which this module was loaded: nobody's request. */
export const NEUTRAL_CONTEXT = new AsyncContext();
