/**
 * Option checks. Each returns the value it was given, so that a constructor reads as a list of its options; a wrong
 * value throws at once, naming the option and the value. Nothing is clamped and nothing is ignored.
 */

import { ignoreRejection } from './abort.js';

/** The longest delay a Node timer keeps (2^31 - 1 ms, 24.8 days); a longer one would fire at once. */
export const MAX_TIMER_MS = 2_147_483_647;

const shown = (value: unknown): string => {
  if (typeof value === 'string') return `"${value}"`;
  if (typeof value === 'function') return 'a function';
  if (typeof value === 'object' && value !== null) return Array.isArray(value) ? 'an array' : 'an object';
  return String(value);
};

/** The sentence that every refused option gets. */
export const refusal = (option: string, expected: string, value: unknown): string =>
  `Expected \`${option}\` to be ${expected}, got ${shown(value)} (${value === null ? 'null' : typeof value})`;

/** A whole number of at least `min` and, where given, at most `max`. */
export function wholeNumber(option: string, value: unknown, min = 1, max = Number.MAX_SAFE_INTEGER): number {
  const from = min === -Number.MAX_SAFE_INTEGER ? '' : ` from ${min}`;
  const expected = `a whole number${from}${max === Number.MAX_SAFE_INTEGER ? '' : ` to ${max}`}`;
  if (typeof value !== 'number') throw new TypeError(refusal(option, expected, value));
  if (!Number.isSafeInteger(value) || value < min || value > max) {
    throw new RangeError(refusal(option, expected, value));
  }
  return value;
}

/** A finite number between `min` and `max`, both allowed. */
export function finiteNumber(option: string, value: unknown, min: number, max: number): number {
  const expected = `a number from ${min} to ${max}`;
  if (typeof value !== 'number') throw new TypeError(refusal(option, expected, value));
  if (!(value >= min && value <= max)) throw new RangeError(refusal(option, expected, value));
  return value;
}

/** A duration in milliseconds that a Node timer can keep. */
export function durationMs(option: string, value: unknown, min = 0): number {
  return finiteNumber(option, value, min, MAX_TIMER_MS);
}

/** A function. */
export function callable<F>(option: string, value: F): F {
  if (typeof value !== 'function') throw new TypeError(refusal(option, 'a function', value));
  return value;
}

/** A clock: a function that returns a finite number, now at least. */
export function clock(option: string, value: unknown): void {
  const read: unknown = callable(option, value as () => number)();
  finiteNumber(`${option}()`, read, -Number.MAX_VALUE, Number.MAX_VALUE);
}

/** A string with at least one character. */
export function text(option: string, value: unknown): string {
  if (typeof value !== 'string' || value === '')
    throw new TypeError(refusal(option, 'a non-empty string', value));
  return value;
}

/** The result of a callback that must not return a promise: it would be used as the value, and its rejection be lost. */
export function synchronous<V>(callback: string, value: V): V {
  if (typeof (value as PromiseLike<unknown> | null | undefined)?.then !== 'function') return value;
  ignoreRejection(value);
  throw new TypeError(`Expected \`${callback}\` to return its result itself, got a promise`);
}

/** `true` or `false`. */
export function flag(option: string, value: unknown): boolean {
  if (typeof value !== 'boolean') throw new TypeError(refusal(option, 'a boolean', value));
  return value;
}

/** An `AbortSignal`, of this realm or another. */
export function abortSignal(option: string, value: unknown): AbortSignal {
  const signal = value as AbortSignal;
  if (
    typeof signal !== 'object' ||
    signal === null ||
    typeof signal.aborted !== 'boolean' ||
    typeof signal.addEventListener !== 'function'
  ) {
    throw new TypeError(refusal(option, 'an AbortSignal', value));
  }
  return signal;
}

/** One of the listed words. */
export function oneOf<const W extends string>(option: string, value: unknown, words: readonly W[]): W {
  if (!words.includes(value as W)) {
    throw new TypeError(refusal(option, `one of ${words.map((word) => `"${word}"`).join(', ')}`, value));
  }
  return value as W;
}

/** A plain options object; an option that `known` does not list is refused, since a misspelt one would be ignored. */
export function options<O extends object>(where: string, value: O, known: readonly (keyof O & string)[]): O {
  optionsObject(where, value);
  // Inherited ones as well: those of an `AbortSignal`, passed in place of `{ signal }`, are its prototype's.
  for (const key in value) if (!known.includes(key)) throw unknownOption(where, key, known);
  return value;
}

/** An object, and no array. */
export function optionsObject(where: string, value: unknown): void {
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw new TypeError(refusal(where, 'an options object', value));
}

export const unknownOption = (where: string, option: string, known: readonly string[]): TypeError =>
  new TypeError(
    `Unknown option \`${option}\` in ${where}; it takes ${known.map((k) => `\`${k}\``).join(', ')}`,
  );

/** Applies a check to an option only where it was given. */
export function optional<V, R>(
  option: string,
  value: V | undefined,
  check: (option: string, value: V) => R,
): R | undefined {
  return value === undefined ? undefined : check(option, value);
}

/** Checks one option. */
export type Check = (option: string, value: unknown) => unknown;

/** A check for each option that a component takes. */
export type Checks<O> = { readonly [K in keyof O & string]-?: Check };

export const fromZero: Check = (option, value) => wholeNumber(option, value, 0);

/** A whole number of any sign. */
export const integer: Check = (option, value) => wholeNumber(option, value, -Number.MAX_SAFE_INTEGER);

export const positiveMs: Check = (option, value) => durationMs(option, value, 1);

/** Applies a table of checks to the options that were given, and refuses those that it does not list. */
export function checkEach<O extends object>(where: string, given: O, checks: Checks<O>): O {
  const known = checks as Readonly<Record<string, Check>>;
  optionsObject(where, given);
  for (const option in given)
    if (!Object.hasOwn(known, option)) throw unknownOption(where, option, Object.keys(known));
  // By the table: an accessor of a class is not enumerable.
  for (const option in known) optional(option, given[option as keyof O], known[option] as Check);
  return given;
}
