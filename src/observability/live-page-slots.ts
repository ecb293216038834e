import type { LifecycleHooks } from '../hooks/lifecycle-hooks.js';
import { nowMs } from '../internal/clock.js';
import { Attachment } from './attachment.js';

/** What an instance is doing, as far as the page shows it. */
export type SlotState = 'creating' | 'idle' | 'running';

/** One instance in its place. */
export interface Slot {
  readonly place: number;
  readonly instanceId: number;
  readonly state: SlotState;
  /** Milliseconds that it has been in this state. */
  readonly forMs: number;
  readonly taskId?: string;
}

interface Tenant {
  readonly place: number;
  readonly state: SlotState;
  readonly sinceMs: number;
  readonly taskId?: string;
}

/**
 * Which instance is where, and what it does. Each keeps its place as long as it lives, so that nothing jumps on the page.
 *
 * Invariant: it keeps one entry for each live instance.
 */
export class Slots {
  readonly #tenants = new Map<number, Tenant>();
  readonly #attachment: Attachment;

  constructor(pool: { readonly name: string; readonly hooks: LifecycleHooks }) {
    const ours = ({ source }: { readonly source: string }): boolean => source === pool.name;
    const when =
      (act: (instanceId: number, taskId: string | undefined) => void) =>
      (told: { readonly source: string; readonly instanceId: number; readonly taskId?: string }): void => {
        if (ours(told)) act(told.instanceId, told.taskId);
      };
    const is = (state: SlotState) => when((instanceId) => this.#set(instanceId, state));
    // Where an instance is torn down at once, that is told before the end of its lease.
    const back = when((instanceId) => {
      if (this.#tenants.has(instanceId)) this.#set(instanceId, 'idle');
    });
    const gone = when((instanceId) => this.#tenants.delete(instanceId));
    this.#attachment = new Attachment(pool.hooks)
      .on('instance:creating', is('creating'))
      .on('instance:created', is('idle'))
      .on(
        'lease:acquired',
        when((instanceId, taskId) => this.#set(instanceId, 'running', taskId)),
      )
      .on('lease:released', back)
      .on('lease:revoked', back)
      .on('instance:createFailed', gone)
      .on('instance:destroyed', gone)
      .on('instance:destroyFailed', gone);
  }

  /** By place. Task ids only where they are asked for. */
  list(withTaskIds: boolean): readonly Slot[] {
    const now = nowMs();
    return [...this.#tenants]
      .map(([instanceId, { place, state, sinceMs, taskId }]) => ({
        place,
        instanceId,
        state,
        forMs: Math.round(now - sinceMs),
        ...(withTaskIds && taskId !== undefined ? { taskId } : {}),
      }))
      .sort((a, b) => a.place - b.place);
  }

  close(): void {
    this.#attachment.detach();
  }

  #set(instanceId: number, state: SlotState, taskId?: string): void {
    const place = this.#tenants.get(instanceId)?.place ?? this.#freePlace();
    this.#tenants.set(instanceId, {
      place,
      state,
      sinceMs: nowMs(),
      ...(taskId === undefined ? {} : { taskId }),
    });
  }

  #freePlace(): number {
    const taken = new Set([...this.#tenants.values()].map(({ place }) => place));
    let place = 0;
    while (taken.has(place)) place++;
    return place;
  }
}
