import { createPipelineManager, logTo, PRESETS } from 'pipeline-pool';
import { expect, it } from 'vitest';

it('writes the three lines of a request, word for word', async () => {
  const manager = createPipelineManager({
    config: PRESETS.medium,
    create: ({ instanceId }) => ({ instanceId }),
  });
  const lines: string[] = [];
  const write = (line: string) => void lines.push(line);
  logTo(manager.hooks, { info: write, warn: write, error: write, debug: () => {} });

  const a = await manager.acquirePipeline('a');
  const b = await manager.acquirePipeline('xxx');
  const c = await manager.acquirePipeline('c');
  await manager.releasePipeline(b);
  await Promise.all([a, c].map((lease) => manager.releasePipeline(lease)));

  expect(lines).toEqual([
    'Concurrency: 1/10 active requests',
    'Acquired pipeline instance 1 for task a',
    'Concurrency: 2/10 active requests',
    'Acquired pipeline instance 2 for task xxx',
    'Concurrency: 3/10 active requests',
    'Acquired pipeline instance 3 for task c',
    'Released pipeline instance 2 for task xxx',
    'Released pipeline instance 1 for task a',
    'Released pipeline instance 3 for task c',
  ]);
});
