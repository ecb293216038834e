import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { describe, expect, it } from 'vitest';

const pages = [
  'README.md',
  'CHANGELOG.md',
  ...readdirSync('docs', { recursive: true, encoding: 'utf8' })
    .filter((name) => (name.endsWith('.md') || name === 'llms.txt') && !name.startsWith('api/'))
    .map((name) => join('docs', name)),
];
const withoutCode = (text: string): string => text.replace(/^```.*?^```$/gms, '').replace(/`[^`\n]*`/g, '');

/** The anchors that GitHub generates for the headings of a page. */
function anchorsOf(page: string): string[] {
  const text = readFileSync(page, 'utf8').replace(/^```.*?^```$/gms, '');
  return [...text.matchAll(/^#+ (.*)$/gm)].map(([, heading = '']) =>
    heading
      .toLowerCase()
      .replace(/[^\p{L}\p{N} _-]/gu, '')
      .replaceAll(' ', '-'),
  );
}

function linksOf(page: string): string[] {
  const text = withoutCode(readFileSync(page, 'utf8'));
  return [...text.matchAll(/\]\(([^)]+)\)|(?:src|srcset)="([^"]+)"/g)]
    .map(([, link, image]) => link ?? image ?? '')
    .filter((link) => !/^https?:/.test(link));
}

describe('The documentation', () => {
  it.each(pages)('%s links only to files and headings that exist', (page) => {
    const broken = linksOf(page).filter((link) => {
      const [file = '', anchor] = link.split('#');
      const target = file === '' ? page : join(dirname(page), file);
      return !existsSync(target) || (anchor !== undefined && !anchorsOf(target).includes(anchor));
    });
    expect(broken).toEqual([]);
  });

  it('links only to files that the package contains', () => {
    const { files } = JSON.parse(readFileSync('package.json', 'utf8')) as { files: string[] };
    const shipped = new Set([...files, 'README.md', 'LICENSE', 'package.json']);
    const outside = pages
      .flatMap((page) => linksOf(page).map((link) => join(dirname(page), link.split('#')[0] || '.')))
      .filter((target) => !shipped.has(target) && !shipped.has(target.split('/')[0] ?? ''));
    expect(outside).toEqual([]);
  });

  it('has a table of contents with every page', () => {
    const listed = linksOf('docs/README.md').map((link) => join('docs', link));
    const expected = pages.filter(
      (page) => page.startsWith('docs/') && page !== 'docs/README.md' && !page.startsWith('docs/decisions/'),
    );
    expect(listed).toEqual(expect.arrayContaining([...expected, 'docs/decisions/README.md']));
  });

  it('is linked from the README, page by page', () => {
    const listed = linksOf('README.md').map((link) => link.split('#')[0]);
    const expected = pages.filter((page) => page.startsWith('docs/') && !page.startsWith('docs/decisions/'));
    expect(listed).toEqual(expect.arrayContaining([...expected, 'docs/decisions/README.md']));
  });

  it('has an index with every decision', () => {
    const listed = linksOf('docs/decisions/README.md').filter((link) => !link.startsWith('..'));
    const notes = readdirSync('docs/decisions').filter((name) => /^\d{4}-/.test(name));
    expect(listed.sort()).toEqual(notes.sort());
  });

  it('gives each decision the title of its index entry', () => {
    const index = readFileSync('docs/decisions/README.md', 'utf8');
    for (const [, title, file = ''] of index.matchAll(/\[(.*)\]\((\d{4}-.*\.md)\)/g)) {
      const note = readFileSync(join('docs/decisions', file), 'utf8');
      expect(note.split('\n')[0]).toBe(`# ${file.slice(0, 4)} ${title}`);
    }
  });
});
