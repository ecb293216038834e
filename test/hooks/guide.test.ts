import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { LIFECYCLE_EVENTS } from '../../src/hooks/events.js';

describe('The guide to the hooks', () => {
  it('lists every event, in the order of a request’s way through', () => {
    const guide = readFileSync('docs/hooks.md', 'utf8');
    const listed = [...guide.matchAll(/^\| `(\w+:[\w-]+)` \|/gm)].map(([, event]) => event);
    expect(listed).toEqual([...LIFECYCLE_EVENTS]);
  });
});
