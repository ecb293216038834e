/**
 * MCP: a client of its own for each pipeline instance; `callTool` is behind a gate. A transport's `fetch` never is: an idle
 * client keeps a GET stream open, which would hold a permit.
 *
 *     const { manager, answer } = createResearch({ url: 'https://tools.example.com/mcp' });
 *     await manager.run('task-1', (context) => answer(context, 'Why do glaciers look blue?'));
 */
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js';
import { type Classifier, createPipelineManager, type RequestContext, ServiceGate } from 'pipeline-pool';

/** What `callTool` resolves to, a failure of the tool included. */
const textOf = (result: unknown) =>
  (result as { content: { text?: string }[] }).content.map(({ text = '' }) => text).join('\n');

/** A tool that fails says so only in words. */
const classify: Classifier = (observed) => {
  if (!('value' in observed) || Object(observed.value).isError !== true) return undefined;
  return /\b429\b/.test(textOf(observed.value)) ? 'rate-limited' : 'client-error';
};

export function createResearch({ url }: { url: string }) {
  const search = new ServiceGate({ name: 'search', maxConcurrent: 2, classify });

  const create = async ({ signal }: { signal: AbortSignal }) => {
    const client = new Client({ name: 'research', version: '1.0.0' });
    const transport = new StreamableHTTPClientTransport(new URL(url));
    await client.connect(transport, { signal });
    return { client, transport };
  };
  const manager = createPipelineManager({
    config: { poolSize: 10 },
    create,
    destroy: async ({ client, transport }) => {
      await transport.terminateSession();
      await client.close();
    },
  });

  async function answer({ pipeline }: RequestContext<Awaited<ReturnType<typeof create>>>, query: string) {
    const tool = { name: 'search', arguments: { query } };
    // The SDK would give up after a minute; the gate bounds the call.
    const timeout = 2 ** 31 - 1;
    return textOf(
      await search.run(({ signal }) => pipeline.client.callTool(tool, undefined, { signal, timeout })),
    );
  }

  return { search, manager, answer };
}
