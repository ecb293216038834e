import { parse } from 'luaparse';
import { describe, expect, it } from 'vitest';
import { SCRIPT } from '../../src/redis/script.js';
import { STARTS_SCRIPT } from '../../src/redis/starts-script.js';

const GLOBALS =
  'ARGV KEYS cjson cmsgpack ipairs math next pairs redis string struct tonumber type unpack'.split(' ');

/** Names that hide one of an enclosing scope, or of the same, and names that nothing declares. */
function namesOf(text: string): { hiding: string[]; free: string[] } {
  const scopes: Set<string>[] = [];
  const hiding: string[] = [];
  const { globals } = parse(text, {
    luaVersion: '5.1',
    scope: true,
    onCreateScope: () => scopes.push(new Set()),
    onDestroyScope: () => scopes.pop(),
    onLocalDeclaration: (name) => {
      if (name !== '_' && scopes.some((scope) => scope.has(name))) hiding.push(name);
      scopes.at(-1)?.add(name);
    },
  });
  return { hiding, free: globals.map(({ name }) => name) };
}

// The parts of a script are written in several files, and share one scope.
describe.each([
  ['a limit', SCRIPT],
  ["a gate's starts", STARTS_SCRIPT],
])('the script of %s', (_, script) => {
  const { hiding, free } = namesOf(script);

  it('declares no name that hides another', () => {
    expect(hiding).toEqual([]);
  });

  it('uses no name that it does not declare, besides those that Redis provides', () => {
    expect(free.filter((name) => !GLOBALS.includes(name))).toEqual([]);
  });
});
