/**
 * Draws the pictures of docs/operations.md: what some bottlenecks look like, and the live page in Chromium.
 *
 *     npx tsx test/support/operations-pictures.ts
 */
import { writeFile } from 'node:fs/promises';
import { startStubServices } from 'pipeline-pool/testing';
import { recordTimeline } from 'pipeline-pool/timeline';
import { chromium } from 'playwright-core';
import { serviceSettings } from '../../examples/host-clients.js';
import { startResearchServer } from '../../examples/research-server/server.js';
import { CHROMIUM, FLAGS } from './browsers.js';
import { Scenario, type ScenarioOptions, times } from './diagnosis-scenarios.js';
import { sleep } from './promises.js';

const IMAGES = 'docs/images';

async function drawBottleneck(
  name: string,
  title: string,
  options: ScenarioOptions,
  requests: number,
): Promise<void> {
  await using scenario = await Scenario.start(options);
  const timeline = recordTimeline(scenario.hooks);
  await scenario.requests(requests, (request) =>
    times(3, async () => {
      await scenario.ask(request);
      await scenario.search(request);
    }),
  );
  timeline.stop();
  // Recorded at a hundredth of the times that real services take.
  await writeFile(`${IMAGES}/${name}.svg`, `${timeline.toSvg({ title, timeScale: 100 })}\n`);
  console.log(`${name}: ${scenario.diagnose().bottleneck?.message}`);
}

const llm = { latencyMs: 60 };
const serper = { latencyMs: 15 };
await drawBottleneck(
  'pool-too-small',
  'A pool that is too small: requests wait (violet), instances are all busy',
  { services: { llm, serper }, poolSize: 2 },
  6,
);
await drawBottleneck(
  'rate-window',
  'A rate window that is too tight: calls wait (amber) while instances are held',
  { services: { llm, serper }, poolSize: 4, serper: { rate: [{ limit: 1, perMs: 60 }], keys: ['key-1'] } },
  4,
);
await drawBottleneck(
  'service-at-limit',
  'An LLM at its batch limit: no request waits here, and every call takes long',
  { services: { llm: { ...llm, maxNumSeqs: 1 }, serper }, poolSize: 4 },
  4,
);

const stubs = await startStubServices({
  llm: { latencyMs: 700, perTokenMs: 15, maxNumSeqs: 8 },
  serper: { latencyMs: 250 },
  jina: { latencyMs: 400 },
  e2b: { latencyMs: 300 },
});
const keys = { SERPER_API_KEY: 'serper-key-one-9f3a,serper-key-two-c41d', JINA_API_KEY: 'jina-key-one-77e1' };
const { serper: serperKeys, jina: jinaKeys, ...rest } = serviceSettings(keys, stubs);
const server = await startResearchServer({
  services: {
    ...rest,
    serper: { ...serperKeys, url: stubs.serper.url },
    jina: { ...jinaKeys, url: stubs.jina.url },
  },
  gates: { serper: { rate: [{ limit: 4, perMs: 4_000 }] }, e2b: { rate: [] } },
  logger: { debug: () => {}, info: () => {}, warn: () => {}, error: () => {} },
});
const asking = { going: true };
const client = async (name: string, tenant: string): Promise<void> => {
  for (let i = 0; asking.going; i++) {
    const body = JSON.stringify({ question: `${name}, question ${i}` });
    const headers = { 'x-tenant': tenant };
    await fetch(`${server.url}/research`, { method: 'POST', headers, body }).then((answer) => answer.text());
    await sleep(500 + Math.random() * 4_000);
  }
};
const clients = Array.from({ length: 9 }, (_, i) => client(`Reader ${i}`, i < 6 ? 'acme' : 'initech'));

const browser = await chromium.launch({ executablePath: CHROMIUM, args: FLAGS });
const shots = [
  { name: 'live-page-light', colorScheme: 'light', viewport: { width: 1240, height: 800 } },
  { name: 'live-page-dark', colorScheme: 'dark', viewport: { width: 1240, height: 800 } },
  {
    name: 'live-page-phone',
    colorScheme: 'light',
    viewport: { width: 390, height: 844 },
    deviceScaleFactor: 2,
  },
] as const;
const tabs = await Promise.all(
  shots.map(async ({ name, ...context }) => {
    const tab = await (await browser.newContext(context)).newPage();
    await tab.goto(`${server.url}/live`);
    return { name, tab };
  }),
);
await sleep(Number(process.argv[2] ?? 100_000));
for (const { name, tab } of tabs) {
  await tab.screenshot({ path: `${IMAGES}/${name}.png`, fullPage: name !== 'live-page-phone' });
}
await browser.close();
asking.going = false;
await Promise.all(clients);
await server.close();
await stubs.stop();
