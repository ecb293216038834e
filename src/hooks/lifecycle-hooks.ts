/**
 * The hooks folder: `events.ts` has the event names and payload types, this file the emitter and its diagnostics
 * channels, `attachment.ts` the listeners of one observer, which are removed together. The only importer of eventemitter3.
 */
import { type Channel, channel } from 'node:diagnostics_channel';
import { EventEmitter } from 'eventemitter3';
import { type Redact, summarizeError } from '../internal/error-summary.js';
import { callable, checkEach, refusal } from '../internal/validate.js';
import { LIFECYCLE_EVENTS, type LifecycleEventName, type LifecycleEvents } from './events.js';

/** A listener of one event. Its result is ignored, but a promise that rejects is reported as `hook:error`. */
export type LifecycleListener<E extends LifecycleEventName> = (payload: LifecycleEvents[E]) => unknown;

/** How `LifecycleHooks` are built. */
export interface LifecycleHooksOptions {
  /**
   * Hides more than the library does: called with each text of a foreign error (name, `code`, message) before an event
   * carries it, after the library's own redaction. If it throws or returns anything but a string, the text is dropped.
   * @default only keys and credentials are redacted
   */
  readonly redact?: ((text: string) => string) | undefined;
}

/**
 * Each event is also published on the diagnostics channel `pipeline-pool:<event>`, for tracing tools that subscribe from
 * outside. A message is `{ event, payload }`, made only while the channel has subscribers.
 */
export const channels = /* @__PURE__ */ Object.freeze(
  /* @__PURE__ */ Object.fromEntries(
    /* @__PURE__ */ LIFECYCLE_EVENTS.map((event) => [event, channel(`pipeline-pool:${event}`)]),
  ),
) as Readonly<Record<LifecycleEventName, Channel>>;

/** The channel of one event, for a module that keeps it in a constant: a bundler may drop the call with the constant. */
export const channelOf = (event: LifecycleEventName): Channel => channels[event];

/** What the emitter calls in place of a listener: it never throws, and removes itself after one call if `once`. */
interface Guard {
  (payload: unknown): void;
  once: boolean;
}

/**
 * The typed lifecycle hooks. One instance may serve limiter, pool, gates and manager together.
 *
 * Invariants:
 * - Listeners only observe. One that throws or rejects is reported as `hook:error`; it changes nothing for the request,
 *   and the listeners after it are still called.
 * - An event without listeners costs one check: no payload is built, no clock is read.
 *
 * @throws {TypeError} naming the option that is wrong
 *
 * @example
 * const hooks = new LifecycleHooks();
 * hooks.on('lease:acquired', ({ instanceId, taskId, waitMs }) => {
 *   console.log(`task ${taskId} got instance ${instanceId} after ${waitMs} ms`);
 * });
 * const pool = new PipelinePool({ size: 5, create: () => new ResearchPipeline(), hooks });
 */
export class LifecycleHooks {
  readonly #emitter = new EventEmitter();
  readonly #guarded = new Map<LifecycleEventName, Map<unknown, Guard>>();
  #listeners = 0;
  /**
   * Whether any event has a listener; set by `on`, `once` and `off`. A plain field for hot paths: `hasAnyListeners ||
   * channel.hasSubscribers` is cheaper than `hasListeners(event)`, and true whenever that is.
   */
  hasAnyListeners = false;
  /** The redaction of the host; emitters apply it last. */
  readonly redact: Redact | undefined;

  constructor(options: LifecycleHooksOptions = {}) {
    this.redact = checkEach('LifecycleHooks', options, { redact: callable }).redact;
  }

  /** Calls `listener` on each `event`. Adding the same listener again changes nothing. */
  on<E extends LifecycleEventName>(event: E, listener: LifecycleListener<E>): this {
    return this.#add(event, listener, false);
  }

  /** Calls `listener` on the next `event` only. Changes nothing if it is a listener of `event` already. */
  once<E extends LifecycleEventName>(event: E, listener: LifecycleListener<E>): this {
    return this.#add(event, listener, true);
  }

  /** Removes a listener. */
  off<E extends LifecycleEventName>(event: E, listener: LifecycleListener<E>): this {
    const guards = this.#guarded.get(event);
    const guard = guards?.get(listener);
    if (guards === undefined || guard === undefined) return this;
    guards.delete(listener);
    this.hasAnyListeners = --this.#listeners > 0;
    this.#emitter.off(event, guard);
    return this;
  }

  /** The number of listeners of an event, without the subscribers of its channel. */
  listenerCount(event: LifecycleEventName): number {
    return this.#emitter.listenerCount(event);
  }

  /** Whether `event` has listeners or channel subscribers: check before building its payload. */
  hasListeners(event: LifecycleEventName): boolean {
    return (
      (this.hasAnyListeners && this.#emitter.listenerCount(event) !== 0) || channels[event].hasSubscribers
    );
  }

  /** Calls the listeners of `event` and publishes it on its channel. Never throws. */
  emit<E extends LifecycleEventName>(event: E, payload: LifecycleEvents[E]): void {
    this.#emitter.emit(event, payload);
    const channel = channels[event];
    if (channel.hasSubscribers) channel.publish({ event, payload });
  }

  #add<E extends LifecycleEventName>(event: E, listener: LifecycleListener<E>, once: boolean): this {
    if (!Object.hasOwn(channels, event))
      throw new TypeError(`There is no lifecycle event \`${String(event)}\``);
    callable(`listener of ${event}`, listener);
    let guards = this.#guarded.get(event);
    if (guards === undefined) {
      guards = new Map();
      this.#guarded.set(event, guards);
    }
    const known = guards.get(listener);
    if (known !== undefined) {
      known.once &&= once;
      return this;
    }
    const callListener = (payload: unknown): void => {
      // Removed by an earlier listener of the same emit.
      if (guards.get(listener) !== guard) return;
      if (guard.once) this.off(event, listener);
      try {
        const answer = listener(payload as LifecycleEvents[E]);
        if (typeof (answer as PromiseLike<unknown> | undefined)?.then === 'function') {
          Promise.resolve(answer).catch((error: unknown) => this.#report(event, error));
        }
      } catch (error) {
        this.#report(event, error);
      }
    };
    const guard: Guard = Object.assign(callListener, { once });
    guards.set(listener, guard);
    this.#listeners++;
    this.hasAnyListeners = true;
    this.#emitter.on(event, guard);
    return this;
  }

  #report(event: LifecycleEventName, error: unknown): void {
    // Reporting a failed listener of `hook:error` to itself would never end.
    if (event !== 'hook:error') this.emit('hook:error', { event, error: summarizeError(error, this.redact) });
  }
}

class SilentHooks extends LifecycleHooks {
  override hasListeners(): boolean {
    return false;
  }

  override emit(): void {}
}

/** For a limiter inside a pool or a gate, whose activity the pool or gate emits as its own events. */
export const SILENT_HOOKS: LifecycleHooks = /* @__PURE__ */ new SilentHooks();

/** Accepts the hooks of any copy of this package, and nothing else. */
export function checkHooks(option: string, value: unknown): LifecycleHooks {
  const hooks = value as LifecycleHooks | null | undefined;
  if (typeof hooks?.emit !== 'function' || typeof hooks.hasListeners !== 'function')
    throw new TypeError(refusal(option, 'a LifecycleHooks', value));
  return hooks;
}
