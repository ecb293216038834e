import {
  type FairQueue,
  isNext,
  type Orderable,
  type QueueNode,
  type Tenant,
  type TenantQueue,
} from './fair-queue.js';
import { type HeapItem, IndexedHeap } from './heap.js';

/** A tenant as it will stand once some of its elements have been taken. */
interface Preview extends Orderable, HeapItem {
  readonly tenant: Tenant;
  readonly queues: readonly TenantQueue[];
  at: number;
  head: QueueNode;
  held: number;
}

/** All elements that may be taken, in the order in which they would be if no others came and nothing was released. */
export function* servingOrder<W extends QueueNode>(queue: FairQueue<W>): Generator<W, void, undefined> {
  const previews = new IndexedHeap<Preview>(isNext);
  let turns = 0;
  const preview = (tenant: Tenant): void => {
    const queues = [...tenant.queues].sort((a, b) => b.level.priority - a.level.priority);
    const [top] = queues as [TenantQueue];
    const { isUrgent, priority, received, turn, held } = tenant;
    turns = Math.max(turns, turn);
    const head = top.head as QueueNode;
    previews.place({ tenant, queues, priority, at: 0, head, isUrgent, received, turn, held, index: -1 });
  };
  queue.ready.items.forEach(preview);
  for (let at = queue.ready.head; at !== undefined; at = at.next) preview(at);
  for (let next = previews.top; next !== undefined; next = previews.top) {
    const { head, tenant } = next;
    const weight = head.weight ?? 1;
    yield head as W;
    next.received += queue.isShared ? queue.costOf(tenant, weight) : 0;
    next.turn = ++turns;
    next.held += weight;
    next.isUrgent = next.held < tenant.limits.guaranteed;
    const own = next.queues[head.next === undefined ? ++next.at : next.at];
    const following = head.next ?? own?.head;
    if (following === undefined || next.held + (following.weight ?? 1) > tenant.limits.maxConcurrent)
      previews.remove(next);
    else {
      next.head = following;
      next.priority = (own as TenantQueue).level.priority;
      previews.place(next);
    }
  }
}
