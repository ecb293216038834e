import { type HeapItem, IndexedHeap } from './indexed-heap.js';

/** An item that is in a list or a heap. */
export interface OrderedItem<T> extends HeapItem {
  /** @internal Owned by the list. */
  previous: T | undefined;
  /** @internal Owned by the list. */
  next: T | undefined;
}

/**
 * Items in order, most of which come in it: an item that belongs behind all others of a list is added to it, in O(1), and
 * only the rest is in a heap. With 10,000 items each level of a heap is a cache miss.
 *
 * Invariants:
 * - The `index` of an item is -2 in the list, its place in the heap, and -1 outside of both.
 * - In the list, each item precedes the next.
 */
export class OrderedItems<T extends OrderedItem<T>> extends IndexedHeap<T> {
  /** The first in the list. */
  head: T | undefined;
  #last: T | undefined;

  /** The item that precedes all others. */
  get next(): T | undefined {
    const { head, top } = this;
    return head === undefined || (top !== undefined && this.precedes(top, head)) ? top : head;
  }

  /** Adds an item, moves one whose order has changed, or removes one that is not to be `inside`. */
  update(item: T, inside: boolean): void {
    if (item.index === -2) {
      const { previous, next } = item;
      // The only one.
      if (inside && previous === next) return;
      if (previous === undefined) this.head = next;
      else previous.next = next;
      if (next === undefined) this.#last = previous;
      else next.previous = previous;
      item.index = -1;
      item.previous = item.next = undefined;
    }
    const last = this.#last;
    if (!inside) this.remove(item);
    else if (item.index < 0 && (last === undefined || this.precedes(last, item))) {
      item.index = -2;
      item.previous = last;
      if (last === undefined) this.head = item;
      else last.next = item;
      this.#last = item;
    } else this.place(item);
  }
}
