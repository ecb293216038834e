/**
 * Every error of the library. Narrow by `code`, which is stable, or by `instanceof`, which works across the ESM and
 * CommonJS copies of this package. Each has the `name` of its component as `source`; a `cause` is the very error that
 * the host's code or its client threw.
 */
import { describeError } from './internal/redaction.js';

/** The stable codes. New ones may be added in a minor version; none is renamed or removed. */
export type PipelinePoolErrorCode =
  | 'ERR_QUEUE_FULL'
  | 'ERR_ACQUIRE_TIMEOUT'
  | 'ERR_DEADLINE_UNMEETABLE'
  | 'ERR_NESTED_ACQUIRE'
  | 'ERR_LIMITER_CLOSED'
  | 'ERR_LIMIT_LOST'
  | 'ERR_LIMITS_UNAVAILABLE'
  | 'ERR_POOL_CLOSED'
  | 'ERR_DRAIN_TIMEOUT'
  | 'ERR_CREATE_FAILED'
  | 'ERR_PREPARE_FAILED'
  | 'ERR_CALLBACK_TIMEOUT'
  | 'ERR_LEASE_RELEASED'
  | 'ERR_LEASE_REVOKED'
  | 'ERR_INSTANCE_GONE'
  | 'ERR_MANAGER_CLOSED'
  | 'ERR_REQUEST_TIMEOUT'
  | 'ERR_GATE_TIMEOUT'
  | 'ERR_GATE_CLOSED'
  | 'ERR_KEYS_EXHAUSTED'
  | 'ERR_BUDGET_EXCEEDED'
  | 'ERR_TOOL_UNKNOWN'
  | 'ERR_TOOL_TIMEOUT'
  | 'ERR_TOOL_FAILED';

// The same in all copies of this package in one process.
const KIND = 'pipelinePoolError';

/**
 * The base class of all errors of this library. Hosts read these errors, they do not construct them.
 *
 * @example
 * try {
 *   await pool.acquire({ timeoutMs: 500 });
 * } catch (error) {
 *   if (error instanceof PipelinePoolError && error.code === 'ERR_ACQUIRE_TIMEOUT') retryLater();
 *   else throw error;
 * }
 */
export class PipelinePoolError extends Error {
  /** @internal The class, for `instanceof` between copies of this package. A literal name, so that bundlers can drop unused classes. */
  static readonly pipelinePoolError: string = 'PipelinePoolError';
  /** Stable, for `switch`. */
  readonly code: PipelinePoolErrorCode;
  /** The `name` of the limiter, pool, gate, tool manager or manager. */
  readonly source: string;

  /** @internal */
  constructor(
    code: PipelinePoolErrorCode,
    source: string,
    message: string,
    fields?: Readonly<Record<string, unknown>> | QueueFigures | PoolFigures | ExceededMeter,
    cause?: unknown,
  ) {
    super(message, cause === undefined ? undefined : { cause });
    this.code = code;
    this.source = source;
    // Those of a subclass, which declares them only.
    Object.assign(this, fields);
    Object.defineProperty(this, 'name', {
      value: new.target.pipelinePoolError,
      configurable: true,
      writable: true,
    });
  }

  static override [Symbol.hasInstance](value: unknown): boolean {
    if (typeof value !== 'object' || value === null) return false;
    try {
      // A host's own subclass has no kind of its own: it means exactly itself.
      if (!Object.hasOwn(this, KIND)) return Function.prototype[Symbol.hasInstance].call(this, value);
      for (let proto = Object.getPrototypeOf(value); proto !== null; proto = Object.getPrototypeOf(proto)) {
        const maker = proto.constructor;
        if (typeof maker === 'function' && Object.hasOwn(maker, KIND) && maker[KIND] === this[KIND])
          return true;
      }
    } catch {
      // A revoked proxy, or a prototype that throws.
    }
    return false;
  }
}

/** The state of a limiter or a pool when it rejected a request. */
export interface QueueFigures {
  /** The component's `name`. */
  readonly source: string;
  /** Milliseconds that the request waited. */
  readonly waitMs: number;
  /** Permits or leases held. */
  readonly active: number;
  /** Waiters that remain in the queue. */
  readonly queued: number;
  /** The limit: `maxConcurrent` of a limiter, `size` of a pool. */
  readonly size: number;
}

abstract class QueueRejection extends PipelinePoolError implements QueueFigures {
  declare readonly waitMs: number;
  declare readonly active: number;
  declare readonly queued: number;
  declare readonly size: number;

  /** @internal */
  constructor(code: PipelinePoolErrorCode, message: string, figures: QueueFigures, cause?: unknown) {
    const { source, active, queued, size } = figures;
    super(code, source, `${message} (${active} of ${size} in use, ${queued} queued)`, figures, cause);
  }
}

/** The queue already has `maxQueue` waiters. Retry after `retryAfterMs`. `toHttpStatus` maps it to 429. */
export class QueueFullError extends QueueRejection {
  static override readonly pipelinePoolError = 'QueueFullError';
  /** Milliseconds that a request arriving now would have to wait, estimated from recent releases. */
  declare readonly retryAfterMs: number;

  /** @internal */
  constructor(figures: QueueFigures & { readonly retryAfterMs: number }) {
    super('ERR_QUEUE_FULL', `The queue of ${figures.source} is full`, figures);
  }
}

/** The wait for a permit or a lease exceeded its timeout. The last creation failure, if any, is the `cause`. */
export class AcquireTimeoutError extends QueueRejection {
  static override readonly pipelinePoolError = 'AcquireTimeoutError';
  /** What the request was waiting for: always `wait` for a limiter; `wait`, `create`, `validate` or `prepare` for a pool. */
  declare readonly stage: LifecycleStage;
  /** Instances alive; pools only. */
  declare readonly live?: number;
  /** Idle instances; pools only. */
  declare readonly idle?: number;

  /** @internal */
  constructor(given: QueueFigures & { readonly stage?: LifecycleStage }, cause?: unknown) {
    const figures = { stage: 'wait', ...given };
    const message = `Gave up on ${given.source} after ${Math.round(given.waitMs)} ms`;
    super('ERR_ACQUIRE_TIMEOUT', message, figures, cause);
  }
}

/** Rejected on arrival, because the estimated wait exceeds the caller's `timeoutMs` (with `rejectUnmeetable`). */
export class DeadlineUnmeetableError extends QueueRejection {
  static override readonly pipelinePoolError = 'DeadlineUnmeetableError';
  /** Milliseconds that the request would have to wait, estimated from recent releases. */
  declare readonly retryAfterMs: number;
  /** Milliseconds that the caller allowed. */
  declare readonly timeoutMs: number;

  /** @internal */
  constructor(figures: QueueFigures & { readonly retryAfterMs: number; readonly timeoutMs: number }) {
    const { source, retryAfterMs, timeoutMs } = figures;
    const message = `${source} would take about ${Math.round(retryAfterMs)} ms, longer than the ${timeoutMs} ms allowed`;
    super('ERR_DEADLINE_UNMEETABLE', message, figures);
  }
}

/** An acquire inside a `run` would wait for the same limiter: for a permit that only the end of that `run` can release. */
export class NestedAcquireError extends PipelinePoolError {
  static override readonly pipelinePoolError = 'NestedAcquireError';
  /** @internal */
  constructor(source: string) {
    super(
      'ERR_NESTED_ACQUIRE',
      source,
      `A run nested in one of ${source} may wait forever; give it a limiter of its own`,
    );
  }
}

/** The limiter was closed before this request got its permit. */
export class LimiterClosedError extends PipelinePoolError {
  static override readonly pipelinePoolError = 'LimiterClosedError';
  /** @internal */
  constructor(source: string) {
    super('ERR_LIMITER_CLOSED', source, `${source} is closed`);
  }
}

/**
 * Why a permit of a shared limit was lost: its lease could not be confirmed in time (`expired`), the limit no longer counts
 * it (`revoked`), it exceeds this process's share while the limit is unavailable (`excess`), or the limits were closed
 * (`closed`).
 */
export type LimitLossReason = 'expired' | 'revoked' | 'excess' | 'closed';

const LOSSES: Readonly<Record<LimitLossReason, string>> = {
  expired: 'its lease was not confirmed in time',
  revoked: 'the limit no longer counts it',
  excess: "it exceeds this process's share while the limit is unavailable",
  closed: 'the limits were closed',
};

/** The holder of a permit lost it before it was released: another may hold it now. `permit.signal` aborts with this. */
export class LimitLostError extends PipelinePoolError {
  static override readonly pipelinePoolError = 'LimitLostError';
  /** Why the permit was lost. */
  declare readonly reason: LimitLossReason;
  /** @internal */
  constructor(source: string, reason: LimitLossReason) {
    super('ERR_LIMIT_LOST', source, `A permit of ${source} was lost: ${LOSSES[reason]}`, { reason });
  }
}

/** The server that holds a shared limit cannot be reached. The failure, if one is known, is the `cause`. */
export class LimitsUnavailableError extends PipelinePoolError {
  static override readonly pipelinePoolError = 'LimitsUnavailableError';
  /** @internal */
  constructor(source: string, cause?: unknown) {
    super('ERR_LIMITS_UNAVAILABLE', source, `The shared limit of ${source} is unavailable`, undefined, cause);
  }
}

/** The pool is draining or closed and grants no further leases. */
export class PoolClosedError extends PipelinePoolError {
  static override readonly pipelinePoolError = 'PoolClosedError';
  /** @internal */
  constructor(source: string, state: 'draining' | 'closed') {
    super('ERR_POOL_CLOSED', source, `${source} is ${state} and gives no further leases`);
  }
}

/** The holder of a lease. */
export interface LeaseHolder {
  readonly instanceId: number;
  readonly taskId?: string;
  /** Milliseconds since the lease was granted. */
  readonly heldMs: number;
  /** Where the lease was acquired; known only with `leakWarningMs`. */
  readonly stack?: string;
}

/** `drain` or `close` reached its deadline while leases or permits were still held. */
export class DrainTimeoutError extends PipelinePoolError {
  static override readonly pipelinePoolError = 'DrainTimeoutError';
  /** The leases still held; empty for a limiter, which does not know its holders. */
  declare readonly holders: readonly LeaseHolder[];
  /** The number of leases, or the weight of the permits, still held. */
  declare readonly held: number;

  /** @internal */
  constructor(
    source: string,
    timeoutMs: number,
    held: number,
    holders: readonly LeaseHolder[] = [],
    what = `${held} held`,
  ) {
    const message = `${source} is not empty after ${timeoutMs} ms: ${what}`;
    super('ERR_DRAIN_TIMEOUT', source, message, { holders, held });
  }
}

/** A step in the life of an instance or a lease. */
export type LifecycleStage = 'wait' | 'create' | 'validate' | 'prepare' | 'reset' | 'destroy';

/** The state of a pool when a callback failed. */
export interface PoolFigures {
  readonly source: string;
  readonly waitMs: number;
  readonly live: number;
  readonly idle: number;
  readonly leased: number;
  readonly queued: number;
  readonly instanceId?: number;
}

abstract class InstanceError<S extends 'create' | 'prepare'>
  extends PipelinePoolError
  implements PoolFigures
{
  declare readonly stage: S;
  declare readonly waitMs: number;
  declare readonly live: number;
  declare readonly idle: number;
  declare readonly leased: number;
  declare readonly queued: number;
  declare readonly instanceId?: number;

  /** @internal */
  constructor(code: PipelinePoolErrorCode, stage: S, figures: PoolFigures, cause: unknown) {
    const { source } = figures;
    const message = `${source} could not ${stage} an instance: ${describeError(cause)}`;
    super(code, source, message, { stage, ...figures }, cause);
  }
}

/** `create` failed for the request that this creation was started for. The failure is the `cause`. */
export class CreateError extends InstanceError<'create'> {
  static override readonly pipelinePoolError = 'CreateError';
  /** @internal */
  constructor(figures: PoolFigures, cause: unknown) {
    super('ERR_CREATE_FAILED', 'create', figures, cause);
  }
}

/** `prepare` failed and the instance was discarded. The failure is the `cause`. */
export class PrepareError extends InstanceError<'prepare'> {
  static override readonly pipelinePoolError = 'PrepareError';
  /** @internal */
  constructor(figures: PoolFigures, cause: unknown) {
    super('ERR_PREPARE_FAILED', 'prepare', figures, cause);
  }
}

/** A callback of the pool exceeded its deadline. */
export class CallbackTimeoutError extends PipelinePoolError {
  static override readonly pipelinePoolError = 'CallbackTimeoutError';
  /** The callback. */
  declare readonly stage: LifecycleStage;
  /** Its deadline, in milliseconds. */
  declare readonly timeoutMs: number;
  /** @internal */
  constructor(source: string, stage: LifecycleStage, timeoutMs: number) {
    const message = `\`${stage}\` of ${source} took longer than ${timeoutMs} ms`;
    super('ERR_CALLBACK_TIMEOUT', source, message, { stage, timeoutMs });
  }
}

/** `lease.pipeline` was read after the lease had ended. */
export class LeaseReleasedError extends PipelinePoolError {
  static override readonly pipelinePoolError = 'LeaseReleasedError';
  /** The instance that was leased. */
  declare readonly instanceId: number;
  /** @internal */
  constructor(source: string, instanceId: number) {
    const message = `The lease on instance ${instanceId} of ${source} has ended`;
    super('ERR_LEASE_RELEASED', source, message, { instanceId });
  }
}

/**
 * Why a lease was revoked: it exceeded `maxLeaseMs`, the pool closed, or its request had ended and the code under it did
 * not settle within `abortGraceMs`.
 */
export type RevocationReason = 'max-lease' | 'closed' | 'abandoned';

/** The lease was revoked before its holder released it. */
export class LeaseRevokedError extends PipelinePoolError {
  static override readonly pipelinePoolError = 'LeaseRevokedError';
  /** The instance that was leased. */
  declare readonly instanceId: number;
  /** Why the lease was revoked. */
  declare readonly reason: RevocationReason;
  /** @internal */
  constructor(source: string, instanceId: number, reason: RevocationReason) {
    const message = `The lease on instance ${instanceId} of ${source} was revoked: ${reason}`;
    super('ERR_LEASE_REVOKED', source, message, { instanceId, reason });
  }
}

/** `acquire({ instanceId })` named an instance that does not exist, or that was destroyed before its turn. */
export class InstanceGoneError extends PipelinePoolError {
  static override readonly pipelinePoolError = 'InstanceGoneError';
  /** The instance that was asked for. */
  declare readonly instanceId: number;
  /** @internal */
  constructor(source: string, instanceId: number) {
    const message = `Instance ${instanceId} of ${source} is gone; state that lived in it is lost`;
    super('ERR_INSTANCE_GONE', source, message, { instanceId });
  }
}

/** The manager is shutting down: it accepts no further requests, and aborts those that its `timeoutMs` leaves. */
export class ManagerClosedError extends PipelinePoolError {
  static override readonly pipelinePoolError = 'ManagerClosedError';
  /** @internal */
  constructor(source: string, effect = 'takes no further requests') {
    super('ERR_MANAGER_CLOSED', source, `${source} is shut down and ${effect}`);
  }
}

/** A request exceeded its timeout, which covers its waiting and its running. */
export class RequestTimeoutError extends PipelinePoolError {
  static override readonly pipelinePoolError = 'RequestTimeoutError';
  /** The task of the request. */
  declare readonly taskId: string;
  /** Milliseconds that the request was allowed. */
  declare readonly timeoutMs: number;
  /** @internal */
  constructor(source: string, taskId: string, timeoutMs: number) {
    const message = `Task ${taskId} took longer than the ${timeoutMs} ms that ${source} allows it`;
    super('ERR_REQUEST_TIMEOUT', source, message, { taskId, timeoutMs });
  }
}

/** What a `GateTimeoutError` is about. */
export type GateTimeoutScope = 'call' | 'attempt' | 'body';

/**
 * A call through a gate, or one of its attempts, exceeded its timeout, or the body of its response was not read for
 * too long. The last failure, if any, is the `cause`.
 */
export class GateTimeoutError extends PipelinePoolError {
  static override readonly pipelinePoolError = 'GateTimeoutError';
  /** What timed out: the whole call, a single attempt, or the time in which a body of `gate.fetch` must be read on. */
  declare readonly scope: GateTimeoutScope;
  /** Milliseconds that it was allowed. */
  declare readonly timeoutMs: number;
  /** @internal */
  constructor(source: string, scope: GateTimeoutScope, timeoutMs: number, cause?: unknown) {
    const message =
      scope === 'body'
        ? `The body of a response through ${source} was not read for ${timeoutMs} ms`
        : `${scope === 'call' ? 'A call' : 'An attempt'} through ${source} took longer than ${timeoutMs} ms`;
    super('ERR_GATE_TIMEOUT', source, message, { scope, timeoutMs }, cause);
  }
}

/** The gate was closed before the call ended. */
export class GateClosedError extends PipelinePoolError {
  static override readonly pipelinePoolError = 'GateClosedError';
  /** @internal */
  constructor(source: string) {
    super('ERR_GATE_CLOSED', source, `${source} is closed`);
  }
}

/** No key of the gate can serve this call: all are quarantined or exhausted, or none is back within the deadline. */
export class KeysExhaustedError extends PipelinePoolError {
  static override readonly pipelinePoolError = 'KeysExhaustedError';
  /** Milliseconds until the first key is back; `undefined` if none will be. */
  declare readonly retryAfterMs: number | undefined;
  /** @internal */
  constructor(source: string, retryAfterMs: number | undefined, cause?: unknown) {
    const when =
      retryAfterMs === undefined
        ? 'none will come back by itself'
        : `the first comes back in ${Math.round(retryAfterMs)} ms`;
    const message = `No key of ${source} can serve this call; ${when}`;
    super('ERR_KEYS_EXHAUSTED', source, message, { retryAfterMs }, cause);
  }
}

/** The meter of a budget that leaves no room for a call. */
export interface ExceededMeter {
  /** The name of the meter, as in the caps of the budget. */
  readonly meter: string;
  /** Its cap. */
  readonly limit: number;
  /** What has been spent. */
  readonly spent: number;
  /** What attempts in flight may cost. */
  readonly reserved: number;
  /** What this attempt may cost; 0 where an attempt cost more than was estimated. */
  readonly wanted: number;
}

/**
 * An attempt may cost more than its budget has left, and was not made. Its `cause` is the failure of the attempt before it,
 * if there was one. `toHttpStatus` maps it to 429.
 */
export class BudgetExceededError extends PipelinePoolError implements ExceededMeter {
  static override readonly pipelinePoolError = 'BudgetExceededError';
  declare readonly meter: string;
  declare readonly limit: number;
  declare readonly spent: number;
  declare readonly reserved: number;
  declare readonly wanted: number;

  /** @internal */
  constructor(source: string, figures: ExceededMeter, cause?: unknown) {
    const { meter, limit, spent, reserved, wanted } = figures;
    const state = `${spent} of ${limit} ${meter} spent${reserved > 0 ? `, ${reserved} reserved by calls in flight` : ''}`;
    const message =
      wanted > 0
        ? `The budget has no room for a call of ${source} that may cost ${wanted} ${meter}: ${state}`
        : `A call of ${source} cost more than the budget allows: ${state}`;
    super('ERR_BUDGET_EXCEEDED', source, message, figures, cause);
  }
}

/** No tool has this name. */
export class ToolUnknownError extends PipelinePoolError {
  static override readonly pipelinePoolError = 'ToolUnknownError';
  /** @internal */
  constructor(source: string, tool: string, known: readonly string[]) {
    super('ERR_TOOL_UNKNOWN', source, `There is no tool "${tool}"; known are ${known.join(', ') || 'none'}`);
  }
}

/** The callback of a tool that failed or timed out. */
export type ToolStage = 'connect' | 'call' | 'check' | 'reset' | 'disconnect';

/** A tool's call, or the `disconnect` of its client, exceeded its timeout. */
export class ToolTimeoutError extends PipelinePoolError {
  static override readonly pipelinePoolError = 'ToolTimeoutError';
  /** The name of the tool. */
  declare readonly tool: string;
  /** Milliseconds that the call was allowed. */
  declare readonly timeoutMs: number;
  /** What took too long. */
  declare readonly stage: ToolStage;
  /** @internal */
  constructor(source: string, tool: string, timeoutMs: number, stage: ToolStage = 'call') {
    const message = `Tool ${tool} took longer than ${timeoutMs} ms${stage === 'call' ? '' : ` to ${stage}`}`;
    super('ERR_TOOL_TIMEOUT', source, message, { tool, timeoutMs, stage });
  }
}

/** A tool failed. The error that its client threw is the `cause`. */
export class ToolFailedError extends PipelinePoolError {
  static override readonly pipelinePoolError = 'ToolFailedError';
  /** The name of the tool. */
  declare readonly tool: string;
  /** What failed: connecting the client, or the call. */
  declare readonly stage: ToolStage;
  /** @internal */
  constructor(source: string, tool: string, cause: unknown, stage: ToolStage = 'call') {
    const failed = stage === 'call' ? 'failed' : `could not ${stage}`;
    super(
      'ERR_TOOL_FAILED',
      source,
      `Tool ${tool} ${failed}: ${describeError(cause)}`,
      { tool, stage },
      cause,
    );
  }
}
