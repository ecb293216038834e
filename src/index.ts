export * from './errors.js';
export type * from './hooks/events.js';
export { LIFECYCLE_EVENTS } from './hooks/events.js';
export { LifecycleHooks, type LifecycleListener } from './hooks/lifecycle-hooks.js';
export type * from './limiter/adaptive-limit.js';
export { AdaptiveLimit } from './limiter/adaptive-limit.js';
export { ConcurrencyLimiter } from './limiter/concurrency-limiter.js';
export type * from './limiter/limiter.js';
export type { ConcurrencyLimiterOptions } from './limiter/limiter-options.js';
export {
  CONFIG_VARIABLES,
  type ConfigWarning,
  checkConfig,
  loadConfig,
  type Machine,
  type PipelineConfig,
  PRESETS,
} from './manager/config.js';
export {
  type CreatePipelineManagerOptions,
  createPipelineManager,
} from './manager/create-pipeline-manager.js';
export type { Health } from './manager/health.js';
export { type HttpStatus, toHttpStatus } from './manager/http-status.js';
export {
  type ManagedGate,
  type ManagerStats,
  PipelineManager,
  type PipelineManagerOptions,
} from './manager/pipeline-manager.js';
export type { RequestContext, RequestOptions } from './manager/request.js';
export type { StreamSource } from './manager/request-stream.js';
export type * from './observability/log.js';
export { logTo } from './observability/log.js';
export type * from './observability/timeline.js';
export { drawTimelines, recordTimeline, Timeline } from './observability/timeline.js';
export { Lease, type ReleaseOptions } from './pool/lease.js';
export { PipelinePool } from './pool/pipeline-pool.js';
export type {
  CreateRetry,
  DestroyContext,
  InstanceContext,
  LeaseOptions,
  PipelinePoolOptions,
  TaskContext,
} from './pool/pool-options.js';
export type { PoolStats } from './pool/pool-stats.js';
