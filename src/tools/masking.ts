import { inspect } from 'node:util';

/** Stands where something was that must not be told. */
const MASKED = '[masked]';
/** Anything shorter is not a key, and hiding it would spoil every text. */
const SHORTEST_KEY = 4;
const SHORTEST_INPUT = 4;
/** From this length on, an input is hidden in the middle of a word too. */
const LONG_INPUT = 12;
/** How much of one input is looked at: a sandbox may be given a whole program. */
const MOST_INPUT_TEXTS = 1_000;
const MOST_INPUT_OBJECTS = 10_000;
/** What a log would show of an error: deep enough for a client's request options, and no endless bodies. */
const AS_LOGGED = {
  depth: 6,
  maxArrayLength: 50,
  maxStringLength: 10_000,
  breakLength: Number.POSITIVE_INFINITY,
};

/** What credentials look like, where nobody told us which ones there are. Each keeps its first group. */
const CREDENTIALS: readonly RegExp[] = [
  /\b((?:Bearer|Basic)\s+)(?=\S*\d)[\w.~+/=-]{8,}/gi,
  /\b()(?:sk|pk|rk|e2b|jina|tvly|fc|gsk|hf|ghp|gho|ghs|xai|pplx)[-_](?=[\w-]*\d)[\w-]{12,}/g,
  /\b()(?:AIza[\w-]{20,}|AKIA[A-Z0-9]{12,}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)/g,
  /((?:api[-_ ]?key|(?:access|auth|api)[-_]?token|authorization|secret|passw(?:or)?d)["']?\s*[:=]\s*["']?)[^\s"'&,;)}\]]{4,}/gi,
  /(:\/\/[^\s/:@]*:)[^\s/@]+(?=@)/g,
];

/** Every key that a gate has handed to a tool. A gate has few, so they are kept as long as the gate. */
const handedOut = new WeakMap<object, Set<string>>();

/** Remembers a key, so that it can be hidden wherever it turns up. */
export function rememberKey(gate: object, key: string | undefined): void {
  if (key === undefined || key.length < SHORTEST_KEY) return;
  const keys = handedOut.get(gate);
  if (keys === undefined) handedOut.set(gate, new Set([key]));
  else keys.add(key);
}

/** The text without the keys that `gate` has handed out. For a tool's results, where any other text may be meant. */
export function withoutKeys(text: string, gate: object | undefined): string {
  let told = text;
  for (const key of keysOf(gate)) told = told.replaceAll(key, MASKED);
  return told;
}

/** The text without the gate's keys and without anything that looks like a credential. For the texts of failures. */
export function withoutSecrets(text: string, gate: object | undefined): string {
  let told = withoutKeys(text, gate);
  for (const credential of CREDENTIALS) told = told.replace(credential, `$1${MASKED}`);
  return told;
}

/**
 * What a tool threw, fit for logs and events: itself, or, where a log of it would show a key or a part of the call's
 * input, an error with the same name, code, status, message and stack and nothing else, all masked.
 */
export function forLogs(thrown: unknown, gate: object | undefined, input?: unknown): unknown {
  const inputs = textsIn(input);
  const mask = (text: string): string => {
    let told = withoutSecrets(text, gate);
    for (const part of inputs) told = hideInput(told, part);
    return told;
  };
  const { name, message, stack, code, status, statusCode } = Object(thrown) as Record<string, unknown>;
  const shown = asLogged(thrown);
  const said = typeof message === 'string' ? message : shown;
  if (
    shown !== undefined &&
    said !== undefined &&
    mask(said) === said &&
    byLine(shown, mask, gate) === shown
  ) {
    return thrown;
  }
  const told = new Error(mask(said ?? 'a value that cannot be shown'));
  if (typeof name === 'string') Object.defineProperty(told, 'name', { value: name, configurable: true });
  if (typeof stack === 'string') told.stack = byLine(stack, mask, gate);
  for (const [field, value] of Object.entries({ code, status, statusCode })) {
    if (typeof value === 'number') Object.assign(told, { [field]: value });
    else if (typeof value === 'string') Object.assign(told, { [field]: mask(value) });
  }
  return told;
}

/** Masks all but the frames of a stack, whose file names may well be words of the input. Keys are hidden there too. */
function byLine(text: string, mask: (text: string) => string, gate: object | undefined): string {
  return text
    .split('\n')
    .map((line) => (/^\s+at /.test(line) ? withoutSecrets(line, gate) : mask(line)))
    .join('\n');
}

/** Longest first, so that no key hides only a part of a longer one. */
function keysOf(gate: object | undefined): readonly string[] {
  const keys = gate === undefined ? undefined : handedOut.get(gate);
  return keys === undefined ? [] : [...keys].sort((a, b) => b.length - a.length);
}

function asLogged(thrown: unknown): string | undefined {
  if (typeof thrown === 'string') return thrown;
  try {
    return inspect(thrown, AS_LOGGED);
  } catch {
    // Its own way of showing itself throws: it might show anything.
    return undefined;
  }
}

function hideInput(text: string, part: string): string {
  if (!text.includes(part)) return text;
  if (part.length >= LONG_INPUT) return text.replaceAll(part, MASKED);
  const literal = part.replace(/[\\^$.*+?()[\]{}|]/g, '\\$&');
  return text.replace(new RegExp(`(?<![A-Za-z0-9])${literal}(?![A-Za-z0-9])`, 'g'), MASKED);
}

/** The lines of all texts in an input, longest first: a failing program is told of line by line. */
function textsIn(input: unknown): readonly string[] {
  const found = new Set<string>();
  const seen = new Set<unknown>([input]);
  for (const value of seen) {
    if (found.size >= MOST_INPUT_TEXTS) break;
    if (typeof value === 'string') {
      for (const line of value.split('\n')) {
        const part = line.trim();
        if (part.length >= SHORTEST_INPUT) found.add(part);
      }
    } else if (typeof value === 'object' && value !== null && !ArrayBuffer.isView(value)) {
      // A set is walked to what is added meanwhile, and holds nothing twice: no cycle, no recursion.
      for (const field of Object.keys(value)) {
        if (seen.size >= MOST_INPUT_OBJECTS) break;
        seen.add((value as Record<string, unknown>)[field]);
      }
    }
  }
  return [...found].sort((a, b) => b.length - a.length);
}
