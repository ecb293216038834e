/**
 * The only way in which anything of a foreign error gets into events, logs, metrics, spans, the timeline, the live page
 * and answers for agents.
 *
 * Invariants:
 * - Of an error only its name, `code`, `status` and message are read, and the same of its causes, at most four deep.
 * - No read of a foreign error throws: throwing getters, revoked proxies, symbols and cycles give a readable summary.
 * - A message is cut to 2,000 characters before anything else, so the cost of an error does not grow with its size.
 * - Redaction is linear: one scan for all keys together, one regular expression without nested repetition.
 * - The keys are shared by all copies of this package in one process.
 */

import { ignoreRejection } from './abort.js';

import { type ErrorSummary, type Redact, summarizeWith, summaryOf } from './error-summary.js';

export type { ErrorSummary, Redact } from './error-summary.js';

/** Stands where a secret was. */
export const REDACTED = '[redacted]';

/** What is read of a foreign error; nothing is redacted yet. */
export interface ErrorParts {
  readonly name: string;
  readonly code: string | number | undefined;
  /** The HTTP status: `status`, `statusCode`, or that of its `response`. */
  readonly status: number | undefined;
  readonly message: string;
  readonly cause: unknown;
}

const MAX_READ_CHARS = 2_000;
const MAX_MESSAGE_CHARS = 500;
const MAX_LABEL_CHARS = 100;
const MAX_CAUSES = 4;
/** A shorter key is not searched for: it would be found in every text. */
const MIN_KEY_CHARS = 4;
/** At least so much is dropped behind a cut: a credential of unknown length may have been severed there. */
const MIN_TAIL_CHARS = 64;

/** One field of a foreign value. Never throws. */
export function fieldOf(value: unknown, name: string): unknown {
  if ((typeof value !== 'object' && typeof value !== 'function') || value === null) return undefined;
  try {
    return (value as Readonly<Record<string, unknown>>)[name];
  } catch {
    return undefined;
  }
}

/** A field of a field, as `response.status`. Never throws. */
export const fieldAt = (value: unknown, path: string): unknown => path.split('.').reduce(fieldOf, value);

/** Reads what matters of a foreign error, or of any other value that was thrown. Never throws. */
export function readError(error: unknown): ErrorParts {
  if ((typeof error !== 'object' && typeof error !== 'function') || error === null) {
    return { name: 'Error', code: undefined, status: undefined, message: readable(error), cause: undefined };
  }
  const name = fieldOf(error, 'name');
  const code = fieldOf(error, 'code');
  const response = fieldOf(error, 'response');
  return {
    name: typeof name === 'string' && name !== '' ? cut(name, MAX_READ_CHARS) : 'Error',
    code: typeof code === 'string' ? cut(code, MAX_READ_CHARS) : typeof code === 'number' ? code : undefined,
    status:
      statusOf(fieldOf(error, 'status')) ??
      statusOf(fieldOf(error, 'statusCode')) ??
      statusOf(fieldOf(response, 'status')) ??
      statusOf(fieldOf(response, 'statusCode')),
    message: readable(fieldOf(error, 'message') ?? ''),
    cause: fieldOf(error, 'cause'),
  };
}

/** Lets events of limiters and hooks carry messages of foreign errors: from now on they are redacted. */
export function enableRedaction(): void {
  summarizeWith(redactError);
}

/**
 * Summarizes a foreign error for an event payload. Never throws.
 *
 * @param redact the host's own redaction, applied last; if it fails, the text is dropped
 */
export function redactError(error: unknown, redact?: Redact): ErrorSummary {
  return summarize(error, redact, 0);
}

/** The message of a foreign error, or whatever else says what failed, redacted. Never throws. */
export function describeError(error: unknown, redact?: Redact): string {
  const { message, code, name } = readError(error);
  return summaryText(message || String(code ?? name), MAX_MESSAGE_CHARS, redact);
}

/** The text without keys and credentials, uncut; then whatever `redact` makes of it. Never throws. */
export function redactText(text: string, redact?: Redact): string {
  const redacted = redactCredentials(redactKeys(text));
  if (redact === undefined) return redacted;
  try {
    const answer: unknown = redact(redacted);
    if (typeof answer === 'string') return answer;
    ignoreRejection(answer);
    return REDACTED;
  } catch {
    return REDACTED;
  }
}

/**
 * The text without the registered keys; for results, where text that only looks like a credential may be meant.
 *
 * @param most how many characters of the text are read; a key that begins in them is found as a whole
 */
export function redactKeys(text: string, most = text.length): string {
  return keyMatcher()?.redact(text, most) ?? text.slice(0, most);
}

/** Has every text redacted from now on hide these keys, whichever copy of this package redacts it. */
export function registerKeys(keys: readonly string[]): void {
  const shared = globalThis as SharedKeys;
  // Created here alone, so that a bundler drops the class where no gate registers keys.
  for (const key of keys) {
    if (typeof key !== 'string' || key.length < MIN_KEY_CHARS) continue;
    shared[KEYS] ??= new KeyMatcher();
    shared[KEYS].add(key);
  }
}

/** Whatever is no character by itself, half of a surrogate pair, becomes U+FFFD. */
export const wellFormed = (text: string): string => text.replace(/\p{Surrogate}/gu, '\ufffd');

function summarize(error: unknown, redact: Redact | undefined, depth: number): ErrorSummary {
  const { name, message, code, status, cause } = readError(error);
  return summaryOf({
    name: summaryText(name, MAX_LABEL_CHARS, redact),
    message: summaryText(message, MAX_MESSAGE_CHARS, redact),
    code: code === undefined ? undefined : summaryCode(code, redact),
    status,
    cause:
      cause === undefined || cause === null || depth === MAX_CAUSES
        ? undefined
        : summarize(cause, redact, depth + 1),
  });
}

function summaryCode(code: string | number, redact: Redact | undefined): string | number {
  const text = summaryText(String(code), MAX_LABEL_CHARS, redact);
  return text === String(code) ? code : text;
}

function summaryText(text: string, maxChars: number, redact: Redact | undefined): string {
  const redacted = redactText(text, redact);
  // The end of a text that was cut may be the beginning of a secret, which is not recognized without its end.
  const tail = text.length < MAX_READ_CHARS ? 0 : Math.max(MIN_TAIL_CHARS, keyMatcher()?.longest ?? 0);
  return wellFormed(cut(redacted.slice(0, Math.max(0, redacted.length - tail)), maxChars));
}

function cut(text: string, maxChars: number): string {
  if (text.length <= maxChars) return text;
  const last = text.charCodeAt(maxChars - 1);
  const end = last >= 0xd800 && last <= 0xdbff ? maxChars - 1 : maxChars;
  // A plain slice would keep the whole text in memory: V8 makes it a view.
  return `${text.slice(0, end)} `.slice(0, -1);
}

const statusOf = (value: unknown): number | undefined =>
  typeof value === 'number' && Number.isInteger(value) && value >= 100 && value <= 599 ? value : undefined;

/** A message as text, whatever it is: never a `toString` of the host's. */
function readable(message: unknown, isItem = false): string {
  switch (typeof message) {
    case 'string':
      return cut(message, MAX_READ_CHARS);
    case 'object':
      if (message === null) return 'null';
      return isItem ? '(an object)' : readableItems(message);
    case 'function':
      return '(a function)';
    case 'bigint':
      // Writing out a long one takes long.
      return '(a bigint)';
    default:
      return cut(String(message), MAX_READ_CHARS);
  }
}

function readableItems(message: object): string {
  try {
    if (!Array.isArray(message)) return '(an object)';
    const items = Array.from({ length: Math.min(message.length, 10) }, (_, i) => readable(message[i], true));
    return cut(items.join(', '), MAX_READ_CHARS);
  } catch {
    return '(unreadable)';
  }
}

/**
 * What unregistered credentials look like. Each alternative begins with fixed text, and no repetition
 * runs over text in which the same alternative could begin again and fail: the time grows with the length of the text,
 * and no faster. What a group captures stays.
 */
const CREDENTIALS: readonly RegExp[] = [
  // A field, header or query parameter of such a name. `#2…9f3a` is what the library itself calls a key.
  /((?:api[-_ ]?key|(?:access|auth|api|refresh)[-_]?token|authorization|secret|private[-_]?key|passw(?:or)?d)(?:\\?["'])?\s{0,3}[:=]\s{0,3}(?:\\?["'])?(?:(?:Bearer|Basic|Token)\s{1,3})?)(?!#\d|(?:(?:Bearer|Basic|Token)\s{1,3})?[:/]{0,3}\[redacted\])[^\s"'\\&,;)}\]]{4,}/,
  /([?&](?:key|token|sig|signature)=)(?!#\d|[:/]{0,3}\[redacted\])[^\s"'&#]{4,}/,
  // user:password@ in a URL.
  /(:\/\/)[^\s/?#]+@/,
  /\b((?:Bearer|Basic)\s{1,3})[\w.~+/=-]{8,}/,
  // Well-known prefixes, the keys of AWS and Google, JSON web tokens.
  /\b(?:sk|pk|rk|e2b|jina|tvly|fc|gsk|hf|gh[opsur]|github_pat|glpat|xox[abeprs]|xai|pplx|npm|whsec)[-_][\w-]{8,}/,
  /\b(?:AIza[\w-]{20,}|AKIA[A-Z0-9]{12,}|eyJ[\w.-]{10,})/,
];

let credentials: RegExp | undefined;

function redactCredentials(text: string): string {
  credentials ??= new RegExp(CREDENTIALS.map(({ source }) => source).join('|'), 'gi');
  return text.replace(
    credentials,
    (match: string, field?: string, parameter?: string, url?: string, scheme?: string) => {
      const named = field ?? parameter ?? url;
      if (named !== undefined) return `${named}${REDACTED}${url === undefined ? '' : '@'}`;
      // Without a name beside it, a word is no credential: "Basic authentication", "sk-learn".
      return looksRandom(match.slice(scheme?.length)) ? `${scheme ?? ''}${REDACTED}` : match;
    },
  );
}

const looksRandom = (text: string): boolean => text.length >= 24 || /\d|[a-z][A-Z]|[+=~]/.test(text);

/** What finds the keys of all gates of the process; `undefined` while there are none. */
const keyMatcher = (): KeyMatcher | undefined => (globalThis as SharedKeys)[KEYS];

/** All copies of this package use the matcher of the one that registered the first key. */
interface SharedKeys {
  [KEYS]?: KeyMatcher;
}
const KEYS: unique symbol = Symbol.for('pipeline-pool.registered-keys');

/**
 * Finds all forms of all keys in one scan: a rolling hash of the last four characters says where a form may end. Letters
 * are compared without their case.
 */
class KeyMatcher {
  /** The length of the longest form. */
  longest = 0;
  readonly #known = new Set<string>();
  readonly #mayEnd = new Uint8Array(1 << 16);
  readonly #formsByEnd = new Map<number, string[]>();

  add(key: string): void {
    if (this.#known.has(key)) return;
    this.#known.add(key);
    for (const form of formsOf(key)) this.#addForm(form);
  }

  redact(text: string, most: number): string {
    const spans: { from: number; to: number }[] = [];
    const end = Math.min(text.length, most + this.longest);
    let hash = 0;
    for (let i = 0; i < end; i++) {
      hash = (hash << 8) ^ folded(text.charCodeAt(i));
      if (this.#mayEnd[slotOf(hash)] === 0) continue;
      const length = this.#lengthOfFormEndingAt(i, hash, text);
      if (length > 0) addSpan(spans, i + 1 - length, i + 1);
    }
    let redacted = '';
    let done = 0;
    for (const { from, to } of spans) {
      if (from >= most) break;
      redacted += text.slice(done, from) + REDACTED;
      done = to;
    }
    return redacted + text.slice(done, most);
  }

  #addForm(form: string): void {
    if (form.length < MIN_KEY_CHARS) return;
    let hash = 0;
    for (let i = form.length - MIN_KEY_CHARS; i < form.length; i++)
      hash = (hash << 8) ^ folded(form.charCodeAt(i));
    this.#mayEnd[slotOf(hash)] = 1;
    const forms = this.#formsByEnd.get(hash) ?? [];
    this.#formsByEnd.set(hash, forms);
    forms.push(form);
    // The longest first: a key may be the end of another.
    forms.sort((a, b) => b.length - a.length);
    this.longest = Math.max(this.longest, form.length);
  }

  #lengthOfFormEndingAt(end: number, hash: number, text: string): number {
    return this.#formsByEnd.get(hash)?.find((form) => endsAt(text, end, form))?.length ?? 0;
  }
}

const slotOf = (hash: number): number => Math.imul(hash, 0x9e3779b1) >>> 16;

const folded = (code: number): number => (code >= 65 && code <= 90 ? code | 32 : code);

function endsAt(text: string, end: number, form: string): boolean {
  const from = end + 1 - form.length;
  if (from < 0) return false;
  for (let i = form.length - 1; i >= 0; i--)
    if (folded(text.charCodeAt(from + i)) !== folded(form.charCodeAt(i))) return false;
  return true;
}

/** Adds what was found, in the order of where it ends; what overlaps becomes one. */
function addSpan(spans: { from: number; to: number }[], from: number, to: number): void {
  let start = from;
  for (let last = spans.at(-1); last !== undefined && last.to > from; last = spans.at(-1)) {
    start = Math.min(start, last.from);
    spans.pop();
  }
  spans.push({ from: start, to });
}

/** The ways in which clients and servers write a key. */
function formsOf(key: string): ReadonlySet<string> {
  const forms = new Set<string>();
  for (const text of [key, key.trim()]) {
    const bytes = Buffer.from(text);
    forms
      .add(text)
      .add(encodeURIComponent(wellFormed(text)))
      .add(bytes.toString('hex'));
    forms.add(bytes.toString('base64')).add(bytes.toString('base64url'));
    forms.add(JSON.stringify(text).slice(1, -1)).add(`${new URLSearchParams([['', text]])}`.slice(1));
    // Inside a longer text, as in `user:key`, it looks different by where in a group of three bytes it begins.
    for (const shift of [0, 1, 2]) {
      const base64 = Buffer.concat([Buffer.alloc(shift), bytes]).toString('base64');
      const form = base64.slice(Math.ceil((shift * 4) / 3), Math.floor(((shift + bytes.length) * 4) / 3));
      forms.add(form).add(form.replaceAll('+', '-').replaceAll('/', '_'));
    }
  }
  return forms;
}
