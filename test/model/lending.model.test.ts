import fc from 'fast-check';
import { expect, it } from 'vitest';
import { ConcurrencyLimiter } from '../../src/limiter/concurrency-limiter.js';
import { endOfTurn, microtasks } from '../support/promises.js';
import { sizeOf } from '../support/soak.js';

const RUNS = sizeOf('trees of nested runs', 10_000, 100_000);

/** A run and the runs inside it. */
interface Tree {
  readonly children: readonly Tree[];
  readonly atOnce: boolean;
  readonly turns: number;
  readonly releasesEarly: boolean;
  readonly isAwaited: boolean;
  readonly fails: boolean;
}

const rarely = fc.integer({ min: 0, max: 9 }).map((one) => one === 0);

const treeOf = (depth: number): fc.Arbitrary<Tree> =>
  fc.record({
    children: depth === 0 ? fc.constant([]) : fc.array(treeOf(depth - 1), { maxLength: 3 }),
    atOnce: fc.boolean(),
    turns: fc.nat({ max: 4 }),
    releasesEarly: rarely,
    isAwaited: rarely.map((one) => !one),
    fails: rarely,
  });

it('with detectNested: lend, nested runs of any depth all end at any limit, and no permit is lost or counted twice', async () => {
  const property = fc.asyncProperty(
    fc.array(treeOf(4), { minLength: 1, maxLength: 4 }),
    fc.integer({ min: 1, max: 4 }),
    fc.boolean(),
    async (trees, maxConcurrent, tenanted) => {
      const limiter = new ConcurrencyLimiter({ maxConcurrent, detectNested: 'lend' });
      let runs = 0;
      let unsettled = 0;
      let mostActive = 0;
      const run = (node: Tree): Promise<void> => {
        const ended = limiter.run(
          async ({ permit }) => {
            runs++;
            mostActive = Math.max(mostActive, limiter.activeCount);
            if (node.releasesEarly) permit.release();
            await microtasks(node.turns);
            const inside: Promise<void>[] = [];
            for (const child of node.children) {
              const end = run(child);
              if (child.isAwaited) inside.push(end);
              if (!node.atOnce && child.isAwaited) await end;
            }
            await Promise.all(inside);
            if (node.fails) throw new Error('failed');
          },
          tenanted ? { tenant: `t${node.turns}` } : undefined,
        );
        unsettled++;
        return ended
          .catch((error: Error) => expect(error.message).toBe('failed'))
          .finally(() => {
            unsettled--;
          });
      };
      for (const node of trees) void run(node);
      // All of it is microtasks. Awaiting the runs would never end where one of them waits for ever.
      await endOfTurn();
      expect(unsettled).toBe(0);
      const sizeOf = (node: Tree): number => node.children.reduce((sum, child) => sum + sizeOf(child), 1);
      expect(runs).toBe(trees.reduce((sum, node) => sum + sizeOf(node), 0));
      expect(mostActive).toBeLessThanOrEqual(maxConcurrent);
      expect(limiter.stats()).toMatchObject({ active: 0, queued: 0, acquired: runs });
    },
  );
  await fc.assert(property, { numRuns: RUNS });
});
