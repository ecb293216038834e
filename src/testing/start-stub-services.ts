import { options } from '../internal/validate.js';
import { StubE2b, type StubE2bOptions } from './stub-e2b.js';
import { StubJina, type StubJinaOptions } from './stub-jina.js';
import { StubLlm, type StubLlmOptions } from './stub-llm.js';
import { StubSerper, type StubSerperOptions } from './stub-serper.js';

/** Options of `startStubServices`: those of each service, and a default `timeScale`. */
export interface StubServicesOptions {
  readonly llm?: StubLlmOptions;
  readonly serper?: StubSerperOptions;
  readonly jina?: StubJinaOptions;
  readonly e2b?: StubE2bOptions;
  /** @default 1 */
  readonly timeScale?: number;
}

/** The four running services of a research pipeline. */
export interface StubServices extends AsyncDisposable {
  readonly llm: StubLlm;
  readonly serper: StubSerper;
  readonly jina: StubJina;
  readonly e2b: StubE2b;
  /** Resets the counts of all four. */
  resetStats(): void;
  stop(): Promise<void>;
}

/**
 * Starts an LLM, Serper, Jina and E2B on loopback, and stops them together.
 *
 * @example
 * await using services = await startStubServices({ llm: { latencyMs: 200, maxNumSeqs: 8 }, timeScale: 0.1 });
 * const client = new OpenAI({ baseURL: services.llm.baseUrl, apiKey: 'any' });
 */
export async function startStubServices(given: StubServicesOptions = {}): Promise<StubServices> {
  const { timeScale } = options('startStubServices options', given, [
    'llm',
    'serper',
    'jina',
    'e2b',
    'timeScale',
  ]);
  const services = {
    llm: new StubLlm({ timeScale, ...given.llm }),
    serper: new StubSerper({ timeScale, ...given.serper }),
    jina: new StubJina({ timeScale, ...given.jina }),
    e2b: new StubE2b({ timeScale, ...given.e2b }),
  };
  const all = Object.values(services);
  const stop = async (): Promise<void> => {
    await Promise.all(all.map((service) => service.stop()));
  };
  try {
    await Promise.all(all.map((service) => service.start()));
  } catch (error) {
    await stop();
    throw error;
  }
  return {
    ...services,
    resetStats: () => {
      for (const service of all) service.resetStats();
    },
    stop,
    [Symbol.asyncDispose]: stop,
  };
}
