import { flag, options } from '../internal/validate.js';
import { type IsolatedStubServices, startIsolatedServices } from './isolated-services.js';
import { StubE2b } from './stub-e2b.js';
import { StubJina } from './stub-jina.js';
import { StubLlm } from './stub-llm.js';
import { StubSerper } from './stub-serper.js';
import type { IsolatedStubServicesOptions, StubServicesOptions } from './stub-services-options.js';

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
export function startStubServices(given: IsolatedStubServicesOptions): Promise<IsolatedStubServices>;
export function startStubServices(given?: StubServicesOptions): Promise<StubServices>;
export async function startStubServices(
  given: StubServicesOptions & { readonly isolated?: boolean } = {},
): Promise<StubServices | IsolatedStubServices> {
  const { timeScale, isolated = false } = options('startStubServices options', given, [
    'llm',
    'serper',
    'jina',
    'e2b',
    'timeScale',
    'isolated',
  ]);
  if (flag('isolated', isolated)) return startIsolatedServices(given);
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
