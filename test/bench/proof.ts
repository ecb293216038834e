/**
 * The load of test/integration/proof.test.ts at the pace of real services: how close the total time comes to the bound
 * that the tightest service sets, and what happens without gates.
 *
 *     npm run bench:proof [-- --requests 200 --time-scale 1 --slack 20 --json FILE --svg FILE]
 *
 * With the defaults it takes about six minutes, most of it waiting. The table goes to standard output. The picture shows
 * who waited for what with gates; it is for few requests.
 */
import { mkdir, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { parseArgs } from 'node:util';
import { LifecycleHooks, recordTimeline } from 'pipeline-pool';
import { type LoadReport, runLoad } from '../integration/research-load.js';
import { LIMITS, LLM_MS, SERPER_KEYS } from '../integration/tight-services.js';
import { machine, markdownTable, ROOT } from './harness.js';

const { values: args } = parseArgs({
  options: {
    requests: { type: 'string', default: '200' },
    'time-scale': { type: 'string', default: '1' },
    slack: { type: 'string', default: '20' },
    json: { type: 'string', default: join(ROOT, '.cache/bench-proof.json') },
    svg: { type: 'string' },
  },
});
const requests = Number(args.requests);
const timeScale = Number(args['time-scale']);
const slackMs = Number(args.slack);

/** The least milliseconds in which each service can bear the work of a whole run, whatever anybody does. */
function boundsMs({ services: { llm, serper, e2b } }: LoadReport): Readonly<Record<string, number>> {
  const searchesOfAKey = Math.ceil((serper.calls - serper.refused) / SERPER_KEYS.length);
  const creations = e2b.creations - e2b.refused;
  const bounds = {
    'creations of E2B': (Math.ceil(creations / LIMITS.creationsPerSecond) - 1) * 1_000,
    'sandboxes of E2B': e2b.livedMs / LIMITS.sandboxes,
    'searches of Serper': (Math.ceil(searchesOfAKey / LIMITS.searchesPerSecond) - 1) * 1_000,
    'batch of the LLM': (llm.calls * LLM_MS) / LIMITS.llmAtOnce,
  };
  return Object.fromEntries(Object.entries(bounds).map(([name, ms]) => [name, ms * timeScale]));
}

const hooks = new LifecycleHooks();
const RUNS = {
  'with gates': { slackMs, hooks },
  'without gates': {},
  'without gates, SDKs retry': { sdkRetries: true },
} as const;

// So that all code is loaded and compiled when it counts, as it is in a service that runs.
await runLoad({ requests: 20, timeScale: 0.05, slackMs: 50 });

const before = machine();
const reports: Record<string, LoadReport> = {};
const recorded = recordTimeline(hooks);
for (const [name, how] of Object.entries(RUNS)) {
  process.stderr.write(`${name} … `);
  const report = await runLoad({ requests, timeScale, ...how });
  reports[name] = report;
  process.stderr.write(`${seconds(report.totalMs)}\n`);
}

function seconds(ms: number): string {
  return `${(ms / 1_000).toFixed(1)} s`;
}

const gated = reports['with gates']!;
const bounds = boundsMs(gated);
const [tightest, boundMs] = Object.entries(bounds).reduce((a, b) => (b[1] > a[1] ? b : a));
const rows: readonly (readonly [string, (report: LoadReport) => string])[] = [
  [`answered, of ${requests}`, ({ answered }) => String(answered)],
  ['total time', ({ totalMs }) => seconds(totalMs)],
  [`LLM: calls at once (${LIMITS.llmAtOnce})`, ({ services }) => String(services.llm.atOnce)],
  [
    `Serper: searches a second, by key (${LIMITS.searchesPerSecond})`,
    ({ services }) => services.serper.seen.join(', '),
  ],
  [`E2B: creations a second (${LIMITS.creationsPerSecond})`, ({ services }) => String(services.e2b.seen)],
  [`E2B: sandboxes at once (${LIMITS.sandboxes})`, ({ services }) => String(services.e2b.sandboxes)],
  ['refused by the LLM', ({ services }) => String(services.llm.refused)],
  ['refused by Serper', ({ services }) => String(services.serper.refused)],
  ['refused by Jina, at random', ({ services }) => String(services.jina.refused)],
  ['refused by E2B', ({ services }) => String(services.e2b.refused)],
  ['sandboxes left', ({ services }) => String(services.e2b.survivors)],
];

const over = gated.totalMs / boundMs - 1;
const result = { machine: before, requests, timeScale, slackMs, bounds, tightest, boundMs, over, reports };
await mkdir(dirname(args.json), { recursive: true });
await writeFile(args.json, `${JSON.stringify(result, null, 2)}\n`);
process.stderr.write(`wrote ${args.json}\n`);
if (args.svg !== undefined) {
  const title = `${requests} requests through five instances and four gates`;
  await writeFile(args.svg, recorded.toSvg({ title, timeScale: 1 / timeScale }));
  process.stderr.write(`wrote ${args.svg}\n`);
}

console.log(
  markdownTable(
    ['', ...Object.keys(reports)],
    rows.map(([name, show]) => [name, ...Object.values(reports).map(show)]),
  ),
);
console.log(
  `\nThe tightest limit, the ${tightest}, allows it in ${seconds(boundMs)} at best: ${(over * 100).toFixed(1)} % over.`,
);
console.log(`${before}. Time scale ${timeScale}, windows of the gates ${slackMs} ms longer.`);
