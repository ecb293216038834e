// Packs the package, installs it into three empty projects (ESM, CommonJS, TypeScript) as a user would, and uses it there.
import { execFileSync } from 'node:child_process';
import { cpSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('../..', import.meta.url));
const scratch = mkdtempSync(join(tmpdir(), 'pipeline-pool-consumer-'));
const run = (command, args, cwd) =>
  execFileSync(command, args, { cwd, stdio: ['ignore', 'pipe', 'inherit'] });

const USE = `
const seen = [];
const manager = createPipelineManager({
  config: PRESETS.light,
  create: ({ instanceId }) => ({ instanceId }),
  destroy: ({ instanceId }) => seen.push('destroyed ' + instanceId),
});
logTo(manager.hooks, { info: (line) => seen.push(line), warn() {}, error() {}, debug() {} });
`;
const CHECK = `
const expected = [
  'Concurrency: 1/5 active requests',
  'Acquired pipeline instance 1 for task t1',
  'Released pipeline instance 1 for task t1',
  'destroyed 1',
];
if (answer !== 42 || JSON.stringify(seen) !== JSON.stringify(expected)) throw new Error(JSON.stringify({ answer, seen }));
`;
const NAMES = '{ createPipelineManager, logTo, PipelinePoolError, PRESETS }';

const PROJECTS = {
  esm: {
    files: {
      'index.mjs': `import ${NAMES} from 'pipeline-pool';
import { startStubServices } from 'pipeline-pool/testing';
${USE}
const answer = await manager.run('t1', ({ pipeline }) => 41 + pipeline.instanceId);
await manager.shutdown();
${CHECK}
const stubs = await startStubServices();
await stubs.stop();
// The CommonJS copy of the package makes errors that are the same to instanceof.
const { createRequire } = await import('node:module');
const cjs = createRequire(import.meta.url)('pipeline-pool');
if (cjs.PipelinePoolError === PipelinePoolError) throw new Error('one copy only: nothing shown');
if (!(new cjs.ManagerClosedError('manager') instanceof PipelinePoolError)) throw new Error('instanceof across copies');
console.log('esm: works');
`,
    },
    commands: [['node', ['index.mjs']]],
  },
  cjs: {
    files: {
      'index.cjs': `const ${NAMES} = require('pipeline-pool');
${USE}
(async () => {
  const answer = await manager.run('t1', ({ pipeline }) => 41 + pipeline.instanceId);
  await manager.shutdown();
${CHECK}
  console.log('cjs: works');
})();
`,
    },
    commands: [['node', ['index.cjs']]],
  },
  typescript: {
    files: {
      'index.mts': `import ${NAMES} from 'pipeline-pool';
${USE.replace('const seen = []', 'const seen: string[] = []').replace('(line) =>', '(line: string) =>')}
const answer: number = await manager.run('t1', ({ pipeline }) => 41 + pipeline.instanceId);
await manager.shutdown();
${CHECK}
// @ts-expect-error a misspelt option does not compile
export const misspelt = () => createPipelineManager({ creat: () => 1 });
export const error: typeof PipelinePoolError = PipelinePoolError;
console.log('typescript: works');
`,
      'index.cts': `import pool = require('pipeline-pool');
export const presets: { readonly poolSize: number } = pool.PRESETS.heavy;
`,
      'tsconfig.json': JSON.stringify({
        compilerOptions: {
          strict: true,
          module: 'nodenext',
          target: 'es2022',
          lib: ['es2022'],
          types: ['node'],
          outDir: 'out',
        },
        include: ['index.mts', 'index.cts'],
      }),
    },
    commands: [
      ['node', [join(root, 'node_modules/typescript/bin/tsc')]],
      ['node', ['out/index.mjs']],
    ],
  },
};

try {
  run('npm', ['pack', '--ignore-scripts', '--pack-destination', scratch], root);
  const tarball = join(
    scratch,
    readdirSync(scratch).find((name) => name.endsWith('.tgz')),
  );
  const installed = join(scratch, 'installed');
  mkdirSync(installed);
  writeFileSync(join(installed, 'package.json'), JSON.stringify({ private: true }));
  run('npm', ['install', '--prefer-offline', '--no-audit', '--no-fund', tarball], installed);
  cpSync(join(root, 'node_modules/@types/node'), join(installed, 'node_modules/@types/node'), {
    recursive: true,
  });
  cpSync(join(root, 'node_modules/undici-types'), join(installed, 'node_modules/undici-types'), {
    recursive: true,
  });
  for (const [name, { files, commands }] of Object.entries(PROJECTS)) {
    const project = join(scratch, name);
    mkdirSync(project);
    cpSync(installed, project, { recursive: true });
    for (const [file, content] of Object.entries(files)) writeFileSync(join(project, file), content);
    for (const [command, args] of commands) process.stdout.write(run(command, args, project));
  }
} catch (error) {
  process.stderr.write(`${error.stdout ?? ''}\n${error.message}\n`);
  process.exitCode = 1;
} finally {
  rmSync(scratch, { recursive: true, force: true });
}
