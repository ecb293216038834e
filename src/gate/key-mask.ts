import { inspect } from 'node:util';

/** From this length on, the last four characters of a key give nothing away. */
const LONG_ENOUGH = 16;
/** A shorter one is no key, and hiding it would spoil every text. */
const SHORTEST = 4;
/** What a log would show of an error: deep enough for a client's request options, and no endless bodies. */
const AS_LOGGED = {
  depth: 6,
  maxArrayLength: 50,
  maxStringLength: 10_000,
  breakLength: Number.POSITIVE_INFINITY,
};

/**
 * Keeps keys out of what is told. A key is known by its place among the gate's keys and, if it is long enough, by its
 * last four characters: `#2…9f3a`.
 */
export class KeyMask {
  readonly #labels = new Map<string, string>();
  /** Longest first, so that no key hides only a part of a longer one. */
  readonly #secrets: readonly string[];

  constructor(keys: readonly string[]) {
    keys.forEach((key, i) => {
      this.#labels.set(key, `#${i + 1}${key.length < LONG_ENOUGH ? '' : `…${key.slice(-4)}`}`);
    });
    this.#secrets = keys.filter((key) => key.length >= SHORTEST).sort((a, b) => b.length - a.length);
  }

  /** How a key is told; what has no key is told as the service itself. */
  labelOf(key: string): string {
    return this.#labels.get(key) ?? 'service';
  }

  /** A text with every key in it masked. */
  text(text: string): string {
    let masked = text;
    for (const key of this.#secrets) masked = masked.replaceAll(key, this.labelOf(key));
    return masked;
  }

  /**
   * An error that may be logged: itself, or, if a log would show a key of ours anywhere in it, one with the same name,
   * code, status, message and stack and nothing else, all masked.
   */
  error(error: unknown): unknown {
    if (this.#secrets.length === 0 || !this.#shows(error)) return error;
    const { name, message, stack, code, status, statusCode } = Object(error) as Record<string, unknown>;
    const told = new Error(this.text(typeof message === 'string' ? message : String(error)));
    if (typeof name === 'string')
      Object.defineProperty(told, 'name', { value: this.text(name), configurable: true });
    if (typeof stack === 'string') told.stack = this.text(stack);
    for (const [field, value] of Object.entries({ code, status, statusCode })) {
      if (typeof value === 'number') Object.assign(told, { [field]: value });
      else if (typeof value === 'string') Object.assign(told, { [field]: this.text(value) });
    }
    return told;
  }

  #shows(error: unknown): boolean {
    let log: string;
    try {
      log = inspect(error, AS_LOGGED);
    } catch {
      // Somebody's own way of showing it throws: whoever logs it would fare no better, but it might show anything.
      return true;
    }
    return this.#secrets.some((key) => log.includes(key));
  }
}
