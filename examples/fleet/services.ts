import type { ConnectionOptions } from 'bullmq';
import { createClient } from 'redis';

/** What a front and a worker have in common: the queue, what a job holds, and what its stream says. */
export const QUEUE = 'research';

export interface Question {
  readonly question: string;
}

/** An event of a job, as the worker reports it (`updateProgress`) and the client receives it. */
export interface JobEvent {
  readonly event:
    | 'queued'
    | 'started'
    | 'searched'
    | 'drafted'
    | 'stalled'
    | 'answered'
    | 'failed'
    | 'cancelled';
  readonly worker?: string;
  readonly answer?: string;
  readonly reason?: string;
}

/** Workers listen here for the ids of jobs to cancel. */
export const CANCELLATIONS = 'research:cancel';
/** Set for a cancelled job, for a worker that takes it later. */
export const cancelledKey = (jobId: string): string => `research:cancelled:${jobId}`;
/** The reason of a job that was cancelled. */
export const CANCELLED = 'cancelled';

/** What all workers together may do: the limits of the LLM server and of the Serper account. */
export const LLM_CONCURRENCY = 4;
export const SERPER_RATE = { limit: 8, perMs: 1_000 };

const { REDIS_URL = 'redis://127.0.0.1:6379' } = process.env;
const { hostname, port } = new URL(REDIS_URL);
/** BullMQ opens connections of its own; it requires that commands are retried without an end. */
export const connection: ConnectionOptions = {
  host: hostname,
  port: Number(port || 6379),
  maxRetriesPerRequest: null,
};

export async function connectRedis() {
  // Without pings a connection that died silently is not noticed.
  const client = createClient({ url: REDIS_URL, pingInterval: 1_000 });
  client.on('error', ({ message }: Error) => console.error(`Redis: ${message}`));
  await client.connect();
  return client;
}

/** Calls `stop`, once: at SIGTERM or SIGINT, or when the process that started this one has ended. */
export function onStop(stop: () => Promise<void>): void {
  let isStopping = false;
  const begin = async (): Promise<void> => {
    if (isStopping) return;
    isStopping = true;
    await stop();
    process.exit();
  };
  for (const signal of ['SIGTERM', 'SIGINT', 'disconnect']) process.on(signal, begin);
}
