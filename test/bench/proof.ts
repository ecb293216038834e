/**
 * The load of test/integration/proof.test.ts at the pace of real services: how close the total time comes to the bound
 * that the tightest service sets, and what happens without gates.
 *
 *     npm run bench:proof [-- --runs 1 --requests 200 --time-scale 1 --json FILE --svg FILE]
 *
 * With the defaults it takes about seven minutes, most of it waiting, and three and a half more for each further run with
 * gates. The table goes to standard output. The picture shows who waited for what with gates; it is for few requests.
 */
import { mkdir, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { parseArgs } from 'node:util';
import { LifecycleHooks } from 'pipeline-pool';
import { recordTimeline } from 'pipeline-pool/timeline';
import { type LoadReport, runLoad } from '../support/research-loads.js';
import { LIMITS, SERPER_KEYS, TAKES_MS } from '../support/tight-limits.js';
import { figureOf, machine, markdownTable, ROOT } from './harness.js';

const { values: args } = parseArgs({
  options: {
    runs: { type: 'string', default: '1' },
    requests: { type: 'string', default: '200' },
    'time-scale': { type: 'string', default: '1' },
    json: { type: 'string', default: join(ROOT, '.cache/bench-proof.json') },
    svg: { type: 'string' },
  },
});
const requests = Number(args.requests);
const timeScale = Number(args['time-scale']);
const pace = { timeScale, secondMs: 1_000 * timeScale };
/** For creations that of the presets. The other windows are not the tightest and can afford more. */
const margins = { creationMs: 25, otherMs: 100 };

/**
 * The least milliseconds in which each service can bear what it was asked for, whatever anybody does. A window lets the
 * first of its starts through at once, and its limit in each second; so many calls at once take their time.
 */
function boundsMs({ services: { llm, serper, jina, e2b } }: LoadReport): Readonly<Record<string, number>> {
  const window = (starts: number, perSecond: number): number => (Math.ceil(starts / perSecond) - 1) * 1_000;
  const searchesOfAKey = Math.ceil((serper.calls - serper.refused) / SERPER_KEYS.length);
  const bounds = {
    'creations of E2B': window(e2b.creations - e2b.refused, LIMITS.creationsPerSecond),
    'pages of Jina': window(jina.calls - jina.refused, LIMITS.pagesPerSecond),
    'sandboxes of E2B': e2b.neededMs / LIMITS.sandboxes,
    'searches of Serper': window(searchesOfAKey, LIMITS.searchesPerSecond),
    'batch of the LLM': ((llm.calls - llm.refused) * TAKES_MS.llm) / LIMITS.llmAtOnce,
  };
  return Object.fromEntries(Object.entries(bounds).map(([name, ms]) => [name, ms * timeScale]));
}

const hooks = new LifecycleHooks();
const RUNS = [
  ...Array.from({ length: Number(args.runs) }, () => ({ name: 'with gates', how: { margins, hooks } })),
  { name: 'without gates', how: {} },
  { name: 'without gates, SDKs retry', how: { sdkRetries: true } },
];

// So that all code is loaded and compiled when it counts, as it is in a service that runs.
await runLoad({ requests: 20, pace: { timeScale: 0.05, secondMs: 50 }, margins });

const machines: string[] = [];
const reports: Record<string, LoadReport[]> = {};
const recorded = args.svg === undefined ? undefined : recordTimeline(hooks);
for (const { name, how } of RUNS) {
  machines.push(machine());
  process.stderr.write(`${name}, ${machines.at(-1)} … `);
  const report = await runLoad({ requests, pace, ...how });
  reports[name] = [...(reports[name] ?? []), report];
  process.stderr.write(`${seconds(report.totalMs)}\n`);
}

function seconds(ms: number): string {
  return `${(ms / 1_000).toFixed(1)} s`;
}

/** The middle of several runs, and how far they lie apart. */
function spread(values: readonly number[], show: (value: number) => string): string {
  const { median, lowest, highest } = figureOf(values);
  const [from, to] = [show(lowest), show(highest)];
  return from === to ? from : `${show(median)} (${from} to ${to})`;
}

/** A count has no middle. */
function range(counts: readonly number[]): string {
  const { lowest, highest } = figureOf(counts);
  return lowest === highest ? String(lowest) : `${lowest} to ${highest}`;
}

type Row = readonly [name: string, count: (report: LoadReport) => number];
const rows: readonly Row[] = [
  [`answered, of ${requests}`, ({ answered }) => answered],
  [`LLM: calls at once (${LIMITS.llmAtOnce})`, ({ services }) => services.llm.atOnce],
  [
    `Serper: searches a second, by one key (${LIMITS.searchesPerSecond})`,
    ({ services }) => Math.max(...services.serper.inASecond),
  ],
  [`Jina: pages a second (${LIMITS.pagesPerSecond})`, ({ services }) => services.jina.inASecond],
  [`E2B: creations a second (${LIMITS.creationsPerSecond})`, ({ services }) => services.e2b.inASecond],
  [`E2B: sandboxes at once (${LIMITS.sandboxes})`, ({ services }) => services.e2b.sandboxes],
  ['refused by the LLM', ({ services }) => services.llm.refused],
  ['refused by Serper', ({ services }) => services.serper.refused],
  ['refused by Jina, for asking too much', ({ services: { jina } }) => jina.refused - jina.refusedAtRandom],
  ['refused by Jina, at random', ({ services }) => services.jina.refusedAtRandom],
  ['refused by E2B', ({ services }) => services.e2b.refused],
  ['sandboxes left', ({ services }) => services.e2b.survivors],
];

const gated = reports['with gates']!;
const bounds = boundsMs(gated[0]!);
const [tightest, boundMs] = Object.entries(bounds).reduce((a, b) => (b[1] > a[1] ? b : a));
const over = gated.map(({ totalMs }) => totalMs / boundMs - 1);
/** Where a run's time beyond the bound of the creations has gone. */
const spent = gated.map(({ totalMs, services: { e2b } }) => {
  const marginsMs = (requests - 1) * margins.creationMs;
  return {
    'the margin of the window': marginsMs,
    'before the first creation and after the last': totalMs - e2b.creatingMs,
    'refusals, timers and the way': e2b.creatingMs - marginsMs - (requests - 1) * pace.secondMs,
  };
});
const late = gated.map(({ services: { serper, jina, e2b } }) => ({
  searches: serper.transitMs,
  pages: jina.transitMs,
  creations: e2b.transitMs,
}));

const result = {
  machines,
  requests,
  timeScale,
  margins,
  bounds,
  tightest,
  boundMs,
  over,
  spent,
  late,
  reports,
};
await mkdir(dirname(args.json), { recursive: true });
await writeFile(args.json, `${JSON.stringify(result, null, 2)}\n`);
process.stderr.write(`wrote ${args.json}\n`);
if (recorded !== undefined && args.svg !== undefined) {
  const title = `${requests} requests through five instances and four gates`;
  await writeFile(args.svg, recorded.toSvg({ title, timeScale: 1 / timeScale }));
  process.stderr.write(`wrote ${args.svg}\n`);
}

const runs = Object.values(reports);
console.log(
  markdownTable(
    ['', ...Object.keys(reports)],
    [
      [
        'total time',
        ...runs.map((same) =>
          spread(
            same.map(({ totalMs }) => totalMs),
            seconds,
          ),
        ),
      ],
      ...rows.map(([name, count]) => [name, ...runs.map((same) => range(same.map(count)))]),
    ],
  ),
);
console.log(
  `\nAt best: ${Object.entries(bounds)
    .map(([name, ms]) => `${name} ${seconds(ms)}`)
    .join(', ')}.`,
);
console.log(
  `Over the bound of the tightest, the ${tightest}: ${spread(over, (share) => `${(share * 100).toFixed(1)} %`)}; of it`,
);
for (const part of Object.keys(spent[0]!) as (keyof (typeof spent)[0])[]) {
  console.log(
    `- ${part}: ${spread(
      spent.map((one) => one[part]),
      seconds,
    )}`,
  );
}
for (const what of Object.keys(late[0]!) as (keyof (typeof late)[0])[]) {
  const ms = (of: 'median' | 'longest') =>
    spread(
      late.map((one) => one[what][of]),
      (value) => `${value.toFixed(1)} ms`,
    );
  console.log(`- from a gate to its service, ${what}: median ${ms('median')}, longest ${ms('longest')}`);
}
console.log(`${machines[0]}. Time scale ${timeScale}, ${gated.length} runs with gates.`);
