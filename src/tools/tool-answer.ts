import type { InspectOptions } from 'node:util';
import { type ErrorSummary, wellFormed } from '../internal/redaction.js';

/** The answer of a call without a result. */
const NOTHING = 'Done.';
const INPUT_EXAMPLE = 'Give the arguments as one JSON object.';

/**
 * The input that a model sent: text is parsed as JSON, which is how models send arguments, and empty text means no
 * arguments; anything else is used as it is.
 *
 * @throws {SyntaxError} with a message for the model
 */
export function readInput(given: unknown): unknown {
  if (typeof given !== 'string') return given;
  if (given.trim() === '') return {};
  try {
    return JSON.parse(given);
  } catch (error) {
    throw new SyntaxError(`${(error as Error).message}. ${INPUT_EXAMPLE}`);
  }
}

/** How many values of a result are written as JSON: that takes some 20 ms. */
const MAX_VALUES = 100_000;
/** How many objects of a result with more values are shown, and how many fields or items of each. */
const MAX_OBJECTS = 1_000;
const MAX_FIELDS = 100;

/** Loaded when it is first used. */
const inspect = (value: unknown, options?: InspectOptions): string =>
  process.getBuiltinModule('node:util').inspect(value, options);

/** A result as text: text as it is, anything else as JSON, or, where that is not possible, in part. */
export function resultText(result: unknown): string {
  if (typeof result === 'string') return result === '' ? NOTHING : result;
  if (result === undefined) return NOTHING;
  let values = 0;
  let shown: unknown = result;
  // The first values, copied as they are read. V8 has to list all fields of an object before it gives the first: that of a
  // million takes 0.4 s, and is done once.
  const copies = new Map<unknown, { readonly copy: Record<string, unknown>; left: number }>();
  try {
    return (
      JSON.stringify(result, function (this: Record<string, unknown>, field, value) {
        const json = jsonValue(this[field], value);
        const parent = copies.get(this);
        copies.delete(json);
        if (parent === undefined ? values === 0 : copies.size < MAX_OBJECTS && parent.left-- > 0) {
          const copy = typeof json !== 'object' || json === null ? json : Array.isArray(json) ? [] : {};
          if (copy !== json) copies.set(json, { copy: copy as Record<string, unknown>, left: MAX_FIELDS });
          if (parent !== undefined) parent.copy[field] = copy;
          else shown = copy;
        }
        if (++values > MAX_VALUES) throw new RangeError();
        return json;
      }) ?? inspect(result)
    );
  } catch {
    // A cycle, a `toJSON` that throws, or too many values.
    const isPart = values > MAX_VALUES;
    const text = inspect(isPart ? shown : result, {
      depth: 4,
      maxArrayLength: MAX_FIELDS,
      maxStringLength: 10_000,
      customInspect: false,
    });
    return isPart ? `${text}\n[part of more than ${MAX_VALUES} values]` : text;
  }
}

/** Why something failed, in one line: its message, and those of its causes that add to it. */
export function failureText(failure: ErrorSummary): string {
  const texts: string[] = [];
  for (let link: ErrorSummary | undefined = failure; link !== undefined; link = link.cause) {
    // An AggregateError of a refused connection has a code, and an empty message.
    const text = link.message || String(link.code ?? (link.name === 'Error' ? 'no reason given' : link.name));
    if (!texts.some((known) => known.includes(text))) texts.push(text);
  }
  return texts.join(': ');
}

/**
 * The text, well-formed, or its beginning and a note of what is missing; at most `most` characters.
 *
 * @param length of the whole, where `text` is only its beginning
 */
export function cutText(text: string, most: number, length = 0): string {
  const all = Math.max(text.length, length);
  if (all <= most) return wellFormed(text);
  const note = `\n[cut off here: ${all} characters in all]`;
  const end = most - note.length;
  // Never in the middle of a surrogate pair.
  const last = text.charCodeAt(end - 1);
  const part = text.slice(0, last >= 0xd800 && last <= 0xdbff ? end - 1 : end);
  // A part is a view in V8, which keeps the whole in memory; what a regular expression has read is not.
  return wellFormed(part + note);
}

/** Keeps `JSON.stringify` from failing on big integers and from writing bytes out one by one. */
function jsonValue(raw: unknown, value: unknown): unknown {
  if (ArrayBuffer.isView(raw)) return `[${raw.byteLength} bytes]`;
  return typeof value === 'bigint' ? String(value) : value;
}
