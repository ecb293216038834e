import type { LifecycleHooks } from '../hooks/lifecycle-hooks.js';
import { GateKey, type KeyUse, type RestReason, type Rests } from './gate-key.js';
import type { KeyMask } from './key-mask.js';
import type { Verdict } from './outcome.js';
import { type RateWindow, WindowLedger } from './rate-window.js';

/** One key and what holds for it. */
export interface KeySpec {
  readonly key: string;
  readonly rate: readonly RateWindow[];
}

export interface KeyRingOptions {
  readonly source: string;
  readonly hooks: LifecycleHooks;
  readonly mask: KeyMask;
  /** One with an empty key where the gate has none: its windows and its rest are the service's own. */
  readonly keys: readonly KeySpec[];
  readonly sharedRate: readonly RateWindow[];
  readonly rests: Rests;
  /** Whether keys can be told apart, and so be taken out of use. */
  readonly keyed: boolean;
}

/** Why nothing can start now, and for how long; `Infinity` if nothing will change that. */
export interface NoRoom {
  readonly forMs: number;
  readonly reason: 'rate' | 'cooldown';
}

/** The statuses by which a service says that it has too much to do, with or without a time. */
const BUSY: readonly unknown[] = [429, 503, 529];

/** What a key looks like from outside. */
export interface KeyStats {
  /** Masked. */
  readonly key: string;
  /** `throttled`, `spent` and `dead` rest; `easing` comes back from a rest. */
  readonly state: 'ready' | 'easing' | RestReason;
  /** Attempts that use it now. */
  readonly inUse: number;
  /** What its fullest window has left, from 0 to 1. */
  readonly free: number;
  /** Milliseconds until its rest is over; `Infinity` if it does not end by itself. */
  readonly restMs: number;
}

/**
 * The keys of a gate, and the windows that they share.
 *
 * Invariants:
 * - A start has room in every window of its key and in every shared one, or takes nothing of any.
 * - Of the keys that can serve, it gets the one with the most left; of equals the least used at the moment, and of
 *   those the one whose turn was longest ago.
 * - A call waits only if no key can serve it.
 */
export class KeyRing {
  readonly #source: string;
  readonly #hooks: LifecycleHooks;
  readonly #keyed: boolean;
  readonly #shared: readonly WindowLedger[];
  /** In the order of their last turn, the longest ago first. */
  readonly #keys: GateKey[];
  readonly #all: readonly GateKey[];
  /** Something changed that may let a start through sooner than was said. */
  onRoom: () => void = () => {};
  /** All keys rest, or all that could take some call. */
  onRest: () => void = () => {};

  constructor({ source, hooks, mask, keys, sharedRate, rests, keyed }: KeyRingOptions) {
    this.#source = source;
    this.#hooks = hooks;
    this.#keyed = keyed;
    this.#shared = sharedRate.map((window) => new WindowLedger(window));
    const onReady = (key: GateKey): void => this.#tellRestored(key);
    this.#all = keys.map(({ key, rate }) => new GateKey(key, mask.labelOf(key), rate, rests, onReady));
    this.#keys = [...this.#all];
  }

  /** Takes a start of this weight from the best key, or says how long there is none. */
  take(weight: number, nowMs: number): KeyUse | NoRoom {
    const sharedMs = longest(this.#shared, weight, nowMs);
    let best: GateKey | undefined;
    let bestFree = -1;
    let none: NoRoom = { forMs: Number.POSITIVE_INFINITY, reason: 'cooldown' };
    for (const key of this.#keys) {
      const rateMs = Math.max(sharedMs, longest(key.windows, weight, nowMs));
      const stateMs = key.waitMs(nowMs);
      const forMs = Math.max(rateMs, stateMs);
      if (forMs > 0) {
        if (forMs < none.forMs) none = { forMs, reason: stateMs > rateMs ? 'cooldown' : 'rate' };
        continue;
      }
      const free = least(key.windows, nowMs);
      if (free > bestFree || (free === bestFree && key.inUse < (best as GateKey).inUse)) {
        best = key;
        bestFree = free;
      }
    }
    return best === undefined ? none : this.#use(best, weight);
  }

  /** The work begins. */
  begin(use: KeyUse, nowMs: number): void {
    use.beganMs = nowMs;
    for (const [ledger, charge] of use.charges) ledger.begin(charge, nowMs);
  }

  /** Corrects the weight that was estimated for a start. */
  settle(use: KeyUse, weight: number): void {
    for (const [ledger, charge] of use.charges) ledger.settle(charge, weight);
    this.onRoom();
  }

  /** Learns what became of a use; may be told more than once, as long as the use has not ended. */
  judge(use: KeyUse, verdict: Verdict, nowMs: number): void {
    const { key } = use;
    const { status, retryAfterMs } = verdict;
    switch (verdict.class) {
      case 'ok':
      case 'target':
        key.wentWell(use);
        break;
      case 'stop':
        // With a status the service has answered; without one it is the host's own bug, and says nothing.
        if (status !== undefined) key.wentWell(use);
        break;
      case 'wait':
        this.#tellRest(
          key,
          retryAfterMs === undefined && !BUSY.includes(status)
            ? key.failed(use, nowMs)
            : key.throttle(use, retryAfterMs, nowMs),
          status,
        );
        break;
      case 'other-key':
        this.#tellRest(key, key.throttle(use, retryAfterMs, nowMs), status);
        break;
      case 'key-spent':
      case 'key-dead':
        if (this.#keyed) this.#quarantine(key, verdict, nowMs);
        else key.wentWell(use);
        break;
    }
    if (key.restMs(nowMs) > 0) this.onRest();
    this.onRoom();
  }

  /** The use is over. One that never began gives back what it had reserved. */
  end(use: KeyUse): void {
    for (const [ledger, charge] of use.charges) {
      if (use.beganMs === undefined) ledger.cancel(charge);
      else ledger.finish(charge);
    }
    use.key.end(use);
    this.onRoom();
  }

  /**
   * Milliseconds until the first key that could take such a weight is out of its rest; 0 when one is, `Infinity` when none
   * will be.
   */
  opensInMs(nowMs: number, weight = 0): number {
    let soonest = Number.POSITIVE_INFINITY;
    for (const key of this.#keys) if (weight <= key.maxWeight) soonest = Math.min(soonest, key.restMs(nowMs));
    return soonest;
  }

  /** Milliseconds for which it is certain that such a call cannot start. Probes, corrections and ends may change the rest. */
  surelyClosedMs(weight: number, nowMs: number): number {
    const keysMs = this.#keys.map((key) =>
      Math.max(key.restMs(nowMs), longest(key.windows, weight, nowMs, true)),
    );
    return Math.max(longest(this.#shared, weight, nowMs, true), Math.min(...keysMs));
  }

  /** Puts a key back to use; whether there is such a key. */
  restore(key: string): boolean {
    const found = this.#keys.find((candidate) => candidate.key === key);
    found?.restore();
    this.onRoom();
    return found !== undefined;
  }

  stats(nowMs: number): readonly KeyStats[] {
    return this.#all.map((key) => {
      const restMs = key.restMs(nowMs);
      return Object.freeze({
        key: key.label,
        state: key.standing,
        inUse: key.inUse,
        free: Math.min(least(key.windows, nowMs), least(this.#shared, nowMs)),
        restMs,
      });
    });
  }

  #use(key: GateKey, weight: number): KeyUse {
    const charges = [...key.windows, ...this.#shared].map(
      (ledger) => [ledger, ledger.reserve(weight)] as const,
    );
    const use: KeyUse = { key, charges, beganMs: undefined };
    key.take(use);
    this.#keys.push(...this.#keys.splice(this.#keys.indexOf(key), 1));
    return use;
  }

  #quarantine(key: GateKey, verdict: Verdict, nowMs: number): void {
    const reason = verdict.class === 'key-dead' ? 'dead' : 'spent';
    const restMs = key.quarantine(reason, verdict.retryAfterMs, nowMs);
    if (restMs === undefined || !this.#hooks.hears('key:quarantined')) return;
    const forMs = Number.isFinite(restMs) ? { forMs: restMs } : {};
    this.#hooks.emit('key:quarantined', { source: this.#source, key: key.label, reason, ...forMs });
  }

  #tellRest(key: GateKey, forMs: number | undefined, status: number | undefined): void {
    if (forMs === undefined || !this.#hooks.hears('key:cooledDown')) return;
    const known = status === undefined ? {} : { status };
    this.#hooks.emit('key:cooledDown', { source: this.#source, key: key.label, forMs, ...known });
  }

  #tellRestored(key: GateKey): void {
    if (this.#hooks.hears('key:restored'))
      this.#hooks.emit('key:restored', { source: this.#source, key: key.label });
  }
}

/** How long the last of the windows takes to have room. */
function longest(windows: readonly WindowLedger[], weight: number, nowMs: number, isCertain = false): number {
  let ms = 0;
  for (const window of windows) ms = Math.max(ms, window.waitFor(weight, nowMs, isCertain));
  return ms;
}

/** What the fullest of the windows has left. */
function least(windows: readonly WindowLedger[], nowMs: number): number {
  let free = 1;
  for (const window of windows) free = Math.min(free, window.free(nowMs));
  return free;
}
