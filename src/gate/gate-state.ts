import { SILENT_HOOKS } from '../hooks/lifecycle-hooks.js';
import { ignoreRejection } from '../internal/abort.js';
import { afterThisTurn, PER_TURN } from '../internal/clock.js';
import { enableRedaction, registerKeys } from '../internal/redaction.js';
import { ConcurrencyLimiter } from '../limiter/concurrency-limiter.js';
import type { FleetStats, LimiterStats } from '../limiter/limiter.js';
import type { CallBounds, GateOutcome } from './call-context.js';
import type { FailureSummary } from './events.js';
import { CooldownQueue } from './keys/cooldown-queue.js';
import { KeyRing, type KeyStats } from './keys/key-ring.js';
import { SharedStartQueue } from './keys/shared-start-queue.js';
import { StartQueue, type Starts } from './keys/start-queue.js';
import type { GateSettings } from './options.js';
import { type GateLimiter, LayeredLimiter, type SharedGate } from './shared-limits.js';

/** Milliseconds for which host code may continue after its signal aborted. */
export const GRACE_MS = 5_000;

/** What a call is taken to weigh until one has reported its usage: a short prompt with its response. */
const FIRST_ESTIMATE = 500;
/** The share of the last call in the average. */
const USAGE_SMOOTHING = 0.2;

/** A cooldown that becomes longer by less than this changes no decision. */
const MIN_EXTENSION_MS = 5;

/** How many waiting calls are checked in one turn of the event loop, where a check changes nothing. */
const CHECKS_PER_TURN = 500;

/** Whether it can be what a call weighs. */
export const isWeight = (value: unknown): value is number =>
  typeof value === 'number' && Number.isFinite(value) && value >= 0;

/** Counts of a gate, at one moment. */
export interface GateStats {
  readonly name: string;
  readonly closed: boolean;
  /** Whether a `pause` holds back its attempts; never once it is closed. */
  readonly paused: boolean;
  /** Calls so far, including those answered by the cache. */
  readonly calls: number;
  /** Calls that have ended, by outcome. */
  readonly finished: Readonly<Partial<Record<GateOutcome, number>>>;
  /** Attempts so far. */
  readonly attempts: number;
  /** Attempts so far that were not the first of their call. */
  readonly retries: number;
  /** Attempts in progress. */
  readonly running: number;
  /** Calls that hold a permit and wait for a key with capacity. */
  readonly queuedForStart: number;
  /** Calls in a backoff, or waiting for the end of a cooldown of all keys; they hold nothing. */
  readonly backingOff: number;
  /** The limiter of the attempts, with its queue; `undefined` if nothing limits them. */
  readonly limiter: LimiterStats | undefined;
  /** Of the starts of all processes that share its `limits`; absent if it shares none. */
  readonly fleet?: FleetStats;
  /** Retries left in the budget; `Infinity` without a budget. */
  readonly retriesLeft: number;
  /** Milliseconds until the first key is out of its cooldown; 0 if one is, `Infinity` if none will be. */
  readonly retryAfterMs: number;
  /** Each key by its label; one labelled `service` if the gate has no keys. */
  readonly keys: readonly KeyStats[];
  readonly cache: {
    /** Cached results. */
    readonly size: number;
    /** In-flight calls that other callers can join. */
    readonly inFlight: number;
    /** Calls answered from the cache. */
    readonly hits: number;
    /** Calls that joined an in-flight call. */
    readonly shared: number;
    readonly misses: number;
  };
}

/** A call that has not ended. */
export interface OpenCall {
  readonly bounds: CallBounds;
  /** All keys went into cooldown: ends the call if it waits and cannot meet its deadline. Returns whether it did. */
  recheck(): boolean;
}

/** What all calls of one gate share. */
export class GateState {
  readonly settings: GateSettings;
  /** The limiter that closes with the gate. */
  readonly ownLimiter: ConcurrencyLimiter | undefined;
  /** Detaches the host's adaptive limit. */
  readonly #detach: (() => void) | undefined;
  readonly ring: KeyRing;
  readonly cooldownQueue: CooldownQueue;
  readonly startQueue: Starts;
  /** What is shared with other processes. */
  readonly shared: SharedGate | undefined;
  /** A limiter of which no more is known than the interface. */
  readonly foreignLimiter: GateLimiter | undefined;
  /** All that have not ended, in the order in which they began. */
  readonly open = new Set<OpenCall>();
  /** Calls that wait for a permit or a start. While there is none, the next call starts without a queue. */
  queued = 0;
  /** The last failure of the service, for calls that are rejected because of it. */
  lastFailure: FailureSummary | undefined;
  attempts = 0;
  retries = 0;
  /** Attempts in progress. */
  running = 0;
  /** Attempts that hold a permit and a key, including those that were given up and have not settled. */
  held = 0;
  backingOff = 0;
  isPaused = false;
  /** Whether `budget:unmetered` has been emitted. */
  emittedUnmetered = false;
  /** The cooldowns for which the waiting calls were checked. */
  #checkedUntilMs: ReadonlyMap<number, number> = new Map();
  /** The calls that are still to be checked. */
  #unchecked: Iterator<OpenCall> | undefined;
  /** Whether a cooldown became longer meanwhile. */
  #checksAgain = false;
  #turns = 0;
  /** The average weight of the last calls, by what `usage` read from their results. */
  #averageUsage: number | undefined;
  /** Called when no attempt holds anything. */
  #onIdle: (() => void) | undefined;

  constructor(settings: GateSettings) {
    const { name, hooks, maxConcurrent, adaptive, fairness, limits, keyed, keys, sharedRate } = settings;
    this.settings = settings;
    const limit = adaptive?.limit ?? (limits === undefined ? maxConcurrent : undefined);
    if (limit !== undefined) {
      this.ownLimiter = new ConcurrencyLimiter({
        maxConcurrent: limit,
        ...fairness,
        name,
        hooks: SILENT_HOOKS,
      });
      // Attached, and not the limiter's own: a permit whose holder waits for a window is no call to the service.
      this.#detach = adaptive?.attach(this.ownLimiter);
    }
    enableRedaction();
    if (keyed) registerKeys(keys.map(({ key }) => key));
    this.ring = new KeyRing(settings);
    this.shared = limits?.gate({
      name,
      hooks,
      maxConcurrent,
      fairness,
      sharedRate,
      keys: this.ring.sharedKeys(),
      onKey: (key, why, ms) => this.ring.onSharedKey(key, why, ms),
    });
    const { ownLimiter, shared } = this;
    this.ring.shared = shared?.starts;
    this.foreignLimiter =
      ownLimiter !== undefined && shared?.limiter !== undefined
        ? new LayeredLimiter(ownLimiter, shared.limiter)
        : (settings.limiter ?? shared?.limiter);
    const isLimiterPaused = (): boolean => {
      try {
        return this.foreignLimiter?.stats().paused === true;
      } catch {
        // Those of the host's limiter.
        return false;
      }
    };
    this.startQueue =
      shared === undefined
        ? new StartQueue(this.ring, isLimiterPaused)
        : new SharedStartQueue(this.ring, isLimiterPaused, shared.starts);
    this.cooldownQueue = new CooldownQueue(this.ring);
    this.ring.onCapacity = () => {
      if (this.queued === 0) return;
      this.startQueue.check();
      this.cooldownQueue.check();
    };
    this.ring.onCooldown = () => this.#cooldownBegan();
    this.ring.onRestored = () => {
      this.#checkedUntilMs = new Map();
    };
    this.ring.heldMs = () => (this.isPaused ? Number.POSITIVE_INFINITY : (adaptive?.blockedForMs ?? 0));
  }

  /** What a call without a weight is taken to weigh. */
  estimateWeight(): number {
    return this.ring.countsWeight ? this.estimateUsage() : 1;
  }

  /** The same where only a budget counts it. */
  estimateUsage(): number {
    if (this.settings.usage === undefined) return 1;
    return Math.min(this.ring.maxWeight, Math.ceil(this.#averageUsage ?? FIRST_ESTIMATE));
  }

  /** What `estimate` makes of a request, where a window counts weight. Never throws. */
  estimateRequest(request: () => unknown, hasBudget: boolean): number | undefined {
    const { ring, settings } = this;
    if (settings.estimate === undefined || !(ring.countsWeight || hasBudget)) return undefined;
    try {
      const weight = settings.estimate(request());
      if (isWeight(weight)) return Math.min(ring.maxWeight, Math.ceil(weight));
      ignoreRejection(weight);
    } catch {}
    return undefined;
  }

  /** Learns what a call weighed. */
  noteUsage(actual: number): void {
    const average = this.#averageUsage ?? actual;
    this.#averageUsage = average + (actual - average) * USAGE_SMOOTHING;
  }

  /** Starts nothing until `resume`. */
  pause(): void {
    this.isPaused = true;
  }

  resume(): void {
    this.isPaused = false;
    this.startQueue.check();
  }

  /** Ends the calls that cannot wait for the end of a cooldown, if one has begun or became longer. */
  #cooldownBegan(): void {
    const until = this.ring.closedUntilMs(this.ring.now());
    let isLonger = false;
    for (const [weightClass, untilMs] of until)
      if (untilMs > (this.#checkedUntilMs.get(weightClass) ?? 0) + MIN_EXTENSION_MS) isLonger = true;
    if (!isLonger) return;
    this.#checkedUntilMs = until;
    this.#checksAgain = true;
    if (this.#unchecked === undefined) this.#checkWaiting();
  }

  /** Checks a batch of the waiting calls, and the others in the next turns of the event loop. */
  #checkWaiting(): void {
    if (this.#unchecked === undefined) {
      this.#unchecked = this.open.values();
      this.#checksAgain = false;
    }
    let ended = 0;
    // Each that ends has an error of its own to make.
    for (let checked = 0; checked < CHECKS_PER_TURN && ended < PER_TURN; checked++) {
      const { done, value: call } = this.#unchecked.next();
      if (done) {
        this.#unchecked = undefined;
        break;
      }
      if (call.recheck()) ended++;
    }
    if (this.#unchecked !== undefined || this.#checksAgain) afterThisTurn(() => this.#checkWaiting());
  }

  /** Whether a call may start without a queue, where none waits. */
  get startsAtOnce(): boolean {
    return this.foreignLimiter === undefined && this.shared === undefined;
  }

  /** A position in the order in which attempts were requested. */
  nextTurn(): number {
    return ++this.#turns;
  }

  /** An attempt has released what it held. */
  releaseHeld(): void {
    if (--this.held === 0) this.#onIdle?.();
  }

  /**
   * Closes the gate's own limiter, once no call can request a permit, and leaves what is shared when no attempt holds
   * anything.
   */
  async close(): Promise<void> {
    this.#detach?.();
    this.ownLimiter?.close().catch(() => {});
    if (this.held > 0)
      await new Promise<void>((resolve) => {
        this.#onIdle = resolve;
      });
    await this.shared?.close().catch(() => {});
  }
}
