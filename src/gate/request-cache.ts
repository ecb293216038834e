import { LRUCache } from 'lru-cache';
import type { GateEvents } from '../hooks/events.js';
import { type AbortWatcher, unwatchAbort, watchAbort } from '../internal/abort-watch.js';
import { nowMs } from '../internal/clock.js';

/** What is kept of answers, and for how long. */
export interface CacheOptions {
  /** Answers kept at most; the least recently used goes first. */
  readonly max: number;
  /** Milliseconds for which an answer is kept. */
  readonly ttlMs: number;
}

/** What a flight brings home. */
export interface Landed {
  readonly value: unknown;
  /** What it meant; only `ok` is kept. */
  readonly outcome: GateEvents['call:finished']['outcome'];
}

/**
 * One call that several callers wait for.
 *
 * Invariants:
 * - It is aborted when its last waiter leaves, not before, and nobody joins it from then on.
 * - A waiter that leaves is settled in that step; the others do not notice.
 */
export class Flight {
  readonly #controller = new AbortController();
  readonly #landing: Promise<Landed>;
  readonly #onDeserted: (flight: Flight) => void;
  #waiters = 0;
  #over = false;
  /** What the call meant, where it failed. */
  outcome: Landed['outcome'] | undefined;
  /** The latest moment that anybody who waits allows, on the monotonic clock. */
  deadlineMs = Number.NEGATIVE_INFINITY;

  constructor(start: (flight: Flight) => Promise<Landed>, onDeserted: (flight: Flight) => void) {
    this.#onDeserted = onDeserted;
    this.#landing = start(this);
    const land = (): void => {
      this.#over = true;
    };
    this.#landing.then(land, land);
  }

  /** Aborts when nobody waits any more. */
  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** Fails it for everybody. */
  abort(reason: unknown): void {
    this.#onDeserted(this);
    this.#controller.abort(reason);
  }

  /** Waits with the others; `signal` ends this one's waiting. */
  join(signal: AbortSignal, deadlineMs: number): Promise<Landed> {
    if (signal.aborted) return Promise.reject(signal.reason);
    this.#waiters++;
    this.deadlineMs = Math.max(this.deadlineMs, deadlineMs);
    return new Promise((resolve, reject) => {
      const watcher: AbortWatcher = {
        onAbort: (reason) => {
          reject(reason);
          this.#leave(reason);
        },
      };
      watchAbort(signal, watcher);
      this.#landing.then(
        (landed) => {
          unwatchAbort(signal, watcher);
          resolve(landed);
        },
        (error: unknown) => {
          unwatchAbort(signal, watcher);
          reject(error);
        },
      );
    });
  }

  #leave(reason: unknown): void {
    if (--this.#waiters === 0 && !this.#over) this.abort(reason);
  }
}

/**
 * Answers by key, and the calls that are under way for one. lru-cache stores; its own merging of calls would reject
 * everybody when the first waiter aborts, so the flights are kept here. The only importer of lru-cache.
 */
export class RequestCache {
  readonly #answers: LRUCache<string, { readonly value: unknown }> | undefined;
  readonly #flights = new Map<string, Flight>();

  /** Without options nothing is kept, and only calls at the same time are merged. */
  constructor(options: CacheOptions | undefined) {
    // lru-cache takes a moment of 0 for none, and would keep an answer from then for ever.
    const perf = { now: () => nowMs() + 1 };
    this.#answers = options && new LRUCache({ max: options.max, ttl: options.ttlMs, ttlResolution: 0, perf });
  }

  get size(): number {
    return this.#answers?.size ?? 0;
  }

  /** Calls under way. */
  get flights(): number {
    return this.#flights.size;
  }

  answer(key: string): { readonly value: unknown } | undefined {
    return this.#answers?.get(key);
  }

  flight(key: string): Flight | undefined {
    return this.#flights.get(key);
  }

  /** Starts the call for a key that has none. A failure is not kept. */
  launch(key: string, start: (flight: Flight) => Promise<Landed>): Flight {
    const forget = (flight: Flight): void => {
      if (this.#flights.get(key) === flight) this.#flights.delete(key);
    };
    const flight: Flight = new Flight(async (self) => {
      // The call begins when its first waiter has joined: until then nobody's deadline is known.
      await undefined;
      try {
        const landed = await start(self);
        if (landed.outcome === 'ok') this.#answers?.set(key, { value: landed.value });
        return landed;
      } finally {
        forget(self);
      }
    }, forget);
    this.#flights.set(key, flight);
    return flight;
  }

  clear(): void {
    this.#answers?.clear();
  }
}
