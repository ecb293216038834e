/**
 * The longest step of the event loop with many waiters: how long other code of the process has to wait.
 *
 *     tsx test/bench/event-loop.ts [--waiters 10000] [--rounds 7] [--only limiter,gate] [--strict]
 *
 * Each scenario queues the waiters, lets the event loop turn, and triggers one operation that affects all of them. A
 * callback in every turn records the longest step until all promises have settled, in real time and in CPU time: other
 * processes lengthen the former, the collector's threads the latter. A scenario passes if the smaller median is at most 50 ms.
 * The last columns are about the longest step in real time: where it was, and how much of it collected garbage;
 * with `--strict`, the process exits with 1 if one does not.
 */
import { parseArgs } from 'node:util';
import { median } from './bare.js';
import type { LongestStep } from './event-loop-worker.js';
import { buildWorker, machine, markdownTable, runWorker } from './harness.js';

const { values: args } = parseArgs({
  options: {
    waiters: { type: 'string', default: '10000' },
    rounds: { type: 'string', default: '7' },
    only: { type: 'string' },
    strict: { type: 'boolean', default: false },
  },
});
const ALLOWED_MS = 50;

async function ask<T>(worker: string, ...words: string[]): Promise<T> {
  const outcome = await runWorker<T>(worker, words, { timeoutMs: 120_000 });
  if (outcome.kind !== 'done') throw new Error(`${words[0]}: ${JSON.stringify(outcome)}`);
  return outcome.answer;
}

const before = machine();
const { worker, remove } = await buildWorker('test/bench/event-loop-worker.ts');
const rows: string[][] = [];
try {
  for (const name of await ask<string[]>(worker)) {
    if (args.only?.split(',').some((prefix) => name.startsWith(prefix)) === false) continue;
    const steps = await ask<LongestStep[]>(worker, name, args.waiters, args.rounds);
    const wallMs = median(steps.map((step) => step.wallMs));
    const cpuMs = median(steps.map((step) => step.cpuMs));
    const passes = Math.min(wallMs, cpuMs) <= ALLOWED_MS;
    if (!passes && args.strict) process.exitCode = 1;
    const shown = (ms: number, most: number): string => `${ms.toFixed(1)} (${most.toFixed(0)})`;
    rows.push([
      name,
      shown(wallMs, Math.max(...steps.map((step) => step.wallMs))),
      shown(cpuMs, Math.max(...steps.map((step) => step.cpuMs))),
      passes ? 'passes' : '**fails**',
      // Of most rounds: in the step of the operation, or in a turn that follows.
      median(steps.map(({ turn }) => turn)) === 0 ? 'the operation' : 'a later turn',
      median(steps.map(({ collectorMs }) => collectorMs)).toFixed(1),
    ]);
    process.stderr.write(`${rows.at(-1)?.join(' | ')}\n`);
  }
} finally {
  await remove();
}
console.log(
  `${before}; at the end: ${machine()}; ${args.waiters} waiters, median of ${args.rounds} rounds\n`,
);
console.log(
  markdownTable(
    [
      'longest step',
      'ms, median (most)',
      'CPU ms, median (most)',
      `at most ${ALLOWED_MS} ms`,
      'longest in',
      'of it collector, ms',
    ],
    rows,
  ),
);
