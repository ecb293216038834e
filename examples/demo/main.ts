/**
 * Three requests of a small deep-research service: sequential; concurrent with one shared tool manager; concurrent from
 * the pool. Runs against stub services on loopback unless real ones are configured. See `npm run demo -- --help`.
 */
import { writeFile } from 'node:fs/promises';
import { parseArgs } from 'node:util';
import { checkConfig, loadConfig, type PipelineManager } from 'pipeline-pool';
import { drawTimelines } from 'pipeline-pool/timeline';
import type { ResearchPipeline } from './pipeline.js';
import { atOncePooled, atOnceShared, inTurn, warmUp } from './runs.js';
import { connectServices } from './services.js';
import { ToolServer } from './tool-server.js';

const HELP = `npm run demo -- [options]
  --requests N         how many requests (3)
  --pool-size N        pipeline instances (PIPELINE_POOL_SIZE, or 5)
  --max-concurrent N   requests admitted at once (MAX_CONCURRENT_REQUESTS, or 10)
  --time-scale X       1 is the usual pace, 0.1 ten times as fast (1)
  --svg FILE           where the picture of the three runs goes (pipeline-pool-demo.svg)
  --json               nothing but the result, as JSON
Real services are used where the environment names them: BASE_URL and API_KEY, SERPER_API_KEY, JINA_API_KEY,
E2B_API_KEY, each on its own.`;

const QUESTIONS = [
  'How much carbon do mangroves store?',
  'When was the first undersea cable laid?',
  'Why do glaciers look blue?',
];

/** How long running requests may take after an interrupt. */
const DRAIN_MS = 15_000;

function number(option: string, written: string | undefined, whole: boolean, fallback: number): number {
  if (written === undefined) return fallback;
  const value = Number(written);
  if (
    written.trim() === '' ||
    !(value > 0) ||
    !Number.isFinite(value) ||
    (whole && !Number.isSafeInteger(value))
  ) {
    throw new RangeError(`--${option} takes a ${whole ? 'whole ' : ''}number above 0, got "${written}"`);
  }
  return value;
}

function readOptions() {
  const { values } = parseArgs({
    options: {
      requests: { type: 'string' },
      'pool-size': { type: 'string' },
      'max-concurrent': { type: 'string' },
      'time-scale': { type: 'string' },
      svg: { type: 'string', default: 'pipeline-pool-demo.svg' },
      json: { type: 'boolean', default: false },
      help: { type: 'boolean', default: false },
    },
  });
  const config = loadConfig();
  return {
    ...values,
    requests: number('requests', values.requests, true, 3),
    timeScale: number('time-scale', values['time-scale'], false, 1),
    config: {
      ...config,
      poolSize: number('pool-size', values['pool-size'], true, config.poolSize),
      maxConcurrentRequests: number(
        'max-concurrent',
        values['max-concurrent'],
        true,
        config.maxConcurrentRequests,
      ),
    },
  };
}

async function main(): Promise<void> {
  const { requests, timeScale, config, svg, json, help } = readOptions();
  if (help) return console.log(HELP);
  const say = json ? () => {} : (line: string) => console.log(line);
  const interrupt = new AbortController();
  let manager: PipelineManager<ResearchPipeline> | undefined;
  let drained: Promise<void> | undefined;
  const onInterrupt = (): void => {
    process.exitCode = 130;
    if (manager === undefined) {
      say('Interrupted: stopping.');
      interrupt.abort(new Error('interrupted'));
      return;
    }
    say(`Interrupted: draining, ${manager.health().active_requests} requests are under way.`);
    drained ??= manager.shutdown({ timeoutMs: DRAIN_MS }).then(() => {
      say(`Drained: ${manager?.stats().pool.live} instances are left.`);
    });
  };
  process.on('SIGINT', onInterrupt);

  await using services = await connectServices(process.env, timeScale);
  await using toolServer = new ToolServer(services);
  const toolPort = await toolServer.listen();
  const tasks = Array.from({ length: requests }, (_, i) => ({
    taskId: `task-${i + 1}`,
    question: QUESTIONS[i % QUESTIONS.length] as string,
  }));
  const stage = { services, toolPort, tasks, config, signal: interrupt.signal, say };

  try {
    say(`${requests} requests. ${services.description}.`);
    for (const { message } of checkConfig(config)) say(`Note: ${message}`);
    say('Warming up.');
    await warmUp(stage);
    say('\nIn turn, on one pipeline:');
    const turn = await inTurn(stage);
    say('\nAt once, all on that one pipeline:');
    const shared = await atOnceShared(stage);
    say(`\nAt once, from a pool of ${config.poolSize}:`);
    const pooled = await atOncePooled(stage, (made) => {
      manager = made;
    });
    await drained;

    const abreast = Math.min(requests, config.poolSize, config.maxConcurrentRequests);
    const idealMs = (turn.totalMs / requests) * Math.ceil(requests / abreast);
    const runs = { 'in turn': turn, 'at once, shared': shared, 'at once, pooled': pooled };
    const rows = Object.entries(runs).map(([run, { totalMs, linesInWrongLog }]) => ({
      run,
      'total s': Number((totalMs / 1000).toFixed(2)),
      'speed-up': Number((turn.totalMs / totalMs).toFixed(2)),
      ideal: Number((run === 'in turn' ? 1 : turn.totalMs / idealMs).toFixed(2)),
      'lines in the wrong log': linesInWrongLog,
    }));
    if (json)
      return console.log(JSON.stringify({ requests, config, rows, idealMs, health: pooled.health }, null, 2));

    console.log();
    console.table(Object.fromEntries(rows.map(({ run, ...row }) => [run, row])));
    console.log('Who waited for what, shared:');
    console.log(shared.timeline.toText());
    console.log('Who waited for what, pooled:');
    console.log(pooled.timeline.toText());
    const { status, active_requests, pool_size } = pooled.health;
    console.log('Health, at its busiest:', JSON.stringify({ status, active_requests, pool_size }));
    const panels = Object.entries(runs).map(([title, { timeline }]) => ({ title, timeline }));
    await writeFile(svg, drawTimelines(panels, { title: `${requests} requests, three ways` }));
    console.log(`The three runs side by side: ${svg}`);
  } catch (error) {
    await drained;
    if (process.exitCode !== 130) throw error;
  } finally {
    process.off('SIGINT', onInterrupt);
  }
}

main().catch((error: unknown) => {
  console.error(error instanceof Error ? error.message : error);
  process.exitCode = 1;
});
