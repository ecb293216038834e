/**
 * The pools that are compared, each behind the same two functions and loaded only when it is its turn, so that a process
 * holds one of them and no other.
 *
 * Every one holds `SIZE` instances, made before anything is measured, with nothing switched on that can be left off.
 */

/** One pool, full of instances. */
export interface PoolSubject {
  acquire(): Promise<unknown>;
  /** Gives back what `acquire` gave. */
  release(held: unknown): unknown;
}

export interface PoolContender {
  readonly name: string;
  /** The npm package; `undefined` for ours. */
  readonly npm?: string;
  /** Said under the table. */
  readonly note?: string;
  /** Loads the library, and gives the function that makes one pool. */
  load(): Promise<() => PoolSubject>;
}

/** Instances of each pool. */
export const SIZE = 10;

const create = async (): Promise<object> => ({});
const destroy = async (): Promise<void> => {};

const ours: PoolContender = {
  name: 'ours',
  note: '`PipelinePool`, built as the package is; no listeners.',
  async load() {
    const { PipelinePool } = await import('../../src/pool/pipeline-pool.js');
    return () => {
      const pool = new PipelinePool({ size: SIZE, min: SIZE, create, destroy });
      return {
        acquire: () => pool.acquire(),
        release: (lease) => (lease as { release(): Promise<void> }).release(),
      };
    };
  },
};

const genericPool: PoolContender = {
  name: 'generic-pool',
  npm: 'generic-pool',
  async load() {
    const { createPool } = await import('generic-pool');
    return () => {
      const pool = createPool({ create, destroy }, { min: SIZE, max: SIZE });
      return { acquire: () => pool.acquire(), release: (held) => pool.release(held as object) };
    };
  },
};

const tarn: PoolContender = {
  name: 'tarn',
  npm: 'tarn',
  note: 'Its acquire timeout cannot be switched off: a timer for each that waits.',
  async load() {
    const { Pool } = await import('tarn');
    return () => {
      const pool = new Pool({ create, destroy, min: SIZE, max: SIZE });
      return { acquire: () => pool.acquire().promise, release: (held) => pool.release(held as object) };
    };
  },
};

const lightningPool: PoolContender = {
  name: 'lightning-pool',
  npm: 'lightning-pool',
  async load() {
    const { Pool } = await import('lightning-pool');
    return () => {
      const pool = new Pool({ create, destroy }, { min: SIZE, max: SIZE, maxQueue: 10_000_000 });
      return { acquire: () => pool.acquire(), release: (held) => pool.releaseAsync(held as object) };
    };
  },
};

const effect: PoolContender = {
  name: 'Effect',
  npm: 'effect',
  note: 'Called from promise code, through `Effect.runPromise` and a scope for each; inside one Effect program it is cheaper.',
  async load() {
    const { Effect, Exit, Pool, Scope } = await import('effect');
    return () => {
      const pool = Effect.runSync(
        Scope.provide(Pool.make({ acquire: Effect.sync(() => ({})), size: SIZE }), Scope.makeUnsafe()),
      );
      return {
        acquire: async () => {
          const scope = Scope.makeUnsafe();
          await Effect.runPromise(Scope.provide(Pool.get(pool), scope));
          return scope;
        },
        release: (scope) =>
          Effect.runPromise(Scope.close(scope as Parameters<typeof Scope.close>[0], Exit.void)),
      };
    };
  },
};

/** In the order of the table's columns. */
export const POOL_CONTENDERS: readonly PoolContender[] = [ours, genericPool, tarn, lightningPool, effect];
