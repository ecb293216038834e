import fc from 'fast-check';
import { describe, expect, it, vi } from 'vitest';
import {
  Aging,
  FairQueue,
  locate,
  type QueueNode,
  type QueuePosition,
  refund,
  Tenant,
  type TenantQueue,
} from '../../src/queue/fair-queue.js';
import { IndexedHeap, OrderedItems } from '../../src/queue/heap.js';
import { servingOrder } from '../../src/queue/serving-order.js';
import { FairOrder } from '../support/fair-order.js';
import { endOfTurn } from '../support/promises.js';

/** May leave before its turn, unless it has no position. */
class Waiter implements QueueNode {
  next: QueueNode | undefined;
  position: QueuePosition | undefined;

  constructor(
    readonly name: string,
    readonly priority = 0,
    readonly tenant: string | undefined = undefined,
    isPlain = false,
  ) {
    this.position = isPlain ? undefined : {};
  }

  get queue(): TenantQueue {
    return this.position!.queue!;
  }
}

function push(queue: FairQueue<Waiter>, waiter: Waiter): void {
  const tenant = waiter.tenant === undefined ? undefined : queue.tenant(waiter.tenant);
  if (waiter.position === undefined) queue.push(waiter);
  else queue.pushAt(waiter, waiter.priority, tenant);
}

/** Gives a queued waiter a position, so that it may leave before its turn. */
function addPosition(queue: FairQueue<Waiter>, waiter: Waiter): void {
  waiter.position = {};
  locate(queue, waiter);
}

function queueOf(...waiters: Waiter[]): FairQueue<Waiter> {
  const queue = new FairQueue<Waiter>({ fairBy: 'requests' });
  for (const waiter of waiters) push(queue, waiter);
  return queue;
}

/** Takes the next element. */
function shift(queue: FairQueue<Waiter>): Waiter | undefined {
  const next = queue.peek();
  if (next !== undefined) queue.take(next);
  return next;
}

function drain(queue: FairQueue<Waiter>): string[] {
  const names: string[] = [];
  for (let next = shift(queue); next !== undefined; next = shift(queue)) names.push(next.name);
  return names;
}

describe('FairQueue', () => {
  it('is empty at first, and again when all waiters have left', () => {
    const queue = queueOf();
    expect([queue.size, queue.peek(), shift(queue), [...servingOrder(queue)]]).toEqual([
      0,
      undefined,
      undefined,
      [],
    ]);
    const waiter = new Waiter('a', 3, 't');
    push(queue, waiter);
    shift(queue);
    expect([queue.size, queue.peek(), shift(queue), [...servingOrder(queue)]]).toEqual([
      0,
      undefined,
      undefined,
      [],
    ]);
  });

  it('peeks at the next waiter without taking it', () => {
    const queue = queueOf(new Waiter('a'), new Waiter('b', 1));
    expect(queue.peek()?.name).toBe('b');
    expect(queue.size).toBe(2);
  });

  it('gives a tenant that leaves and returns its turn after the others', () => {
    const queue = queueOf(new Waiter('a1', 0, 'a'), new Waiter('b1', 0, 'b'), new Waiter('b2', 0, 'b'));
    expect(shift(queue)?.name).toBe('a1');
    push(queue, new Waiter('a2', 0, 'a'));
    expect(drain(queue)).toEqual(['b1', 'a2', 'b2']);
  });

  it('removes a waiter from anywhere, and only once', () => {
    const waiters = ['head', 'middle', 'tail'].map((name) => new Waiter(name));
    for (const gone of waiters) {
      const queue = queueOf(...waiters);
      expect(queue.remove(gone)).toBe(true);
      expect(queue.remove(gone)).toBe(false);
      expect(queue.size).toBe(2);
      expect(drain(queue)).toEqual(waiters.filter((waiter) => waiter !== gone).map(({ name }) => name));
    }
  });

  it('reads its options once', () => {
    const options = { fairBy: 'requests' as 'requests' | 'weight', tenants: () => ({ maxConcurrent: 9 }) };
    const queue = new FairQueue<Waiter>(options);
    options.fairBy = 'weight';
    options.tenants = () => ({ maxConcurrent: 1 });
    const tenant = queue.tenant('a', 5);
    expect([tenant.limits.maxConcurrent, queue.costOf(tenant, 5)]).toEqual([9, 1]);
  });

  it('removes waiters before and behind one without a position', () => {
    const [first, plain, last] = [
      new Waiter('first'),
      new Waiter('plain', 0, undefined, true),
      new Waiter('last'),
    ];
    const queue = queueOf(first, plain, last);
    expect([queue.remove(last), queue.remove(first), queue.remove(last)]).toEqual([true, true, false]);
    expect(queue.size).toBe(1);
    push(queue, last);
    expect(drain(queue)).toEqual(['plain', 'last']);
    expect(queue.remove(last)).toBe(false);
  });

  it('removes a waiter that was located while queued', () => {
    const waiters = ['a', 'b', 'c', 'd'].map((name) => new Waiter(name, 0, undefined, true));
    const [first, second, third, fourth] = waiters as [Waiter, Waiter, Waiter, Waiter];
    const queue = queueOf(...waiters);
    for (const waiter of [third, fourth, second]) addPosition(queue, waiter);
    expect([queue.remove(third), queue.remove(fourth), queue.remove(third)]).toEqual([true, true, false]);
    expect(shift(queue)).toBe(first);
    expect(queue.remove(second)).toBe(true);
    expect(queue.size).toBe(0);
    addPosition(queue, first);
    expect(queue.remove(first)).toBe(false);
  });

  it('keeps no reference from a waiter that has left to those behind it', () => {
    const waiters = [new Waiter('a'), new Waiter('b', 0, undefined, true), new Waiter('c'), new Waiter('d')];
    const queue = queueOf(...waiters);
    queue.remove(waiters[2] as Waiter);
    drain(queue);
    expect(waiters.map(({ next, position }) => [next, position?.queue, position?.previous])).toEqual(
      waiters.map(() => [undefined, undefined, undefined]),
    );
  });

  it('passes the turn on when the tenant whose turn it is leaves', () => {
    const waiters = ['a', 'b', 'c'].map((tenant) => new Waiter(tenant, 0, tenant));
    const queue = queueOf(...waiters);
    queue.remove(waiters[0] as Waiter);
    expect(queue.peek()?.name).toBe('b');
    queue.remove(waiters[2] as Waiter);
    expect(queue.peek()?.name).toBe('b');
    queue.remove(waiters[1] as Waiter);
    expect(queue.peek()).toBeUndefined();
  });

  it('is listed in the order in which waiters would be taken', () => {
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
        const listed = [...servingOrder(queue)].map(({ name }) => name);
        expect(drain(queue)).toEqual(listed);
      },
    );
    fc.assert(property);
  });

  it.each([0, 50])(
    'charges by time a grant that was returned unused after %i ms, and expects no less of the next',
    (heldMs) => {
      let clockMs = 0;
      const queue = new FairQueue<Waiter>({}, () => clockMs);
      const [a, b] = [queue.tenant('a'), queue.tenant('b')];
      const grant = (ms: number, returned: boolean): void => {
        const position: QueuePosition = {};
        queue.charge(position, 1, a);
        clockMs += ms;
        if (returned) refund(position);
        queue.settle(position, 1);
      };
      grant(100, false);
      for (let i = 0; i < 20; i++) grant(heldMs, true);
      expect(a).toMatchObject({ received: 100 + 20 * heldMs, pending: 0, held: 0 });
      expect([queue.costOf(a, 1), queue.costOf(b, 1)]).toEqual([100, 100]);
      const [other, returned]: QueuePosition[] = [{}, {}];
      queue.charge(other!, 1, a);
      queue.charge(returned!, 1, a);
      refund(returned!);
      queue.settle(returned!, 1);
      expect(a).toMatchObject({ received: 200 + 20 * heldMs, pending: 100, held: 1 });
    },
  );

  it('keeps nothing of a priority that is no longer queued, or of a tenant once there are a thousand others', async () => {
    const queue = new FairQueue<Waiter>({ fairBy: 'requests' });
    const tenantQueues: WeakRef<object>[] = [];
    const levels: WeakRef<object>[] = [];
    for (let i = 1; i <= 100; i++) {
      for (const waiter of [new Waiter('by priority', i), new Waiter('by tenant', 0, `tenant ${i}`)]) {
        push(queue, waiter);
        if (waiter.priority > 0) levels.push(new WeakRef(waiter.queue.level));
        else tenantQueues.push(new WeakRef(waiter.queue));
      }
    }
    for (let next = shift(queue); next !== undefined; next = shift(queue)) queue.settle(next.position!, 1);
    for (let i = 1; i <= 1_000; i++) queue.tenant(`other ${i}`);
    await endOfTurn();
    globalThis.gc?.();
    const kept = (refs: WeakRef<object>[]) => refs.filter((ref) => ref.deref() !== undefined).length;
    expect(kept(levels)).toBeLessThan(3);
    expect(kept(tenantQueues)).toBeLessThan(3);
    expect(queue.size).toBe(0);
  });

  it.each([undefined, 100])(
    'once it stops sharing, gives all elements whatever the caps, with agingMs %s',
    (agingMs) => {
      fc.assert(
        fc.property(
          fc.array(
            fc.tuple(
              fc.integer({ max: 2, min: 0 }),
              fc.integer({ min: 0, max: 3 }),
              fc.integer({ min: 1, max: 4 }),
            ),
            { maxLength: 30, size: 'max' },
          ),
          fc.nat(20),
          (elements, granted) => {
            const tenants = (name: string) =>
              name === 't0' ? { guaranteed: 1 } : { maxConcurrent: 4, guaranteed: name === 't1' ? 1 : 0 };
            const queue = new FairQueue<Waiter>({ tenants, ...(agingMs === undefined ? {} : { agingMs }) });
            elements.forEach(([priority, tenant, weight], i) => {
              push(queue, Object.assign(new Waiter(`${i}`, priority, `t${tenant}`), { weight }));
            });
            let count = 0;
            while (count < granted && shift(queue) !== undefined) count++;
            queue.stopSharing();
            while (shift(queue) !== undefined) count++;
            expect([count, queue.size, queue.excess]).toEqual([elements.length, 0, 0]);
          },
        ),
      );
    },
  );

  it('once it stops sharing, moves no tenant before its last element has left', () => {
    const queue = new FairQueue<Waiter>({ tenants: () => ({ maxConcurrent: 10 }) });
    for (let i = 0; i < 300; i++) push(queue, new Waiter(`${i}`, 0, `t${i % 100}`));
    const update = vi.spyOn(OrderedItems.prototype, 'update');
    queue.stopSharing();
    while (shift(queue) !== undefined);
    expect(update).toHaveBeenCalledTimes(100);
    update.mockRestore();
  });

  it('with agingMs, moves a bounded number of queues for each element, however many priorities there are', () => {
    const queue = new FairQueue<Waiter>({ agingMs: 1_000 });
    const place = vi.spyOn(Aging.prototype, 'place');
    for (let i = 0; i < 500; i++) push(queue, new Waiter(`${i}`, i));
    while (shift(queue) !== undefined);
    expect(place.mock.calls.length).toBeLessThanOrEqual(2 * 500);
    place.mockRestore();
  });

  it('with agingMs, moves the queues of a tenant with a cap only as the room under it changes', () => {
    const queue = new FairQueue<Waiter>({ agingMs: 1_000, tenants: () => ({ maxConcurrent: 10 }) });
    const waiters = Array.from({ length: 500 }, (_, i) => new Waiter(`${i}`, i, 'a'));
    const place = vi.spyOn(Aging.prototype, 'place');
    for (const waiter of waiters) push(queue, waiter);
    for (const waiter of waiters.slice(1)) queue.remove(waiter);
    expect(place.mock.calls.length).toBeLessThanOrEqual(3 * 500);
    place.mockRestore();
  });

  it('with agingMs, counts the wait behind one of its tenant that was too heavy for the cap, once that has left', () => {
    let nowMs = 0;
    const queue = new FairQueue<Waiter>({ agingMs: 10, tenants: () => ({ maxConcurrent: 2 }) }, () => nowMs);
    queue.charge({}, 1, queue.tenant('a'));
    const heavy = Object.assign(new Waiter('heavy', 1, 'a'), { weight: 2 });
    push(queue, heavy);
    push(queue, new Waiter('light', 0, 'a'));
    nowMs = 100;
    push(queue, new Waiter('urgent', 1, 'b'));
    expect(queue.peek()?.name).toBe('urgent');
    queue.remove(heavy);
    expect(queue.peek()?.name).toBe('light');
  });

  it('remembers a bounded number of tenants, though new ones come without end and the queue is never empty', () => {
    const queue = new FairQueue<Waiter>({ fairBy: 'requests' });
    push(queue, new Waiter('first', 0, 'first'));
    for (let i = 0; i < 20_000; i++) {
      push(queue, new Waiter('next', 0, `t${i}`));
      queue.settle(shift(queue)!.position!, 1);
    }
    expect(queue.size).toBe(1);
    expect(queue.tenants.size).toBeLessThan(8_100);
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
    #order = new FairOrder();

    push(waiter: Waiter): void {
      if (waiter.tenant !== undefined) this.#order.isShared = true;
      this.#order.join(waiter, this.waiters);
      this.waiters.push(waiter);
    }

    get next(): Waiter | undefined {
      return this.#order.next(this.waiters);
    }

    shift(): Waiter | undefined {
      const { next } = this;
      if (next === undefined) return undefined;
      this.#order.grant(next);
      this.remove(next);
      return next;
    }

    remove(gone: Waiter): void {
      this.waiters = this.waiters.filter((waiter) => waiter !== gone);
    }

    clone(): Reference {
      const copy = new Reference();
      copy.waiters = [...this.waiters];
      copy.#order = this.#order.clone();
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
    const queue = new FairQueue<Waiter>({ fairBy: 'requests' });
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
        if (waiter !== undefined) addPosition(queue, waiter);
      } else if (one.do === 'remove') {
        const positioned = reference.waiters.filter(({ position }) => position !== undefined);
        const waiter = positioned[one.index % Math.max(1, positioned.length)];
        if (waiter === undefined) return;
        expect(queue.remove(waiter)).toBe(true);
        reference.remove(waiter);
      } else {
        const next = queue.peek();
        expect(next).toBe(reference.shift());
        if (one.do === 'shift') expect(shift(queue)).toBe(next);
        else if (next !== undefined) queue.take(next);
      }
      after(queue, reference);
    });
    return { queue, reference };
  }

  /** How many waiters are expected to be taken before a newcomer, and how many are. */
  function aheadOf(given: readonly Step[], priority: number, tenant: string | undefined) {
    const { queue, reference } = takeThrough(given, () => {});
    const expected = queue.aheadOf(
      priority,
      tenant === undefined ? undefined : (queue.tenants.get(tenant) ?? new Tenant()),
    );
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
        expect([queue.size, queue.peek()]).toEqual([waiters.length, next]);
      });
      const order: unknown[] = [];
      while (reference.waiters.length > 0) order.push(reference.shift());
      expect([...servingOrder(queue)]).toEqual(order);
      expect(order.map(() => shift(queue))).toEqual(order);
      expect([queue.size, queue.peek()]).toEqual([0, undefined]);
    });
    fc.assert(property, { numRuns: 150 });
  });

  it('counts exactly how many are taken before one more without a tenant, whatever the priority', () => {
    const property = fc.property(stepsOf(anyPriority, 100), anyPriority, (given, priority) => {
      const untenanted = given.map((one) => ({ ...one, tenant: undefined }) as Step);
      const { expected, real } = aheadOf(untenanted, priority, undefined);
      expect(expected).toBe(real);
    });
    fc.assert(property, { numRuns: 300 });
  });

  it('counts the elements ahead of one in the queue, by turns of the other tenants, and those before one without a position', () => {
    const alone = ['a', 'b', 'c'].map((name) => new Waiter(name));
    const queue = queueOf(...alone);
    expect(alone.map((waiter) => queue.aheadOfQueued(waiter))).toEqual([0, 1, 2]);
    const last = new Waiter('last', 0, undefined, true);
    push(queue, last);
    expect(queue.aheadOfQueued(last)).toBe(3);

    const shared = ['a', 'a', 'a', 'b', 'c', 'c'].map((tenant) => new Waiter(tenant, 0, tenant));
    const tenants = queueOf(...shared);
    expect(shared.map((waiter) => tenants.aheadOfQueued(waiter))).toEqual([0, 5, 5, 2, 2, 5]);
  });

  it('counts no element of a lower priority before one without a position, nor any that was taken', () => {
    const first = new Waiter('first', 0, undefined, true);
    const last = new Waiter('last', 0, undefined, true);
    const queue = queueOf(new Waiter('low', -1), first, new Waiter('high', 1), last);
    expect(queue.aheadOfQueued(last)).toBe(2);
    shift(queue);
    expect(shift(queue)).toBe(first);
    expect(queue.aheadOfQueued(last)).toBe(0);
    addPosition(queue, last);
    expect(queue.aheadOfQueued(last)).toBe(0);
  });

  it('counts at least as many as are taken before one more of tenants that have received alike', () => {
    const property = fc.property(stepsOf(fc.constant(0), 60), tenant, (given, tenant) => {
      const pushes = given.filter((one) => one.do === 'push');
      const { expected, real, others } = aheadOf(pushes, 0, tenant);
      const own = pushes.filter((one) => one.tenant === tenant).length;
      expect(expected).toBeGreaterThanOrEqual(real);
      expect(expected).toBeLessThanOrEqual(own + (own + 1) * others);
    });
    fc.assert(property, { numRuns: 1_000 });
  });
});

/** An item of this rank is added or moved, or one of those inside is removed. */
const heapStep = fc.oneof(
  { weight: 3, arbitrary: fc.record({ add: fc.integer({ min: -1_000, max: 1_000 }) }) },
  { weight: 2, arbitrary: fc.record({ move: fc.nat(), to: fc.integer({ min: -1_000, max: 1_000 }) }) },
  { weight: 2, arbitrary: fc.record({ remove: fc.nat() }) },
  { weight: 1, arbitrary: fc.record({ remove: fc.constant('top' as const) }) },
);

type HeapStep = typeof heapStep extends fc.Arbitrary<infer Step> ? Step : never;

interface Item {
  rank: number;
  index: number;
}

interface Played<I> {
  itemOf(rank: number): I;
  /** The item that precedes all others. */
  first(): I | undefined;
  /** Adds an item, or moves one whose rank has changed. */
  place(item: I): void;
  remove(item: I): void;
}

/** Takes the steps. After each, checks what must hold with these items inside, and that the first has the lowest rank. */
function play<I extends Item>(
  steps: readonly HeapStep[],
  ordered: Played<I>,
  check: (inside: readonly I[]) => void,
): void {
  let inside: I[] = [];
  for (const one of steps) {
    if ('add' in one) {
      const item = ordered.itemOf(one.add);
      inside.push(item);
      ordered.place(item);
    } else {
      const index = 'move' in one ? one.move : one.remove;
      const item = index === 'top' ? ordered.first() : inside[index % Math.max(1, inside.length)];
      if (item === undefined) continue;
      if ('move' in one) {
        item.rank = one.to;
        ordered.place(item);
      } else {
        inside = inside.filter((other) => other !== item);
        ordered.remove(item);
      }
    }
    check(inside);
    expect(ordered.first()?.rank).toBe(
      inside.length === 0 ? undefined : Math.min(...inside.map(({ rank }) => rank)),
    );
  }
}

describe('IndexedHeap', () => {
  let compared = 0;
  const heapOf = (...ranks: number[]) => {
    const heap = new IndexedHeap<Item>((a, b) => {
      compared++;
      return a.rank < b.rank;
    });
    for (const rank of ranks) heap.place({ rank, index: -1 });
    return heap;
  };
  /** Items with a wrong index or a wrong order. */
  const faults = ({ items }: IndexedHeap<Item>) =>
    items.filter(({ index, rank }, i) => index !== i || (i > 0 && rank < items[(i - 1) >> 1]!.rank));

  it('keeps the index of each item, and none before one that precedes it, after every step', () => {
    const property = fc.property(fc.array(heapStep, { maxLength: 150, size: 'max' }), (steps) => {
      const heap = heapOf();
      play(
        steps,
        {
          itemOf: (rank) => ({ rank, index: -1 }),
          first: () => heap.top,
          place: (item) => heap.place(item),
          remove: (item) => {
            heap.remove(item);
            heap.remove(item);
            expect(item.index).toBe(-1);
          },
        },
        (inside) => {
          expect(faults(heap)).toEqual([]);
          expect(new Set(heap.items)).toEqual(new Set(inside));
        },
      );
    });
    fc.assert(property, { numRuns: 300 });
  });

  it('fills the gap of a removed item with one that belongs higher up', () => {
    const heap = heapOf(0, 80, 10, 90, 85, 20, 15);
    // The last, 15, precedes 80, the parent of the gap.
    heap.remove(heap.items.find(({ rank }) => rank === 90)!);
    expect(faults(heap)).toEqual([]);
  });

  it('makes a handful of comparisons to add one, and one for each doubling of them to remove one', () => {
    const doublings = 14;
    const many = 2 ** doublings;
    compared = 0;
    const heap = heapOf(...Array.from({ length: many }, (_, i) => (i * 7_919) % many));
    expect(compared / many).toBeLessThan(8);
    compared = 0;
    for (let { top } = heap; top !== undefined; top = heap.top) heap.remove(top);
    expect(compared / many).toBeLessThan(1.5 * doublings);
  });
});

describe('OrderedItems', () => {
  interface Ordered extends Item {
    previous: Ordered | undefined;
    next: Ordered | undefined;
  }
  const itemOf = (rank: number): Ordered => ({ rank, index: -1, previous: undefined, next: undefined });

  it('has the item next that precedes all others, wherever they are placed, moved and removed', () => {
    const property = fc.property(fc.array(heapStep, { maxLength: 60, size: 'max' }), (steps) => {
      const ordered = new OrderedItems<Ordered>((a, b) => a.rank < b.rank);
      play(
        steps,
        {
          itemOf,
          first: () => ordered.next,
          place: (item) => ordered.update(item, true),
          remove: (item) => {
            for (let i = 0; i < 2; i++) ordered.update(item, false);
            expect(item).toEqual(itemOf(item.rank));
          },
        },
        (inside) => {
          const listed: Ordered[] = [];
          for (let at = ordered.head; at !== undefined; at = at.next) {
            expect(at.previous).toBe(listed.at(-1));
            listed.push(at);
          }
          const ranks = listed.map(({ rank }) => rank);
          expect(ranks).toEqual(ranks.toSorted((a, b) => a - b));
          expect(new Set([...ordered.items, ...listed])).toEqual(new Set(inside));
        },
      );
    });
    fc.assert(property, { numRuns: 150 });
  });

  it('makes one comparison for each item that comes in order, and none to remove it', () => {
    let compared = 0;
    const ordered = new OrderedItems<Ordered>((a, b) => {
      compared++;
      return a.rank < b.rank;
    });
    for (let rank = 0; rank < 1_000; rank++) ordered.update(itemOf(rank), true);
    for (let { next } = ordered; next !== undefined; next = ordered.next) ordered.update(next, false);
    expect(compared).toBe(999);
  });
});
