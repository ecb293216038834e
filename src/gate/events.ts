import type { BudgetExceededError } from '../errors.js';
import type { ErrorSummary, TaskIds } from '../hooks/events.js';
import { readError, redactError } from '../internal/redaction.js';
import type { Classification } from './classify.js';
import type { GateCallOptions, GateSettings } from './options.js';

/** Emits the events of one call. Payloads carry labels of keys, and summaries of errors. */
export class CallEventEmitter {
  readonly #settings: GateSettings;
  readonly #callId: number;
  readonly #options: GateCallOptions;

  constructor(settings: GateSettings, callId: number, options: GateCallOptions) {
    this.#settings = settings;
    this.#callId = callId;
    this.#options = options;
  }

  /** The fields that all events of the call have. */
  ids(): { source: string; callId: number; toolCallId?: number } & TaskIds {
    const { taskId, requestId, tenant, toolCallId } = this.#options;
    return {
      source: this.#settings.name,
      callId: this.#callId,
      ...(taskId === undefined ? {} : { taskId }),
      ...(requestId === undefined ? {} : { requestId }),
      ...(tenant === undefined ? {} : { tenant }),
      ...(toolCallId === undefined ? {} : { toolCallId }),
    };
  }

  /** What an event carries of an error: never the client's own, which may hold anything. */
  error(error: unknown): ErrorSummary {
    return redactError(error, this.#settings.hooks.redact);
  }

  started(attempt: number, key: string | undefined, waitMs: number, url: string | undefined): void {
    const { hooks } = this.#settings;
    if (!hooks.hasListeners('call:started')) return;
    hooks.emit('call:started', {
      attempt,
      waitMs,
      ...this.ids(),
      ...(key === undefined ? {} : { key }),
      ...(url !== undefined && URL.canParse(url) ? { serverAddress: new URL(url).hostname } : {}),
    });
  }

  retried(
    attempt: number,
    key: string | undefined,
    classification: Classification,
    retryAfterMs: number,
  ): void {
    const { hooks } = this.#settings;
    if (!hooks.hasListeners('call:retried')) return;
    hooks.emit('call:retried', {
      attempt,
      class: classification.class,
      retryAfterMs,
      ...this.ids(),
      ...(key === undefined ? {} : { key }),
      ...(classification.status === undefined ? {} : { status: classification.status }),
    });
  }

  throttled(reason: 'rate' | 'cooldown' | 'backoff', waitMs: number): void {
    const { hooks } = this.#settings;
    if (hooks.hasListeners('call:throttled')) hooks.emit('call:throttled', { reason, waitMs, ...this.ids() });
  }

  cacheHit(shared: boolean): void {
    const { hooks } = this.#settings;
    if (hooks.hasListeners('cache:hit')) hooks.emit('cache:hit', { shared, ...this.ids() });
  }

  cacheMiss(): void {
    const { hooks } = this.#settings;
    if (hooks.hasListeners('cache:miss')) hooks.emit('cache:miss', this.ids());
  }

  budgetExceeded({ meter, limit, spent, reserved, wanted }: BudgetExceededError): void {
    const { hooks } = this.#settings;
    if (!hooks.hasListeners('budget:exceeded')) return;
    hooks.emit('budget:exceeded', { meter, limit, spent, reserved, wanted, ...this.ids() });
  }

  unmetered(meters: readonly string[]): void {
    this.#settings.hooks.emit('budget:unmetered', { meters, ...this.ids() });
  }
}

/** A code of a client or an operating system, and not text of a task. */
const CODE = /^[A-Z][A-Z0-9_]{1,63}$/;
/** How many causes are read for a code; `fetch` hides it in the first. */
const MAX_CAUSES = 5;

/**
 * A failure of the service that a call met, as other calls may know it: its status, code and class. Messages and fields may
 * hold that task's input.
 */
export class FailureSummary {
  readonly #classification: Classification;
  readonly #code: string | undefined;

  constructor(classification: Classification, error: unknown) {
    this.#classification = classification;
    this.#code = codeOf(error);
  }

  /** An error for calls that are rejected because of it. */
  toError(): Error {
    const { class: outcome, status } = this.#classification;
    const code = this.#code;
    return Object.assign(
      new Error(status === undefined ? (code ?? `an outcome of class ${outcome}`) : `HTTP ${status}`),
      status === undefined ? {} : { status },
      code === undefined ? {} : { code },
    );
  }
}

function codeOf(error: unknown): string | undefined {
  let current = error;
  for (let depth = 0; depth < MAX_CAUSES && current !== undefined && current !== null; depth++) {
    const { code, cause } = readError(current);
    if (typeof code === 'string' && CODE.test(code)) return code;
    current = cause;
  }
  return undefined;
}
