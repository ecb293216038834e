import { ConcurrencyLimiter, type Limiter, type Permit } from 'pipeline-pool';
import { limiterConformance } from 'pipeline-pool/testing';
import { describe, expect, it } from 'vitest';

describe('a ConcurrencyLimiter conforms to the Limiter interface: it', () => {
  for (const { name, run } of limiterConformance((options) => new ConcurrencyLimiter(options))) it(name, run);
});

/** A limiter with one defect. */
type Defect = (limiter: ConcurrencyLimiter) => Partial<Limiter>;

const DEFECTS: Record<string, Defect> = {
  'a limit that is one too high': (limiter) => {
    limiter.maxConcurrent++;
    return {};
  },
  'signals that are ignored': (limiter) => ({
    acquire: ({ signal, ...options } = {}) => limiter.acquire(options),
  }),
  'priorities that are ignored': (limiter) => ({
    acquire: ({ priority, ...options } = {}) => limiter.acquire(options),
  }),
  'a listener that stays on a signal': (limiter) => ({
    acquire: (options = {}) => {
      if (options.signal instanceof AbortSignal) options.signal.addEventListener('abort', () => {});
      return limiter.acquire(options);
    },
  }),
  'a release that counts twice': (limiter) => ({
    acquire: async (options) => {
      const permit = await limiter.acquire(options);
      const release = (): void => {
        permit.release();
        limiter.maxConcurrent++;
      };
      return { weight: 1, waitMs: 0, release, [Symbol.dispose]: release } satisfies Permit;
    },
  }),
};

describe('the conformance suite', () => {
  it.each(Object.entries(DEFECTS))('finds %s', async (_, defect) => {
    const cases = limiterConformance((options) => {
      const limiter = new ConcurrencyLimiter(options);
      const defects = defect(limiter);
      return new Proxy(limiter, {
        get: (target, name) => {
          const value = Reflect.get(defects, name) ?? Reflect.get(target, name);
          return typeof value === 'function' ? value.bind(target) : value;
        },
      });
    });
    // The first case that fails is enough.
    await expect(
      Promise.any(
        cases.slice(0, 12).map(async ({ run }) => {
          await run().then(
            () => Promise.reject(new Error('conforms')),
            () => {},
          );
        }),
      ),
    ).resolves.toBeUndefined();
  });

  it('refuses something else than a function', () => {
    expect(() => limiterConformance(5 as never)).toThrow(
      new TypeError('Expected `create` to be a function, got 5 (number)'),
    );
  });
});
