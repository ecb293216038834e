import { LRUCache } from 'lru-cache';
import { boundedCall, ignoreRejection } from '../internal/abort.js';
import { settleInTurn } from '../internal/clock.js';
import { MAX_TIMER_MS } from '../internal/validate.js';
import { CallBounds } from './call-context.js';
import { waitWithin } from './wait.js';

/** Which results a gate caches, how many, and for how long. */
export interface CacheOptions {
  /** Maximum number of cached results; the least recently used is evicted first. */
  readonly max: number;
  /** Maximum size of all results together, in bytes of their JSON text. A larger result is not cached. @default unlimited */
  readonly maxBytes?: number | undefined;
  /** Milliseconds for which a result is cached, or a function of the result that returns them; 0 from it does not cache the result. */
  readonly ttlMs: number | ((value: unknown) => number);
  /**
   * Milliseconds after `ttlMs` for which an expired result still answers a call that fails because of the service.
   * @default 0
   */
  readonly staleIfErrorMs?: number | undefined;
  /** Whether to cache a result. @default every result of class `ok` */
  readonly shouldCache?: ((value: unknown) => boolean) | undefined;
  /**
   * A store behind this cache, which other processes share. What is not cached here is looked up there, and results of this
   * process are kept there too. A lookup that fails, or takes longer than a second, is a miss. @default none
   */
  readonly store?: CacheStore | undefined;
}

/**
 * A shared store of cached results: a `Keyv`, or anything with these methods. Values are plain objects that hold the result
 * as `value`, so a result must survive how the store writes it: JSON, for most.
 */
export interface CacheStore {
  /** The value, or `undefined` or `null`. May return a promise. */
  get(key: string): unknown;
  /** Keeps the value for `ttlMs`. May return a promise. */
  set(key: string, value: unknown, ttlMs: number): unknown;
  /** Drops the value. May return a promise. @default values of dropped keys stay until their time is over */
  delete?(key: string): unknown;
}

/** What a gate keeps in a store. */
interface StoredResult {
  readonly value?: unknown;
  /** When it was stored, on the wall clock of that process. */
  readonly storedAtMs: number;
  readonly ttlMs: number;
}

/** How long a store may take. A slow one must not delay calls by more than their service would. */
const STORE_TIMEOUT_MS = 1_000;

/** What a cache takes from its gate. */
export interface CacheDependencies {
  /** The gate's name: several gates may use one store. */
  readonly name: string;
  readonly now: () => number;
  readonly onStoreFailed: (operation: StoreOperation, error: unknown) => void;
}

/** One call of a store. */
export type StoreOperation = 'get' | 'set' | 'delete';

/** Where the result of a flight comes from. */
export interface FlightSource {
  /** The store had it. */
  onStored(): void;
  /** Neither cache nor store had it; only with a store. */
  onMiss(): void;
  /** Whether what the store had is a result of such a call. */
  acceptsStored(value: unknown): boolean;
  call(flight: Flight): Promise<unknown>;
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
 * - A waiter that leaves is settled in that step, or if many are, in the next turns; the others are not affected.
 */
export class Flight extends CallBounds {
  readonly #result: Promise<unknown>;
  readonly #onDeserted: (flight: Flight) => void;
  readonly #waiters = new Set<CallBounds>();
  /** Another waiter has joined. */
  onJoin: (waiter: CallBounds) => void = () => {};

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
    // One error, as for all other ends of the call. The last one that leaves ends the call.
    let error: unknown;
    for (const waiter of [...this.#waiters])
      waiter.rejectUnmeetable(waitMs, () => {
        error ??= reason();
        return error;
      });
  }

  /** Waits for the result, within the waiter's own bounds. */
  join(waiter: CallBounds): Promise<unknown> {
    const joined = waitWithin(waiter, (end) => {
      this.#waiters.add(waiter);
      const settle = (): void => settleInTurn(() => end(this.#result));
      this.#result.then(settle, settle);
      return () => {
        this.#waiters.delete(waiter);
        if (this.#waiters.size > 0) return;
        this.#onDeserted(this);
        this.fire(waiter.reason);
      };
    });
    this.onJoin(waiter);
    return joined;
  }
}

/**
 * Cached results, and the in-flight calls, by key. lru-cache stores the results; its own single flight would reject every
 * waiter when the first one aborts, so the flights are kept here. The only importer of lru-cache.
 */
export class RequestCache {
  readonly #options: CacheOptions | undefined;
  readonly #dependencies: CacheDependencies;
  readonly #entries: LRUCache<string, CacheEntry> | undefined;
  readonly #flights = new Map<string, Flight>();

  /** Without options nothing is cached: concurrent calls with the same key still share one flight. */
  constructor(options: CacheOptions | undefined, dependencies: CacheDependencies) {
    this.#options = options;
    this.#dependencies = dependencies;
    if (options === undefined) return;
    const { max, maxBytes } = options;
    // lru-cache takes a time of 0 for none, and would keep a result from then forever.
    const perf = { now: () => dependencies.now() + 1 };
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
    return entry !== undefined && (isStale || this.#dependencies.now() <= entry.freshUntilMs)
      ? entry
      : undefined;
  }

  flight(key: string): Flight | undefined {
    return this.#flights.get(key);
  }

  /** Whether there is a shared store, which `start` asks first. */
  get hasStore(): boolean {
    return this.#options?.store !== undefined;
  }

  /** Starts the flight of a key that has none. Only results of class `ok` are cached. */
  start(key: string, source: FlightSource): Flight {
    const isCurrent = (flight: Flight): boolean => this.#flights.get(key) === flight;
    const forget = (flight: Flight): void => {
      if (isCurrent(flight)) this.#flights.delete(key);
    };
    const flight = new Flight(async (self) => {
      // The call begins when its first waiter has joined: it has no bounds before.
      await undefined;
      try {
        const stored = this.hasStore ? await this.#stored(key, self, source) : undefined;
        if (stored !== undefined) {
          self.outcome = 'ok';
          if (isCurrent(self)) this.#keep(key, stored.value, leftMs(stored));
          source.onStored();
          return stored.value;
        }
        if (this.hasStore) source.onMiss();
        const value = await source.call(self);
        if (self.outcome === 'ok' && isCurrent(self)) this.#cache(key, value);
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
      const { store } = this.#options ?? {};
      if (store?.delete !== undefined) void this.#ask('delete', () => store.delete?.(this.#nameOf(key)));
    }
  }

  /** Never throws: a callback of the host that fails leaves the result uncached. */
  #cache(key: string, value: unknown): void {
    if (this.#options === undefined) return;
    const { ttlMs, shouldCache, store } = this.#options;
    try {
      const isWanted = shouldCache === undefined || shouldCache(value);
      if (isWanted !== true) {
        ignoreRejection(isWanted);
        return;
      }
      const freshMs = typeof ttlMs === 'function' ? ttlMs(value) : ttlMs;
      if (!(typeof freshMs === 'number' && freshMs > 0)) {
        ignoreRejection(freshMs);
        return;
      }
      this.#keep(key, value, freshMs);
      if (store === undefined) return;
      const stored: StoredResult = { value, storedAtMs: Date.now(), ttlMs: freshMs };
      void this.#ask('set', () => store.set(this.#nameOf(key), stored, Math.ceil(freshMs)));
    } catch {}
  }

  /** What the store has of a key. Never rejects, unless the flight ended. */
  async #stored(key: string, flight: Flight, source: FlightSource): Promise<StoredResult | undefined> {
    const stored = await this.#ask('get', () => this.#options?.store?.get(this.#nameOf(key)), flight);
    flight.throwIfAborted();
    try {
      // A copy: its fields are read here, where one that throws is a miss.
      const copy = isStoredResult(stored) && leftMs(stored) > 0 ? { ...stored } : undefined;
      if (copy === undefined || source.acceptsStored(copy.value)) return copy;
      const error = new TypeError('Expected the store to have a response under this key');
      this.#dependencies.onStoreFailed('get', error);
    } catch {}
    return undefined;
  }

  /** Calls the store. Never rejects: a failure is reported, and reads as nothing. */
  async #ask(operation: StoreOperation, call: () => unknown, flight?: Flight): Promise<unknown> {
    try {
      return await boundedCall(call, {
        signal: flight?.signal,
        timeoutMs: STORE_TIMEOUT_MS,
        timeoutError: (ms) => new Error(`\`${operation}\` of the store took longer than ${ms} ms`),
      });
    } catch (error) {
      if (!flight?.aborted) this.#dependencies.onStoreFailed(operation, error);
      return undefined;
    }
  }

  #nameOf(key: string): string {
    return `${this.#dependencies.name}:${key}`;
  }

  /** Never throws: a result without a size stays uncached. */
  #keep(key: string, value: unknown, freshMs: number): void {
    if (this.#entries === undefined || this.#options === undefined) return;
    const { staleIfErrorMs = 0, maxBytes } = this.#options;
    try {
      const entry = { value, freshUntilMs: this.#dependencies.now() + freshMs };
      const ttl = Math.min(Math.ceil(freshMs + staleIfErrorMs), MAX_TIMER_MS);
      // One that is larger than the cache is dropped, with what was cached before.
      this.#entries.delete(key);
      this.#entries.set(key, entry, maxBytes === undefined ? { ttl } : { ttl, size: sizeOf(value) });
    } catch {}
  }
}

function isStoredResult(stored: unknown): stored is StoredResult {
  const { storedAtMs, ttlMs } = Object(stored) as Partial<StoredResult>;
  return typeof storedAtMs === 'number' && typeof ttlMs === 'number';
}

/** Milliseconds for which a stored result is fresh. A clock that is ahead or behind makes it shorter, or no longer than it was. */
const leftMs = ({ storedAtMs, ttlMs }: StoredResult): number =>
  Math.min(ttlMs, storedAtMs + ttlMs - Date.now());

/** The bytes of a result, as JSON. Throws if it has no JSON form. */
function sizeOf(value: unknown): number {
  if (ArrayBuffer.isView(value) || value instanceof ArrayBuffer) return Math.max(1, value.byteLength);
  const json = typeof value === 'string' ? value : (JSON.stringify(value) ?? '');
  return Math.max(1, Buffer.byteLength(json));
}
