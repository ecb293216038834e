import { readFileSync } from 'node:fs';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { InstanceRegistry } from '../../src/pool/instances.js';
import type { PipelinePoolOptions } from '../../src/pool/options.js';
import { PipelinePool } from '../../src/pool/pipeline-pool.js';
import { inVirtualTime } from '../support/fake-timers.js';
import { type Piece, Workshop } from '../support/pools.js';
import { endOfTurn } from '../support/promises.js';

inVirtualTime();

/** The arrows of a diagram of the guide. */
function drawn(heading: string): (readonly [string, string])[] {
  const guide = readFileSync('docs/lifecycle.md', 'utf8');
  const [, diagram = ''] = /```mermaid\n(.*?)```/s.exec(guide.slice(guide.indexOf(heading))) ?? [];
  return [...diagram.matchAll(/^ +(\S+) --> (\S+)/gm)].map(([, from = '', to = '']) => [from, to]);
}

const seen = new Set<string>();

beforeEach(() => {
  const { move, enter, leave } = InstanceRegistry.prototype;
  vi.spyOn(InstanceRegistry.prototype, 'enter').mockImplementation(function (
    this: InstanceRegistry<unknown>,
  ) {
    seen.add('[*] → creating');
    return enter.call(this);
  });
  vi.spyOn(InstanceRegistry.prototype, 'move').mockImplementation(function (
    this: InstanceRegistry<unknown>,
    instance,
    state,
  ) {
    seen.add(`${instance.state.kind} → ${state.kind}`);
    move.call(this, instance, state);
  });
  vi.spyOn(InstanceRegistry.prototype, 'leave').mockImplementation(function (
    this: InstanceRegistry<unknown>,
    instance,
  ) {
    seen.add(`${instance.state.kind} → gone`);
    leave.call(this, instance);
  });
});
afterEach(() => {
  vi.restoreAllMocks();
});

const later = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 5));

/** A task or three on a pool of one, then a pause, a refresh and more of them; whatever goes wrong is the pool's matter. */
async function live(more: Partial<PipelinePoolOptions<Piece>>): Promise<void> {
  const workshop = new Workshop();
  const pool = new PipelinePool({
    size: 1,
    create: async (context) => {
      await later();
      return workshop.create(context);
    },
    destroy: workshop.destroy,
    ...more,
  });
  const task = async (options = {}, discard = false): Promise<void> => {
    const lease = await pool.acquire(options);
    await endOfTurn();
    await lease.release({ discard });
  };
  const tasks = (count: number) => Array.from({ length: count }, () => task());
  const run = async (all: readonly Promise<unknown>[]): Promise<void> => {
    const done = Promise.allSettled(all);
    // In small steps: a task takes turns of the event loop between its timers.
    for (let i = 0; i < 60; i++) await vi.advanceTimersByTimeAsync(2);
    await done;
  };
  await run([task({ timeoutMs: 1 })]);
  await run(tasks(3));
  await vi.advanceTimersByTimeAsync(1_000);
  await run([task({ timeoutMs: 2 })]);
  await vi.advanceTimersByTimeAsync(1_000);
  await run([...tasks(3), task({}, true)]);
  await run(tasks(1));
  pool.refresh();
  const begun = run(tasks(2));
  await endOfTurn();
  pool.refresh();
  await begun;
  const closed = pool.close();
  await vi.advanceTimersByTimeAsync(100);
  await closed;
}

describe('the diagram of an instance’s life', () => {
  it('shows every transition that instances make, and no other', async () => {
    let unhealthy = 0;
    const slow = { validate: () => later().then(() => true), prepare: later, reset: later };
    const often = { validateAfterIdleMs: 0, validateIdleEveryMs: 300 };
    await live({});
    await live({ ...slow, ...often });
    await live({ prepare: later });
    await live({ reset: later });
    await live({ reset: later, prepare: later });
    await live({ validate: slow.validate, ...often });
    await live({ validate: () => ++unhealthy % 2 === 0, prepare: later, ...often });
    await live({ validate: slow.validate, reset: later, ...often });
    await live({ prepare: () => Promise.reject(new Error('no')) });
    await live({ reset: () => Promise.reject(new Error('no')) });
    await live({ create: () => Promise.reject(new Error('no')), createRetry: { baseMs: 5, maxMs: 5 } });
    const arrows = drawn('## An instance').map(([from, to]) => `${from} → ${to}`);
    expect([...seen].sort()).toEqual(arrows.filter((arrow) => arrow !== 'gone → [*]').sort());
  });
});

describe('the diagram of a request and its lease', () => {
  it('shows the states that the code knows', () => {
    const code = readFileSync('src/pool/instances.ts', 'utf8');
    const union = code.slice(code.indexOf('export type LeaseRequestState'), code.indexOf('const WAITING'));
    const known = [...union.matchAll(/kind: '(\w+)'/g)].map(([, kind]) => kind);
    const shown = new Set(drawn('## A request and its lease').flat());
    shown.delete('[*]');
    expect([...shown].sort()).toEqual(known.sort());
  });
});
