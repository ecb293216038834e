import { ToolFailedError, type ToolStage } from '../errors.js';
import type { TaskIds } from '../hooks/events.js';
import type { LifecycleHooks } from '../hooks/lifecycle-hooks.js';
import { boundedCall, linkedController } from '../internal/abort.js';
import {
  Connections,
  type DisposeWithTimeout,
  type NamedTool,
  TaskSession,
  toolsOfScope,
} from './clients.js';
import type { ToolSet } from './define-tools.js';
import { ToolManager } from './tool-manager.js';

/** The tools of each sub-agent, by the sub-agent's name. */
export type SubAgents = Readonly<Record<string, ToolSet>>;

/** The pipeline of a request. Its parts are created for each lease, and serve that lease only. */
export interface AgentPipeline<Main extends ToolSet, Subs extends SubAgents, Formatter> {
  readonly mainAgentToolManager: ToolManager<Main>;
  readonly subAgentToolManagers: { readonly [N in keyof Subs]: ToolManager<Subs[N]> };
  readonly outputFormatter: Formatter;
}

/** The lease that an output formatter is created for. */
export interface FormatterContext {
  readonly instanceId: number;
  readonly taskId?: string;
}

/** What all instances of a factory share. */
export interface FactoryDependencies<Main extends ToolSet, Subs extends SubAgents, Formatter> {
  readonly source: string;
  readonly mainAgent: Main;
  readonly subAgents: Subs;
  /** The tools of all agents. */
  readonly sets: readonly ToolSet[];
  readonly outputFormatter: (context: FormatterContext) => Formatter;
  /** The clients that all instances share. */
  readonly shared: Connections;
  readonly hooks: LifecycleHooks;
  readonly nextCallId: () => number;
  /** How clients of an instance, or the shared ones, are disposed of. */
  readonly disposer: (ids: { readonly instanceId?: number; readonly taskId?: string }) => DisposeWithTimeout;
}

/** The parts of one lease. */
interface View<Main extends ToolSet, Subs extends SubAgents, Formatter>
  extends AgentPipeline<Main, Subs, Formatter> {
  readonly session: TaskSession;
}

/**
 * One instance: its own clients, and the session of its holder.
 *
 * Invariants:
 * - It is created whole or not at all: if one client fails, the others are disconnected, or aborted if they are still
 *   connecting, before `open` rejects. A client that arrives later is disconnected on arrival.
 * - A session begins only after the one before has ended and none of its calls runs on the instance's clients.
 */
export class PipelineInstance<Main extends ToolSet, Subs extends SubAgents, Formatter> {
  /** The pipeline of every lease. It shows the current session, even after that has ended. */
  readonly pipeline: AgentPipeline<Main, Subs, Formatter>;
  readonly #instanceId: number;
  readonly #dependencies: FactoryDependencies<Main, Subs, Formatter>;
  readonly #clients: Connections;
  #view: View<Main, Subs, Formatter>;

  constructor(instanceId: number, dependencies: FactoryDependencies<Main, Subs, Formatter>) {
    this.#instanceId = instanceId;
    this.#dependencies = dependencies;
    this.#clients = new Connections(dependencies.disposer({ instanceId }));
    this.#view = this.#viewFor({});
    const current = (): View<Main, Subs, Formatter> => this.#view;
    this.pipeline = Object.freeze({
      get mainAgentToolManager() {
        return current().mainAgentToolManager;
      },
      get subAgentToolManagers() {
        return current().subAgentToolManagers;
      },
      get outputFormatter() {
        return current().outputFormatter;
      },
    });
  }

  /** Connects the clients of the instance, and the shared ones, in parallel. */
  async open(signal: AbortSignal | undefined): Promise<void> {
    const { source, sets, shared } = this.#dependencies;
    const { controller, unlink } = linkedController(signal);
    const context = { instanceId: this.#instanceId, signal: controller.signal };
    const failed = failedAt(source, 'connect');
    try {
      await Promise.all([
        shared.open(toolsOfScope(sets, 'shared'), context, failed),
        this.#clients.open(toolsOfScope(sets, 'instance'), context, failed),
      ]);
    } catch (error) {
      controller.abort(error);
      await this.#clients.close(error);
      throw error;
    } finally {
      unlink();
    }
  }

  /** Ends the previous session, and begins one for this task. */
  async begin(task: TaskIds, signal: AbortSignal | undefined): Promise<void> {
    await this.#endSession(signal);
    this.#view = this.#viewFor(task);
  }

  /** Ends the session, and clears its state from the clients. */
  async reset(signal: AbortSignal | undefined): Promise<void> {
    await this.#endSession(signal);
    await this.#each('reset', signal, ({ tool }, client, own) => tool.reset?.(client, { signal: own }));
  }

  /** Whether all clients of the instance are healthy. */
  async check(signal: AbortSignal | undefined): Promise<boolean> {
    let healthy = true;
    await this.#each('check', signal, async ({ tool }, client, own) => {
      if (tool.check !== undefined && (await tool.check(client, { signal: own })) !== true) healthy = false;
    });
    return healthy;
  }

  /** Ends the session and disconnects all clients. Never rejects. */
  async close(): Promise<void> {
    const { session } = this.#view;
    const ended = session.end();
    await Promise.all([ended, this.#clients.close(session.ended.reason)]);
  }

  /** Waits until no call of the old session runs on a client that the next one uses; if that never happens, the pool replaces the instance. */
  async #endSession(signal: AbortSignal | undefined): Promise<void> {
    const { session } = this.#view;
    await boundedCall(() => Promise.all([session.end(), session.quiet()]), { signal });
  }

  #each(
    stage: ToolStage,
    signal: AbortSignal | undefined,
    use: (made: NamedTool, client: unknown, signal: AbortSignal) => unknown,
  ): Promise<void> {
    const failed = failedAt(this.#dependencies.source, stage);
    const useAll = (own: AbortSignal): Promise<void> =>
      this.#clients.each(async (made, client) => {
        try {
          await use(made, client, own);
        } catch (error) {
          throw failed(made, error);
        }
      });
    return boundedCall(useAll, { signal });
  }

  #viewFor(task: TaskIds): View<Main, Subs, Formatter> {
    const { source, shared, disposer, mainAgent, subAgents, outputFormatter, hooks, nextCallId } =
      this.#dependencies;
    const instanceId = this.#instanceId;
    const ids = task.taskId === undefined ? { instanceId } : { instanceId, taskId: task.taskId };
    const clients = { shared, instance: this.#clients, task: new Connections(disposer(ids)) };
    const session = new TaskSession({ source, instanceId, task, clients });
    const managerOf = <T extends ToolSet>(name: string, tools: T): ToolManager<T> =>
      new ToolManager({ name, tools, session, hooks, nextCallId });
    let formatter: { readonly made: Formatter } | undefined;
    return {
      session,
      mainAgentToolManager: managerOf('mainAgent', mainAgent),
      subAgentToolManagers: Object.freeze(
        Object.fromEntries(
          Object.entries(subAgents).map(([name, tools]) => [name, managerOf(`subAgents.${name}`, tools)]),
        ),
      ) as View<Main, Subs, Formatter>['subAgentToolManagers'],
      get outputFormatter() {
        formatter ??= { made: outputFormatter(ids) };
        return formatter.made;
      },
    };
  }
}

const failedAt =
  (source: string, stage: ToolStage) =>
  ({ name }: NamedTool, error: unknown): Error =>
    new ToolFailedError(source, name, error, stage);
