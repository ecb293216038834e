import { defineConfig } from 'vitest/config';
import { TRACE_INTERRUPTS, Watchdog } from '../support/watchdog.js';
import { alias } from '../vitest.config.js';

/** `npm run test:frameworks`: the examples with real frameworks, which are installed in their own folders. */
export default defineConfig({
  resolve: { alias },
  test: {
    name: 'frameworks',
    include: ['test/frameworks/**/*.test.ts'],
    dangerouslyIgnoreUnhandledErrors: false,
    execArgv: [TRACE_INTERRUPTS],
    reporters: ['default', new Watchdog()],
    testTimeout: 120_000,
    hookTimeout: 60_000,
    expect: { poll: { timeout: 30_000 } },
  },
});
