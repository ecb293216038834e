import { turnMs } from '../internal/clock.js';

/** The turn's clock in whole milliseconds: small integers stay off the heap, and differences survive the wrap. */
export const clockMs = (): number => turnMs() | 0;
