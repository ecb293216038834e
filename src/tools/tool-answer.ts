import { inspect } from 'node:util';

/** What the agent reads where a call gave nothing. */
const NOTHING = 'Done.';
const INPUT_EXAMPLE = 'Give the arguments as one JSON object.';
/** How many causes of a failure are told. */
const MOST_CAUSES = 3;

/**
 * What a model gave as input: a text is read as JSON, which is how models send arguments, and no text at all as no
 * arguments; anything else is taken as it is.
 *
 * @throws {SyntaxError} fit for the model to read
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

/** A result as text: a text as it is, anything else as JSON. */
export function resultText(result: unknown): string {
  if (typeof result === 'string') return result === '' ? NOTHING : result;
  if (result === undefined) return NOTHING;
  try {
    return JSON.stringify(result, jsonValue) ?? inspect(result);
  } catch {
    // A cycle, or a `toJSON` that throws.
    return inspect(result, { depth: 4, maxArrayLength: 100, maxStringLength: 10_000, customInspect: false });
  }
}

/** Why something failed, in one line: its message, and its causes' where they say more. */
export function failureText(thrown: unknown): string {
  try {
    return chainText(thrown);
  } catch {
    // A getter that throws, a revoked proxy.
    return 'a reason that cannot be read';
  }
}

function chainText(thrown: unknown): string {
  const told: string[] = [];
  let link: unknown = thrown;
  for (let i = 0; i <= MOST_CAUSES && link !== undefined && link !== null; i++) {
    const text = messageOf(link);
    if (text !== '' && !told.some((known) => known.includes(text))) told.push(text);
    link = typeof link === 'object' ? (link as { readonly cause?: unknown }).cause : undefined;
  }
  return told.join(': ') || 'no reason given';
}

/** The text, or its beginning and a note of what is missing; `most` characters in all. */
export function cutText(text: string, most: number): string {
  if (text.length <= most) return text;
  const note = `\n[cut off here: ${text.length} characters in all]`;
  const end = most - note.length;
  // Half of a surrogate pair is no character.
  const last = text.charCodeAt(end - 1);
  return text.slice(0, last >= 0xd800 && last <= 0xdbff ? end - 1 : end) + note;
}

function messageOf(thrown: unknown): string {
  if (typeof thrown === 'string') return thrown;
  if (typeof thrown !== 'object' || thrown === null) return String(thrown);
  const { message, code, name } = thrown as Record<string, unknown>;
  // An AggregateError of a refused connection has a code, and an empty message.
  for (const text of [message, code, name]) if (typeof text === 'string' && text !== '') return text;
  return resultText(thrown);
}

/** Keeps `JSON.stringify` from failing on big integers and from writing bytes out one by one. */
function jsonValue(this: unknown, field: string, value: unknown): unknown {
  const raw = (this as Record<string, unknown>)[field];
  if (ArrayBuffer.isView(raw)) return `[${raw.byteLength} bytes]`;
  return typeof value === 'bigint' ? String(value) : value;
}
