import { afterEach, beforeEach, onTestFinished, vi } from 'vitest';
import { endOfTurn } from './promises.js';

/** Runs each test of a file, or of the `describe` that calls it, on Vitest's fake timers. */
export function onFakeTimers(options: Parameters<typeof vi.useFakeTimers>[0] = {}): void {
  beforeEach(async () => {
    vi.useFakeTimers(options);
    // The clock is read once a turn: this one may have been read already.
    await endOfTurn();
  });
  afterEach(async () => {
    vi.useRealTimers();
    await endOfTurn();
  });
}

/**
 * Vitest's fake timers from here to `vi.useRealTimers()`, or to the end of this test in whatever way it ends: a test that
 * fails or hangs must not leave them to those that follow, each of which would then run into its timeout.
 */
export function useFakeTimers(options: Parameters<typeof vi.useFakeTimers>[0] = {}): void {
  vi.useFakeTimers(options);
  onTestFinished(() => void vi.useRealTimers());
}

/** `onFakeTimers`, with `setImmediate` and the wall clock left real. */
export const inVirtualTime = (): void =>
  onFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'performance'] });

/** Under fake timers: lets everything happen that waits for no timer. */
export const settled = () => vi.advanceTimersByTimeAsync(0);
