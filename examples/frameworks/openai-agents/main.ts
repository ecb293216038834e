/**
 * The OpenAI Agents SDK: an agent with a tool; the model and the tool are behind gates.
 *
 *     const { manager, answer } = createResearch({ llm: { url, keys }, search: { url, keys } });
 *     await manager.run('task-1', (context) => answer(context, 'Why do glaciers look blue?'));
 */
import { Agent, OpenAIProvider, Runner, tool } from '@openai/agents';
import OpenAI from 'openai';
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

/** The gates retry, so the SDK need not. */
export function createResearch(given: { llm: Service; search: Service }) {
  const llm = new ServiceGate({ name: 'llm', ...openAiPreset(), keys: given.llm.keys, maxConcurrent: 4 });
  const search = new ServiceGate({ name: 'search', keys: given.search.keys, maxConcurrent: 2 });
  const searchFetch = search.fetch({ authorize: apiKeyHeader('x-api-key') });
  const llmFetch = llm.fetch({ authorize: bearer });
  const client = new OpenAI({ baseURL: given.llm.url, apiKey: 'unused', maxRetries: 0, fetch: llmFetch });
  const modelProvider = new OpenAIProvider({ openAIClient: client });
  const runner = new Runner({ modelProvider, model: 'any', tracingDisabled: true });
  const reset = (found: string[]) => void found.splice(0);
  const manager = createPipelineManager({ config: { poolSize: 10 }, create: (): string[] => [], reset });

  const searchFor = async ({ pipeline: found, signal }: Context, query: string) => {
    const init = { method: 'POST', body: JSON.stringify({ q: query }), signal };
    const response = await expectOk(await searchFetch(`${given.search.url}/search`, init));
    found.push(await response.text());
    return found.at(-1);
  };

  const agentOf = (context: Context) => {
    const execute = ({ query }: { query: string }) => searchFor(context, query);
    const settings = { description: 'Searches the web', parameters: z.object({ query: z.string() }) };
    return new Agent({ name: 'Researcher', tools: [tool({ name: 'search', ...settings, execute })] });
  };

  async function answer(context: Context, question: string) {
    const { signal, pipeline: found } = context;
    const { finalOutput } = await runner.run(agentOf(context), question, { signal });
    return { text: finalOutput ?? '', found: [...found] };
  }

  async function* stream(context: Context, question: string) {
    const settings = { signal: context.signal, stream: true as const };
    const result = await runner.run(agentOf(context), question, settings);
    yield* result.toTextStream();
    await result.completed;
  }

  return { llm, search, manager, answer, stream };
}
