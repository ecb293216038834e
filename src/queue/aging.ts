import { IndexedHeap } from './indexed-heap.js';
import type { AgedQueue, PriorityLevel, QueueNode, TenantQueue } from './tenant.js';

const queuedAtMs = (queue: TenantQueue): number => queue.head?.position?.queuedAtMs ?? 0;

/**
 * The oldest waiter of each priority, for a queue in which waiting counts.
 *
 * A waiter of priority p is as urgent as one of a higher priority P that arrives (P − p) × `agingMs` later. That order does
 * not change as time passes, so nothing has to be moved: `dueMs` is when a waiter arrived, minus its priority × `agingMs`.
 * Tenants of the same priority still share by work received.
 */
export class Aging {
  readonly #agingMs: number;
  readonly #levels = new IndexedHeap<PriorityLevel>((a, b) => this.#levelDueMs(a) < this.#levelDueMs(b));

  constructor(agingMs: number) {
    this.#agingMs = agingMs;
  }

  dueMs(priority: number, arrivedMs: number): number {
    return arrivedMs - priority * this.#agingMs;
  }

  /** The first of a queue has changed, or its tenant may be served or no longer. */
  place(queue: TenantQueue): void {
    const { level, tenant } = queue;
    queue.aged ??= { queue, heapIndex: -1 };
    level.aged ??= new IndexedHeap<AgedQueue>((a, b) => queuedAtMs(a.queue) < queuedAtMs(b.queue));
    if (queue.head === undefined || tenant.heapIndex < 0) level.aged.remove(queue.aged);
    else level.aged.place(queue.aged);
    if (level.aged.top === undefined) this.#levels.remove(level);
    else this.#levels.place(level);
  }

  /** The waiter of another priority that precedes one due at that time: the oldest of them all. */
  precedes(dueMs: number, priority?: number): QueueNode | undefined {
    // The one with that priority may be on top: then one of the two below it is the first of the others.
    const [first, left, right] = this.#levels.items;
    let level = first;
    if (first?.priority === priority) {
      level =
        left !== undefined && right !== undefined && this.#levelDueMs(right) < this.#levelDueMs(left)
          ? right
          : left;
    }
    return level !== undefined && this.#levelDueMs(level) <= dueMs ? level.aged?.top?.queue.head : undefined;
  }

  #levelDueMs({ priority, aged }: PriorityLevel): number {
    const oldest = aged?.top?.queue;
    return oldest === undefined ? Number.POSITIVE_INFINITY : this.dueMs(priority, queuedAtMs(oldest));
  }
}
