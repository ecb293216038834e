import fc from 'fast-check';
import { it } from 'vitest';

/**
 * A test of what holds for any values. Not by `@fast-check/vitest`, which loads a second vitest into each test file: two
 * seconds and 250 MB.
 */
export const prop =
  <T extends [unknown, ...unknown[]]>(
    arbitraries: { readonly [K in keyof T]: fc.Arbitrary<T[K]> },
    parameters: fc.Parameters<T> = {},
  ) =>
  (title: string, holds: (...values: T) => unknown): void => {
    it(title, async () => {
      const property = fc.asyncProperty<T>(...(arbitraries as never), async (...values: T) => {
        await holds(...values);
      });
      await fc.assert(property, parameters);
    });
  };
