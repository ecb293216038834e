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
    // The program of the isolated stubs is an ES module, whichever format starts it.
    entry: { ...entry, ...PARTS, 'stub-process': 'src/testing/stub-process.ts' },
    // The package contains src, so that "go to source definition" and debuggers show it; the maps need no copy of it. The
    // CommonJS build has none: tsup rewrites it after esbuild, and its maps would name folders of this machine.
    sourcemap: true,
    esbuildOptions: (options) => {
      options.sourcesContent = false;
    },
    noExternal: ['generic-pool'],
    esbuildPlugins: [nodeEvents],
  },
  {
    ...common,
    format: ['cjs'],
    // For `import.meta.url`, by which the isolated stubs find their program.
    shims: true,
    // p-queue is ESM only.
    noExternal: ['p-queue', 'p-timeout'],
  },
]);
