import type { TimelineData, TimelineRequest, TimelineSpan } from './timeline-data.js';

/** An event of the Trace Event Format; times are microseconds. */
export interface ChromeTraceEvent {
  readonly name: string;
  /** `X` a slice, `M` a name of a process or thread, `C` a counter. */
  readonly ph: 'X' | 'M' | 'C';
  readonly pid: number;
  readonly tid: number;
  readonly ts: number;
  readonly dur?: number;
  readonly cat?: string;
  readonly args?: Readonly<Record<string, unknown>>;
}

/** A trace that ui.perfetto.dev and chrome://tracing open. */
export interface ChromeTrace {
  readonly traceEvents: readonly ChromeTraceEvent[];
  readonly displayTimeUnit: 'ms';
  readonly otherData: Readonly<Record<string, unknown>>;
}

type Slice = TimelineSpan & { readonly endMs: number };

/**
 * Writes a recording as a Chrome trace: the pools' slots as one process, each slot a thread; the requests as another,
 * each request with a thread for itself and further ones for what goes on in it at once.
 *
 * Slices of one thread must lie inside each other or apart, so what overlaps gets a thread of its own.
 *
 * @see https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU the Trace Event Format
 */
export function toChromeTrace(data: TimelineData): ChromeTrace {
  const trace = new TraceWriter();
  slots(data, trace);
  requests(data, trace);
  counters(data, trace);
  return {
    traceEvents: trace.events,
    displayTimeUnit: 'ms',
    otherData: { startedAt: data.startedAt, ...data.left },
  };
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

  thread(pid: number, name: string): number {
    const tid = ++this.#tid;
    this.#meta('thread_name', pid, tid, { name });
    this.#meta('thread_sort_index', pid, tid, { sort_index: tid });
    return tid;
  }

  slice(
    pid: number,
    tid: number,
    name: string,
    cat: string,
    startMs: number,
    endMs: number,
    args: object,
  ): void {
    const ts = micros(startMs);
    const dur = micros(endMs) - ts;
    this.events.push({ name, ph: 'X', pid, tid, ts, dur, cat, args: { ...args } });
  }

  counter(pid: number, name: string, atMs: number, value: number): void {
    this.events.push({ name, ph: 'C', pid, tid: 0, ts: micros(atMs), args: { [name]: value } });
  }

  #meta(name: string, pid: number, tid: number, args: Readonly<Record<string, unknown>>): void {
    this.events.push({ name, ph: 'M', pid, tid, ts: 0, args });
  }
}

function slots({ instances, requests, endMs }: TimelineData, trace: TraceWriter): void {
  const leases = requests.flatMap((request) =>
    ended(request.spans, endMs)
      .filter(({ kind }) => kind === 'lease')
      .map((span) => ({ span, request })),
  );
  const pools = new Set([...instances.map(({ pool }) => pool), ...leases.map(({ span }) => span.name)]);
  for (const pool of pools) {
    const pid = trace.process(`pool ${pool}`);
    const mine = leases.filter(({ span }) => span.name === pool);
    const lanes = new Set([
      ...instances.filter((instance) => instance.pool === pool).map(({ lane }) => lane),
      ...mine.map(({ span }) => span.lane ?? 0),
    ]);
    for (const lane of [...lanes].sort((a, b) => a - b)) {
      const tid = trace.thread(pid, `slot ${lane + 1}`);
      for (const { pool: name, lane: at, instanceId, startMs, readyMs, endMs: goneMs } of instances) {
        if (name !== pool || at !== lane || startMs === undefined) continue;
        trace.slice(
          pid,
          tid,
          `create instance ${instanceId}`,
          'create',
          startMs,
          readyMs ?? goneMs ?? endMs,
          {
            instanceId,
          },
        );
      }
      for (const { span, request } of mine) {
        if ((span.lane ?? 0) !== lane) continue;
        const { taskId, requestId, tenant, outcome } = request;
        const args = { taskId, requestId, tenant, outcome, instanceId: span.instanceId };
        trace.slice(pid, tid, taskId ?? 'unnamed', 'lease', span.startMs, span.endMs, args);
      }
    }
  }
}

function requests({ requests, endMs }: TimelineData, trace: TraceWriter): void {
  if (requests.length === 0) return;
  const pid = trace.process('requests');
  for (const request of requests) {
    const name = request.taskId ?? 'unnamed';
    const tracks = nested(request, endMs);
    tracks.forEach((track, i) => {
      const tid = trace.thread(pid, i === 0 ? name : `${name} (${i + 1})`);
      for (const slice of track) {
        const { kind, startMs, endMs: toMs, name: source, ...rest } = slice;
        trace.slice(pid, tid, titleOf(slice), kind, startMs, toMs, { source, ...rest });
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

/** Spreads a request's spans over tracks, in each of which they lie inside each other or apart. */
function nested({ spans }: TimelineRequest, nowMs: number): Slice[][] {
  const tracks: { slices: Slice[]; around: Slice[] }[] = [];
  // The longer first, so that it lies around the shorter that begins with it.
  const slices = ended(spans, nowMs).toSorted((a, b) => a.startMs - b.startMs || b.endMs - a.endMs);
  for (const slice of slices) {
    let track = tracks.find(({ around }) => fits(around, slice));
    if (track === undefined) {
      track = { slices: [], around: [] };
      tracks.push(track);
    }
    track.slices.push(slice);
    track.around.push(slice);
  }
  return tracks.map((track) => track.slices);
}

/** Whether the slice lies wholly inside the innermost of those that go on when it begins. */
function fits(around: Slice[], { startMs, endMs }: Slice): boolean {
  while (around.length > 0 && (around.at(-1)?.endMs ?? 0) <= startMs) around.pop();
  const innermost = around.at(-1);
  return innermost === undefined || endMs <= innermost.endMs;
}

/** How many requests wait and how many run. */
function counters({ requests, endMs }: TimelineData, trace: TraceWriter): void {
  const pid = trace.process('counts');
  const count = (name: string, kinds: readonly TimelineSpan['kind'][]): void => {
    const steps = requests
      .flatMap(({ spans }) => ended(spans, endMs).filter(({ kind }) => kinds.includes(kind)))
      .flatMap(({ startMs, endMs: toMs }) => [[startMs, 1] as const, [toMs, -1] as const])
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

const ended = (spans: readonly TimelineSpan[], nowMs: number): Slice[] =>
  spans.map((span) => ({ ...span, endMs: span.endMs ?? nowMs }));

const micros = (ms: number): number => Math.round(ms * 1_000);
