/**
 * Fleet limits beside redis-semaphore and bottleneck, in one run, over a Redis of its own on loopback:
 *
 *     npm run bench:fleet [-- --quick --rows '200 waiters']
 *
 * Rates are counted in one window that all members have in common. Out of order: a grant that overtook a waiter which had
 * asked at least 10 ms before.
 */
import { type ChildProcess, fork } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { loadavg, tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { build } from 'esbuild';
import { RedisServer } from '../redis/support/redis-server.js';
import { machine, markdownTable } from './harness.js';

export type Library = 'ours' | 'redis-semaphore' | 'bottleneck';
/** When a permit was asked for, and when it was granted. */
export type Grant = readonly [askedMs: number, grantedMs: number];

export interface WorkerConfig {
  readonly library: Library;
  readonly port: number;
  readonly name: string;
  readonly limit: number;
  readonly leaseMs: number;
  readonly loops: number;
  readonly holdMs: number;
  readonly records?: boolean;
  readonly awaitsRelease?: boolean;
}

const { values: args } = parseArgs({
  options: { quick: { type: 'boolean', default: false }, rows: { type: 'string', default: '' } },
});
const WINDOW_MS = args.quick ? 3_000 : 4_000;
const REPEATS = args.quick ? 1 : 3;
const LIBRARIES: readonly Library[] = ['ours', 'redis-semaphore', 'bottleneck'];
const nowMs = (): number => Number(process.hrtime.bigint() / 1_000n) / 1_000;
const median = (values: readonly number[]): number =>
  [...values].sort((a, b) => a - b)[values.length >> 1] as number;

const folder = mkdtempSync(join(tmpdir(), 'pipeline-pool-bench-'));
const worker = join(folder, 'worker.mjs');
await build({
  entryPoints: ['test/bench/fleet-worker.ts'],
  outfile: worker,
  bundle: true,
  platform: 'node',
  format: 'esm',
  target: 'node20',
  logLevel: 'error',
  tsconfig: 'tsconfig.json',
  banner: {
    js: "import { createRequire } from 'node:module'; const require = createRequire(import.meta.url);",
  },
});
await using server = await RedisServer.start();
let names = 0;

interface Load {
  readonly members: number;
  readonly loops: number;
  readonly limit: number;
  readonly holdMs: number;
  readonly records?: boolean;
}

interface Result {
  readonly rate: number;
  readonly outOfOrder: number;
  readonly scriptsPerGrant: number;
}

async function startMembers(library: Library, load: Load, leaseMs = 15_000): Promise<ChildProcess[]> {
  const { members, ...rest } = load;
  const config = { library, port: server.port, name: `bench-${names++}`, leaseMs, ...rest };
  const children = Array.from({ length: members }, () =>
    fork(worker, [JSON.stringify(config)], { execArgv: [], stdio: ['ignore', 'ignore', 'inherit', 'ipc'] }),
  );
  await Promise.all(children.map((child) => new Promise((ready) => child.once('message', ready))));
  return children;
}

async function measure(library: Library, load: Load): Promise<Result> {
  const children = await startMembers(library, load);
  const fromMs = nowMs() + 700;
  const untilMs = fromMs + WINDOW_MS;
  const results = children.map(
    (child) =>
      new Promise<{ count: number; grants: Grant[] }>((resolve) => child.once('message', resolve as never)),
  );
  for (const child of children) child.send({ fromMs, untilMs });
  await sleep(fromMs - nowMs());
  const before = await server.scriptCalls();
  await sleep(untilMs - nowMs());
  const scripts = (await server.scriptCalls()) - before;
  const done = await Promise.all(results);
  const grants = done.flatMap((result) => result.grants).sort((a, b) => a[1] - b[1]);
  const counted = done.reduce((sum, { count }) => sum + count, 0);
  let overtaking = 0;
  // The latest request granted so far; a grant whose request is older was overtaken, so count those that overtook.
  for (const [index, [asked, granted]] of grants.entries()) {
    const overtook = grants.some(
      ([otherAsked, otherGranted], other) =>
        other > index && other < index + 400 && otherAsked < asked - 10 && otherGranted > granted,
    );
    if (overtook) overtaking++;
  }
  return {
    rate: counted / (WINDOW_MS / 1_000),
    outOfOrder: grants.length === 0 ? 0 : overtaking / grants.length,
    scriptsPerGrant: scripts / Math.max(1, counted),
  };
}

const rows: string[][] = [];
const show = (value: number, digits = 2): string => value.toFixed(digits);
interface Figure {
  readonly title: string;
  readonly bar: string;
  readonly of: (result: Result) => number;
  readonly unit: 'ratio' | 'percent' | 'share' | 'number';
}

const compare = async (load: Load, ...figures: readonly Figure[]): Promise<void> => {
  if (!figures.some(({ title }) => title.includes(args.rows))) return;
  const results = new Map<Library, Result[]>(LIBRARIES.map((library) => [library, []]));
  // By turns, so that slow moments of the machine meet all.
  for (let repeat = 0; repeat < REPEATS; repeat++) {
    for (const library of LIBRARIES) results.get(library)?.push(await measure(library, load));
  }
  for (const { title, bar, of, unit } of figures) {
    const value = (library: Library): number => median((results.get(library) as Result[]).map(of));
    const peer = value('redis-semaphore');
    const cell = (library: Library): string => {
      const figure = value(library);
      if (unit === 'ratio') return `${show(figure / peer)} (${Math.round(figure)}/s)`;
      if (unit === 'percent') return `${show(figure * 100, 1)} %`;
      return show(figure, unit === 'share' ? 3 : 2);
    };
    const row = [title, cell('redis-semaphore'), cell('bottleneck'), cell('ours'), bar];
    rows.push(row);
    console.log(row.join(' | '));
  }
};

const many = { members: 20, loops: 1, limit: 5 };
console.log(
  machine(),
  `load ${loadavg()
    .map((load) => load.toFixed(1))
    .join(' ')}`,
);
// A Redis that is younger than a lease may have lost its data: ours would wait.
await sleep(17_000);
const rate = ({ rate }: Result): number => rate;
const ratio = (title: string, bar: string): Figure => ({ title, bar, of: rate, unit: 'ratio' });
await compare(
  { members: 1, loops: 1, limit: 5, holdMs: 0 },
  ratio('acquire and release in sequence, one member', '>= 1.0'),
);
await compare({ ...many, holdMs: 0 }, ratio('20 members, hold nothing', '>= 0.5'));
await compare({ ...many, holdMs: 5 }, ratio('20 members, hold 5 ms', '>= 0.95'));
await compare(
  { members: 20, loops: 10, limit: 100, holdMs: 50 },
  ratio('limit 100, 20 members with 10 requests each, hold 50 ms', '>= 0.85'),
);
await compare(
  { ...many, holdMs: 200 },
  {
    title: 'hold 200 ms: share of 5 permits in use',
    bar: '>= 0.98',
    of: ({ rate }) => (rate * 0.2) / 5,
    unit: 'share',
  },
);
for (const [waiters, loops, bar] of [
  [20, 1, '1.3'],
  [200, 10, '0.5'],
] as const) {
  await compare(
    { ...many, loops, holdMs: 20, records: true },
    {
      title: `grants out of order, ${waiters} waiters`,
      bar: '<= 1 %',
      of: ({ outOfOrder }) => outOfOrder,
      unit: 'percent',
    },
    {
      title: `scripts per grant, ${waiters} waiters`,
      bar: `<= ${bar}`,
      of: ({ scriptsPerGrant }) => scriptsPerGrant,
      unit: 'number',
    },
  );
}

// What only ours is measured for.
{
  const leaseMs = 3_000;
  const backs: number[] = [];
  for (let repeat = 0; repeat < REPEATS; repeat++) {
    const [holder] = await startMembers('ours', { members: 1, loops: 5, limit: 5, holdMs: 600_000 }, leaseMs);
    names--;
    holder?.send({ fromMs: nowMs(), untilMs: nowMs() + 600_000 });
    await sleep(500);
    const [waiter] = await startMembers(
      'ours',
      { members: 1, loops: 1, limit: 5, holdMs: 1, records: true },
      leaseMs,
    );
    const killedMs = nowMs();
    const result = new Promise<{ grants: Grant[] }>((resolve) => waiter?.once('message', resolve as never));
    waiter?.send({ fromMs: nowMs(), untilMs: nowMs() + 100 });
    await sleep(50 + 300 * repeat);
    holder?.kill('SIGKILL');
    const { grants } = await Promise.race([result, sleep(8_000).then(() => ({ grants: [] as Grant[] }))]);
    backs.push(((grants[0]?.[1] ?? Number.POSITIVE_INFINITY) - killedMs - 50 - 300 * repeat) / leaseMs);
    waiter?.kill('SIGKILL');
  }
  rows.push(['kill -9 of a holder, permit back, in leases', '', '', show(Math.max(...backs)), '<= 1.2']);
}
{
  const memory = async (): Promise<number> =>
    Number(/used_memory_dataset:(\d+)/.exec(String(await server.command('INFO', 'memory')))?.[1]);
  await server.command('FLUSHALL');
  const [before, [member]] = [
    await memory(),
    await startMembers('ours', { members: 1, loops: 10_001, limit: 1, holdMs: 600_000 }),
  ];
  member?.send({ fromMs: nowMs(), untilMs: nowMs() + 600_000 });
  await sleep(5_000);
  const queued = (await server.command('ZCARD', `{pipeline-pool:bench-${names - 1}}:queue`)) as number;
  rows.push([
    `Redis memory for ${queued} waiters`,
    '',
    '',
    `${show(((await memory()) - before) / 1e6)} MB`,
    '<= 2 MB',
  ]);
  member?.kill('SIGKILL');
}
console.log(`\n${markdownTable(['', 'redis-semaphore', 'bottleneck', 'ours', 'ours, bar'], rows)}`);
console.log(
  machine(),
  `load ${loadavg()
    .map((load) => load.toFixed(1))
    .join(' ')}`,
);
rmSync(folder, { recursive: true });
process.exit(0);
