import { setImmediate as nextTurn } from 'node:timers/promises';
import type OpenAI from 'openai';
import {
  createPipelineManager,
  defineTools,
  type LifecycleEvents,
  LifecycleHooks,
  PRESETS,
  pipelineFactory,
  type ToolManager,
  type ToolSet,
} from 'pipeline-pool';
import { gatesFor, type Margins, type Pace, TightServices } from './tight-services.js';

export interface LoadOptions {
  readonly requests: number;
  readonly pace: Pace;
  /** With gates, whose windows are so much longer than the services'; left out, there are none. */
  readonly margins?: Margins;
  readonly sdkRetries?: boolean;
  /** Where all events are emitted. */
  readonly hooks?: LifecycleHooks;
}

/**
 * A research team for each request, all requests at once: two researchers side by side, each of whom searches twice at
 * once, reads, and reports; then a main agent that calculates and answers. All of it as the model decides. Five
 * instances, ten requests admitted at a time.
 */
export async function runLoad({
  requests,
  pace,
  margins,
  sdkRetries = false,
  hooks = new LifecycleHooks(),
}: LoadOptions) {
  await using services = await TightServices.start(pace, sdkRetries);
  const gates = margins === undefined ? undefined : gatesFor(pace, margins, hooks);
  const held = { serper: 0, jina: 0, e2b: 0 };
  const count = ({ source, reason }: LifecycleEvents['call:throttled']): void => {
    if (reason === 'rate' && source in held) held[source as keyof typeof held]++;
  };
  hooks.on('call:throttled', count);

  const research = defineTools({
    search: {
      gate: gates?.serper,
      scope: 'shared',
      connect: () => services,
      call: (client, { query }: { query: string }, { key, signal }) => client.search(query, key, signal),
    },
    read: {
      gate: gates?.jina,
      scope: 'shared',
      connect: () => services,
      call: (client, { url }: { url: string }, { signal }) => client.read(url, signal),
    },
  });
  const calculation = defineTools({
    python: {
      gate: gates?.e2b,
      scope: 'shared',
      connect: () => services,
      call: (client, { code }: { code: string }, { signal }) => client.run(code, signal),
    },
  });
  const factory = pipelineFactory({
    mainAgent: calculation,
    subAgents: { web: research, papers: research },
    hooks,
  });
  const manager = createPipelineManager({
    config: { ...PRESETS.medium, requestTimeoutMs: 600_000 },
    ...factory,
    ...(gates === undefined ? {} : { gates: Object.values(gates) }),
    hooks,
  });

  /** One agent: its model calls tools until it answers. */
  async function think<T extends ToolSet>(
    agent: ToolManager<T>,
    question: string,
    ids: { readonly taskId: string; readonly requestId: string; readonly signal: AbortSignal },
  ): Promise<string> {
    const messages: OpenAI.ChatCompletionMessageParam[] = [{ role: 'user', content: question }];
    for (;;) {
      const ask = ({ signal }: { readonly signal: AbortSignal }) =>
        services.complete(messages, agent.definitions(), signal);
      const said = await (gates === undefined ? ask(ids) : gates.llm.run(ask, ids));
      if (said.tool_calls === undefined) return said.content ?? '';
      const results = said.tool_calls.map(async (call) => ({
        role: 'tool' as const,
        tool_call_id: call.id,
        content:
          call.type === 'function'
            ? await agent.answer(call.function.name, call.function.arguments, { signal: ids.signal })
            : 'There are functions only.',
      }));
      messages.push(said, ...(await Promise.all(results)));
    }
  }

  const startedMs = performance.now();
  const settled = await Promise.allSettled(
    Array.from({ length: requests }, (_, i) =>
      manager.run(`task-${i + 1}`, async ({ pipeline, taskId, requestId, signal }) => {
        const ids = { taskId, requestId, signal };
        const { web, papers } = pipeline.subAgentToolManagers;
        const question = `Question ${i + 1}`;
        const reports = await Promise.all([
          think(web, `${question}, on the web`, ids),
          think(papers, `${question}, in papers`, ids),
        ]);
        const gaveUp = reports.find(hasGivenUp);
        return (
          gaveUp ?? think(pipeline.mainAgentToolManager, `${question}, given: ${reports.join(' ')}`, ids)
        );
      }),
    ),
  );
  const totalMs = performance.now() - startedMs;
  // A request is answered before its instance is back.
  while (manager.stats().active > 0) await nextTurn();
  const atRest = {
    manager: manager.stats(),
    gates: Object.values(gates ?? {}).map((gate) => gate.stats()),
  };
  await manager.shutdown();
  await factory.close();
  hooks.off('call:throttled', count);

  const answers = settled.flatMap((one) => (one.status === 'fulfilled' ? [one.value] : []));
  const errors = settled.flatMap((one) => (one.status === 'rejected' ? [one.reason as unknown] : []));
  const gaveUp = answers.filter(hasGivenUp);
  return {
    requests,
    totalMs,
    answered: answers.length - gaveUp.length,
    gaveUp: gaveUp.length,
    failed: errors.length,
    /** Why, where not all were answered. */
    reasons: [...new Set([...gaveUp, ...errors.map(String)])],
    services: await services.saw(),
    /** How many calls had to wait for a window of each gate. */
    held,
    /** What manager, limiter, pool and gates still hold when the last instance is back. */
    atRest,
  };
}

const hasGivenUp = (answer: string): boolean => answer.startsWith('I had to give up');

export type LoadReport = Awaited<ReturnType<typeof runLoad>>;
