/**
 * A research service with everything that its operator needs:
 *
 *     npx tsx examples/research-server/main.ts
 *     curl -N http://127.0.0.1:8080/research -d '{"question":"Why do glaciers look blue?"}'
 *
 * Also: /health, /health/live, /live (a page), /metrics, /diagnosis, /timeline.svg.
 *
 * It runs against stub services on loopback, or the real ones that the environment names:
 * BASE_URL and API_KEY (and MODEL) for the LLM, SERPER_API_KEY, JINA_API_KEY (and their _URL), E2B_API_KEY. Several keys of one
 * service are separated by commas. PORT and DRAIN_MS are its own settings; the others are those of `loadConfig`.
 */
import { startStubServices } from 'pipeline-pool/testing';
import { serviceSettings } from '../host-clients.js';
import { startResearchServer } from './server.js';

const { PORT = '8080', DRAIN_MS = '15000' } = process.env;

const stubs = await startStubServices({
  llm: { latencyMs: 400, perTokenMs: 30, maxNumSeqs: 8 },
  serper: { latencyMs: 250, rate: { limit: 50, perMs: 1_000 } },
  jina: { latencyMs: 400, rate: { limit: 500, perMs: 60_000 } },
  e2b: { latencyMs: 300, maxSandboxes: 20, createRate: { limit: 1, perMs: 1_000 } },
});
const server = await startResearchServer({
  services: serviceSettings(process.env, stubs),
  port: Number(PORT),
});
console.log(`Research: ${server.url}`);

for (const signal of ['SIGTERM', 'SIGINT'] as const) {
  process.once(signal, async () => {
    console.log(`${signal}: draining, ${server.manager.health().active_requests} requests are under way.`);
    await server.close({ timeoutMs: Number(DRAIN_MS) });
    await stubs.stop();
    console.log('Nothing is left.');
  });
}
