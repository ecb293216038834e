import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js';
import { StreamableHTTPServerTransport } from '@modelcontextprotocol/sdk/server/streamableHttp.js';
import { z } from 'zod';

/** An MCP server whose only tool searches with the stub, and says in words what that answers. */
function toolServer(url: string, key: string): McpServer {
  const server = new McpServer({ name: 'tools', version: '1.0.0' });
  server.registerTool('search', { inputSchema: { query: z.string() } }, async ({ query }, { signal }) => {
    const body = JSON.stringify({ q: query });
    const response = await fetch(`${url}/search`, {
      method: 'POST',
      headers: { 'x-api-key': key },
      body,
      signal,
    });
    const text = `${response.status} ${await response.text()}`;
    return { content: [{ type: 'text', text }], isError: !response.ok };
  });
  return server;
}

/** Serves it over HTTP, with a session for each client. `url` and `key` are those of the stub of Serper. */
export async function startToolServer(url: string, key: string) {
  const sessions = new Map<string, StreamableHTTPServerTransport>();
  const http = createServer(async (request, response) => {
    const known = sessions.get(`${request.headers['mcp-session-id']}`);
    if (known !== undefined) return known.handleRequest(request, response);
    const transport: StreamableHTTPServerTransport = new StreamableHTTPServerTransport({
      sessionIdGenerator: randomUUID,
      onsessioninitialized: (id) => void sessions.set(id, transport),
      onsessionclosed: (id) => void sessions.delete(id),
    });
    await toolServer(url, key).connect(transport);
    return transport.handleRequest(request, response);
  });
  await once(http.listen(0, '127.0.0.1'), 'listening');
  const stop = () => {
    http.closeAllConnections();
    http.close();
  };
  return { url: `http://127.0.0.1:${(http.address() as AddressInfo).port}/mcp`, sessions, stop };
}
