import { getEventListeners } from 'node:events';

/** How many abort listeners a signal has. */
export const listenersOf = (signal: AbortSignal): number => getEventListeners(signal, 'abort').length;

/** Records which listeners a signal has from now on. */
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
