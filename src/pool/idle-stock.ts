import { NEUTRAL_CONTEXT } from '../internal/async-context.js';
import { turnMs } from '../internal/clock.js';
import type { Instance } from './instance.js';
import { Inventory, type InventoryOwner } from './inventory.js';

// An instance unused for this long is not in steady use.
const QUIET_MS = 1_000;
// Long idle instances are looked for this often while one may be idle, but not less often than once a minute.
const LOOKS_PER_IDLE_TIMEOUT = 10;
const RAREST_LOOK_MS = 60_000;

/** What a stock works with. */
export interface IdleStockParts<T> extends InventoryOwner<T> {
  readonly idleTimeoutMs: number;
}

/**
 * The idle instances, the last used on top.
 *
 * Those in steady use are parked here, where the next task has them in the same step; those that have gone quiet settle
 * in the inventory, which lets the long idle go.
 *
 * Invariant: an idle instance is parked or settled, never both and never neither.
 */
export class IdleStock<T> {
  /** The longest unused first. */
  readonly #parked: Instance<T>[] = [];
  readonly #inventory: Inventory<T>;
  readonly #quietMs: number;
  #quietTimer: NodeJS.Timeout | undefined;
  #closing: Promise<void> | undefined;

  constructor(parts: IdleStockParts<T>) {
    const { idleTimeoutMs } = parts;
    const never = idleTimeoutMs === Number.POSITIVE_INFINITY;
    const lookMs = Math.max(1, Math.min(idleTimeoutMs / LOOKS_PER_IDLE_TIMEOUT, RAREST_LOOK_MS));
    this.#inventory = new Inventory(parts, never ? 0 : lookMs);
    this.#quietMs = Math.min(QUIET_MS, idleTimeoutMs);
  }

  /** Instances to be had in the same step. */
  get parked(): number {
    return this.#parked.length;
  }

  /** Instances to be had by `fetch`. */
  get settled(): number {
    return this.#inventory.size;
  }

  /** Adds an idle instance, in the order of its last use. */
  park(instance: Instance<T>): void {
    const parked = this.#parked;
    let place = parked.length;
    while (place > 0 && parked[place - 1]!.usedMs > instance.usedMs) place--;
    if (place === parked.length) parked.push(instance);
    else parked.splice(place, 0, instance);
    if (this.#quietTimer === undefined) this.#watchForQuiet();
  }

  /** The parked instance that was used last; stays where it is. */
  peek(): Instance<T> | undefined {
    return this.#parked[this.#parked.length - 1];
  }

  /** Takes the parked instance that was used last. */
  pop(): Instance<T> | undefined {
    return this.#parked.pop();
  }

  /** Fetches the settled instance that was used last: it is parked afterwards, unless it was taken by name meanwhile. */
  fetch(): Promise<void> {
    return this.#inventory.take((instance) => this.park(instance));
  }

  /** Takes this instance, wherever it is. */
  remove(instance: Instance<T>): void {
    const place = this.#parked.indexOf(instance);
    if (place === -1) this.#inventory.remove(instance);
    else this.#parked.splice(place, 1);
  }

  /** Ends the timers. The instances must have been taken out before. */
  close(): Promise<void> {
    clearTimeout(this.#quietTimer);
    this.#closing ??= this.#inventory.close();
    return this.#closing;
  }

  #watchForQuiet(): void {
    if (this.#closing !== undefined) return;
    this.#quietTimer = NEUTRAL_CONTEXT.run(() => setTimeout(this.#onQuiet, this.#quietMs).unref());
  }

  readonly #onQuiet = (): void => {
    this.#quietTimer = undefined;
    void this.#settle();
  };

  /** All out, all in: so the order is that of their last use, whenever each of them went quiet. */
  async #settle(): Promise<void> {
    if (this.#quiet().length > 0) {
      this.#parked.unshift(...this.#inventory.empty());
      this.#parked.sort((a, b) => a.usedMs - b.usedMs);
      await this.#inventory.put(this.#quiet().length, (most) => {
        const quiet = this.#quiet().slice(0, most);
        this.#parked.splice(0, quiet.length);
        return quiet;
      });
    }
    if (this.#parked.length > 0 && this.#quietTimer === undefined) this.#watchForQuiet();
  }

  #quiet(): Instance<T>[] {
    const now = turnMs();
    return this.#parked.filter(({ usedMs }) => now - usedMs >= this.#quietMs);
  }
}
