import type { Charge, RateWindow } from './rate-window.js';
import { heaviest, WindowLedger } from './rate-window.js';

/**
 * What one key can do at the moment.
 *
 *     ready ──429, a row of failures──► resting ──its time is up──► easing ──enough went well──► ready
 *       └──401, 402, 403───────────────►┘  ▲                          │
 *                                          └──────refused again───────┘
 *
 * `resting`: nothing starts. `easing`: one start goes first as a probe; each that goes well lets one more be on trial
 * at once, so they double, until as many are on trial as were under way when the key was sent to rest.
 */
type KeyState =
  | { readonly is: 'ready' }
  | { readonly is: 'resting'; readonly why: RestReason; untilMs: number; readonly crowd: number }
  | { readonly is: 'easing'; allowed: number; readonly crowd: number; readonly onTrial: Set<KeyUse> };

/** Why a key rests. */
export type RestReason = 'throttled' | 'spent' | 'dead';

/** One attempt's use of a key, from its choice to its end. */
export interface KeyUse {
  readonly key: GateKey;
  readonly charges: readonly (readonly [WindowLedger, Charge])[];
  /** When the work began; until then it is only reserved. */
  beganMs: number | undefined;
}

/** How long a key rests where the service does not say. */
export interface Rests {
  readonly throttledMs: number;
  readonly maxMs: number;
  readonly spentMs: number;
  readonly deadMs: number;
}

/**
 * A service refuses within this time. A start on trial that has run so long counts as gone well: an answer may take an
 * LLM half an hour, and the others must not wait for it.
 */
const REFUSES_WITHIN_MS = 1_000;
/** So many failures in a row, and the service is taken to be down. See `failed` for what a row is. */
const FAILED_ROUNDS = 5;

/**
 * One key: its windows, its rest, and its way back.
 *
 * Invariants:
 * - While it rests nothing starts; after a rest exactly one start goes first.
 * - A use is in use from `take` to `end`, once.
 * - What was begun before a rest can lengthen it, but neither ends the trial after it nor counts against it: it tells
 *   of the time before.
 * - It has no timer. Its state follows from the clock it is given whenever it is asked.
 */
export class GateKey {
  readonly key: string;
  readonly label: string;
  readonly windows: readonly WindowLedger[];
  /** A heavier call is none for this key. */
  readonly maxWeight: number;
  readonly #rests: Rests;
  readonly #onReady: (key: GateKey) => void;
  #state: KeyState = { is: 'ready' };
  /** In the order in which they were taken. */
  readonly #uses = new Set<KeyUse>();
  /** When it was last sent to rest. */
  #restedAtMs = Number.NEGATIVE_INFINITY;
  /** Rests in a row whose length the service did not say. */
  #unsaid = 0;
  #failedRounds = 0;
  #failedAtMs = Number.NEGATIVE_INFINITY;

  constructor(
    key: string,
    label: string,
    rate: readonly RateWindow[],
    rests: Rests,
    onReady: (key: GateKey) => void,
  ) {
    this.key = key;
    this.label = label;
    this.windows = rate.map((window) => new WindowLedger(window));
    this.maxWeight = heaviest(rate);
    this.#rests = rests;
    this.#onReady = onReady;
  }

  get inUse(): number {
    return this.#uses.size;
  }

  /** For the figures. */
  get standing(): 'ready' | 'easing' | RestReason {
    return this.#state.is === 'resting' ? this.#state.why : this.#state.is;
  }

  /** Milliseconds until its rest is over; 0 when it does not rest. */
  restMs(nowMs: number): number {
    this.#look(nowMs);
    return this.#state.is === 'resting' ? this.#state.untilMs - nowMs : 0;
  }

  /** Milliseconds until its state lets another start; its windows are asked apart. */
  waitMs(nowMs: number): number {
    this.#look(nowMs);
    const state = this.#state;
    if (state.is === 'ready') return 0;
    if (state.is === 'resting') return state.untilMs - nowMs;
    if (state.onTrial.size < state.allowed) return 0;
    let firstMs = nowMs;
    for (const use of state.onTrial) firstMs = Math.min(firstMs, use.beganMs ?? nowMs);
    return firstMs + REFUSES_WITHIN_MS - nowMs;
  }

  take(use: KeyUse): void {
    this.#uses.add(use);
    if (this.#state.is === 'easing') this.#state.onTrial.add(use);
  }

  /** The use is over, or never began. What was said of it has been told before. */
  end(use: KeyUse): void {
    this.#uses.delete(use);
    if (this.#state.is === 'easing') this.#state.onTrial.delete(use);
  }

  /** The service answered: it serves this key. */
  wentWell(use: KeyUse): void {
    this.#failedRounds = 0;
    if (this.#state.is === 'easing') this.#pass(this.#state, use);
  }

  /** Too many calls. Gives the milliseconds that the key now rests, or `undefined` where that is nothing new. */
  throttle(use: KeyUse, saidMs: number | undefined, nowMs: number): number | undefined {
    this.#look(nowMs);
    const state = this.#state;
    if (state.is === 'resting') {
      if (state.why !== 'throttled' || saidMs === undefined || nowMs + saidMs <= state.untilMs)
        return undefined;
      state.untilMs = nowMs + saidMs;
      return saidMs;
    }
    if (saidMs === undefined && (use.beganMs ?? nowMs) <= this.#restedAtMs) return undefined;
    this.#unsaid = saidMs === undefined ? this.#unsaid + 1 : 0;
    const restMs = saidMs ?? Math.min(this.#rests.maxMs, this.#rests.throttledMs * 2 ** (this.#unsaid - 1));
    this.#rest('throttled', restMs, nowMs);
    return restMs;
  }

  /**
   * A failure that may be anybody's: no answer, or an answer that names no time. Of a probe it means that the rest was
   * too short. Else it counts where it began after the last one that counts was known, and nothing that began before it
   * is still under way: a server that is full refuses some at once and is busy with the others, and is not down. Gives
   * the milliseconds that the key now rests, if it was one too many.
   */
  failed(use: KeyUse, nowMs: number): number | undefined {
    this.#look(nowMs);
    const state = this.#state;
    if (state.is === 'resting') return undefined;
    if (state.is === 'easing' && state.allowed === 1 && state.onTrial.has(use)) {
      return this.throttle(use, undefined, nowMs);
    }
    const [oldest] = this.#uses;
    if (use !== oldest || (use.beganMs ?? nowMs) <= this.#failedAtMs) return undefined;
    this.#failedAtMs = nowMs;
    this.#failedRounds++;
    return this.#failedRounds < FAILED_ROUNDS ? undefined : this.throttle(use, undefined, nowMs);
  }

  /** The account is empty, or the key refused. Gives the milliseconds that it now rests, or `undefined` if it did before. */
  quarantine(why: 'spent' | 'dead', saidMs: number | undefined, nowMs: number): number | undefined {
    this.#look(nowMs);
    const state = this.#state;
    if (state.is === 'resting' && (state.why === why || state.why === 'dead')) return undefined;
    const restMs = saidMs ?? (why === 'dead' ? this.#rests.deadMs : this.#rests.spentMs);
    this.#rest(why, restMs, nowMs);
    return restMs;
  }

  /** Ends a rest or a trial by hand. */
  restore(): void {
    if (this.#state.is !== 'ready') this.#becomeReady();
  }

  #rest(why: RestReason, restMs: number, nowMs: number): void {
    const before = this.#state.is === 'ready' ? 1 : this.#state.crowd;
    this.#state = { is: 'resting', why, untilMs: nowMs + restMs, crowd: Math.max(before, this.#uses.size) };
    this.#restedAtMs = nowMs;
    this.#failedRounds = 0;
  }

  #look(nowMs: number): void {
    if (this.#state.is === 'resting' && this.#state.untilMs <= nowMs) {
      this.#state = { is: 'easing', allowed: 1, crowd: this.#state.crowd, onTrial: new Set() };
    }
    const state = this.#state;
    if (state.is !== 'easing') return;
    for (const use of state.onTrial) {
      if (use.beganMs !== undefined && use.beganMs + REFUSES_WITHIN_MS <= nowMs) this.#pass(state, use);
    }
  }

  #pass(state: KeyState & { is: 'easing' }, use: KeyUse): void {
    if (!state.onTrial.delete(use)) return;
    state.allowed++;
    // The probe went well: the rest was long enough.
    this.#unsaid = 0;
    if (state.allowed > state.crowd && this.#state === state) this.#becomeReady();
  }

  #becomeReady(): void {
    this.#state = { is: 'ready' };
    this.#unsaid = 0;
    this.#failedRounds = 0;
    this.#onReady(this);
  }
}
