import genericPool, { type Factory, type Options, type Pool } from 'generic-pool';
import { NEUTRAL_CONTEXT } from '../internal/async-context.js';
import type { Instance } from './instance.js';

/** What generic-pool keeps: an object of ours that holds an instance, or held one that was taken by name since. */
class Slot<T> {
  instance: Instance<T> | undefined = undefined;
}

/** What the inventory asks of the pool. */
export interface InventoryOwner<T> {
  /** Whether an instance has been idle for too long and can be spared. */
  readonly maySpare: (instance: Instance<T>) => boolean;
  /** Tears a spared instance down; settles when it is gone, and never rejects. */
  readonly letGo: (instance: Instance<T>) => Promise<void>;
}

// The constructor is exported, for a choice of evictor, but missing from the package's own types.
interface GenericPool {
  readonly Pool: new <S>(
    evictor: new () => { evict(config: unknown, resource: { readonly obj: S }): boolean },
    deque: unknown,
    priorityQueue: unknown,
    factory: Factory<S>,
    options: Options,
  ) => Pool<S>;
  readonly Deque: unknown;
  readonly PriorityQueue: unknown;
}

/**
 * The quiet instances, kept in generic-pool: it holds them in their order, the last used on top, and lets the long idle
 * go. The only importer of generic-pool.
 *
 * Four rules keep its known faults out of reach (docs/decisions/0020):
 * - It pools slots of ours, made in one step: its `create` cannot fail, hang or give the same thing twice.
 * - It is asked only for what it has, so nobody ever waits in its queue, and its `max` does not matter.
 * - How many live is counted elsewhere; an evicted instance is torn down before its slot is.
 * - Its `validate`, `clear`, `ready`, `use` and `min` are not used. Time is ours, monotonic, by an evictor of our own.
 *
 * An instance wanted by name leaves its slot hollow behind; a hollow slot is passed over when its turn comes.
 */
export class Inventory<T> {
  readonly #pool: Pool<Slot<T>>;
  readonly #slots = new Map<Instance<T>, Slot<T>>();

  constructor(owner: InventoryOwner<T>, evictEveryMs: number) {
    const { Pool, Deque, PriorityQueue } = genericPool as unknown as GenericPool;
    class SpareEvictor {
      evict(_config: unknown, { obj }: { readonly obj: Slot<T> }): boolean {
        return obj.instance === undefined || owner.maySpare(obj.instance);
      }
    }
    const factory: Factory<Slot<T>> = {
      create: () => Promise.resolve(new Slot<T>()),
      destroy: (slot) => {
        const { instance } = slot;
        if (instance === undefined) return Promise.resolve();
        this.remove(instance);
        return owner.letGo(instance);
      },
    };
    const options: Options = {
      max: Number.MAX_SAFE_INTEGER,
      fifo: false,
      evictionRunIntervalMillis: evictEveryMs,
      numTestsPerEvictionRun: Number.MAX_SAFE_INTEGER,
    };
    // Its timer would otherwise carry the context of whoever built the pool for as long as the pool lives.
    this.#pool = NEUTRAL_CONTEXT.run(() => new Pool(SpareEvictor, Deque, PriorityQueue, factory, options));
  }

  /** Instances kept. */
  get size(): number {
    return this.#slots.size;
  }

  /**
   * Takes the instance on top, and hands it to `receive` in the step in which it leaves: none is ever between two places.
   * Hands over nothing when those that were there went by name in the meantime.
   */
  async take(receive: (instance: Instance<T>) => void): Promise<void> {
    while (this.#pool.available > 0) {
      const slot = await this.#pool.acquire();
      const { instance } = slot;
      if (instance !== undefined) this.remove(instance);
      void this.#pool.destroy(slot);
      if (instance !== undefined) return receive(instance);
    }
  }

  /** Takes this instance. */
  remove(instance: Instance<T>): void {
    const slot = this.#slots.get(instance);
    if (slot === undefined) return;
    slot.instance = undefined;
    this.#slots.delete(instance);
  }

  /** Takes all instances at once, the longest unused first. */
  empty(): Instance<T>[] {
    const all = [...this.#slots.keys()];
    for (const instance of all) this.remove(instance);
    return all;
  }

  /**
   * Keeps up to `most` instances more. Which ones is asked when their slots are at hand, so that none is out of reach
   * meanwhile: the longest unused first.
   */
  async put(most: number, choose: (most: number) => readonly Instance<T>[]): Promise<void> {
    const count = Math.max(most, this.#pool.available);
    const slots = await Promise.all(Array.from({ length: count }, () => this.#pool.acquire()));
    const chosen = choose(most);
    for (const [index, slot] of slots.entries()) {
      const instance = chosen[index];
      if (instance === undefined) {
        void this.#pool.destroy(slot);
        continue;
      }
      slot.instance = instance;
      this.#slots.set(instance, slot);
      void this.#pool.release(slot);
    }
  }

  /** Ends its timer. The instances must have been taken out before. */
  async close(): Promise<void> {
    while (this.#pool.available > 0) void this.#pool.destroy(await this.#pool.acquire());
    await this.#pool.drain();
  }
}
