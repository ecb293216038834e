import { formatDuration } from '../../internal/format.js';
import type { TimelineData, TimelineInstance, TimelineRequest, TimelineSpan } from './data.js';

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
  const requests = data.requests.map((request) => new RequestBars(request, data.endMs));
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
  const isVisible = waits.some((bars) => bars.some((bar) => lengthOf(bar) >= 8 * leastWaitMs));
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
class RequestBars {
  readonly name: string;
  readonly waits: readonly Bar[];
  /** Each with its lease, or without one if the request had no instance. */
  readonly runs: readonly { readonly bar: RunBar; readonly span: TimelineSpan | undefined }[];
  readonly #request: TimelineRequest;
  readonly #endMs: number;

  constructor(request: TimelineRequest, endMs: number) {
    this.#request = request;
    this.#endMs = endMs;
    this.name = request.taskId ?? 'unnamed';
    const { spans } = request;
    const waits = spans
      .filter(({ kind }) => kind === 'wait-permit' || kind === 'wait-lease')
      .map((span) => this.#waitBar(span))
      .sort(byStart);
    const longest = waits.toSorted((a, b) => b.endMs - b.startMs - (a.endMs - a.startMs))[0];
    this.waits = waits.map((bar) => (bar === longest ? bar : { ...bar, label: '' }));
    const leases = spans.filter(({ kind }) => kind === 'lease');
    const permits = spans.filter(({ kind }) => kind === 'permit');
    if (leases.length > 0) {
      this.runs = leases.map((span) => ({ span, bar: this.#runBar(span, `instance ${span.instanceId}`) }));
    } else {
      const held = permits.length > 0 ? permits : this.#callsAsOne();
      this.runs = held.map((span) => ({ span: undefined, bar: this.#runBar(span, span.name) }));
    }
  }

  /** If neither a lease nor a permit was observed, the request ran while its calls did. */
  #callsAsOne(): TimelineSpan[] {
    const work = this.#request.spans.filter(({ kind }) => kind === 'call' || kind === 'tool');
    if (work.length === 0) return [];
    const startMs = Math.min(...work.map((span) => span.startMs));
    const endMs = Math.max(...work.map(({ endMs = this.#endMs }) => endMs));
    return [{ kind: 'permit', name: 'calls', startMs, endMs }];
  }

  #waitBar(span: TimelineSpan): Bar {
    const { kind, name, startMs, endMs = this.#endMs, outcome } = span;
    const what = kind === 'wait-permit' ? `to be admitted by ${name}` : `for an instance of ${name}`;
    const length = formatDuration(endMs - startMs);
    return {
      kind: kind as 'wait-permit' | 'wait-lease',
      startMs,
      endMs,
      label: this.name,
      tip: `${this.name} waited ${length} ${what}${outcome === undefined ? '' : `: ${outcome}`}`,
      failed: outcome !== undefined,
      strips: [],
    };
  }

  #runBar({ startMs, endMs = this.#endMs }: TimelineSpan, place: string): RunBar {
    const { outcome } = this.#request;
    const strips = this.#strips(startMs, endMs);
    const calls = this.#request.spans.filter(
      (span) => span.kind === 'call' && span.startMs >= startMs && span.startMs < endMs,
    ).length;
    return {
      kind: 'run',
      startMs,
      endMs,
      label: this.name,
      place,
      tip: `${this.name} ran ${formatDuration(endMs - startMs)} on ${place}${calls === 0 ? '' : `, ${calls} calls`}${outcome === undefined ? '' : `: ${outcome}`}`,
      failed: outcome !== undefined && outcome !== 'ok',
      strips,
    };
  }

  /** Attempts and waits of the calls, and tools without calls. */
  #strips(fromMs: number, toMs: number): Strip[] {
    const { spans } = this.#request;
    const calls = spans.filter(({ kind }) => kind === 'call');
    const shown = spans.filter((span) => {
      if (span.kind === 'attempt' || span.kind === 'wait-call') return true;
      return span.kind === 'tool' && !calls.some((call) => this.#within(call, span));
    });
    const inside = shown
      .map((span) => ({ ...span, endMs: Math.min(span.endMs ?? this.#endMs, toMs) }))
      .filter((span) => span.startMs >= fromMs && span.startMs < toMs)
      .sort(byStart);
    return packed(inside.map((span) => [span])).flatMap((track, i) =>
      track.map((span) => ({
        kind: stripKind(span),
        startMs: span.startMs,
        endMs: span.endMs,
        track: i,
        tip: stripTip(span),
      })),
    );
  }

  #within(call: TimelineSpan, tool: TimelineSpan): boolean {
    if (call.toolCallId !== undefined) return call.toolCallId === tool.toolCallId;
    const { endMs = this.#endMs } = tool;
    return call.startMs >= tool.startMs && (call.endMs ?? this.#endMs) <= endMs;
  }
}

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

const stripTip = ({
  kind,
  name,
  startMs,
  endMs = startMs,
  reason,
  attempt,
  outcome,
}: TimelineSpan): string => {
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
