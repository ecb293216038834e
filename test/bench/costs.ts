/**
 * What a gate, a tool, a request and an observer cost, beside other libraries:
 *
 *     tsx test/bench/costs.ts gate|manager|flat [--quick] [--processes 3] [--svg docs/images/gate-growth.svg]
 *
 * A process for each cell, the cells in turns; CPU time over that of a bare await in the same process. Prints Markdown, each
 * table as soon as it is measured; progress goes to standard error. A cell takes 40 s at most (`flat`: 60 s). `--svg` draws what
 * `flat` has measured.
 */
import { writeFile } from 'node:fs/promises';
import { parseArgs } from 'node:util';
import { buildWorker, type Figure, figureOf, machine, markdownTable, runWorker, shown } from './harness.js';
import { plotSvg, type Series } from './plot.js';

const { values: args, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    quick: { type: 'boolean', default: false },
    processes: { type: 'string' },
    svg: { type: 'string' },
  },
});
const PROCESSES = Number(args.processes ?? (args.quick ? 1 : 3));
const [which] = positionals;
const isFlat = which === 'flat';
const EFFORT = JSON.stringify(
  args.quick ? { ops: 2_000, samples: 3 } : { ops: 4_000, samples: isFlat ? 3 : 5 },
);
/** A peer that takes a timer for each call. */
const SLOW = 'bottleneck';
const SLOW_EFFORT = JSON.stringify({ ops: 250, samples: 3 });
/** Most samples fit into so large a young generation without a collection, and the first ones fill it. */
const WITHOUT_GC = ['--min-semi-space-size=256', '--max-semi-space-size=256'];
const WITHOUT_GC_EFFORT = JSON.stringify({ ops: 10_000, samples: args.quick ? 21 : 41 });
/** Few queued calls cost so little that V8 compiles the gate while they are measured, unless that is over before. */
const GROWTH_EFFORT = JSON.stringify({ ops: 10_000, samples: args.quick ? 3 : 7, warmUps: 8 });
/** The last sizes of `flat` fill a window with a million calls, or queue 100,000 several times. */
const TIMEOUT_MS = isFlat ? 60_000 : 40_000;

interface Row {
  readonly title: string;
  readonly name: string;
  /** `sequence`, how many are queued at once, or another kind of measurement. */
  readonly load: string;
  readonly goal?: number;
  /** Measured without garbage collection, as far as the young generation can hold all of a sample. */
  readonly gcAside?: boolean;
  /** Compared with rows of other loads, so that none may contain the compilation of the code. */
  readonly warm?: boolean;
}

const GATE: readonly Row[] = [
  { title: '`gate.run`, no options', name: 'gate, no options', load: 'sequence', goal: 80 },
  { title: '… `maxConcurrent`', name: 'gate, maxConcurrent', load: 'sequence', goal: 100 },
  {
    title: '… and `fn` reads its signal',
    name: 'gate, reads signal',
    load: 'sequence',
    goal: 180,
  },
  {
    title: '… 3 keys, 2 windows, signal, timeouts, tenant',
    name: 'gate, all',
    load: 'sequence',
    goal: 150,
  },
  {
    title: '… 1,000 queued, `maxConcurrent`',
    name: 'gate, maxConcurrent',
    load: '1000',
    goal: 120,
  },
  { title: '… 10,000 queued', name: 'gate, maxConcurrent', load: '10000', goal: 200 },
  { title: 'bytes of a queued call', name: 'bytes', load: 'bytes', goal: 2_500 },
  { title: 'cache hit', name: 'gate, cache hit', load: 'sequence', goal: 12 },
  { title: 'a start behind a full window, µs', name: 'gate', load: 'window', goal: 40 },
  { title: '… after 25,000 others, µs', name: 'gate, compiled', load: 'window' },
  { title: '… of p-throttle, strict, µs', name: 'p-throttle', load: 'window' },
  { title: '… of p-queue, strict, µs', name: 'p-queue', load: 'window' },
  { title: '… of a bare timer, µs', name: 'bare timer', load: 'window' },
  { title: 'tool call', name: 'tool', load: 'sequence', goal: 80 },
  { title: 'tool call through a gate', name: 'tool, gate', load: 'sequence', goal: 250 },
];
const GATE_PEERS = [
  'p-queue',
  'p-throttle',
  'limiter',
  'rate-limiter-flexible',
  'cockatiel',
  'opossum',
  'p-retry + p-limit',
  'bottleneck',
  'glue',
];
const MANAGER: readonly Row[] = [
  {
    title: '`manager.run`, `trackRequests: false`',
    name: 'manager',
    load: 'sequence',
    goal: 85,
  },
  { title: '… 1,000 queued', name: 'manager', load: '1000', goal: 150 },
  { title: '… `trackRequests` on', name: 'manager, trackRequests', load: 'sequence' },
  {
    title: '… with `collectMetrics`',
    name: 'manager, collectMetrics',
    load: 'sequence',
    goal: 250,
  },
  {
    title: '… with log, metrics, timeline, traces',
    name: 'manager, all observers',
    load: 'sequence',
    goal: 500,
  },
  { title: 'a streamed item', name: 'manager', load: 'stream', goal: 5 },
  { title: '… `trackRequests` on', name: 'manager, trackRequests', load: 'stream' },
  { title: '… through a gate', name: 'gate', load: 'stream' },
  { title: '… of a checked iterator', name: 'checked', load: 'stream' },
  { title: '… of the async generator alone', name: 'generator', load: 'stream' },
];
const MANAGER_PEERS = ['p-queue + generic-pool', '… + AbortController + uuid'];
/** So many calls behind one that runs. */
const queuedCalls = (counts: readonly number[], gcAside: boolean): readonly Row[] =>
  counts.map((n) => ({
    title: `${n}`,
    name: 'gate, one at a time',
    load: `${n + 1}`,
    gcAside,
    warm: n <= 10_000,
  }));
const FLAT: Readonly<Record<string, readonly Row[]>> = {
  'queued calls': queuedCalls([10, 100, 1_000, 10_000, 100_000], false),
  'queued calls, garbage collection aside': queuedCalls([10, 100, 1_000, 10_000], true),
  keys: ['1', '10', '100', '1000'].map((n) => ({ title: n, name: `keys=${n}`, load: '100' })),
  'window entries': ['100', '1000', '10000', '100000', '1000000'].map((n) => ({
    title: n,
    name: `entries=${n}`,
    load: '100',
  })),
  tenants: ['1', '10', '100', '1000', '10000', '100000'].map((n) => ({
    title: n,
    name: `tenants=${n}`,
    // As many calls at once as the most tenants, so that each has one.
    load: '100000',
  })),
};

const { worker, remove } = await buildWorker('test/bench/costs-worker.ts');

/** Measures all rows, in turns. */
async function measure(rows: readonly Row[]): Promise<Map<Row, Figure | string>> {
  const found = new Map<Row, number[]>();
  const failed = new Map<Row, string>();
  for (let round = 0; round < PROCESSES; round++) {
    for (const row of rows) {
      if (failed.has(row)) continue;
      process.stderr.write(`${round + 1}/${PROCESSES} ${row.name} ${row.load}\n`);
      const nodeFlags = row.load === 'bytes' ? ['--expose-gc'] : row.gcAside ? WITHOUT_GC : [];
      const warmth = row.warm ? GROWTH_EFFORT : EFFORT;
      const effort = row.name === SLOW ? SLOW_EFFORT : row.gcAside ? WITHOUT_GC_EFFORT : warmth;
      const outcome = await runWorker<number>(worker, [row.name, row.load, effort], {
        nodeFlags,
        timeoutMs: TIMEOUT_MS,
      });
      if (outcome.kind === 'done') found.set(row, [...(found.get(row) ?? []), outcome.answer]);
      else if (outcome.kind === 'late') failed.set(row, `over ${TIMEOUT_MS / 1_000} s`);
      else {
        failed.set(row, 'failed');
        console.error(row.name, outcome.error);
      }
    }
  }
  return new Map(rows.map((row) => [row, failed.get(row) ?? figureOf(found.get(row)!)]));
}

const cell = (figure: Figure | string): string =>
  typeof figure === 'string'
    ? figure
    : `${shown(figure.median)} (${shown(figure.lowest)}–${shown(figure.highest)})`;

/** The design's figure for a row, and what was measured as a multiple of it. */
function goalOf({ goal }: Row, figure: Figure | string): string[] {
  if (goal === undefined || typeof figure === 'string') return ['–', '–'];
  return [shown(goal), (figure.median / goal).toFixed(2)];
}

async function table(
  rows: readonly Row[],
  peers: readonly string[],
  loads: readonly string[],
): Promise<void> {
  const ours = await measure(rows);
  console.log(
    markdownTable(
      ['', '× a bare await', 'goal', '÷ goal'],
      rows.map((row) => [row.title, cell(ours.get(row)!), ...goalOf(row, ours.get(row)!)]),
    ),
  );
  const cells = peers.flatMap((name) => loads.map((load) => ({ title: name, name, load })));
  const theirs = await measure(cells);
  console.log('');
  console.log(
    markdownTable(
      [
        'peer, × a bare await',
        'in sequence',
        ...loads.slice(1).map((load) => `${Number(load).toLocaleString('en')} queued`),
      ],
      peers.map((name) => [
        name,
        ...cells.filter((one) => one.name === name).map((one) => cell(theirs.get(one)!)),
      ]),
    ),
  );
}

async function flatness(): Promise<void> {
  const series: Series[] = [];
  for (const [what, rows] of Object.entries(FLAT)) {
    const all = await measure(rows);
    const medians = [...all.values()].map((figure) =>
      typeof figure === 'string' ? Number.NaN : figure.median,
    );
    const points = medians.map((y, i) => ({ x: Number(rows[i]!.title), y }));
    series.push({ name: what, strong: true, points: points.filter(({ y }) => !Number.isNaN(y)) });
    const ratio = Math.max(...medians) / Math.min(...medians);
    console.log(
      `${markdownTable(
        [what, ...rows.map(({ title }) => Number(title).toLocaleString('en')), 'highest ÷ lowest'],
        [['× a bare await', ...rows.map((row) => cell(all.get(row)!)), ratio.toFixed(2)]],
      )}\n`,
    );
  }
  if (args.svg === undefined) return;
  const svg = plotSvg({
    title: 'What one call through a gate costs, as something grows',
    subtitle: 'CPU time of a call from its start to its end, over that of a bare await. Flat is good.',
    xLabel: 'how many of them',
    yLabel: '× a bare await',
    series,
  });
  await writeFile(args.svg, svg);
  process.stderr.write(`wrote ${args.svg}\n`);
}

try {
  console.log(`${machine()}; median of ${PROCESSES} processes (lowest–highest)\n`);
  if (which === 'gate') await table(GATE, GATE_PEERS, ['sequence', '1000']);
  else if (which === 'manager') await table(MANAGER, MANAGER_PEERS, ['sequence', '1000']);
  else if (isFlat) await flatness();
  else throw new Error('Name one of `gate`, `manager` and `flat`');
  console.log(`\nAt the end: ${machine()}`);
} finally {
  await remove();
}
