import { Agent, createServer, request, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { text } from 'node:stream/consumers';
import type { Services } from './services.js';

/** The tools of the agent. */
export type ToolName = 'search' | 'read' | 'python';

/**
 * A server of tools on loopback, as an MCP server is one: each connection to it answers one call at a time, in order,
 * because that is how HTTP/1.1 works. Two connections are served side by side.
 */
export class ToolServer implements AsyncDisposable {
  readonly #server: Server;

  constructor(services: Services) {
    const tools: Record<ToolName, (input: string, signal: AbortSignal) => Promise<unknown>> = {
      search: (query, signal) => services.search(query, signal),
      read: (url, signal) => services.read(url, signal),
      python: (code, signal) => services.runPython(code, signal),
    };
    this.#server = createServer(async (incoming, response) => {
      const gone = new AbortController();
      response.on('close', () => gone.abort());
      try {
        const { tool, input } = JSON.parse(await text(incoming)) as { tool: ToolName; input: string };
        response.end(JSON.stringify({ result: await tools[tool](input, gone.signal) }));
      } catch (error) {
        response.statusCode = 502;
        response.end(JSON.stringify({ error: (error as Error).message }));
      }
    });
  }

  async listen(): Promise<number> {
    await new Promise<void>((resolve) => this.#server.listen(0, '127.0.0.1', resolve));
    return (this.#server.address() as AddressInfo).port;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }
}

/** One connection to the tool server, kept open: a second call waits until the first is answered. */
export class ToolConnection {
  readonly #agent = new Agent({ keepAlive: true, maxSockets: 1 });
  readonly #port: number;

  constructor(port: number) {
    this.#port = port;
  }

  /** @param onTurn called when the connection is free for this call */
  async call(
    tool: ToolName,
    input: string,
    { signal, onTurn }: { readonly signal?: AbortSignal; readonly onTurn: () => void },
  ): Promise<unknown> {
    const body = JSON.stringify({ tool, input });
    const answer = await new Promise<string>((resolve, reject) => {
      const call = request(
        { host: '127.0.0.1', port: this.#port, method: 'POST', agent: this.#agent, signal },
        (response) => text(response).then(resolve, reject),
      );
      call.on('error', reject);
      call.on('socket', onTurn);
      call.end(body);
    });
    const { result, error } = JSON.parse(answer) as { result?: unknown; error?: string };
    if (error !== undefined) throw new Error(`${tool}: ${error}`);
    return result;
  }

  close(): void {
    this.#agent.destroy();
  }
}
