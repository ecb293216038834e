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
interface Connecting {
  readonly controller: AbortController;
  readonly client: Promise<unknown>;
  waiters: number;
}

type State =
  | { readonly kind: 'idle' }
  | { readonly kind: 'connecting'; readonly attempt: Connecting }
  | { readonly kind: 'open'; readonly client: unknown }
  | { readonly kind: 'closed'; readonly reason: unknown };

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
export class Connection {
  /** The first tool that asked for the client. */
  readonly owner: NamedTool;
  readonly #dispose: DisposeWithTimeout;
  /** Attempts to connect that have not settled, abandoned ones included. They never reject. */
  readonly #unsettled = new Set<Promise<void>>();
  #state: State = { kind: 'idle' };
  #closed: Promise<void> | undefined;

  constructor(owner: NamedTool, dispose: DisposeWithTimeout) {
    this.owner = owner;
    this.#dispose = dispose;
  }

  /** The client: open, being created, or created now. Rejects as `connect` does, or with `context.signal.reason`. */
  get(context: ConnectContext): Promise<unknown> {
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

  /** What holds the client, if it is open. */
  get open(): { readonly client: unknown } | undefined {
    return this.#state.kind === 'open' ? this.#state : undefined;
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
    const unsettled = [...this.#unsettled].map((attempt) => this.#dispose(this.owner, () => attempt));
    await Promise.all(state.kind === 'open' ? [this.#disconnect(state.client), ...unsettled] : unsettled);
  }

  #connect(context: ConnectContext): Connecting {
    const controller = new AbortController();
    const { signal } = controller;
    const connecting = (async () => this.owner.tool.connect({ ...context, signal }))();
    // Waiters do not wait for code that ignores its signal.
    const client = boundedCall(() => connecting, { signal });
    const attempt: Connecting = { controller, client, waiters: 0 };
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

  #disconnect(client: unknown): Promise<void> {
    return this.#dispose(this.owner, (signal) => this.owner.tool.disconnect?.(client, { signal }));
  }

  async #join(attempt: Connecting, signal: AbortSignal): Promise<unknown> {
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

  #isCurrent(attempt: Connecting): boolean {
    return this.#state.kind === 'connecting' && this.#state.attempt === attempt;
  }
}

/** The connections of one scope: a factory's, an instance's or a lease's. One for each `connect` function. */
export class Connections {
  readonly #connections = new Map<AnyTool['connect'], Connection>();
  readonly #dispose: DisposeWithTimeout;

  constructor(dispose: DisposeWithTimeout) {
    this.#dispose = dispose;
  }

  /** The connection of a tool. It connects when its client is first asked for. */
  of(owner: NamedTool): Connection {
    const { connect } = owner.tool;
    let connection = this.#connections.get(connect);
    if (connection === undefined) {
      connection = new Connection(owner, this.#dispose);
      this.#connections.set(connect, connection);
    }
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
      [...this.#connections.values()].map(async ({ owner, open }) => open && use(owner, open.client)),
    );
  }

  /** Closes every connection. Never rejects. */
  async close(reason: unknown): Promise<void> {
    await Promise.all([...this.#connections.values()].map((connection) => connection.close(reason)));
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
  readonly task: TaskIds;
  /** The clients of the factory, of the instance, and of this session alone. */
  readonly clients: Readonly<Record<ToolScope, Connections>>;
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
  readonly #source: string;
  readonly #clients: Readonly<Record<ToolScope, Connections>>;
  /** Aborts when the session ends, with the error that a late call gets. */
  readonly ended = new LazySignal();
  /** Running host code on clients of the instance. */
  readonly #running = new Set<Promise<unknown>>();

  constructor({ source, instanceId, task, clients }: SessionDependencies) {
    this.instanceId = instanceId;
    this.task = task;
    this.#source = source;
    this.#clients = clients;
  }

  /** What holds the client of a tool, if it is connected. */
  openClient(owner: NamedTool): { readonly client: unknown } | undefined {
    return this.#connection(owner).open;
  }

  /** The client of a tool. */
  client(owner: NamedTool, signal: AbortSignal): Promise<unknown> {
    const { instanceId } = this;
    const { taskId } = this.task;
    // Only a client of scope `task` can be not open yet.
    const context = { instanceId, signal, ...(taskId === undefined ? {} : { taskId }) };
    return this.#connection(owner).get(context);
  }

  #connection(owner: NamedTool): Connection {
    return this.#clients[scopeOf(owner.tool)].of(owner);
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
      const end = new LeaseReleasedError(this.#source, this.instanceId);
      ends.add(end);
      this.ended.fire(end);
    }
    return this.#clients.task.close(this.ended.reason);
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
