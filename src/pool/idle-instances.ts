import genericPool, { type Factory, type Options, type Pool } from 'generic-pool';
import { NEUTRAL_CONTEXT } from '../internal/async-context.js';
import { JobQueue } from '../internal/job-queue.js';
import type { Instance, InstanceRegistry } from './instances.js';
import type { PoolSettings } from './options.js';
import type { Teardown } from './teardown.js';

// An instance unused for this long is not in steady use, and moves to the inventory.
const QUIET_MS = 1_000;
// Quiet instances are looked for no more often than this in that time.
const LOOKS_PER_QUIET = 20;
// Long idle instances are evicted this often in `idleTimeoutMs`, but not less often than once a minute.
const EVICTIONS_PER_IDLE_TIMEOUT = 10;
const RAREST_EVICTION_MS = 60_000;
// Instances to validate are looked for this often in `validateIdleEveryMs`.
const LOOKS_PER_VALIDATION = 2;

/** What generic-pool holds: an object of ours with the instance, until that is taken. */
class Slot<T> {
  instance: Instance<T> | undefined = undefined;
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
 * The idle instances, the last used on top; any of them can be taken in the same step. The only importer of generic-pool.
 *
 * generic-pool is the inventory of the quiet ones: it holds them in the same order, in slots, and evicts those that are
 * idle for too long. Instances in steady use never reach it, because a loan of it costs more than a whole lease. Four
 * rules keep its known faults out of reach (docs/decisions/0020):
 * - It pools slots of ours, made in one step: its `create` cannot fail, hang or return the same thing twice.
 * - It is asked only for slots, so its waiter queue is always empty and its `max` does not matter.
 * - Live instances are counted elsewhere; an evicted instance is destroyed before its slot is.
 * - Its `validate`, `clear`, `ready`, `use` and `min` are not used. An evictor of ours reads the monotonic clock.
 *
 * Invariant: an instance that is taken empties its slot in that step; empty slots are reused or evicted.
 */
export class IdleInstances<T> {
  /** The longest unused first. */
  readonly #idle: Instance<T>[] = [];
  readonly #slots = new Map<Instance<T>, Slot<T>>();
  readonly #inventory: Pool<Slot<T>>;
  readonly #quietMs: number;
  readonly #turnNow: () => number;
  #quietTimer: NodeJS.Timeout | undefined;
  #validationTimer: NodeJS.Timeout | undefined;
  #closing: Promise<void> | undefined;

  constructor(
    { idleTimeoutMs, turnNow }: Pick<PoolSettings<T>, 'idleTimeoutMs' | 'turnNow'>,
    instances: Pick<InstanceRegistry<T>, 'usable' | 'min' | 'minIdle'>,
    teardown: Pick<Teardown<T>, 'destroy'>,
  ) {
    const { Pool, Deque, PriorityQueue } = genericPool as unknown as GenericPool;
    const idle = this.#idle;
    class IdleEvictor {
      evict(_config: unknown, { obj: { instance } }: { readonly obj: Slot<T> }): boolean {
        if (instance === undefined) return true;
        // It is asked about the last used first; above `min` and `minIdle` the longest unused are evicted.
        const surplus = Math.min(instances.usable - instances.min, idle.length - instances.minIdle);
        return turnNow() - instance.usedMs >= idleTimeoutMs && idle.indexOf(instance) < surplus;
      }
    }
    const factory: Factory<Slot<T>> = {
      create: () => Promise.resolve(new Slot<T>()),
      destroy: ({ instance }) => {
        if (instance === undefined) return Promise.resolve();
        this.remove(instance);
        return teardown.destroy(instance, 'idle');
      },
    };
    const everyMs = Math.max(1, Math.min(idleTimeoutMs / EVICTIONS_PER_IDLE_TIMEOUT, RAREST_EVICTION_MS));
    const options: Options = {
      max: Number.MAX_SAFE_INTEGER,
      fifo: false,
      evictionRunIntervalMillis: idleTimeoutMs === Number.POSITIVE_INFINITY ? 0 : everyMs,
      numTestsPerEvictionRun: Number.MAX_SAFE_INTEGER,
    };
    this.#turnNow = turnNow;
    this.#quietMs = Math.min(QUIET_MS, idleTimeoutMs);
    // Its timer would otherwise carry the context in which the pool was built for as long as the pool lives.
    this.#inventory = NEUTRAL_CONTEXT.run(
      () => new Pool(IdleEvictor, Deque, PriorityQueue, factory, options),
    );
  }

  get size(): number {
    return this.#idle.length;
  }

  /** Those of them that generic-pool holds. */
  get quiet(): number {
    return this.#slots.size;
  }

  /** Adds an idle instance, in the order of its last use. */
  add(instance: Instance<T>): void {
    const idle = this.#idle;
    let place = idle.length;
    while (place > 0 && idle[place - 1]!.usedMs > instance.usedMs) place--;
    if (place === idle.length) idle.push(instance);
    else idle.splice(place, 0, instance);
    if (this.#quietTimer === undefined) this.#watchForQuiet();
  }

  /** The instance that was used last. */
  peek(): Instance<T> | undefined {
    return this.#idle[this.#idle.length - 1];
  }

  /** Takes the instance that was used last. */
  pop(): Instance<T> | undefined {
    const instance = this.#idle.pop();
    if (instance !== undefined && this.#slots.size > 0) this.#emptySlot(instance);
    return instance;
  }

  /** Takes this instance. */
  remove(instance: Instance<T>): void {
    const place = this.#idle.lastIndexOf(instance);
    if (place === -1) return;
    this.#idle.splice(place, 1);
    this.#emptySlot(instance);
  }

  /** Calls `validate` in the background for each instance that was not known to be healthy for this long. */
  validateEvery(everyMs: number, validate: (instance: Instance<T>) => Promise<void>): void {
    // One at a time: an instance that is being validated is not available meanwhile.
    const queue = new JobQueue({ concurrency: 1 });
    const isDue = ({ state, goodMs }: Instance<T>): boolean =>
      state.kind === 'idle' && this.#turnNow() - goodMs >= everyMs;
    const validateDue = async (instance: Instance<T>): Promise<void> => {
      // Its turn in the queue may come much later.
      if (isDue(instance)) await validate(instance);
    };
    const look = (): void => {
      const due = queue.queued === 0 ? this.#idle.filter(isDue) : [];
      for (const instance of due) void queue.run(() => validateDue(instance));
      this.#validationTimer = setTimeout(look, everyMs / LOOKS_PER_VALIDATION).unref();
    };
    NEUTRAL_CONTEXT.run(look);
  }

  /** Ends the timers. All instances must have been taken. */
  close(): Promise<void> {
    clearTimeout(this.#quietTimer);
    clearTimeout(this.#validationTimer);
    this.#closing ??= this.#closeInventory();
    return this.#closing;
  }

  async #closeInventory(): Promise<void> {
    const { available } = this.#inventory;
    const slots = await Promise.all(Array.from({ length: available }, () => this.#inventory.acquire()));
    for (const slot of slots) void this.#inventory.destroy(slot);
    await this.#inventory.drain();
  }

  #emptySlot(instance: Instance<T>): void {
    const slot = this.#slots.get(instance);
    if (slot === undefined) return;
    slot.instance = undefined;
    this.#slots.delete(instance);
  }

  #watchForQuiet(): void {
    const first = this.#idle.find((instance) => !this.#slots.has(instance));
    if (first === undefined || this.#closing !== undefined) return;
    const leftMs = Math.max(
      this.#quietMs - (this.#turnNow() - first.usedMs),
      this.#quietMs / LOOKS_PER_QUIET,
    );
    this.#quietTimer = NEUTRAL_CONTEXT.run(() => setTimeout(this.#onQuiet, leftMs).unref());
  }

  readonly #onQuiet = async (): Promise<void> => {
    if (this.#countQuiet() > this.#slots.size) await this.#fillInventory();
    this.#quietTimer = undefined;
    this.#watchForQuiet();
  };

  /** All slots out and all in again, so that generic-pool holds the quiet instances in the order of their last use. */
  async #fillInventory(): Promise<void> {
    const count = Math.max(this.#countQuiet(), this.#inventory.available);
    const slots = await Promise.all(Array.from({ length: count }, () => this.#inventory.acquire()));
    this.#slots.clear();
    // Some may have been taken while the slots were acquired.
    const quiet = this.#idle.slice(0, this.#countQuiet());
    for (const [index, slot] of slots.entries()) {
      const instance = quiet[index];
      slot.instance = instance;
      if (instance === undefined) {
        void this.#inventory.destroy(slot);
      } else {
        this.#slots.set(instance, slot);
        void this.#inventory.release(slot);
      }
    }
  }

  #countQuiet(): number {
    const now = this.#turnNow();
    let count = 0;
    while (count < this.#idle.length && now - this.#idle[count]!.usedMs >= this.#quietMs) count++;
    return count;
  }
}
