import OpenAI from 'openai';
import { longFetch } from 'pipeline-pool';
import { startStubServices } from 'pipeline-pool/testing';
import { Agent, fetch as undiciFetch } from 'undici';
import { TaskSandboxes } from './host-sandboxes.js';
import { scriptedModel } from './scripted-model.js';

/** What a client needs of the attempt of a gate. */
interface Attempt {
  readonly key: string;
  readonly signal: AbortSignal;
}

/** A part of a response body, or an error that a gate can classify: services also answer 200 when they fail. */
export async function partOf<T>(part: string, service: string, response: Response): Promise<T> {
  const reading = response.json() as Promise<Readonly<Record<string, unknown>>>;
  // A rejection may have any body. A response that breaks off must not be cached.
  const body = await (response.ok ? reading : reading.catch(() => undefined));
  if (response.ok && body?.[part]) return body[part] as T;
  const { status, headers } = response;
  const error = new Error(`${service} answered ${status}: ${body?.message ?? 'no reason given'}`);
  throw Object.assign(error, { status, headers, body });
}

/** The keys in a variable, separated by commas. */
export const keysOf = (named: string): readonly string[] =>
  named.split(',').flatMap((key) => key.trim() || []);

/**
 * The clients of a host application, created from its own settings: for the real services that the environment names,
 * and for stubs with the limits of the smallest plans otherwise.
 */
export async function connectClients(given: NodeJS.ProcessEnv) {
  // An empty variable counts as unset, as in compose files.
  const env = Object.fromEntries(Object.entries(given).filter(([, value]) => value));
  const stubs = await startStubServices({
    llm: { reply: scriptedModel, latencyMs: 150, maxNumSeqs: 8 },
    serper: { latencyMs: 200, rate: { limit: 50, perMs: 1_000 } },
    jina: { latencyMs: 300, rate: { limit: 500, perMs: 60_000 } },
    e2b: { latencyMs: 300, maxSandboxes: 20, createRate: { limit: 1, perMs: 1_000 } },
  });
  const { BASE_URL, API_KEY, MODEL = 'default', SERPER_API_KEY, JINA_API_KEY, E2B_API_KEY } = env;
  const { SERPER_URL = SERPER_API_KEY === undefined ? stubs.serper.url : 'https://google.serper.dev' } = env;
  const { JINA_URL = JINA_API_KEY === undefined ? stubs.jina.url : 'https://r.jina.ai' } = env;
  const e2bUrls = E2B_API_KEY === undefined ? { apiUrl: stubs.e2b.url, sandboxUrl: stubs.e2b.url } : {};

  // The gates decide what is retried, so the clients must not; longFetch allows answers longer than 300 s.
  const openai = new OpenAI({
    baseURL: BASE_URL ?? stubs.llm.baseUrl,
    apiKey: API_KEY ?? 'stub',
    maxRetries: 0,
    timeout: 1_800_000,
    fetch: longFetch({ fetch: undiciFetch, Agent }),
  });

  return {
    openai,
    model: MODEL,
    keys: {
      serper: keysOf(SERPER_API_KEY ?? 'stub'),
      jina: keysOf(JINA_API_KEY ?? 'stub'),
      e2b: keysOf(E2B_API_KEY ?? stubs.e2b.connection.apiKey),
    },

    async search(query: string, { key, signal }: Attempt): Promise<readonly object[]> {
      const headers = { 'x-api-key': key, 'content-type': 'application/json' };
      const body = JSON.stringify({ q: query });
      const response = await fetch(`${SERPER_URL}/search`, { method: 'POST', headers, body, signal });
      return partOf('organic', 'Serper', response);
    },

    async read(url: string, { key, signal }: Attempt): Promise<string> {
      const headers = { authorization: `Bearer ${key}`, accept: 'application/json' };
      const response = await fetch(`${JINA_URL}/${url}`, { headers, signal });
      return (await partOf<{ content: string }>('data', 'Jina', response)).content;
    },

    sandboxesOf: (taskId: string) => new TaskSandboxes(e2bUrls, taskId),

    close: () => stubs.stop(),
  };
}
