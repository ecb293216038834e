/**
 * A fleet on loopback: Redis, two fronts (behind nginx, where it is installed), three workers, and stub services. It asks a
 * few questions, cancels one, kills a worker midway, and checks that no job was lost and no limit exceeded.
 *
 *     npm run example:fleet
 */
import { type ChildProcess, fork, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { StubLlm, StubSerper } from 'pipeline-pool/testing';
import { createClient } from 'redis';
import { type JobEvent, LLM_CONCURRENCY, SERPER_RATE } from './services.js';

const QUESTIONS = 16;
/** All answers must be there by then. */
const DEADLINE_MS = 60_000;

const isInstalled = (program: string): boolean => spawnSync(program, ['-v']).error === undefined;

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as { port: number };
  server.close();
  return port;
}

const folder = mkdtempSync(join(tmpdir(), 'fleet-'));
const children = new Set<ChildProcess>();

function keep(child: ChildProcess): ChildProcess {
  children.add(child);
  child.once('exit', () => children.delete(child));
  return child;
}

async function startRedis(): Promise<string> {
  const port = await freePort();
  const args = ['--port', `${port}`, '--bind', '127.0.0.1', '--dir', folder, '--save', ''];
  keep(spawn('redis-server', [...args, '--maxmemory-policy', 'noeviction'], { stdio: 'ignore' }));
  const url = `redis://127.0.0.1:${port}`;
  const probe = createClient({ url }).on('error', () => {});
  await probe.connect();
  await probe.close();
  return url;
}

/** Starts `front.ts` or `worker.ts`; resolves with its first message. */
async function start(file: string, env: Record<string, string>) {
  const child = keep(fork(new URL(file, import.meta.url), { env: { ...process.env, ...env } }));
  const ended = once(child, 'exit').then(() => Promise.reject(new Error(`${file} did not start`)));
  const [message] = await Promise.race([once(child, 'message'), ended]);
  ended.catch(() => {});
  return { child, port: (message as { port?: number }).port ?? 0 };
}

async function startNginx(fronts: readonly number[]): Promise<string> {
  const port = await freePort();
  let config = readFileSync(new URL('nginx.conf', import.meta.url), 'utf8').replace(
    '0.0.0.0:8080',
    `127.0.0.1:${port}`,
  );
  for (const [i, front] of fronts.entries())
    config = config.replace(`front-${i + 1}:8080`, `127.0.0.1:${front}`);
  writeFileSync(join(folder, 'nginx.conf'), config);
  const args = ['-p', folder, '-c', join(folder, 'nginx.conf'), '-e', 'stderr', '-g', 'daemon off;'];
  keep(spawn('nginx', args, { stdio: ['ignore', 'ignore', 'inherit'] }));
  const url = `http://127.0.0.1:${port}`;
  for (let tries = 0; tries < 200; tries++) {
    const isUp = await fetch(url).then(
      () => true,
      () => false,
    );
    if (isUp) return url;
    await sleep(25);
  }
  throw new Error('nginx did not start');
}

async function* eventsOf(url: string): AsyncGenerator<JobEvent> {
  const response = await fetch(url, { signal: AbortSignal.timeout(DEADLINE_MS) });
  let unread = '';
  for await (const text of response.body!.pipeThrough(new TextDecoderStream())) {
    const blocks = (unread + text).split('\n\n');
    unread = blocks.pop() ?? '';
    for (const block of blocks) {
      const data = /^data: (.*)$/m.exec(block)?.[1];
      if (data !== undefined) yield JSON.parse(data);
    }
  }
}

/** A job as its client sees it. */
interface Watched {
  readonly id: string;
  readonly events: (JobEvent & { readonly atMs: number })[];
}

const last = ({ events }: Watched) => events.at(-1);
const workerOf = ({ events }: Watched) => events.findLast(({ worker }) => worker !== undefined)?.worker;
const isRunning = (job: Watched): boolean =>
  workerOf(job) !== undefined && ['started', 'searched', 'drafted'].includes(last(job)?.event ?? '');

async function main(): Promise<boolean> {
  await using llm = await new StubLlm({ latencyMs: 400 }).start();
  await using serper = await new StubSerper({ latencyMs: 200, rate: SERPER_RATE }).start();
  const env = { REDIS_URL: await startRedis(), LLM_URL: llm.baseUrl, SERPER_URL: serper.url };
  const fronts = [await start('front.ts', env), await start('front.ts', env)].map(({ port }) => port);
  const workers = new Map<string, ChildProcess>();
  for (const WORKER of ['worker-1', 'worker-2', 'worker-3'])
    workers.set(WORKER, (await start('worker.ts', { ...env, WORKER })).child);
  const hasNginx = isInstalled('nginx');
  const url = hasNginx ? await startNginx(fronts) : `http://127.0.0.1:${fronts[0]}`;
  console.log(
    `Redis, 2 fronts ${hasNginx ? 'behind nginx' : '(no nginx: the first is used)'}, 3 workers, at ${url}`,
  );

  const startMs = performance.now();
  const jobs: Watched[] = [];
  const now = () => performance.now() - startMs;
  let onEvent = (): void => {};
  const watch = async (job: Watched): Promise<void> => {
    for await (const event of eventsOf(`${url}/jobs/${job.id}/events`)) {
      job.events.push({ ...event, atMs: now() });
      onEvent();
    }
  };
  const ask = async (question: string): Promise<Watched> => {
    const response = await fetch(`${url}/jobs`, { method: 'POST', body: JSON.stringify({ question }) });
    const job: Watched = { id: ((await response.json()) as { id: string }).id, events: [] };
    jobs.push(job);
    return job;
  };

  let killed:
    | { readonly worker: string; readonly atMs: number; readonly jobs: readonly Watched[] }
    | undefined;
  let cancelled: Watched | undefined;
  onEvent = () => {
    const running = jobs.filter(isRunning);
    if (cancelled === undefined && running[0] !== undefined) {
      cancelled = running[0];
      void fetch(`${url}/jobs/${cancelled.id}`, { method: 'DELETE' });
    }
    const answers = jobs.filter((job) => last(job)?.event === 'answered').length;
    const victim = running.find((job) => last(job)?.event === 'searched' && job !== cancelled);
    if (killed !== undefined || answers < QUESTIONS / 4 || victim === undefined) return;
    const worker = workerOf(victim) as string;
    killed = { worker, atMs: now(), jobs: running.filter((job) => workerOf(job) === worker) };
    workers.get(worker)?.kill('SIGKILL');
  };
  const watching = [];
  for (let i = 1; i <= QUESTIONS; i++) watching.push(watch(await ask(`Question ${i}`)));
  await Promise.allSettled(watching);

  const seconds = (ms: number): string => `${(ms / 1_000).toFixed(1)} s`;
  console.log(
    `\n${seconds(killed?.atMs ?? 0)}: ${killed?.worker} killed, with ${killed?.jobs.length} jobs\n`,
  );
  for (const { id, events } of jobs) {
    const parts = events.flatMap(({ event, worker, atMs }, i) => {
      if (event === 'queued' || (worker !== undefined && worker === events[i - 1]?.worker)) return [];
      return `${seconds(atMs)} ${worker ?? event}`;
    });
    console.log(`job ${id.padStart(2)}  ${parts.join(' → ')}`);
  }

  const ends = jobs.map((job) => last(job)?.event);
  const answered = ends.filter((end) => end === 'answered').length;
  const wasCancelled = ends.filter((end) => end === 'cancelled').length;
  const lost = QUESTIONS - answered - wasCancelled;
  const calls = llm.stats();
  const searches = serper.peakStartsPer(SERPER_RATE.perMs);
  const rejected = serper.stats().statuses[429] ?? 0;
  console.log(`\n${answered} answered, ${wasCancelled} cancelled, ${lost} lost`);
  console.log(`LLM: ${calls.calls} calls, at most ${calls.peakInFlight} at once (limit ${LLM_CONCURRENCY})`);
  console.log(
    `Serper: ${serper.stats().calls} searches, at most ${searches} in any second (limit ${SERPER_RATE.limit}), ${rejected} rejected`,
  );
  const isWithinLimits =
    calls.peakInFlight <= LLM_CONCURRENCY && searches <= SERPER_RATE.limit && rejected === 0;
  const hasShownAll = killed !== undefined && wasCancelled === 1;
  // Workers first, so that they can say goodbye to Redis.
  await stop([...workers.values()]);
  return lost === 0 && isWithinLimits && hasShownAll;
}

async function stop(some: readonly ChildProcess[]): Promise<void> {
  await Promise.all(
    some.map(async (child) => {
      if (!children.has(child)) return;
      const ended = once(child, 'exit');
      child.kill('SIGTERM');
      const patience = setTimeout(() => child.kill('SIGKILL'), 5_000);
      await ended;
      clearTimeout(patience);
    }),
  );
}

if (!isInstalled('redis-server')) {
  console.log('redis-server is not installed (apt-get install redis-server): nothing to show');
} else {
  try {
    const isRight = await main();
    console.log(isRight ? '\nNo job was lost and no limit exceeded' : '\nSomething went wrong: see above');
    process.exitCode = isRight ? 0 : 1;
  } finally {
    // Redis last.
    for (const child of [...children].reverse()) await stop([child]);
    rmSync(folder, { recursive: true, force: true });
  }
}
