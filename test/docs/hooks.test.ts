import { readFileSync } from 'node:fs';
import { LIFECYCLE_EVENTS } from 'pipeline-pool';
import { describe, expect, it } from 'vitest';

const guide = readFileSync('docs/hooks.md', 'utf8');
const source = readFileSync('src/hooks/events.ts', 'utf8');
const named = (pattern: RegExp): string[] => [...source.matchAll(pattern)].map(([, name = '']) => name);
const missing = (names: Iterable<string>): string[] =>
  [...new Set(names)].filter((name) => !new RegExp(`\\b${name}\\b`).test(guide));

describe('The guide to hooks', () => {
  it('lists every event', () => {
    expect(LIFECYCLE_EVENTS.filter((event) => !guide.includes(`| \`${event}\` |`))).toEqual([]);
  });

  it('names every field of a payload', () => {
    expect(missing(named(/readonly (\w+)\??:/g))).toEqual([]);
  });

  it('names every reason and every outcome', () => {
    expect(missing(named(/^\s*\| '([a-z-]+)'/gm))).toEqual([]);
  });
});
