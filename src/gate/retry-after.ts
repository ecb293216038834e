/**
 * When to come back, as services say it. All of these are pure, give milliseconds from now, and `undefined` for what
 * they cannot read.
 */

/** Whatever a client keeps its headers in: a `Headers`, or a plain object. */
export type HeaderSource =
  | { get(name: string): string | null | undefined }
  | Readonly<Record<string, unknown>>
  | null
  | undefined;

/** One header by its lower-case name. */
export function headerOf(headers: HeaderSource, name: string): string | undefined {
  if (typeof headers !== 'object' || headers === null) return undefined;
  if (typeof headers.get === 'function') {
    const value: unknown = headers.get(name);
    return typeof value === 'string' ? value : undefined;
  }
  for (const [key, value] of Object.entries(headers)) {
    if (key.toLowerCase() !== name) continue;
    const first: unknown = Array.isArray(value) ? value[0] : value;
    if (typeof first === 'string') return first;
    if (typeof first === 'number') return String(first);
  }
  return undefined;
}

/** A bare number of seconds, from 0; more than fifteen digits are no time that anybody meant. */
const seconds = (value: string): number | undefined =>
  /^\d{1,15}(\.\d+)?$/.test(value) ? Number(value) * 1_000 : undefined;

/**
 * `Retry-After`, in seconds or as an HTTP date (RFC 9110, 10.2.3). A date is read against the answer's own `Date`
 * where it has one: the two clocks need not agree.
 */
export function parseRetryAfter(value: string, date?: string): number | undefined {
  const text = value.trim();
  const ms = seconds(text);
  if (ms !== undefined) return ms;
  // Anything that is not a date with letters in it would be a number that is not one of seconds: -1, 1e3, 2026.
  const until = /[a-z]/i.test(text) ? Date.parse(text) : Number.NaN;
  if (Number.isNaN(until)) return undefined;
  const serverNow = date === undefined ? Number.NaN : Date.parse(date);
  return Math.max(0, until - (Number.isNaN(serverNow) ? Date.now() : serverNow));
}

const GO_UNITS: Readonly<Record<string, number>> = {
  h: 3_600_000,
  m: 60_000,
  s: 1_000,
  ms: 1,
  us: 1e-3,
  µs: 1e-3,
  μs: 1e-3,
  ns: 1e-6,
};

/** A duration as Go prints it (`12ms`, `6m0s`, `1h23m31s`), or a bare number of seconds. */
export function parseGoDuration(value: string): number | undefined {
  const text = value.trim();
  const ms = seconds(text);
  if (ms !== undefined) return ms;
  if (!/^(\d+(\.\d+)?(h|ms|m|s|us|µs|μs|ns))+$/.test(text)) return undefined;
  let sum = 0;
  for (const [, count, unit] of text.matchAll(/(\d+(?:\.\d+)?)(h|ms|m|s|us|µs|μs|ns)/g)) {
    sum += Number(count) * (GO_UNITS[unit as string] as number);
  }
  return sum;
}

/** A reset that may be a number of seconds, or a moment in seconds or milliseconds since 1970. */
function parseReset(value: string): number | undefined {
  const ms = parseGoDuration(value);
  if (ms === undefined || ms < 1e12) return ms;
  const moment = ms < 1e15 ? ms : ms / 1_000;
  return Math.max(0, moment - Date.now());
}

/** OpenAI's pair of limits: the one that is used up says when to come back. */
function parseUsedUp(headers: HeaderSource): number | undefined {
  let usedUp: number | undefined;
  let soonest: number | undefined;
  for (const kind of ['requests', 'tokens']) {
    const reset = headerOf(headers, `x-ratelimit-reset-${kind}`);
    const ms = reset === undefined ? undefined : parseGoDuration(reset);
    if (ms === undefined) continue;
    soonest = Math.min(soonest ?? ms, ms);
    const remaining = headerOf(headers, `x-ratelimit-remaining-${kind}`);
    if (remaining === undefined || Number(remaining) <= 0) usedUp = Math.max(usedUp ?? 0, ms);
  }
  return usedUp ?? soonest;
}

/**
 * When to come back, from whichever header says it: `retry-after-ms`, `Retry-After`, `x-ratelimit-reset-requests` and
 * `-tokens`, `RateLimit-Reset`, `X-RateLimit-Reset`, in this order.
 */
export function retryAfterMsOf(headers: HeaderSource): number | undefined {
  const exact = headerOf(headers, 'retry-after-ms');
  const exactMs = exact === undefined ? undefined : seconds(exact.trim());
  if (exactMs !== undefined) return exactMs / 1_000;
  const after = headerOf(headers, 'retry-after');
  const afterMs = after === undefined ? undefined : parseRetryAfter(after, headerOf(headers, 'date'));
  if (afterMs !== undefined) return afterMs;
  const usedUp = parseUsedUp(headers);
  if (usedUp !== undefined) return usedUp;
  const reset = headerOf(headers, 'ratelimit-reset') ?? headerOf(headers, 'x-ratelimit-reset');
  return reset === undefined ? undefined : parseReset(reset);
}
