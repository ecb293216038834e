/**
 * The manager: what a host calls for each request.
 *
 * - `pipeline-manager.ts` (here): `PipelineManager`, and `createPipelineManager`, which builds it with pool and limiter
 * - `request.ts`: one request from its permit to its end, and the registry of the current requests
 * - `request-stream.ts`: a request whose results come one by one
 * - `config.ts`: settings from the environment, presets, warnings
 * - `health.ts`: the result of a health check
 */
import { ManagerClosedError } from '../errors.js';
import type { GateStats } from '../gate/service-gate.js';
import { checkHooks, LifecycleHooks } from '../hooks/lifecycle-hooks.js';
import { withDeadline } from '../internal/abort.js';
import { inBatches, nowMs } from '../internal/clock.js';
import {
  type Checks,
  callable,
  checkEach,
  durationMs,
  flag,
  positiveMs,
  refusal,
  text,
} from '../internal/validate.js';
import { ConcurrencyLimiter } from '../limiter/concurrency-limiter.js';
import type { Limiter, LimiterStats } from '../limiter/limiter.js';
import type { Lease } from '../pool/lease.js';
import type { PipelinePoolOptions, PoolStats } from '../pool/options.js';
import { PipelinePool } from '../pool/pipeline-pool.js';
import type { RequestContext } from '../request/current-request.js';
import { CONFIG_VARIABLES, completeConfig, type PipelineConfig } from './config.js';
import { CreationWatch, gateStatsOf, type Health, healthOf } from './health.js';
import {
  checkRequest,
  ManagedRequest,
  type RequestDependencies,
  type RequestInfo,
  type RequestOptions,
  RequestRegistry,
} from './request.js';
import { RequestStream, type StreamIterator, type StreamSource } from './request-stream.js';

/** What a manager needs of a gate. A `ServiceGate` is one. */
export interface ManagedGate {
  readonly name: string;
  /** Where its events go; `diagnose` listens there. @default the manager's hooks */
  readonly hooks?: LifecycleHooks | undefined;
  stats(): GateStats;
  close(): unknown;
}

/** What a `PipelineManager` is built from. `shutdown` closes all of it. */
export interface PipelineManagerOptions<T> {
  /** Leases the instances. */
  readonly pool: PipelinePool<T>;
  /** Admits the requests. Give it a limit at least as high as the pool's size. */
  readonly limiter: Limiter;
  /**
   * The gates of the services that the pipelines call, each with a name of its own: included in `stats`, closed by
   * `shutdown`. @default none
   */
  readonly gates?: readonly ManagedGate[] | undefined;
  /** Milliseconds that a whole request may take, queueing included. @default unlimited */
  readonly requestTimeoutMs?: number | undefined;
  /** Milliseconds for which code may ignore its aborted signal before its instance is destroyed. @default 5000 */
  readonly abortGraceMs?: number | undefined;
  /**
   * Whether `currentRequest()` works in the code of requests, so that gates and tools know their request. It uses an
   * AsyncLocalStorage.
   * @default true
   */
  readonly trackRequests?: boolean | undefined;
  /** The `source` of events and errors. @default 'manager' */
  readonly name?: string | undefined;
  /** Where the manager's own events go. @default hooks of its own */
  readonly hooks?: LifecycleHooks | undefined;
}

/** Statistics of a manager and of what it manages. */
export interface ManagerStats {
  /** Requests that hold a permit. */
  readonly active: number;
  /** Requests that wait for a permit. */
  readonly queued: number;
  /** Requests so far. */
  readonly requests: number;
  readonly uptimeMs: number;
  readonly limiter: LimiterStats;
  readonly pool: PoolStats;
  /** By the gate's name. */
  readonly gates: Readonly<Record<string, GateStats>>;
}

const CHECKS: Checks<PipelineManagerOptions<unknown>> = {
  pool: (option, pool) => {
    if (typeof (pool as PipelinePool<unknown> | null | undefined)?.acquire !== 'function')
      throw new TypeError(refusal(option, 'a PipelinePool', pool));
  },
  limiter: (option, limiter) => {
    if (typeof (limiter as Limiter | null | undefined)?.acquire !== 'function')
      throw new TypeError(refusal(option, 'a ConcurrencyLimiter', limiter));
  },
  gates: (option, gates) => {
    if (!Array.isArray(gates) || !gates.every((gate) => gate?.stats))
      throw new TypeError(refusal(option, 'an array of gates', gates));
    const names = gates.map(({ name }) => name);
    const twice = names.find((name, i) => names.indexOf(name) < i);
    if (twice !== undefined)
      throw new RangeError(`Expected \`${option}\` to have names of their own, got "${twice}" twice`);
  },
  requestTimeoutMs: positiveMs,
  abortGraceMs: durationMs,
  trackRequests: flag,
  name: text,
  hooks: checkHooks,
};

/**
 * Runs requests, each on a pipeline instance that it alone uses: admitted by a limiter, served from a pool.
 *
 * `createPipelineManager` builds one with its pool and limiter; use the constructor to bring your own.
 *
 * Invariants:
 * - A request that has not entered holds nothing; one that has holds one permit and one lease, and both are released,
 *   however it ends.
 * - After `shutdown` no request begins.
 *
 * @throws {TypeError | RangeError} naming the option that is wrong, and its value
 *
 * @example
 * const manager = new PipelineManager({
 *   pool: new PipelinePool({ size: 5, create: () => new ResearchPipeline(), reset: (pipeline) => pipeline.clear() }),
 *   limiter: new ConcurrencyLimiter({ maxConcurrent: 10 }),
 *   requestTimeoutMs: 1_800_000,
 * });
 * const answer = await manager.run(taskId, ({ pipeline, signal }) => pipeline.research(question, { signal }));
 */
export class PipelineManager<T> implements AsyncDisposable {
  /** The `source` of its events and errors. */
  readonly name: string;
  /** Where its `request:*` events go. */
  readonly hooks: LifecycleHooks;
  /** The pool that requests lease instances from. */
  readonly pool: PipelinePool<T>;
  /** The limiter that admits requests. */
  readonly limiter: Limiter;
  /** The gates that it reports, and closes when it is shut down. */
  readonly gates: readonly ManagedGate[];
  readonly #requestTimeoutMs: number | undefined;
  readonly #requests = new RequestRegistry<T>();
  readonly #dependencies: RequestDependencies<T>;
  readonly #startedMs = nowMs();
  #creations: CreationWatch | undefined;
  #shutdown: Promise<void> | undefined;

  // No comment of its own: it would hide the class's on hover.
  constructor(options: PipelineManagerOptions<T>) {
    checkEach('PipelineManager', options, CHECKS);
    CHECKS.pool('pool', options.pool);
    CHECKS.limiter('limiter', options.limiter);
    const { pool, limiter, gates = [], name = 'manager', hooks = new LifecycleHooks() } = options;
    this.name = name;
    this.hooks = hooks;
    this.pool = pool;
    this.limiter = limiter;
    this.gates = [...gates];
    this.#requestTimeoutMs = options.requestTimeoutMs;
    this.#dependencies = {
      name,
      hooks,
      limiter,
      pool,
      abortGraceMs: options.abortGraceMs ?? 5_000,
      trackRequests: options.trackRequests ?? true,
      requests: this.#requests,
    };
  }

  /**
   * Creates the pool's `min` instances now, so that the first requests need not wait for them.
   *
   * @throws {ManagerClosedError} after `shutdown`; otherwise rejects as `PipelinePool.warmUp`
   *
   * @example
   * await manager.warmUp({ timeoutMs: 120_000 });
   * server.listen(8080);
   */
  async warmUp(
    options: { readonly signal?: AbortSignal | undefined; readonly timeoutMs?: number | undefined } = {},
  ): Promise<void> {
    if (this.#shutdown !== undefined) throw new ManagerClosedError(this.name);
    await this.pool.warmUp(options);
  }

  /**
   * Runs `work` on an instance that it alone uses, and returns the instance when it ends, however it ends.
   *
   * Inside a request of the same manager it waits for a second permit and a second instance, and forever if all of them are
   * held by requests that wait like this: call a sub-agent as a function instead, or give it a manager of its own.
   *
   * Settles as `work` does. Rejects in the step of the abort with `signal.reason`, `RequestTimeoutError`,
   * `LeaseRevokedError` or `ManagerClosedError` if the request is ended early, and as the limiter's and the pool's
   * `acquire` do if it never began. The signal that `work` receives also aborts once the request is over.
   *
   * @throws {TypeError | RangeError} naming the option that is wrong, and its value
   *
   * @example
   * const answer = await manager.run(
   *   taskId,
   *   ({ pipeline, signal }) => pipeline.research(question, { signal }),
   *   { signal: request.signal, tenant: customer },
   * );
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
   * Streams the items of a generator that runs on an instance of its own. The instance is held from the first `next`
   * until the last item is consumed, or until `break`, `return`, a throw on either side, or an abort.
   *
   * The stream ends normally only if the generator did: a deadline, an abort, a revocation or a shutdown rejects the
   * next `next`, even between two items. `generator` may also return, or resolve with, any async iterable.
   *
   * @throws {TypeError | RangeError} at once, naming the option that is wrong; everything else rejects `next`
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
  ): StreamIterator<Y, R | undefined> {
    checkRequest(taskId, options);
    callable('generator', generator);
    return new RequestStream(() => this.#open(taskId, options), generator);
  }

  /**
   * Admits a task and leases it an instance, for code that does not fit into one function. However the lease ends, its
   * permit is released with it. `timeoutMs` and `signal` bound only the wait.
   *
   * @throws {TypeError | RangeError} naming the option that is wrong; otherwise rejects as `run` does before it begins
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

  /**
   * Releases what `acquirePipeline` returned. Never rejects; a second call changes nothing, nor does a call without a lease:
   * in a `finally` after an `acquirePipeline` that rejected.
   */
  async releasePipeline(lease: Lease<T> | null | undefined): Promise<void> {
    await lease?.release();
  }

  /**
   * The health of the service. Whether creations keep failing is observed from the first call on.
   *
   * @example
   * const { status, reasons } = manager.health();
   * if (status !== 'healthy') console.warn(status, reasons);
   */
  health(): Health {
    this.#creations ??= new CreationWatch(this.pool);
    return healthOf({
      stopping: this.#shutdown !== undefined,
      activeRequests: this.#requests.admitted,
      queuedRequests: this.#requests.queued,
      longestWaitMs: this.#requests.longestWaitMs,
      failedCreations: this.#creations.failedCreations,
      uptimeMs: nowMs() - this.#startedMs,
      limiter: this.limiter.stats(),
      pool: this.pool.stats(),
      gates: gateStatsOf(this.gates),
    });
  }

  /** The current statistics. */
  stats(): ManagerStats {
    return Object.freeze({
      active: this.#requests.admitted,
      queued: this.#requests.queued,
      requests: this.#requests.total,
      uptimeMs: nowMs() - this.#startedMs,
      limiter: this.limiter.stats(),
      pool: this.pool.stats(),
      gates: Object.freeze(Object.fromEntries(this.gates.map((gate) => [gate.name, gate.stats()]))),
    });
  }

  /**
   * The current requests, in the order in which they came.
   *
   * @example
   * for (const { taskId, state, ageMs } of manager.requests()) console.log(taskId, state, ageMs);
   */
  requests(): readonly RequestInfo[] {
    return [...this.#requests].map((request) => request.info());
  }

  /**
   * Accepts no further requests, serves those it has, and closes the pool, the limiter and the gates.
   *
   * At `timeoutMs` the remaining requests are aborted with `ManagerClosedError`; their code has `abortGraceMs` to
   * settle. Without `timeoutMs` it waits for all of them. A second call with an earlier deadline takes effect.
   *
   * @throws {TypeError | RangeError} naming the option that is wrong, and its value
   */
  async shutdown(options: { readonly timeoutMs?: number | undefined } = {}): Promise<void> {
    const { timeoutMs } = checkEach('shutdown', options, { timeoutMs: durationMs });
    this.#shutdown ??= this.#requests.empty().then(() => this.#closeAll());
    const tooLong = (ms: number): Error => new RangeError(`Requests were left after ${ms} ms`);
    await withDeadline(this.#requests.empty(), timeoutMs, tooLong).catch(() => this.#abortAll());
    return this.#shutdown;
  }

  /** As `shutdown` without a deadline. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.shutdown();
  }

  #open(taskId: string, options: RequestOptions): ManagedRequest<T> {
    if (this.#shutdown !== undefined) throw new ManagerClosedError(this.name);
    const { timeoutMs = this.#requestTimeoutMs } = options;
    return new ManagedRequest(this.#dependencies, taskId, options, timeoutMs);
  }

  /** Ends what is left: code under `run` and `stream` by its signal, holders of a lease by the lease's. */
  async #abortAll(): Promise<void> {
    // The latest first: what is queued must not start in place of what is running.
    const aborting = inBatches([...this.#requests].reverse(), (request) => request.shutDown());
    if (aborting !== undefined) await aborting;
    // At its own deadline it destroys the instances still held, so that this always ends.
    this.pool.close({ timeoutMs: this.#dependencies.abortGraceMs }).catch(() => {});
  }

  async #closeAll(): Promise<void> {
    await Promise.all([this.pool.close(), this.limiter.close(), ...this.gates.map((gate) => gate.close())]);
  }
}

/** The pool's options, and what else a manager takes. Only `create` is required. */
export interface CreatePipelineManagerOptions<T>
  extends Omit<PipelinePoolOptions<T>, 'size' | 'maxQueue' | 'hooks'> {
  /** Sizes and time limits. What it omits is read from the environment. @default loadConfig() */
  readonly config?: Partial<PipelineConfig> | undefined;
  /**
   * Admits the requests in place of a limiter of `maxConcurrentRequests`; then `maxConcurrentRequests`, `maxQueue` and
   * `acquireTimeoutMs` of `config` are not used.
   * @default a ConcurrencyLimiter
   */
  readonly limiter?: Limiter | undefined;
  /**
   * The gates of the services that the pipelines call, each with a name of its own: included in `stats`, closed by
   * `shutdown`. @default none
   */
  readonly gates?: readonly ManagedGate[] | undefined;
  /** Whether `currentRequest()` works in the code of requests. @default true */
  readonly trackRequests?: boolean | undefined;
  /** Where the events of manager, pool and limiter go. @default hooks of its own */
  readonly hooks?: LifecycleHooks | undefined;
}

/**
 * Builds limiter, pool and manager from one configuration, with one set of hooks: the shortest setup.
 *
 * @throws {TypeError | RangeError} naming the option or the environment variable that is wrong, and its value
 *
 * @example
 * const manager = createPipelineManager({
 *   config: { poolSize: 3 },
 *   create: ({ instanceId }) => new ResearchPipeline(instanceId),
 *   reset: (pipeline) => pipeline.clear(),
 *   destroy: (pipeline) => pipeline.close(),
 * });
 */
export function createPipelineManager<T>(options: CreatePipelineManagerOptions<T>): PipelineManager<T> {
  const {
    config = {},
    limiter,
    gates,
    trackRequests,
    hooks = new LifecycleHooks(),
    ...poolOptions
  } = options;
  for (const option of Object.keys(poolOptions)) {
    // The pool would name itself, or take the option for its own.
    if (option === 'size' || (option in CONFIG_VARIABLES && option !== 'acquireTimeoutMs'))
      throw new TypeError(`Set \`${option === 'size' ? 'poolSize' : option}\` in \`config\`, not beside it`);
  }
  const { poolSize, maxConcurrentRequests, maxQueue, acquireTimeoutMs, requestTimeoutMs, abortGraceMs } =
    completeConfig(config);
  const { fairBy, tenants, agingMs } = poolOptions;
  return new PipelineManager({
    pool: new PipelinePool<T>({ ...poolOptions, size: poolSize, hooks }),
    limiter:
      limiter ??
      new ConcurrencyLimiter({
        maxConcurrent: maxConcurrentRequests,
        maxQueue,
        acquireTimeoutMs,
        fairBy,
        tenants,
        agingMs,
        hooks,
      }),
    gates,
    requestTimeoutMs,
    abortGraceMs,
    trackRequests,
    hooks,
  });
}
