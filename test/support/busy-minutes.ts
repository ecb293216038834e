import type { Timeline } from '../../src/observability/timeline/timeline.js';
import { seeded } from './random-numbers.js';
import { callGate, goThrough, pool, Story } from './stories.js';

const SIZE = 3;
const ADMITTED = 4;

/** A few minutes of a service with three instances: the picture that the guide shows. */
export function busyMinutes(): Timeline {
  const story = new Story();
  const random = seeded(21);
  const between = (least: number, most: number): number => Math.round(least + random() * (most - least));
  const slots = Array.from({ length: SIZE }, (_, i) => ({ instanceId: i + 1, freeMs: 3_000 + i * 1_200 }));
  for (const { instanceId, freeMs } of slots) createInstance(story, instanceId, 0, freeMs);
  const endings: number[] = [];
  let instances = SIZE;
  let toolCallId = 0;

  for (let i = 0; i < 10; i++) {
    const taskId = `task-${i + 1}`;
    const ids = { taskId, requestId: `r-${taskId}` };
    const arriveMs = i * 6_000;
    endings.sort((a, b) => a - b);
    const full = endings.length >= ADMITTED;
    const admittedMs = full ? Math.max(arriveMs, endings.shift() ?? 0) : arriveMs;
    slots.sort((a, b) => a.freeMs - b.freeMs);
    const slot = slots[0] as (typeof slots)[number];
    const startMs = Math.max(admittedMs, slot.freeMs);
    const { instanceId } = slot;

    let atMs = startMs;
    const untilMs = startMs + between(16_000, 34_000);
    while (atMs < untilMs) {
      const queueMs = random() < 0.25 ? between(800, 2_500) : 0;
      atMs = callGate(story, 'llm', ids, atMs, [{ waitMs: queueMs, workMs: between(1_500, 4_000) }]);
      let lastMs = atMs;
      for (let parallel = between(1, 3); parallel > 0; parallel--) {
        const payload = { source: 'main', ...ids, instanceId, toolCallId: ++toolCallId };
        const sandbox = parallel === 3;
        const tool = sandbox ? 'runCode' : 'search';
        const busy = random() < 0.15;
        const doneMs = sandbox
          ? atMs + between(2_000, 4_000)
          : callGate(story, 'serper', { ...ids, toolCallId }, atMs, [
              ...(busy ? [{ workMs: 500 }] : []),
              { waitMs: busy ? 1_500 : 0, reason: busy ? 'cooldown' : 'rate', workMs: between(700, 2_000) },
            ]);
        story.at(atMs, 'tool:started', { ...payload, tool });
        story.at(doneMs, 'tool:finished', { ...payload, tool, outcome: 'ok', durationMs: doneMs - atMs });
        lastMs = Math.max(lastMs, doneMs);
      }
      atMs = lastMs + between(100, 400);
    }

    const outcome = i === 4 ? 'failed' : 'ok';
    goThrough(story, { taskId, arriveMs, admittedMs, startMs, endMs: atMs, instanceId, outcome });
    endings.push(atMs);
    slot.freeMs = atMs;
    if (outcome === 'failed') {
      const ended = { reason: 'unhealthy', destroyMs: 400, ageMs: atMs, uses: 2 } as const;
      story.at(atMs + 400, 'instance:destroyed', { ...pool, instanceId, ...ended });
      slot.instanceId = ++instances;
      slot.freeMs = atMs + 4_400;
      createInstance(story, slot.instanceId, atMs + 500, slot.freeMs);
    }
  }
  return story.record();
}

function createInstance(story: Story, instanceId: number, fromMs: number, readyMs: number): void {
  const payload = { ...pool, size: SIZE, instanceId };
  story.at(fromMs, 'instance:creating', payload);
  story.at(readyMs, 'instance:created', { ...payload, createMs: readyMs - fromMs });
}
