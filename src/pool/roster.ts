import type { DestroyReason } from '../hooks/events.js';
import type { HostCall } from './host-call.js';
import { GONE, Instance, type InstanceState } from './instance.js';

/**
 * All live instances, and how many are in each state: the one place that changes a state, so that every figure is
 * counted and none is worked out.
 *
 * Invariants:
 * - `live` is the number of instances from the start of `create` to the end of `destroy`. It never grows past `size`;
 *   after shrinking it may stand above it until holders come back.
 * - `usable` counts those that are neither doomed nor being torn down: `min` is about them.
 * - `coming` counts those of them that will be free for whoever waits without anybody's doing: being created or validated.
 */
export class Roster<T> {
  size: number;
  /** Usable instances to keep; 0 once the pool gives no further leases. */
  min: number;
  usable = 0;
  coming = 0;
  /** Instances created, and torn down again, since the pool was built. */
  created = 0;
  destroyed = 0;
  createFailed = 0;
  // How many are in each state. Plain fields and a switch: a table looked up by name took a fifth of a lease's time.
  creating = 0;
  idle = 0;
  validating = 0;
  preparing = 0;
  leased = 0;
  resetting = 0;
  destroying = 0;
  readonly #instances = new Map<number, Instance<T>>();
  readonly #onDoomed: (instance: Instance<T>) => void;
  #lastId = 0;

  constructor(
    { size, min }: { readonly size: number; readonly min: number },
    onDoomed: (instance: Instance<T>) => void,
  ) {
    this.size = size;
    this.min = min;
    this.#onDoomed = onDoomed;
  }

  get live(): number {
    return this.#instances.size;
  }

  /** How many more may be created now. */
  get room(): number {
    return this.size - this.#instances.size;
  }

  /** Live instances beyond `size` that nobody has begun to tear down. */
  get surplus(): number {
    return this.#instances.size - this.destroying - this.size;
  }

  find(id: number): Instance<T> | undefined {
    return this.#instances.get(id);
  }

  /** Enters an instance that is about to be created, with the next number. */
  enter(callOf: (id: number) => HostCall<T>): { readonly instance: Instance<T>; readonly call: HostCall<T> } {
    const id = ++this.#lastId;
    const call = callOf(id);
    const instance = new Instance<T>(id, { kind: 'creating', call });
    this.#instances.set(id, instance);
    this.#count(instance, 1);
    return { instance, call };
  }

  move(instance: Instance<T>, state: InstanceState<T>): void {
    this.#count(instance, -1);
    instance.state = state;
    this.#count(instance, 1);
  }

  /** Has an instance torn down as soon as nobody holds it. The first reason stands. */
  doom(instance: Instance<T>, reason: DestroyReason): void {
    if (instance.doom !== undefined) return;
    this.#count(instance, -1);
    instance.doom = reason;
    this.#count(instance, 1);
    this.#onDoomed(instance);
  }

  /** Strikes an instance off: its slot is free. */
  leave(instance: Instance<T>): void {
    this.#count(instance, -1);
    instance.state = GONE;
    this.#instances.delete(instance.id);
  }

  /** All live instances, the oldest first. */
  [Symbol.iterator](): IterableIterator<Instance<T>> {
    return this.#instances.values();
  }

  #count({ state, doom }: Instance<T>, by: 1 | -1): void {
    if (doom === undefined) this.usable += by;
    switch (state.kind) {
      case 'leased':
        this.leased += by;
        break;
      case 'idle':
        this.idle += by;
        break;
      case 'creating':
        this.creating += by;
        if (doom === undefined) this.coming += by;
        break;
      case 'validating':
        this.validating += by;
        if (doom === undefined) this.coming += by;
        break;
      case 'preparing':
        this.preparing += by;
        break;
      case 'resetting':
        this.resetting += by;
        break;
      case 'destroying':
        this.destroying += by;
        break;
    }
  }
}
