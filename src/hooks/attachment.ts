import type { LifecycleEventName } from './events.js';
import { checkHooks, type LifecycleHooks, type LifecycleListener } from './lifecycle-hooks.js';

/** The listeners that one observer has added, so that all of them can be removed at once. */
export class Attachment {
  readonly #hooks: LifecycleHooks;
  #removers: (() => void)[] = [];

  constructor(hooks: LifecycleHooks) {
    this.#hooks = checkHooks('hooks', hooks);
  }

  on<E extends LifecycleEventName>(event: E, listener: LifecycleListener<E>): this {
    this.#hooks.on(event, listener);
    this.#removers.push(() => this.#hooks.off(event, listener));
    return this;
  }

  /** Removes all listeners. A second call does nothing. */
  detach(): void {
    for (const remove of this.#removers) remove();
    this.#removers = [];
  }
}
