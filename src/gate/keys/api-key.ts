import type { ReportedLimit } from '../retry-after.js';
import type { CooldownReason, SharedStart } from '../shared-limits.js';
import { LearnedWindows } from './learned-windows.js';
import {
  maxWeightOf,
  type RateWindow,
  SlidingWindow,
  type WindowEntry,
  windowsOf,
} from './sliding-window.js';

/**
 * The circuit breaker of one key.
 *
 *     ready ──429, repeated failures──► cooldown ──its time is over──► half-open ──enough succeeded──► ready
 *       └──401, 402, 403───────────────►┘  ▲                              │
 *                                          └────────rejected again────────┘
 *
 * `cooldown`: nothing starts. `half-open`: one start goes first as a probe; each success allows one more on trial at the
 * same time, so they double, until as many are on trial as were in flight when the cooldown began.
 */
type KeyState =
  | { readonly is: 'ready' }
  | { readonly is: 'cooldown'; readonly why: CooldownReason; untilMs: number; readonly inFlight: number }
  | {
      readonly is: 'half-open';
      allowed: number;
      readonly inFlight: number;
      readonly onTrial: Set<KeyReservation>;
    };

/** One attempt's reservation of a key, from the choice of the key to the end of the attempt. */
export interface KeyReservation {
  readonly key: ApiKey;
  /** What it takes of each window. */
  readonly entries: readonly WindowEntry[];
  /** What it counts in windows of that unit. */
  weight: number;
  /** When the attempt began; until then its capacity is only reserved. */
  beganMs: number | undefined;
  /** The start that other processes know of, in place of `entries`. */
  readonly shared?: SharedStart | undefined;
}

/** A key and its own windows. */
export interface KeySpec {
  readonly key: string;
  readonly rate: readonly RateWindow[];
  /** Whether `rate` is that of this key alone, and not that of the gate. */
  readonly hasOwnRate: boolean;
}

/** How long a cooldown lasts where the service names no time. */
export interface CooldownSettings {
  readonly baseMs: number;
  readonly maxMs: number;
  readonly exhaustedMs: number;
  readonly quarantinedMs: number;
}

/**
 * A service rejects a call within this time. A start on trial that has run for longer counts as a success: a response of
 * an LLM may take half an hour, and the other calls must not wait for it.
 */
const REJECTS_WITHIN_MS = 1_000;
/** After so many consecutive rounds of failures, the service is taken to be down. See `failed` for what a round is. */
const FAILED_ROUNDS = 5;
/** Two reports of one cooldown differ by less. */
const SAME_MS = 50;

/**
 * One key: its windows, and its circuit breaker.
 *
 * Invariants:
 * - During a cooldown nothing starts; after it exactly one start goes first.
 * - A reservation is in use from `reserve` to `end`, once.
 * - An attempt that began before a cooldown can extend it, but neither ends the trial after it nor counts against it.
 * - It has no timer. Its state follows from the time that each call passes.
 * - Where it is shared, its windows and the trial after a cooldown are those of the server, which no call passes.
 */
export class ApiKey {
  readonly key: string;
  readonly label: string;
  /** Its position among the gate's keys. */
  readonly index: number;
  /** A number that grows from one start of the gate to the next. */
  lastUsed: number;
  /** Those that were declared, and those that its service reports. */
  windows: readonly SlidingWindow[];
  rate: readonly RateWindow[];
  #declared: readonly SlidingWindow[];
  readonly #learned = new LearnedWindows();
  readonly hasOwnRate: boolean;
  /** It cannot serve a heavier call. */
  maxWeight: number;
  readonly #isShared: boolean;
  readonly #cooldown: CooldownSettings;
  readonly #onReady: (key: ApiKey) => void;
  #state: KeyState = { is: 'ready' };
  /** In the order in which they were made. */
  readonly #reservations = new Set<KeyReservation>();
  /** When its last cooldown began. */
  #cooledDownAtMs = Number.NEGATIVE_INFINITY;
  /** Consecutive cooldowns for which the service named no time. */
  #guessed = 0;
  #failedRounds = 0;
  #failedAtMs = Number.NEGATIVE_INFINITY;

  constructor(
    { key, rate, hasOwnRate }: KeySpec,
    label: string,
    index: number,
    cooldown: CooldownSettings,
    onReady: (key: ApiKey) => void,
    isShared: boolean,
  ) {
    this.key = key;
    this.label = label;
    this.index = index;
    this.lastUsed = index;
    this.hasOwnRate = hasOwnRate;
    this.#isShared = isShared;
    this.rate = rate;
    this.#declared = isShared ? [] : rate.map((window) => new SlidingWindow(window));
    this.windows = this.#declared;
    this.maxWeight = maxWeightOf(rate);
    this.#cooldown = cooldown;
    this.#onReady = onReady;
  }

  setRate(rate: readonly RateWindow[]): void {
    this.rate = rate;
    if (!this.#isShared) this.#declared = windowsOf(rate, this.#declared);
    this.windows = [...this.#declared, ...this.#learned.all];
    this.maxWeight = maxWeightOf(rate);
  }

  /** Takes the limits that the response to a start reports. */
  learn({ entries }: KeyReservation, reported: readonly ReportedLimit[], nowMs: number): void {
    if (this.#learned.learn(reported, entries, nowMs))
      this.windows = [...this.#declared, ...this.#learned.all];
  }

  get inUse(): number {
    return this.#reservations.size;
  }

  get state(): 'ready' | 'half-open' | CooldownReason {
    return this.#state.is === 'cooldown' ? this.#state.why : this.#state.is;
  }

  /** Whether only its windows bound it. No time ends that. */
  get isReady(): boolean {
    return this.#state.is === 'ready';
  }

  /** Milliseconds until its cooldown ends; 0 outside a cooldown. */
  cooldownMs(nowMs: number): number {
    this.#update(nowMs);
    return this.#state.is === 'cooldown' ? this.#state.untilMs - nowMs : 0;
  }

  /** Milliseconds until its state allows another start; its windows are not included. */
  waitMs(nowMs: number): number {
    this.#update(nowMs);
    const state = this.#state;
    if (state.is === 'ready') return 0;
    if (state.is === 'cooldown') return state.untilMs - nowMs;
    if (state.onTrial.size < state.allowed) return 0;
    let firstMs = nowMs;
    for (const { beganMs } of state.onTrial) firstMs = Math.min(firstMs, beganMs ?? nowMs);
    return firstMs + REJECTS_WITHIN_MS - nowMs;
  }

  /** When its state or the free part of its windows changes by itself. During a trial, that is at any time. */
  get changesAtMs(): number {
    const state = this.#state;
    if (state.is === 'half-open') return Number.NEGATIVE_INFINITY;
    let atMs = state.is === 'cooldown' ? state.untilMs : Number.POSITIVE_INFINITY;
    for (const window of this.windows) atMs = Math.min(atMs, window.changesAtMs);
    return atMs;
  }

  reserve(reservation: KeyReservation): void {
    this.#reservations.add(reservation);
    if (this.#state.is === 'half-open') this.#state.onTrial.add(reservation);
  }

  /** The attempt is over, or never began. Its outcome was reported before. */
  end(reservation: KeyReservation): void {
    this.#reservations.delete(reservation);
    if (this.#state.is === 'half-open') this.#state.onTrial.delete(reservation);
  }

  /** The service accepted the key. */
  succeeded(reservation: KeyReservation): void {
    this.#failedRounds = 0;
    if (this.#state.is === 'half-open') this.#pass(this.#state, reservation);
  }

  /**
   * The service rejected the call for its load, for `saidMs` if it named a time. Returns the milliseconds of the cooldown
   * that this begins or extends, or `undefined` if it changes nothing.
   */
  throttled(reservation: KeyReservation, saidMs: number | undefined, nowMs: number): number | undefined {
    this.#update(nowMs);
    const state = this.#state;
    if (state.is === 'cooldown') {
      if (state.why !== 'cooldown' || saidMs === undefined || nowMs + saidMs <= state.untilMs)
        return undefined;
      state.untilMs = nowMs + saidMs;
      return saidMs;
    }
    if (saidMs === undefined && (reservation.beganMs ?? nowMs) <= this.#cooledDownAtMs) return undefined;
    this.#guessed = saidMs === undefined ? this.#guessed + 1 : 0;
    const { baseMs, maxMs } = this.#cooldown;
    const cooldownMs = saidMs ?? Math.min(maxMs, baseMs * 2 ** (this.#guessed - 1));
    this.#coolDown('cooldown', cooldownMs, nowMs);
    return cooldownMs;
  }

  /**
   * A failure without a cause that the service named: no response, or a 5xx. If the probe fails, the cooldown was too
   * short. Otherwise a failure counts as a round if it began after the last round was known, and nothing that began before
   * it is in flight: a server at its limit rejects some calls at once while it works on others, and is not down. Returns
   * the milliseconds of the cooldown that this begins, if it is one round too many.
   */
  failed(reservation: KeyReservation, nowMs: number): number | undefined {
    this.#update(nowMs);
    const state = this.#state;
    if (state.is === 'cooldown') return undefined;
    const isProbe = state.is === 'half-open' && state.allowed === 1 && state.onTrial.has(reservation);
    if (isProbe || reservation.shared?.isOnTrial) {
      return this.throttled(reservation, undefined, nowMs);
    }
    const [oldest] = this.#reservations;
    if (reservation !== oldest || (reservation.beganMs ?? nowMs) <= this.#failedAtMs) return undefined;
    this.#failedAtMs = nowMs;
    this.#failedRounds++;
    return this.#failedRounds < FAILED_ROUNDS ? undefined : this.throttled(reservation, undefined, nowMs);
  }

  /**
   * The quota is exhausted, or the service refused the key. Returns the milliseconds for which it is out of use, or
   * `undefined` if it was already.
   */
  quarantine(
    why: 'exhausted' | 'quarantined',
    saidMs: number | undefined,
    nowMs: number,
  ): number | undefined {
    this.#update(nowMs);
    const state = this.#state;
    if (state.is === 'cooldown' && (state.why === why || state.why === 'quarantined')) return undefined;
    const { exhaustedMs, quarantinedMs } = this.#cooldown;
    const cooldownMs = saidMs ?? (why === 'quarantined' ? quarantinedMs : exhaustedMs);
    this.#coolDown(why, cooldownMs, nowMs);
    return cooldownMs;
  }

  /** Another process has put it out of use. Returns whether that changes anything. */
  coolDownWithFleet(why: CooldownReason, cooldownMs: number, nowMs: number): boolean {
    this.#update(nowMs);
    const state = this.#state;
    if (state.is === 'cooldown' && state.why === why && state.untilMs >= nowMs + cooldownMs - SAME_MS)
      return false;
    this.#coolDown(why, cooldownMs, nowMs);
    return true;
  }

  /** Ends a cooldown or a trial by hand. */
  restore(): void {
    if (this.#state.is !== 'ready') this.#becomeReady();
  }

  #coolDown(why: CooldownReason, cooldownMs: number, nowMs: number): void {
    const before = this.#state.is === 'ready' ? 1 : this.#state.inFlight;
    const inFlight = Math.max(before, this.#reservations.size);
    this.#state = { is: 'cooldown', why, untilMs: nowMs + cooldownMs, inFlight };
    this.#cooledDownAtMs = nowMs;
    this.#failedRounds = 0;
  }

  #update(nowMs: number): void {
    if (this.#state.is === 'ready') return;
    if (this.#state.is === 'cooldown' && this.#state.untilMs <= nowMs) {
      if (this.#isShared) {
        this.#state = { is: 'ready' };
        return;
      }
      this.#state = { is: 'half-open', allowed: 1, inFlight: this.#state.inFlight, onTrial: new Set() };
    }
    const state = this.#state;
    if (state.is !== 'half-open') return;
    for (const reservation of state.onTrial) {
      const { beganMs } = reservation;
      if (beganMs !== undefined && beganMs + REJECTS_WITHIN_MS <= nowMs) this.#pass(state, reservation);
    }
  }

  #pass(state: KeyState & { is: 'half-open' }, reservation: KeyReservation): void {
    if (!state.onTrial.delete(reservation)) return;
    state.allowed++;
    // The probe succeeded: the cooldown was long enough.
    this.#guessed = 0;
    if (state.allowed > state.inFlight && this.#state === state) this.#becomeReady();
  }

  #becomeReady(): void {
    this.#state = { is: 'ready' };
    this.#guessed = 0;
    this.#failedRounds = 0;
    this.#onReady(this);
  }
}
