/**
 * MCP servers as tools: each pipeline instance has its own server processes.
 *
 *     npx tsx examples/mcp.ts
 *
 * Two concurrent tasks remember different things, each in its own memory server. Between tasks the servers stay and their
 * memory is cleared. At the end every process is gone, whatever state it was in.
 */
import { mkdtemp, rm } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { StdioClientTransport } from '@modelcontextprotocol/sdk/client/stdio.js';
import { defineTool, defineTools, PipelinePool, pipelineFactory, type Tool } from 'pipeline-pool';

/** How a server is started. */
export interface McpCommand {
  readonly command: string;
  readonly args: readonly string[];
  /** The environment of the server; `home` is its own directory, deleted with it. */
  readonly env?: (home: string) => Record<string, string>;
}

/** Milliseconds that a server has to exit by itself after its input has ended. */
const GRACE_MS = 1_000;
/** The timeout of the tool bounds a call; the SDK would give up after a minute. */
const NO_TIMEOUT = { timeout: 2 ** 31 - 1 };

/** Keeps the process id: the SDK drops it as soon as it starts to close. */
class Transport extends StdioClientTransport {
  startedPid: number | null = null;

  override async start(): Promise<void> {
    await super.start();
    this.startedPid = this.pid;
  }
}

/** A running server and its client. */
export class McpServer {
  readonly home: string;
  readonly #client = new Client({ name: 'pipeline-pool-example', version: '1.0.0' });
  readonly #transport: Transport;
  readonly #exited: Promise<void>;
  #hasExited = false;

  private constructor(home: string, { command, args, env = () => ({}) }: McpCommand) {
    this.home = home;
    this.#transport = new Transport({
      command,
      args: [...args],
      env: env(home),
      stderr: 'ignore',
    });
    this.#exited = new Promise((resolve) => {
      this.#client.onclose = () => {
        this.#hasExited = true;
        resolve();
      };
    });
  }

  /** Starts a server and waits until it is ready. If that fails, or `signal` aborts, the process is gone. */
  static async start(command: McpCommand, signal: AbortSignal): Promise<McpServer> {
    const server = new McpServer(await mkdtemp(join(tmpdir(), 'mcp-')), command);
    try {
      await server.#client.connect(server.#transport, { signal, ...NO_TIMEOUT });
      return server;
    } catch (error) {
      await server.stop();
      throw error;
    }
  }

  get pid(): number | null {
    return this.#transport.startedPid;
  }

  async list() {
    return (await this.#client.listTools()).tools;
  }

  /** Calls one of the server's tools and returns its text; a result marked as an error is thrown. */
  async call(name: string, input: Record<string, unknown>, signal: AbortSignal): Promise<string> {
    const result = await this.#client.callTool({ name, arguments: input }, undefined, {
      signal,
      ...NO_TIMEOUT,
    });
    const parts = result.content as { readonly type: string; readonly text?: string }[];
    const text = parts.map((part) => part.text ?? `[${part.type}]`).join('\n');
    if (result.isError) throw new Error(text);
    return text;
  }

  async ping(signal: AbortSignal): Promise<boolean> {
    await this.#client.ping({ signal });
    return true;
  }

  /** Ends the server, by force if it hangs. Settles when the process is gone. */
  async stop(): Promise<void> {
    if (this.pid !== null && !this.#hasExited) {
      const force = setTimeout(() => this.#kill(), GRACE_MS);
      this.#client.close().catch(() => {});
      await this.#exited;
      clearTimeout(force);
    }
    await rm(this.home, { recursive: true, force: true });
  }

  #kill(): void {
    try {
      if (this.pid !== null && !this.#hasExited) process.kill(this.pid, 'SIGKILL');
    } catch {
      // It exited at this moment.
    }
  }
}

/** The tools that an MCP server lists; `clear` removes what a task has left on it. */
export async function mcpTools(
  command: McpCommand,
  clear: (server: McpServer) => Promise<void> = async () => {},
): Promise<Record<string, Tool<McpServer, Record<string, unknown>, string>>> {
  // One `connect` for all of them: the tools of a server share its process.
  const shared = {
    connect: ({ signal }: { readonly signal: AbortSignal }) => McpServer.start(command, signal),
    disconnect: (server: McpServer) => server.stop(),
    check: (server: McpServer, { signal }: { readonly signal: AbortSignal }) => server.ping(signal),
    // A server that died during a task must not be reused: its instance is replaced.
    reset: async (server: McpServer, { signal }: { readonly signal: AbortSignal }) => {
      await clear(server);
      await server.ping(signal);
    },
  };
  // All instances have the same tools, so they are listed once.
  const server = await McpServer.start(command, AbortSignal.timeout(60_000));
  try {
    const listed = await server.list();
    return Object.fromEntries(
      listed.map(({ name, description, inputSchema }) => [
        name,
        defineTool({
          ...shared,
          call: (client: McpServer, input: Record<string, unknown>, { signal }) =>
            client.call(name, input, signal),
          timeoutMs: 60_000,
          inputSchema,
          ...(description === undefined ? {} : { description }),
        }),
      ]),
    );
  } finally {
    await server.stop();
  }
}

/** A server installed by npm and started directly: nothing is downloaded at the start. */
export function installedServer(name: string, env?: McpCommand['env']): McpCommand {
  const require = createRequire(import.meta.url);
  const manifest = require.resolve(`${name}/package.json`);
  const [bin] = Object.values<string>(require(manifest).bin);
  if (bin === undefined) throw new Error(`${name} has no command to start`);
  const args = [join(dirname(manifest), bin)];
  return { command: process.execPath, args, ...(env === undefined ? {} : { env }) };
}

const memoryFile = (home: string): string => join(home, 'memory.jsonl');

/** The tools of two servers: one that remembers, and one that shows what servers can do. */
export async function exampleTools() {
  const memory = installedServer('@modelcontextprotocol/server-memory', (home) => ({
    MEMORY_FILE_PATH: memoryFile(home),
  }));
  return defineTools({
    ...(await mcpTools(memory, ({ home }) => rm(memoryFile(home), { force: true }))),
    ...(await mcpTools(installedServer('@modelcontextprotocol/server-everything'))),
  });
}

async function main(): Promise<void> {
  const factory = pipelineFactory({ mainAgent: await exampleTools() });
  const pool = new PipelinePool({ size: 2, ...factory });
  const research = (taskId: string) =>
    pool.use(
      async ({ mainAgentToolManager }, { instanceId }) => {
        const note = { name: taskId, entityType: 'task', observations: [`seen by ${taskId}`] };
        await mainAgentToolManager.answer('create_entities', { entities: [note] });
        const memory = await mainAgentToolManager.answer('read_graph');
        console.log(
          `${taskId} on instance ${instanceId} remembers ${JSON.stringify(JSON.parse(memory).entities)}`,
        );
      },
      { taskId },
    );
  await Promise.all(['task-1', 'task-2', 'task-3', 'task-4'].map(research));
  await pool.close();
  await factory.close();
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) await main();
