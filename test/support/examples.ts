import { type ChildProcessByStdio, spawn } from 'node:child_process';
import { rmSync } from 'node:fs';
import { resolve } from 'node:path';
import type { Readable } from 'node:stream';
import { afterAll } from 'vitest';
import { bundleForNode } from './bundle.js';

/**
 * Bundles an example once for all tests of a file, which start it in processes of its own: compiling it in each of them
 * takes a second. Inside the package, where it finds its dependencies.
 */
export function bundledExample(
  entry: string,
): (args: readonly string[], env: NodeJS.ProcessEnv) => ChildProcessByStdio<null, Readable, Readable> {
  const outfile = resolve(`test/examples/.bundled/${entry.replace(/\W/g, '-')}-${process.pid}.mjs`);
  bundleForNode(entry, outfile, { packages: 'external' });
  afterAll(() => rmSync(outfile));
  return (args, env) =>
    spawn(process.execPath, [outfile, ...args], { env, stdio: ['ignore', 'pipe', 'pipe'] });
}
