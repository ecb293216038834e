import { once } from 'node:events';
import { rmSync } from 'node:fs';
import { text } from 'node:stream/consumers';
import { Worker } from 'node:worker_threads';
import { bundleForNode } from './bundle.js';

/**
 * Runs a TypeScript module in a thread with a `process` of its own, and returns what it printed. For code that replaces
 * `process.nextTick`: in the thread of the tests, messages to the test runner would be lost, which then waits forever.
 */
export async function runInThread(path: string): Promise<string> {
  const outfile = path.replace(/\.ts$/, '.mjs');
  bundleForNode(path, outfile, { packages: 'external' });
  const worker = new Worker(outfile, { stdout: true });
  try {
    const printed = text(worker.stdout);
    const [code] = await once(worker, 'exit');
    if (code !== 0) throw new Error(`${path} ended with code ${code}`);
    return await printed;
  } finally {
    await worker.terminate();
    rmSync(outfile);
  }
}
