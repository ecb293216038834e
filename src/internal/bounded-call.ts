import { linkedController } from './abort-watch.js';

/** How a host callback is bounded. */
export interface CallBounds<T> {
  /** Milliseconds until the call counts as failed; without it the call may take for ever. */
  readonly timeoutMs?: number;
  /** Aborting it ends the call with its reason, and aborts the callback's own signal. */
  readonly signal?: AbortSignal;
  /** Makes the error of a call that ran out of time. */
  readonly timeoutError: (elapsedMs: number) => Error;
  /**
   * Takes a result that arrives after the call had already failed; an instance, say, that must be torn down. Nobody is
   * left to tell where it throws, so it should not.
   */
  readonly onLate?: (result: T) => void;
}

/**
 * Calls code that is not ours. It may return, reject, throw at once, answer late or never answer: the promise given back
 * settles in every case where a bound is set, a late rejection is swallowed, and nothing stays behind on `signal`.
 *
 * The callback gets a signal of its own, aborted when the time is up or `bounds.signal` aborts.
 */
export function boundedCall<T>(
  callback: (signal: AbortSignal) => T | PromiseLike<T>,
  bounds: CallBounds<T>,
): Promise<T> {
  const { timeoutMs, timeoutError, onLate } = bounds;
  const { controller, unlink } = linkedController(bounds.signal);
  const { signal } = controller;
  if (signal.aborted) return Promise.reject(signal.reason);

  return new Promise<T>((resolve, reject) => {
    let settled = false;
    let timer: NodeJS.Timeout | undefined;
    const settle = (): boolean => {
      if (settled) return false;
      settled = true;
      clearTimeout(timer);
      unlink();
      signal.removeEventListener('abort', onAbort);
      return true;
    };
    const onAbort = (): void => {
      if (settle()) reject(signal.reason);
    };
    signal.addEventListener('abort', onAbort);
    if (timeoutMs !== undefined) {
      timer = setTimeout(() => controller.abort(timeoutError(timeoutMs)), timeoutMs);
    }

    let answer: T | PromiseLike<T>;
    try {
      answer = callback(signal);
    } catch (error) {
      if (settle()) reject(error);
      return;
    }
    Promise.resolve(answer).then(
      (result) => {
        if (settle()) resolve(result);
        else giveLate(result, onLate);
      },
      (error: unknown) => {
        if (settle()) reject(error);
      },
    );
  });
}

function giveLate<T>(result: T, onLate: ((result: T) => void) | undefined): void {
  try {
    onLate?.(result);
  } catch {
    // The call is over, and its caller settled long ago: a throw would only end the process.
  }
}
