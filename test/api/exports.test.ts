import { readFileSync } from 'node:fs';
import { expect, it } from 'vitest';

const { exports } = JSON.parse(readFileSync('package.json', 'utf8')) as { exports: object };

it('every entry point exports exactly the names of exports.txt: a change here is a change for every user', async () => {
  const entries = Object.keys(exports).filter((entry) => entry !== './package.json');
  const listings = await Promise.all(
    entries.map(async (entry) => {
      const specifier = entry.replace('.', 'pipeline-pool');
      const names = Object.keys(await import(specifier)).sort();
      return `${specifier}\n${names.map((name) => `  ${name}\n`).join('')}`;
    }),
  );
  await expect(listings.join('\n')).toMatchFileSnapshot('exports.txt');
});
