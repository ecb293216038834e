import type OpenAI from 'openai';
import * as v from 'valibot';
import { describe, expectTypeOf, it } from 'vitest';
import { z } from 'zod';
import type { ServiceGate } from '../../src/gate/service-gate.js';
import {
  type ConnectContext,
  defineTool,
  defineTools,
  type Tool,
  type ToolClient,
  type ToolInput,
  type ToolResult,
} from '../../src/tools/define-tools.js';
import { pipelineFactory } from '../../src/tools/pipeline-factory.js';
import type { ToolCallOptions, ToolManager } from '../../src/tools/tool-manager.js';

class Browser {
  read(url: string): Promise<{ title: string }> {
    return Promise.resolve({ title: url });
  }
}

declare const gate: ServiceGate;

const tools = defineTools({
  search: {
    scope: 'shared',
    connect: () => ({ base: 'http://127.0.0.1' }),
    call: async (client, input: { query: string }, { signal, attempt }) => {
      expectTypeOf(client).toEqualTypeOf<{ base: string }>();
      expectTypeOf(signal).toEqualTypeOf<AbortSignal>();
      expectTypeOf(attempt).toEqualTypeOf<number>();
      return [client.base + input.query];
    },
    gate,
    cacheKey: ({ query }) => query,
    weight: ({ query }: { query: string }) => query.length,
  },
  browse: {
    scope: 'task',
    connect: async ({ instanceId, taskId, signal }: ConnectContext) => {
      expectTypeOf({ instanceId, taskId, signal }).toEqualTypeOf<{
        instanceId: number;
        taskId: string | undefined;
        signal: AbortSignal;
      }>();
      return new Browser();
    },
    disconnect: (browser) => {
      expectTypeOf(browser).toEqualTypeOf<Browser>();
    },
    call: (browser, input: { url: string }) => browser.read(input.url),
  },
  count: {
    connect: () => 2,
    parse: (given: unknown) => ({ times: Number(given) }),
    call: (client, input) => {
      expectTypeOf(input).toEqualTypeOf<{ times: number }>();
      return client * input.times;
    },
    weight: (input) => {
      expectTypeOf(input).toEqualTypeOf<{ times: number }>();
      return input.times;
    },
    gate,
  },
  clock: { connect: () => undefined, call: () => 'noon' as const },
  alone: defineTool({
    connect: async ({ signal }) => ({ aborted: signal.aborted }),
    call: (client, input: { flag?: boolean }) => client.aborted && input.flag,
    gate,
    cacheKey: (input) => {
      expectTypeOf(input).toEqualTypeOf<{ flag?: boolean }>();
      return String(input.flag);
    },
    weight: ({ flag }) => (flag ? 2 : 1),
  }),
});
type Tools = typeof tools;
declare const manager: ToolManager<Tools>;

describe('defineTools', () => {
  it('infers names, clients, inputs and results', () => {
    expectTypeOf<keyof Tools>().toEqualTypeOf<'search' | 'browse' | 'count' | 'clock' | 'alone'>();
    expectTypeOf<ToolClient<Tools['search']>>().toEqualTypeOf<{ base: string }>();
    expectTypeOf<ToolClient<Tools['browse']>>().toEqualTypeOf<Browser>();
    expectTypeOf<ToolInput<Tools['browse']>>().toEqualTypeOf<{ url: string }>();
    expectTypeOf<ToolResult<Tools['browse']>>().toEqualTypeOf<{ title: string }>();
    expectTypeOf<ToolInput<Tools['count']>>().toEqualTypeOf<{ times: number }>();
    expectTypeOf<ToolResult<Tools['clock']>>().toEqualTypeOf<'noon'>();
    expectTypeOf<ToolClient<Tools['alone']>>().toEqualTypeOf<{ aborted: boolean }>();
  });

  it('accepts spread options and tools that were defined before', () => {
    const browser = { connect: () => new Browser(), disconnect: (client: Browser) => void client.read('') };
    const more = defineTools({
      ...tools,
      open: { ...browser, call: (client, input: { url: string }) => client.read(input.url) },
      close: { ...browser, call: (client) => client instanceof Browser },
    });
    expectTypeOf<ToolResult<(typeof more)['close']>>().toEqualTypeOf<boolean>();
    expectTypeOf<ToolResult<(typeof more)['search']>>().toEqualTypeOf<string[]>();
  });

  it('accepts tools whose names are known only at run time', () => {
    const dynamic: Record<string, Tool<Browser, Record<string, unknown>, string>> = {};
    const defined = defineTools(dynamic);
    expectTypeOf<ToolInput<(typeof defined)[string]>>().toEqualTypeOf<Record<string, unknown>>();
  });

  it('infers the input of cacheKey and weight from a call whose parameters are all annotated', () => {
    const searchWeb = (_: unknown, input: { query: string }) => input.query;
    defineTools({
      search: {
        connect: () => 1,
        call: searchWeb,
        gate,
        cacheKey: (input) => input.query,
        weight: (input) => input.query.length,
      },
    });
  });

  it('accepts undefined for an option that is not set', () => {
    defineTools({
      search: { connect: () => 1, call: () => 1, scope: undefined, timeoutMs: undefined, gate: undefined },
    });
    () => manager.call('clock', undefined, { signal: undefined, timeoutMs: undefined, priority: undefined });
  });

  it('rejects cacheKey and weight that take another input than call', () => {
    type Input = { query: string };
    const connect = () => 1;
    const call = (_: number, input: Input) => input.query;
    // @ts-expect-error the input has no such field
    () => defineTools({ s: { connect, call, gate, cacheKey: ({ qeury }) => qeury } });
    // @ts-expect-error the input has no such field
    () => defineTools({ s: { connect, call, gate, weight: ({ n }) => n } });
    // @ts-expect-error the input has no such field
    () => defineTools({ s: { connect, call: (_, i: Input) => i, gate, cacheKey: ({ qeury }) => qeury } });
    // @ts-expect-error the input has no such field
    () => defineTools({ s: { connect, call: (_, i: Input) => i, gate, weight: ({ n }) => n } });
    // @ts-expect-error the input has no such field
    () => defineTool({ connect, call: (_, i: Input) => i, gate, cacheKey: ({ qeury }) => qeury });
    // @ts-expect-error the field is a string
    () => defineTool({ connect, call: (_, i: Input) => i, gate, weight: ({ query }) => query });
  });

  it('takes the input from a Standard Schema', () => {
    const defined = defineTools({
      zod: {
        connect: () => 1,
        schema: z.object({ query: z.string(), limit: z.number().default(10) }),
        call: (_, input) => {
          expectTypeOf(input).toEqualTypeOf<{ query: string; limit: number }>();
          return input.query;
        },
        gate,
        cacheKey: (input) => input.query,
      },
      valibot: {
        connect: () => 1,
        schema: v.object({ url: v.string() }),
        call: (_, { url }) => url,
      },
    });
    expectTypeOf<ToolInput<(typeof defined)['zod']>>().toEqualTypeOf<{ query: string; limit: number }>();
    expectTypeOf<ToolInput<(typeof defined)['valibot']>>().toEqualTypeOf<{ url: string }>();
    const schema = z.object({ query: z.string() });
    const connect = () => 1;
    const read = (_: number, input: { url: string }) => input.url;
    // @ts-expect-error `call` takes another input than the schema describes
    () => defineTools({ s: { connect, schema, call: read } });
    // @ts-expect-error the input has no such field
    () => defineTools({ s: { connect, schema, call: (_, i) => i, gate, cacheKey: ({ qeury }) => qeury } });
  });

  it('does not compile what is wrong', () => {
    // @ts-expect-error `connect` is missing
    () => defineTools({ search: { call: () => 1 } });
    // @ts-expect-error `call` is missing
    () => defineTools({ search: { connect: () => 1 } });
    // @ts-expect-error a misspelt option
    () => defineTools({ search: { connect: () => 1, call: () => 1, timeout: 5 } });
    // @ts-expect-error a scope that there is not
    () => defineTools({ search: { connect: () => 1, call: () => 1, scope: 'lease' } });
    // @ts-expect-error `call` takes another client than `connect` makes
    () => defineTools({ search: { connect: () => 1, call: (client: string) => client } });
    // @ts-expect-error `disconnect` takes another client than `connect` makes
    () => defineTools({ search: { connect: () => 1, disconnect: (_: string) => {}, call: () => 1 } });
    // @ts-expect-error `parse` gives another input than `call` takes
    () => defineTools({ search: { connect: () => 1, parse: () => 1, call: (_, input: string) => input } });
    // @ts-expect-error an input that nothing says the type of is unknown
    () => defineTools({ search: { connect: () => 1, call: (_, input) => input.query } });
    // @ts-expect-error no gate
    () => defineTools({ search: { connect: () => 1, call: () => 1, gate: { start: () => 1 } } });
  });
});

describe('ToolManager', () => {
  it('has the inputs and results of its tools', () => {
    expectTypeOf(manager.call('search', { query: 'q' })).resolves.toEqualTypeOf<string[]>();
    expectTypeOf(manager.call('browse', { url: 'u' }, { timeoutMs: 5 })).resolves.toEqualTypeOf<{
      title: string;
    }>();
    expectTypeOf(manager.call('clock')).resolves.toEqualTypeOf<'noon'>();
    expectTypeOf(manager.client('browse')).resolves.toEqualTypeOf<Browser>();
    expectTypeOf(manager.answer('a name that a model made up', '{}')).resolves.toEqualTypeOf<string>();
    expectTypeOf<Parameters<typeof manager.answer>[2]>().toEqualTypeOf<ToolCallOptions | undefined>();
  });

  it('types the results of callAll by their position', () => {
    const several = manager.callAll([
      { name: 'search', input: { query: 'q' } },
      { name: 'clock' },
      { name: 'browse', input: { url: 'u' } },
    ]);
    expectTypeOf(several).resolves.toEqualTypeOf<
      [PromiseSettledResult<string[]>, PromiseSettledResult<'noon'>, PromiseSettledResult<{ title: string }>]
    >();
    const queries = ['a', 'b'].map((query) => ({ name: 'search' as const, input: { query } }));
    expectTypeOf(manager.callAll(queries)).resolves.toEqualTypeOf<PromiseSettledResult<string[]>[]>();
  });

  it('does not compile what is wrong', () => {
    // @ts-expect-error a misspelt tool
    () => manager.call('serach', { query: 'q' });
    // @ts-expect-error a wrong input
    () => manager.call('search', { q: 'q' });
    // @ts-expect-error a missing input
    () => manager.call('search');
    // @ts-expect-error a misspelt option
    () => manager.call('search', { query: 'q' }, { timeout: 5 });
    // @ts-expect-error a misspelt tool
    () => manager.callAll([{ name: 'serach', input: { query: 'q' } }]);
    // @ts-expect-error the input of another tool
    () => manager.callAll([{ name: 'search', input: { url: 'u' } }]);
    // @ts-expect-error a misspelt tool
    () => manager.client('serach');
  });

  it('has definitions that the OpenAI SDK accepts as they are', () => {
    expectTypeOf(manager.definitions()).toExtend<OpenAI.ChatCompletionTool[]>();
    const body: OpenAI.ChatCompletionCreateParamsNonStreaming = {
      model: 'm',
      messages: [],
      tools: manager.definitions(),
    };
    expectTypeOf(body.tools).toEqualTypeOf<OpenAI.ChatCompletionTool[] | undefined>();
  });
});

describe('pipelineFactory', () => {
  it('types the pipeline by its agents', async () => {
    const factory = pipelineFactory({
      mainAgent: tools,
      subAgents: { reader: defineTools({ clock: { connect: () => undefined, call: () => 5 } }) },
      outputFormatter: ({ taskId }) => ({ title: taskId }),
    });
    const pipeline = await factory.create({ instanceId: 1 });
    expectTypeOf(pipeline.mainAgentToolManager).toEqualTypeOf<ToolManager<Tools>>();
    expectTypeOf(pipeline.subAgentToolManagers.reader.call('clock')).resolves.toEqualTypeOf<number>();
    expectTypeOf(pipeline.outputFormatter).toEqualTypeOf<{ title: string | undefined }>();
    // @ts-expect-error a misspelt sub-agent
    pipeline.subAgentToolManagers.raeder;
  });

  it('has neither sub-agents nor a formatter if none are given', async () => {
    const pipeline = await pipelineFactory({ mainAgent: tools }).create({ instanceId: 1 });
    expectTypeOf(pipeline.outputFormatter).toEqualTypeOf<undefined>();
    expectTypeOf<keyof typeof pipeline.subAgentToolManagers>().toEqualTypeOf<never>();
  });

  it('does not compile without a main agent', () => {
    // @ts-expect-error `mainAgent` is missing
    () => pipelineFactory({ subAgents: {} });
  });
});
