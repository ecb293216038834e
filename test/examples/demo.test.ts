import { rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { describe, expect, it } from 'vitest';
import { bundledExample } from '../support/examples.js';

const start = bundledExample('examples/demo/main.ts');

// The test runner sets a BASE_URL of its own, and a developer may have real keys: neither is meant here.
const {
  BASE_URL: _base,
  API_KEY: _key,
  SERPER_API_KEY: _serper,
  JINA_API_KEY: _jina,
  E2B_API_KEY: _e2b,
  ...environment
} = process.env;

function demo(args: readonly string[], env: Record<string, string> = {}) {
  const child = start(args, { ...environment, ...env });
  const output = text(child.stdout);
  const errors = text(child.stderr);
  const code = new Promise<number | null>((resolve) => child.on('close', resolve));
  return { child, output, errors, code };
}

describe('the demo', () => {
  it('mixes logs only where one pipeline is shared, and shows a healthy service', async () => {
    const { output, errors, code } = demo([
      '--json',
      '--requests',
      '4',
      '--pool-size',
      '3',
      '--time-scale',
      '0.05',
    ]);
    expect(await errors).toBe('');
    expect(await code).toBe(0);
    const { requests, rows, health } = JSON.parse(await output);
    expect(requests).toBe(4);
    expect(rows.map((row: { run: string }) => row.run)).toEqual([
      'in turn',
      'at once, shared',
      'at once, pooled',
    ]);
    const [turn, shared, pooled] = rows.map((row: Record<string, number>) => row['lines in the wrong log']);
    expect(turn).toBe(0);
    expect(shared).toBeGreaterThan(0);
    expect(pooled).toBe(0);
    expect(rows[2].ideal).toBe(2); // four requests, three at once: two rounds
    expect(health).toMatchObject({ status: 'healthy', active_requests: 4, pool_size: 3 });
  });

  it('draws what each request waited for, in the terminal and as a picture', async () => {
    const svg = join(tmpdir(), `pipeline-pool-demo-${process.pid}.svg`);
    try {
      const { output, errors, code } = demo(['--time-scale', '0.05', '--svg', svg]);
      expect(await errors).toBe('');
      expect(await code).toBe(0);
      const lines = (await output).split('\n');
      expect(lines).toContain('  Concurrency: 3/10 active requests');
      expect(lines).toContain('  Acquired pipeline instance 2 for task task-2');
      expect(lines).toContain('  Released pipeline instance 2 for task task-2');
      expect(await output).toMatch(/task-3 +█*▚.*waited .* at tool connection/);
      expect(await output).toContain('{"status":"healthy","active_requests":3,"pool_size":5}');
    } finally {
      await rm(svg);
    }
  });

  it('drains and exits cleanly on SIGINT', async () => {
    const { child, output, errors, code } = demo([
      '--time-scale',
      '0.2',
      '--svg',
      join(tmpdir(), 'unused.svg'),
    ]);
    child.stdout.on('data', (chunk: Buffer) => {
      if (chunk.toString().includes('Acquired pipeline instance 3')) child.kill('SIGINT');
    });
    expect(await code).toBe(130);
    expect(await errors).toBe('');
    expect(await output).toContain('Interrupted: draining, 3 requests are under way.');
    expect(await output).toContain('Released pipeline instance 3');
    expect(await output).toContain('Drained: 0 instances are left.');
  });

  it('stops at once on SIGINT if nothing has to be drained', async () => {
    const { child, output, code } = demo(['--time-scale', '5']);
    child.stdout.on('data', (chunk: Buffer) => {
      if (chunk.toString().includes('Warming up')) child.kill('SIGINT');
    });
    expect(await code).toBe(130);
    expect(await output).toContain('Interrupted: stopping.');
  });

  it.each([
    [['--requests', 'three'], {}, /--requests takes a whole number above 0, got "three"/],
    [['--time-scale', '0'], {}, /--time-scale takes a number above 0, got "0"/],
    [['--speed', '3'], {}, /--speed/],
    [[], { PIPELINE_POOL_SIZE: 'five' }, /`PIPELINE_POOL_SIZE` to be a whole number, got "five"/],
  ])('refuses %j %j', async (args, env, message) => {
    const { errors, code } = demo(args, env);
    expect(await errors).toMatch(message);
    expect(await code).toBe(1);
  });
});
