/**
 * Benchmarks of the limiter against its peers.
 *
 *     tsx test/bench/limiter.ts [--quick] [--only ours,p-queue] [--rows run-free,growth] [--processes 5]
 *       [--timeout SECONDS] [--json FILE] [--svg FILE]
 *
 * A process for each library, workload and repetition, one at a time, the libraries in turns, so that a busy moment of
 * the machine meets all of them. CPU time of all threads; nothing collects garbage but V8, in its own time. A figure is
 * the median of the processes, each of which is the median of its samples, and next to it lie the lowest and the highest.
 *
 * All of it takes about an hour on a quiet machine, `--quick` some minutes. The table goes to standard
 * output, everything measured to the JSON file.
 */
import { mkdir, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { parseArgs } from 'node:util';
import { median } from './bare.js';
import { CONTENDERS, type Contender, LIMIT } from './contenders.js';
import {
  buildWorker,
  type Figure,
  figureOf,
  machine,
  markdownTable,
  ROOT,
  runWorker,
  shown,
  versionOf,
} from './harness.js';
import { type Effort, GROWTH, ROWS, type Sample, type Workload } from './limiter-workloads.js';
import { plotSvg } from './plot.js';

const { values: args } = parseArgs({
  options: {
    quick: { type: 'boolean', default: false },
    processes: { type: 'string' },
    timeout: { type: 'string' },
    only: { type: 'string' },
    rows: { type: 'string' },
    json: { type: 'string', default: join(ROOT, '.cache/bench-limiter.json') },
    svg: { type: 'string' },
  },
});

/** What is known of one contender at one workload. */
type Cell =
  | { readonly kind: 'measured'; readonly figure: Figure; readonly processes: readonly (readonly Sample[])[] }
  | { readonly kind: 'cannot' }
  | { readonly kind: 'late'; readonly afterMs: number }
  | { readonly kind: 'failed'; readonly error: string };

const PROCESSES = Number(args.processes ?? (args.quick ? 1 : 5));
const GROWTH_PROCESSES = Math.min(PROCESSES, 3);
const TIMEOUT_MS = 1_000 * Number(args.timeout ?? (args.quick ? 20 : 60));
const EFFORT: Effort = args.quick
  ? { ops: 20_000, samples: 3, budgetMs: 3000 }
  : { ops: 40_000, samples: 15, budgetMs: 10_000 };

function selected<T extends { readonly name: string }>(
  what: string,
  from: readonly T[],
  list: string | undefined,
): readonly T[] {
  if (list === undefined) return from;
  return list.split(',').map((wanted) => {
    const found = from.find(({ name }) => name === wanted);
    if (found !== undefined) return found;
    throw new Error(`There is no ${what} "${wanted}"; there are ${from.map(({ name }) => name).join(', ')}`);
  });
}

const contenders = selected('contender', CONTENDERS, args.only);
const growthRow = { name: 'growth' };
const wanted = selected('row', [...ROWS, growthRow], args.rows);
const rows = ROWS.filter((row) => wanted.includes(row));
const growth = wanted.includes(growthRow) ? GROWTH : [];

const cells = new Map<string, Cell>();
const keyOf = (contender: Contender, workload: Workload): string => `${contender.name} ${workload.name}`;
const cellOf = (contender: Contender, workload: Workload): Cell =>
  cells.get(keyOf(contender, workload)) ?? { kind: 'cannot' };

async function measure(worker: string, contender: Contender, workload: Workload): Promise<void> {
  const key = keyOf(contender, workload);
  const known = cells.get(key);
  if (!contender.skills.includes(workload.needs)) return;
  // What ran out of time once would do so again.
  if (known !== undefined && known.kind !== 'measured') return;
  process.stderr.write(`${key} … `);
  const outcome = await runWorker<Sample[]>(worker, [contender.name, workload.name, JSON.stringify(EFFORT)], {
    timeoutMs: TIMEOUT_MS,
    ...(workload.nodeFlags && { nodeFlags: workload.nodeFlags }),
  });
  if (outcome.kind === 'done') {
    const processes = [...(known?.processes ?? []), outcome.answer];
    const figure = figureOf(processes.map((samples) => median(samples.map(({ value }) => value))));
    cells.set(key, { kind: 'measured', figure, processes });
    process.stderr.write(`${shown(figure.median)} ${workload.unit}\n`);
  } else if (outcome.kind === 'late') {
    cells.set(key, { kind: 'late', afterMs: TIMEOUT_MS });
    process.stderr.write(`over ${TIMEOUT_MS / 1000} s\n`);
  } else {
    cells.set(key, outcome);
    process.stderr.write(`failed: ${outcome.error}\n`);
  }
}

function cellText(cell: Cell): string {
  switch (cell.kind) {
    case 'measured': {
      const { median: middle, lowest, highest, processes } = cell.figure;
      return processes === 1 ? shown(middle) : `${shown(middle)} (${shown(lowest)}–${shown(highest)})`;
    }
    case 'cannot':
      return '–';
    case 'late':
      return `over ${cell.afterMs / 1000} s`;
    case 'failed':
      return 'failed';
  }
}

/** Where ours stands among the others in a row. */
function rank(row: Workload): string {
  const ours = contenders.find(({ name }) => name === 'ours');
  const cell = ours && cellOf(ours, row);
  if (cell?.kind !== 'measured') return '';
  const own = cell.figure.median;
  const rivals = contenders
    .filter((contender) => contender !== ours && !contender.isYardstick)
    .map((rival) => ({
      name: rival.name,
      cell: cellOf(rival, row),
    }));
  const peers = rivals.flatMap(({ name, cell }) =>
    cell.kind === 'measured' ? [{ name, figure: cell.figure }] : [],
  );
  const ahead = peers.filter(({ figure }) => figure.median < own);
  const behind = ahead.map(({ name, figure }) => `${name} (${shown(figure.median)})`).join(', ');
  const alone = rivals.every((rival) => rival.cell.kind === 'cannot');
  return alone ? 'no peer' : ahead.length === 0 ? 'first' : `behind ${behind}`;
}

function markdown(loadBefore: string): string {
  const head = ['', ...contenders.map(({ name }) => name), 'place of ours'];
  const table = rows.map((row) => [
    `${row.title}, ${row.unit}`,
    ...contenders.map((contender) => cellText(cellOf(contender, row))),
    rank(row),
  ]);
  const versions = contenders.flatMap(({ npm }) => (npm === undefined ? [] : [`${npm} ${versionOf(npm)}`]));
  const notes = contenders.flatMap(({ name, note }) => (note === undefined ? [] : [`- ${name}: ${note}`]));
  const failures = [...cells].flatMap(([key, cell]) =>
    cell.kind === 'failed' ? [`- ${key}: ${cell.error}`] : [],
  );
  return [
    `${loadBefore}; at the end: ${machine()}`,
    versions.join(', '),
    `Limit ${LIMIT}; × is the CPU time of one operation over that of a bare \`await fn()\` in the same process. ` +
      `${PROCESSES === 1 ? 'One process' : `Median of ${PROCESSES} processes (lowest–highest)`}, ` +
      `${EFFORT.ops.toLocaleString('en')} operations a sample. Less is better.`,
    markdownTable(head, table),
    ...(notes.length > 0 ? [notes.join('\n')] : []),
    ...(failures.length > 0 ? [`Failed:\n${failures.join('\n')}`] : []),
  ].join('\n\n');
}

function growthSvg(): string {
  return plotSvg({
    title: 'What one queued job costs, as the queue grows',
    subtitle: 'CPU time of queueing, starting and ending it, over that of a bare await. Less is better.',
    xLabel: 'jobs waiting at once',
    yLabel: '× a bare await',
    series: contenders.map((contender) => {
      const points = growth.flatMap((point) => {
        const cell = cellOf(contender, point);
        return cell.kind === 'measured' ? [{ x: point.waiters, y: cell.figure.median }] : [];
      });
      const stopped = points.length > 0 && points.length < growth.length;
      return {
        name: contender.name,
        strong: contender.name === 'ours',
        points,
        ...(stopped && { ends: `then over ${TIMEOUT_MS / 1000} s` }),
      };
    }),
  });
}

async function write(file: string, content: string): Promise<void> {
  await mkdir(dirname(file), { recursive: true });
  await writeFile(file, content);
  process.stderr.write(`wrote ${file}\n`);
}

const before = machine();
const { worker, remove } = await buildWorker('test/bench/limiter-worker.ts');
try {
  for (let turn = 0; turn < PROCESSES; turn++) {
    for (const row of rows) {
      for (const contender of contenders) await measure(worker, contender, row);
    }
  }
  for (let turn = 0; turn < GROWTH_PROCESSES; turn++) {
    for (const contender of contenders) {
      for (const point of growth) {
        await measure(worker, contender, point);
        // More waiters take no less time.
        if (cellOf(contender, point).kind === 'late') break;
      }
    }
  }
} finally {
  await remove();
}

const results = contenders.map((contender) => ({
  contender: contender.name,
  version: contender.npm === undefined ? undefined : versionOf(contender.npm),
  workloads: Object.fromEntries([...rows, ...growth].map((row) => [row.name, cellOf(contender, row)])),
}));
await write(
  args.json,
  `${JSON.stringify({ machine: before, limit: LIMIT, effort: EFFORT, results }, null, 2)}\n`,
);
// A quick look is no reason to replace the picture in the docs.
const svg = args.svg ?? (args.quick ? undefined : join(ROOT, 'docs/images/limiter-growth.svg'));
if (growth.length > 0 && svg !== undefined) await write(svg, growthSvg());
if (rows.length > 0) console.log(markdown(before));
