import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { LIFECYCLE_EVENTS } from '../../src/hooks/events.js';
import { PipelinePool } from '../../src/pool/pipeline-pool.js';
import { STRANGE_VALUES } from '../support/strange-values.js';

const unhandled: unknown[] = [];
const note = (error: unknown): void => void unhandled.push(error);
beforeEach(() => process.on('unhandledRejection', note));
afterEach(() => {
  process.off('unhandledRejection', note);
  expect(unhandled.splice(0)).toEqual([]);
});

/** How a callback hands over a value. */
const WAYS: Readonly<Record<string, (value: unknown) => unknown>> = {
  throws: (value) => {
    throw value;
  },
  'rejects with': (value) => Promise.reject(value),
  returns: (value) => value,
  'resolves with': (value) => Promise.resolve(value),
};

describe.each(Object.keys(STRANGE_VALUES))('with %s', (name) => {
  const make = STRANGE_VALUES[name] as () => unknown;

  it.each(Object.keys(WAYS))(
    'whatever callback %s it, the pool settles every request and closes to nothing',
    async (way) => {
      const misbehave = WAYS[way] as (value: unknown) => unknown;
      for (const stage of ['create', 'validate', 'prepare', 'reset', 'destroy']) {
        const at = (own: string, answer: unknown): unknown => (own === stage ? misbehave(make()) : answer);
        const pool = new PipelinePool<unknown>({
          size: 1,
          createRetry: { baseMs: 1, maxMs: 1 },
          create: () => at('create', {}),
          validate: () => at('validate', true) as boolean,
          prepare: () => at('prepare', undefined),
          reset: () => at('reset', undefined),
          destroy: () => at('destroy', undefined),
          validateAfterIdleMs: 0,
        });
        for (const event of LIFECYCLE_EVENTS) pool.hooks.on(event, () => {});
        for (let task = 0; task < 3; task++) {
          const used = await pool.use(() => 'used').catch((error: Error) => error);
          if (used !== 'used')
            expect(used).toHaveProperty('code', expect.stringMatching(/^ERR_(CREATE|PREPARE)_FAILED$/));
        }
        await pool.close();
        expect(pool.stats(), stage).toMatchObject({ live: 0, queued: 0, leased: 0 });
      }
    },
  );

  it('as the reason of an abort, rejects the waiter with it', async () => {
    const pool = new PipelinePool<unknown>({ size: 1, create: () => ({}) });
    for (const event of LIFECYCLE_EVENTS) pool.hooks.on(event, () => {});
    const lease = await pool.acquire();
    const controller = new AbortController();
    const waiting = pool.acquire({ signal: controller.signal }).then(
      () => 'served',
      () => 'rejected',
    );
    controller.abort(make());
    expect(await waiting).toBe('rejected');
    expect(await pool.acquire({ signal: controller.signal }).catch(() => 'rejected')).toBe('rejected');
    await lease.release();
    expect(pool.stats()).toMatchObject({ idle: 1, queued: 0 });
    await pool.close();
  });
});
