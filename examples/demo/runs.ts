import { randomUUID } from 'node:crypto';
import {
  createPipelineManager,
  type Health,
  LifecycleHooks,
  logTo,
  type PipelineConfig,
  type PipelineManager,
} from 'pipeline-pool';
import { recordTimeline, type Timeline } from 'pipeline-pool/timeline';
import { ResearchPipeline, TaskLog } from './pipeline.js';
import type { Services } from './services.js';

/** The dependencies of a run. */
export interface Stage {
  readonly services: Services;
  readonly toolPort: number;
  readonly tasks: readonly { readonly taskId: string; readonly question: string }[];
  readonly config: PipelineConfig;
  /** Aborts when the demo is interrupted. */
  readonly signal: AbortSignal;
  say(line: string): void;
}

/** The result of a run. */
export interface RunResult {
  readonly totalMs: number;
  readonly linesInWrongLog: number;
  readonly timeline: Timeline;
}

/** One unmeasured request: the first one through the SDKs includes loading and compiling them. */
export async function warmUp({ services, toolPort, tasks, signal }: Stage): Promise<void> {
  const pipeline = new ResearchPipeline(services, toolPort, new LifecycleHooks());
  try {
    await pipeline.research('warm-up', tasks[0]?.question ?? '', AbortSignal.any([signal]));
  } finally {
    pipeline.close();
  }
}

/** One request after another on one pipeline: the baseline. */
export async function inTurn(stage: Stage): Promise<RunResult> {
  return onOnePipeline(stage, async (serve) => {
    for (const task of stage.tasks) await serve(task);
  });
}

/** All requests concurrently on one pipeline: a service that shares one set of tool managers between its requests. */
export async function atOnceShared(stage: Stage): Promise<RunResult> {
  return onOnePipeline(stage, async (serve) => {
    await Promise.all(stage.tasks.map(serve));
  });
}

async function onOnePipeline(
  { services, toolPort, tasks, signal, say }: Stage,
  order: (serve: (task: Stage['tasks'][number]) => Promise<void>) => Promise<void>,
): Promise<RunResult> {
  const hooks = new LifecycleHooks();
  const timeline = recordTimeline(hooks);
  const logs = new Map(tasks.map(({ taskId }) => [taskId, new TaskLog(taskId)]));
  const pipeline = new ResearchPipeline(services, toolPort, hooks);
  const began = performance.now();
  try {
    await order(async ({ taskId, question }) => {
      const ids = { source: 'service', taskId, requestId: randomUUID() };
      const started = performance.now();
      hooks.emit('request:queued', ids);
      hooks.emit('request:started', { ...ids, instanceId: 1, waitMs: 0, admissionMs: 0, leaseMs: 0 });
      pipeline.setTaskLog(logs.get(taskId));
      let outcome: 'ok' | 'failed' = 'failed';
      try {
        await pipeline.research(taskId, question, AbortSignal.any([signal]));
        outcome = 'ok';
      } finally {
        const durationMs = performance.now() - started;
        hooks.emit('request:finished', { ...ids, instanceId: 1, outcome, durationMs });
        say(
          `  ${taskId} ${outcome === 'ok' ? 'answered' : 'failed'} after ${(durationMs / 1000).toFixed(2)} s`,
        );
      }
    });
  } finally {
    timeline.stop();
    pipeline.close();
  }
  return { totalMs: performance.now() - began, linesInWrongLog: misplaced(logs), timeline };
}

/** All requests concurrently, each on its own pipeline. */
export async function atOncePooled(
  { services, toolPort, tasks, config, signal, say }: Stage,
  onManager: (manager: PipelineManager<ResearchPipeline>) => void,
): Promise<RunResult & { readonly health: Health }> {
  const hooks = new LifecycleHooks();
  const timeline = recordTimeline(hooks);
  const logs = new Map(tasks.map(({ taskId }) => [taskId, new TaskLog(taskId)]));
  const manager = createPipelineManager({
    config,
    hooks,
    create: () => new ResearchPipeline(services, toolPort, hooks),
    prepare: (pipeline, { taskId = '' }) => pipeline.setTaskLog(logs.get(taskId)),
    reset: (pipeline) => pipeline.setTaskLog(undefined),
    destroy: (pipeline) => pipeline.close(),
  });
  onManager(manager);
  const write = (line: string): void => say(`  ${line}`);
  logTo(hooks, { debug: () => {}, info: write, warn: write, error: write });

  // The service at peak load, as a health check sees it.
  let health = manager.health();
  hooks.on('request:started', () => {
    const now = manager.health();
    if (now.active_requests > health.active_requests) health = now;
  });

  const began = performance.now();
  try {
    await Promise.all(
      tasks.map(({ taskId, question }) =>
        manager.run(taskId, ({ pipeline, signal: own }) => pipeline.research(taskId, question, own), {
          signal,
        }),
      ),
    );
  } finally {
    timeline.stop();
  }
  const totalMs = performance.now() - began;
  await manager.shutdown();
  return { totalMs, linesInWrongLog: misplaced(logs), timeline, health };
}

const misplaced = (logs: ReadonlyMap<string, TaskLog>): number =>
  [...logs.values()].reduce((sum, log) => sum + log.misplaced, 0);
