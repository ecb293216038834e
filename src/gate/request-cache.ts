import { LRUCache } from 'lru-cache';
import { type AbortWatcher, unwatchAbort, watchAbort } from '../internal/abort-watch.js';
import { nowMs } from '../internal/clock.js';
import type { Mask } from '../internal/told-error.js';
import type { CallBounds, GateOutcome } from './call-scope.js';

/** What is kept of answers, and for how long. */
export interface CacheOptions {
  /** Answers kept at most; the least recently used goes first. */
  readonly max: number;
  /** Milliseconds for which an answer is kept. */
  readonly ttlMs: number;
}

/**
 * One call that several callers wait for. It is bounded by all of them together.
 *
 * Invariants:
 * - It is aborted when its last waiter leaves, not before, and nobody joins it from then on.
 * - A waiter that leaves is settled in that step; the others do not notice.
 */
export class Flight implements CallBounds {
  readonly #controller = new AbortController();
  readonly #landing: Promise<unknown>;
  readonly #onDeserted: (flight: Flight) => void;
  readonly #waiters = new Set<CallBounds>();
  /** What must not be told of whoever makes the call, also not to those who wait with it. */
  readonly mask: Mask | undefined;
  outcome: GateOutcome | undefined;
  /** Somebody waits with the others from now on. */
  onJoin: () => void = () => {};

  constructor(
    start: (flight: Flight) => Promise<unknown>,
    onDeserted: (flight: Flight) => void,
    mask: Mask | undefined,
  ) {
    this.mask = mask;
    this.#onDeserted = onDeserted;
    this.#landing = start(this);
    // The waiters have promises of their own.
    this.#landing.catch(() => {});
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** The latest that any waiter allows. */
  get deadlineMs(): number {
    let latest = Number.NEGATIVE_INFINITY;
    for (const waiter of this.#waiters) latest = Math.max(latest, waiter.deadlineMs);
    return latest;
  }

  set lastFailure(failure: unknown) {
    for (const waiter of this.#waiters) waiter.lastFailure = failure;
  }

  turnAway(untilMs: number, reason: () => unknown): void {
    // The last to be turned away ends the call.
    for (const waiter of [...this.#waiters]) waiter.turnAway(untilMs, reason);
  }

  abort(reason: unknown): void {
    this.#onDeserted(this);
    this.#controller.abort(reason);
  }

  /** Waits with the others, within bounds of its own. */
  join(waiter: CallBounds): Promise<unknown> {
    const { signal } = waiter;
    if (signal.aborted) return Promise.reject(signal.reason);
    this.#waiters.add(waiter);
    const landing = new Promise((resolve, reject) => {
      const watcher: AbortWatcher = {
        onAbort: (reason) => {
          reject(reason);
          this.#waiters.delete(waiter);
          if (this.#waiters.size === 0) this.abort(reason);
        },
      };
      watchAbort(signal, watcher);
      const landed = (): void => {
        unwatchAbort(signal, watcher);
        this.#waiters.delete(waiter);
      };
      this.#landing.then(
        (value) => {
          landed();
          resolve(value);
        },
        (error: unknown) => {
          landed();
          reject(error);
        },
      );
    });
    this.onJoin();
    return landing;
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

  /** Answers kept. */
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

  /** Starts the call for a key that has none. Only what the call itself takes for a success is kept. */
  launch(key: string, mask: Mask | undefined, call: (flight: Flight) => Promise<unknown>): Flight {
    const forget = (flight: Flight): void => {
      if (this.#flights.get(key) === flight) this.#flights.delete(key);
    };
    const flight = new Flight(
      async (self) => {
        // The call begins when its first waiter has joined: until then nobody's bounds are known.
        await undefined;
        try {
          const value = await call(self);
          if (self.outcome === 'ok') this.#answers?.set(key, { value });
          return value;
        } finally {
          forget(self);
        }
      },
      forget,
      mask,
    );
    this.#flights.set(key, flight);
    return flight;
  }

  clear(): void {
    this.#answers?.clear();
  }
}
