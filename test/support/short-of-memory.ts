/** Run with a small heap; its size in MB is the argument. The instances fill almost all of it. Prints the diagnosis. */
import { getHeapStatistics } from 'node:v8';
import { createPipelineManager } from 'pipeline-pool';
import { diagnose } from 'pipeline-pool/diagnosis';
import { StubLlm } from 'pipeline-pool/testing';

const INSTANCES = 4;
const FILLED_BYTES = 0.9 * Number(process.argv[2]) * 1024 ** 2;

/** Allocates until this much of the heap is in use. */
function fillTo(bytes: number): unknown[] {
  const hoard: unknown[] = [];
  while (getHeapStatistics().used_heap_size < bytes) hoard.push(new Array(10_000).fill(hoard.length + 0.5));
  return hoard;
}

await using llm = await new StubLlm({ latencyMs: 20 }).start();
await using manager = createPipelineManager({
  config: { poolSize: INSTANCES, maxConcurrentRequests: INSTANCES },
  create: ({ instanceId }) => ({ pages: fillTo((FILLED_BYTES * instanceId) / INSTANCES) }),
});
await Promise.all(
  Array.from({ length: INSTANCES }, (_, i) =>
    manager.run(`task-${i}`, async ({ pipeline, signal }) => {
      await fetch(`${llm.baseUrl}/models`, { signal }).then((response) => response.text());
      return pipeline.pages.length;
    }),
  ),
);
console.log(JSON.stringify(diagnose(manager)));
