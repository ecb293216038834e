import type { TimelineData, TimelineSpan } from './data.js';
import { type DrawnRequest, type DrawnSpan, drawnRequests } from './times.js';

/** An event of the Trace Event Format; times are in microseconds. */
export interface ChromeTraceEvent {
  readonly name: string;
  /** `X`: a slice. `M`: the name of a process or thread. `C`: a counter. */
  readonly ph: 'X' | 'M' | 'C';
  readonly pid: number;
  readonly tid: number;
  readonly ts: number;
  readonly dur?: number;
  readonly cat?: string;
  readonly args?: Readonly<Record<string, unknown>>;
}

/** A trace for ui.perfetto.dev and chrome://tracing. */
export interface ChromeTrace {
  readonly traceEvents: readonly ChromeTraceEvent[];
  readonly displayTimeUnit: 'ms';
  readonly otherData: Readonly<Record<string, unknown>>;
}

/**
 * Converts a recording to a Chrome trace. Each pool is a process with a thread per slot; the requests are another process
 * with a thread per request and further threads for its concurrent spans, because slices of one thread must be nested or
 * disjoint.
 *
 * @see https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU the Trace Event Format
 */
export function toChromeTrace(data: TimelineData): ChromeTrace {
  const trace = new TraceWriter();
  const drawn = drawnRequests(data);
  slots(data, drawn, trace);
  requests(drawn, trace);
  counters(drawn, trace);
  return {
    traceEvents: trace.events,
    displayTimeUnit: 'ms',
    otherData: { startedAt: data.startedAt, ...data.left },
  };
}

type Thread = Pick<ChromeTraceEvent, 'pid' | 'tid'>;

interface TraceSlice {
  readonly name: string;
  readonly cat: string;
  readonly startMs: number;
  readonly endMs: number;
  readonly args: Readonly<Record<string, unknown>>;
}

class TraceWriter {
  readonly events: ChromeTraceEvent[] = [];
  #pid = 0;
  #tid = 0;

  process(name: string): number {
    const pid = ++this.#pid;
    this.#meta('process_name', pid, 0, { name });
    this.#meta('process_sort_index', pid, 0, { sort_index: pid });
    return pid;
  }

  thread(pid: number, name: string): Thread {
    const tid = ++this.#tid;
    this.#meta('thread_name', pid, tid, { name });
    this.#meta('thread_sort_index', pid, tid, { sort_index: tid });
    return { pid, tid };
  }

  slice(thread: Thread, { name, cat, startMs, endMs, args }: TraceSlice): void {
    const ts = micros(startMs);
    const dur = micros(endMs) - ts;
    this.events.push({ name, ph: 'X', ...thread, ts, dur, cat, args });
  }

  counter(pid: number, name: string, atMs: number, value: number): void {
    this.events.push({ name, ph: 'C', pid, tid: 0, ts: micros(atMs), args: { [name]: value } });
  }

  #meta(name: string, pid: number, tid: number, args: Readonly<Record<string, unknown>>): void {
    this.events.push({ name, ph: 'M', pid, tid, ts: 0, args });
  }
}

function slots({ instances, endMs }: TimelineData, drawn: readonly DrawnRequest[], trace: TraceWriter): void {
  const pools = new Map<string, Map<number, TraceSlice[]>>();
  const slot = (pool: string, lane: number): TraceSlice[] => {
    const lanes = pools.get(pool) ?? new Map<number, TraceSlice[]>();
    const slices = lanes.get(lane) ?? [];
    pools.set(pool, lanes.set(lane, slices));
    return slices;
  };
  for (const { pool, lane, instanceId, startMs, readyMs, endMs: goneMs } of instances) {
    const slices = slot(pool, lane);
    if (startMs === undefined) continue;
    const name = `create instance ${instanceId}`;
    slices.push({ name, cat: 'create', startMs, endMs: readyMs ?? goneMs ?? endMs, args: { instanceId } });
  }
  for (const { name, taskId, requestId, tenant, outcome, spans } of drawn) {
    for (const { kind, name: pool, lane = 0, instanceId, startMs, endMs } of spans) {
      if (kind !== 'lease') continue;
      const args = { taskId, requestId, tenant, outcome, instanceId };
      slot(pool, lane).push({ name, cat: 'lease', startMs, endMs, args });
    }
  }
  for (const [pool, lanes] of pools) {
    const pid = trace.process(`pool ${pool}`);
    for (const [lane, slices] of [...lanes].sort(([a], [b]) => a - b)) {
      const thread = trace.thread(pid, `slot ${lane + 1}`);
      for (const slice of slices) trace.slice(thread, slice);
    }
  }
}

function requests(drawn: readonly DrawnRequest[], trace: TraceWriter): void {
  if (drawn.length === 0) return;
  const pid = trace.process('requests');
  for (const { name, spans } of drawn) {
    nested(spans).forEach((track, i) => {
      const thread = trace.thread(pid, i === 0 ? name : `${name} (${i + 1})`);
      for (const slice of track) {
        const { kind: cat, startMs, endMs, name: source, ...rest } = slice;
        trace.slice(thread, { name: titleOf(slice), cat, startMs, endMs, args: { source, ...rest } });
      }
    });
  }
}

const titleOf = ({ kind, name, instanceId, attempt, reason }: TimelineSpan): string => {
  if (kind === 'lease') return `instance ${instanceId}`;
  if (kind === 'attempt') return `${name} attempt ${attempt}`;
  if (kind === 'wait-call') return `${name} waits: ${reason}`;
  if (kind === 'wait-permit') return `waits for ${name}`;
  if (kind === 'wait-lease') return `waits for an instance of ${name}`;
  return kind === 'permit' ? `permit of ${name}` : name;
};

/** Distributes a request's spans over tracks, so that spans of one track are nested or disjoint. */
function nested(spans: readonly DrawnSpan[]): DrawnSpan[][] {
  const tracks: { slices: DrawnSpan[]; enclosing: DrawnSpan[] }[] = [];
  // Longer slices first, so that they enclose shorter ones with the same start.
  const slices = spans.toSorted((a, b) => a.startMs - b.startMs || b.endMs - a.endMs);
  for (const slice of slices) {
    let track = tracks.find(({ enclosing }) => fits(enclosing, slice));
    if (track === undefined) {
      track = { slices: [], enclosing: [] };
      tracks.push(track);
    }
    track.slices.push(slice);
    track.enclosing.push(slice);
  }
  return tracks.map((track) => track.slices);
}

/** Whether the slice lies within the innermost slice that is open at its start. */
function fits(enclosing: DrawnSpan[], { startMs, endMs }: DrawnSpan): boolean {
  while (enclosing.length > 0 && (enclosing.at(-1)?.endMs ?? 0) <= startMs) enclosing.pop();
  const innermost = enclosing.at(-1);
  return innermost === undefined || endMs <= innermost.endMs;
}

/** The numbers of waiting and of running requests over time. */
function counters(drawn: readonly DrawnRequest[], trace: TraceWriter): void {
  const pid = trace.process('counts');
  const count = (name: string, kinds: readonly TimelineSpan['kind'][]): void => {
    const steps = drawn
      .flatMap(({ spans }) => spans.filter(({ kind }) => kinds.includes(kind)))
      .flatMap(({ startMs, endMs }) => [[startMs, 1] as const, [endMs, -1] as const])
      .sort(([a, up], [b, down]) => a - b || up - down);
    let value = 0;
    for (const [atMs, change] of steps) {
      value += change;
      trace.counter(pid, name, atMs, value);
    }
  };
  count('waiting', ['wait-permit', 'wait-lease']);
  count('leased', ['lease']);
}

const micros = (ms: number): number => Math.round(ms * 1_000);
