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
  pipelineFactory,
  ServiceGate,
  toHttpStatus,
} from 'pipeline-pool';
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

const limiter = new ConcurrencyLimiter({ maxConcurrent: 1 });
const pool = new PipelinePool({ size: 1, create: () => 1 });
const manager = new PipelineManager({ pool, limiter });
const gate = new ServiceGate({ name: 'llm' });

describe('the reference', () => {
  it.each<[string, (unknown: never) => unknown]>([
    ['## ConcurrencyLimiter', (unknown) => new ConcurrencyLimiter(unknown)],
    ['`acquire`, `run` and `wrap` of a limiter', (unknown) => limiter.acquire(unknown)],
    ['## AdaptiveLimit', (unknown) => new AdaptiveLimit(unknown)],
    ['## PipelinePool', (unknown) => new PipelinePool(unknown)],
    ['`acquire` and `use` of a pool', (unknown) => pool.acquire(unknown)],
    ['## PipelineManager', (unknown) => new PipelineManager(unknown as PipelineManagerOptions<unknown>)],
    ['`gates` and `diagnosis`. `run`', (unknown) => manager.run('t', () => 1, unknown)],
    ['## Configuration', (unknown) => checkConfig(unknown)],
    ['## ServiceGate', (unknown) => new ServiceGate(unknown)],
    ['`run` and `stream` of a gate', (unknown) => gate.run(() => 1, unknown)],
    ['`pipelineFactory`:', (unknown) => pipelineFactory(unknown)],
  ])('%s lists the options that are taken, and no others', async (heading, give) => {
    expect(documented(heading).sort()).toEqual((await taken(give)).sort());
  });

  it('names the variable of each setting', () => {
    for (const [setting, variable] of Object.entries(CONFIG_VARIABLES)) {
      expect(reference).toContain(`| \`${setting}\` | \`${variable}\` |`);
    }
  });

  it('lists every class of error', () => {
    const classes = Object.keys(everything).filter(
      (name) => name.endsWith('Error') && name !== 'PipelinePoolError',
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
