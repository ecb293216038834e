/**
 * Compares two checkouts of this repository: every row of the limiter's and the pool's tables, ours only.
 *
 *     tsx test/bench/compare.ts OLD NEW [--quick] [--processes 7] [--rows run-free,burst-1000,pool:idle]
 *
 * A process for each checkout, row and repetition, the checkouts by turns, so that slow moments of the machine meet both.
 * A row passes if the new median is at most 1.05 times the old one, or if their ranges overlap. Exits with 1 if one fails.
 */
import { resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { median } from './bare.js';
import { buildWorker, figureOf, machine, markdownTable, runWorker, shown } from './harness.js';
import { type Effort, ROWS } from './limiter-workloads.js';
import { POOL_GROWTH, POOL_ROWS } from './pool-workloads.js';

const { values: args, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    quick: { type: 'boolean', default: false },
    processes: { type: 'string' },
    rows: { type: 'string' },
  },
});
const [before, after] = positionals.map((path) => resolve(path));
if (before === undefined || after === undefined) throw new Error('Usage: compare.ts OLD NEW');

const PROCESSES = Number(args.processes ?? (args.quick ? 3 : 7));
const EFFORT: Effort = args.quick
  ? { ops: 20_000, samples: 3, budgetMs: 2_000 }
  : { ops: 40_000, samples: 9, budgetMs: 6_000 };
const ALLOWED = 1.05;

/** A sample of either worker; a pool's is divided by its bare await here, a limiter's is already. */
interface Sample {
  readonly value: number;
  readonly bareNs?: number;
}

const nodeFlagsOf = ({ nodeFlags }: { readonly nodeFlags?: readonly string[] }) =>
  nodeFlags === undefined ? {} : { nodeFlags };
const rows = [
  ...ROWS.map((row) => ({
    name: row.name,
    title: `${row.title}, ${row.unit}`,
    entry: 'test/bench/limiter-worker.ts',
    args: ['ours', row.name, JSON.stringify(EFFORT)],
    ...nodeFlagsOf(row),
  })),
  ...[...POOL_ROWS, ...(args.quick ? [] : POOL_GROWTH)].map((row) => ({
    name: `pool:${row.name}`,
    title: `pool: ${row.title}, ${row.unit === 'ns' ? '×' : row.unit}`,
    entry: 'test/bench/pool-worker.ts',
    args: ['ours', row.name],
    ...nodeFlagsOf(row),
  })),
].filter(({ name }) => args.rows?.split(',').includes(name) ?? true);

const machineBefore = machine();
const entries = [...new Set(rows.map(({ entry }) => entry))];
const checkouts = [before, after];
const builds = await Promise.all(
  checkouts.map(async (root) => {
    const workers = await Promise.all(entries.map((entry) => buildWorker(entry, root)));
    return new Map(entries.map((entry, i) => [entry, workers[i]!]));
  }),
);
const measured = new Map(rows.map(({ name }) => [name, checkouts.map(() => [] as number[])]));
try {
  for (let turn = 0; turn < PROCESSES; turn++) {
    for (const row of rows) {
      for (const which of turn % 2 === 0 ? [0, 1] : [1, 0]) {
        const { worker } = builds[which]!.get(row.entry)!;
        const outcome = await runWorker<Sample[]>(worker, row.args, { timeoutMs: 120_000, ...row });
        if (outcome.kind !== 'done') throw new Error(`${row.name}: ${JSON.stringify(outcome)}`);
        const value = median(outcome.answer.map((sample) => sample.value / (sample.bareNs ?? 1)));
        measured.get(row.name)![which]!.push(value);
        process.stderr.write(`${row.name} ${which === 0 ? 'old' : 'new'} ${shown(value)}\n`);
      }
    }
  }
} finally {
  for (const build of builds) for (const { remove } of build.values()) await remove();
}

let failed = 0;
const table = rows.map(({ name, title }) => {
  const [old, young] = measured.get(name)!.map((values) => figureOf(values)) as [
    ReturnType<typeof figureOf>,
    ReturnType<typeof figureOf>,
  ];
  const ratio = young.median / old.median;
  const passes = ratio <= ALLOWED || young.lowest <= old.highest;
  if (!passes) failed++;
  const cells = [old, young].map(
    (figure) => `${shown(figure.median)} (${shown(figure.lowest)}–${shown(figure.highest)})`,
  );
  return [title, ...cells, ratio.toFixed(3), passes ? 'passes' : '**fails**'];
});
console.log(`${machineBefore}; at the end: ${machine()}\n`);
console.log(`old: ${before}, new: ${after}; median of ${PROCESSES} processes (lowest–highest)\n`);
console.log(markdownTable(['', 'old', 'new', 'new ÷ old', `at most ${ALLOWED}, or ranges overlap`], table));
process.exitCode = failed > 0 ? 1 : 0;
