import { ManagerClosedError } from '../errors.js';
import { checkHooks, LifecycleHooks } from '../hooks/lifecycle-hooks.js';
import { nowMs } from '../internal/clock.js';
import { withDeadline } from '../internal/deadline.js';
import { callable, options as checkOptions, durationMs, refusal, text } from '../internal/validate.js';
import type { Limiter, LimiterStats } from '../limiter/limiter.js';
import type { Lease } from '../pool/lease.js';
import type { PipelinePool } from '../pool/pipeline-pool.js';
import { diagnosisWindow, Recorder } from './diagnosis/recorder.js';
import { type Diagnosis, type DiagnosisOptions, diagnose } from './diagnosis.js';
import { gateFigures } from './gate-figures.js';
import { type Health, healthOf } from './health.js';
import { HealthWatch } from './health-watch.js';
import {
  checkRequest,
  ManagedRequest,
  type RequestContext,
  type RequestDesk,
  type RequestOptions,
} from './request.js';
import { RequestStream, type StreamSource } from './request-stream.js';

/** A gate, as a manager sees it. */
export interface ManagedGate {
  readonly name: string;
  /** Where its events go; `diagnose` listens there. @default the manager's hooks */
  readonly hooks?: LifecycleHooks;
  stats(): unknown;
  close(): unknown;
}

/** What a `PipelineManager` is built from. `shutdown` closes all of it. */
export interface PipelineManagerOptions<T> {
  readonly pool: PipelinePool<T>;
  readonly limiter: Limiter;
  /** The gates of the services that the pipelines call: told in `stats`, closed by `shutdown`. */
  readonly gates?: readonly ManagedGate[];
  /** Milliseconds that a whole request may take, waiting included. @default none */
  readonly requestTimeoutMs?: number;
  /** Milliseconds that code which ignores its aborted signal may go on before its instance is torn down. @default 5000 */
  readonly abortGraceMs?: number;
  /**
   * Records from the start what `diagnose` looks at. Without it the recording begins with the first call of `diagnose`.
   * @default false
   */
  readonly diagnosis?: boolean | DiagnosisOptions;
  /** Told as `source` in events and errors. @default 'manager' */
  readonly name?: string;
  /** Where the manager's own events go. @default hooks of its own */
  readonly hooks?: LifecycleHooks;
}

/** Figures of a manager and of what it manages. */
export interface ManagerStats<T> {
  /** Requests that hold a permit. */
  readonly active: number;
  /** Requests that wait for a permit or an instance. */
  readonly waiting: number;
  /** Requests taken so far. */
  readonly requests: number;
  readonly uptimeMs: number;
  readonly limiter: LimiterStats;
  readonly pool: ReturnType<PipelinePool<T>['stats']>;
  /** By name. */
  readonly gates: Readonly<Record<string, unknown>>;
}

const MANAGER_OPTIONS: readonly (keyof PipelineManagerOptions<unknown>)[] = [
  'pool',
  'limiter',
  'gates',
  'requestTimeoutMs',
  'abortGraceMs',
  'diagnosis',
  'name',
  'hooks',
];

/**
 * Runs requests, each on a pipeline instance of its own: admitted by a limiter, served from a pool.
 *
 * Invariants:
 * - A request that has not entered holds nothing; one that has holds one permit and one lease, and both come back,
 *   however it ends.
 * - After `shutdown` no request begins.
 *
 * @example
 * const manager = createPipelineManager({ create: () => new ResearchPipeline() });
 * const answer = await manager.run(taskId, ({ pipeline, signal }) => pipeline.research(question, { signal }));
 */
export class PipelineManager<T> implements AsyncDisposable {
  readonly name: string;
  readonly hooks: LifecycleHooks;
  readonly pool: PipelinePool<T>;
  readonly limiter: Limiter;
  readonly gates: readonly ManagedGate[];
  readonly #requestTimeoutMs: number | undefined;
  readonly #desk: RequestDesk<T>;
  readonly #requests = new Set<ManagedRequest<T>>();
  readonly #admitted = new Set<ManagedRequest<T>>();
  readonly #startedMs = nowMs();
  #taken = 0;
  #healthWatch: HealthWatch | undefined;
  readonly #diagnosisMs: number;
  #recorder: Recorder | undefined;
  #shutdown: Promise<void> | undefined;
  #tellEmpty: (() => void) | undefined;

  /** @throws {TypeError | RangeError} naming the option that is wrong, and its value */
  constructor(given: PipelineManagerOptions<T>) {
    checkOptions('PipelineManager', given, MANAGER_OPTIONS);
    const { pool, limiter, gates = [], requestTimeoutMs, abortGraceMs = 5_000, name = 'manager' } = given;
    if (typeof pool?.acquire !== 'function') throw new TypeError(refusal('pool', 'a PipelinePool', pool));
    if (typeof limiter?.acquire !== 'function') {
      throw new TypeError(refusal('limiter', 'a ConcurrencyLimiter', limiter));
    }
    if (!Array.isArray(gates)) throw new TypeError(refusal('gates', 'an array of gates', gates));
    this.name = text('name', name);
    this.hooks = given.hooks === undefined ? new LifecycleHooks() : checkHooks(given.hooks);
    this.pool = pool;
    this.limiter = limiter;
    this.gates = [...gates];
    this.#requestTimeoutMs =
      requestTimeoutMs === undefined ? undefined : durationMs('requestTimeoutMs', requestTimeoutMs, 1);
    this.#desk = {
      name,
      hooks: this.hooks,
      limiter,
      pool,
      abortGraceMs: durationMs('abortGraceMs', abortGraceMs),
      admitted: (request) => this.#admitted.add(request),
      ended: (request) => this.#ended(request),
    };
    this.#diagnosisMs = diagnosisWindow(given.diagnosis);
    if (given.diagnosis !== undefined && given.diagnosis !== false) this.#record();
  }

  /** Makes the pool's `min` instances now, so that the first requests need not wait for them. */
  start(options: { readonly signal?: AbortSignal; readonly timeoutMs?: number } = {}): Promise<void> {
    return this.#shutdown === undefined
      ? this.pool.warmUp(options)
      : Promise.reject(new ManagerClosedError(this.name));
  }

  /**
   * Runs `work` on an instance of its own, and gives the instance back when it ends, however it ends.
   *
   * Settles as `work` does. Rejects with `signal.reason`, `RequestTimeoutError`, `LeaseRevokedError` or
   * `ManagerClosedError` where the request is ended early, and as the limiter's and the pool's `acquire` do where it
   * never began.
   */
  async run<R>(
    taskId: string,
    work: (context: RequestContext<T>) => R | PromiseLike<R>,
    options: RequestOptions = {},
  ): Promise<R> {
    checkRequest(taskId, options);
    callable('work', work);
    return this.#open(taskId, options).run(work);
  }

  /**
   * Streams what a generator yields, on an instance of its own. The instance is held from the first `next` until the
   * last item is taken, or until `break`, `return`, a throw on either side, or an abort.
   *
   * @throws {TypeError | RangeError} at once, naming the option that is wrong; all else rejects the first `next`
   *
   * @example
   * for await (const token of manager.stream(taskId, ({ pipeline, signal }) => pipeline.answer(question, { signal }))) {
   *   response.write(token);
   * }
   */
  stream<Y, R = unknown>(
    taskId: string,
    generator: StreamSource<T, Y, R>,
    options: RequestOptions = {},
  ): AsyncIterableIterator<Y, R | undefined> {
    checkRequest(taskId, options);
    callable('generator', generator);
    return new RequestStream(() => this.#open(taskId, options), generator);
  }

  /**
   * Admits a task and leases it an instance, for code that cannot be put into one function. However the lease ends, the
   * task's permit goes back with it. `timeoutMs` bounds the waiting.
   *
   * @example
   * const lease = await manager.acquirePipeline(taskId, { signal });
   * try {
   *   return await lease.pipeline.research(question);
   * } finally {
   *   await manager.releasePipeline(lease);
   * }
   */
  async acquirePipeline(taskId: string, options: RequestOptions = {}): Promise<Lease<T>> {
    checkRequest(taskId, options);
    return this.#open(taskId, options).enter(true);
  }

  /** Gives back what `acquirePipeline` gave. Never rejects; a second time changes nothing. */
  releasePipeline(lease: Lease<T>): Promise<void> {
    return lease.release();
  }

  /**
   * How the service is, for a health check. What takes a while to show (long waits, creations that keep failing) counts
   * from the first call on.
   */
  health(): Health {
    this.#healthWatch ??= new HealthWatch({ manager: this, pool: this.pool });
    return healthOf({
      stopping: this.#shutdown !== undefined,
      activeRequests: this.#admitted.size,
      waitingRequests: this.#requests.size - this.#admitted.size,
      longestWaitMs: this.#healthWatch.longestWaitMs,
      failedCreations: this.#healthWatch.failedCreations,
      uptimeMs: nowMs() - this.#startedMs,
      limiter: this.limiter.stats(),
      pool: this.pool.stats(),
      gates: gateFigures(this.gates),
    });
  }

  /**
   * What holds requests up at present, with the evidence and the remedy. It looks back two minutes, or as long as it has
   * been recorded: from the start with the option `diagnosis`, otherwise from the first call on.
   *
   * @example
   * const { bottleneck } = manager.diagnose();
   * if (bottleneck !== undefined) console.warn(`${bottleneck.message}. ${bottleneck.remedy}`);
   */
  diagnose(): Diagnosis {
    return diagnose(this.#record().report());
  }

  /** Counts, as they stand. */
  stats(): ManagerStats<T> {
    return Object.freeze({
      active: this.#admitted.size,
      waiting: this.#requests.size - this.#admitted.size,
      requests: this.#taken,
      uptimeMs: nowMs() - this.#startedMs,
      limiter: this.limiter.stats(),
      pool: this.pool.stats(),
      gates: Object.freeze(Object.fromEntries(this.gates.map((gate) => [gate.name, gate.stats()]))),
    });
  }

  /**
   * Takes no further requests, serves those it has, and closes the pool, the limiter and the gates.
   *
   * At `timeoutMs` the requests that are left are aborted with `ManagerClosedError`; their code has `abortGraceMs` to
   * let go. Without `timeoutMs` it waits for all of them. A second call with an earlier deadline brings it forward.
   */
  async shutdown(options: { readonly timeoutMs?: number } = {}): Promise<void> {
    const { timeoutMs } = checkOptions('shutdown', options, ['timeoutMs']);
    if (timeoutMs !== undefined) durationMs('timeoutMs', timeoutMs);
    this.#shutdown ??= this.#empty().then(() => this.#closeAll());
    const tooLong = (elapsedMs: number): Error => new RangeError(`not empty after ${elapsedMs} ms`);
    await withDeadline(this.#empty(), timeoutMs, tooLong).catch(() => this.#abortAll());
    return this.#shutdown;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.shutdown();
  }

  #open(taskId: string, options: RequestOptions): ManagedRequest<T> {
    if (this.#shutdown !== undefined) throw new ManagerClosedError(this.name);
    const { timeoutMs = this.#requestTimeoutMs } = options;
    const request = new ManagedRequest(this.#desk, taskId, { ...options, timeoutMs });
    this.#requests.add(request);
    this.#taken++;
    return request;
  }

  #record(): Recorder {
    this.#recorder ??= new Recorder(this, this.#diagnosisMs);
    return this.#recorder;
  }

  #ended(request: ManagedRequest<T>): void {
    this.#requests.delete(request);
    this.#admitted.delete(request);
    if (this.#requests.size === 0) this.#tellEmpty?.();
  }

  /** Ends what is left: code under `run` and `stream` by its signal, who holds a lease by the lease's. */
  #abortAll(): void {
    for (const request of this.#requests) request.shutDown();
    // Its own deadline tears down what is still held then, so that this always ends.
    this.pool.close({ timeoutMs: this.#desk.abortGraceMs }).catch(() => {});
  }

  /** Settles when no request is left. */
  #empty(): Promise<void> {
    if (this.#requests.size === 0) return Promise.resolve();
    return new Promise((resolve) => {
      const tellOthers = this.#tellEmpty;
      this.#tellEmpty = () => {
        this.#tellEmpty = undefined;
        tellOthers?.();
        resolve();
      };
    });
  }

  async #closeAll(): Promise<void> {
    await Promise.all([this.pool.close(), this.limiter.close(), ...this.gates.map((gate) => gate.close())]);
    this.#recorder?.stop();
  }
}
