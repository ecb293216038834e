/**
 * The entry point `pipeline-pool/testing`: test doubles for services built on `pipeline-pool`.
 *
 * - `stub-service.ts`, `stub-llm.ts`, `stub-serper.ts`, `stub-jina.ts`, `stub-e2b.ts`: stub services on loopback
 * - `fault.ts`: the faults they can inject. `call-ledger.ts`: what they count
 * - `chat-completions.ts`, `responses.ts`, `messages.ts`: the interfaces of the LLM; `llm-answer.ts`: what they send
 * - `conversation.ts`, `stub-call.ts`: one call over HTTP. `stub-rate.ts`, `batch.ts`, `sandbox-fleet.ts`: their limits
 * - `start-stub-services.ts`: all four; `isolated-services.ts` and `stub-process.ts`: in a process of their own
 * - `scripted-factory.ts`: callbacks for a pool under test. `limiter-conformance.ts`: what every `Limiter` must do
 *
 * @module pipeline-pool/testing
 */
export type { LlmBatchStats } from './batch.js';
export type { CallFilter, StubStats, StubTally } from './call-ledger.js';
export {
  type EnvelopeFault,
  type Fault,
  type NoHeadersFault,
  type RefusalReason,
  type ResetFault,
  type RetryAfter,
  randomFault,
  type StallFault,
  type StatusFault,
  type StreamErrorFault,
} from './fault.js';
export type { IsolatedStub, IsolatedStubServices } from './isolated-services.js';
export {
  type ConformanceCase,
  type ConformanceLimiterOptions,
  limiterConformance,
} from './limiter-conformance.js';
export type { LlmReply, LlmRequest, StubToolCall } from './llm-answer.js';
export type { StubSandbox } from './sandbox-fleet.js';
export {
  type HeldCall,
  type PoolStage,
  type ScriptedCallbacks,
  ScriptedFactory,
  type ScriptedPipeline,
  type StageCall,
  type StageContext,
  type StageStep,
} from './scripted-factory.js';
export { type StubServices, startStubServices } from './start-stub-services.js';
export type { StubCall, StubCallEnd, StubReply, StubRoute } from './stub-call.js';
export { StubE2b, type StubE2bOptions, type StubExecution } from './stub-e2b.js';
export { type JinaPage, StubJina, type StubJinaOptions } from './stub-jina.js';
export { StubLlm, type StubLlmOptions } from './stub-llm.js';
export type { StubRate } from './stub-rate.js';
export { type SerperRequest, type SerperResult, StubSerper, type StubSerperOptions } from './stub-serper.js';
export { type Refusal, StubService, type StubServiceOptions } from './stub-service.js';
export type { IsolatedStubServicesOptions, StubServicesOptions } from './stub-services-options.js';
