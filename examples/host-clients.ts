import OpenAI from 'openai';
import { longFetch } from 'pipeline-pool';
import type { StubServices } from 'pipeline-pool/testing';
import { Agent, fetch as undiciFetch } from 'undici';

/** What a client needs of the attempt of a gate. */
export interface Attempt {
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

/** The keys in a variable, separated by commas. */
const keysOf = (named: string): readonly string[] => named.split(',').flatMap((key) => key.trim() || []);

/** The real services that the environment names; stubs otherwise. */
export function serviceSettings(given: NodeJS.ProcessEnv, stubs: StubServices): ServiceSettings {
  // An empty variable counts as unset, as in compose files.
  const env = Object.fromEntries(Object.entries(given).filter(([, value]) => value));
  const { API_KEY = 'stub', BASE_URL = stubs.llm.baseUrl, MODEL = 'default' } = env;
  const { SERPER_API_KEY, JINA_API_KEY, E2B_API_KEY } = env;
  const { SERPER_URL = SERPER_API_KEY === undefined ? stubs.serper.url : 'https://google.serper.dev' } = env;
  const { JINA_URL = JINA_API_KEY === undefined ? stubs.jina.url : 'https://r.jina.ai' } = env;
  const { apiKey, ...e2bUrls } = stubs.e2b.connection;
  return {
    model: MODEL,
    llm: { baseURL: BASE_URL, apiKey: API_KEY },
    serper: { url: SERPER_URL, keys: keysOf(SERPER_API_KEY ?? 'stub') },
    jina: { url: JINA_URL, keys: keysOf(JINA_API_KEY ?? 'stub') },
    e2b: E2B_API_KEY === undefined ? { keys: [apiKey], ...e2bUrls } : { keys: keysOf(E2B_API_KEY) },
  };
}

/** The clients of a host application. The gates decide what is retried, so none of these retries. */
export function connectClients({ llm, serper, jina }: ServiceSettings) {
  return {
    openai: new OpenAI({
      ...llm,
      maxRetries: 0,
      // longFetch allows answers longer than 300 s.
      timeout: 1_800_000,
      fetch: longFetch({ fetch: undiciFetch, Agent }),
    }),

    async search(query: string, { key, signal }: Attempt): Promise<readonly { readonly link: string }[]> {
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
  };
}

/** A part of a response body, or an error that a gate can classify: services also answer 200 when they fail. */
async function partOf<T>(part: string, service: string, response: Response): Promise<T> {
  const reading = response.json() as Promise<Readonly<Record<string, unknown>>>;
  // A rejection may have any body. A response that breaks off must not be cached.
  const body = await (response.ok ? reading : reading.catch(() => undefined));
  if (response.ok && body?.[part]) return body[part] as T;
  const { status, headers } = response;
  const error = new Error(`${service} answered ${status}: ${body?.message ?? 'no reason given'}`);
  throw Object.assign(error, { status, headers, body });
}
