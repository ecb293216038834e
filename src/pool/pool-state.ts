import { LifecycleHooks } from '../hooks/lifecycle-hooks.js';
import { PoolEventEmitter } from './events.js';
import { InstanceRegistry } from './instances.js';
import type { PoolSettings, PoolStats } from './options.js';
import { Teardown } from './teardown.js';
import { Waiters } from './waiters.js';

/** What all parts of a pool share. */
export class PoolState<T> {
  /** Set by `PipelinePool` only. */
  status: PoolStats['state'] = 'open';
  /** Set by `Scheduler` only. */
  paused = false;
  readonly hooks: LifecycleHooks;
  readonly instances: InstanceRegistry<T>;
  readonly waiters: Waiters<T>;
  readonly events: PoolEventEmitter<T>;
  readonly teardown: Teardown<T>;

  constructor(readonly settings: PoolSettings<T>) {
    this.hooks = settings.hooks ?? new LifecycleHooks();
    this.instances = new InstanceRegistry(settings);
    this.waiters = new Waiters(settings, this.instances);
    this.events = new PoolEventEmitter(settings.name, this.hooks, this.instances, this.waiters);
    this.teardown = new Teardown(settings, this.instances, this.events);
  }
}
