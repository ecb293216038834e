import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  FairQueue,
  PriorityHeap,
  PriorityLevel,
  type QueueNode,
  type QueuePosition,
  type TenantQueue,
} from '../../src/queue/fair-queue.js';
import { endOfTurn } from '../support/promises.js';

/** May leave before its turn, unless it has no position. */
class Waiter implements QueueNode {
  next: QueueNode | undefined;
  position: QueuePosition | undefined;

  constructor(
    readonly name: string,
    readonly priority = 0,
    readonly tenant?: string,
    isPlain = false,
  ) {
    this.position = isPlain ? undefined : {};
  }

  get queue(): TenantQueue {
    return this.position!.queue!;
  }
}

function push(queue: FairQueue<Waiter>, waiter: Waiter): void {
  if (waiter.position === undefined) queue.push(waiter);
  else queue.pushAt(waiter.position, waiter, waiter.priority, waiter.tenant);
}

/** Gives a queued waiter a position, so that it may leave before its turn. */
function locate(queue: FairQueue<Waiter>, waiter: Waiter): void {
  waiter.position = {};
  queue.locate(waiter.position, waiter);
}

const remove = (queue: FairQueue<Waiter>, waiter: Waiter): boolean => queue.remove(waiter.position!, waiter);

function queueOf(...waiters: Waiter[]): FairQueue<Waiter> {
  const queue = new FairQueue<Waiter>();
  for (const waiter of waiters) push(queue, waiter);
  return queue;
}

function drain(queue: FairQueue<Waiter>): string[] {
  const names: string[] = [];
  for (let next = queue.shift(); next !== undefined; next = queue.shift()) names.push(next.name);
  return names;
}

describe('FairQueue', () => {
  it('is empty at first, and again when all waiters have left', () => {
    const queue = queueOf();
    expect([queue.size, queue.peek(), queue.shift(), [...queue]]).toEqual([0, undefined, undefined, []]);
    const waiter = new Waiter('a', 3, 't');
    push(queue, waiter);
    queue.shift();
    expect([queue.size, queue.peek(), queue.shift(), [...queue]]).toEqual([0, undefined, undefined, []]);
  });

  it('peeks at the next waiter without taking it', () => {
    const queue = queueOf(new Waiter('a'), new Waiter('b', 1));
    expect(queue.peek()?.name).toBe('b');
    expect(queue.size).toBe(2);
  });

  it('gives a tenant that leaves and returns its turn after the others', () => {
    const queue = queueOf(new Waiter('a1', 0, 'a'), new Waiter('b1', 0, 'b'), new Waiter('b2', 0, 'b'));
    expect(queue.shift()?.name).toBe('a1');
    push(queue, new Waiter('a2', 0, 'a'));
    expect(drain(queue)).toEqual(['b1', 'a2', 'b2']);
  });

  it('removes a waiter from anywhere, and only once', () => {
    const waiters = ['head', 'middle', 'tail'].map((name) => new Waiter(name));
    for (const gone of waiters) {
      const queue = queueOf(...waiters);
      expect(remove(queue, gone)).toBe(true);
      expect(remove(queue, gone)).toBe(false);
      expect(queue.size).toBe(2);
      expect(drain(queue)).toEqual(waiters.filter((waiter) => waiter !== gone).map(({ name }) => name));
    }
  });

  it('removes waiters before and behind one without a position', () => {
    const [first, plain, last] = [
      new Waiter('first'),
      new Waiter('plain', 0, undefined, true),
      new Waiter('last'),
    ];
    const queue = queueOf(first, plain, last);
    expect([remove(queue, last), remove(queue, first), remove(queue, last)]).toEqual([true, true, false]);
    expect(queue.size).toBe(1);
    push(queue, last);
    expect(drain(queue)).toEqual(['plain', 'last']);
    expect(remove(queue, last)).toBe(false);
  });

  it('removes a waiter that was located while queued', () => {
    const waiters = ['a', 'b', 'c', 'd'].map((name) => new Waiter(name, 0, undefined, true));
    const [first, second, third, fourth] = waiters as [Waiter, Waiter, Waiter, Waiter];
    const queue = queueOf(...waiters);
    for (const waiter of [third, fourth, second]) locate(queue, waiter);
    expect([remove(queue, third), remove(queue, fourth), remove(queue, third)]).toEqual([true, true, false]);
    expect(queue.shift()).toBe(first);
    expect(remove(queue, second)).toBe(true);
    expect(queue.size).toBe(0);
    locate(queue, first);
    expect(remove(queue, first)).toBe(false);
  });

  it('keeps no reference from a waiter that has left to those behind it', () => {
    const waiters = [new Waiter('a'), new Waiter('b', 0, undefined, true), new Waiter('c'), new Waiter('d')];
    const queue = queueOf(...waiters);
    remove(queue, waiters[2] as Waiter);
    drain(queue);
    expect(waiters.map(({ next, position }) => [next, position?.queue, position?.previous])).toEqual(
      waiters.map(() => [undefined, undefined, undefined]),
    );
  });

  it('passes the turn on when the tenant whose turn it is leaves', () => {
    const waiters = ['a', 'b', 'c'].map((tenant) => new Waiter(tenant, 0, tenant));
    const queue = queueOf(...waiters);
    remove(queue, waiters[0] as Waiter);
    expect(queue.peek()?.name).toBe('b');
    remove(queue, waiters[2] as Waiter);
    expect(queue.peek()?.name).toBe('b');
    remove(queue, waiters[1] as Waiter);
    expect(queue.peek()).toBeUndefined();
  });

  it('iterates in the order in which waiters would be taken', () => {
    const property = fc.property(
      fc.array(
        fc.record({
          priority: fc.integer({ min: -1, max: 2 }),
          tenant: fc.option(fc.constantFrom('a', 'b', 'c'), { nil: undefined }),
        }),
      ),
      (given) => {
        const queue = queueOf(
          ...given.map(({ priority, tenant }, i) => new Waiter(`${i}`, priority, tenant)),
        );
        const listed = [...queue].map(({ name }) => name);
        expect(drain(queue)).toEqual(listed);
      },
    );
    fc.assert(property);
  });

  it('keeps nothing of a priority or a tenant that is no longer queued', async () => {
    const queue = new FairQueue<Waiter>();
    const tenantQueues: WeakRef<object>[] = [];
    const levels: WeakRef<object>[] = [];
    for (let i = 1; i <= 100; i++) {
      for (const waiter of [new Waiter('by priority', i), new Waiter('by tenant', 0, `tenant ${i}`)]) {
        push(queue, waiter);
        if (waiter.priority > 0) levels.push(new WeakRef(waiter.queue.level));
        else tenantQueues.push(new WeakRef(waiter.queue));
      }
    }
    drain(queue);
    await endOfTurn();
    globalThis.gc?.();
    const kept = (refs: WeakRef<object>[]) => refs.filter((ref) => ref.deref() !== undefined).length;
    expect(kept(levels)).toBeLessThan(3);
    expect(kept(tenantQueues)).toBeLessThan(3);
    expect(queue.size).toBe(0);
  });

  it('keeps 1,000 priorities apart', () => {
    const waiters = Array.from({ length: 1000 }, (_, i) => new Waiter(`${i}`, (i * 37) % 1000));
    const queue = queueOf(...waiters);
    const order = drain(queue).map((name) => waiters[Number(name)]?.priority);
    expect(order).toEqual(Array.from({ length: 1000 }, (_, i) => 999 - i));
  });
});

describe('FairQueue with many priorities and tenants', () => {
  /** The same order in plain code: all priorities are searched, and each tenant's turn is in a list. */
  class Reference {
    waiters: Waiter[] = [];
    readonly #turns = new Map<number, (string | undefined)[]>();

    push(waiter: Waiter): void {
      this.waiters.push(waiter);
      const turns = this.#turns.get(waiter.priority) ?? [];
      if (!turns.includes(waiter.tenant)) turns.push(waiter.tenant);
      this.#turns.set(waiter.priority, turns);
    }

    get next(): Waiter | undefined {
      const priority = Math.max(...this.waiters.map((waiter) => waiter.priority));
      const tenant = this.#turns.get(priority)?.[0];
      return this.waiters.find((waiter) => waiter.priority === priority && waiter.tenant === tenant);
    }

    shift(): Waiter | undefined {
      const { next } = this;
      if (next === undefined) return undefined;
      const turns = this.#turns.get(next.priority)!;
      turns.push(turns.shift());
      this.remove(next);
      return next;
    }

    remove(gone: Waiter): void {
      this.waiters = this.waiters.filter((waiter) => waiter !== gone);
      const { priority, tenant } = gone;
      if (this.waiters.some((waiter) => waiter.priority === priority && waiter.tenant === tenant)) return;
      const turns = this.#turns.get(priority) ?? [];
      this.#turns.set(
        priority,
        turns.filter((one) => one !== tenant),
      );
    }

    clone(): Reference {
      const copy = new Reference();
      copy.waiters = [...this.waiters];
      for (const [priority, turns] of this.#turns) copy.#turns.set(priority, [...turns]);
      return copy;
    }
  }

  const anyPriority = fc.oneof(
    fc.integer({ min: -30, max: 30 }),
    fc.integer({ min: Number.MIN_SAFE_INTEGER, max: Number.MAX_SAFE_INTEGER }),
    fc.constant(0),
  );
  const tenant = fc.option(fc.constantFrom('a', 'b', 'c', 'd'), { nil: undefined });
  const stepOf = (priority: fc.Arbitrary<number>) =>
    fc.oneof(
      {
        weight: 5,
        arbitrary: fc.record({ do: fc.constant('push' as const), priority, tenant, isPlain: fc.boolean() }),
      },
      { weight: 2, arbitrary: fc.record({ do: fc.constant('take' as const) }) },
      { weight: 1, arbitrary: fc.record({ do: fc.constant('shift' as const) }) },
      { weight: 2, arbitrary: fc.record({ do: fc.constant('remove' as const), index: fc.nat() }) },
      { weight: 1, arbitrary: fc.record({ do: fc.constant('locate' as const), index: fc.nat() }) },
    );
  const stepsOf = (priority: fc.Arbitrary<number>, maxLength: number) =>
    fc.array(stepOf(priority), { maxLength, size: 'max' });
  type Step = ReturnType<typeof stepOf> extends fc.Arbitrary<infer S> ? S : never;

  /** Takes a queue and the reference through the same steps. */
  function takeThrough(
    given: readonly Step[],
    after: (queue: FairQueue<Waiter>, reference: Reference) => void,
  ) {
    const queue = new FairQueue<Waiter>();
    const reference = new Reference();
    given.forEach((one, i) => {
      if (one.do === 'push') {
        const isPlain = one.isPlain && one.priority === 0 && one.tenant === undefined;
        const waiter = new Waiter(`${i}`, one.priority, one.tenant, isPlain);
        push(queue, waiter);
        reference.push(waiter);
      } else if (one.do === 'locate') {
        const plain = reference.waiters.filter(({ position }) => position === undefined);
        const waiter = plain[one.index % Math.max(1, plain.length)];
        if (waiter !== undefined) locate(queue, waiter);
      } else if (one.do === 'remove') {
        const positioned = reference.waiters.filter(({ position }) => position !== undefined);
        const waiter = positioned[one.index % Math.max(1, positioned.length)];
        if (waiter === undefined) return;
        expect(remove(queue, waiter)).toBe(true);
        reference.remove(waiter);
      } else {
        const next = queue.peek();
        expect(next).toBe(reference.shift());
        if (one.do === 'shift') expect(queue.shift()).toBe(next);
        else if (next !== undefined) queue.take(next);
      }
      after(queue, reference);
    });
    return { queue, reference };
  }

  /** How many waiters are expected to be taken before a newcomer, and how many are. */
  function aheadOf(given: readonly Step[], priority: number, tenant: string | undefined) {
    const { queue, reference } = takeThrough(given, () => {});
    const expected = queue.aheadOf(priority, tenant);
    const newcomer = new Waiter('newcomer', priority, tenant);
    reference.push(newcomer);
    const queues = new Set(
      reference.waiters.filter((waiter) => waiter.priority === priority).map((waiter) => waiter.tenant),
    );
    let real = 0;
    while (reference.shift() !== newcomer) real++;
    return { expected, real, others: queues.size - 1 };
  }

  it('takes, iterates and counts as the reference does, whatever comes and leaves in between', () => {
    const property = fc.property(stepsOf(anyPriority, 200), (given) => {
      const { queue, reference } = takeThrough(given, (queue, reference) => {
        const { next, waiters } = reference;
        expect([queue.size, queue.peek(), queue.topPriority]).toEqual([waiters.length, next, next?.priority]);
      });
      const order: unknown[] = [];
      while (reference.waiters.length > 0) order.push(reference.shift());
      expect([...queue]).toEqual(order);
      expect(order.map(() => queue.shift())).toEqual(order);
      expect([queue.size, queue.peek(), queue.topPriority]).toEqual([0, undefined, undefined]);
    });
    fc.assert(property, { numRuns: 150 });
  });

  it('counts how many are taken before one more, or at most one too many for each other tenant', () => {
    const few = fc.integer({ min: 0, max: 1 });
    const property = fc.property(stepsOf(few, 60), few, tenant, (given, priority, tenant) => {
      const { expected, real, others } = aheadOf(given, priority, tenant);
      expect(expected).toBeGreaterThanOrEqual(real);
      expect(expected).toBeLessThanOrEqual(real + others);
    });
    fc.assert(property, { numRuns: 1_500 });
  });

  it('counts exactly how many are taken before the first of a tenant, whatever the priority', () => {
    const property = fc.property(stepsOf(anyPriority, 100), anyPriority, (given, priority) => {
      const { expected, real } = aheadOf(given, priority, 'newcomer');
      expect(expected).toBe(real);
    });
    fc.assert(property, { numRuns: 300 });
  });
});

/** A level of this priority is added, or one of those inside is removed. */
const heapStep = fc.oneof(
  { weight: 3, arbitrary: fc.record({ add: fc.integer({ min: -1_000, max: 1_000 }) }) },
  { weight: 2, arbitrary: fc.record({ remove: fc.nat() }) },
  { weight: 1, arbitrary: fc.record({ remove: fc.constant('top' as const) }) },
);

const priorities = (levels: Iterable<PriorityLevel>) => Array.from(levels, (level) => level.priority);

/** Levels with a wrong index or a wrong order. */
const faults = (heap: PriorityHeap) => {
  const levels = [...heap];
  return levels.filter(
    ({ heapIndex, priority }, i) => heapIndex !== i || (i > 0 && priority > levels[(i - 1) >> 1]!.priority),
  );
};

describe('PriorityHeap', () => {
  it('keeps the index of each level, no level above a higher one, and the highest on top, after every step', () => {
    const property = fc.property(fc.array(heapStep, { maxLength: 150, size: 'max' }), (steps) => {
      const heap = new PriorityHeap();
      let inside: PriorityLevel[] = [];
      for (const one of steps) {
        if ('add' in one) {
          if (inside.some((level) => level.priority === one.add)) continue;
          const level = new PriorityLevel(one.add);
          inside.push(level);
          heap.add(level);
        } else {
          const gone = one.remove === 'top' ? heap.top : inside[one.remove % Math.max(1, inside.length)];
          if (gone === undefined) continue;
          inside = inside.filter((level) => level !== gone);
          heap.remove(gone);
        }
        expect(faults(heap)).toEqual([]);
        const sorted = priorities(inside).sort((a, b) => b - a);
        expect(priorities(heap.sorted())).toEqual(sorted);
        expect(heap.top?.priority).toBe(sorted[0]);
      }
    });
    fc.assert(property, { numRuns: 300 });
  });

  it('fills the gap of a removed level with one that belongs higher up', () => {
    const heap = new PriorityHeap();
    const levels = [100, 20, 90, 10, 15, 80, 85].map((priority) => new PriorityLevel(priority));
    for (const level of levels) heap.add(level);
    // The last, 85, is higher than 20, the parent of the gap.
    heap.remove(levels[3]!);
    expect(faults(heap)).toEqual([]);
    expect(priorities(heap.sorted())).toEqual([100, 90, 85, 80, 20, 15]);
  });

  it('reads a handful of levels to add one, and four for each doubling of them to remove one', () => {
    let reads = 0;
    class Counted extends PriorityLevel {
      readonly #priority: number;
      constructor(priority: number) {
        super(priority);
        this.#priority = priority;
        Object.defineProperty(this, 'priority', {
          get: () => {
            reads++;
            return this.#priority;
          },
        });
      }
    }
    const heap = new PriorityHeap();
    const doublings = 14;
    const many = 2 ** doublings;
    for (let i = 0; i < many; i++) heap.add(new Counted((i * 7_919) % many));
    expect(reads / many).toBeLessThan(8);
    reads = 0;
    for (let { top } = heap; top !== undefined; top = heap.top) heap.remove(top);
    expect(reads / many).toBeLessThan(4 * doublings);
  });
});
