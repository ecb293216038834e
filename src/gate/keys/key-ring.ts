import type { LifecycleHooks } from '../../hooks/lifecycle-hooks.js';
import type { Classification } from '../classify.js';
import type { ReportedLimit } from '../retry-after.js';
import type { CooldownReason, SharedKey, SharedStart, SharedStarts } from '../shared-limits.js';
import { ApiKey, type CooldownSettings, type KeyReservation, type KeySpec } from './api-key.js';
import { BestKey, type NoCapacity } from './best-key.js';
import {
  longestWaitMs,
  maxWeightOf,
  type RateWindow,
  reserveIn,
  SlidingWindow,
  smallestFree,
  type WindowEntry,
  windowsOf,
} from './sliding-window.js';

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
  /** The starts that are shared with other processes. */
  shared: SharedStarts | undefined;
  readonly #byHash = new Map<string, ApiKey>();
  #sharedWindows: readonly SlidingWindow[];
  #sharedMaxWeight: number;
  #sharedRate: readonly RateWindow[];
  readonly #keys: readonly ApiKey[];
  readonly #best: BestKey;
  /** Starts so far, and keys: what was used last has the highest number. */
  #used: number;
  /** How often the rates, and with them the weight classes, were set. */
  rateChanges = 0;
  /** The heaviest call that some key can serve. */
  maxWeight = 0;
  /** Whether some window counts weight. */
  countsWeight = false;
  /** The clock of windows and cooldowns. */
  readonly now: () => number;
  /** Milliseconds for which nothing may start, whatever keys and windows allow. */
  heldMs: () => number = () => 0;
  /** Something changed that may let a start through earlier than was returned. */
  onCapacity: () => void = () => {};
  /** A key is in cooldown. */
  onCooldown: () => void = () => {};
  /** A key is back in use, or the rates have changed: what is known of cooldowns may no longer be so. */
  onRestored: () => void = () => {};

  constructor({ name, hooks, keys, sharedRate, cooldown, keyed, now, limits }: KeyRingOptions) {
    this.now = now;
    this.#source = name;
    this.#hooks = hooks;
    this.#keyed = keyed;
    const isShared = limits !== undefined;
    this.#sharedRate = sharedRate;
    this.#sharedWindows = isShared ? [] : sharedRate.map((window) => new SlidingWindow(window));
    this.#sharedMaxWeight = maxWeightOf(sharedRate);
    const onReady = (key: ApiKey): void => this.#emitRestored(key);
    this.#keys = keys.map((spec, i) => {
      const label = keyed ? labelOf(spec.key, i) : 'service';
      return new ApiKey(spec, label, i, cooldown, onReady, isShared);
    });
    this.#best = new BestKey(this.#keys);
    this.#used = this.#keys.length;
    this.#measure();
    if (isShared) for (const key of this.#keys) this.#byHash.set(hashOf(key.key), key);
  }

  /**
   * Replaces the windows of keys that have none of their own, or the shared ones. A waiting call that becomes too heavy for
   * them is sent back, and rejected, unless its weight was only estimated.
   */
  setRate(rate: readonly RateWindow[] | undefined, sharedRate: readonly RateWindow[] | undefined): void {
    if (rate !== undefined) for (const key of this.#keys) if (!key.hasOwnRate) key.setRate(rate);
    if (sharedRate !== undefined) {
      this.#sharedRate = sharedRate;
      if (this.shared === undefined) this.#sharedWindows = windowsOf(sharedRate, this.#sharedWindows);
      this.#sharedMaxWeight = maxWeightOf(sharedRate);
    }
    for (const key of this.#keys) this.#best.touch(key);
    this.#measure();
    this.shared?.setRates(this.sharedKeys(), this.#sharedRate);
    // A waiting call may be too heavy now for the key that would have been back in time.
    this.onRestored();
    this.onCooldown();
    this.onCapacity();
  }

  /** Reserves a start of this weight on the best key, or returns how long there is none. */
  take(weight: number, nowMs: number): KeyReservation | NoCapacity {
    // First: it may emit an event, whose listener may pause the gate or start a call.
    const first = this.#best.best(nowMs);
    const heldMs = this.heldMs();
    if (heldMs > 0) return { retryAfterMs: heldMs, reason: 'cooldown' };
    const sharedMs = this.#sharedWindows.length === 0 ? 0 : longestWaitMs(this.#sharedWindows, weight, nowMs);
    if (
      first !== undefined &&
      sharedMs === 0 &&
      longestWaitMs(first.windows, weight, nowMs) === 0 &&
      first.waitMs(nowMs) <= 0
    )
      return this.#reserve(first, weight);
    // It is too full for this weight: another may have capacity.
    const found = this.#best.search(weight, sharedMs, nowMs);
    return found instanceof ApiKey ? this.#reserve(found, weight) : found;
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
    if (!this.countsWeight) return;
    for (const entry of reservation.entries) entry.window.correct(entry, weight);
    this.#best.touch(reservation.key);
    this.onCapacity();
  }

  /** Takes the limits that the response to an attempt reports. */
  learn(reservation: KeyReservation, reported: readonly ReportedLimit[]): void {
    const { key } = reservation;
    key.learn(reservation, reported, this.now());
    this.countsWeight ||= key.windows.some(countsWeight);
    this.#best.touch(key);
    this.onCapacity();
  }

  /** Takes the outcome of an attempt; may be called more than once until the attempt ends. */
  report(reservation: KeyReservation, classification: Classification): void {
    const { key } = reservation;
    const wasReady = key.isReady;
    switch (classification.class) {
      case 'ok':
      case 'client-error':
        this.#succeeded(reservation);
        break;
      case 'fatal':
        // With a status the service has responded; without one it is a bug of the host, and says nothing.
        if (classification.status !== undefined) this.#succeeded(reservation);
        break;
      case 'retryable':
      case 'rate-limited':
        this.#failed(reservation, classification);
        break;
      case 'quota-exhausted':
      case 'unauthorized':
        if (this.#keyed) this.#quarantine(key, classification);
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
    if (!hasBegun || !key.isReady || this.countsWeight || shared !== undefined) this.onCapacity();
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
    return Math.max(longestWaitMs(this.#sharedWindows, weight, nowMs, true), Math.min(...keysMs));
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
          Math.min(smallestFree(key.windows, nowMs), smallestFree(this.#sharedWindows, nowMs)),
        cooldownMs,
      });
    });
  }

  #reserve(key: ApiKey, weight: number): KeyReservation {
    const entries: WindowEntry[] = [];
    reserveIn(key.windows, weight, entries);
    reserveIn(this.#sharedWindows, weight, entries);
    const reservation: KeyReservation = { key, entries, weight, beganMs: undefined };
    key.reserve(reservation);
    key.lastUsed = this.#used++;
    this.#best.touch(key);
    return reservation;
  }

  /** After a change of the windows. */
  #measure(): void {
    this.rateChanges++;
    this.maxWeight = Math.max(...this.#keys.map((key) => this.#maxWeightOf(key)));
    this.countsWeight =
      this.#sharedWindows.some(countsWeight) || this.#keys.some((key) => key.windows.some(countsWeight));
  }

  /** The heaviest call that a key can serve, within the windows of all keys. */
  #maxWeightOf({ maxWeight }: ApiKey): number {
    return Math.min(maxWeight, this.#sharedMaxWeight);
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
      if (why === 'cooldown') this.#emitCooldown(key, ms);
      else this.#emitQuarantined(key, why, ms);
      this.onCooldown();
    }
    this.onCapacity();
  }

  #succeeded(reservation: KeyReservation): void {
    reservation.key.succeeded(reservation);
    reservation.shared?.succeeded();
  }

  #failed(reservation: KeyReservation, said: Classification): void {
    const { key } = reservation;
    const { status, retryAfterMs } = said;
    const isOverload =
      said.class === 'rate-limited' || retryAfterMs !== undefined || OVERLOAD.includes(status);
    const cooldownMs = isOverload
      ? key.throttled(reservation, retryAfterMs, this.now())
      : key.failed(reservation, this.now());
    if (cooldownMs === undefined) return;
    this.shared?.coolDown(hashOf(key.key), 'cooldown', cooldownMs, key.inUse);
    this.#emitCooldown(key, cooldownMs, status);
  }

  #quarantine(key: ApiKey, said: Classification): void {
    const reason = said.class === 'unauthorized' ? 'quarantined' : 'exhausted';
    const cooldownMs = key.quarantine(reason, said.retryAfterMs, this.now());
    if (cooldownMs === undefined) return;
    this.shared?.coolDown(hashOf(key.key), reason, cooldownMs, key.inUse);
    this.#emitQuarantined(key, reason, cooldownMs);
  }

  #emitQuarantined(key: ApiKey, reason: 'quarantined' | 'exhausted', cooldownMs: number): void {
    if (!this.#hooks.hasListeners('key:quarantined')) return;
    const retryAfterMs = Number.isFinite(cooldownMs) ? { retryAfterMs: cooldownMs } : {};
    this.#hooks.emit('key:quarantined', { source: this.#source, key: key.label, reason, ...retryAfterMs });
  }

  #emitCooldown(key: ApiKey, retryAfterMs: number, status?: number): void {
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
