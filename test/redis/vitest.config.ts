import { defineConfig } from 'vitest/config';
import { TRACE_INTERRUPTS, Watchdog } from '../support/watchdog.js';
import { alias } from '../vitest.config.js';

/** `npm run test:redis`: against a real Redis, in real processes. */
export default defineConfig({
  resolve: { alias },
  test: {
    name: 'redis',
    include: ['test/redis/**/*.test.ts'],
    dangerouslyIgnoreUnhandledErrors: false,
    // Each file starts servers and processes of its own, and mostly waits for leases to end.
    maxWorkers: 2,
    execArgv: [TRACE_INTERRUPTS],
    reporters: ['default', new Watchdog()],
    testTimeout: 120_000,
    hookTimeout: 60_000,
  },
});
