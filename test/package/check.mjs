// `npm run package`: packs dist once and checks the tarball as users get it. Arguments select checks by name.
import { execFile } from 'node:child_process';
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { checkBundlers } from './bundlers.mjs';
import { COMPILERS, checkConsumers, checkRuntimes } from './consumers.mjs';
import { checkSizes } from './size.mjs';

const root = fileURLToPath(new URL('../..', import.meta.url));
const scratch = await mkdtemp(join(tmpdir(), 'pipeline-pool-package-'));
const run = async (command, args, cwd = root) => (await promisify(execFile)(command, args, { cwd })).stdout;
const bin = (name) => join(root, 'node_modules/.bin', name);

/** Installs the tarball into an empty project, with the compilers that hosts are checked with. */
async function install(tarball) {
  const project = join(scratch, 'installed');
  await mkdir(project);
  await writeFile(join(project, 'package.json'), '{ "private": true }');
  await run(
    'npm',
    ['install', '--prefer-offline', '--no-audit', '--no-fund', tarball, ...COMPILERS],
    project,
  );
  return project;
}

/** The public types must not mention those of a dependency: it could then not be replaced, or left out of a bundle. */
async function checkDeclarations() {
  const { dependencies } = JSON.parse(await readFile(join(root, 'package.json'), 'utf8'));
  const names = (await readdir(join(root, 'dist'))).filter((name) => /\.d\.c?ts$/.test(name));
  for (const name of names) {
    const text = await readFile(join(root, 'dist', name), 'utf8');
    const found = Object.keys(dependencies).find((dependency) => text.includes(`from '${dependency}'`));
    if (found !== undefined) throw new Error(`${name} mentions ${found}`);
  }
}

const CHECKS = {
  declarations: checkDeclarations,
  publint: ({ tarball }) => run(bin('publint'), ['run', tarball, '--strict']),
  attw: ({ tarball }) =>
    run(bin('attw'), [tarball, '--profile', 'node16', '--no-emoji', '--format', 'ascii', '--quiet']),
  size: checkSizes,
  consumers: checkConsumers,
  bundlers: checkBundlers,
};
/** Run only when selected: they need other runtimes. */
const SELECTED_ONLY = { runtimes: checkRuntimes };

try {
  await run('npm', ['pack', '--ignore-scripts', '--pack-destination', scratch]);
  const tarball = join(
    scratch,
    (await readdir(scratch)).find((name) => name.endsWith('.tgz')),
  );
  const context = { root, scratch, tarball, installed: await install(tarball), run };
  const selected = process.argv.slice(2);
  const all = { ...CHECKS, ...SELECTED_ONLY };
  const unknown = selected.filter((name) => !Object.hasOwn(all, name));
  if (unknown.length > 0)
    throw new Error(`There is no check ${unknown}; known are ${Object.keys(all).join(', ')}`);
  for (const name of selected.length > 0 ? selected : Object.keys(CHECKS)) {
    const check = all[name];
    try {
      await check(context);
      console.log(`${name}: ok`);
    } catch (error) {
      console.error(`${name}: failed\n${error.message}\n${error.stdout ?? ''}${error.stderr ?? ''}`);
      process.exitCode = 1;
    }
  }
} finally {
  await rm(scratch, { recursive: true, force: true });
}
