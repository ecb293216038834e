import { ManagerClosedError, ToolFailedError, ToolTimeoutError } from '../errors.js';
import { checkHooks, LifecycleHooks } from '../hooks/lifecycle-hooks.js';
import { boundedCall } from '../internal/bounded-call.js';
import { copyOf } from '../internal/told-error.js';
import { callable, options as checkOptions, durationMs, optional, refusal } from '../internal/validate.js';
import { Connections, checkSharedClients, type SeeOff } from './connections.js';
import { checkTool, type ToolSet } from './define-tools.js';
import { CallMask } from './masking.js';
import {
  type AgentPipeline,
  type FormatterContext,
  PipelineInstance,
  type PipelineParts,
  type SubAgents,
} from './pipeline-instance.js';

const SOURCE = 'pipelineFactory';

/** How a `pipelineFactory` is built. Only `mainAgent` is needed. */
export interface PipelineFactoryOptions<Main extends ToolSet, Subs extends SubAgents, Formatter> {
  /** The main agent's tools, from `defineTools`. */
  readonly mainAgent: Main;
  /** The sub-agents' tools, each from `defineTools`, by the sub-agent's name. @default none */
  readonly subAgents?: Subs;
  /** Makes an output formatter for a lease, when it is first asked for. @default none */
  readonly outputFormatter?: (context: FormatterContext) => Formatter;
  /**
   * Milliseconds that letting one client go may take, or giving up the making of one; then it is reported, and nobody
   * waits for it any longer. @default 5000
   */
  readonly disconnectTimeoutMs?: number;
  /** Where the events go. @default hooks of its own */
  readonly hooks?: LifecycleHooks;
}

/** What `create`, `destroy` and `validate` are called with, of what a `PipelinePool` gives. */
export interface FactoryContext {
  readonly instanceId: number;
  readonly signal?: AbortSignal;
}

/** What `prepare` and `reset` are called with. */
export interface FactoryTaskContext extends FactoryContext {
  readonly taskId?: string;
  readonly requestId?: string;
  readonly tenant?: string;
}

/**
 * The callbacks that make a `PipelinePool` one of agents' pipelines. Spread it into the pool's options; close it after the
 * pool, to let the clients go that all instances share.
 *
 * Invariants:
 * - A client of scope `shared` is made once, `instance` once for each pipeline, `task` once for each lease at most.
 * - What belongs to a task ends with its lease: its calls, its tool managers, its clients, its output formatter.
 * - Letting a client go never fails or holds up anything else: it is reported as `tool:disconnectFailed`.
 */
export class PipelineFactory<Main extends ToolSet, Subs extends SubAgents, Formatter>
  implements AsyncDisposable
{
  /** Makes an instance with all its clients, or none of them. */
  readonly create: (context: FactoryContext) => Promise<AgentPipeline<Main, Subs, Formatter>>;
  /** Aborts what is under way and lets the instance's clients go. Never rejects. */
  readonly destroy: (pipeline: AgentPipeline<Main, Subs, Formatter>, context?: unknown) => Promise<void>;
  /** Gives an instance to a task. */
  readonly prepare: (
    pipeline: AgentPipeline<Main, Subs, Formatter>,
    context: FactoryTaskContext,
  ) => Promise<void>;
  /** Takes an instance from its task, and clears the task's traces. */
  readonly reset: (pipeline: AgentPipeline<Main, Subs, Formatter>, context: FactoryContext) => Promise<void>;
  /** Whether the instance's clients are all good; there only if a tool has `check`. */
  declare readonly validate?: (
    pipeline: AgentPipeline<Main, Subs, Formatter>,
    context: FactoryContext,
  ) => Promise<boolean>;
  readonly #hooks: LifecycleHooks;
  readonly #disconnectTimeoutMs: number;
  readonly #parts: PipelineParts<Main, Subs, Formatter>;
  readonly #instances = new WeakMap<object, PipelineInstance<Main, Subs, Formatter>>();
  #closed: Promise<void> | undefined;
  #calls = 0;

  constructor(given: PipelineFactoryOptions<Main, Subs, Formatter>) {
    checkFactoryOptions(given);
    const { mainAgent, subAgents, outputFormatter } = given;
    this.#hooks = given.hooks ?? new LifecycleHooks();
    this.#disconnectTimeoutMs = given.disconnectTimeoutMs ?? 5_000;
    this.#parts = {
      source: SOURCE,
      mainAgent,
      subAgents: subAgents ?? ({} as Subs),
      outputFormatter: outputFormatter ?? (() => undefined as Formatter),
      shared: new Connections(this.#seeOff({})),
      hooks: this.#hooks,
      nextCallId: () => ++this.#calls,
      seeOff: (ids) => this.#seeOff(ids),
    };

    // Own properties, so that the factory can be spread into a pool's options; all else stays behind on the prototype.
    this.create = async ({ instanceId, signal }) => {
      if (this.#closed !== undefined) throw new ManagerClosedError(SOURCE);
      const instance = new PipelineInstance(instanceId, this.#parts);
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
    if (allTools(given).some(({ check }) => check !== undefined)) {
      this.validate = async (pipeline, { signal }) => this.#of(pipeline).check(signal);
    }
  }

  /** Where the `tool:*` events go. */
  get hooks(): LifecycleHooks {
    return this.#hooks;
  }

  /**
   * Lets the shared clients go and makes no further instances. Close the pool first: its instances still call them.
   * Never rejects.
   */
  close(): Promise<void> {
    this.#closed ??= this.#parts.shared.close(new ManagerClosedError(SOURCE));
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

  #seeOff(ids: { readonly instanceId?: number; readonly taskId?: string }): SeeOff {
    return async ({ name, tool }, farewell) => {
      const timeoutMs = this.#disconnectTimeoutMs;
      try {
        await boundedCall(farewell, {
          timeoutMs,
          timeoutError: () => new ToolTimeoutError(name, timeoutMs, 'disconnect'),
        });
      } catch (thrown) {
        if (!this.#hooks.hears('tool:disconnectFailed')) return;
        const error =
          thrown instanceof ToolTimeoutError
            ? thrown
            : new ToolFailedError(name, copyOf(thrown, new CallMask(tool.gate)), 'disconnect');
        this.#hooks.emit('tool:disconnectFailed', { source: SOURCE, tool: name, ...ids, error });
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

function checkFactoryOptions(given: PipelineFactoryOptions<ToolSet, SubAgents, unknown>): void {
  checkOptions(SOURCE, given, ['mainAgent', 'subAgents', 'outputFormatter', 'disconnectTimeoutMs', 'hooks']);
  const { mainAgent, subAgents = {}, outputFormatter, disconnectTimeoutMs, hooks } = given;
  optional('outputFormatter', outputFormatter, callable);
  optional('disconnectTimeoutMs', disconnectTimeoutMs, (option, value) => durationMs(option, value, 1));
  if (hooks !== undefined) checkHooks(hooks);
  const expected = 'an object of tools by name, from defineTools';
  if (!isRecord(mainAgent)) throw new TypeError(refusal('mainAgent', expected, mainAgent));
  if (!isRecord(subAgents)) {
    throw new TypeError(refusal('subAgents', 'an object of tools by sub-agent', subAgents));
  }
  for (const [agent, tools] of Object.entries(subAgents)) {
    if (!isRecord(tools)) throw new TypeError(refusal(`subAgents.${agent}`, expected, tools));
  }
  const sets = [mainAgent, ...Object.values(subAgents)];
  for (const [name, tool] of sets.flatMap((set) => Object.entries(set))) checkTool(name, tool);
  checkSharedClients(sets);
}

const isRecord = (value: unknown): boolean =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

const allTools = ({ mainAgent, subAgents = {} }: PipelineFactoryOptions<ToolSet, SubAgents, unknown>) =>
  [mainAgent, ...Object.values(subAgents)].flatMap((set) => Object.values(set));
