import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { ChatOpenAI } from '@langchain/openai';
import { Agent, OpenAIProvider, Runner } from '@openai/agents';
import { generateText, streamText } from 'ai';
import OpenAI from 'openai';

/** How a client is asked. */
export interface Asked {
  readonly fetch: typeof globalThis.fetch;
  readonly signal: AbortSignal;
  readonly baseURL: string;
  /** @default those of the client */
  readonly maxRetries?: number | undefined;
}

/** A client of an LLM that owns its HTTP. */
interface Client {
  readonly ask: (asked: Asked) => Promise<unknown>;
  /** The parts of a streamed answer. */
  readonly stream: (asked: Asked) => AsyncIterable<unknown> | Promise<AsyncIterable<unknown>>;
}

const prompt = 'why?';
const chat = { model: 'any', messages: [{ role: 'user' as const, content: prompt }] };
const agent = new Agent({ name: 'Agent' });

const openaiOf = ({ fetch, baseURL, maxRetries }: Asked) =>
  new OpenAI({ apiKey: 'unused', baseURL, fetch, maxRetries });

const langchainOf = ({ fetch, baseURL, maxRetries }: Asked) =>
  new ChatOpenAI({ model: 'any', apiKey: 'unused', maxRetries, configuration: { baseURL, fetch } });

const aiSdkOf = ({ fetch, baseURL, maxRetries, signal: abortSignal }: Asked) => {
  const model = createOpenAICompatible({ name: 'llm', baseURL, fetch })('any');
  return { model, prompt, abortSignal, maxRetries };
};

/** The Agents SDK takes its retries from the OpenAI SDK. */
const runnerOf = (asked: Asked) =>
  new Runner({
    modelProvider: new OpenAIProvider({ openAIClient: openaiOf(asked) }),
    model: 'any',
    tracingDisabled: true,
  });

export const clients: Readonly<Record<string, Client>> = {
  openai: {
    ask: (asked) => openaiOf(asked).chat.completions.create(chat, { signal: asked.signal }),
    stream: (asked) =>
      openaiOf(asked).chat.completions.create({ ...chat, stream: true }, { signal: asked.signal }),
  },
  langchain: {
    ask: (asked) => langchainOf(asked).invoke(prompt, { signal: asked.signal }),
    stream: (asked) => langchainOf(asked).stream(prompt, { signal: asked.signal }),
  },
  'ai-sdk': {
    ask: (asked) => generateText(aiSdkOf(asked)),
    stream: (asked) => streamText({ ...aiSdkOf(asked), onError: () => {} }).textStream,
  },
  'openai-agents': {
    ask: (asked) => runnerOf(asked).run(agent, prompt, { signal: asked.signal }),
    stream: (asked) => runnerOf(asked).run(agent, prompt, { signal: asked.signal, stream: true }),
  },
};
