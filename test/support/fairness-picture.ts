/**
 * Draws the picture of docs/fairness.md: what a tenant of long calls does to one of short calls, with each way of sharing.
 *
 *     npx tsx test/support/fairness-picture.ts
 *
 * In virtual time: the picture and its figures are the same on every machine.
 */
import { writeFile } from 'node:fs/promises';
import { ConcurrencyLimiter, LifecycleHooks } from '../../src/index.js';
import { drawTimelines, recordTimeline, type Timeline } from '../../src/observability/timeline/timeline.js';
import { endOfTurn, sleep } from './promises.js';
import { seeded } from './random-numbers.js';
import type { Sharing } from './two-tenants.js';
import { VirtualTime } from './virtual-time.js';

const LIMIT = 4;
const HEAVY_QUEUE = 12;
const LIGHT_MS = 8;
const LIGHT_EVERY_MS = 12;
const DURATION_MS = 600;

interface Recorded {
  readonly timeline: Timeline;
  /** How long the calls of `light` waited: those not yet started at the end for as long as they had waited by then. */
  readonly meanWaitMs: number;
  readonly queuedAtEnd: number;
}

/** `heavy` always has calls of 40 to 80 ms queued; `light` makes one of 8 ms every 12 ms. */
export async function record(sharing: Exclude<Sharing, 'priority'>): Promise<Recorded> {
  const time = new VirtualTime();
  time.install();
  await endOfTurn();
  const hooks = new LifecycleHooks();
  const timeline = recordTimeline(hooks, { now: () => time.nowMs });
  const limiter = new ConcurrencyLimiter({
    name: 'limiter',
    hooks,
    maxConcurrent: LIMIT,
    ...(sharing === 'no tenant' ? {} : { fairBy: sharing }),
  });
  const tenant = (name: string) => (sharing === 'no tenant' ? {} : { tenant: name });
  const random = seeded(1);
  let calls = 0;
  let isOver = false;
  const askHeavy = (): void => {
    const ids = { source: 'limiter', taskId: 'heavy', requestId: `heavy ${++calls}` };
    const call = async () => {
      if (isOver) return;
      askHeavy();
      // Reported here and not by the limiter, which gets no ids: the picture shows these calls, but not their waits.
      hooks.emit('permit:acquired', { ...ids, ...limiter.stats(), weight: 1, waitMs: 0 });
      await sleep(40 + 40 * random());
      hooks.emit('permit:released', { ...ids, ...limiter.stats(), weight: 1, outcome: 'ok' });
    };
    void limiter.run(call, tenant('heavy'));
  };
  const waits: number[] = [];
  const queued = new Map<number, number>();
  const askLight = (): void => {
    const id = ++calls;
    const ids = { source: 'light', taskId: 'light', requestId: `light ${id}` };
    queued.set(id, time.nowMs);
    const call = async () => {
      if (isOver) return;
      waits.push(time.nowMs - (queued.get(id) ?? 0));
      queued.delete(id);
      const callIds = { ...ids, callId: id, waitMs: 0 };
      hooks.emit('call:started', { ...callIds, attempt: 1 });
      await sleep(LIGHT_MS);
      hooks.emit('call:finished', {
        ...callIds,
        outcome: 'ok',
        attempts: 1,
        durationMs: LIGHT_MS,
        cache: 'off',
      });
    };
    const { taskId, requestId } = ids;
    void limiter.run(call, { taskId, requestId, ...tenant('light') });
  };
  try {
    for (let i = 0; i < LIMIT + HEAVY_QUEUE; i++) askHeavy();
    for (let atMs = 0; atMs < DURATION_MS; atMs += LIGHT_EVERY_MS) {
      await time.pass(LIGHT_EVERY_MS);
      askLight();
    }
    timeline.stop();
    isOver = true;
    const all = [...waits, ...[...queued.values()].map((sinceMs) => time.nowMs - sinceMs)];
    return {
      timeline,
      meanWaitMs: all.reduce((sum, ms) => sum + ms, 0) / all.length,
      queuedAtEnd: queued.size,
    };
  } finally {
    isOver = true;
    await time.pass(1_000);
    time.restore();
    await endOfTurn();
  }
}

/** The three recordings as one picture, with the words of the legend for these tenants. */
export async function draw(): Promise<string> {
  const panels: { title: string; timeline: Timeline }[] = [];
  for (const [sharing, words] of [
    ['no tenant', 'No tenant named'],
    ['requests', "fairBy: 'requests' or 'weight'"],
    ['time', "fairBy: 'time'"],
  ] as const) {
    const { timeline, meanWaitMs, queuedAtEnd } = await record(sharing);
    const title = `${words}: light waits ${meanWaitMs.toFixed(1)} ms on average, ${queuedAtEnd} calls wait at the end`;
    panels.push({ title, timeline });
  }
  return drawTimelines(panels, { title: 'A light tenant beside a heavy one, on 4 permits' })
    .replaceAll(/>request (\d)</g, '>permit $1<')
    .replace('>running<', '>heavy<')
    .replace('>a service at work<', '>light<')
    .replace('>waiting to be admitted<', '>light, waiting<');
}

if (process.argv[1] === import.meta.filename) await writeFile('docs/images/fairness.svg', await draw());
