/**
 * A complete host application: a few concurrent questions, each answered by an agent whose model searches (Serper), reads
 * (Jina) and calculates (E2B), with one gate for each service.
 *
 *     npx tsx examples/host.ts ["a question" …]
 *
 * It runs against stub services on loopback, or the real ones that the environment names:
 * BASE_URL and API_KEY (and MODEL) for the LLM, SERPER_API_KEY, JINA_API_KEY (and their _URL), E2B_API_KEY. Several keys of one
 * service are separated by commas. PORT serves its health; after SIGTERM, running requests may take another DRAIN_MS.
 */
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import type OpenAI from 'openai';
import {
  type ConnectContext,
  createPipelineManager,
  defineTools,
  e2bPreset,
  healthHandler,
  jinaPreset,
  LifecycleHooks,
  logTo,
  openAiPreset,
  pipelineFactory,
  ServiceGate,
  serperPreset,
  type ToolManager,
} from 'pipeline-pool';
import { startStubServices } from 'pipeline-pool/testing';
import { z } from 'zod';
import { connectClients, serviceSettings } from './host-clients.js';
import { TaskSandboxes } from './host-sandboxes.js';
import { scriptedModel } from './scripted-model.js';

const { PORT = '0', DRAIN_MS = '15000' } = process.env;
const MAX_STEPS = 12;
const QUESTIONS = ['Why do glaciers look blue?', 'How old is the oldest tree?', 'How deep is the sea?'];

// With the limits of the smallest plans.
const stubs = await startStubServices({
  llm: { reply: scriptedModel, latencyMs: 150, maxNumSeqs: 8 },
  serper: { latencyMs: 200, rate: { limit: 50, perMs: 1_000 } },
  jina: { latencyMs: 300, rate: { limit: 500, perMs: 60_000 } },
  e2b: { latencyMs: 300, maxSandboxes: 20, createRate: { limit: 1, perMs: 1_000 } },
});
const services = serviceSettings(process.env, stubs);
const clients = connectClients(services);

// One gate for each service, shared by all tasks. They all emit to the same hooks.
const hooks = new LifecycleHooks();
const cache = { max: 1_000, ttlMs: 600_000 };
const gates = {
  llm: new ServiceGate({ name: 'llm', ...openAiPreset(), maxConcurrent: 8, hooks }),
  serper: new ServiceGate({ name: 'serper', ...serperPreset(), keys: services.serper.keys, cache, hooks }),
  jina: new ServiceGate({ name: 'jina', ...jinaPreset(), keys: services.jina.keys, cache, hooks }),
  e2b: new ServiceGate({ name: 'e2b', ...e2bPreset(), keys: services.e2b.keys, hooks }),
};

const tools = defineTools({
  search: {
    description: 'Searches the web; gives titles, links and snippets.',
    schema: z.object({ query: z.string().min(1) }),
    scope: 'shared',
    connect: () => clients,
    gate: gates.serper,
    cacheKey: ({ query }) => query,
    call: ({ search }, { query }, attempt) => search(query, attempt),
  },
  read: {
    description: 'Gives the text of a web page.',
    schema: z.object({ url: z.string().min(1) }),
    scope: 'shared',
    connect: () => clients,
    gate: gates.jina,
    cacheKey: ({ url }) => url,
    call: ({ read }, { url }, attempt) => read(url, attempt),
  },
  python: {
    description: 'Runs a Python program; gives what it printed.',
    schema: z.object({ code: z.string().min(1) }),
    scope: 'task',
    connect: ({ taskId = '' }: ConnectContext) => new TaskSandboxes(services.e2b, taskId),
    disconnect: (sandboxes) => sandboxes.sweep(),
    gate: gates.e2b,
    // The sandbox lives within this call, so the permit of the call counts it.
    call: (sandboxes, { code }, attempt) => sandboxes.runPython(code, attempt),
  },
});

/** The agent: its model calls tools until it answers. Gates and tools take signal and ids from the current request. */
async function answer(agent: ToolManager<typeof tools>, question: string): Promise<string> {
  const messages: OpenAI.ChatCompletionMessageParam[] = [{ role: 'user', content: question }];
  for (let step = 0; step < MAX_STEPS; step++) {
    const prompt = { model: services.model, messages, tools: agent.definitions() };
    const { choices } = await gates.llm.run(({ signal }) =>
      clients.openai.chat.completions.create(prompt, { signal }),
    );
    const said = choices[0]?.message;
    if (!said?.tool_calls?.length) return said?.content ?? '';
    const wanted = said.tool_calls.filter((call) => call.type === 'function');
    const results = wanted.map(async ({ id, function: { name, arguments: input } }) => ({
      role: 'tool' as const,
      tool_call_id: id,
      // Text in every case: the result, or the failure.
      content: await agent.answer(name, input),
    }));
    messages.push(said, ...(await Promise.all(results)));
  }
  return `No answer after ${MAX_STEPS} steps.`;
}

logTo(hooks, console);
const factory = pipelineFactory({ mainAgent: tools, hooks });
const manager = createPipelineManager({ ...factory, gates: Object.values(gates), hooks });
const server = createServer(healthHandler(manager)).listen(Number(PORT), '127.0.0.1', () => {
  console.log(`Health: http://127.0.0.1:${(server.address() as AddressInfo).port}`);
});

const drain = (): Promise<void> => manager.shutdown({ timeoutMs: Number(DRAIN_MS) });
for (const signal of ['SIGTERM', 'SIGINT'] as const) {
  process.once(signal, () => {
    console.log(`${signal}: draining, ${manager.health().active_requests} tasks are under way.`);
    void drain();
  });
}

async function serve(taskId: string, question: string): Promise<void> {
  try {
    const text = await manager.run(taskId, ({ pipeline }) => answer(pipeline.mainAgentToolManager, question));
    console.log(`${taskId}: ${text}`);
  } catch (error) {
    process.exitCode = 1;
    console.error(`${taskId} failed: ${error}`);
  }
}

const asked = process.argv.slice(2);
const questions = asked.length > 0 ? asked : QUESTIONS;
await Promise.all(questions.map((question, i) => serve(`task-${i + 1}`, question)));

await drain();
await factory.close();
await stubs.stop();
server.close();
console.log(`Drained: ${manager.stats().pool.live} instances are left.`);
