// What a bundler emits for a host, minified and compressed with brotli, without the code of dependencies.
import { readFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { brotliCompressSync } from 'node:zlib';
import { build } from 'esbuild';

const KB = 1024;

// Each step up has its reason in docs/decisions/0007.
const BUDGETS = [
  { host: 'everything of `.`', code: "export * from 'pipeline-pool'", limit: 63.4 * KB },
  {
    host: 'ConcurrencyLimiter',
    code: "export { ConcurrencyLimiter } from 'pipeline-pool'",
    limit: 10.25 * KB,
  },
  {
    host: 'ConcurrencyLimiter and PipelinePool',
    code: "export { ConcurrencyLimiter, PipelinePool } from 'pipeline-pool'",
    limit: 20.8 * KB,
  },
];

/** Files of this package that an import of `.` loads. Each takes a process most of a millisecond. */
const MAX_FILES = 3;

/** Leaves out what is not ours, also where dist contains it. */
const dependenciesAreExternal = (dependencies) => ({
  name: 'dependencies-are-external',
  setup({ onResolve }) {
    onResolve({ filter: /^([^./]|\.\/dependencies\.js$)/ }, ({ path }) =>
      dependencies.includes(path) || path.startsWith('.')
        ? { path, external: true, sideEffects: false }
        : undefined,
    );
  },
});

export async function checkSizes({ root, installed }) {
  const { dependencies } = JSON.parse(await readFile(join(root, 'package.json'), 'utf8'));
  const exceeded = [];
  for (const { host, code, limit } of BUDGETS) {
    const { outputFiles } = await build({
      stdin: { contents: code, resolveDir: installed },
      bundle: true,
      format: 'esm',
      platform: 'node',
      minify: true,
      legalComments: 'none',
      write: false,
      plugins: [dependenciesAreExternal(Object.keys(dependencies))],
    });
    const bytes = brotliCompressSync(outputFiles[0].contents).length;
    console.log(`  ${host}: ${(bytes / KB).toFixed(2)} kB of ${limit / KB} kB`);
    if (bytes > limit) exceeded.push(host);
  }
  if (exceeded.length > 0) throw new Error(`Over budget: ${exceeded.join(', ')}`);

  const { metafile } = await build({
    entryPoints: [join(installed, 'node_modules/pipeline-pool/dist/index.js')],
    bundle: true,
    format: 'esm',
    platform: 'node',
    packages: 'external',
    write: false,
    metafile: true,
  });
  const files = Object.keys(metafile.inputs).map((path) => basename(path));
  console.log(`  \`.\` loads ${files.join(', ')}`);
  if (files.length > MAX_FILES) throw new Error(`More than ${MAX_FILES} files`);
}
