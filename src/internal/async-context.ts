import { AsyncResource } from 'node:async_hooks';

/**
 * An AsyncLocalStorage context, captured when this is made. Library code runs in the context of whatever released an
 * instance, fired a timer or aborted a signal; host code must run in the context of the task it serves, or in none.
 */
export class AsyncContext extends AsyncResource {
  constructor() {
    super('pipeline-pool', { requireManualDestroy: true });
  }

  /** Calls `fn` in the captured context. */
  run<A extends unknown[], R>(fn: (...args: A) => R, ...args: A): R {
    return this.runInAsyncScope(fn, undefined, ...args);
  }

  /** It keeps no process alive: `jest --detectOpenHandles` would list a resource without this method as an open handle. */
  hasRef(): boolean {
    return false;
  }
}

/** The context in which this module was loaded, outside any request. */
export const NEUTRAL_CONTEXT = /* @__PURE__ */ new AsyncContext();
