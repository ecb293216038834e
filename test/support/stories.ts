import { type LifecycleEventName, type LifecycleEvents, LifecycleHooks } from 'pipeline-pool';
import {
  recordTimeline,
  type Timeline,
  type TimelineOptions,
} from '../../src/observability/timeline/timeline.js';

/** Plays events at given moments of a clock of its own, and records them. */
export class Story {
  readonly #events: { atMs: number; rank: number; emit: (hooks: LifecycleHooks) => void }[] = [];

  at<E extends LifecycleEventName>(atMs: number, event: E, payload: LifecycleEvents[E]): this {
    // Of what happens at one moment, ends come first, and a request begins before its calls do.
    const rank = /finished|released|destroyed/.test(event) ? 0 : /^(call|tool)/.test(event) ? 2 : 1;
    this.#events.push({ atMs, rank, emit: (hooks) => hooks.emit(event, payload) });
    return this;
  }

  /** Records up to `untilMs`; without it everything. */
  record(options: TimelineOptions = {}, untilMs = Number.POSITIVE_INFINITY): Timeline {
    const hooks = new LifecycleHooks();
    let nowMs = 1_000;
    const timeline = recordTimeline(hooks, { now: () => nowMs, ...options });
    hooks.on('hook:error', ({ error }) => {
      throw error;
    });
    for (const { atMs, emit } of this.#events.toSorted((a, b) => a.atMs - b.atMs || a.rank - b.rank)) {
      if (atMs > untilMs) break;
      nowMs = 1_000 + atMs;
      emit(hooks);
    }
    if (untilMs !== Number.POSITIVE_INFINITY) nowMs = 1_000 + untilMs;
    return timeline;
  }
}

export const admission = { source: 'requests', active: 1, queued: 0, maxConcurrent: 5, weight: 1 };
export const pool = { source: 'pool', live: 3, leased: 1, queued: 0, size: 3 };

/** A request's way through manager, limiter and pool, with what it does in between. */
export interface Way {
  readonly taskId: string;
  readonly arriveMs?: number;
  readonly admittedMs?: number;
  readonly startMs: number;
  readonly endMs: number;
  readonly instanceId: number;
  readonly outcome?: LifecycleEvents['request:finished']['outcome'];
}

export function goThrough(story: Story, way: Way): void {
  const { taskId, arriveMs = 0, admittedMs = arriveMs, startMs, endMs, instanceId, outcome = 'ok' } = way;
  const ids = { taskId, requestId: `r-${taskId}` };
  const request = { source: 'manager', ...ids };
  story.at(arriveMs, 'request:queued', request);
  if (admittedMs > arriveMs) story.at(arriveMs, 'permit:queued', { ...admission, ...ids });
  story.at(admittedMs, 'permit:acquired', { ...admission, ...ids, waitMs: admittedMs - arriveMs });
  if (startMs > admittedMs) story.at(admittedMs, 'lease:queued', { ...pool, ...ids });
  const leaseMs = startMs - admittedMs;
  story.at(startMs, 'lease:acquired', { ...pool, ...ids, instanceId, waitMs: leaseMs });
  const waitMs = startMs - arriveMs;
  const admissionMs = admittedMs - arriveMs;
  story.at(startMs, 'request:started', { ...request, instanceId, waitMs, admissionMs, leaseMs });
  const durationMs = endMs - startMs;
  story.at(endMs, 'request:finished', { ...request, instanceId, outcome, durationMs });
  story.at(endMs, 'lease:released', { ...pool, ...ids, instanceId, heldMs: durationMs, discarded: false });
  story.at(endMs, 'permit:released', { ...admission, ...ids, outcome: 'ok' });
}

let callIds = 0;

/** A call through a gate, each attempt preceded by a wait. */
export function callGate(
  story: Story,
  gate: string,
  ids: { taskId: string; requestId?: string; toolCallId?: number },
  startMs: number,
  attempts: readonly { waitMs?: number; reason?: 'rate' | 'cooldown' | 'backoff'; workMs: number }[],
): number {
  const callId = ++callIds;
  const call = { source: gate, ...ids, callId };
  let atMs = startMs;
  let totalWaitMs = 0;
  attempts.forEach(({ waitMs = 0, reason, workMs }, i) => {
    if (reason !== undefined) story.at(atMs, 'call:throttled', { ...call, reason, waitMs });
    atMs += waitMs;
    totalWaitMs += waitMs;
    story.at(atMs, 'call:started', { ...call, attempt: i + 1, waitMs });
    atMs += workMs;
    const next = attempts[i + 1];
    if (next !== undefined) {
      const retryAfterMs = next.waitMs ?? 0;
      story.at(atMs, 'call:retried', {
        ...call,
        attempt: i + 1,
        class: 'rate-limited',
        status: 429,
        retryAfterMs,
      });
    }
  });
  story.at(atMs, 'call:finished', {
    ...call,
    outcome: 'ok',
    attempts: attempts.length,
    durationMs: atMs - startMs,
    waitMs: totalWaitMs,
    cache: 'off',
  });
  return atMs;
}
