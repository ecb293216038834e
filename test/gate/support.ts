import { vi } from 'vitest';
import type { LifecycleEventName, LifecycleEvents } from '../../src/hooks/events.js';
import { LIFECYCLE_EVENTS } from '../../src/hooks/events.js';
import { LifecycleHooks } from '../../src/hooks/lifecycle-hooks.js';

/** A promise with its handles. */
export function deferred<T = void>() {
  let resolve!: (value: T | PromiseLike<T>) => void;
  let reject!: (reason: unknown) => void;
  const promise = new Promise<T>((res, rej) => {
    resolve = res;
    reject = rej;
  });
  return { promise, resolve, reject };
}

/** Where a promise stands, now. */
export type Standing =
  | { is: 'pending' }
  | { is: 'fulfilled'; value: unknown }
  | { is: 'rejected'; reason: unknown };

/** Follows a promise, without leaving its rejection unhandled. */
export function follow(promise: Promise<unknown>): { now: Standing; afterMs: number | undefined } {
  const from = performance.now();
  const followed: { now: Standing; afterMs: number | undefined } = {
    now: { is: 'pending' },
    afterMs: undefined,
  };
  const settle = (now: Standing) => {
    followed.now = now;
    followed.afterMs = performance.now() - from;
  };
  promise.then(
    (value) => settle({ is: 'fulfilled', value }),
    (reason: unknown) => settle({ is: 'rejected', reason }),
  );
  return followed;
}

/** Lets everything happen that waits for no timer. */
export const settle = () => vi.advanceTimersByTimeAsync(0);

/** Hooks that write down every event. */
export function recorder() {
  const hooks = new LifecycleHooks();
  const told: { event: LifecycleEventName; payload: unknown; atMs: number }[] = [];
  for (const event of LIFECYCLE_EVENTS) {
    hooks.on(event, (payload) => {
      told.push({ event, payload, atMs: performance.now() });
    });
  }
  const of = <E extends LifecycleEventName>(event: E) =>
    told.filter((t) => t.event === event).map((t) => t.payload as LifecycleEvents[E]);
  return { hooks, told, of };
}

/** How many listeners a signal has. */
export function countListeners(signal: AbortSignal) {
  const listeners = new Set<unknown>();
  const add = signal.addEventListener.bind(signal);
  const remove = signal.removeEventListener.bind(signal);
  signal.addEventListener = (type: string, listener: never, options?: never) => {
    listeners.add(listener);
    add(type, listener, options);
  };
  signal.removeEventListener = (type: string, listener: never, options?: never) => {
    listeners.delete(listener);
    remove(type, listener, options);
  };
  return listeners;
}

/** An error as the usual clients throw it. */
export const httpError = (status: number, headers: Record<string, string> = {}, message = `HTTP ${status}`) =>
  Object.assign(new Error(message), { status, headers: new Headers(headers) });
