/**
 * LangGraph: a ReAct agent with a tool; the model and the tool are behind gates.
 *
 *     const { manager, answer } = createResearch({ llm: { url, keys }, search: { url, keys } });
 *     await manager.run('task-1', (context) => answer(context, 'Why do glaciers look blue?'));
 */
import { tool } from '@langchain/core/tools';
import { createReactAgent } from '@langchain/langgraph/prebuilt';
import { ChatOpenAI } from '@langchain/openai';
import {
  apiKeyHeader,
  bearer,
  createPipelineManager,
  expectOk,
  openAiPreset,
  type RequestContext,
  ServiceGate,
} from 'pipeline-pool';
import { z } from 'zod';

type Service = { readonly url: string; readonly keys: readonly string[] };
type Context = RequestContext<string[]>;

/** The gates retry, so LangChain need not. */
export function createResearch(given: { llm: Service; search: Service }) {
  const llm = new ServiceGate({ name: 'llm', ...openAiPreset(), keys: given.llm.keys, maxConcurrent: 4 });
  const search = new ServiceGate({ name: 'search', keys: given.search.keys, maxConcurrent: 2 });
  const searchFetch = search.fetch({ authorize: apiKeyHeader('x-api-key') });
  const configuration = { baseURL: given.llm.url, fetch: llm.fetch({ authorize: bearer }) };
  const model = new ChatOpenAI({ model: 'any', apiKey: 'unused', maxRetries: 0, configuration });
  const reset = (found: string[]) => void found.splice(0);
  const manager = createPipelineManager({ config: { poolSize: 10 }, create: (): string[] => [], reset });

  const searchFor = async ({ pipeline: found, signal }: Context, query: string) => {
    const init = { method: 'POST', body: JSON.stringify({ q: query }), signal };
    const response = await expectOk(await searchFetch(`${given.search.url}/search`, init));
    found.push(await response.text());
    return found.at(-1);
  };

  const agentOf = (context: Context) => {
    const schema = z.object({ query: z.string() });
    const run = ({ query }: { query: string }) => searchFor(context, query);
    const settings = { name: 'search', description: 'Searches the web', schema };
    return createReactAgent({ llm: model, tools: [tool(run, settings)] });
  };

  async function answer(context: Context, question: string) {
    const { signal, pipeline: found } = context;
    const { messages } = await agentOf(context).invoke({ messages: [['user', question]] }, { signal });
    return { text: messages.at(-1)?.text ?? '', found: [...found] };
  }

  async function* stream(context: Context, question: string) {
    const settings = { signal: context.signal, streamMode: 'messages' as const };
    const parts = await agentOf(context).stream({ messages: [['user', question]] }, settings);
    for await (const [{ type, text }] of parts) if (type === 'ai' && text !== '') yield text;
  }

  return { llm, search, manager, answer, stream };
}
