import { getEventListeners } from 'node:events';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { LifecycleHooks } from '../../src/hooks/lifecycle-hooks.js';
import { AdaptiveLimit } from '../../src/limiter/adaptive-limit.js';
import { ConcurrencyLimiter } from '../../src/limiter/concurrency-limiter.js';
import type { RunContext } from '../../src/limiter/limiter.js';
import { endOfTurn } from '../support/promises.js';
import { STRANGE_VALUES, strangeValue } from '../support/strange-values.js';

type Way = 'throws' | 'rejects' | 'releases, then throws' | 'thenable' | 'thenable that throws' | 'aborts';

const way = fc.constantFrom<Way>(
  'throws',
  'rejects',
  'releases, then throws',
  'thenable',
  'thenable that throws',
  'aborts',
);
const request = fc.record({
  way,
  value: strangeValue,
  by: fc.constantFrom('run', 'map', 'wrap'),
  withSignal: fc.boolean(),
  withTimeout: fc.boolean(),
});

function failing(how: Way, value: unknown, controller: AbortController) {
  return ({ permit }: Pick<RunContext, 'permit'>): unknown => {
    switch (how) {
      case 'throws':
        throw value;
      case 'rejects':
        return Promise.reject(value);
      case 'releases, then throws':
        permit.release('dropped');
        throw value;
      case 'thenable':
        // biome-ignore lint/suspicious/noThenProperty: a thenable is meant
        return { then: (_: unknown, reject: (reason: unknown) => void) => reject(value) };
      case 'thenable that throws':
        return {
          // biome-ignore lint/suspicious/noThenProperty: a thenable is meant
          get then() {
            throw value;
          },
        };
      case 'aborts':
        controller.abort(value);
        return Promise.reject(value);
    }
  };
}

describe('A ConcurrencyLimiter whose callbacks throw anything', () => {
  const unhandled: unknown[] = [];
  const note = (reason: unknown): void => void unhandled.push(reason);
  beforeAll(() => void process.on('unhandledRejection', note));
  afterAll(() => void process.off('unhandledRejection', note));

  it.each([
    ['plain', () => ({ maxConcurrent: 2 })],
    ['adaptive', () => ({ adaptive: new AdaptiveLimit({ initial: 2 }) })],
    ['that detects nested waits', () => ({ maxConcurrent: 2, detectNested: true })],
  ])('rejects with the very value, loses no permit and leaves no listener (%s)', async (_, optionsOf) => {
    const property = fc.asyncProperty(
      fc.array(request, { maxLength: 12 }),
      strangeValue,
      fc.boolean(),
      async (requests, listenerThrows, listens) => {
        const hooks = new LifecycleHooks();
        if (listens) {
          for (const event of [
            'permit:queued',
            'permit:acquired',
            'permit:released',
            'permit:rejected',
          ] as const) {
            hooks.on(event, () => {
              throw STRANGE_VALUES[listenerThrows]!();
            });
          }
        }
        const limiter = new ConcurrencyLimiter({ ...optionsOf(), hooks });
        const signals: AbortSignal[] = [];
        const outcomes = requests.map(async ({ way, value: name, by, withSignal, withTimeout }) => {
          const value = STRANGE_VALUES[name]!();
          const controller = new AbortController();
          signals.push(controller.signal);
          const options = {
            signal: withSignal ? controller.signal : undefined,
            timeoutMs: withTimeout ? 60_000 : undefined,
          };
          const work = failing(way, value, controller);
          const runs = {
            run: () => limiter.run(work, options),
            map: () => limiter.map([1], (_item, context) => work(context), options),
            wrap: () => limiter.wrap(() => work({ permit: { release: () => {} } as never }), options)(),
          };
          const outcome = await runs[by as keyof typeof runs]().then(
            () => 'fulfilled',
            (reason: unknown) => (Object.is(reason, value) ? 'the value' : { reason }),
          );
          // An abort without a reason gets one from the platform.
          if (way === 'aborts' && value === undefined) return 'the value';
          return outcome;
        });
        expect(await Promise.all(outcomes)).toEqual(requests.map(() => 'the value'));
        await limiter.onIdle();
        await endOfTurn();
        expect(limiter.stats()).toMatchObject({ active: 0, queued: 0 });
        for (const signal of signals) expect(getEventListeners(signal, 'abort')).toHaveLength(0);
        expect(await limiter.run(() => 'goes on')).toBe('goes on');
        expect(unhandled).toEqual([]);
      },
    );
    await fc.assert(property, { numRuns: 60 });
  });

  it('rejects waiters with the very reason of their signal, whatever it is', async () => {
    for (const [name, make] of Object.entries(STRANGE_VALUES)) {
      const limiter = new ConcurrencyLimiter({ maxConcurrent: 1 });
      const held = limiter.tryAcquire();
      const controller = new AbortController();
      const waiting = limiter.acquire({ signal: controller.signal }).then(
        () => undefined,
        (reason: unknown) => [Object.is(reason, controller.signal.reason)],
      );
      controller.abort(make());
      expect(await waiting, name).toEqual([true]);
      held?.release();
      expect(limiter.stats()).toMatchObject({ active: 0, queued: 0, rejected: 1 });
    }
  });

  it('lets a signal whose methods throw cost no other request, and no permit', async () => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 1, detectNested: 'lend' });
    const throwing = (method: string) => {
      const fail = () => {
        throw new Error(method);
      };
      return { aborted: false, addEventListener() {}, removeEventListener() {}, [method]: fail } as never;
    };
    const outer = limiter.run(() =>
      Promise.allSettled([
        limiter.run(() => endOfTurn()),
        limiter.run(() => 'never', { signal: throwing('addEventListener') }),
        limiter.run(() => 'granted', { signal: throwing('removeEventListener') }),
        limiter.run(() => 'last'),
      ]),
    );
    await endOfTurn();
    await endOfTurn();
    expect(limiter.stats()).toMatchObject({ active: 0, queued: 0, acquired: 4 });
    expect(await outer).toMatchObject([
      { status: 'fulfilled' },
      { reason: new Error('addEventListener') },
      { value: 'granted' },
      { value: 'last' },
    ]);
  });

  it('rejects options that cannot be read with what reading them throws, and takes nothing', async () => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 1 });
    const { proxy, revoke } = Proxy.revocable({}, {});
    revoke();
    const broken = [
      proxy,
      new Proxy(
        {},
        {
          get() {
            throw new TypeError('unreadable');
          },
        },
      ),
      Object.defineProperty({}, 'weight', {
        enumerable: true,
        get() {
          throw new TypeError('unreadable');
        },
      }),
      { signal: proxy },
      { weight: 10n },
      { tenant: Symbol('tenant') },
      { priority: Number.NaN },
    ];
    for (const options of broken) {
      await expect(limiter.acquire(options as never)).rejects.toThrow();
      await expect(limiter.run(() => {}, options as never)).rejects.toThrow();
      await expect(limiter.map([1], () => {}, options as never)).rejects.toThrow();
      expect(() => limiter.wrap(() => {}, options as never)).toThrow();
    }
    expect(limiter.stats()).toMatchObject({ active: 0, queued: 0, rejected: 0 });
  });

  it('loses no permit when a weight changes between two reads', async () => {
    const limiter = new ConcurrencyLimiter({ maxConcurrent: 4 });
    let reads = 0;
    const options = {
      get weight() {
        return [1, 2, 3, 4][reads++ % 4]!;
      },
    };
    for (let i = 0; i < 20; i++) await limiter.run(() => {}, options);
    expect(limiter.activeCount).toBe(0);
  });

  it.each(Object.entries(STRANGE_VALUES))(
    'survives a clock of its adaptive limit that throws %s',
    async (_, make) => {
      let broken = false;
      const adaptive = new AdaptiveLimit({
        now: () => {
          if (broken) throw make();
          return performance.now();
        },
      });
      const limiter = new ConcurrencyLimiter({ adaptive });
      const permit = await limiter.acquire();
      broken = true;
      try {
        permit.release('dropped');
      } catch {
        // What the clock threw.
      }
      broken = false;
      expect(limiter.activeCount).toBe(0);
      expect(await limiter.run(() => 'goes on')).toBe('goes on');
    },
  );
});
