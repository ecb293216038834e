import type { ApiKey } from './api-key.js';
import { longestWaitMs, smallestFree } from './sliding-window.js';

/** Why nothing can start now, and for how long; `Infinity` if nothing will change that. */
export interface NoCapacity {
  readonly retryAfterMs: number;
  readonly reason: 'rate' | 'cooldown';
}

/** Whether a key goes before another: with a larger free part, of equals less in use, and of those less recently used. */
const goesBefore = (key: ApiKey, free: number, other: ApiKey, otherFree: number): boolean =>
  free !== otherFree ? free > otherFree : (key.inUse - other.inUse || key.lastUsed - other.lastUsed) < 0;

/** What is known of a key has changed already. */
const NOW = -1 / 0;

/**
 * The best key of those whose state allows a start: a tournament in a binary tree, with a leaf for each key. A node knows the
 * best key below it, and when the first of the keys below it changes by itself.
 *
 * Invariants:
 * - Of several keys, `best` visits those that have changed since the last time, and no others: it costs O(log keys) for each.
 * - Where a node has to be visited now, so have those above it.
 */
export class BestKey {
  readonly #keys: readonly ApiKey[];
  /** The children of node i are 2i and 2i + 1; the leaf of key i is node `#keys.length` + i, and node 1 the root. */
  readonly #best: (ApiKey | undefined)[];
  readonly #changesAtMs: Float64Array;
  readonly #free: Float64Array;

  constructor(keys: readonly ApiKey[]) {
    this.#keys = keys;
    this.#best = new Array<ApiKey | undefined>(2 * keys.length).fill(undefined);
    this.#changesAtMs = new Float64Array(2 * keys.length).fill(NOW);
    this.#free = new Float64Array(keys.length);
  }

  /** The key, its windows, or what is reserved of them have changed. */
  touch({ index }: ApiKey): void {
    for (let node = this.#keys.length + index; node > 0; node >>= 1) {
      if (this.#changesAtMs[node] === NOW) return;
      this.#changesAtMs[node] = NOW;
    }
  }

  /** The best key, whose windows may be too full; `undefined` if the state of none allows a start. */
  best(nowMs: number): ApiKey | undefined {
    // An only key has no free part to compare.
    if (this.#keys.length === 1) {
      const only = this.#keys[0] as ApiKey;
      return only.waitMs(nowMs) <= 0 ? only : undefined;
    }
    this.#visit(1, nowMs);
    return this.#best[1];
  }

  /** The best key that has capacity for such a start now, or how long there is none. Visits all keys. */
  search(weight: number, sharedMs: number, nowMs: number): ApiKey | NoCapacity {
    let best: ApiKey | undefined;
    let bestFree = -1;
    let none: NoCapacity = { retryAfterMs: Number.POSITIVE_INFINITY, reason: 'cooldown' };
    let soonest: ApiKey | undefined;
    for (const key of this.#keys) {
      const rateMs = Math.max(sharedMs, longestWaitMs(key.windows, weight, nowMs));
      const stateMs = key.waitMs(nowMs);
      const retryAfterMs = Math.max(rateMs, stateMs);
      if (retryAfterMs > 0) {
        const isSooner =
          retryAfterMs < none.retryAfterMs ||
          (soonest !== undefined && retryAfterMs === none.retryAfterMs && key.lastUsed < soonest.lastUsed);
        if (isSooner) {
          none = { retryAfterMs, reason: stateMs > rateMs ? 'cooldown' : 'rate' };
          soonest = key;
        }
        continue;
      }
      const free = smallestFree(key.windows, nowMs);
      if (best === undefined || goesBefore(key, free, best, bestFree)) {
        best = key;
        bestFree = free;
      }
    }
    return best ?? none;
  }

  #visit(node: number, nowMs: number): void {
    if ((this.#changesAtMs[node] as number) > nowMs) return;
    const index = node - this.#keys.length;
    if (index >= 0) {
      const key = this.#keys[index] as ApiKey;
      // It may emit an event, whose listener comes back here: nothing is read before it.
      const isOpen = key.waitMs(nowMs) <= 0;
      this.#free[index] = smallestFree(key.windows, nowMs);
      this.#best[node] = isOpen ? key : undefined;
      this.#changesAtMs[node] = key.changesAtMs;
      return;
    }
    this.#visit(2 * node, nowMs);
    this.#visit(2 * node + 1, nowMs);
    const [left, right] = [this.#best[2 * node], this.#best[2 * node + 1]];
    this.#best[node] =
      right === undefined || (left !== undefined && this.#isBetter(left, right)) ? left : right;
    this.#changesAtMs[node] = Math.min(
      this.#changesAtMs[2 * node] as number,
      this.#changesAtMs[2 * node + 1] as number,
    );
  }

  #isBetter(key: ApiKey, other: ApiKey): boolean {
    return goesBefore(key, this.#free[key.index] as number, other, this.#free[other.index] as number);
  }
}
