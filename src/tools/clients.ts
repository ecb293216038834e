/**
 * The host's clients: how they are connected and disposed of, and which task may use them for how long.
 *
 * - `Connection`: one client · `Connections`: the clients of one scope · `TaskSession`: one task's time with them
 */
import { LeaseReleasedError } from '../errors.js';
import type { TaskIds } from '../hooks/events.js';
import { boundedCall, LazySignal } from '../internal/abort.js';
import { type AnyTool, type ConnectContext, scopeOf, type ToolScope, type ToolSet } from './define-tools.js';

/** A tool and its name in its set. */
export interface NamedTool {
  readonly name: string;
  readonly tool: AnyTool;
}

/** Runs `dispose` for a client of this tool, with a timeout. Settles in every case, and never rejects. */
export type DisposeWithTimeout = (
  owner: NamedTool,
  dispose: (signal: AbortSignal) => unknown,
) => Promise<void>;

/** One call of `connect`, and how many wait for it. */
interface Connecting<Client> {
  readonly controller: AbortController;
  readonly client: Promise<Client>;
  waiters: number;
}

type State<Client> =
  | { readonly kind: 'idle' }
  | { readonly kind: 'connecting'; readonly attempt: Connecting<Client> }
  | { readonly kind: 'open'; readonly client: Client }
  | { readonly kind: 'closed'; readonly reason: unknown };

/** How a connection makes and disposes of its client. */
export interface ConnectionSteps<Client> {
  readonly connect: (context: ConnectContext) => Client | PromiseLike<Client>;
  readonly disconnect: (client: Client, signal: AbortSignal) => unknown;
  /** As `DisposeWithTimeout`. */
  readonly dispose: (dispose: (signal: AbortSignal) => unknown) => Promise<void>;
}

/**
 * The connection to one client, whatever its scope.
 *
 * Invariants:
 * - At most one client is open; it is created once for any number of concurrent callers.
 * - A failure is not kept: the next caller tries again.
 * - One waiter's abort ends only its own wait; the last one's aborts `connect`.
 * - Every client is disconnected exactly once: at `close`, or on arrival if nothing waits for it by then.
 * - `close` settles once no client is left, including those that arrive after their waiters have left.
 */
export class Connection<Client> {
  readonly #steps: ConnectionSteps<Client>;
  /** Attempts to connect that have not settled, abandoned ones included. They never reject. */
  readonly #unsettled = new Set<Promise<void>>();
  #state: State<Client> = { kind: 'idle' };
  #closed: Promise<void> | undefined;

  constructor(steps: ConnectionSteps<Client>) {
    this.#steps = steps;
  }

  /** The client: open, being created, or created now. Rejects as `connect` does, or with `context.signal.reason`. */
  get(context: ConnectContext): Promise<Client> {
    if (context.signal.aborted) return Promise.reject(context.signal.reason);
    switch (this.#state.kind) {
      case 'open':
        return Promise.resolve(this.#state.client);
      case 'closed':
        return Promise.reject(this.#state.reason);
      case 'connecting':
        return this.#join(this.#state.attempt, context.signal);
      case 'idle':
        return this.#join(this.#connect(context), context.signal);
    }
  }

  /** Calls `use` with the client if it is open. */
  whenOpen<R>(use: (client: Client) => R): R | undefined {
    return this.#state.kind === 'open' ? use(this.#state.client) : undefined;
  }

  /** Disconnects for good: waiters and later callers are rejected with `reason`. Never rejects itself. */
  close(reason: unknown): Promise<void> {
    this.#closed ??= this.#close(reason);
    return this.#closed;
  }

  async #close(reason: unknown): Promise<void> {
    const state = this.#state;
    this.#state = { kind: 'closed', reason };
    if (state.kind === 'connecting') state.attempt.controller.abort(reason);
    const unsettled = [...this.#unsettled].map((attempt) => this.#steps.dispose(() => attempt));
    await Promise.all(state.kind === 'open' ? [this.#disconnect(state.client), ...unsettled] : unsettled);
  }

  #connect(context: ConnectContext): Connecting<Client> {
    const controller = new AbortController();
    const { signal } = controller;
    const connecting = (async () => this.#steps.connect({ ...context, signal }))();
    // Waiters do not wait for code that ignores its signal.
    const client = boundedCall(() => connecting, { signal });
    const attempt: Connecting<Client> = { controller, client, waiters: 0 };
    this.#state = { kind: 'connecting', attempt };
    const settled = connecting
      .then(
        async (made) => {
          if (this.#isCurrent(attempt)) this.#state = { kind: 'open', client: made };
          else await this.#disconnect(made);
        },
        () => {
          if (this.#isCurrent(attempt)) this.#state = { kind: 'idle' };
        },
      )
      .finally(() => this.#unsettled.delete(settled));
    this.#unsettled.add(settled);
    return attempt;
  }

  #disconnect(client: Client): Promise<void> {
    return this.#steps.dispose((signal) => this.#steps.disconnect(client, signal));
  }

  async #join(attempt: Connecting<Client>, signal: AbortSignal): Promise<Client> {
    attempt.waiters++;
    try {
      return await boundedCall(() => attempt.client, { signal });
    } finally {
      attempt.waiters--;
      if (attempt.waiters === 0 && this.#isCurrent(attempt)) {
        this.#state = { kind: 'idle' };
        attempt.controller.abort(signal.reason);
      }
    }
  }

  #isCurrent(attempt: Connecting<Client>): boolean {
    return this.#state.kind === 'connecting' && this.#state.attempt === attempt;
  }
}

interface Entry {
  /** The first tool that asked for the client. */
  readonly owner: NamedTool;
  readonly connection: Connection<unknown>;
}

/** The connections of one scope: a factory's, an instance's or a lease's. One for each `connect` function. */
export class Connections {
  readonly #entries = new Map<AnyTool['connect'], Entry>();
  readonly #dispose: DisposeWithTimeout;

  constructor(dispose: DisposeWithTimeout) {
    this.#dispose = dispose;
  }

  /** The connection of a tool. It connects when its client is first asked for. */
  of(owner: NamedTool): Connection<unknown> {
    const { tool } = owner;
    const known = this.#entries.get(tool.connect);
    if (known !== undefined) return known.connection;
    const connection = new Connection<unknown>({
      connect: (context) => tool.connect(context),
      disconnect: (client, signal) => tool.disconnect?.(client, { signal }),
      dispose: (dispose) => this.#dispose(owner, dispose),
    });
    this.#entries.set(tool.connect, { owner, connection });
    return connection;
  }

  /** Connects these tools, in parallel. Rejects with what `failure` makes of the first error. */
  async open(
    tools: readonly NamedTool[],
    context: ConnectContext,
    failure: (owner: NamedTool, error: unknown) => Error,
  ): Promise<void> {
    await Promise.all(
      tools.map((owner) =>
        this.of(owner)
          .get(context)
          .catch((error: unknown) => {
            throw context.signal.aborted ? context.signal.reason : failure(owner, error);
          }),
      ),
    );
  }

  /** Calls `use` for every open client, in parallel. */
  async each(use: (owner: NamedTool, client: unknown) => unknown): Promise<void> {
    await Promise.all(
      [...this.#entries.values()].map(({ owner, connection }) =>
        connection.whenOpen(async (client) => use(owner, client)),
      ),
    );
  }

  /** Closes every connection. Never rejects. */
  async close(reason: unknown): Promise<void> {
    await Promise.all([...this.#entries.values()].map(({ connection }) => connection.close(reason)));
  }
}

/** The errors of ended sessions, as opposed to errors that only look like them. */
const ends = /* @__PURE__ */ new WeakSet<WeakKey>();

/** Whether this is the error with which calls of some session reject because it has ended. */
export const isSessionEnd = (error: unknown): boolean =>
  typeof error === 'object' && error !== null && ends.has(error);

/** What a session takes from its instance. */
export interface SessionDependencies {
  readonly source: string;
  readonly instanceId: number;
  /** The clients of the factory. */
  readonly shared: Connections;
  /** The clients of the instance, which the next session uses too. */
  readonly instance: Connections;
  readonly dispose: DisposeWithTimeout;
}

/**
 * One task's time on an instance.
 *
 * Invariants:
 * - Once it has ended, it returns no client and starts no call: a tool manager that was kept rejects.
 * - In the step in which it ends, running calls are aborted and the task's own clients are disconnected.
 */
export class TaskSession {
  readonly instanceId: number;
  readonly task: TaskIds;
  readonly #dependencies: SessionDependencies;
  readonly #own: Connections;
  /** Aborts when the session ends, with the error that a late call gets. */
  readonly ended = new LazySignal();
  /** Running host code on clients of the instance. */
  readonly #running = new Set<Promise<unknown>>();

  constructor(dependencies: SessionDependencies, task: TaskIds) {
    this.instanceId = dependencies.instanceId;
    this.task = task;
    this.#dependencies = dependencies;
    this.#own = new Connections(dependencies.dispose);
  }

  /** The client of a tool, if it is connected. */
  openClient(owner: NamedTool): { readonly client: unknown } | undefined {
    const { shared, instance } = this.#dependencies;
    const scope = scopeOf(owner.tool);
    const clients = scope === 'shared' ? shared : scope === 'instance' ? instance : this.#own;
    return clients.of(owner).whenOpen((client) => ({ client }));
  }

  /** The client of a tool. */
  client(owner: NamedTool, signal: AbortSignal): Promise<unknown> {
    const { instanceId } = this;
    const { shared, instance } = this.#dependencies;
    const { taskId } = this.task;
    switch (scopeOf(owner.tool)) {
      case 'shared':
        return shared.of(owner).get({ instanceId, signal });
      case 'instance':
        return instance.of(owner).get({ instanceId, signal });
      case 'task':
        return this.#own.of(owner).get({ instanceId, signal, ...(taskId === undefined ? {} : { taskId }) });
    }
  }

  /** Registers a started call of host code. */
  track({ tool }: NamedTool, running: PromiseLike<unknown>): void {
    // A shared client belongs to no task, and a task's own ends with it: only the instance's serve the next task.
    if (scopeOf(tool) !== 'instance') return;
    const remove = (): void => {
      this.#running.delete(settled);
    };
    const settled: Promise<void> = Promise.resolve(running).then(remove, remove);
    this.#running.add(settled);
  }

  /** Ends the session: rejects, aborts, and disconnects the task's own clients. Never rejects itself. */
  end(): Promise<void> {
    if (!this.ended.aborted) {
      const end = new LeaseReleasedError(this.#dependencies.source, this.instanceId);
      ends.add(end);
      this.ended.fire(end);
    }
    return this.#own.close(this.ended.reason);
  }

  /** Settles once none of its calls runs on a client of the instance, which may be never. Never rejects. */
  async quiet(): Promise<void> {
    await Promise.all(this.#running);
  }
}

/** The tools of one scope in several sets. */
export function toolsOfScope(sets: readonly ToolSet[], scope: ToolScope): readonly NamedTool[] {
  return sets.flatMap((set) =>
    Object.entries(set)
      .filter(([, tool]) => scopeOf(tool) === scope)
      .map(([name, tool]) => ({ name, tool })),
  );
}

/** Rejects tools that share a client but would treat it differently. */
export function checkSharedClients(sets: readonly ToolSet[]): void {
  for (const scope of ['shared', 'instance', 'task'] as const) {
    const first = new Map<AnyTool['connect'], NamedTool>();
    for (const owner of toolsOfScope(sets, scope)) {
      const other = first.get(owner.tool.connect) ?? owner;
      first.set(owner.tool.connect, other);
      for (const option of ['disconnect', 'reset', 'check'] as const) {
        if (owner.tool[option] === other.tool[option]) continue;
        throw new TypeError(
          `Tools ${other.name} and ${owner.name} have the same \`connect\` and so share one client, but their \`${option}\` differs`,
        );
      }
    }
  }
}
