import { type ConnectContext, Connection } from './connection.js';
import { type AnyTool, scopeOf, type ToolScope, type ToolSet } from './define-tools.js';

/** A tool under the name that it has in its set. */
export interface NamedTool {
  readonly name: string;
  readonly tool: AnyTool;
}

/** Waits until a client of this tool is gone, but not too long. Settles in every case, and never rejects. */
export type SeeOff = (made: NamedTool, farewell: (signal: AbortSignal) => unknown) => Promise<void>;

interface Place {
  readonly made: NamedTool;
  readonly connection: Connection<unknown>;
}

/** The clients of one scope: of the whole factory, of one instance or of one lease. One for each `connect` function. */
export class Connections {
  readonly #places = new Map<AnyTool['connect'], Place>();
  readonly #seeOff: SeeOff;

  constructor(seeOff: SeeOff) {
    this.#seeOff = seeOff;
  }

  /** The client's place, made when first asked for; the client itself is not. */
  of(made: NamedTool): Connection<unknown> {
    const known = this.#places.get(made.tool.connect);
    if (known !== undefined) return known.connection;
    const connection = new Connection<unknown>({
      connect: (context) => made.tool.connect(context),
      disconnect: (client, signal) => made.tool.disconnect?.(client, { signal }),
      seeOff: (farewell) => this.#seeOff(made, farewell),
    });
    this.#places.set(made.tool.connect, { made, connection });
    return connection;
  }

  /** Makes the clients of these tools, in parallel. Rejects with what the first failure is called by `failure`. */
  async open(
    tools: readonly NamedTool[],
    asked: ConnectContext,
    failure: (made: NamedTool, error: unknown) => Error,
  ): Promise<void> {
    await Promise.all(
      tools.map((made) =>
        this.of(made)
          .get(asked)
          .catch((error: unknown) => {
            throw asked.signal.aborted ? asked.signal.reason : failure(made, error);
          }),
      ),
    );
  }

  /** Calls `use` for every client that is open, with the first of its tools, all at once. */
  async each(use: (made: NamedTool, client: unknown) => unknown): Promise<void> {
    await Promise.all(
      [...this.#places.values()].map(({ made, connection }) =>
        connection.whenOpen(async (client) => use(made, client)),
      ),
    );
  }

  /** Lets every client go, for good. Never rejects. */
  async close(reason: unknown): Promise<void> {
    await Promise.all([...this.#places.values()].map(({ connection }) => connection.close(reason)));
  }
}

/** The tools of several sets that have a scope. */
export function toolsOfScope(sets: readonly ToolSet[], scope: ToolScope): readonly NamedTool[] {
  return sets.flatMap((set) =>
    Object.entries(set)
      .filter(([, tool]) => scopeOf(tool) === scope)
      .map(([name, tool]) => ({ name, tool })),
  );
}

/** Refuses tools that share a client but would treat it differently. */
export function checkSharedClients(sets: readonly ToolSet[]): void {
  for (const scope of ['shared', 'instance', 'task'] as const) {
    const first = new Map<AnyTool['connect'], NamedTool>();
    for (const made of toolsOfScope(sets, scope)) {
      const other = first.get(made.tool.connect) ?? made;
      first.set(made.tool.connect, other);
      for (const option of ['disconnect', 'reset', 'check'] as const) {
        if (made.tool[option] === other.tool[option]) continue;
        throw new TypeError(
          `Tools ${other.name} and ${made.name} have the same \`connect\` and so the same client, but another \`${option}\``,
        );
      }
    }
  }
}
