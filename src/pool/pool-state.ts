import { LifecycleHooks } from '../hooks/lifecycle-hooks.js';
import { Callbacks } from './callbacks.js';
import { PoolEventEmitter } from './events.js';
import { InstanceRegistry } from './instances.js';
import type { PoolSettings, PoolStats } from './options.js';
import { Waiters } from './waiters.js';

/** What all parts of a pool share: its settings, instances, waiters, events and callbacks. */
export class PoolState<T> {
  /** Set by `Shutdown` only. */
  status: PoolStats['state'] = 'open';
  /** Set by `Scheduler` only. */
  paused = false;
  readonly hooks: LifecycleHooks;
  readonly instances: InstanceRegistry<T>;
  readonly waiters: Waiters<T>;
  readonly events: PoolEventEmitter<T>;
  readonly callbacks: Callbacks<T>;

  constructor(readonly settings: PoolSettings<T>) {
    this.hooks = settings.hooks ?? new LifecycleHooks();
    this.instances = new InstanceRegistry(settings);
    this.waiters = new Waiters(settings, this.instances);
    this.events = new PoolEventEmitter(settings.name, this.hooks, this.instances, this.waiters);
    this.callbacks = new Callbacks(settings);
  }
}
