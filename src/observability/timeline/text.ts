import { escapeControls, formatDuration } from '../../internal/format.js';
import type { TimelineData, TimelineRequest, TimelineSpan } from './data.js';
import { axisOf } from './svg-primitives.js';

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

/** Draws a recording with block characters: a row for each request, with what it waited for. */
export function drawText(data: TimelineData, columns: number): string {
  const requests = data.requests.toSorted((a, b) => a.startMs - b.startMs);
  const names = requests.map(({ taskId }) => nameOf(taskId));
  const longest = Math.max(0, ...names.map((name) => name.length));
  const nameWidth = Math.min(longest, Math.floor(columns / 5));
  const endMs = Math.max(1, data.endMs);
  const holders = new Holders(requests);
  const notes = requests.map((request) => noteOf(request, endMs, holders, Math.floor(columns * 0.48)));
  const noteWidth = Math.max(0, ...notes.map((note) => note.length));
  const chartWidth = columns - nameWidth - noteWidth - 4;

  const lines = requests.map((request, i) => {
    const name = shortened(names[i] ?? '', nameWidth).padEnd(nameWidth);
    return `${name}  ${chartOf(request, endMs, chartWidth)}  ${notes[i]}`.trimEnd();
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

function chartOf({ spans }: TimelineRequest, endMs: number, width: number): string {
  const column = endMs / width;
  let chart = '';
  for (let i = 0; i < width; i++) {
    const seen = new Map<State, number>();
    for (let sample = 0; sample < SAMPLES; sample++) {
      const state = stateAt(spans, (i + (sample + 0.5) / SAMPLES) * column, endMs);
      seen.set(state, (seen.get(state) ?? 0) + 1);
    }
    const [most] = [...seen].toSorted(([, a], [, b]) => b - a)[0] ?? ['idle'];
    chart += BLOCKS[most];
  }
  return chart;
}

/** A request is held up while one of its calls waits and none of its attempts is in progress. */
function stateAt(spans: readonly TimelineSpan[], atMs: number, nowMs: number): State {
  const on = new Set<TimelineSpan['kind']>();
  for (const { kind, startMs, endMs = nowMs } of spans) if (startMs <= atMs && atMs < endMs) on.add(kind);
  if (on.has('wait-lease')) return 'wait-lease';
  if (on.has('wait-permit')) return 'wait-permit';
  if (on.has('wait-call') && !on.has('attempt')) return 'held';
  return on.size === 0 ? 'idle' : 'running';
}

/** Which request held which slot, and when. */
class Holders {
  readonly #leases: { readonly name: string; readonly span: TimelineSpan }[];

  constructor(requests: readonly TimelineRequest[]) {
    this.#leases = requests.flatMap(({ taskId, spans }) =>
      spans.filter(({ kind }) => kind === 'lease').map((span) => ({ name: nameOf(taskId), span })),
    );
  }

  /** What a request waited for: the previous holder of the slot that it got, or the instance. */
  words(spans: readonly TimelineSpan[]): string {
    const wait = spans.find(({ kind }) => kind === 'wait-lease');
    const lease = spans.find(({ kind, startMs }) => kind === 'lease' && startMs >= (wait?.startMs ?? 0));
    if (wait === undefined || lease === undefined) return 'for an instance';
    const before = this.#leases
      .filter(({ span }) => span.name === lease.name && span.lane === lease.lane)
      .filter(({ span: { endMs } }) => endMs !== undefined && endMs > wait.startMs && endMs <= lease.startMs)
      .toSorted((a, b) => (b.span.endMs ?? 0) - (a.span.endMs ?? 0))[0];
    return before === undefined ? `for instance ${lease.instanceId}` : `for ${shortened(before.name, 24)}`;
  }
}

/** How long the request ran and what it waited for, the longest wait first, cut to the width. */
function noteOf(request: TimelineRequest, nowMs: number, holders: Holders, width: number): string {
  const { spans, outcome } = request;
  const time = (kind: TimelineSpan['kind'], name?: string): number =>
    covered(
      spans.filter((span) => span.kind === kind && (name === undefined || span.name === name)),
      nowMs,
    );
  const gates = new Set(spans.filter(({ kind }) => kind === 'wait-call').map(({ name }) => name));
  const waits: [ms: number, words: string][] = [
    [time('wait-permit'), 'to be admitted'],
    [time('wait-lease'), holders.words(spans)],
    ...[...gates].map((gate): [number, string] => [time('wait-call', gate), `at ${gate}`]),
  ];
  const ran = time('lease') || time('permit');
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
function covered(spans: readonly TimelineSpan[], nowMs: number): number {
  let total = 0;
  let untilMs = Number.NEGATIVE_INFINITY;
  for (const { startMs, endMs = nowMs } of spans.toSorted((a, b) => a.startMs - b.startMs)) {
    total += Math.max(0, endMs - Math.max(startMs, untilMs));
    untilMs = Math.max(untilMs, endMs);
  }
  return total;
}

const nameOf = (taskId = 'unnamed'): string => escapeControls(taskId);

const shortened = (text: string, width: number): string =>
  text.length <= width ? text : `${text.slice(0, Math.max(0, width - 1))}…`;
