import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { QueueNode } from '../../src/limiter/level.js';
import { WaitQueue } from '../../src/limiter/wait-queue.js';

class Guest extends QueueNode {
  constructor(
    readonly name: string,
    readonly priority?: number,
    readonly tenant?: string,
  ) {
    super();
  }
}

function queueOf(...guests: Guest[]): WaitQueue<Guest> {
  const queue = new WaitQueue<Guest>();
  for (const guest of guests) queue.push(guest, guest.priority, guest.tenant);
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
    queue.push(guest, guest.priority, guest.tenant);
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
    queue.push(new Guest('a2', 0, 'a'), 0, 'a');
    expect(drain(queue)).toEqual(['b1', 'a2', 'b2']);
  });

  it('takes out anybody, wherever it stands, and only once', () => {
    const guests = ['head', 'middle', 'tail'].map((name) => new Guest(name));
    for (const gone of guests) {
      const queue = queueOf(...guests);
      expect(queue.remove(gone)).toBe(true);
      expect(queue.remove(gone)).toBe(false);
      expect(queue.size).toBe(2);
      expect(drain(queue)).toEqual(guests.filter((guest) => guest !== gone).map(({ name }) => name));
    }
  });

  it('passes the turn on when the tenant whose turn it is leaves', () => {
    const guests = ['a', 'b', 'c'].map((tenant) => new Guest(tenant, 0, tenant));
    const queue = queueOf(...guests);
    queue.remove(guests[0] as Guest);
    expect(queue.peek()?.name).toBe('b');
    queue.remove(guests[2] as Guest);
    expect(queue.peek()?.name).toBe('b');
    queue.remove(guests[1] as Guest);
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

  it('keeps 1,000 priorities apart', () => {
    const guests = Array.from({ length: 1000 }, (_, i) => new Guest(`${i}`, (i * 37) % 1000));
    const queue = queueOf(...guests);
    const order = drain(queue).map((name) => guests[Number(name)]?.priority);
    expect(order).toEqual(Array.from({ length: 1000 }, (_, i) => 999 - i));
  });
});
