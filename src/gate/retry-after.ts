/**
 * When to come back, as services say it. All of these functions are pure; they return milliseconds from now, and
 * `undefined` for what they cannot read.
 *
 * A foreign object is read by the names of fields, and never listed: to list a million of them takes a second, and V8
 * has no way to list only the first.
 */
import { fieldOf } from '../internal/redaction.js';

/** Headers as a client keeps them: a `Headers`, or a plain object. */
export type HeaderSource =
  | { get(name: string): string | null | undefined }
  | Readonly<Record<string, unknown>>
  | null
  | undefined;

/** One header by its lower-case name. Never throws. */
export function headerOf(headers: HeaderSource, name: string): string | undefined {
  if (typeof headers !== 'object' || headers === null) return undefined;
  try {
    if (typeof headers.get === 'function') return textIn(headers.get(name));
    for (const spelling of spellingsOf(name)) {
      const text = textIn((headers as Readonly<Record<string, unknown>>)[spelling]);
      if (text !== undefined) return text;
    }
  } catch {
    // A client's headers that cannot be read say nothing.
  }
  return undefined;
}

const spellings = /* @__PURE__ */ new Map<string, readonly string[]>();

/** How clients write the name of a header in a plain object. */
function spellingsOf(name: string): readonly string[] {
  let all = spellings.get(name);
  if (all === undefined) {
    const title = name.replace(/\b[a-z]/g, (letter) => letter.toUpperCase());
    all = [name, title, title.replace('Ratelimit', 'RateLimit'), name.toUpperCase()];
    // The names are constants of the library: those that a service chooses are read from `Headers`.
    spellings.set(name, all);
  }
  return all;
}

const MAX_HEADER_CHARS = 2_000;

/** The value of a header, or the first of a list of them. */
function textIn(value: unknown): string | undefined {
  const first: unknown = Array.isArray(value) ? value[0] : value;
  return typeof first === 'string' || typeof first === 'number'
    ? String(first).slice(0, MAX_HEADER_CHARS)
    : undefined;
}

/**
 * A number of seconds, or of what else is `unitMs` long. From 31 years on it is a time since 1970: no service asks for such
 * a wait.
 */
function durationIn(text: string, unitMs = 1_000): number | undefined {
  if (!/^\d{1,15}(\.\d+)?$/.test(text)) return undefined;
  const ms = Number(text) * unitMs;
  if (ms < 1e12) return ms;
  // Seconds, milliseconds or microseconds since 1970, each taken for seconds.
  const epochMs = ms < 1e14 ? ms : ms < 1e17 ? ms / 1e3 : ms / 1e6;
  return Math.max(0, epochMs - Date.now());
}

/** The three forms of a date in HTTP (RFC 9110, 5.6.7), and ISO 8601. `Date.parse` finds a date in almost any text. */
const IMF_DATE = /^[A-Z][a-z]{2}, \d{1,2} [A-Z][a-z]{2} \d{4} \d{2}:\d{2}:\d{2} \S+$/;
const RFC_850_DATE = /^[A-Z][a-z]+day, (\d{2})-([A-Z][a-z]{2})-(\d{2}) (\d{2}:\d{2}:\d{2}) GMT$/;
const ASCTIME_DATE = /^[A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d \d{2}:\d{2}:\d{2} \d{4}$/;
const ISO_DATE = /^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}(:\d{2}(\.\d+)?)?(Z|[+-]\d{2}:?\d{2})$/;

/** A date as milliseconds since 1970; `NaN` if it is none. */
function parseDate(value: string): number {
  if (IMF_DATE.test(value) || ISO_DATE.test(value)) return Date.parse(value);
  if (ASCTIME_DATE.test(value)) return Date.parse(`${value} GMT`);
  const short = RFC_850_DATE.exec(value);
  if (short === null) return Number.NaN;
  const [, day, month, year, time] = short;
  const century = Math.floor(new Date().getUTCFullYear() / 100) * 100;
  const ms = Date.parse(`${day} ${month} ${century + Number(year)} ${time} GMT`);
  // More than 50 years in the future is the last century.
  return ms - Date.now() > 50 * 31_557_600_000
    ? Date.parse(`${day} ${month} ${century - 100 + Number(year)} ${time} GMT`)
    : ms;
}

/**
 * `Retry-After`: seconds, or an HTTP date (RFC 9110, 10.2.3); a time since 1970 is read as such. A date is relative to the
 * `Date` of the same response, if it has one: the two clocks need not agree.
 */
export function parseRetryAfter(value: string, date = ''): number | undefined {
  const text = value.trim();
  const ms = durationIn(text);
  if (ms !== undefined) return ms;
  const until = parseDate(text);
  if (Number.isNaN(until)) return undefined;
  const serverNow = parseDate(date.trim());
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
  const ms = durationIn(text);
  if (ms !== undefined) return ms;
  if (!/^(\d+(\.\d+)?(h|ms|m|s|us|\u00b5s|\u03bcs|ns))+$/.test(text)) return undefined;
  let sum = 0;
  for (const [, count, unit] of text.matchAll(/(\d+(?:\.\d+)?)(h|ms|m|s|us|\u00b5s|\u03bcs|ns)/g)) {
    sum += Number(count) * (GO_UNITS[unit as string] as number);
  }
  return sum;
}

/** A reset: a duration, a number of seconds, a time since 1970 in seconds or milliseconds, or a date. */
function parseReset(value: string): number | undefined {
  const text = value.trim();
  return parseGoDuration(text) ?? (ISO_DATE.test(text) ? parseRetryAfter(text) : undefined);
}

/**
 * Where services say when a limit is reset; OpenAI has the first two. The headers with `remaining` and `limit` in place of
 * `reset` say how much is left of it, and of how much.
 */
const RESETS: readonly string[] = [
  'x-ratelimit-reset-requests',
  'x-ratelimit-reset-tokens',
  'ratelimit-reset',
  'x-ratelimit-reset',
];
/** The same of Anthropic, and of those that name the window, as Cerebras does. */
const otherResets = (): readonly string[] => [
  ...['requests', 'tokens', 'input-tokens', 'output-tokens'].map(
    (unit) => `anthropic-ratelimit-${unit}-reset`,
  ),
  ...['minute', 'hour', 'day'].flatMap((window) =>
    ['requests', 'tokens'].map((unit) => `x-ratelimit-reset-${unit}-${window}`),
  ),
];
/** Whether it is any of that kind. Not a regular expression: it would backtrack, in quadratic time, over a long hostile name. */
const isReset = (name: string): boolean =>
  name.startsWith('x-ratelimit-reset-') ||
  (name.endsWith('-reset') && name.slice(0, -'-reset'.length).includes('ratelimit-'));

/** These, and what else of that kind there is in `Headers`, or may be in a plain object. */
const resetsIn = (headers: HeaderSource): ReadonlySet<string> =>
  new Set([...RESETS, ...namesOf(headers).filter(isReset)]);

/** A limit that a response reports. */
export interface ReportedLimit {
  readonly name: string;
  readonly unit: 'calls' | 'weight';
  readonly limit: number;
  readonly remaining: number;
  /** Milliseconds until all of it is free again. */
  readonly resetMs: number;
  /** Milliseconds of its window, where they are reported. */
  readonly perMs?: number;
}

/** The limits of requests and tokens, with all that is known of them. */
export function reportedLimits(headers: HeaderSource): readonly ReportedLimit[] {
  const limits: ReportedLimit[] = [];
  for (const reset of resetsIn(headers)) {
    const name = reset.replace('reset', 'remaining');
    const unit = unitOf(name);
    const limit = countIn(headerOf(headers, reset.replace('reset', 'limit')));
    const remaining = countIn(headerOf(headers, name));
    const resetMs = parseReset(headerOf(headers, reset) ?? '');
    if (unit === undefined || !limit || remaining === undefined || resetMs === undefined) continue;
    limits.push({ name, unit, limit, remaining, resetMs });
  }
  // Anthropic reports the tighter of the two under `tokens`.
  const isSplit = (name: string): boolean => /-(in|out)put-tokens-/.test(name);
  const hasWhole = limits.some(({ name, unit }) => unit === 'weight' && !isSplit(name));
  return [...(hasWhole ? limits.filter(({ name }) => !isSplit(name)) : limits), ...standardLimits(headers)];
}

/** Requests, tokens, or whatever a service counts that names neither. Images and the like are not what a call weighs. */
const unitOf = (name: string): ReportedLimit['unit'] | undefined =>
  name.includes('token')
    ? 'weight'
    : name.includes('request') || /^(x-)?ratelimit-remaining$/.test(name)
      ? 'calls'
      : undefined;

const countIn = (value: string | undefined): number | undefined =>
  value !== undefined && /^\s*\d{1,15}\s*$/.test(value) ? Number(value) : undefined;

/** `RateLimit: "a";r=50;t=30` with `RateLimit-Policy: "a";q=100;w=60` (draft-ietf-httpapi-ratelimit-headers). */
function standardLimits(headers: HeaderSource): readonly ReportedLimit[] {
  const policies = itemsIn(headerOf(headers, 'ratelimit-policy'));
  return itemsIn(headerOf(headers, 'ratelimit')).flatMap(([name, { r: remaining, t = 0 }]) => {
    const policy = policies.find(([other]) => other === name)?.[1];
    if (policy?.q === undefined || policy.q === 0 || remaining === undefined) return [];
    const perMs = policy.w === undefined ? {} : { perMs: policy.w * 1_000 };
    return [{ name, unit: 'calls' as const, limit: policy.q, remaining, resetMs: t * 1_000, ...perMs }];
  });
}

/** The items of a structured list, with their numeric parameters. */
function itemsIn(value = ''): readonly (readonly [name: string, parameters: Record<string, number>])[] {
  return value.split(',').map((item) => {
    const [name = '', ...parameters] = item.split(';').map((part) => part.trim());
    const numbers = parameters
      .map((part) => part.split('='))
      .filter(([, count]) => countIn(count) !== undefined);
    return [name, Object.fromEntries(numbers.map(([key, count]) => [key, Number(count)]))] as const;
  });
}

function namesOf(headers: HeaderSource): readonly string[] {
  const names: string[] = [];
  if (typeof headers !== 'object' || headers === null) return names;
  try {
    const { get, keys } = headers as Partial<Headers>;
    if (typeof get !== 'function' || typeof keys !== 'function') return otherResets();
    for (const name of (headers as Headers).keys()) if (names.push(String(name)) === MAX_FIELDS) break;
  } catch {
    // What was read until then is read.
  }
  return names;
}

/**
 * When the limit that rejected a call is reset: the one that is used up. A 429 may be about one that is not, if too few
 * tokens were left. A 503 is about a limit only if one is used up, and other failures never are: services report their
 * limits with every response.
 */
function resetMsOf(status: number, headers: HeaderSource): number | undefined {
  if (status !== 429 && status !== 503) return undefined;
  let usedUp = 0;
  let last = 0;
  for (const reset of resetsIn(headers)) {
    const ms = parseReset(headerOf(headers, reset) ?? '') ?? 0;
    if (ms === 0) continue;
    last = Math.max(last, ms);
    if (/^\s*0+\s*$/.test(headerOf(headers, reset.replace('reset', 'remaining')) ?? ''))
      usedUp = Math.max(usedUp, ms);
  }
  return usedUp > 0 || status === 503 ? usedUp : last;
}

/**
 * When to come back after a response with this status: `retry-after-ms`, `Retry-After`, or the reset of a limit, in this
 * order. 0 means unknown: a literal 0 would make the retries a hot loop.
 */
export function retryAfterMsOf(status: number, headers: HeaderSource): number | undefined {
  const exactMs = durationIn(headerOf(headers, 'retry-after-ms')?.trim() ?? '', 1);
  const afterMs = parseRetryAfter(headerOf(headers, 'retry-after') ?? '', headerOf(headers, 'date'));
  return exactMs || afterMs || resetMsOf(status, headers) || undefined;
}

/** How deep, and how wide, a body is searched for a time. */
const MAX_DEPTH = 4;
const MAX_FIELDS = 100;
const IN_TEXT =
  /\b(?:try again|retry)(?:ing)? (?:in|after) (\d[\dhmsu.]*s|\d+(?:\.\d+)?)(?: ?(s|sec|seconds?|ms|milliseconds?|minutes?))?\b/i;

/**
 * When to come back, as a body says it: `retryDelay: "17s"` (Google), `retry_after` and its variants in seconds or
 * milliseconds, "Please try again in 1.5s" (OpenAI). 0 means unknown.
 */
export function retryAfterMsInBody(body: unknown): number | undefined {
  const parts: [value: unknown, depth: number][] = [[body, 0]];
  for (const [value, depth] of parts) {
    if (typeof value !== 'object' || value === null || depth > MAX_DEPTH) continue;
    for (const name of knownNamesOf(value)) {
      const field = fieldOf(value, name);
      const ms = timeInField(name, field);
      if (ms !== undefined && ms > 0) return ms;
      if (parts.length < MAX_FIELDS) parts.push([field, depth + 1]);
    }
  }
  return undefined;
}

/** Where bodies say when to come back, why a call failed, and what they keep either in. */
const KNOWN_FIELDS = /* @__PURE__ */ (
  'retryAfter retry_after retry-after Retry-After RetryAfter retryAfterMs retry_after_ms retry-after-ms ' +
  'retryAfterSeconds retry_after_seconds retryAfterDate retry_after_date ' +
  'retryDelay retry_delay retryDelayMs retry_delay_ms retryIn retry_in ' +
  'message type code status statusCode name object 0 error errors errorDetails innererror cause ' +
  'detail details data body response result metadata meta headers extensions parameters info context ' +
  'rate_limit rateLimit limits quota throttle'
).split(' ');

/** The fields of a foreign value that are read: those that are known, and the first items of a list. Never throws. */
export function knownNamesOf(value: object): readonly string[] {
  try {
    if (Array.isArray(value) || ArrayBuffer.isView(value)) {
      const length = Math.min(Number(fieldOf(value, 'length')), MAX_FIELDS);
      return Array.from({ length }, (_, i) => String(i));
    }
    return KNOWN_FIELDS.filter((name) => Object.hasOwn(value, name));
  } catch {
    return [];
  }
}

function timeInField(name: string, value: unknown): number | undefined {
  if (name === 'message' && typeof value === 'string') return timeInText(value.slice(0, 2_000));
  if (!/^retry[-_]?(after|delay|in)([-_]?(ms|seconds|date))?$/i.test(name)) return undefined;
  const text = typeof value === 'number' ? String(value) : typeof value === 'string' ? value.trim() : '';
  if (/ms$/i.test(name)) return durationIn(text, 1);
  return parseGoDuration(text) ?? parseRetryAfter(text);
}

function timeInText(text: string): number | undefined {
  const found = IN_TEXT.exec(text);
  if (found === null) return undefined;
  const [, count = '', unit] = found;
  if (unit === undefined || /[hms]/.test(count)) return parseGoDuration(count);
  return Number(count) * (/^m(s|illi)/i.test(unit) ? 1 : /^min/i.test(unit) ? 60_000 : 1_000);
}
