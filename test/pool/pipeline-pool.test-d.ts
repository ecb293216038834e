import { type Lease, PipelinePool } from 'pipeline-pool';
import { describe, expectTypeOf, it } from 'vitest';

interface Pipeline {
  research(question: string): Promise<string>;
}
declare const pipeline: Pipeline;

describe('the types of a pool', () => {
  it('follow from `create`, whether it is asynchronous or not', () => {
    const pool = new PipelinePool({ size: 1, create: async () => pipeline });
    expectTypeOf(pool).toEqualTypeOf<PipelinePool<Pipeline>>();
    expectTypeOf(new PipelinePool({ size: 1, create: () => pipeline })).toEqualTypeOf<
      PipelinePool<Pipeline>
    >();
    expectTypeOf(pool.acquire()).toEqualTypeOf<Promise<Lease<Pipeline>>>();
    expectTypeOf(pool.use((p) => p.research('why'))).toEqualTypeOf<Promise<string>>();
    expectTypeOf(pool.use(() => 7)).toEqualTypeOf<Promise<number>>();
  });

  it('are given to the callbacks', () => {
    new PipelinePool({
      size: 1,
      create: ({ instanceId, signal }) => {
        expectTypeOf(instanceId).toEqualTypeOf<number>();
        expectTypeOf(signal).toEqualTypeOf<AbortSignal>();
        return pipeline;
      },
      reset: (p, { taskId }) => {
        expectTypeOf(p).toEqualTypeOf<Pipeline>();
        expectTypeOf(taskId).toEqualTypeOf<string | undefined>();
      },
      validate: (p) => p === pipeline,
    });
  });

  it('refuse what is misspelt or meaningless', () => {
    // @ts-expect-error there is no such option
    new PipelinePool({ size: 1, create: () => pipeline, max: 3 });
    // @ts-expect-error what validates says yes or no
    new PipelinePool({ size: 1, create: () => pipeline, validate: () => 'yes' });
    const pool = new PipelinePool({ size: 1, create: () => pipeline });
    // @ts-expect-error there is no such option
    void pool.acquire({ task: 'a' });
    // @ts-expect-error a lease is not built by hand
    expectTypeOf<Lease<Pipeline>>().toBeConstructibleWith();
  });
});
