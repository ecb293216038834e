import { LifecycleHooks } from '../../src/hooks/lifecycle-hooks.js';
import type { ToolSet } from '../../src/tools/define-tools.js';
import { type PipelineFactory, pipelineFactory } from '../../src/tools/pipeline-factory.js';
import type { ToolManager } from '../../src/tools/tool-manager.js';

/** The tools of one agent, in the lease of a task. */
export async function managerOf<T extends ToolSet>(
  tools: T,
  { hooks = new LifecycleHooks(), taskId = 'task-1', instanceId = 1 } = {},
): Promise<{
  tools: ToolManager<T>;
  release: () => Promise<void>;
  factory: PipelineFactory<T, Record<never, never>, undefined>;
}> {
  const factory = pipelineFactory({ mainAgent: tools, hooks });
  const pipeline = await factory.create({ instanceId });
  await factory.prepare(pipeline, { instanceId, taskId });
  return {
    tools: pipeline.mainAgentToolManager,
    release: () => factory.reset(pipeline, { instanceId }),
    factory,
  };
}
