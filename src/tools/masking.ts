import { MASKED, withoutCredentials } from '../internal/credentials.js';
import { formsOf, type Secret, TextMask } from '../internal/text-mask.js';
import type { Mask } from '../internal/told-error.js';

/** A key or an input of fewer characters is none that could be hidden without spoiling every text. */
const SHORTEST = 4;
/** How much of an input is compared, so that a failure never holds up the event loop for long. */
const MOST_CHARS = 50_000;
const MOST_PARTS = 10_000;
/** A name that somebody wrote into a program, and no data. */
const IDENTIFIER = /^[A-Za-z_$][\w$-]{0,40}$/;

/** The keys that a gate has handed to a tool. It has few, so they are kept as long as the gate. */
class HandedOut {
  readonly #keys = new Set<string>();
  #forms: readonly string[] = [];
  #mask = new TextMask([]);

  add(key: string): void {
    if (this.#keys.has(key)) return;
    this.#keys.add(key);
    // Longest first, so that no key hides only a part of a longer one.
    this.#forms = [...this.#keys].flatMap(formsOf).sort((a, b) => b.length - a.length);
    this.#mask = new TextMask([...this.#keys].map((text) => ({ text, label: MASKED })));
  }

  /** Without whole keys, in whichever form: a result may be long, and any other text may be meant. */
  withoutWhole(text: string): string {
    let told = text;
    for (const form of this.#forms) told = told.replaceAll(form, MASKED);
    return told;
  }

  /** Without whatever a text has of a key. */
  without(text: string): string {
    return this.#mask.text(text);
  }
}

const handedOut = new WeakMap<object, HandedOut>();

const keysOf = (gate: object | undefined): HandedOut | undefined =>
  gate === undefined ? undefined : handedOut.get(gate);

/** Remembers a key, so that it can be hidden wherever it turns up. */
export function rememberKey(gate: object, key: string | undefined): void {
  if (key === undefined || key.length < SHORTEST) return;
  let keys = handedOut.get(gate);
  if (keys === undefined) {
    keys = new HandedOut();
    handedOut.set(gate, keys);
  }
  keys.add(key);
}

/** The text without the keys that `gate` has handed out. For a tool's results, where any other text may be meant. */
export function withoutKeys(text: string, gate: object | undefined): string {
  return keysOf(gate)?.withoutWhole(text) ?? text;
}

/** The text without the gate's keys and without anything that looks like a credential. For what an agent reads of failures. */
export function withoutSecrets(text: string, gate: object | undefined): string {
  return withoutCredentials(withoutKeys(text, gate));
}

/** Hides what must not be told of one call of a tool, or of the making of its client: keys, credentials, its input. */
export class CallMask implements Mask {
  readonly #gate: object | undefined;
  readonly #input: unknown;
  readonly #others: Mask[] = [];
  /** Made when it is first needed, which is when something has failed. */
  #inputs: TextMask | 'unknown' | undefined;

  constructor(gate: object | undefined, input?: unknown) {
    this.#gate = gate;
    this.#input = input;
  }

  text(text: string): string {
    this.#inputs ??= maskOfInput(this.#input);
    // What cannot be compared with the input must be taken to hold it.
    if (this.#inputs === 'unknown') return text === '' ? '' : MASKED;
    let told = this.frame(this.#inputs.text(text));
    for (const other of this.#others) told = other.text(told);
    return told;
  }

  frame(line: string): string {
    return withoutCredentials(keysOf(this.#gate)?.without(line) ?? line);
  }

  join(other: Mask): void {
    if (other !== this) this.#others.push(other);
  }

  /** For the agent, who gave the input: a text without what only those gave whose calls were merged with this one. */
  textForAgent(text: string): string {
    let told = text;
    for (const other of this.#others) {
      const theirs = other instanceof CallMask ? maskOfInput(other.#input, this.#input) : other;
      told = theirs === 'unknown' ? MASKED : theirs.text(told);
    }
    return told;
  }
}

/** Hides an input, except what is in another as well. */
function maskOfInput(input: unknown, except?: unknown): TextMask | 'unknown' {
  try {
    const secrets = secretsIn(input);
    if (secrets === undefined) return 'unknown';
    const known = new Set(secretsIn(except)?.map(({ text }) => text));
    return new TextMask(secrets.filter(({ text }) => !known.has(text)));
  } catch {
    // A revoked proxy, say.
    return 'unknown';
  }
}

/** Whatever an input holds, by lines: a failing program is told of line by line. `undefined` if that is too much. */
function secretsIn(input: unknown): readonly Secret[] | undefined {
  const secrets = new Map<string, Secret>();
  let chars = 0;
  const add = (text: string): void => {
    for (const line of text.length > MOST_CHARS ? [text] : text.split('\n')) {
      const part = line.trim();
      if (part.length < SHORTEST || secrets.has(part)) continue;
      chars += part.length;
      secrets.set(part, { text: part, label: MASKED, asWord: true });
    }
  };
  // A set is walked to what is added meanwhile, and holds nothing twice: no cycle, no recursion.
  const parts = new Set<unknown>([input]);
  for (const part of parts) {
    if (parts.size > MOST_PARTS) return undefined;
    if (typeof part === 'string') add(part);
    else if (typeof part === 'number' || typeof part === 'bigint') add(String(part));
    else if (ArrayBuffer.isView(part)) {
      if (part.byteLength > MOST_CHARS) return undefined;
      for (const text of bytesAsTexts(part)) add(text);
    } else if (typeof part === 'object' && part !== null) addFields(part, parts);
  }
  return chars > MOST_CHARS ? undefined : [...secrets.values()];
}

/** The ways in which bytes are written: as text, in JSON and by `inspect`. */
function bytesAsTexts({ buffer, byteOffset, byteLength }: ArrayBufferView): readonly string[] {
  const bytes = Buffer.from(buffer, byteOffset, byteLength);
  const hex = bytes.toString('hex');
  const json = JSON.stringify(new Uint8Array(bytes)).slice(1, -1);
  return [
    bytes.toString(),
    bytes.toString('base64'),
    hex,
    hex.replace(/..(?=.)/g, '$& '),
    bytes.join(),
    json,
  ];
}

/** Adds what an object holds, and what JSON makes of it: a date, a URL. */
function addFields(object: object, parts: Set<unknown>): void {
  if (object instanceof Map || object instanceof Set)
    for (const [name, value] of object.entries()) parts.add(name).add(value);
  for (const name of [...Object.keys(object), 'toJSON']) {
    try {
      const value = (object as Record<string, unknown>)[name];
      if (name === 'toJSON' && typeof value === 'function') parts.add(value.call(object));
      else parts.add(value);
    } catch {
      // What cannot be read here could not be read by the tool either.
    }
    if (!IDENTIFIER.test(name)) parts.add(name);
    if (parts.size > MOST_PARTS) return;
  }
}
