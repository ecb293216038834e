import { inspect, types } from 'node:util';

/** How the texts of an error are told. */
export interface Mask {
  /** A text without anything that must not be told. */
  text(text: string): string;
  /** The same of a line of a stack, whose file names may well be words of an input. */
  frame(line: string): string;
  /** From now on hides what another hides, too: the two calls have become one. */
  join?(other: Mask): void;
}

/** A mask that hides what each of these hides. */
export const together = (masks: readonly Mask[]): Mask => ({
  text: (text) => masks.reduce((told, mask) => mask.text(told), text),
  frame: (line) => masks.reduce((told, mask) => mask.frame(told), line),
});

/**
 * Where a tool gives its gate the mask of a call, in the call's options. No name: it is between the two. Shared by all
 * copies of this package in one process.
 */
export const MASK: unique symbol = Symbol.for('pipeline-pool.mask');

/** The brand of the errors of this library; see errors.ts. */
const kind = Symbol.for('pipeline-pool.error-kind');
/** Characters of a text that are told at most. */
const MOST_CHARS = 10_000;
/** A secret that was cut at the end of a text may be left there, if it is so short. */
const REST_CHARS = 15;
const DEEPEST_CAUSE = 4;
/** How much of an error is looked at, before it is taken to show anything. */
const MOST_PARTS = 2_000;
/** A name that somebody wrote into a program, and no data. */
const IDENTIFIER = /^[A-Za-z_$][\w$]{0,40}$/;

type Fields = Readonly<Record<string, unknown>>;

/**
 * What may be told of something that was thrown, anywhere and to anybody: a copy with its name, its message, its code
 * and status, its stack and the same of its causes, all masked, and nothing else. Errors of this library keep their class
 * and their own figures.
 */
export function copyOf(thrown: unknown, mask: Mask, depth = 0): unknown {
  switch (typeof thrown) {
    case 'string':
      return toldText(thrown, mask);
    case 'number':
    case 'bigint':
      return mask.text(String(thrown)) === String(thrown) ? thrown : mask.text(String(thrown));
    case 'symbol':
      return mask.text(String(thrown));
    case 'object':
      return thrown === null ? null : copyOfObject(thrown, mask, depth);
    case 'function':
      return 'a function';
    default:
      return thrown;
  }
}

/**
 * The same as the cause of an error, for whoever made the call: the very thing that was thrown, where everything in it
 * can be read and nothing of it is masked, or else a copy.
 */
export function causeOf(thrown: unknown, mask: Mask): unknown {
  return isClean(thrown, mask) ? thrown : copyOf(thrown, mask);
}

/** How what a client threw is masked, wherever the host lets it get to. Weak: a mask holds the input of its call. */
const masks = new WeakMap<object, Mask>();
/** The same of texts and the like, of which only the last are known. */
const masksOfPrimitives = new Map<unknown, Mask>();
const MOST_PRIMITIVES = 100;
/** How much of what was thrown is searched for an error that came through a gate. */
const MOST_SEARCHED = 200;
/** Where errors keep others, hidden from `Object.keys`. */
const HIDDEN_ERRORS = ['cause', 'errors', 'error', 'suppressed'] as const;

/** Has whatever tells of this error hide what this mask hides. */
export function rememberMask(thrown: unknown, mask: Mask): void {
  if (isObject(thrown)) {
    masks.set(thrown, mask);
    return;
  }
  masksOfPrimitives.delete(thrown);
  masksOfPrimitives.set(thrown, mask);
  if (masksOfPrimitives.size > MOST_PRIMITIVES)
    masksOfPrimitives.delete(masksOfPrimitives.keys().next().value);
}

/**
 * What events tell of an error that the host's own code let go on: the very thing, unless it, or something in it, came
 * through a gate. Then it is told as the cause of an error is.
 */
export function toldOf(thrown: unknown): unknown {
  // Most requests end without any.
  if (thrown === undefined) return undefined;
  const found = [...masksIn(thrown)];
  if (found.length === 0) return thrown;
  return causeOf(thrown, together(found));
}

/** The masks of everything in there that came through a gate: of causes, of an AggregateError's errors, of fields. */
function masksIn(thrown: unknown): ReadonlySet<Mask> {
  const found = new Set<Mask>();
  // A set is walked to what is added meanwhile, and holds nothing twice: no cycle, no recursion.
  const parts = new Set<unknown>([thrown]);
  for (const part of parts) {
    const mask = isObject(part) ? masks.get(part) : masksOfPrimitives.get(part);
    if (mask !== undefined) found.add(mask);
    if (!isObject(part) || types.isProxy(part)) continue;
    for (const value of valuesOf(part)) if (parts.size < MOST_SEARCHED) parts.add(value);
  }
  return found;
}

function* valuesOf(object: object): Generator<unknown, void, undefined> {
  for (const field of HIDDEN_ERRORS) yield read(object, field);
  for (const field of Object.keys(object).slice(0, MOST_SEARCHED)) {
    const own = Object.getOwnPropertyDescriptor(object, field);
    if (own !== undefined && 'value' in own) yield own.value;
  }
}

const isObject = (value: unknown): value is object => typeof value === 'object' && value !== null;

function copyOfObject(thrown: object, mask: Mask, depth: number): Error {
  const message = read(thrown, 'message');
  const told = new Error(typeof message === 'string' ? toldText(message, mask) : 'a value without a message');
  if (isOurs(thrown)) {
    // Names that the host gave, and figures: nothing that came with a call.
    Object.setPrototypeOf(told, Object.getPrototypeOf(thrown));
    for (const field of Object.keys(thrown)) setPrimitive(told, field, read(thrown, field), (text) => text);
  }
  for (const field of ['code', 'status', 'statusCode']) {
    if (!Object.hasOwn(told, field))
      setPrimitive(told, field, read(thrown, field), (text) => toldText(text, mask));
  }
  const name = read(thrown, 'name');
  if (typeof name === 'string') setHidden(told, 'name', mask.frame(name));
  const stack = read(thrown, 'stack');
  setHidden(told, 'stack', typeof stack === 'string' ? toldStack(stack, mask) : String(told));
  const cause = read(thrown, 'cause');
  if (cause !== undefined && cause !== null && depth < DEEPEST_CAUSE)
    setHidden(told, 'cause', copyOf(cause, mask, depth + 1));
  return told;
}

/** A field of somebody's object, which may be a getter that throws. */
function read(thrown: object, field: string): unknown {
  try {
    return (thrown as Fields)[field];
  } catch {
    return undefined;
  }
}

const isOurs = (thrown: object): boolean =>
  !types.isProxy(thrown) && Object.hasOwn(Object.getPrototypeOf(thrown)?.constructor ?? {}, kind);

function setHidden(told: Error, field: string, value: unknown): void {
  Object.defineProperty(told, field, { value, configurable: true, writable: true });
}

function setPrimitive(told: Error, field: string, value: unknown, masked: (text: string) => string): void {
  if (typeof value === 'number' || typeof value === 'boolean') Object.assign(told, { [field]: value });
  else if (typeof value === 'string') Object.assign(told, { [field]: masked(value) });
}

function toldText(text: string, mask: Mask): string {
  if (text.length <= MOST_CHARS) return mask.text(text);
  const told = mask.text(text.slice(0, MOST_CHARS)).slice(0, -REST_CHARS);
  return `${told} [cut off here: ${text.length} characters in all]`;
}

const toldStack = (stack: string, mask: Mask): string =>
  stack.length <= MOST_CHARS
    ? maskedStack(stack, mask)
    : toldText(maskedStack(stack.slice(0, MOST_CHARS), mask), mask);

function maskedStack(stack: string, mask: Mask): string {
  // What is in front of the first frame is one text: a mask may hide what goes on from line to line.
  const frames = stack.search(/^\s+at /m);
  const head = frames < 0 ? stack : stack.slice(0, frames);
  const lines = frames < 0 ? [] : stack.slice(frames).split('\n');
  return (
    mask.text(head) +
    lines.map((line) => (/^\s+at /.test(line) ? mask.frame(line) : mask.text(line))).join('\n')
  );
}

/** Whether everything in a value can be read, and nothing in it is masked. */
function isClean(value: unknown, mask: Mask): boolean {
  const parts = new Set<unknown>([value]);
  // A set is walked to what is added meanwhile, and holds nothing twice: no cycle, no recursion.
  for (const part of parts) {
    if (parts.size > MOST_PARTS) return false;
    switch (typeof part) {
      case 'string':
        if (part.length > MOST_CHARS || mask.text(part) !== part) return false;
        break;
      case 'number':
      case 'bigint':
        if (mask.text(String(part)) !== String(part)) return false;
        break;
      case 'object':
        if (part !== null && !addParts(part, parts, mask)) return false;
        break;
      case 'symbol':
      case 'function':
        return false;
    }
  }
  return true;
}

/** Adds what an object holds; `false` if it may show anything else. */
function addParts(object: object, parts: Set<unknown>, mask: Mask): boolean {
  if (types.isProxy(object)) return false;
  const proto: unknown = Object.getPrototypeOf(object);
  if (proto === Headers.prototype || (proto === Map.prototype && Reflect.ownKeys(object).length === 0)) {
    for (const [name, value] of object as Map<unknown, unknown>) parts.add(name).add(value);
    return true;
  }
  if (!isPlain(object, proto)) return false;
  const names = Reflect.ownKeys(object);
  if (names.length > MOST_PARTS) return false;
  for (const name of names) {
    if (typeof name === 'symbol') return false;
    if (name === 'stack' && types.isNativeError(object)) {
      const stack = read(object, 'stack');
      if (typeof stack !== 'string' || stack.length > MOST_CHARS || maskedStack(stack, mask) !== stack)
        return false;
      continue;
    }
    const field = Object.getOwnPropertyDescriptor(object, name);
    if (field === undefined || !('value' in field)) return false;
    if (!IDENTIFIER.test(name)) parts.add(name);
    parts.add(field.value);
  }
  return true;
}

/** Whether a log of it shows what it holds and no more: it has no way of its own to be shown. */
function isPlain(object: object, proto: unknown): boolean {
  const isKnown =
    types.isNativeError(object) || Array.isArray(object) || proto === Object.prototype || proto === null;
  return isKnown && !('toJSON' in object) && !(inspect.custom in object);
}
