import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { Lane, Place, QueueNode } from '../../src/limiter/level.js';
import { WaitQueue } from '../../src/limiter/wait-queue.js';
import { turn } from './event-loop.js';

/** May leave before its turn, unless it is `patient`. */
class Guest implements QueueNode {
  after: QueueNode | undefined;
  place: Place | undefined;

  constructor(
    readonly name: string,
    readonly priority = 0,
    readonly tenant?: string,
    isPatient = false,
  ) {
    this.place = isPatient ? undefined : {};
  }

  get lane(): Lane {
    return this.place!.lane!;
  }
}

function push(queue: WaitQueue<Guest>, guest: Guest): void {
  if (guest.place === undefined) queue.push(guest);
  else queue.pushAt(guest.place, guest, guest.priority, guest.tenant);
}

/** Gives one that waits a place, so that it may leave before its turn. */
function locate(queue: WaitQueue<Guest>, guest: Guest): void {
  guest.place = {};
  queue.locate(guest.place, guest);
}

const remove = (queue: WaitQueue<Guest>, guest: Guest): boolean => queue.remove(guest.place!, guest);

function queueOf(...guests: Guest[]): WaitQueue<Guest> {
  const queue = new WaitQueue<Guest>();
  for (const guest of guests) push(queue, guest);
  return queue;
}

function drain(queue: WaitQueue<Guest>): string[] {
  const names: string[] = [];
  for (let next = queue.shift(); next !== undefined; next = queue.shift()) names.push(next.name);
  return names;
}

describe('WaitQueue', () => {
  it('is empty to begin with, and again when all have left', () => {
    const queue = queueOf();
    expect([queue.size, queue.peek(), queue.shift(), [...queue]]).toEqual([0, undefined, undefined, []]);
    const guest = new Guest('a', 3, 't');
    push(queue, guest);
    queue.shift();
    expect([queue.size, queue.peek(), queue.shift(), [...queue]]).toEqual([0, undefined, undefined, []]);
  });

  it('shows who is next without taking it out', () => {
    const queue = queueOf(new Guest('a'), new Guest('b', 1));
    expect(queue.peek()?.name).toBe('b');
    expect(queue.size).toBe(2);
  });

  it('keeps a tenant that leaves and comes again behind the others', () => {
    const queue = queueOf(new Guest('a1', 0, 'a'), new Guest('b1', 0, 'b'), new Guest('b2', 0, 'b'));
    expect(queue.shift()?.name).toBe('a1');
    push(queue, new Guest('a2', 0, 'a'));
    expect(drain(queue)).toEqual(['b1', 'a2', 'b2']);
  });

  it('takes out anybody, wherever it stands, and only once', () => {
    const guests = ['head', 'middle', 'tail'].map((name) => new Guest(name));
    for (const gone of guests) {
      const queue = queueOf(...guests);
      expect(remove(queue, gone)).toBe(true);
      expect(remove(queue, gone)).toBe(false);
      expect(queue.size).toBe(2);
      expect(drain(queue)).toEqual(guests.filter((guest) => guest !== gone).map(({ name }) => name));
    }
  });

  it('takes out those before and behind one that leaves in its turn only', () => {
    const [first, patient, last] = [
      new Guest('first'),
      new Guest('patient', 0, undefined, true),
      new Guest('last'),
    ];
    const queue = queueOf(first, patient, last);
    expect([remove(queue, last), remove(queue, first), remove(queue, last)]).toEqual([true, true, false]);
    expect(queue.size).toBe(1);
    push(queue, last);
    expect(drain(queue)).toEqual(['patient', 'last']);
    expect(remove(queue, last)).toBe(false);
  });

  it('takes out one whose place it was told of while it waited', () => {
    const guests = ['a', 'b', 'c', 'd'].map((name) => new Guest(name, 0, undefined, true));
    const [first, second, third, fourth] = guests as [Guest, Guest, Guest, Guest];
    const queue = queueOf(...guests);
    for (const guest of [third, fourth, second]) locate(queue, guest);
    expect([remove(queue, third), remove(queue, fourth), remove(queue, third)]).toEqual([true, true, false]);
    expect(queue.shift()).toBe(first);
    expect(remove(queue, second)).toBe(true);
    expect(queue.size).toBe(0);
    locate(queue, first);
    expect(remove(queue, first)).toBe(false);
  });

  it('keeps no chain from one that has left to those behind it', () => {
    const guests = [new Guest('a'), new Guest('b', 0, undefined, true), new Guest('c'), new Guest('d')];
    const queue = queueOf(...guests);
    remove(queue, guests[2] as Guest);
    drain(queue);
    expect(guests.map(({ after, place }) => [after, place?.lane, place?.before])).toEqual(
      guests.map(() => [undefined, undefined, undefined]),
    );
  });

  it('passes the turn on when the tenant whose turn it is leaves', () => {
    const guests = ['a', 'b', 'c'].map((tenant) => new Guest(tenant, 0, tenant));
    const queue = queueOf(...guests);
    remove(queue, guests[0] as Guest);
    expect(queue.peek()?.name).toBe('b');
    remove(queue, guests[2] as Guest);
    expect(queue.peek()?.name).toBe('b');
    remove(queue, guests[1] as Guest);
    expect(queue.peek()).toBeUndefined();
  });

  it('lists all in the order in which they would be taken', () => {
    const property = fc.property(
      fc.array(
        fc.record({
          priority: fc.integer({ min: -1, max: 2 }),
          tenant: fc.option(fc.constantFrom('a', 'b', 'c'), { nil: undefined }),
        }),
      ),
      (given) => {
        const queue = queueOf(...given.map(({ priority, tenant }, i) => new Guest(`${i}`, priority, tenant)));
        const listed = [...queue].map(({ name }) => name);
        expect(drain(queue)).toEqual(listed);
      },
    );
    fc.assert(property);
  });

  it('keeps nothing of a priority or a tenant that nobody waits with any more', async () => {
    const queue = new WaitQueue<Guest>();
    const lanes: WeakRef<object>[] = [];
    const levels: WeakRef<object>[] = [];
    for (let i = 1; i <= 100; i++) {
      for (const guest of [new Guest('by priority', i), new Guest('by tenant', 0, `tenant ${i}`)]) {
        push(queue, guest);
        if (guest.priority > 0) levels.push(new WeakRef(guest.lane.level));
        else lanes.push(new WeakRef(guest.lane));
      }
    }
    drain(queue);
    await turn();
    globalThis.gc?.();
    const kept = (refs: WeakRef<object>[]) => refs.filter((ref) => ref.deref() !== undefined).length;
    expect(kept(levels)).toBeLessThan(3);
    expect(kept(lanes)).toBeLessThan(3);
    expect(queue.size).toBe(0);
  });

  it('keeps 1,000 priorities apart', () => {
    const guests = Array.from({ length: 1000 }, (_, i) => new Guest(`${i}`, (i * 37) % 1000));
    const queue = queueOf(...guests);
    const order = drain(queue).map((name) => guests[Number(name)]?.priority);
    expect(order).toEqual(Array.from({ length: 1000 }, (_, i) => 999 - i));
  });
});

describe('WaitQueue with many priorities and tenants', () => {
  /** What the queue promises, said plainly: all priorities are looked through, and each tenant's turn is in a list. */
  class Reference {
    guests: Guest[] = [];
    readonly #turns = new Map<number, (string | undefined)[]>();

    push(guest: Guest): void {
      this.guests.push(guest);
      const turns = this.#turns.get(guest.priority) ?? [];
      if (!turns.includes(guest.tenant)) turns.push(guest.tenant);
      this.#turns.set(guest.priority, turns);
    }

    get next(): Guest | undefined {
      const priority = Math.max(...this.guests.map((guest) => guest.priority));
      const tenant = this.#turns.get(priority)?.[0];
      return this.guests.find((guest) => guest.priority === priority && guest.tenant === tenant);
    }

    shift(): Guest | undefined {
      const { next } = this;
      if (next === undefined) return undefined;
      const turns = this.#turns.get(next.priority)!;
      turns.push(turns.shift());
      this.remove(next);
      return next;
    }

    remove(gone: Guest): void {
      this.guests = this.guests.filter((guest) => guest !== gone);
      const { priority, tenant } = gone;
      if (this.guests.some((guest) => guest.priority === priority && guest.tenant === tenant)) return;
      const turns = this.#turns.get(priority) ?? [];
      this.#turns.set(
        priority,
        turns.filter((one) => one !== tenant),
      );
    }

    clone(): Reference {
      const copy = new Reference();
      copy.guests = [...this.guests];
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
        arbitrary: fc.record({ do: fc.constant('push' as const), priority, tenant, isPatient: fc.boolean() }),
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
    after: (queue: WaitQueue<Guest>, reference: Reference) => void,
  ) {
    const queue = new WaitQueue<Guest>();
    const reference = new Reference();
    given.forEach((one, i) => {
      if (one.do === 'push') {
        const isPatient = one.isPatient && one.priority === 0 && one.tenant === undefined;
        const guest = new Guest(`${i}`, one.priority, one.tenant, isPatient);
        push(queue, guest);
        reference.push(guest);
      } else if (one.do === 'locate') {
        const patient = reference.guests.filter(({ place }) => place === undefined);
        const guest = patient[one.index % Math.max(1, patient.length)];
        if (guest !== undefined) locate(queue, guest);
      } else if (one.do === 'remove') {
        const impatient = reference.guests.filter(({ place }) => place !== undefined);
        const guest = impatient[one.index % Math.max(1, impatient.length)];
        if (guest === undefined) return;
        expect(remove(queue, guest)).toBe(true);
        reference.remove(guest);
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

  /** How many are told to be taken before a newcomer, and how many are. */
  function aheadOf(given: readonly Step[], priority: number, tenant: string | undefined) {
    const { queue, reference } = takeThrough(given, () => {});
    const told = queue.aheadOf(priority, tenant);
    const newcomer = new Guest('newcomer', priority, tenant);
    reference.push(newcomer);
    const lanes = new Set(
      reference.guests.filter((guest) => guest.priority === priority).map((guest) => guest.tenant),
    );
    let real = 0;
    while (reference.shift() !== newcomer) real++;
    return { told, real, others: lanes.size - 1 };
  }

  it('takes, lists and counts as the reference does, whatever comes and leaves in between', () => {
    const property = fc.property(stepsOf(anyPriority, 200), (given) => {
      const { queue, reference } = takeThrough(given, (queue, reference) => {
        const { next, guests } = reference;
        expect([queue.size, queue.peek(), queue.topPriority]).toEqual([guests.length, next, next?.priority]);
      });
      const order: unknown[] = [];
      while (reference.guests.length > 0) order.push(reference.shift());
      expect([...queue]).toEqual(order);
      expect(order.map(() => queue.shift())).toEqual(order);
      expect([queue.size, queue.peek(), queue.topPriority]).toEqual([0, undefined, undefined]);
    });
    fc.assert(property, { numRuns: 150 });
  });

  it('says how many are taken before one more, or at most one too many for each other tenant', () => {
    const few = fc.integer({ min: 0, max: 1 });
    const property = fc.property(stepsOf(few, 60), few, tenant, (given, priority, tenant) => {
      const { told, real, others } = aheadOf(given, priority, tenant);
      expect(told).toBeGreaterThanOrEqual(real);
      expect(told).toBeLessThanOrEqual(real + others);
    });
    fc.assert(property, { numRuns: 1_500 });
  });

  it('says exactly how many are taken before the first of a tenant, whatever the priority', () => {
    const property = fc.property(stepsOf(anyPriority, 100), anyPriority, (given, priority) => {
      const { told, real } = aheadOf(given, priority, 'newcomer');
      expect(told).toBe(real);
    });
    fc.assert(property, { numRuns: 300 });
  });
});
