/**
 * The AI SDK: `generateText` and `streamText` with a tool; the model and the tool are behind gates.
 *
 *     const { manager, answer } = createResearch({ llm: { url, keys }, search: { url, keys } });
 *     await manager.run('task-1', (context) => answer(context, 'Why do glaciers look blue?'));
 */
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { generateText, stepCountIs, streamText, tool } from 'ai';
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

/** The gates retry, so the AI SDK need not. */
export function createResearch(given: { llm: Service; search: Service }) {
  const llm = new ServiceGate({ name: 'llm', ...openAiPreset(), keys: given.llm.keys, maxConcurrent: 4 });
  const search = new ServiceGate({ name: 'search', keys: given.search.keys, maxConcurrent: 2 });
  const searchFetch = search.fetch({ authorize: apiKeyHeader('x-api-key') });
  const llmFetch = llm.fetch({ authorize: bearer });
  const model = createOpenAICompatible({ name: 'llm', baseURL: given.llm.url, fetch: llmFetch })('any');
  const reset = (found: string[]) => void found.splice(0);
  const manager = createPipelineManager({ config: { poolSize: 10 }, create: (): string[] => [], reset });

  const searchFor = async ({ pipeline: found, signal }: Context, query: string) => {
    const init = { method: 'POST', body: JSON.stringify({ q: query }), signal };
    const response = await expectOk(await searchFetch(`${given.search.url}/search`, init));
    found.push(await response.text());
    return found.at(-1);
  };

  const settingsOf = (context: Context, prompt: string) => {
    const inputSchema = z.object({ query: z.string() });
    const execute = ({ query }: { query: string }) => searchFor(context, query);
    const tools = { search: tool({ description: 'Searches the web', inputSchema, execute }) };
    return { model, prompt, tools, maxRetries: 0, abortSignal: context.signal, stopWhen: stepCountIs(5) };
  };

  async function answer(context: Context, prompt: string) {
    const { text } = await generateText(settingsOf(context, prompt));
    return { text, found: [...context.pipeline] };
  }

  async function* stream(context: Context, prompt: string) {
    // `textStream` ends without an error when the model fails: only `fullStream` has it.
    const { fullStream } = streamText({ ...settingsOf(context, prompt), onError: () => {} });
    for await (const part of fullStream) {
      if (part.type === 'error') throw part.error;
      if (part.type === 'text-delta') yield part.text;
    }
  }

  return { llm, search, manager, answer, stream };
}
