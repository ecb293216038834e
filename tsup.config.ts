import { readFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { resolve } from 'node:path';
import { build } from 'esbuild';
import { defineConfig, type Options } from 'tsup';

type Plugin = NonNullable<Options['esbuildPlugins']>[number];

// The entry points are listed once, in tsconfig.json.
const { paths } = JSON.parse(readFileSync('tsconfig.json', 'utf8')).compilerOptions as {
  paths: Record<string, [string]>;
};
const entry = Object.fromEntries(
  Object.entries(paths).map(([name, [file]]) => [name.split('/')[1] ?? 'index', file]),
);

/** The program of the isolated stubs is an ES module, whichever format starts it. */
const esmEntry = { ...entry, 'stub-process': 'src/testing/stub-process.ts' };

/** The modules that an entry bundles. */
async function modulesOf(file: string): Promise<Set<string>> {
  const { metafile } = await build({
    entryPoints: [file],
    bundle: true,
    platform: 'node',
    format: 'esm',
    packages: 'external',
    write: false,
    metafile: true,
  });
  return new Set(Object.values(metafile.outputs).flatMap(({ inputs }) => Object.keys(inputs)));
}

/**
 * Puts what `.` shares with other entries into one file. esbuild writes a file for each set of entries that have a module
 * in common; each file adds most of a millisecond to an import. So every entry imports all of the shared modules.
 */
const oneSharedFile: Plugin = {
  name: 'one-shared-file',
  async setup({ onResolve, onLoad }) {
    const { index, ...others } = esmEntry;
    const elsewhere = new Set<string>();
    for (const file of Object.values(others)) for (const name of await modulesOf(file)) elsewhere.add(name);
    const shared = new Set(
      [...(await modulesOf(index))].filter((name) => elsewhere.has(name)).map((name) => resolve(name)),
    );
    onResolve({ filter: /^\.{0,2}\/.*\.[jt]s$/ }, ({ path, resolveDir }) => {
      const file = resolve(resolveDir, path.replace(/\.js$/, '.ts'));
      return shared.has(file) ? { path: file, sideEffects: true } : undefined;
    });
    const entries = new Set(Object.values(esmEntry).map((file) => resolve(file)));
    onLoad({ filter: /\.ts$/ }, async ({ path }) => {
      if (!entries.has(path)) return undefined;
      const imports = [...shared].map((file) => `import ${JSON.stringify(file)};`);
      return { contents: `${await readFile(path, 'utf8')}\n${imports.join('\n')}`, loader: 'ts' };
    });
  },
};

/** Dependencies that the ESM build contains: what src imports of each, as `dependencies.js` exports it. */
const BUNDLED: Record<string, string> = {
  eventemitter3: 'EventEmitter',
  'generic-pool': 'default as genericPool',
  'lru-cache': 'LRUCache',
  'p-queue': 'default as PQueue',
};

/**
 * CommonJS as ES modules: the `require` of a CommonJS module would throw in a bundle that is an ES module. A bundler cannot
 * know that reading the base class of generic-pool's pool has no side effect, unless a comment says so.
 */
const asModules: Plugin = {
  name: 'as-modules',
  setup({ onLoad }) {
    onLoad({ filter: /\/generic-pool\/(index|lib\/\w+)\.js$/ }, async ({ path }) => {
      const contents = (await readFile(path, 'utf8'))
        .replace(/^const (\w+) = require\("(.+)"\)\.(\w+);/gm, "import { $3 as $1 } from '$2';")
        .replace(/^const (\w+) = require\("(.+)"\);/gm, "import $1 from '$2';")
        .replace("from 'events'", "from 'node:events'")
        .replace(/^(class (\w+) extends EventEmitter .*^\})$/ms, 'const $2 = /* @__PURE__ */ (() => $1)();')
        .replace(/^module\.exports = /m, 'export default ')
        .replace(/^exports\.(\w+) = /gm, 'export const $1 = ');
      return { contents };
    });
    onLoad({ filter: /\/eventemitter3\/index\.js$/ }, async ({ path }) => {
      const contents = (await readFile(path, 'utf8')).replace(/^if \(.*module\) \{[^}]*\}\s*$/m, '');
      return { contents: `${contents}\nexport default EventEmitter;` };
    });
  },
};

/**
 * Puts the bundled dependencies into one file beside ours. Each file adds most of a millisecond to an import, and the first
 * CommonJS module that an ES module imports another six.
 */
const oneFileOfDependencies: Plugin = {
  name: 'one-file-of-dependencies',
  setup({ onResolve, onLoad, onEnd, initialOptions }) {
    const file = './dependencies.js';
    onResolve({ filter: /^\w/ }, ({ path }) =>
      path in BUNDLED ? { path, namespace: 'bundled', sideEffects: false } : undefined,
    );
    onLoad({ filter: /./, namespace: 'bundled' }, ({ path }) => {
      const [imported, exported = imported] = BUNDLED[path]!.split(' as ');
      return { contents: `export { ${exported} as ${imported} } from '${file}';` };
    });
    onResolve({ filter: /^\./, namespace: 'bundled' }, () => ({
      path: file,
      external: true,
      sideEffects: false,
    }));
    onEnd(async () => {
      const { outdir = 'dist', target } = initialOptions;
      const exports = Object.entries(BUNDLED).map(([name, what]) => `export { ${what} } from '${name}';`);
      await build({
        stdin: { contents: exports.join('\n'), resolveDir: process.cwd() },
        bundle: true,
        platform: 'node',
        format: 'esm',
        target,
        outfile: resolve(outdir, file),
        plugins: [asModules],
      });
    });
  },
};

const common: Options = {
  entry,
  target: 'node20',
  // Classes that two entry points share are written once: written twice, they would be two classes.
  splitting: true,
  removeNodeProtocol: false,
  // Constants, which a bundler cannot know: it keeps the read of a property.
  define: { 'Number.POSITIVE_INFINITY': 'Infinity', 'Number.MAX_SAFE_INTEGER': '9007199254740991' },
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
    entry: esmEntry,
    // The package contains src, so that "go to source definition" and debuggers show it; the maps need no copy of it. The
    // CommonJS build has none: tsup rewrites it after esbuild, and its maps would name folders of this machine.
    sourcemap: true,
    esbuildOptions: (options) => {
      options.sourcesContent = false;
    },
    noExternal: Object.keys(BUNDLED),
    esbuildPlugins: [oneSharedFile, oneFileOfDependencies],
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
