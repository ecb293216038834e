import type { TaskIds } from '../hooks/events.js';
import type { GateCallOptions, GateSettings } from './gate-options.js';
import type { Verdict } from './outcome.js';

/** Tells of one call, as it goes on. */
export class CallTeller {
  readonly callId: number;
  readonly #settings: GateSettings;
  readonly #options: GateCallOptions;

  constructor(settings: GateSettings, callId: number, options: GateCallOptions) {
    this.#settings = settings;
    this.callId = callId;
    this.#options = options;
  }

  /** The fields that all of a call's events have. */
  told(): { source: string; callId: number; toolCallId?: number } & TaskIds {
    const { taskId, requestId, tenant, toolCallId } = this.#options;
    return {
      source: this.#settings.name,
      callId: this.callId,
      ...(taskId === undefined ? {} : { taskId }),
      ...(requestId === undefined ? {} : { requestId }),
      ...(tenant === undefined ? {} : { tenant }),
      ...(toolCallId === undefined ? {} : { toolCallId }),
    };
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
