import { LifecycleHooks } from '../hooks/lifecycle-hooks.js';
import { ConcurrencyLimiter } from '../limiter/concurrency-limiter.js';
import { PipelinePool } from '../pool/pipeline-pool.js';
import type { PipelinePoolOptions } from '../pool/pool-options.js';
import { loadConfig, type PipelineConfig, validConfig } from './config.js';
import { type ManagedGate, PipelineManager, type PipelineManagerOptions } from './pipeline-manager.js';

/** The pool's options, and what else a manager takes. Only `create` is needed. */
export interface CreatePipelineManagerOptions<T> extends Omit<PipelinePoolOptions<T>, 'size' | 'maxQueue'> {
  /** @default loadConfig() */
  readonly config?: PipelineConfig;
  readonly gates?: readonly ManagedGate[];
  /** As in `PipelineManagerOptions`. @default false */
  readonly diagnosis?: PipelineManagerOptions<T>['diagnosis'];
}

/**
 * Builds limiter, pool and manager from one configuration, with one set of hooks: the shortest way in.
 *
 * @throws {TypeError | RangeError} naming the option or the environment variable that is wrong, and its value
 *
 * @example
 * const manager = createPipelineManager({
 *   config: PRESETS.light,
 *   create: ({ instanceId }) => new ResearchPipeline(instanceId),
 *   destroy: (pipeline) => pipeline.close(),
 * });
 */
export function createPipelineManager<T>({
  config = loadConfig(),
  gates,
  diagnosis,
  hooks = new LifecycleHooks(),
  ...poolOptions
}: CreatePipelineManagerOptions<T>): PipelineManager<T> {
  const { poolSize, maxConcurrentRequests, maxQueue, queueTimeoutMs, requestTimeoutMs, abortGraceMs } =
    validConfig(config);
  return new PipelineManager({
    pool: new PipelinePool<T>({ ...poolOptions, size: poolSize, hooks }),
    limiter: new ConcurrencyLimiter({
      maxConcurrent: maxConcurrentRequests,
      maxQueue,
      queueTimeoutMs,
      hooks,
    }),
    gates,
    diagnosis,
    requestTimeoutMs,
    abortGraceMs,
    hooks,
  });
}
