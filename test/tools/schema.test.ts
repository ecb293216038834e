import * as v from 'valibot';
import { describe, expect, it } from 'vitest';
import { z } from 'zod';
import { defineTools, type StandardSchema } from '../../src/index.js';
import { managerOf } from '../support/tool-managers.js';

const connect = () => 1;

describe('a tool with a Standard Schema', () => {
  it.each([
    ['zod', z.object({ query: z.string(), limit: z.number().default(3) })],
    ['valibot', v.object({ query: v.string(), limit: v.optional(v.number(), 3) })],
  ])(
    'of %s checks and converts what a model sent',
    async (_, schema: StandardSchema<{ query: string; limit: number }>) => {
      const { tools } = await managerOf(
        defineTools({
          search: { connect, schema, call: (_, { query, limit }) => `${limit} pages on ${query}` },
        }),
      );
      expect(await tools.answer('search', '{"query":"tides"}')).toBe('3 pages on tides');
      expect(await tools.answer('search', '{"query":7}')).toMatch(
        /^The input of tool search cannot be used: query: \S/,
      );
    },
  );

  it('describes its input to the model where the library can, and as `inputSchema` says', async () => {
    const call = () => 1;
    const { tools } = await managerOf(
      defineTools({
        zod: { connect, call, schema: z.object({ query: z.string() }) },
        valibot: { connect, call, schema: v.object({ query: v.string() }) },
        both: { connect, call, schema: z.object({ n: z.bigint() }), inputSchema: { type: 'object' } },
        inexpressible: { connect, call, schema: z.object({ n: z.bigint() }) },
      }),
    );
    const parameters = tools.definitions().map(({ function: { name, parameters } }) => [name, parameters]);
    expect(parameters).toEqual([
      ['zod', expect.objectContaining({ type: 'object', properties: { query: { type: 'string' } } })],
      ['valibot', undefined],
      ['both', { type: 'object' }],
      ['inexpressible', undefined],
    ]);
  });

  it('names the first five issues, with their paths', async () => {
    const issue = (n: number) => ({ message: `wrong ${n}`, path: [{ key: 'items' }, n] });
    const schema: StandardSchema<never> = {
      '~standard': {
        version: 1,
        vendor: 'test',
        validate: () => ({ issues: [1, 2, 3, 4, 5, 6].map(issue) }),
      },
    };
    const { tools } = await managerOf(defineTools({ s: { connect, schema, call: () => 1 } }));
    expect(await tools.answer('s', {})).toBe(
      'The input of tool s cannot be used: items.1: wrong 1; items.2: wrong 2; items.3: wrong 3; items.4: wrong 4; items.5: wrong 5',
    );
  });

  it('answers that it must be synchronous, and leaves no rejection behind', async () => {
    const schema: StandardSchema<never> = {
      '~standard': { version: 1, vendor: 'test', validate: () => Promise.reject(new Error('offline')) },
    };
    const { tools } = await managerOf(defineTools({ s: { connect, schema, call: () => 1 } }));
    expect(await tools.answer('s', { query: 'q' })).toMatch(/cannot be used: .*(s\.schema|synchronous)/i);
  });

  it('rejects a value that is no schema, and `parse` beside it', () => {
    const call = () => 1;
    expect(() => defineTools({ s: { connect, call, schema: {} as never } })).toThrow(
      /Expected `s\.schema` to be a Standard Schema, got/,
    );
    const schema = z.object({});
    expect(() => defineTools({ s: { connect, call, schema, parse: () => ({}) } })).toThrow(
      'Expected `s.schema` or `s.parse`, not both',
    );
  });
});
