import type { TaskIds } from '../hooks/events.js';
import type { TimelineRequest, TimelineSpan, TimelineSpanKind } from './timeline-data.js';

type Writable<T> = { -readonly [K in keyof T]: T[K] };
/** A span that may still be going on. */
export type OpenSpan = Writable<TimelineSpan>;

/**
 * One request while it is recorded.
 *
 * Invariants: a span is in `#open` from its beginning to its end and no longer; at most `maxSpans` are kept, the earliest.
 */
export class RequestRecord {
  readonly ids: TaskIds;
  /** Spans left out because there were too many. */
  leftSpans = 0;
  readonly #startMs: number;
  readonly #maxSpans: number;
  readonly #spans: OpenSpan[] = [];
  #open: OpenSpan[] = [];
  /** Where a manager tells of the request, its end is what the manager says. */
  #managed = false;
  #endMs: number | undefined;
  #outcome: string | undefined;

  constructor(ids: TaskIds, startMs: number, maxSpans: number) {
    this.ids = ids;
    this.#startMs = startMs;
    this.#maxSpans = maxSpans;
  }

  manage(): void {
    this.#managed = true;
  }

  /** The manager has said how it ended. */
  get ended(): boolean {
    return this.#endMs !== undefined;
  }

  /** Nothing of it goes on, so that it may be forgotten. */
  get over(): boolean {
    return this.#open.length === 0 && (this.ended || !this.#managed);
  }

  finish(endMs: number, outcome: string): void {
    this.#endMs = endMs;
    this.#outcome = outcome;
  }

  /** Without a manager a rejection is all that tells of an outcome. */
  rejected(reason: string): void {
    this.#outcome ??= reason;
  }

  begin(span: TimelineSpan): void {
    if (this.#spans.length >= this.#maxSpans) {
      this.leftSpans++;
      return;
    }
    const open = { ...span };
    this.#spans.push(open);
    this.#open.push(open);
  }

  /** A span known only now that it is over. */
  add(span: TimelineSpan & { readonly endMs: number }): void {
    if (span.endMs <= span.startMs && span.kind.startsWith('wait-')) return;
    if (this.#spans.length >= this.#maxSpans) this.leftSpans++;
    else this.#spans.push({ ...span });
  }

  /** The oldest span of this kind and name that goes on; where there can be several at once, the one with this id. */
  open(kind: TimelineSpanKind, name: string, id?: number): OpenSpan | undefined {
    return this.#open.find((span) => span.kind === kind && span.name === name && id === idOf(span));
  }

  end(span: OpenSpan, endMs: number, outcome?: string): void {
    span.endMs = endMs;
    if (outcome !== undefined) span.outcome = outcome;
    this.#open.splice(this.#open.indexOf(span), 1);
    // No time was spent on it.
    if (span.kind.startsWith('wait-') && endMs <= span.startMs) {
      this.#spans.splice(this.#spans.lastIndexOf(span), 1);
    }
  }

  /** What has been recorded, its times moved by `shiftMs`. */
  data(shiftMs: number): TimelineRequest {
    const spans = this.#spans.map((span) => moved(span, shiftMs));
    const lastMs = this.#spans.reduce((last, { endMs = last }) => Math.max(last, endMs), this.#startMs);
    const endMs = this.over ? Math.max(this.#endMs ?? lastMs, lastMs) : undefined;
    return {
      ...this.ids,
      startMs: this.firstMs + shiftMs,
      ...(endMs === undefined ? {} : { endMs: endMs + shiftMs }),
      ...(this.#outcome === undefined ? {} : { outcome: this.#outcome }),
      spans,
    };
  }

  /** When the first thing of it began; a wait may be told of only when it ends. */
  get firstMs(): number {
    return this.#spans.reduce((first, { startMs }) => Math.min(first, startMs), this.#startMs);
  }
}

const idOf = (span: TimelineSpan): number | undefined =>
  span.kind === 'tool' ? span.toolCallId : (span.callId ?? span.instanceId);

const moved = (span: OpenSpan, shiftMs: number): TimelineSpan => ({
  ...span,
  startMs: span.startMs + shiftMs,
  ...(span.endMs === undefined ? {} : { endMs: span.endMs + shiftMs }),
});
