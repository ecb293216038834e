import type { LifecycleHooks } from '../../hooks/lifecycle-hooks.js';
import type { Classification } from '../classify.js';
import type { ReportedLimit } from '../retry-after.js';
import type { CooldownReason, SharedKey, SharedStart, SharedStarts } from '../shared-limits.js';
import { ApiKey, type CooldownSettings, type KeyReservation } from './api-key.js';
import { BestKey, goesBefore } from './best-key.js';
import {
  maxWeightOf,
  type RateWindow,
  SlidingWindow,
  smallestFree,
  type WindowEntry,
  windowsOf,
} from './sliding-window.js';

/** One key and its own windows. */
export interface KeySpec {
  readonly key: string;
  readonly rate: readonly RateWindow[];
  /** Whether `rate` is that of this key alone, and not that of the gate. */
  readonly hasOwnRate: boolean;
}

export interface KeyRingOptions {
  readonly name: string;
  readonly hooks: LifecycleHooks;
  /** One with an empty key if the gate has none: its windows and its cooldown are those of the service. */
  readonly keys: readonly KeySpec[];
  readonly sharedRate: readonly RateWindow[];
  readonly cooldown: CooldownSettings;
  /** Whether the gate has keys, which can be taken out of use. */
  readonly keyed: boolean;
  /** Present where windows and keys are shared with other processes. */
  readonly limits?: unknown;
  /** Milliseconds on a monotonic clock. */
  readonly now: () => number;
}

/** Why nothing can start now, and for how long; `Infinity` if nothing will change that. */
export interface NoCapacity {
  readonly retryAfterMs: number;
  readonly reason: 'rate' | 'cooldown';
}

/** The statuses by which a service says that it is overloaded, with or without a time. */
const OVERLOAD: readonly unknown[] = [429, 503, 529];

/** The state of one key. */
export interface KeyStats {
  /** The label of the key, such as `#2…9f3a`. */
  readonly key: string;
  /** `cooldown`, `exhausted` and `quarantined`: not used now. `half-open`: on trial after a cooldown. */
  readonly state: 'ready' | 'half-open' | CooldownReason;
  /** Attempts that use it now. */
  readonly inUse: number;
  /** The free part of its fullest window, from 0 to 1. */
  readonly free: number;
  /** Milliseconds until its cooldown ends; `Infinity` if it does not end by itself. */
  readonly cooldownMs: number;
}

/**
 * The keys of a gate, and the windows that they share.
 *
 * Invariants:
 * - A start has capacity in every window of its key and in every shared one, or takes nothing of any.
 * - Of the keys that can serve, it takes the one with the largest free part; of equals the one least in use, and of those
 *   the least recently used.
 * - A call waits only if no key can serve it.
 */
export class KeyRing {
  readonly #source: string;
  readonly #hooks: LifecycleHooks;
  readonly #keyed: boolean;
  readonly #isShared: boolean;
  /** The starts that are shared with other processes. */
  shared: SharedStarts | undefined;
  readonly #byHash = new Map<string, ApiKey>();
  #shared: readonly SlidingWindow[];
  #sharedMaxWeight: number;
  #sharedRate: readonly RateWindow[];
  readonly #keys: readonly ApiKey[];
  readonly #best: BestKey;
  /** Starts so far, and keys: what was used last has the highest number. */
  #used: number;
  #maxWeight: number;
  #countsWeight: boolean;
  /** The clock of windows and cooldowns. */
  readonly now: () => number;
  /** Milliseconds for which nothing may start, whatever keys and windows allow. */
  heldMs: () => number = () => 0;
  /** Something changed that may let a start through earlier than was returned. */
  onCapacity: () => void = () => {};
  /** A key is in cooldown. */
  onCooldown: () => void = () => {};
  /** A key is back in use: its next cooldown may end earlier than the last would have. */
  onRestored: () => void = () => {};

  constructor({ name, hooks, keys, sharedRate, cooldown, keyed, now, limits }: KeyRingOptions) {
    this.now = now;
    this.#source = name;
    this.#hooks = hooks;
    this.#keyed = keyed;
    this.#isShared = limits !== undefined;
    this.#sharedRate = sharedRate;
    this.#shared = this.#isShared ? [] : sharedRate.map((window) => new SlidingWindow(window));
    this.#sharedMaxWeight = maxWeightOf(sharedRate);
    const onReady = (key: ApiKey): void => this.#emitRestored(key);
    this.#keys = keys.map(
      (spec, i) =>
        new ApiKey(spec, keyed ? labelOf(spec.key, i) : 'service', i, cooldown, onReady, this.#isShared),
    );
    this.#best = new BestKey(this.#keys);
    this.#used = this.#keys.length;
    this.#maxWeight = this.#heaviest();
    this.#countsWeight = this.#hasWeightWindow();
    if (this.#isShared) for (const key of this.#keys) this.#byHash.set(hashOf(key.key), key);
  }

  /** Whether some window counts weight. */
  get countsWeight(): boolean {
    return this.#countsWeight;
  }

  /** The heaviest call that some key can serve. */
  get maxWeight(): number {
    return this.#maxWeight;
  }

  /**
   * Replaces the windows of keys that have none of their own, or the shared ones. A waiting call that becomes too heavy for
   * them is sent back, and rejected, unless its weight was only estimated.
   */
  setRate(rate: readonly RateWindow[] | undefined, sharedRate: readonly RateWindow[] | undefined): void {
    if (rate !== undefined) for (const key of this.#keys) if (!key.hasOwnRate) key.setRate(rate);
    if (sharedRate !== undefined) {
      this.#sharedRate = sharedRate;
      if (!this.#isShared) this.#shared = windowsOf(sharedRate, this.#shared);
      this.#sharedMaxWeight = maxWeightOf(sharedRate);
    }
    for (const key of this.#keys) this.#best.touch(key);
    this.#maxWeight = this.#heaviest();
    this.#countsWeight = this.#hasWeightWindow();
    this.shared?.setRates(this.sharedKeys(), this.#sharedRate);
    this.onCapacity();
  }

  /** Reserves a start of this weight on the best key, or returns how long there is none. */
  take(weight: number, nowMs: number): KeyReservation | NoCapacity {
    // First: it may emit an event, whose listener may pause the gate or start a call.
    const first = this.#best.best(nowMs);
    const heldMs = this.heldMs();
    if (heldMs > 0) return { retryAfterMs: heldMs, reason: 'cooldown' };
    const sharedMs = this.#shared.length === 0 ? 0 : longestWaitMs(this.#shared, weight, nowMs);
    if (
      first !== undefined &&
      sharedMs === 0 &&
      longestWaitMs(first.windows, weight, nowMs) === 0 &&
      first.waitMs(nowMs) <= 0
    )
      return this.#reserve(first, weight);
    // It is too full for this weight: another may have capacity, or the soonest of all is searched for.
    let best: ApiKey | undefined;
    let bestFree = -1;
    let none: NoCapacity = { retryAfterMs: Number.POSITIVE_INFINITY, reason: 'cooldown' };
    let soonest: ApiKey | undefined;
    for (const key of this.#keys) {
      const rateMs = Math.max(sharedMs, longestWaitMs(key.windows, weight, nowMs));
      const stateMs = key.waitMs(nowMs);
      const retryAfterMs = Math.max(rateMs, stateMs);
      if (retryAfterMs > 0) {
        const isSooner =
          retryAfterMs < none.retryAfterMs ||
          (soonest !== undefined && retryAfterMs === none.retryAfterMs && key.lastUsed < soonest.lastUsed);
        if (isSooner) {
          none = { retryAfterMs, reason: stateMs > rateMs ? 'cooldown' : 'rate' };
          soonest = key;
        }
        continue;
      }
      const free = smallestFree(key.windows, nowMs);
      if (best === undefined || goesBefore(key, free, best, bestFree)) {
        best = key;
        bestFree = free;
      }
    }
    return best === undefined ? none : this.#reserve(best, weight);
  }

  /** The attempt begins. */
  begin(reservation: KeyReservation, nowMs: number): void {
    reservation.beganMs = nowMs;
    for (const entry of reservation.entries) entry.window.begin(entry, nowMs);
    this.#best.touch(reservation.key);
  }

  /** Corrects the weight that was estimated for a start. */
  correct(reservation: KeyReservation, weight: number): void {
    reservation.shared?.correct(weight - reservation.weight);
    reservation.weight = weight;
    if (!this.#countsWeight) return;
    for (const entry of reservation.entries) entry.window.correct(entry, weight);
    this.#best.touch(reservation.key);
    this.onCapacity();
  }

  /** Takes the limits that the response to an attempt reports. */
  learn(reservation: KeyReservation, reported: readonly ReportedLimit[]): void {
    const { key } = reservation;
    key.learn(reservation, reported, this.now());
    this.#countsWeight ||= key.windows.some(countsWeight);
    this.#best.touch(key);
    this.onCapacity();
  }

  /** Takes the outcome of an attempt; may be called more than once until the attempt ends. */
  report(reservation: KeyReservation, classification: Classification): void {
    const { key } = reservation;
    const wasReady = key.isReady;
    const { status, retryAfterMs } = classification;
    switch (classification.class) {
      case 'ok':
      case 'client-error':
        this.#succeeded(reservation);
        break;
      case 'fatal':
        // With a status the service has responded; without one it is a bug of the host, and says nothing.
        if (status !== undefined) this.#succeeded(reservation);
        break;
      case 'retryable':
        this.#emitCooldown(
          key,
          retryAfterMs === undefined && !OVERLOAD.includes(status)
            ? key.failed(reservation, this.now())
            : key.throttled(reservation, retryAfterMs, this.now()),
          status,
        );
        break;
      case 'rate-limited':
        this.#emitCooldown(key, key.throttled(reservation, retryAfterMs, this.now()), status);
        break;
      case 'quota-exhausted':
      case 'unauthorized':
        if (this.#keyed) this.#quarantine(key, classification, this.now());
        else this.#succeeded(reservation);
        break;
    }
    // What can start has not changed.
    if (wasReady && key.isReady) return;
    this.#best.touch(key);
    if (key.cooldownMs(this.now()) > 0) this.onCooldown();
    this.onCapacity();
  }

  /** The attempt is over. One that never began returns what it had reserved. */
  end(reservation: KeyReservation): void {
    const { key, entries, shared } = reservation;
    const hasBegun = reservation.beganMs !== undefined;
    for (let i = 0; i < entries.length; i++) {
      const entry = entries[i] as WindowEntry;
      if (hasBegun) entry.window.finish(entry);
      else entry.window.cancel(entry);
    }
    if (hasBegun) shared?.end();
    else shared?.cancel();
    key.end(reservation);
    this.#best.touch(key);
    // The start of a ready key stays in the windows that count calls.
    if (!hasBegun || !key.isReady || this.#countsWeight || shared !== undefined) this.onCapacity();
  }

  /**
   * Milliseconds until the first key that could serve such a weight is out of its cooldown; 0 if one is, `Infinity` if none
   * will be.
   */
  retryAfterMs(nowMs: number, weight = 0): number {
    let soonest = Number.POSITIVE_INFINITY;
    for (const key of this.#keys) {
      if (weight > this.#maxWeightOf(key)) continue;
      soonest = Math.min(soonest, key.cooldownMs(nowMs));
      if (soonest === 0) break;
    }
    return soonest;
  }

  /** Calls of the same class can be served by the same keys: it is the weight of the heaviest of them. */
  weightClassOf(weight: number): number {
    let heaviest = Number.POSITIVE_INFINITY;
    for (const key of this.#keys) {
      const maxWeight = this.#maxWeightOf(key);
      if (weight <= maxWeight) heaviest = Math.min(heaviest, maxWeight);
    }
    return heaviest;
  }

  /** The times until which the keys of each weight class are in cooldown; 0 where one is not. */
  closedUntilMs(nowMs: number): ReadonlyMap<number, number> {
    const until = new Map<number, number>();
    for (const key of this.#keys) {
      const maxWeight = this.#maxWeightOf(key);
      if (until.has(maxWeight)) continue;
      const closedMs = this.retryAfterMs(nowMs, maxWeight);
      until.set(maxWeight, closedMs === 0 ? 0 : nowMs + closedMs);
    }
    return until;
  }

  /** Milliseconds for which such a call certainly cannot start; probes and corrections decide any longer wait. */
  certainlyClosedMs(weight: number, nowMs: number): number {
    const keysMs = this.#keys.map((key) =>
      Math.max(key.cooldownMs(nowMs), longestWaitMs(key.windows, weight, nowMs, true)),
    );
    return Math.max(longestWaitMs(this.#shared, weight, nowMs, true), Math.min(...keysMs));
  }

  /** Puts a key back into use. Returns whether there is such a key. */
  restore(key: string): boolean {
    const found = this.#keys.find((candidate) => candidate.key === key);
    if (found === undefined) return false;
    this.#best.touch(found);
    found.restore();
    this.shared?.restore(hashOf(key));
    this.onCapacity();
    return true;
  }

  stats(nowMs: number): readonly KeyStats[] {
    const hashes = [...this.#byHash.keys()];
    return this.#keys.map((key, i) => {
      const cooldownMs = key.cooldownMs(nowMs);
      return Object.freeze({
        key: key.label,
        state: key.state,
        inUse: key.inUse,
        free:
          this.shared?.freeOf(hashes[i] as string) ??
          Math.min(smallestFree(key.windows, nowMs), smallestFree(this.#shared, nowMs)),
        cooldownMs,
      });
    });
  }

  #reserve(key: ApiKey, weight: number): KeyReservation {
    const entries: WindowEntry[] = [];
    reserveIn(key.windows, weight, entries);
    reserveIn(this.#shared, weight, entries);
    const reservation: KeyReservation = { key, entries, weight, beganMs: undefined };
    key.reserve(reservation);
    key.lastUsed = this.#used++;
    this.#best.touch(key);
    return reservation;
  }

  #heaviest(): number {
    return Math.max(...this.#keys.map((key) => this.#maxWeightOf(key)));
  }

  /** The heaviest call that a key can serve, within the windows of all keys. */
  #maxWeightOf({ maxWeight }: ApiKey): number {
    return Math.min(maxWeight, this.#sharedMaxWeight);
  }

  #hasWeightWindow(): boolean {
    return this.#shared.some(countsWeight) || this.#keys.some((key) => key.windows.some(countsWeight));
  }

  /** What other processes know of the keys. */
  sharedKeys(): readonly SharedKey[] {
    return this.#keys.map(({ key, rate }) => ({ key: hashOf(key), rate }));
  }

  /** A start that the server has granted, as a reservation; `undefined` if the gate has no such key. */
  takeShared(start: SharedStart, weight: number): KeyReservation | undefined {
    const key = this.#byHash.get(start.key);
    if (key === undefined) return undefined;
    const reservation: KeyReservation = { key, entries: [], weight, beganMs: undefined, shared: start };
    key.reserve(reservation);
    return reservation;
  }

  /** Another process has put a key out of use, or back. */
  onSharedKey(hash: string, why: CooldownReason | 'ready', ms: number): void {
    const key = this.#byHash.get(hash);
    if (key === undefined) return;
    const now = this.now();
    if (why === 'ready') {
      if (key.cooldownMs(now) > 0) key.restore();
      else this.#emitRestored(key);
    } else if (key.coolDownWithFleet(why, ms, now)) {
      if (why === 'cooldown') this.#emitCooldown(key, ms, undefined, false);
      else this.#emitQuarantined(key, why, ms);
      this.onCooldown();
    }
    this.onCapacity();
  }

  #succeeded(reservation: KeyReservation): void {
    reservation.key.succeeded(reservation);
    reservation.shared?.succeeded();
  }

  #quarantine(key: ApiKey, classification: Classification, nowMs: number): void {
    const reason = classification.class === 'unauthorized' ? 'quarantined' : 'exhausted';
    const cooldownMs = key.quarantine(reason, classification.retryAfterMs, nowMs);
    if (cooldownMs === undefined) return;
    this.shared?.coolDown(hashOf(key.key), reason, cooldownMs, key.inUse);
    this.#emitQuarantined(key, reason, cooldownMs);
  }

  #emitQuarantined(key: ApiKey, reason: 'quarantined' | 'exhausted', cooldownMs: number): void {
    if (!this.#hooks.hasListeners('key:quarantined')) return;
    const retryAfterMs = Number.isFinite(cooldownMs) ? { retryAfterMs: cooldownMs } : {};
    this.#hooks.emit('key:quarantined', { source: this.#source, key: key.label, reason, ...retryAfterMs });
  }

  #emitCooldown(
    key: ApiKey,
    retryAfterMs: number | undefined,
    status: number | undefined,
    isOwn = true,
  ): void {
    if (retryAfterMs === undefined) return;
    if (isOwn) this.shared?.coolDown(hashOf(key.key), 'cooldown', retryAfterMs, key.inUse);
    if (!this.#hooks.hasListeners('key:cooldown')) return;
    const known = status === undefined ? {} : { status };
    this.#hooks.emit('key:cooldown', { source: this.#source, key: key.label, retryAfterMs, ...known });
  }

  #emitRestored(key: ApiKey): void {
    this.onRestored();
    if (this.#hooks.hasListeners('key:restored'))
      this.#hooks.emit('key:restored', { source: this.#source, key: key.label });
  }
}

/** From this length on, the last four characters of a key do not give it away. */
const MIN_CHARS_FOR_SUFFIX = 16;

/** How events name a key: by its position among the gate's keys and, if it is long enough, by its last four characters. */
const labelOf = (key: string, index: number): string =>
  `#${index + 1}${key.length < MIN_CHARS_FOR_SUFFIX ? '' : `…${key.slice(-4)}`}`;

/** How a key is named outside of this process. Its module is loaded when it is first used: most processes never do. */
const hashOf = (key: string): string =>
  process.getBuiltinModule('node:crypto').createHash('sha256').update(key).digest('hex').slice(0, 32);

const countsWeight = ({ unit }: SlidingWindow): boolean => unit === 'weight';

// By index: each start calls these, mostly before V8 has compiled them, and an iterator costs more than the loop then.

/** Milliseconds until all of the windows have capacity. */
function longestWaitMs(
  windows: readonly SlidingWindow[],
  weight: number,
  nowMs: number,
  isCertain = false,
): number {
  let ms = 0;
  for (let i = 0; i < windows.length; i++)
    ms = Math.max(ms, (windows[i] as SlidingWindow).waitMs(weight, nowMs, isCertain));
  return ms;
}

function reserveIn(windows: readonly SlidingWindow[], weight: number, entries: WindowEntry[]): void {
  for (let i = 0; i < windows.length; i++) entries.push((windows[i] as SlidingWindow).reserve(weight));
}
