import { Sandbox } from '@e2b/code-interpreter';
import OpenAI from 'openai';
import { startStubServices } from 'pipeline-pool/testing';

/** The upstream services of a host application: its own clients, created from its own settings. */
export interface Services extends AsyncDisposable {
  readonly llm: OpenAI;
  readonly model: string;
  search(query: string, signal?: AbortSignal): Promise<readonly string[]>;
  read(url: string, signal?: AbortSignal): Promise<string>;
  runPython(code: string, signal?: AbortSignal): Promise<string>;
  /** Which services are real and which are stubs, for the reader. */
  readonly description: string;
}

// Milliseconds each service takes. A request needs about 4 s of them, most of it behind its tools.
const LLM_MS = 270;
const SEARCH_MS = 550;
const PAGE_MS = 800;
const SANDBOX_START_MS = 700;
const SANDBOX_RUN_MS = 650;

/**
 * Connects to the real services that the environment names, and to stubs otherwise.
 * `BASE_URL` and `API_KEY` are the LLM's; the others are `SERPER_API_KEY`, `JINA_API_KEY` and `E2B_API_KEY`.
 */
export async function connectServices(env: NodeJS.ProcessEnv, timeScale: number): Promise<Services> {
  const stubs = await startStubServices({
    timeScale,
    llm: { latencyMs: LLM_MS },
    serper: { latencyMs: SEARCH_MS },
    jina: { latencyMs: PAGE_MS },
    e2b: {
      latencyMs: ({ route }) => {
        if (route === 'POST /execute') return SANDBOX_RUN_MS;
        return route === 'POST /v2/sandboxes' ? SANDBOX_START_MS : 0;
      },
    },
  });
  const { BASE_URL, API_KEY, SERPER_API_KEY, JINA_API_KEY, E2B_API_KEY, MODEL = 'default' } = env;
  const real = (set: unknown): string => (set === undefined ? 'stub' : 'real');

  return {
    // The library decides what is retried, so the SDKs must not.
    llm: new OpenAI({ baseURL: BASE_URL ?? stubs.llm.baseUrl, apiKey: API_KEY ?? 'stub', maxRetries: 0 }),
    model: MODEL,
    description: `LLM ${real(BASE_URL)}, Serper ${real(SERPER_API_KEY)}, Jina ${real(JINA_API_KEY)}, E2B ${real(E2B_API_KEY)}`,

    async search(query, signal) {
      const base = SERPER_API_KEY === undefined ? stubs.serper.url : 'https://google.serper.dev';
      const response = await fetch(`${base}/search`, {
        method: 'POST',
        headers: { 'x-api-key': SERPER_API_KEY ?? 'stub', 'content-type': 'application/json' },
        body: JSON.stringify({ q: query }),
        signal,
      });
      if (!response.ok) throw new Error(`Serper answered ${response.status}`);
      const { organic } = (await response.json()) as { organic: readonly { link: string }[] };
      return organic.map(({ link }) => link);
    },

    async read(url, signal) {
      const base = JINA_API_KEY === undefined ? stubs.jina.url : 'https://r.jina.ai';
      const authorization = `Bearer ${JINA_API_KEY ?? 'stub'}`;
      const response = await fetch(`${base}/${url}`, { headers: { authorization }, signal });
      if (!response.ok) throw new Error(`Jina answered ${response.status}`);
      return response.text();
    },

    async runPython(code, signal) {
      const where = E2B_API_KEY === undefined ? stubs.e2b.connection : { apiKey: E2B_API_KEY };
      // Without the signal: an aborted creation may leave an orphaned sandbox behind.
      const sandbox = await Sandbox.create({ ...where, retries: 0 });
      try {
        signal?.throwIfAborted();
        const { text, logs } = await sandbox.runCode(code);
        return text ?? logs.stdout.join('');
      } finally {
        await sandbox.kill();
      }
    },

    [Symbol.asyncDispose]: () => stubs.stop(),
  };
}
