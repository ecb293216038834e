import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { format } from 'node:util';
import ts from 'typescript';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { runInThread } from '../support/in-a-thread.js';

// Inside the package, where imports find it and its packages; a hidden folder, which other tools leave out.
const FOLDER = resolve('test/docs/.snippets');

interface Snippet {
  readonly title: string;
  readonly code: string;
  readonly path: string;
}

/** The fences that begin with ```ts and nothing behind it. One that is not to be run says so: ```ts no-run. */
function snippetsOf(file: string): Snippet[] {
  const text = readFileSync(file, 'utf8');
  return [...text.matchAll(/^```ts\n(.*?)^```$/gms)].map(({ 1: code = '', index }) => {
    const title = `${file}:${text.slice(0, index).split('\n').length}`;
    return { title, code, path: join(FOLDER, `${title.replace(/\W/g, '-')}.ts`) };
  });
}

/** What the snippet says that it logs: all that follows a `// =>`, line by line. */
const promised = (code: string): string[] =>
  [...code.matchAll(/\/\/ => (.*)$/gm)].map(([, value = '']) => value);

const guides = readdirSync('docs', { recursive: true, encoding: 'utf8' }).filter((name) =>
  name.endsWith('.md'),
);
const snippets = ['README.md', ...guides.map((name) => join('docs', name))].flatMap(snippetsOf);

describe('The snippets of the README and the guides', () => {
  beforeAll(() => {
    mkdirSync(FOLDER, { recursive: true });
    for (const { path, code } of snippets) writeFileSync(path, `${code}\nexport {};\n`);
  });
  afterAll(() => rmSync(FOLDER, { recursive: true }));

  // Sinon's timers replace `process.nextTick`.
  const [inThread, here] = [true, false].map((isSinon) =>
    snippets.filter(({ code }) => code.includes('@sinonjs/fake-timers') === isSinon),
  ) as [Snippet[], Snippet[]];

  it.each(inThread)('$title runs, and logs what it says', async ({ path, code }) => {
    expect((await runInThread(path)).trim().split('\n')).toEqual(promised(code));
  });

  it.each(here)('$title runs, and logs what it says', async ({ path, code }) => {
    const logged: string[] = [];
    vi.spyOn(console, 'info').mockReturnValue();
    vi.spyOn(console, 'log').mockImplementation((...values) => {
      logged.push(...format(...values).split('\n'));
    });
    try {
      await import(path);
    } finally {
      vi.restoreAllMocks();
    }
    if (promised(code).length > 0) expect(logged).toEqual(promised(code));
  });

  it('compile', () => {
    const { config } = ts.readConfigFile('tsconfig.json', ts.sys.readFile);
    const { options } = ts.convertCompilerOptionsFromJson(config.compilerOptions, process.cwd());
    const program = ts.createProgram(
      snippets.map(({ path }) => path),
      // What `tsc --init` sets besides.
      { ...options, exactOptionalPropertyTypes: true, noUncheckedIndexedAccess: true },
    );
    const faults = snippets.flatMap(({ title, path }) =>
      ts
        .getPreEmitDiagnostics(program, program.getSourceFile(path))
        .map(({ messageText }) => `${title}: ${ts.flattenDiagnosticMessageText(messageText, ' ')}`),
    );
    expect(faults).toEqual([]);
  }, 120_000);
});
