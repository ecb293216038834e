import { EventEmitter } from 'eventemitter3';
import { refusal } from '../internal/validate.js';
import { channels } from './diagnostics.js';
import type { LifecycleEventName, LifecycleEvents } from './events.js';

/** A listener of one event. What it returns is ignored, except that a rejected promise is reported. */
export type LifecycleListener<E extends LifecycleEventName> = (payload: LifecycleEvents[E]) => unknown;

/** What the emitter calls in place of a listener: it cannot throw, and is spent after the first call where `once`. */
interface Guard {
  (payload: unknown): void;
  once: boolean;
}

/**
 * The typed lifecycle hooks. One instance may serve limiter, pool, gates and manager together.
 *
 * Invariants:
 * - Observers only. A listener that throws or rejects is reported as `hook:error`; it changes nothing for the request,
 *   and the listeners after it are still told.
 * - An event that nobody listens to costs one check: no payload is made, no clock is read.
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

  /** Calls `listener` each time `event` happens. Adding the same listener again changes nothing. */
  on<E extends LifecycleEventName>(event: E, listener: LifecycleListener<E>): this {
    return this.#add(event, listener, false);
  }

  /** Calls `listener` the next time `event` happens, and then no more. Changes nothing for one that is there already. */
  once<E extends LifecycleEventName>(event: E, listener: LifecycleListener<E>): this {
    return this.#add(event, listener, true);
  }

  /** Takes a listener away again. */
  off<E extends LifecycleEventName>(event: E, listener: LifecycleListener<E>): this {
    const guards = this.#guarded.get(event);
    const guard = guards?.get(listener);
    if (guards === undefined || guard === undefined) return this;
    guards.delete(listener);
    this.#listeners--;
    this.#emitter.off(event, guard);
    return this;
  }

  /** How many listeners an event has. */
  listenerCount(event: LifecycleEventName): number {
    return this.#emitter.listenerCount(event);
  }

  /**
   * Whether any event has a listener. For paths where a look-up by name is felt: `hasListeners || channel.hasSubscribers`
   * is cheaper than `hears`, and true wherever `hears` is.
   */
  get hasListeners(): boolean {
    return this.#listeners !== 0;
  }

  /** Whether anybody would be told of this event: ask before making its payload. */
  hears(event: LifecycleEventName): boolean {
    return (
      (this.#listeners !== 0 && this.#emitter.listenerCount(event) !== 0) || channels[event].hasSubscribers
    );
  }

  /** Tells everybody who listens. Never throws. */
  emit<E extends LifecycleEventName>(event: E, payload: LifecycleEvents[E]): void {
    this.#emitter.emit(event, payload);
    const channel = channels[event];
    if (channel.hasSubscribers) channel.publish({ event, payload });
  }

  #add<E extends LifecycleEventName>(event: E, listener: LifecycleListener<E>, once: boolean): this {
    if (!Object.hasOwn(channels, event))
      throw new TypeError(`There is no lifecycle event \`${String(event)}\``);
    if (typeof listener !== 'function') {
      throw new TypeError(`Expected the listener of \`${event}\` to be a function, got ${typeof listener}`);
    }
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
      // Taken away by a listener that was told of this very event before.
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
    this.#emitter.on(event, guard);
    return this;
  }

  #report(event: LifecycleEventName, error: unknown): void {
    // A failing listener of `hook:error` has nobody left to tell: telling itself would never end.
    if (event !== 'hook:error') this.emit('hook:error', { event, error });
  }
}

/** Refuses what is not lifecycle hooks; those of another copy of this package will do. */
export function checkHooks(value: LifecycleHooks): LifecycleHooks {
  if (typeof value?.emit !== 'function' || typeof value.hears !== 'function') {
    throw new TypeError(refusal('hooks', 'a LifecycleHooks', value));
  }
  return value;
}
