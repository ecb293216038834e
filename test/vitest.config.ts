import { readFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { fileURLToPath } from 'node:url';
import { defineConfig } from 'vitest/config';
import { isSoak } from './support/soak.js';
import { TRACE_INTERRUPTS, Watchdog } from './support/watchdog.js';

const root = new URL('..', import.meta.url);
const { paths } = JSON.parse(readFileSync(new URL('tsconfig.json', root), 'utf8')).compilerOptions;

// The entry points are listed once, in tsconfig.json.
export const alias = Object.entries<[string]>(paths).map(([name, [file]]) => ({
  find: new RegExp(`^${name}$`),
  replacement: fileURLToPath(new URL(file, root)),
}));

/** Loads and soaks that take minutes, or that need the machine for themselves: `npm run test:full`. */
const UNDER_LOAD = 'test/integration/proof.test.ts';

export default defineConfig({
  resolve: { alias },
  test: {
    exclude: ['test/package/**', 'node_modules/**'],
    // An error that escapes a promise must fail the run, whichever test it belongs to.
    dangerouslyIgnoreUnhandledErrors: false,
    execArgv: ['--expose-gc', TRACE_INTERRUPTS],
    // One for each core: by default vitest leaves one for itself, which on two cores is half of them.
    maxWorkers: availableParallelism(),
    // No test decides by how long it takes: these end only what hangs, on a machine at ten times its capacity as well.
    testTimeout: isSoak ? 1_200_000 : 120_000,
    hookTimeout: 120_000,
    // Ends what those timeouts cannot: endless loops, and many tests that each run into them.
    reporters: ['default', new Watchdog()],
    expect: { poll: { timeout: 60_000 } },
    coverage: { include: ['src/**'], provider: 'v8' },
    projects: [
      {
        extends: true,
        test: {
          name: 'all',
          include: ['test/**/*.test.ts'],
          exclude: [UNDER_LOAD, 'test/redis/**', 'test/frameworks/**'],
        },
      },
      ...(isSoak
        ? [
            {
              extends: true as const,
              test: { name: 'under load', include: [UNDER_LOAD], sequence: { groupOrder: 1 } },
            },
          ]
        : []),
    ],
  },
});
