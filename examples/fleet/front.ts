/**
 * A front: accepts questions, streams the progress of their jobs, and cancels them. It runs no job, so it can be restarted
 * at any time; any front can stream any job.
 *
 * - `POST /jobs` with `{ "question": "…" }` → 202 `{ "id": "…" }`
 * - `GET /jobs/:id/events` → server-sent events, until the job has ended
 * - `DELETE /jobs/:id` → 202; the stream ends with the event `cancelled`
 */
import { EventEmitter, on, once } from 'node:events';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { text } from 'node:stream/consumers';
import { type Job, Queue, QueueEvents } from 'bullmq';
import { eventStream } from 'pipeline-pool';
import {
  CANCELLATIONS,
  CANCELLED,
  cancelledKey,
  connection,
  connectRedis,
  type JobEvent,
  onStop,
  QUEUE,
  type Question,
} from './services.js';

const { PORT = '0', HOST = '127.0.0.1' } = process.env;
const redis = await connectRedis();
const queue = new Queue<Question, string>(QUEUE, { connection });
const queueEvents = new QueueEvents(QUEUE, { connection });
await queueEvents.waitUntilReady();

/** Emits each event of a job under `job <id>`. */
const jobs = new EventEmitter().setMaxListeners(0);
const emit = (jobId: string, event: JobEvent): boolean => jobs.emit(`job ${jobId}`, event);
const failure = (reason: string): JobEvent => ({
  event: reason === CANCELLED ? 'cancelled' : 'failed',
  reason,
});
queueEvents.on('progress', ({ jobId, data }) => emit(jobId, data as JobEvent));
queueEvents.on('stalled', ({ jobId }) => emit(jobId, { event: 'stalled' }));
queueEvents.on('completed', ({ jobId, returnvalue }) =>
  emit(jobId, { event: 'answered', answer: returnvalue }),
);
queueEvents.on('failed', ({ jobId, failedReason }) => emit(jobId, failure(failedReason)));
queueEvents.on('removed', ({ jobId }) => emit(jobId, failure(CANCELLED)));

const isEnd = ({ event }: JobEvent): boolean => ['answered', 'failed', 'cancelled'].includes(event);

async function* eventsOf(id: string, signal: AbortSignal): AsyncGenerator<JobEvent> {
  // Before its state is read: an event in between must not be missed.
  const events = on(jobs, `job ${id}`, { signal });
  const job: Job<Question, string> | undefined = await queue.getJob(id);
  if (job === undefined) yield failure(CANCELLED);
  else if (await job.isCompleted()) yield { event: 'answered', answer: job.returnvalue };
  else if (await job.isFailed()) yield failure(job.failedReason);
  else {
    // Where it is now: a client may come late, or return by another front.
    yield typeof job.progress === 'object' ? (job.progress as JobEvent) : { event: 'queued' };
    for await (const [event] of events) {
      yield event;
      if (isEnd(event)) return;
    }
  }
  await events.return?.();
}

async function cancel(id: string, job: Job): Promise<void> {
  await redis.set(cancelledKey(id), '1', { EX: 3_600 });
  // A waiting job is removed; a running one is locked, and its worker ends it.
  await job.remove().catch(() => redis.publish(CANCELLATIONS, id));
}

async function answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
  const send = (status: number, body: object): void => {
    response.writeHead(status, { 'content-type': 'application/json' }).end(`${JSON.stringify(body)}\n`);
  };
  const [path, id = '', events] = request.url?.split('/').slice(1) ?? [];
  if (request.method === 'POST' && path === 'jobs' && id === '') {
    const { question } = JSON.parse(await text(request)) as Question;
    const options = { attempts: 3, removeOnComplete: { age: 3_600 }, removeOnFail: { age: 3_600 } };
    const job = await queue.add('research', { question }, options);
    return send(202, { id: job.id });
  }
  const job = path === 'jobs' && id !== '' ? await queue.getJob(id) : undefined;
  if (job === undefined) return send(404, { error: 'There is no such job' });
  if (request.method === 'DELETE') {
    await cancel(id, job);
    return send(202, { id });
  }
  if (events !== 'events') return send(404, { error: 'There is no such thing' });
  return eventStream(
    ({ signal }) => eventsOf(id, signal),
    { request, response },
    { event: ({ event }) => event },
  );
}

const server = createServer((request, response) => {
  answer(request, response).catch((error: unknown) => {
    console.error(error);
    if (response.headersSent) response.destroy();
    else response.writeHead(error instanceof SyntaxError ? 400 : 500).end();
  });
});
server.listen(Number(PORT), HOST);
await once(server, 'listening');
process.send?.({ port: (server.address() as AddressInfo).port });

onStop(async () => {
  server.close();
  server.closeAllConnections();
  await queueEvents.close();
  await queue.close();
  await redis.close();
});
