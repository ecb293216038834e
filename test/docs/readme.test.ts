import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';

const readme = readFileSync('README.md', 'utf8');
const { exports } = JSON.parse(readFileSync('package.json', 'utf8')) as { exports: Record<string, unknown> };

/** The export table of the README: the names of each entry point. */
function documented(): Map<string, string[]> {
  const entries = new Map<string, string[]>();
  let names: string[] = [];
  for (const [, entry, cell = ''] of readme.matchAll(/^\| (?:`(pipeline-pool[\w/-]*)`)? ?\| (`.*?) \|/gm)) {
    if (entry !== undefined) {
      names = [];
      entries.set(entry, names);
    }
    names.push(...[...cell.matchAll(/`(\w+)`/g)].map(([, name = '']) => name));
  }
  return entries;
}

/** The values that each entry point exports, from the snapshot of the public API. */
function exported(): Map<string, string[]> {
  const sections = readFileSync('test/api/exports.txt', 'utf8').trim().split('\n\n');
  return new Map(
    sections.map((section) => {
      const [entry = '', ...names] = section.split('\n');
      return [entry, names.map((name) => name.trim())];
    }),
  );
}

describe('The README', () => {
  it('resets what its first example reuses, and says so', () => {
    const [, text = '', example = ''] =
      /## Getting started\n([\s\S]*?)```ts\n([\s\S]*?)```/.exec(readme) ?? [];
    expect(text).toContain('exclusive while it runs, then reset and reused');
    expect(example).toMatch(/^ {2}reset: \(pipeline\) => /m);
  });

  it('lists every entry point of the package', () => {
    const expected = Object.keys(exports)
      .filter((entry) => entry !== './package.json')
      .map((entry) => entry.replace(/^\./, 'pipeline-pool'));
    expect([...documented().keys()].sort()).toEqual(expected.sort());
  });

  it('lists only names that their entry point exports', () => {
    const types = readFileSync('src/index.ts', 'utf8');
    for (const [entry, names] of documented()) {
      const known = exported().get(entry) ?? [];
      const unknown = names.filter((name) => !known.includes(name) && !types.includes(`  ${name},`));
      expect(unknown, entry).toEqual([]);
    }
  });
});

describe('The prose of the documentation', () => {
  const guides = readdirSync('docs', { recursive: true, encoding: 'utf8' }).filter((name) =>
    name.endsWith('.md'),
  );
  const FORMER_WORDS =
    /\b(t[o]ld|tells|n[o]body|somebody|anybody|w[h]oever|h[e]eds?|resting|t[u]rnstile|r[o]ster|m[i]lestone|cool-downs?|under way)\b/i;

  it.each(['README.md', ...guides.map((name) => join('docs', name))])('%s uses standard terms', (page) => {
    const lines = readFileSync(page, 'utf8').split('\n');
    expect(lines.filter((line) => FORMER_WORDS.test(line))).toEqual([]);
  });
});
