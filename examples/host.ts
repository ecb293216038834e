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
import { connectClients } from './host-clients.js';

const { PORT = '0', DRAIN_MS = '15000' } = process.env;
const MAX_STEPS = 12;
const QUESTIONS = ['Why do glaciers look blue?', 'How old is the oldest tree?', 'How deep is the sea?'];

const clients = await connectClients(process.env);
const { openai, model, keys } = clients;

// One gate for each service, shared by all tasks. They all emit to the same hooks.
const hooks = new LifecycleHooks();
const cache = { max: 1_000, ttlMs: 600_000 };
const gates = {
  llm: new ServiceGate({ name: 'llm', ...openAiPreset(), maxConcurrent: 8, hooks }),
  serper: new ServiceGate({ name: 'serper', ...serperPreset(), keys: keys.serper, cache, hooks }),
  jina: new ServiceGate({ name: 'jina', ...jinaPreset(), keys: keys.jina, cache, hooks }),
  e2b: new ServiceGate({ name: 'e2b', ...e2bPreset(), keys: keys.e2b, hooks }),
};

/** The input schema of a tool with one text. */
const takes = <Name extends string>(name: Name) => ({
  inputSchema: { type: 'object', properties: { [name]: { type: 'string' } }, required: [name] },
  parse(input: unknown): Record<Name, string> {
    const value = (input as Partial<Record<Name, unknown>> | null)?.[name];
    if (typeof value === 'string' && value !== '') return { [name]: value } as Record<Name, string>;
    throw new TypeError(`"${name}" must be a text`);
  },
});

const tools = defineTools({
  search: {
    description: 'Searches the web; gives titles, links and snippets.',
    ...takes('query'),
    scope: 'shared',
    connect: () => clients,
    gate: gates.serper,
    cacheKey: ({ query }) => query,
    call: ({ search }, { query }, attempt) => search(query, attempt),
  },
  read: {
    description: 'Gives the text of a web page.',
    ...takes('url'),
    scope: 'shared',
    connect: () => clients,
    gate: gates.jina,
    cacheKey: ({ url }) => url,
    call: ({ read }, { url }, attempt) => read(url, attempt),
  },
  python: {
    description: 'Runs a Python program; gives what it printed.',
    ...takes('code'),
    scope: 'task',
    connect: ({ taskId = '' }: ConnectContext) => clients.sandboxesOf(taskId),
    disconnect: (sandboxes) => sandboxes.sweep(),
    gate: gates.e2b,
    // The sandbox lives within this call, so the permit of the call counts it.
    call: (sandboxes, { code }, attempt) => sandboxes.runPython(code, attempt),
  },
});

/** The agent: its model calls tools until it answers. */
async function answer(
  agent: ToolManager<typeof tools>,
  question: string,
  ids: { readonly taskId: string; readonly requestId: string; readonly signal: AbortSignal },
): Promise<string> {
  const messages: OpenAI.ChatCompletionMessageParam[] = [{ role: 'user', content: question }];
  for (let step = 0; step < MAX_STEPS; step++) {
    const { choices } = await gates.llm.run(
      ({ signal }) =>
        openai.chat.completions.create({ model, messages, tools: agent.definitions() }, { signal }),
      ids,
    );
    const said = choices[0]?.message;
    if (!said?.tool_calls?.length) return said?.content ?? '';
    const wanted = said.tool_calls.filter((call) => call.type === 'function');
    const results = wanted.map(async ({ id, function: { name, arguments: input } }) => ({
      role: 'tool' as const,
      tool_call_id: id,
      // Text in every case: the result, or the failure.
      content: await agent.answer(name, input, { signal: ids.signal }),
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
    const text = await manager.run(taskId, ({ pipeline, requestId, signal }) =>
      answer(pipeline.mainAgentToolManager, question, { taskId, requestId, signal }),
    );
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
await clients.close();
server.close();
console.log(`Drained: ${manager.stats().pool.live} instances are left.`);
