/**
 * A worker: takes jobs from the queue and answers them. The manager limits what runs here; the gates keep to limits that
 * hold for all workers together.
 */
import { UnrecoverableError, Worker } from 'bullmq';
import { createPipelineManager, expectOk, openAiPreset, ServiceGate, serperPreset } from 'pipeline-pool';
import { RedisLimits } from 'pipeline-pool/redis';
import {
  CANCELLATIONS,
  CANCELLED,
  cancelledKey,
  connection,
  connectRedis,
  type JobEvent,
  LLM_CONCURRENCY,
  onStop,
  QUEUE,
  type Question,
  SERPER_RATE,
} from './services.js';

const {
  LLM_URL,
  SERPER_URL,
  LLM_API_KEY = 'stub',
  SERPER_API_KEY = 'stub',
  WORKER = `${process.pid}`,
} = process.env;
const CONCURRENCY = 2;

const redis = await connectRedis();
const limits = new RedisLimits({ client: redis, leaseMs: 2_000 });
const llm = new ServiceGate({ name: 'llm', ...openAiPreset(), maxConcurrent: LLM_CONCURRENCY, limits });
const serper = new ServiceGate({
  name: 'serper',
  ...serperPreset(),
  keys: [SERPER_API_KEY],
  // The account counts arrivals, a gate counts starts: a tenth more covers what the network adds.
  rate: [{ limit: SERPER_RATE.limit, perMs: SERPER_RATE.perMs * 1.1 }],
  maxConcurrent: SERPER_RATE.limit,
  limits,
});

/** One conversation at a time: a stand-in for an agent. */
class Researcher {
  async search(q: string): Promise<string> {
    const response = await serper.run(async ({ key, signal }) =>
      expectOk(
        await fetch(`${SERPER_URL}/search`, {
          method: 'POST',
          headers: { 'x-api-key': key ?? '', 'content-type': 'application/json' },
          body: JSON.stringify({ q }),
          signal,
        }),
      ),
    );
    return response.text();
  }

  async ask(content: string): Promise<string> {
    const answer = await llm.run(async ({ signal }) => {
      const response = await expectOk(
        await fetch(`${LLM_URL}/chat/completions`, {
          method: 'POST',
          headers: { authorization: `Bearer ${LLM_API_KEY}`, 'content-type': 'application/json' },
          body: JSON.stringify({ model: 'default', messages: [{ role: 'user', content }] }),
          signal,
        }),
      );
      return (await response.json()) as { choices: [{ message: { content: string } }] };
    });
    return answer.choices[0].message.content;
  }
}

const manager = createPipelineManager({
  create: () => new Researcher(),
  // As many as the worker takes: a job must not wait here while it holds its lock.
  config: { poolSize: CONCURRENCY, maxConcurrentRequests: CONCURRENCY },
  gates: [llm, serper],
});

const worker = new Worker<Question, string>(
  QUEUE,
  // BullMQ passes the signal to a function with three parameters.
  async (job, _token, signal) => {
    const id = job.id ?? '';
    const report = (event: JobEvent['event']): Promise<void> => job.updateProgress({ event, worker: WORKER });
    try {
      if ((await redis.exists(cancelledKey(id))) > 0) throw new Error(CANCELLED);
      return await manager.run(
        id,
        async ({ pipeline }) => {
          await report('started');
          const found = await pipeline.search(job.data.question);
          await report('searched');
          const draft = await pipeline.ask(`${job.data.question}\n${found}`);
          await report('drafted');
          return await pipeline.ask(`Improve this: ${draft}`);
        },
        { signal },
      );
    } catch (error) {
      // No further attempts for a cancelled job.
      if ((await redis.exists(cancelledKey(id))) > 0) throw new UnrecoverableError(CANCELLED);
      throw error;
    }
  },
  // The lock of a killed worker's job expires after `lockDuration`; the next check, by any worker, returns it to the queue.
  { connection, concurrency: CONCURRENCY, lockDuration: 2_000, stalledInterval: 1_000, maxStalledCount: 3 },
);
worker.on('error', ({ message }) => console.error(`${WORKER}: ${message}`));
// Another worker may have begun the job: end the run here.
worker.on('lockRenewalFailed', (ids) => {
  for (const id of ids) worker.cancelJob(id, 'the lock was lost');
});
const cancellations = redis.duplicate();
cancellations.on('error', () => {});
await cancellations.connect();
await cancellations.subscribe(CANCELLATIONS, (id) => worker.cancelJob(id, CANCELLED));

await worker.waitUntilReady();
process.send?.({ ready: true });

onStop(async () => {
  // First no new jobs, and an end to the running ones; then what they use.
  await worker.close();
  await manager.shutdown();
  await Promise.all([llm.close(), serper.close()]);
  await limits.close();
  cancellations.destroy();
  await redis.close();
});
