/**
 * What every benchmark here needs: the code as users get it, a fresh process for each measurement, medians with their
 * spread, and the machine that it was.
 */
import { spawn } from 'node:child_process';
import { mkdtemp, rm, symlink, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { cpus, loadavg, tmpdir, totalmem } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'tsup';
import { median } from './bare.js';

export const ROOT = fileURLToPath(new URL('../../', import.meta.url));

/**
 * Bundles a worker as the package is bundled (ESM for Node 20, what it depends on left outside) into a folder of its own,
 * so that nothing of the loader that runs this file is measured. Gives the worker's path, and what removes it.
 */
export async function buildWorker(
  entry: string,
  root = ROOT,
): Promise<{ worker: string; remove: () => Promise<void> }> {
  const folder = await mkdtemp(join(tmpdir(), 'pipeline-pool-bench-'));
  await build({
    entry: { worker: join(root, entry) },
    outDir: folder,
    format: ['esm'],
    target: 'node20',
    splitting: true,
    skipNodeModulesBundle: true,
    config: false,
    silent: true,
  });
  await writeFile(join(folder, 'package.json'), '{ "type": "module" }\n');
  await symlink(join(root, 'node_modules'), join(folder, 'node_modules'));
  return {
    worker: join(folder, 'worker.js'),
    remove: () => rm(folder, { recursive: true, force: true }),
  };
}

/** How a worker's process ended: with what it printed, with too much time, or with an error. */
export type Outcome<T> =
  | { readonly kind: 'done'; readonly answer: T }
  | { readonly kind: 'late' }
  | { readonly kind: 'failed'; readonly error: string };

/** Runs a worker in a process of its own, and reads the last line that it prints as JSON. */
export function runWorker<T>(
  worker: string,
  args: readonly string[],
  {
    nodeFlags = [],
    timeoutMs,
    // With the collector in the main thread, its time is part of the process's as the rest is.
    collectsInMainThread = true,
  }: {
    readonly nodeFlags?: readonly string[];
    readonly timeoutMs: number;
    readonly collectsInMainThread?: boolean;
  },
): Promise<Outcome<T>> {
  return new Promise((resolve) => {
    const flags = [...(collectsInMainThread ? ['--single-threaded-gc'] : []), '--no-warnings', ...nodeFlags];
    const child = spawn(process.execPath, [...flags, worker, ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
    let out = '';
    let complaint = '';
    let late = false;
    child.stdout.on('data', (data: Buffer) => {
      out += data.toString();
    });
    child.stderr.on('data', (data: Buffer) => {
      complaint += data.toString();
    });
    const timer = setTimeout(() => {
      late = true;
      child.kill('SIGKILL');
    }, timeoutMs);
    child.on('close', (code) => {
      clearTimeout(timer);
      if (late) resolve({ kind: 'late' });
      else if (code !== 0)
        resolve({ kind: 'failed', error: complaint.trim().slice(-2000) || `exit code ${code}` });
      else resolve({ kind: 'done', answer: JSON.parse(out.trim().split('\n').at(-1)!) as T });
    });
  });
}

/** The middle of several processes' figures, and how far they lay apart. */
export interface Figure {
  readonly median: number;
  readonly lowest: number;
  readonly highest: number;
  readonly processes: number;
}

export function figureOf(values: readonly number[]): Figure {
  return {
    median: median(values),
    lowest: Math.min(...values),
    highest: Math.max(...values),
    processes: values.length,
  };
}

/** Three digits, which is as much as a median is good for. */
export function shown(value: number): string {
  if (value >= 100) return Math.round(value).toLocaleString('en');
  return value.toFixed(value >= 10 ? 1 : 2);
}

/** The version of an installed package. */
export function versionOf(npm: string): string {
  // Packages whose `exports` hide their package.json are read by path.
  const require = createRequire(import.meta.url);
  return (require(join(ROOT, 'node_modules', npm, 'package.json')) as { version: string }).version;
}

/** The machine, in a line, with how busy it is now. */
export function machine(): string {
  const processors = cpus();
  return [
    `Node ${process.versions.node}`,
    `${processors.length} × ${processors[0]?.model.trim() ?? 'unknown processor'}`,
    `${Math.round(totalmem() / 2 ** 30)} GB`,
    `${process.platform} ${process.arch}`,
    `load ${loadavg()[0]!.toFixed(1)}`,
  ].join(', ');
}

/** A Markdown table; the first column is text, the others are figures. */
export function markdownTable(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const line = (cells: readonly string[]): string => `| ${cells.join(' | ')} |`;
  return [line(head), line(head.map((_, i) => (i === 0 ? '---' : '---:'))), ...rows.map(line)].join('\n');
}
