/**
 * The longest step of the event loop with many waiters: how long other code of the process has to wait.
 *
 *     tsx test/bench/event-loop.ts [--waiters 10000] [--rounds 7] [--processes 3] [--only limiter,gate] [--strict]
 *
 * Each scenario queues the waiters, lets the event loop turn, and triggers one operation that affects all of them. A
 * callback in every turn notes the step with the most CPU time of the main thread until all promises have settled. In half
 * of the processes the scenario has run with few waiters before, as in a service; in the others the first round includes the
 * compilation of all code. A scenario passes if no step of any round takes more than 50 ms of CPU time.
 *
 * Where the operation is a loop of the host, over 10,000 calls in one step, its time is a column of its own: no library can
 * split that. The last columns are about the longest step: where it was, and how much real time of it collected garbage.
 * With `--strict`, the process exits with 1 if a scenario does not pass.
 */
import { parseArgs } from 'node:util';
import { median } from './bare.js';
import type { LongestStep } from './event-loop-worker.js';
import { buildWorker, machine, markdownTable, runWorker } from './harness.js';

const { values: args } = parseArgs({
  options: {
    waiters: { type: 'string', default: '10000' },
    rounds: { type: 'string', default: '7' },
    processes: { type: 'string', default: '3' },
    only: { type: 'string' },
    strict: { type: 'boolean', default: false },
  },
});
const ALLOWED_MS = 50;
/** Rounds with 500 waiters, before those that are measured. */
const WARM_UPS = '12';

async function ask<T>(worker: string, ...words: string[]): Promise<T> {
  const outcome = await runWorker<T>(worker, words, { timeoutMs: 600_000, collectsInMainThread: false });
  if (outcome.kind !== 'done') throw new Error(`${words[0]}: ${JSON.stringify(outcome)}`);
  return outcome.answer;
}

const most = (values: readonly number[]): string => Math.max(...values).toFixed(0);

const before = machine();
const { worker, remove } = await buildWorker('test/bench/event-loop-worker.ts');
const rows: string[][] = [];
try {
  for (const name of await ask<string[]>(worker)) {
    if (args.only?.split(',').some((prefix) => name.startsWith(prefix)) === false) continue;
    const cold: LongestStep[] = [];
    const warm: LongestStep[] = [];
    for (let i = 0; i < Number(args.processes); i++) {
      cold.push(...(await ask<LongestStep[]>(worker, name, args.waiters, '1', '0')));
      warm.push(...(await ask<LongestStep[]>(worker, name, args.waiters, args.rounds, WARM_UPS)));
    }
    const all = [...cold, ...warm];
    const longest = all.reduce((a, b) => (b.cpuMs > a.cpuMs ? b : a));
    const passes = longest.cpuMs <= ALLOWED_MS;
    if (!passes && args.strict) process.exitCode = 1;
    const hostMs = all.map((step) => step.hostMs);
    rows.push([
      name,
      median(warm.map((step) => step.cpuMs)).toFixed(1),
      most(warm.map((step) => step.cpuMs)),
      most(cold.map((step) => step.cpuMs)),
      most(all.map((step) => step.wallMs)),
      passes ? 'passes' : '**fails**',
      longest.turn === 0 ? 'the operation' : 'a later turn',
      longest.collectorMs.toFixed(0),
      Math.max(...hostMs) === 0 ? '' : `${median(hostMs).toFixed(0)} (${most(hostMs)})`,
    ]);
    process.stderr.write(`${rows.at(-1)?.join(' | ')}\n`);
  }
} finally {
  await remove();
}
console.log(
  `${before}; at the end: ${machine()}; ${args.waiters} waiters, ${args.processes} processes without and with warm-up, ${args.rounds} rounds\n`,
);
console.log(
  markdownTable(
    [
      'longest step, ms of CPU time',
      'median',
      'most',
      'first round, most',
      'real time, most',
      `at most ${ALLOWED_MS} ms`,
      'longest in',
      'of it collector, real ms',
      "the host's loop (most)",
    ],
    rows,
  ),
);
