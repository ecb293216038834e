import type { LifecycleHooks } from '../hooks/lifecycle-hooks.js';
import { nowMs } from '../internal/clock.js';
import {
  callable,
  finiteNumber,
  oneOf,
  optional,
  options as readOptions,
  refusal,
  wholeNumber,
} from '../internal/validate.js';
import type { TimelineData } from './timeline-data.js';
import { layOut, type TimelineLanes } from './timeline-layout.js';
import { TimelineRecorder } from './timeline-recorder.js';
import { drawSvg } from './timeline-svg.js';
import { drawText } from './timeline-text.js';
import { type ChromeTrace, toChromeTrace } from './timeline-trace.js';

export type * from './timeline-data.js';
export type { TimelineLanes } from './timeline-layout.js';
export type { ChromeTrace, ChromeTraceEvent } from './timeline-trace.js';

/** Options of `recordTimeline`. */
export interface TimelineOptions {
  /**
   * How many requests are kept. The oldest that is over makes room for a new one.
   * @default 500
   */
  readonly maxRequests?: number;
  /**
   * How many spans of each request are kept, the earliest first. A call takes about three.
   * @default 1000
   */
  readonly maxSpansPerRequest?: number;
  /**
   * A monotonic clock in milliseconds.
   * @default performance.now
   */
  readonly now?: () => number;
}

/** Options of a picture. */
export interface DrawOptions {
  /** Stands above the picture. */
  readonly title?: string;
  /**
   * Width in pixels, 320 to 8,192.
   * @default 960
   */
  readonly width?: number;
  /**
   * `instances`: a row for each slot of the pools, and the waiting below. `requests`: a row for each request.
   * @default 'instances'
   */
  readonly lanes?: TimelineLanes;
  /**
   * What a recorded millisecond stands for; 100 for a recording made at a hundredth of the real times.
   * @default 1
   */
  readonly timeScale?: number;
}

/** Options of the drawing in a terminal. */
export interface TextOptions {
  /**
   * Width in characters, 40 to 1,000.
   * @default 100
   */
  readonly columns?: number;
  /** As in `DrawOptions`. @default 1 */
  readonly timeScale?: number;
}

/** One recording among several in a picture. */
export interface TimelinePanel {
  readonly title: string;
  readonly timeline: Timeline;
}

/** What each request spent its time on: waits, leases, calls and tools. Made by `recordTimeline`. */
export class Timeline implements Disposable {
  readonly #recorder: TimelineRecorder;

  /** @internal */
  constructor(recorder: TimelineRecorder) {
    this.#recorder = recorder;
  }

  /** Ends the recording. What was recorded stays. */
  stop(): void {
    this.#recorder.stop();
  }

  [Symbol.dispose](): void {
    this.stop();
  }

  /** The recording as plain data. */
  toJSON(): TimelineData {
    return this.#recorder.data();
  }

  /** A trace that ui.perfetto.dev and chrome://tracing open, once written to a file with `JSON.stringify`. */
  toChromeTrace(): ChromeTrace {
    return toChromeTrace(this.toJSON());
  }

  /** A picture that follows the reader's preference for light or dark. Put several side by side with `drawTimelines`. */
  toSvg(options: DrawOptions = {}): string {
    return drawTimelines([{ title: '', timeline: this }], options);
  }

  /** A drawing in block characters, a row for each request with what it waited for. */
  toText(options: TextOptions = {}): string {
    readOptions('toText', options, ['columns', 'timeScale']);
    const columns = optional('columns', options.columns, (name, value) =>
      wholeNumber(name, value, 40, 1_000),
    );
    return drawText(scaled(this.toJSON(), timeScaleOf(options)), columns ?? 100);
  }
}

/**
 * Records what each request spends its time on, in bounded memory. Works with a manager, and with pool and limiter
 * alone where they are given a `taskId`.
 *
 * @throws TypeError or RangeError for a wrong option
 * @example
 * const timeline = recordTimeline(hooks);
 * await Promise.all(questions.map((question) => manager.run(question.id, answer)));
 * timeline.stop();
 * console.log(timeline.toText());
 * await writeFile('timeline.svg', timeline.toSvg({ title: 'Three questions' }));
 */
export function recordTimeline(hooks: LifecycleHooks, options: TimelineOptions = {}): Timeline {
  readOptions('recordTimeline', options, ['maxRequests', 'maxSpansPerRequest', 'now']);
  const maxRequests = optional('maxRequests', options.maxRequests, wholeNumber) ?? 500;
  const maxSpans = optional('maxSpansPerRequest', options.maxSpansPerRequest, wholeNumber) ?? 1_000;
  const now = optional('now', options.now, callable) ?? nowMs;
  return new Timeline(new TimelineRecorder(hooks, maxRequests, maxSpans, now));
}

/**
 * Draws several recordings below each other on one scale, so that their lengths can be compared. Recordings of as many
 * requests as the first say how many times as fast they were.
 *
 * @throws TypeError or RangeError for a wrong option
 * @example
 * drawTimelines([{ title: 'In turn', timeline: inTurn }, { title: 'Pooled', timeline: pooled }], { title: 'Three requests' });
 */
export function drawTimelines(panels: readonly TimelinePanel[], options: DrawOptions = {}): string {
  readOptions('drawTimelines', options, ['title', 'width', 'lanes', 'timeScale']);
  const { title = '' } = options;
  if (typeof title !== 'string') throw new TypeError(refusal('title', 'a string', title));
  const width =
    optional('width', options.width, (name, value) => wholeNumber(name, value, 320, 8_192)) ?? 960;
  const lanes = optional('lanes', options.lanes, (name, value) =>
    oneOf(name, value, ['instances', 'requests']),
  );
  const timeScale = timeScaleOf(options);
  const recordings = panels.map(({ timeline }) => scaled(timeline.toJSON(), timeScale));
  // Less than a pixel.
  const leastWaitMs = Math.max(0, ...recordings.map(({ endMs }) => endMs)) / width;
  const drawn = recordings.map((data, i) => ({
    title: panels[i]?.title ?? '',
    layout: layOut(data, lanes ?? 'instances', leastWaitMs),
  }));
  return drawSvg(drawn, title, width);
}

const timeScaleOf = ({ timeScale }: { readonly timeScale?: number }): number =>
  optional('timeScale', timeScale, (name, value) => finiteNumber(name, value, 1e-6, 1e6)) ?? 1;

const TIMES = ['startMs', 'readyMs', 'endMs'] as const;

function scaled(data: TimelineData, factor: number): TimelineData {
  if (factor === 1) return data;
  const scale = <T extends object>(piece: T): T => {
    const times = piece as Partial<Record<(typeof TIMES)[number], number>>;
    const changed = TIMES.filter((time) => times[time] !== undefined);
    return { ...piece, ...Object.fromEntries(changed.map((time) => [time, (times[time] ?? 0) * factor])) };
  };
  return {
    ...data,
    endMs: data.endMs * factor,
    requests: data.requests.map((request) => ({ ...scale(request), spans: request.spans.map(scale) })),
    instances: data.instances.map(scale),
  };
}
