/**
 * Records what each request spends its time on, and draws it.
 *
 * - `timeline.ts`: `recordTimeline`, `drawTimelines` and the recorded `Timeline`.
 * - `recorder.ts`: listens to the events; `records.ts` keeps requests and instances in bounded memory.
 * - `data.ts`: the recorded data; `times.ts`: the same as it is drawn, scaled and without open ends.
 * - `layout.ts`: rows, bars and strips; `svg.ts` and `svg-primitives.ts` draw them.
 * - `text.ts`: the drawing for terminals. `chrome-trace.ts`: the export for Perfetto.
 *
 * @module pipeline-pool/timeline
 */

import type { LifecycleHooks } from '../../hooks/lifecycle-hooks.js';
import { nowMs } from '../../internal/clock.js';
import {
  clock,
  finiteNumber,
  oneOf,
  options as readOptions,
  refusal,
  wholeNumber,
} from '../../internal/validate.js';
import { type ChromeTrace, toChromeTrace } from './chrome-trace.js';
import type { TimelineData } from './data.js';
import { layOut, type TimelineLanes } from './layout.js';
import { TimelineRecorder } from './recorder.js';
import { drawSvg } from './svg.js';
import { drawText } from './text.js';
import { withTimes } from './times.js';

export type { ChromeTrace, ChromeTraceEvent } from './chrome-trace.js';
export type * from './data.js';
export type { TimelineLanes } from './layout.js';

/** Options of `recordTimeline`. */
export interface TimelineOptions {
  /**
   * Maximum number of recorded requests. The oldest finished request makes room for a new one.
   * @default 500
   */
  readonly maxRequests?: number;
  /**
   * Maximum number of spans per request; later ones are omitted. A call takes about three.
   * @default 1000
   */
  readonly maxSpansPerRequest?: number;
  /**
   * A monotonic clock, in milliseconds.
   * @default performance.now
   */
  readonly now?: () => number;
}

/** Options of a picture. */
export interface DrawOptions {
  /**
   * The title above the picture.
   * @default none
   */
  readonly title?: string;
  /**
   * Width in pixels, 320 to 8,192.
   * @default 960
   */
  readonly width?: number;
  /**
   * `instances`: a row for each slot of the pools, waiting requests below. `requests`: a row for each request.
   * @default 'instances'
   */
  readonly lanes?: TimelineLanes;
  /**
   * Factor for all times, for example 100 for a recording of a simulation at a hundredth of the real times.
   * @default 1
   */
  readonly timeScale?: number;
}

/** Options of `toText`. */
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

/**
 * A recording of what each request spent its time on: waits, leases, calls and tools. Returned by `recordTimeline`.
 *
 * @example
 * using timeline = recordTimeline(hooks);
 * await manager.run('task-1', answer);
 * console.log(timeline.toText());
 */
export class Timeline implements Disposable {
  readonly #recorder: TimelineRecorder;

  /** @internal */
  constructor(recorder: TimelineRecorder) {
    this.#recorder = recorder;
  }

  /** Stops the recording. The recorded data is kept. */
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

  /** A trace for ui.perfetto.dev and chrome://tracing; write it to a file with `JSON.stringify`. */
  toChromeTrace(): ChromeTrace {
    return toChromeTrace(this.toJSON());
  }

  /** An SVG picture in the reader's preferred color scheme, light or dark. `drawTimelines` combines several recordings. */
  toSvg(options: DrawOptions = {}): string {
    return drawTimelines([{ title: '', timeline: this }], options);
  }

  /** A drawing with block characters, for terminals: a row for each request, with what it waited for. */
  toText(options: TextOptions = {}): string {
    readOptions('toText', options, ['columns', 'timeScale']);
    const { columns = 100 } = options;
    wholeNumber('columns', columns, 40, 1_000);
    return drawText(scaled(this.toJSON(), timeScaleOf(options)), columns);
  }
}

/**
 * Records what each request spends its time on, in bounded memory. Works with a manager, and with a pool and a limiter alone
 * if their callers pass a `taskId`.
 *
 * @throws {TypeError | RangeError} for an invalid option, naming the option and the value
 * @example
 * const timeline = recordTimeline(hooks);
 * await Promise.all(questions.map((question) => manager.run(question.id, answer)));
 * timeline.stop();
 * console.log(timeline.toText());
 * await writeFile('timeline.svg', timeline.toSvg({ title: 'Three questions' }));
 */
export function recordTimeline(hooks: LifecycleHooks, options: TimelineOptions = {}): Timeline {
  readOptions('recordTimeline', options, ['maxRequests', 'maxSpansPerRequest', 'now']);
  const { maxRequests = 500, maxSpansPerRequest = 1_000, now = nowMs } = options;
  wholeNumber('maxRequests', maxRequests);
  wholeNumber('maxSpansPerRequest', maxSpansPerRequest);
  clock('now', now);
  return new Timeline(new TimelineRecorder(hooks, maxRequests, maxSpansPerRequest, now));
}

/**
 * Draws several recordings below each other on one time axis, as SVG. A recording with as many requests as the first one
 * states its speedup.
 *
 * @throws {TypeError | RangeError} for an invalid option, naming the option and the value
 * @example
 * drawTimelines([{ title: 'In turn', timeline: inTurn }, { title: 'Pooled', timeline: pooled }], { title: 'Three requests' });
 */
export function drawTimelines(panels: readonly TimelinePanel[], options: DrawOptions = {}): string {
  readOptions('drawTimelines', options, ['title', 'width', 'lanes', 'timeScale']);
  const { title = '', width = 960, lanes = 'instances' } = options;
  if (typeof title !== 'string') throw new TypeError(refusal('title', 'a string', title));
  wholeNumber('width', width, 320, 8_192);
  oneOf('lanes', lanes, ['instances', 'requests']);
  const timeScale = timeScaleOf(options);
  const recordings = panels.map(({ timeline }) => scaled(timeline.toJSON(), timeScale));
  // A pixel's width.
  const leastWaitMs = Math.max(0, ...recordings.map(({ endMs }) => endMs)) / width;
  const drawn = recordings.map((data, i) => ({
    title: panels[i]?.title ?? '',
    layout: layOut(data, lanes, leastWaitMs),
  }));
  return drawSvg(drawn, title, width);
}

const timeScaleOf = ({ timeScale = 1 }: { readonly timeScale?: number }): number =>
  finiteNumber('timeScale', timeScale, 1e-6, 1e6);

function scaled(data: TimelineData, factor: number): TimelineData {
  if (factor === 1) return data;
  const scale = <T extends object>(piece: T): T => withTimes(piece, (ms) => ms * factor);
  return {
    ...data,
    endMs: data.endMs * factor,
    requests: data.requests.map((request) => ({ ...scale(request), spans: request.spans.map(scale) })),
    instances: data.instances.map(scale),
  };
}
