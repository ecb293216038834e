/**
 * The main entry point: limiter, pool, gates, tools, manager, hooks, configuration, logs, and HTTP.
 *
 * @module pipeline-pool
 */
export * from './errors.js';
export type { AttemptContext } from './gate/attempt.js';
export type { CacheOptions, CacheStore } from './gate/cache.js';
export type { GateOutcome } from './gate/call-context.js';
export {
  type Classifier,
  classifyOutcome,
  type Observed,
  type OutcomeJudgement,
} from './gate/classify.js';
export { apiKeyHeader, bearer, type GateFetchOptions } from './gate/fetch.js';
export type { GateFetchRequest } from './gate/fetch-request.js';
export type { CachedResponse } from './gate/fetch-response.js';
export type { KeyStats } from './gate/keys/key-ring.js';
export type { RateWindow } from './gate/keys/sliding-window.js';
export {
  anthropicPreset,
  classifyAnthropic,
  classifyGemini,
  classifyOpenAi,
  geminiPreset,
  type LlmLimits,
  openAiPreset,
} from './gate/llm-presets.js';
export { type FetchParts, longFetch } from './gate/long-fetch.js';
export type {
  CallToEstimate,
  CooldownOptions,
  GateCallOptions,
  GateCost,
  GateKeyOption,
  ServiceGateOptions,
  UsageReader,
  WeightEstimator,
} from './gate/options.js';
export {
  classifyE2b,
  classifyJina,
  classifySerper,
  e2bPreset,
  type GatePreset,
  jinaPreset,
  serperPreset,
} from './gate/presets.js';
export type { RetryBudgetOptions, RetryOptions } from './gate/retry.js';
export { type GateStats, ServiceGate } from './gate/service-gate.js';
export type { SharedLimits } from './gate/shared-limits.js';
export type { GateStreamSource } from './gate/stream.js';
export type * from './hooks/events.js';
export { LIFECYCLE_EVENTS } from './hooks/events.js';
export {
  LifecycleHooks,
  type LifecycleHooksOptions,
  type LifecycleListener,
} from './hooks/lifecycle-hooks.js';
export {
  type EventStreamOptions,
  type EventStreamSource,
  eventStream,
  type NodeTarget,
  type WebTarget,
} from './http/event-stream.js';
export { type FoundPoolError, findPoolError } from './http/find-pool-error.js';
export { type HealthHandlerOptions, type HttpHandler, healthHandler } from './http/health-handler.js';
export { type HttpStatus, toHttpStatus } from './http/http-status.js';
export type * from './limiter/adaptive-limit.js';
export { AdaptiveLimit } from './limiter/adaptive-limit.js';
export { ConcurrencyLimiter } from './limiter/concurrency-limiter.js';
export type * from './limiter/limiter.js';
export type { ConcurrencyLimiterOptions } from './limiter/options.js';
export {
  CONFIG_VARIABLES,
  type ConfigWarning,
  checkConfig,
  loadConfig,
  type Machine,
  type PipelineConfig,
  PRESETS,
} from './manager/config.js';
export type { Health, HealthStatus } from './manager/health.js';
export {
  type CreatePipelineManagerOptions,
  createPipelineManager,
  type ManagedGate,
  type ManagerStats,
  PipelineManager,
  type PipelineManagerOptions,
} from './manager/pipeline-manager.js';
export type { RequestInfo, RequestOptions } from './manager/request.js';
export type { StreamIterator, StreamSource } from './manager/request-stream.js';
export type * from './observability/logging/log.js';
export { logTo } from './observability/logging/log.js';
export type { Lease, ReleaseOptions } from './pool/lease.js';
export type {
  CreateRetry,
  DestroyContext,
  InstanceContext,
  LeaseOptions,
  PipelinePoolOptions,
  PoolStats,
  TaskContext,
} from './pool/options.js';
export { PipelinePool } from './pool/pipeline-pool.js';
export type { FairnessOptions, TenantShare } from './queue/options.js';
export { type Amounts, Budget, type BudgetOption } from './request/budget.js';
export { currentRequest, type RequestContext, withBudget } from './request/current-request.js';
export {
  type ConnectContext,
  type DefinedTools,
  defineTool,
  defineTools,
  type Tool,
  type ToolCallContext,
  type ToolClient,
  type ToolClientContext,
  type ToolGate,
  type ToolGateAttempt,
  type ToolGateOptions,
  type ToolInput,
  type ToolResult,
  type ToolScope,
  type ToolSet,
} from './tools/define-tools.js';
export { expectOk, ResponseError } from './tools/expect-ok.js';
export {
  type FactoryContext,
  type FactoryTaskContext,
  type PipelineFactory,
  type PipelineFactoryOptions,
  pipelineFactory,
} from './tools/pipeline-factory.js';
export type { AgentPipeline, FormatterContext, SubAgents } from './tools/pipeline-instance.js';
export type { JsonSchema, StandardSchema } from './tools/schema.js';
export type {
  ToolArguments,
  ToolCall,
  ToolCallOptions,
  ToolDefinition,
  ToolManager,
  ToolName,
  ToolResults,
} from './tools/tool-manager.js';
