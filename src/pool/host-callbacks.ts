import type { DestroyReason } from '../hooks/events.js';
import { type AsyncContext, NEUTRAL_CONTEXT } from '../internal/async-context.js';
import { HostCall, type HostStage } from './host-call.js';
import type { Instance } from './instance.js';
import type { LeaseOptions, PoolSettings, TaskContext } from './pool-options.js';

/**
 * The host's callbacks, each with its deadline. Those that serve the pool run in nobody's context, those that serve a task
 * in that of the task.
 */
export class HostCallbacks<T> {
  readonly #settings: PoolSettings<T>;
  readonly #giveUp: AbortSignal;

  /** `giveUp` ends all calls under way but those of `destroy`. */
  constructor(settings: PoolSettings<T>, giveUp: AbortSignal) {
    this.#settings = settings;
    this.#giveUp = giveUp;
  }

  create(instanceId: number, onLate: (pipeline: T) => void): HostCall<T> {
    return new HostCall((signal) => this.#settings.create({ instanceId, signal }), {
      ...this.#bounds('create', NEUTRAL_CONTEXT),
      onLate,
    });
  }

  validate({ id: instanceId, pipeline }: Instance<T>): HostCall<unknown> {
    return new HostCall<unknown>(
      (signal) => this.#settings.validate?.(pipeline as T, { instanceId, signal }),
      this.#bounds('validate', NEUTRAL_CONTEXT),
    );
  }

  prepare(
    instance: Instance<T>,
    options: LeaseOptions | undefined,
    context: AsyncContext | undefined,
  ): HostCall<unknown> {
    return new HostCall<unknown>(
      (signal) => this.#settings.prepare?.(instance.pipeline as T, taskContext(instance, options, signal)),
      this.#bounds('prepare', context ?? NEUTRAL_CONTEXT),
    );
  }

  reset(
    instance: Instance<T>,
    options: LeaseOptions | undefined,
    context: AsyncContext | undefined,
  ): HostCall<unknown> {
    return new HostCall<unknown>(
      (signal) => this.#settings.reset?.(instance.pipeline as T, taskContext(instance, options, signal)),
      this.#bounds('reset', context ?? NEUTRAL_CONTEXT),
    );
  }

  destroy({ id: instanceId, pipeline }: Instance<T>, reason: DestroyReason): HostCall<unknown> {
    return new HostCall<unknown>(
      (signal) => this.#settings.destroy?.(pipeline as T, { instanceId, reason, signal }),
      { ...this.#bounds('destroy', NEUTRAL_CONTEXT), giveUp: undefined },
    );
  }

  #bounds(stage: HostStage, context: AsyncContext) {
    const { name: source, [`${stage}TimeoutMs` as const]: timeoutMs } = this.#settings;
    return { source, stage, timeoutMs, context, giveUp: this.#giveUp };
  }
}

function taskContext<T>(
  { id: instanceId }: Instance<T>,
  options: LeaseOptions | undefined,
  signal: AbortSignal,
): TaskContext {
  const { taskId, requestId, tenant } = options ?? {};
  return {
    instanceId,
    signal,
    ...(taskId === undefined ? {} : { taskId }),
    ...(requestId === undefined ? {} : { requestId }),
    ...(tenant === undefined ? {} : { tenant }),
  };
}
