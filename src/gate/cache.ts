import { LRUCache } from 'lru-cache';
import type { AbortListener } from '../internal/abort.js';
import { MAX_TIMER_MS } from '../internal/validate.js';
import { CallBounds } from './call-context.js';

/** Which results a gate caches, how many, and for how long. */
export interface CacheOptions {
  /** Maximum number of cached results; the least recently used is evicted first. */
  readonly max: number;
  /** Maximum size of all results together, in bytes of their JSON text. A larger result is not cached. @default unlimited */
  readonly maxBytes?: number | undefined;
  /** Milliseconds for which a result is cached, or a function of the result; 0 does not cache it. */
  readonly ttlMs: number | ((value: unknown) => number);
  /**
   * Milliseconds after `ttlMs` for which an expired result still answers a call that fails because of the service.
   * @default 0
   */
  readonly staleIfErrorMs?: number | undefined;
  /** Whether to cache a result. @default every result of class `ok` */
  readonly shouldCache?: ((value: unknown) => boolean) | undefined;
}

interface CacheEntry {
  readonly value: unknown;
  readonly freshUntilMs: number;
}

/**
 * One call that several callers wait for, bounded by all of them together.
 *
 * Invariants:
 * - It is aborted when its last waiter leaves, not before, and no caller joins it afterwards.
 * - A waiter that leaves is settled in that step; the others are not affected.
 */
export class Flight extends CallBounds {
  readonly #result: Promise<unknown>;
  readonly #onDeserted: (flight: Flight) => void;
  readonly #waiters = new Set<CallBounds>();
  /** Another waiter has joined. */
  onJoin: () => void = () => {};

  constructor(start: (flight: Flight) => Promise<unknown>, onDeserted: (flight: Flight) => void) {
    super();
    this.#onDeserted = onDeserted;
    this.#result = start(this);
    // The waiters have promises of their own.
    this.#result.catch(() => {});
  }

  /** The longest time that a waiter has left. */
  get remainingMs(): number {
    let longest = Number.NEGATIVE_INFINITY;
    for (const waiter of this.#waiters) longest = Math.max(longest, waiter.remainingMs);
    return longest;
  }

  failedWith(error: unknown): void {
    for (const waiter of this.#waiters) waiter.failedWith(error);
  }

  rejectUnmeetable(waitMs: number, reason: () => unknown): void {
    // The last one that leaves ends the call.
    for (const waiter of [...this.#waiters]) waiter.rejectUnmeetable(waitMs, reason);
  }

  /** Waits for the result, within the waiter's own bounds. */
  join(waiter: CallBounds): Promise<unknown> {
    if (waiter.aborted) return Promise.reject(waiter.reason);
    this.#waiters.add(waiter);
    const result = new Promise((resolve, reject) => {
      const listener: AbortListener = {
        handleEvent: () => {
          reject(waiter.reason);
          this.#waiters.delete(waiter);
          if (this.#waiters.size > 0) return;
          this.#onDeserted(this);
          this.fire(waiter.reason);
        },
      };
      waiter.addEventListener('abort', listener);
      const leave = (): void => {
        waiter.removeEventListener('abort', listener);
        this.#waiters.delete(waiter);
      };
      this.#result.then(
        (value) => {
          leave();
          resolve(value);
        },
        (error: unknown) => {
          leave();
          reject(error);
        },
      );
    });
    this.onJoin();
    return result;
  }
}

/**
 * Cached results, and the in-flight calls, by key. lru-cache stores the results; its own single flight would reject every
 * waiter when the first one aborts, so the flights are kept here. The only importer of lru-cache.
 */
export class RequestCache {
  readonly #options: CacheOptions | undefined;
  readonly #now: () => number;
  readonly #entries: LRUCache<string, CacheEntry> | undefined;
  readonly #flights = new Map<string, Flight>();

  /** Without options nothing is cached: concurrent calls with the same key still share one flight. */
  constructor(options: CacheOptions | undefined, now: () => number) {
    this.#options = options;
    this.#now = now;
    if (options === undefined) return;
    const { max, maxBytes } = options;
    // lru-cache takes a time of 0 for none, and would keep a result from then forever.
    const perf = { now: () => now() + 1 };
    this.#entries = new LRUCache({
      max,
      ttlResolution: 0,
      perf,
      ...(maxBytes === undefined ? {} : { maxSize: maxBytes }),
    });
  }

  /** Cached results. */
  get size(): number {
    return this.#entries?.size ?? 0;
  }

  /** In-flight calls. */
  get inFlight(): number {
    return this.#flights.size;
  }

  /** The cached result of a key; with `isStale`, also one that has expired and may answer a call that fails. */
  result(key: string, isStale = false): CacheEntry | undefined {
    const entry = this.#entries?.get(key);
    return entry !== undefined && (isStale || this.#now() <= entry.freshUntilMs) ? entry : undefined;
  }

  flight(key: string): Flight | undefined {
    return this.#flights.get(key);
  }

  /** Starts the call of a key that has none. Only results of class `ok` are cached. */
  start(key: string, call: (flight: Flight) => Promise<unknown>): Flight {
    const isCurrent = (flight: Flight): boolean => this.#flights.get(key) === flight;
    const forget = (flight: Flight): void => {
      if (isCurrent(flight)) this.#flights.delete(key);
    };
    const flight = new Flight(async (self) => {
      // The call begins when its first waiter has joined: it has no bounds before.
      await undefined;
      try {
        const value = await call(self);
        if (self.outcome === 'ok' && isCurrent(self)) this.#store(key, value);
        return value;
      } finally {
        forget(self);
      }
    }, forget);
    this.#flights.set(key, flight);
    return flight;
  }

  /** Drops a cached result, or all. A call in flight still answers its waiters, but is neither cached nor joined. */
  forget(key?: string): void {
    if (key === undefined) {
      this.#entries?.clear();
      this.#flights.clear();
    } else {
      this.#entries?.delete(key);
      this.#flights.delete(key);
    }
  }

  /** Never throws: a callback of the host that fails leaves the result uncached. */
  #store(key: string, value: unknown): void {
    const options = this.#options;
    if (this.#entries === undefined || options === undefined) return;
    const { ttlMs, staleIfErrorMs = 0, maxBytes, shouldCache } = options;
    try {
      if (shouldCache !== undefined && shouldCache(value) !== true) return;
      const freshMs = typeof ttlMs === 'function' ? ttlMs(value) : ttlMs;
      if (!(typeof freshMs === 'number' && freshMs > 0)) return;
      const entry = { value, freshUntilMs: this.#now() + freshMs };
      const ttl = Math.min(Math.ceil(freshMs + staleIfErrorMs), MAX_TIMER_MS);
      // One that is larger than the cache is dropped, with what was cached before.
      this.#entries.delete(key);
      this.#entries.set(key, entry, maxBytes === undefined ? { ttl } : { ttl, size: sizeOf(value) });
    } catch {}
  }
}

/** The bytes of a result, as JSON. Throws if it has no JSON form. */
function sizeOf(value: unknown): number {
  if (ArrayBuffer.isView(value) || value instanceof ArrayBuffer) return Math.max(1, value.byteLength);
  const json = typeof value === 'string' ? value : (JSON.stringify(value) ?? '');
  return Math.max(1, Buffer.byteLength(json));
}
