import { MASK, type Mask } from '../internal/told-error.js';

/** What a gate gives one attempt. */
export interface ToolGateAttempt {
  readonly signal: AbortSignal;
  /** The key to use; empty or absent where the gate has none. */
  readonly key?: string;
  readonly attempt: number;
  settle(actual: number): void;
}

/** What a tool tells its gate of a call. */
export interface ToolGateOptions {
  readonly signal?: AbortSignal;
  readonly timeoutMs?: number;
  readonly priority?: number;
  readonly tenant?: string;
  readonly weight?: number;
  readonly taskId?: string;
  readonly requestId?: string;
  readonly toolCallId?: number;
  readonly cacheKey?: string;
  /** @internal What must not be told of this call, besides keys. */
  readonly [MASK]?: Mask | undefined;
}

/** What a tool needs of a gate. A `ServiceGate` is one. */
export interface ToolGate {
  run<R>(work: (attempt: ToolGateAttempt) => R | PromiseLike<R>, options?: ToolGateOptions): Promise<R>;
}
