import { escapeControls, formatDuration } from '../../internal/format.js';
import type { TimelineData, TimelineSpan } from './data.js';
import { axisOf } from './svg-primitives.js';
import { type DrawnRequest, type DrawnSpan, drawnRequests, heldSpans } from './times.js';

type State = 'idle' | 'wait-permit' | 'wait-lease' | 'held' | 'running';

const BLOCKS: Readonly<Record<State, string>> = {
  idle: ' ',
  'wait-permit': '░',
  'wait-lease': '▒',
  held: '▚',
  running: '█',
};

const LEGEND: readonly [State, string][] = [
  ['running', 'running'],
  ['held', 'held up at a service'],
  ['wait-permit', 'waiting to be admitted'],
  ['wait-lease', 'waiting for an instance'],
];

/** Samples per column; the most frequent state is drawn. */
const SAMPLES = 5;

/** A lease, and the name of the request that held it. */
interface Holding {
  readonly name: string;
  readonly span: DrawnSpan;
}

/** Draws a recording with block characters: a row for each request, with what it waited for. */
export function drawText(data: TimelineData, columns: number): string {
  const endMs = Math.max(1, data.endMs);
  const requests = drawnRequests(data)
    .map((request) => ({ ...request, name: escapeControls(request.name) }))
    .sort((a, b) => a.startMs - b.startMs);
  const longest = Math.max(0, ...requests.map(({ name }) => name.length));
  const nameWidth = Math.min(longest, Math.floor(columns / 5));
  const leases = requests.flatMap(({ name, spans }) =>
    spans.filter(({ kind }) => kind === 'lease').map((span): Holding => ({ name, span })),
  );
  const notes = requests.map((request) => noteOf(request, endMs, leases, Math.floor(columns * 0.48)));
  const noteWidth = Math.max(0, ...notes.map((note) => note.length));
  const chartWidth = columns - nameWidth - noteWidth - 4;

  const lines = requests.map(({ name, spans }, i) => {
    const label = shortened(name, nameWidth).padEnd(nameWidth);
    return `${label}  ${chartOf(spans, endMs, chartWidth)}  ${notes[i]}`.trimEnd();
  });
  const shown = LEGEND.filter(([state]) => lines.some((line) => line.includes(BLOCKS[state])));
  const legend = shown.map(([state, words]) => `${BLOCKS[state]} ${words}`).join('   ');
  const margin = ' '.repeat(nameWidth + 2);
  return `${[margin + scale(endMs, chartWidth), ...lines, '', legend].join('\n')}\n`;
}

function scale(endMs: number, width: number): string {
  let line = '';
  for (const { x, label } of axisOf(endMs, 0, width, 12).ticks) {
    const at = Math.round(x);
    if (at < line.length || at + label.length > width) continue;
    line = line.padEnd(at) + label;
  }
  return line;
}

function chartOf(spans: readonly DrawnSpan[], endMs: number, width: number): string {
  const column = endMs / width;
  let chart = '';
  for (let i = 0; i < width; i++) {
    const seen = new Map<State, number>();
    for (let sample = 0; sample < SAMPLES; sample++) {
      const state = stateAt(spans, (i + (sample + 0.5) / SAMPLES) * column);
      seen.set(state, (seen.get(state) ?? 0) + 1);
    }
    const [most] = [...seen].toSorted(([, a], [, b]) => b - a)[0] ?? ['idle'];
    chart += BLOCKS[most];
  }
  return chart;
}

/** A request is held up while one of its calls waits and none of its attempts is in progress. */
function stateAt(spans: readonly DrawnSpan[], atMs: number): State {
  const on = new Set<TimelineSpan['kind']>();
  for (const { kind, startMs, endMs } of spans) if (startMs <= atMs && atMs < endMs) on.add(kind);
  if (on.has('wait-lease')) return 'wait-lease';
  if (on.has('wait-permit')) return 'wait-permit';
  if (on.has('wait-call') && !on.has('attempt')) return 'held';
  return on.size === 0 ? 'idle' : 'running';
}

/** What a request waited for: the previous holder of the slot that it got, or the instance. */
function awaited(spans: readonly DrawnSpan[], leases: readonly Holding[]): string {
  const wait = spans.find(({ kind }) => kind === 'wait-lease');
  const lease = spans.find(({ kind, startMs }) => kind === 'lease' && startMs >= (wait?.startMs ?? 0));
  if (wait === undefined || lease === undefined) return 'for an instance';
  const before = leases
    .filter(({ span }) => span.name === lease.name && span.lane === lease.lane)
    .filter(({ span: { endMs } }) => endMs > wait.startMs && endMs <= lease.startMs)
    .toSorted((a, b) => b.span.endMs - a.span.endMs)[0];
  return before === undefined ? `for instance ${lease.instanceId}` : `for ${shortened(before.name, 24)}`;
}

/** How long the request ran and what it waited for, the longest wait first, cut to the width. */
function noteOf(
  { spans, outcome }: DrawnRequest,
  nowMs: number,
  leases: readonly Holding[],
  width: number,
): string {
  const time = (kind: TimelineSpan['kind'], name?: string): number =>
    covered(spans.filter((span) => span.kind === kind && (name === undefined || span.name === name)));
  const gates = new Set(spans.filter(({ kind }) => kind === 'wait-call').map(({ name }) => name));
  const waits: [ms: number, words: string][] = [
    [time('wait-permit'), 'to be admitted'],
    [time('wait-lease'), awaited(spans, leases)],
    ...[...gates].map((gate): [number, string] => [time('wait-call', gate), `at ${gate}`]),
  ];
  const ran = covered(heldSpans(spans));
  const parts = [];
  if (outcome !== undefined && outcome !== 'ok') parts.push(outcome);
  if (ran !== 0) parts.push(`ran ${formatDuration(ran)}`);
  let note = parts.join(', ');
  let verb = 'waited ';
  for (const [ms, words] of waits.toSorted(([a], [b]) => b - a)) {
    const part = `${note === '' ? '' : ', '}${verb}${formatDuration(ms)} ${words}`;
    // A wait that the chart does not show is omitted.
    if (ms <= nowMs / 200 || note.length + part.length > width) continue;
    note += part;
    verb = '';
  }
  return shortened(note, width);
}

/** How long at least one of the spans was in progress. */
function covered(spans: readonly DrawnSpan[]): number {
  let total = 0;
  let untilMs = Number.NEGATIVE_INFINITY;
  for (const { startMs, endMs } of spans.toSorted((a, b) => a.startMs - b.startMs)) {
    total += Math.max(0, endMs - Math.max(startMs, untilMs));
    untilMs = Math.max(untilMs, endMs);
  }
  return total;
}

const shortened = (text: string, width: number): string =>
  text.length <= width ? text : `${text.slice(0, Math.max(0, width - 1))}…`;
