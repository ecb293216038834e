import { execFile, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import { type AddressInfo, createServer as createTcpServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { LIFECYCLE_EVENTS, LifecycleHooks } from 'pipeline-pool';
import { collectMetrics } from 'pipeline-pool/prometheus';
import { Registry } from 'prom-client';
import { describe, expect, it } from 'vitest';
import { EXAMPLES } from '../support/event-payloads.js';
import { fleetStats } from '../support/fleet-stats.js';
import { METRICS } from '../support/metrics.js';

const docs = (name: string) => fileURLToPath(new URL(`../../docs/${name}`, import.meta.url));

const installed = (() => {
  try {
    for (const program of ['prometheus', 'promtool'])
      execFileSync(program, ['--version'], { stdio: 'ignore', timeout: 60_000 });
    return true;
  } catch {
    console.warn('Prometheus is not installed (Debian: apt-get install prometheus): its tests are skipped');
    return false;
  }
})();

/** A registry in which everything has happened once. */
function eventful(prefix?: string): Registry {
  const hooks = new LifecycleHooks();
  const registry = new Registry();
  const limiter = { maxConcurrent: 200, fleet: fleetStats() };
  const gate = { name: 'serper', stats: () => ({ running: 1, keys: [{ state: 'ready' }], limiter }) };
  collectMetrics(hooks, {
    registry,
    sources: { gates: [gate] },
    ...(prefix === undefined ? {} : { prefix }),
  });
  for (const event of LIFECYCLE_EVENTS) hooks.emit(event, EXAMPLES[event] as never);
  return registry;
}

const run = promisify(execFile);
const promtool = (args: string[]) => run('promtool', args);

/** An expression of the dashboard, its variables filled in. */
const filledIn = (expr: string): string =>
  expr.replaceAll(/\$\{prefix\}/g, 'pipeline_').replaceAll('$__rate_interval', '5m');

async function freePort(): Promise<number> {
  const server = createTcpServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, 'close');
  return port;
}

/** Every metric name in an expression, without what a histogram appends. */
const namesIn = (expression: string): string[] =>
  [...expression.matchAll(/\bpipeline_\w+/g)].map(([name]) => name.replace(/_(bucket|sum|count)$/, ''));

const known = new Set(METRICS.map(({ name }) => `pipeline_${name}`));

describe('the alert rules', () => {
  it('use only existing metrics', async () => {
    const rules = await readFile(docs('alerts.yml'), 'utf8');
    const names = namesIn(rules.replaceAll(/^\s*#.*$/gm, ''));
    expect(names.length).toBeGreaterThan(10);
    for (const name of names) expect(known).toContain(name);
  });

  it.skipIf(!installed)('are valid, and fire when they should', async () => {
    await expect(promtool(['check', 'rules', docs('alerts.yml')])).resolves.toMatchObject({
      stdout: expect.stringContaining('SUCCESS: 15 rules found'),
    });
    const cases = fileURLToPath(new URL('alerts.test.yml', import.meta.url));
    await expect(promtool(['test', 'rules', cases])).resolves.toMatchObject({
      stdout: expect.stringContaining('SUCCESS'),
    });
  });
});

describe('the dashboard', () => {
  const read = async () => JSON.parse(await readFile(docs('grafana-dashboard.json'), 'utf8'));

  it('uses only existing metrics, and shows each of them', async () => {
    const { panels } = await read();
    const expressions: string[] = panels.flatMap(({ targets = [] }) =>
      targets.map(({ expr }: { expr: string }) => expr),
    );
    expect(expressions.length).toBeGreaterThan(30);
    const shown = new Set(expressions.flatMap((expr) => namesIn(filledIn(expr))));
    expect([...shown].filter((name) => !known.has(name))).toEqual([]);
    expect([...known].filter((name) => !shown.has(name))).toEqual([]);
  });

  it('groups by labels that the metrics have', async () => {
    const { panels } = await read();
    for (const { targets = [] } of panels) {
      for (const { expr } of targets as { expr: string }[]) {
        const names = namesIn(filledIn(expr));
        const definitions = METRICS.filter(({ name }) => names.includes(`pipeline_${name}`));
        const labels = new Set<string>(['le', ...definitions.flatMap((metric) => [...metric.labels])]);
        for (const [, list = ''] of expr.matchAll(/by \(([^)]*)\)/g)) {
          for (const label of list.split(', ')) expect(labels).toContain(label);
        }
      }
    }
  });

  it('lays its panels out without overlap, each with an id of its own', async () => {
    const { panels } = await read();
    expect(new Set(panels.map(({ id }: { id: number }) => id)).size).toBe(panels.length);
    const cells = new Set<string>();
    for (const { gridPos } of panels) {
      for (let x = gridPos.x; x < gridPos.x + gridPos.w; x++) {
        for (let y = gridPos.y; y < gridPos.y + gridPos.h; y++) {
          expect(x).toBeLessThan(24);
          expect(cells.has(`${x} ${y}`)).toBe(false);
          cells.add(`${x} ${y}`);
        }
      }
    }
  });

  it.skipIf(!installed)('has valid expressions', async () => {
    const { panels } = await read();
    const folder = await mkdtemp(join(tmpdir(), 'dashboard-'));
    try {
      const expressions: string[] = panels.flatMap(({ targets = [] }) =>
        targets.map(({ expr }: { expr: string }) => expr),
      );
      const rules = expressions.map(
        (expr, i) => `      - { record: 'panel:${i}', expr: ${JSON.stringify(filledIn(expr))} }`,
      );
      const file = join(folder, 'rules.yml');
      await writeFile(file, `groups:\n  - name: panels\n    rules:\n${rules.join('\n')}\n`);
      await expect(promtool(['check', 'rules', file])).resolves.toMatchObject({
        stdout: expect.stringContaining(`SUCCESS: ${rules.length} rules found`),
      });
    } finally {
      await rm(folder, { recursive: true });
    }
  });
});

describe.skipIf(!installed)('the real Prometheus', () => {
  it('accepts the metrics without a lint message', async () => {
    const text = await eventful().metrics();
    const child = spawn('promtool', ['check', 'metrics'], { stdio: ['pipe', 'pipe', 'pipe'] });
    let said = '';
    child.stdout.on('data', (chunk) => {
      said += chunk;
    });
    child.stderr.on('data', (chunk) => {
      said += chunk;
    });
    child.stdin.end(text);
    const [code] = await once(child, 'close');
    expect([code, said]).toEqual([0, '']);
  });

  it('scrapes a service and answers queries over it', async () => {
    const registry = eventful('mirothinker_');
    const service = createServer((_, response) => {
      void registry.metrics().then((text) => {
        response.writeHead(200, { 'content-type': registry.contentType }).end(text);
      });
    }).listen(0, '127.0.0.1');
    await once(service, 'listening');
    const target = `127.0.0.1:${(service.address() as AddressInfo).port}`;
    const folder = await mkdtemp(join(tmpdir(), 'prometheus-'));
    const config = join(folder, 'prometheus.yml');
    await writeFile(
      config,
      `scrape_configs:\n  - job_name: service\n    scrape_interval: 1s\n    scrape_timeout: 1s\n    static_configs: [{ targets: ['${target}'] }]\n`,
    );
    const address = `127.0.0.1:${await freePort()}`;
    const server = spawn('prometheus', [
      `--config.file=${config}`,
      `--storage.tsdb.path=${join(folder, 'data')}`,
      `--web.listen-address=${address}`,
      '--log.level=error',
    ]);
    const ask = async (query: string): Promise<[Record<string, string>, number][]> => {
      const response = await fetch(`http://${address}/api/v1/query?query=${encodeURIComponent(query)}`);
      const { data } = (await response.json()) as {
        data: { result: { metric: Record<string, string>; value: [number, string] }[] };
      };
      return data.result.map(({ metric, value }) => [metric, Number(value[1])]);
    };
    try {
      let usage: [Record<string, string>, number][] = [];
      for (let tries = 0; usage.length === 0 && tries < 400; tries++) {
        await sleep(100);
        usage = await ask('mirothinker_pool_usage').catch(() => []);
      }
      expect(usage).toMatchObject([[{ pool: 'pool' }, 0.6]]);
      expect(await ask('up{job="service"}')).toMatchObject([[{}, 1]]);
      expect(await ask('mirothinker_active_requests')).toMatchObject([[{}, 0]]);
      expect(await ask('mirothinker_requests_total{outcome="failed"}')).toMatchObject([[{}, 1]]);
      expect(await ask('count(mirothinker_requests_total)')).toMatchObject([[{}, 6]]);
      expect(await ask('histogram_quantile(0.5, mirothinker_lease_held_seconds_bucket)')).toMatchObject([
        [{ pool: 'pool' }, 210],
      ]);
    } finally {
      server.kill();
      await once(server, 'close');
      service.close();
      service.closeAllConnections();
      await rm(folder, { recursive: true });
    }
  });
});
