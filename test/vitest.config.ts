import { fileURLToPath } from 'node:url';
import { defineConfig } from 'vitest/config';

const source = (path: string) => fileURLToPath(new URL(`../src/${path}`, import.meta.url));

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
    include: ['test/**/*.test.ts'],
    exclude: ['test/package/**', 'node_modules/**'],
    typecheck: { enabled: true, include: ['test/**/*.test-d.ts'], tsconfig: 'tsconfig.json' },
    // A fault that escapes a promise must fail the run, whichever test it belongs to.
    dangerouslyIgnoreUnhandledErrors: false,
    execArgv: ['--expose-gc'],
    testTimeout: 20_000,
    coverage: { include: ['src/**'], provider: 'v8' },
  },
});
