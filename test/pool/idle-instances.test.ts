import { afterEach, describe, expect, it, vi } from 'vitest';
import { turnMs } from '../../src/internal/clock.js';
import { IdleInstances } from '../../src/pool/idle-instances.js';
import { IDLE, Instance } from '../../src/pool/instances.js';
import { inVirtualTime } from '../support/fake-timers.js';
import { endOfTurn } from '../support/promises.js';

inVirtualTime();

const opened: IdleInstances<string>[] = [];
afterEach(async () => {
  for (const idle of opened.splice(0)) await idle.close();
});

function idleOf(idleTimeoutMs = 60_000, min = Number.POSITIVE_INFINITY) {
  const evicted: number[] = [];
  const counts = { usable: 0, min, minIdle: 0 };
  const idle = new IdleInstances<string>({ idleTimeoutMs, turnNow: turnMs }, counts, {
    destroy: async (instance) => {
      counts.usable--;
      evicted.push(instance.id);
    },
  });
  opened.push(idle);
  let id = 0;
  /** Adds an instance that was used this long ago. */
  const add = (agoMs = 0): Instance<string> => {
    const instance = new Instance<string>(++id, IDLE);
    instance.usedMs = turnMs() - agoMs;
    counts.usable++;
    idle.add(instance);
    return instance;
  };
  const takeAll = (): number[] => {
    const order: number[] = [];
    for (let instance = idle.pop(); instance !== undefined; instance = idle.pop()) order.push(instance.id);
    return order;
  };
  return { idle, add, takeAll, evicted };
}

/** Long enough for everything that is idle to reach the inventory. */
const untilQuiet = async (): Promise<void> => {
  await vi.advanceTimersByTimeAsync(2_500);
  await endOfTurn();
};

describe('the idle instances', () => {
  it('have what was used last on top, in whatever order it came', () => {
    const { idle, add, takeAll } = idleOf();
    add(50);
    add(10);
    add(30);
    expect(idle.peek()?.id).toBe(2);
    expect(takeAll()).toEqual([2, 3, 1]);
  });

  it('keep their order when they have moved to the inventory', async () => {
    const { idle, add, takeAll } = idleOf();
    add(50);
    add(10);
    add(30);
    await untilQuiet();
    expect(idle).toMatchObject({ size: 3, quiet: 3 });
    expect(takeAll()).toEqual([2, 3, 1]);
    expect(idle).toMatchObject({ size: 0, quiet: 0 });
  });

  it('keep their order when they move to the inventory at different times', async () => {
    const { idle, add, takeAll } = idleOf();
    add();
    add();
    await untilQuiet();
    add();
    expect(idle).toMatchObject({ size: 3, quiet: 2 });
    await untilQuiet();
    add(100_000);
    await untilQuiet();
    expect(idle).toMatchObject({ size: 4, quiet: 4 });
    expect(takeAll()).toEqual([3, 2, 1, 4]);
  });

  it('do not pass through the inventory while they are in steady use', async () => {
    const { idle, add } = idleOf();
    add();
    const busy = add();
    for (let i = 0; i < 30; i++) {
      await vi.advanceTimersByTimeAsync(100);
      expect(idle.pop()).toBe(busy);
      busy.usedMs = turnMs();
      idle.add(busy);
    }
    expect(idle).toMatchObject({ size: 2, quiet: 1 });
  });

  it('can be taken by name from the inventory and beside it', async () => {
    const { idle, add, takeAll } = idleOf();
    const first = add();
    const second = add();
    add();
    await untilQuiet();
    const recent = add();
    idle.remove(second);
    idle.remove(recent);
    expect(idle).toMatchObject({ size: 2, quiet: 2 });
    expect(idle.pop()?.id).toBe(3);
    idle.remove(first);
    idle.remove(first);
    expect(takeAll()).toEqual([]);
  });

  it('can all be taken in the step in which they move to the inventory', async () => {
    const { idle, add } = idleOf();
    for (let i = 0; i < 4; i++) add(i);
    await untilQuiet();
    const recent = [add(), add()];
    vi.advanceTimersByTime(1_000);
    // The slots of all are on their way out of generic-pool and in again.
    for (let i = 0; i < 10; i++) {
      await undefined;
      expect(idle.size).toBe(6);
      expect(idle.peek()).toBe(recent[1]);
    }
    const taken = idle.pop();
    await untilQuiet();
    expect(taken).toBe(recent[1]);
    expect(idle).toMatchObject({ size: 5, quiet: 5 });
  });

  it('leave no slot behind that could bring back an instance taken meanwhile', async () => {
    const { idle, add, takeAll } = idleOf();
    const first = add();
    add();
    vi.advanceTimersByTime(1_000);
    await undefined;
    idle.remove(first);
    await untilQuiet();
    expect(idle).toMatchObject({ size: 1, quiet: 1 });
    expect(takeAll()).toEqual([2]);
  });

  it('are evicted after `idleTimeoutMs`, the longest unused first, down to `min`', async () => {
    const { idle, add, evicted, takeAll } = idleOf(100, 1);
    add();
    add();
    add();
    await vi.advanceTimersByTimeAsync(1_000);
    expect(evicted.sort()).toEqual([1, 2]);
    expect(idle).toMatchObject({ size: 1, quiet: 1 });
    expect(takeAll()).toEqual([3]);
  });

  it.each([50, 500, 1_000, 5_000])(
    'are evicted soon after an `idleTimeoutMs` of %d ms, whenever they were used',
    async (idleTimeoutMs) => {
      const { add, evicted } = idleOf(idleTimeoutMs, 0);
      add();
      await vi.advanceTimersByTimeAsync(idleTimeoutMs * 0.3);
      const later = add();
      const usedMs = later.usedMs;
      while (!evicted.includes(later.id)) {
        await vi.advanceTimersByTimeAsync(1);
        await endOfTurn();
      }
      expect(turnMs() - usedMs).toBeGreaterThanOrEqual(idleTimeoutMs);
      expect(turnMs() - usedMs).toBeLessThanOrEqual(idleTimeoutMs * 1.25);
    },
  );

  it('leave no timer behind when they are closed, even twice', async () => {
    const { idle, add } = idleOf();
    const instance = add();
    await untilQuiet();
    idle.remove(instance);
    await Promise.all([idle.close(), idle.close()]);
    expect(vi.getTimerCount()).toBe(0);
  });
});
