/** Hides more than the library does, in each text that the library passes on; see `LifecycleHooks`. */
export type Redact = (text: string) => string;

/**
 * What event payloads carry of an error: its name, `code`, `status` and message, redacted, and the same of its causes. A
 * copy: never the error that was thrown, never its stack or its other fields. It is an `Error`, so that every logger
 * shows it as one, and `JSON.stringify` shows all of it.
 */
export interface ErrorSummary extends Error {
  /** The error's own code: `ERR_QUEUE_FULL`, `ECONNRESET`, `insufficient_quota`. */
  readonly code?: string | number;
  /** The HTTP status of a response, from 100 to 599. */
  readonly status?: number;
  /** At most four deep. */
  readonly cause?: ErrorSummary;
}

type Summarize = (error: unknown, redact?: Redact) => ErrorSummary;

let summarize: Summarize = () => summaryOf({ name: 'Error', message: '' });

/**
 * Summarizes an error for the payload of an event of a limiter or of the hooks. Never throws.
 *
 * A host that uses nothing but limiters carries no redaction: it is a sixth of their size. Until a pool, a gate, a tool
 * manager or a log exists, and brings it, the message of a foreign error is left out, since it may contain a secret.
 */
export function summarizeError(error: unknown, redact?: Redact): ErrorSummary {
  return summarize(error, redact);
}

/** Replaces how foreign errors are summarized. */
export function summarizeWith(other: Summarize): void {
  summarize = other;
}

/** What a summary is made from; redacted, or without foreign text. */
interface SummaryParts {
  readonly name: string;
  readonly message: string;
  readonly code?: string | number | undefined;
  readonly status?: number | undefined;
  readonly cause?: unknown;
}

/** Makes a summary, also of an error of this library, whose message contains no foreign text. */
export function summaryOf({ name, message, code, status, cause }: SummaryParts): ErrorSummary {
  const summary: { code?: string | number; status?: number } & Error = new Error(message);
  // Not enumerable, as in any error.
  const hide = (field: string, value: unknown) =>
    Object.defineProperty(summary, field, { value, configurable: true, writable: true });
  hide('name', name);
  // Assigned, not defined: to define it, V8 would write out the frames that it replaces.
  summary.stack = message === '' ? name : `${name}: ${message}`;
  hide('toJSON', () => ({ name, message, code, status, cause }));
  if (code !== undefined) summary.code = code;
  if (status !== undefined) summary.status = status;
  if (cause !== undefined) hide('cause', cause);
  return summary as ErrorSummary;
}
