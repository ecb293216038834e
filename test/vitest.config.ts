import { fileURLToPath } from 'node:url';
import { defineConfig } from 'vitest/config';

const source = (path: string) => fileURLToPath(new URL(`../src/${path}`, import.meta.url));

const UNDER_LOAD = 'test/integration/proof.test.ts';

export default defineConfig({
  resolve: {
    alias: [
      { find: /^pipeline-pool$/, replacement: source('index.ts') },
      { find: /^pipeline-pool\/prometheus$/, replacement: source('observability/prometheus.ts') },
      { find: /^pipeline-pool\/opentelemetry$/, replacement: source('observability/opentelemetry.ts') },
      { find: /^pipeline-pool\/testing$/, replacement: source('testing/index.ts') },
    ],
  },
  test: {
    exclude: ['test/package/**', 'node_modules/**'],
    // A fault that escapes a promise must fail the run, whichever test it belongs to.
    dangerouslyIgnoreUnhandledErrors: false,
    execArgv: ['--expose-gc'],
    testTimeout: 20_000,
    coverage: { include: ['src/**'], provider: 'v8' },
    projects: [
      {
        extends: true,
        test: {
          name: 'all',
          include: ['test/**/*.test.ts'],
          exclude: [UNDER_LOAD],
          typecheck: { enabled: true, include: ['test/**/*.test-d.ts'], tsconfig: 'tsconfig.json' },
        },
      },
      {
        extends: true,
        // What counts how many calls come within moments has the machine to itself.
        test: { name: 'under load', include: [UNDER_LOAD], sequence: { groupOrder: 1 } },
      },
    ],
  },
});
