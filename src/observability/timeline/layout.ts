import { formatDuration } from '../../internal/format.js';
import type { TimelineData, TimelineInstance, TimelineSpan } from './data.js';
import { type DrawnRequest, type DrawnSpan, drawnRequests, heldSpans } from './times.js';

/** One row per slot of the pools, or one per request. */
export type TimelineLanes = 'instances' | 'requests';

/** A thin strip inside a bar. */
export interface Strip {
  readonly kind: 'attempt' | 'failed' | 'wait-call' | 'tool';
  readonly startMs: number;
  readonly endMs: number;
  /** The track inside the bar, from 0; concurrent strips are on different tracks. */
  readonly track: number;
  readonly tip: string;
}

/** A bar in a row. */
export interface Bar {
  readonly kind: 'alive' | 'creating' | 'run' | 'wait-permit' | 'wait-lease';
  readonly startMs: number;
  readonly endMs: number;
  readonly label: string;
  readonly tip: string;
  readonly failed: boolean;
  readonly strips: readonly Strip[];
}

/** One row of a picture. Bars are in drawing order: the lifetimes of instances first, behind all others. */
export interface Row {
  readonly label: string;
  readonly bars: readonly Bar[];
}

/** The content of a picture of one recording, independent of its size. */
export interface Layout {
  readonly endMs: number;
  readonly requests: number;
  /** Slots or requests; requests without an instance follow the slots. */
  readonly rows: readonly Row[];
  /** Waits outside `rows`, packed into as few rows as possible. */
  readonly waiting: readonly Row[];
}

/**
 * Arranges a recording in rows. Waits shorter than `leastWaitMs` would be invisible and are omitted; if none is eight times
 * as long, the lane for them would look empty, and is omitted too.
 */
export function layOut(data: TimelineData, lanes: TimelineLanes, leastWaitMs = 0): Layout {
  const requests = drawnRequests(data).map(barsOf);
  const common = { endMs: data.endMs, requests: requests.length };
  if (lanes === 'requests') {
    const rows = requests.map(({ name, waits, runs }) => ({
      label: name,
      bars: [
        ...waits.map((bar) => ({ ...bar, label: '' })),
        ...runs.map(({ bar }) => ({ ...bar, label: bar.place })),
      ].sort(byStart),
    }));
    return { ...common, rows, waiting: [] };
  }
  const waits = requests.map((request) => request.waits.filter((bar) => lengthOf(bar) >= leastWaitMs));
  const isVisible = waits.flat().some((bar) => lengthOf(bar) >= 8 * leastWaitMs);
  const loose = requests.flatMap(({ runs }) => runs.filter(({ span }) => span === undefined));
  return {
    ...common,
    rows: [
      ...slotRows(data, requests),
      ...packed(loose.map(({ bar }) => [bar])).map((bars, i) => ({ label: `request ${i + 1}`, bars })),
    ],
    waiting: packed(isVisible ? waits : []).map((bars, i) => ({ label: i === 0 ? 'waiting' : '', bars })),
  };
}

const lengthOf = ({ startMs, endMs }: Bar): number => endMs - startMs;

interface RunBar extends Bar {
  /** Where it ran, as text. */
  readonly place: string;
}

/** The bars of one request. */
interface RequestBars {
  readonly name: string;
  readonly waits: readonly Bar[];
  /** Each with its lease, or without one if the request had no instance. */
  readonly runs: readonly { readonly bar: RunBar; readonly span: DrawnSpan | undefined }[];
}

function barsOf(request: DrawnRequest): RequestBars {
  const { name, spans } = request;
  const waits = spans
    .filter(({ kind }) => kind === 'wait-permit' || kind === 'wait-lease')
    .map((span) => waitBar(name, span))
    .sort(byStart);
  const longest = waits.toSorted((a, b) => lengthOf(b) - lengthOf(a))[0];
  const held = heldSpans(spans);
  return {
    name,
    waits: waits.map((bar) => (bar === longest ? bar : { ...bar, label: '' })),
    runs: (held.length > 0 ? held : callsAsOne(spans)).map((span) =>
      span.kind === 'lease'
        ? { span, bar: runBar(request, span, `instance ${span.instanceId}`) }
        : { span: undefined, bar: runBar(request, span, span.name) },
    ),
  };
}

/** If neither a lease nor a permit was observed, the request ran while its calls did. */
function callsAsOne(spans: readonly DrawnSpan[]): DrawnSpan[] {
  const work = spans.filter(({ kind }) => kind === 'call' || kind === 'tool');
  if (work.length === 0) return [];
  const startMs = Math.min(...work.map((span) => span.startMs));
  const endMs = Math.max(...work.map((span) => span.endMs));
  return [{ kind: 'permit', name: 'calls', startMs, endMs }];
}

function waitBar(name: string, { kind, name: source, startMs, endMs, outcome }: DrawnSpan): Bar {
  const what = kind === 'wait-permit' ? `to be admitted by ${source}` : `for an instance of ${source}`;
  return {
    kind: kind as 'wait-permit' | 'wait-lease',
    startMs,
    endMs,
    label: name,
    tip: `${name} waited ${formatDuration(endMs - startMs)} ${what}${outcome === undefined ? '' : `: ${outcome}`}`,
    failed: outcome !== undefined,
    strips: [],
  };
}

function runBar(request: DrawnRequest, { startMs, endMs }: DrawnSpan, place: string): RunBar {
  const { name, outcome, spans } = request;
  const calls = spans.filter(
    (span) => span.kind === 'call' && span.startMs >= startMs && span.startMs < endMs,
  ).length;
  return {
    kind: 'run',
    startMs,
    endMs,
    label: name,
    place,
    tip: `${name} ran ${formatDuration(endMs - startMs)} on ${place}${calls === 0 ? '' : `, ${calls} calls`}${outcome === undefined ? '' : `: ${outcome}`}`,
    failed: outcome !== undefined && outcome !== 'ok',
    strips: stripsOf(spans, startMs, endMs),
  };
}

/** Attempts and waits of the calls, and tools without calls. */
function stripsOf(spans: readonly DrawnSpan[], fromMs: number, toMs: number): Strip[] {
  const calls = spans.filter(({ kind }) => kind === 'call');
  const shown = spans.filter((span) => {
    if (span.kind === 'attempt' || span.kind === 'wait-call') return true;
    return span.kind === 'tool' && !calls.some((call) => isWithin(call, span));
  });
  const inside = shown
    .map((span) => ({ ...span, endMs: Math.min(span.endMs, toMs) }))
    .filter((span) => span.startMs >= fromMs && span.startMs < toMs)
    .sort(byStart);
  return packed(inside.map((span) => [span])).flatMap((pieces, track) =>
    pieces.map((span) => ({
      kind: stripKind(span),
      startMs: span.startMs,
      endMs: span.endMs,
      track,
      tip: stripTip(span),
    })),
  );
}

const isWithin = (call: DrawnSpan, tool: DrawnSpan): boolean =>
  call.toolCallId === undefined
    ? call.startMs >= tool.startMs && call.endMs <= tool.endMs
    : call.toolCallId === tool.toolCallId;

const stripKind = ({ kind, outcome }: TimelineSpan): Strip['kind'] => {
  if (kind === 'wait-call') return 'wait-call';
  if (outcome !== undefined && outcome !== 'ok') return 'failed';
  return kind === 'tool' ? 'tool' : 'attempt';
};

const HOLD_UPS = {
  turn: 'for its turn',
  rate: 'for capacity in a rate window',
  cooldown: 'for the end of a cooldown',
  backoff: 'before the next attempt',
} as const;

const stripTip = ({ kind, name, startMs, endMs, reason, attempt, outcome }: DrawnSpan): string => {
  const length = formatDuration(endMs - startMs);
  if (kind === 'wait-call') return `${name}: waited ${length} ${HOLD_UPS[reason ?? 'turn']}`;
  const which = attempt === undefined || attempt === 1 ? '' : `, attempt ${attempt}`;
  return `${name}: ${length}${which}${outcome === undefined || outcome === 'ok' ? '' : `: ${outcome}`}`;
};

function slotRows({ instances, endMs }: TimelineData, requests: readonly RequestBars[]): Row[] {
  const slots = new Map<string, { pool: string; lane: number; ids: Set<number>; life: Bar[]; runs: Bar[] }>();
  const slotOf = (pool: string, lane: number, instanceId: number) => {
    const key = `${pool} ${lane}`;
    const slot = slots.get(key) ?? { pool, lane, ids: new Set(), life: [], runs: [] };
    slots.set(key, slot);
    slot.ids.add(instanceId);
    return slot;
  };
  for (const instance of instances) {
    const { pool, lane, instanceId } = instance;
    slotOf(pool, lane, instanceId).life.push(...lifeBars(instance, endMs));
  }
  for (const { runs } of requests) {
    for (const { bar, span } of runs) {
      if (span === undefined) continue;
      slotOf(span.name, span.lane ?? 0, span.instanceId ?? 0).runs.push(bar);
    }
  }
  const pools = [...new Set([...slots.values()].map(({ pool }) => pool))];
  return [...slots.values()]
    .sort((a, b) => pools.indexOf(a.pool) - pools.indexOf(b.pool) || a.lane - b.lane)
    .map(({ pool, lane, ids, life, runs }) => {
      const name = ids.size === 1 ? `instance ${[...ids][0]}` : `slot ${lane + 1}`;
      return {
        label: pools.length === 1 ? name : `${pool}, ${name}`,
        bars: [...life, ...runs.sort(byStart)],
      };
    });
}

function lifeBars(
  { pool, instanceId, startMs, readyMs, endMs: goneMs, reason }: TimelineInstance,
  endMs: number,
): Bar[] {
  const bars: Bar[] = [];
  const bar = (kind: 'alive' | 'creating', from: number, to: number, tip: string) =>
    bars.push({ kind, startMs: from, endMs: to, label: '', tip, failed: false, strips: [] });
  const name = `instance ${instanceId} of ${pool}`;
  const lastMs = goneMs ?? endMs;
  if (startMs !== undefined) {
    const untilMs = readyMs ?? lastMs;
    bar('creating', startMs, untilMs, `${name} being created for ${formatDuration(untilMs - startMs)}`);
    if (readyMs === undefined) return bars;
  }
  bar('alive', readyMs ?? 0, lastMs, `${name}${reason === undefined ? '' : `, gone: ${reason}`}`);
  return bars;
}

/** Puts each item, undivided, into the first row that is free for its whole duration. */
function packed<P extends { readonly startMs: number; readonly endMs: number }>(
  items: readonly (readonly P[])[],
): P[][] {
  const rows: { untilMs: number; pieces: P[] }[] = [];
  const present = items.filter((pieces) => pieces.length > 0);
  for (const pieces of present.toSorted((a, b) => byStart(a[0] as P, b[0] as P))) {
    const startMs = (pieces[0] as P).startMs;
    let row = rows.find(({ untilMs }) => untilMs <= startMs);
    if (row === undefined) {
      row = { untilMs: 0, pieces: [] };
      rows.push(row);
    }
    row.pieces.push(...pieces);
    row.untilMs = Math.max(...pieces.map(({ endMs }) => endMs));
  }
  return rows.map(({ pieces }) => pieces);
}

const byStart = (a: { readonly startMs: number }, b: { readonly startMs: number }): number =>
  a.startMs - b.startMs;
