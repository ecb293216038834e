/**
 * Every error the library makes. Narrow by `code`, which is stable, or by `instanceof`, which holds between the ESM and
 * the CommonJS copy of this package as well.
 */

/** The stable codes. New ones may be added in a minor version; none is renamed or removed. */
export type PipelinePoolErrorCode =
  | 'ERR_QUEUE_FULL'
  | 'ERR_ACQUIRE_TIMEOUT'
  | 'ERR_DEADLINE_UNMEETABLE'
  | 'ERR_NESTED_ACQUIRE'
  | 'ERR_LIMITER_CLOSED'
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
  | 'ERR_TOOL_UNKNOWN'
  | 'ERR_TOOL_TIMEOUT'
  | 'ERR_TOOL_FAILED';

// Shared by all copies of this package in one process.
const kind = Symbol.for('pipeline-pool.error-kind');

/**
 * The base of all errors of this library.
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
  static readonly [kind]: string = 'PipelinePoolError';
  /** Stable, for `switch`. */
  readonly code: PipelinePoolErrorCode;

  constructor(code: PipelinePoolErrorCode, message: string, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause });
    this.code = code;
    Object.defineProperty(this, 'name', { value: new.target[kind], configurable: true, writable: true });
  }

  static override [Symbol.hasInstance](value: unknown): boolean {
    // A host's own subclass has no kind of its own: it means exactly itself.
    if (!Object.hasOwn(this, kind)) return Function.prototype[Symbol.hasInstance].call(this, value);
    if (typeof value !== 'object' || value === null) return false;
    for (let proto = Object.getPrototypeOf(value); proto !== null; proto = Object.getPrototypeOf(proto)) {
      const maker = proto.constructor;
      if (typeof maker === 'function' && Object.hasOwn(maker, kind) && maker[kind] === this[kind])
        return true;
    }
    return false;
  }
}

/** What a limiter or a pool looked like when it turned somebody away. */
export interface QueueFigures {
  /** The component's `name`. */
  readonly source: string;
  /** Milliseconds spent waiting. */
  readonly waitedMs: number;
  /** Permits or leases held. */
  readonly active: number;
  /** Waiters left in the queue. */
  readonly queued: number;
  /** The limit: `maxConcurrent` of a limiter, `size` of a pool. */
  readonly size: number;
}

const figuresText = (f: QueueFigures): string => `${f.active} of ${f.size} in use, ${f.queued} waiting`;

/** `maxQueue` waiters are queued already. Try again after `retryAfterMs`. Maps to HTTP 429. */
export class QueueFullError extends PipelinePoolError implements QueueFigures {
  static override readonly [kind] = 'QueueFullError';
  declare readonly source: string;
  declare readonly waitedMs: number;
  declare readonly active: number;
  declare readonly queued: number;
  declare readonly size: number;
  /** Milliseconds a request arriving now would have waited, estimated from recent releases. */
  declare readonly retryAfterMs: number;

  constructor(figures: QueueFigures & { readonly retryAfterMs: number }) {
    super('ERR_QUEUE_FULL', `The queue of ${figures.source} is full (${figuresText(figures)})`);
    Object.assign(this, figures);
  }
}

/** The wait for a permit or a lease was longer than `timeoutMs`. The last creation failure, if any, is the `cause`. */
export class AcquireTimeoutError extends PipelinePoolError implements QueueFigures {
  static override readonly [kind] = 'AcquireTimeoutError';
  declare readonly source: string;
  declare readonly waitedMs: number;
  declare readonly active: number;
  declare readonly queued: number;
  declare readonly size: number;
  /** The step that was under way: always `wait` for a limiter, `wait`, `create`, `validate` or `prepare` for a pool. */
  declare readonly stage: LifecycleStage;
  /** Instances alive and idle; of a pool. */
  declare readonly live?: number;
  declare readonly idle?: number;

  constructor(figures: QueueFigures & { readonly stage?: LifecycleStage }, cause?: unknown) {
    super(
      'ERR_ACQUIRE_TIMEOUT',
      `Gave up on ${figures.source} after ${Math.round(figures.waitedMs)} ms (${figuresText(figures)})`,
      cause,
    );
    Object.assign(this, { stage: 'wait' }, figures);
  }
}

/** Refused on arrival, because the estimated wait is longer than the caller's `timeoutMs` (opt-in). */
export class DeadlineUnmeetableError extends PipelinePoolError implements QueueFigures {
  static override readonly [kind] = 'DeadlineUnmeetableError';
  declare readonly source: string;
  declare readonly waitedMs: number;
  declare readonly active: number;
  declare readonly queued: number;
  declare readonly size: number;
  declare readonly retryAfterMs: number;
  declare readonly timeoutMs: number;

  constructor(figures: QueueFigures & { readonly retryAfterMs: number; readonly timeoutMs: number }) {
    super(
      'ERR_DEADLINE_UNMEETABLE',
      `${figures.source} would take about ${Math.round(figures.retryAfterMs)} ms, longer than the ${figures.timeoutMs} ms allowed (${figuresText(figures)})`,
    );
    Object.assign(this, figures);
  }
}

/** Somebody inside a `run` would have to wait for the same limiter: for what only the end of that `run` can free. */
export class NestedAcquireError extends PipelinePoolError {
  static override readonly [kind] = 'NestedAcquireError';
  constructor(source: string) {
    super(
      'ERR_NESTED_ACQUIRE',
      `Inside a run of ${source}, waiting for ${source} again may never end; give the inner work a limiter of its own`,
    );
  }
}

/** The limiter was closed while this request waited, or before it came. */
export class LimiterClosedError extends PipelinePoolError {
  static override readonly [kind] = 'LimiterClosedError';
  constructor(source: string) {
    super('ERR_LIMITER_CLOSED', `${source} is closed`);
  }
}

/** The pool is draining or closed and gives no further leases. */
export class PoolClosedError extends PipelinePoolError {
  static override readonly [kind] = 'PoolClosedError';
  constructor(source: string, state: 'draining' | 'closed') {
    super('ERR_POOL_CLOSED', `${source} is ${state} and gives no further leases`);
  }
}

/** Somebody who still holds a lease. */
export interface LeaseHolder {
  readonly instanceId: number;
  readonly taskId?: string;
  /** Milliseconds since the lease was given. */
  readonly heldMs: number;
  /** Where it was acquired; known only with `leakWarningMs`. */
  readonly stack?: string;
}

/** `drain` or `close` reached its deadline while leases or permits were still held. */
export class DrainTimeoutError extends PipelinePoolError {
  static override readonly [kind] = 'DrainTimeoutError';
  /** Who still holds a lease; empty for a limiter, which does not know its holders. */
  readonly holders: readonly LeaseHolder[];
  /** How much is still held. */
  readonly held: number;

  constructor(source: string, timeoutMs: number, held: number | readonly LeaseHolder[]) {
    const holders = typeof held === 'number' ? [] : held;
    const who = holders.map(
      ({ instanceId, taskId, heldMs }) =>
        `instance ${instanceId}${taskId === undefined ? '' : ` by task ${taskId}`} for ${Math.round(heldMs)} ms`,
    );
    const what = typeof held === 'number' ? `${held} held` : `held are ${who.join(', ') || 'none'}`;
    super('ERR_DRAIN_TIMEOUT', `${source} is not empty after ${timeoutMs} ms: ${what}`);
    this.holders = holders;
    this.held = typeof held === 'number' ? held : held.length;
  }
}

/** A step in the life of an instance or a lease. */
export type LifecycleStage = 'wait' | 'create' | 'validate' | 'prepare' | 'reset' | 'destroy';

/** What a pool looked like when something failed. */
export interface PoolFigures {
  readonly source: string;
  readonly elapsedMs: number;
  readonly live: number;
  readonly idle: number;
  readonly leased: number;
  readonly waiting: number;
  readonly instanceId?: number;
}

/** `create` failed for the request that this creation was for; the failure is the `cause`. */
export class CreateError extends PipelinePoolError implements PoolFigures {
  static override readonly [kind] = 'CreateError';
  readonly stage = 'create';
  declare readonly source: string;
  declare readonly elapsedMs: number;
  declare readonly live: number;
  declare readonly idle: number;
  declare readonly leased: number;
  declare readonly waiting: number;
  declare readonly instanceId?: number;

  constructor(figures: PoolFigures, cause: unknown) {
    super('ERR_CREATE_FAILED', `${figures.source} could not create an instance: ${causeText(cause)}`, cause);
    Object.assign(this, figures);
  }
}

/** `prepare` failed; the instance was discarded. The failure is the `cause`. */
export class PrepareError extends PipelinePoolError implements PoolFigures {
  static override readonly [kind] = 'PrepareError';
  readonly stage = 'prepare';
  declare readonly source: string;
  declare readonly elapsedMs: number;
  declare readonly live: number;
  declare readonly idle: number;
  declare readonly leased: number;
  declare readonly waiting: number;
  declare readonly instanceId?: number;

  constructor(figures: PoolFigures, cause: unknown) {
    super(
      'ERR_PREPARE_FAILED',
      `${figures.source} could not prepare an instance: ${causeText(cause)}`,
      cause,
    );
    Object.assign(this, figures);
  }
}

/** One of the pool's callbacks took longer than its deadline. */
export class CallbackTimeoutError extends PipelinePoolError {
  static override readonly [kind] = 'CallbackTimeoutError';
  readonly stage: LifecycleStage;
  readonly timeoutMs: number;
  constructor(source: string, stage: LifecycleStage, timeoutMs: number) {
    super('ERR_CALLBACK_TIMEOUT', `\`${stage}\` of ${source} took longer than ${timeoutMs} ms`);
    this.stage = stage;
    this.timeoutMs = timeoutMs;
  }
}

/** `lease.pipeline` was read after the lease had ended. */
export class LeaseReleasedError extends PipelinePoolError {
  static override readonly [kind] = 'LeaseReleasedError';
  readonly instanceId: number;
  constructor(source: string, instanceId: number) {
    super('ERR_LEASE_RELEASED', `The lease on instance ${instanceId} of ${source} has ended`);
    this.instanceId = instanceId;
  }
}

/** The lease was taken back: its time was up, the pool closed, or its holder had been given up. */
export class LeaseRevokedError extends PipelinePoolError {
  static override readonly [kind] = 'LeaseRevokedError';
  readonly instanceId: number;
  readonly reason: string;
  constructor(source: string, instanceId: number, reason: string) {
    super('ERR_LEASE_REVOKED', `The lease on instance ${instanceId} of ${source} was revoked: ${reason}`);
    this.instanceId = instanceId;
    this.reason = reason;
  }
}

/** `acquire({ instanceId })` asked for an instance that does not exist, or that went away before its turn. */
export class InstanceGoneError extends PipelinePoolError {
  static override readonly [kind] = 'InstanceGoneError';
  readonly instanceId: number;
  constructor(source: string, instanceId: number) {
    super('ERR_INSTANCE_GONE', `Instance ${instanceId} of ${source} is gone; state that lived in it is lost`);
    this.instanceId = instanceId;
  }
}

/** The manager is shutting down and takes no further requests. */
export class ManagerClosedError extends PipelinePoolError {
  static override readonly [kind] = 'ManagerClosedError';
  constructor(source: string) {
    super('ERR_MANAGER_CLOSED', `${source} is shut down and takes no further requests`);
  }
}

/** A whole request, waiting included, took longer than allowed. */
export class RequestTimeoutError extends PipelinePoolError {
  static override readonly [kind] = 'RequestTimeoutError';
  readonly taskId: string;
  readonly timeoutMs: number;
  constructor(source: string, taskId: string, timeoutMs: number) {
    super(
      'ERR_REQUEST_TIMEOUT',
      `Task ${taskId} took longer than the ${timeoutMs} ms that ${source} allows it`,
    );
    this.taskId = taskId;
    this.timeoutMs = timeoutMs;
  }
}

/** A gate's call, or one attempt of it, took longer than allowed. The last failure, if any, is the `cause`. */
export class GateTimeoutError extends PipelinePoolError {
  static override readonly [kind] = 'GateTimeoutError';
  readonly source: string;
  /** `call`: the whole call; `attempt`: a single attempt. */
  readonly scope: 'call' | 'attempt';
  readonly timeoutMs: number;
  constructor(source: string, scope: 'call' | 'attempt', timeoutMs: number, cause?: unknown) {
    super(
      'ERR_GATE_TIMEOUT',
      `${scope === 'call' ? 'A call' : 'An attempt'} through ${source} took longer than ${timeoutMs} ms`,
      cause,
    );
    this.source = source;
    this.scope = scope;
    this.timeoutMs = timeoutMs;
  }
}

/** The gate was closed before the call was over. */
export class GateClosedError extends PipelinePoolError {
  static override readonly [kind] = 'GateClosedError';
  constructor(source: string) {
    super('ERR_GATE_CLOSED', `${source} is closed`);
  }
}

/** No key of the gate can serve this call: all are dead, or none comes back within the deadline. */
export class KeysExhaustedError extends PipelinePoolError {
  static override readonly [kind] = 'KeysExhaustedError';
  readonly source: string;
  /** Milliseconds until the first key comes back; absent when none will by itself. */
  readonly retryAfterMs: number | undefined;
  constructor(source: string, retryAfterMs: number | undefined, cause?: unknown) {
    const when =
      retryAfterMs === undefined
        ? 'none will come back by itself'
        : `the first comes back in ${Math.round(retryAfterMs)} ms`;
    super('ERR_KEYS_EXHAUSTED', `No key of ${source} can serve this call; ${when}`, cause);
    this.source = source;
    this.retryAfterMs = retryAfterMs;
  }
}

/** No tool has this name. */
export class ToolUnknownError extends PipelinePoolError {
  static override readonly [kind] = 'ToolUnknownError';
  constructor(tool: string, known: readonly string[]) {
    super('ERR_TOOL_UNKNOWN', `There is no tool "${tool}"; known are ${known.join(', ') || 'none'}`);
  }
}

/** What a tool was doing: making its client, answering a call, being checked or cleared between tasks, letting its client go. */
export type ToolStage = 'connect' | 'call' | 'check' | 'reset' | 'disconnect';

/** A tool's call, or the letting go of its client, took longer than allowed. */
export class ToolTimeoutError extends PipelinePoolError {
  static override readonly [kind] = 'ToolTimeoutError';
  readonly tool: string;
  readonly timeoutMs: number;
  readonly stage: ToolStage;
  constructor(tool: string, timeoutMs: number, stage: ToolStage = 'call') {
    super(
      'ERR_TOOL_TIMEOUT',
      `Tool ${tool} took longer than ${timeoutMs} ms${stage === 'call' ? '' : ` to ${stage}`}`,
    );
    this.tool = tool;
    this.timeoutMs = timeoutMs;
    this.stage = stage;
  }
}

/** A tool failed; what its client threw is the `cause`, with keys and inputs masked. */
export class ToolFailedError extends PipelinePoolError {
  static override readonly [kind] = 'ToolFailedError';
  readonly tool: string;
  readonly stage: ToolStage;
  constructor(tool: string, cause: unknown, stage: ToolStage = 'call') {
    super(
      'ERR_TOOL_FAILED',
      `Tool ${tool} ${stage === 'call' ? 'failed' : `could not ${stage}`}: ${causeText(cause)}`,
      cause,
    );
    this.tool = tool;
    this.stage = stage;
  }
}

function causeText(cause: unknown): string {
  if (cause instanceof Error) return cause.message;
  try {
    return String(cause);
  } catch {
    return 'a value that cannot be shown';
  }
}
