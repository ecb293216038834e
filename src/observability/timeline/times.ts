import type { TimelineData, TimelineRequest, TimelineSpan } from './data.js';

interface Times {
  startMs?: number;
  readyMs?: number;
  endMs?: number;
}

/** A copy of a span, request or instance, its times changed. */
export function withTimes<T extends Times>(piece: T, change: (ms: number) => number): T {
  const copy = { ...piece };
  for (const time of ['startMs', 'readyMs', 'endMs'] as const) {
    if (copy[time] !== undefined) copy[time] = change(copy[time]);
  }
  return copy;
}

/** A request as it is drawn: with a name, and spans that all end. */
export interface DrawnRequest extends TimelineRequest {
  readonly name: string;
  readonly spans: readonly DrawnSpan[];
}

export interface DrawnSpan extends TimelineSpan {
  readonly endMs: number;
}

/** The requests of a recording as they are drawn: spans in progress end at the present. */
export const drawnRequests = ({ requests, endMs }: TimelineData): DrawnRequest[] =>
  requests.map((request) => ({
    ...request,
    name: request.taskId ?? 'unnamed',
    spans: request.spans.map((span) => ({ ...span, endMs: span.endMs ?? endMs })),
  }));

/** What a request ran on: its leases or, if it never waited for one, its permits. */
export function heldSpans(spans: readonly DrawnSpan[]): DrawnSpan[] {
  const leases = spans.filter(({ kind }) => kind === 'lease');
  const usesPool = leases.length > 0 || spans.some(({ kind }) => kind === 'wait-lease');
  return usesPool ? leases : spans.filter(({ kind }) => kind === 'permit');
}
