import type { TaskIds } from '../hooks/events.js';
import { causeOf, copyOf, MASK, type Mask, rememberMask } from '../internal/told-error.js';
import type { GateCallOptions, GateSettings } from './gate-options.js';
import type { KeyMask } from './key-mask.js';
import type { Verdict } from './outcome.js';

/** Tells of one call, as it goes on, without keys and without what its maker hides. */
export class CallTeller {
  readonly #settings: GateSettings;
  readonly #callId: number;
  readonly #options: GateCallOptions;
  readonly #mask: Mask;

  constructor(settings: GateSettings, callId: number, options: GateCallOptions, keys: KeyMask) {
    this.#settings = settings;
    this.#callId = callId;
    this.#options = options;
    this.#mask = keys.with(options[MASK]);
  }

  /** The fields that all of a call's events have. */
  told(): { source: string; callId: number; toolCallId?: number } & TaskIds {
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

  /** A failure, for an event: never the client's own error, which may show anything. */
  failure(error: unknown): unknown {
    return copyOf(error, this.#mask);
  }

  /** Its maker gets a failure as it was thrown. Events beyond the gate that tell of it hide what this call's do. */
  mark(error: unknown): void {
    rememberMask(error, this.#mask);
  }

  /** A failure as the cause of an error that the maker of this call gets, and nobody else. */
  cause(error: unknown): unknown {
    return causeOf(error, this.#mask);
  }

  started(attempt: number, key: string | undefined, waitMs: number): void {
    const { hooks } = this.#settings;
    if (!hooks.hears('call:started')) return;
    hooks.emit('call:started', { ...this.told(), attempt, ...(key === undefined ? {} : { key }), waitMs });
  }

  retried(attempt: number, key: string | undefined, verdict: Verdict, delayMs: number): void {
    const { hooks } = this.#settings;
    if (!hooks.hears('call:retried')) return;
    hooks.emit('call:retried', {
      ...this.told(),
      attempt,
      ...(key === undefined ? {} : { key }),
      class: verdict.class,
      ...(verdict.status === undefined ? {} : { status: verdict.status }),
      delayMs,
    });
  }

  throttled(reason: 'rate' | 'cooldown' | 'backoff', waitMs: number): void {
    const { hooks } = this.#settings;
    if (hooks.hears('call:throttled')) hooks.emit('call:throttled', { ...this.told(), reason, waitMs });
  }
}
