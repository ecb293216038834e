/**
 * 40 concurrent requests through each framework, against stub services in a process of their own: how close the total time
 * comes to the bound, which is the work over the limit of the tighter service. Fails if a stub saw more calls at once than
 * its limit, or fewer calls than the work.
 *
 *     npm run bench:frameworks
 *
 * It takes three minutes, most of it waiting, and needs the machine for itself: what a busy one adds to each call counts.
 */
import type { PipelineManager, ServiceGate } from 'pipeline-pool';
import { type LlmReply, type LlmRequest, startStubServices } from 'pipeline-pool/testing';
import * as aiSdk from '../../examples/frameworks/ai-sdk/main.js';
import * as langgraph from '../../examples/frameworks/langgraph/main.js';
import * as mcp from '../../examples/frameworks/mcp/main.js';
import * as openaiAgents from '../../examples/frameworks/openai-agents/main.js';
import { machine, markdownTable } from '../bench/harness.js';
import { startToolServer } from './mcp-server.js';

const REQUESTS = 40;
/** A request searches so often, and calls the model once more. */
const SEARCHES = 3;
const LLM = { limit: 4, latencyMs: 1_000 };
const SEARCH = { limit: 2, latencyMs: 200 };
/** A slower tool, where it is the tool that sets the bound. */
const TOOL = { limit: 2, latencyMs: 1_000 };
const KEYS = ['key-one', 'key-two'];

/** A model that searches a few times, and then answers. */
function reply({ messages }: LlmRequest): LlmReply {
  if (messages.filter(({ role }) => role === 'tool').length >= SEARCHES) return 'The answer.';
  return { toolCalls: [{ name: 'search', arguments: { query: 'why?' } }] };
}

const callsMs = (calls: number, { latencyMs, limit }: typeof LLM) => (calls * latencyMs) / limit;

interface Research<P> {
  readonly manager: PipelineManager<P>;
  readonly llm?: ServiceGate;
  readonly answer: (context: never, question: string) => Promise<unknown>;
}
type Service = { readonly url: string; readonly keys: readonly string[] };

/** One row of the table. */
async function run<P>(
  name: string,
  search: typeof SEARCH,
  create: (given: { llm: Service; search: Service }) => Research<P> | Promise<Research<P>>,
): Promise<string[]> {
  await using services = await startStubServices({
    isolated: true,
    llm: { keys: KEYS, latencyMs: LLM.latencyMs, reply },
    serper: { keys: KEYS, latencyMs: search.latencyMs },
  });
  const { llm, serper } = services;
  const research = await create({
    llm: { url: llm.baseUrl, keys: KEYS },
    search: { url: serper.url, keys: KEYS },
  });
  const { manager } = research;
  const askAll = (count: number) =>
    Promise.all(
      Array.from({ length: count }, (_, i) =>
        manager.run(`task-${i}`, (context) => research.answer(context as never, `Why, ${i}?`)),
      ),
    );
  // So that all code is loaded, and all instances and connections are there, as in a service that runs.
  await manager.warmUp();
  await askAll(10);
  await services.resetStats();

  const fromMs = performance.now();
  await askAll(REQUESTS);
  const tookMs = performance.now() - fromMs;

  const [chats, searches] = [await llm.stats(), await serper.stats()];
  const hasModel = research.llm !== undefined;
  const expected = {
    chats: hasModel ? REQUESTS * (SEARCHES + 1) : 0,
    searches: REQUESTS * (hasModel ? SEARCHES : 1),
  };
  const isWithin = chats.peakInFlight <= LLM.limit && searches.peakInFlight <= search.limit;
  if (!isWithin || chats.calls !== expected.chats || searches.calls !== expected.searches)
    throw new Error(`${name}: ${JSON.stringify({ chats, searches, expected })}`);
  await manager.shutdown();

  const boundMs = Math.max(callsMs(chats.calls, LLM), callsMs(searches.calls, search));
  return [
    name,
    hasModel ? `${chats.calls}, ${chats.peakInFlight} at once` : '',
    `${searches.calls}, ${searches.peakInFlight} at once`,
    `${(boundMs / 1_000).toFixed(1)} s`,
    `${(tookMs / 1_000).toFixed(2)} s`,
    (tookMs / boundMs).toFixed(3),
  ];
}

const rows = [
  await run('LangGraph', SEARCH, langgraph.createResearch),
  await run('AI SDK', SEARCH, aiSdk.createResearch),
  await run('OpenAI Agents SDK', SEARCH, openaiAgents.createResearch),
];
let tools: Awaited<ReturnType<typeof startToolServer>> | undefined;
rows.push(
  await run('MCP', TOOL, async ({ search }) => {
    tools = await startToolServer(search.url, KEYS[0] as string);
    return mcp.createResearch(tools);
  }),
);
tools?.stop();
console.log(`${machine()}\n`);
console.log(markdownTable(['framework', 'LLM calls', 'searches', 'bound', 'took', 'ratio'], rows));
