/** An item that knows its place, so that it can move or leave from anywhere. */
export interface HeapItem {
  /** @internal Owned by the heap; -1 outside of it. */
  index: number;
}

/**
 * A binary heap whose items can move when their order changes, and leave from anywhere. O(log n) for each.
 *
 * Invariants:
 * - An item knows its index.
 * - No item precedes its parent, `items[(index - 1) >> 1]`.
 */
export class IndexedHeap<T extends HeapItem> {
  readonly items: T[] = [];
  readonly precedes: (a: T, b: T) => boolean;

  constructor(precedes: (a: T, b: T) => boolean) {
    this.precedes = precedes;
  }

  /** The item that precedes all others. */
  get top(): T | undefined {
    return this.items[0];
  }

  /** Adds an item, or moves one whose order has changed. */
  place(item: T): void {
    const { items } = this;
    const precedes = this.precedes;
    let index = item.index < 0 ? items.length : item.index;
    while (index > 0) {
      const above = (index - 1) >> 1;
      const parent = items[above] as T;
      if (!precedes(item, parent)) break;
      items[index] = parent;
      parent.index = index;
      index = above;
    }
    for (;;) {
      let below = 2 * index + 1;
      const right = items[below + 1];
      if (right !== undefined && precedes(right, items[below] as T)) below++;
      const child = items[below];
      if (child === undefined || !precedes(child, item)) break;
      items[index] = child;
      child.index = index;
      index = below;
    }
    items[index] = item;
    item.index = index;
  }

  /** Removes an item, if it is inside. */
  remove(item: T): void {
    const { index } = item;
    if (index < 0) return;
    item.index = -1;
    const last = this.items.pop() as T;
    if (last === item) return;
    // The last fills the gap, which first moves to the bottom: most belong there, and it costs one comparison a level.
    const { items } = this;
    let gap = index;
    for (let below = 2 * gap + 1; below < items.length; below = 2 * gap + 1) {
      const right = items[below + 1];
      if (right !== undefined && this.precedes(right, items[below] as T)) below++;
      const child = items[below] as T;
      items[gap] = child;
      child.index = gap;
      gap = below;
    }
    last.index = gap;
    this.place(last);
  }
}

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
