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
