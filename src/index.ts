export * from './errors.js';
export type { AttemptContext } from './gate/attempt.js';
export type { GateOutcome } from './gate/call-scope.js';
export type { GateCallOptions, GateKeyOption, RestOptions, ServiceGateOptions } from './gate/gate-options.js';
export type { GateStreamSource } from './gate/gate-stream.js';
export type { KeyStats } from './gate/key-ring.js';
export { type FetchParts, longFetch } from './gate/long-fetch.js';
export {
  type Classifier,
  classifyOutcome,
  type Judgement,
  type Observed,
} from './gate/outcome.js';
export {
  classifyE2b,
  classifyJina,
  classifyOpenAi,
  classifySerper,
  e2bPreset,
  type GatePreset,
  jinaPreset,
  openAiPreset,
  serperPreset,
} from './gate/presets.js';
export type { RateWindow } from './gate/rate-window.js';
export type { CacheOptions } from './gate/request-cache.js';
export type { RetryBudgetOptions, RetryOptions } from './gate/retry.js';
export { type GateStats, ServiceGate } from './gate/service-gate.js';
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
export type { Diagnosis, DiagnosisOptions, Finding, FindingCode } from './manager/diagnosis.js';
export type { Health, HealthStatus } from './manager/health.js';
export { type HealthHandlerOptions, type HttpHandler, healthHandler } from './manager/health-handler.js';
export { type HttpStatus, toHttpStatus } from './manager/http-status.js';
export {
  type ManagedGate,
  type ManagerStats,
  PipelineManager,
  type PipelineManagerOptions,
} from './manager/pipeline-manager.js';
export type { RequestContext, RequestOptions } from './manager/request.js';
export type { StreamSource } from './manager/request-stream.js';
export { type LivePage, type LivePageOptions, livePage } from './observability/live-page.js';
export type * from './observability/log.js';
export { logTo } from './observability/log.js';
export type * from './observability/timeline.js';
export { drawTimelines, recordTimeline } from './observability/timeline.js';
export type { Lease, ReleaseOptions } from './pool/lease.js';
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
export type { ConnectContext } from './tools/connection.js';
export {
  type DefinedTools,
  defineTool,
  defineTools,
  type JsonSchema,
  type Tool,
  type ToolCallContext,
  type ToolClient,
  type ToolClientContext,
  type ToolInput,
  type ToolResult,
  type ToolScope,
  type ToolSet,
} from './tools/define-tools.js';
export {
  type FactoryContext,
  type FactoryTaskContext,
  type PipelineFactory,
  type PipelineFactoryOptions,
  pipelineFactory,
} from './tools/pipeline-factory.js';
export type { AgentPipeline, FormatterContext, SubAgents } from './tools/pipeline-instance.js';
export type { ToolGate, ToolGateAttempt, ToolGateOptions } from './tools/tool-gate.js';
export type {
  ToolArguments,
  ToolCall,
  ToolCallOptions,
  ToolDefinition,
  ToolManager,
  ToolName,
  ToolResults,
} from './tools/tool-manager.js';
