import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { text } from 'node:stream/consumers';
import { describe, expect, it } from 'vitest';
import { hasRedis } from './support/redis-server.js';

describe.skipIf(!hasRedis)('the example of a fleet', () => {
  it('loses no job and exceeds no limit when a worker is killed', async () => {
    const child = spawn(process.execPath, ['--import', 'tsx', 'examples/fleet/main.ts'], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    const code = new Promise<number | null>((resolve) => child.on('close', resolve));
    const output = await text(child.stdout);
    expect(output).toMatch(/worker-\d killed, with [1-9]/);
    // Another worker took over a job of the killed one, in the same stream.
    expect(output).toMatch(/worker-(\d) → .*stalled → .*worker-(?!\1)\d → .*answered/);
    expect(output).toContain('15 answered, 1 cancelled, 0 lost');
    expect(output).toContain('No job was lost and no limit exceeded');
    expect(await code).toBe(0);
  });

  it('has the same processes in its compose file', () => {
    const compose = readFileSync('examples/fleet/compose.yaml', 'utf8');
    for (const part of ['redis', 'front-1', 'front-2', 'worker', 'nginx'])
      expect(compose).toMatch(new RegExp(`^ {2}${part}:`, 'm'));
    for (const file of ['front.ts', 'worker.ts']) expect(compose).toContain(`npx tsx examples/fleet/${file}`);
  });
});
