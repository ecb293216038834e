import { AsyncLocalStorage } from 'node:async_hooks';
import { callable, refusal } from '../internal/validate.js';
import { type Budget, isBudget } from './budget.js';

/**
 * The request that the running code works for.
 *
 * A manager runs the code of each request with its context in an AsyncLocalStorage; gates and tools take from there what
 * a call does not set. All copies of this package in one process share the storage.
 */

/** What the code of a request receives. */
export interface RequestContext<T = unknown> {
  /** The instance that this request alone uses until it ends. */
  readonly pipeline: T;
  /**
   * Aborts on the caller's abort, the deadline, revocation and shutdown, and when the request ends for any reason. Code
   * that ignores it has `abortGraceMs` to settle; then its instance is destroyed.
   */
  readonly signal: AbortSignal;
  /** The host's name for the work. */
  readonly taskId: string;
  readonly instanceId: number;
  /** One pass through the manager; a task that is tried again gets another. */
  readonly requestId: string;
  /** As in the request's options; absent where none was given. */
  readonly tenant?: string;
  /** As in the request's options; absent where none was given. */
  readonly priority?: number;
  /** What the request and everything under it may spend; absent where it has no budget. */
  readonly budget?: Budget;
}

/** What running code works for: a request, or only a budget outside of one. */
export type Scope = RequestContext | { readonly budget: Budget; readonly requestId?: undefined };

const STORAGE = Symbol.for('pipeline-pool.current-request');

/** Created when first needed: Node makes every promise dearer once an AsyncLocalStorage is in use. */
function storage(create: boolean): AsyncLocalStorage<Scope> | undefined {
  const shared = globalThis as { [STORAGE]?: AsyncLocalStorage<Scope> };
  if (shared[STORAGE] === undefined && create) shared[STORAGE] = new AsyncLocalStorage();
  return shared[STORAGE];
}

/** What the calling code works for. */
export function currentScope(): Scope | undefined {
  return storage(false)?.getStore();
}

/**
 * The context of the request that the calling code works for, `undefined` outside of one. It follows `await`, timers and
 * callbacks, also through code that knows nothing of this library.
 *
 * @example
 * const log = (text: string) => console.log(`[${currentRequest()?.taskId ?? 'no task'}] ${text}`);
 */
export function currentRequest(): RequestContext | undefined {
  const scope = currentScope();
  return scope?.requestId === undefined ? undefined : scope;
}

/** Calls `work` as the code of a request. */
export function runInRequest<T, R>(context: RequestContext<T>, work: (context: RequestContext<T>) => R): R {
  return (storage(true) as AsyncLocalStorage<Scope>).run(context, work, context);
}

/**
 * Calls `work` so that the calls of gates and tools in it spend from `budget`, within the budget of the current request if
 * it has one: a `child` of that one, or any other, which is spent from as well. Works outside of a request, too.
 *
 * @returns what `work` returns
 * @throws {TypeError} if `budget` is not a Budget, or `work` not a function
 *
 * @example
 * const answer = await withBudget(budget.child({ usd: 0.1 }), () => subAgent.run(question));
 */
export function withBudget<R>(budget: Budget, work: () => R): R {
  if (!isBudget(budget)) throw new TypeError(refusal('budget', 'a Budget', budget));
  callable('work', work);
  const current = currentScope();
  const request = currentRequest();
  const joined = budget.within(current?.budget);
  // By its descriptors: to read the signal would make one.
  const scope =
    request === undefined
      ? { budget: joined }
      : Object.create(null, {
          ...Object.getOwnPropertyDescriptors(request),
          budget: { value: joined, enumerable: true },
        });
  return (storage(true) as AsyncLocalStorage<Scope>).run(scope, work);
}

/** The farthest priority of a gate, whose start queue takes no farther one. */
const FARTHEST = 2_147_483_648;

/** The priority that calls inherit from a request: that of the request, within what gates accept. */
export function inheritedPriority({ priority }: RequestContext): number | undefined {
  return priority === undefined ? undefined : Math.max(-FARTHEST, Math.min(FARTHEST, priority));
}
