import { ManagerClosedError, ToolFailedError, ToolTimeoutError } from '../errors.js';
import { checkHooks, LifecycleHooks } from '../hooks/lifecycle-hooks.js';
import { boundedCall } from '../internal/abort.js';
import { enableRedaction, redactError } from '../internal/redaction.js';
import { callable, options as checkOptions, optional, positiveMs, refusal } from '../internal/validate.js';
import { Connections, checkSharedClients, type DisposeWithTimeout } from './clients.js';
import { checkTools, isRecord, type ToolSet } from './define-tools.js';
import {
  type AgentPipeline,
  type FactoryDependencies,
  type FormatterContext,
  PipelineInstance,
  type SubAgents,
} from './pipeline-instance.js';

const SOURCE = 'pipelineFactory';

/** Options of `pipelineFactory`. Only `mainAgent` is required. */
export interface PipelineFactoryOptions<Main extends ToolSet, Subs extends SubAgents, Formatter> {
  /** The main agent's tools, from `defineTools`. */
  readonly mainAgent: Main;
  /** The sub-agents' tools, each from `defineTools`, by the sub-agent's name. @default none */
  readonly subAgents?: Subs | undefined;
  /** Creates the output formatter of a lease, on first use. @default none */
  readonly outputFormatter?: ((context: FormatterContext) => Formatter) | undefined;
  /**
   * Milliseconds that disconnecting one client may take, or ending an aborted `connect`; after that it is emitted as
   * `tool:disconnect-failed` and no longer waited for.
   * @default 5000
   */
  readonly disconnectTimeoutMs?: number | undefined;
  /** Where the events go. @default hooks of its own */
  readonly hooks?: LifecycleHooks | undefined;
}

/** What `create` and `validate` take from the pool. */
export interface FactoryContext {
  readonly instanceId: number;
  readonly signal?: AbortSignal | undefined;
}

/** What `prepare` takes from the pool. */
export interface FactoryTaskContext extends FactoryContext {
  readonly taskId?: string | undefined;
  readonly requestId?: string | undefined;
  readonly tenant?: string | undefined;
}

/**
 * The callbacks that make a `PipelinePool` one of agent pipelines. Spread it into the pool's options; close it after the
 * pool, to disconnect the clients that all instances share.
 *
 * Invariants:
 * - A client of scope `shared` is created once, `instance` once for each pipeline, `task` at most once for each lease.
 * - What belongs to a task ends with its lease: its calls, its tool managers, its clients, its output formatter.
 * - A failing or slow `disconnect` affects nothing else: it is emitted as `tool:disconnect-failed`.
 *
 * @example
 * const factory = pipelineFactory({ mainAgent: tools });
 * const pool = new PipelinePool({ size: 5, ...factory });
 */
export class PipelineFactory<Main extends ToolSet, Subs extends SubAgents, Formatter>
  implements AsyncDisposable
{
  /** Creates an instance with all its clients, or none of them. */
  readonly create: (context: FactoryContext) => Promise<AgentPipeline<Main, Subs, Formatter>>;
  /** Aborts running calls and disconnects the instance's clients. Never rejects. */
  readonly destroy: (pipeline: AgentPipeline<Main, Subs, Formatter>, context?: unknown) => Promise<void>;
  /** Starts the session of a task. */
  readonly prepare: (
    pipeline: AgentPipeline<Main, Subs, Formatter>,
    context: FactoryTaskContext,
  ) => Promise<void>;
  /** Ends the session, and clears the task's state from the clients. */
  readonly reset: (pipeline: AgentPipeline<Main, Subs, Formatter>, context: FactoryContext) => Promise<void>;
  /** Whether all clients of the instance are healthy; present only if a tool has `check`. */
  declare readonly validate?: (
    pipeline: AgentPipeline<Main, Subs, Formatter>,
    context: FactoryContext,
  ) => Promise<boolean>;
  readonly #disconnectTimeoutMs: number;
  readonly #dependencies: FactoryDependencies<Main, Subs, Formatter>;
  readonly #instances = new WeakMap<object, PipelineInstance<Main, Subs, Formatter>>();
  #closed: Promise<void> | undefined;
  #calls = 0;

  constructor(given: PipelineFactoryOptions<Main, Subs, Formatter>) {
    enableRedaction();
    const sets = checkFactoryOptions(given);
    const { mainAgent, subAgents, outputFormatter } = given;
    this.#disconnectTimeoutMs = given.disconnectTimeoutMs ?? 5_000;
    this.#dependencies = {
      source: SOURCE,
      mainAgent,
      subAgents: subAgents ?? ({} as Subs),
      sets,
      outputFormatter: outputFormatter ?? (() => undefined as Formatter),
      shared: new Connections(this.#disposer({})),
      hooks: given.hooks ?? new LifecycleHooks(),
      nextCallId: () => ++this.#calls,
      disposer: (ids) => this.#disposer(ids),
    };

    // Own properties, so that the factory can be spread into a pool's options; everything else is on the prototype.
    this.create = async ({ instanceId, signal }) => {
      if (this.#closed !== undefined) throw new ManagerClosedError(SOURCE);
      const instance = new PipelineInstance(instanceId, this.#dependencies);
      await instance.open(signal);
      this.#instances.set(instance.pipeline, instance);
      return instance.pipeline;
    };
    this.destroy = async (pipeline) => this.#of(pipeline).close();
    this.prepare = async (pipeline, { taskId, requestId, tenant, signal }) =>
      this.#of(pipeline).begin(
        {
          ...(taskId === undefined ? {} : { taskId }),
          ...(requestId === undefined ? {} : { requestId }),
          ...(tenant === undefined ? {} : { tenant }),
        },
        signal,
      );
    this.reset = async (pipeline, { signal }) => this.#of(pipeline).reset(signal);
    if (sets.some((set) => Object.values(set).some(({ check }) => check !== undefined))) {
      this.validate = async (pipeline, { signal }) => this.#of(pipeline).check(signal);
    }
  }

  /** Where the `tool:*` events go. */
  get hooks(): LifecycleHooks {
    return this.#dependencies.hooks;
  }

  /**
   * Disconnects the shared clients and creates no further instances. Close the pool first: its instances still use them.
   * Never rejects.
   */
  close(): Promise<void> {
    this.#closed ??= this.#dependencies.shared.close(new ManagerClosedError(SOURCE));
    return this.#closed;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #of(pipeline: object): PipelineInstance<Main, Subs, Formatter> {
    const instance = this.#instances.get(pipeline);
    if (instance === undefined) throw new TypeError('This pipeline was not made by this pipelineFactory');
    return instance;
  }

  #disposer(ids: { readonly instanceId?: number; readonly taskId?: string }): DisposeWithTimeout {
    return async ({ name }, dispose) => {
      const timeoutMs = this.#disconnectTimeoutMs;
      try {
        await boundedCall(dispose, {
          timeoutMs,
          timeoutError: () => new ToolTimeoutError(SOURCE, name, timeoutMs, 'disconnect'),
        });
      } catch (thrown) {
        const { hooks } = this.#dependencies;
        if (!hooks.hasListeners('tool:disconnect-failed')) return;
        const error =
          thrown instanceof ToolTimeoutError
            ? thrown
            : new ToolFailedError(SOURCE, name, thrown, 'disconnect');
        hooks.emit('tool:disconnect-failed', {
          source: SOURCE,
          tool: name,
          ...ids,
          error: redactError(error, hooks.redact),
        });
      }
    };
  }
}

/**
 * Makes pipelines of tool managers for a `PipelinePool`: for each instance the main agent's, the sub-agents' and an output
 * formatter, with clients of their own.
 *
 * @throws {TypeError | RangeError} naming the tool and the option that is wrong
 *
 * @example
 * const factory = pipelineFactory({ mainAgent: tools, outputFormatter: () => new ReportFormatter() });
 * const pool = new PipelinePool({ size: 5, ...factory });
 * await pool.use(async ({ mainAgentToolManager }) => mainAgentToolManager.call('search', { query }));
 * await pool.close();
 * await factory.close();
 */
export function pipelineFactory<
  Main extends ToolSet,
  Subs extends SubAgents = Record<never, never>,
  Formatter = undefined,
>(options: PipelineFactoryOptions<Main, Subs, Formatter>): PipelineFactory<Main, Subs, Formatter> {
  return new PipelineFactory(options);
}

/** Checks the options; returns the tools of all agents. */
function checkFactoryOptions(given: PipelineFactoryOptions<ToolSet, SubAgents, unknown>): readonly ToolSet[] {
  checkOptions(SOURCE, given, ['mainAgent', 'subAgents', 'outputFormatter', 'disconnectTimeoutMs', 'hooks']);
  const { mainAgent, subAgents = {}, outputFormatter, disconnectTimeoutMs, hooks } = given;
  optional('outputFormatter', outputFormatter, callable);
  optional('disconnectTimeoutMs', disconnectTimeoutMs, positiveMs);
  if (hooks !== undefined) checkHooks('hooks', hooks);
  checkTools('mainAgent', mainAgent);
  if (!isRecord(subAgents))
    throw new TypeError(refusal('subAgents', 'an object of tools by sub-agent', subAgents));
  for (const [agent, tools] of Object.entries(subAgents)) checkTools(`subAgents.${agent}`, tools);
  const sets = [mainAgent, ...Object.values(subAgents)];
  checkSharedClients(sets);
  return sets;
}
