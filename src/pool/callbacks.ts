import { CallbackTimeoutError, type LifecycleStage } from '../errors.js';
import type { DestroyReason } from '../hooks/events.js';
import { boundedCall, linkedController } from '../internal/abort.js';
import { type AsyncContext, NEUTRAL_CONTEXT } from '../internal/async-context.js';
import type { LeaseOptions, PoolSettings, TaskContext } from './options.js';

/** The stages that run a callback of the host. */
type CallbackStage = Exclude<LifecycleStage, 'wait'>;

/** The instance that a callback is called for. */
interface Subject<T> {
  readonly id: number;
  readonly pipeline: T | undefined;
}

interface InvocationOptions<R> {
  /** The pool's name. */
  readonly source: string;
  readonly stage: CallbackStage;
  readonly timeoutMs: number;
  /** The AsyncLocalStorage context of the callback. */
  readonly context: AsyncContext;
  /** Ends the call at once when it aborts, whatever the callback does. */
  readonly signal?: AbortSignal;
  /** Receives a result that arrives after the call has failed. */
  readonly onLate?: (result: R) => void;
}

/**
 * One call of a callback of the host.
 *
 * It ends when the callback does or at its deadline, and not before: callbacks of one instance never overlap, short of a
 * deadline. `cancel` only aborts the callback's signal.
 */
export class CallbackInvocation<R> {
  readonly #callback: (signal: AbortSignal) => R | PromiseLike<R>;
  readonly #options: InvocationOptions<R>;
  #controller: AbortController | undefined;
  #cancelled: { readonly reason: unknown } | undefined;

  constructor(callback: (signal: AbortSignal) => R | PromiseLike<R>, options: InvocationOptions<R>) {
    this.#callback = callback;
    this.#options = options;
  }

  /** Makes the call. Never throws; the promise settles in every case. */
  run(): Promise<R> {
    const { source, stage, timeoutMs, context, signal, onLate } = this.#options;
    const timeoutError = (): Error => new CallbackTimeoutError(source, stage, timeoutMs);
    return context.runInAsyncScope(() =>
      boundedCall<R>((ended) => this.#call(ended), { timeoutMs, timeoutError, signal, onLate }),
    );
  }

  /** Aborts the callback's signal: its result is no longer needed. The call goes on until the callback ends. */
  cancel(reason: unknown): void {
    this.#cancelled ??= { reason };
    this.#controller?.abort(reason);
  }

  #call(ended: AbortSignal): R | PromiseLike<R> {
    this.#controller = linkedController(ended).controller;
    if (this.#cancelled !== undefined) this.#controller.abort(this.#cancelled.reason);
    return this.#callback(this.#controller.signal);
  }
}

/**
 * The host's callbacks, each with its deadline. `create`, `validate` and `destroy` serve the pool and run outside any
 * request's AsyncLocalStorage context; `prepare` and `reset` run in that of their task.
 */
export class Callbacks<T> {
  readonly #settings: PoolSettings<T>;
  readonly #abandoned = new AbortController();

  constructor(settings: PoolSettings<T>) {
    this.#settings = settings;
  }

  create(instanceId: number, onLate: (pipeline: T) => void): CallbackInvocation<T> {
    return new CallbackInvocation((signal) => this.#settings.create({ instanceId, signal }), {
      ...this.#options('create', NEUTRAL_CONTEXT),
      signal: this.#abandoned.signal,
      onLate,
    });
  }

  validate({ id: instanceId, pipeline }: Subject<T>): CallbackInvocation<unknown> {
    return new CallbackInvocation<unknown>(
      (signal) => this.#settings.validate?.(pipeline as T, { instanceId, signal }),
      { ...this.#options('validate', NEUTRAL_CONTEXT), signal: this.#abandoned.signal },
    );
  }

  /** `prepare` or `reset`. */
  ofTask(
    stage: 'prepare' | 'reset',
    { id: instanceId, pipeline }: Subject<T>,
    { taskId, requestId, tenant }: LeaseOptions = {},
    context: AsyncContext = NEUTRAL_CONTEXT,
  ): CallbackInvocation<unknown> {
    const task: Omit<TaskContext, 'signal'> = {
      instanceId,
      ...(taskId === undefined ? {} : { taskId }),
      ...(requestId === undefined ? {} : { requestId }),
      ...(tenant === undefined ? {} : { tenant }),
    };
    return new CallbackInvocation<unknown>(
      (signal) => this.#settings[stage]?.(pipeline as T, { ...task, signal }),
      { ...this.#options(stage, context), signal: this.#abandoned.signal },
    );
  }

  destroy({ id: instanceId, pipeline }: Subject<T>, reason: DestroyReason): CallbackInvocation<unknown> {
    return new CallbackInvocation<unknown>(
      (signal) => this.#settings.destroy?.(pipeline as T, { instanceId, reason, signal }),
      this.#options('destroy', NEUTRAL_CONTEXT),
    );
  }

  /** Ends all calls in progress, except those of `destroy`. */
  abandon(reason: unknown): void {
    this.#abandoned.abort(reason);
  }

  #options(stage: CallbackStage, context: AsyncContext) {
    const { name: source, [`${stage}TimeoutMs` as const]: timeoutMs } = this.#settings;
    return { source, stage, timeoutMs, context };
  }
}
