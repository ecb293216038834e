import { readFileSync } from 'node:fs';
import * as everything from 'pipeline-pool';
import {
  AdaptiveLimit,
  CONFIG_VARIABLES,
  ConcurrencyLimiter,
  checkConfig,
  PipelineManager,
  type PipelineManagerOptions,
  PipelinePool,
  PRESETS,
  pipelineFactory,
  ServiceGate,
  toHttpStatus,
} from 'pipeline-pool';
import { RedisLimits } from 'pipeline-pool/redis';
import { describe, expect, it } from 'vitest';

const reference = readFileSync('docs/reference.md', 'utf8');

/** The first table after a line that contains `heading`: the code words of its first column. */
function documented(heading: string): string[] {
  const lines = reference.split('\n');
  const from = lines.findIndex((line) => line.startsWith(heading));
  expect(from, `"${heading}" stands in the reference`).toBeGreaterThan(-1);
  const begin = lines.findIndex((line, i) => i > from && line.startsWith('|'));
  const end = lines.findIndex((line, i) => i > begin && !line.startsWith('|'));
  return lines.slice(begin + 2, end).flatMap((row) => /^\| `(\w+)`/.exec(row)?.[1] ?? []);
}

/** What something takes, in its own words: it lists them when it is given an option that it does not know. */
async function taken(give: (unknown: never) => unknown): Promise<string[]> {
  try {
    await give({ nonsense: 1 } as never);
  } catch (error) {
    const [, list = ''] = (error as Error).message.split('it takes ');
    return [...list.matchAll(/`(\w+)`/g)].map(([, option = '']) => option);
  }
  throw new Error('an unknown option was taken');
}

/** `base` with one more option, `a.b` or `a[].b` nested in it, beside what it needs there. */
function withOption(base: object, path: string, value: number): object {
  const REQUIRED: Record<string, object> = { 'rate[]': { limit: 1, perMs: 1 }, cache: { max: 1, ttlMs: 1 } };
  const [outer = '', ...inner] = path.split('.');
  if (inner.length === 0) return { ...base, [outer]: value };
  const nested = withOption(REQUIRED[outer] ?? {}, inner.join('.'), value);
  return outer.endsWith('[]') ? { ...base, [outer.slice(0, -2)]: [nested] } : { ...base, [outer]: nested };
}

interface Row {
  readonly option: string;
  readonly fallback: string;
  readonly bounds: string;
}

/** The rows of the first table after a line that begins with `heading`. */
function rows(heading: string): Row[] {
  const lines = reference.split('\n');
  const from = lines.findIndex((line) => line.startsWith(heading));
  expect(from, `"${heading}" stands in the reference`).toBeGreaterThan(-1);
  const begin = lines.findIndex((line, i) => i > from && line.startsWith('|'));
  const end = lines.findIndex((line, i) => i > begin && !line.startsWith('|'));
  return lines.slice(begin + 2, end).map((line) => {
    const [option = '', , fallback = '', bounds = ''] = line.slice(2, -2).split(' | ');
    return { option: option.replaceAll('`', ''), fallback, bounds };
  });
}

const limiter = new ConcurrencyLimiter({ maxConcurrent: 1 });
const nothing = (): never => {
  throw new Error('not connected');
};
const limits = new RedisLimits({
  client: { evalSha: nothing, eval: nothing, duplicate: nothing, on: () => {}, off: () => {} },
});
const pool = new PipelinePool({ size: 1, create: () => 1 });
const manager = new PipelineManager({ pool, limiter });
const gate = new ServiceGate({ name: 'llm' });

describe('the reference', () => {
  it.each<[string, (unknown: never) => unknown]>([
    ['## ConcurrencyLimiter', (unknown) => new ConcurrencyLimiter(unknown)],
    ['`acquire`, `run`, `wrap` and `map` of a limiter', (unknown) => limiter.acquire(unknown)],
    ['## AdaptiveLimit', (unknown) => new AdaptiveLimit(unknown)],
    ['## PipelinePool', (unknown) => new PipelinePool(unknown)],
    ['## RedisLimits', (unknown) => new RedisLimits(unknown)],
    ['`limits.limiter(options)`', (unknown) => limits.limiter(unknown)],
    ['`acquire` and `use` of a pool', (unknown) => pool.acquire(unknown)],
    ['## PipelineManager', (unknown) => new PipelineManager(unknown as PipelineManagerOptions<unknown>)],
    ['`run`, `stream` and `acquirePipeline` of a manager', (unknown) => manager.run('t', () => 1, unknown)],
    ['## Configuration', (unknown) => checkConfig(unknown)],
    ['## ServiceGate', (unknown) => new ServiceGate(unknown)],
    ['`run` and `stream` of a gate', (unknown) => gate.run(() => 1, unknown)],
    ['`fetch` of a gate', (unknown) => gate.fetch(unknown)],
    ['`pipelineFactory`:', (unknown) => pipelineFactory(unknown)],
  ])('%s lists the options that are taken, and no others', async (heading, give) => {
    expect(documented(heading).sort()).toEqual((await taken(give)).sort());
  });

  type Options = Record<string, unknown>;
  const hold = { maxConcurrent: 1 };
  const build = { size: 4, create: () => 1, validate: () => true };
  it.each<[string, Options, (options: never) => unknown]>([
    ['## ConcurrencyLimiter', hold, (options) => new ConcurrencyLimiter(options)],
    [
      '`acquire`, `run`, `wrap` and `map` of a limiter',
      {},
      (options) => new ConcurrencyLimiter(hold).acquire(options),
    ],
    ['## AdaptiveLimit', {}, (options) => new AdaptiveLimit(options)],
    ['## PipelinePool', build, (options) => new PipelinePool(options)],
    ['`acquire` and `use` of a pool', {}, (options) => new PipelinePool(build).acquire(options)],
    ['## PipelineManager', { pool, limiter }, (options) => new PipelineManager(options)],
    ['`run`, `stream` and `acquirePipeline` of', {}, (options) => manager.run('t', () => 1, options)],
    ['## Configuration', PRESETS.light as never, (options) => checkConfig(options)],
    ['## ServiceGate', { name: 'llm' }, (options) => new ServiceGate(options)],
    ['Fields of its nested options', { name: 'llm' }, (options) => new ServiceGate(options)],
    ['`run` and `stream` of a gate', {}, (options) => gate.run(() => 1, options)],
    ['`fetch` of a gate', {}, (options) => gate.fetch(options)],
    ['`pipelineFactory`:', { mainAgent: {} }, (options) => pipelineFactory(options)],
  ])('%s has the lower bounds that are enforced', async (heading, base, give) => {
    const bounded = rows(heading).filter(({ bounds }) => /^(integer, )?from \d/.test(bounds));
    const attempt = async (option: string, value: number): Promise<unknown> => {
      try {
        await give(withOption(base, option, value) as never);
      } catch (error) {
        return error;
      }
      return undefined;
    };
    for (const { option, bounds } of bounded) {
      const [, integer, least] = /^(integer, )?from (\d+)/.exec(bounds) ?? [];
      const named = { message: expect.stringContaining(option.replace('[]', '[0]')) };
      expect(await attempt(option, Number(least) - 1), option).toMatchObject(named);
      if (integer !== undefined)
        expect(await attempt(option, Number(least) + 0.5), option).toMatchObject(named);
      const error = (await attempt(option, Number(least))) as Error | undefined;
      expect(error?.message ?? '', option).not.toContain(`Expected \`${option.replace('[]', '[0]')}\``);
    }
  });

  it.each([
    ['## ConcurrencyLimiter', 'src/limiter/options.ts'],
    ['## AdaptiveLimit', 'src/limiter/adaptive-limit.ts'],
    ['## PipelinePool', 'src/pool/options.ts'],
    ['## PipelineManager', 'src/manager/pipeline-manager.ts'],
    ['## ServiceGate', 'src/gate/options.ts'],
    ['`fetch` of a gate', 'src/gate/fetch.ts'],
  ])('%s has the defaults of the docstrings', (heading, file) => {
    const code = readFileSync(file, 'utf8');
    const documentedDefaults = new Map<string, string>();
    for (const [, value = '', option = ''] of code.matchAll(
      /@default ([^\n*]+?)\s*(?:\n\s*)?\*\/\s*readonly (\w+)\?/g,
    )) {
      if (/^(\d[\d_]*|'[^']*'|true|false)$/.test(value))
        documentedDefaults.set(option, value.replaceAll('_', ''));
    }
    expect(documentedDefaults.size, file).toBeGreaterThan(0);
    for (const { option, fallback } of rows(heading)) {
      const value = documentedDefaults.get(option);
      if (value !== undefined)
        expect(`${option}: ${fallback.replaceAll(/[`,]/g, '')}`).toBe(`${option}: ${value}`);
    }
  });

  it('names the variable of each setting', () => {
    for (const [setting, variable] of Object.entries(CONFIG_VARIABLES)) {
      expect(reference).toContain(`| \`${setting}\` | \`${variable}\` |`);
    }
  });

  it('lists every class of error', () => {
    const classes = Object.keys(everything).filter(
      (name) => /^[A-Z]\w*Error$/.test(name) && !['PipelinePoolError', 'ResponseError'].includes(name),
    );
    expect(documented('All are `PipelinePoolError`s').sort()).toEqual(classes.sort());
  });

  it('says the HTTP status that toHttpStatus gives', () => {
    const rows = [...reference.matchAll(/^\| `\w+Error` \| `(ERR_\w+)` \|.*\| (\d*) ?\|$/gm)];
    expect(rows.length).toBeGreaterThan(15);
    for (const [, code, status = ''] of rows) {
      const error = Object.create(everything.PipelinePoolError.prototype, { code: { value: code } });
      expect(toHttpStatus(error)?.status ?? '', code).toEqual(status === '' ? '' : Number(status));
    }
  });
});
