// Hosts that use the installed package: ESM, CommonJS, and TypeScript with the oldest and the newest supported compiler;
// on Bun and Deno, ESM and CommonJS.
import { cp, mkdir, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

/** By alias: each compiler in a folder of its own. */
const OLDEST = 'typescript-oldest';
const NEWEST = 'typescript-newest';
export const COMPILERS = [
  `${OLDEST}@npm:typescript@5.4.5`,
  `${NEWEST}@npm:typescript@7.0.2`,
  '@types/node@20.19.43',
];

const USE = `
const seen = [];
const manager = createPipelineManager({
  config: PRESETS.light,
  create: ({ instanceId }) => ({ instanceId }),
  destroy: ({ instanceId }) => { seen.push('destroyed ' + instanceId); },
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

const ESM_HOST = `import ${NAMES} from 'pipeline-pool';
import { diagnose } from 'pipeline-pool/diagnosis';
import { livePage } from 'pipeline-pool/live-page';
import { startStubServices } from 'pipeline-pool/testing';
import { recordTimeline } from 'pipeline-pool/timeline';
${USE}
recordTimeline(manager.hooks);
livePage(manager);
const answer = await manager.run('t1', ({ pipeline }) => 41 + pipeline.instanceId);
if (!Array.isArray(diagnose(manager).findings)) throw new Error('no diagnosis');
await manager.shutdown();
${CHECK}
const stubs = await startStubServices();
await stubs.stop();
// Errors of the CommonJS copy are the same to instanceof.
const { createRequire } = await import('node:module');
const cjs = createRequire(import.meta.url)('pipeline-pool');
if (cjs.PipelinePoolError === PipelinePoolError) throw new Error('there is only one copy');
if (!(new cjs.ManagerClosedError('manager') instanceof PipelinePoolError)) throw new Error('instanceof across copies');
// The key of a gate of that copy is redacted in the events of this one.
const gate = new cjs.ServiceGate({ name: 'serper', keys: ['a-key-of-the-other-copy'], retry: { attempts: 1 } });
const other = createPipelineManager({ config: PRESETS.light, create: () => ({}) });
let finished;
other.hooks.on('request:finished', (event) => { finished = event; });
await other.run('t', () => gate.run(({ key }) => Promise.reject(new Error('400 for ' + key)))).catch(() => {});
await other.shutdown();
if (finished.error.message !== '400 for [redacted]') throw new Error('redaction across copies: ' + finished.error.message);
`;

const CJS_HOST = `const ${NAMES} = require('pipeline-pool');
for (const entry of ['diagnosis', 'timeline', 'live-page', 'testing']) require('pipeline-pool/' + entry);
${USE}
(async () => {
  const answer = await manager.run('t1', ({ pipeline }) => 41 + pipeline.instanceId);
  await manager.shutdown();
${CHECK}
})();
`;

const TS_HOST = `import ${NAMES.replace(' }', ', ConcurrencyLimiter, type ConnectContext, defineTools, healthHandler, type Lease, pipelineFactory, PipelinePool, ServiceGate }')} from 'pipeline-pool';
import { diagnose, type Diagnosis } from 'pipeline-pool/diagnosis';
import { livePage } from 'pipeline-pool/live-page';
${USE.replace('const seen = []', 'const seen: string[] = []').replace('(line) =>', '(line: string) =>')}
const answer: number = await manager.run('t1', ({ pipeline }) => 41 + pipeline.instanceId);
const diagnosis: Diagnosis = diagnose(manager);
livePage(manager, { authorize: undefined });
const health = healthHandler(manager);
const healthy: Response = health(new Request('http://localhost/health'));
if (healthy.status !== 200) throw new Error('unhealthy');

const gate = new ServiceGate({ name: 'serper', keys: ['a', 'b'], rate: [{ limit: 50, perMs: 1000 }] });
const tools = defineTools({
  search: {
    connect: async ({ signal }: ConnectContext) => ({ signal, find: (query: string) => [query] }),
    gate,
    call: (client, { query }: { query: string }, { key, attempt }) => ({ hits: client.find(query), key, attempt }),
    cacheKey: (input: { query: string }) => input.query,
  },
  log: {
    scope: 'task',
    connect: ({ instanceId, taskId }: ConnectContext) => ({ lines: [] as string[], instanceId, taskId }),
    disconnect: (client) => { client.lines.length = 0; },
    call: (client, line: string) => client.lines.push(line),
  },
});
const pool = new PipelinePool({ size: 1, ...pipelineFactory({ mainAgent: tools, subAgents: { reader: tools } }) });
const lease = await pool.acquire({ taskId: 'task' });
const { mainAgentToolManager: agent, subAgentToolManagers } = lease.pipeline;
const { hits }: { hits: string[] } = await agent.call('search', { query: 'pools' });
const lines: number = await subAgentToolManagers.reader.call('log', 'one');
export const misspelledTool = () => {
  // @ts-expect-error there is no such tool
  return agent.call('serach', { query: 'pools' });
};
export const wrongInput = () => {
  // @ts-expect-error the input is { query }
  return agent.call('search', { question: 'pools' });
};
await lease[Symbol.asyncDispose]();
await pool.close();

async function* tokens() { yield 'a'; yield 'b'; }
const streamed: string[] = [];
for await (const token of manager.stream('t2', () => tokens())) streamed.push(token);
for await (const token of gate.stream(() => tokens())) streamed.push(token.toUpperCase());
const limiter = new ConcurrencyLimiter({ maxConcurrent: 1 });
const doubled: number[] = await limiter.map([1, 2], (n) => 2 * n);
await manager.shutdown();
if ([...streamed, ...doubled, hits[0], lines].join() !== 'a,b,A,B,2,4,pools,1') throw new Error('wrong results');
seen.splice(3, 3);
${CHECK}
// @ts-expect-error a misspelled option does not compile
export const misspelled = () => createPipelineManager({ creat: () => 1 });
export const error: typeof PipelinePoolError = PipelinePoolError;
export const idOf = (held: Lease<{ readonly id: number }>): number => held.pipeline.id;
export { diagnosis };
`;

const CTS_HOST = `import pool = require('pipeline-pool');
export const presets: { readonly poolSize: number } = pool.PRESETS.heavy;
`;

const tsconfig = (lib) =>
  JSON.stringify({
    compilerOptions: {
      strict: true,
      exactOptionalPropertyTypes: true,
      noUncheckedIndexedAccess: true,
      module: 'nodenext',
      target: 'es2022',
      lib,
      types: ['node'],
      skipLibCheck: false,
      outDir: 'out',
    },
    include: ['index.mts', 'index.cts'],
  });

const compile = (compiler) => [`node_modules/${compiler}/bin/tsc`];

const HOSTS = {
  esm: { files: { 'index.mjs': ESM_HOST }, steps: [['index.mjs']] },
  cjs: { files: { 'index.cjs': CJS_HOST }, steps: [['index.cjs']] },
  ...Object.fromEntries(
    [OLDEST, NEWEST].map((compiler) => [
      compiler,
      {
        files: { 'index.mts': TS_HOST, 'index.cts': CTS_HOST, 'tsconfig.json': tsconfig(['es2022']) },
        steps: [compile(compiler), ['out/index.mjs']],
      },
    ]),
  ),
};

/** Other runtimes that run the same hosts: `npx --package bun --package deno --call 'node test/package/check.mjs runtimes'`. */
const RUNTIMES = { bun: ['run'], deno: ['run', '--allow-all', '--node-modules-dir=manual'] };

export async function checkConsumers(context) {
  await eachHost(context, HOSTS, (steps, project) =>
    inTurn(steps, (args) => context.run('node', args, project)),
  );
}

export async function checkRuntimes(context) {
  for (const [runtime, command] of Object.entries(RUNTIMES)) {
    const version = (await context.run(runtime, ['--version'])).split('\n')[0];
    console.log(`  ${runtime} ${version.replace(/^\D*/, '')}`);
    const hosts = Object.fromEntries(['esm', 'cjs'].map((name) => [`${runtime}-${name}`, HOSTS[name]]));
    await eachHost(context, hosts, (steps, project) =>
      inTurn(steps, (args) => context.run(runtime, [...command, ...args], project)),
    );
  }
}

async function inTurn(steps, perform) {
  for (const step of steps) await perform(step);
}

async function eachHost({ installed, scratch }, hosts, perform) {
  const failures = [];
  for (const [name, { files, steps }] of Object.entries(hosts)) {
    const project = join(scratch, name);
    await mkdir(project);
    await cp(join(installed, 'package.json'), join(project, 'package.json'));
    await symlink(join(installed, 'node_modules'), join(project, 'node_modules'));
    for (const [file, content] of Object.entries(files)) await writeFile(join(project, file), content);
    try {
      await perform(steps, project);
      console.log(`  ${name}: works`);
    } catch (error) {
      failures.push(`${name}: ${error.message}\n${error.stdout ?? ''}`);
    }
  }
  if (failures.length > 0) throw new Error(failures.join('\n'));
}
