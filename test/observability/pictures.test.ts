import fc from 'fast-check';
import { LifecycleHooks } from 'pipeline-pool';
import { describe, expect, it } from 'vitest';
import { redactError } from '../../src/internal/redaction.js';
import { toChromeTrace } from '../../src/observability/timeline/chrome-trace.js';
import { layOut } from '../../src/observability/timeline/layout.js';
import { axisOf } from '../../src/observability/timeline/svg-primitives.js';
import {
  drawTimelines,
  recordTimeline,
  type Timeline,
  type TimelineData,
} from '../../src/observability/timeline/timeline.js';
import { busyMinutes } from '../support/busy-minutes.js';
import { prop } from '../support/property.js';
import { admission, callGate, goThrough, pool, Story } from '../support/stories.js';

/** Three requests on one instance, one after the other. */
function inTurn(): Timeline {
  const story = new Story();
  const payload = { ...pool, size: 1, instanceId: 1 };
  story.at(0, 'instance:creating', payload).at(2_000, 'instance:created', { ...payload, createMs: 2_000 });
  ['a', 'b', 'c'].forEach((taskId, i) => {
    const startMs = 2_000 + i * 10_000;
    goThrough(story, { taskId, startMs, endMs: startMs + 10_000, instanceId: 1 });
    const ids = { taskId };
    const atMs = callGate(story, 'llm', ids, startMs, [{ workMs: 4_000 }]);
    callGate(story, 'serper', ids, atMs, [{ waitMs: 2_000, reason: 'rate', workMs: 4_000 }]);
  });
  return story.record();
}

/** The same on three instances, one of which fails. */
function pooled(): Timeline {
  const story = new Story();
  ['a', 'b', 'c'].forEach((taskId, i) => {
    const instanceId = i + 1;
    const outcome = taskId === 'b' ? 'failed' : 'ok';
    goThrough(story, { taskId, admittedMs: i * 500, startMs: 2_000, endMs: 12_000, instanceId, outcome });
    callGate(story, 'llm', { taskId }, 2_000, [{ workMs: 4_000 }]);
    callGate(story, 'serper', { taskId }, 3_000, [{ workMs: 4_000 }]);
  });
  return story.record();
}

/** Tags and attributes, refusing what no XML parser takes. */
function parsed(svg: string): { name: string; attributes: Map<string, string> }[] {
  const open: string[] = [];
  const elements: { name: string; attributes: Map<string, string> }[] = [];
  const rest = svg.replace(
    /<(\/?)([a-zA-Z]+)((?:\s+[\w:-]+="[^"<]*")*)\s*(\/?)>/g,
    (_, end, name, list, empty) => {
      if (end) {
        if (open.pop() !== name) throw new Error(`</${name}> closes nothing`);
        return '';
      }
      const attributes = new Map<string, string>();
      for (const [, key = '', value = ''] of list.matchAll(/([\w:-]+)="([^"]*)"/g)) {
        if (attributes.has(key)) throw new Error(`${name} has ${key} twice`);
        attributes.set(key, value);
      }
      elements.push({ name, attributes });
      if (!empty) open.push(name);
      return '';
    },
  );
  if (open.length > 0) throw new Error(`<${open.at(-1)}> is not closed`);
  const text = rest.replace(/&(?:amp|lt|gt|quot);/g, '');
  if (/[<&]/.test(text)) throw new Error(`Left over: ${text}`);
  return elements;
}

const numbers = (svg: string): number[] =>
  parsed(svg).flatMap(({ attributes }) =>
    ['x', 'y', 'width', 'height'].flatMap((name) => {
      const value = attributes.get(name);
      return value === undefined ? [] : [Number(value)];
    }),
  );

describe('the picture of a timeline', () => {
  it('is well-formed and draws nothing outside itself', () => {
    for (const lanes of ['instances', 'requests'] as const) {
      for (const timeline of [inTurn(), pooled()]) {
        const svg = timeline.toSvg({ title: 'A <run> & "more"', lanes });
        const width = Number(parsed(svg)[0]?.attributes.get('width'));
        expect(width).toBe(960);
        for (const number of numbers(svg)) {
          expect(number).toBeGreaterThanOrEqual(0);
          expect(number).toBeLessThanOrEqual(width);
        }
      }
    }
  });

  it('matches its snapshot', async () => {
    const svg = drawTimelines(
      [
        { title: 'In turn', timeline: inTurn() },
        { title: 'Pooled', timeline: pooled() },
      ],
      { title: 'Three requests', width: 800 },
    );
    await expect(svg).toMatchFileSnapshot('snapshots/three-requests.svg');
  });

  it('matches the picture in the guide', async () => {
    const svg = busyMinutes().toSvg({ title: 'Ten requests, three instances, four admitted at once' });
    await expect(svg).toMatchFileSnapshot('../../docs/images/timeline.svg');
  });

  it('compares recordings on one time axis', () => {
    const svg = drawTimelines([
      { title: 'In turn', timeline: inTurn() },
      { title: 'Pooled', timeline: pooled() },
    ]);
    expect(svg).toContain('>32.0 s<');
    expect(svg).toContain('>12.0 s, 2.67 × as fast<');
  });

  it('states a speedup only for recordings with as many requests', () => {
    const empty = recordTimeline(new LifecycleHooks());
    const svg = drawTimelines([
      { title: 'In turn', timeline: inTurn() },
      { title: 'Nothing', timeline: empty },
    ]);
    expect(svg).not.toContain('as fast');
  });

  it('has a legend of exactly what it shows', () => {
    const svg = inTurn().toSvg();
    for (const words of ['running', 'a service at work', 'held up at a service', 'instance being created']) {
      expect(svg).toContain(`>${words}<`);
    }
    expect(svg).not.toContain('>failed<');
    expect(svg).not.toContain('>a tool at work<');
    expect(pooled().toSvg()).toContain('>failed<');
  });

  it('follows the preferred color scheme, and is readable without style sheets', () => {
    const svg = inTurn().toSvg();
    expect(svg).toContain('@media (prefers-color-scheme:dark)');
    expect(svg).not.toContain('var(--');
    for (const { name, attributes } of parsed(svg)) {
      if (name === 'text') expect(attributes.get('fill')).toMatch(/^#[0-9a-f]{6}$/);
    }
  });

  it('does not affect a page: rules apply to its own class, patterns have unique names', () => {
    const [first, second] = [inTurn().toSvg(), pooled().toSvg()];
    const names = [first, second].map((svg) => parsed(svg)[0]?.attributes.get('class') ?? '');
    expect(names[0]).not.toBe(names[1]);
    const rules = /<style>(.*)<\/style>/.exec(first)?.[1]?.replace(/@media \([^)]*\)/, '') ?? '';
    for (const [, selector] of rules.matchAll(/(?:^|[{}])([^{}]+)\{[^{}]/g)) {
      expect(selector).toMatch(new RegExp(`^\\.${names[0]} `));
    }
  });

  it('is deterministic', () => {
    expect(inTurn().toSvg()).toBe(inTurn().toSvg());
  });

  prop([fc.string({ unit: 'binary', minLength: 1, maxLength: 60 })])('takes any task id', (taskId) => {
    const story = new Story();
    goThrough(story, { taskId, admittedMs: 400, startMs: 900, endMs: 1_000, instanceId: 1 });
    goThrough(story, { taskId: `${taskId}2`, startMs: 1_000, endMs: 2_000, instanceId: 1 });
    const timeline = story.record();
    parsed(timeline.toSvg({ title: taskId }));
    parsed(timeline.toSvg({ lanes: 'requests' }));
    expect(timeline.toText().split('\n')).toHaveLength(6);
  });

  it('draws what is in progress up to the present, in every form', () => {
    const story = new Story();
    goThrough(story, { taskId: 'a', startMs: 0, endMs: 5_000, instanceId: 1 });
    goThrough(story, { taskId: 'b', startMs: 5_000, endMs: 6_000, instanceId: 1 });
    const timeline = story.record({}, 2_000);
    const { rows, waiting } = layOut(timeline.toJSON(), 'instances');
    const endOf = ({ bars }: { bars: readonly { endMs: number }[] }) => bars.at(-1)?.endMs;
    expect([...rows, ...waiting].map(endOf)).toEqual([2_000, 2_000]);
    expect(timeline.toText()).toMatch(/^a .* {2}ran 2.0 s\nb .* {2}waited 2.0 s for an instance$/m);
    const slices = timeline.toChromeTrace().traceEvents.filter(({ ph }) => ph === 'X');
    expect(new Set(slices.map(({ ts, dur = 0 }) => ts + dur))).toEqual(new Set([2_000_000]));
  });

  it('has no lane for waits that would hardly be visible', () => {
    const storyOf = (waitMs: number) => {
      const story = new Story();
      goThrough(story, { taskId: 'a', admittedMs: 0, startMs: waitMs, endMs: 10_000, instanceId: 1 });
      return story.record().toSvg();
    };
    expect(storyOf(80)).not.toContain('>waiting<');
    expect(storyOf(90)).toContain('>waiting<');
  });

  it('draws hundreds of waiting requests as a curve', () => {
    const story = new Story();
    for (let i = 0; i < 300; i++) {
      goThrough(story, { taskId: `t${i}`, startMs: i * 100, endMs: i * 100 + 100, instanceId: 1 });
    }
    const svg = story.record().toSvg();
    expect(svg).toContain('>up to 299<');
    expect(svg.length).toBeLessThan(120_000);
  });

  it('draws thousands of calls at one position as one', () => {
    const story = new Story();
    goThrough(story, { taskId: 'a', startMs: 0, endMs: 1_000_000, instanceId: 1 });
    for (let i = 0; i < 300; i++) callGate(story, 'llm', { taskId: 'a' }, i, [{ workMs: 1 }]);
    expect(story.record().toSvg().length).toBeLessThan(20_000);
  });

  it('omits bars too short to be visible', () => {
    const story = new Story();
    goThrough(story, { taskId: 'a', admittedMs: 1, startMs: 2, endMs: 10_000, instanceId: 1 });
    const svg = story.record().toSvg({ lanes: 'requests' });
    expect(svg).toContain('<title>a ran');
    expect(svg).not.toContain('<title>a waited');
  });

  it('reserves no rows for waits too short to be visible', () => {
    const story = new Story();
    goThrough(story, { taskId: 'a', admittedMs: 1, startMs: 2, endMs: 10_000, instanceId: 1 });
    const timeline = story.record();
    expect(timeline.toSvg()).not.toContain('>waiting<');
    expect(layOut(timeline.toJSON(), 'instances').waiting).toHaveLength(1);
  });

  it('scales times by timeScale', () => {
    const svg = inTurn().toSvg({ title: 'x', timeScale: 10 });
    expect(svg).toContain('>300 s<');
    expect(svg).toContain('a ran 100.0 s on instance 1');
    expect(inTurn().toText({ timeScale: 10 })).toContain('ran 100.0 s');
  });

  it('can be empty', () => {
    const empty = recordTimeline(new LifecycleHooks());
    parsed(empty.toSvg());
    expect(empty.toText()).toContain('0 s');
    expect(empty.toChromeTrace().traceEvents.filter(({ ph }) => ph === 'X')).toEqual([]);
  });

  it.each([
    [{ width: 100 }, /`width` to be a whole number from 320/],
    [{ lanes: 'rows' }, /`lanes` to be one of/],
    [{ title: 5 }, /`title` to be a string/],
    [{ timeScale: 0 }, /`timeScale`/],
    [{ height: 100 }, /Unknown option `height`/],
  ])('rejects %o', (options, message) => {
    expect(() => inTurn().toSvg(options as never)).toThrow(message);
  });
});

describe('the rows of a picture', () => {
  it('show slots of instances and waiting requests', () => {
    const { rows, waiting } = layOut(inTurn().toJSON(), 'instances');
    expect(
      rows.map(({ label, bars }) => [label, bars.map(({ kind, label }) => `${kind} ${label}`.trim())]),
    ).toEqual([['instance 1', ['creating', 'alive', 'run a', 'run b', 'run c']]]);
    expect(waiting.map(({ bars }) => bars.map(({ kind, label }) => `${kind} ${label}`))).toEqual([
      ['wait-lease a'],
      ['wait-lease b'],
      ['wait-lease c'],
    ]);
  });

  it('give requests without an instance rows of their own', () => {
    const story = new Story();
    callGate(story, 'llm', { taskId: 'a' }, 0, [{ workMs: 50 }]);
    callGate(story, 'llm', { taskId: 'b' }, 10, [{ workMs: 50 }]);
    const { rows } = layOut(story.record().toJSON(), 'instances');
    expect(rows.map(({ label, bars }) => [label, bars[0]?.label])).toEqual([
      ['request 1', 'a'],
      ['request 2', 'b'],
    ]);
  });

  it('show a request that never gets its instance only as waiting', () => {
    const ids = { taskId: 'a', requestId: 'r-a' };
    const error = redactError(new Error('timeout'));
    const timeline = new Story()
      .at(0, 'request:queued', { source: 'manager', ...ids })
      .at(0, 'permit:acquired', { ...admission, ...ids, waitMs: 0 })
      .at(0, 'lease:queued', { ...pool, ...ids })
      .at(500, 'lease:rejected', { ...pool, ...ids, reason: 'timeout', waitMs: 500, error })
      .at(500, 'permit:released', { ...admission, ...ids, outcome: 'ok' })
      .at(500, 'request:rejected', { source: 'manager', ...ids, outcome: 'timeout', waitMs: 500, error })
      .record();
    const { rows, waiting } = layOut(timeline.toJSON(), 'instances');
    expect(rows).toEqual([]);
    expect(waiting[0]?.bars.map(({ tip }) => tip)).toEqual([
      'a waited 500 ms for an instance of pool: timeout',
    ]);
    expect(timeline.toText()).toMatch(/ {2}timeout, waited 500 ms for an instance$/m);
  });

  it('omit a tool whose calls are shown', () => {
    const story = new Story();
    const tool = { source: 'main', taskId: 'a', instanceId: 1 };
    goThrough(story, { taskId: 'a', startMs: 0, endMs: 500, instanceId: 1 });
    for (const [name, toolCallId] of [
      ['search', 1],
      ['runCode', 2],
    ] as const) {
      const payload = { ...tool, tool: name, toolCallId };
      story.at(100, 'tool:started', payload);
      story.at(400, 'tool:finished', { ...payload, outcome: 'ok', durationMs: 300 });
    }
    callGate(story, 'serper', { taskId: 'a', toolCallId: 1 }, 100, [
      { waitMs: 50, reason: 'rate', workMs: 250 },
    ]);
    const run = layOut(story.record().toJSON(), 'instances').rows[0]?.bars.find(({ kind }) => kind === 'run');
    expect(run?.strips.map(({ kind, tip, track }) => [kind, tip, track])).toEqual([
      ['tool', 'runCode: 300 ms', 0],
      ['wait-call', 'serper: waited 50 ms for capacity in a rate window', 1],
      ['attempt', 'serper: 250 ms', 1],
    ]);
  });

  it('name a slot by its number once it has had two instances', () => {
    const story = new Story();
    const payload = (instanceId: number) => ({ ...pool, instanceId });
    story
      .at(0, 'instance:creating', payload(1))
      .at(10, 'instance:created', { ...payload(1), createMs: 10 })
      .at(50, 'instance:destroyed', { ...payload(1), reason: 'uses', destroyMs: 1, ageMs: 40, uses: 1 })
      .at(60, 'instance:creating', payload(2))
      .at(80, 'instance:created', { ...payload(2), createMs: 20 });
    expect(layOut(story.record().toJSON(), 'instances').rows.map(({ label }) => label)).toEqual(['slot 1']);
  });
});

describe('the drawing in a terminal', () => {
  it('shows which request waited for which', () => {
    expect(`\n${inTurn().toText({ columns: 90 })}`).toMatchInlineSnapshot(`
      "
         0 s                          20 s
      a  ▒▒▒██████▚▚██████                               ran 10.0 s, waited 2.0 s for instance 1
      b  ▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒██████▚▚▚██████                ran 10.0 s, waited 12.0 s for a
      c  ▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒█████▚▚▚██████  ran 10.0 s, waited 22.0 s for b

      █ running   ▚ held up at a service   ▒ waiting for an instance
      "
    `);
  });

  it('shows admission, failures and parallel calls', () => {
    expect(`\n${pooled().toText({ columns: 90 })}`).toMatchInlineSnapshot(`
      "
         0 s                5 s                10 s
      a  ▒▒▒▒▒▒▒▒██████████████████████████████████████  ran 10.0 s, waited 2.0 s for instance 1
      b  ░░▒▒▒▒▒▒██████████████████████████████████████  failed, ran 10.0 s
      c  ░░░░▒▒▒▒██████████████████████████████████████  ran 10.0 s, waited 1.0 s to be admitted

      █ running   ░ waiting to be admitted   ▒ waiting for an instance
      "
    `);
  });

  it('shows a request as held up only while none of its attempts is in progress', () => {
    const story = new Story();
    goThrough(story, { taskId: 'a', startMs: 0, endMs: 100, instanceId: 1 });
    callGate(story, 'serper', { taskId: 'a' }, 0, [{ waitMs: 90, reason: 'rate', workMs: 10 }]);
    callGate(story, 'llm', { taskId: 'a' }, 0, [{ workMs: 45 }]);
    const line = story.record().toText({ columns: 80 }).split('\n')[1] ?? '';
    const blocks = line.slice(3).split('  ')[0] ?? '';
    expect(blocks.replace(/(.)\1+/g, '$1')).toBe('█▚█');
    expect(blocks.indexOf('▚') / blocks.length).toBeCloseTo(0.45, 1);
  });

  it('escapes control and bidirectional characters of a task id', () => {
    const story = new Story();
    goThrough(story, {
      taskId: 'a\n\u202eb',
      arriveMs: 0,
      admittedMs: 0,
      startMs: 0,
      endMs: 100,
      instanceId: 1,
    });
    const timeline = story.record();
    expect(timeline.toText({ columns: 80 })).toContain('\na\\n\\u202eb  ');
    expect(timeline.toSvg()).not.toMatch(/\p{Bidi_Control}/u);
  });

  it('never exceeds its columns', () => {
    for (const columns of [40, 60, 200]) {
      for (const line of inTurn().toText({ columns }).split('\n').slice(0, -2)) {
        expect(line.length).toBeLessThanOrEqual(columns);
      }
    }
  });

  it.each([
    [{ columns: 10 }, /`columns` to be a whole number from 40/],
    [{ width: 100 }, /Unknown option `width` in toText/],
  ])('rejects %o', (options, message) => {
    expect(() => inTurn().toText(options as never)).toThrow(message);
  });
});

describe('the axis of a picture', () => {
  it.each([
    [12, ['0.000 s', '0.002 s', '0.004 s', '0.006 s', '0.008 s', '0.010 s', '0.012 s']],
    [45_000, ['0 s', '10 s', '20 s', '30 s', '40 s']],
    [600_000, ['0 min', '2 min', '4 min', '6 min', '8 min', '10 min']],
    [7 * 3_600_000, ['0 h', '1 h', '2 h', '3 h', '4 h', '5 h', '6 h', '7 h']],
    [100 * 3_600_000, ['0 h', '15 h', '30 h', '45 h', '60 h', '75 h', '90 h']],
  ])('counts %d ms in round steps', (endMs, labels) => {
    expect(axisOf(endMs, 0, 490, 70).ticks.map(({ label }) => label)).toEqual(labels);
  });
});

describe('the Chrome trace of a timeline', () => {
  it('names pools, slots and requests', () => {
    const { traceEvents } = pooled().toChromeTrace();
    const names = traceEvents
      .filter(({ name }) => /^(process|thread)_name$/.test(name))
      .map(({ args }) => args?.name);
    expect(names).toEqual([
      'pool pool',
      'slot 1',
      'slot 2',
      'slot 3',
      'requests',
      'a',
      'a (2)',
      'b',
      'b (2)',
      'c',
      'c (2)',
      'counts',
    ]);
  });

  it('has times in microseconds and describes each slice', () => {
    const { traceEvents } = inTurn().toChromeTrace();
    expect(traceEvents.find(({ name }) => name === 'serper attempt 1')).toMatchObject({
      ph: 'X',
      ts: 8_000_000,
      dur: 4_000_000,
      cat: 'attempt',
      args: { source: 'serper', attempt: 1, outcome: 'ok' },
    });
    const counts = traceEvents.filter(({ ph, name }) => ph === 'C' && name === 'waiting');
    expect(counts.map(({ ts, args }) => [ts, args?.waiting])).toEqual([
      [0, 1],
      [0, 2],
      [0, 3],
      [2_000_000, 2],
      [12_000_000, 1],
      [22_000_000, 0],
    ]);
  });

  it('nests slices that start together, in any order of events', () => {
    const spans = [
      { kind: 'attempt', name: 'llm', startMs: 0, endMs: 10 },
      { kind: 'call', name: 'llm', startMs: 0, endMs: 20 },
    ] as const;
    const left = { requests: 0, spans: 0, unattributed: 0 };
    const requests = [{ startMs: 0, spans }];
    const { traceEvents } = toChromeTrace({
      version: 1,
      startedAt: '',
      endMs: 20,
      requests,
      instances: [],
      left,
    });
    expect(new Set(traceEvents.filter(({ ph }) => ph === 'X').map(({ tid }) => tid)).size).toBe(1);
  });

  const span = fc.record({
    kind: fc.constantFrom('call' as const, 'attempt' as const, 'tool' as const, 'lease' as const),
    name: fc.constantFrom('llm', 'serper'),
    startMs: fc.nat(50),
    lengthMs: fc.nat(30),
  });

  prop([fc.array(span, { maxLength: 25 })])('never lets slices of one thread cross', (spans) => {
    const data: TimelineData = {
      version: 1,
      startedAt: '',
      endMs: 100,
      requests: [
        {
          startMs: 0,
          spans: spans.map(({ lengthMs, ...rest }) => ({ ...rest, endMs: rest.startMs + lengthMs })),
        },
      ],
      instances: [],
      left: { requests: 0, spans: 0, unattributed: 0 },
    };
    const { traceEvents } = toChromeTrace(data);
    const requests = traceEvents.find(({ ph, args }) => ph === 'M' && args?.name === 'requests')?.pid;
    const slices = traceEvents.filter(({ ph, pid }) => ph === 'X' && pid === requests);
    expect(slices).toHaveLength(spans.length);
    for (const one of slices) {
      for (const other of slices) {
        if (one === other || one.tid !== other.tid) continue;
        const [a, b] = [one.ts, one.ts + (one.dur ?? 0)];
        const [c, d] = [other.ts, other.ts + (other.dur ?? 0)];
        const apart = b <= c || d <= a;
        const within = (a <= c && d <= b) || (c <= a && b <= d);
        expect(apart || within).toBe(true);
      }
    }
  });
});
