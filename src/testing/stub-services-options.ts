import type { StubE2bOptions } from './stub-e2b.js';
import type { StubJinaOptions } from './stub-jina.js';
import type { StubLlmOptions } from './stub-llm.js';
import type { StubSerperOptions } from './stub-serper.js';

/** Options of `startStubServices`: those of each service, and a default `timeScale`. */
export interface StubServicesOptions {
  /** Options of the LLM. @default none */
  readonly llm?: StubLlmOptions;
  /** Options of Serper. @default none */
  readonly serper?: StubSerperOptions;
  /** Options of Jina. @default none */
  readonly jina?: StubJinaOptions;
  /** Options of E2B. @default none */
  readonly e2b?: StubE2bOptions;
  /** Multiplies the durations of all four. @default 1 */
  readonly timeScale?: number;
}

/** Options of `startStubServices` for services in a process of their own. */
export interface IsolatedStubServicesOptions extends StubServicesOptions {
  /**
   * Runs the services in a process of their own: a busy event loop of the host then delays neither their clocks nor their
   * responses, as it does not with real services. What they have counted is read by asynchronous methods (`await
   * llm.stats()`, `await llm.calls()`). `reply`, `results`, `page` and `execute` run in the host's process; `latencyMs` and
   * `fault` cannot be functions.
   */
  readonly isolated: true;
}
