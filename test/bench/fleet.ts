/**
 * Fleet limits beside redis-semaphore and bottleneck, in one run, over a Redis of its own on loopback:
 *
 *     npm run bench:fleet [-- --quick --rows '200 waiters']
 *
 * Rates are counted in one window that all members have in common. Out of order: a grant that overtook a waiter which had
 * asked at least 10 ms before, by at least 10 ms: a busy machine may run the processes in another order than they were
 * served. CPU time is that of the members and of Redis, and depends less on what else runs. Every row ends: members that have not reported in time count as stalled.
 */
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { loadavg } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { Redis } from 'ioredis';
import { ServiceGate, type ServiceGateOptions } from 'pipeline-pool';
import { RedisLimits } from 'pipeline-pool/redis';
import { bundleForFork } from '../redis/support/bundle.js';
import { RedisServer } from '../redis/support/redis-server.js';
import { machine, markdownTable } from './harness.js';

export type Library = 'ours' | 'redis-semaphore' | 'bottleneck';
/** When a permit was asked for, and when it was granted. */
export type Grant = readonly [askedMs: number, grantedMs: number];

export interface PermitConfig {
  readonly library: Library;
  readonly port: number;
  readonly name: string;
  readonly limit: number;
  readonly leaseMs: number;
  readonly loops: number;
  readonly holdMs: number;
  readonly records?: boolean | undefined;
}
export interface GateConfig {
  readonly port: number;
  readonly gate: Pick<ServiceGateOptions, 'name' | 'keys' | 'rate' | 'timeoutMs'> & {
    readonly maxConcurrent?: number;
  };
  readonly leaseMs: number;
  readonly loops: number;
  readonly holdMs: number;
}
export type WorkerConfig = PermitConfig | GateConfig;

/** What a member reports at the end. */
export interface MemberReport {
  count: number;
  cpuMs: number;
  readonly grants: Grant[];
  readonly starts: number[];
  failedMs?: number;
  error?: string;
}

const { values: args } = parseArgs({
  options: { quick: { type: 'boolean', default: false }, rows: { type: 'string', default: '' } },
});
const WINDOW_MS = args.quick ? 3_000 : 4_000;
const REPEATS = args.quick ? 1 : 3;
/** Of rates, whose windows spread by some hundredths. */
const RATE_REPEATS = args.quick ? 1 : 5;
const LEASE_MS = 15_000;
/** What starting members, and reporting at the end, may take on a busy machine. */
const PATIENCE_MS = 45_000;
const LIBRARIES: readonly Library[] = ['ours', 'redis-semaphore', 'bottleneck'];
const nowMs = (): number => Number(process.hrtime.bigint() / 1_000n) / 1_000;
const median = (values: readonly number[]): number =>
  [...values].sort((a, b) => a - b)[values.length >> 1] as number;
const show = (value: number, digits = 2): string => value.toFixed(digits);
const within = <T>(promise: Promise<T>, ms: number): Promise<T | undefined> =>
  Promise.race([promise, sleep(ms, undefined, { ref: false })]);

const program = await bundleForFork('test/bench/fleet-worker.ts');
await using server = await RedisServer.start();
let names = 0;
const newName = (): string => `bench-${names++}`;
const notes: string[] = [];

/** A member that starts late still says that it is ready. */
const reportOf = (child: ChildProcess): Promise<MemberReport> =>
  new Promise((resolve) =>
    child.on('message', (message) => {
      if (message !== 'ready') resolve(message as MemberReport);
    }),
  );

/** Processes that share a limit. */
class Members implements AsyncDisposable {
  readonly children: readonly ChildProcess[];
  readonly #title: string;

  private constructor(title: string, configs: readonly WorkerConfig[]) {
    this.#title = title;
    this.children = configs.map((config) =>
      fork(program, [JSON.stringify(config)], {
        execArgv: [],
        stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
      }),
    );
  }

  static async start(title: string, count: number, config: WorkerConfig): Promise<Members> {
    const members = new Members(title, Array(count).fill(config));
    await within(Promise.all(members.children.map((child) => once(child, 'message'))), PATIENCE_MS);
    return members;
  }

  /** Runs them from now on, and collects the reports of those that report in time. */
  run(fromMs: number, untilMs: number): Promise<MemberReport[]> {
    const reports = this.children.map(async (child) => {
      const reported = reportOf(child);
      child.send({ fromMs, untilMs });
      return within(reported, untilMs - nowMs() + 2_000 + PATIENCE_MS);
    });
    return Promise.all(reports).then((all) => {
      const done = all.filter((report) => report !== undefined);
      const note = (text: string) => notes.push(`${this.#title}: ${text}.`);
      if (done.length < all.length) note(`${all.length - done.length} of ${all.length} members stalled`);
      const errors = done.flatMap(({ error }) => error ?? []);
      if (errors.length > 0)
        note(`${errors.length} of ${all.length} members were rejected a permit ("${errors[0]}")`);
      return done;
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(
      this.children.map(async (child) => {
        if (child.exitCode !== null || child.signalCode !== null) return;
        const ended = once(child, 'exit');
        child.kill('SIGKILL');
        await ended;
      }),
    );
  }
}

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
  /** In microseconds. */
  readonly cpuPerGrant: number;
}

async function redisCpuMs(): Promise<number> {
  const info = String(await server.command('INFO', 'cpu'));
  const seconds = [...info.matchAll(/used_cpu_(?:sys|user):([\d.]+)/g)].map(([, value]) => Number(value));
  return 1_000 * seconds.reduce((sum, value) => sum + value, 0);
}

/** The scripts that Redis runs in the window, and what the members report of it. */
async function observe(
  members: Members,
): Promise<{ reports: MemberReport[]; scripts: number; cpuMs: number }> {
  const fromMs = nowMs() + 700;
  const untilMs = fromMs + WINDOW_MS;
  const reports = members.run(fromMs, untilMs);
  await sleep(fromMs - nowMs());
  const before = await server.scriptCalls();
  const busyMs = await redisCpuMs();
  await sleep(untilMs - nowMs());
  const scripts = (await server.scriptCalls()) - before;
  const redisMs = (await redisCpuMs()) - busyMs;
  const done = await reports;
  return { reports: done, scripts, cpuMs: done.reduce((sum, { cpuMs }) => sum + cpuMs, redisMs) };
}

/** The share of grants that overtook an older request. */
function outOfOrder(grants: readonly Grant[]): number {
  const byGrant = [...grants].sort((a, b) => a[1] - b[1]);
  let overtaking = 0;
  for (const [i, [asked, granted]] of byGrant.entries()) {
    const overtook = byGrant
      .slice(i + 1, i + 400)
      .some(([otherAsked, otherGranted]) => otherAsked < asked - 10 && otherGranted > granted + 10);
    if (overtook) overtaking++;
  }
  return overtaking / Math.max(1, grants.length);
}

async function measure(title: string, library: Library, load: Load): Promise<Result> {
  const { members: count, ...rest } = load;
  const config = { library, port: server.port, name: newName(), leaseMs: LEASE_MS, ...rest };
  await using members = await Members.start(`${title}, ${library}`, count, config);
  const { reports, scripts, cpuMs } = await observe(members);
  const counted = reports.reduce((sum, report) => sum + report.count, 0);
  return {
    rate: counted / (WINDOW_MS / 1_000),
    outOfOrder: outOfOrder(reports.flatMap(({ grants }) => grants)),
    scriptsPerGrant: scripts / Math.max(1, counted),
    cpuPerGrant: (1_000 * cpuMs) / Math.max(1, counted),
  };
}

const rows: string[][] = [];
const addRow = (...row: string[]): void => {
  rows.push(row);
  console.log(row.join(' | '));
};
const isWanted = (...titles: readonly string[]): boolean => titles.some((title) => title.includes(args.rows));

interface Figure {
  readonly title: string;
  readonly bar: string;
  readonly of: (result: Result) => number;
  readonly unit: 'ratio' | 'percent' | 'share' | 'number' | 'whole';
}

const compare = async (load: Load, ...figures: readonly Figure[]): Promise<void> => {
  if (!isWanted(...figures.map(({ title }) => title))) return;
  const results = new Map<Library, Result[]>(LIBRARIES.map((library) => [library, []]));
  const repeats = figures[0]?.unit === 'ratio' ? RATE_REPEATS : REPEATS;
  // By turns, so that slow moments of the machine meet all.
  for (let repeat = 0; repeat < repeats; repeat++)
    for (const library of LIBRARIES)
      results.get(library)?.push(await measure(figures[0]?.title ?? '', library, load));
  for (const { title, bar, of, unit } of figures) {
    const value = (library: Library): number => median((results.get(library) as Result[]).map(of));
    const peer = value('redis-semaphore');
    const cell = (library: Library): string => {
      const figure = value(library);
      if (unit === 'ratio') return `${show(figure / peer)} (${Math.round(figure)}/s)`;
      if (unit === 'percent') return `${show(figure * 100, 1)} %`;
      return show(figure, { share: 3, number: 2, whole: 0 }[unit]);
    };
    addRow(title, cell('redis-semaphore'), cell('bottleneck'), cell('ours'), bar);
  }
};

const KILL = 'kill -9 of a holder, permit back';
async function killHolders(): Promise<void> {
  if (!isWanted(KILL)) return;
  const leaseMs = 3_000;
  const PATIENT_MS = 20_000;
  const cell = async (library: Library): Promise<string> => {
    const backs: number[] = [];
    for (let repeat = 0; repeat < REPEATS; repeat++) {
      const name = newName();
      const permit = { library, port: server.port, name, limit: 5, leaseMs };
      await using holder = await Members.start(KILL, 1, { ...permit, loops: 5, holdMs: 600_000 });
      holder.children[0]?.send({ fromMs: nowMs(), untilMs: nowMs() + 600_000 });
      await sleep(1_000);
      await using waiter = await Members.start(KILL, 1, { ...permit, loops: 1, holdMs: 1, records: true });
      const untilMs = nowMs() + PATIENT_MS;
      const [child] = waiter.children as [ChildProcess];
      const reported = reportOf(child);
      child.send({ fromMs: nowMs(), untilMs });
      // At different times since the last renewal.
      await sleep(500 + 300 * repeat);
      const killedMs = nowMs();
      holder.children[0]?.kill('SIGKILL');
      const report = await within(reported, PATIENT_MS + 5_000);
      const grant = report?.grants[0];
      backs.push(grant === undefined ? Number.POSITIVE_INFINITY : (grant[1] - killedMs) / 1_000);
    }
    const [first, last] = [Math.min(...backs), Math.max(...backs)];
    const never = `over ${PATIENT_MS / 1_000} s`;
    if (first === Number.POSITIVE_INFINITY) return never;
    if (last === Number.POSITIVE_INFINITY) return `${show(first, 1)} s to ${never}`;
    const range = first === last ? show(last, 1) : `${show(first, 1)}–${show(last, 1)}`;
    return library === 'ours' ? `${range} s: ${show((last * 1_000) / leaseMs)} leases` : `${range} s`;
  };
  const cells = { ours: '', 'redis-semaphore': '', bottleneck: '' };
  for (const library of LIBRARIES) cells[library] = await cell(library);
  addRow(KILL, cells['redis-semaphore'], cells.bottleneck, cells.ours, '<= 1.2 leases');
}

/** The most starts in any span of this length. */
function mostStarts(times: readonly number[], perMs: number): number {
  let most = 0;
  for (let first = 0, last = 0; last < times.length; last++) {
    while ((times[last] as number) - (times[first] as number) >= perMs) first++;
    most = Math.max(most, last - first + 1);
  }
  return most;
}

const WINDOW = 'windows of 20 members';
async function fillWindows(): Promise<void> {
  if (!isWanted(WINDOW)) return;
  const rate = { limit: 100, perMs: 1_000 };
  const gate = { name: newName(), keys: ['k'], rate: [rate] };
  await using members = await Members.start(WINDOW, 20, {
    port: server.port,
    gate,
    leaseMs: LEASE_MS,
    loops: 10,
    holdMs: 5,
  });
  const { reports, scripts } = await observe(members);
  const starts = reports.flatMap((report) => report.starts).sort((a, b) => a - b);
  const spanMs = (starts.at(-1) ?? 0) - (starts[0] ?? 0);
  // The last span has only begun.
  const counted = starts.filter((atMs) => atMs < (starts[0] ?? 0) + WINDOW_MS).length;
  const share = counted / (rate.limit * (WINDOW_MS / rate.perMs));
  const over = (heldUpMs: number): number =>
    Math.max(0, mostStarts(starts, rate.perMs - heldUpMs) - rate.limit);
  addRow(`${WINDOW}: share of the limit in use`, '', '', `${show(100 * share, 1)} %`, '>= 98 %');
  addRow(
    `${WINDOW}: starts over the limit (beyond 100 ms that the machine may hold a process up)`,
    '',
    '',
    `${over(0)} (${over(100)})`,
    '0',
  );
  addRow(
    `${WINDOW}: scripts per start`,
    '',
    '',
    show(scripts / (starts.length * (WINDOW_MS / Math.max(WINDOW_MS, spanMs)))),
    '<= 1.6',
  );
}

const TOO_MANY = 'a 429: last start of any other member after it';
async function reject(): Promise<void> {
  if (!isWanted(TOO_MANY)) return;
  const lateMs: number[] = [];
  for (let repeat = 0; repeat < REPEATS; repeat++) {
    const gate = { name: newName(), keys: ['k'], maxConcurrent: 100, timeoutMs: 1_500 };
    // Not so many calls that the members wait for each other's CPU.
    const config = { port: server.port, gate, leaseMs: LEASE_MS, loops: 1, holdMs: 50 };
    await using members = await Members.start(TOO_MANY, 20, config);
    const running = members.run(nowMs(), nowMs() + WINDOW_MS);
    await sleep(WINDOW_MS / 2);
    members.children[0]?.send('fail');
    const reports = await running;
    const failedMs = reports.find((report) => report.failedMs !== undefined)?.failedMs ?? 0;
    const others = reports.filter((report) => report.failedMs === undefined).flatMap(({ starts }) => starts);
    lateMs.push(Math.max(0, ...others.map((atMs) => atMs - failedMs)));
  }
  addRow(TOO_MANY, '', '', `${show(Math.max(...lateMs), 0)} ms`, '<= 150 ms');
}

const WAITERS = 'Redis memory: 10,000 waiters';
const STARTS = 'Redis memory: a window after 5,000 starts';
async function weigh(): Promise<void> {
  if (!isWanted(WAITERS, STARTS)) return;
  const client = new Redis(server.port, '127.0.0.1');
  await using limits = new RedisLimits({ client, leaseMs: LEASE_MS });
  const bytesOf = async (name: string): Promise<number> => {
    let bytes = 0;
    for (const key of await server.keys())
      if (key.includes(name)) bytes += Number(await server.command('MEMORY', 'USAGE', key, 'SAMPLES', '0'));
    return bytes;
  };
  const limiter = limits.limiter({ name: newName(), maxConcurrent: 1 });
  const permits = Array.from({ length: 10_001 }, () => limiter.acquire().catch(() => {}));
  await permits[0];
  const endMs = nowMs() + PATIENCE_MS;
  while (limiter.stats().fleet.queued < 10_000 && nowMs() < endMs) await sleep(50);
  addRow(WAITERS, '', '', `${show((await bytesOf(limiter.name)) / 1e6)} MB`, '<= 2 MB');
  // Evenly over the window, so that all its slices have an entry.
  const perMs = 20_000;
  const name = newName();
  await using gate = new ServiceGate({ name, keys: ['k'], rate: [{ limit: 5_000, perMs }], limits });
  const beganMs = nowMs();
  let started = 0;
  while (started < 5_000) {
    const due = Math.min(5_000, Math.ceil((5_000 * (nowMs() - beganMs)) / (0.9 * perMs)));
    const calls = Array.from({ length: due - started }, () => gate.run(() => undefined));
    started = due;
    await Promise.all(calls);
    await sleep(1);
  }
  await sleep(200);
  addRow(STARTS, '', '', `${show((await bytesOf(name)) / 1e3, 1)} kB`, 'a few kB');
  await limiter.close({ timeoutMs: 0 }).catch(() => {});
  client.disconnect();
}

const load = (): string =>
  `load ${loadavg()
    .map((average) => average.toFixed(1))
    .join(' ')}`;
const many = { members: 20, loops: 1, limit: 5 };
const began = `${machine()}, ${load()}`;
console.log(began);
// A Redis that is younger than a lease may have lost its data: ours would wait.
await sleep(LEASE_MS + 2_000);
const rate = ({ rate }: Result): number => rate;
const ratio = (title: string, bar: string): Figure => ({ title, bar, of: rate, unit: 'ratio' });
const cpu = (title: string): Figure => ({
  title: `${title}: CPU time of each, µs`,
  bar: '',
  of: ({ cpuPerGrant }) => cpuPerGrant,
  unit: 'whole',
});
await compare(
  { members: 1, loops: 1, limit: 5, holdMs: 0 },
  ratio('acquire and release in sequence, one member', '>= 1.0'),
  cpu('acquire and release in sequence, one member'),
);
await compare(
  { ...many, holdMs: 0 },
  ratio('20 members, hold nothing', '>= 0.5'),
  cpu('20 members, hold nothing'),
);
await compare(
  { ...many, holdMs: 5 },
  ratio('20 members, hold 5 ms', '>= 0.95'),
  cpu('20 members, hold 5 ms'),
);
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
await killHolders();
await fillWindows();
await reject();
await weigh();

console.log(`\n${began}; at the end: ${load()}\n`);
console.log(markdownTable(['', 'redis-semaphore', 'bottleneck', 'ours', 'goal'], rows));
for (const note of new Set(notes)) console.log(`- ${note}`);
await server[Symbol.asyncDispose]();
process.exit(0);
