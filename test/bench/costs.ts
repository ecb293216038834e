/**
 * What a gate, a tool, a request and an observer cost, beside other libraries:
 *
 *     tsx test/bench/costs.ts gate|manager|flat [--quick] [--processes 3]
 *
 * A process for each cell, the cells in turns; CPU time over that of a bare await in the same process. Prints Markdown.
 */
import { parseArgs } from 'node:util';
import { buildWorker, type Figure, figureOf, machine, markdownTable, runWorker, shown } from './harness.js';

const { values: args, positionals } = parseArgs({
  allowPositionals: true,
  options: { quick: { type: 'boolean', default: false }, processes: { type: 'string' } },
});
const PROCESSES = Number(args.processes ?? (args.quick ? 1 : 3));
const EFFORT = JSON.stringify(args.quick ? { ops: 2_000, samples: 3 } : { ops: 4_000, samples: 5 });
const TIMEOUT_MS = 25_000;

interface Row {
  readonly title: string;
  readonly name: string;
  /** `sequence`, how many are queued at once, or another kind of measurement. */
  readonly load: string;
  readonly required?: number;
  readonly goal?: number;
}

const GATE: readonly Row[] = [
  { title: '`gate.run`, no options', name: 'gate, no options', load: 'sequence', required: 125, goal: 80 },
  { title: '… `maxConcurrent`', name: 'gate, maxConcurrent', load: 'sequence', required: 145, goal: 100 },
  {
    title: '… and `fn` reads its signal',
    name: 'gate, reads signal',
    load: 'sequence',
    required: 230,
    goal: 180,
  },
  {
    title: '… 3 keys, 2 windows, signal, timeouts, tenant',
    name: 'gate, all',
    load: 'sequence',
    required: 190,
    goal: 150,
  },
  {
    title: '… 1,000 queued, `maxConcurrent`',
    name: 'gate, maxConcurrent',
    load: '1000',
    required: 150,
    goal: 120,
  },
  { title: '… 10,000 queued', name: 'gate, maxConcurrent', load: '10000', required: 350, goal: 200 },
  { title: 'bytes of a queued call', name: 'bytes', load: 'bytes', required: 4_300, goal: 2_500 },
  { title: 'cache hit', name: 'gate, cache hit', load: 'sequence', required: 20, goal: 12 },
  { title: 'a start behind a full window, µs', name: 'window', load: 'window', required: 75, goal: 40 },
  { title: 'tool call', name: 'tool', load: 'sequence', required: 120, goal: 80 },
  { title: 'tool call through a gate', name: 'tool, gate', load: 'sequence', required: 450, goal: 250 },
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
    required: 110,
    goal: 85,
  },
  { title: '… 1,000 queued', name: 'manager', load: '1000', required: 260, goal: 150 },
  { title: '… `trackRequests` on', name: 'manager, trackRequests', load: 'sequence' },
  {
    title: '… with `collectMetrics`',
    name: 'manager, collectMetrics',
    load: 'sequence',
    required: 400,
    goal: 250,
  },
  {
    title: '… with log, metrics, timeline, traces',
    name: 'manager, all observers',
    load: 'sequence',
    required: 700,
    goal: 500,
  },
  { title: 'a streamed item', name: 'stream', load: 'stream', required: 8, goal: 5 },
];
const MANAGER_PEERS = ['p-queue + generic-pool', '… + AbortController + uuid'];
const FLAT: Readonly<Record<string, readonly Row[]>> = {
  'queued calls': ['10', '100', '1000', '10000', '100000'].map((load) => ({
    title: load,
    name: 'gate, maxConcurrent',
    load,
  })),
  keys: ['1', '10', '100', '1000'].map((n) => ({ title: n, name: `keys=${n}`, load: '100' })),
  'window entries': ['100', '1000', '10000', '100000', '1000000'].map((n) => ({
    title: n,
    name: `entries=${n}`,
    load: '100',
  })),
  tenants: ['1', '10', '100', '1000', '10000', '100000'].map((n) => ({
    title: n,
    name: `tenants=${n}`,
    load: n === '100000' ? '100000' : '10000',
  })),
};

const { worker, remove } = await buildWorker('test/bench/costs-worker.ts');

/** Measures all rows, in turns. */
async function measure(rows: readonly Row[]): Promise<Map<Row, Figure | string>> {
  const found = new Map<Row, number[]>();
  const failed = new Map<Row, string>();
  for (let process = 0; process < PROCESSES; process++) {
    for (const row of rows) {
      if (failed.has(row)) continue;
      const nodeFlags = row.load === 'bytes' ? ['--expose-gc'] : [];
      const outcome = await runWorker<number>(worker, [row.name, row.load, EFFORT], {
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

/** How far a row is from its goal, and whether it is below what is required. */
function standing({ required, goal }: Row, figure: Figure | string): string[] {
  if (required === undefined || goal === undefined || typeof figure === 'string') return ['–', '–', '–'];
  const share = (limit: number) => `${shown(limit)} (${((100 * figure.median) / limit).toFixed(0)} %)`;
  return [share(required), share(goal), figure.median <= required ? 'below' : 'above'];
}

async function table(
  rows: readonly Row[],
  peers: readonly string[],
  loads: readonly string[],
): Promise<void> {
  const ours = await measure(rows);
  console.log(
    markdownTable(
      ['', '× a bare await', 'required (share of it)', 'goal (share of it)', 'against required'],
      rows.map((row) => [row.title, cell(ours.get(row)!), ...standing(row, ours.get(row)!)]),
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
  for (const [what, rows] of Object.entries(FLAT)) {
    const all = await measure(rows);
    const medians = [...all.values()].map((figure) =>
      typeof figure === 'string' ? Number.NaN : figure.median,
    );
    const ratio = Math.max(...medians) / Math.min(...medians);
    console.log(
      `${markdownTable(
        [what, ...rows.map(({ title }) => Number(title).toLocaleString('en')), 'highest ÷ lowest'],
        [['× a bare await', ...rows.map((row) => cell(all.get(row)!)), ratio.toFixed(2)]],
      )}\n`,
    );
  }
}

try {
  console.log(`${machine()}; median of ${PROCESSES} processes (lowest–highest)\n`);
  const [which] = positionals;
  if (which === 'gate') await table(GATE, GATE_PEERS, ['sequence', '1000']);
  else if (which === 'manager') await table(MANAGER, MANAGER_PEERS, ['sequence', '1000']);
  else if (which === 'flat') await flatness();
  else throw new Error('Name one of `gate`, `manager` and `flat`');
  console.log(`\nAt the end: ${machine()}`);
} finally {
  await remove();
}
