import { LIFECYCLE_EVENTS, LifecycleHooks } from 'pipeline-pool';
import { describe, expect, it, vi } from 'vitest';
import { recordTimeline, type TimelineData, type TimelineSpan } from '../../src/observability/timeline.js';
import { EXAMPLES } from './examples.js';
import { admission, callGate, goThrough, pool, Story } from './story.js';

const brief = ({ kind, name, startMs, endMs, reason, outcome }: TimelineSpan): string =>
  [kind, name, `${startMs}-${endMs ?? ''}`, reason, outcome].filter((part) => part !== undefined).join(' ');

const spansOf = (data: TimelineData, taskId: string): string[] =>
  data.requests.find((request) => request.taskId === taskId)?.spans.map(brief) ?? [];

const call = { source: 'serper', taskId: 'a', callId: 1 };

describe('recordTimeline', () => {
  it('tells the way of a request: admission, wait for an instance, lease', () => {
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

  it('works with pool and limiter alone, by task', () => {
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

  it('keeps a lease without a task as a request without a name', () => {
    const data = new Story()
      .at(0, 'lease:acquired', { ...pool, instanceId: 1, waitMs: 0 })
      .at(80, 'lease:released', { ...pool, instanceId: 1, heldMs: 80, discarded: false })
      .record()
      .toJSON();
    expect(data.requests).toHaveLength(1);
    expect(data.requests[0]).not.toHaveProperty('taskId');
    expect(data.requests[0]?.spans.map(brief)).toEqual(['lease pool 0-80']);
  });

  it('knows a wait that began before the recording by its length', () => {
    const data = new Story()
      .at(0, 'lease:acquired', { ...pool, taskId: 'a', instanceId: 1, waitMs: 200 })
      .at(80, 'lease:released', { ...pool, taskId: 'a', instanceId: 1, heldMs: 80, discarded: false })
      .record()
      .toJSON();
    expect(spansOf(data, 'a')).toEqual(['wait-lease pool 0-200', 'lease pool 200-280']);
    expect(data.requests[0]).toMatchObject({ startMs: 0, endMs: 280 });
  });

  it('tells apart two requests of one task', () => {
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

  it('takes what a task begins after its request has ended for something new', () => {
    const story = new Story();
    goThrough(story, { taskId: 'a', startMs: 0, endMs: 100, instanceId: 1 });
    callGate(story, 'llm', { taskId: 'a' }, 150, [{ workMs: 10 }]);
    const { requests } = story.record().toJSON();
    expect(requests.map(({ requestId, endMs }) => [requestId, endMs])).toEqual([
      ['r-a', 100],
      [undefined, 160],
    ]);
  });

  it('says why a request was turned away, with a manager and without', () => {
    const error = new Error('queue full');
    const ids = { taskId: 'b', requestId: 'r-b' };
    const data = new Story()
      .at(0, 'permit:queued', { ...admission, taskId: 'a' })
      .at(30, 'permit:rejected', { ...admission, taskId: 'a', reason: 'timeout', waitMs: 30, error })
      .at(0, 'request:queued', { source: 'manager', ...ids })
      .at(0, 'permit:rejected', { ...admission, ...ids, reason: 'queue-full', waitMs: 0, error })
      .at(0, 'request:rejected', { source: 'manager', ...ids, outcome: 'failed', queuedMs: 0, error })
      .record()
      .toJSON();
    expect(data.requests).toMatchObject([
      { taskId: 'a', startMs: 0, endMs: 30, outcome: 'timeout' },
      { taskId: 'b', startMs: 0, endMs: 0, outcome: 'failed' },
    ]);
    expect(spansOf(data, 'a')).toEqual(['wait-permit requests 0-30 timeout']);
  });

  it('ends a lease that is revoked, and hears no second end', () => {
    const told = { ...pool, taskId: 'a', instanceId: 1 };
    const data = new Story()
      .at(0, 'lease:acquired', { ...told, waitMs: 0 })
      .at(40, 'lease:revoked', { ...told, heldMs: 40, reason: 'max-lease' })
      .at(70, 'lease:released', { ...told, heldMs: 70, discarded: true })
      .record()
      .toJSON();
    expect(spansOf(data, 'a')).toEqual(['lease pool 0-40 revoked']);
  });

  it('gives an instance to its next holder even where that is told before the release', () => {
    const story = new Story()
      .at(0, 'lease:acquired', { ...pool, taskId: 'a', instanceId: 1, waitMs: 0 })
      .at(50, 'lease:acquired', { ...pool, taskId: 'b', instanceId: 1, waitMs: 50 })
      .at(50.5, 'lease:released', { ...pool, taskId: 'a', instanceId: 1, heldMs: 50, discarded: false })
      .at(90, 'lease:released', { ...pool, taskId: 'b', instanceId: 1, heldMs: 40, discarded: false });
    const data = story.record().toJSON();
    expect(spansOf(data, 'a')).toEqual(['lease pool 0-50']);
    expect(spansOf(data, 'b')).toEqual(['wait-lease pool 0-50', 'lease pool 50-90']);
  });

  it('leaves open what still goes on, and ends the picture at the present', () => {
    const story = new Story();
    goThrough(story, { taskId: 'a', startMs: 0, endMs: 1_000, instanceId: 1 });
    const timeline = story.record({}, 400);
    expect(timeline.toJSON()).toMatchObject({ endMs: 400 });
    expect(timeline.toJSON().requests[0]).not.toHaveProperty('endMs');
    expect(spansOf(timeline.toJSON(), 'a')).toContain('lease pool 0-');
  });

  it('is plain data, as JSON keeps it', () => {
    const story = new Story();
    goThrough(story, { taskId: 'a', admittedMs: 10, startMs: 30, endMs: 90, instanceId: 1 });
    callGate(story, 'llm', { taskId: 'a' }, 40, [{ workMs: 20 }]);
    const timeline = story.record();
    expect(JSON.parse(JSON.stringify(timeline))).toEqual(timeline.toJSON());
    expect(timeline.toJSON()).toMatchObject({ version: 1, left: { requests: 0, spans: 0, unattributed: 0 } });
    expect(Date.parse(timeline.toJSON().startedAt)).toBeGreaterThan(0);
  });

  it('listens only until it is stopped, and keeps what it has', () => {
    const hooks = new LifecycleHooks();
    let nowMs = 0;
    const timeline = recordTimeline(hooks, { now: () => nowMs });
    expect(hooks.hears('call:started')).toBe(true);
    hooks.emit('lease:acquired', EXAMPLES['lease:acquired']);
    nowMs = 500;
    timeline[Symbol.dispose]();
    nowMs = 9_000;
    for (const event of LIFECYCLE_EVENTS) expect(hooks.hears(event)).toBe(false);
    expect(timeline.toJSON()).toMatchObject({ endMs: 750, requests: [{ taskId: 'research-1' }] });
  });

  it('takes every event without a fault, also in an order that makes no sense', () => {
    const hooks = new LifecycleHooks();
    const faults = vi.fn();
    recordTimeline(hooks);
    hooks.on('hook:error', faults);
    for (const events of [LIFECYCLE_EVENTS, LIFECYCLE_EVENTS.toReversed()]) {
      for (const event of events) if (event !== 'hook:error') hooks.emit(event, EXAMPLES[event] as never);
    }
    expect(faults).not.toHaveBeenCalled();
  });

  it.each([
    [{ maxRequests: 0 }, /`maxRequests` to be a whole number from 1/],
    [{ maxSpansPerRequest: 1.5 }, /`maxSpansPerRequest`/],
    [{ now: 5 }, /`now` to be a function/],
    [{ size: 5 }, /Unknown option `size` in recordTimeline/],
  ])('refuses %o', (options, message) => {
    expect(() => recordTimeline(new LifecycleHooks(), options as never)).toThrow(message);
  });
});

describe('calls and tools in a timeline', () => {
  it('tell waits and attempts apart', () => {
    const story = new Story();
    callGate(story, 'serper', { taskId: 'a' }, 0, [
      { waitMs: 20, reason: 'rate', workMs: 30 },
      { waitMs: 40, reason: 'cooldown', workMs: 10 },
    ]);
    const data = story.record().toJSON();
    expect(spansOf(data, 'a')).toEqual([
      'call serper 0-100 ok',
      'wait-call serper 0-20 rate',
      'attempt serper 20-50 other-key',
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

  it('call a wait nobody explained a wait for their turn', () => {
    const story = new Story();
    callGate(story, 'serper', { taskId: 'a' }, 0, [{ waitMs: 25, workMs: 30 }]);
    expect(spansOf(story.record().toJSON(), 'a')).toEqual([
      'call serper 0-55 ok',
      'wait-call serper 0-25 turn',
      'attempt serper 25-55 ok',
    ]);
  });

  it('find the turn waited for before a call was throttled', () => {
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

  it('tell of a call that the cache answered', () => {
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

  it('belong to the request in which they began, however late they end', () => {
    const story = new Story();
    goThrough(story, { taskId: 'a', startMs: 0, endMs: 100, instanceId: 1, outcome: 'aborted' });
    callGate(story, 'serper', { taskId: 'a' }, 90, [{ workMs: 30 }]);
    const { requests } = story.record().toJSON();
    expect(requests).toHaveLength(1);
    expect(requests[0]?.spans.map(brief)).toContain('attempt serper 90-120 ok');
    expect(requests[0]?.endMs).toBe(120);
  });

  it('are counted where they name no task', () => {
    const { taskId: _, ...unnamed } = call;
    const data = new Story()
      .at(0, 'call:started', { ...unnamed, attempt: 1, waitMs: 0 })
      .record()
      .toJSON();
    expect(data).toMatchObject({ requests: [], left: { unattributed: 1 } });
  });

  it('tell of tools, by manager and call', () => {
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
    const error = new Error('no memory');
    const { instances } = new Story()
      .at(0, 'instance:creating', instance(1))
      .at(0, 'instance:creating', instance(2))
      .at(40, 'instance:created', { ...instance(2), createMs: 40 })
      .at(50, 'instance:created', { ...instance(1), createMs: 50 })
      .at(100, 'instance:destroyed', { ...instance(1), ...gone })
      .at(110, 'instance:creating', instance(3))
      .at(130, 'instance:createFailed', {
        ...instance(3),
        error,
        createMs: 20,
        failures: 1,
        retryInMs: 100,
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

  it('get a slot when they are leased, if their creation was not heard', () => {
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
      const told = { ...pool, taskId: `t${i}`, instanceId: overlap ? i : 1 };
      story.at(i * 10, 'lease:acquired', { ...told, waitMs: 0 });
      const endMs = overlap ? 100_000 + i : i * 10 + 9;
      story.at(endMs, 'lease:released', { ...told, heldMs: 9, discarded: false });
    }
    return story;
  };

  it('holds the latest requests that are over', () => {
    const data = leases(1_000, false).record({ maxRequests: 3 }).toJSON();
    expect(data.requests.map(({ taskId }) => taskId)).toEqual(['t997', 't998', 't999']);
    expect(data.left.requests).toBe(997);
  });

  it('keeps those that go on, and leaves newcomers out while it is full of them', () => {
    const data = leases(1_000, true).record({ maxRequests: 3 }).toJSON();
    expect(data.requests.map(({ taskId }) => taskId)).toEqual(['t0', 't1', 't2']);
    expect(data.requests[2]).toMatchObject({ endMs: 100_002 });
    expect(data.left.requests).toBe(997);
  });

  it('holds the first spans of a request', () => {
    const story = new Story();
    for (let i = 0; i < 100; i++) callGate(story, 'llm', { taskId: 'a' }, i * 10, [{ workMs: 5 }]);
    const data = story.record({ maxSpansPerRequest: 10 }).toJSON();
    expect(data.requests[0]?.spans).toHaveLength(10);
    expect(data.left.spans).toBe(190);
    expect(data.requests[0]).toHaveProperty('endMs');
  });

  it('never forgets an instance that lives', () => {
    const story = new Story();
    for (let instanceId = 1; instanceId <= 10; instanceId++) {
      story.at(instanceId, 'instance:creating', { ...pool, instanceId });
    }
    expect(story.record({ maxRequests: 4 }).toJSON().instances).toHaveLength(10);
  });

  it('forgets instances that are gone', () => {
    const story = new Story();
    for (let instanceId = 1; instanceId <= 100; instanceId++) {
      const told = { ...pool, instanceId };
      story.at(instanceId * 10, 'instance:creating', told);
      story.at(instanceId * 10 + 5, 'instance:destroyed', {
        ...told,
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
