// Bundles small hosts with each bundler, and runs the bundles where no node_modules is in reach.
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import commonjs from '@rollup/plugin-commonjs';
import { nodeResolve } from '@rollup/plugin-node-resolve';
import * as esbuild from 'esbuild';
import { rollup } from 'rollup';
import webpack from 'webpack';

const HOSTS = {
  limiter: {
    code: `
import { ConcurrencyLimiter } from 'pipeline-pool';
const limiter = new ConcurrencyLimiter({ maxConcurrent: 1 });
const results = await Promise.all([1, 2, 3].map((n) => limiter.run(() => n)));
console.log(results.join());
`,
    prints: '1,2,3',
    // Names that minifiers keep.
    lacks: {
      'generic-pool': 'evictionRunIntervalMillis',
      'p-queue': 'carryoverIntervalCount',
      'lru-cache': 'ttlAutopurge',
    },
  },
  everything: {
    code: `
import { createPipelineManager, ServiceGate } from 'pipeline-pool';
import { diagnose } from 'pipeline-pool/diagnosis';
const gate = new ServiceGate({ name: 'search', maxConcurrent: 1, cache: { max: 10, ttlMs: 1000 }, rate: [{ limit: 9, perMs: 1000 }] });
const manager = createPipelineManager({
  config: { poolSize: 1, maxConcurrentRequests: 3 },
  gates: [gate],
  create: ({ instanceId }) => ({ instanceId }),
});
const run = (task) => manager.run(task, ({ pipeline }) => gate.run(() => pipeline.instanceId, { cacheKey: task }));
const results = await Promise.all(['a', 'b', 'c'].map(run));
const { healthy } = diagnose(manager);
await manager.shutdown();
console.log(results.join(), typeof healthy);
`,
    prints: '1,1,1 boolean',
    lacks: {},
  },
};

/** Each writes one file. Top-level await needs an ES module, so a CommonJS host is wrapped. */
const BUNDLERS = {
  esbuild: (entry, outfile, format) =>
    esbuild.build({
      entryPoints: [entry],
      outfile,
      bundle: true,
      platform: 'node',
      format: format === 'cjs' ? 'cjs' : 'esm',
      minify: true,
      logLevel: 'error',
    }),
  webpack: (entry, outfile, format) =>
    new Promise((resolve, reject) => {
      const [, path, filename] = /^(.*)\/(.*)$/.exec(outfile);
      webpack(
        {
          entry,
          mode: 'production',
          target: 'node20',
          experiments: { outputModule: format === 'mjs' },
          output: {
            path,
            filename,
            module: format === 'mjs',
            chunkFormat: format === 'mjs' ? 'module' : 'commonjs',
          },
        },
        (error, stats) => {
          if (error) reject(error);
          else if (stats.hasErrors()) reject(new Error(stats.toString({ all: false, errors: true })));
          else resolve();
        },
      );
    }),
  rollup: async (entry, outfile, format) => {
    const bundle = await rollup({
      input: entry,
      plugins: [nodeResolve({ preferBuiltins: true, exportConditions: ['node'] }), commonjs()],
      onLog: (level, { message }) => {
        if (level === 'warn') throw new Error(message);
      },
      external: (id) => id.startsWith('node:'),
    });
    await bundle.write({
      file: outfile,
      format: format === 'cjs' ? 'cjs' : 'es',
      inlineDynamicImports: true,
    });
  },
  // In the host's folder, as tsup reads the package.json and tsconfig.json that it finds there.
  tsup: async (entry, outfile, format, { root, run }) => {
    const [, outDir, name] = /^(.*)\/(.*)\.\w+$/.exec(outfile);
    const config = join(dirname(entry), 'tsup.config.mjs');
    const options = {
      entry: { [name]: entry },
      outDir,
      format: format === 'cjs' ? 'cjs' : 'esm',
      platform: 'node',
    };
    await writeFile(
      config,
      `export default { ...${JSON.stringify(options)}, noExternal: [/./], outExtension: () => ({ js: '.${format}' }) };`,
    );
    await run('node', [join(root, 'node_modules/tsup/dist/cli-default.js'), '--silent'], dirname(entry));
  },
};

const wrapped = (code) =>
  code.replace(/^(import .*\n)+/m, (imports) => `${imports}async function main() {\n`).concat('}\nmain();\n');

export async function checkBundlers({ root, installed, scratch, run }) {
  const out = join(scratch, 'bundles');
  await mkdir(out);
  const failures = [];
  for (const [host, { code, prints, lacks }] of Object.entries(HOSTS)) {
    for (const format of ['mjs', 'cjs']) {
      const entry = join(installed, `${host}-${format}.mjs`);
      await writeFile(entry, format === 'cjs' ? wrapped(code.trimStart()) : code);
      for (const [name, bundle] of Object.entries(BUNDLERS)) {
        const outfile = join(out, `${host}-${name}.${format}`);
        try {
          await bundle(entry, outfile, format, { root, run });
          const printed = (await run('node', [outfile], out)).trim();
          if (printed !== prints) throw new Error(`printed ${printed}`);
          const text = await readFile(outfile, 'utf8');
          for (const [dependency, word] of Object.entries(lacks)) {
            if (text.includes(word)) throw new Error(`contains ${dependency}`);
          }
          console.log(`  ${host}, ${name}, ${format}: ${(text.length / 1000).toFixed(0)} kB`);
        } catch (error) {
          failures.push(`${host}, ${name}, ${format}: ${error.message}`);
        }
      }
    }
  }
  if (failures.length > 0) throw new Error(failures.join('\n'));
}
