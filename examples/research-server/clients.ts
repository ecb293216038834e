import { Sandbox } from '@e2b/code-interpreter';
import OpenAI from 'openai';
import { longFetch } from 'pipeline-pool';
import type { StubServices } from 'pipeline-pool/testing';
import { Agent, fetch as undiciFetch } from 'undici';
import { keysOf, partOf } from '../host-clients.js';

/** What a client needs of the attempt of a gate. */
interface Attempt {
  readonly key: string;
  readonly signal: AbortSignal;
}

/** The addresses and keys of the services. */
export interface ServiceSettings {
  readonly model: string;
  readonly llm: { readonly baseURL: string; readonly apiKey: string };
  readonly serper: { readonly url: string; readonly keys: readonly string[] };
  readonly jina: { readonly url: string; readonly keys: readonly string[] };
  readonly e2b: { readonly keys: readonly string[]; readonly apiUrl?: string; readonly sandboxUrl?: string };
}

/** The real services that the environment names; stubs otherwise. */
export function serviceSettings(env: NodeJS.ProcessEnv, stubs: StubServices): ServiceSettings {
  const { BASE_URL, API_KEY = 'stub', MODEL = 'default' } = env;
  // An empty variable counts as unset.
  const [serper, jina, e2b] = [env.SERPER_API_KEY, env.JINA_API_KEY, env.E2B_API_KEY].map((named) =>
    named ? keysOf(named) : undefined,
  );
  return {
    model: MODEL,
    llm: { baseURL: BASE_URL ?? stubs.llm.baseUrl, apiKey: API_KEY },
    serper: { url: serper ? 'https://google.serper.dev' : stubs.serper.url, keys: serper ?? ['stub-key'] },
    jina: { url: jina ? 'https://r.jina.ai' : stubs.jina.url, keys: jina ?? ['stub-key'] },
    e2b: e2b ? { keys: e2b } : { ...stubs.e2b.connection, keys: [stubs.e2b.connection.apiKey] },
  };
}

/** The host's own clients. The gates decide what is retried, so none of these retries. */
export function connectClients({ llm, serper, jina, e2b, model }: ServiceSettings) {
  const openai = new OpenAI({
    ...llm,
    maxRetries: 0,
    timeout: 1_800_000,
    fetch: longFetch({ fetch: undiciFetch, Agent }),
  });
  return {
    /** The answer of the model, chunk by chunk. */
    async say(prompt: string, { signal }: { readonly signal: AbortSignal }) {
      const messages = [{ role: 'user' as const, content: prompt }];
      return openai.chat.completions.create({ model, messages, stream: true }, { signal });
    },

    async search(query: string, { key, signal }: Attempt): Promise<readonly { link: string }[]> {
      const headers = { 'x-api-key': key, 'content-type': 'application/json' };
      const body = JSON.stringify({ q: query });
      const response = await fetch(`${serper.url}/search`, { method: 'POST', headers, body, signal });
      return partOf('organic', 'Serper', response);
    },

    async read(url: string, { key, signal }: Attempt): Promise<string> {
      const headers = { authorization: `Bearer ${key}`, accept: 'application/json' };
      const response = await fetch(`${jina.url}/${url}`, { headers, signal });
      return (await partOf<{ content: string }>('data', 'Jina', response)).content;
    },

    /** An aborted creation may leave an orphaned sandbox behind: it is finished, and the sandbox killed. */
    async startSandbox(taskId: string, { key, signal }: Attempt): Promise<Sandbox> {
      const { keys: _, ...urls } = e2b;
      const sandbox = await Sandbox.create({ ...urls, apiKey: key, retries: 0, metadata: { taskId } });
      if (!signal.aborted) return sandbox;
      await sandbox.kill();
      throw signal.reason;
    },
  };
}

export type Clients = ReturnType<typeof connectClients>;
