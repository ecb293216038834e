import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';

const page = readFileSync('docs/architecture.md', 'utf8');
const paths = [...page.matchAll(/`((?:src|test|docs|examples)\/[^`\s*]*)`/g)].map(([, path = '']) => path);
const code = (path: string): string => readFileSync(path, 'utf8');

describe('The architecture page', () => {
  it('names only files and folders that exist', () => {
    expect(paths.length).toBeGreaterThan(40);
    expect(paths.filter((path) => !existsSync(path))).toEqual([]);
  });

  it('lists every folder of the source', () => {
    const folders = readdirSync('src', { withFileTypes: true }).filter((entry) => entry.isDirectory());
    const listed = [...page.matchAll(/^\| `(src\/[\w/]+)` \|/gm)].map(([, path]) => path);
    expect(listed).toEqual(expect.arrayContaining(folders.map(({ name }) => `src/${name}`)));
  });

  it('names only functions that the file next to them contains', () => {
    const named = [...page.matchAll(/`(src\/[^`]+\.ts)` \((`[^)]*`)\)/g)];
    expect(named.length).toBeGreaterThan(3);
    for (const [, path = '', names = ''] of named) {
      for (const [, name = ''] of names.matchAll(/`([^`]+)`/g)) expect(code(path), path).toContain(name);
    }
  });

  it('names the only importer of each dependency', () => {
    const { dependencies } = JSON.parse(readFileSync('package.json', 'utf8')) as { dependencies: object };
    const files = readdirSync('src', { recursive: true, encoding: 'utf8' })
      .filter((name) => name.endsWith('.ts'))
      .map((name) => join('src', name));
    for (const name of Object.keys(dependencies)) {
      const importers = files.filter((path) => code(path).includes(`from '${name}'`));
      expect(page, name).toContain(`${name} in`);
      expect(importers).toHaveLength(1);
      expect(page.replace(/\s+/g, ' ')).toContain(`${name} in \`${importers[0]}\``);
    }
  });
});
