import type { Sandbox } from '@e2b/code-interpreter';
import {
  type ConnectContext,
  defineTools,
  e2bPreset,
  jinaPreset,
  type LifecycleHooks,
  openAiPreset,
  type RequestContext,
  ServiceGate,
  type ServiceGateOptions,
  serperPreset,
  type ToolManager,
} from 'pipeline-pool';
import type { ServiceSettings } from '../host-clients.js';
import type { Clients } from './clients.js';

/** Options of the gates that differ from the smallest plans. */
export type GateSettings = Partial<
  Record<
    'llm' | 'serper' | 'jina' | 'e2b',
    Partial<Omit<ServiceGateOptions, 'name' | 'adaptive' | 'limiter'>>
  >
>;

/** One gate for each service, shared by all requests. */
export function buildGates(services: ServiceSettings, settings: GateSettings, hooks: LifecycleHooks) {
  const cache = { max: 1_000, maxBytes: 64 * 1024 ** 2, ttlMs: 600_000 };
  return {
    llm: new ServiceGate({ name: 'llm', ...openAiPreset(), maxConcurrent: 8, ...settings.llm, hooks }),
    serper: new ServiceGate({
      name: 'serper',
      ...serperPreset(),
      keys: services.serper.keys,
      cache,
      ...settings.serper,
      hooks,
    }),
    jina: new ServiceGate({
      name: 'jina',
      ...jinaPreset(),
      keys: services.jina.keys,
      cache,
      ...settings.jina,
      hooks,
    }),
    e2b: new ServiceGate({
      name: 'e2b',
      ...e2bPreset(),
      keys: services.e2b.keys,
      ...settings.e2b,
      hooks,
    }),
  };
}

export type Gates = ReturnType<typeof buildGates>;

/** The tools of one request's agent. */
export function buildTools(clients: Clients, gates: Gates) {
  return defineTools({
    search: {
      scope: 'shared',
      connect: () => clients,
      gate: gates.serper,
      cacheKey: ({ query }: { query: string }) => query,
      call: ({ search }, { query }: { query: string }, attempt) => search(query, attempt),
    },
    read: {
      scope: 'shared',
      connect: () => clients,
      gate: gates.jina,
      cacheKey: ({ url }: { url: string }) => url,
      call: ({ read }, { url }: { url: string }, attempt) => read(url, attempt),
    },
    python: {
      // One sandbox per request, started on first use, killed at the end of its lease.
      scope: 'task',
      connect: ({ taskId = '', signal }: ConnectContext): Promise<Sandbox> =>
        gates.e2b.run((attempt) => clients.startSandbox(taskId, attempt), { signal }),
      disconnect: (sandbox) => sandbox.kill(),
      call: async (sandbox, { code }: { code: string }) => (await sandbox.runCode(code)).logs.stdout.join(''),
    },
  });
}

/** The events that a client receives. */
export type Progress =
  | { readonly event: 'step'; readonly step: 'plan' | 'search' | 'read' | 'calculate' | 'answer' }
  | { readonly event: 'token'; readonly text: string }
  | { readonly event: 'done'; readonly sources: readonly string[] };

interface ResearchPipeline {
  readonly mainAgentToolManager: ToolManager<ReturnType<typeof buildTools>>;
}

/** Plans, searches, reads, calculates, and streams the answer. Gates and tools take signal and ids from the request. */
export async function* research(
  { pipeline }: RequestContext<ResearchPipeline>,
  question: string,
  clients: Clients,
  { llm }: Gates,
): AsyncGenerator<Progress, void> {
  const tools = pipeline.mainAgentToolManager;
  async function* say(prompt: string): AsyncGenerator<string> {
    for await (const { choices } of llm.stream((attempt) => clients.say(prompt, attempt))) {
      const text = choices[0]?.delta.content;
      if (text) yield text;
    }
  }

  yield { event: 'step', step: 'plan' };
  let plan = '';
  for await (const text of say(`What would you search for, to answer: ${question}`)) plan += text;

  yield { event: 'step', step: 'search' };
  const found = await tools.callAll(
    [question, plan].map((query) => ({ name: 'search', input: { query } }) as const),
  );
  const links = found.flatMap((result) => (result.status === 'fulfilled' ? result.value : []));
  const sources = [...new Set(links.map(({ link }) => link))].slice(0, 3);

  yield { event: 'step', step: 'read' };
  const pages = await Promise.all(sources.map((url) => tools.answer('read', { url })));

  yield { event: 'step', step: 'calculate' };
  const size = await tools.answer('python', { code: `print(${pages.join('').length})` });

  yield { event: 'step', step: 'answer' };
  const reading = pages.map((page) => page.slice(0, 2_000)).join('\n');
  for await (const text of say(`Answer from ${size} characters read: ${question}\n${reading}`)) {
    yield { event: 'token', text };
  }
  yield { event: 'done', sources };
}
