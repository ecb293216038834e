import { LIFECYCLE_EVENTS, LifecycleHooks } from 'pipeline-pool';
import { describe, expect, it, vi } from 'vitest';
import { redactError } from '../../src/internal/redaction.js';
import {
  recordTimeline,
  type TimelineData,
  type TimelineSpan,
} from '../../src/observability/timeline/timeline.js';
import { EXAMPLES } from '../support/event-payloads.js';
import { admission, callGate, goThrough, pool, Story } from '../support/stories.js';

const brief = ({ kind, name, startMs, endMs, reason, outcome }: TimelineSpan): string =>
  [kind, name, `${startMs}-${endMs ?? ''}`, reason, outcome].filter((part) => part !== undefined).join(' ');

const spansOf = (data: TimelineData, taskId: string): string[] =>
  data.requests.find((request) => request.taskId === taskId)?.spans.map(brief) ?? [];

const call = { source: 'serper', taskId: 'a', callId: 1 };

describe('recordTimeline', () => {
  it('records the admission, the wait for an instance and the lease of a request', () => {
    const story = new Story();
    goThrough(story, { taskId: 'a', admittedMs: 100, startMs: 300, endMs: 1_000, instanceId: 1 });
    const data = story.record().toJSON();
    expect(data.requests).toMatchObject([
      { taskId: 'a', requestId: 'r-a', startMs: 0, endMs: 1_000, outcome: 'ok' },
    ]);
    expect(spansOf(data, 'a')).toEqual([
      'wait-permit requests 0-100',
      'permit requests 100-1000',
      'wait-lease pool 100-300',
      'lease pool 300-1000',
    ]);
    expect(data.endMs).toBe(1_000);
  });

  it('works with pool and limiter alone, by task id', () => {
    const ids = { taskId: 'a' };
    const data = new Story()
      .at(0, 'permit:acquired', { ...admission, ...ids, waitMs: 0 })
      .at(0, 'lease:queued', { ...pool, ...ids })
      .at(50, 'lease:acquired', { ...pool, ...ids, instanceId: 2, waitMs: 50 })
      .at(90, 'lease:released', { ...pool, ...ids, instanceId: 2, heldMs: 40, discarded: false })
      .at(95, 'permit:released', { ...admission, ...ids, outcome: 'ok' })
      .record()
      .toJSON();
    expect(data.requests).toMatchObject([{ taskId: 'a', startMs: 0, endMs: 95 }]);
    expect(spansOf(data, 'a')).toEqual(['permit requests 0-95', 'wait-lease pool 0-50', 'lease pool 50-90']);
  });

  it('records a lease without a task id as an unnamed request', () => {
    const data = new Story()
      .at(0, 'lease:acquired', { ...pool, instanceId: 1, waitMs: 0 })
      .at(80, 'lease:released', { ...pool, instanceId: 1, heldMs: 80, discarded: false })
      .record()
      .toJSON();
    expect(data.requests).toHaveLength(1);
    expect(data.requests[0]).not.toHaveProperty('taskId');
    expect(data.requests[0]?.spans.map(brief)).toEqual(['lease pool 0-80']);
  });

  it('records a wait that started before the recording', () => {
    const data = new Story()
      .at(0, 'lease:acquired', { ...pool, taskId: 'a', instanceId: 1, waitMs: 200 })
      .at(80, 'lease:released', { ...pool, taskId: 'a', instanceId: 1, heldMs: 80, discarded: false })
      .record()
      .toJSON();
    expect(spansOf(data, 'a')).toEqual(['wait-lease pool 0-200', 'lease pool 200-280']);
    expect(data.requests[0]).toMatchObject({ startMs: 0, endMs: 280 });
  });

  it('keeps two requests of one task apart', () => {
    const story = new Story();
    for (const [requestId, atMs] of [
      ['r1', 0],
      ['r2', 10],
    ] as const) {
      const ids = { taskId: 'a', requestId };
      story
        .at(atMs, 'request:queued', { source: 'manager', ...ids })
        .at(atMs, 'permit:acquired', { ...admission, ...ids, waitMs: 0 })
        .at(atMs + 50, 'permit:released', { ...admission, ...ids, outcome: 'ok' })
        .at(atMs + 50, 'request:finished', {
          source: 'manager',
          ...ids,
          instanceId: 1,
          outcome: 'ok',
          durationMs: 50,
        });
    }
    const { requests } = story.record().toJSON();
    expect(requests.map(({ requestId, spans }) => [requestId, spans.map(brief)])).toEqual([
      ['r1', ['permit requests 0-50']],
      ['r2', ['permit requests 10-60']],
    ]);
  });

  it('starts a new request for events of a task whose request has ended', () => {
    const story = new Story();
    goThrough(story, { taskId: 'a', startMs: 0, endMs: 100, instanceId: 1 });
    callGate(story, 'llm', { taskId: 'a' }, 150, [{ workMs: 10 }]);
    const { requests } = story.record().toJSON();
    expect(requests.map(({ requestId, endMs }) => [requestId, endMs])).toEqual([
      ['r-a', 100],
      [undefined, 160],
    ]);
  });

  it('records why a request was rejected, with and without a manager', () => {
    const error = redactError(new Error('queue full'));
    const ids = { taskId: 'b', requestId: 'r-b' };
    const data = new Story()
      .at(0, 'permit:queued', { ...admission, taskId: 'a' })
      .at(30, 'permit:rejected', { ...admission, taskId: 'a', reason: 'timeout', waitMs: 30, error })
      .at(0, 'request:queued', { source: 'manager', ...ids })
      .at(0, 'permit:rejected', { ...admission, ...ids, reason: 'queue-full', waitMs: 0, error })
      .at(0, 'request:rejected', { source: 'manager', ...ids, outcome: 'failed', waitMs: 0, error })
      .record()
      .toJSON();
    expect(data.requests).toMatchObject([
      { taskId: 'a', startMs: 0, endMs: 30, outcome: 'timeout' },
      { taskId: 'b', startMs: 0, endMs: 0, outcome: 'failed' },
    ]);
    expect(spansOf(data, 'a')).toEqual(['wait-permit requests 0-30 timeout']);
  });

  it('ends a revoked lease once', () => {
    const payload = { ...pool, taskId: 'a', instanceId: 1 };
    const data = new Story()
      .at(0, 'lease:acquired', { ...payload, waitMs: 0 })
      .at(40, 'lease:revoked', { ...payload, heldMs: 40, reason: 'max-lease' })
      .at(70, 'lease:released', { ...payload, heldMs: 70, discarded: true })
      .record()
      .toJSON();
    expect(spansOf(data, 'a')).toEqual(['lease pool 0-40 revoked']);
  });

  it('ends the previous lease of an instance when the next one is reported before the release', () => {
    const story = new Story()
      .at(0, 'lease:acquired', { ...pool, taskId: 'a', instanceId: 1, waitMs: 0 })
      .at(50, 'lease:acquired', { ...pool, taskId: 'b', instanceId: 1, waitMs: 50 })
      .at(50.5, 'lease:released', { ...pool, taskId: 'a', instanceId: 1, heldMs: 50, discarded: false })
      .at(90, 'lease:released', { ...pool, taskId: 'b', instanceId: 1, heldMs: 40, discarded: false });
    const data = story.record().toJSON();
    expect(spansOf(data, 'a')).toEqual(['lease pool 0-50']);
    expect(spansOf(data, 'b')).toEqual(['wait-lease pool 0-50', 'lease pool 50-90']);
  });

  it('leaves open what is in progress, and ends at the present', () => {
    const story = new Story();
    goThrough(story, { taskId: 'a', startMs: 0, endMs: 1_000, instanceId: 1 });
    const timeline = story.record({}, 400);
    expect(timeline.toJSON()).toMatchObject({ endMs: 400 });
    expect(timeline.toJSON().requests[0]).not.toHaveProperty('endMs');
    expect(spansOf(timeline.toJSON(), 'a')).toContain('lease pool 0-');
  });

  it('survives a round trip through JSON', () => {
    const story = new Story();
    goThrough(story, { taskId: 'a', admittedMs: 10, startMs: 30, endMs: 90, instanceId: 1 });
    callGate(story, 'llm', { taskId: 'a' }, 40, [{ workMs: 20 }]);
    const timeline = story.record();
    expect(JSON.parse(JSON.stringify(timeline))).toEqual(timeline.toJSON());
    expect(timeline.toJSON()).toMatchObject({ version: 1, left: { requests: 0, spans: 0, unattributed: 0 } });
    expect(Date.parse(timeline.toJSON().startedAt)).toBeGreaterThan(0);
  });

  it('stops listening when stopped, and keeps its data', () => {
    const hooks = new LifecycleHooks();
    let nowMs = 0;
    const timeline = recordTimeline(hooks, { now: () => nowMs });
    expect(hooks.hasListeners('call:started')).toBe(true);
    hooks.emit('lease:acquired', EXAMPLES['lease:acquired']);
    nowMs = 500;
    timeline[Symbol.dispose]();
    nowMs = 9_000;
    for (const event of LIFECYCLE_EVENTS) expect(hooks.hasListeners(event)).toBe(false);
    expect(timeline.toJSON()).toMatchObject({ endMs: 750, requests: [{ taskId: 'research-1' }] });
  });

  it('accepts all events in any order', () => {
    const hooks = new LifecycleHooks();
    const errors = vi.fn();
    recordTimeline(hooks);
    hooks.on('hook:error', errors);
    for (const events of [LIFECYCLE_EVENTS, LIFECYCLE_EVENTS.toReversed()]) {
      for (const event of events) if (event !== 'hook:error') hooks.emit(event, EXAMPLES[event] as never);
    }
    expect(errors).not.toHaveBeenCalled();
  });

  it.each([
    [{ maxRequests: 0 }, /`maxRequests` to be a whole number from 1/],
    [{ maxSpansPerRequest: 1.5 }, /`maxSpansPerRequest`/],
    [{ now: 5 }, /`now` to be a function/],
    [{ size: 5 }, /Unknown option `size` in recordTimeline/],
  ])('rejects %o', (options, message) => {
    expect(() => recordTimeline(new LifecycleHooks(), options as never)).toThrow(message);
  });
});

describe('calls and tools in a timeline', () => {
  it('separate waits from attempts', () => {
    const story = new Story();
    callGate(story, 'serper', { taskId: 'a' }, 0, [
      { waitMs: 20, reason: 'rate', workMs: 30 },
      { waitMs: 40, reason: 'cooldown', workMs: 10 },
    ]);
    const data = story.record().toJSON();
    expect(spansOf(data, 'a')).toEqual([
      'call serper 0-100 ok',
      'wait-call serper 0-20 rate',
      'attempt serper 20-50 rate-limited',
      'wait-call serper 50-90 cooldown',
      'attempt serper 90-100 ok',
    ]);
    expect(data.requests[0]?.spans.map(({ attempt }) => attempt)).toEqual([
      undefined,
      undefined,
      1,
      undefined,
      2,
    ]);
  });

  it('record a wait without a reason as a wait for their turn', () => {
    const story = new Story();
    callGate(story, 'serper', { taskId: 'a' }, 0, [{ waitMs: 25, workMs: 30 }]);
    expect(spansOf(story.record().toJSON(), 'a')).toEqual([
      'call serper 0-55 ok',
      'wait-call serper 0-25 turn',
      'attempt serper 25-55 ok',
    ]);
  });

  it('include the wait for their turn before they were throttled', () => {
    const data = new Story()
      .at(100, 'call:throttled', { ...call, reason: 'rate', waitMs: 50 })
      .at(150, 'call:started', { ...call, attempt: 1, waitMs: 120 })
      .at(170, 'call:finished', {
        ...call,
        outcome: 'ok',
        attempts: 1,
        durationMs: 140,
        waitMs: 120,
        cache: 'off',
      })
      .record()
      .toJSON();
    expect(spansOf(data, 'a').toSorted()).toEqual([
      'attempt serper 120-140 ok',
      'call serper 0-140 ok',
      'wait-call serper 0-70 turn',
      'wait-call serper 70-120 rate',
    ]);
  });

  it('include cached calls', () => {
    const data = new Story()
      .at(10, 'call:finished', {
        ...call,
        outcome: 'ok',
        attempts: 0,
        durationMs: 2,
        waitMs: 0,
        cache: 'hit',
      })
      .record()
      .toJSON();
    expect(spansOf(data, 'a')).toEqual(['call serper 0-2 ok, cache hit']);
  });

  it('keep parallel calls apart', () => {
    const story = new Story();
    callGate(story, 'serper', { taskId: 'a' }, 0, [{ workMs: 50 }]);
    callGate(story, 'serper', { taskId: 'a' }, 10, [{ workMs: 10 }]);
    expect(spansOf(story.record().toJSON(), 'a').filter((span) => span.startsWith('call'))).toEqual([
      'call serper 0-50 ok',
      'call serper 10-20 ok',
    ]);
  });

  it('belong to the request in which they started, however late they end', () => {
    const story = new Story();
    goThrough(story, { taskId: 'a', startMs: 0, endMs: 100, instanceId: 1, outcome: 'aborted' });
    callGate(story, 'serper', { taskId: 'a' }, 90, [{ workMs: 30 }]);
    const { requests } = story.record().toJSON();
    expect(requests).toHaveLength(1);
    expect(requests[0]?.spans.map(brief)).toContain('attempt serper 90-120 ok');
    expect(requests[0]?.endMs).toBe(120);
  });

  it('are counted if they have no task id', () => {
    const { taskId: _, ...unnamed } = call;
    const data = new Story()
      .at(0, 'call:started', { ...unnamed, attempt: 1, waitMs: 0 })
      .record()
      .toJSON();
    expect(data).toMatchObject({ requests: [], left: { unattributed: 1 } });
  });

  it('include tool calls, by tool manager and call', () => {
    const tool = { taskId: 'a', instanceId: 1, tool: 'search', toolCallId: 1 };
    const done = { outcome: 'ok', durationMs: 1 } as const;
    const data = new Story()
      .at(0, 'tool:started', { ...tool, source: 'main' })
      .at(5, 'tool:started', { ...tool, source: 'sub', tool: 'read' })
      .at(20, 'tool:finished', { ...tool, ...done, source: 'main' })
      .at(30, 'tool:finished', { ...tool, source: 'sub', tool: 'read', ...done, outcome: 'timeout' })
      .record()
      .toJSON();
    expect(spansOf(data, 'a')).toEqual(['tool search 0-20 ok', 'tool read 5-30 timeout']);
  });
});

describe('instances in a timeline', () => {
  it('follow each other in the lowest free slot', () => {
    const instance = (instanceId: number) => ({ ...pool, instanceId });
    const gone = { reason: 'unhealthy', destroyMs: 1, ageMs: 1, uses: 1 } as const;
    const error = redactError(new Error('no memory'));
    const { instances } = new Story()
      .at(0, 'instance:creating', instance(1))
      .at(0, 'instance:creating', instance(2))
      .at(40, 'instance:created', { ...instance(2), createMs: 40 })
      .at(50, 'instance:created', { ...instance(1), createMs: 50 })
      .at(100, 'instance:destroyed', { ...instance(1), ...gone })
      .at(110, 'instance:creating', instance(3))
      .at(130, 'instance:create-failed', {
        ...instance(3),
        error,
        createMs: 20,
        failures: 1,
        retryAfterMs: 100,
      })
      .at(230, 'instance:creating', instance(4))
      .at(260, 'instance:created', { ...instance(4), createMs: 30 })
      .record()
      .toJSON();
    expect(instances).toEqual([
      { pool: 'pool', instanceId: 1, lane: 0, startMs: 0, readyMs: 50, endMs: 100, reason: 'unhealthy' },
      { pool: 'pool', instanceId: 2, lane: 1, startMs: 0, readyMs: 40 },
      { pool: 'pool', instanceId: 3, lane: 0, startMs: 110, endMs: 130, reason: 'create-failed' },
      { pool: 'pool', instanceId: 4, lane: 0, startMs: 230, readyMs: 260 },
    ]);
  });

  it('get a slot when they are leased, if their creation was not observed', () => {
    const { instances } = new Story()
      .at(0, 'lease:acquired', { ...pool, instanceId: 7, taskId: 'a', waitMs: 0 })
      .at(0, 'lease:acquired', { ...pool, source: 'other', instanceId: 9, taskId: 'b', waitMs: 0 })
      .record()
      .toJSON();
    expect(instances).toEqual([
      { pool: 'pool', instanceId: 7, lane: 0 },
      { pool: 'other', instanceId: 9, lane: 0 },
    ]);
  });
});

describe('the memory of a timeline', () => {
  const leases = (count: number, overlap: boolean): Story => {
    const story = new Story();
    for (let i = 0; i < count; i++) {
      const payload = { ...pool, taskId: `t${i}`, instanceId: overlap ? i : 1 };
      story.at(i * 10, 'lease:acquired', { ...payload, waitMs: 0 });
      const endMs = overlap ? 100_000 + i : i * 10 + 9;
      story.at(endMs, 'lease:released', { ...payload, heldMs: 9, discarded: false });
    }
    return story;
  };

  it('is bounded to the latest finished requests', () => {
    const data = leases(1_000, false).record({ maxRequests: 3 }).toJSON();
    expect(data.requests.map(({ taskId }) => taskId)).toEqual(['t997', 't998', 't999']);
    expect(data.left.requests).toBe(997);
  });

  it('keeps requests in progress, and omits new ones while it is full', () => {
    const data = leases(1_000, true).record({ maxRequests: 3 }).toJSON();
    expect(data.requests.map(({ taskId }) => taskId)).toEqual(['t0', 't1', 't2']);
    expect(data.requests[2]).toMatchObject({ endMs: 100_002 });
    expect(data.left.requests).toBe(997);
  });

  it('is bounded to the first spans of a request', () => {
    const story = new Story();
    for (let i = 0; i < 100; i++) callGate(story, 'llm', { taskId: 'a' }, i * 10, [{ workMs: 5 }]);
    const data = story.record({ maxSpansPerRequest: 10 }).toJSON();
    expect(data.requests[0]?.spans).toHaveLength(10);
    expect(data.left.spans).toBe(190);
    expect(data.requests[0]).toHaveProperty('endMs');
  });

  it('never drops a live instance', () => {
    const story = new Story();
    for (let instanceId = 1; instanceId <= 10; instanceId++) {
      story.at(instanceId, 'instance:creating', { ...pool, instanceId });
    }
    expect(story.record({ maxRequests: 4 }).toJSON().instances).toHaveLength(10);
  });

  it('drops destroyed instances', () => {
    const story = new Story();
    for (let instanceId = 1; instanceId <= 100; instanceId++) {
      const payload = { ...pool, instanceId };
      story.at(instanceId * 10, 'instance:creating', payload);
      story.at(instanceId * 10 + 5, 'instance:destroyed', {
        ...payload,
        reason: 'uses',
        destroyMs: 1,
        ageMs: 1,
        uses: 1,
      });
    }
    const { instances } = story.record({ maxRequests: 4 }).toJSON();
    expect(instances.map(({ instanceId }) => instanceId)).toEqual([97, 98, 99, 100]);
  });
});
