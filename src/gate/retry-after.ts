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
 * The form of date that HTTP prescribes (RFC 9110, 5.6.7). `Date.parse` finds one in almost any text with a number, and
 * the two obsolete forms leave the century or the zone to be guessed.
 */
const HTTP_DATE = /^[A-Z][a-z]{2}, \d{1,2} [A-Z][a-z]{2} \d{4} \d{2}:\d{2}:\d{2} \S+$/;
const parseHttpDate = (value: string): number => (HTTP_DATE.test(value) ? Date.parse(value) : Number.NaN);

/**
 * `Retry-After`, in seconds or as an HTTP date (RFC 9110, 10.2.3). A date is read against the answer's own `Date`
 * where it has one: the two clocks need not agree.
 */
export function parseRetryAfter(value: string, date = ''): number | undefined {
  const text = value.trim();
  const ms = seconds(text);
  if (ms !== undefined) return ms;
  const until = parseHttpDate(text);
  if (Number.isNaN(until)) return undefined;
  const serverNow = parseHttpDate(date.trim());
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

/** Where services tell what is left of their limits, and when all of it is back; OpenAI has the first two. */
const LIMITS: readonly (readonly [remaining: string, reset: string])[] = [
  ['x-ratelimit-remaining-requests', 'x-ratelimit-reset-requests'],
  ['x-ratelimit-remaining-tokens', 'x-ratelimit-reset-tokens'],
  ['ratelimit-remaining', 'ratelimit-reset'],
  ['x-ratelimit-remaining', 'x-ratelimit-reset'],
];
const RESET = 'x-ratelimit-reset-';

/** These, and whatever else an answer has of that kind: `x-ratelimit-reset-tokens-minute`, say. */
function limitsIn(headers: HeaderSource): typeof LIMITS {
  const names = namesOf(headers).filter((name) => name.startsWith(RESET));
  return [
    ...LIMITS,
    ...names.map((name) => [`x-ratelimit-remaining-${name.slice(RESET.length)}`, name] as const),
  ];
}

function namesOf(headers: HeaderSource): readonly string[] {
  if (typeof headers !== 'object' || headers === null) return [];
  const { get, keys } = headers as Partial<Headers>;
  if (typeof get !== 'function') return Object.keys(headers).map((name) => name.toLowerCase());
  return typeof keys === 'function' ? [...(headers as Headers).keys()] : [];
}

/**
 * When the limit is back that refused a call: the one that is used up. A 429 may be for one that is not: what is left
 * of the tokens was too little. A 503 is about a limit only if one is used up, and other failures never are: services
 * tell of their limits with every answer.
 */
function resetMsOf(status: number, headers: HeaderSource): number | undefined {
  if (status !== 429 && status !== 503) return undefined;
  let usedUp = 0;
  let last = 0;
  for (const [remaining, reset] of limitsIn(headers)) {
    const ms = parseReset(headerOf(headers, reset) ?? '') ?? 0;
    last = Math.max(last, ms);
    if (/^\s*0+\s*$/.test(headerOf(headers, remaining) ?? '')) usedUp = Math.max(usedUp, ms);
  }
  return usedUp > 0 || status === 503 ? usedUp : last;
}

/**
 * When to come back after an answer with this status: `retry-after-ms`, `Retry-After`, or the reset of a limit, in this
 * order. 0 says nothing: whoever took it at its word would ask again and again.
 */
export function retryAfterMsOf(status: number, headers: HeaderSource): number | undefined {
  const exactMs = seconds(headerOf(headers, 'retry-after-ms')?.trim() ?? '') ?? 0;
  const afterMs = parseRetryAfter(headerOf(headers, 'retry-after') ?? '', headerOf(headers, 'date'));
  return exactMs / 1_000 || afterMs || resetMsOf(status, headers) || undefined;
}
