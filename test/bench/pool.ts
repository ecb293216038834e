/**
 * Benchmarks of the pool against its peers.
 *
 *     tsx test/bench/pool.ts [--quick] [--only ours,generic-pool] [--rows idle,bytes,growth]
 *
 * A process for each library, workload and repetition, one at a time, the libraries in turns, so that a busy moment of
 * the machine meets all of them. CPU time of all threads; nothing collects garbage but V8, in its own time. A figure is
 * the median of the processes, each of which is the median of its samples, and next to it lie the lowest and the highest.
 */
import { parseArgs } from 'node:util';
import { median } from './bare.js';
import {
  buildWorker,
  type Figure,
  figureOf,
  machine,
  markdownTable,
  runWorker,
  shown,
  versionOf,
} from './harness.js';
import { POOL_CONTENDERS, type PoolContender, SIZE } from './pool-contenders.js';
import { POOL_GROWTH, POOL_ROWS, type PoolSample, type PoolWorkload } from './pool-workloads.js';

const { values: args } = parseArgs({
  options: {
    quick: { type: 'boolean', default: false },
    only: { type: 'string' },
    rows: { type: 'string' },
  },
});

const PROCESSES = args.quick ? 1 : 5;
const TIMEOUT_MS = 120_000;

/** One contender at one workload: multiples of a bare await, or bytes. */
type Cell =
  | { readonly kind: 'measured'; readonly values: readonly number[]; readonly ns: readonly number[] }
  | { readonly kind: 'late' }
  | { readonly kind: 'failed'; readonly error: string };

const names = (list: string | undefined): readonly string[] | undefined => list?.split(',');
const contenders = POOL_CONTENDERS.filter(({ name }) => names(args.only)?.includes(name) ?? true);
const rows = POOL_ROWS.filter(({ name }) => names(args.rows)?.includes(name) ?? true);
const growth = names(args.rows)?.includes('growth') === false ? [] : POOL_GROWTH;

const cells = new Map<string, Cell>();
const keyOf = (contender: PoolContender, workload: PoolWorkload): string =>
  `${contender.name} ${workload.name}`;

async function measure(worker: string, contender: PoolContender, workload: PoolWorkload): Promise<void> {
  const key = keyOf(contender, workload);
  const known = cells.get(key);
  if (known !== undefined && known.kind !== 'measured') return;
  process.stderr.write(`${key} … `);
  const outcome = await runWorker<PoolSample[]>(worker, [contender.name, workload.name], {
    timeoutMs: TIMEOUT_MS,
    ...(workload.nodeFlags === undefined ? {} : { nodeFlags: workload.nodeFlags }),
  });
  if (outcome.kind === 'done') {
    const value = median(outcome.answer.map((sample) => sample.value / (sample.bareNs ?? 1)));
    const ns = median(outcome.answer.map((sample) => sample.value));
    cells.set(key, {
      kind: 'measured',
      values: [...(known?.values ?? []), value],
      ns: [...(known?.ns ?? []), ns],
    });
    process.stderr.write(`${shown(value)} (${shown(ns)})\n`);
  } else if (outcome.kind === 'late') {
    cells.set(key, { kind: 'late' });
    process.stderr.write('late\n');
  } else {
    cells.set(key, outcome);
    process.stderr.write(`failed: ${outcome.error}\n`);
  }
}

function figure(contender: PoolContender | undefined, workload: PoolWorkload): Figure | undefined {
  const cell = contender === undefined ? undefined : cells.get(keyOf(contender, workload));
  return cell?.kind === 'measured' ? figureOf(cell.values) : undefined;
}

function cellText(contender: PoolContender, workload: PoolWorkload): string {
  const cell = cells.get(keyOf(contender, workload));
  if (cell === undefined) return '–';
  if (cell.kind === 'late') return `over ${TIMEOUT_MS / 1000} s`;
  if (cell.kind === 'failed') return 'failed';
  const { median: middle, lowest, highest, processes } = figureOf(cell.values);
  return processes === 1 ? shown(middle) : `${shown(middle)} (${shown(lowest)}–${shown(highest)})`;
}

/** Ours against generic-pool in the same run. */
function quotient(row: PoolWorkload): string {
  const own = figure(
    contenders.find(({ npm }) => npm === undefined),
    row,
  );
  const other = figure(
    contenders.find(({ name }) => name === 'generic-pool'),
    row,
  );
  if (own === undefined || other === undefined) return '';
  return (own.median / other.median).toFixed(2);
}

function markdown(before: string): string {
  const head = ['', ...contenders.map(({ name }) => name), 'ours ÷ generic-pool'];
  const table = [...rows, ...growth].map((row) => [
    `${row.title}, ${row.unit === 'bytes' ? 'bytes' : '×'}`,
    ...contenders.map((contender) => cellText(contender, row)),
    quotient(row),
  ]);
  const versions = contenders.flatMap(({ npm }) => (npm === undefined ? [] : [`${npm} ${versionOf(npm)}`]));
  const notes = contenders.flatMap(({ name, note }) => (note === undefined ? [] : [`- ${name}: ${note}`]));
  return [
    `${before}; at the end: ${machine()}`,
    versions.join(', '),
    `${SIZE} instances; × is the CPU time of one operation over that of a bare \`await fn()\` in the same process. Median of ` +
      `${PROCESSES} processes (lowest–highest). Less is better.`,
    markdownTable(head, table),
    ...(notes.length > 0 ? [notes.join('\n')] : []),
  ].join('\n\n');
}

const before = machine();
const { worker, remove } = await buildWorker('test/bench/pool-worker.ts');
try {
  for (let turn = 0; turn < PROCESSES; turn++) {
    for (const row of [...rows, ...growth]) {
      for (const contender of contenders) await measure(worker, contender, row);
    }
  }
} finally {
  await remove();
}
console.log(markdown(before));
