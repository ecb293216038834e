import { describe, expectTypeOf, it } from 'vitest';
import {
  type AcquireOptions,
  AdaptiveLimit,
  ConcurrencyLimiter,
  type ConcurrencyLimiterOptions,
  type Limiter,
  type Permit,
} from '../../src/index.js';

const limiter = new ConcurrencyLimiter({ maxConcurrent: 1 });

describe('The types of ConcurrencyLimiter', () => {
  it('give run the result of its work, awaited', () => {
    expectTypeOf(limiter.run(() => 7)).toEqualTypeOf<Promise<number>>();
    expectTypeOf(limiter.run(async () => 'text')).toEqualTypeOf<Promise<string>>();
    expectTypeOf(limiter.run(() => {})).toEqualTypeOf<Promise<void>>();
    expectTypeOf(limiter.run((): PromiseLike<boolean> => Promise.resolve(true))).toEqualTypeOf<
      Promise<boolean>
    >();
    expectTypeOf(limiter.run((): number | Promise<number> => 7)).toEqualTypeOf<Promise<number>>();
  });

  it('give the work its signal, if any, and its permit', () => {
    void limiter.run(({ signal, permit }) => {
      expectTypeOf(signal).toEqualTypeOf<AbortSignal | undefined>();
      expectTypeOf(permit).toEqualTypeOf<Permit>();
    });
  });

  it('keep the arguments and the result of a wrapped function', () => {
    const wrapped = limiter.wrap((url: string, tries?: number) => [url, tries]);
    expectTypeOf(wrapped).parameters.toEqualTypeOf<[url: string, tries?: number]>();
    expectTypeOf(wrapped).returns.toEqualTypeOf<Promise<(string | number | undefined)[]>>();
    // @ts-expect-error a url is a string
    void wrapped(7);
  });

  it('make a permit disposable, and its absence visible', () => {
    expectTypeOf(limiter.acquire()).toEqualTypeOf<Promise<Permit>>();
    expectTypeOf(limiter.tryAcquire()).toEqualTypeOf<Permit | undefined>();
    expectTypeOf<Permit>().toExtend<Disposable>();
  });

  it('refuse a misspelt option and a misspelt outcome', () => {
    // @ts-expect-error timeoutMs is the name
    void limiter.acquire({ timeout: 5 });
    // @ts-expect-error priority is for those who wait
    limiter.tryAcquire({ priority: 1 });
    // @ts-expect-error ok, dropped or ignored
    limiter.tryAcquire()?.release('failed');
    // @ts-expect-error maxConcurrent is the name
    new ConcurrencyLimiter({ concurrency: 5 });
  });

  it('take exactly one of maxConcurrent and adaptive', () => {
    const adaptive = new AdaptiveLimit();
    new ConcurrencyLimiter({ adaptive });
    new ConcurrencyLimiter({ adaptive, maxConcurrent: undefined });
    // @ts-expect-error one of the two is required
    new ConcurrencyLimiter({});
    // @ts-expect-error the adaptive limit sets maxConcurrent
    new ConcurrencyLimiter({ adaptive, maxConcurrent: 3 });
  });

  it('accept undefined for every optional option', () => {
    expectTypeOf<{
      maxConcurrent: 1;
      name: undefined;
      maxQueue: undefined;
      hooks: undefined;
    }>().toExtend<ConcurrencyLimiterOptions>();
    expectTypeOf<
      Record<'signal' | 'timeoutMs' | 'priority' | 'weight' | 'tenant', undefined>
    >().toExtend<AcquireOptions>();
    void limiter.close({ drain: undefined, timeoutMs: undefined });
  });

  it('give map the results of its function, and the function its item and a signal', () => {
    const lengths = limiter.map(['a', 'b'], async (item, { signal, index, permit }) => {
      expectTypeOf(item).toEqualTypeOf<string>();
      expectTypeOf(signal).toEqualTypeOf<AbortSignal>();
      expectTypeOf(index).toEqualTypeOf<number>();
      expectTypeOf(permit).toEqualTypeOf<Permit>();
      return item.length;
    });
    expectTypeOf(lengths).toEqualTypeOf<Promise<number[]>>();
  });

  it('let it stand for the Limiter that gates and managers ask for', () => {
    expectTypeOf(limiter).toExtend<Limiter>();
  });
});
