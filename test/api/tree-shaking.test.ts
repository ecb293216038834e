import { resolve } from 'node:path';
import { build, type Plugin } from 'esbuild';
import { expect, it } from 'vitest';

/** Marks every module as one with side effects, so that esbuild decides statement by statement, and nothing else. */
const everyStatementCounts: Plugin = {
  name: 'every-statement-counts',
  setup({ onResolve }) {
    onResolve({ filter: /^\./ }, ({ path, resolveDir }) => ({
      path: resolve(resolveDir, path.replace(/\.js$/, '.ts')),
      sideEffects: true,
    }));
    onResolve({ filter: /^[^./]/ }, ({ path }) => ({ path, external: true, sideEffects: false }));
  },
};

it('no module of the main entry point has top-level code that a bundler must keep', async () => {
  const { outputFiles } = await build({
    stdin: { contents: "import './src/index.ts'", resolveDir: process.cwd() },
    bundle: true,
    format: 'esm',
    platform: 'node',
    target: 'node20',
    minifySyntax: true,
    treeShaking: true,
    legalComments: 'none',
    write: false,
    plugins: [everyStatementCounts],
  });
  expect(outputFiles[0]!.text).toBe('');
});
