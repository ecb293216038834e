import { afterEach, describe, expect, it, vi } from 'vitest';
import { turnMs } from '../../src/internal/clock.js';
import { IdleStock } from '../../src/pool/idle-stock.js';
import { IDLE, Instance } from '../../src/pool/instance.js';
import { inVirtualTime, settled } from './workshop.js';

inVirtualTime();

const opened: IdleStock<string>[] = [];
afterEach(async () => {
  for (const stock of opened.splice(0)) await stock.close();
});

function stockOf(idleTimeoutMs = 60_000, maySpare = (_: Instance<string>): boolean => false) {
  const gone: number[] = [];
  const stock = new IdleStock<string>({
    idleTimeoutMs,
    maySpare,
    letGo: async (instance) => {
      gone.push(instance.id);
    },
  });
  opened.push(stock);
  let id = 0;
  /** Adds an instance that was used this long ago. */
  const add = (agoMs = 0): Instance<string> => {
    const instance = new Instance<string>(++id, IDLE);
    instance.usedMs = turnMs() - agoMs;
    stock.park(instance);
    return instance;
  };
  const drain = async (): Promise<number[]> => {
    const order: number[] = [];
    while (stock.parked + stock.settled > 0) {
      if (stock.parked === 0) await stock.fetch();
      order.push(stock.pop()!.id);
    }
    return order;
  };
  return { stock, add, drain, gone };
}

/** Long enough for everything that is parked to settle. */
const quiet = async (): Promise<void> => {
  await vi.advanceTimersByTimeAsync(2_500);
  await settled();
};

describe('the idle stock', () => {
  it('has what was used last on top, in whatever order it came', async () => {
    const { stock, add, drain } = stockOf();
    add(50);
    add(10);
    add(30);
    expect(stock.peek()?.id).toBe(2);
    expect(await drain()).toEqual([2, 3, 1]);
  });

  it('settles what has gone quiet in the inventory, and keeps the order there', async () => {
    const { stock, add, drain } = stockOf();
    add(50);
    add(10);
    add(30);
    await quiet();
    expect(stock).toMatchObject({ parked: 0, settled: 3 });
    expect(await drain()).toEqual([2, 3, 1]);
  });

  it('keeps the order among instances that settle at different times', async () => {
    const { stock, add, drain } = stockOf();
    add();
    add();
    await quiet();
    add();
    expect(stock).toMatchObject({ parked: 1, settled: 2 });
    await quiet();
    add(100_000);
    await quiet();
    expect(stock).toMatchObject({ parked: 0, settled: 4 });
    expect(await drain()).toEqual([3, 2, 1, 4]);
  });

  it('leaves those in steady use parked', async () => {
    const { stock, add } = stockOf();
    add();
    const busy = add();
    for (let i = 0; i < 30; i++) {
      await vi.advanceTimersByTimeAsync(100);
      expect(stock.pop()).toBe(busy);
      busy.usedMs = turnMs();
      stock.park(busy);
    }
    expect(stock).toMatchObject({ parked: 1, settled: 1 });
  });

  it('gives an instance by name from either place, and passes over the slot it left', async () => {
    const { stock, add, drain } = stockOf();
    const first = add();
    const second = add();
    add();
    await quiet();
    const parked = add();
    stock.remove(second);
    stock.remove(parked);
    expect(stock).toMatchObject({ parked: 0, settled: 2 });
    await stock.fetch();
    expect(stock.pop()?.id).toBe(3);
    stock.remove(first);
    expect(stock.settled).toBe(0);
    await stock.fetch();
    expect(stock.parked).toBe(0);
    expect(await drain()).toEqual([]);
  });

  it('gives what is taken by name during a fetch to one taker only', async () => {
    const { stock, add } = stockOf();
    const only = add();
    await quiet();
    const fetched = stock.fetch();
    stock.remove(only);
    await fetched;
    expect(stock).toMatchObject({ parked: 0, settled: 0 });
  });

  it('has no moment at which an instance is in neither place', async () => {
    const { stock, add } = stockOf();
    for (let i = 0; i < 4; i++) add(i);
    await quiet();
    for (let i = 0; i < 2; i++) add();
    const both = (): number => stock.parked + stock.settled;
    expect(both()).toBe(6);
    // Settling again takes all out and puts all in; fetches run at the same time.
    const fetches = [stock.fetch(), stock.fetch()];
    for (let i = 0; i < 20; i++) {
      await undefined;
      expect(both()).toBe(6);
    }
    await Promise.all(fetches);
    await quiet();
    expect(both()).toBe(6);
  });

  it('lets go what may be spared, and nothing else', async () => {
    const { stock, add, gone } = stockOf(100, ({ id }) => id !== 2);
    add();
    add();
    add();
    await vi.advanceTimersByTimeAsync(1_000);
    expect(gone.sort()).toEqual([1, 3]);
    expect(stock).toMatchObject({ parked: 0, settled: 1 });
    await stock.fetch();
    expect(stock.pop()?.id).toBe(2);
  });

  it('leaves no timer behind when it is closed, and may be closed twice', async () => {
    const { stock, add } = stockOf();
    const instance = add();
    await quiet();
    stock.remove(instance);
    await Promise.all([stock.close(), stock.close()]);
    expect(vi.getTimerCount()).toBe(0);
  });
});
