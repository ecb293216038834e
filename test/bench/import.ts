/**
 * CPU time to import each entry point of dist (run `npm run build` first), next to its dependencies alone, as packages: dist
 * contains those of the main entry, in one file.
 *
 *     tsx test/bench/import.ts [--rounds 15]
 *
 * Each import runs in a fresh process. The order of the rounds is interleaved, and medians are shown with their quartiles.
 */
import { execFile } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { parseArgs, promisify } from 'node:util';
import { median } from './bare.js';
import { machine, markdownTable, ROOT } from './harness.js';

const { values } = parseArgs({ options: { rounds: { type: 'string', default: '15' } } });
const { exports, dependencies } = JSON.parse(readFileSync(`${ROOT}package.json`, 'utf8')) as {
  exports: Record<string, unknown>;
  dependencies: Record<string, string>;
};

const OF_THE_MAIN_ENTRY = Object.keys(dependencies).filter((name) => name !== 'generic-pool');
const SUBJECTS: Record<string, readonly string[]> = {
  'an empty module': [],
  'p-queue, eventemitter3, lru-cache alone': OF_THE_MAIN_ENTRY,
  'prom-client alone': ['prom-client'],
  '@opentelemetry/api alone': ['@opentelemetry/api'],
  ...Object.fromEntries(
    Object.keys(exports)
      .filter((entry) => entry !== './package.json')
      .map((entry) => [entry.replace('.', 'pipeline-pool'), [entry.replace('.', 'pipeline-pool')]]),
  ),
};

/** Milliseconds of CPU that these imports take in a fresh process. The package finds itself by its own name. */
async function importMs(specifiers: readonly string[]): Promise<number> {
  const code = `const before = process.cpuUsage();
    ${specifiers.map((specifier) => `await import('${specifier}');`).join('\n')}
    const { user, system } = process.cpuUsage(before);
    console.log((user + system) / 1000);`;
  const { stdout } = await promisify(execFile)(process.execPath, ['--input-type=module', '--eval', code], {
    cwd: ROOT,
  });
  return Number(stdout);
}

const samples = Object.fromEntries(Object.keys(SUBJECTS).map((name) => [name, [] as number[]]));
for (let round = 0; round < Number(values.rounds); round++) {
  for (const [name, specifiers] of Object.entries(SUBJECTS)) samples[name]!.push(await importMs(specifiers));
}

const quartile = (sorted: readonly number[], share: number): string =>
  sorted[Math.floor(share * (sorted.length - 1))]!.toFixed(1);
const rows = Object.entries(samples).map(([name, times]) => {
  const sorted = [...times].sort((a, b) => a - b);
  return [name, median(times).toFixed(1), `${quartile(sorted, 0.25)} to ${quartile(sorted, 0.75)}`];
});
console.log(markdownTable(['import', 'CPU ms, median', 'quartiles'], rows));
console.log(machine());
