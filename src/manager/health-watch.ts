import type { LifecycleEvents } from '../hooks/events.js';
import type { LifecycleHooks } from '../hooks/lifecycle-hooks.js';
import { nowMs } from '../internal/clock.js';

/** Whose events are watched. */
export interface WatchedParts {
  /** A manager: its `name` and where its events go. */
  readonly manager: { readonly name: string; readonly hooks: LifecycleHooks };
  readonly pool: { readonly name: string; readonly hooks: LifecycleHooks };
}

/**
 * The part of a service's health that no figure of one moment shows: how long who waits has waited, and whether
 * creations keep failing. It begins with the first health check: where nobody checks, nobody pays.
 *
 * Invariant: it keeps one entry for each request that waits, and nothing else that grows.
 */
export class HealthWatch {
  readonly #now: () => number;
  /** When each waiting request came; the longest waiting first. */
  readonly #waiting = new Map<string, number>();
  #failedCreations = 0;

  constructor({ manager, pool }: WatchedParts, now: () => number = nowMs) {
    this.#now = now;
    const ours = ({ source }: { readonly source: string }): boolean => source === manager.name;
    const began = (told: LifecycleEvents['request:started' | 'request:rejected']): void => {
      if (ours(told)) this.#waiting.delete(told.requestId);
    };
    manager.hooks
      .on('request:queued', (told) => {
        if (ours(told)) this.#waiting.set(told.requestId, this.#now());
      })
      .on('request:started', began)
      .on('request:rejected', began);
    pool.hooks
      .on('instance:created', ({ source }) => {
        if (source === pool.name) this.#failedCreations = 0;
      })
      .on('instance:createFailed', ({ source, failures }) => {
        if (source === pool.name) this.#failedCreations = failures;
      });
  }

  /** Milliseconds that the request has waited which has waited longest; 0 if none waits. */
  get longestWaitMs(): number {
    for (const sinceMs of this.#waiting.values()) return this.#now() - sinceMs;
    return 0;
  }

  /** Creations that failed in a row, up to the last one. */
  get failedCreations(): number {
    return this.#failedCreations;
  }
}
