import { vi } from 'vitest';

/** Waits for what another side of a connection will do: often looked at, and patient on a busy machine. */
export const until = (condition: () => boolean | Promise<boolean>): Promise<unknown> =>
  vi.waitUntil(condition, { interval: 2, timeout: 15_000 });
