import { randomUUID } from 'node:crypto';
import { LeaseRevokedError, ManagerClosedError, RequestTimeoutError } from '../errors.js';
import type { LifecycleEvents, ManagerEvents, RequestOutcome } from '../hooks/events.js';
import type { LifecycleHooks } from '../hooks/lifecycle-hooks.js';
import { type AbortWatcher, unwatchAbort, watchAbort } from '../internal/abort-watch.js';
import { nowMs } from '../internal/clock.js';
import { toldOf } from '../internal/told-error.js';
import { abortSignal, options as checkOptions, durationMs, text, wholeNumber } from '../internal/validate.js';
import type { Limiter } from '../limiter/limiter.js';
import type { Lease } from '../pool/lease.js';
import type { PipelinePool } from '../pool/pipeline-pool.js';

/** How a request asks to be served. */
export interface RequestOptions {
  /** The caller's own signal: aborting it ends the request, waiting or running. */
  readonly signal?: AbortSignal;
  /** Milliseconds that the whole request may take, waiting included. @default the manager's `requestTimeoutMs` */
  readonly timeoutMs?: number;
  /** Higher goes first; a whole number, 0 if left out. */
  readonly priority?: number;
  /** Whose request it is: tenants of one priority take turns. */
  readonly tenant?: string;
  /** What the request counts for in the limiter; 1 if left out. */
  readonly weight?: number;
  /** Only this instance will do (see `PipelinePool.acquire`). */
  readonly instanceId?: number;
}

/** What the host's code is given. */
export interface RequestContext<T> {
  readonly pipeline: T;
  /** Aborts on the caller's abort, the deadline, revocation and shutdown. Heed it: see `abortGraceMs`. */
  readonly signal: AbortSignal;
  readonly taskId: string;
  readonly instanceId: number;
  /** One pass through the manager; a task that is tried again gets another. */
  readonly requestId: string;
}

/** What a request needs of its manager. */
export interface RequestDesk<T> {
  readonly name: string;
  readonly hooks: LifecycleHooks;
  readonly limiter: Limiter;
  readonly pool: PipelinePool<T>;
  readonly abortGraceMs: number;
  /** A permit was given for this request. */
  admitted(request: ManagedRequest<T>): void;
  /** It is over, permit and instance are back. */
  ended(request: ManagedRequest<T>): void;
}

type EarlyEnd = Exclude<RequestOutcome, 'ok' | 'failed'>;

const REQUEST_OPTIONS: readonly (keyof RequestOptions)[] = [
  'signal',
  'timeoutMs',
  'priority',
  'tenant',
  'weight',
  'instanceId',
];

/** Refuses wrong options of one request. */
export function checkRequest(taskId: string, given: RequestOptions): void {
  text('taskId', taskId);
  checkOptions('the request', given, REQUEST_OPTIONS);
  const { signal, timeoutMs, priority, tenant, weight, instanceId } = given;
  if (signal !== undefined) abortSignal('signal', signal);
  if (timeoutMs !== undefined) durationMs('timeoutMs', timeoutMs);
  if (priority !== undefined) wholeNumber('priority', priority, Number.MIN_SAFE_INTEGER);
  if (tenant !== undefined) text('tenant', tenant);
  if (weight !== undefined) wholeNumber('weight', weight);
  if (instanceId !== undefined) wholeNumber('instanceId', instanceId);
}

/**
 * One request's way: admitted, given an instance, run, and both given back.
 *
 *     waiting ──► entered ──► running ──► settled ──► ended
 *        └──────────┴── rejected ──────────────────────►┘
 *
 * Invariants:
 * - The permit is held from before the lease until after it: whoever waits for an instance has been admitted.
 * - The caller is settled in the step of the abort. Lease and permit stay until the host's code has settled too, or its
 *   grace is over; then the instance is torn down. So an instance never serves two tasks at once.
 * - However the lease ends, the permit goes back with it, once.
 */
export class ManagedRequest<T> implements AbortWatcher {
  readonly requestId = randomUUID();
  readonly taskId: string;
  readonly #desk: RequestDesk<T>;
  readonly #options: RequestOptions;
  readonly #controller = new AbortController();
  readonly #openedMs = nowMs();
  #timer: NodeJS.Timeout | undefined;
  #earlyEnd: EarlyEnd | undefined;
  #stopWaiting: ((reason: unknown) => void) | undefined;

  constructor(desk: RequestDesk<T>, taskId: string, options: RequestOptions) {
    this.#desk = desk;
    this.taskId = taskId;
    this.#options = options;
    const { signal, timeoutMs } = options;
    if (signal?.aborted) this.onAbort(signal.reason);
    else if (signal !== undefined) watchAbort(signal, this);
    if (timeoutMs !== undefined) {
      this.#timer = setTimeout(() => {
        this.end('timeout', new RequestTimeoutError(desk.name, taskId, timeoutMs));
      }, timeoutMs);
    }
    this.#tell('request:queued', {});
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** The caller aborted. */
  onAbort(reason: unknown): void {
    this.end('aborted', reason);
  }

  /** The manager is closing. */
  shutDown(): void {
    this.end('shutdown', new ManagerClosedError(this.#desk.name));
  }

  /** Ends the request where it stands; the first reason stands too. */
  end(outcome: EarlyEnd, reason: unknown): void {
    if (this.#controller.signal.aborted) return;
    this.#earlyEnd = outcome;
    this.#controller.abort(reason);
    this.#stopWaiting?.(reason);
  }

  /**
   * Waits for a permit and an instance. The permit goes back when the lease ends.
   *
   * @param untilReleased whether the host holds the lease from here on, and its end is the end of the request
   */
  async enter(untilReleased = false): Promise<Lease<T>> {
    const { limiter, pool } = this.#desk;
    const { priority, tenant, weight, instanceId } = this.#options;
    const ids = { taskId: this.taskId, requestId: this.requestId, priority, tenant, signal: this.signal };
    try {
      const permit = await limiter.acquire({ ...ids, weight });
      this.#desk.admitted(this);
      const admittedMs = nowMs();
      let lease: Lease<T>;
      try {
        lease = await pool.acquire({ ...ids, instanceId });
      } catch (error) {
        permit.release('ignored');
        throw error;
      }
      const startedMs = nowMs();
      this.#tell('request:started', {
        instanceId: lease.instanceId,
        queuedMs: startedMs - this.#openedMs,
        admissionMs: admittedMs - this.#openedMs,
        leaseMs: startedMs - admittedMs,
      });
      // The request must not keep the lease itself alive: one that is dropped is found by the garbage collector.
      const { instanceId: held, signal: leaseSignal } = lease;
      const onRevoked = (): void => {
        const { reason } = leaseSignal;
        this.end(reason instanceof LeaseRevokedError ? 'revoked' : 'shutdown', reason);
      };
      if (leaseSignal.aborted) onRevoked();
      else leaseSignal.addEventListener('abort', onRevoked, { once: true });
      void lease.ended.then(() => {
        leaseSignal.removeEventListener('abort', onRevoked);
        permit.release();
        if (untilReleased) this.#finish(held, startedMs, leaseSignal.aborted ? 'revoked' : 'ok');
        this.#close();
      });
      return lease;
    } catch (error) {
      const outcome = this.#outcomeOf(error);
      this.#close();
      this.#tell('request:rejected', { outcome, queuedMs: nowMs() - this.#openedMs, error });
      throw error;
    }
  }

  /** The whole way of a request whose work is one function. */
  async run<R>(work: (context: RequestContext<T>) => R | PromiseLike<R>): Promise<R> {
    const lease = await this.enter();
    const { instanceId } = lease;
    const startedMs = nowMs();
    const { signal, taskId, requestId } = this;
    const answer = new Promise<R>((resolve, reject) => {
      // Aborted between the grant and this step: nothing has begun.
      if (signal.aborted) reject(signal.reason);
      else resolve(work({ pipeline: lease.pipeline, signal, taskId, instanceId, requestId }));
    });
    try {
      const result = await this.#unlessAborted(answer);
      this.#finish(instanceId, startedMs, 'ok');
      return result;
    } catch (error) {
      this.#finish(instanceId, startedMs, this.#outcomeOf(error), error);
      throw error;
    } finally {
      this.#release(lease, answer);
    }
  }

  /** Settles as `answer` does, or rejects in the step in which the request is ended early. */
  #unlessAborted<R>(answer: Promise<R>): Promise<R> {
    return new Promise((resolve, reject) => {
      if (this.signal.aborted) reject(this.signal.reason);
      this.#stopWaiting = reject;
      answer.then(resolve, reject);
    });
  }

  /** Gives the instance back when the host's code has let go of it, or up when it does not in time. */
  #release(lease: Lease<T>, answer: Promise<unknown>): void {
    let grace: NodeJS.Timeout | undefined;
    const letGo = (): void => {
      clearTimeout(grace);
      void lease.release();
    };
    if (!this.signal.aborted) {
      letGo();
      return;
    }
    grace = setTimeout(() => void lease.release({ discard: true }), this.#desk.abortGraceMs);
    answer.then(letGo, letGo);
  }

  #outcomeOf(error: unknown): Exclude<RequestOutcome, 'ok'> {
    if (this.#earlyEnd !== undefined && error === this.signal.reason) return this.#earlyEnd;
    return error instanceof LeaseRevokedError ? 'revoked' : 'failed';
  }

  #close(): void {
    this.#stopWatching();
    this.#desk.ended(this);
  }

  #finish(instanceId: number, startedMs: number, outcome: RequestOutcome, error?: unknown): void {
    this.#stopWatching();
    const durationMs = nowMs() - startedMs;
    this.#tell('request:finished', { instanceId, outcome, durationMs, error });
  }

  /** Nothing can end it early any more. */
  #stopWatching(): void {
    clearTimeout(this.#timer);
    if (this.#options.signal !== undefined) unwatchAbort(this.#options.signal, this);
  }

  #tell<E extends keyof ManagerEvents>(event: E, more: Omit<ManagerEvents[E], keyof Ids>): void {
    const { hooks, name } = this.#desk;
    if (!hooks.hears(event)) return;
    const ids: Ids = {
      source: name,
      taskId: this.taskId,
      requestId: this.requestId,
      tenant: this.#options.tenant,
    };
    const told = 'error' in more ? { ...more, error: toldOf(more.error) } : more;
    hooks.emit(event, { ...ids, ...told } as unknown as LifecycleEvents[E]);
  }
}

interface Ids {
  readonly source: string;
  readonly taskId: string;
  readonly requestId: string;
  readonly tenant?: string;
}
