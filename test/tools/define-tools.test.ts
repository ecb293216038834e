import { describe, expect, it } from 'vitest';
import { defineTool, defineTools } from '../../src/tools/define-tools.js';
import { KeyedGate } from '../support/gates.js';

const good = { connect: () => 1, call: () => 1 };
const define =
  (tool: object, name = 'search') =>
  () =>
    defineTools({ [name]: tool } as never);

describe('defineTools', () => {
  it('returns the tools as they are, frozen', () => {
    const tools = defineTools({ search: good });
    expect(tools.search).toBe(good);
    expect(Object.isFrozen(tools)).toBe(true);
  });

  it.each([
    [{ ...good, connect: undefined }, TypeError, 'Expected `search.connect` to be a function, got undefined'],
    [{ ...good, call: 'x' }, TypeError, 'Expected `search.call` to be a function, got "x" (string)'],
    [{ ...good, timeout: 5 }, TypeError, 'Unknown option `timeout` in tool search'],
    [
      { ...good, scope: 'lease' },
      TypeError,
      '`search.scope` to be one of "shared", "instance", "task", got "lease"',
    ],
    [{ ...good, timeoutMs: 0 }, RangeError, '`search.timeoutMs`'],
    [{ ...good, timeoutMs: Number.NaN }, RangeError, '`search.timeoutMs`'],
    [{ ...good, timeoutMs: 2 ** 31 }, RangeError, '`search.timeoutMs`'],
    [{ ...good, maxAnswerChars: 10 }, RangeError, '`search.maxAnswerChars`'],
    [{ ...good, disconnect: 1 }, TypeError, '`search.disconnect`'],
    [{ ...good, parse: {} }, TypeError, '`search.parse`'],
    [{ ...good, description: '' }, TypeError, '`search.description`'],
    [{ ...good, inputSchema: [] }, TypeError, '`search.inputSchema` to be a JSON schema'],
    [{ ...good, gate: {} }, TypeError, '`search.gate.run`'],
    [{ ...good, gate: null }, TypeError, '`search.gate.run`'],
    [{ ...good, cacheKey: () => 'x' }, TypeError, '`search.cacheKey` needs a gate'],
    [{ ...good, weight: () => 1 }, TypeError, '`search.weight` needs a gate'],
    [
      { ...good, scope: 'task', reset: () => {} },
      TypeError,
      '`search.reset` needs a client that serves several tasks',
    ],
    [{ ...good, scope: 'shared', check: () => true }, TypeError, '`search.check` needs a client'],
    [null, TypeError, 'Expected `tool search` to be an options object, got null'],
  ])('rejects %o', (tool, type, message) => {
    expect(define(tool as object)).toThrow(type);
    expect(define(tool as object)).toThrow(message);
  });

  it.each(['', 'web search', 'a'.repeat(65), 'suche_ö', 'a.b'])(
    'rejects the name %o, which models do not accept',
    (name) => {
      expect(define(good, name)).toThrow(TypeError);
    },
  );

  it('accepts every option', () => {
    const gate = new KeyedGate([]);
    expect(
      define({
        ...good,
        scope: 'instance',
        disconnect: () => {},
        reset: () => {},
        check: () => true,
        gate,
        cacheKey: () => 'x',
        weight: () => 1,
        timeoutMs: 1_800_000,
        parse: (input: unknown) => input,
        description: 'd',
        inputSchema: {},
        maxAnswerChars: 200,
      }),
    ).not.toThrow();
  });

  it('rejects what is not a set of tools', () => {
    expect(() => defineTools([] as never)).toThrow(/Expected `tools` to be an object of tools by name/);
    expect(() => defineTools(undefined as never)).toThrow(TypeError);
  });
});

describe('defineTool', () => {
  it('returns the tool as it is, and rejects a wrong one', () => {
    expect(defineTool(good)).toBe(good);
    expect(() => defineTool({ ...good, timeoutMs: -1 })).toThrow('`tool.timeoutMs`');
  });
});
