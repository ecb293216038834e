import { readFileSync } from 'node:fs';
import { defineConfig, type Options } from 'tsup';

type Plugin = NonNullable<Options['esbuildPlugins']>[number];

// The entry points are listed once, in tsconfig.json.
const { paths } = JSON.parse(readFileSync('tsconfig.json', 'utf8')).compilerOptions as {
  paths: Record<string, [string]>;
};
const entry = Object.fromEntries(
  Object.entries(paths).map(([name, [file]]) => [name.split('/')[1] ?? 'index', file]),
);

/**
 * Entries that the package does not export. What they share goes into chunks, so that `index.js` only re-exports, and a
 * bundler drops the chunks that a host does not use, with the dependencies that they import.
 */
const PARTS = {
  'parts/limiter': 'src/limiter/concurrency-limiter.ts',
  'parts/pool': 'src/pool/pipeline-pool.ts',
  'parts/generic-pool': 'node_modules/generic-pool/index.js',
  'parts/gate': 'src/gate/service-gate.ts',
  'parts/tools': 'src/tools/pipeline-factory.ts',
  'parts/manager': 'src/manager/pipeline-manager.ts',
};

/** generic-pool is CommonJS: its `require("events")` would throw in an ES module. As an import it works everywhere. */
const nodeEvents: Plugin = {
  name: 'node-events',
  setup({ onResolve, onLoad }) {
    onResolve({ filter: /^events$/ }, () => ({ path: 'events', namespace: 'node-events' }));
    onLoad({ filter: /^/, namespace: 'node-events' }, () => ({
      contents: "export { EventEmitter } from 'node:events'",
    }));
  },
};

const common: Options = {
  entry,
  target: 'node20',
  // Classes that two entry points share are written once: written twice, they would be two classes.
  splitting: true,
  removeNodeProtocol: false,
  dts: {
    entry: { ...entry, 'index-ts5.4': 'src/index-ts5.4.ts' },
    // tsup sets `baseUrl`.
    compilerOptions: { ignoreDeprecations: '6.0', stripInternal: true },
    banner: '/// <reference lib="esnext.disposable" />',
  },
};

export default defineConfig([
  {
    ...common,
    format: ['esm'],
    entry: { ...entry, ...PARTS },
    noExternal: ['generic-pool'],
    esbuildPlugins: [nodeEvents],
  },
  {
    ...common,
    format: ['cjs'],
    // p-queue is ESM only.
    noExternal: ['p-queue', 'p-timeout'],
  },
]);
