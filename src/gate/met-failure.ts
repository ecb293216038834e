import type { Verdict } from './outcome.js';

/** A code as clients and systems have them, and no text that somebody put there. */
const CODE = /^[A-Z][A-Z0-9_]{1,63}$/;
/** How far down its causes an error is asked for a code; `fetch` hides it in the first. */
const DEEPEST = 5;

/**
 * A failure that a call met, as the others may know it: by its status, its code and its class. Messages and fields are
 * the task's own, for they may hold its input.
 */
export class MetFailure {
  readonly #verdict: Verdict;
  readonly #code: string | undefined;

  constructor(verdict: Verdict, error: unknown) {
    this.#verdict = verdict;
    this.#code = codeOf(error);
  }

  /** An error for those who are turned away because of it. */
  toError(): Error {
    const { class: met, status } = this.#verdict;
    const code = this.#code;
    return Object.assign(
      new Error(status === undefined ? (code ?? `an outcome of class ${met}`) : `HTTP ${status}`),
      status === undefined ? {} : { status },
      code === undefined ? {} : { code },
    );
  }
}

function codeOf(error: unknown): string | undefined {
  let link = error;
  for (let depth = 0; depth < DEEPEST && typeof link === 'object' && link !== null; depth++) {
    const { code, cause } = link as { readonly code?: unknown; readonly cause?: unknown };
    if (typeof code === 'string' && CODE.test(code)) return code;
    link = cause;
  }
  return undefined;
}
