import { readdirSync, readFileSync } from 'node:fs';
import { join, relative, resolve } from 'node:path';
import ts from 'typescript';
import { describe, expect, it } from 'vitest';

/** From where imports may come: a folder imports from itself and from those before it. Folders side by side are apart. */
const LAYERS = [
  ['internal'],
  ['errors.ts'],
  ['hooks'],
  ['queue'],
  ['request'],
  ['limiter'],
  ['pool', 'gate'],
  ['tools'],
  ['manager'],
  ['observability', 'http', 'redis'],
  ['testing', 'index.ts'],
  ['index-ts5.4.ts'],
];

interface Import {
  readonly file: string;
  readonly specifier: string;
}

const modules = readdirSync('src', { recursive: true, encoding: 'utf8' }).filter((name) =>
  name.endsWith('.ts'),
);

/** All imports and re-exports, those of types included. */
const imports: readonly Import[] = modules.flatMap((file) =>
  ts
    .preProcessFile(readFileSync(join('src', file), 'utf8'), true, true)
    .importedFiles.map(({ fileName }) => ({ file, specifier: fileName })),
);

const targetOf = ({ file, specifier }: Import): string =>
  relative('src', resolve('src', file, '..', specifier)).replace(/\.js$/, '.ts');
const ours = imports.filter(({ specifier }) => specifier.startsWith('.'));
const folderOf = (file: string): string => file.split('/')[0]!;
const layerOf = (file: string): number => LAYERS.findIndex((names) => names.includes(folderOf(file)));

describe('The modules of src', () => {
  it('do not import one another in a circle, not even types', () => {
    const done = new Set<string>();
    const cycles: string[] = [];
    const visit = (file: string, path: readonly string[]): void => {
      const at = path.indexOf(file);
      if (at !== -1) cycles.push([...path.slice(at), file].join(' → '));
      if (at !== -1 || done.has(file)) return;
      for (const each of ours) if (each.file === file) visit(targetOf(each), [...path, file]);
      done.add(file);
    };
    for (const file of modules) visit(file, []);
    expect(cycles).toEqual([]);
  });

  it('import only from their own folder and from those below it', () => {
    const wrong = ours
      .map((each) => ({ from: each.file, to: targetOf(each) }))
      .filter(({ from, to }) => {
        if (folderOf(from) === folderOf(to)) return false;
        return !(layerOf(to) >= 0 && layerOf(to) < layerOf(from));
      });
    expect(wrong).toEqual([]);
  });

  it('import each dependency in exactly one file', () => {
    const { dependencies } = JSON.parse(readFileSync('package.json', 'utf8')) as { dependencies: object };
    const importers = Object.keys(dependencies).map((name) => ({
      name,
      files: new Set(imports.filter(({ specifier }) => specifier === name).map(({ file }) => file)).size,
    }));
    expect(importers.filter(({ files }) => files !== 1)).toEqual([]);
  });
});
