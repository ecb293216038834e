import { ToolFailedError, type ToolStage } from '../errors.js';
import type { TaskIds } from '../hooks/events.js';
import type { LifecycleHooks } from '../hooks/lifecycle-hooks.js';
import { linkedController } from '../internal/abort-watch.js';
import { boundedCall } from '../internal/bounded-call.js';
import { causeOf } from '../internal/told-error.js';
import { Connections, type NamedTool, type SeeOff, toolsOfScope } from './connections.js';
import type { ToolSet } from './define-tools.js';
import { CallMask } from './masking.js';
import { TaskSession } from './task-session.js';
import { ToolManager } from './tool-manager.js';

/** The tools of each sub-agent, by the sub-agent's name. */
export type SubAgents = Readonly<Record<string, ToolSet>>;

/** What a request gets of its instance. The parts are made anew for each lease, and serve that lease only. */
export interface AgentPipeline<Main extends ToolSet, Subs extends SubAgents, Formatter> {
  readonly mainAgentToolManager: ToolManager<Main>;
  readonly subAgentToolManagers: { readonly [N in keyof Subs]: ToolManager<Subs[N]> };
  readonly outputFormatter: Formatter;
}

/** Which lease an output formatter is made for. */
export interface FormatterContext {
  readonly instanceId: number;
  readonly taskId?: string;
}

/** What all instances of a factory have in common. */
export interface PipelineParts<Main extends ToolSet, Subs extends SubAgents, Formatter> {
  readonly source: string;
  readonly mainAgent: Main;
  readonly subAgents: Subs;
  readonly outputFormatter: (context: FormatterContext) => Formatter;
  /** The clients that all instances share. */
  readonly shared: Connections;
  readonly hooks: LifecycleHooks;
  readonly nextCallId: () => number;
  /** Sees off clients of an instance, or of nobody's in particular. */
  readonly seeOff: (ids: { readonly instanceId?: number; readonly taskId?: string }) => SeeOff;
}

/** What one lease sees. */
interface View<Main extends ToolSet, Subs extends SubAgents, Formatter>
  extends AgentPipeline<Main, Subs, Formatter> {
  readonly session: TaskSession;
}

/**
 * One instance: its own clients, and the session of whoever holds it.
 *
 * Invariants:
 * - It is made whole or not at all: when one client fails, those made are let go and those still being made are aborted
 *   before the failure is told. One that arrives after it was given up is let go then.
 * - A session begins only after the one before has ended and none of its calls runs on the instance's clients.
 */
export class PipelineInstance<Main extends ToolSet, Subs extends SubAgents, Formatter> {
  /** What leases are given. It shows the present session, also after that has ended. */
  readonly pipeline: AgentPipeline<Main, Subs, Formatter>;
  readonly #instanceId: number;
  readonly #parts: PipelineParts<Main, Subs, Formatter>;
  readonly #clients: Connections;
  #view: View<Main, Subs, Formatter>;

  constructor(instanceId: number, parts: PipelineParts<Main, Subs, Formatter>) {
    this.#instanceId = instanceId;
    this.#parts = parts;
    this.#clients = new Connections(parts.seeOff({ instanceId }));
    this.#view = this.#viewFor({});
    const present = (): View<Main, Subs, Formatter> => this.#view;
    this.pipeline = Object.freeze({
      get mainAgentToolManager() {
        return present().mainAgentToolManager;
      },
      get subAgentToolManagers() {
        return present().subAgentToolManagers;
      },
      get outputFormatter() {
        return present().outputFormatter;
      },
    });
  }

  /** Makes the clients of the instance, and those that all share, in parallel. */
  async open(signal: AbortSignal | undefined): Promise<void> {
    const { mainAgent, subAgents, shared } = this.#parts;
    const sets = [mainAgent, ...Object.values(subAgents)];
    const { controller, unlink } = linkedController(signal);
    const asked = { instanceId: this.#instanceId, signal: controller.signal };
    try {
      await Promise.all([
        shared.open(toolsOfScope(sets, 'shared'), asked, failedAt('connect')),
        this.#clients.open(toolsOfScope(sets, 'instance'), asked, failedAt('connect')),
      ]);
    } catch (error) {
      controller.abort(error);
      await this.#clients.close(error);
      throw error;
    } finally {
      unlink();
    }
  }

  /** Ends the session before, and begins one for this task. */
  async begin(task: TaskIds, signal: AbortSignal | undefined): Promise<void> {
    await this.#endSession(signal);
    this.#view = this.#viewFor(task);
  }

  /** Ends the session, and clears its traces off the clients. */
  async reset(signal: AbortSignal | undefined): Promise<void> {
    await this.#endSession(signal);
    await this.#each('reset', signal, ({ tool }, client, own) => tool.reset?.(client, { signal: own }));
  }

  /** Whether all clients of the instance are still good. */
  async check(signal: AbortSignal | undefined): Promise<boolean> {
    let good = true;
    await this.#each('check', signal, async ({ tool }, client, own) => {
      if (tool.check !== undefined && (await tool.check(client, { signal: own })) !== true) good = false;
    });
    return good;
  }

  /** Ends the session and lets all clients go. Never rejects. */
  async close(): Promise<void> {
    const { session } = this.#view;
    const ended = session.end();
    await Promise.all([ended, this.#clients.close(session.signal.reason)]);
  }

  /** Waits until nothing of the old session runs on what the next one will use. Code that never ends costs the instance. */
  async #endSession(signal: AbortSignal | undefined): Promise<void> {
    const { session } = this.#view;
    await boundedBy(signal, () => Promise.all([session.end(), session.quiet()]));
  }

  #each(
    stage: ToolStage,
    signal: AbortSignal | undefined,
    use: (made: NamedTool, client: unknown, signal: AbortSignal) => unknown,
  ): Promise<void> {
    return boundedBy(signal, (own) =>
      this.#clients.each(async (made, client) => {
        try {
          await use(made, client, own);
        } catch (error) {
          throw failedAt(stage)(made, error);
        }
      }),
    );
  }

  #viewFor(task: TaskIds): View<Main, Subs, Formatter> {
    const { source, shared, seeOff, mainAgent, subAgents, outputFormatter, hooks, nextCallId } = this.#parts;
    const instanceId = this.#instanceId;
    const ids = task.taskId === undefined ? { instanceId } : { instanceId, taskId: task.taskId };
    const ground = { source, instanceId, shared, instance: this.#clients, seeOff: seeOff(ids) };
    const session = new TaskSession(ground, task);
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
  (stage: ToolStage) =>
  ({ name, tool }: NamedTool, error: unknown): Error =>
    new ToolFailedError(name, causeOf(error, new CallMask(tool.gate)), stage);

/** Work that only its signal bounds. */
function boundedBy<T>(
  signal: AbortSignal | undefined,
  work: (signal: AbortSignal) => T | PromiseLike<T>,
): Promise<T> {
  return boundedCall(work, {
    timeoutError: () => new Error('This work has no deadline of its own'),
    ...(signal === undefined ? {} : { signal }),
  });
}
