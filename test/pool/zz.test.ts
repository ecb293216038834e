import { it } from 'vitest';
import { PipelinePool, LIFECYCLE_EVENTS } from 'pipeline-pool';
it('x', async () => {
  const pool = new PipelinePool({ size: 1, create: () => ({}) });
  for (const e of LIFECYCLE_EVENTS) pool.hooks.on(e, (t: any) => console.log(e, t.instanceId, t.taskId));
  const a = await pool.acquire({ taskId: 'a' });
  const b = pool.acquire({ taskId: 'b' });
  await a.release();
  await (await b).release({ discard: true });
});
