import { Sandbox } from '@e2b/code-interpreter';
import OpenAI from 'openai';
import { longFetch } from 'pipeline-pool';
import { startStubServices } from 'pipeline-pool/testing';
import { Agent, fetch as undiciFetch } from 'undici';
import { scriptedModel } from './scripted-model.js';

/** What a gate gives an attempt, as far as a client needs it. */
interface Attempt {
  readonly key: string;
  readonly signal: AbortSignal;
}

/** The body of an answer, or an error that a gate can judge. Jina may say only in the body that it failed. */
async function bodyOf<T>(service: string, response: Response): Promise<T> {
  const body = (await response.json().catch(() => ({}))) as { code?: number; message?: string };
  const status = response.ok ? (body.code ?? response.status) : response.status;
  if (status < 400) return body as T;
  const error = new Error(`${service} answered ${status}: ${body.message ?? 'no reason given'}`);
  throw Object.assign(error, { status, headers: response.headers, body });
}

/**
 * The clients of a host application, made by itself from its own settings: for the real services that the environment
 * names, each on its own, and for stubs with the limits of the smallest plans for the rest.
 */
export async function connectClients(env: NodeJS.ProcessEnv) {
  const stubs = await startStubServices({
    llm: { reply: scriptedModel, latencyMs: 150, maxNumSeqs: 8 },
    serper: { latencyMs: 200, rate: { limit: 50, perMs: 1_000 } },
    jina: { latencyMs: 300, rate: { limit: 500, perMs: 60_000 } },
    e2b: { latencyMs: 300, maxSandboxes: 20, createRate: { limit: 1, perMs: 1_000 } },
  });
  const { BASE_URL, API_KEY, MODEL = 'default', SERPER_API_KEY, JINA_API_KEY, E2B_API_KEY } = env;
  const serperUrl = SERPER_API_KEY === undefined ? stubs.serper.url : 'https://google.serper.dev';
  const jinaUrl = JINA_API_KEY === undefined ? stubs.jina.url : 'https://r.jina.ai';
  const e2bUrls = E2B_API_KEY === undefined ? stubs.e2b.connection : {};
  const keysOf = (named = 'stub'): readonly string[] => named.split(',');

  // The gates decide what is tried again, so the clients must not; and a long thought must outlast Node's own fetch.
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
    keys: { serper: keysOf(SERPER_API_KEY), jina: keysOf(JINA_API_KEY), e2b: keysOf(E2B_API_KEY) },

    async search(query: string, { key, signal }: Attempt): Promise<readonly object[]> {
      const headers = { 'x-api-key': key, 'content-type': 'application/json' };
      const body = JSON.stringify({ q: query });
      const response = await fetch(`${serperUrl}/search`, { method: 'POST', headers, body, signal });
      return (await bodyOf<{ organic: readonly object[] }>('Serper', response)).organic;
    },

    async read(url: string, { key, signal }: Attempt): Promise<string> {
      const headers = { authorization: `Bearer ${key}`, accept: 'application/json' };
      const response = await fetch(`${jinaUrl}/${url}`, { headers, signal });
      return (await bodyOf<{ data: { content: string } }>('Jina', response)).data.content;
    },

    /** Runs a program in a sandbox of its own, which does not outlive the call. */
    async runPython(code: string, taskId: string, { key, signal }: Attempt): Promise<string> {
      // Without the signal: a creation that is cut off may leave a sandbox behind that nobody knows of.
      const sandbox = await Sandbox.create({ ...e2bUrls, apiKey: key, retries: 0, metadata: { taskId } });
      const end = (): Promise<unknown> =>
        sandbox.kill().catch((error: unknown) => console.warn(`A sandbox is left to its timeout: ${error}`));
      // `runCode` takes no signal, but it ends with its sandbox.
      signal.addEventListener('abort', end, { once: true });
      try {
        signal.throwIfAborted();
        const { logs, error } = await sandbox.runCode(code);
        return error === undefined ? logs.stdout.join('') : error.traceback;
      } catch (error) {
        // Only a creation is worth another attempt; a gate does not try again what fails with an error of ours.
        throw new Error(`The program did not end: ${error instanceof Error ? error.message : error}`);
      } finally {
        signal.removeEventListener('abort', end);
        await end();
      }
    },

    close: () => stubs.stop(),
  };
}
