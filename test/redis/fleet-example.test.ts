import { spawn } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { describe, expect, it } from 'vitest';
import { parse } from 'yaml';
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
});

describe('the compose file of the example', () => {
  const folder = 'examples/fleet';
  const { services, volumes } = parse(readFileSync(`${folder}/compose.yaml`, 'utf8'), { merge: true }) as {
    services: Record<string, Service>;
    volumes: object;
  };
  const names = Object.keys(services);

  it('has the processes of the example, started from its files', () => {
    expect(names.sort()).toEqual(['front-1', 'front-2', 'nginx', 'redis', 'worker']);
    expect(services.worker?.deploy?.replicas).toBe(3);
    const program = (name: string) => services[name]?.command?.replace('npx tsx ', '');
    expect(program('worker')).toBe(`${folder}/worker.ts`);
    for (const front of ['front-1', 'front-2']) expect(program(front)).toBe(`${folder}/front.ts`);
  });

  it('refers only to services, files and volumes that exist', () => {
    for (const { depends_on = [], volumes: mounts = [] } of Object.values(services)) {
      for (const name of Array.isArray(depends_on) ? depends_on : Object.keys(depends_on))
        expect(names).toContain(name);
      for (const [source = ''] of mounts.map((mount) => mount.split(':'))) {
        if (source.startsWith('.')) expect(existsSync(join(folder, source))).toBe(true);
        else expect(Object.keys(volumes)).toContain(source);
      }
    }
    expect(names).toContain(new URL(services.worker?.environment?.REDIS_URL ?? '').hostname);
    const nginx = readFileSync(`${folder}/nginx.conf`, 'utf8');
    const upstreams = [...nginx.matchAll(/^ *server ([\w-]+):(\d+);$/gm)];
    expect(upstreams).toHaveLength(2);
    for (const [, name = '', port] of upstreams) {
      expect(services[name]?.environment).toMatchObject({ HOST: '0.0.0.0', PORT: port });
    }
    const [, listens] = /listen [\d.]+:(\d+);/.exec(nginx) ?? [];
    expect(services.nginx?.ports).toEqual([`127.0.0.1:8080:${listens}`]);
  });

  it('sets what the processes read from their environment', () => {
    const readBy = (file: string): string[] => {
      const source = readFileSync(`${folder}/${file}`, 'utf8');
      const [, list = ''] = /const \{([^;]*)\} = process\.env/.exec(source) ?? [];
      return [...list.matchAll(/\b([A-Z_]{2,})\b/g)].map(([name]) => name);
    };
    const shared = readBy('services.ts');
    expect(shared).toEqual(['REDIS_URL']);
    for (const [service, file] of [
      ['worker', 'worker.ts'],
      ['front-1', 'front.ts'],
    ] as const) {
      // A worker names itself by its process.
      const wanted = [...shared, ...readBy(file)].filter((name) => name !== 'WORKER');
      expect(Object.keys(services[service]?.environment ?? {}).sort()).toEqual(wanted.sort());
    }
  });

  it('keeps what Redis holds, and lets workers finish their jobs', () => {
    expect(services.redis?.command).toBe('redis-server --maxmemory-policy noeviction --appendonly yes');
    expect(services.redis?.healthcheck?.test).toEqual(['CMD', 'redis-cli', 'ping']);
    expect(services.worker?.depends_on).toEqual({ redis: { condition: 'service_healthy' } });
    expect(services.worker?.stop_grace_period).toBe('2m');
  });
});

interface Service {
  readonly command?: string;
  readonly depends_on?: readonly string[] | Readonly<Record<string, object>>;
  readonly deploy?: { readonly replicas: number };
  readonly environment?: Readonly<Record<string, string>>;
  readonly healthcheck?: { readonly test: readonly string[] };
  readonly ports?: readonly string[];
  readonly stop_grace_period?: string;
  readonly volumes?: readonly string[];
}
