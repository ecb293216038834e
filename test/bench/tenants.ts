/**
 * What a wait costs with 10,000 tenants, beside waits without:
 *
 *     tsx test/bench/tenants.ts [--processes 5]
 *
 * CPU time of a run that waits, of 10,000 that are queued in one step at a limit of 10, one of each tenant. A process for each
 * row, the rows in turns.
 */
import { parseArgs } from 'node:util';
import { buildWorker, figureOf, machine, markdownTable, runWorker, shown } from './harness.js';

const { values: args } = parseArgs({ options: { processes: { type: 'string', default: '5' } } });
const PROCESSES = Number(args.processes);
/** Each row: its title, and the row beside which it stands. */
const ROWS: Readonly<Record<string, readonly [title: string, base: string]>> = {
  'no options': ['no options', 'no tenant'],
  'no tenant': ['options, no tenant', 'no tenant'],
  'one tenant': ['one tenant', 'no tenant'],
  '10,000 tenants': ['10,000 tenants', 'no tenant'],
  '10,000 new tenants': ['10,000 tenants, all new', 'no tenant'],
  bounded: ['`timeoutMs` and `signal`, no tenant', 'bounded'],
  'bounded, 10,000 tenants': ['`timeoutMs` and `signal`, 10,000 tenants', 'bounded'],
};

const { worker, remove } = await buildWorker('test/bench/tenants-worker.ts');
try {
  const found = new Map<string, number[]>(Object.keys(ROWS).map((name) => [name, []]));
  for (let i = 0; i < PROCESSES; i++)
    for (const [name, values] of found) {
      const outcome = await runWorker<number>(worker, [name], { timeoutMs: 60_000 });
      if (outcome.kind !== 'done') throw new Error(`${name}: ${JSON.stringify(outcome)}`);
      values.push(outcome.answer);
    }
  const rows = Object.entries(ROWS).map(([name, [title, beside]]) => {
    const base = figureOf(found.get(beside) as number[]).median;
    const { median, lowest, highest } = figureOf(found.get(name) as number[]);
    const ns = [median, lowest, highest].map((value) => shown(value / 1_000));
    return [title, `${ns[0]} (${ns[1]}–${ns[2]})`, shown(median / base)];
  });
  console.log(`${machine()}; median of ${PROCESSES} processes (lowest–highest)\n`);
  console.log(markdownTable(['', 'µs a wait', '× without a tenant'], rows));
} finally {
  await remove();
}
